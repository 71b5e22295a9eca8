"Colour: against colour-science, scikit-image and SciPy, against formulas written out, and as properties"
import itertools, math
import numpy as np, pytest, scipy.fft, scipy.linalg, skimage.color, torch
from PIL import Image
from stylekit import color as C
from stylekit.core import StylekitError
from stylekit.feedforward import FeedForward
from stylekit.images import image_to_tensor, list_samples, open_image, sample_image
from sweeps import json_mutants, sweep

def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def last(x): return x.movedim(-3, -1).numpy()      # as the other libraries have it
def first(a): return torch.from_numpy(np.ascontiguousarray(a)).movedim(-1, -3)

@pytest.fixture
def colour():
    "The library; not above, for each worker of the suite collects all files, and it takes seconds to import"
    import colour
    return colour

@pytest.fixture
def srgb(colour):
    space = colour.models.RGB_COLOURSPACE_sRGB.copy()
    space.use_derived_transformation_matrices(True)     # not rounded to four digits
    return space

WIDE = torch.cat([rand(3, 40, 50), torch.cartesian_prod(*[torch.linspace(0, 1, 6).double()]*3).T.reshape(3, -1, 1)
                  .expand(3, 216, 50)[:, :40]], -1)


# ---- spaces, against two libraries

def test_light_and_back(colour):
    x = rand(3, 30, 31)
    assert np.abs(C.srgb_to_linear(x).numpy()-colour.models.eotf_sRGB(x.numpy())).max() < 1e-9
    y = rand(3, 30, 31)*3-1                         # beyond the screen's too
    assert np.abs(C.linear_to_srgb(y).numpy()-colour.models.eotf_inverse_sRGB(y.numpy())).max() < 1e-9
    assert (C.linear_to_srgb(C.srgb_to_linear(x))-x).abs().max() < 1e-6

def test_lab_equals_colour_science(colour, srgb):
    xyz = colour.RGB_to_XYZ(last(WIDE), srgb, apply_cctf_decoding=True)
    assert np.abs(last(C.linear_to_xyz(C.srgb_to_linear(WIDE)))-xyz).max() < 1e-9
    lab = colour.XYZ_to_Lab(xyz, srgb.whitepoint)
    assert np.abs(last(C.rgb_to_lab(WIDE))-lab).max() < 1e-7
    assert np.abs(last(C.rgb_to_lab(WIDE.float()))-lab).max() < 1e-3
    back = colour.XYZ_to_RGB(colour.Lab_to_XYZ(lab, srgb.whitepoint), srgb, apply_cctf_encoding=True)
    assert np.abs(last(C.lab_to_rgb(first(lab)))-back).max() < 1e-7

def test_lab_equals_scikit_image_up_to_its_rounded_matrix():
    assert np.abs(last(C.rgb_to_lab(WIDE))-skimage.color.rgb2lab(last(WIDE))).max() < .02
    xyz = C.linear_to_xyz(C.srgb_to_linear(WIDE))
    theirs = skimage.color.xyz2lab(last(xyz)/np.array(C.WHITE)*skimage.color.xyz_tristimulus_values(
        illuminant='D65', observer='2'))            # with its white, the same formula
    assert np.abs(last(C.xyz_to_lab(xyz))-theirs).max() < 2e-4

@pytest.mark.parametrize('shape', [(3, 1, 1), (3, 1, 9), (3, 7, 1), (2, 3, 5, 4), (2, 2, 3, 3, 3)])
def test_round_trips_of_any_shape(shape):
    x = rand(*shape)
    assert C.rgb_to_lab(x).shape == x.shape and torch.allclose(C.lab_to_rgb(C.rgb_to_lab(x)), x, atol=1e-6)
    assert torch.allclose(C.xyz_to_linear(C.linear_to_xyz(x)), x) and torch.allclose(C.lab_to_xyz(C.xyz_to_lab(x)), x)

def test_greys_have_no_colour_and_white_is_100():
    lab = C.rgb_to_lab(torch.linspace(0, 1, 256).double().expand(3, 1, 256))
    assert lab[1:].abs().max() < 1e-9 and lab[0, 0, 0] == 0 and abs(lab[0, 0, -1]-100) < 1e-9
    assert (lab[0].diff() > 0).all()

def test_types_gradients_and_modes():
    assert C.rgb_to_lab(rand(3, 4, 4).half()).dtype == torch.float32 == C.rgb_to_lab(rand(3, 4, 4).bfloat16()).dtype
    x = rand(3, 4, 4).float()
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(C.rgb_to_lab(x), C.rgb_to_lab(x.clone()))
    with torch.inference_mode(): C.rgb_to_lab(x)
    for x in (torch.zeros(3, 2, 2).double(), torch.ones(3, 2, 2).double(), rand(3, 2, 2)):
        g, = torch.autograd.grad(C.rgb_to_lab(x.requires_grad_()).sum(), x)
        assert g.isfinite().all()
    assert torch.autograd.gradcheck(C.rgb_to_lab, rand(3, 2, 2).mul(.8).add(.1).requires_grad_())


