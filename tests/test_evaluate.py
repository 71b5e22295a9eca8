"Evaluation runs: what is made, what is made again, what is left out, and that rows are fair"
import csv, errno, io, json, multiprocessing, os, re, signal, threading, time
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pytest, torch
import stylekit.evaluate as E
from stylekit import StylekitError, load_backbone, sample, samples, stylize
from stylekit.cli import main
from stylekit.images import load_image
from stylekit.evaluate import METRICS, Metric, Row, Table, evaluate, plan, read_dataset, run_job, scatter, sheet
from stylekit.folders import LOST
from stylekit.metrics import Features, Measured, edge_f1, load_features, pd
from sweeps import check_full_disk

FEW = dict(steps=2, lr=.05, relevance='none', finish=0)   # what costs and is not asked here is off
FILES = {'table.md', 'table.tex', 'table.csv', 'table.html', 'pictures.csv'}


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
    assert [(r.method, r.seeds) for r in t.rows] == [('unchanged', 1), ('sms', 2)] and len(said) == 3 and t.metrics == [m for m in METRICS if m != 'style']
    assert {p.name for p in (tmp_path/'out').glob('*.*')} == FILES | {'sheet-ink.png', 'scatter.png'}
    items = {i.id: i for i in read_dataset(folder)[0]}
    first = [d for d in (tmp_path/'out/images/ink').glob('sms-*')]
    by_hand = [pd({i: items[i].path for i in items}, {i: next(d.glob(f'{i}-*.png')) for i in items}, net).value for d in first]
    assert len(first) == 2 and abs(t.rows[1].values['pd_src'].value - sum(by_hand)/2) < 1e-9
    r = stylize(sample(samples()[0]).resize((64, 64)), ink, samples()[0].replace('-', ' '), backbone=b, seed=0, **FEW)
    far = [np.abs(np.asarray(load_image(next(d.glob(f'{samples()[0]}-*.png'))), int)-np.asarray(r.image)).max() for d in first]
    assert min(far) <= 2 < max(far)      # what `stylize` gives by itself, up to the rounding of batches; another seed is another picture

def test_nothing_is_made_twice_and_what_changed_is(folder, tmp_path, ink, b, net):
    go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'out/images').rglob('*.png')}
    t, said = go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None, sms=FEW, more=FEW | dict(lam=1.)), metrics=['pd_src'])
    assert said == [f'{ink}, more, seed 0: 4 of 4 pictures'] and all(p.stat().st_mtime_ns == t for p,t in made.items())
    name = samples()[0]
    sample(name).resize((64, 64)).transpose(0).save(folder/f'{name}.png')             # another picture under the old name
    before = t.rows[1].values['pd_src'].value
    t, said = go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
    assert len(said) == 2 and t.rows[1].values['pd_src'].value != before
    (folder/f'{name}.txt').write_text('something else')
    assert len(go(folder, tmp_path, ink, b, net, metrics=['pd_src'])[1]) == 2
    next((tmp_path/'out/images').rglob('sms-*/*.png')).unlink()
    assert len(go(folder, tmp_path, ink, b, net, metrics=['pd_src'])[1]) <= 1

def test_interrupted_runs_go_on(folder, tmp_path, ink, b, net, monkeypatch):
    calls, run = [], E.stylize
    def stop(*a, **kw):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return run(*a, **kw)
    monkeypatch.setattr(E, 'stylize', stop)
    with pytest.raises(KeyboardInterrupt): go(folder, tmp_path, ink, b, net, batch=2, metrics=['pd_src'])
    assert len(list((tmp_path/'out/images').rglob('sms-*/*.png'))) == 2
    t, said = go(folder, tmp_path, ink, b, net, batch=2, metrics=['pd_src'])
    assert len(calls) == 3 and t.rows[1].values['pd_src'].n == 4

def test_a_bad_picture_is_left_out_for_all(folder, tmp_path, ink, b, net):
    (folder/'broken.png').write_bytes(b'no picture'); (folder/'thin.png').write_bytes((folder/f'{samples()[0]}.png').read_bytes()[:300])
    with pytest.warns(UserWarning, match='is left out') as told: t, _ = go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
    assert all(any(name in str(w.message) for w in told) for name in ('broken.png', 'thin.png'))
    assert not t.failed and all(r.values['pd_src'].n == 4 for r in t.rows)

