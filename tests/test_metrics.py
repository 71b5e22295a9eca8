"Metrics: against torchmetrics, SciPy and scikit-image, against formulas written out, and as properties"
import copy, dataclasses, os
import numpy as np, pytest, torch, torch.nn.functional as F
from stylekit.measure import metrics as M
from stylekit.clip.clip import CLIP_NORM
from stylekit.core import StylekitError
from stylekit.images import sample_image, list_samples

def normal(n, d, seed=0, shift=0.): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift

def images(n=6, size=32, seed=0): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))

def normalised(x, mean=M.IMAGENET[0], std=M.IMAGENET[1]):
    return (x-torch.tensor(mean).view(3, 1, 1))/torch.tensor(std).view(3, 1, 1)

def close(a, b):
    "The same ruler, value and interval, up to the order in which a sum was taken"
    def near(v): return v and pytest.approx(v, rel=1e-6, abs=1e-9)
    return a.key == b.key and a.value == near(b.value) and a.interval == near(b.interval)

def all_close(a, b): return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))

class Trunk(torch.nn.Module):
    "Convolutions shaped like AlexNet's, with random weights"
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        def conv(*sizes, **kw): return torch.nn.Conv2d(*sizes, **kw), torch.nn.ReLU()
        def pool(): return torch.nn.MaxPool2d(3, 2)
        self.features = torch.nn.Sequential(
            *conv(3, 64, 11, stride=4, padding=2), pool(),
            *conv(64, 192, 5, padding=2), pool(),
            *conv(192, 384, 3, padding=1),
            *conv(384, 256, 3, padding=1),
            *conv(256, 256, 3, padding=1))
    def forward(self, x): return self.features(x)

RELUS = tuple(f'features.{i}' for i in (1, 4, 7, 9, 11))

def features(seed=0, size=64, **kw):
    kw = dict(layers=RELUS, mean=M.IMAGENET[0], std=M.IMAGENET[1]) | kw
    return M.Features('trunk', Trunk(seed), size, **kw)

@pytest.fixture(scope='module')
def net(): return features()

@pytest.fixture(scope='module')
def mini(): return M.load_features('mini')

# ---- the value and its ruler

ONE = M.Measured(1., 'kid[x]', 'x', 'ab', '8×8', 'bicubic', 'n', 'unbiased', 64, 64, (.5, 1.5))

def value(**kw): return dataclasses.replace(ONE, **kw)

OTHERS = dict(name='fd[x]', backbone='y', sha256='cd', resolution='9×9', resize='bilinear', norm='m',
              estimator='biased', n_ref=8)

@pytest.mark.parametrize('field, other', OTHERS.items())
def test_other_rulers_are_refused(field, other):
    a, b = value(), value(**{field: other})
    for compare in (lambda: a-b, lambda: a < b, lambda: b < a, lambda: a > b):
        with pytest.raises(StylekitError, match=field): compare()

def test_n_counts_only_where_it_biases():
    assert value(n=8) - value() == dataclasses.replace(value(n=8), value=0., name='Δ kid[x]', interval=None)
    few, many = value(n=8, estimator='biased'), value(estimator='biased')
    with pytest.raises(StylekitError, match=r'n \(8 and 64\)'): few < many

def test_measured_is_no_number():
    with pytest.raises(StylekitError, match='only with another measured value'): value() < 2.
    with pytest.raises(StylekitError): value() - 1
    with pytest.raises(TypeError): float(value())
    with pytest.raises(TypeError): value() + value()
    with pytest.raises(dataclasses.FrozenInstanceError): value().value = 2.
    assert '\n' not in repr(value()) and '[0.50, 1.50]' in repr(value()) and '(n=64, n_ref=64)' in repr(value())
    for v in (0., 1e-12, float('nan'), float('inf'), -3e5): repr(value(value=v, interval=None))

def test_paired_difference_is_narrower_than_either():
    hard = np.random.default_rng(0).normal(0, 5, 50)
    worse = hard+1+.1*np.random.default_rng(1).normal(size=50)
    def spread(e): return value(value=float(e.mean()), each=tuple(e), ids=tuple(range(50)), interval=M.mean_interval(e))
    a, b = spread(worse), spread(hard)
    d = a-b
    assert .9 < d.interval[0] < d.value < d.interval[1] < 1.1 and d.value == pytest.approx(1, abs=.05)
    assert d.interval[1]-d.interval[0] < (a.interval[1]-a.interval[0])/10
    assert (a-dataclasses.replace(b, ids=tuple(range(1, 51)))).interval is None     # other images: no pairs