# ---- ΔE

SHARMA = '''
50 2.6772 -79.7751  50 0 -82.7485  2.0425; 50 3.1571 -77.2803  50 0 -82.7485  2.8615
50 2.8361 -74.0200  50 0 -82.7485  3.4412; 50 -1.3802 -84.2814  50 0 -82.7485  1.0000
50 -1.1848 -84.8006  50 0 -82.7485  1.0000; 50 -0.9009 -85.5211  50 0 -82.7485  1.0000
50 0 0  50 -1 2  2.3669; 50 -1 2  50 0 0  2.3669
50 2.4900 -0.0010  50 -2.4900 0.0009  7.1792; 50 2.4900 -0.0010  50 -2.4900 0.0010  7.1792
50 2.4900 -0.0010  50 -2.4900 0.0011  7.2195; 50 2.4900 -0.0010  50 -2.4900 0.0012  7.2195
50 -0.0010 2.4900  50 0.0009 -2.4900  4.8045; 50 -0.0010 2.4900  50 0.0010 -2.4900  4.8045
50 -0.0010 2.4900  50 0.0011 -2.4900  4.7461; 50 2.5 0  50 0 -2.5  4.3065
50 2.5 0  73 25 -18  27.1492; 50 2.5 0  61 -5 29  22.8977
50 2.5 0  56 -27 -3  31.9030; 50 2.5 0  58 24 15  19.4535
50 2.5 0  50 3.1736 0.5854  1.0000; 50 2.5 0  50 3.2972 0  1.0000
50 2.5 0  50 1.8634 0.5757  1.0000; 50 2.5 0  50 3.2592 0.3350  1.0000
60.2574 -34.0099 36.2677  60.4626 -34.1751 39.4387  1.2644
63.0109 -31.0961 -5.8663  62.8187 -29.7946 -4.0864  1.2630
61.2901 3.7196 -5.3901  61.4292 2.2480 -4.9620  1.8731
35.0831 -44.1164 3.7933  35.0232 -40.0716 1.5901  1.8645
22.7233 20.0904 -46.6940  23.0331 14.9730 -42.5619  2.0373
36.4612 47.8580 18.3852  36.2715 50.5065 21.2231  1.4146
90.8027 -2.0831 1.4410  91.1528 -1.6435 0.0447  1.4441
90.9257 -0.5406 -0.9208  88.6381 -0.8985 -0.7239  1.5381
6.7747 -0.2908 -2.4247  5.8714 -0.0985 -2.2286  0.6377
2.0776 0.0795 -1.1350  0.9033 -0.0636 -0.5514  0.9082'''   # Sharma, Wu & Dalal (2005), table 1

@pytest.mark.parametrize('dtype,tol', [(torch.float64, 5.1e-5), (torch.float32, 1e-3)])
def test_the_34_pairs_of_sharma_wu_and_dalal(dtype, tol):
    rows = [list(map(float, r.split())) for line in SHARMA.strip().splitlines() for r in line.split(';')]
    t = torch.tensor(rows, dtype=dtype).T[..., None]
    assert t.shape[1] == 34
    for a, b in ((t[:3], t[3:6]), (t[3:6], t[:3])):
        assert (C.delta_e_2000(a, b)-t[6]).abs().max() < tol

def test_delta_e_equals_both_libraries(colour):
    a, b = (torch.cat([rand(1, 60, 70, seed=s)*100, rand(2, 60, 70, seed=s+2)*240-120]) for s in (0, 1))
    b[:, :20] = a[:, :20]+.5*(b[:, :20]-a[:, :20])*.02       # near ones too
    a[1:, 30:33], b[1:, 33:36] = 0, 0                        # greys
    ours = C.delta_e_2000(a, b).numpy()
    assert np.abs(ours-colour.delta_E(last(a), last(b), method='CIE 2000')).max() < 1e-8
    assert np.abs(ours-skimage.color.deltaE_ciede2000(last(a), last(b))).max() < 1e-8
    assert np.abs(C.delta_e_76(a, b).numpy()-colour.delta_E(last(a), last(b), method='CIE 1976')).max() < 1e-9

