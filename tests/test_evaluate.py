"Evaluation runs: what is made, what is made again, what is left out, and that rows are fair"
import csv, errno, io, json, multiprocessing, os, re, shutil, signal, threading, time
from html.parser import HTMLParser
import numpy as np, pytest, torch
import stylekit.measure.evaluate as E
from stylekit import StylekitError, load_backbone, sample_image, list_samples, stylize
from stylekit.cli import main
from stylekit.images import load_image
from stylekit.measure.evaluate import METRICS, Metric, Row, Table, evaluate, plan, read_dataset, run_job, scatter, sheet
from stylekit.folders import LOST
from stylekit.measure.metrics import Features, Measured, edge_f1, load_features, perceptual_distance
from sweeps import check_full_disk

FEW = dict(steps=2, lr=.05, relevance='none', final_t=0, adapt='none')   # what costs and is not asked here is off
FILES = {'table.md', 'table.tex', 'table.csv', 'table.html', 'pictures.csv'}
FIRST = list_samples()[0]

def small(*name): return sample_image(*name).resize((64, 64))


@pytest.fixture
def folder(tmp_path):
    "Four pictures with captions, truths and references"
    home = tmp_path/'set'
    first, rest = list_samples()[:4], list_samples()[4:]
    for kind, names in (('.', first), ('truth/ink', first), ('references/ink', rest)):
        (home/kind).mkdir(parents=True, exist_ok=True)
        for n in names: small(n, 'shaded' if kind == '.' else 'ink').save(home/kind/f'{n}.png')
    return home

@pytest.fixture
def folder_of_two(folder):
    for n in list_samples()[2:4]: (folder/f'{n}.png').unlink()
    return folder

@pytest.fixture(scope='module')
def b(models): return load_backbone(models('small'))

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 6, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 3, 2)
    return Features('tiny', torch.nn.Sequential(*layers), 32, ['0', '2'])

@pytest.fixture(scope='module')
def ink(b, random_style, tmp_path_factory):
    home = tmp_path_factory.mktemp('styles')/'ink'
    home.mkdir()
    return str(shutil.copy(random_style(b), home/'ink.safetensors'))

@pytest.fixture
def go(folder, tmp_path, ink, b, net):
    "Evaluate: the table, and what was reported"
    def run(methods=None, out=tmp_path/'out', **kw):
        said, methods = [], methods or dict(unchanged=None, sms=FEW)
        return evaluate(folder, methods, [ink], out=out, backbone=b, net=net, report=said.append, **kw), said
    return run

def column(table, metric): return [r.values[metric].value for r in table.rows]

def test_table_and_files(folder, tmp_path, ink, b, net, go):
    t, said = go(seeds=[0, 1])
    assert [(r.method, r.seeds) for r in t.rows] == [('unchanged', 1), ('sms', 2)]
    assert len(said) == 3
    assert t.metrics == [m for m in METRICS if m != 'style']
    assert {p.name for p in (tmp_path/'out').glob('*.*')} == FILES | {'sheet-ink.png', 'scatter.png'}
    contents = {i.id: i.path for i in read_dataset(folder)[0]}
    seeds = list((tmp_path/'out/images/ink').glob('sms-*'))
    def made(seed, name): return next(seed.glob(f'{name}-*.png'))
    by_hand = [perceptual_distance(contents, {i: made(seed, i) for i in contents}, net).value for seed in seeds]
    assert len(seeds) == 2
    assert abs(column(t, 'distance_src')[1] - sum(by_hand)/2) < 1e-9
    r = stylize(small(FIRST), ink, FIRST.replace('-', ' '), backbone=b, seed=0, **FEW)
    def off(seed): return np.abs(np.asarray(load_image(made(seed, FIRST)), int)-np.asarray(r.image)).max()
    # what `stylize` gives by itself, up to the rounding of batches; another seed is another picture
    assert min(map(off, seeds)) <= 2 < max(map(off, seeds))