def test_mean_interval_covers():
    "95 % nominal; 300 trials with n = 60"
    rng = np.random.default_rng(0)
    spans = [M.mean_interval(rng.exponential(size=60), times=300, seed=i) for i in range(300)]
    assert .88 < np.mean([lo < 1 < hi for lo, hi in spans]) < .98
    assert M.mean_interval([1., 2, 4], seed=3) == M.mean_interval([1., 2, 4], seed=3)

# ---- images and pairs

def test_pairs_by_id_whatever_the_order(net):
    x = images(5)
    a, b = dict(zip('abcde', x)), dict(zip('abcde', x.flip(2)))
    shuffled = {k: b[k] for k in 'dbeac'}
    def same(f, *rest): return f(a, b, *rest).each == pytest.approx(f(a, shuffled, *rest).each, rel=1e-5)
    assert all(same(f) for f in (M.ssim, M.psnr, M.edge_f1))
    assert all(same(f, net) for f in (M.perceptual_distance, M.cfsd, M.structure, M.gram, M.similarity))
    assert same(M.direction, x, x.flip(2), net)
    assert M.ssim(a, b).ids == tuple('abcde')
    assert M.ssim(a, b).value != M.ssim(list(a.values()), list(shuffled.values())).value

@pytest.mark.parametrize('a, b, words', [
    (dict(x=0, y=0), dict(y=0, z=0), r"first \['x'\].*second \['z'\]"), (dict(x=0), [0], 'one side has ids'),
    ([0, 0], [0], '2 images against 1'), ([], [], 'no images')])
def test_pairs_refused(a, b, words):
    im = images(1)[0]
    def fill(v): return {k: im for k in v} if isinstance(v, dict) else [im]*len(v)
    with pytest.raises(StylekitError, match=words): M.psnr(fill(a), fill(b))

def test_files_are_opened_in_turn_and_named(tmp_path, net):
    files = {n: tmp_path/f'{n}.png' for n in list_samples()[:3]}
    for n, f in files.items(): sample_image(n).save(f)
    assert torch.allclose(net(files), net({n: sample_image(n) for n in files}), atol=1e-6)
    with pytest.raises(StylekitError, match='absent.png does not exist'): net({**files, 'z': tmp_path/'absent.png'})
    bad = {n: torch.rand(3, 8, 8) for n in 'ab'} | dict(c=torch.full((3, 8, 8), 2.))
    for f in (M.psnr, lambda a, b: M.perceptual_distance(a, b, net)):
        with pytest.raises(StylekitError, match="image 'c'"): f(bad, bad)

@pytest.mark.parametrize('bad, words', [
    (-torch.ones(1, 3, 8, 8), 'pixel is -1'), (torch.full((1, 3, 8, 8), float('nan')), 'NaN'),
    ('owl.png', 'into a list'), (torch.rand(2, 1, 8, 8), 'expected'), ([], 'no images'),
    (torch.rand(2, 3, 8, 8)*255, 'between')])
def test_images_refused(bad, words):
    with pytest.raises(StylekitError, match=words): M.as_tensors(bad)

def test_forms_agree(net):
    pil = [sample_image(n) for n in list_samples()[:3]]
    stack = torch.cat(M.as_tensors(pil))
    arrays = [np.asarray(p) for p in pil]
    for x in (stack, list(stack), arrays, dict(enumerate(pil))): assert torch.equal(net(x), net(pil))

# ---- networks

def test_hash_follows_the_weights():
    a, b = Trunk(), Trunk()
    assert M.weights_sha256(a) == M.weights_sha256(b) != M.weights_sha256(Trunk(1))
    assert M.weights_sha256(a) != M.weights_sha256(copy.deepcopy(a).half())
    b.features[0].bias.data[3] = torch.nextafter(b.features[0].bias.data[3], torch.tensor(9.))
    assert M.weights_sha256(a) != M.weights_sha256(b)

def test_batches_and_hooks(net):
    x = images(5, 64)
    one = features(batch=1)
    assert torch.allclose(net(x), one(x), atol=1e-5) and all_close(net.maps(x), one.maps(x))
    two = M.perceptual_distance(x, x.flip(0), one).each
    assert M.perceptual_distance(x, x.flip(0), net).each == pytest.approx(two, abs=1e-6)
    assert not any(m._forward_hooks for m in net.module.modules())
    want = Trunk()(normalised(x))
    assert torch.allclose(net.maps(x)[-1], want, atol=1e-5)
    assert torch.allclose(net(x), want.mean((2, 3)), atol=1e-5)

def test_no_silent_fallback():
    with pytest.raises(StylekitError, match="there are 'mini'"): M.load_features('standard')
    with pytest.raises(StylekitError, match='no features'): M.load_features('inception')
    with pytest.raises(StylekitError, match='no layers'):
        M.perceptual_distance(images(2), images(2), M.Features('bare', Trunk(), 64))
    with pytest.raises(StylekitError, match='say in `reads`'): M.Features('x', Trunk(), 64, read=lambda net, x: net(x))
    with pytest.raises(StylekitError, match='give `read`'): M.Features('odd', torch.nn.Flatten(0), 8)(images(2))

