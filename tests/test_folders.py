"A folder of pictures, killed and gone on with, in one process, several, on Ray; its list; a training by two processes"
import errno, io, json, os, re, signal, subprocess, sys, time, unicodedata
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin, features
from stylekit import StylekitError, load_backbone
from stylekit.cli import main
from stylekit.images import sample_image, list_samples
from stylekit.feedforward import FEEDFORWARD_FILE, FeedForward, StyleNet
from stylekit.folders import MANIFEST, FolderRecord, FolderRun, Manifest, stylize_folder
from stylekit.records import json_line, parse_line, payload_hash, read_lines
from sweeps import check_full_disk, json_mutants, keys_only, resealed, sweep, sweep_file

ENV = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


N, BROKEN = 100, 5   # pictures; of them damaged

@pytest.fixture(scope='module')
def feedforward(small_network): return small_network

@pytest.fixture(scope='module')
def home(tmp_path_factory, feedforward):
    "Pictures in three shapes and three folders, some of them broken"
    d = tmp_path_factory.mktemp('folder')
    for i in range(N):
        p = d/'in'/f'{"abc"[i%3]}'/f'thing {i}.{"png" if i%2 else "jpg"}'
        p.parent.mkdir(parents=True, exist_ok=True)
        sample_image(list_samples()[i%8]).resize(((64, 64), (96, 64), (64, 80))[i%7%3]).save(p)
    pictures = sorted((d/'in').rglob('thing*'))
    bad = (b'', b'<html>gone</html>', pictures[1].read_bytes()[:300], b'%PDF-1.7 offer', pictures[2].read_bytes()[:40])
    for p, raw in zip(pictures[::19], bad): p.write_bytes(raw)
    return d

@pytest.fixture(scope='module')
def alone(home, feedforward):
    "What one process makes of it that nobody disturbs: results, lines of the list"
    stylize_folder(home/'in', home/'alone', feedforward=feedforward, batch=4)
    return contents(home/'alone')

def results(out): return sorted(p for p in out.rglob('*.png') if not p.name.startswith('.'))

def contents(out)->tuple:
    "name -> bytes of all files but the list; its lines, without what the clock and the number of calls decide"
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.is_file()}
    lines = [json.loads(line) for line in files.pop(MANIFEST).splitlines()]
    clock = ('seconds', 'made', 'sha256', 'source_id', 'run')   # and the place of the folder
    return files, [{k: v for k, v in line.items() if k not in clock} for line in lines]

def pictures_in(files:dict)->dict: # name -> pixels: the record in a file says which run it is of, and so where it lies
    return {n: Image.open(io.BytesIO(raw)).tobytes() for n, raw in files.items()}

def times(paths): return {p: p.stat().st_mtime_ns for p in paths}

def names(out): return {p.relative_to(out).as_posix() for p in results(out) if p.is_file()}

RUN = """
from stylekit.folders import stylize_folder
if __name__ == '__main__': stylize_folder({src!r}, {out!r}, feedforward={feedforward!r}, batch=4, **{kw!r})
"""

def run(home, feedforward, out, **kw):
    script = out.parent/f'{out.name}.py'   # a file, as processes are spawned from it
    script.write_text(RUN.format(src=str(home/'in'), out=str(out), feedforward=str(feedforward), kw=kw))
    return subprocess.Popen([sys.executable, str(script)], env=ENV)

# ---- what takes long is started at the beginning, and looked at in the end

TRAIN = """
import sys
from pathlib import Path
from stylekit.backbone import load_backbone
from stylekit.feedforward_training import train_feedforward
from stylekit.finetune import Example
from stylekit.images import sample_image, list_samples
def train(out, style, model):
    examples = [Example(Path(f'{n}.png'), sample_image(n).resize((64, 64)), f'a {n}', n) for n in list_samples()[:4]]
    how = dict(out=Path(out), backbone=load_backbone(model), widths=(8, 16), blocks=(1, 1),
               steps=5, batch=2, check=2, lr=1e-2)
    train_feedforward(style, examples, 'g', **how)
    pupil = dict(teacher=Path(out)/'g', space='pixel', areas=4, views=4, vary=True, refine=1)   # two parts of lessons
    train_feedforward(style, examples, 'pupil', **pupil, **how)
if __name__ == '__main__': train(*sys.argv[1:])
"""

