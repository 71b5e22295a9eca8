"What must stay: every way to say it, what is wrong with it, the soft edge, and the exact pixels at the end of a run"
import math, pickle, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageDraw
from stylekit import load_backbone, sample_image, stylize
from stylekit.core import StylekitError
from stylekit.feedforward import FeedForward, StyleNet
from stylekit.folders import stylize_folder
from stylekit.regions import (Protection, alpha, as_regions, boxes, feather, letters, logos, mask, mask_pixels,
                              mask_url, otsu_threshold, protect_pictures, region_mask, region_texts,
                              restore_pixels, words)
from stylekit.images import open_image

@pytest.fixture(scope='module')
def base(models): return load_backbone(models('small'))

@pytest.fixture(scope='module')
def style(base, random_style): return random_style(base)

def owl(size=(64, 64)): return sample_image('owl').resize(size)
def pixels(im): return np.asarray(im.convert('RGB')).astype(int)
def go(base, style, image=None, **kw):
    return stylize(owl() if image is None else image, style, 'an owl', backbone=base, **dict(steps=2, seed=3) | kw)

@pytest.fixture(scope='module')
def noisy(small_network):
    "A network that changes every pixel"
    return FeedForward.load(small_network)


# ---- how it is said ----

BAD = [
    ((3, 0, 1, 5), 'is empty'), ((0, 0, 0, 5), 'is empty'), ((0, 0, float('nan'), 5), 'box'),
    ('box:1,2,3', r'\(x0, y0, x1'), ('box:a,b,c,d', 'write box:x0,y0,x1,y1'),
    ('box:', 'write box'), ('logo:1,2', r'\(x0, y0, x1'), ('logo:a', 'write logo:x0'),
    ('words:', 'no word'), ('words: ', 'no word'), ('letters+', 'is empty'), ('+', 'is empty')]

@pytest.mark.parametrize('bad,said', BAD, ids=str)
def test_what_is_no_region(bad, said):
    with pytest.raises(StylekitError, match=said): as_regions(bad)

def test_constructors_refuse():
    wrong = [lambda: words(''), lambda: words(None), lambda: words(3), boxes, lambda: boxes((1, 2)), lambda: boxes(3),
             lambda: alpha(1.5), lambda: letters(-1), lambda: letters(strength=math.nan), lambda: boxes('abcd')]
    for make in wrong:
        with pytest.raises(StylekitError): make()

def test_all_ways_of_saying(tmp_path):
    grey = np.zeros((9, 9))
    given = ['alpha', alpha(.5), (1, 2, 3, 4), [1, 2, 3, 4], 'box:1,2,3,4+letters', words('the label'), grey,
             Path('m.png')]
    assert [r.kind for r in as_regions(given)] == 'alpha alpha boxes boxes boxes letters words mask mask'.split()
    for none in (None, False, '', [], [[]], [None]): assert as_regions(none) == []
    for region in as_regions(given): assert pickle.loads(pickle.dumps(region)).kind == region.kind
    assert as_regions((np.int64(1), np.float32(2), 3, 4))[0].what == ((1, 2., 3, 4),)

def test_a_file_wins_over_the_language(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new('L', (64, 64), 255).save('a+b.png')
    assert region_mask('a+b.png', owl()).min() == 1

@pytest.mark.parametrize('bad', [7, {}, object(), 'nowhere.png', np.zeros((64, 64, 7)), np.full((64, 64), 3.), b'abc'])
def test_what_is_no_mask(bad):
    with pytest.raises(StylekitError): region_mask(bad, owl())


# ---- masks ----

@pytest.mark.parametrize('size', [(64, 64), (40, 70), (17, 31)])
def test_masks_have_the_picture_s_size_and_range(size):
    im = Image.new('RGBA', size, (9, 9, 9, 0))
    im.paste((200, 0, 0, 128), (2, 3, 10, 12))
    for p in (None, 'alpha', (0, 0, *size), (1, 2, 9, 9), Image.new('L', size, 77), ['alpha', (0, 0, 3, 3)]):
        m = region_mask(p, im)
        assert m.shape == size[::-1] and m.dtype == torch.float32 and 0 <= m.min() <= m.max() <= 1
    a = region_mask('alpha', im)
    assert torch.allclose(a*255, torch.from_numpy(np.array(im)[..., 3]).float()) and a.sum() > 0

def grey_kinds(): # one mask in every form
    a = np.zeros((64, 64), np.uint8)
    a[10:30, 5:50], a[40:50] = 255, 128
    l = Image.fromarray(a)
    rgba = Image.merge('LA', (l, Image.fromarray(255*(a > 0).astype(np.uint8))))
    wide = Image.fromarray(a.astype(np.uint16)*257)
    t = torch.from_numpy(a)
    return a, [l, a, a/255., t, t[None]/255, l.convert('RGB'), rgba, wide, mask_url(l)]

@pytest.mark.parametrize('i', range(9))
def test_a_mask_in_every_form(i, tmp_path):
    a, kinds = grey_kinds()
    assert np.allclose(region_mask(kinds[i], owl()).numpy()*255, a, atol=.6)

def test_a_mask_s_file_of_any_name(tmp_path):
    a, (l, *_) = grey_kinds()
    l.save(tmp_path/'マスク ü.png')
    for path in (tmp_path/'マスク ü.png', str(tmp_path/'マスク ü.png')):
        assert np.allclose(region_mask(path, owl())*255, a, atol=.6)

def test_what_is_transparent_in_a_mask_is_not_protected():
    layer = Image.new('RGBA', (64, 64), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 10, 10))
    m = region_mask(layer, owl())
    assert m[:10, :10].min() == 1 and m[12:, 12:].max() == 0