def test_delta_e_is_a_symmetric_distance_that_broadcasts():
    a, b = rand(2, 3, 8, 9)*60, rand(2, 3, 8, 9, seed=1)*60
    d = C.delta_e_2000(a, b)
    assert d.shape == (2, 8, 9) and torch.allclose(d, C.delta_e_2000(b, a)) and (d > 0).all()
    assert C.delta_e_2000(a, a).max() == 0 == C.delta_e_76(a, a).max()
    one = b[:1, :, :1, :1]
    assert torch.allclose(C.delta_e_2000(a, one), C.delta_e_2000(a, one.expand_as(a)))

def test_opposite_hues_are_on_one_side_whatever_the_precision():
    ab = rand(2, 40, 50)*80-40
    light = torch.full((1, 40, 50), 50.).double()
    pair = torch.cat([light, ab]), torch.cat([light, -ab*rand(1, 40, 50, seed=1)])
    double, single = C.delta_e_2000(*pair), C.delta_e_2000(*(x.float() for x in pair))
    assert (double-single).abs().max() < 2e-3


# ---- the screen's colours

def test_into_gamut():
    lab = torch.cat([rand(1, 40, 50)*140-20, rand(2, 40, 50, seed=1)*300-150])
    made = C.into_gamut(lab)
    rgb = C.lab_to_rgb(made)
    assert rgb.min() > -2e-4 and rgb.max() < 1+2e-4
    assert torch.equal(made[0], lab[0].clamp(0, 100)) and torch.allclose(C.into_gamut(made), made, atol=1e-2)
    chroma, was = made[1:].norm(dim=0), lab[1:].norm(dim=0)
    turn = (made[1]*lab[2]-made[2]*lab[1])/(chroma*was).clamp(min=1e-9)
    assert turn[chroma > .1].abs().max() < 1e-6 and (chroma <= was+1e-9).all()            # hue stays
    out = chroma < was-1e-6
    more = made.clone()
    more[1:] *= (1+.02+.1/chroma.clamp(min=1))
    outside = ((C.lab_to_rgb(more) < -1e-4) | (C.lab_to_rgb(more) > 1+1e-4)).any(0)
    assert outside[out & (made[0] > 1) & (made[0] < 99)].all()       # no more chroma than needed is lost
    x = C.rgb_to_lab(rand(3, 9, 9))
    assert torch.equal(C.into_gamut(x), x) and C.into_gamut(x[None].expand(2, -1, -1, -1)).shape == (2, 3, 9, 9)


# ---- the report

def test_report_is_that_of_numpy():
    a, b = rand(1, 3, 20, 30), rand(1, 3, 20, 30, seed=1)
    d = C.delta_e_2000(C.rgb_to_lab(a), C.rgb_to_lab(b)).numpy()
    r = C.delta_e(a, b)
    assert abs(r.mean-d.mean()) < 1e-9 and abs(r.max-d.max()) < 1e-9 and r.pixels == 600
    assert abs(r.p95-np.quantile(d, .95, method='inverted_cdf')) < 1e-9

def test_report_counts_a_region_and_what_can_be_seen():
    a, b = sample_image('owl'), sample_image('owl', 'flat')
    region = torch.zeros(128, 128)
    region[:50] = 1
    r, rest = C.delta_e(a, b, region), C.delta_e(a, b, region, outside=True)
    assert r == C.delta_e(image_to_tensor(a)[..., :50, :], image_to_tensor(b)[..., :50, :])
    assert r.pixels+rest.pixels == 128**2
    assert C.delta_e(a, b, region*.5).mean == pytest.approx(r.mean)                       # grey: the same share of each
    hidden = [im.copy() for im in (a, b)]
    for im in hidden: im.putalpha(Image.fromarray((region*255).byte().numpy()))
    assert C.delta_e(*hidden) == r and C.delta_e(a, a).max == 0
    with pytest.raises(StylekitError, match='no pixel'): C.delta_e(*hidden, region=1-region)
    with pytest.raises(StylekitError, match='one size'): C.delta_e(a, b.resize((64, 64)))


# ---- linear maps

def spd(seed): # covariance
    a = np.random.default_rng(seed).normal(size=(3, 3))*[12, 6, 9]
    return a @ a.T + np.eye(3)

def test_moments_are_numpys_with_weights():
    lab, w = rand(2, 3, 9, 8)*50, rand(2, 1, 9, 8, seed=1)
    mean, cov = C.color_moments(lab, w)
    for i in range(2):
        x, n = lab[i].flatten(1).numpy(), w[i].flatten().numpy()
        assert np.allclose(mean[i], np.average(x, axis=1, weights=n))
        assert np.allclose(cov[i], np.cov(x, aweights=n, bias=True))
    assert np.allclose(C.color_moments(lab)[1][0], np.cov(lab[0].flatten(1), bias=True))

