"Letters of a picture: how wrong they are by another implementation, where they stand, and pictures of every kind"
import math, random, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageDraw, ImageFont
from stylekit.core import StylekitError
from stylekit import letters
from stylekit.letters import Line, character_error_rate, edit_distance, letters_kept, read_letters

try: import rapidocr_onnxruntime as found
except ImportError: found = None   # not installed, or OpenCV lacks the libraries of a screen
needs_reader = pytest.mark.skipif(found is None, reason='rapidocr-onnxruntime cannot be loaded')

def word(text, px=30, size=(200, 120), at=(20, 40), mode='RGB', ink='black', paper='white'):
    matplotlib = pytest.importorskip('matplotlib')
    font = Path(matplotlib.__file__).parent/'mpl-data'/'fonts'/'ttf'/'DejaVuSans-Bold.ttf'
    im = Image.new(mode, size, paper)
    ImageDraw.Draw(im).text(at, text, font=ImageFont.truetype(str(font), px), fill=ink)
    return im

def line(text, box=(0, 0, 10, 10), score=1.):
    x0, y0, x1, y1 = box
    return Line(text, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), score)


# ---- the distance ----

def pairs(n=200, seed=0):
    r = random.Random(seed)
    for _ in range(n): yield tuple(''.join(r.choices('abAB7é', k=r.randrange(9))) for _ in 'xy')

def test_the_distance_is_that_of_another_implementation():
    from torchmetrics.functional.text import edit_distance as other
    for a, b in pairs(): assert edit_distance(a, b) == int(other(a, b, reduction='sum')), (a, b)

def test_the_rate_is_that_of_another_implementation():
    from torchmetrics.functional.text import char_error_rate as other
    for a, b in pairs():
        if a: assert character_error_rate(a, b) == pytest.approx(float(other([b], [a])), abs=1e-6), (a, b)

def test_the_distance_is_one():
    for a, b in pairs(100, 1):
        assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
        assert (edit_distance(a, b) == 0) == (a == b)
        assert edit_distance(a, b) <= edit_distance(a, 'aB7') + edit_distance('aB7', b)

def test_blanks_and_wide_forms_do_not_count():
    assert character_error_rate('YIELD 25', 'YIELD２５') == character_error_rate(' a\tb\n', 'ab') == 0
    assert math.isnan(character_error_rate('', 'x')) and math.isnan(character_error_rate('  ', ''))
    assert character_error_rate('ab', '') == 1 and character_error_rate('a', 'bcd') == 3


# ---- line by line ----

def test_lines_are_matched_by_place():
    before = [line('HONEY', (0, 0, 50, 10)), line('2026', (0, 50, 50, 60))]
    assert letters_kept(before, before) == letters_kept(before, before[::-1]) == 1
    swapped = [line('2026', (0, 0, 50, 10)), line('HONEY', (0, 50, 50, 60))]
    assert letters_kept(before, swapped) < .3
    assert letters_kept(before, before[:1]) == pytest.approx(5/9)
    assert letters_kept(before, [*before, line('new', (80, 80, 99, 90))]) == 1   # elsewhere: not counted
    assert letters_kept(before, []) == 0 and math.isnan(letters_kept([], before))

@pytest.mark.parametrize('split', [((0, 0, 20, 10), (25, 2, 60, 12)), ((0, 2, 20, 12), (25, 0, 60, 10))])
def test_a_line_read_in_two_pieces_is_the_same(split):
    whole, parts = [line('NO 7', (0, 0, 60, 12))], [line('NO', split[0]), line('7', split[1])]
    assert letters_kept(whole, parts) == letters_kept(whole, parts[::-1]) == letters_kept(parts, whole) == 1

def test_more_wrong_letters_than_there_were_are_no_less_than_nothing():
    assert letters_kept([line('a')], [line('bcdefg')]) == 0


# ---- pictures ----

@needs_reader
@pytest.mark.parametrize('px', [12, 30, 60])
def test_words_are_read_at_several_sizes(px):
    found, = read_letters(word('HONEY', px, (320, 160)))
    assert found.text == 'HONEY' and .8 <= found.score <= 1
    x0, y0, x1, y1 = ImageDraw.Draw(Image.new('L', (1, 1))).textbbox((20, 40), 'HONEY', font_size=px)
    assert abs(found.box[0]-20) < px and abs((found.box[1]+found.box[3])/2-(40+px*.6)) < px/2

@needs_reader
@pytest.mark.parametrize('make', [
    lambda im: np.asarray(im), lambda im: np.asarray(im.convert('L')), lambda im: im.convert('CMYK'),
    lambda im: torch.from_numpy(np.array(im)).permute(2, 0, 1)/255, lambda im: np.asarray(im)/255.,
    lambda im: Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257)])
def test_pictures_of_every_kind(make): assert [l.text for l in read_letters(make(word('HONEY')))] == ['HONEY']

@needs_reader
def test_a_file_of_any_name(tmp_path):
    word('HONEY').save(tmp_path/'はちみつ ü.png')
    assert [l.text for l in read_letters(tmp_path/'はちみつ ü.png')] == ['HONEY']

@needs_reader
@pytest.mark.parametrize('ink', ['white', 'black'])
def test_a_cutout_is_read_whatever_its_ink(ink):
    assert [l.text for l in read_letters(word('HONEY', mode='RGBA', ink=ink, paper=(0, 0, 0, 0)))] == ['HONEY']

@needs_reader
@pytest.mark.parametrize('size', [(1, 1), (1, 40), (40, 1), (17, 23), (900, 3)])
def test_pictures_without_letters(size):
    for colour in ('white', (30, 90, 40)): assert read_letters(Image.new('RGB', size, colour)) == []

@needs_reader
def test_lines_come_in_reading_order_and_inside_the_picture():
    im = word('HONEY', at=(20, 10))
    im.paste(word('No 7').crop((20, 30, 120, 90)), (90, 60))
    lines = read_letters(im)
    assert [l.text.replace(' ', '') for l in lines] == ['HONEY', 'No7']
    for l in lines: assert all(0 <= x <= 200 and 0 <= y <= 120 for x, y in l.corners)

@needs_reader
def test_the_result_may_have_another_size():
    im = word('HONEY', 40, (240, 120))
    assert letters_kept(im, im.resize((480, 240))) == 1 == letters_kept(im, im)
    assert letters_kept(im, word('MONEY', 40, (240, 120))) == pytest.approx(.8)
    assert letters_kept(im, word('HONEY', 40, (240, 120), at=(20, 75))) < 1   # it moved

def test_bad_input_is_named(tmp_path):
    for bad in (tmp_path/'none.png', 7, np.zeros((4, 4, 9))):
        with pytest.raises(StylekitError): read_letters(bad)
    for score in (-.1, 2, 'much'):
        with pytest.raises(StylekitError, match='min_score'): read_letters(word('HONEY'), score)

def test_a_missing_package_is_named(monkeypatch):
    letters._reader.cache_clear()
    monkeypatch.setitem(sys.modules, 'rapidocr_onnxruntime', None)
    with pytest.raises(StylekitError, match=r'stylekit\[letters\]'): read_letters(word('HONEY'))
    letters._reader.cache_clear()

def test_missing_libraries_of_a_screen_are_named(monkeypatch):
    import builtins
    letters._reader.cache_clear()
    load = builtins.__import__
    def bare(name, *args, **kwargs):
        if name == 'rapidocr_onnxruntime': raise ImportError('libGL.so.1: cannot open shared object file')
        return load(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', bare)
    with pytest.raises(StylekitError, match='opencv-python-headless'): read_letters(word('HONEY'))
    letters._reader.cache_clear()
