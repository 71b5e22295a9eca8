"Differential and property tests of stylekit.spectrum"
import math, random
import numpy as np, pytest, scipy.fft, torch
from torch.utils._python_dispatch import TorchDispatchMode
from stylekit.core import StylekitError
from stylekit.spectrum import (CutoffCurve, band_energy, band_mask, dct2, dct_matrix, frequency, idct2, lowpass,
                               psr_grad, psr_l1, psr_l2, radial_spectrum)

rng = random.Random(0)
SIZES = [(1, 1), (1, 9), (2, 3), (64, 64), (64, 96)] + [(rng.randint(1, 130), rng.randint(1, 130)) for _ in range(40)]
CUTOFFS = (0, .01, .1, .25, .37, .5, .73, .99, 1)

def rand(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)

@pytest.mark.parametrize('h,w', SIZES)
def test_dct_against_scipy_parseval_inverse(h, w):
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = rand(2, h, w, dtype=dtype)
        X = dct2(x)
        reference = dict(axes=(-2, -1), norm='ortho')
        assert X.dtype == dtype and np.abs(X.numpy() - scipy.fft.dctn(x.numpy(), **reference)).max() < tol
        assert np.abs(idct2(x).numpy() - scipy.fft.idctn(x.numpy(), **reference)).max() < tol
        assert (idct2(X) - x).abs().max() < tol
        assert torch.allclose(X.square().sum(), x.square().sum(), rtol=tol)

def test_linear_differentiable_and_pure():
    x, y = rand(3, 13, 8, dtype=torch.float64), rand(3, 13, 8, dtype=torch.float64) + 1
    before = x.clone()
    assert torch.allclose(dct2(2*x - 3*y), 2*dct2(x) - 3*dct2(y))
    patch = x[:1, :4, :5].clone().requires_grad_()
    for f in (dct2, idct2, lambda a: lowpass(a, .4)): assert torch.autograd.gradcheck(f, patch)
    assert torch.equal(x, before)