def test_a_fake_score_does_not_depend_on_company(folder, tmp_path, ink, b, net):
    "Batches of two and of one give one picture where φ learns"
    how = dict(vsd=dict(method='vsd', steps=2, finish=0))
    pixels = []
    for n in samples()[2:4]: (folder/f'{n}.png').unlink()
    for batch in (2, 1):
        go(folder, tmp_path/str(batch), ink, b, net, methods=how, batch=batch, metrics=['pd_src'])
        pixels.append([load_image(p).tobytes() for p in sorted((tmp_path/str(batch)).rglob('vsd-*/*.png'))])
    assert pixels[0] == pixels[1]

def test_processes_share_the_work_and_one_that_is_killed_is_named(folder, tmp_path, ink, models, net):
    "Two processes make what one makes; a method whose process the system ends again and again is named, and the rest is measured"
    how = dict(unchanged=None, sms=FEW, endless=dict(steps=5000, lr=.01, relevance='none'))
    few, done = ['pd_src', 'edge_f1_truth'], []
    for n in samples()[2:4]: (folder/f'{n}.png').unlink()
    def end_them():
        while len(done) < 2: time.sleep(.05)
        while len(done) < 3:
            for p in multiprocessing.active_children(): os.kill(p.pid, signal.SIGKILL)
            time.sleep(.05)
    threading.Thread(target=end_them, daemon=True).start()
    two = evaluate(folder, how, [ink], few, out=tmp_path/'2', backbone=str(models('sd15')), net=net, workers=2, report=done.append)
    assert sorted(r.method for r in two.rows) == ['sms', 'unchanged'] and len(two.failed) == 2 and set(two.failed.values()) == {LOST}
    line, = [l for l in two.remarks if 'endless' in l]
    assert line == f'endless has no row in ink: {LOST}' and line in (tmp_path/'2'/'table.md').read_text()
    one = evaluate(folder, dict(unchanged=None, sms=FEW), [ink], few, out=tmp_path/'1', backbone=str(models('sd15')), net=net)
    for x, y in zip(one.rows, two.rows):
        assert all(abs(x.values[m].value-y.values[m].value) < 1e-3 for m in few), (x, y)

def test_orders_that_chance_decides_are_no_orders():
    at = lambda each, **kw: Measured(sum(each)/len(each), 'pd[x]', 'x', n=len(each), ids=tuple(range(len(each))), each=tuple(each), **kw)
    rows = [Row('ink', m, 1, dict(kid=at(v))) for m, v in dict(a=[1.]*9, b=[.7, 1.4, .9, 1.2, .7, 1.3, 1., .9, 1.], c=[1.5+.01*i for i in range(9)], unchanged=[0.]*9).items()]
    assert Table(rows, dict(kid=False)).best('ink', 'kid') == ['a', 'b'] and Table(rows, dict(kid=True)).best('ink', 'kid') == ['c']
    rows[1] = Row('ink', 'b', 1, dict(kid=at([1.]*9, sha256='other')))
    with pytest.raises(StylekitError, match='cannot be compared'): Table(rows, dict(kid=False)).best('ink', 'kid')

def test_formats(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None, **{'a_b 50%': FEW}), metrics=['pd_src', 'ssim_src'])
    lines = list(csv.DictReader(io.StringIO((tmp_path/'out/table.csv').read_text())))
    assert len(lines) == 4 and lines[2]['method'] == 'a_b 50%' and lines[2]['sha256'] == net.sha256 and lines[3]['backbone'] == 'pixels'
    assert r'a\_b 50\%' in t.latex() and 'source distance ↓' in t.markdown() and 'SSIM ↑' in t.markdown()
    assert len({(l.count('|'), len(l)) for l in t.markdown(legend=False).splitlines()}) == 1   # columns stand below each other

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
    with pytest.warns(UserWarning, match='IMG_001.webp is left out'): assert [i.id for i in read_dataset(folder)[0]].count('IMG_001') == 1