@pytest.mark.parametrize('seed', range(6))
def test_mkl_against_sqrtm_and_as_the_map_of_least_motion(seed):
    s, t = spd(seed), spd(seed+50)
    a = C.mkl_matrix(*(torch.tensor(v)[None] for v in (s, t)), most=1e9)[0].numpy()
    s, t = (v+C._ROUNDING*np.eye(3) for v in (s, t))
    root, inverse = scipy.linalg.sqrtm(s), np.linalg.inv(scipy.linalg.sqrtm(s))
    assert np.allclose(a, inverse @ scipy.linalg.sqrtm(root @ t @ root) @ inverse, atol=1e-8)
    assert np.allclose(a, a.T) and np.linalg.eigvalsh(a).min() > 0 and np.allclose(a @ s @ a.T, t)
    def motion(m): return np.trace((m-np.eye(3)) @ s @ (m-np.eye(3)).T)
    for i in range(40):                                   # every other linear map that carries s into t goes further
        q, _ = np.linalg.qr(np.random.default_rng(i).normal(size=(3, 3)))
        other = scipy.linalg.sqrtm(t) @ q @ inverse
        assert np.allclose(other @ s @ other.T, t) and motion(other) >= motion(a)-1e-9

def test_reinhard_is_mkl_where_channels_are_independent():
    s, t = (torch.diag(torch.tensor(v).double())[None] for v in ((100., 20, 30), (50., 60, 10)))
    assert torch.allclose(C.reinhard_matrix(s, t), C.mkl_matrix(s, t), atol=1e-6)
    assert torch.allclose(C.mkl_matrix(s, s), torch.eye(3).double(), atol=1e-6)
    assert torch.allclose(C.reinhard_matrix(s, s), torch.eye(3).double())

def test_a_picture_without_colour_is_not_stretched():
    nothing, much = torch.zeros(1, 3, 3).double(), torch.tensor(spd(1))[None]
    for make in (C.mkl_matrix, C.reinhard_matrix):
        a = make(nothing, much)
        assert a.isfinite().all() and torch.linalg.eigvalsh(a).max() <= C.MOST+1e-9
        assert torch.allclose(make(nothing, nothing), torch.eye(3).double(), atol=1e-5)

@pytest.mark.parametrize('method', ['mkl', 'reinhard'])
def test_statistics_arrive(method):
    a, b = rand(1, 3, 40, 40)*.4+.3, rand(1, 3, 40, 40, seed=1)*.5*torch.tensor([.9, .7, .8])[:, None, None]+.2
    b = b.roll(1, 1)*.4+b*.6                              # channels that go together
    made = C.match_color(a, b, 'source:'+method, lightness=1)
    (m, s), (want_m, want) = (C.color_moments(C.rgb_to_lab(v)) for v in (made, b))
    assert (m-want_m).abs().max() < .2
    off = (s-want)/want.diagonal(dim1=1, dim2=2).max()
    assert (off if method == 'mkl' else off.diagonal(dim1=1, dim2=2)).abs().max() < .02


# ---- by place, by area

@pytest.mark.parametrize('h,w', [(1, 1), (1, 9), (8, 8), (13, 22)])
def test_smooth_part_is_a_gaussian_on_scipys_dct(h, w):
    x = rand(2, h, w)
    f = np.add.outer(np.arange(h), np.arange(w))/max(1, h+w-2)
    there = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm='ortho')*np.exp(-.5*(f/.2)**2)
    assert np.abs(C.smooth_part(x, .2).numpy()-scipy.fft.idctn(there, axes=(-2, -1), norm='ortho')).max() < 1e-6
    assert torch.allclose(C.smooth_part(x, .2).mean((-2, -1)), x.mean((-2, -1)))

def test_what_has_no_weight_has_no_say():
    x, w = rand(3, 12, 12), torch.ones(1, 12, 12).double()
    w[..., 8:] = 0
    y = x.clone()
    y[..., 8:] = 9
    assert torch.allclose(C.smooth_part(x, .3, w)[..., :8], C.smooth_part(y, .3, w)[..., :8])
    even = torch.full_like(x, .7)
    assert torch.allclose(C.smooth_part(even, .3, rand(1, 12, 12)), even, atol=1e-6)      # a mean, not a sum