def test_matrix_cache_survives_inference_mode_and_autocast():
    dct_matrix.cache_clear()
    x = rand(11, 17)
    with torch.inference_mode(): dct2(x)
    dct2(x.requires_grad_()).square().sum().backward()
    assert torch.allclose(x.grad, 2*x, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        assert dct2(x).dtype == torch.float32 and torch.equal(dct2(x), dct2(x.detach()))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_and_lowpass_keeps_dtype(dtype):
    x = torch.ones(1, 1, 512, 512, dtype=dtype)
    assert dct2(x).dtype == torch.float32 and dct2(x).square().sum().isfinite()
    assert lowpass(x, .5).dtype == psr_grad(x, x, .5).dtype == dtype

@pytest.mark.parametrize('h,w', SIZES)
def test_masks(h, w):
    i, j = np.indices((h, w))
    previous = torch.zeros(h, w, dtype=torch.bool)
    for c in CUTOFFS:
        m = band_mask(h, w, c)
        assert np.array_equal(m.numpy(), i + j <= math.floor(c*(h+w-2) + 1e-4))   # released convention, rounding aside
        assert torch.equal(m, band_mask(w, h, c).T) and (m | ~previous).all()
        previous = m
    assert previous.all() and band_mask(h, w, 0).sum() == 1
    assert torch.equal(frequency(h, w), frequency(w, h).T) and 0 <= frequency(h, w).min() and frequency(h, w).max() <= 1

def test_released_masks_on_squares():
    "Same masks as i + j <= int(t/500*(h + w - 2)) at every released timestep, with number and tensor cut-offs"
    for h in (16, 32, 48, 64, 96):
        order = torch.arange(h)[:, None] + torch.arange(h)
        ts = range(1, 500, 2)
        released = torch.stack([order <= int(t/500*(2*h-2)) for t in ts])
        assert torch.equal(torch.stack([band_mask(h, h, CutoffCurve()(t)) for t in ts]), released)
        assert torch.equal(band_mask(h, h, CutoffCurve()(torch.tensor(list(ts))))[:, 0], released)

def test_every_diagonal_is_reached_exactly():
    for h, w in [(51, 51), (26, 26), (46, 46), (64, 96), (13, 200)]:
        n, order = h + w - 2, torch.arange(h)[:, None] + torch.arange(w)
        for k in range(n + 1):
            for c in (k/n, torch.tensor(k/n), torch.tensor([k/n]), round(k/n, 12)):
                assert order[band_mask(h, w, c).reshape(h, w)].max() == k

def test_per_sample_cutoffs_equal_looped_ones():
    cs = torch.tensor([0., .13, .5, .77, 1.])
    z, src = rand(5, 3, 10, 21), rand(5, 3, 10, 21) + .3
    def loop(f): return torch.cat([f(slice(i, i+1), c.item()) for i, c in enumerate(cs)])
    assert torch.equal(band_mask(10, 21, cs), torch.stack([band_mask(10, 21, c.item()) for c in cs])[:, None])
    assert torch.allclose(lowpass(z, cs), loop(lambda i, c: lowpass(z[i], c)), atol=1e-6)
    assert torch.allclose(psr_l2(z, src, cs), loop(lambda i, c: psr_l2(z[i], src[i], c)), rtol=1e-5)
    assert torch.allclose(psr_grad(z, src, cs), loop(lambda i, c: psr_grad(z[i], src[i], c)), atol=1e-6)
    assert torch.allclose(psr_l1(z, src, cs), loop(lambda i, c: psr_l1(z[i], src[i], c)[None]).mean())

@pytest.mark.parametrize('cutoff', CUTOFFS)
@pytest.mark.parametrize('h,w', [(4, 4), (5, 7), (9, 4)])
def test_psr_gradient(h, w, cutoff):
    "Closed form = autograd = central differences, and = lowpass of the difference"
    z, src = rand(2, 2, h, w, dtype=torch.float64), rand(2, 2, h, w, dtype=torch.float64).flip(0) + .1
    y = z.clone().requires_grad_()
    auto, = torch.autograd.grad(psr_l2(y, src, cutoff).sum(), y)
    grad, eps = psr_grad(z, src, cutoff), 1e-5
    numeric = torch.zeros_like(z)
    for k in range(z.numel()):
        e = torch.zeros(z.numel(), dtype=z.dtype).index_fill(0, torch.tensor(k), eps).view_as(z)
        numeric.view(-1)[k] = (psr_l2(z+e, src, cutoff) - psr_l2(z-e, src, cutoff)).sum()/(2*eps)
    assert torch.allclose(grad, auto, atol=1e-12) and torch.allclose(grad, numeric, atol=1e-7)
    assert torch.allclose(grad, lowpass(z - src, cutoff), atol=1e-12)
    assert psr_l2(z - grad, src, cutoff).max() < 1e-20          # a full step lands on the source, inside the band

def test_psr_l1_is_the_mean_over_all_coefficients():
    z, src = rand(2, 4, 12, 12), rand(2, 4, 12, 12) + .2
    order = np.add.outer(range(12), range(12))
    D = [scipy.fft.dctn(a.numpy(), axes=(-2, -1), norm='ortho')*(order <= int(.31*22)) for a in (z, src)]
    assert abs(psr_l1(z, src, .31).item() - np.abs(D[0] - D[1]).mean()) < 1e-6

def test_pull_does_not_depend_on_resolution_or_batch():
    def rms(b, h): return psr_grad(rand(b, 4, h, h), torch.zeros(b, 4, h, h), .5).square().mean().sqrt()
    assert all(abs(rms(b, h)/math.sqrt(.5) - 1) < .08 for b, h in [(1, 16), (1, 32), (1, 64), (8, 16)])

@pytest.mark.parametrize('h,w', SIZES)
def test_bands_and_bins(h, w):
    x = rand(2, h, w, dtype=torch.float64)
    edges = (0, .1, .3, 1) if h + w > 2 else (0, 1)
    assert torch.allclose(band_energy(x, edges).sum(-1), x.square().sum((-2, -1)))
    assert torch.allclose(band_energy(x, (.3,))[..., 0], lowpass(x, .3).square().sum((-2, -1)))
    fine = radial_spectrum(x, h + w - 1)                        # one bin per anti-diagonal
    order = np.add.outer(range(h), range(w))
    energy = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm='ortho')**2
    assert np.allclose(fine.numpy(), np.stack([energy[:, order == k].mean(-1) for k in range(h + w - 1)], -1))

