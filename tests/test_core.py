"Faults that the notebook has no room for: every kind of damaged, hostile or unusual image file"
import io, os, random, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageCms, ImageFile
from stylekit.core import *
from stylekit.core import StylekitError


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
    rows = rows if rows is not None else b''.join(b'\0'+bytes(w*3) for _ in range(h))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))+extra+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def put(tmp_path, data, name='x.png'):
    (tmp_path/name).write_bytes(data)
    return tmp_path/name

def refused(path, *words, **kw):
    "`load_image` refuses `path`, and says all of `words` and the path"
    with pytest.raises(StylekitError) as e: load_image(path, **kw)
    assert all(w in str(e.value) for w in (*words, str(path))), str(e.value)
    assert '\n' not in str(e.value)
    return e.value

FILES = {'png': encoded(noise(), 'PNG'), 'jpg': encoded(noise(), 'JPEG'), 'webp': encoded(noise(), 'WEBP', lossless=True),
         'tif': encoded(noise(), 'TIFF'), 'lzw.tif': encoded(noise(), 'TIFF', compression='tiff_lzw')}


# ---- import and packaging

def test_import_is_light():
    code = ('import time,sys; t=time.perf_counter(); import stylekit.core; d=time.perf_counter()-t;'
            'print(d, [m for m in ("torch","numpy","PIL","diffusers","matplotlib") if m in sys.modules])')
    out = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split(' ', 1) for _ in range(2)]
    assert min(float(t) for t, _ in out) < .15 and out[0][1].strip() == '[]', out


# ---- not an image

@pytest.mark.parametrize('data, word', [
    (b'', 'empty'), (b'<!DOCTYPE html><html>', 'HTML'), (b'\xef\xbb\xbf\n <HTML lang=de>', 'HTML'), (b'<!-- hi --><html>', 'HTML'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'SVG'), (b'<?xml version="1.0"?>\n<!-- x -->\n<svg>', 'SVG'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n', 'git lfs pull'), (b'\0\0\0\x20ftypheic\0\0\0\0mif1', 'pillow-heif'),
    (b'\0\0\0\x20ftypavif', 'AVIF'), (encoded(noise(), 'GIF'), 'GIF'), (encoded(noise(), 'BMP'), 'none of PNG'), (encoded(noise(), 'EPS'), 'PostScript'),
    (encoded(noise(), 'PPM'), 'none of PNG'), (b'PK\x03\x04abc', 'zip'), (b'\x89PNG\r\n\x1a\n', 'damaged'), (b'\xff\xd8\xff', 'damaged'),
    (png(0, 0, rows=b''), 'zero width'), (png(16, 0, rows=b''), 'zero width'), (b'hello', 'none of PNG'), (bytes(100), 'none of PNG')])
def test_lookalikes(tmp_path, data, word): refused(put(tmp_path, data), word)

def test_eps_never_starts_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('a program was started'))
    refused(put(tmp_path, encoded(noise(), 'EPS'), 'x.eps'))

@pytest.mark.parametrize('src, word', [(None, 'not an image'), ('', 'not an image'), (7, 'not an image'), (object(), 'not an image'), ([1, 2], 'not an image'),
                                       ('https://a.b/c.png', 'download'), ('no/such.png', 'does not exist'), ('a\0b.png', None), ('x'*5000, None), ('~nobody-here/x.png', None)])
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

@pytest.mark.parametrize('name', ['with space.png', "it's 100%.png", '門 Tür é.png', 'no suffix', 'wrong.jpg', '-dash.png'])
def test_names(tmp_path, name): assert np.array_equal(load_image(str(put(tmp_path, FILES['png'], name))), noise())


# ---- damaged

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', FILES)
def test_cut_anywhere(tmp_path, kind):
    "A cut file is refused, or nothing that matters was cut: never a partly grey image"
    data, whole, refusals = FILES[kind], np.asarray(load_image(FILES[kind])), 0
    cuts = sorted({*range(0, 40), *random.Random(0).sample(range(len(data)), 60), len(data)-1, len(data)-2, len(data)-12})
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

def test_text_bombs(tmp_path):
    bomb = zlib.compress(bytes(5_000_000))
    for extra in chunk(b'zTXt', b'a\0\0'+bomb), chunk(b'iTXt', b'a\0\1\0\0\0'+bomb), chunk(b'iCCP', b'a\0\0'+zlib.compress(bytes(80_000_000))):
        refused(put(tmp_path, png(16, 16, extra=extra)))

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

