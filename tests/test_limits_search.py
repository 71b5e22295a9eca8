"The search within limits: on made-up curves, where everything is known, and on the embedded model"
import dataclasses, json
import numpy as np, pytest
from stylekit import limits as L
from stylekit.backbone import load_backbone
from stylekit.core import StylekitError
from stylekit.images import sample_image
from stylekit.limits import Limits
from stylekit.stylizer import StylizeResult, stylize
from stylekit.methods.sms import settings

N = len(L.LAMS)


# ---- what is asked for

WRONG = [('edge_f1', 1.1), ('edge_f1', -1), ('letters', 2), ('displacement', -1), ('tries', 0), ('tries', 2.5),
         ('delta_e', 'much'), ('identity', float('nan')), ('logo', True)]

@pytest.mark.parametrize('field, value', WRONG)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(StylekitError, match=field): Limits(**{field: value})
    with pytest.raises(StylekitError, match=field): L.as_limits({field: value})

def test_limits_go_to_a_file_and_back(tmp_path):
    limits = Limits(edge_f1=.8, letters=1, delta_e=4, tries=3)
    (tmp_path/'limits.json').write_text(json.dumps(limits.to_json()))
    assert L.as_limits(str(tmp_path/'limits.json')) == L.as_limits(tmp_path/'limits.json') == limits
    assert L.as_limits('edge_f1=.8 letters=1,delta_e=4  tries=3') == limits

OTHERS = [('edges=.8', 'unknown key'), ('edge_f1', 'NAME=VALUE'), ('edge_f1=x', 'must be a number'),
          ('edge_f1=.8 edge_f1=.9', 'given twice'), (7, 'must be an object'), ('none.json', 'none.json')]

@pytest.mark.parametrize('given, why', OTHERS)
def test_other_forms_are_refused(given, why):
    with pytest.raises(StylekitError, match=why): L.as_limits(given)

def test_without_limits_there_is_nothing_to_search(): assert not Limits() and Limits(structure=.01)


# ---- on curves

def walk(style, edges, asked, tries=7, by_judge=True):
    "Rungs in the order in which they were tried, and the best"
    tried = {}
    while len(tried) < tries and (i := L.next_rung(tried, N, asked, by_judge)) is not None:
        values = dict(edge_f1=float(edges[i]))
        missed = {m: (v-values[m])/v for m, v in asked.items() if values[m] < v}
        tried[i] = L.Try(L.LAMS[i], i/(N-1), float(style[i]), values, missed)
    return [*tried], L.best_try(tried.values())

RISING = np.linspace(.5, .9, N)

def test_one_try_where_no_limit_binds():
    rungs, best = walk(np.ones(N), RISING, dict(edge_f1=.4))
    assert rungs == [0] and best.holds and best.lam == 0

def test_an_impossible_limit_ends_soon_with_the_nearest():
    rungs, best = walk(np.ones(N), RISING, dict(edge_f1=.999), tries=13)
    assert len(rungs) <= 3 and not best.holds and best.lam == L.LAMS[-1]
    assert best.missed['edge_f1'] == pytest.approx(.099/.999)

@pytest.mark.parametrize('limit', np.linspace(.5, .9, 9))
@pytest.mark.parametrize('by_judge', [True, False])
def test_a_straight_way_is_found_as_by_brute_force(limit, by_judge):
    style = np.linspace(1, .4 if by_judge else 0, N)
    rungs, best = walk(style, RISING, dict(edge_f1=limit), by_judge=by_judge)
    first = int(np.argmax(RISING >= limit-1e-12))
    assert best.holds and len(rungs) == len(set(rungs)) <= 7
    assert best.style >= .95*style[first] or best.place <= (first+1)/(N-1)

def test_where_the_way_is_not_straight_bisection_would_fail():
    "The limit is kept in a valley's two ends only, at the far end without style"
    edges = np.array([.7]+[.6, .55, .5, .5, .55]+[.72, .71]+[.5]*4+[.8])
    style = np.array([.2]+[.9]*6+[.8]*5+[.1])
    rungs, best = walk(style, edges, dict(edge_f1=.69), tries=9)
    assert best.holds and best.style >= .8

@pytest.mark.parametrize('seed', range(40))
def test_random_walks(seed):
    "Never twice the same, never more than allowed, and what is said to hold does"
    rng = np.random.default_rng(seed)
    edges = np.clip(.7+np.cumsum(rng.normal(0, .03, N)), 0, 1)
    style = np.clip(.6+np.cumsum(rng.normal(0, .15, N)), 0, 1)
    limit = float(np.quantile(edges, rng.random()))
    rungs, best = walk(style, edges, dict(edge_f1=limit))
    assert len(rungs) == len(set(rungs)) <= 7 and set(rungs) <= {*range(N)}
    assert best.holds == (best.values['edge_f1'] >= limit)
    assert (rungs, best) == walk(style, edges, dict(edge_f1=limit))