@pytest.fixture(scope='module')
def model(models): return models('small')

@pytest.fixture(scope='module')
def style(model, random_style): return str(random_style(load_backbone(model)))

@pytest.fixture(scope='module')
def training(model, style, tmp_path_factory):
    "A training that Accelerate has started in two processes, and its folder: it runs beside the other tests"
    out = tmp_path_factory.mktemp('two')
    (out/'train.py').write_text(TRAIN)
    accelerate = '''-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no
                    --dynamo_backend no --main_process_port 0'''.split()
    script = [str(out/'train.py'), str(out), style, str(model)]
    started = subprocess.Popen([sys.executable, *accelerate, *script], env=ENV)
    yield started, out
    if started.poll() is None: started.kill()

def killed_at(n, home, feedforward, out, **how):
    p = run(home, feedforward, out, **how)
    while len(results(out)) < n and p.poll() is None: time.sleep(.01)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL)
    p.wait()

@pytest.mark.parametrize('workers, kills', [(1, 2), (2, 1)])
def test_killed_it_ends_complete(home, feedforward, alone, training, workers, kills):
    "Every result, a line for each picture, the broken named, nothing made twice: the bytes of one undisturbed process"
    out = home/f'out{workers}'
    killed_at(15, home, feedforward, out, workers=workers)
    early = times(results(out))
    if kills == 2: killed_at(len(early)+15, home, feedforward, out, workers=workers)
    assert N-BROKEN > len(results(out)) >= len(early)+15*(kills-1)
    assert run(home, feedforward, out, workers=workers).wait() == 0
    assert early == times(early)
    assert all(Image.open(p).load() for p in results(out)) and len(results(out)) == N-BROKEN
    assert contents(out) == alone   # no crumbs either
    run_, *lines = read_lines(out/MANIFEST, FolderRun, FolderRecord)
    assert len(lines) == N and len({r.picture for r in lines}) == N
    assert {r.run for r in lines} == {run_.id}
    errors = [r.error for r in lines if r.error]
    assert len(errors) == BROKEN, errors
    assert all(re.search('empty|HTML|damaged|PDF|not an image', e) for e in errors), errors
    assert {r.result for r in lines if not r.error} == names(out)

# ---- the list

@pytest.fixture
def few(tmp_path, feedforward):
    "run(out) stylises three pictures, one of them broken"
    (tmp_path/'in'/'birds').mkdir(parents=True)
    sample_image('owl').resize((32, 32)).save(tmp_path/'in'/'birds'/'owl.png')
    sample_image('taxi').resize((32, 32)).save(tmp_path/'in'/'taxi.png')
    (tmp_path/'in'/'page.png').write_text('<html>')
    def go(out=tmp_path/'out', **how):
        stylize_folder(tmp_path/'in', out, **dict(feedforward=feedforward) | how)
        return contents(out)
    return go

def test_bytes_of_the_list(few, tmp_path):
    "Whatever happens to the list: it is refused, or the same call ends as it did"
    same = few()
    before = times(results(tmp_path/'out'))
    assert sweep_file(tmp_path/'out'/MANIFEST, lambda path: few(), same=same, flips=100) > 80
    assert before == times(results(tmp_path/'out'))   # nothing was made again

def line_mutants(path, mutants): # yields (what was done, text of the list)
    lines = path.read_text(encoding='utf-8').splitlines()
    for i, line in enumerate(lines):
        for what, data in mutants(json.loads(line)):
            yield f'line {i+1}, {what}', '\n'.join([*lines[:i], json.dumps(data), *lines[i+1:], ''])