def test_nothing_is_made_twice_and_what_changed_is(folder, tmp_path, ink, go):
    go(metrics=['distance_src'])
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'out/images').rglob('*.png')}
    t, said = go(dict(unchanged=None, sms=FEW, more=FEW | dict(lam=1.)), metrics=['distance_src'])
    assert said == [f'{ink}, more, seed 0: 4 of 4 pictures']
    assert all(p.stat().st_mtime_ns == ns for p, ns in made.items())
    small(FIRST).transpose(0).save(folder/f'{FIRST}.png')             # another picture under the old name
    before = column(t, 'distance_src')[1]
    t, said = go(metrics=['distance_src'])
    assert len(said) == 2
    assert column(t, 'distance_src')[1] != before
    (folder/f'{FIRST}.txt').write_text('something else')
    assert len(go(metrics=['distance_src'])[1]) == 2
    next((tmp_path/'out/images').rglob('sms-*/*.png')).unlink()
    assert len(go(metrics=['distance_src'])[1]) <= 1

def test_interrupted_runs_go_on(tmp_path, go, monkeypatch):
    calls, run = [], E.stylize
    def stop(*a, **kw):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return run(*a, **kw)
    monkeypatch.setattr(E, 'stylize', stop)
    with pytest.raises(KeyboardInterrupt): go(batch=2, metrics=['distance_src'])
    assert len(list((tmp_path/'out/images').rglob('sms-*/*.png'))) == 2
    t, said = go(batch=2, metrics=['distance_src'])
    assert len(calls) == 3
    assert t.rows[1].values['distance_src'].n == 4

def test_a_bad_picture_is_left_out_for_all(folder, go):
    (folder/'broken.png').write_bytes(b'no picture')
    (folder/'thin.png').write_bytes((folder/f'{FIRST}.png').read_bytes()[:300])
    with pytest.warns(UserWarning, match='is left out') as told: t, _ = go(metrics=['distance_src'])
    for name in ('broken.png', 'thin.png'): assert any(name in str(w.message) for w in told)
    assert not t.failed
    assert all(r.values['distance_src'].n == 4 for r in t.rows)

def test_a_fake_score_does_not_depend_on_company(folder_of_two, tmp_path, go):
    "Batches of two and of one give one picture where φ learns"
    def pixels(batch):
        out = tmp_path/str(batch)
        go(dict(vsd=dict(method='vsd', steps=2, final_t=0)), out, batch=batch, metrics=['distance_src'])
        return [load_image(p).tobytes() for p in sorted(out.rglob('vsd-*/*.png'))]
    assert pixels(2) == pixels(1)

def test_processes_share_the_work_and_one_that_is_killed_is_named(folder_of_two, tmp_path, ink, models, net):
    """Two processes make what one makes;
    a method whose process the system ends again and again is named, and the rest is measured"""
    brief = dict(unchanged=None, sms=FEW)
    endless = dict(endless=dict(steps=5000, lr=.01, relevance='none'))
    few, done = ['distance_src', 'edge_f1_truth'], []
    how = dict(backbone=str(models('small')), net=net)
    def end_them():
        while len(done) < 2: time.sleep(.05)
        while len(done) < 3:
            for p in multiprocessing.active_children(): os.kill(p.pid, signal.SIGKILL)
            time.sleep(.05)
    threading.Thread(target=end_them, daemon=True).start()
    two = evaluate(folder_of_two, brief | endless, [ink], few, out=tmp_path/'2', workers=2, report=done.append, **how)
    assert sorted(r.method for r in two.rows) == ['sms', 'unchanged']
    assert len(two.failed) == 2 and set(two.failed.values()) == {LOST}
    line, = [l for l in two.remarks if 'endless' in l]
    assert line == f'endless has no row in ink: {LOST}'
    assert line in (tmp_path/'2'/'table.md').read_text()
    one = evaluate(folder_of_two, brief, [ink], few, out=tmp_path/'1', **how)
    for m in few: assert column(one, m) == pytest.approx(column(two, m), abs=1e-3), m

def test_orders_that_chance_decides_are_no_orders():
    def row(method, each, **kw):
        ids = tuple(range(len(each)))
        kid = Measured(sum(each)/len(each), 'perceptual_distance[x]', 'x', n=len(each), ids=ids, each=tuple(each), **kw)
        return Row('ink', method, 1, dict(kid=kid))
    uneven, rising = [.7, 1.4, .9, 1.2, .7, 1.3, 1., .9, 1.], [1.5+.01*i for i in range(9)]
    rows = [row('a', [1.]*9), row('b', uneven), row('c', rising), row('unchanged', [0.]*9)]
    assert Table(rows, dict(kid=False)).best('ink', 'kid') == ['a', 'b']
    assert Table(rows, dict(kid=True)).best('ink', 'kid') == ['c']
    rows[1] = row('b', [1.]*9, sha256='other')
    with pytest.raises(StylekitError, match='cannot be compared'): Table(rows, dict(kid=False)).best('ink', 'kid')