@pytest.mark.parametrize('size, word', [((1,1), 'at least 16'), ((5,5), 'at least 16'), ((1,4000), 'at least 16'), ((16,400), 'crop'), ((400,16), 'crop')])
def test_limits(tmp_path, size, word): refused(put(tmp_path, encoded(Image.new('RGB', size), 'PNG')), word, f'{size[0]}×{size[1]}')

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
    assert out.info == {} and not dict(out.getexif()) and b"user1" not in encoded(out, 'PNG')+encoded(out, 'JPEG')

@pytest.mark.filterwarnings('ignore')
def test_damaged_exif_is_no_reason_to_refuse():
    for junk in b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0nonsense', b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\0':
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
    if mode == 'LA': return encoded(Image.merge('LA', (Image.new('L', (32,32), 10), im.getchannel('A'))), 'PNG')
    if mode in ('PA', 'RGBa'): return im.convert('P').convert('PA') if mode == 'PA' else im.convert('RGBa')
    return encoded(im, 'WEBP' if mode == 'WEBP' else 'PNG', **(dict(lossless=True, exact=True) if mode == 'WEBP' else {}))

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
    grey = png(16, 16, 16, 0, chunk(b'tRNS', b'\x01\x00'), b''.join(b'\0'+b'\x01\x00'*8+b'\x80\x80'*8 for _ in range(16)))
    assert [load_image(grey).getpixel((x,3))[0] for x in (2,12)] == [255, 128]
    rgb = png(16, 16, 16, 2, chunk(b'tRNS', b'\x09\x00'*3), b''.join(b'\0'+b'\x09\x00'*48 for _ in range(16)))
    assert load_image(rgb).getpixel((2,2)) == (255,255,255)

def test_half_transparent_is_blended(): assert load_image(Image.new('RGBA', (16,16), (0,0,0,128))).getpixel((0,0)) == (127,127,127)

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
    with pytest.raises(StylekitError, match='grey values from -5'): load_image(Image.fromarray(np.full((16,16), -5, np.int32)))
    with pytest.raises(StylekitError, match='1000000'): load_image(encoded(Image.fromarray(np.full((16,16), 1_000_000, np.int32)), 'TIFF'))
    with pytest.warns(UserWarning, match='very dark'): load_image(Image.fromarray(np.full((16,16), 4000, np.uint16)))

def test_float_tiff(tmp_path):
    a = np.linspace(0, 1, 32*32, dtype=np.float32).reshape(32,32)
    assert np.array_equal(np.asarray(load_image(encoded(Image.fromarray(a), 'TIFF')))[...,0], np.round(a*255).astype(np.uint8))
    for bad, word in ((np.nan, 'NaN'), (np.inf, 'NaN or infinite'), (200, 'divide by 255'), (-40, 'rescale')):
        b = a.copy()
        b[3,3] = bad
        refused(put(tmp_path, encoded(Image.fromarray(b), 'TIFF'), 'x.tif'), word)

def test_cmyk():
    im = noise(mode='CMYK')
    with pytest.warns(UserWarning, match='CMYK without a colour profile'): assert load_image(encoded(im, 'JPEG')).mode == 'RGB'
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
    return bytes(data).replace('sRGB'.encode('utf-16-be'), 'test'.encode('utf-16-be')).replace(b'sRGB built-in', b'test built-in')

def test_profile_is_used():
    p = swapped_profile()
    for im, want in ((Image.new('RGB', (16,16), (255,0,0)), (0,255,0)), (Image.new('RGBA', (16,16), (255,0,0,255)), (0,255,0))):
        assert np.abs(np.subtract(load_image(encoded(im, 'PNG', icc_profile=p)).getpixel((0,0)), want)).max() <= 3

@pytest.mark.parametrize('fmt, kw', [('WEBP', dict(lossless=True)), ('PNG', {}), ('TIFF', {})])
def test_animated_uses_first_and_says_so(tmp_path, fmt, kw):
    p = put(tmp_path, encoded(noise(), fmt, save_all=True, append_images=[noise(seed=1), noise(seed=2)], **kw), 'x.'+fmt.lower())
    with pytest.warns(UserWarning, match='3 frames; only frame 1') as said: assert np.array_equal(load_image(p), noise())
    assert str(p) in str(said[0].message)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'RGBX', 'I;16', 'I', 'F', 'PA', 'RGBa', 'LA', 'RGBA'])
def test_every_mode_becomes_rgb(mode):
    im = Image.new(mode, (16,16))
    before = im.copy()
    assert load_image(im).mode == 'RGB' and im == before and im.info == before.info # and the caller's image is left alone

def test_plain_files_do_not_warn(recwarn):
    for data in FILES.values(): load_image(data)
    assert not recwarn


# ---- arrays and tensors

