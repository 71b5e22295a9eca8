"Recipes, tables and kept measurements: what was changed after it was written is refused in one line, whatever was changed; what an earlier version wrote is read by its types"
import json
from dataclasses import asdict
import pytest
from stylekit import StylekitError
from stylekit.evaluate import Row, Table, read_table
from stylekit.live import Recipe, load_recipe
from stylekit.metrics import Measured
from stylekit.mini.control import Kept, kept, read_kept
from stylekit.mini.tables import Search
from stylekit.records import read_json, write_json
from stylekit.sms import settings
from sweeps import check_full_disk, json_mutants, resealed, sweep, sweep_file


def measured(value, metric='pd_src', **kw):
    each = (value-.5, value, value+.5)
    return Measured(value, f'{metric}[mini]', 'mini', '0'*64, '128×128', 'bicubic', 'clip', 'mean', 3, ids=('a', 'b', 'c'), each=each, interval=(value-.1, value+.1), **kw)

def table():
    rows = [Row('ink', 'sms', 2, dict(pd_src=measured(1.25))), Row('flat', 'dds', 1, dict(kid=Measured(.1, 'kid', n=3, n_ref=9, note='few')))]
    return Table(rows, dict(pd_src=False, kid=False), {('dds', 'flat', 0, 'd'): 'the picture is empty'})

def recipe():
    changes = [(3, dict(lam=1.)), (5, dict(keep='data:image/png;base64,AA=='))]
    about = dict(control_sha256='1'*64, alpha=.5, combine='lerp', blocks={})
    return Recipe('0'*64, 'an owl – größer', [('ink', .5), ('flat', 1.)], {k: v for k, v in asdict(settings()).items() if k in ('method', 'steps', 'lam')}, 7, changes, steps_done=9, conditioning=about, style_sha256='2'*64)

SEARCH = Search(dict(method='sms', lam=.05), (('ink', dict(method='sms'), dict(style=.5, edge_f1_src=1.)),))

# write(path), read(path) -> a record
FORMATS = dict(recipe=(lambda path: recipe().save(path), load_recipe),
               table=(lambda path: table().save(path, 'these'), lambda path: read_table(path).to_file('these')),
               kept=(lambda path: kept(path.parent, path.stem, lambda: dict(value=.5, each=[0., 1.]), 'key'), lambda path: Kept('', read_kept(path.parent, path.stem)[path.stem])),
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
        wrong = [k for k, v in body(mutant).items() if k != 'key' and got[k] != v and not (k == 'ids' and not got['ids'])]   # names that no value has any more
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
    for foreign in (dict(data, kind='egg'), dict(body(data), kind='egg'), dict(body(data), colour='red'), [], None, 'x'):
        path.write_text(json.dumps(foreign))
        with pytest.raises(StylekitError, match=path.name): read(path)

@pytest.mark.parametrize('change', [dict(seed=8), dict(caption='a cat'), dict(style=[['flat', 1.]]), dict(stylekit='9')])
def test_a_changed_recipe_says_what_to_do(change):
    data = json.loads(recipe().text()) | change
    for given in (data, json.dumps(data)):
        with pytest.raises(StylekitError, match="the recipe was changed.*take 'sha256' out"): load_recipe(given)
    del data['sha256']
    assert load_recipe(data).to_json() | change == json.loads(json.dumps(load_recipe(data).to_json())) | change != recipe().to_json()

def test_a_dict_that_is_no_json():
    for odd in (object(), {1, 2}, b'x'):
        with pytest.raises(StylekitError): load_recipe(json.loads(recipe().text()) | dict(caption=odd))

def test_a_table_comes_back_whole(tmp_path):
    path = table().save(tmp_path/'t.json', 'these')
    again = read_table(path, 'these')
    assert again == table() and again.markdown() == table().markdown() and read_table(path, 'others') is None
    assert [(v.ids, v.each) for r in again.rows for v in r.values.values()] == [(v.ids, v.each) for r in table().rows for v in r.values.values()]
    assert len(path.read_text().splitlines()) == 3   # a row, a line: what changed is seen in a diff

@pytest.mark.parametrize('wrong, why', [(lambda d: d['rows'][0]['values']['pd_src'].update(ids=1), 'index'), (lambda d: d['rows'][0]['values']['pd_src'].update(each=[1.]), '1 values for 3 pictures'), (lambda d: d['ids'].__setitem__(0, []), '3 values for 0 pictures'),
                                        (lambda d: d['high'].pop('kid'), 'kid'), (lambda d: d['rows'][0]['values']['pd_src'].update(ids=-1), 'at least 0')])
def test_a_table_that_does_not_hold_together(tmp_path, wrong, why):
    path = table().save(tmp_path/'t.json')
    data = json.loads(path.read_text())
    wrong(data)
    path.write_text(json.dumps(resealed(data)))
    with pytest.raises(StylekitError, match=f't.json.*{why}'): read_table(path)

def test_a_table_with_nan_is_not_written(tmp_path):
    path = table().save(tmp_path/'t.json')
    before = path.read_bytes()
    with pytest.raises(StylekitError, match='cannot be saved'): Table([Row('ink', 'sms', 1, dict(pd_src=measured(float('nan'))))], dict(pd_src=False)).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['t.json']

def test_what_is_kept_is_measured_anew_where_it_depends_on_something_else(tmp_path):
    assert kept(tmp_path, 'a', lambda: [1], 'x') == kept(tmp_path, 'a', None, 'x') == [1]
    assert kept(tmp_path, 'a', lambda: [2], 'y') == [2]
    data = json.loads((tmp_path/'a.json').read_text())
    (tmp_path/'a.json').write_text(json.dumps(data | dict(got=[3])))
    for ask in (lambda: kept(tmp_path, 'a', lambda: [4], 'y'), lambda: kept(tmp_path, 'a', lambda: [4], 'z'), lambda: read_kept(tmp_path)):
        with pytest.raises(StylekitError, match='a.json was changed.*delete it'): ask()

@pytest.mark.parametrize('name', FORMATS)
def test_a_full_disk_keeps_the_old_one(tmp_path, monkeypatch, name):
    path, write = tmp_path/'new'/f'{name}.json', FORMATS[name][0]
    check_full_disk(monkeypatch, path, lambda: write(path))                    # there was none
    other = dict(recipe=lambda: load_recipe(recipe().to_json() | dict(seed=1)).save(path), table=lambda: table().save(path, 'others'),
                 kept=lambda: kept(path.parent, path.stem, lambda: [1], 'another key'), search=lambda: write_json(path, Search({}, ())))
    check_full_disk(monkeypatch, path, other[name])                            # over another
