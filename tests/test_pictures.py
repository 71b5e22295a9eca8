"Folders as people have them: every kind of name, caption and companion; what is wrong with one picture stays with it"
import json, os, shutil, unicodedata, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, features
from stylekit.core import StylekitError
from stylekit.images import sample_image
from stylekit.pictures import *


def pic(path, i=0, **kw):
    "A sample picture, written where it shall be"
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_image(('owl', 'taxi', 'penguin')[i%3]).resize((64+i, 64)).save(path, **kw)
    return path


def put(path, data=b'x'):
    "A file of bytes or text, with the folder it lies in"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str): path.write_text(data)
    else: path.write_bytes(data)
def captions(folder, **kw): return {p.name: p.caption for p in list_pictures(folder, **kw)}


# ---- names

@pytest.mark.parametrize('stem, words', [
    ('facade', 'facade'), ('decade', 'decade'), ('a faded cafe', 'a faded cafe'), ('accede', 'accede'),
    ('deface', 'deface'), ('snowy_owl2', 'snowy owl'), ('RedApple', 'red apple'), ('हिन्दी घर', 'हिन्दी घर'),
    ('ไทย', 'ไทย'), ('شَمس', 'شَمس'), ('がっこう', 'がっこう'), ('café crème', 'café crème'), ('Größe', 'größe'),
    ('tiếng Việt', 'tiếng việt'), ('한국어', '한국어'), ('IMG_0412', ''), ('DSC01234', ''), ('3f9c2e1b', ''),
    ('deadbeef00', ''), ('3f9c2e1b-77aa-4bad-face-feedfacecafe', ''), ('xkqzjwp', ''), ('0001', ''), ('abcdfbca', ''),
    ('WA0003', '')])
@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_names_as_captions(stem, words, form):
    assert name_words(unicodedata.normalize(form, stem)) == unicodedata.normalize('NFC', words)


# ---- what stands beside

SIDES = ['{stem}.txt', '{stem}.TXT', '{stem}.caption', '{stem}.Caption',
         '{name}.txt', '{name}.caption', '{stem}.captions']
@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('name', ['IMG_0001.png', 'IMG_0001.JPG', 'scan v1.5.webp'])
def test_sidecars(tmp_path, side, name):
    p = pic(tmp_path/name)
    beside = side.format(stem=p.stem, name=p.name)
    (tmp_path/beside).write_text(' a drawing\n of a thing ')
    found, = list_pictures(tmp_path)
    assert found.caption == 'a drawing of a thing' == image_caption(p)
    assert found.caption_from == beside and not found.error

@pytest.mark.parametrize('table, text', [
    ('metadata.jsonl', '{"file_name": "a1.png", "text": "an owl"}\n\n'
                       '{"file_name": "sub/a2.png", "caption": "a cat"}\n'),
    ('Metadata.JSONL', '{"file_name": "A1.PNG", "prompt": "an owl"}\n{"file_name": "sub\\\\a2.png", "text": "a cat"}'),
    ('metadata.csv', 'file_name,text\na1.png,an owl\nsub/a2.png,a cat\n')])
def test_tables(tmp_path, table, text):
    for name in ('a1.png', 'sub/a2.png'): pic(tmp_path/name)
    put(tmp_path/table, text)
    assert captions(tmp_path) == {'a1.png': 'an owl', 'sub/a2.png': 'a cat'}

def test_a_broken_table_is_said_and_stops_nothing(tmp_path):
    pic(tmp_path/'an owl.png')
    for bad in ('{"file_name": "an owl.png"', '[1, 2]', '{"text": "x"}', 'null', '{"file_name": {}}'):
        (tmp_path/'metadata.jsonl').write_text(bad)
        with pytest.warns(UserWarning, match='metadata.jsonl'):
            assert captions(tmp_path) == {'an owl.png': 'an owl'}

TEXTS = [
    ('a penguin', 'utf-8'), ('a penguin', 'utf-8-sig'), ('ein Käfer', 'utf-16'), ('ein Käfer', 'utf-16-le'),
    ('ein Käfer', 'utf-16-be'), ('ein Käfer', 'utf-32'), ('ein Käfer auf „Gras“', 'cp1252'),
    ('déjà vu à Besançon', 'cp1252'), ('naïve Größe', 'latin-1'), ('ペンギンの絵', 'cp932'), ('ねこ', 'cp932'),
    ('красный дом', 'cp1251'), ('一只企鹅的画', 'gb18030')]
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('text, encoding', TEXTS)
def test_encodings(tmp_path, text, encoding):
    pic(tmp_path/'x1.png')
    (tmp_path/'x1.txt').write_bytes(text.encode(encoding)+'\r\n'.encode(encoding)[-2 if 'utf' not in encoding else 99:])
    assert captions(tmp_path) == {'x1.png': text}