def csv_rows(text): return list(csv.DictReader(io.StringIO(text)))

def test_formats(tmp_path, net, go):
    t, _ = go({'unchanged': None, 'a_b 50%': FEW}, metrics=['distance_src', 'ssim_src'])
    lines = csv_rows((tmp_path/'out/table.csv').read_text())
    assert len(lines) == 4
    assert lines[2]['method'] == 'a_b 50%' and lines[2]['sha256'] == net.sha256
    assert lines[3]['backbone'] == 'pixels'
    assert r'a\_b 50\%' in t.latex()
    assert 'source distance ↓' in t.markdown() and 'SSIM ↑' in t.markdown()
    aligned = {(l.count('|'), len(l)) for l in t.markdown(legend=False).splitlines()}
    assert len(aligned) == 1   # columns stand below each other

def kept_edges(s, net): return edge_f1(s.contents, s.outputs)

def test_own_metrics(go):
    t, _ = go(metrics=dict(kept=Metric(kept_edges, True)))
    assert t.metrics == ['kept'] and t.high == dict(kept=True)
    assert column(t, 'kept')[0] == 1
    def half(s, net):
        ids = list(s.contents)[:2]
        return edge_f1({i: s.contents[i] for i in ids}, {i: s.outputs[i] for i in ids})
    again, _ = go(metrics=dict(kept=Metric(half, True, version='2')))
    assert again.rows[0].values['kept'].n == 2       # another version is measured again

def test_asked_for_what_cannot_be(folder, tmp_path, go):
    for kw, why in ((dict(metrics=['beauty']), 'no metric named beauty'), (dict(methods=['magic']), 'no preset'),
                    (dict(methods={'a/b': {}}), 'not a plain file name'), (dict(seeds=[.5]), 'whole number'),
                    (dict(methods=dict(x=dict(stepz=2))), 'unknown settings'),
                    (dict(workers=2), 'each load the model')):
        with pytest.raises(StylekitError, match=why): go(**kw)
    assert not list((tmp_path/'out').rglob('sms-*/*.png'))       # known before any work
    for kind in ('truth', 'references'): shutil.rmtree(folder/kind)
    with pytest.raises(StylekitError, match='kid needs references'): go(metrics=['kid'])
    metrics = go()[0].metrics
    assert 'kid' not in metrics and 'distance_src' in metrics
    sample_image('owl').save(folder/'IMG_001.png')
    with pytest.raises(StylekitError, match='nothing says what IMG_001 shows'): go()
    (folder/'IMG_001.txt').write_text('an owl')
    sample_image('owl').save(folder/'IMG_001.webp')
    with pytest.warns(UserWarning, match='IMG_001.webp is left out'): items = read_dataset(folder)[0]
    assert [i.id for i in items].count('IMG_001') == 1

@pytest.fixture
def command(folder, ink, models, capsys):
    "`stylekit evaluate` ends with this status; what it wrote"
    def run(*argv, status=0):
        argv = [*map(str, argv), '--styles', ink, '--backbone', str(models('small'))]
        assert main(['evaluate', str(folder), *argv]) == status
        return capsys.readouterr()
    return run

@pytest.fixture
def methods_file(tmp_path):
    (tmp_path/'m.json').write_text(json.dumps(dict(unchanged=None, mine=FEW)))
    return tmp_path/'m.json'

def test_command(methods_file, tmp_path, command, monkeypatch):
    monkeypatch.setattr('stylekit.measure.evaluate._network', lambda device: load_features())
    argv = ['--methods', methods_file, '--metrics', 'distance_src,ssim_src', '--out', tmp_path/'e']
    out = command(*argv).out
    assert out.startswith('ink ') and ' mine\n' in out
    assert 'source distance ↓: How far' in out
    assert 'Seen by mini' in ' '.join(out.split())
    command(*argv, '--seeds', 'one', status=2)
    command('--methods', tmp_path/'no.json', status=2)

def test_sheet_and_scatter(folder, tmp_path, ink, b, go):
    t, _ = go()
    items, jobs = read_dataset(folder)[0], plan(dict(unchanged=None, sms=FEW), [ink], [0], tmp_path/'out', b)
    im = sheet(jobs, items, 'ink', n=2, side=32)
    assert im.size == (32*3, 14+32*2)
    assert im.crop((32, 14, 64, 46)).getextrema() != ((255, 255),)*3
    axes, = scatter(t).axes
    assert len(axes.texts) == 2
    assert run_job(jobs[1], items, b) == {}