def test_command(folder, tmp_path, ink, models, capsys, monkeypatch):
    (tmp_path/'m.json').write_text(json.dumps(dict(unchanged=None, mine=FEW)))
    monkeypatch.setattr('stylekit.evaluate._network', lambda device: load_features())
    args = ['evaluate', str(folder), '--methods', str(tmp_path/'m.json'), '--styles', ink, '--metrics', 'pd_src,ssim_src', '--out', str(tmp_path/'e'), '--backbone', str(models('sd15'))]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert out.startswith('ink ') and ' mine\n' in out and 'source distance ↓: How far' in out and 'Seen by mini' in ' '.join(out.split())
    assert main([*args, '--seeds', 'one']) == 2 and main([*args[:3], str(tmp_path/'no.json')]) == 2

def test_sheet_and_scatter(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net)
    items, jobs = read_dataset(folder)[0], plan(dict(unchanged=None, sms=FEW), [ink], [0], tmp_path/'out', b)
    im = sheet(jobs, items, 'ink', n=2, side=32)
    assert im.size == (32*3, 14+32*2) and im.crop((32, 14, 64, 46)).getextrema() != ((255, 255),)*3
    assert len(scatter(t).axes) == 1 and len(scatter(t).axes[0].texts) == 2
    assert run_job(jobs[1], items, b) == {}

# ---- what a reader is told

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text.append(data)

def of(values, metric, **kw): return Measured(sum(values)/len(values), metric, 'eye', n=len(values), resolution='8×8', ids=tuple(range(len(values))), each=tuple(values), interval=(0., 9.), **kw)

def table(**rows): # method -> metric -> values
    return Table([Row('ink', m, 1, {k: of(v, k) for k, v in values.items()}) for m, values in rows.items()], {k: METRICS[k].high for values in rows.values() for k in values})

def test_every_column_is_explained():
    t = table(unchanged={m: [0., 1.] for m in METRICS}, sms={m: [.5, 1.] for m in METRICS})
    assert len({t.label(m) for m in METRICS}) == len(METRICS)
    for m in METRICS:
        arrow, better = ('↑', 'Higher is better.') if METRICS[m].high else ('↓', 'Lower is better.')
        line, = [l for l in t.markdown().splitlines() if l.startswith(f'- **{t.label(m)} {arrow}**: ')]
        assert better in line and 'Seen by eye at 8×8 pixels' in line and len(METRICS[m].meaning) > 40 and METRICS[m].meaning.split('{')[0] in ' '.join(t.text().split())
        for text in (t.html(), t.latex(), t.csv()): assert t.label(m).replace('×', '$\\times$' if text == t.latex() else '×') in text and better in text
    heads = t.markdown(legend=False), t.latex().split('%')[0], t.html().split('</table>')[0], t.csv().splitlines()[0], t.text().split('\n\n')[0], t.pictures_csv()
    for text in heads: assert not any(m in re.split(r'\W+', text) for m in METRICS if m not in ('style',)) and '[eye]' not in text
    for m in METRICS: assert f'Asked for as {m}.' in t.meaning(m)
    assert {l['metric'] for l in csv.DictReader(io.StringIO(t.csv()))} == set(METRICS)                # for programs
    assert set(json.loads(json.dumps(t.to_file().to_json()))['rows'][0]['values']) == set(METRICS)
    assert [l['recognised?'] for l in csv.DictReader(io.StringIO(t.pictures_csv()))] == ['no', 'yes', '0.5', 'yes']

def test_an_empty_table_is_no_error():
    t = Table([], {})
    assert t.markdown().startswith('| style | method |') and not t.remarks and t.html() and t.latex() and t.text() and t.csv()

def test_metrics_of_ones_own_are_explained_too(folder, tmp_path, ink, b, net):
    own = dict(bold=Metric(lambda s, net: edge_f1(s.contents, s.outputs), True, label='boldness', meaning='How bold the strokes are.'), plain=Metric(lambda s, net: edge_f1(s.contents, s.outputs)))
    t, _ = go(folder, tmp_path, ink, b, net, metrics=own)
    again = E.read_table(t.save(tmp_path/'t.json'))
    for x in (t, again): assert '- **boldness ↑**: How bold the strokes are. Higher' in x.markdown() and 'plain ↓' in x.text() and x.markdown() == t.markdown()
    with pytest.raises(StylekitError, match='must be a Metric'): go(folder, tmp_path, ink, b, net, metrics=dict(a=edge_f1))
    with pytest.raises(StylekitError, match='not a plain file name'): go(folder, tmp_path, ink, b, net, metrics={'a/b': own['bold']})

CONTENT = [m for m in METRICS if METRICS[m].content]

