"Views of the embedded model's pictures: what is random, what is said of it, and that nothing else changes"
from dataclasses import replace
import numpy as np, pytest, torch
from stylekit.mini import views as V
from stylekit.mini.data import Picture, sample_corpus
from stylekit.mini.vae import white_pixels


@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return sample_corpus(tmp_path_factory.mktemp('views')/'corpus')


def test_views_are_the_same_however_they_are_cut(corpus):
    views = V.Views(corpus, corpus.pictures('train'), seed=9)
    plan = views.plan(np.arange(16), 3)
    whole = views.draw(plan)
    order = np.random.default_rng(0).permutation(16)
    assert torch.allclose(views.draw(plan.part(order)), whole[torch.from_numpy(order)], atol=1e-5)
    again, other = [views.plan(np.arange(16), k) for k in (3, 4)]
    assert (again.texts == plan.texts).all() and (other.theta != plan.theta).any()


def test_every_change_is_said(corpus):
    "Colours and second things are never shown without a word; a ground that is named is there"
    pictures = corpus.pictures('train')
    plan = V.plan_views(pictures, np.arange(16).repeat(60), V.ViewSettings(), np.random.default_rng(5))
    for i, text in enumerate(plan.texts):
        assert pictures[plan.rows[i]].text in text
        assert plan.recoloured[i] == ('in other colours' in text) and plan.pair[i] == (' and ' in text)
        if plan.pair[i]: assert pictures[plan.other[i]].text in text
        if 'pale' in text: assert .82 <= plan.ground[i].min() < 1
        if 'dark' in text: assert plan.ground[i].max() <= .3
        if (plan.ground[i] == 1).all(): assert 'ground' not in text


@pytest.mark.parametrize('tone', range(len(V.GROUNDS)))
def test_grounds(corpus, tone):
    "Every tone within its bounds, in the corners of what is drawn"
    kinds = tuple(float(k == tone) for k in range(len(V.GROUNDS)))
    views = V.Views(corpus, corpus.pictures('train'), V.ViewSettings(pair=0., scale=(.5, .7), ground=kinds), seed=tone)
    x = views.draw(views.plan(np.arange(16), 0))
    low, high = V.GROUND_TONES[tone]
    corners = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]/2 + .5
    inside = (corners >= low-.01) & (corners <= high+.01)
    assert x.abs().max() <= 1.001 and inside.all(1).any(1).all()


def test_a_thing_is_the_same_on_every_ground(corpus):
    planes = V.to_planes(corpus.images(corpus.pictures('train')))
    a, b = [V.over(planes, torch.from_numpy(V.draw_grounds(np.full(16, k), np.random.default_rng(0)))) for k in (0, 2)]
    solid = (planes[:, 3:] == 1).expand_as(a)
    assert torch.equal(a[solid], b[solid]) and not torch.equal(a, b)


@pytest.mark.parametrize('flip', [1., -1.])
def test_what_is_moved_loses_nothing_inside(flip):
    "Half as large, a quarter of it is left; turned, as much as before; and it goes where it is sent"
    n, one = 8, np.ones(8)
    planes = torch.zeros(n, 4, 64, 64)
    planes[..., 24:40, 20:44] = 1
    shift = np.random.default_rng(0).uniform(-.3, .3, (n, 2))
    for scale, turn in ((.5, 0.), (1., .25), (.7, -.2)):
        moved = V.warped(planes, torch.from_numpy(V.affine(scale*one, turn*one, one, flip*one, shift)))
        left = moved.sum((1, 2, 3))/planes[0].sum()
        assert (left-scale**2).abs().max() < .02
        where = torch.linspace(-63/64, 63/64, 64)               # of the pixels, -1 to 1
        share = moved[:, 0]/moved[:, 0].sum((1, 2), keepdim=True)
        centre = torch.stack([(share.sum(1)*where).sum(1), (share.sum(2)*where).sum(1)], 1)
        assert (centre-torch.from_numpy(shift)).abs().max() < .02


def test_still_pictures_keep_every_pixel(corpus):
    shaded = corpus.pictures('train', ('shaded',))
    still = V.ViewSettings(moved=0., recoloured=0., pair=0., ground=(1, 0, 0, 0))
    views, white = V.Views(corpus, shaded, still, seed=2), white_pixels(corpus, shaded)
    plan = views.plan(np.arange(8).repeat(4), 0)
    x = views.draw(plan)
    assert 0 < plan.mirrored.sum() < 32
    for i in range(32):
        want = white[plan.rows[i]]
        assert torch.allclose(x[i], want.flip(-1) if plan.mirrored[i] else want, atol=5e-3)


def test_captions_name_the_look_one_time_in_four():
    rng, p = np.random.default_rng(0), Picture('clipart', 'owl', 'an owl', ('night bird',), 'train', 0, False)
    said = [V.view_caption(p, rng) for _ in range(1000)]
    def share(words): return sum(words in s for s in said)/1000
    assert .2 < share('clip art') < .3 and .15 < share('night bird') < .25
    assert share('ground') == 0 and share('an owl') == 1
    assert .4 < sum(V.GROUNDS[2] in V.view_caption(p, rng, ground=2) for _ in range(300))/300 < .6
    both = [V.view_caption(p, rng, other=replace(p, text='a cat')) for _ in range(300)]
    assert all('an owl and a cat' in s and 'night bird' not in s for s in both)