def test_main_colors():
    lab = C.rgb_to_lab(image_to_tensor(sample_image('taxi')).double())[0]
    found, shares = C.main_colors(lab, 6)
    assert found.shape == (6, 3) and (shares.diff() <= 0).all() and abs(shares.sum()-1) < 1e-9
    for other in (lab.flip(-1), lab.transpose(1, 2), lab.repeat(1, 2, 1)):
        assert torch.allclose(C.main_colors(other, 6)[0], found, atol=1e-6)
    pixels = lab.flatten(1).T
    from sklearn.cluster import KMeans
    theirs = KMeans(6, n_init=4, random_state=0).fit(pixels.numpy()).inertia_
    assert torch.cdist(pixels, found).amin(1).square().sum() < 1.3*theirs
    for k in range(1, 6): assert len(C.main_colors(torch.zeros(3, 4, 4), k)[0]) == 1       # one colour is one
    left = torch.zeros(128, 128)
    left[:, :20] = 1
    assert torch.allclose(C.main_colors(lab, 4, left)[0], C.main_colors(lab[..., :20], 4)[0])

def test_area_colors_is_the_common_colour():
    lab = torch.zeros(3, 1, 100).double()
    lab[1, 0, 60:] = 80
    assert C.area_colors(lab, torch.ones(1, 1, 100).double()).abs().max() < .1
    empty = torch.cat([torch.ones(1, 1, 100), torch.zeros(1, 1, 100)]).double()
    assert C.area_colors(lab, empty).isfinite().all()

def recoloured(im, seed):
    "Each of a flat picture's main colours turned to another hue"
    lab = C.rgb_to_lab(image_to_tensor(im).double())[0]
    centres, _ = C.main_colors(lab, 6)
    by = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).double()*torch.tensor([0., 25, 25])
    by[centres[:, 1:].norm(dim=1) < 5] = 0                # white stays
    moved = lab+torch.einsum('nhw,nc->chw', C.soft_shares(lab, centres, 8.), by)
    return C.lab_to_rgb(C.into_gamut(moved)).clamp(0, 1)[None]

@pytest.mark.parametrize('name', list_samples())
def test_areas_undo_a_recolouring_that_no_linear_map_can(name):
    im = sample_image(name, 'flat')
    x, off = image_to_tensor(im).double(), recoloured(im, 3)
    tries = off, C.match_color(off, x), C.match_color(off, x, 'source:mkl')
    before, after, linear = (C.delta_e(v, x).mean for v in tries)
    assert after < .45*before and after < max(linear, .2*before)

def test_two_colours_that_became_one_are_told_apart():
    slate = torch.tensor([60, 70, 75.])[:, None, None].expand(3, 64, 64)[None]/255
    source = slate.clone()
    source[..., :32], source[..., 32:] = (torch.tensor(c).view(3, 1, 1)/255 for c in ((20., 90, 95), (111, 78, 55)))
    before, after = (C.delta_e(v, source).mean for v in (slate, C.match_color(slate, source)))
    assert after < .5*before


# ---- palettes

FLAG = ['#e4002b', '#ffffff', '#005eb8', '#1a1a1a']

def stripes(colors, n=24): return C.hex_to_lab(colors).T.repeat_interleave(n, 1)[:, None].repeat(1, 32, 1)

def test_locked_colours_arrive_exactly_and_others_are_left_alone():
    source = stripes(FLAG+['#00a050'])
    off = source+torch.tensor([3., 8, -9])[:, None, None]
    made = C.lock_palette(off, C.hex_to_lab(FLAG), source)
    inner = [slice(24*i+4, 24*i+20) for i in range(5)]
    for s in inner[:4]: assert C.delta_e_2000(made, source)[:, s].max() < .3
    assert (made-off)[..., inner[4]].abs().max() < .5

@pytest.mark.parametrize('radius,moves', [(200, True), (50, True), (4, False)])
def test_radius(radius, moves):
    off = stripes(FLAG[:1])+torch.tensor([0., -30, 0])[:, None, None]
    made = C.lock_palette(off, C.hex_to_lab(FLAG[:1]), None, radius=radius)
    assert (C.delta_e_2000(made, stripes(FLAG[:1])).max() < .1) == moves
    if not moves: assert torch.equal(made, off)

def test_shading_within_an_area_stays():
    source = stripes(FLAG[:2])
    shade = torch.linspace(-2, 2, 48).double()
    off = source+torch.tensor([0., -6, 6])[:, None, None]
    off[0] += shade
    made = C.lock_palette(off, C.hex_to_lab(FLAG[:2]), source)
    assert (made[0].diff()-off[0].diff())[:, :23].abs().max() < .3 and abs(made[1, :, :24].mean()-source[1, 0, 0]) < 1

def test_black_ink_on_a_red_logo_stays_black():
    ink, logo = torch.zeros(1, 3, 32, 32), torch.tensor([228, 0, 43.])[:, None, None].expand(3, 32, 32)[None]/255
    made = C.match_color(ink, logo, ['#e4002b', '#ffffff'])
    assert made.max() < .15
    assert C.match_color(ink, logo).max() < 1e-3          # and no colour without light