@pytest.mark.parametrize('style', [m for m in METRICS if not METRICS[m].content])
def test_no_winner_where_nothing_says_how_near_the_style_is(style):
    rows = dict(unchanged={m: [0., 0.] for m in CONTENT}, a={m: [1., 1.1] for m in CONTENT}, b={m: [2., 2.] for m in CONTENT})
    t = table(**rows)
    assert '**0' not in t.markdown() and '**1' not in t.markdown() and '*' not in t.text().split('\n\n')[0] and 'textbf' not in t.latex() and '<b>1' not in t.html()
    assert t.remarks == ['ink: nothing here says how near the style is, so no method is marked as the best'] and t.remarks[0] in t.markdown() and t.remarks[0] in t.html() and t.remarks[0] in t.latex()
    t = table(**{k: v | {style: v['pd_src']} for k, v in rows.items()})
    assert t.best('ink', 'pd_src') == ['a'] and not t.remarks and '**1' in t.markdown() and 'textbf' in t.latex() and '<b>1' in t.html() and '*' in t.text()

def test_the_content_as_it_is_wins_nothing_whatever_it_is_called(folder, tmp_path, ink, b, net):
    t, _ = go(folder, tmp_path, ink, b, net, methods=dict(nothing=None, sms=FEW, more=FEW | dict(lam=1.)), metrics=['pd_src', 'pd_truth'])
    assert [r.unchanged for r in t.rows] == [True, False, False] and 'nothing' not in t.best('ink', 'pd_src') != []
    assert [r.unchanged for r in E.read_table(t.save(tmp_path/'t.json')).rows] == [True, False, False] and Row('ink', 'unchanged', 1, {}).unchanged

def test_without_references_it_says_what_is_missing(folder, tmp_path, ink, b, net, capsys, models, monkeypatch):
    import shutil
    monkeypatch.setattr(E, '_network', lambda device: net)
    shutil.rmtree(folder/'truth'); shutil.rmtree(folder/'references')
    t, _ = go(folder, tmp_path, ink, b, net)
    line, = t.remarks
    for part in ('references/ink/', 'truth/ink/', 'distance to the style', 'distance to the truth', 'no method is marked as the best'): assert part in line
    assert set(t.metrics) == set(CONTENT) and all(line in (tmp_path/'out'/f'table.{e}').read_text() for e in ('md', 'html', 'tex')) and '\n' not in line
    assert not (tmp_path/'out'/'scatter.png').exists() and E.read_table(t.save(tmp_path/'t.json')).remarks == [line]
    args = ['evaluate', str(folder), '--methods', 'unchanged', '--styles', ink, '--out', str(tmp_path/'cli'), '--backbone', str(models('sd15'))]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert [l.count('not measured') for l in err.splitlines() if 'not measured' in l] == [1] and '*' not in out and 'source distance' in out
    assert main([*args[:-4], '--out', str(tmp_path/'j'), *args[-2:], '--json']) == 0
    out, err = capsys.readouterr()
    assert {json.loads(l)['metric'] for l in out.splitlines()} == set(CONTENT) and 'not measured' in err

@pytest.mark.parametrize('references, contents', [(1, 4), (3, 1)])
def test_too_few_pictures_for_a_metric_are_no_error_after_the_work(folder, tmp_path, ink, b, net, references, contents):
    for kind, n in (('references/ink', references), ('.', contents)):
        for p in sorted((folder/kind).glob('*.png'))[n:]: p.unlink()
    t, _ = go(folder, tmp_path, ink, b, net)
    assert not {'kid', 'mmd', 'fd', 'art_fd'} & set(t.metrics) and ('identified' in t.metrics) == (contents > 1) and 'references/ink' in t.remarks[0]
    with pytest.raises(StylekitError, match='kid needs references: two or more'): go(folder, tmp_path, ink, b, net, metrics=['kid'])