def test_keys_of_the_list(few, tmp_path):
    "With the hash as it was"
    few()
    path = tmp_path/'out'/MANIFEST
    good = read_lines(path, FolderRun, FolderRecord)
    def of(text):
        path.write_text(text, encoding='utf-8')
        return read_lines(path, FolderRun, FolderRecord)
    assert sweep(of, [*line_mutants(path, json_mutants)], good) > 300

def test_types_of_the_list(few, tmp_path):
    "With a hash that fits: refused by type, or just what the line says"
    few()
    path = tmp_path/'out'/MANIFEST
    def of(mutant):
        line = json.dumps(resealed(mutant) if isinstance(mutant, dict) else mutant)
        got = parse_line(line, MANIFEST, FolderRun, FolderRecord)
        wrong = [k for k, v in mutant.items() if k not in ('kind', 'sha256') and got.to_json()[k] != v]
        assert not wrong, wrong
    for line in path.read_text(encoding='utf-8').splitlines():
        assert sweep(of, json_mutants(json.loads(line))) > 100

def test_a_list_that_somebody_sealed_anew(few, tmp_path):
    "Lines that are true to their hash and to nothing else do not change what the call ends with"
    same, path = few(), tmp_path/'out'/MANIFEST
    def of(text):
        path.write_text(text, encoding='utf-8')
        return few()
    def mutants(data):
        for what, mutant in keys_only(data):
            if isinstance(mutant, dict): yield what, resealed(mutant)
    assert sweep(of, [*line_mutants(path, mutants)], same) > 50

def test_lines_in_another_order_or_lost(few, tmp_path):
    same, path = few(), tmp_path/'out'/MANIFEST
    head, *lines = path.read_text(encoding='utf-8').splitlines(True)
    def of(text):
        path.write_text(text, encoding='utf-8')
        return few()
    lists = dict(
        empty='',
        head=head,
        reversed=''.join(reversed([head, *lines])),
        twice=''.join([head, *lines]*2),
        blank='\n\n'.join([head, *lines]),
        lost=''.join([head, *lines[1:]]),
        torn=head+lines[0]+lines[1][:50],
        headless=''.join(lines))
    assert sweep(of, lists.items(), same) == 8
    path.write_text(''.join(lines))
    with pytest.raises(StylekitError, match='lacks the line of the run'): few()
    path.unlink()
    assert few() == same

def test_pictures_that_were_taken_away(few, tmp_path):
    "The list ends with what is there"
    few()
    for name in ('birds/owl.png', 'page.png'): (tmp_path/'in'/name).unlink()
    assert [line.get('picture') for line in few()[1]] == [None, 'birds/owl.png', 'taxi.png']   # its result still is
    (tmp_path/'out'/'birds'/'owl.png').unlink()
    assert [line.get('picture') for line in few()[1]] == [None, 'taxi.png']

def test_memory_for_one_picture_at_a_time(few, tmp_path, monkeypatch):
    "Who does not fit together is made alone; who does not fit alone is named, and the others are made"
    whole, real = few(), StyleNet.forward
    def forward(self, x):
        if len(x) > 1 or x.mean() < darkest: raise MemoryError
        return real(self, x)
    monkeypatch.setattr(StyleNet, 'forward', forward)
    darkest = -1.
    together, alone = pictures_in(whole[0]), pictures_in(few(tmp_path/'alone')[0])
    for name, raw in together.items():
        a, b = (np.frombuffer(r, np.uint8).astype(int) for r in (raw, alone[name]))
        assert np.abs(a-b).max() <= 1, name   # rounding may differ
    darkest = 2.
    lines = few(tmp_path/'none')[1][1:]
    memory = 'ran out of memory: lower `resolution`'
    assert [re.search(f'HTML|{memory}', line['error'])[0] for line in lines] == [memory, 'HTML', memory]


# ---- a full disk

