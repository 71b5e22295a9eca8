"Recipes, tables, kept measurements: a later change is refused in one line; an earlier version's are read by types"
import json
from dataclasses import asdict
import pytest
from stylekit import StylekitError
from stylekit.measure.evaluate import Row, Table, read_table
from stylekit.app.live import Recipe, load_recipe
from stylekit.measure.metrics import Measured
from stylekit.studies.control import kept, read_kept
from stylekit.studies.tables import Search
from stylekit.records import Kept, read_json, write_json
from stylekit.methods.sms import settings
from sweeps import check_full_disk, json_mutants, resealed, sweep, sweep_file


def measured(value):
    each = (value-.5, value, value+.5)
    return Measured(value, 'distance_src[mini]', 'mini', '0'*64, '128×128', 'bicubic', 'clip', 'mean', 3,
                    ids=('a', 'b', 'c'),
                    each=each, interval=(value-.1, value+.1))

def table():
    few = Measured(.1, 'kid', n=3, n_ref=9, note='few')
    rows = [Row('ink', 'sms', 2, dict(distance_src=measured(1.25))), Row('flat', 'dds', 1, dict(kid=few))]
    return Table(rows, dict(distance_src=False, kid=False), {('dds', 'flat', 0, 'd'): 'the picture is empty'})

def recipe():
    changes = [(3, dict(lam=1.)), (5, dict(protect='data:image/png;base64,AA=='))]
    about = dict(control_sha256='1'*64, alpha=.5, combine='lerp', blocks={})
    changed = {k: v for k, v in asdict(settings()).items() if k in ('method', 'steps', 'lam')}
    return Recipe('0'*64, 'an owl – größer', [('ink', .5), ('flat', 1.)], changed, 7, changes, steps_done=9,
                  control=about, style_sha256='2'*64, regions=['letters: HONEY'], limits=dict(edge_f1=.8),
                  match_color=dict(how='source', strength=.5))

SEARCH = Search(dict(method='sms', lam=.05), (('ink', dict(method='sms'), dict(style=.5, edge_f1_src=1.)),))

def keep(path): return kept(path.parent, path.stem, lambda: dict(value=.5, each=[0., 1.]), 'key')

def load_kept(path): return Kept('', read_kept(path.parent, path.stem)[path.stem])

# write(path), read(path) -> a record
FORMATS = dict(recipe=(lambda path: recipe().save(path), load_recipe),
               table=(lambda path: table().save(path, 'these'), lambda path: read_table(path).to_file('these')),
               kept=(keep, load_kept),
               search=(lambda path: write_json(path, SEARCH), lambda path: read_json(path, Search)))

@pytest.fixture(params=FORMATS)
def sealed(request, tmp_path):
    write, read = FORMATS[request.param]
    path = tmp_path/f'{request.param}.json'
    write(path)
    return path, read

def body(data): return {k: v for k, v in data.items() if k not in ('kind', 'sha256')}

def test_bytes(sealed):
    path, read = sealed
    assert sweep_file(path, read, same=read(path), flips=150) > 100

def test_keys(sealed):
    "With the hash as it was: nothing but the good one is read"
    path, read = sealed
    good, data = read(path), json.loads(path.read_text(encoding='utf-8'))
    def of(mutant):
        path.write_text(json.dumps(mutant))
        return read(path)
    assert sweep(of, json_mutants(data), good) > 50

def test_types(sealed):
    "With a hash that fits: refused by type, or just what the file says"
    path, read = sealed
    if path.stem == 'kept': pytest.skip('its result may be anything')
    def of(mutant):
        path.write_text(json.dumps(resealed(mutant) if isinstance(mutant, dict) else mutant))
        got = json.loads(json.dumps(read(path).to_json()))
        unused = {'key'} if got.get('ids', True) else {'key', 'ids'}   # names that no value has any more
        wrong = [k for k, v in body(mutant).items() if k not in unused and got[k] != v]
        assert not wrong, wrong
    assert sweep(of, json_mutants(json.loads(path.read_text(encoding='utf-8')))) > 50

def test_without_a_hash(sealed):
    "Of an earlier version, or edited by a person who took it out"
    path, read = sealed
    good, data = read(path), json.loads(path.read_text(encoding='utf-8'))
    for old in (body(data), {k: v for k, v in data.items() if k != 'sha256'}):
        path.write_text(json.dumps(old))
        if path.stem in ('recipe', 'table'): assert read(path) == good
        else:
            with pytest.raises(StylekitError, match=path.name): read(path)   # made anew, not edited
    eggs = dict(data, kind='egg'), dict(body(data), kind='egg')
    for foreign in (*eggs, dict(body(data), colour='red'), [], None, 'x'):
        path.write_text(json.dumps(foreign))
        with pytest.raises(StylekitError, match=path.name): read(path)