def test_a_shipped_look_is_scored_without_any_reference(folder, tmp_path, b, net, monkeypatch):
    pytest.importorskip('efficientnet_lite_pytorch')
    import shutil
    for d in ('truth', 'references'): shutil.rmtree(folder/d)
    for p in folder.glob('*.png'): sample(p.stem).save(p)
    style = METRICS['style']
    for look in ('flat', 'ink'):
        drawn = {n: sample(n, look) for n in samples()[:2]}
        for other in ('flat', 'ink'): assert style.f(E.Shown(drawn, {}, {}, [], other, other), net).value == float(look == other)
    assert style.f(E.Shown({n: sample(n) for n in samples()[:2]}, {}, {}, [], 'ink', 'ink'), net).value == 0
    for p in sorted(folder.glob('*.png'))[2:]: p.unlink()
    how = dict(unchanged=None, a=dict(method='img2img', finish=100), b=dict(method='img2img', finish=200))
    t = evaluate(folder, how, 'ink', out=tmp_path/'out', net=net)
    assert t.rows[0].values['style'].value == 0 and t.says_style('ink') and 'distance to the style' in t.remarks[0] and 'marked as the best' not in t.remarks[0]
    assert (tmp_path/'out'/'scatter.png').exists() and 'unchanged' not in t.best('ink', 'pd_src') != []
    def gone(): raise StylekitError('the judge needs EfficientNet-Lite0: pip install it')
    monkeypatch.setattr(E, 'judge_of_looks', gone)
    t = evaluate(folder, how, 'ink', out=tmp_path/'out', net=net)
    assert 'style' not in t.metrics and 'stylekit[eval]' in t.remarks[0] and 'marked as the best' in t.remarks[0]

def test_only_the_shipped_style_has_its_look(ink, tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    from stylekit.lora import load_style
    assert [E.known_look(load_style(s)) for s in ('ink', 'flat', 'ink:0.5')] == ['ink', 'flat', 'ink']
    assert [E.known_look(load_style(s)) for s in (ink, 'ink:0.5+flat:0.5')] == ['', '']     # another style called ink; a mix

EVIL = ['<img src=x onerror=alert(1)>', '=cmd', '+1+cmd', '@SUM(A1)', 'a|b', '`x` *y* _z_', '[a](javascript:b)', '\\textbf{x}', '$x$ 50% #1 & ~^', '"quoted", yes', "-2+3+cmd|' /C calc'!A0", '&lt;b&gt;', '~~no~~']

@pytest.mark.parametrize('name', EVIL)
def test_names_are_escaped_for_each_format(name):
    rows = [Row(name, name, 1, dict(kid=of([1., 2.], 'kid'))), Row(name, 'x', 1, dict(kid=of([1., 3.], 'kid')))]
    t = Table(rows, dict(kid=False), {('gone', name, 0, 'owl'): 'no'}, lacks={name: 'not measured: much'})
    page = Tags(t.html([f'sheet-{name}.png']))
    assert {tag for tag, _ in page.tags} <= {'html', 'meta', 'title', 'style', 'table', 'tr', 'th', 'td', 'small', 'b', 'p', 'ul', 'li', 'h2', 'img'} and name in ''.join(page.text)
    images = [a for tag, a in page.tags if tag == 'img']
    assert len(images) == 1 and set(images[0]) == {'src', 'alt'} and '<' not in images[0]['src'] and '"' not in images[0]['src']
    for row in csv.reader(io.StringIO(t.csv()+t.pictures_csv())):
        for cell in row: assert cell[:1] not in '=+-@' or not cell or re.fullmatch(r'-?[\d.e+ -]+', cell), cell
    assert next(csv.DictReader(io.StringIO(t.csv())))['style'].removeprefix("'") == name
    body, notes = t.latex().split(r'\end{tabular}')
    assert all(l.startswith('%') for l in notes.strip().splitlines())
    cells = body.split(r'\midrule')[1].split(' & ')[0].strip()
    plain = re.sub(r'\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater)\{\}|\\[_%&#${}]', '', cells)
    assert not re.search(r'[\\_%&#${}~^<>]', plain), cells
    grid = t.markdown(legend=False).splitlines()
    assert len({len(re.findall(r'(?<!\\)\|', l)) for l in grid}) == 1
    cell = re.split(r'(?<!\\)\|', grid[2])[1].strip()
    assert not re.search(r'<|>|(?<!\\)[`*_\[\]~]', cell) and '&lt;img' not in cell.replace('&lt;img src', ''), cell
    for l in t.markdown().splitlines(): assert '<' not in l

# ---- what goes wrong, named

def nan_in(monkeypatch, where): # where(lam, captions, seed) -> is it?
    "`stylize` whose latents become NaN, as with a step size or a weight that is too large"
    from stylekit.stylizer import Callback
    class Break(Callback):
        def after_step(self, run): run.z = run.z*torch.nan
    real = E.stylize
    def run(images, style, captions, **kw):
        if where(kw.get('lam'), captions, kw['seed']): kw['callbacks'] = [Break()]
        return real(images, style, captions, **kw)
    monkeypatch.setattr(E, 'stylize', run)

@pytest.mark.filterwarnings('ignore:the latents became NaN')
@pytest.mark.parametrize('case', ['method', 'picture', 'seed', 'all'])
def test_nan_is_named_and_the_rest_goes_on(folder, tmp_path, ink, b, net, monkeypatch, case):
    owl = samples()[0].replace('-', ' ')
    for n in samples()[2:4]: (folder/f'{n}.png').unlink()
    for n in samples()[2:4]: (folder/'truth'/'ink'/f'{n}.png').unlink()
    nan_in(monkeypatch, dict(method=lambda lam, *_: lam == 1., picture=lambda lam, captions, seed: lam == 1. and owl in captions, seed=lambda lam, captions, seed: lam == 1. and seed == 1, all=lambda *_: True)[case])
    ask = lambda: go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None, sms=FEW, bad=FEW | dict(lam=1.)), metrics=['pd_src'], seeds=[0, 1] if case == 'seed' else [0])[0]
    for _ in range(1 + (case == 'picture')): # again: the same
        t = ask()
        assert all('became NaN' in why for why in t.failed.values()) and not any('interrupted' in why for why in t.failed.values())
        lines = [l for l in t.remarks if 'NaN' in l]
        got = {r.method: (r.seeds, r.values['pd_src'].n) for r in t.rows}
        if case == 'method': assert got == dict(unchanged=(1, 2), sms=(1, 2)) and lines[0].startswith('bad has no row in ink: ') and len(lines) == 1
        if case == 'picture': assert got == dict(unchanged=(1, 1), sms=(1, 1), bad=(1, 1)) and lines[0].startswith(f'left out of every row: {samples()[0]}; bad failed in ink, seed 0: ')
        if case == 'seed': assert got == dict(unchanged=(1, 2), sms=(2, 2), bad=(1, 2)) and 'bad failed in ink, seed 1' in lines[0]
        if case == 'all': assert list(got) == ['unchanged'] and len(lines) == 2

