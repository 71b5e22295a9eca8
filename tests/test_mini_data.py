"The corpus of the embedded model: licences, filters, captions, splits, near-duplicates, on small pictures made here"
import json
import numpy as np, pytest
from stylekit.core import StylekitError
from stylekit.mini import data as D

# Names that must be held back for ever: what the figures of the first embedded model were measured on
TEST_NAMES = ('airplane', 'owl', 'taxi', 'birthday-cake', 'penguin', 'microscope', 'kick-scooter', 'statue-of-liberty')
FREE = {'MIT', 'Apache-2.0', 'CC-BY-4.0', 'CC-PDDC'}
NEVER = ('noto-v1', 'emojione', 'fxemoji', 'streamline-emojis')

def picture(shape='disc', colour=(200, 60, 40), size=96, at=(48, 48), r=30):
    "A thing with some inner structure on nothing"
    y, x = np.mgrid[:size, :size]
    y, x = y-at[0], x-at[1]
    near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    d = dict(disc=np.hypot(x, y), box=far, cross=near*3 + (far > r)*r)[shape]
    a = np.zeros((size, size, 4), np.uint8)
    a[d < r] = (*colour, 255)
    inner = np.hypot(x-r/3, y+r/4) < r/3
    a[inner & (d < r)] = (*[255-c for c in colour], 255)
    return a


# --- the catalogue

@pytest.mark.parametrize('look', D.SOURCES)
def test_every_source_is_described(look):
    s = D.SOURCES[look]
    assert s.package and s.version and s.licence and s.holder and s.words and s.captions
    assert s.use in ('base', 'style', 'study') and s.reader in (*D.READERS, 'made')
    assert s.origin.endswith(f'@{s.version}') and not any(n in s.package for n in NEVER)
    if s.leave_out: assert s.why, 'what stays out has a reason'

@pytest.mark.parametrize('look', D.SOURCES)
def test_nothing_share_alike_ships(look):
    s = D.SOURCES[look]
    assert s.licence in FREE if s.ships else s.use == 'study'
    if 'SA' in s.licence or 'NC' in s.licence or 'ND' in s.licence: assert not s.ships and look not in D.BASE_SOURCES

def test_styles_are_kept_from_the_base():
    assert not {'flat', 'ink', 'freehand', 'pixel', 'watercolour', 'openmoji'} & {*D.BASE_SOURCES}
    assert {*D.BASE_LOOKS} <= {*D.BASE_SOURCES}
    packages = {s.package for s in D.SOURCES.values() if s.use == 'style' and s.reader != 'made'}
    assert not packages & {D.SOURCES[l].package for l in D.BASE_SOURCES}

def test_looks_have_words_of_their_own():
    words = [s.words for s in D.SOURCES.values()]
    assert len({*words}) == len(words) and all(D.look_words(l) == s.words for l,s in D.SOURCES.items())


# --- names

PLAIN = {'car-retro-2-24': 'car-retro', 'box_open_2': 'box-open', 'apple-one': 'apple', 'shield-1-flat': 'shield',
         'moon-full-fill': 'moon-full', '7': '7', '4-wheel': '4-wheel'}

@pytest.mark.parametrize('raw, plain', PLAIN.items())
def test_plain_names(raw, plain): assert D.plain_name(raw) == plain

def test_largest_of_each_name():
    assert D.largest(['book-16', 'book-48', 'book-20', 'boat', 'route-66']) == ['boat', 'book-48', 'route-66']

@pytest.mark.parametrize('name', ['arrow-left', 'text-bold', 'add-user', 'google', 'row-of-arrows', 'file', 'wifi'])
def test_signs_stay_out(name): assert D.re.search(D.UI_SIGNS, name)

INNOCENT = 'sparrow context addax profile-cup camera tablet starfish uphill-house checkered-shirt'.split()

@pytest.mark.parametrize('name', INNOCENT)
def test_words_that_only_contain_a_sign_stay(name): assert not D.re.search(D.UI_SIGNS, name)

OUT = ['food/apple_bw.svg', 'animals/contour_bat.svg', 'computer/firefox.svg', 'tools/weapons/gun.svg',
       'boats/sailing_jib1.svg']
IN = ['food/apple.svg', 'tools/hammer.svg', 'animals/mammals/tiger.svg', 'boats/sailing_boat.svg']

@pytest.mark.parametrize('path, out', [*((p, True) for p in OUT), *((p, False) for p in IN)])
def test_clipart_paths(path, out): assert bool(D.re.search(D.SOURCES['clipart'].leave_out, path)) == out

def test_single_things():
    groups = {'Animals & Nature': ['owl'], 'Flags': ['flag-france'], 'Symbols': ['input-numbers'],
              'Travel & Places': ['four-o-clock', 'four-thirty'],
              'People & Body': ['astronaut', 'family-man-woman-girl', 'man-walking', 'person-walking']}
    known = {n: D.NamedThing(g) for g,names in groups.items() for n in names}
    assert {*D.single_things(known)} == {'owl', 'astronaut', 'person-walking'}


# --- captions