# ---- what a reader is told

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text.append(data)

def of(values, metric):
    n = len(values)
    return Measured(sum(values)/n, metric, 'eye', n=n, resolution='8×8', ids=tuple(range(n)), each=tuple(values),
                    interval=(0., 9.))

def table(**rows): # method -> metric -> values
    measured = {m: {k: of(v, k) for k, v in values.items()} for m, values in rows.items()}
    high = {k: METRICS[k].high for values in rows.values() for k in values}
    return Table([Row('ink', m, 1, values) for m, values in measured.items()], high)

def test_every_column_is_explained():
    t = table(unchanged={m: [0., 1.] for m in METRICS}, sms={m: [.5, 1.] for m in METRICS})
    assert len({t.label(m) for m in METRICS}) == len(METRICS)
    for m in METRICS:
        arrow, better = ('↑', 'Higher is better.') if METRICS[m].high else ('↓', 'Lower is better.')
        line, = [l for l in t.markdown().splitlines() if l.startswith(f'- **{t.label(m)} {arrow}**: ')]
        assert better in line and 'Seen by eye at 8×8 pixels' in line
        assert len(METRICS[m].meaning) > 40
        assert METRICS[m].meaning.split('{')[0] in ' '.join(t.text().split())
        in_latex = t.label(m).replace('×', r'$\times$')
        for text, label in ((t.html(), t.label(m)), (t.latex(), in_latex), (t.csv(), t.label(m))):
            assert label in text and better in text
        assert f'Asked for as {m}.' in t.meaning(m)
    heads = [t.markdown(legend=False), t.latex().split('%')[0], t.html().split('</table>')[0]]
    heads += [t.csv().splitlines()[0], t.text().split('\n\n')[0], t.pictures_csv()]
    for text in heads:
        assert not {*METRICS} - {'style'} & {*re.split(r'\W+', text)}
        assert '[eye]' not in text
    assert {l['metric'] for l in csv_rows(t.csv())} == set(METRICS)                # for programs
    assert set(json.loads(json.dumps(t.to_file().to_json()))['rows'][0]['values']) == set(METRICS)
    assert [l['recognised?'] for l in csv_rows(t.pictures_csv())] == ['no', 'yes', '0.5', 'yes']

def test_an_empty_table_is_no_error():
    t = Table([], {})
    assert t.markdown().startswith('| style | method |')
    assert not t.remarks
    assert t.html() and t.latex() and t.text() and t.csv()

def test_metrics_of_ones_own_are_explained_too(tmp_path, go):
    bold = Metric(kept_edges, True, label='boldness', meaning='How bold the strokes are.')
    t, _ = go(metrics=dict(bold=bold, plain=Metric(kept_edges)))
    again = E.read_table(t.save(tmp_path/'t.json'))
    assert again.markdown() == t.markdown()
    for x in (t, again):
        assert '- **boldness ↑**: How bold the strokes are. Higher' in x.markdown()
        assert 'plain ↓' in x.text()
    with pytest.raises(StylekitError, match='must be a Metric'): go(metrics=dict(a=edge_f1))
    with pytest.raises(StylekitError, match='not a plain file name'): go(metrics={'a/b': bold})

CONTENT = [m for m in METRICS if METRICS[m].content]

@pytest.mark.parametrize('style', [m for m in METRICS if not METRICS[m].content])
def test_no_winner_where_nothing_says_how_near_the_style_is(style):
    rows = {method: {m: values for m in CONTENT}
            for method, values in dict(unchanged=[0., 0.], a=[1., 1.1], b=[2., 2.]).items()}
    t = table(**rows)
    assert '**0' not in t.markdown() and '**1' not in t.markdown()
    assert '*' not in t.text().split('\n\n')[0]
    assert 'textbf' not in t.latex() and '<b>1' not in t.html()
    assert t.remarks == ['ink: nothing here says how near the style is, so no method is marked as the best']
    for text in (t.markdown(), t.html(), t.latex()): assert t.remarks[0] in text
    t = table(**{k: v | {style: v['distance_src']} for k, v in rows.items()})
    assert t.best('ink', 'distance_src') == ['a'] and not t.remarks
    for mark, text in (('**1', t.markdown()), ('textbf', t.latex()), ('<b>1', t.html()), ('*', t.text())):
        assert mark in text

