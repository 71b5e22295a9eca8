"""Verdicts on folders: which result belongs to which source, what a second call does, what is kept after a stop, what
is written and read, and the exit statuses of the command"""
import csv, json, shutil, warnings
from pathlib import Path
import pytest
from PIL import Image
from stylekit import Limits, Review, StylekitError, evaluate_results, sample_image, stylize_folder
from stylekit.captions import AUTO_CAPTIONS, AutoCaption
from stylekit.cli import FAILS, main
from stylekit.core import file_sha256
from stylekit.folders import FolderRecord, FolderRun, read_pictures
from stylekit.measure import verdicts as V
from stylekit.measure.proof import Proof
from stylekit.pictures import PictureFile
from stylekit.records import json_line, read_lines

def proof_of(edges=.8, known=True, **about):
    "A proof that nobody measured"
    plain = dict(id='', displacement=0., shift=(0., 0.), shift_error=0., moved=(), tiles=1, growth=None, edge_f1=edges,
                 structure=.01, identity=edges, recognised=known, likest='' if known else 'a thing', letters=None,
                 delta_e=None, logo=None, read=('', ''), logo_offset=(0, 0), seconds=.1, rulers={})
    return Proof(**plain | about)

@pytest.fixture
def proved(monkeypatch):
    "Names of results in the order of their proofs, which cost nothing: a result keeps as many edges as it is light"
    done = []
    class Quick:
        def __init__(self, content, regions, logos, letters):
            self.region = regions
            with Image.open(content) as im: im.load()
        def __call__(self, result, id=''):
            with Image.open(result) as im: grey = im.convert('L').resize((1, 1)).getpixel((0, 0))/255
            done.append(Path(result).name)
            return proof_of(round(grey, 2), delta_e=None if self.region is None else 1.)
    monkeypatch.setattr(V, 'Prover', Quick)
    monkeypatch.setattr(V, 'neutral_judge', lambda: None)
    return done

def put(path, grey=200, side=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (side, side), grey).save(path)
    return path

@pytest.fixture
def folders(tmp_path):
    "Five sources and their results, the third too dark to hold"
    for i in range(5):
        put(tmp_path/'in'/'ab'[i%2]/f'thing {i}.png', 10*i)
        put(tmp_path/'out'/'ab'[i%2]/f'thing {i}.jpg', 60 if i == 2 else 150+10*i)
    return tmp_path/'in', tmp_path/'out'


# ---- which belongs to which

PAIRS = [
    (['a.png'], ['a.jpg'], {'a.jpg': 'a.png'}),
    (['x/a.png', 'y/a.png'], ['y/a.webp', 'x/a.webp'], {'x/a.webp': 'x/a.png', 'y/a.webp': 'y/a.png'}),
    (['a.png'], ['a-2.png', 'a (3).png', 'a_4.png'], {'a-2.png': 'a.png', 'a (3).png': 'a.png', 'a_4.png': 'a.png'}),
    (['a.png', 'a-2.png'], ['a-2.png', 'a.png'], {'a-2.png': 'a-2.png', 'a.png': 'a.png'}),
    (['A.PNG'], ['a.png'], {'a.png': 'A.PNG'}),
    (['größe 猫.png'], ['größe 猫.webp'], {'größe 猫.webp': 'größe 猫.png'}),
    (['a.png', 'b.png'], ['a.png'], {'a.png': 'a.png', 'b.png': None}),
    (['a.png'], ['a.png', 'ab.png'], {'a.png': 'a.png', 'ab.png': ''}),
    (['x/a.png'], ['a.png'], {'a.png': '', 'x/a.png': None}),
    (['a.png', 'a.jpg'], ['a.jpg', 'a.png'], {'a.jpg': 'a.jpg', 'a.png': 'a.png'})]