U8 = np.asarray(noise())
@pytest.mark.parametrize('src', [U8, U8/255, (U8/255).astype(np.float32), torch.tensor(U8).permute(2,0,1)/255, torch.tensor(U8).permute(2,0,1)[None].double()/255,
                                 torch.tensor(U8).permute(2,0,1), (torch.tensor(U8).permute(2,0,1)/255).requires_grad_(), np.asfortranarray(U8), Image.fromarray(U8)])
def test_same_pixels_from_every_container(src): assert np.array_equal(load_image(src), U8)

@pytest.mark.parametrize('src', [U8[...,0], U8[...,:1], U8[...,0]/255, torch.tensor(U8[...,0])/255, torch.tensor(U8[...,0])[None]/255, torch.tensor(U8[...,0])[None,None]])
def test_grey(src): assert np.array_equal(load_image(src), np.repeat(U8[...,:1], 3, -1))

def test_rgba_array_and_masks():
    a = np.zeros((16,16,4), np.uint8)
    assert load_image(a).getpixel((0,0)) == (255,255,255) and load_image(a/1.).getpixel((0,0)) == (255,255,255)
    assert load_image(np.ones((16,16), bool)).getpixel((0,0)) == (255,255,255)

@pytest.mark.parametrize('src, word', [
    (U8.astype(np.float32), 'divide by 255'), (U8.astype(int), 'int64'), (U8.astype(np.uint16), 'uint16'), (U8/127.5-1, r'x/2 \+ 0.5'), (U8*np.nan, 'NaN'),
    (U8/255+np.inf, 'infinite'), (U8.transpose(2,0,1), 'come first'), (np.zeros((32,32,2)), '2 channels'), (np.zeros((32,32,7)), '7 channels'), (np.zeros((2,32,32,3)), 'batch'),
    (np.zeros(9), 'shape'), (np.zeros((0,0,3)), 'shape'), (np.array(None), 'shape|object'), (np.zeros((32,32), complex), 'complex'), (np.zeros((2,2,3)), 'at least 16'),
    (torch.tensor(U8)/255, 'come last'), (torch.zeros(4,32,32), '4 channels'), (torch.zeros(2,3,32,32), 'batch'), (torch.tensor(U8).permute(2,0,1).float(), 'divide by 255'),
    (torch.full((3,32,32), torch.nan), 'NaN'), (torch.zeros(3,32,32).long(), 'int64'), (torch.full((3,32,32), 1.01), 'rescale'), (torch.full((3,32,32), -.01), 'not 0–1')])
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

@pytest.mark.parametrize('bad', [torch.zeros(1,16,16), torch.zeros(4,16,16), torch.zeros(2,3,16,16), torch.zeros(16,16), torch.full((3,4,4), 2.), U8, None])
def test_tensor_to_image_refuses(bad):
    with pytest.raises(StylekitError): tensor_to_image(bad)


# ---- values, devices, seeds, names

@pytest.mark.parametrize('bad', [-.1, 1.1, float('nan'), float('inf'), None, 'x', '0.5', [1], torch.tensor([.5, 2.]), torch.tensor([.5, float('nan')]), np.array([])])
def test_check_range(bad):
    with pytest.raises(StylekitError, match='cutoff'): check_range('cutoff', bad, 0, 1)

def test_check_range_returns_value():
    x = torch.tensor([0., 1.])
    assert check_range('c', x, 0, 1) is x and check_range('n', 5, 1) == 5 and check_range('n', -5, hi=0) == -5

def test_check_finite():
    for ok in (torch.zeros(3), torch.arange(3), np.zeros(3), 1.5): assert check_finite(ok) is ok
    for bad in (torch.tensor([0, torch.inf]), np.array([np.nan]), float('nan'), torch.tensor([torch.nan], dtype=torch.bfloat16)):
        with pytest.raises(StylekitError, match='latents'): check_finite(bad, 'latents')

@pytest.mark.parametrize('bad', ['', ' ', '.', '..', '../x', 'a/../b', 'a..b', '/abs', '\\abs', 'C:\\x', 'C:', 'a/b', 'a\\b', 'a\0', 'a\n', 'a?', '.hidden', 'end.', 'x ', 'con', 'Com1.png',
                                 'x'*300, '門'*100, '\ud800', None, 3, b'x', Path('x')])
def test_safe_name_refuses(bad):
    with pytest.raises(StylekitError): safe_name(bad)

@pytest.mark.parametrize('good', ['ink', 'v1.5', 'Ünïcode 門', 'a-b_c', 'console', "it's"])
def test_safe_name_keeps(good): assert safe_name(good) == good

