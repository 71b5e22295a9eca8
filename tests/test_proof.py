"Proof: against scikit-image, on made-up moves of real pictures, and as sentences, table and page"
import math, re
import numpy as np, pytest
from PIL import Image, ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.feature import match_template
from skimage.registration import phase_cross_correlation
from stylekit.measure import proof as P
from stylekit.core import StylekitError
from stylekit.images import list_samples, sample_image

NAMES = list_samples()

def array(im): return np.asarray(im.convert('RGB'), float).transpose(2, 0, 1)/255

def field(im): return P.edge_field(array(im))

def rolled(im, dx, dy): return Image.fromarray(np.roll(np.asarray(im), (dy, dx), (0, 1)))

def part_moved(im, box, dx, dy):
    out = im.copy()
    out.paste(im.crop(box), (box[0]+dx, box[1]+dy))
    return out

@pytest.fixture(scope='module')
def owl(): return sample_image('owl')


# ---- where it is

CHANGES = dict(negative=lambda x: 1-x, channels=lambda x: x[[2, 0, 1]], pale=lambda x: .5*x+.25)

@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_edges_do_not_know_colours(owl, change):
    "Light on dark, other channels, less contrast: the same edges, in the same places"
    a, b = P.edge_field(array(owl)), P.edge_field(change(array(owl)))
    found = P.shift_between(a, b)
    assert (found.dx, found.dy) == (0, 0) and found.likeness > .97

@pytest.mark.parametrize('look', ['shaded', 'flat', 'ink'])
@pytest.mark.parametrize('move', [(1, 0), (0, -1), (-3, 2), (6, 4)])
def test_a_shift_is_found_in_every_look(look, move):
    "What is added to a picture is added to the reading, whatever the look"
    for name in ('owl', 'taxi'):
        a, b = field(sample_image(name)), P.edge_field(array(sample_image(name, look)))
        still = P.shift_between(a, b)
        moved = P.shift_between(a, np.roll(b, move[::-1], (0, 1)))
        assert abs(moved.dx-still.dx-move[0]) < .06 and abs(moved.dy-still.dy-move[1]) < .06

@pytest.mark.parametrize('move', [(.5, 0), (-.3, .7), (1.25, -.4)])
def test_parts_of_a_pixel(owl, move):
    "Shifted by Fourier's theorem, as no interpolation could"
    a = field(owl)
    f = [np.fft.fftfreq(n) for n in a.shape]
    turn = np.exp(-2j*np.pi*(f[0][:, None]*move[1]+f[1]*move[0]))
    found = P.shift_between(a, np.fft.ifft2(np.fft.fft2(a)*turn))
    assert math.hypot(found.dx-move[0], found.dy-move[1]) < .06 and found.error < .06

@pytest.mark.parametrize('name', NAMES)
def test_shifts_as_scikit_image_finds_them(name):
    a, b = field(sample_image(name)), field(rolled(sample_image(name, 'ink'), 2, -1))
    far = min(a.shape)//4
    wide = [np.pad(x, (0, far)) for x in (a, b)]
    dy, dx = -phase_cross_correlation(*wide, upsample_factor=20, normalization=None)[0]
    ours = P.shift_between(a, b)
    if max(abs(dx), abs(dy)) <= far: assert math.hypot(ours.dx-dx, ours.dy-dy) < .08

def test_a_shift_is_less_certain_where_the_parts_differ(owl):
    "All of it by two pixels: certain. Another look: less so, as some of its edges are others"
    a = field(owl)
    assert P.shift_between(a, np.roll(a, 2, 1)).certain > 1.8
    errors = [P.shift_between(a, field(sample_image('owl', look))).error for look in ('shaded', 'ink')]
    assert errors[0] < .02 < errors[1] < .5
    flat = P.shift_between(a, field(sample_image('owl', 'flat')))
    assert flat.certain < .2 < flat.size   # half a pixel is read there, and its parts do not agree

def test_a_blank_result_has_lost_its_edges(owl):
    p = P.prove(owl, Image.new('RGB', owl.size, 'white'), letters=False, net=False)
    assert p.edge_f1 == 0 and p.sentences() == ['Of its edges hardly one is found again.']