@pytest.mark.parametrize('sources,results,expected', PAIRS, ids=lambda v: ' '.join(v) if isinstance(v, list) else '')
def test_results_find_their_sources(sources, results, expected, tmp_path):
    "'' stands for none, None for no result"
    for folder, names in (('in', sources), ('out', results)):
        (tmp_path/folder).mkdir()
        for n in names: put(tmp_path/folder/n)
    found = {p.name: None if not p.result else p.source.name if p.source else ''
             for p in V.pair_results(tmp_path/'in', tmp_path/'out')}
    assert found == expected

def test_two_sources_of_one_name_are_named(tmp_path, proved):
    for n in ('a.png', 'a.jpg'): put(tmp_path/'in'/n)
    put(tmp_path/'out'/'a.webp')
    made = evaluate_results(tmp_path/'in', tmp_path/'out')
    assert [v.status for v in made.verdicts] == ['unusable', 'missing', 'missing']
    assert 'a.jpg and a.png could both be its source' in made.verdicts[0].sentences[0]

@pytest.mark.parametrize('inside', ['results in sources', 'sources in results'])
def test_one_folder_may_lie_in_the_other(inside, tmp_path, proved):
    home, part = tmp_path/'home', tmp_path/'home'/'part'
    sources, results = (home, part) if inside == 'results in sources' else (part, home)
    for folder in (sources, results): put(folder/'a.png')
    made = evaluate_results(sources, results)
    assert [(v.picture, v.result) for v in made.verdicts] == [('a.png', 'a.png')]

def test_a_manifest_knows_better_than_names(tmp_path, proved):
    for n in ('one.png', 'two.png', 'torn.png'): put(tmp_path/'in'/n)
    put(tmp_path/'out'/'first.png')
    put(tmp_path/'out'/'two.png')
    run = FolderRun('in', 'x', 'ink', 0, 'mini', 'key', {})
    records = [FolderRecord('one.png', 'first.png', run.id, 'a mug', 'one.txt, by florence', seconds=2.5),
               FolderRecord('torn.png', 'torn.png', run.id, error='memory ran out')]
    (tmp_path/'out'/'manifest.jsonl').write_text(''.join(map(json_line, [run, *records])))
    found = {v.name: v for v in evaluate_results(tmp_path/'in', tmp_path/'out').verdicts}
    first = found['first.png']
    assert (first.picture, first.caption, first.made_seconds) == ('one.png', 'a mug', 2.5)
    assert found['torn.png'].status == 'missing' and found['torn.png'].sentences == ('memory ran out',)

def test_a_result_may_have_the_name_of_another_source(tmp_path, proved):
    "As a manifest tells; the other one has no result"
    for n in ('a.png', 'b.png'): put(tmp_path/'in'/n)
    put(tmp_path/'out'/'a.png')
    run = FolderRun('in', 'x', 'ink', 0, 'mini', 'key', {})
    (tmp_path/'out'/'manifest.jsonl').write_text(json_line(run)+json_line(FolderRecord('b.png', 'a.png', run.id)))
    for _ in range(2):
        made = evaluate_results(tmp_path/'in', tmp_path/'out')
        said = {(v.picture, v.result, v.status) for v in made.verdicts}
        assert said == {('b.png', 'a.png', 'holds'), ('a.png', '', 'missing')}
    assert proved == ['a.png']


# ---- what is kept

def test_a_second_call_does_what_has_changed(folders, proved):
    sources, results = folders
    first = evaluate_results(sources, results)
    assert sorted(proved) == [f'thing {i}.jpg' for i in range(5)] and first.verdicts[0].name == 'a/thing 2.jpg'
    stamps = {n: (results/n).stat().st_mtime_ns for n in ('verdicts.html',)}
    proved.clear()
    assert evaluate_results(sources, results).verdicts == first.verdicts and not proved
    assert {n: (results/n).stat().st_mtime_ns for n in stamps} == stamps            # not drawn again either
    put(results/'a'/'thing 0.jpg', 90)                                              # another result,
    put(sources/'b'/'thing 1.png', 99)                                              # another source,
    put(results/'a'/'thing 4 (2).jpg')                                              # one more, one less
    (results/'b'/'thing 3.jpg').unlink()
    made = evaluate_results(sources, results)
    assert sorted(proved) == ['thing 0.jpg', 'thing 1.jpg', 'thing 4 (2).jpg']
    assert made.count('missing') == 1 and [*V.read_verdicts(results)] == [v.result for v in made.verdicts if v.result]
    proved.clear()
    strict = evaluate_results(sources, results, Limits(edge_f1=.99))
    assert not proved and strict.count('fails') == 5 and strict.verdicts[1].asked == dict(edge_f1=.99)
    evaluate_results(sources, results, overwrite=True)
    assert len(proved) == 5