def test_random_walks_together():
    "Nineteen in twenty keep the limit where it can be kept, by less than all the tries they may have"
    kept, tries = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        edges = np.clip(.7+np.cumsum(rng.normal(.005, .03, N)), 0, 1)
        style = np.clip(.8-np.cumsum(rng.normal(.02, .13, N)), 0, 1)
        rungs, best = walk(style, edges, dict(edge_f1=float(np.quantile(edges, .2+.6*rng.random()))))
        kept.append(best.holds)
        tries.append(len(rungs))
    assert np.mean(kept) >= .95 and np.mean(tries) <= 6.5

def test_a_measure_that_the_picture_has_not_does_not_matter():
    a = L.Try(0., 0., 1., dict(letters=None), {})
    b = dataclasses.replace(a, lam=10., place=1.)
    assert L._chance({0: a, N-1: b}, 3, dict(letters=.9)) == 1


# ---- with a made-up drawer

def drawer(log):
    "More λ, more of the content: a mixture with another picture"
    content, style = sample_image('owl'), sample_image('taxi', 'ink')
    from PIL import Image
    def draw(lam):
        log.append(lam)
        share = 1. if lam is None else lam/(lam+.6)
        return StylizeResult(Image.blend(style, content, share), settings(), {}, dict(seed=0))
    return content, draw

def test_the_search_draws_each_rung_once_and_keeps_what_it_found():
    log, said = [], []
    content, draw = drawer(log)
    result = Limits(edge_f1=.6).search(draw, content, report=said.append, letters=False, net=False)
    found = L.found_in(result)
    assert log == [t.lam for t in found.tries] == [t.lam for t in said] and len(log) == len(set(log)) <= 7
    assert found.holds and found.best.values['edge_f1'] == found.proof.edge_f1 >= .6 and not found.by_judge
    smaller = [t for t in found.tries if t.lam < found.best.lam]
    assert all(not t.holds for t in smaller)                       # no smaller λ that was tried keeps it
    assert json.loads(json.dumps(result.info['limits'])) == found.to_json()
    assert result.image.tobytes() == draw(found.best.lam).image.tobytes()

def test_the_nearest_is_given_and_what_fails_is_named():
    content, draw = drawer([])
    result = Limits(edge_f1=.5, displacement=0, identity=.999).search(draw, content, lams=(0., .1, .2), letters=False)
    found = L.found_in(result)
    assert not found.holds and found.best.lam == .2 and 'nearest is λ = 0.2' in found.said[0]
    assert any('0.999' in s or '1.00' in s for s in found.said[1:])

def test_without_λ_it_is_judged_once():
    log = []
    content, draw = drawer(log)
    found = L.found_in(Limits(edge_f1=.9).search(draw, content, lams=(), letters=False, net=False))
    assert log == [None] and found.holds and found.best.lam is None
    one = Limits(edge_f1=.9).search(draw, content, lams=(.15,), letters=False, net=False)
    assert len(L.found_in(one).tries) == 1

def test_an_interrupt_ends_it_with_the_best_so_far():
    content, draw = drawer([])
    def stopped(lam):
        result = draw(lam)
        note = dict(note='interrupted after step 3')
        return result if lam == 0 else dataclasses.replace(result, complete=False, info=note)
    found = L.found_in(Limits(edge_f1=.999).search(stopped, content, letters=False, net=False))
    assert len(found.tries) == 2


# ---- on the embedded model

@pytest.fixture(scope='module')
def owl():
    backbone = load_backbone(device='cpu')
    return dict(image=sample_image('owl'), style='flat', caption='an owl', backbone=backbone, seed=3, steps=2)

def test_the_same_again_bit_for_bit_and_by_its_λ_alone(owl):
    first, second = (L.stylize_within(**owl, limits='edge_f1=.9 tries=3') for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes() and first.info == second.info
    alone = stylize(**owl, lam=L.found_in(first).best.lam)
    assert alone.image.tobytes() == first.image.tobytes()

def test_the_record_goes_into_the_file_and_the_file_can_be_drawn_again(owl, tmp_path):
    from stylekit import read_output
    result = L.stylize_within(**owl, limits='edge_f1=.5 tries=1')
    path = result.save(tmp_path/'a.png')
    assert 'limits' in json.dumps(read_output(path).to_json())

@pytest.mark.parametrize('how, why', [(dict(lam=1.), 'lam is what'), (dict(limits='edges=1'), 'unknown key')])
def test_wrong_calls_are_refused_before_any_work(owl, how, why):
    with pytest.raises(StylekitError, match=why): L.stylize_within(**owl | dict(limits='edge_f1=.5') | how)
    with pytest.raises(StylekitError, match='one picture at a time'):
        L.stylize_within(**owl | dict(image=[owl['image']]))

def test_a_budget_is_kept(owl):
    how = {k: owl[k] for k in ('backbone', 'seed', 'steps')}
    images = [sample_image(n) for n in ('owl', 'taxi')]
    captions = ['an owl', 'a taxi']
    drawn = list(L.stylize_all_within(images, 'flat', captions, 'edge_f1=.999', budget=3, **how))
    assert [len(L.found_in(r).tries) for r in drawn] == [1, 2]
    with pytest.raises(StylekitError, match='as many captions'):
        next(L.stylize_all_within(images, 'flat', ['a'], 'edge_f1=.9'))