def test_curve():
    t = torch.arange(1000)
    for curve in (CutoffCurve(), CutoffCurve(.6, 700, 2.), CutoffCurve(.9, 300, .5), CutoffCurve(power=0)):
        cs = curve(t)
        assert (cs.diff() >= 0).all() and 0 <= cs.min() and cs.max() <= curve.top
        assert torch.allclose(cs, torch.tensor([curve(i) for i in t.tolist()]), atol=1e-6)
    assert all(CutoffCurve()(i) == i/500 for i in range(501))

@pytest.mark.parametrize('bad', [-1e-9, 1.0001, math.nan, math.inf, None, '.5', [.5],
                                 np.zeros(2), torch.zeros(2, 2), torch.zeros(3)])
def test_bad_cutoffs(bad):
    x = torch.zeros(2, 1, 4, 4)
    for f in (lowpass, lambda a, c: psr_l1(a, a, c), lambda a, c: psr_l2(a, a, c), lambda a, c: psr_grad(a, a, c)):
        with pytest.raises(StylekitError, match='cutoff'): f(x, bad)

@pytest.mark.parametrize('bad', [torch.zeros(4), torch.zeros(()), torch.zeros(2, 0), torch.zeros(2, 2).int(),
                                 np.zeros((2, 2)), None])
def test_bad_maps(bad):
    for f in (dct2, idct2, radial_spectrum, band_energy, lambda a: lowpass(a, .5)):
        with pytest.raises(StylekitError, match='expected a'): f(bad)

def test_bad_shapes_and_settings():
    z = torch.zeros(2, 4, 8, 8)
    for f in (psr_l1, psr_l2, psr_grad):
        for a, b in ((z, z[:1]), (z, z[..., :7]), (z[0, 0], z[0, 0])):
            with pytest.raises(StylekitError, match='of one shape'): f(a, b, .5)
    for name, values in dict(top=(-1, math.nan), t_top=(0, math.nan), power=(-1, math.inf)).items():
        for value in values:
            with pytest.raises(StylekitError, match=name): CutoffCurve(**{name: value})
    for t in (-1, math.nan):
        with pytest.raises(StylekitError, match='timestep'): CutoffCurve()(t)
    for bins in (0, 16):
        with pytest.raises(StylekitError, match='bins'): radial_spectrum(z, bins)
    for edges in ((.5, .5), (.5, .2)):
        with pytest.raises(StylekitError, match='edges'): band_energy(z, edges)
    with pytest.raises(StylekitError, match='dct_matrix'): dct_matrix(0)

READS = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal

class NoReads(TorchDispatchMode):
    "Fails when the value of a tensor is read, as .item(), bool() or a mask as an index do: on a GPU a synchronisation"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in READS, func
        return func(*args, **(kwargs or {}))

def test_values_of_tensors_are_never_read():
    z, t = rand(2, 4, 8, 12), torch.tensor([100, 400])
    with pytest.raises(AssertionError), NoReads(): t[0].item()
    with NoReads():
        c = CutoffCurve()(t)
        for f in (lowpass, *(lambda a, c, psr=psr: psr(a, z, c) for psr in (psr_grad, psr_l2, psr_l1))):
            for cutoff in (c, .4): f(z.clone().requires_grad_(), cutoff).sum().backward()