def test_the_command_ends_with_1_where_a_method_is_lost(folder, tmp_path, ink, models, capsys, monkeypatch):
    monkeypatch.setattr(E, '_network', lambda device: load_features())
    (tmp_path/'m.json').write_text(json.dumps(dict(unchanged=None, mine=FEW)))
    class Pool:   # one whose second task the system ends
        def __init__(self, *_): self.worker = E.JobWorker((str(models('sd15')), None, None))
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def __call__(self, tasks): return ((i, None if i else self.worker(t)) for i, t in enumerate(tasks))
    monkeypatch.setattr(E, 'worker_pool', Pool)
    args = ['evaluate', str(folder), '--methods', str(tmp_path/'m.json'), '--styles', ink, '--metrics', 'pd_src', '--out', str(tmp_path/'e'), '--backbone', str(models('sd15'))]
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert 'unchanged' in out and f'mine has no row in ink: {LOST}'[:200] in err and 'mine' not in out.split('\n\n')[0]

def misnamed(folder, change):
    "A truth or reference that is not where it is looked for"
    truth, refs, first = folder/'truth'/'ink', folder/'references'/'ink', folder/'truth'/'ink'/f'{samples()[0]}.png'
    if change == 'one gone': first.unlink()
    if change == 'one called otherwise': first.rename(first.with_stem(first.stem.upper()+'1'))
    if change == 'all called otherwise': [p.rename(p.with_stem(f'ink-{p.stem}')) for p in sorted(truth.glob('*.png'))]
    if change == 'empty': [p.unlink() for p in truth.glob('*.png')]
    if change == 'folder misspelt': truth.rename(truth.with_name('inc'))
    if change == 'references misspelt': refs.rename(refs.with_name('inks'))
    if change == 'damaged': first.write_bytes(b'no picture')

