"What a picture claims and whether it holds: hashes of pixels, Content Credentials, and nothing private in either"
import io, json, os, stat
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from stylekit import StylekitError, read_output, sample_image, save_output, stylize_folder
from stylekit.cli import main
from stylekit.feedforward import FeedForward
from stylekit.measure.verdicts import evaluate_results
from stylekit.marks import INTEGRITY, Signer, Verdict, is_signed, trial_certificate, verify
from stylekit.pilot.ballot import make_ballot
from stylekit.pilot.report import make_report
from stylekit.pilot.study import Voting, make_study
from stylekit.review import Review, export_accepted
from stylekit.rights import SOURCE_TYPES, pixel_hash

SUFFIXES = ('.png', '.jpg', '.webp')
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
IM = Image.fromarray(PIXELS)
RUN = dict(style='ink', style_sha256='a'*64, backbone='mini', backbone_sha256='b'*64, run_id='77', seed=7)

@pytest.fixture(scope='module')
def signer(tmp_path_factory):
    pytest.importorskip('c2pa')
    return trial_certificate(tmp_path_factory.mktemp('trial'))


# ---- the record ----

@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('image', [IM, IM.convert('RGBA'), IM.convert('L'), Image.new('RGBA', (9, 7), (9, 8, 7, 0))])
@pytest.mark.filterwarnings('ignore:.*JPEG holds no transparency')
def test_a_record_holds_until_the_pixels_change(tmp_path, suffix, image):
    file = save_output(image, tmp_path/f'x{suffix}', RUN)
    v = verify(file)
    assert v.holds and v.record == 'same' and (v.style, v.run_id) == ('ink', '77') and v.credentials is None
    with Image.open(file) as im:
        xmp = im.info['xmp']
        im.convert('RGB').rotate(90).save(tmp_path/'turned.webp', xmp=xmp, lossless=True)
        im.convert('RGB').save(tmp_path/'again.png')
    v = verify(tmp_path/'turned.webp')
    assert not v.holds and v.record == 'changed' and 'saved anew' in v.sentences[0]
    v = verify(tmp_path/'again.png')
    assert not v.holds and v.record == 'none'

@pytest.mark.parametrize('suffix', SUFFIXES)
def test_saving_again_as_a_jpeg_is_noticed(tmp_path, suffix):
    file = save_output(IM, tmp_path/f'x{suffix}', RUN)
    with Image.open(file) as im: im.save(tmp_path/'again.jpg', quality=90, xmp=im.info['xmp'])
    assert verify(tmp_path/'again.jpg').record == 'changed'

def test_another_container_with_the_same_pixels_holds(tmp_path):
    file = save_output(IM, tmp_path/'x.png', RUN)
    with Image.open(file) as im: im.save(tmp_path/'x.webp', lossless=True, exact=True, xmp=im.info['xmp'])
    assert verify(tmp_path/'x.webp').holds

def test_what_has_no_hash_is_not_judged(tmp_path):
    from stylekit.rights import xmp_packet
    IM.save(tmp_path/'x.webp', xmp=xmp_packet('photo', '', RUN).encode())
    v = verify(tmp_path/'x.webp')
    assert (v.holds, v.record) == (False, 'unknown')

def test_the_source_type_is_a_setting(tmp_path):
    from stylekit.methods.sms import settings
    from stylekit.stylizer import StylizeResult
    result = StylizeResult(IM, settings(), {}, RUN)
    assert verify(result.save(tmp_path/'a.png')).source_type == SOURCE_TYPES['photo']
    assert verify(result.save(tmp_path/'b.png', source='none')).source_type.endswith('/trainedAlgorithmicMedia')

@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_hash_is_of_what_a_reader_sees(tmp_path, suffix):
    file = save_output(IM, tmp_path/f'x{suffix}', RUN, metadata='minimal')
    with Image.open(file) as im: assert read_output(file).pixels == pixel_hash(im)
    assert pixel_hash(IM) == pixel_hash(IM.convert('RGBA'))
    tall = Image.frombytes('RGB', (24, 32), IM.tobytes())
    assert pixel_hash(tall) != pixel_hash(IM)                      # the same bytes in another shape