def test_devices_and_types(monkeypatch):
    assert pick_device('cpu') == pick_device(torch.device('cpu')) == 'cpu'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert pick_device() == 'cpu'
    for bad, word in (('cuda', 'not available'), ('cuda:3', 'not available'), ('mps', 'not available'), ('gpu', 'unknown'), ('meta', 'not supported'), (object(), 'unknown')):
        with pytest.raises(StylekitError, match=word): pick_device(bad)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert pick_device() == 'cuda' and pick_device('cuda:0') == 'cuda:0'
    with pytest.raises(StylekitError, match='not available'): pick_device('cuda:1')
    assert pick_dtype('cuda', 'fp16') == torch.float16 and pick_dtype('cpu') == pick_dtype('cpu', 'float32') == torch.float32
    for native, best in ((True, torch.bfloat16), (False, torch.float16)):   # a T4 says it has bfloat16: imitated, and slow
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: native or including_emulation)
        assert pick_dtype('cuda') == best
    for bad in ('float16', torch.int8, 'nn', 'float99', 3):
        with pytest.raises(StylekitError): pick_dtype('cpu', bad)

def test_seeds():
    assert [g.initial_seed() for g in generators(5, 3)] == [5]*3
    assert [g.initial_seed() for g in generators([1, np.int64(2)], 2)] == [1, 2]
    fresh = generators(None, 2)
    assert fresh[0].initial_seed() == fresh[1].initial_seed() != generators(None, 1)[0].initial_seed() and fresh[0].device.type == 'cpu'
    state = torch.get_rng_state()
    generators(None, 2)
    assert torch.equal(state, torch.get_rng_state()) # the caller's own randomness is left alone
    for bad, n in (([1], 2), ([], 1), (1.5, 1), ('7', 1), (True, 1), (-1, 1), (2**63, 1), ([1, None], 2), (1, 0), (1, None)):
        with pytest.raises(StylekitError): generators(bad, n)
    assert generators(2**63-1)[0].initial_seed() == 2**63-1


# ---- files

def test_atomic_path(tmp_path):
    p = tmp_path/'new'/'ü x.png'
    with atomic_path(p) as t:
        assert t.parent == p.parent and t.suffix == '.png' and t != p
        t.write_bytes(b'one')
    assert p.read_bytes() == b'one'
    for stop in (RuntimeError, KeyboardInterrupt, SystemExit, StylekitError):
        with pytest.raises(stop):
            with atomic_path(p) as t:
                t.write_bytes(b'half')
                raise stop('x')
    with pytest.raises(StylekitError, match='nothing was written'):
        with atomic_path(p): pass
    assert p.read_bytes() == b'one' and list(p.parent.iterdir()) == [p]

def test_two_writers_do_not_mix(tmp_path):
    with atomic_path(tmp_path/'a') as t, atomic_path(tmp_path/'a') as u:
        t.write_bytes(b'1'*9)
        u.write_bytes(b'2'*9)
        assert t != u
    assert (tmp_path/'a').read_bytes() == b'1'*9 and len(list(tmp_path.iterdir())) == 1

def test_hash_and_assets(tmp_path):
    p = put(tmp_path, b'abc')
    assert file_sha256(p) == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    for bad in (tmp_path, tmp_path/'none', None):
        with pytest.raises(StylekitError): file_sha256(bad)
    assert asset('samples').is_dir() and len(samples()) >= 4 and sample().mode == 'RGB'
    assert {sample(n, l).size for n in samples() for l in ('shaded', 'render', 'flat', 'ink')} == {(128,128)}
    for bad in (('..',), ('samples/../..',), ('/etc',), ('samples', 'no.png'), ('',)):
        with pytest.raises(StylekitError): asset(*bad)


def test_ctrl_c_keeps_the_step_it_came_after(tmp_path):
    "Between two steps, never in one; what is kept goes on to the same weights"
    import signal
    import pytest
    import torch
    from stylekit.records import load_state
    from stylekit.training import TrainingState, fit
    def train(press_at=None, **kw):
        torch.manual_seed(0)
        m, seen = torch.nn.Linear(4, 1), []
        def loss(g):
            seen.append(1)
            if len(seen) == press_at: signal.raise_signal(signal.SIGINT)
            return (m(torch.randn(8, 4, generator=g))-1).pow(2).mean()
        fit(m, loss, 20, .05, **kw)
        return m
    old = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train(7, path=tmp_path/'c.pt')
    assert signal.getsignal(signal.SIGINT) is old
    assert load_state(tmp_path/'c.pt', 'training', TrainingState).step == 7
    assert torch.equal(train(path=tmp_path/'c.pt').weight, train().weight)


def test_second_ctrl_c_acts_at_once():
    import signal
    import pytest
    from stylekit.core import deferred_interrupt
    heard = []
    with deferred_interrupt(lambda: heard.append(1)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert heard == [1]