@pytest.mark.parametrize('name', [MANIFEST, 'birds/owl.png', 'taxi.png'])
def test_a_full_disk_ends_the_run(few, tmp_path, monkeypatch, name):
    "Named in one line; the list and the pictures that were there stay, and the next call goes on"
    out, whole = tmp_path/'out', few(tmp_path/'whole')
    if name == 'taxi.png':   # the list and a picture before it are there by then
        few(out)
        (out/name).unlink()
    check_full_disk(monkeypatch, out/name, few)
    assert contents(out)[1] == whole[1] and pictures_in(contents(out)[0]) == pictures_in(whole[0])

def test_a_full_disk_for_the_list_itself(few, tmp_path, monkeypatch):
    "The second line is cut in its middle"
    out, whole = tmp_path/'out', few(tmp_path/'whole')
    written = []
    class Full:
        def __init__(self, f): self.f = f
        def __enter__(self): return self
        def __exit__(self, *_): self.f.close()
        def write(self, text):
            written.append(text)
            self.f.write(text if len(written) != 2 else text[:50])
            if len(written) == 2: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr('stylekit.folders.open', lambda *a, **kw: Full(open(*a, **kw)), raising=False)
        with pytest.raises(StylekitError, match='cannot write manifest.jsonl.*No space.*free some space'):
            few()
    assert len(written) == 2 and not [*out.rglob('.*')]
    got = few()
    assert got[1] == whole[1] and pictures_in(got[0]) == pictures_in(whole[0])

def test_a_full_disk_when_the_list_is_closed(few, tmp_path, monkeypatch):
    "All is made by then, and nothing is lost"
    out, real = tmp_path/'out', Manifest._rewrite
    calls = []
    def rewrite(self):
        calls.append(1)
        if len(calls) == 2: raise StylekitError('the disk is full')
        real(self)
    with monkeypatch.context() as m:
        m.setattr(Manifest, '_rewrite', rewrite)
        with pytest.raises(StylekitError): few()
    before = times(results(out))
    few()
    assert before == times(results(out)) and len(before) == 2
    lines = read_lines(out/MANIFEST, FolderRun, FolderRecord)[1:]
    timed = [r.seconds is not None for r in lines]
    assert timed == [not r.error for r in lines]   # the time that it took was not forgotten


# ---- a folder as people have it

def disc(mode='RGB', size=(64, 64), ground=(255, 255, 255), ink=(200, 60, 40)):
    "A picture of one thing"
    im = Image.new(mode, size, ground)
    ImageDraw.Draw(im).ellipse([size[0]*.2, size[1]*.2, size[0]*.8, size[1]*.8], fill=ink)
    return im

def encoded(im, fmt, **how)->bytes:
    im.save(f := io.BytesIO(), fmt, **how)
    return f.getvalue()

def noted(text, zip=False)->bytes:
    "A PNG with a long note of another program"
    info = PngImagePlugin.PngInfo()
    info.add_text('workflow', text, zip=zip)
    return encoded(disc(), 'PNG', pnginfo=info)

def wrong_checksum()->bytes:
    "A PNG whose note has a wrong checksum"
    raw = bytearray(noted('a red ball, <lora:ink:0.8>'))
    at = raw.index(b'tEXt')
    raw[at+4+int.from_bytes(raw[at-4:at], 'big')] ^= 255
    return bytes(raw)