# ---- Content Credentials ----

def state_of(raw:bytes, mime:str)->tuple: # state, codes
    "By the library's own reader, and nothing of ours"
    import c2pa
    try: found = json.loads(c2pa.Reader(mime, io.BytesIO(raw)).json())
    except c2pa.C2paError as e: return 'Invalid', [str(e)]
    return found['validation_state'], [s['code'] for s in found.get('validation_status', ())]

MIME = {'.png': 'image/png', '.jpg': 'image/jpeg', '.webp': 'image/webp'}
PIXELS_BEGIN = {'.png': b'IDAT', '.jpg': b'\xff\xda', '.webp': b'VP8L'}

def within(raw:bytes, suffix:str)->list: # places in the file
    "Of pixels, of the record, and of what was signed; padding inside the box of C2PA counts as nothing"
    begin = raw.index(PIXELS_BEGIN[suffix])
    pixels = np.random.default_rng(1).integers(begin+20, begin+900, 8).tolist()
    said = b'stylekit:run', b'stylekit:pixels', b'CompositeWithTrained'.lower(), b'c2pa.edited', b'content picture'
    return pixels+[raw.lower().index(w)+len(w)+1 for w in said[:2]]+[raw.lower().index(w)+3 for w in said[2:]]

@pytest.mark.parametrize('suffix', SUFFIXES)
def test_signed_files_are_valid_and_with_one_changed_byte_are_not(tmp_path, signer, suffix):
    file = save_output(IM, tmp_path/f'x{suffix}', RUN, sign=signer, parent=IM)
    raw = file.read_bytes()
    assert state_of(raw, MIME[suffix]) == ('Valid', ['signingCredential.untrusted'])
    assert verify(file).holds and read_output(file).run == RUN
    for at in within(raw, suffix):
        bad = bytearray(raw)
        bad[at] ^= 1
        assert state_of(bytes(bad), MIME[suffix])[0] == 'Invalid', at
    (tmp_path/f'bad{suffix}').write_bytes(bytes(bad))
    assert not verify(tmp_path/f'bad{suffix}').holds

@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_the_credentials_say(tmp_path, signer, suffix):
    file = save_output(IM, tmp_path/f'x{suffix}', RUN, sign=signer, parent=IM, source='none')
    v = verify(file)
    c = v.credentials
    assert (c.state, c.signer, c.organisation, c.trusted) == ('valid', 'for trying only', 'stylekit trial', False)
    assert c.actions == ['c2pa.opened', 'c2pa.edited (trainedAlgorithmicMedia)'] and c.problems == []
    assert c.ingredients == [f'style: ink (inputTo, sha256:{"a"*64})', f'model: mini (inputTo, sha256:{"b"*64})',
                             'content picture (parentOf)']
    assert INTEGRITY in v.sentences and Verdict.from_json(json.loads(json.dumps(v.to_json()))) == v
    plain = save_output(IM, tmp_path/f'plain{suffix}', RUN)
    assert file.stat().st_size-plain.stat().st_size < 8000         # no thumbnails

def test_a_parent_of_any_kind(tmp_path, signer):
    "A file, whatever it is called; one that C2PA does not read; a picture; none; one that is signed itself"
    first = save_output(IM, tmp_path/'first.png', RUN, sign=signer)
    IM.save(tmp_path/'wrong name.png', 'JPEG')
    IM.save(tmp_path/'old.bmp')
    IM.convert('CMYK').save(tmp_path/'cmyk.tif')
    files = tmp_path/'wrong name.png', str(tmp_path/'old.bmp'), tmp_path/'cmyk.tif', first
    for parent in (*files, IM.convert('P'), None):
        file = save_output(IM, tmp_path/'x.webp', RUN, sign=signer, parent=parent)
        assert verify(file).holds, parent
        assert sum('parentOf' in i for i in verify(file).credentials.ingredients) == 1, parent
    second = save_output(IM, tmp_path/'second.png', RUN, sign=signer, parent=first)
    assert second.read_bytes().count(b'c2pa.signature') > first.read_bytes().count(b'c2pa.signature')   # carried on