def test_boxes_are_pixels():
    m = region_mask(boxes((1, 2, 4, 6), (10.2, 10.2, 12.5, 11)), owl())
    truth = torch.zeros(64, 64)
    truth[2:6, 1:4] = truth[10:11, 10:13] = 1
    assert torch.equal(m, truth)
    for bad in ((-1, 0, 4, 4), (0, 0, 65, 4), (0, 60, 4, 65), (100, 100, 110, 110)):
        with pytest.raises(StylekitError, match=r'does not lie in the picture of 64×64'): region_mask(bad, owl())

@pytest.mark.parametrize('ground', ['white', 'gradient', 'noise'])
@pytest.mark.parametrize('size', [64, 300])
def test_a_logo_is_cut_out_of_its_box(ground, size):
    "In its own shape, with its holes; the box's corners are ground"
    x = np.linspace(60, 200, size)[None, :, None].repeat(size, 0).repeat(3, 2)
    if ground == 'noise': x = np.random.default_rng(3).integers(60, 200, (size, size, 1)).repeat(3, 2)
    im = Image.new('RGB', (size, size), 'white') if ground == 'white' else Image.fromarray(np.uint8(x))
    lo, hi = size//4, 3*size//4
    draw, truth = ImageDraw.Draw(im), Image.new('L', im.size)
    draw.ellipse((lo, lo, hi, hi), fill='#0b4f3a')
    draw.ellipse((size*3//8, size*3//8, size*5//8, size*5//8), fill='#ffe14d')
    ImageDraw.Draw(truth).ellipse((lo, lo, hi, hi), fill=255)
    found, truth = region_mask(logos((lo, lo, hi+1, hi+1)), im).numpy() > 0, np.array(truth) > 0
    assert (found & truth).sum()/(found | truth).sum() > (.8 if size == 64 else .95)
    with pytest.raises(StylekitError, match='does not lie in'): region_mask(logos((0, 0, size+1, 9)), im)

def test_regions_combine_by_maximum():
    parts = [boxes((0, 0, 40, 40), strength=.4), boxes((20, 20, 64, 64), strength=.7), (30, 30, 34, 34)]
    each = [region_mask(p, owl()) for p in parts]
    assert torch.equal(region_mask(parts, owl()), torch.stack(each).amax(0))
    assert sorted(region_mask(parts, owl()).unique().tolist()) == pytest.approx([0, .4, .7, 1])

def test_an_opaque_picture_has_no_alpha():
    with pytest.raises(StylekitError, match='no transparency'): region_mask('alpha', owl())

def test_no_letters_are_said(monkeypatch):
    from stylekit import regions
    monkeypatch.setattr(regions, 'read_letters', lambda *_: [])
    with pytest.warns(UserWarning, match='no letters were found'): assert region_mask('letters', owl()).sum() == 0

def test_letters_grow_by_their_margin(monkeypatch):
    "Where nothing tells strokes from ground, the whole line stays"
    from stylekit import regions
    from stylekit.letters import Line
    line = Line('ab', ((20, 20), (40, 20), (40, 30), (20, 30)), 1.)
    monkeypatch.setattr(regions, 'read_letters', lambda *_: [line])
    for margin, grown in ((0, 0), (.5, 5)):
        ys, xs = torch.nonzero(region_mask(letters(margin), Image.new('RGB', (64, 64), 'grey')), as_tuple=True)
        box = xs.min().item(), ys.min().item(), xs.max().item(), ys.max().item()
        assert np.abs(np.array(box)-(20-grown, 20-grown, 40+grown, 30+grown)).max() <= 1

def test_words_are_found_the_same_way_again(base):
    m, again = (region_mask('words:owl', owl((96, 64)), 'an owl', base) for _ in 'ab')
    assert m.shape == (64, 96) and m.isfinite().all() and torch.equal(m, again)
    assert region_mask('words:the label', owl(), 'an owl', base).isfinite().all()   # words that the caption lacks

def test_words_wait_for_nobody(base):
    "A model that draws for another run is not asked meanwhile"
    with base.lease('somebody'):
        with pytest.raises(StylekitError, match='drawing for another'): region_mask('words:owl', owl(), 'an owl', base)

@pytest.mark.parametrize('seed', range(4))
def test_the_threshold_is_that_of_another_implementation(seed):
    from skimage.filters import threshold_otsu
    g = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.rand(400, generator=g)*.4, .5+torch.rand(200+99*seed, generator=g)*.5])
    t = threshold_otsu(x.numpy(), 256)
    assert (((x > otsu_threshold(x)) != (x > t)).float().mean()) < .01