def test_mini_is_the_embedded_clip(mini):
    from transformers import CLIPModel
    from stylekit.core import asset
    from stylekit.images import image_to_tensor
    clip = CLIPModel.from_pretrained(asset('mini/clip')).float().eval()
    with torch.no_grad():
        vision = clip.vision_model(pixel_values=image_to_tensor(sample_image('owl'))*2-1)
        assert torch.allclose(mini([sample_image('owl')]), clip.visual_projection(vision.pooler_output), atol=1e-5)
        last = mini.maps([sample_image('owl')])[-1].flatten(2)[0].T
        assert torch.allclose(last, vision.last_hidden_state[0, 1:], atol=1e-5)
    assert mini.sha256 == M.weights_sha256(clip)

def test_judge_is_a_ruler_too():
    pytest.importorskip('efficientnet_lite_pytorch')
    from stylekit.measure.judge import Judge
    judge = Judge()
    x = torch.cat(M.as_tensors([sample_image('owl', 'flat'), sample_image('taxi')]))
    net = M.judge_features(judge)
    maps, vector = judge.features(x)
    assert torch.allclose(net(x), vector, atol=1e-5) and all_close(net.maps(x), maps)
    m = M.perceptual_distance(x, x.flip(0), net)
    assert m.name == 'perceptual_distance[efficientnet-lite0]' and not m.standard
    assert m.each == pytest.approx(judge.perceptual_distance(x, x.flip(0)).tolist(), rel=1e-3)

def test_published_names_are_earned(net, monkeypatch):
    x, y = images(4, 64), images(4, 64, 1)
    m = M.perceptual_distance(x, y, net)
    ruler = {k: getattr(m, k) for k in ('sha256', 'resolution', 'resize', 'norm', 'estimator')}
    pin = dict(metric='perceptual_distance', **ruler)
    monkeypatch.setitem(M.PUBLISHED, 'LPIPS-trunk', pin)
    p = M.perceptual_distance(x, y, net)
    assert p.name == 'LPIPS-trunk' and p.standard and p.value == m.value
    changes = dict(seed=1), dict(size=96), dict(resize='bilinear'), dict(mean=(0.,)*3), dict(layers=RELUS[:4])
    for other in (features(**kw) for kw in changes):
        q = M.perceptual_distance(x, y, other)
        assert q.name == 'perceptual_distance[trunk]' and not q.standard
        with pytest.raises(StylekitError, match='differ in name'): q < p
    assert M.kid(x, y, net).name == 'kid[trunk]'

# ---- sets

def test_frechet_closed_form():
    "Of commuting and of general covariances, exact to rounding"
    import scipy.linalg
    rng = np.random.default_rng(0)
    for d in (1, 3, 8):
        def gaussian():
            s = rng.normal(size=(d, d))
            s = s @ s.T + .1*np.eye(d)
            z = rng.normal(size=(100, d))
            z -= z.mean(0)
            mean = rng.normal(size=d)
            white = z @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(z.T))).T)
            return mean, s, white @ np.linalg.cholesky(s).T + mean
        (ma, sa, a), (mb, sb, b) = gaussian(), gaussian()
        assert np.allclose(np.cov(a.T), sa if d > 1 else sa.item())
        want = ((ma-mb)**2).sum() + np.trace(sa+sb-2*scipy.linalg.sqrtm(sa @ sb).real)
        assert M.frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(want, rel=1e-9, abs=1e-9)

@pytest.mark.parametrize('n, m, d', [(40, 50, 8), (40, 30, 64), (10, 200, 32)])
def test_frechet_against_scipy(n, m, d):
    import scipy.linalg
    x, y = normal(n, d).double().numpy(), (normal(m, d, 1)*1.5+.3).double().numpy()
    sx, sy = np.cov(x.T), np.cov(y.T)
    if min(n, m) <= d: root = np.sqrt(np.clip(scipy.linalg.eigvals(sx @ sy).real, 0, None)).sum()
    else: root = np.trace(scipy.linalg.sqrtm(sx @ sy)).real
    want = ((x.mean(0)-y.mean(0))**2).sum() + np.trace(sx) + np.trace(sy) - 2*root
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    got = M.frechet(x, y)
    assert got == pytest.approx(want, rel=1e-6) and got == pytest.approx(M.frechet(y, x), rel=1e-9)

@pytest.mark.parametrize('n, want, tol', [(64, 311, 5), (1024, 33, 1)])
def test_frechet_bias_of_small_sets(n, want, tol):
    assert M.frechet(normal(n, 256), normal(n, 256, 1)) == pytest.approx(want, abs=tol)