KEYS = ''.join(f'<rdf:li>{k}</rdf:li>' for k in ('Animal', '', 'hash(0x1)', 'ada example', 'big cat'))
CREATOR = '<dc:creator><cc:Agent><dc:title>Ada Example</dc:title></cc:Agent></dc:creator>'
SVG = '<svg xmlns:rdf="r" xmlns:dc="d" xmlns:cc="c"><dc:title>{title}</dc:title>' + CREATOR + KEYS + '</svg>'
TITLES = [('Tiger', 'x_01', 'tiger'), ('Orso', 'x', 'bear'), ('AfricanDrum3', 'x', 'african drum'),
          ('Cat cat', 'x', 'cat'),
          ('Series of 99', 'red_house_ada_01', 'red house'), ('', 'rana02_ada_e_01', 'frog'),
          ('One two three four five six', 'x', 'one two three four')]

@pytest.mark.parametrize('title, stem, text', TITLES)
def test_clipart_words(title, stem, text, tmp_path):
    got, tags = D.clipart_words(tmp_path/f'{stem}.svg', SVG.format(title=title), {'Series of 99'})
    assert got == text and tags == ('animal', 'big cat')

def test_clipart_is_read_with_its_licence(tmp_path):
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
    body = head + '<rect width="9" height="9"/><x href="{}"/></svg>'
    (tmp_path/'food').mkdir()
    free, other = 'http://web.resource.org/cc/PublicDomain', 'http://creativecommons.org/licenses/GPL/2.0/'
    for name, licence in dict(apple=free, pear=other, plum_bw=free).items():
        (tmp_path/'food'/f'{name}.svg').write_text(body.format(licence))
    (tmp_path/'food'/'copy.svg').symlink_to(tmp_path/'food'/'apple.svg')
    assert [d.name for d in D.read_clipart(D.SOURCES['clipart'], tmp_path)] == ['apple']


# --- splits

@pytest.mark.parametrize('name', TEST_NAMES)
def test_names_that_were_held_back_stay_so(name):
    assert D.split_of(name) == D.split_among(name, {name}) == D.split_among(name, {}) == 'test'

@pytest.mark.parametrize('name', ['two-owls', 'sleepy-owl', 'owl-2', 'toy-birthday-cake-candle', 'car-taxi'])
def test_names_that_hold_a_test_name_are_held_back(name):
    assert D.split_among(name, dict.fromkeys(TEST_NAMES)) == 'test'

def test_a_known_name_keeps_its_split():
    known = dict.fromkeys(f'name-{i}-owl' for i in range(200)) | dict.fromkeys(TEST_NAMES)
    assert all(D.split_among(n, known) == D.split_of(n) for n in known)
    assert {D.split_of(n) for n in known} == {'train', 'val', 'test'}


# --- pixels

BAR = np.pad(picture('box', r=20, size=41, at=(20, 20))[18:24], ((0, 40), (0, 0), (0, 0)))

@pytest.mark.parametrize('image, reason', [
    (picture(), ''), (picture('box', (128, 128, 128)), ''), (BAR, 'a mere line'),
    (picture(colour=(0, 0, 0)), 'black and white'),
    (np.zeros((64, 64, 4), np.uint8), 'hardly anything drawn'), (picture(r=3), 'hardly anything drawn')])
def test_faults(image, reason): assert D.fault(image) == reason

def test_a_page_of_its_own_is_no_thing():
    page = np.full((64, 64, 4), 255, np.uint8)
    page[..., :3] = np.arange(64)[:, None, None]*2 + 60
    page[20:40, 20:40, :3] = (200, 30, 30)
    assert D.is_scene(page) and D.fault(page, scenes=False) == 'a page of its own' and D.fault(page) == ''
    assert not D.is_scene(picture())

def test_svg_keeps_its_transparency_and_its_place():
    box = '<rect x="3" width="1" height="1" fill="#00f"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="4mm" height="2mm" viewBox="0 0 4 2">{box}</svg>'
    page, cut = D.draw_svg(svg, 64), D.draw_svg(svg, 64, crop=True)
    assert page[0, 0, 3] == 0 and tuple(page[20, 56]) == (0, 0, 255, 255)   # a wide page in the middle of its square
    assert tuple(cut[32, 32]) == (0, 0, 255, 255)
    with pytest.raises(StylekitError, match='empty'): D.draw_svg(svg.replace('#00f', 'white'), 64, crop=True)


# --- near-duplicates

COPIES = dict(shifted=dict(at=(40, 56)), recoloured=dict(colour=(30, 90, 210)), smaller=dict(r=22), mirrored={},
              darker=dict(colour=(120, 30, 20)))

@pytest.mark.parametrize('kind', COPIES)
@pytest.mark.parametrize('shape', ['disc', 'box', 'cross'])
def test_near_duplicates_are_found(kind, shape):
    copy = picture(shape, **COPIES[kind])
    copy = copy[:, ::-1] if kind == 'mirrored' else copy
    others = np.stack([picture(s, r=26) for s in ('disc', 'box', 'cross') if s != shape])
    whole = D.fingerprint(np.concatenate([others, picture(shape)[None]]))
    assert D.near_duplicates(D.fingerprint(copy[None]), whole).tolist() == [2]
    assert D.near_duplicates(D.fingerprint(copy[None]), whole[:2]).tolist() == [-1]