def test_nearest_asks_the_result_and_areas_the_source():
    source = image_of('#e4002b')
    orange = image_of('#f06a10')
    brand = ['#e4002b', '#ff8200']
    def made(how): return C.palette_of(C.match_color(orange, source, how), 1)
    assert made(brand) == ['#e4002b'] and made(','.join(brand)+':nearest') == ['#ff8200']

def image_of(color, size=(20, 20), mode='RGB'): return Image.new('RGB', size, color).convert(mode)

def test_errors_of_a_palette():
    source = Image.new('RGB', (40, 20), FLAG[0])
    source.paste(FLAG[2], (0, 0, 10, 20))
    result = Image.new('RGB', (40, 20), '#d4103b')
    red, white, blue, _ = C.palette_errors(result, source, FLAG)
    assert red.color == FLAG[0] and red.share == pytest.approx(.75) and blue.share == pytest.approx(.25)
    def off(c): return C.delta_e(image_of('#d4103b'), image_of(c)).mean
    assert red.delta_e == pytest.approx(off(FLAG[0]), abs=.01) and blue.delta_e == pytest.approx(off(FLAG[2]), abs=.01)
    assert white.delta_e is None and white.share == 0
    assert C.palette_errors(result.resize((80, 40)), source, FLAG)[0].delta_e == pytest.approx(red.delta_e, abs=.1)
    assert C.PaletteError.from_json(white.to_json()) == white

def test_hex_codes():
    codes = ['#%02x%02x%02x' % tuple(c) for c in np.random.default_rng(0).integers(0, 256, (300, 3))]
    assert C.lab_to_hex(C.hex_to_lab(codes)) == codes and C.lab_to_hex(C.hex_to_lab([])) == []
    assert C.palette_of(sample_image('owl')) == C.palette_of(sample_image('owl').transpose(Image.Transpose.ROTATE_90))


# ---- the way in: every request, pictures of every kind

REQUESTS = ['source', 'source:mkl', 'source:reinhard', 'source:low', 'palette', 'palette:nearest', ['#e4002b', 'white']]

def kinds():
    rgb = sample_image('owl').resize((24, 17))
    half = rgb.copy()
    half.putalpha(Image.fromarray(np.linspace(0, 255, 24*17).astype(np.uint8).reshape(17, 24)))
    gone = rgb.copy()
    gone.putalpha(0)
    sixteen = Image.fromarray((np.arange(24*17).reshape(17, 24)*160).astype(np.uint16))
    return dict(rgb=rgb, grey=rgb.convert('L'), alpha=half, gone=gone, grey_alpha=half.convert('LA'),
                cmyk=rgb.convert('CMYK'), indexed=rgb.convert('P'), bits=rgb.convert('1'), sixteen=sixteen,
                one_colour=image_of('#808080'), pixel=image_of('red', (1, 1)), row=rgb.resize((31, 1)),
                column=rgb.resize((1, 7)))

KINDS = kinds()

@pytest.mark.filterwarnings('ignore:.*CMYK')
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('how', REQUESTS, ids=str)
def test_pictures_of_every_kind(how, kind):
    im = KINDS[kind]
    other = image_of('#3060c0', im.size)
    for a, b in ((im, im), (im, other), (other, im)):
        made = C.match_color(a, b, how)
        assert made.size == a.size and made.mode in ('RGB', 'RGBA')
        alpha = a.convert('RGBA').getchannel('A')
        if made.mode == 'RGBA': assert np.array_equal(made.getchannel('A'), alpha)
        else: assert alpha.getextrema()[0] == 255
    if 'source' in how:                                   # to itself: the identity
        made, same = C.match_color(im, im, how), open_image(im, min_side=1, max_aspect=99).pixels
        assert np.abs(np.array(made.convert('RGB')).astype(int)-np.array(same.convert('RGB'))).max() <= 1