def test_frechet_extrapolation():
    x, y = normal(3000, 32), normal(3000, 32, 1)
    assert abs(M.frechet_infinite(x, y)) < .08 < M.frechet(x, y)
    assert M.frechet_infinite(x, y+.5) == pytest.approx(8, abs=.4)
    again = M.frechet_infinite(x, y, seed=1)   # sums may differ in the last bit
    assert M.frechet_infinite(x, y, seed=1) == pytest.approx(again, abs=1e-9)

def test_fd_labels(net):
    few, many = normal(64, 8), normal(M.ENOUGH, 8)
    for m in (M.fd(few, few, net), M.fd(many, few, net)): assert m.note == 'indicative'
    assert M.fd(few, few, net).interval is None
    assert M.fd(many, many+1, net).note == '' and 'extrapolated' in M.fd(many, many+1, net).estimator
    with pytest.raises(StylekitError, match='n '): M.fd(few, few, net) < M.fd(few[:32], few, net)   # biased: n matters

@pytest.fixture(scope='module')
def shared():
    "A network on float images of its own size: nothing to disagree about but the formula"
    torch.manual_seed(0)
    n = torch.nn
    net = n.Sequential(n.Conv2d(3, 16, 4, 4), n.Tanh(), n.Flatten(), n.Linear(256, 16))
    return M.Features('flat', net, 16, resize='none'), images(40, 16), images(30, 16, 1)**1.5

def test_fid_against_torchmetrics(shared):
    fid = pytest.importorskip('torchmetrics.image.fid')
    net, x, y = shared
    # a network of one's own gets the floats as they are
    other = fid.FrechetInceptionDistance(feature=copy.deepcopy(net.module), normalize=True, input_img_size=(3, 16, 16))
    other.update(x, real=True)
    other.update(y, real=False)
    assert M.fd(y, x, net).value == pytest.approx(other.compute().item(), rel=1e-4)

@pytest.mark.filterwarnings('ignore:Metric .Kernel Inception')
def test_kid_against_torchmetrics(shared):
    kid = pytest.importorskip('torchmetrics.image.kid')
    net, x, y = shared
    other = kid.KernelInceptionDistance(feature=copy.deepcopy(net.module), subsets=1, subset_size=30, normalize=True)
    other.update(x[:30], real=True)
    other.update(y, real=False)
    assert M.kid(y, x[:30], net).value == pytest.approx(other.compute()[0].item(), rel=1e-3, abs=1e-6)

def test_unbiased_kernels_average_to_zero(net):
    for f in (M.kid, M.mmd):
        each = [f(normal(20, 16, 2*s), normal(20, 16, 2*s+1), net, times=2).value for s in range(60)]
        assert abs(np.mean(each)) < 3*np.std(each)/60**.5 and min(each) < 0 < max(each)

def test_kernels_symmetric_and_seeded(net):
    x, y = normal(20, 16), normal(20, 16, 1, .5)
    for f in (M.kid, M.mmd):
        assert f(x, y, net).value == pytest.approx(f(y, x, net).value, rel=1e-9)
        assert close(f(x, y, net), f(x, y, net))
        assert not close(f(x, y, net), f(x, y, net, seed=5))
        assert f(x, x, net).value <= 0 and f(x, y, net) > f(x, normal(20, 16, 2), net)