# ---- the soft edge ----

@pytest.mark.parametrize('width', [0, 1, 3, 8, 20, 300])
@pytest.mark.parametrize('size', [(1, 1), (1, 30), (7, 5), (64, 48)])
def test_a_feather_lies_outside(width, size):
    m = (torch.rand(*size, generator=torch.Generator().manual_seed(1)) > .98).float()
    f = feather(m, width)
    assert f.shape == m.shape and (f >= m).all() and f.max() <= 1 and torch.equal(f[m == 1], m[m == 1])
    assert torch.equal(feather(torch.zeros(*size), width), torch.zeros(*size))
    assert torch.equal(feather(torch.ones(*size), width), torch.ones(*size))

def test_a_feather_falls_and_ends():
    from scipy.ndimage import distance_transform_cdt
    m = torch.zeros(80, 80)
    m[30:50, 30:50] = 1
    f, d = feather(m, 12).numpy(), distance_transform_cdt(1-m.numpy(), 'chessboard')
    means = [f[d == k].mean() for k in range(20)]
    assert all(a >= b for a, b in zip(means, means[1:])) and f[d > 13].max() == 0 and .3 < means[6] < .7
    assert f[d == 1].min() > .5   # no cut at the edge

@pytest.mark.parametrize('seed', range(3))
def test_only_the_mask_and_its_edge_change(seed):
    "White is the content's, and what is further away than the edge is the result's, whatever the mask"
    from scipy.ndimage import distance_transform_cdt
    rng = np.random.default_rng(seed)
    a, b = (Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in range(2))
    m = torch.from_numpy(rng.random((7, 9)) > .85).float().repeat_interleave(10, 0).repeat_interleave(10, 1)
    out, white = pixels(restore_pixels(a, b, m, 6)), m.numpy() == 1
    far = distance_transform_cdt(1-m.numpy(), 'chessboard') > 8
    assert np.array_equal(out[white], pixels(b)[white]) and np.array_equal(out[far], pixels(a)[far])

def test_strengths_are_shares():
    red, blue = (Image.new('RGB', (40, 30), c) for c in ('red', 'blue'))
    for s in (0, .25, .5, 1):
        out = pixels(restore_pixels(red, blue, torch.full((30, 40), float(s))))
        assert abs(out-np.array([255*(1-s), 0, 255*s])).max() <= .51


# ---- a run ----