def test_the_content_as_it_is_wins_nothing_whatever_it_is_called(tmp_path, go):
    t, _ = go(dict(nothing=None, sms=FEW, more=FEW | dict(lam=1.)), metrics=['distance_src', 'distance_truth'])
    again = E.read_table(t.save(tmp_path/'t.json'))
    for x in (t, again): assert [r.unchanged for r in x.rows] == [True, False, False]
    assert 'nothing' not in t.best('ink', 'distance_src') != []
    assert Row('ink', 'unchanged', 1, {}).unchanged

def test_without_references_it_says_what_is_missing(folder, tmp_path, net, go, command, monkeypatch):
    monkeypatch.setattr(E, '_network', lambda device: net)
    for kind in ('truth', 'references'): shutil.rmtree(folder/kind)
    t, _ = go()
    line, = t.remarks
    assert '\n' not in line
    for part in ('references/ink/', 'truth/ink/', 'distance to the style', 'distance to the truth',
                 'no method is marked as the best'): assert part in line
    assert set(t.metrics) == set(CONTENT)
    for ending in ('md', 'html', 'tex'): assert line in (tmp_path/'out'/f'table.{ending}').read_text()
    assert not (tmp_path/'out'/'scatter.png').exists()
    assert E.read_table(t.save(tmp_path/'t.json')).remarks == [line]
    out, err = command('--methods', 'unchanged', '--out', tmp_path/'cli')
    assert [l.count('not measured') for l in err.splitlines() if 'not measured' in l] == [1]
    assert '*' not in out and 'source distance' in out
    out, err = command('--methods', 'unchanged', '--out', tmp_path/'j', '--json')
    assert {json.loads(l)['metric'] for l in out.splitlines()} == set(CONTENT)
    assert 'not measured' in err

@pytest.mark.parametrize('references, contents', [(1, 4), (3, 1)])
def test_too_few_pictures_for_a_metric_are_no_error_after_the_work(folder, go, references, contents):
    for kind, n in (('references/ink', references), ('.', contents)):
        for p in sorted((folder/kind).glob('*.png'))[n:]: p.unlink()
    t, _ = go()
    assert not {'kid', 'mmd', 'fd', 'art_fd'} & set(t.metrics)
    assert ('content_retrieval' in t.metrics) == (contents > 1)
    assert 'references/ink' in t.remarks[0]
    with pytest.raises(StylekitError, match='kid needs references: two or more'): go(metrics=['kid'])

def test_a_shipped_look_is_scored_without_any_reference(folder, tmp_path, net, monkeypatch):
    pytest.importorskip('efficientnet_lite_pytorch')
    for d in ('truth', 'references'): shutil.rmtree(folder/d)
    for p in folder.glob('*.png'): sample_image(p.stem).save(p)
    def style_score(style, *look):
        drawn = {n: sample_image(n, *look) for n in list_samples()[:2]}
        return METRICS['style'].f(E.Shown(drawn, {}, {}, [], style, style), net).value
    for look in ('flat', 'ink'):
        for other in ('flat', 'ink'): assert style_score(other, look) == float(look == other)
    assert style_score('ink') == 0
    for p in sorted(folder.glob('*.png'))[2:]: p.unlink()
    how = dict(unchanged=None, a=dict(method='img2img', final_t=100), b=dict(method='img2img', final_t=200))
    t = evaluate(folder, how, 'ink', out=tmp_path/'out', net=net)
    assert column(t, 'style')[0] == 0 and t.says_style('ink')
    assert 'distance to the style' in t.remarks[0] and 'marked as the best' not in t.remarks[0]
    assert (tmp_path/'out'/'scatter.png').exists()
    assert 'unchanged' not in t.best('ink', 'distance_src') != []
    def gone(): raise StylekitError('the judge needs EfficientNet-Lite0: pip install it')
    monkeypatch.setattr(E, 'judge_of_looks', gone)
    t = evaluate(folder, how, 'ink', out=tmp_path/'out', net=net)
    assert 'style' not in t.metrics
    assert 'stylekit[eval]' in t.remarks[0] and 'marked as the best' in t.remarks[0]