def test_cmmd_formula(net):
    vectors = normal(12, 6).numpy().astype(float), normal(15, 6, 1, .4).numpy().astype(float)
    x, y = (v/np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    def k(a, b): return np.exp(-((a[:, None]-b[None])**2).sum(-1)/(2*10**2))
    biased = 1000*(k(x, x).mean()+k(y, y).mean()-2*k(x, y).mean())
    n, m = len(x), len(y)
    unbiased = 1000*((k(x, x).sum()-n)/(n*(n-1)) + (k(y, y).sum()-m)/(m*(m-1)) - 2*k(x, y).mean())
    got = M.mmd(torch.from_numpy(x), torch.from_numpy(y), net)
    assert got.value == pytest.approx(unbiased, rel=1e-8)
    assert float(got.note.split()[1]) == pytest.approx(biased, rel=5e-3)

def test_bootstrap_is_centred_and_as_wide_as_repeats():
    "No copy meets its copy, so draws scatter around the value; their spread is that of fresh samples"
    def f(seed, **weights):
        x, y = normal(50, 8, seed), normal(50, 8, seed+1000, .5)
        return M.mmd2(*(M.cubic_kernel(a, b) for a, b in ((x, x), (y, y), (x, y))), **weights)
    boot = f(0, wx=M._draws(50, 2000, 0), wy=M._draws(50, 2000, 1))
    fresh = torch.stack([f(s) for s in range(100)])
    assert abs(boot.mean()-f(0)) < .15*boot.std() and .6 < boot.std()/fresh.std() < 1.6

def test_bootstrap_draws_the_two_sets_apart(net):
    "Sets of one size are no pairs: drawing both alike would make the interval of look-alikes far too narrow"
    x, z = normal(50, 8), normal(50, 8, 1)
    alike, apart = [np.ptp(M.mmd(x, y+.5, net).interval) for y in (x, z)]
    assert alike > .7*apart

def test_sets_refused(net):
    for f in (M.kid, M.mmd, M.fd):
        with pytest.raises(StylekitError, match='at least 2'): f(normal(1, 4), normal(9, 4), net)
        with pytest.raises(StylekitError, match='one length'): f(normal(9, 4), normal(9, 5), net)
        with pytest.raises(StylekitError, match='NaN'): f(normal(9, 4)*float('nan'), normal(9, 4), net)
    assert M.kid(normal(3, 4), normal(9, 4), net).interval is None

def test_sets_take_images_or_their_vectors(net):
    x, y = images(6, 64), images(7, 64, 1)
    half = features(read=lambda net, x: net(x)[:, :128], reads='first half')   # the same weights, read elsewhere
    with pytest.raises(StylekitError, match='first half'): M.kid(x, y, half) < M.kid(x, y, net)
    for f in (M.kid, M.mmd, M.fd):
        m = f(x, y, net)
        assert close(m, f(net(x), net(y), net)) and (m.n, m.n_ref) == (6, 7)

# ---- pairs

def lpips(trunk, heads, a, b):
    "Written out from the paper and its released layout: inputs in [-1, 1], shift, scale"
    shift, scale = [-.030, -.088, -.188], [.458, .448, .450]
    fa, fb = normalised(2*a-1, shift, scale), normalised(2*b-1, shift, scale)
    def unit(f): return f/(torch.sqrt((f**2).sum(1, keepdim=True))+1e-10)
    total = 0
    for i, layer in enumerate(trunk.features):
        fa, fb = layer(fa), layer(fb)
        if f'features.{i}' not in RELUS: continue
        head = heads[RELUS.index(f'features.{i}')].view(1, -1, 1, 1)
        total = total + F.conv2d((unit(fa)-unit(fb))**2, head).mean((1, 2, 3))
    return total

def heads_file():
    torchmetrics = pytest.importorskip('torchmetrics')
    home = os.path.dirname(torchmetrics.__file__)
    path = os.path.join(home, 'functional', 'image', 'lpips_models', 'alex.pth')
    if not os.path.exists(path): pytest.skip('no heads in this version')
    return path

def test_pd_with_heads_is_lpips(net):
    heads = [torch.rand(c, generator=torch.Generator().manual_seed(c)) for c in (64, 192, 384, 256, 256)]
    a, b = images(3, 64), images(3, 64, 1)
    with torch.no_grad(): want = lpips(Trunk(), heads, a, b)
    got = M.perceptual_distance(a, b, net, linear=heads)
    assert got.each == pytest.approx(want.tolist(), rel=1e-5)
    assert got.sha256 != net.sha256 and 'learned' in got.estimator
    with pytest.raises(StylekitError, match='4 linear weights'): M.perceptual_distance(a, b, net, linear=heads[:4])

def test_published_heads(net):
    heads = M.lpips_heads(heads_file())
    assert [len(h) for h in heads] == [64, 192, 384, 256, 256]
    assert all((h >= 0).all() and h.dtype == torch.float32 for h in heads)
    a, b = images(2, 64), images(2, 64, 1)
    with torch.no_grad(): want = lpips(Trunk(), heads, a, b).tolist()
    assert M.perceptual_distance(a, b, net, linear=heads).each == pytest.approx(want, rel=1e-5)

def test_heads_refused(tmp_path):
    torch.save(dict(a=torch.ones(3)), tmp_path/'x.pth')
    with pytest.raises(StylekitError, match='not the linear layers'): M.lpips_heads(tmp_path/'x.pth')
    (tmp_path/'y.pth').write_bytes(b'no weights')
    for p in ('y.pth', 'absent.pth'):
        with pytest.raises(StylekitError, match='cannot read'): M.lpips_heads(tmp_path/p)

def test_ssim_and_psnr_against_skimage():
    skm = pytest.importorskip('skimage.metrics')
    a, b = ([sample_image(n, l) for n in list_samples()[:4]] for l in ('shaded', 'flat'))
    pairs = [(np.asarray(x)/255., np.asarray(y)/255.) for x, y in zip(a, b)]
    def grey(a): return a @ np.array([.299, .587, .114])
    kw = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.)
    ssim = [skm.structural_similarity(grey(x), grey(y), **kw) for x, y in pairs]
    psnr = [skm.peak_signal_noise_ratio(x, y, data_range=1.) for x, y in pairs]
    assert M.ssim(a, b).each == pytest.approx(ssim, abs=1e-6)
    assert M.psnr(a, b).each == pytest.approx(psnr, abs=1e-4)