@pytest.mark.parametrize('side', [1, 2, 7, 8, 16, 31])
def test_small_and_blank_pictures_say_nothing_and_break_nothing(side):
    for x in (np.zeros((3, side, side)), np.random.default_rng(0).random((3, side, side+3))):
        a = P.edge_field(x)
        found = P.shift_between(a, a)
        assert (found.dx, found.dy) == (0, 0) and found.error < 1
        assert not P.moved_tiles(P.tile_shifts(a, a)) and P.growth(a, []) is None


# ---- parts and growth

@pytest.mark.parametrize('name', ['owl', 'taxi', 'microscope'])
@pytest.mark.parametrize('move', [(4, 0), (0, -5), (-3, 3)])
def test_a_moved_part_is_found(name, move):
    im = sample_image(name)
    tiles = P.tile_shifts(field(im), field(im))
    assert not P.moved_tiles(tiles) and len(tiles) > 4
    x0, y0, x1, y1 = tiles[len(tiles)//2].box
    box = (max(5, x0-4), max(5, y0-4), min(123, x1+4), min(123, y1+4))
    found = P.moved_tiles(P.tile_shifts(field(im), field(part_moved(im, box, *move))))
    assert any(math.hypot(t.dx-move[0], t.dy-move[1]) < 1 for t in found)

def test_a_straight_edge_says_nothing_of_the_way_along_it():
    "The aperture problem: a tile needs edges in two directions"
    line, corner = (Image.new('RGB', (128, 128), 'white') for _ in range(2))
    ImageDraw.Draw(line).rectangle((64, 0, 128, 128), fill='black')
    ImageDraw.Draw(corner).rectangle((64, 64, 128, 128), fill='black')
    assert not P.tile_shifts(field(line), field(line)) and P.tile_shifts(field(corner), field(corner))

@pytest.mark.parametrize('share', [-.01, .01, .02])
@pytest.mark.parametrize('name', ['owl', 'penguin', 'birthday-cake'])
def test_one_per_cent_of_growth_is_found(name, share):
    im, k = sample_image(name), 1/(1+share)
    off = 64-64*k
    grown = im.transform(im.size, Image.Transform.AFFINE, (k, 0, off, 0, k, off), Image.Resampling.BICUBIC)
    a = field(im)
    assert abs(P.growth(a, P.tile_shifts(a, a))[0]) < 1e-3
    found, turn = P.growth(a, P.tile_shifts(a, field(grown)))
    assert abs(found-share) < .35*abs(share)+.001 and abs(turn) < .003

def test_a_turn_is_no_growth(owl):
    a = field(owl)
    growth, turn = P.growth(a, P.tile_shifts(a, field(owl.rotate(-1, Image.Resampling.BICUBIC, fillcolor='white'))))
    assert abs(growth) < .004 and abs(turn-math.radians(1)) < .006


# ---- logo and colours

def test_a_logo_as_scikit_image_matches_it(owl):
    "The same likeness at the same place as its template match over the whole picture"
    box, moved = (44, 24, 84, 48), rolled(owl, -4, 6)
    here, best, offset = P.find_logo(array(owl), array(moved), box)
    grey = [np.tensordot([.299, .587, .114], array(im), 1) for im in (owl, moved)]
    theirs = match_template(grey[1], grey[0][24:48, 44:84])
    assert offset == (-4, 6) and best == pytest.approx(theirs[30, 40], abs=1e-6)
    assert here == pytest.approx(theirs[24, 44], abs=1e-6)

def test_a_logo_at_the_border_is_sought_inside_only(owl):
    assert P.find_logo(array(owl), array(owl), (0, 0, 128, 128))[2] == (0, 0)
    assert P.find_logo(array(owl), array(owl), (90, 90, 128, 128))[1:] == (pytest.approx(1), (0, 0))

@pytest.mark.parametrize('box', [(0, 0, 200, 10), (5, 5, 5, 9), (-1, 0, 9, 9), (0, 0, 9), 'logo', (0., 0, 9, 9)])
def test_a_wrong_box_is_refused(owl, box):
    with pytest.raises(StylekitError, match='logo'): P.Prover(owl, logos=[box], letters=False, net=False)

def test_colours_as_scikit_image_sees_them():
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 3, 50, 50))
    y[:, :25] = (x+rng.normal(0, .02, x.shape)).clip(0, 1)[:, :25]
    theirs = deltaE_ciede2000(*(rgb2lab(v.transpose(1, 2, 0)) for v in (x, y)))
    assert P._colour_change(x, y, np.ones((50, 50))) == pytest.approx(theirs.mean(), abs=.01)
    left = np.zeros((50, 50))
    left[:, :10] = .5
    assert P._colour_change(x, y, left) == pytest.approx(theirs[:, :10].mean(), abs=.01)