def test_no_twin_of_a_test_picture_is_trained_on():
    splits = dict(a='test', b='train', c='train', d='val')
    P = [D.Picture('noto', n, n, (), s, 0, False) for n,s in splits.items()]
    prints = D.fingerprint(np.stack([picture(), picture(colour=(9, 200, 9)), picture('cross'), picture(at=(44, 50))]))
    assert [p.name for p in D.apart(P, prints)] == ['a', 'c']

def test_one_of_equal_drawings_but_both_of_two_colours():
    images = np.stack([picture(), picture(), picture(colour=(30, 90, 210)), picture('box')])
    assert D.first_of_twins(D.fingerprint(images), D.coarse_colours(images)) == [0, 2, 3]


# --- a corpus from packages

@pytest.fixture(scope='module')
def packages(tmp_path_factory):
    "Three sets that draw the same things, in the layouts of the real packages"
    root = tmp_path_factory.mktemp('packages')
    names = ('owl', 'cat', 'red-apple', 'grinning-face', 'flag-france')
    def about(n): return dict(slug=n.replace('-', '_'), group='Flags' if n.startswith('flag') else 'Animals & Nature')
    emoji = {chr(0x1f600+i): about(n) for i,n in enumerate(names)}
    for look in ('names', 'shaded', 'openmoji', 'fluent'): (root/look).mkdir()
    (root/'names'/'data-by-emoji.json').write_text(json.dumps(emoji))
    def body(i, colour):
        bar = f'<rect x="{4+3*i}" y="6" width="5" height="{3+4*i}" fill="#123"/>'
        return f'<circle cx="16" cy="16" r="{8+2*i}" fill="{colour}"/>{bar}'
    for look, colour in dict(shaded='#c52', openmoji='#25c', fluent='#2a5').items():
        icons = {n: dict(body=body(i, colour)) for i,n in enumerate(names)}
        if look == 'fluent':
            icons = {f'{n}-{s}': v for n,v in icons.items() for s in (16, 48)}
            icons['arrow-up-16'] = dict(body=body(1, colour))
        (root/look/'icons.json').write_text(json.dumps(dict(icons=icons, width=32, height=32)))
    return {p.name: p for p in root.iterdir()}

def test_corpus(packages, tmp_path):
    out = D.write_corpus(packages, tmp_path, ('shaded', 'fluent', 'openmoji'), report=None)
    corpus = D.Corpus(tmp_path)
    assert {p.name for p in corpus.all if p.look == 'shaded'} <= {'owl', 'cat', 'red-apple', 'grinning-face'}
    assert not any('arrow' in p.name for p in corpus.all) and out.keys() == {'shaded', 'fluent', 'openmoji'}
    assert {p.look for p in corpus.pictures('test')} == {'shaded', 'fluent'}
    assert all(p.name == 'owl' for p in corpus.pictures('test'))
    images = corpus.images(corpus.all)
    assert images.shape == (len(corpus.all), 128, 128, 4) and len({a.tobytes() for a in images}) == len(images)
    made = corpus.pictures('test', ('pixel', 'watercolour'))
    assert [p.look for p in made] == ['pixel', 'watercolour']
    assert not np.array_equal(*corpus.images(made))

def test_corpus_is_the_same_twice(packages, tmp_path):
    for d in ('a', 'b'):
        D.write_corpus(packages, tmp_path/d, ('shaded', 'fluent'), size=32, report=None)
    assert (tmp_path/'a'/'pictures.json').read_text() == (tmp_path/'b'/'pictures.json').read_text()

def test_pictures_come_in_the_order_asked_for(packages, tmp_path):
    "Read in several threads, made ones among them"
    D.write_corpus(packages, tmp_path, ('shaded', 'fluent'), size=32, report=None)
    corpus = D.Corpus(tmp_path)
    mixed = [*corpus.all, *corpus.pictures('train', ('pixel', 'watercolour'))][::-1]
    whole = corpus.images(mixed)
    assert len(whole) == len(mixed) > 4
    for image, p in zip(whole, mixed): assert np.array_equal(image, corpus.images([p], threads=1)[0])
    with pytest.raises(StylekitError, match='no such pictures'): corpus.images([])

def test_no_corpus_is_said(tmp_path):
    with pytest.raises(StylekitError, match='no corpus in'): D.Corpus(tmp_path)


# --- styles by rule

@pytest.mark.parametrize('make', D.MADE.values(), ids=list(D.MADE))
def test_made_styles(make):
    image = picture(size=128, at=(64, 64), r=44)
    out = make(image)
    assert out.shape == image.shape and out.dtype == np.uint8 and np.array_equal(make(image), out)
    assert not np.array_equal(D.on_white(out), D.on_white(image)) and out[0, 0, 3] == 0
    seen = [D.thing_box(a) for a in (image, out)]
    assert all(abs(a-b) <= 8 for a,b in zip(*seen))                                   # the thing stays where it was
    assert make(np.zeros_like(image))[..., 3].max() == 0                              # nothing stays nothing