def test_edge_f1_is_the_judges():
    from stylekit.measure.judge import edge_f1
    a, b = images(4), images(4, 32, 1)
    assert M.edge_f1(a, b).each == pytest.approx(edge_f1(a, b).tolist(), abs=1e-7)

def loop(f, ma, mb):
    "`f` of two arrays (C, hw), image by image"
    return [f(a.flatten(1).double().numpy(), b.flatten(1).double().numpy()) for a, b in zip(ma, mb)]

def cosines(x):
    columns = range(x.shape[1])
    n = np.linalg.norm(x, axis=0)
    return np.array([[x[:, i] @ x[:, j]/(n[i]*n[j]) for j in columns] for i in columns])

def test_self_similarities_written_out(net):
    a, b = images(3, 64), images(3, 64, 1)
    layer = RELUS[2]
    (ma,), (mb,) = net.maps(a, (layer,)), net.maps(b, (layer,))
    def kl(x, y):
        p, q = [np.exp(cosines(v))/np.exp(cosines(v)).sum(1, keepdims=True) for v in (x, y)]
        return (p*np.log(p/q)).sum(1).mean()
    assert M.cfsd(a, b, net, layer).each == pytest.approx(loop(kl, ma, mb), rel=1e-3)
    def apart(x, y): return ((cosines(x)-cosines(y))**2).mean()
    assert M.structure(a, b, net, layer).each == pytest.approx(loop(apart, ma, mb), rel=1e-4)
    assert M.cfsd(a, b, net, layer).value != M.cfsd(b, a, net, layer).value
    assert M.cfsd(a, b, net).value >= 0
    with pytest.raises(StylekitError, match='estimator'): M.cfsd(a, b, net) < M.cfsd(a, b, net, layer)

def test_gram_written_out(net):
    a, b = images(3, 64), images(3, 64, 1)
    def gram(x, y): return (((x @ x.T - y @ y.T)/x.size)**2).sum()
    per_layer = [loop(gram, ma, mb) for ma, mb in zip(net.maps(a), net.maps(b))]
    assert M.gram(a, b, net).each == pytest.approx(np.sum(per_layer, 0).tolist(), rel=1e-3)

def test_direction_and_similarity(mini):
    shaded, ink = [{n: sample_image(n, l) for n in list_samples()[:4]} for l in ('shaded', 'ink')]
    def u(x): return F.normalize(mini(x), dim=1)
    way = F.normalize(u(ink).mean(0)-u(shaded).mean(0), dim=0)
    want = (F.normalize(u(ink)-u(shaded), dim=1)*way).sum(1)
    m = M.direction(shaded, ink, shaded, ink, mini)
    assert m.each == pytest.approx(want.tolist(), abs=1e-5) and m.n_ref == 4
    assert M.direction(ink, shaded, shaded, ink, mini).value == pytest.approx(-m.value, abs=1e-5)
    assert M.direction(shaded, shaded, shaded, ink, mini).value == 0
    assert M.similarity(shaded, ink, mini).each == pytest.approx((u(shaded)*u(ink)).sum(1).tolist(), abs=1e-5)

def test_symmetry_identity_and_record(net):
    a, b = images(4, 64), images(4, 64, 1)
    for f in (M.perceptual_distance, M.structure, M.gram, M.similarity):
        assert f(a, b, net).value == pytest.approx(f(b, a, net).value, rel=1e-5)
    for f in (M.perceptual_distance, M.structure, M.gram, M.cfsd):
        assert abs(f(a, a, net).value) < 1e-9 < f(a, b, net).value
    m = M.perceptual_distance(a, b, net)
    assert m.value == pytest.approx(np.mean(m.each)) and m.interval[0] <= m.value <= m.interval[1]
    assert (m.n, m.n_ref, m.resolution, m.resize) == (4, None, '64×64', 'bicubic')
    assert m.sha256 == net.sha256 and set(RELUS) <= set(m.estimator.split('; ')[1].split(', '))
    assert M.perceptual_distance(a[:1], b[:1], net).interval is None

def test_art_fd(net):
    out, content = images(5, 64), images(5, 64, 1)
    style = images(7, 64, 2)
    m = M.art_fd(out, content, style, net)
    assert m.value == pytest.approx((1+M.perceptual_distance(content, out, net).value)*(1+M.fd(out, style, net).value))
    assert m.name == 'art_fd[trunk]' and (m.n, m.n_ref) == (5, 7)
    with pytest.raises(StylekitError, match='n '): M.art_fd(out[:4], content[:4], style, net) < m