def test_pillow_drops_credentials_and_that_is_seen(tmp_path, signer):
    file = save_output(IM, tmp_path/'x.png', RUN, sign=signer)
    assert is_signed(file)
    with Image.open(file) as im: im.save(tmp_path/'again.png')
    v = verify(tmp_path/'again.png')
    assert not v.holds and v.credentials is None and 'It is not signed.' in v.sentences

def test_without_the_library(tmp_path, signer, monkeypatch):
    "One line says what to install; a signed file is not called good"
    import sys
    file = save_output(IM, tmp_path/'x.png', RUN, sign=signer)
    monkeypatch.setitem(sys.modules, 'c2pa', None)
    with pytest.raises(StylekitError, match=r'pip install "stylekit\[credentials\]"'): Signer('c.pem', 'k.pem')
    v = verify(file)
    assert not v.holds and v.credentials.state == 'unchecked' and v.record == 'same'


# ---- before any work ----

def test_certificates_and_keys_that_cannot_sign(tmp_path, signer, monkeypatch):
    from datetime import datetime, timedelta
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    other = trial_certificate(tmp_path/'other')
    rsa_key = rsa.generate_private_key(65537, 2048)
    (tmp_path/'rsa.pem').write_bytes(rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path/'none.pem').write_text('hello')
    (tmp_path/'bad.pem').write_text('-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n')
    c, k = signer.certificate, signer.key
    none, bad, gone, of_rsa = (tmp_path/f'{n}.pem' for n in ('none', 'bad', 'gone', 'rsa'))
    wrong = ((c, other.key, 'is not that of the first certificate'), (c, of_rsa, 'no key of P-256'),
             (none, k, 'is not PEM'), (bad, k, 'cannot be read'), (c, bad, 'cannot be read'),
             (gone, k, 'cannot read the certificate'))
    for cert, key, why in wrong:
        with pytest.raises(StylekitError, match=why) as e: Signer(str(cert), str(key))
        assert len(str(e.value)) <= 300
    class Later(datetime):
        @classmethod
        def now(cls, tz=None): return datetime.now(tz)+timedelta(days=31)
    monkeypatch.setattr('stylekit.marks.datetime', Later)
    with pytest.raises(StylekitError, match=r'ran out on \d{4}-\d\d-\d\d: renew it'): Signer(c, k)

def test_an_expired_certificate_is_refused_before_work(tmp_path, signer, monkeypatch, capsys):
    monkeypatch.setattr('stylekit.backbone.load_backbone', lambda *_: 1/0)
    with pytest.raises(StylekitError, match='ran out'): trial_certificate(tmp_path/'old', days=-1)
    old = [str(tmp_path/'old'/name) for name in ('certificate.pem', 'key.pem')]
    assert main(['stylize', '--out', str(tmp_path/'x.png'), '--sign', *old]) == 2
    assert 'ran out on' in capsys.readouterr().err and not (tmp_path/'x.png').exists()
    assert main(['stylize', '--sign', old[0]]) == 2 and 'sign' in capsys.readouterr().err

def test_a_trial_certificate_is_private_and_not_overwritten(tmp_path, signer):
    made = trial_certificate(tmp_path)
    assert stat.S_IMODE(os.stat(made.key).st_mode) == 0o600 or os.name == 'nt'
    with pytest.raises(StylekitError, match='already'): trial_certificate(tmp_path)


# ---- all that saves can sign ----

def test_folders_sign_and_sign_what_was_not(tmp_path, signer, small_network):
    for n in ('owl', 'taxi'):
        (tmp_path/'in').mkdir(exist_ok=True)
        sample_image(n).resize((64, 64)).save(tmp_path/'in'/f'{n}.jpg')
    def go(**how): return stylize_folder(tmp_path/'in', tmp_path/'out', feedforward=small_network, **how)
    go()
    done = go(marks=dict(sign=signer, rights='© 2026 Studio'))
    assert done.made == 2 and not done.failed
    for n in ('owl', 'taxi'):
        v = verify(tmp_path/'out'/f'{n}.png')
        assert v.holds and v.rights == '© 2026 Studio' and 'content picture (parentOf)' in v.credentials.ingredients
    assert go(marks=dict(sign=signer)).made == 0                   # signed they are already