@pytest.mark.parametrize('change, said', [('one gone', samples()[0]), ('one called otherwise', f'{samples()[0]}.*{samples()[0].upper()}1'), ('all called otherwise', f'{samples()[0]}.*ink-{samples()[0]}'),
                                          ('empty', samples()[0]), ('folder misspelt', 'truth/ink is not there: is truth/inc meant'), ('references misspelt', 'references/ink is not there: is references/inks meant'),
                                          ('damaged', f'ink/{samples()[0]}.png is left out')])
def test_a_truth_or_reference_that_is_missing_is_named(folder, tmp_path, ink, b, net, change, said):
    misnamed(folder, change)
    with pytest.warns(UserWarning) as told: t, _ = go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None), metrics=['pd_src'])
    texts = [str(w.message) for w in told]
    assert any(re.search(said, x) for x in texts) and all('\n' not in x and len(x) < 300 for x in texts), texts

@pytest.mark.parametrize('kind', ['truth', 'references'])
@pytest.mark.parametrize('name', ['Ink', 'INK', 'ınk'.replace('ı', 'I')])
def test_ink_and_Ink_are_not_one(folder, tmp_path, ink, b, net, kind, name):
    (folder/kind/name).mkdir(exist_ok=True)
    if os.path.samefile(folder/kind/name, folder/kind/'ink'): pytest.skip('one folder here')
    for there in (True, False): # beside the right one, and instead of it
        if not there: (folder/kind/'ink').rename(folder/'elsewhere')
        with pytest.raises(StylekitError, match=f'{kind}/{name} is there and {kind}/ink is looked for: rename it'): go(folder, tmp_path, ink, b, net)
    assert not (tmp_path/'out').exists()

def test_styles_and_methods_of_one_name_do_not_merge(folder, tmp_path, ink, b, net):
    import shutil
    for name in ('Ink', 'größe', 'gro\u0308ße', 'GRÖSSE'):
        (tmp_path/name).mkdir(exist_ok=True)
        shutil.copy(ink, tmp_path/name/f'{name}.safetensors')
    path = lambda name: str(tmp_path/name/f'{name}.safetensors')
    for styles in ([ink, 'ink'], [ink, path('Ink')], ['ink:0.5', 'ink'], [path('größe'), path('gro\u0308ße')], [path('größe'), path('GRÖSSE')], ['ink', 'ink']):
        with pytest.raises(StylekitError, match='two styles are called'): evaluate(folder, dict(unchanged=None), styles, out=tmp_path/'out', backbone=b, net=net)
    for methods in (dict(sms={}, SMS={}), {'größe': {}, 'gro\u0308ße': {}}):
        with pytest.raises(StylekitError, match='two methods are called'): go(folder, tmp_path, ink, b, net, methods=methods)

@pytest.mark.parametrize('template', ['', 'x', '{}{}', '{0}', '{x}', None, 5, b'{}', ['{}'], '{} and {}'])
def test_odd_templates_are_refused(folder, template):
    with pytest.raises(StylekitError, match='template'): read_dataset(folder, template)

@pytest.mark.parametrize('wrong, why', [({}, 'empty'), ([], 'empty'), ('sms', 'names'), (3, 'names'), ([1], 'names'), ({'x': 3}, 'object'), ({'x': [1]}, 'object'), ({'': {}}, 'plain file name'), ({'x'*300: {}}, 'plain file name'), ({3: {}}, 'plain file name'),
                                        ({'x': {'generator': 3}}, 'generator is a name'), ({'x': {'generator': None}}, 'generator is a name'), ({'x': {'generator': ' '}}, 'generator is a name'), ({'x': {'generator': '{x}{style'}}, '{x}{style'),
                                        ({'unchanged': {}}, 'another name'), ({'x': {'steps': 'many'}}, 'steps'), ({'x': {'lr': float('nan')}}, 'lr'), ({'x': {'seed': 3}}, 'unknown settings'), ({'x': {'style': 'ink'}}, 'unknown settings')])
def test_odd_methods_are_refused_before_any_work(folder, tmp_path, ink, b, net, wrong, why):
    with pytest.raises(StylekitError, match=re.escape(why)): evaluate(folder, wrong, [ink], out=tmp_path/'out', backbone=b, net=net)
    assert not (tmp_path/'out').exists()