def test_only_what_is_white_counts(owl):
    "A region of any size of its shape; grey in shares; black asks for nothing"
    result = owl.copy()
    result.paste('red', (0, 0, 64, 128))
    right = np.zeros((128, 128))
    right[:, 70:] = 1
    def delta(region): return P.prove(owl, result, region, letters=False, net=False).delta_e
    assert delta(right) == 0 and delta(1-right) > 20 and delta(right*0) is None
    assert delta(Image.fromarray(np.uint8(right*255)).resize((64, 64))) < .5
    with pytest.raises(StylekitError, match='in its shape'): delta(Image.new('L', (128, 64), 'white'))


# ---- the whole

@pytest.fixture(scope='module')
def prover(owl): return P.Prover(owl, letters=False)

def test_the_content_itself_is_perfect(prover, owl):
    p = prover(owl, 'owl')
    assert (p.displacement, p.edge_f1, p.moved, p.recognised) == (0, 1, (), True)
    assert p.identity == pytest.approx(1) and p.structure == pytest.approx(0, abs=1e-9)
    assert p.letters is p.logo is p.delta_e is None
    assert not p.failed(dict(edge_f1=1, displacement=0, letters=1, logo=1, delta_e=0))

def test_another_picture_is_not_it(prover):
    p = prover(sample_image('taxi'))
    assert not p.recognised and p.likest == 'taxi' and p.edge_f1 < .5
    assert p.identity < prover(sample_image('owl', 'ink')).identity

def test_the_ruler_stands_beside_the_number(prover):
    p = prover(sample_image('owl', 'ink'))
    assert 'efficientnet' in p.rulers['identity']['backbone'] and p.rulers['edge_f1']['another'] < p.edge_f1
    assert P.Proof.from_json(p.to_json()) == p

def test_a_result_of_another_size_is_brought_to_that_of_the_content(owl):
    large = owl.resize((512, 512), Image.Resampling.LANCZOS)
    p = P.prove(owl, large, letters=False, net=False)
    assert p.edge_f1 > .95 and p.displacement == 0
    with pytest.raises(StylekitError, match='one shape'): P.prove(owl, owl.resize((128, 90)), letters=False, net=False)

def test_pixels_are_those_of_the_content(owl):
    "Edges are looked at in a smaller picture; what is said is in its own pixels"
    large = owl.resize((1024, 1024), Image.Resampling.LANCZOS)
    p = P.prove(large, rolled(large, 16, -8), letters=False, net=False)
    assert p.shift == pytest.approx((16, -8), abs=.2)

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', '1', 'I;16', 'LA'])
def test_kinds_of_pictures(tmp_path, mode):
    "Grey, cut-out, palette, CMYK, one bit, 16 bits: each is itself"
    im = sample_image('owl')
    if mode == 'I;16': im = Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257)
    else: im = im.convert(mode)
    path = tmp_path/('Bild ä.tif' if mode in ('CMYK', 'I;16') else 'Bild ä.png')
    im.save(path)
    p = P.prove(path, path, letters=False, net=False)
    assert p.displacement == 0 and p.edge_f1 == 1

@pytest.mark.parametrize('size', [(1, 1), (2, 9), (17, 5), (33, 47)])
def test_odd_sizes(size):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    assert P.prove(im, im, letters=False).displacement == 0


# ---- letters

def word(text):
    im = Image.new('RGB', (256, 128), 'white')
    ImageDraw.Draw(im).text((20, 40), text, 'black', font_size=44)
    return im