CHANGES = [dict(seed=8), dict(caption='a cat'), dict(style=[['flat', 1.]]), dict(stylekit='9')]
@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_recipe_says_what_to_do(change):
    data = json.loads(recipe().text()) | change
    for given in (data, json.dumps(data)):
        with pytest.raises(StylekitError, match="the recipe was changed.*take 'sha256' out"): load_recipe(given)
    del data['sha256']
    read = load_recipe(data).to_json()
    assert read | change == json.loads(json.dumps(read)) | change != recipe().to_json()

def test_a_dict_that_is_no_json():
    for odd in (object(), {1, 2}, b'x'):
        with pytest.raises(StylekitError): load_recipe(json.loads(recipe().text()) | dict(caption=odd))

def test_a_table_comes_back_whole(tmp_path):
    path = table().save(tmp_path/'t.json', 'these')
    again = read_table(path, 'these')
    assert again == table() and again.markdown() == table().markdown() and read_table(path, 'others') is None
    def values(t): return [(v.ids, v.each) for r in t.rows for v in r.values.values()]
    assert values(again) == values(table())
    assert len(path.read_text().splitlines()) == 3   # a row, a line: what changed is seen in a diff

def first(data): return data['rows'][0]['values']['distance_src']

@pytest.mark.parametrize('wrong, why', [
    (lambda d: first(d).update(ids=1), 'index'),
    (lambda d: first(d).update(each=[1.]), '1 values for 3 pictures'),
    (lambda d: d['ids'].__setitem__(0, []), '3 values for 0 pictures'),
    (lambda d: d['high'].pop('kid'), 'kid'),
    (lambda d: first(d).update(ids=-1), 'at least 0')])
def test_a_table_that_does_not_hold_together(tmp_path, wrong, why):
    path = table().save(tmp_path/'t.json')
    data = json.loads(path.read_text())
    wrong(data)
    path.write_text(json.dumps(resealed(data)))
    with pytest.raises(StylekitError, match=f't.json.*{why}'): read_table(path)

def test_a_table_with_nan_is_not_written(tmp_path):
    path = table().save(tmp_path/'t.json')
    before = path.read_bytes()
    row = Row('ink', 'sms', 1, dict(distance_src=measured(float('nan'))))
    with pytest.raises(StylekitError, match='cannot be saved'): Table([row], dict(distance_src=False)).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['t.json']

def test_what_is_kept_is_measured_anew_where_it_depends_on_something_else(tmp_path):
    assert kept(tmp_path, 'a', lambda: [1], 'x') == kept(tmp_path, 'a', None, 'x') == [1]
    assert kept(tmp_path, 'a', lambda: [2], 'y') == [2]
    data = json.loads((tmp_path/'a.json').read_text())
    (tmp_path/'a.json').write_text(json.dumps(data | dict(got=[3])))
    def again(key): return kept(tmp_path, 'a', lambda: [4], key)
    for ask in (lambda: again('y'), lambda: again('z'), lambda: read_kept(tmp_path)):
        with pytest.raises(StylekitError, match='a.json was changed.*delete it'): ask()

@pytest.mark.parametrize('name', FORMATS)
def test_a_full_disk_keeps_the_old_one(tmp_path, monkeypatch, name):
    path, write = tmp_path/'new'/f'{name}.json', FORMATS[name][0]
    check_full_disk(monkeypatch, path, lambda: write(path))                    # there was none
    other = dict(recipe=lambda: load_recipe(recipe().to_json() | dict(seed=1)).save(path),
                 table=lambda: table().save(path, 'others'),
                 kept=lambda: kept(path.parent, path.stem, lambda: [1], 'another key'),
                 search=lambda: write_json(path, Search({}, ())))
    check_full_disk(monkeypatch, path, other[name])                            # over another

# ---- what an evaluation keeps, and what it is told

def measurement(path, value=1.25):
    "What `evaluate` keeps of a metric, as it is written and read"
    from stylekit.measure.evaluate import Metric, Shown, _measured_once
    return _measured_once(path, Metric(lambda s, net: measured(value)), Shown({}, {}, {}, []), None)