def test_masks_belong_to_a_proof(folders, proved, tmp_path):
    sources, results = folders
    made = evaluate_results(sources, results, 'delta_e=.5')
    assert not made.failing and 'colour change could not be measured on any picture: it needs regions' in made.summary
    proved.clear()
    put(tmp_path/'masks'/'a'/'thing 0.png', 255)
    made = evaluate_results(sources, results, 'delta_e=.5', regions=tmp_path/'masks')
    assert proved == ['thing 0.jpg'] and [v.name for v in made.failing] == ['a/thing 0.jpg']
    assert made.failing[0].missed == dict(delta_e=1.) and 'could not be measured' not in made.summary

@pytest.mark.parametrize('torn', [False, True])
def test_what_is_proved_is_kept_when_somebody_stops_it(folders, proved, torn):
    sources, results = folders
    def stop(progress):
        if progress.done == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): evaluate_results(sources, results, report=stop)
    assert len(read_lines(results/V.VERDICTS, V.Verdict)) == 2
    if torn:
        with open(results/V.VERDICTS, 'a') as f: f.write('{"kind": "verd')
    made = evaluate_results(sources, results)
    assert len(proved) == len({*proved}) == 5 and made.count('fails', 'holds') == 5
    assert len(read_lines(results/V.VERDICTS, V.Verdict)) == 5

def test_a_limit_of_time(folders, proved):
    sources, results = folders
    made = evaluate_results(sources, results, seconds=0)
    assert not proved and made.count('not proved') == 5 and not made.failing and '5 not proved yet' in made.summary
    made = evaluate_results(sources, results, seconds=1e-9)
    assert len(proved) == 1 and made.count('not proved') == 4
    assert evaluate_results(sources, results).count('not proved') == 0 and len(proved) == 5

def test_each_fault_is_its_own(folders, proved):
    sources, results = folders
    (results/'a'/'thing 0.jpg').write_bytes((results/'a'/'thing 0.jpg').read_bytes()[:200])
    (sources/'b'/'thing 1.png').write_bytes(b'no picture')
    put(results/'stray.png')
    (results/'b'/'thing 3.jpg').unlink()
    made = evaluate_results(sources, results)
    found = {v.name: v for v in made.verdicts}
    assert [found[n].status for n in ('a/thing 0.jpg', 'b/thing 1.jpg', 'b/thing 3.png', 'stray.png')] == \
        ['unusable', 'unusable', 'missing', 'no source']
    assert len(made.failing) == 4 and made.count('holds') == 1
    assert str(results.parent) not in (results/V.VERDICTS).read_text()          # no path of a machine
    assert 'Of 5 pictures 1 fails, 1 has no result, 2 cannot be compared, 1 holds.' in made.summary

def test_what_others_wrote_stays(folders, proved):
    sources, results = folders
    (results/'verdicts.html').write_text('mine')
    with pytest.raises(StylekitError, match='not of stylekit'): evaluate_results(sources, results)
    assert not proved and (results/'verdicts.html').read_text() == 'mine'
    out = evaluate_results(sources, results, out=results.parent/'elsewhere').out
    assert (out/'verdicts.html').exists() and not (results/V.VERDICTS).exists()
    line = (out/V.VERDICTS).read_text().replace('"holds"', '"fails"', 1)
    (out/V.VERDICTS).write_text(line)
    with pytest.raises(StylekitError, match='was changed'): evaluate_results(sources, results, out=out)


