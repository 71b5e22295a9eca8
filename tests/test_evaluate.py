"Evaluation runs: what is made, what is made again, what is left out, and that rows are fair"
import csv, io, json
import numpy as np, pytest, torch
from stylekit import StylekitError, load_backbone, sample, samples, stylize
from stylekit.cli import main
from stylekit.images import load_image
from stylekit.evaluate import METRICS, Metric, Row, Table, evaluate, plan, read_dataset, run_job, scatter, sheet
from stylekit.metrics import Features, Measured, edge_f1, load_features, pd

FEW = dict(steps=2, lr=.05)


@pytest.fixture
def folder(tmp_path):
    "Four pictures with captions, truths and references"
    home = tmp_path/'set'
    for kind, names in (('.', samples()[:4]), ('truth/ink', samples()[:4]), ('references/ink', samples()[4:])):
        (home/kind).mkdir(parents=True, exist_ok=True)
        for n in names: sample(n, 'shaded' if kind == '.' else 'ink').resize((64, 64)).save(home/kind/f'{n}.png')
    return home

@pytest.fixture(scope='module')
def b(models): return load_backbone(models('sd15'))

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return Features('tiny', torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 3, 2)), 32, ['0', '2'])

@pytest.fixture(scope='module')
def ink(b, random_style, tmp_path_factory):
    import shutil
    home = tmp_path_factory.mktemp('styles')/'ink'
    home.mkdir()
    return str(shutil.copy(random_style(b), home/'ink.safetensors'))

def go(folder, tmp_path, ink, b, net, methods=None, **kw):
    said = []
    t = evaluate(folder, methods or dict(unchanged=None, sms=FEW), [ink], out=tmp_path/'out', backbone=b, net=net, report=said.append, **kw)
    return t, said

def test_table_and_files(folder, tmp_path, ink, b, net):
    t, said = go(folder, tmp_path, ink, b, net, seeds=[0, 1])
    assert [(r.method, r.seeds) for r in t.rows] == [('unchanged', 1), ('sms', 2)] and len(said) == 3 and t.metrics == list(METRICS)
    assert {p.name for p in (tmp_path/'out').glob('*.*')} == {'table.md', 'table.tex', 'table.csv', 'sheet-ink.png', 'scatter.png'}
    items = {i.id: i for i in read_dataset(folder)[0]}
    first = [d for d in (tmp_path/'out/images/ink').glob('sms-*')]
    by_hand = [pd({i: items[i].path for i in items}, {i: next(d.glob(f'{i}-*.png')) for i in items}, net).value for d in first]
    assert len(first) == 2 and abs(t.rows[1].values['pd_src'].value - sum(by_hand)/2) < 1e-9
    r = stylize(sample(samples()[0]).resize((64, 64)), ink, samples()[0].replace('-', ' '), backbone=b, seed=0, **FEW)
    far = [np.abs(np.asarray(load_image(next(d.glob(f'{samples()[0]}-*.png'))), int)-np.asarray(r.image)).max() for d in first]
    assert min(far) <= 2 < max(far)      # what `stylize` gives by itself, up to the rounding of batches; another seed is another picture

def test_nothing_is_made_twice_and_what_changed_is(folder, tmp_path, ink, b, net):
    go(folder, tmp_path, ink, b, net)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'out/images').rglob('*.png')}
    t, said = go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None, sms=FEW, more=FEW | dict(lam=1.)))
    assert said == [f'{ink}, more, seed 0: 4 of 4 pictures'] and all(p.stat().st_mtime_ns == t for p,t in made.items())
    name = samples()[0]
    sample(name).resize((64, 64)).transpose(0).save(folder/f'{name}.png')             # another picture under the old name
    before = t.rows[1].values['pd_src'].value
    t, said = go(folder, tmp_path, ink, b, net)
    assert len(said) == 2 and t.rows[1].values['pd_src'].value != before
    (folder/f'{name}.txt').write_text('something else')
    assert len(go(folder, tmp_path, ink, b, net)[1]) == 2
    next((tmp_path/'out/images').rglob('sms-*/*.png')).unlink()
    assert len(go(folder, tmp_path, ink, b, net)[1]) <= 1

def test_interrupted_runs_go_on(folder, tmp_path, ink, b, net, monkeypatch):
    import stylekit.evaluate as E
    calls, run = [], E.stylize
    def stop(*a, **kw):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return run(*a, **kw)
    monkeypatch.setattr(E, 'stylize', stop)
    with pytest.raises(KeyboardInterrupt): go(folder, tmp_path, ink, b, net, batch=2)
    assert len(list((tmp_path/'out/images').rglob('sms-*/*.png'))) == 2
    t, said = go(folder, tmp_path, ink, b, net, batch=2)
    assert len(calls) == 3 and t.rows[1].values['pd_src'].n == 4

def test_a_bad_picture_is_left_out_for_all(folder, tmp_path, ink, b, net):
    (folder/'broken.png').write_bytes(b'no picture'); (folder/'thin.png').write_bytes((folder/f'{samples()[0]}.png').read_bytes()[:300])
    with pytest.warns(UserWarning, match='is left out') as told: t, _ = go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
    assert all(any(name in str(w.message) for w in told) for name in ('broken.png', 'thin.png'))
    assert not t.failed and all(r.values['pd_src'].n == 4 for r in t.rows)

def test_a_fake_score_does_not_depend_on_company(folder, tmp_path, ink, b, net):
    "Batches of four and of one give one picture where φ learns"
    how = dict(vsd=dict(method='vsd', steps=2))
    pixels = []
    for batch in (4, 1):
        go(folder, tmp_path/str(batch), ink, b, net, methods=how, batch=batch, metrics=['pd_src'])
        pixels.append([load_image(p).tobytes() for p in sorted((tmp_path/str(batch)).rglob('vsd-*/*.png'))])
    assert pixels[0] == pixels[1]