@pytest.mark.parametrize('how', REQUESTS, ids=str)
def test_regions_strengths_and_tensors(how):
    a, b = image_to_tensor(sample_image('owl')), image_to_tensor(sample_image('owl', 'flat'))
    region = torch.zeros(128, 128)
    region[:, :64] = 1
    made = C.match_color(a, b, how, region)
    assert torch.equal(made[..., 64:], a[..., 64:]) and made.dtype == a.dtype
    other = C.match_color(a, b, how, region, outside=True)
    assert torch.equal(other[..., :64], a[..., :64])
    assert torch.equal(C.match_color(a, b, how, 1-region), other)
    assert torch.equal(C.match_color(a, b, how, 0*region), a)                              # an empty region
    full = C.match_color(a, b, how)
    if how != 'palette': assert torch.allclose(C.match_color(a, b, how, torch.ones(1, 1, 128, 128)), full, atol=1e-5)
    pair = C.match_color(torch.cat([a, b]), torch.cat([b, a]), how)
    assert torch.allclose(pair[:1], full, atol=1e-4) and torch.allclose(pair[1:], C.match_color(b, a, how), atol=1e-4)
    half = C.rgb_to_lab(C.match_color(a, b, how, strength=.5))
    middle = (C.rgb_to_lab(full)+C.rgb_to_lab(a))/2
    assert (half-middle).abs().mean() < 1
    assert C.match_color(a[0].half(), b, how).dtype == torch.float16 and C.match_color(a[0], b, how).shape == a[0].shape

def test_lightness_is_the_styles_unless_asked_for():
    a, b = image_to_tensor(sample_image('owl', 'flat')), image_to_tensor(sample_image('owl'))
    def light(x): return C.rgb_to_lab(x)[:, 0]
    for how in REQUESTS[:4]: assert (light(C.match_color(a, b, how))-light(a)).abs().max() < .1
    assert (light(C.match_color(a, b, lightness=1))-light(a)).abs().mean() > .5

def test_the_source_may_have_another_size_or_for_linear_maps_be_another_picture():
    a, b = sample_image('owl', 'flat'), sample_image('owl')
    near = C.match_color(a, b.resize((512, 512)))
    assert C.delta_e(near, C.match_color(a, b)).mean < 1
    wide = sample_image('taxi').resize((90, 40))
    for how in ('source:mkl', 'source:reinhard', 'palette:nearest'): C.match_color(a, wide, how)
    for how in ('source', 'source:low', 'palette'):
        with pytest.raises(StylekitError, match='same shape'): C.match_color(a, wide, how)
    with pytest.raises(StylekitError, match='same shape'): C.match_color(a, wide, 'source:mkl', region=b)

def test_what_is_transparent_in_either_has_no_say():
    a, b = (sample_image('owl', look).copy() for look in ('flat', 'shaded'))
    seen = np.zeros((128, 128), np.uint8)
    seen[:, :80] = 255
    b.putalpha(Image.fromarray(seen))
    loud = Image.new('RGB', b.size, '#00ff00')
    loud.paste(b, mask=b.getchannel('A'))
    loud.putalpha(b.getchannel('A'))
    for how in ('source', 'source:mkl', 'palette'):        # what stands under alpha 0 makes no difference
        assert np.array_equal(C.match_color(a, b, how), C.match_color(a, loud, how))
    a.putalpha(Image.fromarray(255-seen))                  # nowhere are both to be seen
    for how in ('source', 'palette', 'source:low'):
        assert np.array_equal(np.array(C.match_color(a, b, how))[..., 3], 255-seen)

def test_bad_pictures_and_regions_are_refused():
    x = rand(1, 3, 8, 8)
    for bad, match in ((x+1, 'a pixel'), (x*math.nan, 'NaN'), (x[0, 0], 'expected'), (x[:, :2], 'expected'),
                       (x[None], 'expected'), ('no-such.png', 'does not exist'), (None, 'not an image'),
                       ([], 'not an image')):
        for call in (lambda v: C.match_color(v, x), lambda v: C.match_color(x, v), lambda v: C.delta_e(v, x),
                     lambda v: C.remove_shift(v, x, x), lambda v: C.palette_of(v)):
            with pytest.raises(StylekitError, match=match) as e: call(bad)
            assert '\n' not in str(e.value)
    for bad in (x[0, 0]+1, rand(2, 2, 8, 8), rand(5), rand(8, 30), rand(3, 1, 8, 8), rand(8, 8)*math.nan):
        with pytest.raises(StylekitError, match='region'): C.match_color(x, x, region=bad)


# ---- requests

LOW = C.ColorMatch('source', 'low', strength=.3, cutoff=.1, outside=True)

@pytest.mark.parametrize('request_', [C.ColorMatch(), LOW,
                                      C.ColorMatch('palette', palette=FLAG, radius=20., lightness=.5),
                                      C.ColorMatch('palette', 'nearest', colors=9)])
def test_requests_survive_json_and_nothing_else_is_read(request_):
    data = request_.to_json()
    assert C.ColorMatch.from_json(data) == request_
    def read(d): return C.ColorMatch.from_json(d).to_json()
    # what is missing has its default; another number or text within the limits is another request
    allowed = (': missing', 'int 3', 'int 1', 'float 0.5', 'NoneType None', 'bool True', 'list []', 'palette.0: str ',
               'all of it: {}')
    sweep(read, json_mutants(data), data, may_differ=allowed)

