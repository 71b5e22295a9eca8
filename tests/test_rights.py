"What travels inside an image, what must not, and what a failed save leaves behind"
import dataclasses, errno, json, os, re
from pathlib import Path
import xml.etree.ElementTree as ET
import numpy as np, pytest, torch
from PIL import Image
import stylekit.rights as R
from stylekit.rights import *
from stylekit.core import StylekitError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.PNG')
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
IM = Image.fromarray(PIXELS)
RUN = dict(prompt='an owl <b> & "ink" ]]> 門 🦉 \x00\x07 é\n\\', steps=200, seeds=[2**62, 7], lam=.5,
           weights={'lora.safetensors': 'ab'*32}, none=None, yes=True, nested={'a': [1, {'b': 2}]})

def raw(path):
    "The packet as stored, by Pillow"
    info = Image.open(path).info
    return info.get('xmp') or info['XML:com.adobe.xmp'].encode()


# ---- round trip

@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('source', SOURCE_TYPES)
def test_round_trip(tmp_path, suffix, source):
    rights = '© 2025 "Studio" & Söhne <x>'
    p = save_output(IM, str(tmp_path/f'a b é{suffix}'), RUN, rights=rights, source=source)
    back = read_output(p)
    assert back.run == RUN and back.rights == rights and back.size == (32,24)
    assert back.source == source and back.source_type == SOURCE_TYPES[source]
    assert back.source_type.startswith('http://cv.iptc.org/newscodes/digitalsourcetype/')
    same = np.array_equal(Image.open(p).convert('RGB'), PIXELS)
    assert same or suffix in ('.jpg', '.jpeg')

@pytest.mark.parametrize('suffix', ('.png', '.jpg', '.webp'))
def test_other_readers(tmp_path, suffix):
    "Plain ElementTree and Pillow's own reader find the standard properties"
    p = save_output(IM, tmp_path/f'x{suffix}', RUN, rights='© me')
    root = ET.fromstring(raw(p).strip(b'\0 '))
    kind = root.find('.//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType')
    assert kind.text.endswith('/compositeWithTrainedAlgorithmicMedia')
    alt = root.find('.//{http://purl.org/dc/elements/1.1/}rights/{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Alt')
    assert alt[0].text == '© me' and alt[0].get('{http://www.w3.org/XML/1998/namespace}lang') == 'x-default'
    pytest.importorskip('defusedxml')
    d = Image.open(p).getxmp()['xmpmeta']['RDF']['Description']
    assert d['DigitalSourceType'] == SOURCE_TYPES['photo'] and json.loads(d['run']) == RUN

def test_one_mechanism(tmp_path):
    "The packet is byte for byte the same in every format but for the pixels, and the same run gives the same file"
    packets = [raw(save_output(IM, tmp_path/f'x{s}', RUN, rights='r')).strip(b'\0') for s in SUFFIXES]
    assert len({re.sub(rb'(?<=<stylekit:pixels>)[0-9a-f]{64}', b'', p) for p in packets}) == 1
    assert len({*packets}) == 2 and packets[0] == packets[3]      # a JPEG shows other pixels
    a, b = (save_output(IM, tmp_path/n, RUN).read_bytes() for n in ('1.png', '2.png'))
    assert a == b

@pytest.mark.parametrize('suffix', ('.png', '.jpg', '.webp'))
def test_minimal_and_none(tmp_path, suffix):
    p = save_output(IM, tmp_path/f'm{suffix}', dict(prompt='secretword'), rights='© me', metadata='minimal')
    back = read_output(p)
    assert back.run is None and back.rights == '© me' and back.source == 'photo'
    assert b'secretword' not in p.read_bytes() and b'stylekit:run' not in p.read_bytes()
    p = save_output(IM, tmp_path/f'n{suffix}', RUN, rights='© me', metadata='none')
    back = read_output(p)
    assert back == OutputRecord(back.format, (32,24))
    assert b'adobe' not in p.read_bytes() and b'xmp' not in Image.open(p).info