# ---- what is said

def test_limits_by_the_size_of_the_picture():
    pair = V.ResultPair(*[PictureFile(Path('a.png'), 'a.png', shape=(1000, 500))]*2)
    assert V.judge_pair(pair, proof_of(displacement=9.)).status == 'holds'
    v = V.judge_pair(pair, proof_of(displacement=15.))
    assert v.missed == dict(displacement=.5) and v.words == 'fails displacement'

def test_the_order_is_that_of_a_review():
    "Misses by much, misses by little, not recognised, holds"
    pair = V.ResultPair(*[PictureFile(Path('a.png'), 'a.png', shape=(100, 100))]*2)
    proofs = [proof_of(.05), proof_of(.39), proof_of(.9, known=False), proof_of(.5), proof_of(.9)]
    made = [V.judge_pair(pair, p) for p in proofs]
    scores = [v.score for v in made]
    assert scores == sorted(scores) and scores[1] < -1 < scores[2] < 0 < scores[3]
    assert sorted(made, key=lambda v: v.order) == made and [v.is_bad for v in made] == [True]*3+[False]*2
    assert made[2].sentences[0].endswith('takes it rather for a thing.') and made[2].words == 'not recognised'

def test_tables_and_pages_take_any_name(tmp_path, proved):
    for name in ('=1+1', '<b>&amp;', 'größe 猫'):
        put(tmp_path/'in'/f'{name}.png')
        put(tmp_path/'out'/f'{name}.png', 20)
    made = evaluate_results(tmp_path/'in', tmp_path/'out')
    rows = {r['result']: r for r in csv.DictReader(open(tmp_path/'out'/'verdicts.csv', newline='', encoding='utf-8'))}
    assert {*rows} == {"'=1+1.png", '<b>&amp;.png', 'größe 猫.png'} and rows['größe 猫.png']['status'] == 'fails'
    assert float(rows["'=1+1.png"]['edge_f1_missed_by']) == pytest.approx(made.verdicts[0].missed['edge_f1'])
    page = made.page.read_text(encoding='utf-8')
    assert '<b>&amp;.png' not in page and '&lt;b&gt;&amp;amp;.png' in page and 'src="http' not in page

def test_a_page_of_many_is_small(tmp_path):
    "Noise is what compresses worst"
    import os
    n, side = 60, 128
    pairs = []
    for i in range(3):
        Image.frombytes('RGB', (side, side), os.urandom(3*side*side)).save(tmp_path/f'{i}.png')
    for i in range(n):
        p = PictureFile(tmp_path/f'{i%3}.png', f'{i}.png', shape=(side, side))
        pairs.append(V.ResultPair(p, p))
    made = V.FolderVerdicts(tmp_path, [V.judge_pair(p, proof_of(.1+.01*i)) for i, p in enumerate(pairs)])
    made.write(pairs)
    assert made.page.stat().st_size < 8_000_000 and made.page.read_text().count('<img') == 2*n
    assert V._side(2*600) < 100 < V._side(120) and V._side(2) == 256

def test_recognised_among_the_folder(monkeypatch):
    "Views of one thing are not held against each other"
    import numpy as np
    def unit(*v): return np.array(v)/np.linalg.norm(v)
    seen = dict(shoe=unit(1, 0, 0), view=unit(1, .3, 0), hat=unit(0, 1, 0), drawn=unit(1, .5, 0), lost=unit(.3, 1, 0))
    monkeypatch.setattr(V, '_features', lambda names, net: np.stack([seen[n] for n in names]))
    others = {n: n for n in ('shoe', 'view', 'hat')}
    assert V.recognise_among([('shoe', 'drawn'), ('shoe', 'lost')], others) == [(True, ''), (False, 'hat')]