def left(size=(64, 64)):
    m = Image.new('L', size)
    m.paste(255, (0, 0, size[0]//2, size[1]))
    return m

@pytest.mark.parametrize('size', [(64, 64), (90, 61), (200, 150)])
def test_white_is_the_content_to_the_last_bit(base, style, noisy, size):
    im = owl(size)
    for result in (go(base, style, im, protect=left(size)), noisy(im, protect=left(size))):
        a, b = pixels(result.image), pixels(im)
        assert np.array_equal(a[:, :size[0]//2], b[:, :size[0]//2]) and not np.array_equal(a, b)
        assert result.info['protect']['restored'] and len(result.info['protect']['mask']) == 64

def test_without_a_mask_nothing_changes(base, style, noisy):
    free = go(base, style)
    for none in (None, False, '', []):
        r = go(base, style, protect=none)
        assert r.image.tobytes() == free.image.tobytes() and r.info == free.info
        assert noisy(owl(), protect=none).info == noisy(owl()).info
    assert 'protect' not in free.info

def test_outside_of_the_edge_it_is_the_run_s(base, style, noisy):
    kept, held = (go(base, style, protect=left(), restore=r) for r in (True, False))
    assert np.array_equal(pixels(kept.image)[:, 45:], pixels(held.image)[:, 45:])
    assert not np.array_equal(pixels(held.image)[:, :32], pixels(owl())[:, :32])   # as the autoencoder shows it
    assert kept.info['run_id'] != held.info['run_id'] and not held.info['protect']['restored']
    a, b = (pixels(noisy(owl(), protect=p).image) for p in (left(), None))
    assert np.array_equal(a[:, 45:], b[:, 45:])

def test_each_picture_has_its_own_mask(base, style):
    ims = [owl(), owl((128, 128))]
    clip = [im.convert('RGBA') for im in ims]
    for im in clip: im.paste((0, 0, 0, 0), (0, 0, im.width//2, im.height))
    for r, im in zip(go(base, style, clip, protect='alpha'), clip):
        a, b, seen = pixels(r.image), pixels(im), np.asarray(im)[..., 3] == 255
        assert np.array_equal(a[seen], b[seen])
    one, two = go(base, style, ims, protect=(8, 8, 40, 40))
    assert np.array_equal(pixels(one.image)[8:40, 8:40], pixels(ims[0])[8:40, 8:40])
    assert np.array_equal(pixels(two.image)[8:40, 8:40], pixels(ims[1])[8:40, 8:40])
    one, two = one.info['protect'], two.info['protect']
    assert one['mask'] != two['mask'] and one['regions'] == ['box 8,8,40,40']

def test_what_is_wrong_is_said_before_any_work(base, style, noisy):
    from stylekit.stylizer import Callback
    class Never(Callback):
        def before_run(self, run): raise AssertionError('work')
    for bad in ('alpha', (0, 0, 500, 9), 'box:1', 'words:', 'nowhere.png', Image.new('L', (64, 20))):
        with pytest.raises(StylekitError): go(base, style, protect=bad, callbacks=[Never()])
        with pytest.raises(StylekitError): noisy(owl(), protect=bad)

def test_a_checkpoint_knows_what_stays(base, style, tmp_path):
    from stylekit.stylizer import Callback, Checkpoint, Interrupted
    class Stop(Callback):
        def after_step(self, run):
            if run.k == 2: raise Interrupted
    how = dict(steps=4, protect=[left(), 'box:40,0,60,9'])
    whole = go(base, style, **how)
    assert not go(base, style, callbacks=[Checkpoint(tmp_path/'c.pt'), Stop()], **how).complete
    with pytest.raises(StylekitError): go(base, style, callbacks=[Checkpoint(tmp_path/'c.pt')], steps=4, protect=left())
    again = go(base, style, callbacks=[Checkpoint(tmp_path/'c.pt')], **how)
    assert again.image.tobytes() == whole.image.tobytes() and again.info == whole.info

def test_what_is_drawn_over_later_stays_as_it_is_then(base, style):
    from stylekit.stylizer import Callback
    class At(Callback):
        def __init__(self, k): self.k = k
        def after_step(self, run):
            if run.k == self.k: run.change(protect=left())
    late = pixels(go(base, style, steps=4, callbacks=[At(3)]).image)
    assert not np.array_equal(late[:, :32], pixels(owl())[:, :32])   # its pixels had changed before
    narrowed = go(base, style, steps=4, protect=Image.new('L', (64, 64), 255), callbacks=[At(2)])
    assert np.array_equal(pixels(narrowed.image)[:, :32], pixels(owl())[:, :32])
    assert not np.array_equal(pixels(narrowed.image)[:, 45:], pixels(owl())[:, 45:])

def test_a_recipe_gives_the_same_again(base, style, models, tmp_path):
    from stylekit.app.live import LiveRun, replay
    live = LiveRun(owl(), str(style), 'an owl', backbone=base, steps=2, seed=0, protect='box:4,4,40,30')
    while live.advance(): pass
    assert live.state == 'done', live.note
    again = replay(live.recipe, owl(), backbone=base, style=str(style))
    assert again.image.tobytes() == live.result.image.tobytes()
    assert np.array_equal(pixels(again.image)[4:30, 4:40], pixels(owl())[4:30, 4:40])


# ---- text of masks ----

def test_protections_are_written_and_read():
    ims = [open_image(owl()), open_image(owl((96, 96)))]
    for p in (None, left(), (1, 1, 9, 9)):
        made = protect_pictures(p, ims, ['', ''])
        assert Protection.of(made.text, 2).urls == made.urls == protect_pictures(made.text, ims, ['', '']).urls
    for url, im in zip(made.urls, ims): assert torch.equal(mask_pixels(url, im.size), region_mask((1, 1, 9, 9), im))
    assert mask_pixels('', (5, 4)).shape == (4, 5)
    texts = [region_texts(p) for p in ('letters', letters(.5), 'alpha', alpha(.5), left(), (1, 1, 9, 9), (1, 1, 9, 8),
                                     logos((1, 1, 9, 9)))]
    assert len({*map(str, texts)}) == len(texts)


# ---- folders ----

@pytest.fixture
def home(tmp_path):
    for n in ('owl', 'penguin'):
        (tmp_path/'in'/'a').mkdir(parents=True, exist_ok=True)
        sample_image(n).resize((64, 64)).save(tmp_path/'in'/'a'/f'{n}.png')
    return tmp_path

def test_a_folder_of_masks(home, noisy):
    net, masks = noisy.save(home/'net'/'feedforward.safetensors'), home/'masks'
    (masks/'a').mkdir(parents=True)
    left().save(masks/'a'/'owl.tif')
    go = lambda: stylize_folder(home/'in', home/'out', feedforward=net, protect=masks)
    assert list(go().failed) == ['a/penguin.png'] and 'no mask' in go().failed['a/penguin.png']
    a, b = (pixels(Image.open(home/d/'a'/'owl.png')) for d in ('in', 'out'))
    assert np.array_equal(a[:, :32], b[:, :32]) and not np.array_equal(a, b)
    Image.new('L', (64, 64)).save(masks/'a'/'penguin.png')
    assert [go().made, go().made] == [1, 0] and not go().failed
    Image.new('L', (64, 64), 255).save(masks/'a'/'owl.tif')   # another mask: made anew
    assert go().made == 1 and np.array_equal(a, pixels(Image.open(home/'out'/'a'/'owl.png')))
    left().save(masks/'a'/'owl.png')
    assert '2 masks' in go().failed['a/owl.png']

def test_a_folder_tells_what_stays_apart(home, noisy):
    net = noisy.save(home/'net'/'feedforward.safetensors')
    run = lambda **kw: stylize_folder(home/'in', home/'out', feedforward=net, **kw)
    assert run(protect='box:0,0,9,9').made == 2 and run(protect=(0, 0, 9, 9)).made == 0
    for other in (None, (0, 0, 9, 8), 'letters'):
        with pytest.raises(StylekitError, match='another run'): run(protect=other)
    with pytest.raises(StylekitError, match='lie among the pictures'): run(protect=home/'in'/'a')

def test_a_picture_s_fault_stays_its_own(home, noisy):
    clip = sample_image('taxi').resize((64, 64)).convert('RGBA')
    clip.paste((0, 0, 0, 0), (0, 0, 20, 64))
    clip.save(home/'in'/'clip.png')
    net = noisy.save(home/'net'/'feedforward.safetensors')
    done = stylize_folder(home/'in', home/'out', feedforward=net, protect='alpha')
    assert done.made == 1 and sorted(done.failed) == ['a/owl.png', 'a/penguin.png']
    assert all('no transparency' in e for e in done.failed.values())

def test_a_folder_by_optimisation_is_what_single_runs_are(home, base, style, models):
    how = dict(backbone=models('small'), steps=2)
    stylize_folder(home/'in', home/'out', style, protect='box:4,4,30,30', **how)
    one = go(base, style, Image.open(home/'in'/'a'/'owl.png'), protect=(4, 4, 30, 30), seed=0)
    a, b = pixels(Image.open(home/'out'/'a'/'owl.png')), pixels(Image.open(home/'in'/'a'/'owl.png'))
    assert np.array_equal(a[4:30, 4:30], b[4:30, 4:30]) and np.array_equal(a[4:30, 4:30], pixels(one.image)[4:30, 4:30])