def test_a_guess_is_said(tmp_path):
    pic(tmp_path/'x1.png')
    put(tmp_path/'x1.txt', 'Käfer'.encode('cp1252'))
    with pytest.warns(UserWarning, match='x1.txt is not in UTF-8: read as cp1252'): captions(tmp_path)

@pytest.mark.parametrize('make', [
    lambda p: p.mkdir(), lambda p: p.write_bytes(b'\x89PNG'*50+bytes(500)), lambda p: p.write_text('word '*5000),
    lambda p: p.write_bytes(bytes(2_000_000)), lambda p: p.symlink_to('nowhere')])
def test_what_is_no_caption_belongs_to_its_picture(tmp_path, make):
    pic(tmp_path/'bad.png')
    pic(tmp_path/'good.png', 1)
    make(tmp_path/'bad.txt')
    bad, good = list_pictures(tmp_path)
    assert not good.error and (bad.caption == 'bad' or 'bad.txt' in bad.error)

def test_another_programs_language_is_said_once(tmp_path):
    for i, text in enumerate(('a cat <lora:ink:0.8>', 'a (big:1.3) dog', 'an [owl:0.5]')):
        pic(tmp_path/f'{i}.png', i)
        put(tmp_path/f'{i}.txt', text)
    with pytest.warns(UserWarning) as said: assert captions(tmp_path)['0.png'] == 'a cat <lora:ink:0.8>'
    assert len(said) == 1 and '3 captions' in str(said[0].message)
    from stylekit import stylize
    with pytest.warns(UserWarning, match='<lora:x:1>'):
        stylize(sample_image('owl'), 'ink', 'an owl <lora:x:1>', steps=1)


# ---- tables of captions

@pytest.mark.parametrize('name, data', [
    ('c.csv', b'file,caption\na.png,"an owl, grey"\n'),
    ('c.csv', 'name;text\na.png;an owl, grey\n'.encode('utf-16')),
    ('c.tsv', b'a.png\tan owl, grey\n'),
    ('c.csv', b'\xef\xbb\xbfImage,Prompt\r\na.png,"an owl, grey"\r\n'),
    ('c.jsonl', b'{"file": "a.png", "description": "an owl, grey"}'),
    ('c.json', b'{"a.png": "an owl, grey"}'),
    ('c.json', b'[{"file_name": "a.png", "text": "an owl, grey"}]')])