def test_a_real_proof(tmp_path):
    "With the network and the edges, at a small size"
    for n, shown in (('owl', ''), ('taxi', 'owl'), ('penguin', 'penguin')):
        for folder, name, look in (('in', n, 'shaded'), ('out', shown, 'flat')):
            (tmp_path/folder).mkdir(exist_ok=True)
            if name: sample_image(name, look).resize((64, 64)).save(tmp_path/folder/f'{n}.png')
    made = evaluate_results(tmp_path/'in', tmp_path/'out', 'edge_f1=.4', letters=False)
    assert [v.name for v in made.failing] == ['owl.png', 'taxi.png'] and made.failing[1].proof.likest == 'owl.png'
    assert 'takes it rather for owl.png' in made.page.read_text() and 'not recognised' in made.text()


# ---- the review

@pytest.fixture
def reviewed(results, tmp_path, proved):
    out = results(tmp_path, n=3, side=24)
    put(out/'b'/'thing 1.png', 30)
    evaluate_results(tmp_path/'in', out)
    return out

def test_a_review_finds_the_verdicts(reviewed):
    review = Review(reviewed)
    assert review.items[0] == 'b/thing 1.png' and review.proof('b/thing 1.png').score < -1
    assert 'Of its edges' in review.proof('b/thing 1.png').sentences[0]
    assert Review(reviewed, proof={'a/thing 0.png': -5}).items[0] == 'a/thing 0.png'       # what is given goes before
    assert Review(reviewed, proof=reviewed/V.VERDICTS).items == review.items
    put(reviewed/'b'/'thing 1.png', 31)
    changed = Review(reviewed)
    assert changed.items[-1] == 'b/thing 1.png' and 'has changed' in changed.proof('b/thing 1.png').sentences[0]

def test_what_cannot_be_compared_comes_first(reviewed, tmp_path):
    (reviewed/'c'/'thing 2.png').write_bytes(b'torn')
    evaluate_results(tmp_path/'in', reviewed)
    assert Review(reviewed).items[:2] == ['c/thing 2.png', 'b/thing 1.png']


# ---- the command

def lines(capsys): return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

def test_exit_statuses(folders, proved, capsys):
    sources, results = map(str, folders)
    argv = ['evaluate', sources, '--results', results]
    assert main(argv) == 0 and main([*argv, '--strict']) == FAILS == 3
    out = capsys.readouterr().out
    assert out.startswith('fails edges kept  a/thing 2.jpg') and 'edges kept: How well' in out
    assert main([*argv, '--strict', '--limits', 'edge_f1=.1']) == 0
    Path(results, 'a', 'thing 0.jpg').unlink()
    assert main([*argv, '--limits', 'edge_f1=.1']) == 1 and main([*argv, '--limits', 'edge_f1=.1', '--strict']) == 3
    assert main([*argv, '--limits', 'edges=.1']) == main(['evaluate', sources, '--results', sources]) == 2

def test_lines_for_programs(folders, proved, capsys):
    sources, results = map(str, folders)
    assert main(['evaluate', sources, '--results', results, '--json', '--limits', 'edge_f1=.4,letters=.9']) == 0
    first, *rest = lines(capsys)
    assert first['command'] == 'evaluate' and first['status'] == 'fails' and len(rest) == 4
    assert first['result'] == 'a/thing 2.jpg' and first['edge_f1_missed_by'] > 0 and first['letters'] is None

@pytest.mark.parametrize('line', ['--results {r} --seeds 1', '--results {r} --methods sms',
                                  '--results {r} --caption auto', '--limits edge_f1=.5', '--strict', '--regions {r}'])
def test_what_does_not_apply(line, folders, capsys):
    sources, results = map(str, folders)
    assert main(['evaluate', sources, *line.format(r=results).split()]) == 2
    assert 'does not apply with' in capsys.readouterr().err

