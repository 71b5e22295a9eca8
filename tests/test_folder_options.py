"A folder in given colours, within limits, in variants, like one result; what a review makes of it; kills"
import json, pickle, re
from functools import partial
from pathlib import Path
import pytest
from PIL import Image
from stylekit import Review, StylekitError, folders, limits, load_backbone, sample_image, stylize, stylize_folder
from stylekit.cli import main
from stylekit.folders import MANIFEST, FolderRecord, FolderRun, InProcess, folder_tasks, said_of_run
from stylekit.images import load_image
from stylekit.limits import Limits, found_in
from stylekit.methods.sms import settings
from stylekit.pictures import PictureFile
from stylekit.records import read_lines
from stylekit.stylizer import Changes, StylizeResult

@pytest.fixture(scope='module')
def few():
    "Two steps on a model that is loaded once; what costs and is not asked here is off"
    return dict(steps=2, final_t=0, adapt='none', backbone=load_backbone(device='cpu'))

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Two small pictures, one of them in a folder in the folder"
    d = tmp_path_factory.mktemp('options')
    for n in ('owl', 'b/penguin'):
        to = d/'in'/f'{n}.png'
        to.parent.mkdir(parents=True, exist_ok=True)
        sample_image(Path(n).name).resize((64, 64)).save(to)
    return d

