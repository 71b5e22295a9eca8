"""What can happen to a structured file, one by one: it must be refused in one line, or read as if nothing had happened

    sweep(lambda data: Recipe.from_json(data), json_mutants(good), same=Recipe.from_json(good))
    sweep_file(path, read)                       # cut, appended, bits flipped
    sweep_file(path, read, json_mutants)         # a JSON file: its keys as well
"""
import copy, errno, json, math, os, random
from contextlib import contextmanager
from pathlib import Path
import safetensors.torch, torch
from stylekit import StylekitError
from stylekit.records import payload_hash

HUGE = (2**63, -10**400, 'x'*1_000_000)
ODD = (None, True, 3, -1, .5, 'x', '', [], {}, [None], {'x': 1})


def places(data, path=(), deep=None):
    "The path of every key and of the first and last item of every list, `deep` levels down"
    if isinstance(data, dict): items = list(data.items())
    elif isinstance(data, (list, tuple)) and data: items = list({0: data[0], len(data)-1: data[-1]}.items())
    else: items = []
    for key, value in items:
        yield (*path, key)
        if len(path)+1 != deep: yield from places(value, (*path, key), deep)

def changed_at(data, path, change):
    "A copy with `change(container, key)` made at `path`; tuples become lists on the way"
    if len(path) > 1:
        out = list(data) if isinstance(data, tuple) else copy.copy(data)
        out[path[0]] = changed_at(data[path[0]], path[1:], change)
        return out
    out = list(data) if isinstance(data, tuple) else copy.copy(data)
    change(out, path[0])
    return out

def at(data, path):
    for key in path: data = data[key]
    return data

def alike(a, b)->bool:
    "Are two values the same, tensors and NaN included?"
    def both(kind): return isinstance(a, kind) and isinstance(b, kind)
    if both(torch.Tensor): return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor): return False
    if both(dict): return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if both((list, tuple)): return len(a) == len(b) and all(map(alike, a, b))
    if both(float) and math.isnan(a): return math.isnan(b)
    return type(a) is type(b) and a == b

def other_tensors(t):
    "Another shape, another type, NaN"
    yield 'another shape', torch.zeros(*t.shape, 2, dtype=t.dtype)
    yield 'another type', t.to(torch.int64 if t.is_floating_point() else torch.float32)
    if t.is_floating_point() and t.numel(): yield 'NaN', torch.full_like(t, torch.nan)

def json_mutants(data, deep=None): # how many levels down; None: all
    """(what was done, changed copy) for every key of an object of JSON, or of a torch state:
    missing, null, of another type, huge, NaN; and one key too many"""
    for path in places(data, deep=deep):
        name, old = '.'.join(map(str, path)), at(data, path)
        yield f'{name}: missing', changed_at(data, path, lambda c, k: c.__delitem__(k))
        others = [*ODD, *HUGE, math.nan, math.inf]
        if isinstance(old, torch.Tensor): others += [v for _, v in other_tensors(old)]
        for value in others:
            if alike(value, old): continue
            what = f'{name}: {type(value).__name__} {str(value)[:20]}'
            yield what, changed_at(data, path, lambda c, k: c.__setitem__(k, value))
    for value in ODD:
        if not alike(value, data): yield f'all of it: {value!r}', value
    if isinstance(data, dict): yield 'one key too many', data | {'extra': 1}

def keys_only(data):
    "The mutants of `json_mutants` that take a key away, or put null or text there: a short sweep for slow readers"
    for what, mutant in json_mutants(data):
        if what.endswith((': missing', ': NoneType None', ': str x')): yield what, mutant

def resealed(data:dict)->dict:
    "The object with a hash that fits it: what remains is the types"
    body = {k: v for k, v in data.items() if k != 'sha256'}
    try: return body | dict(sha256=payload_hash(body))
    except (TypeError, ValueError): return data