def test_a_folder_run_ends_with_its_sheet(folders, proved, small_network, tmp_path, capsys):
    sources, _ = map(str, folders)
    out = tmp_path/'made'
    argv = ['stylize', sources, '--feedforward', str(small_network), '--out', str(out)]
    assert main([*argv, '--no-sheet']) == 0 and not (out/'verdicts.html').exists() and not proved
    assert main(argv) == 0 and len(proved) == 5
    said = capsys.readouterr()
    assert 'verdicts.html shows it' in said.err and 'verdicts' not in said.out
    assert main([*argv, '--strict']) == FAILS and len(proved) == 5       # dark sources stay dark
    (out/'verdicts.jsonl').unlink()
    assert main(argv) == 0 and 'no contact sheet: verdicts.html is there already' in capsys.readouterr().err
    assert main([*argv, '--sheet']) == 2
    assert main([*argv, '--no-sheet', '--strict']) == 2
    assert main(['stylize', f'{sources}/a/thing 0.png', '--sheet']) == 2

def test_ctrl_c_leaves_the_pictures(folders, small_network, tmp_path, monkeypatch, capsys):
    out = tmp_path/'made'
    def stopped(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(V, 'evaluate_results', stopped)
    assert main(['stylize', str(folders[0]), '--feedforward', str(small_network), '--out', str(out)]) == 130
    assert 'the pictures are whole' in capsys.readouterr().err and len([*out.rglob('*.png')]) == 5


# ---- captions

class Says:
    "In the place of a captioning model"
    name, revision = 'florence', 'abc'
    def __call__(self, paths, batch): return ['A photo of a red mug.']*len(paths)

@pytest.fixture
def nameless(tmp_path, monkeypatch):
    for i in range(3): put(tmp_path/'set'/f'IMG_000{i}.png', 50*i)
    monkeypatch.setattr('stylekit.captions.load_captioner', lambda *a, **kw: Says())
    return tmp_path/'set'

def test_a_record_says_that_a_caption_is_a_models(nameless, tmp_path, small_network):
    (nameless/'IMG_0001.txt').write_text('my own words')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from stylekit import caption_folder
        caption_folder(nameless)
    (nameless/'IMG_0002.txt').write_text('a green mug')       # corrected
    made = stylize_folder(nameless, tmp_path/'out', feedforward=small_network)
    found = {r.picture: (r.caption, r.caption_from) for r in made.records}
    assert found == {'IMG_0000.png': ('a red mug', 'IMG_0000.txt, by florence'),
                     'IMG_0001.png': ('my own words', 'IMG_0001.txt'),
                     'IMG_0002.png': ('a green mug', 'IMG_0002.txt')}
    (nameless/AUTO_CAPTIONS).write_text('{}\n')
    with pytest.warns(UserWarning, match='is not known'): pictures = read_pictures(nameless, tmp_path/'out')
    assert pictures[0].caption_from == 'IMG_0000.txt'

def test_evaluate_and_networks_take_auto(nameless, tmp_path):
    from stylekit.feedforward_training import train_feedforward
    from stylekit.measure.evaluate import evaluate
    from stylekit.finetune import examples_of
    with pytest.raises(StylekitError, match='nothing says what'): evaluate(nameless, ['unchanged'], out=tmp_path/'e')
    with pytest.raises(StylekitError): evaluate(nameless, ['nosuch'], out=tmp_path/'e', caption='auto')
    with pytest.raises(StylekitError, match="takes caption='auto'"): train_feedforward('ink', nameless, caption='a mug')
    assert not [*nameless.glob('*.txt')]                      # nothing is written before all else is right
    class Begun(Exception): pass
    def begin(): raise Begun                                  # the pictures and their captions are known by then
    with pytest.warns(UserWarning, match='3 captions written by florence'), pytest.raises(Begun):
        evaluate(nameless, ['unchanged'], out=tmp_path/'e', caption='auto', begin=begin)
    assert (nameless/'IMG_0000.txt').read_text() == 'a red mug\n'
    assert [e.caption for e in examples_of(nameless, caption='auto')] == ['a red mug']*3
    with pytest.raises(StylekitError, match='has its captions'): examples_of([1], caption='auto')
