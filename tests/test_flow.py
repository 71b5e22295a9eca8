"Flow models behind the one backbone: the arithmetic of a velocity, and the whole loop on it"
import pytest, torch
from stylekit import Callback, Checkpoint, load_backbone, load_style, sample_image, settings, stylize
from stylekit.core import asset
from stylekit.methods.rivals import METHODS, img2img
from stylekit.scores import Score, scores
from stylekit.stylizer import Interrupted, Stylizer

OWL = sample_image('owl').resize((64, 64))

@pytest.fixture(scope='module')
def flow(models): return load_backbone(models('flow'))


def velocity(b, x, t, cond):
    "What the UNet itself answers, told 1000·σ"
    return b.unet(x, 1000*b.noising.sigma(t).flatten(), cond.expand(len(x)).embeds).sample

def test_epsilon_is_read_off_the_velocity(flow):
    z, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([50, 700]), flow.encode_prompt(['an owl', ''])
    sigma = flow.noising.sigma(t)
    x = flow.add_noise(z, noise, t)
    torch.testing.assert_close(x, (1-sigma)*z+sigma*noise)
    with torch.no_grad(): v = velocity(flow, x, t, cond)
    torch.testing.assert_close(flow.predict(x, t, cond), x+(1-sigma)*v)
    torch.testing.assert_close(flow.read_off(x, flow.predict(x, t, cond), t), x-sigma*v, atol=1e-4, rtol=1e-4)
    assert flow.prediction_type == 'flow_prediction' and 'flow' in repr(flow)

def test_identities_of_the_spec(flow):
    "Δε̂ = (1 − σ)·Δv at one x; and with (z − z_src) where the noise is shared and x is not"
    g = torch.Generator().manual_seed(1)
    z, z_src, noise = torch.randn(3, 2, 4, 8, 8, generator=g)
    for t in torch.tensor([[20, 250], [500, 900]]):
        sigma = flow.noising.sigma(t)
        styled, plain = (flow.encode_prompt(p) for p in ('black ink drawing', 'an owl'))
        x, x_src = (flow.add_noise(a, noise, t) for a in (z, z_src))
        score = Score(flow)
        here, other, there = scores(t, (score, x, styled), (score, x, plain), (score, x_src, plain))
        with torch.no_grad():
            v, v_other = velocity(flow, x, t, styled), velocity(flow, x, t, plain)
            v_there = velocity(flow, x_src, t, plain)
        torch.testing.assert_close(here-other, (1-sigma)*(v-v_other), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(here-there, (1-sigma)*(v-v_there+z-z_src), atol=1e-4, rtol=1e-4)

def test_the_fake_score_of_the_source_follows_the_identity(flow, random_style):
    "What the default method goes down, from velocities, with the style's adapter in one of them"
    style = load_style(random_style(flow))
    run = Stylizer(flow, style, settings(adapt='none'), [OWL], ['an owl'], seeds=[0])
    try:
        noise = torch.randn(run.z.shape, generator=torch.Generator().manual_seed(2))
        z, t = run.z+.3*noise.flip(-1), torch.tensor([400])
        sigma, c = flow.noising.sigma(t), run.method.conds
        flow.set_adapters(('style',))
        with torch.no_grad(): v = velocity(flow, flow.add_noise(z, noise, t), t, c.styled)
        flow.set_adapters(())
        with torch.no_grad(): v_src = velocity(flow, flow.add_noise(run.z_src, noise, t), t, c.plain)
        g = run.method.direction(run.method.step(z, t, noise)).g
        torch.testing.assert_close(g, (1-sigma)*(v-v_src+z-run.z_src), atol=1e-4, rtol=1e-4)
    finally: run.close()


@pytest.mark.parametrize('method', [None, *METHODS])
def test_every_method_runs_on_a_flow(flow, random_style, method):
    terms = dict(terms=dict(draws=2)) if method == 'img2img' else {}
    style = asset('samples', 'taxi.ink.png') if method == 'ad' else random_style(flow)
    r = stylize(OWL, style, 'an owl', backbone=flow, method=method, steps=2, seed=0, **terms)
    assert r.complete and r.image.size == (64, 64)
    assert all(torch.isfinite(torch.tensor(v)).all() for v in r.history.values())
    assert not getattr(flow.unet, 'peft_config', {})

class Halt(Callback):
    "Ctrl-C after two steps"
    def after_step(self, run):
        if run.k == 2: raise Interrupted

def test_resume_is_bit_equal(flow, random_style, tmp_path):
    path, style = random_style(flow), tmp_path/'run.pt'
    def go(*callbacks): return stylize(OWL, path, 'an owl', backbone=flow, steps=4, seed=0, callbacks=[*callbacks])
    full = go()
    part = go(Halt(), Checkpoint(style, 1))
    assert not part.complete
    rest = go(Checkpoint(style, 1))
    assert rest.complete and rest.image.tobytes() == full.image.tobytes() and rest.history == full.history

def test_img2img_takes_the_samplers_own_steps(flow):
    "Euler's steps down the velocity, as a flow's own samplers go"
    z, cond, empty = torch.randn(1, 4, 8, 8), flow.encode_prompt('an owl'), flow.encode_prompt('')
    got = img2img(flow, z, cond, empty, .5, [torch.Generator().manual_seed(0)], 3, 2., ())
    ts = [torch.tensor([t]) for t in (500, 250, 1)]
    x = flow.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), ts[0])
    for t, after in zip(ts, [*ts[1:], torch.tensor([-1])]):   # σ = 0
        with torch.no_grad(): v, v_empty = velocity(flow, x, t, cond), velocity(flow, x, t, empty)
        x = x + (flow.noising.sigma(after)-flow.noising.sigma(t))*(v_empty+2*(v-v_empty))
    torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)