def test_only_the_shipped_style_has_its_look(ink, tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    from stylekit.lora import load_style
    def looks(*styles): return [E.known_look(load_style(s)) for s in styles]
    assert looks('ink', 'flat', 'ink:0.5') == ['ink', 'flat', 'ink']
    assert looks(ink, 'ink:0.5+flat:0.5') == ['', '']     # another style called ink; a mix

EVIL = [
    '<img src=x onerror=alert(1)>', '=cmd', '+1+cmd', '@SUM(A1)', 'a|b', '`x` *y* _z_', '[a](javascript:b)',
    '\\textbf{x}', '$x$ 50% #1 & ~^', '"quoted", yes', "-2+3+cmd|' /C calc'!A0", '&lt;b&gt;', '~~no~~']
PAGE_TAGS = set('html meta title style table tr th td small b p ul li h2 img'.split())

@pytest.mark.parametrize('name', EVIL)
def test_names_are_escaped_for_each_format(name):
    rows = [Row(name, name, 1, dict(kid=of([1., 2.], 'kid'))), Row(name, 'x', 1, dict(kid=of([1., 3.], 'kid')))]
    t = Table(rows, dict(kid=False), {('gone', name, 0, 'owl'): 'no'}, lacks={name: 'not measured: much'})
    page = Tags(t.html([f'sheet-{name}.png']))
    assert {tag for tag, _ in page.tags} <= PAGE_TAGS
    assert name in ''.join(page.text)
    image, = [a for tag, a in page.tags if tag == 'img']
    assert set(image) == {'src', 'alt'}
    assert '<' not in image['src'] and '"' not in image['src']
    for row in csv.reader(io.StringIO(t.csv()+t.pictures_csv())):
        for cell in row: assert cell[:1] not in '=+-@' or not cell or re.fullmatch(r'-?[\d.e+ -]+', cell), cell
    assert csv_rows(t.csv())[0]['style'].removeprefix("'") == name
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

NAN_WHERE = dict(
    method=lambda lam, captions, seed: lam == 1.,
    picture=lambda lam, captions, seed: lam == 1. and FIRST.replace('-', ' ') in captions,
    seed=lambda lam, captions, seed: lam == 1. and seed == 1,
    all=lambda lam, captions, seed: True)

@pytest.mark.filterwarnings('ignore:the latents became NaN')
@pytest.mark.parametrize('case', NAN_WHERE)
def test_nan_is_named_and_the_rest_goes_on(folder_of_two, go, monkeypatch, case):
    for n in list_samples()[2:4]: (folder_of_two/'truth'/'ink'/f'{n}.png').unlink()
    nan_in(monkeypatch, NAN_WHERE[case])
    methods = dict(unchanged=None, sms=FEW, bad=FEW | dict(lam=1.))
    for _ in range(1 + (case == 'picture')): # again: the same
        t, _ = go(methods, metrics=['distance_src'], seeds=[0, 1] if case == 'seed' else [0])
        assert all('became NaN' in why for why in t.failed.values())
        assert not any('interrupted' in why for why in t.failed.values())
        lines = [l for l in t.remarks if 'NaN' in l]
        got = {r.method: (r.seeds, r.values['distance_src'].n) for r in t.rows}
        if case == 'method':
            assert got == dict(unchanged=(1, 2), sms=(1, 2))
            assert lines[0].startswith('bad has no row in ink: ') and len(lines) == 1
        if case == 'picture':
            assert got == dict(unchanged=(1, 1), sms=(1, 1), bad=(1, 1))
            assert lines[0].startswith(f'left out of every row: {FIRST}; bad failed in ink, seed 0: ')
        if case == 'seed':
            assert got == dict(unchanged=(1, 2), sms=(2, 2), bad=(1, 2))
            assert 'bad failed in ink, seed 1' in lines[0]
        if case == 'all':
            assert list(got) == ['unchanged'] and len(lines) == 2

def test_the_command_ends_with_1_where_a_method_is_lost(methods_file, tmp_path, models, command, monkeypatch):
    monkeypatch.setattr(E, '_network', lambda device: load_features())
    class Pool:   # one whose second task the system ends
        def __init__(self, *_): self.worker = E.JobWorker((str(models('small')), None, None))
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def __call__(self, tasks): return ((i, None if i else self.worker(t)) for i, t in enumerate(tasks))
    monkeypatch.setattr(E, 'worker_pool', Pool)
    out, err = command('--methods', methods_file, '--metrics', 'distance_src', '--out', tmp_path/'e', status=1)
    assert 'unchanged' in out and 'mine' not in out.split('\n\n')[0]
    assert f'mine has no row in ink: {LOST}'[:200] in err

def misnamed(folder, change):
    "A truth or reference that is not where it is looked for"
    truth, refs = folder/'truth'/'ink', folder/'references'/'ink'
    first = truth/f'{FIRST}.png'
    if change == 'one gone': first.unlink()
    if change == 'one called otherwise': first.rename(first.with_stem(first.stem.upper()+'1'))
    for p in sorted(truth.glob('*.png')):
        if change == 'all called otherwise': p.rename(p.with_stem(f'ink-{p.stem}'))
        if change == 'empty': p.unlink()
    if change == 'folder misspelt': truth.rename(truth.with_name('inc'))
    if change == 'references misspelt': refs.rename(refs.with_name('inks'))
    if change == 'damaged': first.write_bytes(b'no picture')

@pytest.mark.parametrize('change, said', [
    ('one gone', FIRST), ('one called otherwise', f'{FIRST}.*{FIRST.upper()}1'),
    ('all called otherwise', f'{FIRST}.*ink-{FIRST}'), ('empty', FIRST),
    ('folder misspelt', 'truth/ink is not there: is truth/inc meant'),
    ('references misspelt', 'references/ink is not there: is references/inks meant'),
    ('damaged', f'ink/{FIRST}.png is left out')])
def test_a_truth_or_reference_that_is_missing_is_named(folder, go, change, said):
    misnamed(folder, change)
    with pytest.warns(UserWarning) as told: go(dict(unchanged=None), metrics=['distance_src'])
    texts = [str(w.message) for w in told]
    assert any(re.search(said, x) for x in texts), texts
    assert all('\n' not in x and len(x) < 300 for x in texts), texts

@pytest.mark.parametrize('kind', ['truth', 'references'])
@pytest.mark.parametrize('name', ['Ink', 'INK', 'ınk'.replace('ı', 'I')])
def test_ink_and_Ink_are_not_one(folder, tmp_path, go, kind, name):
    (folder/kind/name).mkdir(exist_ok=True)
    if os.path.samefile(folder/kind/name, folder/kind/'ink'): pytest.skip('one folder here')
    for there in (True, False): # beside the right one, and instead of it
        if not there: (folder/kind/'ink').rename(folder/'elsewhere')
        with pytest.raises(StylekitError, match=f'{kind}/{name} is there and {kind}/ink is looked for: rename it'): go()
    assert not (tmp_path/'out').exists()

def test_styles_and_methods_of_one_name_do_not_merge(folder, tmp_path, ink, b, net, go):
    def style(name):
        path = tmp_path/name/f'{name}.safetensors'
        path.parent.mkdir(exist_ok=True)
        return str(shutil.copy(ink, path))
    for styles in ([ink, 'ink'], [ink, style('Ink')], ['ink:0.5', 'ink'], [style('größe'), style('gro\u0308ße')],
                   [style('größe'), style('GRÖSSE')], ['ink', 'ink']):
        with pytest.raises(StylekitError, match='two styles are called'):
            evaluate(folder, dict(unchanged=None), styles, out=tmp_path/'out', backbone=b, net=net)
    for methods in (dict(sms={}, SMS={}), {'größe': {}, 'gro\u0308ße': {}}):
        with pytest.raises(StylekitError, match='two methods are called'): go(methods)

@pytest.mark.parametrize('template', ['', 'x', '{}{}', '{0}', '{x}', None, 5, b'{}', ['{}'], '{} and {}'])
def test_odd_templates_are_refused(folder, template):
    with pytest.raises(StylekitError, match='template'): read_dataset(folder, template)

@pytest.mark.parametrize('wrong, why', [
    ({}, 'empty'), ([], 'empty'), ('sms', 'names'), (3, 'names'), ([1], 'names'), ({'x': 3}, 'object'),
    ({'x': [1]}, 'object'), ({'': {}}, 'plain file name'), ({'x'*300: {}}, 'plain file name'),
    ({3: {}}, 'plain file name'), ({'x': {'feedforward': 3}}, 'network is a name'),
    ({'x': {'feedforward': None}}, 'network is a name'), ({'x': {'feedforward': ' '}}, 'network is a name'),
    ({'x': {'feedforward': '{x}{style'}}, '{x}{style'), ({'unchanged': {}}, 'another name'),
    ({'x': {'steps': 'many'}}, 'steps'), ({'x': {'lr': float('nan')}}, 'lr'),
    ({'x': {'seed': 3}}, 'unknown settings'), ({'x': {'style': 'ink'}}, 'unknown settings')])
def test_odd_methods_are_refused_before_any_work(folder, tmp_path, ink, b, net, wrong, why):
    with pytest.raises(StylekitError, match=re.escape(why)):
        evaluate(folder, wrong, [ink], out=tmp_path/'out', backbone=b, net=net)
    assert not (tmp_path/'out').exists()

def test_one_of_something_needs_no_list(folder, tmp_path, ink, b, net):
    t = evaluate(folder, ['unchanged'], ink, 'distance_src', seeds=3, out=str(tmp_path/'out'), backbone=b, net=net)
    assert t.metrics == ['distance_src'] and t.styles == ['ink']
    for kw in (dict(styles=[]), dict(seeds=[]), dict(seeds='x'), dict(seeds=[-1]), dict(seeds=None),
               dict(styles=None), dict(styles=[3]), dict(metrics=5), dict(metrics=['x', 3])):
        how = dict(styles=[ink], out=tmp_path/'other', backbone=b, net=net) | kw
        with pytest.raises(StylekitError): evaluate(folder, ['unchanged'], **how)
    assert not (tmp_path/'other').exists()

# ---- stopped, full, changed

def test_a_batch_that_was_cut_short_ends_as_if_it_had_not(tmp_path, go):
    def ask():
        go(metrics=['distance_src'])
        return {p: p.read_bytes() for p in sorted((tmp_path/'out'/'images').rglob('sms-*/*.png'))}
    whole = ask()
    for gone in (1, 3):
        for p in list(whole)[:gone]: p.unlink()
        assert ask() == whole

# table.md is the first of the four that are called table
@pytest.mark.parametrize('name', ['table.md', 'pictures.csv', 'sheet-ink.png', 'scatter.png'])
def test_a_full_disk_and_a_table(tmp_path, go, monkeypatch, name):
    def ask(): go(dict(unchanged=None), metrics=['distance_src', 'kid'])
    ask()
    check_full_disk(monkeypatch, tmp_path/'out'/name, ask)             # over the old one
    (tmp_path/'out'/name).unlink()
    check_full_disk(monkeypatch, tmp_path/'out'/name, ask)             # there was none

@pytest.mark.parametrize('what', ['sms-*/*.png', 'unchanged-*/*.png', 'sms-*/*.json'])
def test_a_full_disk_ends_the_run_at_once(tmp_path, go, monkeypatch, what):
    "The first that cannot be kept says so; nothing more is drawn for nothing, and what is there stays"
    def ask(): go(metrics=['distance_src'])
    ask()
    path = sorted((tmp_path/'out'/'images').rglob(what))[0]
    path.unlink()
    calls, run = [], E.stylize
    def counted(*a, **kw):
        calls.append(1)
        return run(*a, **kw)
    monkeypatch.setattr(E, 'stylize', counted)
    check_full_disk(monkeypatch, path, ask)
    assert len(calls) == 2*(what == 'sms-*/*.png')       # once in vain, once again

def test_a_read_only_disk_ends_the_run_too(tmp_path, go, monkeypatch):
    real = os.replace
    for code, text in ((errno.EROFS, 'read-only'), (errno.EDQUOT, 'quota')):
        def replace(a, b):
            if str(b).endswith('.png'): raise OSError(code, os.strerror(code))
            return real(a, b)
        monkeypatch.setattr(os, 'replace', replace)
        with pytest.raises(StylekitError, match=text): go(out=tmp_path/str(code)/'out')

def test_the_picture_that_was_changed_by_hand_is_measured_anew(tmp_path, go):
    def measured(): return column(go(metrics=['distance_src'])[0], 'distance_src')[1]
    before = measured()
    path = sorted((tmp_path/'out'/'images').rglob('sms-*/*.png'))[0]
    old = path.read_bytes()
    small('owl').save(path)
    assert measured() != before
    path.write_bytes(old)
    assert measured() == before

def test_the_folder_is_its_own_before_anything_is_asked(tmp_path, go):
    from stylekit.core import folder_lock
    asked = []
    def begin(): asked.append(1)
    with folder_lock(tmp_path/'out'):
        with pytest.raises(StylekitError, match="another run is writing into 'out'"): go(begin=begin)
    assert not asked and not (tmp_path/'out').exists()
    go(dict(unchanged=None), metrics=['distance_src'], begin=begin)
    assert asked == [1]