def test_read_captions(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    assert read_captions(tmp_path/name) == {'a.png': 'an owl, grey'}
    pic(tmp_path/'in'/'a.png')
    put(tmp_path/'in'/'a.txt', 'other')
    assert captions(tmp_path/'in', captions=tmp_path/name) == {'a.png': 'an owl, grey'}

@pytest.mark.parametrize('text, want', [
    ('a.png,an owl, small, grey', 'an owl, small, grey'),
    ('file,text\na.png,an owl, small, grey', 'an owl, small, grey'),
    ('a.png;an owl; grey', 'an owl; grey'),
    ('name\tcaption\na.png\tan owl\tgrey', 'an owl\tgrey')])
def test_commas_without_quotes(tmp_path, text, want):
    (tmp_path/'c.csv').write_text(text)
    assert read_captions(tmp_path/'c.csv') == {'a.png': ' '.join(want.split())}

def test_two_captions_of_one_picture_are_said(tmp_path):
    csv = 'a.png,an owl\na.png,a cat'
    jsonl = '{"file": "a.png", "text": "an owl"}\n{"file": "a.png", "text": "a cat"}'
    for name, text in (('c.csv', csv), ('c.jsonl', jsonl)):
        (tmp_path/name).write_text(text)
        with pytest.warns(UserWarning, match=f'{name}: a.png has two captions'):
            assert read_captions(tmp_path/name) == {'a.png': 'a cat'}

def test_more_fields_than_titles(tmp_path):
    for head in ('file,text,licence', 'text,file', 'id,file,caption'):
        (tmp_path/'c.csv').write_text(f'{head}\na.png,an owl, grey,b,c\n')
        with pytest.raises(StylekitError, match='c.csv.*row 1.*quotes'): read_captions(tmp_path/'c.csv')

def test_a_table_goes_before_what_stands_beside(tmp_path):
    p = pic(tmp_path/'Red Owl.png')
    p.with_suffix('.txt').write_text('beside')
    for name in ('Red Owl.png', 'red owl.PNG', 'Red Owl'): assert image_caption(p, captions={name: 'table'}) == 'table'
    assert image_caption(p, captions={'other.png': 'x'}) == 'beside'

@pytest.mark.parametrize('data', [b'{', b'[1]', b'3', b'null', b'{"a.png": 3'*2, b'['*100_000, b'[{"text": "x"}]'])
def test_tables_that_are_none(tmp_path, data):
    (tmp_path/'c.json').write_bytes(data)
    with pytest.raises(StylekitError) as e: read_captions(tmp_path/'c.json')
    assert 'c.json' in str(e.value) and len(str(e.value)) <= 300
    for bad in (tmp_path/'none.csv', tmp_path):
        with pytest.raises(StylekitError): read_captions(bad)


# ---- the folder

HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'+bytes(200)
DOUBLE = b'\0\5\x16\7\0\2\0\0Mac OS X        '+bytes(200)

@pytest.fixture
def crowd(tmp_path):
    "30 pictures and what stands between them; the names of those that can be opened, and of those that can't"
    d = tmp_path/'in'
    apart = [unicodedata.normalize('NFD', n) for n in ('café crème.png', 'がっこう.png')]
    usual = {n: {} for n in (
        'red owl.png', 'blue cup.jpg', 'green hat.bmp', 'old lamp.gif', 'wide sea.webp', 'tall tower.tif',
        'Big House.PNG', 'sub/deep/well.jpeg', *apart, 'हिन्दी घर.png', 'facade.png', 'a # b & c.png',
        'two  spaces .png', '"quoted".png')}
    lying = {'small cat.jfif': 'JPEG', 'no ending': 'PNG', 'lying name.png': 'JPEG', 'odd.ending': 'WEBP'}
    usual |= {n: dict(format=fmt) for n, fmt in lying.items()}
    if features.check('avif'): usual['flat field.avif'] = {}
    for i, (name, kw) in enumerate(usual.items()): pic(d/name, i, **kw)
    whole = (d/'red owl.png').read_bytes()
    useless = {
        'tall tree.heic': HEIC, 'half.png': whole[:60], 'empty.jpg': b'', 'page.png': b'<!doctype html>',
        'drawing.svg': b'<svg/>', 'layers.psd': b'8BPS', 'raw.NEF': b'II*\0'+bytes(100),
        'sub/pointer.jpg': b'version https://git-lfs'}
    between = {'._red owl.png': DOUBLE, '.hidden.png': whole, 'notes.txt': 'x', 'Thumbs.db': b'x', 'list.json': '{}'}
    for name, data in (useless | between).items(): put(d/name, data)
    for i, name in enumerate(('twin.png', 'twin.jpg')): pic(d/name, i)
    for folder in ('.cache', '__MACOSX'): pic(d/folder/'x.png')
    (d/'folder.png').mkdir()
    return d, [*usual, 'twin.jpg'], [*useless, 'twin.png']

def test_a_folder_of_all_kinds(crowd):
    d, good, bad = crowd
    found = {p.name: p for p in name_twins(list_pictures(d), lambda p: Path(p.name).with_suffix(''))}
    assert {*found} == {*good, *bad} and len(found) >= 29
    assert {n for n, p in found.items() if p.error} == {*bad}, {n: p.error for n, p in found.items()}
    assert all(found[n].shape for n in good)
    assert all(len(p.error) <= 300 and '\n' not in p.error for p in found.values())

def test_each_gets_a_line_and_none_stops_the_run(crowd, tmp_path):
    from stylekit.feedforward import FeedForward, StyleNet
    from stylekit.folders import stylize_folder
    d, good, bad = crowd
    net = StyleNet(widths=(8, 16), blocks=(1, 1))
    about = dict(name='n', space='pixel', shape=net.shape, multiple=net.multiple, settings=dict(sms={}),
                 style='n', style_sha256='', words='n', backbone='', backbone_sha256='')
    FeedForward(net, about).save(tmp_path/'n.safetensors')
    (tmp_path/'out'/'facade.png').mkdir(parents=True)   # a folder where a result should go
    done = stylize_folder(d, tmp_path/'out', feedforward=tmp_path/'n.safetensors')
    assert {*done.failed} == {*bad, 'facade.png'}, done.failed
    lines = [json.loads(l) for l in (tmp_path/'out'/'manifest.jsonl').read_text(encoding='utf-8').splitlines()]
    assert {l['picture'] for l in lines if 'picture' in l} >= {*good, *bad}
    assert all((tmp_path/'out'/Path(n).with_suffix('.png')).is_file() for n in good if n != 'facade.png')

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may read everything')
def test_permissions_of_the_system(tmp_path):
    for name in ('a.png', 'b.png', 'sub/c.png'): pic(tmp_path/'in'/name)
    for name in ('b.png', 'sub'): (tmp_path/'in'/name).chmod(0)
    found = {p.name: p.error for p in list_pictures(tmp_path/'in')}
    assert not found['a.png'] and 'ermission' in found['b.png'] and 'ermission' in found['sub']

def test_what_may_not_be_listed(tmp_path, monkeypatch):
    for name in ('a.png', 'sub/c.png'): pic(tmp_path/name)
    real = os.scandir
    def no(path):
        if Path(path).name in shut: raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', no)
    shut = {'sub'}
    unlisted = 'the folder may not be listed: permission denied'
    assert {p.name: p.error for p in list_pictures(tmp_path)} == {'a.png': '', 'sub': unlisted}
    shut = {tmp_path.name}
    with pytest.raises(StylekitError, match='may not be listed: permission denied'): list_pictures(tmp_path)

FOLDERS = [('10_ink', 'one below'), ('img/10_ink', 'two below'), ('a/b/c', 'further below')]
@pytest.mark.parametrize('below, word', FOLDERS)
def test_a_trainers_folder_of_folders(tmp_path, below, word):
    from stylekit.finetune import read_folder
    pic(tmp_path/below/'a bird.png')
    with pytest.raises(StylekitError, match=word) as e: read_folder(tmp_path)
    assert below in str(e.value)

def test_no_folder(tmp_path, monkeypatch):
    (tmp_path/'f').write_text('x')
    unusable = [(tmp_path/'none', 'no folder'), (tmp_path/'f', 'is a file'), (tmp_path, 'holds no pictures'),
                ('', 'no folder'), (None, 'no folder'), (7, 'no folder'),
                ('a\0b', 'no folder|cannot read'), ('x'*100_000, 'cannot read|no folder')]
    for bad, word in unusable:
        with pytest.raises(StylekitError, match=word) as e: list_pictures(bad)
        assert len(str(e.value)) <= 300
    monkeypatch.setenv('HOME', str(tmp_path))
    pic(tmp_path/'pictures'/'a.png')
    assert len(list_pictures('~/pictures')) == 1
    for bad in ('', '{} {}', 'x'):
        with pytest.raises(StylekitError, match='template'): list_pictures(tmp_path/'pictures', bad)
    assert captions(tmp_path/'pictures', template='{x} of {}') == {'a.png': '{x} of a'}

def test_training_without_captions_says_so(tmp_path):
    from stylekit.finetune import read_folder
    for i, name in enumerate(('0001.png', '0002.png')): pic(tmp_path/name, i)
    with pytest.warns(UserWarning, match='nothing says what the pictures show'): assert len(read_folder(tmp_path)) == 2
    (tmp_path/'0003.png').write_bytes(b'<html>')
    with pytest.warns(UserWarning, match='0003.png is left out'): assert len(read_folder(tmp_path)) == 2
    shutil.copy(tmp_path/'0003.png', tmp_path/'0001.png')
    (tmp_path/'0002.png').unlink()
    with pytest.raises(StylekitError, match='no picture.*can be used'): read_folder(tmp_path)

def test_everybody_reads_folders_the_same_way(tmp_path):
    from stylekit.measure.evaluate import read_dataset
    from stylekit.finetune import read_folder
    from stylekit.folders import read_pictures
    from stylekit.clip.grids import read_grid
    for i, n in enumerate(('owl.png', 'cup.jfif', 'hat.bmp')):
        pic(tmp_path/'in'/n, i, format={'cup.jfif': 'JPEG'}.get(n))
    put(tmp_path/'in'/'._owl.png', DOUBLE)
    put(tmp_path/'in'/'hat.CAPTION', 'a green hat')
    want = {'owl.png': 'owl', 'cup.jfif': 'cup', 'hat.bmp': 'a green hat'}
    assert {p.name: p.caption for p in read_pictures(tmp_path/'in', tmp_path/'out')} == want
    assert {e.path.name: e.caption for e in read_folder(tmp_path/'in')} == want
    assert {i.path.name: i.caption for i in read_dataset(tmp_path/'in')[0]} == want
    for style in ('ink', 'flat'):
        for thing in ('bird', 'cup'): shutil.copytree(tmp_path/'in', tmp_path/'grid'/style/thing)
    assert len(read_grid(tmp_path/'grid', None)) == 12