def test_processes_share_the_work(folder, tmp_path, ink, models, net):
    "Two processes make what one makes"
    how = dict(unchanged=None, sms=FEW, dds=FEW | dict(method='dds'))
    tables = [evaluate(folder, how, [ink], ['pd_src', 'edge_f1_truth'], out=tmp_path/str(n), backbone=str(models('sd15')), net=net, workers=n) for n in (1, 2)]
    for x, y in zip(*(t.rows for t in tables)):
        assert all(abs(x.values[m].value-y.values[m].value) < 1e-3 for m in x.values), (x, y)

def test_orders_that_chance_decides_are_no_orders():
    at = lambda each, **kw: Measured(sum(each)/len(each), 'pd[x]', 'x', n=len(each), ids=tuple(range(len(each))), each=tuple(each), **kw)
    rows = [Row('ink', m, 1, dict(pd_src=at(v))) for m, v in dict(a=[1.]*9, b=[.7, 1.4, .9, 1.2, .7, 1.3, 1., .9, 1.], c=[1.5+.01*i for i in range(9)], unchanged=[0.]*9).items()]
    assert Table(rows, dict(pd_src=False)).best('ink', 'pd_src') == ['a', 'b'] and Table(rows, dict(pd_src=True)).best('ink', 'pd_src') == ['c']
    rows[1] = Row('ink', 'b', 1, dict(pd_src=at([1.]*9, sha256='other')))
    with pytest.raises(StylekitError, match='cannot be compared'): Table(rows, dict(pd_src=False)).best('ink', 'pd_src')

def test_formats(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None, **{'a_b 50%': FEW}), metrics=['pd_src', 'ssim_src'])
    lines = list(csv.DictReader(io.StringIO((tmp_path/'out/table.csv').read_text())))
    assert len(lines) == 4 and lines[2]['method'] == 'a_b 50%' and lines[2]['sha256'] == net.sha256 and lines[3]['backbone'] == 'pixels'
    assert r'a\_b 50\%' in t.latex() and 'pd_src[tiny] ↓' in t.markdown() and 'ssim_src ↑' in t.markdown()
    assert len({l.count('|') for l in t.markdown().splitlines()}) == 1

def test_own_metrics(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net, metrics=dict(kept=Metric(lambda s, net: edge_f1(s.contents, s.outputs), True)))
    assert t.metrics == ['kept'] and t.high == dict(kept=True) and t.rows[0].values['kept'].value == 1
    half = lambda s, net: edge_f1({i: s.contents[i] for i in list(s.contents)[:2]}, {i: s.outputs[i] for i in list(s.contents)[:2]})
    again, _ = go(folder, tmp_path, ink, b, net, metrics=dict(kept=Metric(half, True, version='2')))
    assert again.rows[0].values['kept'].n == 2       # another version is measured again

def test_asked_for_what_cannot_be(folder, tmp_path, ink, b, net):
    for kw, why in ((dict(metrics=['beauty']), 'no metric named beauty'), (dict(methods=['magic']), 'no preset'), (dict(methods={'a/b': {}}), 'not a plain file name'),
                    (dict(methods=dict(x=dict(stepz=2))), 'unknown settings'), (dict(seeds=[.5]), 'whole number'), (dict(workers=2), 'each load the model')):
        with pytest.raises(StylekitError, match=why): go(folder, tmp_path, ink, b, net, **kw)
    assert not list((tmp_path/'out').rglob('sms-*/*.png'))       # known before any work
    import shutil
    shutil.rmtree(folder/'truth'); shutil.rmtree(folder/'references')
    with pytest.raises(StylekitError, match='kid needs references'): go(folder, tmp_path, ink, b, net, metrics=['kid'])
    assert 'kid' not in go(folder, tmp_path, ink, b, net)[0].metrics and 'pd_src' in go(folder, tmp_path, ink, b, net)[0].metrics
    sample('owl').save(folder/'IMG_001.png')
    with pytest.raises(StylekitError, match='nothing says what IMG_001 shows'): go(folder, tmp_path, ink, b, net)
    (folder/'IMG_001.txt').write_text('an owl'); sample('owl').save(folder/'IMG_001.webp')
    from stylekit.evaluate import read_dataset
    with pytest.warns(UserWarning, match='IMG_001.webp is left out'): assert [i.id for i in read_dataset(folder)[0]].count('IMG_001') == 1

def test_command(folder, tmp_path, ink, models, capsys, monkeypatch):
    (tmp_path/'m.json').write_text(json.dumps(dict(unchanged=None, mine=FEW)))
    monkeypatch.setattr('stylekit.evaluate._network', lambda device: load_features())
    args = ['evaluate', str(folder), '--methods', str(tmp_path/'m.json'), '--styles', ink, '--metrics', 'pd_src,ssim_src', '--out', str(tmp_path/'e'), '--backbone', str(models('sd15'))]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert out.startswith('| style | method | pd_src[mini] ↓ | ssim_src ↑ |') and '| mine |' in out
    assert main([*args, '--seeds', 'one']) == 2 and main([*args[:3], str(tmp_path/'no.json')]) == 2

def test_sheet_and_scatter(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net)
    items, jobs = read_dataset(folder)[0], plan(dict(unchanged=None, sms=FEW), [ink], [0], tmp_path/'out', b)
    im = sheet(jobs, items, 'ink', n=2, side=32)
    assert im.size == (32*3, 14+32*2) and im.crop((32, 14, 64, 46)).getextrema() != ((255, 255),)*3
    assert len(scatter(t).axes) == 1 and len(scatter(t).axes[0].texts) == 2
    assert run_job(jobs[1], items, b) == {}
