"Faults that the notebook has no room for: every kind of damaged, hostile or unusual image file"
import io, os, random, struct, subprocess, sys, types, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageCms, ImageFile
from stylekit.core import StylekitError
from stylekit.images import *


def noise(w=32, h=24, mode='RGB', seed=0):
    n = len(Image.new(mode, (1,1)).getbands())
    a = np.random.default_rng(seed).integers(0, 256, (h, w, n), dtype=np.uint8)
    return Image.frombytes(mode, (w, h), a.tobytes())

def encoded(im, fmt, **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def png(w, h, depth=8, colour=2, extra=b'', rows=None):
    "A PNG made by hand, as no library writes the broken ones"
    if rows is None: rows = b''.join(b'\0'+bytes(w*3) for _ in range(h))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n'+head+extra+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def put(tmp_path, data, name='x.png'):
    (tmp_path/name).write_bytes(data)
    return tmp_path/name

def refused(path, *words, **kw):
    "`load_image` refuses `path`, and says all of `words` and the path"
    with pytest.raises(StylekitError) as e: load_image(path, **kw)
    assert all(w in str(e.value) for w in (*words, str(path))), str(e.value)
    assert '\n' not in str(e.value)
    return e.value

FILES = {'png': encoded(noise(), 'PNG'), 'jpg': encoded(noise(), 'JPEG'),
         'webp': encoded(noise(), 'WEBP', lossless=True), 'tif': encoded(noise(), 'TIFF'),
         'lzw.tif': encoded(noise(), 'TIFF', compression='tiff_lzw')}


# ---- not an image

@pytest.mark.parametrize('data, word', [
    (b'', 'empty'), (b'<!DOCTYPE html><html>', 'HTML'), (b'\xef\xbb\xbf\n <HTML lang=de>', 'HTML'),
    (b'<!-- hi --><html>', 'HTML'), (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'SVG'),
    (b'<?xml version="1.0"?>\n<!-- x -->\n<svg>', 'SVG'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n', 'git lfs pull'),
    (b'\0\0\0\x20ftypavif', 'AVIF'), (encoded(noise(), 'EPS'), 'PostScript'), (encoded(noise(), 'PPM'), 'none of PNG'),
    (b'PK\x03\x04abc', 'zip'), (b'\x89PNG\r\n\x1a\n', 'damaged'), (b'\xff\xd8\xff', 'damaged'),
    (png(0, 0, rows=b''), 'zero width'), (png(16, 0, rows=b''), 'zero width'), (b'hello', 'none of PNG'),
    (bytes(100), 'none of PNG')])
def test_lookalikes(tmp_path, data, word): refused(put(tmp_path, data), word)

def test_eps_never_starts_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('a program was started'))
    refused(put(tmp_path, encoded(noise(), 'EPS'), 'x.eps'))

@pytest.mark.parametrize('src, word', [
    *((src, 'not an image') for src in (None, '', 7, object(), [1, 2])), ('https://a.b/c.png', 'download'),
    ('no/such.png', 'does not exist'), *((src, None) for src in ('a\0b.png', 'x'*5000, '~nobody-here/x.png'))])
def test_bad_paths(src, word):
    with pytest.raises(StylekitError, match=word): load_image(src)

def test_folder_pipe_unreadable(tmp_path, monkeypatch):
    refused(tmp_path, 'folder')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe.png')
        refused(tmp_path/'pipe.png', 'ordinary')
    p = put(tmp_path, FILES['png'])
    def no(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('builtins.open', no)
    refused(p, 'Permission denied')

NAMES = ['with space.png', "it's 100%.png", '門 Tür é.png', 'no suffix', 'wrong.jpg', '-dash.png']
@pytest.mark.parametrize('name', NAMES)
def test_names(tmp_path, name): assert np.array_equal(load_image(str(put(tmp_path, FILES['png'], name))), noise())


# ---- damaged

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', FILES)
def test_cut_anywhere(tmp_path, kind):
    "A cut file is refused, or nothing that matters was cut: never a partly grey image"
    data, refusals = FILES[kind], 0
    whole = np.asarray(load_image(data))
    some = random.Random(0).sample(range(len(data)), 60)
    cuts = sorted({*range(0, 40), *some, len(data)-1, len(data)-2, len(data)-12})
    for n in cuts:
        try: assert np.array_equal(load_image(data[:n]), whole), n
        except StylekitError: refusals += 1
    assert refusals > .9*len(cuts)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', FILES)
def test_any_byte_flipped(kind):
    "Whatever a flipped byte does, the outcome is RGB or our error"
    data, rnd = FILES[kind], random.Random(1)
    for i in [*range(0, 60), *rnd.sample(range(len(data)), 90)]:
        bad = bytearray(data)
        bad[i] ^= rnd.randrange(1, 256)
        try: assert load_image(bytes(bad)).mode == 'RGB'
        except StylekitError: pass
        else: assert kind != 'png', f'byte {i}: a PNG protects every byte by a checksum'

def test_bad_checksum_of_pixels(tmp_path):
    data, i = FILES['png'], FILES['png'].index(b'IEND')-8
    bad = data[:i]+bytes([data[i] ^ 1])+data[i+1:]
    Image.open(io.BytesIO(bad)).load() # Pillow alone does not notice
    refused(put(tmp_path, bad), 'damaged', 'IDAT')

def test_tolerance_is_overruled_and_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    cut = {fmt: (lambda b: b[:len(b)*3//4])(encoded(noise(128,128), fmt)) for fmt in ('PNG', 'JPEG')}
    for fmt, data in cut.items():
        Image.open(io.BytesIO(data)).load() # Pillow alone fills with grey
        refused(put(tmp_path, data, f'x.{fmt}'), 'damaged')
    lazy = Image.open(io.BytesIO(cut['JPEG']))
    with pytest.raises(StylekitError, match='mine'): load_image(lazy, name='mine')
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True

def bad_sum(kind, data): return chunk(kind, data)[:-4]+b'\0bad'
BOMB = zlib.compress(bytes(5_000_000))
ROWS = b''.join(b'\0'+bytes(range(48)) for _ in range(16))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('extra', [
    chunk(b'zTXt', b'a\0\0'+BOMB), chunk(b'iTXt', b'a\0\1\0\0\0'+BOMB),
    chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0'+BOMB), chunk(b'tEXt', b'a\0'+bytes(2_000_000)),
    chunk(b'zTXt', b'Raw profile type exif\0\0'+BOMB), chunk(b'iCCP', b'a\0\0'+zlib.compress(bytes(80_000_000))),
    chunk(b'iCCP', b'a\0\0junk'), chunk(b'iCCP', b''), chunk(b'zTXt', b''), chunk(b'iTXt', b'XML:com.adobe.xmp\0'),
    chunk(b'eXIf', b'junk'), chunk(b'pHYs', b'1'), chunk(b'gAMA', b''), chunk(b'cHRM', b'12'), chunk(b'acTL', b'1'),
    chunk(b'fcTL', b''), bad_sum(b'tEXt', b'a\0b'), bad_sum(b'iCCP', b'a\0\0x'), bad_sum(b'eXIf', b'x'),
    bad_sum(b'prVt', b'x')])
def test_what_surrounds_a_png_does_not_stop_it(tmp_path, extra):
    out = load_image(put(tmp_path, png(16, 16, extra=extra, rows=ROWS)))
    assert out.getpixel((1,1)) == (3,4,5)

@pytest.mark.parametrize('extra', [bad_sum(b'PLTE', bytes(3)), bad_sum(b'IDAT', b'x'), bad_sum(b'ABCD', b'x')])
def test_a_critical_chunk_does(tmp_path, extra):
    refused(put(tmp_path, png(16, 16, extra=extra, rows=ROWS)), 'damaged', 'checksum')

def segment(marker, data): return bytes([255, marker])+struct.pack('>H', len(data)+2)+data

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('extra', [
    segment(0xe0, b'JFIF'), segment(0xee, b'Adobe'), segment(0xe2, b'ICC_PROFILE\0'), segment(0xe1, b'Exif\0\0'),
    segment(0xe1, b'http://ns.adobe.com/xap/1.0/\0<'), segment(0xed, b'Photoshop 3.0\x008BIM'), segment(0xe2, b'MPF\0'),
    segment(0xfe, b'x'*60_000), b'junk'])
def test_what_surrounds_a_jpeg_does_not_stop_it(extra):
    data = encoded(noise(), 'JPEG')
    out = load_image(data[:2]+extra+data[2:])
    assert np.abs(np.asarray(out).astype(int)-np.asarray(load_image(data))).max() <= 1

@pytest.mark.filterwarnings('ignore')
def test_what_surrounds_a_webp_does_not_stop_it():
    data = encoded(noise(), 'WEBP', lossless=True, exif=b'Exif\0\0junk', icc_profile=b'nonsense', xmp=b'\xff\xfe')
    wrong_length = data[:4]+struct.pack('<I', len(data)+99)+data[8:]
    for bad in (data, data[:-3], data+bytes(5000), wrong_length): assert np.array_equal(load_image(bad), noise())

@pytest.mark.parametrize('kind', FILES)
def test_bytes_after_the_end(kind):
    assert np.array_equal(load_image(FILES[kind]+bytes(5000)), load_image(FILES[kind]))

@pytest.mark.parametrize('fmt', ['BMP', 'GIF', 'AVIF'])
def test_more_formats(tmp_path, fmt):
    from PIL import features
    if fmt == 'AVIF' and not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    p = put(tmp_path, encoded(noise(), fmt), 'x.dat')
    assert load_image(p).size == (32,24) == image_size(p) and open_image(p).format == fmt
    if fmt == 'BMP': assert np.array_equal(load_image(p), noise())

@pytest.fixture
def heif(monkeypatch):
    "A decoder that is registered as `pillow-heif` is; its files are PNGs after a HEIC's first bytes"
    from PIL import PngImagePlugin
    class Heif(PngImagePlugin.PngImageFile):
        format = 'HEIF'
        def _open(self):
            self.fp = io.BytesIO(self.fp.read()[24:])
            super()._open()
    def register(): Image.register_open('HEIF', Heif, lambda head: head[4:8] == b'ftyp')
    monkeypatch.setitem(sys.modules, 'pillow_heif', types.SimpleNamespace(register_heif_opener=register))
    Image.init()
    before = dict(Image.OPEN), list(Image.ID)
    def make(im, brand=b'heic', **kw): return b'\0\0\0\x18ftyp'+brand+b'\0\0\0\0mif1heic'+encoded(im, 'PNG', **kw)
    yield make
    Image.OPEN.clear()
    Image.OPEN.update(before[0])
    Image.ID[:] = before[1]

@pytest.mark.parametrize('brand', [b'heic', b'heix', b'hevc', b'mif1', b'msf1'])
def test_heic_where_a_decoder_is_there(tmp_path, heif, brand):
    p = put(tmp_path, heif(noise(), brand), 'IMG_0001.HEIC')
    assert np.array_equal(load_image(p), noise())
    assert open_image(p).format == 'HEIF' and image_size(p) == (32,24)
    clear = noise(mode='RGBA')
    assert np.array_equal(open_image(heif(clear, brand)).alpha, clear.getchannel('A'))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(heif(noise(), brand, exif=exif)).size == (24,32)

@pytest.mark.parametrize('kind', ['AVIF', 'HEIF'])
def test_a_damaged_picture_is_not_taken_for_a_missing_decoder(tmp_path, heif, kind):
    from PIL import features
    if kind == 'AVIF' and not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    whole = encoded(noise(), 'AVIF') if kind == 'AVIF' else heif(noise())
    assert load_image(whole).size == (32,24)
    for n in (24, 40, len(whole)//2, len(whole)-30):
        refused(put(tmp_path, whole[:n], f'x.{kind}'), 'damaged or cut short')

def test_heic_without_a_decoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)   # an ImportError, also where it is installed
    Image.init()
    monkeypatch.delitem(Image.OPEN, 'HEIF', raising=False)
    for brand in (b'heic', b'heix', b'mif1'):
        refused(put(tmp_path, b'\0\0\0\x18ftyp'+brand+bytes(300), 'x.heic'), 'pip install pillow-heif')

@pytest.mark.parametrize('size', [(64, 48), (97, 33)])
def test_a_real_heic(size):
    heif = pytest.importorskip('pillow_heif')
    im = Image.linear_gradient('L').resize(size).convert('RGB')
    heif.from_pillow(im).save(b := io.BytesIO(), quality=95)
    out = load_image(b.getvalue())
    assert out.size == size and np.abs(np.asarray(out).astype(int)-np.asarray(im)).mean() < 3

@pytest.mark.parametrize('suffix', ['.jfif', '.png', '.jpe', '.weird', ''])
def test_opened_by_content(tmp_path, suffix):
    assert open_image(put(tmp_path, FILES['jpg'], f'x{suffix}')).format == 'JPEG'

def test_camera_raw_is_named(tmp_path): refused(put(tmp_path, FILES['tif'], 'x.NEF'), 'raw file')

def test_damage_in_the_middle_of_a_jpeg():
    for seed in (1, 2, 5):
        data = bytearray(encoded(noise(256, 256), 'JPEG', quality=95))
        data[20_000:21_000] = np.random.default_rng(seed).bytes(500)+b'\xff\xe4'+bytes(498)
        with pytest.warns(UserWarning, match='its data are damaged'):
            try: load_image(bytes(data))
            except StylekitError as e: warnings.warn(f'its data are damaged: {e}')   # Pillow itself knows

@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'group4', 'packbits', 'jpeg'])
def test_a_broken_tiff_prints_nothing(tmp_path, compression, capfd):
    "libtiff writes to the process's stderr; what it says is in our one line"
    im, said = noise(300, 200), 0
    if compression == 'group4': im = im.convert('1')
    data = encoded(im, 'TIFF', compression=compression)
    for seed in range(8):
        bad = bytearray(data)
        i = np.random.default_rng(seed).integers(100, len(data)-400)
        bad[i:i+64] = np.random.default_rng(seed).bytes(64)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter('always')
            try: load_image(bytes(bad))
            except StylekitError as e: said += '\n' not in str(e) and len(str(e)) < 300
            else: said += any('damaged' in str(w.message) for w in noted)
            assert all('PIL' not in w.filename for w in noted)
    assert capfd.readouterr() == ('', '') and said >= (5 if compression not in ('packbits', 'jpeg') else 0)

def test_another_thread_may_write_to_stderr(capfd):
    from stylekit.images import _stderr_of_libtiff
    said = []
    with _stderr_of_libtiff(said):
        os.write(2, b'progress 5 %\n')
        os.write(2, b'ZIPDecode: Decoding error at scanline 72.\n')
    assert said == ['ZIPDecode: Decoding error at scanline 72.'] and capfd.readouterr().err == 'progress 5 %\n'

def test_pixel_bombs(tmp_path, monkeypatch):
    e = refused(put(tmp_path, png(20000, 20000, rows=b'')), 'too large')
    assert isinstance(e.__cause__, Image.DecompressionBombError)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda *a: pytest.fail('decoded before the cap was checked'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        refused(put(tmp_path, png(10000, 10000, rows=b'')), '100,000,000', '64,000,000')
        refused(put(tmp_path, FILES['png']), '768', max_pixels=767)
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None) # as some libraries do
        refused(put(tmp_path, png(20000, 20000, rows=b'')), '64,000,000')

@pytest.mark.parametrize('size, word', [
    ((1,1), 'at least 16'), ((5,5), 'at least 16'), ((1,4000), 'at least 16'), ((16,400), 'crop'), ((400,16), 'crop')])
def test_limits(tmp_path, size, word):
    refused(put(tmp_path, encoded(Image.new('RGB', size), 'PNG')), word, f'{size[0]}×{size[1]}')

def test_limits_are_inclusive():
    assert load_image(Image.new('RGB', (128,16))).size == (128,16)
    assert load_image(noise(20,20), max_pixels=400).size == (20,20)


# ---- what a viewer shows

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('fmt', ['PNG', 'TIFF', 'WEBP'])
def test_orientation(turn, fmt):
    im, exif = noise(), Image.Exif()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(turn) # the transposition that a camera made
    exif[0x0112] = turn
    stored = im if undo is None else im.transpose(Image.Transpose(undo))
    out = load_image(encoded(stored, fmt, exif=exif, **(dict(lossless=True) if fmt == 'WEBP' else {})))
    assert np.array_equal(out, im)

def test_metadata_do_not_travel():
    exif = Image.Exif()
    exif[0x010F] = 'Camera of user1'
    out = load_image(encoded(noise(), 'JPEG', exif=exif, comment=b'hello', dpi=(300,300)))
    assert out.info == {} and not dict(out.getexif())
    assert b"user1" not in encoded(out, 'PNG')+encoded(out, 'JPEG')

@pytest.mark.filterwarnings('ignore')
def test_damaged_exif_is_no_reason_to_refuse():
    rational = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\0'   # an orientation that is no integer
    for junk in b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0nonsense', rational:
        assert load_image(encoded(noise(), 'JPEG', exif=junk)).size == (32,24)

HIDDEN = (255, 0, 0)
def transparent(mode):
    "Half hidden red, half solid blue (grey 10 and 100 in grey modes)"
    im = Image.new('RGBA', (32,32), HIDDEN+(0,))
    im.paste((0,0,255,255), (16,0,32,32))
    if mode == 'P':
        p = Image.new('P', (32,32), 0)
        p.putpalette([*HIDDEN, 0,0,255])
        p.paste(1, (16,0,32,32))
        return encoded(p, 'PNG', transparency=0)
    if mode == 'RGB':
        p = Image.new('RGB', (32,32), HIDDEN)
        p.paste((0,0,255), (16,0,32,32))
        return encoded(p, 'PNG', transparency=HIDDEN)
    if mode == 'LA':
        grey = Image.new('L', (32,32), 10)
        return encoded(Image.merge('LA', (grey, im.getchannel('A'))), 'PNG')
    if mode == 'PA': return im.convert('P').convert('PA')
    if mode == 'RGBa': return im.convert('RGBa')
    if mode == 'WEBP': return encoded(im, 'WEBP', lossless=True, exact=True)
    return encoded(im, 'PNG')

@pytest.mark.parametrize('mode', ['RGBA', 'WEBP', 'P', 'RGB', 'LA', 'RGBa'])
def test_hidden_colour_stays_hidden(mode):
    src = transparent(mode)
    assert load_image(src).getpixel((2,2)) == (255,255,255)
    assert load_image(src, background='#102030').getpixel((2,2)) == (16,32,48)
    assert load_image(src, background=(1,2,3)).getpixel((2,2)) == (1,2,3)
    assert load_image(src).getpixel((20,2)) == ((10,10,10) if mode == 'LA' else (0,0,255))

def test_pa_and_transparent_16_bit():
    im = Image.merge('RGBA', (*Image.new('RGB', (32,32), HIDDEN).split(), Image.new('L', (32,32), 0)))
    pa = Image.new('PA', (32,32))
    assert load_image(pa).getpixel((2,2)) == (255,255,255) == load_image(im).getpixel((2,2))
    rows = b''.join(b'\0'+b'\x01\x00'*8+b'\x80\x80'*8 for _ in range(16))
    grey = png(16, 16, 16, 0, chunk(b'tRNS', b'\x01\x00'), rows)
    assert [load_image(grey).getpixel((x,3))[0] for x in (2,12)] == [255, 128]
    rgb = png(16, 16, 16, 2, chunk(b'tRNS', b'\x09\x00'*3), b''.join(b'\0'+b'\x09\x00'*48 for _ in range(16)))
    assert load_image(rgb).getpixel((2,2)) == (255,255,255)

def test_half_transparent_is_blended():
    assert load_image(Image.new('RGBA', (16,16), (0,0,0,128))).getpixel((0,0)) == (127,127,127)

@pytest.mark.parametrize('bad', ['no such colour', (1,2), (1,2,300), None, 5, '#10203040', (1,2,3,4)])
def test_background_must_be_a_colour(bad):
    with pytest.raises(StylekitError, match='background'): load_image(noise(), background=bad)

@pytest.mark.parametrize('fmt', ['PNG', 'TIFF'])
def test_16_bit_grey(fmt):
    a = np.linspace(0, 65535, 32*32).reshape(32,32).astype(np.uint16)
    out = np.asarray(load_image(encoded(Image.fromarray(a), fmt)))[...,0]
    assert np.array_equal(out, np.round(a/257).astype(np.uint8))
    if fmt == 'TIFF':
        big = Image.frombytes('I;16B', (32,32), a.astype('>u2').tobytes())
        assert np.array_equal(np.asarray(load_image(big))[...,0], out)
        assert np.array_equal(np.asarray(load_image(Image.fromarray(a.astype(np.int32))))[...,0], out)

def test_odd_grey():
    def grey(value, kind): return Image.fromarray(np.full((16,16), value, kind))
    with pytest.raises(StylekitError, match='grey values from -5'): load_image(grey(-5, np.int32))
    with pytest.raises(StylekitError, match='1000000'): load_image(encoded(grey(1_000_000, np.int32), 'TIFF'))
    with pytest.warns(UserWarning, match='very dark'): load_image(grey(4000, np.uint16))

def test_float_tiff(tmp_path):
    a = np.linspace(0, 1, 32*32, dtype=np.float32).reshape(32,32)
    out = np.asarray(load_image(encoded(Image.fromarray(a), 'TIFF')))[...,0]
    assert np.array_equal(out, np.round(a*255).astype(np.uint8))
    for bad, word in ((np.nan, 'NaN'), (np.inf, 'NaN or infinite'), (200, 'divide by 255'), (-40, 'rescale')):
        b = a.copy()
        b[3,3] = bad
        refused(put(tmp_path, encoded(Image.fromarray(b), 'TIFF'), 'x.tif'), word)

def test_cmyk():
    im = noise(mode='CMYK')
    with pytest.warns(UserWarning, match='CMYK without a colour profile'):
        assert load_image(encoded(im, 'JPEG')).mode == 'RGB'
    with pytest.warns(UserWarning, match='cannot be used'): load_image(encoded(im, 'JPEG', icc_profile=b'nonsense'))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    with warnings.catch_warnings(): # an RGB profile in a CMYK file is called sRGB, but is no help
        warnings.simplefilter('ignore')
        load_image(encoded(im, 'TIFF', icc_profile=srgb))

def swapped_profile():
    "An RGB profile whose red and green are exchanged, so that using it shows"
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    n = struct.unpack('>I', data[128:132])[0]
    at = {bytes(data[132+12*i:136+12*i]): 132+12*i for i in range(n)}
    data[at[b'rXYZ']:at[b'rXYZ']+4], data[at[b'gXYZ']:at[b'gXYZ']+4] = b'gXYZ', b'rXYZ'
    test = bytes(data).replace('sRGB'.encode('utf-16-be'), 'test'.encode('utf-16-be'))
    return test.replace(b'sRGB built-in', b'test built-in')

def test_profile_is_used():
    p = swapped_profile()
    for mode, red in (('RGB', (255,0,0)), ('RGBA', (255,0,0,255))):
        out = load_image(encoded(Image.new(mode, (16,16), red), 'PNG', icc_profile=p))
        assert np.abs(np.subtract(out.getpixel((0,0)), (0,255,0))).max() <= 3

@pytest.mark.parametrize('fmt, kw', [('WEBP', dict(lossless=True)), ('PNG', {}), ('TIFF', {})])
def test_animated_uses_first_and_says_so(tmp_path, fmt, kw):
    frames = dict(save_all=True, append_images=[noise(seed=1), noise(seed=2)])
    p = put(tmp_path, encoded(noise(), fmt, **frames, **kw), 'x.'+fmt.lower())
    with pytest.warns(UserWarning, match='3 frames; only frame 1') as said:
        assert np.array_equal(load_image(p), noise())
    assert str(p) in str(said[0].message)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'RGBX', 'I;16', 'I', 'F', 'PA', 'RGBa',
                                  'LA', 'RGBA'])
def test_every_mode_becomes_rgb(mode):
    im = Image.new(mode, (16,16))
    before = im.copy()
    assert load_image(im).mode == 'RGB'
    assert im == before and im.info == before.info   # the caller's image is left alone

def test_plain_files_do_not_warn(recwarn):
    for data in FILES.values(): load_image(data)
    assert not recwarn


# ---- arrays and tensors

U8 = np.asarray(noise())
CHW, GREY = torch.tensor(U8).permute(2,0,1), torch.tensor(U8[...,0])
@pytest.mark.parametrize('src', [
    U8, U8/255, (U8/255).astype(np.float32), CHW/255, CHW[None].double()/255, CHW, (CHW/255).requires_grad_(),
    np.asfortranarray(U8), Image.fromarray(U8)])
def test_same_pixels_from_every_container(src): assert np.array_equal(load_image(src), U8)

@pytest.mark.parametrize('src', [
    U8[...,0], U8[...,:1], U8[...,0]/255, GREY/255, GREY[None]/255, GREY[None,None]])
def test_grey(src): assert np.array_equal(load_image(src), np.repeat(U8[...,:1], 3, -1))

ODD = {
    'sparse': torch.zeros(3,16,16).to_sparse(),
    'csr': torch.zeros(16,16).to_sparse_csr(),
    'meta': torch.zeros(3,16,16, device='meta'),
    'quantised': torch.quantize_per_tensor(torch.zeros(3,16,16), .1, 0, torch.quint8),
    'nested': torch.nested.nested_tensor([torch.zeros(3,16,16)]),
    'complex': torch.zeros(3,16,16, dtype=torch.complex64),
    'float8': torch.zeros(16, dtype=torch.float8_e4m3fn),
    'masked': np.ma.zeros((16,16,3)),
    'object': np.zeros((16,16,3), object),
    'complex array': np.zeros((16,16), complex),
    'record': np.zeros((16,16), [('red', 'u1'), ('green', 'f8')]),
    'text': np.full((16,16), 'x'*500),
    'dates': np.zeros((16,16), 'datetime64[s]'),
    'number': np.float64(3),
    'long path': 'x'*100_000,
    'deep path': 'x/'*50_000,
    'arrays': [np.zeros((64,64,3))]*50,
    'dict': {i: i for i in range(10_000)},
    'lines': 'a\n'*300,
    'not utf-8': os.fsdecode(b'caf\xe9.png'),
    'set': {1, 2},
    'bytes of text': b'hello '*10_000,
    'type': int}
@pytest.mark.parametrize('kind', ODD)
def test_odd_things_get_one_line(kind):
    with pytest.raises(StylekitError) as e: load_image(ODD[kind])
    said = str(e.value)
    assert len(said) <= 300 and '\n' not in said and said.isprintable(), said
    said.encode()

def test_numbers_of_any_kind():
    for kind in ('>f4', '<f8', '>f8', 'f2', 'g'):
        same = np.array_equal(load_image((U8/255).astype(kind)), U8)
        assert same or kind == 'f2'
    assert np.array_equal(load_image(np.asmatrix(U8[...,0])), np.repeat(U8[...,:1], 3, -1))

def test_rgba_array_and_masks():
    a = np.zeros((16,16,4), np.uint8)
    assert load_image(a).getpixel((0,0)) == (255,255,255) == load_image(a/1.).getpixel((0,0))
    assert load_image(np.ones((16,16), bool)).getpixel((0,0)) == (255,255,255)

@pytest.mark.parametrize('src, word', [
    (U8.astype(np.float32), 'divide by 255'), (U8.astype(int), 'int64'), (U8.astype(np.uint16), 'uint16'),
    (U8/127.5-1, r'x/2 \+ 0.5'), (U8*np.nan, 'NaN'), (U8/255+np.inf, 'infinite'), (U8.transpose(2,0,1), 'come first'),
    (np.zeros((32,32,2)), '2 channels'), (np.zeros((32,32,7)), '7 channels'), (np.zeros((2,32,32,3)), 'batch'),
    (np.zeros(9), 'shape'), (np.zeros((0,0,3)), 'shape'), (np.array(None), 'shape|object'),
    (np.zeros((32,32), complex), 'complex'), (np.zeros((2,2,3)), 'at least 16'), (torch.tensor(U8)/255, 'come last'),
    (torch.zeros(4,32,32), '4 channels'), (torch.zeros(2,3,32,32), 'batch'), (CHW.float(), 'divide by 255'),
    (torch.full((3,32,32), torch.nan), 'NaN'), (torch.zeros(3,32,32).long(), 'int64'),
    (torch.full((3,32,32), 1.01), 'rescale'), (torch.full((3,32,32), -.01), 'not 0–1')])
def test_refused_values(src, word):
    with pytest.raises(StylekitError, match=word) as e: load_image(src, name='my picture')
    assert 'my picture' in str(e.value)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_half_types(dtype): assert load_image(torch.ones(3,16,16, dtype=dtype)).getpixel((0,0)) == (255,255,255)

def test_round_trip_is_exact():
    x = image_to_tensor(noise())
    assert x.dtype == torch.float32 and x.shape == (1,3,24,32) and x.is_contiguous()
    assert np.array_equal(tensor_to_image(x), U8) and np.array_equal(tensor_to_image(x[0]+1e-5), U8)
    assert image_to_tensor(Image.new('RGBA', (2,2), (255,0,0,0))).min() == 1

SHAPES = (1,16,16), (4,16,16), (2,3,16,16), (16,16)
@pytest.mark.parametrize('bad', [*map(torch.zeros, SHAPES), torch.full((3,4,4), 2.), U8, None])
def test_tensor_to_image_refuses(bad):
    with pytest.raises(StylekitError): tensor_to_image(bad)


def test_samples():
    assert len(list_samples()) >= 4 and sample_image().mode == 'RGB'
    assert {sample_image(n, l).size for n in list_samples() for l in ('shaded', 'render', 'flat', 'ink')} == {(128,128)}


# ---- transparency and profiles

def soft(size=(48, 40), colour=(200, 40, 40)):
    "A disc with a soft edge, and green hidden around it"
    w, h = size
    y, x = np.mgrid[:h, :w]
    a = (255*np.clip(min(w, h)/3-np.hypot(x-w/2, y-h/2), 0, 6)/6).astype(np.uint8)
    im = Image.new('RGBA', size, (0,255,0,0))
    im.paste(colour, (0,0,w,h), Image.fromarray(255*(a > 0).astype(np.uint8)))
    im.putalpha(Image.fromarray(a))
    return im

def alphas():
    "name -> file bytes or image, each transparent in its own way, and its alpha"
    s, a = soft(), soft().getchannel('A')
    hard = a.point(lambda v: 255*(v > 128))
    p = s.copy()
    p.putalpha(hard)
    yield 'png', encoded(s, 'PNG'), a
    yield 'webp', encoded(s, 'WEBP', lossless=True), a
    yield 'tiff', encoded(s, 'TIFF'), a
    yield 'la', encoded(Image.merge('LA', (s.convert('L'), a)), 'PNG'), a
    yield 'gif', encoded(p, 'GIF'), hard
    yield 'palette', encoded(p.quantize(16), 'PNG'), hard
    yield 'array', np.asarray(s), a
    yield 'PIL', s, a
    yield 'premultiplied', s.convert('RGBa'), a

@pytest.mark.parametrize('kind, src, alpha', [*alphas()], ids=lambda v: v if isinstance(v, str) else '')
def test_alpha_is_kept_aside(kind, src, alpha):
    o = open_image(src)
    assert np.array_equal(o.alpha, alpha) and np.array_equal(o.rgb, load_image(src)) and o.rgb.mode == 'RGB'
    assert np.array_equal(o.finish(o.rgb).getchannel('A'), alpha)

def test_alpha_turns_with_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    o = open_image(encoded(soft(), 'PNG', exif=exif))
    assert o.size == (40, 48) and np.array_equal(o.alpha, soft().getchannel('A').transpose(Image.Transpose.ROTATE_270))

def test_what_hides_nothing_is_no_alpha():
    assert open_image(encoded(noise(), 'PNG')).alpha is None
    for mode in ('RGBA', 'LA', 'PA'): assert open_image(noise().convert('RGB').convert(mode)).alpha is None

@pytest.mark.parametrize('background', ['white', 'black', (90, 160, 30)])
def test_with_alpha(background):
    o = open_image(soft(), background=background)
    out = with_alpha(o.rgb, o.alpha, background)
    assert np.abs(np.asarray(flatten(out, background)).astype(int)-np.asarray(o.rgb)).max() <= 1   # as it was made
    a, colours = np.asarray(o.alpha), np.asarray(out)[...,:3].astype(int)
    assert np.abs(colours[a > 40]-(200,40,40)).max() <= 7      # no fringe on another background
    near = np.abs(colours[a == 0]-(200,40,40)).max()
    assert near < 90, near                                     # and nothing of the hidden green, nor of the background

def test_with_alpha_odd_cases():
    im = noise(40, 30)
    assert with_alpha(im, Image.new('L', im.size, 0), 'red').getpixel((3,3)) == (255,0,0,0)
    assert np.array_equal(np.asarray(with_alpha(im, Image.new('L', im.size, 255)))[...,:3], im)
    assert with_alpha(im, Image.new('L', (7,9), 100)).getchannel('A').getextrema() == (100,100)
    for size in ((1,1), (1,9), (3,1)): assert with_alpha(Image.new('RGB', size), Image.new('L', size, 5)).size == size

def test_profile_is_kept():
    p = swapped_profile()
    assert open_image(encoded(noise(), 'PNG', icc_profile=p)).profile == p and open_image(noise()).profile is None


# ---- a picture keeps its transparency on every way through the house

SHORT = dict(style='ink', caption='a red ball', steps=2, seed=0)

@pytest.fixture(scope='module')
def ball(tmp_path_factory):
    "The path of a cut-out of an odd size"
    p = tmp_path_factory.mktemp('ball')/'red ball.png'
    soft((128, 112)).save(p)
    return p

@pytest.fixture(scope='module')
def network(small_network):
    "A network of one pass that changes something"
    from stylekit.feedforward import FeedForward
    return FeedForward.load(small_network)

def has_alpha_of(image, path):
    return image.mode == 'RGBA' and np.array_equal(image.getchannel('A'), Image.open(path).getchannel('A'))

def test_through_the_api(ball, tmp_path):
    from stylekit import stylize
    r = stylize(ball, **SHORT)
    assert has_alpha_of(r.image, ball)
    for name in ('x.png', 'x.webp'): assert has_alpha_of(Image.open(r.save(tmp_path/name)), ball)
    with pytest.warns(UserWarning, match='JPEG'): on_black = r.save(tmp_path/'x.jpg', background='black')
    assert Image.open(on_black).getpixel((0,0)) == (0,0,0)
    assert r._repr_png_().startswith(b'\x89PNG')
    plain = load_image(ball)
    alone, mixed = stylize(plain, **SHORT).image, stylize([plain, ball], **SHORT)
    assert alone.mode == 'RGB' and [m.image.mode for m in mixed] == ['RGB', 'RGBA']
    seen = np.asarray(Image.open(ball).getchannel('A')) == 255
    assert np.array_equal(np.asarray(alone)[seen], np.asarray(r.image)[..., :3][seen])   # the run itself is the same

def test_through_the_command(ball, tmp_path, network):
    from stylekit.cli import main
    drawn = ['--caption', 'a red ball', '--steps', '2', '--seed', '0']
    passed = ['--feedforward', str(network_file(network))]
    for more, out in ((drawn, 'a.png'), (passed, 'b.webp')):
        assert main(['stylize', str(ball), '--out', str(tmp_path/out), *more]) in (0, None)
        assert has_alpha_of(Image.open(tmp_path/out), ball)

def network_file(network):
    import tempfile
    return network.save(Path(tempfile.mkdtemp())/'noise.safetensors')

def test_through_a_folder(ball, tmp_path, network):
    from stylekit.folders import stylize_folder
    for out, how in (('drawn', dict(steps=2)), ('passed', dict(feedforward=network_file(network)))):
        done = stylize_folder(ball.parent, tmp_path/out, **how)
        assert not done.failed and has_alpha_of(Image.open(tmp_path/out/'red ball.png'), ball)

def test_through_a_network(ball, network):
    one, two = network([ball, load_image(ball)])
    assert has_alpha_of(one.image, ball) and two.image.mode == 'RGB'
    assert has_alpha_of(network(Image.open(ball)).image, ball)

def test_through_a_live_run_and_its_recipe(ball):
    from stylekit.app.live import LiveRun, replay
    run = LiveRun(ball, caption='a red ball', steps=2, seed=0)
    while run.advance(): pass
    assert run.state == 'done' and has_alpha_of(run.result.image, ball)
    assert np.array_equal(replay(run.recipe, ball).image, run.result.image)

def test_through_the_panel(ball):
    pytest.importorskip('ipywidgets')
    from stylekit.app.stylize_panel import StylizePanel
    panel = StylizePanel(ball, caption='a red ball', steps=2, seed=0)
    panel._start()
    panel.wait(120)
    assert has_alpha_of(panel.result.image, ball)
    assert has_alpha_of(Image.open(io.BytesIO(panel._png())), ball)

def test_what_a_browser_is_shown_has_no_hidden_colours():
    from stylekit.app.live import jpeg
    assert Image.open(io.BytesIO(jpeg(soft()))).getpixel((0,0))[0] > 250