def pixels(path): return Image.open(path).tobytes()
def lines_of(out): return read_lines(out/MANIFEST, FolderRun, FolderRecord)
def files_of(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*.png'))}


# ---- colours ----

@pytest.fixture
def sent(monkeypatch):
    "What is to be done goes to the worker as it would go to another process"
    def pool(make, arg, *_): return InProcess(make, pickle.loads(pickle.dumps(arg)))
    monkeypatch.setattr(folders, 'worker_pool', pool)

def test_colours_of_a_network(home, small_network, tmp_path, sent):
    from stylekit.feedforward import FeedForward
    def go(out, **how): return stylize_folder(home/'in', tmp_path/out, feedforward=small_network, **how)
    made = go('out', match_color='#e4002b,#ffffff')
    one = FeedForward.load(small_network)(home/'in'/'owl.png', match_color='#e4002b,#ffffff')
    assert made.made == 2 and pixels(tmp_path/'out'/'owl.png') == one.image.tobytes()
    assert made.run.options['match_color']['palette'] == ['#e4002b', '#ffffff'] and not made.run.settings
    assert go('out', match_color=['#e4002b', 'white']).made == 0     # said otherwise, and the same
    for other, why in ((None, 'with match_color'), ('source', 'other match_color')):
        with pytest.raises(StylekitError, match=re.escape(f'another run ({why})')): go('out', match_color=other)
    with pytest.raises(StylekitError, match="'sauce' is no colour"): go('new', match_color='sauce')
    assert not (tmp_path/'new').exists()

REFUSED = [(dict(limits=Limits(edge_f1=.8)), 'limits .* no λ to search along'), (dict(variants=2), 'one result'),
           (dict(lam=1.), 'lam .* nothing to set'), (dict(like='x.png'), 'like .* nothing to set')]

@pytest.mark.parametrize('asked, why', REFUSED)
def test_a_network_refuses_what_it_cannot_hear(home, small_network, tmp_path, asked, why):
    with pytest.raises(StylekitError, match=why):
        stylize_folder(home/'in', tmp_path/'out', feedforward=small_network, **asked)
    assert not (tmp_path/'out').exists()


# ---- variants ----

def test_where_variants_go_and_who_shares_a_batch():
    "The first results are cut as if there were no others; a variant gives way to a picture whose result it would take"
    pictures = [PictureFile(Path(f'{n}.png'), f'{n}.png', n, 'name', (64, 64)) for n in ('a', 'a-2', 'b', 'c')]
    one, three = folder_tasks(pictures, 2), folder_tasks(pictures, 2, 3)
    assert three[:2] == one and [len(c) for c in three] == [2]*6
    assert [p.error for c in three for p in c if p.error] == ['a.png and a-2.png would have one result: rename one']

def test_variants_are_single_runs_with_the_next_seeds(home, few, tmp_path):
    "More of them later is the same run; what there was stays"
    go = lambda n: stylize_folder(home/'in', tmp_path/'out', variants=n, seed=5, batch=1, **few)
    assert go(1).made == 2
    first = files_of(tmp_path/'out')
    assert go(2).made == 2 and go(1).made == 0
    every = files_of(tmp_path/'out')
    assert {n: every[n] for n in first} == first and len(every) == 4
    alone = stylize(home/'in'/'b'/'penguin.png', 'ink', 'penguin', seed=6, **few)
    path = tmp_path/'out'/'b'/'penguin-2.png'
    assert pixels(path) == alone.image.tobytes() and said_of_run(path)['seed'] == 6
    records = lines_of(tmp_path/'out')[1:]
    assert [(r.picture, r.variant, r.seed) for r in records][2:] == [('owl.png', 1, 5), ('owl.png', 2, 6)]
    path.unlink()
    again = go(2)
    assert again.made == 1 and files_of(tmp_path/'out') == every and again.there == 4 and not again.outside

def test_a_variant_that_gives_way(home, few, tmp_path):
    (tmp_path/'in').mkdir()
    for n in ('owl', 'owl-2'): sample_image('owl').resize((64, 64)).save(tmp_path/'in'/f'{n}.png')
    foreign = Image.new('RGB', (8, 8))
    (tmp_path/'out').mkdir()
    foreign.save(tmp_path/'out'/'owl-2-2.png')                       # nobody's result
    done = stylize_folder(tmp_path/'in', tmp_path/'out', variants=2, **few)
    errors = {(r.picture, r.variant): r.error for r in done.records if r.error}
    assert [*errors] == [('owl-2.png', 2), ('owl.png', 2)] and done.there == 2
    assert 'is there already' in errors['owl-2.png', 2] and 'would have one result' in errors['owl.png', 2]
    assert said_of_run(tmp_path/'out'/'owl-2.png')['seed'] == 0      # the picture's own
    assert pixels(tmp_path/'out'/'owl-2-2.png') == foreign.tobytes()


# ---- limits ----

EASY, HARD = Limits(edge_f1=.2, tries=2), Limits(edge_f1=1., displacement=0., tries=2)

class Drawer:
    "In the place of `stylize` in the search: a mixture with another picture, and what was asked for"
    def __init__(self): self.asked, self.dies_at = [], None
    def __call__(self, image, style, caption, lam, seed, **how):
        self.asked.append((lam, seed))
        if len(self.asked) == self.dies_at: raise SystemExit('killed')
        content = load_image(image)
        other = sample_image('taxi', 'ink').resize(content.size).rotate(seed*30, fillcolor='white')
        return StylizeResult(Image.blend(other, content, lam/(lam+6)), settings(lam=lam), {}, dict(seed=seed))

@pytest.fixture(scope='module')
def drawer():
    "The search itself, with pictures and proofs that cost nothing"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(limits, 'stylize', drawer := Drawer())
        m.setattr(limits, 'Prover', partial(limits.Prover, net=False, letters=False))
        yield drawer

@pytest.fixture(scope='module')
def within(home, few, drawer):
    "A folder within limits that no λ keeps, in two variants"
    def go(out='within', limits=HARD):
        return stylize_folder(home/'in', home/out, limits=limits, variants=2, match_color='source', **few)
    return go

def told(done): return [(r.result, r.within, r.best) for r in done.records]

def test_each_picture_is_the_search_of_itself_alone(home, few, within):
    done = within()
    one = stylize(home/'in'/'owl.png', 'ink', 'owl', limits=HARD, seed=1, match_color='source', **few)
    assert pixels(home/'within'/'owl-2.png') == one.image.tobytes()
    r, found = next(r for r in done.records if r.result == 'owl-2.png'), found_in(one)
    assert (r.within.lam, r.within.tries, r.within.holds) == (found.best.lam, 2, False)
    assert r.within.missed == found.best.missed and r.within.said == found.said and not r.error
    assert len(done.outside) == 4 and 'nearest is λ' in done.outside['owl-2.png'] and not done.failed

def test_the_best_variant_is_marked(home, within):
    done = within()
    for name in ('owl.png', 'b/penguin.png'):
        variants = [r for r in done.records if r.picture == name]
        best, = [r for r in variants if r.best]
        assert best.within.rank == min(r.within.rank for r in variants)
    assert [r.key for r in lines_of(home/'within')[1:] if r.best] == [r.key for r in done.records if r.best]

def test_limits_are_part_of_the_run_and_the_list_can_be_had_again(home, drawer, within):
    before, out = told(within()), home/'within'
    (out/MANIFEST).unlink()
    drawn = len(drawer.asked)
    assert told(within()) == before and len(drawer.asked) == drawn
    for other, why in ((None, 'with limits'), (EASY, 'other limits')):
        with pytest.raises(StylekitError, match=why): within(limits=other)

def test_what_limits_refuse_before_any_work(home, tmp_path):
    for bad, why in ((dict(lam=1.), 'searched along'), (dict(limits='edge_f1=.8'), 'must be a stylekit.Limits')):
        with pytest.raises(StylekitError, match=why):
            stylize_folder(home/'in', tmp_path/'out', **dict(limits=EASY) | bad)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('at', [1, 4, 6])
def test_a_killed_search_is_begun_again(home, drawer, within, at):
    "At its first try or its second: what was saved stays, and all ends as the undisturbed run did"
    whole, out = within(), home/f'killed-{at}'
    drawer.asked, drawer.dies_at = [], at
    with pytest.raises(SystemExit): within(out.name)
    drawer.dies_at = None
    early = {p: p.stat().st_mtime_ns for p in out.rglob('*.png')}
    done = within(out.name)
    assert len(early) == (at-1)//2 and done.made == 4-len(early) and told(done) == told(whole)
    assert early.items() <= {p: p.stat().st_mtime_ns for p in out.rglob('*.png')}.items()
    assert all(pixels(out/n) == pixels(home/'within'/n) for n in files_of(home/'within'))
    assert len(drawer.asked) == at + 2*done.made                     # no search that was saved is made again

def test_a_search_that_is_stopped_is_not_saved(home, few, drawer, tmp_path, monkeypatch):
    "Ctrl-C in the second try: the first is no result of the search"
    drawer.asked = []
    def stopped(*args, **how):
        result = drawer(*args, **how)
        if len(drawer.asked) == 2: result.info['note'], result.complete = 'interrupted after step 1', False
        return result
    monkeypatch.setattr(limits, 'stylize', stopped)
    with pytest.raises(KeyboardInterrupt): stylize_folder(home/'in'/'b', tmp_path/'out', limits=HARD, **few)
    assert len(drawer.asked) == 2 and not files_of(tmp_path/'out')


# ---- like one result ----

def tuning()->dict:
    return dict(seed=7, steps=3, guidance_scale=3., match_color='palette', callbacks=[Changes([(1, dict(lam=.5))])])

@pytest.fixture(scope='module')
def tuned(home, few):
    "A result in whose run a setting was changed, in a mix with words of its own"
    from stylekit import load_style
    style = load_style([('ink', .7), ('flat', .3)], 'an etching')
    return stylize(home/'in'/'owl.png', style, 'a bird', **few | tuning()).save(home/'tuned.png')

def test_a_folder_like_a_result(home, few, tuned, tmp_path, sent):
    "Each picture comes out as a run with all that the record says"
    from stylekit import load_style
    done = stylize_folder(home/'in', tmp_path/'out', like=tuned, batch=1)
    assert (done.made, done.run.style, done.run.seed, done.run.settings['steps']) == (2, 'ink+flat', 7, 3)
    assert done.run.options['changes'] == [[1, dict(lam=.5)]]
    style = load_style([('ink', .7), ('flat', .3)], 'an etching')
    alone = stylize(home/'in'/'owl.png', style, 'owl', **few | tuning())
    assert pixels(tmp_path/'out'/'owl.png') == alone.image.tobytes()
    assert stylize_folder(home/'in', tmp_path/'out', like=tmp_path/'out'/'owl.png').made == 0     # like itself
    with pytest.raises(StylekitError, match='steps 3 instead of 2'):
        stylize_folder(home/'in', tmp_path/'out', like=tuned, steps=2)

def test_what_is_given_goes_before_the_record(home, few, tuned, tmp_path):
    done = stylize_folder(home/'in'/'b', tmp_path/'out', like=tuned, seed=1, match_color='none', **few)
    assert done.run.seed == 1 and done.run.settings['steps'] == 2 and 'match_color' not in done.run.options
    with pytest.raises(StylekitError, match='change it in mid-run'):
        stylize_folder(home/'in'/'b', tmp_path/'more', like=tuned, limits=EASY)

def test_what_a_folder_cannot_be_made_like(home, few, tuned, small_network, tmp_path, models, monkeypatch):
    owl = home/'in'/'owl.png'
    def refused(why, like, **how):
        with pytest.raises(StylekitError, match=why): stylize_folder(home/'in', tmp_path/'out', like=like, **how)
    refused('no record of a run', owl)
    refused('does not exist|cannot read', tmp_path/'none.png')
    refused('another model|the model', tuned, backbone=models('sd15'))
    refused('give that as style=', tuned, style='ink')
    refused('method does not apply', tuned, method='sms')
    stylize_folder(home/'in'/'b', tmp_path/'fast', feedforward=small_network)
    refused('by a network in one pass', tmp_path/'fast'/'penguin.png')
    half = stylize(owl, 'ink', 'an owl', protect=(0, 0, 9, 9), seed=0, **few).save(tmp_path/'half.png')
    refused('something was protected', half)
    assert stylize_folder(home/'in'/'b', tmp_path/'free', like=half, protect='none', **few).made == 1
    run = said_of_run(tuned)
    monkeypatch.setattr(folders, 'recorded_run', lambda path: run | dict(complete=False, steps_done=1))
    refused('stopped after step 1', tuned)
    monkeypatch.setattr(folders, 'recorded_run', lambda path: run | dict(style='mine', style_parts=[]))
    refused("style 'mine' of tuned.png is not here", tuned)
    assert not (tmp_path/'out').exists()


# ---- review ----

def test_a_review_of_variants_within_limits(home, few, within):
    "One item for each picture; the best is shown first; redos begin at its λ and its colours"
    done = within('reviewed')
    review = Review(home/'reviewed', who='ann')
    assert sorted(review.items) == ['b/penguin.png', 'owl.png']
    best = {r.picture: r for r in done.records if r.best}
    for item in review.items:
        shown = 1-best[item].variant
        assert review.state(item).round == shown and [*review.rounds(item)] == [0, -1]
        assert review.proof(item, shown).sentences == best[item].within.said
        assert review.round_name(item, shown) == f'variant {best[item].variant} of 2'
    scores = [review.proofs[i].score for i in review.items]
    assert scores == sorted(scores) and max(scores) <= 0              # those that miss most come first
    item, = [i for i in review.items if i == 'owl.png']
    d = review.redo(item, 'more style')
    assert (d.round, d.lam, d.seed) == (1-best[item].variant, best[item].within.lam/2, best[item].seed)
    made, = review.work()
    plain = stylize(home/'in'/item, 'ink', 'owl', lam=d.lam, seed=d.seed, match_color='source', **few)
    assert not made.error and pixels(review.rounds(item)[1]) == plain.image.tobytes()
    assert review.state(item).round == 1 and review.redo(item, 'other seed').seed == 2

def test_a_redo_keeps_what_the_folder_protected(home, few, tmp_path):
    "Letters, boxes, cut-outs; painted masks are not kept, and that is said"
    def redone(protect, out, *asked):
        stylize_folder(home/'in'/'b', tmp_path/out, protect=protect, **few)
        review = Review(tmp_path/out, home/'in'/'b')
        review.redo('penguin.png', *asked)
        return review, review.work()[0]
    review, made = redone('box:0,0,30,30', 'out', 'other seed')
    a, b = (Image.open(p).convert('RGB').crop((0, 0, 30, 30)) for p in
            (home/'in'/'b'/'penguin.png', review.rounds('penguin.png')[1]))
    assert not made.error and a.tobytes() == b.tobytes()
    (tmp_path/'masks').mkdir()
    white = Image.new('L', (64, 64), 255)
    white.save(tmp_path/'masks'/'penguin.png')
    review, made = redone(tmp_path/'masks', 'masked', 'other seed')
    assert 'ask for "protect this"' in made.error
    review.redo('penguin.png', 'protect this', white)
    assert not review.work()[0].error


# ---- on the command line ----

def test_options_of_a_folder_on_the_command_line(home, tuned, drawer, tmp_path, capfd):
    birds, out = str(home/'in'/'b'), str(tmp_path/'out')
    args = ['stylize', birds, '--out', out, '--steps', '2', '--variants', '2', '--json']
    assert main([*args, '--match-color', 'source', '--limits', 'edge_f1=1 displacement=0 tries=1']) == 0
    told, err = capfd.readouterr()
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line['result'] for line in lines] == ['penguin.png', 'penguin-2.png']
    assert all(line['within']['tries'] == 1 and line['within']['missed'] for line in lines)
    assert 'stylekit: penguin-2.png: ' in err and '2 outside the limits, 0 failed' in err
    like = ['stylize', birds, '--out', str(tmp_path/'like'), '--like', str(tuned)]
    assert main([*like, '--steps', '2']) == 0 and said_of_run(tmp_path/'like'/'penguin.png')['style'] == 'ink+flat'
    for more in (['--preset', 'paper'], ['--trigger-words', 'x'], ['--feedforward', 'ink']):
        assert main([*like, *more]) == 2 and 'does not apply' in capfd.readouterr().err
    assert main(['stylize', str(home/'in'/'owl.png'), '--like', str(tuned)]) == 2