# ---- recognising

def test_identified_against_loops(net):
    a, b = images(7, seed=1), images(7, seed=2)
    va, vb = F.normalize(net(a), dim=1), F.normalize(net(b), dim=1)
    for k in (1, 3):
        want = [sum((va[i]@vb[j]) > (va[i]@vb[i]) for j in range(7)) < k for i in range(7)]
        m = M.content_retrieval(a, b, net, k)
        assert m.each == tuple(float(w) for w in want)
        assert m.n_ref == 7 and m.estimator.startswith(f'top {k}')
    copies = torch.cat([a[:1]]*3)
    assert M.content_retrieval(copies, copies, net).value == 1       # copies are no mistakes
    with pytest.raises(StylekitError, match='n_ref'):
        M.content_retrieval(a, b, net) - M.content_retrieval(a[:5], b[:5], net)

@pytest.fixture(scope='module')
def clip_folder(tmp_path_factory):
    "A CLIP with random weights as a hub would give it"
    import json
    from transformers import CLIPConfig, CLIPModel
    from stylekit.mini.clip import train_tokenizer
    folder = tmp_path_factory.mktemp('clip')/'vit-tiny'
    tok = train_tokenizer(['an owl', 'a red apple'])
    tok.model_max_length = 16
    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = size | dict(vocab_size=len(tok), max_position_embeddings=16, bos_token_id=tok.bos_token_id,
                       eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    vision = size | dict(image_size=32, patch_size=8)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    for part in (model, tok): part.save_pretrained(folder)
    (folder/'preprocessor_config.json').write_text(json.dumps(dict(image_mean=[.4, .5, .6], image_std=[.2, .3, .4])))
    return folder, model, tok

def test_clip_score_is_the_models_own_logit(clip_folder):
    "As transformers' CLIPModel compares picture and text, by its own preprocessing"
    folder, model, tok = clip_folder
    net, texts = M.load_features(str(folder)), ['an owl', 'a red apple', 'an owl']
    x = images(3)
    assert net.name == 'vit-tiny' and net.mean == (.4, .5, .6) and net.std == (.2, .3, .4)
    px, tokens = normalised(x, net.mean, net.std), tok(texts, padding='max_length', max_length=16, return_tensors='pt')
    with torch.no_grad(): out = model(pixel_values=px, **tokens)
    cos = out.logits_per_image/model.logit_scale.exp()
    m = M.clip_score(x, texts, net)
    assert m.each == pytest.approx(tuple(100*max(c, 0) for c in cos.diagonal().tolist()), abs=1e-4)
    assert m.name == 'clip_score[vit-tiny]' and not m.standard
    got = M.zero_shot(x, texts, net)
    best = cos[:, [0, 1]].argmax(1).tolist()
    assert got.each == tuple(float(i == (t != 'an owl')) for i, t in zip(best, texts)) and got.n_ref == 2
    (folder/'preprocessor_config.json').rename(folder/'gone.json')
    assert M.load_features(str(folder)).mean == CLIP_NORM[0]
    (folder/'gone.json').rename(folder/'preprocessor_config.json')

def test_zero_shot_pairs_by_id(mini):
    "Words and pictures are matched by id, whatever their order"
    x = {n: sample_image(n) for n in list_samples()}
    texts = {n: f"a {n.replace('-', ' ')}" for n in list_samples()}
    turned = dict(reversed(texts.items()))
    first, second = (M.zero_shot(x, t, mini).each for t in (texts, turned))
    assert dict(zip(x, first)) == dict(zip(x, second))
    with pytest.raises(StylekitError, match='without a partner'): M.clip_score(x, {'owl': 'an owl'}, mini)

NO_NETWORK = dict(
    empty={},
    weights_alone={'model.safetensors': b''},
    not_json={'config.json': b'{'},
    a_list={'config.json': b'[]'},
    nan={'config.json': b'{"model_type": NaN}'},
    no_kind={'config.json': b'{}'},
    a_number={'config.json': b'{"model_type": 3}'},
    no_weights={'config.json': b'{"model_type": "clip"}'},
    pickled={'config.json': b'{"model_type": "vit"}', 'pytorch_model.bin': b''},
    unknown={'config.json': b'{"model_type": "egg"}', 'model.safetensors': b''},
    cut={'config.json': b'{"model_type": "clip"}', 'model.safetensors': b'x'})

@pytest.mark.parametrize('files', NO_NETWORK.values(), ids=NO_NETWORK)
@pytest.mark.parametrize('name', ['clip-of-mine', 'net'])
def test_no_clip_no_features(tmp_path, name, files):
    "One line of our own, whatever version of transformers looks at the folder, and whatever it makes of its name"
    (tmp_path/name).mkdir()
    for f, raw in files.items(): (tmp_path/name/f).write_bytes(raw)
    why = rf'(no network|no CLIP) to be had from|config.json of {name} is damaged'
    with pytest.raises(StylekitError, match=why) as e: M.load_features(str(tmp_path/name))
    said = str(e.value)
    assert '\n' not in said and '.;' not in said
    if len(files) < 2 and 'damaged' not in said:
        assert f"no network to be had from '{name}': it" in said and 'give a folder' in said

def chain_file(path, shapes):
    torch.manual_seed(0)
    state = {}
    for i, s in shapes.items():
        for k, size in (('weight', s), ('bias', s[:1])):
            state[f'features.{i}.{k}'] = torch.randn(size)*(2/(s[1]*s[2]**2))**.5
    torch.save(state | {'classifier.1.weight': torch.zeros(8, 8)}, path)
    return state

def convolution(state, i, h, **kw):
    return F.conv2d(h, state[f'features.{i}.weight'], state[f'features.{i}.bias'], **kw).relu()

def test_alexnet_and_vgg_are_read_from_their_files(tmp_path):
    "Against the two networks written out, at the places that LPIPS compares"
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    s = chain_file(tmp_path/'alexnet.pth', shapes)
    net, x = M.load_features(tmp_path/'alexnet.pth', size=64), images(2, 64)
    h = normalised(x, [.485, .456, .406], [.229, .224, .225])
    want = [convolution(s, 0, h, stride=4, padding=2)]
    want.append(convolution(s, 3, F.max_pool2d(want[-1], 3, 2), padding=2))
    want.append(convolution(s, 6, F.max_pool2d(want[-1], 3, 2), padding=1))
    want.append(convolution(s, 8, want[-1], padding=1))
    want.append(convolution(s, 10, want[-1], padding=1))
    assert all_close(net.maps(x), want)

    blocks, widths = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21)), (4, 8, 8, 16)   # VGG's order, narrow
    shapes, width = {}, 3
    for block, w in zip(blocks, widths):
        for at in block:
            shapes[at] = w, width, 3, 3
            width = w
    s = chain_file(tmp_path/'vgg.pth', shapes)
    net = M.load_features(tmp_path/'vgg.pth', size=32)
    h, want = normalised(images(2, 32)), []
    for block in blocks:
        if want: h = F.max_pool2d(h, 2)
        for i in block: h = convolution(s, i, h, padding=1)
        want.append(h)
    assert all_close(net.maps(images(2, 32)), want)
    first = {'features.0.weight': torch.zeros(4, 3, 3, 3)}
    for state, why in (({'conv1.weight': torch.zeros(1)}, 'neither AlexNet nor VGG'), (first, 'no AlexNet or VGG'),
                       (first | {'features.1.weight': torch.zeros(4)}, 'batch norm')):
        torch.save(state, tmp_path/'other.pth')
        with pytest.raises(StylekitError, match=why): M.load_features(tmp_path/'other.pth')