def test_a_result_knows_what_it_was_made_from(tmp_path, small_network):
    sample_image('owl').resize((64, 64)).save(tmp_path/'a.png')
    network = FeedForward.load(small_network)
    assert network(tmp_path/'a.png').parent == str(tmp_path/'a.png')
    assert network(IM).parent.size == IM.size


# ---- nothing private ----

@pytest.mark.parametrize('suffix', SUFFIXES)
def test_no_path_and_no_name_in_the_bytes(tmp_path, signer, small_network, monkeypatch, suffix):
    "Of the home folder, the user, the content picture, the key, and of no absolute path at all"
    home = tmp_path/'homes'/'eva.muster'
    (home/'acme').mkdir(parents=True)
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('USER', 'evamuster')
    content = home/'acme'/'secret shoe.png'
    sample_image('owl').resize((64, 64)).save(content)
    (home/'network.safetensors').write_bytes(Path(small_network).read_bytes())
    out = home/'acme'/f'out{suffix}'
    sign = ['--sign', signer.certificate, signer.key, '--rights', f'© 2026, see {home}/acme/terms.txt']
    assert main(['stylize', str(content), '--feedforward', '~/network.safetensors', '--out', str(out), *sign]) == 0
    raw = out.read_bytes()
    private = ['eva', 'muster', 'acme', 'secret', str(tmp_path), 'homes', 'network.safetensors', 'key.pem']
    for word in private: assert word.encode() not in raw and word.encode('utf-16-le') not in raw, word
    for start in (b'"/', b'file:', b'/home/', b'/tmp/', b'/root/', b'/Users/'): assert start not in raw, start
    v = verify(out)
    assert v.holds and v.rights == '© 2026, see terms.txt'


def test_no_path_and_no_user_in_the_files_of_a_pilot(tmp_path, signer, small_network, monkeypatch):
    "Results, verdicts, the review's log, a redo that failed, study, ballot, votes, report, export: every byte"
    home = tmp_path/'homes'/'eva.muster'/'acme-gmbh'
    monkeypatch.setenv('HOME', str(home.parent))
    monkeypatch.setenv('USER', 'evamuster')
    (home/'shop').mkdir(parents=True)
    for n in ('owl', 'taxi'): sample_image(n).resize((64, 64)).save(home/'shop'/f'{n}.png')
    (home/'shop'/'broken.png').write_bytes(b'no picture')
    sample_image('owl', 'ink').save(home/'style.png')
    (home/'network.safetensors').write_bytes(Path(small_network).read_bytes())
    marks = dict(sign=signer, rights=f'© Studio, see {home}/terms.txt')
    stylize_folder(home/'shop', home/'one', feedforward='~/acme-gmbh/network.safetensors', marks=marks)
    stylize_folder(home/'shop', home/'two', 'ink', steps=1, marks=marks)
    evaluate_results(home/'shop', home/'one', letters=False)
    review = Review(home/'one', marks=dict(sign=signer))
    review.reject('owl.png', 'blurred or broken')
    review.accept('taxi.png')
    other = Review(home/'two')                                      # without a certificate: its redo is refused
    other.redo('owl.png', 'other seed')
    assert other.work()[0].error
    study = make_study(home/'study', dict(one=home/'one', two=home/'two'), [home/'style.png'], home/'shop')
    make_ballot(study)
    Voting(study, 'ben').vote('A')
    make_report([home/'one', home/'two'], home/'report', study, metrics=home/'one'/'verdicts.csv')
    export_accepted(review, home/'out', use='internal')
    written = [f for d in ('one', 'two', 'study', 'report', 'out') for f in (home/d).rglob('*') if f.is_file()]
    kinds = {'.png', '.webp', '.html', '.csv', '.md', '.json', '.jsonl'}
    assert len(written) > 25 and {f.suffix for f in written} >= kinds
    for f in written:
        raw = f.read_bytes()
        for word in (str(tmp_path), 'eva.muster', 'evamuster', 'acme-gmbh', 'homes/', '/home/', '/Users/', 'key.pem'):
            assert word.encode() not in raw and word.encode('utf-16-le') not in raw, (f.name, word)