def test_what_people_type():
    parse = C.parse_match
    assert parse('Source') == parse(' source ') == C.ColorMatch() and parse('') is parse('none') is parse(None) is None
    assert parse('red,#FFF , #005eb8').palette == ('#ff0000', '#ffffff', '#005eb8')
    assert parse(('red', 'white', '#005EB8')) == parse('red,#FFF , #005eb8')
    for how, method in itertools.product(*[('source', 'palette')], ('areas', 'mkl', 'reinhard', 'low', 'nearest')):
        if method in C.METHODS[how]: assert parse(f'{how}:{method}').method == method
        else:
            with pytest.raises(StylekitError, match='choose'): parse(f'{how}:{method}')
    assert parse('#e4002b,white:nearest', radius=20).radius == 20
    assert parse(C.ColorMatch('palette', palette=FLAG), strength=.2).palette == tuple(FLAG)

@pytest.mark.parametrize('bad', ['sauce', 'source:', ':mkl', '#12', '#e4002b,', ',', 'source,palette', 'source:mkl:low',
                                 3, 0, True, [], [3], ['source'], {'how': 'source'}, b'source', '#e4002b80', 'x'*9999])
def test_what_cannot_be_meant(bad):
    with pytest.raises(StylekitError) as e: C.parse_match(bad)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 300

@pytest.mark.parametrize('unread', [dict(radius=20), dict(palette=['red']), dict(colors=3), dict(cutoff=.1),
                                    dict(how='palette', cutoff=.1), dict(how='palette', method='low')])
def test_a_setting_that_is_not_read_is_refused(unread):
    with pytest.raises(StylekitError): C.ColorMatch(**unread)

def test_finishing_takes_the_request_and_no_request_is_none():
    a, b = sample_image('owl', 'flat'), sample_image('owl')
    assert C.finish_color(a, b, None) is a
    request = C.parse_match('palette', colors=4)
    again = C.ColorMatch.from_json(request.to_json())
    assert np.array_equal(C.finish_color(a, b, request), C.finish_color(a, b, again))
    assert np.array_equal(C.finish_color(a, b, request), C.match_color(a, b, 'palette', colors=4))


# ---- what the model does

@pytest.fixture(scope='module')
def trip():
    from stylekit.backbone import load_backbone
    backbone = load_backbone()
    return lambda x: backbone.decode(backbone.encode(x.float()))

@pytest.mark.parametrize('name', ['owl', 'penguin', 'statue-of-liberty', 'birthday-cake'])
def test_the_autoencoders_shift_is_measured_and_taken_out(trip, name):
    x = image_to_tensor(sample_image(name))
    shift, made = C.autoencoder_shift(x, trip), trip(x)
    assert shift == C.autoencoder_shift(x, made) and 0 < shift.delta_e < 2.5
    assert np.allclose(shift.rgb, 255*(made-x).mean((0, 2, 3))) and shift.left < shift.delta_e
    assert C.delta_e(C.remove_shift(made, x, trip), x).mean == pytest.approx(shift.left, rel=.02)
    off = made*torch.tensor([1., .93, .97])[:, None, None]                # an autoencoder that does shift
    assert C.delta_e(C.remove_shift(off, x, off), x).mean < .5*C.delta_e(off, x).mean

def test_a_tint_that_comes_and_goes_is_smooth_and_goes():
    x = image_to_tensor(sample_image('taxi'))*.8+.1
    wave = torch.linspace(0, math.pi, 128).sin()*.06
    off = x+wave*torch.tensor([1., 0, -1])[:, None, None]
    assert C.delta_e(C.remove_shift(off, x, off), x).mean < .3*C.delta_e(off, x).mean
    assert np.array_equal(C.remove_shift(sample_image(), sample_image(), sample_image()), sample_image())

def test_one_pass_recolours_and_is_mended():
    net = FeedForward.load('flat')
    pairs = [(net(im).image, im) for im in map(sample_image, list_samples())]
    before = [C.delta_e(*p).mean for p in pairs]
    for how, most in (('source', .9), ('palette', .9)):
        after = [C.delta_e(C.match_color(*p, how), p[1]).mean for p in pairs]
        assert np.mean(after) < most*np.mean(before) and sum(a < b for a, b in zip(after, before)) >= 6
    def main(result, source):
        errors = [e for e in C.palette_errors(result, source, C.palette_of(source)) if e.share]
        return sum(e.delta_e*e.share for e in errors)/sum(e.share for e in errors)
    assert np.mean([main(C.match_color(*p, 'palette'), p[1]) for p in pairs]) < .7*np.mean([main(*p) for p in pairs])