def test_input_metadata_do_not_travel(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = 'User1sCamera'
    IM.save(tmp_path/'in.jpg', exif=exif, comment=b'User1sComment')
    for s in ('.png', '.jpg', '.webp'):
        out = save_output(Image.open(tmp_path/'in.jpg'), tmp_path/f'o{s}', RUN)
        assert b'User1s' not in out.read_bytes()

@pytest.mark.parametrize('image', [IM, PIXELS, PIXELS/255, torch.tensor(PIXELS).permute(2,0,1)[None]/255,
                                   Image.new('RGBA', (3,2), (255,0,0,0)), Image.new('L', (1,900))])
def test_what_can_be_saved(tmp_path, image):
    mode = 'RGBA' if getattr(image, 'mode', '') == 'RGBA' else 'RGB'
    assert Image.open(save_output(image, tmp_path/'x.png')).mode == mode


# ---- privacy

@pytest.mark.parametrize('private, public', [
    ('/home/user1/a.pt', 'a.pt'), ('/Users/user1/My Pictures/a b.png', 'a b.png'), ('/mnt/x/', 'x'),
    ('C:\\Users\\user1\\a.pt', 'a.pt'), ('C:/Users/user1/a.pt', 'a.pt'), ('D:\\a.pt', 'a.pt'),
    ('\\\\nas\\user1\\a.pt', 'a.pt'), ('file:///home/user1/a.pt', 'a.pt'), ('file:///home/user1', '~'),
    ('/home/user1', '~'), ('/Users/user1/', '~'), ('C:\\Users\\user1', '~'), ('~/a.pt', 'a.pt'),
    ('~user1/a.pt', 'a.pt'), ('~user1', '~'), ('in ~user1/a.pt', 'in a.pt'),
    ('see /home/user1/a.pt now', 'see a.pt now'), ('x=/home/user1/a.pt,y', 'x=a.pt,y'),
    ('("/data/user1/b/a.pt")', '("a.pt")'),
    ("--out 'C:\\Users\\user1\\a.pt'", "--out 'a.pt'"), ('hf_'+'a1'*17, '[removed]'),
    ('use ghp_'+'a1'*18, 'use [removed]'), ('Bearer abc.def', '[removed]'),
    ('https://user1:pw@host.org/x', 'https://[removed]host.org/x'),
    ('https://h.org/x?token=abc&y=1', 'https://h.org/x?[removed]&y=1')])
def test_scrub_text(private, public):
    assert scrub_text(private) == public
    assert scrub_text(public) == public # cleaning twice changes nothing

@pytest.mark.parametrize('text', [
    '', 'an owl', 'runwayml/stable-diffusion-v1-5', 'https://creativecommons.org/licenses/by/4.0/', 'a/b', '1/2',
    'and/or', '© A / B', 'runs/x/y.png', '50 % ~ 60 %', 'ratio 16:9', 'black\\white', 'token', 'skate-board',
    '24/7 and 3/4', '(c) 2025 A; see LICENSE', 'see https://a.org/b/c, or d'])
def test_scrub_keeps(text): assert scrub_text(text) == text

def test_scrub_tree():
    @dataclasses.dataclass
    class Settings:
        lora: Path
        steps: int = 5
    cleaned = dict( # name -> given, what becomes of it
        s=(Settings(Path('/home/user1/l.pt')), dict(lora='l.pt', steps=5)),
        t=((1, {2}), [1, [2]]),
        api_key=('abc', '[removed]'),
        HF_TOKEN=('x', '[removed]'),
        user=('user1', '[removed]'),
        tokens=(77, 77),
        tokenizer=('clip', 'clip'),
        hub_token=(None, None),
        f=(np.float32(.5), .5),
        i=(np.int64(3), 3),
        a=(np.arange(3), [0,1,2]),
        x=(torch.tensor([1., float('nan')]), [1., 'nan']),
        big=(torch.zeros(99), 'Tensor'),
        dt=(torch.float16, 'torch.float16'),
        dev=(torch.device('cpu'), 'cpu'),
        obj=(object(), 'object'),
        inf=(float('inf'), 'inf'),
        w=({Path('/a/b/l.pt'): 1, '/c/d/l.pt': 2, '/e/l.pt': 3}, {'l.pt': 1, 'l.pt (2)': 2, 'l.pt (3)': 3}))
    out = scrub({k: given for k, (given, _) in cleaned.items()})
    assert out == {k: want for k, (_, want) in cleaned.items()}
    assert json.loads(json.dumps(out, allow_nan=False)) == out

def test_own_home_and_name(monkeypatch):
    monkeypatch.setenv('HOME', '/data/people/Eva User1')
    monkeypatch.setenv('USER', 'evam')
    assert scrub_text('/data/people/Eva User1') == '~' == scrub_text('/scratch/evam')
    assert scrub_text('in /data/people/Eva User1/x.pt') == 'in x.pt'

@pytest.mark.parametrize('suffix', ('.png', '.jpg', '.webp'))
def test_nothing_private_in_the_bytes(tmp_path, suffix):
    "Whatever the place in the record, no byte of a path's folders, user name or token gets into the file"
    secret = ['/home/user1/acme/a.pt', 'C:\\Users\\user1\\acme\\a.pt', Path('/Users/user1/acme'),
              'got /mnt/user1/acme/a.pt', 'hf_'+'user10'*6, str(tmp_path/'acme'/'a.pt')]
    for i, s in enumerate(secret):
        info = {'v': s, str(s): 1, 'l': [s, (s,)], 'd': {'e': {'f': s}}}
        p = save_output(IM, tmp_path/f'{i}{suffix}', info, rights=f'© me, {s}')
        text = raw(p).decode()
        assert 'user1' not in text and str(tmp_path) not in text, text
        assert not re.search(r'/home|/Users|[\\/]acme[\\/]', text), text


# ---- faults

def left(folder): return sorted(p.name for p in folder.iterdir())

@pytest.mark.parametrize('kw, word', [
    (dict(path='x.gif'), 'suffix'),
    (dict(path='x'), 'suffix'),
    (dict(path='.png'), 'suffix'),
    (dict(path=None), 'not a path'),
    (dict(path=''), 'not a path'),
    (dict(path='a\0.png'), 'not a path'),
    (dict(metadata='all'), 'metadata'),
    (dict(metadata=None), 'metadata'),
    (dict(source='video'), 'source'),
    (dict(image=np.full((9,9,3), np.nan)), 'NaN'),
    (dict(image=np.full((9,9,3), 99.)), 'divide'),
    (dict(image=torch.zeros(4,9,9)), '4 channels'),
    (dict(image=None), 'not an image'),
    (dict(path='x.jpg', info=dict(a='x'*70_000)), 'JPEG holds 64'),
    (dict(path='x.webp', image=np.zeros((1,17_000,3), np.uint8)), 'encoded'),
    (dict(path='x.jpg', image=np.zeros((1,70_000,3), np.uint8)), 'encoded')])
def test_refusals_leave_nothing(tmp_path, monkeypatch, kw, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StylekitError, match=word): save_output(**{**dict(image=IM, path='x.png'), **kw})
    assert left(tmp_path) == []

def test_longest_jpeg_record(tmp_path):
    "Right up to the limit the record is whole; one byte more is refused by us, not by the encoder"
    base = len(xmp_packet('photo', '', dict(a=''), '0'*64).encode())
    n = 65502-29-base
    assert read_output(save_output(IM, tmp_path/'x.jpg', dict(a='x'*n))).run == dict(a='x'*n)
    with pytest.raises(StylekitError, match='JPEG holds'): save_output(IM, tmp_path/'y.jpg', dict(a='x'*(n+1)))
    assert len(read_output(save_output(IM, tmp_path/'y.png', dict(a='x'*200_000))).run['a']) == 200_000

def test_target_is_a_folder_or_below_a_file(tmp_path):
    (tmp_path/'d.png').mkdir()
    (tmp_path/'f').write_text('x')
    with pytest.raises(StylekitError, match='is a folder'): save_output(IM, tmp_path/'d.png')
    with pytest.raises(StylekitError, match='part of the path is a file'): save_output(IM, tmp_path/'f'/'x.png')
    assert left(tmp_path) == ['d.png', 'f']

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may write anywhere')
def test_read_only_folder(tmp_path):
    (tmp_path/'ro').mkdir(mode=0o555)
    with pytest.raises(StylekitError, match='choose another folder'): save_output(IM, tmp_path/'ro'/'x.png')

@pytest.mark.parametrize('code, word', [(errno.ENOSPC, 'disk is full'), (errno.EROFS, 'read-only'),
                                        (errno.EACCES, 'choose another folder'), (errno.EIO, 'cannot write')])
@pytest.mark.parametrize('place', ['save', 'replace', 'mkdir'])
def test_faults_of_the_system(tmp_path, monkeypatch, code, word, place):
    "The old image survives, nothing half-written stays, and the reason is said"
    p = save_output(IM, tmp_path/'x.png', dict(n=1))
    old = p.read_bytes()
    def fail(*a, **k):
        if place == 'save': Path(a[1]).write_bytes(b'half a file')
        raise OSError(code, os.strerror(code))
    owner = dict(save=Image.Image, replace=os, mkdir=Path)[place]
    monkeypatch.setattr(owner, place, fail)
    with pytest.raises(StylekitError, match=word) as e: save_output(IM, p, dict(n=2))
    assert str(p) in str(e.value) and p.read_bytes() == old and left(tmp_path) == ['x.png']

def test_interrupt(tmp_path, monkeypatch):
    p = save_output(IM, tmp_path/'x.png')
    def stop(self, path, **k):
        Path(path).write_bytes(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(Image.Image, 'save', stop)
    with pytest.raises(KeyboardInterrupt): save_output(IM, p)
    assert left(tmp_path) == ['x.png'] and Image.open(p).size == (32,24)


# ---- transparency, profiles, and what cannot be written

def soft():
    a = np.linspace(0, 255, 24*32).reshape(24, 32).astype(np.uint8)
    im = IM.convert('RGBA')
    im.putalpha(Image.fromarray(a))
    return im

@pytest.mark.parametrize('suffix', ['.png', '.webp'])
def test_transparency_is_written_as_it_is(tmp_path, suffix):
    assert np.array_equal(Image.open(save_output(soft(), tmp_path/f'x{suffix}')), soft())

def test_jpeg_is_laid_over_a_background(tmp_path):
    with pytest.warns(UserWarning, match='JPEG holds no transparency'):
        out = Image.open(save_output(Image.new('RGBA', (32,32)), tmp_path/'x.jpg', background='#0000ff'))
    assert out.mode == 'RGB' and np.abs(np.asarray(out).astype(int)-(0,0,255)).max() < 3

def profile(space):
    from PIL import ImageCms
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()

def swapped_profile():
    "An RGB profile whose red and green are exchanged"
    import struct
    data = bytearray(profile('sRGB'))
    at = {bytes(data[132+12*i:136+12*i]): 132+12*i for i in range(struct.unpack('>I', data[128:132])[0])}
    data[at[b'rXYZ']:at[b'rXYZ']+4], data[at[b'gXYZ']:at[b'gXYZ']+4] = b'gXYZ', b'rXYZ'
    test = bytes(data).replace('sRGB'.encode('utf-16-be'), 'test'.encode('utf-16-be'))
    return test.replace(b'sRGB built-in', b'test built-in')

def test_profile_on_request(tmp_path):
    "The same colours, in other numbers: read back by the profile they are what they were"
    from stylekit.images import open_image
    swapped = swapped_profile()
    for im in (IM, soft()):
        p = save_output(im, tmp_path/'x.png', profile=swapped)
        assert Image.open(p).info['icc_profile'] == swapped and open_image(p).profile == swapped
        assert np.abs(np.asarray(Image.open(p).convert('RGB'))[..., [1,0,2]].astype(int)-PIXELS).max() <= 3
        assert np.abs(np.asarray(open_image(p).pixels.convert('RGB')).astype(int)-PIXELS).max() <= 3
    for bad, word in ((b'junk', 'profile'), (profile('LAB'), 'Lab')):
        with pytest.raises(StylekitError, match=word): save_output(IM, tmp_path/'y.png', profile=bad)

@pytest.mark.parametrize('path, size, word', [
    ('x'*252+'.png', None, 'too long'), ('門'*90+'.webp', None, 'too long'), ('a/'*3000+'x.png', None, 'too long'),
    ('x.gif', None, 'suffix'), ('x', None, 'suffix'), ('', None, 'not a path'), (None, None, 'not a path'),
    ('a\0.png', None, 'not a path'), ('x.webp', (16384, 20), '16383'), ('x.jpg', (20, 65501), '65500'),
    ('d.png', None, 'is a folder'), ('f/x.png', None, 'is a file')])
def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch, path, size, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'d.png').mkdir()
    (tmp_path/'f').write_text('x')
    with pytest.raises(StylekitError, match=word) as e: check_output(path, size)
    assert len(str(e.value)) <= 300 and '\n' not in str(e.value)
    assert left(tmp_path) == ['d.png', 'f']
    check_output('new/x.webp', (16383, 20))

@pytest.mark.parametrize('path', ['x'*300+'.png', 'd.png', 'f/x.png', 'x.bmp', 'x.webp'])
def test_a_result_is_saved_beside(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'d.png').mkdir()
    (tmp_path/'f').write_text('x')
    im = Image.new('RGB', (16384, 20), 'red') if path == 'x.webp' else IM
    with pytest.warns(UserWarning, match='the result is in'):
        p = save_output(im, tmp_path/path, RUN, rescue=True)
    assert p.parent == tmp_path and np.array_equal(Image.open(p), im) and read_output(p).run == RUN


def test_a_result_that_cannot_be_signed_is_kept(tmp_path):
    "Whoever signs fails, after the work: the picture is there, unsigned, and that is said"
    def sign(*_): raise StylekitError('the key is gone')
    with pytest.raises(StylekitError, match='the key is gone'): save_output(IM, tmp_path/'x.png', RUN, sign=sign)
    assert left(tmp_path) == []
    with pytest.warns(UserWarning, match='the key is gone; the result is in .*, and not signed'):
        p = save_output(IM, tmp_path/'x.png', RUN, sign=sign, rescue=True)
    assert p.parent == tmp_path and np.array_equal(Image.open(p), IM) and read_output(p).run == RUN


# ---- reading files of others

def with_xmp(tmp_path, xmp):
    IM.save(tmp_path/'x.webp', xmp=xmp)
    return tmp_path/'x.webp'

def packet(body, attrs=''):
    return (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" '
            f'xmlns:I="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {attrs}>{body}</rdf:Description>'
            f'</rdf:RDF></x:xmpmeta>').encode()

def test_foreign_packets(tmp_path):
    url = SOURCE_TYPES['none']
    written = [(f'<I:DigitalSourceType rdf:resource="{url}"/>', ''), ('', f'I:DigitalSourceType="{url}"'),
               (f'<I:DigitalSourceType>\n {url}\n</I:DigitalSourceType>', '')]
    for body, attrs in written:
        assert read_output(with_xmp(tmp_path, packet(body, attrs))).source == 'none'
    capture = 'http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture'
    back = read_output(with_xmp(tmp_path, packet(f'<I:DigitalSourceType>{capture}</I:DigitalSourceType>')))
    assert back.source is None and back.source_type.endswith('digitalCapture') and back.run is None
    other = packet('<s:run xmlns:s="urn:x-stylekit:1.0/">[1]</s:run>')
    back = read_output(with_xmp(tmp_path, other))
    assert back.run == [1] and back.entries == {}              # kept, and no record of ours
    assert OutputRecord.from_json(json.loads(json.dumps(back.to_json()))) == back

HOSTILE = [b'<x', b'\xff\xfe\x00', b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', '<a/>'.encode('utf-16')]
@pytest.mark.parametrize('xmp', HOSTILE)
def test_hostile_packets(tmp_path, xmp):
    with pytest.raises(StylekitError, match='XMP'): read_output(with_xmp(tmp_path, xmp))

def test_unreadable(tmp_path):
    (tmp_path/'x.png').write_bytes(b'<html>')
    for bad in (tmp_path/'x.png', tmp_path, tmp_path/'none.png', None):
        with pytest.raises(StylekitError): read_output(bad)

def test_light_import():
    import subprocess, sys
    code = 'import stylekit.rights, sys; print([m for m in ("torch","numpy","PIL","diffusers") if m in sys.modules])'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == '[]'