# ---- the command ----

def test_command(tmp_path, capsys):
    file = save_output(IM, tmp_path/'x.png', RUN, rights='© me')
    IM.save(tmp_path/'plain.png')
    assert main(['verify', str(file)]) == 0 and 'holds' in capsys.readouterr().out
    assert main(['verify', str(file), str(tmp_path/'plain.png'), '--json']) == 1
    good, plain = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good['holds'], good['record'], good['rights']) == (True, 'same', '© me')
    assert (plain['holds'], plain['record']) == (False, 'none')
    (tmp_path/'x.txt').write_text('hello')
    for bad in ('x.txt', 'none.png'): assert main(['verify', str(tmp_path/bad)]) == 2
    assert capsys.readouterr().err.count('\n') == 2

def test_command_with_credentials(tmp_path, signer, capsys):
    assert main(['verify', '--trial', str(tmp_path/'trial')]) == 0
    cert, key = capsys.readouterr().out.split()
    file = save_output(IM, tmp_path/'x.png', RUN, sign=Signer(cert, key), parent=IM)
    assert main(['verify', str(file)]) == 0
    said = capsys.readouterr().out
    assert INTEGRITY in said and 'issuer is not known here' in said and 'c2pa.edited' in said


# ---- redos and pages ----

def signed_folder(home, signer, **more):
    (home/'in').mkdir()
    IM.resize((64, 64)).save(home/'in'/'thing.png')
    stylize_folder(home/'in', home/'out', 'ink', steps=1, marks=dict(rights='© Studio', sign=signer) | more)
    return home/'out'

def test_a_redo_is_signed_where_the_result_is(tmp_path, signer, capsys):
    "By whoever gives a certificate; without one it is not made, and that is said before the work"
    out = signed_folder(tmp_path, signer, source='none')
    Review(out).redo('thing.png', 'other seed')
    assert main(['review', str(out), '--redo']) == 1 and 'thing.png is signed' in capsys.readouterr().err
    assert Review(out).rounds('thing.png').keys() == {0}
    Review(out).redo('thing.png', 'other seed')
    assert main(['review', str(out), '--redo', '--steps', '1', '--sign', signer.certificate, signer.key]) == 0
    file = Review(out).rounds('thing.png')[1]
    v = verify(file)
    assert v.holds and v.credentials.state == 'valid' and v.rights == '© Studio'
    assert v.source_type == SOURCE_TYPES['none'] == verify(out/'thing.png').source_type
    assert any('parentOf' in i for i in v.credentials.ingredients)

def test_an_expired_certificate_opens_no_page_and_makes_no_redo(tmp_path, signer, monkeypatch):
    from stylekit.app import serve
    opened = []
    monkeypatch.setattr(serve, 'serve_panel', lambda panel, how, *rest: opened.append(how))
    monkeypatch.setattr(Review, 'work', lambda self: opened.append('work'))
    with pytest.raises(StylekitError, match='ran out on'): trial_certificate(tmp_path/'old', days=-1)
    old = [str(tmp_path/'old'/f'{n}.pem') for n in ('certificate', 'key')]
    out = signed_folder(tmp_path, signer)
    for command in (['app', '--no-browser'], ['review', str(out)], ['review', str(out), '--redo']):
        assert main([*command, '--sign', *old]) == 2
    assert not opened
    serve.app(sign=(signer.certificate, signer.key))
    assert opened[0]['sign'] == [signer.certificate, signer.key]

def test_what_the_panel_saves_is_signed(tmp_path, signer):
    pytest.importorskip('ipywidgets')
    from stylekit import StylizePanel
    panel = StylizePanel(IM.resize((64, 64)), 'ink', 'noise', steps=1, sign=(signer.certificate, signer.key))
    panel.start.click()
    panel.wait(60)
    (tmp_path/'saved.png').write_bytes(panel._png())
    for file in (panel.save(tmp_path/'a.jpg'), tmp_path/'saved.png'):
        assert verify(file).holds and verify(file).credentials.state == 'valid'