def usual_pictures()->dict: # name -> bytes
    "What is no plain RGB and can be made"
    cut = disc('RGBA', ground=(0, 0, 0, 0), ink=(200, 60, 40, 255))
    turned = Image.Exif()
    turned[0x0112] = 6
    profile = {space: ImageCms.createProfile(space) for space in ('sRGB', 'LAB')}
    lab = ImageCms.profileToProfile(disc(), *profile.values(), outputMode='LAB')
    srgb = ImageCms.ImageCmsProfile(profile['sRGB']).tobytes()
    grey = Image.fromarray(np.linspace(0, 65535, 64*64).reshape(64, 64).astype(np.uint16))
    blue = disc(ink=(0, 0, 255))
    png, jpg = encoded(disc(), 'PNG'), encoded(disc(), 'JPEG')
    made = {
        'a cutout.png': encoded(cut, 'PNG'),
        'a cutout in few colours.png': encoded(cut.quantize(16), 'PNG'),
        'a clear ground.webp': encoded(cut, 'WEBP'),
        'a workflow.png': noted('abc '*400_000, zip=True),
        'a long note.png': noted('x'*2_000_000),
        'a wrong checksum.png': wrong_checksum(),
        'four inks.jpg': encoded(disc().convert('CMYK'), 'JPEG'),
        'two pictures.jpg': encoded(disc(), 'MPO', save_all=True, append_images=[disc(size=(32, 32))]),
        'a panorama.jpg': encoded(disc(size=(240, 30)), 'JPEG'),
        'a deep scan.png': encoded(grey, 'PNG'),
        'a turned photo.jpg': encoded(disc(size=(80, 48)), 'JPEG', exif=turned),
        'a moving thing.webp': encoded(disc(), 'WEBP', save_all=True, append_images=[blue], duration=100),
        'a measured colour.tif': encoded(lab, 'TIFF'),
        'a profile.png': encoded(disc(), 'PNG', icc_profile=srgb),
        'a tail.png': png+bytes(5000),
        'a bitmap.bmp': encoded(disc(), 'BMP'),
        'an old one.gif': encoded(disc(), 'GIF'),
        'grey.png': encoded(disc().convert('L'), 'PNG'),
        'black and white.png': encoded(disc().convert('1'), 'PNG')}
    made |= dict.fromkeys(['an ending.jfif', 'really a photo.png', 'shoes/deep/a shoe.jpeg'], jpg)
    plain = ['no ending', 'Capital Letters.PNG', 'facade.png', 'a # b & c.png', 'two  spaces .png', "it's quoted.png"]
    made |= dict.fromkeys(plain, png)
    made |= {unicodedata.normalize('NFD', n): png for n in ('café crème.png', 'がっこう.png', 'हिन्दी घर.png')}
    if features.check('avif'): made['a flat field.avif'] = encoded(disc(), 'AVIF')
    return made

