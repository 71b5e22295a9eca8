"""Statistics of a pilot against SciPy, statsmodels, choix and evalica; what the rules do in simulated studies"""
import math
import numpy as np, pytest
from scipy import stats
from stylekit import StylekitError
from stylekit.pilot import statistics as S

def draw_votes(seed, raters=5, items=30, missing=.2):
    rng = np.random.default_rng(seed)
    v = rng.choice([1., 0., -1.], (raters, items), p=[.5, .2, .3])
    return np.where(rng.random(v.shape) < missing, np.nan, v)


# ---- tests and intervals ----

def test_sign_test_is_scipys():
    for n in [*range(1, 30), 92, 211, 800]:
        for w in {0, 1, n//3, n//2, n-1, n}:
            assert math.isclose(S.sign_test(w, n-w), stats.binomtest(w, n).pvalue, rel_tol=1e-11), (w, n)

def test_power_is_that_of_the_test():
    "By the definition: the probability of all numbers of wins that the exact test rejects"
    for n in (5, 6, 23, 92, 210):
        k = np.arange(n+1)
        rejected = np.array([stats.binomtest(int(i), n).pvalue <= .05 for i in k])
        for p in (.5, .6, .8): assert math.isclose(S.sign_test_power(n, p), stats.binom.pmf(k, n, p)[rejected].sum(),
                                                   rel_tol=1e-9, abs_tol=1e-12)

def test_plans():
    assert [S.plan(p).items for p in (.6, .65, .7, .75, .8)] == [210, 92, 54, 35, 23]
    for p in (.6, .65, .7, .75, .8):
        n = S.needed_items(p)
        assert min(S.sign_test_power(m, p) for m in range(n, n+4)) >= .8
        assert min(S.sign_test_power(m, p) for m in range(n-1, n+3)) < .8       # the first such number
    assert S.plan(.7, ties=.25).items == 72 and 'finds it with 80%' in str(S.plan())
    for bad in (dict(preference=.5), dict(preference=math.nan), dict(power=1.), dict(alpha=0), dict(ties=1)):
        with pytest.raises(StylekitError): S.plan(**bad)

def test_what_is_detectable_is_what_a_plan_needs():
    for n in (10, 23, 54, 92):
        p = S.detectable_preference(n)
        assert S.sign_test_power(n, p) >= .8 > S.sign_test_power(n, p-.002)
    assert S.detectable_preference(0) == S.detectable_preference(5) == 1

def test_wilson_is_scipys():
    rng = np.random.default_rng(0)
    for n in rng.integers(1, 300, 60):
        for w in (0, int(rng.integers(0, n+1)), int(n)):
            right = stats.binomtest(w, int(n)).proportion_ci(method='wilson')
            assert np.allclose(S.wilson_interval(w, int(n)), right, atol=1e-12)
    assert S.wilson_interval(0, 0) == (0, 1)

def test_holm_rejects_what_his_steps_reject():
    "The procedure as it is written: the smallest p against α/m, the next against α/(m-1), until one is not rejected"
    rng = np.random.default_rng(0)
    for _ in range(200):
        ps, alpha = rng.random(rng.integers(1, 7))**3, float(rng.choice([.01, .05, .3]))
        rejected = set()
        for k, i in enumerate(np.argsort(ps)):
            if ps[i] > alpha/(len(ps)-k): break
            rejected.add(int(i))
        assert {i for i, p in enumerate(S.holm(ps)) if p <= alpha} == rejected

@pytest.mark.slow   # its first call takes seconds
def test_wilson_and_holm_are_statsmodels():
    multitest = pytest.importorskip('statsmodels.stats.multitest')
    proportion = pytest.importorskip('statsmodels.stats.proportion')
    rng = np.random.default_rng(0)
    for m in range(1, 6):
        ps = rng.random(m)**2
        assert np.allclose(S.holm(ps), multitest.multipletests(ps, method='holm')[1])
        right = proportion.proportion_confint(7*m, 50, method='wilson')
        assert np.allclose(S.wilson_interval(7*m, 50), right, atol=1e-9)

@pytest.mark.parametrize('seed', range(4))
def test_agreement_is_evalicas(seed):
    evalica, pd = pytest.importorskip('evalica'), pytest.importorskip('pandas')
    v = draw_votes(seed)
    assert math.isclose(S.krippendorff_alpha(v), evalica.alpha(pd.DataFrame(v)).alpha, abs_tol=1e-9)


# ---- more than two methods ----

def draw_wins(seed, n=4):
    rng = np.random.default_rng(seed)
    s = rng.normal(size=n)
    games = rng.integers(8, 30, (n, n))
    wins = np.triu(rng.binomial(games, 1/(1+np.exp(s-s[:, None]))), 1)
    return wins+np.tril((games.T-np.triu(rng.binomial(games, 1/(1+np.exp(s-s[:, None]))), 1).T), -1)

@pytest.mark.parametrize('seed', range(4))
def test_strengths_are_those_of_choix_and_evalica(seed):
    choix, evalica = pytest.importorskip('choix'), pytest.importorskip('evalica')
    w = draw_wins(seed)
    games = [(i, j) for i in range(len(w)) for j in range(len(w)) for _ in range(w[i, j])]
    ours, smoothed = S.bradley_terry(w)
    theirs = choix.ilsr_pairwise(len(w), games, alpha=0)
    assert not smoothed and np.allclose(ours, theirs-theirs.mean(), atol=1e-5)
    other = evalica.bradley_terry([i for i, _ in games], [j for _, j in games], [evalica.Winner.X]*len(games),
                                  tolerance=1e-10, limit=10_000)
    other = np.log(other.scores.sort_index().to_numpy())
    assert np.allclose(ours, other-other.mean(), atol=1e-4)

def test_who_lost_everything_is_last_and_finite():
    "A solver that does not look gives all methods one strength"
    w = np.array([[0, 9, 6], [5, 0, 7], [0, 0, 0]])
    s, smoothed = S.bradley_terry(w)
    assert smoothed and np.isfinite(s).all() and s.argmin() == 2 and s[0] > s[1]
    with pytest.raises(StylekitError, match='never compared'): S.bradley_terry([[0, 3, 0], [2, 0, 0], [0, 0, 0]])

def test_strengths_of_votes_vary_with_pictures_and_raters():
    votes = {(0, 1): draw_votes(0, missing=.1), (0, 2): draw_votes(1, missing=.1), (1, 2): draw_votes(2, missing=.1)}
    s, low, high, _ = S.method_strengths(votes, draws=100)
    assert (low < s).all() and (s < high).all() and abs(s.sum()) < 1e-9
    doubled = {pair: np.tile(v, (1, 4)) for pair, v in votes.items()}
    _, low4, high4, _ = S.method_strengths(doubled, draws=100)
    assert ((high4-low4) < (high-low)).all()


# ---- preference and its interval ----

def plain_preference(v, raters, items):
    "Loops over pictures and raters, as the words say it"
    shares = []
    for i in items:
        said = [(v[r, i]+1)/2 for r in raters if not np.isnan(v[r, i])]
        if said: shares.append(sum(said)/len(said))
    return sum(shares)/len(shares)

def test_preference_and_interval_by_loops():
    v = draw_votes(3, 4, 12, .3)
    v[:, 5] = np.nan                                               # nobody saw it
    assert math.isclose(S.preference(v), plain_preference(v, range(4), range(12)))
    rng, means = np.random.default_rng(1), []
    for _ in range(1500): means.append(plain_preference(v, rng.integers(0, 4, 4), rng.integers(0, 12, 12)))
    assert np.allclose(S.preference_interval(v, draws=4000), np.quantile(means, (.025, .975)), atol=.03)
    swapped = S.preference_interval(-v)
    assert np.allclose(swapped, 1-np.array(S.preference_interval(v))[::-1])

def test_a_picture_is_one_however_many_votes_it_has():
    v = np.full((6, 3), np.nan)
    v[0], v[:, 0] = -1, 1                                          # six votes for one picture, one each for two others
    assert math.isclose(S.preference(v), 1/3) and S.count_outcomes(S.item_outcomes(v)) == (1, 0, 2)

def test_what_is_no_vote_is_refused():
    for bad in ([1, 0], [[.5]], [[2]], [['a']]):
        with pytest.raises((StylekitError, ValueError)): S.preference(bad)


# ---- what the rules do where the truth is known ----

def found(ps): return float(np.mean(np.array(ps) <= .05))
def by_items(v): return [S.sign_test(w, l) for w, _, l in map(S.count_outcomes, S.item_outcomes(v))]

def lean_of(preference, raters):
    "Mean lean of the pictures with which the first method wins that share of them"
    low, high = 0., 2.
    for _ in range(12):
        mid = (low+high)/2
        won = np.mean(S.item_outcomes(S.simulate_votes(1, raters, 60_000, mid, tie=0)) == 1)
        low, high = (mid, high) if won < preference else (low, mid)
    return low

def test_no_difference_is_found_in_five_of_a_hundred_studies():
    "Pictures and raters vary; to count votes finds one in a fifth of them"
    v = S.simulate_votes(8000, 5, 92, tie=0)
    assert abs(found(by_items(v))-.05) <= .01
    assert found([S.sign_test(int((x > 0).sum()), int((x < 0).sum())) for x in v[:2000]]) > .15

@pytest.mark.parametrize('preference', [.65, .7, .8])
def test_the_plan_finds_what_it_promises(preference):
    v = S.simulate_votes(4000, 5, S.needed_items(preference), lean_of(preference, 5), tie=0)
    assert abs(found(by_items(v))-.8) <= .03

def test_tastes_fool_the_test_over_pictures_and_not_both_rules():
    v = S.simulate_votes(300, 6, 54, taste=.5)
    ps = by_items(v)
    def excludes_half(x):
        low, high = S.preference_interval(x, draws=300)
        return low > .5 or high < .5
    assert found(ps) > .12 > .1 > np.mean([p <= .05 and excludes_half(x) for x, p in zip(v, ps)])

def test_a_habit_of_one_side():
    for same, n in ((0, 0), (3, 7), (7, 7), (9, 12)):
        right = stats.binomtest(same, n, alternative='greater').pvalue if n else 1
        assert math.isclose(S.side_habit(same, n), right)