def byte_mutants(raw:bytes, flips:int=24, cuts:int=6, seed:int=0):
    "(what was done, other bytes): cut, appended, one bit flipped"
    g = random.Random(seed)
    def drawn(n): return {g.randrange(len(raw)) for _ in range(n)}
    for n in sorted({0, 1, len(raw)//2, len(raw)-1} | drawn(cuts)): yield f'cut to {n} bytes', raw[:n]
    for tail in (b'\0', b'x', b'{}', raw): yield f'{len(tail)} bytes appended', raw+tail
    for i in sorted({0, len(raw)-1} | drawn(flips)):
        bit = 1 << g.randrange(8)
        yield f'bit {bit} of byte {i} flipped', raw[:i] + bytes([raw[i]^bit]) + raw[i+1:]

def complaint(read, mutant, same)->str:
    "What is wrong with how a mutant is read; '' if nothing"
    try: got = read(mutant)
    except StylekitError as e:
        one_line = '\n' not in str(e) and 0 < len(str(e)) <= 300
        return '' if one_line else f'not one line: {str(e)[:80]!r}'
    except Exception as e: return f'{type(e).__name__}: {str(e)[:80]}'
    return '' if alike(got, same) else 'accepted'

def sweep(read, # of a mutant
          mutants, # (what was done, mutant)
          same=None, # what `read` gives for the good one: it may come out unharmed
          may_differ=() # endings of what was done that may be read as another value, as 'caption: str x'
         )->int: # how many were tried
    "Read every mutant: one `StylekitError` of one line, or the same as ever; anything else is listed"
    wrong, n = [], 0
    for what, mutant in mutants:
        n += 1
        fault = complaint(read, mutant, same)
        if fault == 'accepted' and what.endswith(tuple(may_differ)): continue
        if fault: wrong.append(f'{what}: {fault}')
    assert n, 'nothing to try'
    assert not wrong, f'{len(wrong)} of {n}:\n'+'\n'.join(wrong[:40])
    return n

def sweep_file(path, read, # of the path
               mutants=None, # of the JSON in it, as `json_mutants`; its own hash is mended after each
               same=None, may_differ=(), flips:int=24, seed:int=0)->int:
    "Change a file in every way and read it; it is put back in the end"
    path = Path(path)
    raw = path.read_bytes()
    def of_bytes(b):
        path.write_bytes(b)
        return read(path)
    def of_json(data):
        if isinstance(data, dict) and 'sha256' in data: data = resealed(data)
        return of_bytes(json.dumps(data).encode())
    try:
        n = sweep(of_bytes, byte_mutants(raw, flips, seed=seed), same, may_differ)
        if mutants: n += sweep(of_json, mutants(json.loads(raw)), same, may_differ)
    finally: path.write_bytes(raw)
    return n

@contextmanager
def full_disk(monkeypatch, path # of the file that no longer fits
             ):
    "The disk is full as soon as the bytes of this file are to be kept; of safetensors, half of them have been written"
    path = Path(path)
    real, real_save = os.fsync, safetensors.torch.save_file
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def is_it(tmp):
        return Path(tmp).parent == path.parent and Path(tmp).name.startswith(f'.{path.stem[:60]}.stylekit-')
    def fsync(f):
        here = os.fstat(f if isinstance(f, int) else f.fileno())
        for p in filter(is_it, path.parent.glob('.*.stylekit-*')):
            if os.path.samestat(here, p.stat()): raise full
        return real(f)
    def save_file(state, tmp, *args, **kw):
        real_save(state, tmp, *args, **kw)
        if not is_it(tmp): return
        os.truncate(tmp, os.path.getsize(tmp)//2)
        raise safetensors.SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', fsync)
        m.setattr(safetensors.torch, 'save_file', save_file)
        yield

def check_full_disk(monkeypatch, path, save # save() writes `path`, where a good one may lie already
                   ):
    "One `StylekitError` that names the file, whatever was there stays as it was, and no crumb"
    path = Path(path)
    def there(): return {p.name: p.read_bytes() for p in path.parent.glob('*') if p.is_file()}
    before = there()
    with full_disk(monkeypatch, path):
        try: save()
        except StylekitError as e:
            assert path.name in str(e) and 'the disk is full' in str(e), e
            assert '\n' not in str(e), e
        else: raise AssertionError('it was saved')
    assert there() == before
    save()
    assert path.exists() and not [*path.parent.glob('.*.stylekit-*')]
