"FlowEdit, DVRF, FlowAlign and RFDS against their formulas, written with velocities and nothing of ours"
from contextlib import contextmanager
from dataclasses import replace
import pytest, torch
from stylekit import StylekitError, load_backbone, load_style, sample_image, settings, stylize
from stylekit.methods.flows import FLOWS
from stylekit.stylizer import Stylizer, refine

OWL = sample_image('owl').resize((64, 64))

@pytest.fixture(scope='module', params=['flow', 'klein', 'sd15'])
def base(request, models): return load_backbone(models(request.param))

@pytest.fixture(scope='module')
def style(base, random_style): return load_style(random_style(base))

@contextmanager
def prepared(base, style, name, **changes):
    run = Stylizer(base, style, settings(FLOWS[name], **changes), [OWL], ['an owl'], seeds=[0])
    try: yield run
    finally: run.close()

class Written:
    "Velocities by hand: x on the straight line in, ε − z out"
    def __init__(self, run): self.b, self.c = run.backbone, run.method.conds
    @torch.no_grad()
    def v(self, x, t, cond, styled=False):
        b, sigma = self.b, self.b.noising.sigma(t)
        b.set_adapters(('style',) if styled else ())
        if b.prediction_type == 'flow_prediction': return b.network.ask(x, 1000*sigma.flatten(), cond)
        A = b.alpha_bar(t)   # a diffusion hears the same picture in the same noise, and answers with ε
        eps = b.unet(x*(A.sqrt()+(1-A).sqrt()), t, cond.embeds).sample
        return (eps-x)/(1-sigma)
    def guided(self, x, t, cond, scale, styled=False):
        empty = self.v(x, t, self.c.empty, styled)
        return empty + scale*(self.v(x, t, cond, styled)-empty)

def same(a, b): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

def drawn(run, level=.6):
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(run.z.shape, generator=g)
    t = run.backbone.noising.timesteps(torch.tensor([level]))
    return run.z_src+.3*torch.randn(run.z.shape, generator=g), t, noise, run.backbone.noising.sigma(t)

def answer(run, z, t, noise, progress=0.): return run.method.direction(run.method.step(z, t, noise, progress)).g

def test_flowedit(base, style):
    with prepared(base, style, 'flowedit') as run:
        w, (z, t, noise, s) = Written(run), drawn(run)
        x_src = (1-s)*run.z_src+s*noise
        want = w.guided(z+x_src-run.z_src, t, w.c.styled, 13.5, True)-w.guided(x_src, t, w.c.plain, 3.5)
        def level(u): return 3*u/(1+2*u)
        same(answer(run, z, t, noise), (level(.66)-level(.66*32/33))*want)
        k = 10/33
        same(answer(run, z, t, noise, k), (level(.66*23/33)-level(.66*22/33))*want)

def test_dvrf(base, style):
    with prepared(base, style, 'dvrf') as run:
        w, (z, t, noise, s) = Written(run), drawn(run)
        for eta in (0., .4):                        # η = k/K
            x = (1-s)*z+s*noise+eta*s*(z-run.z_src)
            v_src = w.guided((1-s)*run.z_src+s*noise, t, w.c.plain, 6)
            want = w.guided(x, t, w.c.styled, 16.5, True)-v_src+(1-eta)*(z-run.z_src)
            same(answer(run, z, t, noise, eta), want)

def test_flowalign(base, style):
    with prepared(base, style, 'flowalign') as run:
        w, (z, t, noise, s) = Written(run), drawn(run)
        q = (1-s)*run.z_src+s*noise
        p = z+q-run.z_src
        v, v_q = w.v(p, t, w.c.plain), w.v(q, t, w.c.plain)
        v_p = v + 13.5*(w.v(p, t, w.c.styled, True)-v)
        length = 3*.66/(1+2*.66)-3*.64/(1+2*.64)
        same(answer(run, z, t, noise), length*(v_p-v_q)-.01*((q-s*v_q)-(p-s*v_p)))

def test_rfds(base, style):
    with prepared(base, style, 'rfds', guidance_scale=5.) as run:
        w, (z, t, noise, s) = Written(run), drawn(run)
        v = w.guided((1-s)*z+s*noise, t, w.c.styled, 5., True)
        x = z.clone().requires_grad_()
        (.5*((noise-x)-v).pow(2)).sum().backward()
        same(answer(run, z, t, noise), x.grad)

def test_the_ends_of_dvrf(base, style):
    "η = 0: our source score over 1 − σ; η = 1: FlowEdit's direction over the step's length"
    one = dict(guidance_scale=1.)
    with prepared(base, style, 'dvrf', **one, terms=dict(eta=0., source=1.)) as run:
        z, t, noise, s = drawn(run, .5)
        here = answer(run, z, t, noise)
        run.method.terms = dict(eta=1., source=1.)
        there = answer(run, z, t, noise)
    with prepared(base, style, 'flowedit', **one, terms=dict(source=1.)) as run:
        length = run.method.level(0)-run.method.level(1)
        same(answer(run, z, t, noise), length.view(-1, 1, 1, 1)*there)
    ours = Stylizer(base, style, settings(adapt='none'), [OWL], ['an owl'], seeds=[0])
    try: same((1-s)*here, answer(ours, z, t, noise))
    finally: ours.close()

def test_a_whole_walk_of_flowedit(base, style):
    "The loop's plain descent is the published integration"
    with prepared(base, style, 'flowedit', steps=3) as run:
        g = [torch.Generator().manual_seed(7)]
        run.method.generators = g
        got = refine(run.method, run.z.clone(), 3)
        w, z, g = Written(run), run.z_src.clone(), torch.Generator().manual_seed(7)
        levels = [3*u/(1+2*u) for u in (.66, .44, .22, 0.)]
        for high, low in zip(levels, levels[1:]):
            noise = torch.randn(z.shape[1:], generator=g)[None]
            t = base.noising.timesteps(torch.tensor([high]))
            s = base.noising.sigma(t)
            x_src = (1-s)*run.z_src+s*noise
            dv = w.guided(z+x_src-run.z_src, t, w.c.styled, 13.5, True)-w.guided(x_src, t, w.c.plain, 3.5)
            z = z+(low-high)*dv
        torch.testing.assert_close(got, z, atol=2e-3, rtol=2e-3)

@pytest.mark.parametrize('name', ['flowedit', 'dvrf', 'flowalign', 'rfds'])
def test_relevance_and_spectrum_on_top(base, style, name):
    "R multiplies the direction, λ adds its pull"
    with prepared(base, style, name) as run:
        z, t, noise, _ = drawn(run)
        plain = answer(run, z, t, noise)
    with prepared(base, style, name, relevance='grid', lam=.1) as run:
        step = run.method.step(z, t, noise)
        R, got = run.method.relevance(step), run.method.direction(step).g
        assert R.min() < .9
        same(got, R*plain)
        same(run.method.gradient(step)[0], got+.1*run.method.regulariser_grad(step))

def test_presets(base, style):
    flux = settings('flowedit_flux')
    assert (flux.method, flux.steps, flux.guidance_scale, flux.terms['source']) == ('flowedit', 24, 5.5, 1.5)
    r = stylize(OWL, style, 'an owl', backbone=base, method='flowedit', steps=2, seed=0)
    assert r.complete and all(torch.isfinite(torch.tensor(v)).all() for v in r.history.values())
    with pytest.raises(StylekitError, match='sampler=.*does not read'): settings(method='flowedit', sampler='linear')
    assert settings(method='dvrf') == replace(FLOWS['dvrf'])