def useless_pictures()->dict: # name -> bytes, words of what is said
    "What looks like a picture and can't be made"
    png = encoded(sample_image('owl'), 'PNG')
    jpg = encoded(disc(size=(256, 256)), 'JPEG', progressive=True, quality=95)
    return {
        'a tall tree.heic': (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'+bytes(200), 'heic|HEIF|pillow'),
        'half.png': (png[:len(png)//2], 'damaged'),
        'the head.png': (png[:60], 'damaged'),
        'cut.jpg': (jpg[:len(jpg)//2], 'damaged'),
        'nothing.jpg': (b'', 'empty'),
        'a page.png': (b'<!doctype html>', 'HTML'),
        'a drawing.svg': (b'<svg/>', 'vector|SVG'),
        'layers.psd': (b'8BPS'+bytes(99), 'psd|PSD|not an image'),
        'a raw photo.NEF': (b'II*\0'+bytes(100), 'raw'),
        'shoes/a pointer.jpg': (b'version https://git-lfs.github.com/spec/v1\n', 'LFS'),
        'a torn scan.tif': (b'II*\0\x08\0\0\0'+b'\xff'*90, 'damaged|not an image')}

NO_PICTURES = {'._facade.png': b'\0\5\x16\7\0\2\0\0Mac OS X        '+bytes(200), 'list.json': b'{}'}
for name in ('.hidden.png', 'notes.txt', 'Thumbs.db', '.cache/x.png', '__MACOSX/x.png', 'folder.png/readme.md'):
    NO_PICTURES[name] = b'x'
BESIDE = {   # picture -> the file of its caption
    'IMG_0001.png': ('IMG_0001.txt', 'an owl'.encode('utf-8-sig')),
    'IMG_0002.png': ('IMG_0002.TXT', 'ein Käfer'.encode('utf-16')),
    'IMG_0003.png': ('IMG_0003.caption', b'a (big:1.3) owl <lora:ink:1>'),
    'IMG_0004.png': ('IMG_0004.png.txt', 'Größe'.encode('cp1252')),
    'IMG_0005.png': ('metadata.jsonl', b'{"file_name": "IMG_0005.png", "text": "an owl"}\n')}

@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    "The folder; names of what can be made; name -> words, of what can't"
    d = tmp_path_factory.mktemp('crowd')
    good, bad = usual_pictures(), useless_pictures()
    files = good | {n: raw for n, (raw, _) in bad.items()} | NO_PICTURES
    files |= dict.fromkeys(BESIDE, good['facade.png']) | dict(BESIDE.values())
    for name, raw in files.items():
        (d/name).parent.mkdir(parents=True, exist_ok=True)
        (d/name).write_bytes(raw)
    for name in ('red shoe.png', 'red shoe.jpg'): disc().save(d/name)   # they would have one result
    words = {n: words for n, (_, words) in bad.items()} | {'red shoe.png': 'red shoe'}
    return d, [*good, *BESIDE, 'red shoe.jpg'], words

@pytest.mark.parametrize('way', ['optimised', 'in one pass'])
def test_a_folder_of_all_kinds(crowd, feedforward, model, style, tmp_path, capfd, way):
    "On the command line: each gets a line, none stops the others, and the status says that some failed"
    folder, good, bad = crowd
    bad = bad | {'facade.png': 'is a folder'}
    (tmp_path/'out'/'facade.png').mkdir(parents=True)   # where a result should go
    args = ['stylize', str(folder), '--out', str(tmp_path/'out'), '--no-sheet']
    if way == 'in one pass':
        command = [sys.executable, '-m', 'stylekit', *args, '--feedforward', str(feedforward)]
        status = subprocess.run(command, env=ENV, timeout=300).returncode
    else:
        status = main([*args, '--backbone', str(model), '--style', style, '--steps', '1', '--resolution', '32'])
    out, err = capfd.readouterr()
    assert status == 1 and 'Traceback' not in err, err[-2000:]
    lines = {r.picture: r for r in read_lines(tmp_path/'out'/MANIFEST, FolderRun, FolderRecord)[1:]}
    assert {*lines} == {*good, *bad} and len(lines) >= 45
    for name, words in bad.items(): assert re.search(words, lines[name].error), lines[name]
    made = {n: r for n, r in lines.items() if n not in bad}
    assert not any(r.error for r in made.values()), [r for r in made.values() if r.error]
    assert all(Image.open(tmp_path/'out'/r.result).load() for r in made.values())
    assert names(tmp_path/'out') == {r.result for r in made.values()}
    for n in ('a cutout.png', 'a cutout in few colours.png', 'a clear ground.webp'):
        assert Image.open(tmp_path/'out'/lines[n].result).getchannel('A').getextrema() == (0, 255)
    assert out.startswith(f'{len(made)} pictures in') and f'{len(made)} of them made now; {len(bad)} failed' in out
    for n in bad: assert any(line.startswith(f'stylekit: {n}: ') for line in err.splitlines()), n
    assert all(line.startswith('stylekit: ') and len(line) < 500 for line in err.splitlines()), err


# ---- several processes, several machines

def test_two_processes_train_what_one_does(model, style, training, tmp_path):
    "Gradients are averaged and lessons shared, so the weights agree up to rounding"
    (started, out), here = training, {'__name__': 'train'}
    exec(TRAIN, here)
    here['train'](tmp_path, style, str(model))
    assert started.wait(300) == 0
    for what in ('pupil', 'g'):
        one, two = (FeedForward.load(o/what, model) for o in (tmp_path, out))
        for (n, a), b in zip(one.net.state_dict().items(), two.net.state_dict().values()):
            assert torch.allclose(a, b, atol=2e-3), (what, n)
    assert not torch.equal(one.net.head.weight, torch.zeros_like(one.net.head.weight))

@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(home, feedforward, alone):
    "Ray's own beginning takes most of the time, and fails on a machine that is busy: nothing runs beside it"
    pytest.importorskip('ray.data')
    assert run(home, feedforward, home/'cluster', workers=2, cluster='ray').wait() == 0
    assert contents(home/'cluster') == alone
