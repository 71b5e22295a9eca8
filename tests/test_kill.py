"""Commands that are killed at any moment, and called again: they go on, end bit-equal to a run that nobody disturbed, and leave nothing half-made.

For another command: `check_kills(tmp_path, lambda out: ['evaluate', ..., '--out', str(out)])`, and `contents=` where files say when they were made.
Two moments each, for a suite that people run; `STYLEKIT_KILLS=20` for the full count."""
import hashlib, json, os, random, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
from safetensors import safe_open
from stylekit import sample, samples

KILLS = int(os.environ.get('STYLEKIT_KILLS', 2))
CRUMBS = re.compile(r'\..*stylekit-.*|\.stylekit\.lock|work|training\.pt|best\.pt|.*\.tmp')   # names that no finished run leaves


def start(args, cwd)->subprocess.Popen:
    "The command line in a process group of its own, on one thread, without a network"
    env = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PYTHONHASHSEED='0')
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parents[1]), env.get('PYTHONPATH', '')])
    code = 'import sys; from stylekit.cli import main; sys.exit(main())'
    return subprocess.Popen([sys.executable, '-c', code, *args], cwd=cwd, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def to_the_end(args, cwd)->float: # seconds
    t, p = time.time(), start(args, cwd)
    said, _ = p.communicate(timeout=600)
    assert p.returncode == 0, f'{args} ended with {p.returncode}:\n{said[-2000:]}'
    return time.time()-t

def kill_after(args, cwd, seconds)->bool: # whether it was still running
    "Start the command and kill it with all its children"
    p = start(args, cwd)
    try: p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
    return p.returncode == -signal.SIGKILL

def file_contents(path:Path):
    "What must be equal: of safetensors tensors and text, since its header has no fixed order and our seal covers it; else all bytes"
    if path.suffix != '.safetensors': return hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, 'np') as f: tensors, meta = {k: f.get_tensor(k).tobytes() for k in f.keys()}, f.metadata() or {}
    text = {k: v for k, v in meta.items() if 'stylekit-sha256:' not in v}
    return hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest(), text

def folder_contents(folder, contents=file_contents)->dict: # path in the folder -> what it holds; None: of no matter
    files = {str(p.relative_to(folder)): p for p in sorted(Path(folder).rglob('*')) if p.is_file()}
    return {name: contents(p) for name, p in files.items()}

def crumbs(folder)->list: return [str(p.relative_to(folder)) for p in Path(folder).rglob('*') if CRUMBS.fullmatch(p.name)]

def moments(seconds:float, n:int, seed:int)->list:
    "`n` random moments of a run, spread over all of it"
    g = random.Random(seed)
    return [seconds*(i+g.random())/n for i in range(n)]

WHOLE = {}   # a command without the paths of its test -> what a run leaves that nobody disturbed, and its seconds

def undisturbed(tmp_path:Path, command, contents, cwd)->tuple: # as for `check_kills`; from `WHOLE`
    "What the command leaves, asked for once in all tests"
    key = tuple(a.replace(str(tmp_path), '') for a in command(tmp_path/'whole'))
    if key in WHOLE: return WHOLE[key]
    if not WHOLE: to_the_end(command(tmp_path/'warm'), cwd)     # the first run of all compiles and caches
    seconds = to_the_end(command(tmp_path/'whole'), cwd)
    assert not crumbs(tmp_path/'whole')
    WHOLE[key] = folder_contents(tmp_path/'whole', contents), seconds
    assert WHOLE[key][0]
    return WHOLE[key]

def check_kills(tmp_path:Path,
                command, # command(out) -> arguments of `stylekit`
                contents=file_contents, # contents(path) -> what must be the same in both runs
                kills:int=None, seed:int=0, cwd=None
               )->int: # how often it was hit while it ran
    "Kill the command at random moments, each time in a fresh folder, call it again, and compare with a run left alone"
    cwd = cwd or tmp_path
    whole, seconds = undisturbed(tmp_path, command, contents, cwd)
    hits = 0
    for i, moment in enumerate(moments(seconds, kills or KILLS, seed)):
        out = tmp_path/f'killed-{i}'
        hits += kill_after(command(out), cwd, moment)
        to_the_end(command(out), cwd)
        assert folder_contents(out, contents) == whole, f'killed after {moment:.2f} of {seconds:.2f} s'
        assert not crumbs(out), f'killed after {moment:.2f} of {seconds:.2f} s'
    print(f'hit {hits} of {i+1} times, in runs of {seconds:.1f} s that leave {len(whole)} files')
    return hits


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'pictures'
    folder.mkdir()
    for n in samples(): sample(n, 'ink').resize((80, 64)).save(folder/f'{n}.png')
    return folder

def test_train_lora(models, pictures, tmp_path):
    def command(out): return ['train-lora', str(pictures), '--name', 'mine', '--out', str(out), '--backbone', str(models('sd15')), '--steps', '120', '--rank', '2', '--batch', '2']
    assert check_kills(tmp_path, command) > 0

def manifest_contents(path:Path):
    "As `file_contents`; of a manifest's lines all but what the clock and the number of calls decide, and the hash over it"
    if path.name != 'manifest.jsonl': return file_contents(path)
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    return [{k: v for k, v in line.items() if k not in ('seconds', 'made', 'sha256')} for line in lines]

def stylize_pictures(pictures, out, *more)->list:
    return ['stylize', str(pictures), '--out', str(out), '--steps', '6', '--batch', '2', *more]

def test_stylize_folder(pictures, tmp_path):
    assert check_kills(tmp_path, lambda out: stylize_pictures(pictures, out), manifest_contents) > 0

def train_generator(pictures, out, *more)->list:
    return ['train-feedforward', str(pictures), '--name', 'g', '--out', str(out), '--steps', '8', '--batch', '4', *more]