def test_one_of_something_needs_no_list(folder, tmp_path, ink, b, net):
    t = evaluate(folder, ['unchanged'], ink, 'pd_src', seeds=3, out=str(tmp_path/'out'), backbone=b, net=net)
    assert t.metrics == ['pd_src'] and t.styles == ['ink']
    for kw in (dict(styles=[]), dict(seeds=[]), dict(seeds='x'), dict(seeds=[-1]), dict(seeds=None), dict(styles=None), dict(styles=[3]), dict(metrics=5), dict(metrics=['x', 3])):
        with pytest.raises(StylekitError): evaluate(folder, ['unchanged'], **dict(styles=[ink]) | kw, out=tmp_path/'other', backbone=b, net=net)
    assert not (tmp_path/'other').exists()

# ---- stopped, full, changed

def test_a_batch_that_was_cut_short_ends_as_if_it_had_not(folder, tmp_path, ink, b, net):
    def ask():
        go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
        return {p: p.read_bytes() for p in sorted((tmp_path/'out'/'images').rglob('sms-*/*.png'))}
    whole = ask()
    for gone in (1, 3):
        for p in list(whole)[:gone]: p.unlink()
        assert ask() == whole

@pytest.mark.parametrize('name', ['table.md', 'pictures.csv', 'sheet-ink.png', 'scatter.png'])   # table.md is the first of the four that are called table
def test_a_full_disk_and_a_table(folder, tmp_path, ink, b, net, monkeypatch, name):
    ask = lambda: go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None), metrics=['pd_src', 'kid'])
    ask()
    check_full_disk(monkeypatch, tmp_path/'out'/name, ask)             # over the old one
    (tmp_path/'out'/name).unlink()
    check_full_disk(monkeypatch, tmp_path/'out'/name, ask)             # there was none

@pytest.mark.parametrize('what', ['sms-*/*.png', 'unchanged-*/*.png', 'sms-*/*.json'])
def test_a_full_disk_ends_the_run_at_once(folder, tmp_path, ink, b, net, monkeypatch, what):
    "The first that cannot be kept says so; nothing more is drawn for nothing, and what is there stays"
    ask = lambda: go(folder, tmp_path, ink, b, net, metrics=['pd_src'])
    ask()
    path = sorted((tmp_path/'out'/'images').rglob(what))[0]
    path.unlink()
    calls, run = [], E.stylize
    monkeypatch.setattr(E, 'stylize', lambda *a, **kw: calls.append(1) or run(*a, **kw))
    check_full_disk(monkeypatch, path, ask)
    assert len(calls) == 2*(what == 'sms-*/*.png')       # once in vain, once again

def test_a_read_only_disk_ends_the_run_too(folder, tmp_path, ink, b, net, monkeypatch):
    real = os.replace
    for code, text in ((errno.EROFS, 'read-only'), (errno.EDQUOT, 'quota')):
        def replace(a, b_):
            if str(b_).endswith('.png'): raise OSError(code, os.strerror(code))
            return real(a, b_)
        monkeypatch.setattr(os, 'replace', replace)
        with pytest.raises(StylekitError, match=text): go(folder, tmp_path/str(code), ink, b, net)

def test_the_picture_that_was_changed_by_hand_is_measured_anew(folder, tmp_path, ink, b, net):
    before = go(folder, tmp_path, ink, b, net, metrics=['pd_src'])[0].rows[1].values['pd_src'].value
    path = sorted((tmp_path/'out'/'images').rglob('sms-*/*.png'))[0]
    old = path.read_bytes()
    sample('owl').resize((64, 64)).save(path)
    assert go(folder, tmp_path, ink, b, net, metrics=['pd_src'])[0].rows[1].values['pd_src'].value != before
    path.write_bytes(old)
    assert go(folder, tmp_path, ink, b, net, metrics=['pd_src'])[0].rows[1].values['pd_src'].value == before

def test_the_folder_is_its_own_before_anything_is_asked(folder, tmp_path, ink, b, net):
    from stylekit.core import folder_lock
    asked = []
    with folder_lock(tmp_path/'out'):
        with pytest.raises(StylekitError, match="another run is writing into 'out'"): go(folder, tmp_path, ink, b, net, begin=lambda: asked.append(1))
    assert not asked and not (tmp_path/'out').exists()
    go(folder, tmp_path, ink, b, net, methods=dict(unchanged=None), metrics=['pd_src'], begin=lambda: asked.append(1))
    assert asked == [1]