@pytest.mark.parametrize('kind', ['ViT', 'Dinov2'])
def test_vision_transformers_are_read_from_their_folders(tmp_path, kind):
    "The class token and the last keys are the model's own"
    import json, transformers
    torch.manual_seed(0)
    config = getattr(transformers, f'{kind}Config')(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                    intermediate_size=32, image_size=32, patch_size=8)
    net = getattr(transformers, f'{kind}Model')(config).eval()
    net.save_pretrained(tmp_path/'dino')
    (tmp_path/'dino'/'preprocessor_config.json').write_text(json.dumps(dict(image_mean=[.5]*3, image_std=[.5]*3)))
    got, x = M.load_features(tmp_path/'dino'), images(2, 32)
    keys = []
    # As newer and older versions call them
    layers = [m for n, m in net.named_modules() if n.endswith(('k_proj', 'attention.key'))]
    assert len(layers) == 2
    layers[-1].register_forward_hook(lambda m, i, o: keys.append(o))
    with torch.no_grad(): want = net(pixel_values=2*x-1).last_hidden_state[:, 0]
    assert torch.allclose(got(x), want, atol=1e-5) and len(got.layers) == 2
    got_keys = got.maps(x, (got.keys,))[0].flatten(2).transpose(1, 2)
    assert torch.allclose(got_keys, keys[0][:, 1:], atol=1e-5)
    assert M.structure(x, x, got).value < 1e-9 < M.structure(x, x.flip(0), got).value
    with pytest.raises(StylekitError, match='32 pixels'): M.load_features(tmp_path/'dino', size=64)