def test_train_feedforward(pictures, tmp_path):
    "A teacher, its lessons, and the pupil"
    assert check_kills(tmp_path, lambda out: train_generator(pictures, out)) > 0

@pytest.fixture
def grid(tmp_path):
    for n, kind in dict(owl='animal', penguin='animal', taxi='vehicle', airplane='vehicle').items():
        for look in ('flat', 'ink'):
            folder = tmp_path/'grid'/look/kind
            folder.mkdir(parents=True, exist_ok=True)
            sample(n, look).resize((64, 64)).save(folder/f'{n}.png')
    return tmp_path/'grid'

def train_control(grid, out, *more)->list: return ['train-control-clip', str(grid), '--out', str(out), '--steps', '150', '--batch', '4', *more]

def test_train_control_clip(grid, tmp_path):
    assert check_kills(tmp_path, lambda out: train_control(grid, out)) > 0

def check_two_at_once(tmp_path:Path,
                      command, # command(out, *more) -> arguments of `stylekit`
                      sign:str, # what lies in `out` as soon as the first has begun
                      name:str, # of the folder that the second is refused in
                      others=((), ('--seed', '1', '--overwrite')), # what else the second asks for, one after the other
                      contents=file_contents):
    "The second is refused in one line, and the first ends as if it had been alone"
    whole, _ = undisturbed(tmp_path, command, contents, tmp_path)
    first = start(command(tmp_path/'c'), tmp_path)
    while not (tmp_path/'c'/sign).exists() and first.poll() is None: time.sleep(.05)
    assert first.poll() is None, 'it ended before the second began'
    os.killpg(first.pid, signal.SIGSTOP)   # it holds the folder as long as the others need to come
    for more in others:
        second = start(command(tmp_path/'c', *more), tmp_path)
        said, _ = second.communicate(timeout=300)
        last = said.splitlines()[-1]
        assert second.returncode == 2 and f'another run is writing into {name!r}' in last and 'Traceback' not in said, said
    os.killpg(first.pid, signal.SIGCONT)
    said, _ = first.communicate(timeout=600)
    assert first.returncode == 0, said
    assert folder_contents(tmp_path/'c', contents) == whole and not crumbs(tmp_path/'c')

def test_two_trainings_in_one_folder(grid, tmp_path):
    check_two_at_once(tmp_path, lambda out, *more: train_control(grid, out, *more), 'work', 'c')

def test_two_folder_runs_into_one(pictures, tmp_path):
    check_two_at_once(tmp_path, lambda out, *more: stylize_pictures(pictures, out, *more), '.stylekit.lock', 'c', [('--style', 'flat', '--overwrite')], manifest_contents)

def test_two_trainings_of_one_generator(pictures, tmp_path):
    check_two_at_once(tmp_path, lambda out, *more: train_generator(pictures, out, *more), 'g/.stylekit.lock', 'g', [('--seed', '1', '--overwrite')])

def test_the_helper_sees_crumbs_and_differences(tmp_path):
    for name in ('a.png', '.stylekit.lock', '.a.stylekit-abcd-12-00000000.png', '.a.training.stylekit-abcd-12-00000000.pt'): (tmp_path/name).write_bytes(b'x')
    (tmp_path/'work').mkdir()
    assert len(crumbs(tmp_path)) == 4
    before = folder_contents(tmp_path)
    (tmp_path/'a.png').write_bytes(b'y')
    assert folder_contents(tmp_path) != before
    assert moments(10., 5, 0) == sorted(moments(10., 5, 0)) and max(moments(10., 5, 0)) < 10 and moments(10., 5, 1) != moments(10., 5, 0)

@pytest.fixture
def evaluation(tmp_path):
    "Four pictures, with truths and references, and two methods"
    home = tmp_path/'set'
    for kind, look, names in (('.', 'shaded', samples()[:4]), ('truth/ink', 'ink', samples()[:4]), ('references/ink', 'ink', samples()[4:])):
        (home/kind).mkdir(parents=True, exist_ok=True)
        for n in names: sample(n, look).resize((64, 64)).save(home/kind/f'{n}.png')
    few = dict(steps=4, lr=.05)
    (tmp_path/'methods.json').write_text(json.dumps(dict(unchanged=None, dds=few | dict(method='dds'), sms=few)))
    return home

def evaluate(home, out, *more)->list: return ['evaluate', str(home), '--methods', str(home.parent/'methods.json'), '--out', str(out), *more]

def test_evaluate(evaluation, tmp_path):
    "Pictures, kept measurements, tables and sheets"
    assert check_kills(tmp_path, lambda out: evaluate(evaluation, out, '--batch', '3')) > 0

def test_two_evaluations_in_one_folder(evaluation, tmp_path):
    "The second is refused in one line, also where it would replace the tables, and the first ends as if it had been alone"
    to_the_end(evaluate(evaluation, tmp_path/'alone'), tmp_path)
    first, out = start(evaluate(evaluation, tmp_path/'e'), tmp_path), tmp_path/'e'
    while not (out/'evaluation.json').exists() and first.poll() is None: time.sleep(.02)
    assert first.poll() is None, 'it ended before the second began: give it more steps'
    tried = 0
    for more in (), ('--seeds', '1', '--overwrite'):
        second = start(evaluate(evaluation, out, *more), tmp_path)
        said, _ = second.communicate(timeout=300)
        if first.poll() is not None: break
        last, tried = said.splitlines()[-1], tried+1
        assert second.returncode == 2 and "another run is writing into 'e'" in last and 'Traceback' not in said, said
    said, _ = first.communicate(timeout=600)
    assert first.returncode == 0 and tried, said
    if tried == 2: assert folder_contents(out) == folder_contents(tmp_path/'alone') and not crumbs(out)