def kept_value(path):
    got = measurement(path)
    return {k: getattr(got, k) for k in got.__dataclass_fields__}   # also what does not count where two are compared

def test_kept_measurements(tmp_path):
    "Every key missing, of another type, null, huge; cut, appended, flipped: one line, or the same value"
    path = tmp_path/'distance_src-0123.json'
    first, again = kept_value(path), kept_value(path)
    assert first == again and path.exists()
    data = json.loads(path.read_text())
    assert sweep_file(path, kept_value, same=first, flips=150) > 100
    def of(mutant):
        path.write_text(json.dumps(mutant))
        return kept_value(path)
    assert sweep(of, json_mutants(data), first) > 200                       # the hash as it was
    def resealed_of(mutant):
        path.write_text(json.dumps(resealed(mutant) if isinstance(mutant, dict) else mutant))
        got = json.loads(json.dumps(kept_value(path)))
        wrong = [k for k, v in body(mutant).items() if got['sha256' if k == 'network_sha256' else k] != v]
        assert not wrong, wrong
    # One that fits: refused by type, or just what the file says
    assert sweep(resealed_of, json_mutants(data)) > 200

def test_kept_measurements_are_nobody_elses(tmp_path):
    "A table, a recipe or another record in its place is refused by its name, and what is NaN is not kept"
    path = tmp_path/'distance_src-0123.json'
    writes = (lambda: table().save(path), lambda: recipe().save(path), lambda: write_json(path, SEARCH),
              lambda: path.write_text('null'), lambda: path.write_bytes(b'\xff\xfe'))
    for write in writes:
        write()
        with pytest.raises(StylekitError, match='distance_src-0123.json'): measurement(path)
    path.unlink()
    for value in (float('nan'), float('inf')):
        with pytest.raises(StylekitError, match=r'distance_src\[mini\] is NaN or infinite'): measurement(path, value)
    assert not path.exists()

METHODS_FILE = dict(
    unchanged=None,
    usual={},
    mine=dict(method='sms', steps=30, lr=.05, lam=.3, sampler='narrowing'),
    rival=dict(method='dds', guidance_scale=2.),
    once=dict(feedforward='ink'))

def methods_of(path):
    from stylekit.cli import METHOD_NAMES
    from stylekit.measure.evaluate import _methods
    try: return _methods(METHOD_NAMES.read(str(path)))
    except StylekitError: raise
    except ValueError as e: raise StylekitError(str(e))   # as the command line says it: one line

def test_methods_json(tmp_path):
    "Every key missing, of another type, null, huge: one line, or just what the file says"
    path = tmp_path/'methods.json'
    def of(mutant):
        path.write_text(json.dumps(mutant))
        got = methods_of(path)
        assert got == mutant
        for how in got.values(): # and each is a setting of the right type
            if how is not None and 'feedforward' not in how: settings(**how)
    assert sweep(of, json_mutants(METHODS_FILE)) > 150

def test_the_bytes_of_methods_json(tmp_path):
    "Cut, appended, flipped: one line, or just what the file says; names twice, NaN, endless nesting are no settings"
    path = tmp_path/'methods.json'
    path.write_text(json.dumps(METHODS_FILE))
    def read(path):
        got = methods_of(path)
        assert got == json.loads(path.read_bytes())
    assert sweep_file(path, read, flips=200) > 100
    for raw, why in (
        (b'{"a": {}, "a": {"steps": 3}}', 'twice'),
        (b'{"a": {"lr": NaN}}', 'NaN'),
        (b'['*100_000, 'nested'),
        (b'{"a": '*2000+b'1'+b'}'*2000, 'nested|object'),
        (b'\xff', 'damaged'),
        (b'', 'damaged'),
        (b'{}', 'object'),
        (b'[{}]', 'object')):
        path.write_bytes(raw)
        with pytest.raises(StylekitError, match=why): methods_of(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": {}}')   # with a mark, as some editors write it
    assert methods_of(path) == dict(a={})

def test_a_full_disk_and_what_an_evaluation_keeps(tmp_path, monkeypatch):
    path = tmp_path/'kept'/'distance_src-0123.json'
    check_full_disk(monkeypatch, path, lambda: measurement(path))
    for what in (dict(labels=dict(kid=('bold', 'How bold.'))), dict(lacks=dict(ink='no references'))):
        t = Table(table().rows, table().high, **what)
        assert read_table(t.save(tmp_path/'t.json')) == t