def test_letters_in_a_sentence():
    pytest.importorskip('rapidocr_onnxruntime')
    p = P.prove(word('PENGUIN'), word('PENGUN'), net=False, id='p')
    assert p.letters == pytest.approx(6/7)
    assert "The letters read 'PENGUIN' before and 'PENGUN' after" in ' '.join(p.sentences())
    assert p.failed(dict(letters=.95))[0].startswith("The letters read 'PENGUIN' before and 'PENGUN' after: 86%")
    gone = P.prove(word('PENGUIN'), Image.new('RGB', (256, 128), 'white'), net=False)
    assert gone.letters == 0 and 'and nothing after' in ' '.join(gone.sentences())

def test_an_owl_has_no_letters(owl):
    "The reader takes its eyes for 0.0; nobody else does"
    pytest.importorskip('rapidocr_onnxruntime')
    assert P.prove(owl, owl, net=False).letters is None


# ---- what is said of many

def some(**kw):
    fields = dict(id='a', displacement=0., shift=(0., 0.), shift_error=.1, moved=(), tiles=9, growth=0., edge_f1=.9,
                  structure=.01, identity=.8, recognised=True, likest='', letters=None, delta_e=None, logo=None,
                  read=('', ''), logo_offset=(0, 0), seconds=.1, rulers={})
    return P.Proof(**fields | kw)

def test_what_misses_most_comes_first():
    proofs = [some(id='good'), some(id='unknown', recognised=False)]
    proofs += [some(id='bad', edge_f1=.2), some(id='poor', edge_f1=.7)]
    assert [p.id for p in P.worst_first(proofs, dict(edge_f1=.8))] == ['bad', 'poor', 'unknown', 'good']
    table = P.proof_table(proofs, dict(edge_f1=.8)).splitlines()
    assert table[2].startswith('| bad | fails edges kept |') and table[-1].startswith('| good | holds |')

@pytest.mark.parametrize('name', P.MEASURES)
def test_each_limit_is_kept_at_its_value_and_missed_beyond(name):
    high = P.MEASURES[name].high
    p = some(**{name: .5})
    assert not p.failed({name: .5}) and not p.failed({name: .4 if high else .6})
    beyond = .6 if high else .4
    assert p.missed({name: beyond})[name] == pytest.approx(.1/beyond) and len(p.failed({name: beyond})) == 1
    near = p.failed({name: .5+(1e-4 if high else -1e-4)})
    assert len(set(re.findall(r'0?\.\d+|\d+\.\d+%?|\d+%', near[0]))) > 1   # never '0.50, at least 0.50 is asked for'

def test_limits_of_wrong_names_are_refused():
    with pytest.raises(StylekitError, match='no measure named edges'): some().failed(dict(edges=.5))

def test_pictures_belong_together_by_name(tmp_path, owl):
    "Other endings, folders in folders; contents without a result are left out"
    for name in ('a', 'in/b', 'c'):
        (tmp_path/'src'/name).parent.mkdir(parents=True, exist_ok=True)
        owl.save(tmp_path/'src'/f'{name}.png')
    for name in ('a', 'in/b'):
        (tmp_path/'out'/name).parent.mkdir(parents=True, exist_ok=True)
        owl.save(tmp_path/'out'/f'{name}.webp', lossless=True)
    proofs = P.prove_folder(tmp_path/'src', tmp_path/'out', letters=False, net=False)
    assert [p.id for p in proofs] == ['a', 'in/b'] and all(p.edge_f1 == 1 for p in proofs)
    with pytest.raises(StylekitError, match='no result has the name'): P.prove_folder({'x': owl}, {'y': owl})

def test_the_page_is_whole(tmp_path, owl):
    "Nothing from elsewhere, nothing executed, names as text"
    name = '<script>alert(1)</script>'
    proofs = [some(id='good'), some(id=name, edge_f1=.1, read=('<b>A</b>', 'B'), letters=0.)]
    page = P.write_sheet(proofs, tmp_path/'p.html', {name: (owl, owl)}, dict(edge_f1=.5)).read_text(encoding='utf-8')
    assert '<script' not in page and '<b>' not in page and 'http' not in page and page.count('data:image/webp') == 2
    assert page.index('&lt;script&gt;') < page.index('<h2>good') and '1 of 2 pictures miss a limit' in page
    with pytest.raises(StylekitError, match='no proofs'): P.write_sheet([], tmp_path/'q.html')
