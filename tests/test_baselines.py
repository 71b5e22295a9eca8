"Every rival against its formula written out: plain torch, two UNets, the LoRA in the weights, raw text embeddings"
import json, math, shutil, warnings
from contextlib import contextmanager
from dataclasses import replace
import pytest, torch, torch.nn.functional as F
from stylekit import Checkpoint, StylekitError, load_backbone, load_style, sample_image, settings, stylize
from stylekit.core import asset
from stylekit.methods.flows import FLOW_METHODS
from stylekit.methods.rivals import METHODS, MOST_DRAWS, RIVALS, UNWANTED, img2img, patch_nce
from stylekit.methods.released import RELEASED
from stylekit.stylizer import LatentOptimizer
from test_sms import ABAR, BETA, CAPTION, WORDS, base, draws, lora_pairs, merged, prepared, same, style, wide  # noqa: F401

STYLED = f'{WORDS}, {CAPTION}'

def owl(): return sample_image('owl').resize((64, 64))


class Written:
    "ε by prompt: the styled prompt is answered by the UNet with the LoRA in its weights, or whichever is asked for"
    def __init__(self, folder, style_file):
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file
        from transformers import CLIPTextModel, CLIPTokenizer
        tok = CLIPTokenizer.from_pretrained(folder/'tokenizer')
        enc = CLIPTextModel.from_pretrained(folder/'text_encoder')
        def embeds(prompt):
            ids = tok([prompt], padding='max_length', max_length=77, truncation=True, return_tensors='pt').input_ids
            return enc(ids).last_hidden_state.double()
        with torch.no_grad(): self.text = {p: embeds(p) for p in (STYLED, CAPTION, '', UNWANTED)}
        self.real = UNet2DConditionModel.from_pretrained(folder/'unet').double().requires_grad_(False)
        self.style = merged(self.real, lora_pairs(load_file(style_file), ''), 1.)
    def unet_for(self, prompt): return self.style if prompt == STYLED else self.real
    def noisy(self, z, t, eps): return ABAR[t].sqrt()*z.double() + (1-ABAR[t]).sqrt()*eps.double()
    def __call__(self, z_t, t, prompt, unet=None):
        return (unet or self.unet_for(prompt))(z_t, t, self.text[prompt]).sample
    def guided(self, z_t, t, prompt, s):
        e0 = self(z_t, t, '', self.unet_for(prompt))
        return e0 + s*(self(z_t, t, prompt)-e0)

def sds(w, z, src, t, eps): return w.guided(w.noisy(z, t, eps), t, STYLED, 7.5) - eps.double()
def dds(w, z, src, t, eps):
    z_t, z_s = w.noisy(z, t, eps), w.noisy(src, t, eps)
    return w.guided(z_t, t, STYLED, 7.5) - w.guided(z_s, t, CAPTION, 7.5)
def csd(w, z, src, t, eps):
    z_t = w.noisy(z, t, eps)
    return (1-ABAR[t])*(w(z_t, t, STYLED)-w(z_t, t, ''))
def nfsd(w, z, src, t, eps):
    z_t = w.noisy(z, t, eps)
    e0, bad = w(z_t, t, ''), w(z_t, t, UNWANTED)
    return (1-ABAR[t])*(7.5*(w(z_t, t, STYLED)-e0) + (e0 if t < 200 else e0-bad))
def ssd(w, z, src, t, eps):
    z_t, z_s = w.noisy(z, t, eps), w.noisy(src, t, eps)
    p, e0 = w(z_t, t, CAPTION), w(z_t, t, '')
    styled = w(z_t, t, STYLED)
    return (p-w(z_s, t, '')) + 3.75*(styled-p) + 5.5*(styled-e0) + .075*math.exp(t/1000)*(z_t-z_s)
def vsd(w, z, src, t, eps):
    z_t = w.noisy(z, t, eps)
    return (1-ABAR[t])*(w.guided(z_t, t, STYLED, 7.5)-w(z_t, t, CAPTION))   # φ before its first step: the base model

FORMULAS = dict(sds=sds, dds=dds, csd=csd, nfsd=nfsd, ssd=ssd, vsd=vsd)

@pytest.fixture(scope='module')
def written(models, wide): return Written(models('small'), wide.path)

@pytest.fixture(scope='module')
def double(models):
    b = load_backbone(models('small'))
    b.unet.double()
    b.dtype = torch.float64
    return b

@contextmanager
def rival(double, wide, name, **changes):
    with prepared(double, wide, 'fast', method=name, **changes) as run:
        double.unet.double()      # a fresh fake LoRA is float32
        yield run

@pytest.mark.parametrize('name', FORMULAS)
@pytest.mark.parametrize('t', [51, 199, 201, 701])
def test_direction(double, wide, written, name, t):
    with rival(double, wide, name) as run, torch.no_grad():
        z, tt, eps = draws(run, t, seed=t)
        same(run.method.direction(run.method.step(z, tt, eps)).g, FORMULAS[name](written, z, run.z_src, t, eps))

@pytest.mark.parametrize('t', [21, 501, 979])
def test_pds(double, wide, written, t):
    "x_{t−2} of the 500-step grid, but β and α of one step of 1000"
    with rival(double, wide, 'pds') as run, torch.no_grad():
        z, tt, eps = draws(run, t, seed=t)
        g = torch.Generator()
        g.set_state(run.generators[0].get_state())
        eps_prev = torch.randn(z.shape[1:], generator=g)[None].double()
        A, A1 = ABAR[t], ABAR[t-2]
        beta = BETA[t]
        def tilde(x, prompt):
            x_t = written.noisy(x, t, eps)
            x0 = (x_t-(1-A).sqrt()*written.guided(x_t, t, prompt, 100.))/A.sqrt()
            mu = A1.sqrt()*beta/(1-A)*x0 + (1-beta).sqrt()*(1-A1)/(1-A)*x_t
            return (A1.sqrt()*x.double()+(1-A1).sqrt()*eps_prev-mu)/((1-A1)/(1-A)*beta).sqrt()
        # near-equal numbers, their difference over a small σ: float32 shows
        same(run.method.direction(run.method.step(z, tt, eps)).g, tilde(z, STYLED)-tilde(run.z_src, CAPTION), 1e-4)

def test_pds_keeps_to_its_grid(double, wide):
    with rival(double, wide, 'pds', steps=60) as run:
        ts = [run.method.draw(run.generators, k/60)[0].item() for k in range(60)]
    assert all(t%2 for t in ts)
    assert min(ts) >= 21 and 800 < max(ts) <= 979

def test_vsd_learns_what_it_is_shown(double, wide):
    "φ learns from the caption alone, and draws its own t; without a φ there is no VSD"
    with rival(double, wide, 'vsd', fake_lr=1e-2) as run:
        seen, learn = [], run.method.fake.learn
        def learn_and_note(z_t, t, cond, noise, weight=None):
            seen.append((t.item(), cond, weight))
            return learn(z_t, t, cond, noise, weight)
        run.method.fake.learn = learn_and_note
        step = run.method.step(*draws(run, 301))
        with torch.no_grad(): before = run.method.direction(step).g
        for _ in range(20): run.method.learn(step)
        with torch.no_grad(): assert (run.method.direction(step).g-before).norm() > 1e-3*before.norm()
    assert all(c is run.method.conds.plain and w is None for _, c, w in seen)
    assert len({t for t, _, _ in seen}) > 10
    with pytest.raises(StylekitError, match='lora_released'):
        with rival(double, wide, 'vsd', fake_score='source_styled'): pass

def pooled(features, h, w, size):
    "Unit vectors of pooled places; features are (h·w, c)"
    return F.normalize(F.avg_pool2d(features.T.reshape(1, -1, h, w), size)[0].flatten(1).T, dim=1)

def test_patch_nce_is_cross_entropy_over_places():
    "As its authors wrote it: the positive in front, the others' own column struck out"
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 24, 10, generator=g), torch.randn(2, 24, 10, generator=g)
    def nce(**kw): return patch_nce(a, b, (4, 6), [torch.Generator().manual_seed(i) for i in range(2)], **kw)
    for size in (1, 2):
        got = nce(size=size)
        for i in range(2):
            n = pooled(a[i], 4, 6, size)@pooled(b[i], 4, 6, size).T
            others = n.masked_fill(torch.eye(len(n), dtype=torch.bool), -10.)
            out = torch.cat([n.diagonal()[:, None], others], 1)/.07
            same(got[i], F.cross_entropy(out, torch.zeros(len(n), dtype=torch.long)))
    assert (nce(patches=5) != nce()).all()

def test_cds(double, wide, written):
    "DDS plus 3·ΣNCE at its released share, through features that the plain UNet gives, too"
    with rival(double, wide, 'cds') as run:
        z, tt, eps = draws(run, 301)
        def features(unet, x_t, prompt):
            out = []
            layers = [m for n, m in unet.named_modules() if 'up_blocks' in n and n.endswith('attn1')]
            hooks = [m.register_forward_hook(lambda m, a, y: out.append(y)) for m in layers]
            written(x_t, 301, prompt, unet)
            for h in hooks: h.remove()
            return out
        ref = [f.detach() for f in features(written.real, written.noisy(run.z_src, 301, eps), CAPTION)]
        x = z.double().requires_grad_()
        loss = 0.
        for r, f in zip(ref, features(written.style, written.noisy(x, 301, eps), STYLED)):
            h = round(math.sqrt(r.shape[1]/2))          # latents of 8 × 16
            for s in (1, 2):
                if s > h: continue
                n = pooled(r[0], h, 2*h, s)@pooled(f[0], h, 2*h, s).T
                loss = loss + F.cross_entropy(n/.07, torch.arange(len(n)))
        nce = 3*16*8/2000*torch.autograd.grad(loss, x)[0]
        with torch.no_grad():
            same(run.method.direction(run.method.step(z, tt, eps)).g, dds(written, z, run.z_src, 301, eps)+nce, 1e-4)

def released_lusd_map(w, z_t, t, words):
    "Cross-attention at a quarter of the latents' side, spread by self-attention at half of it, as released"
    maps = dict(attn1=[], attn2=[])
    def hook(kind, n):
        def look(m, args, kw, out):
            h, e = args[0], kw.get('encoder_hidden_states')
            if h.shape[1] != n: return
            def heads(a): return a.unflatten(-1, (m.heads, -1)).transpose(1, 2)
            q, k = heads(m.to_q(h)), heads(m.to_k(h if e is None else e))
            maps[kind].append((q@k.transpose(-1, -2)/q.shape[-1]**.5).softmax(-1).mean(1))
        return look
    h, wd = z_t.shape[-2:]
    hooks = []
    for name, m in w.style.named_modules():
        for kind, n in (('attn1', h*wd//4), ('attn2', h*wd//16)):
            if name.endswith(kind): hooks.append(m.register_forward_hook(hook(kind, n), with_kwargs=True))
    w(z_t, t, STYLED)
    for x in hooks: x.remove()
    c = torch.stack(maps['attn2']).mean(0)[0, :, words].mean(-1).view(1, 1, h//4, wd//4)
    c = F.interpolate(c, (h//2, wd//2), mode='bicubic').flatten()
    c = (torch.stack(maps['attn1']).mean(0)[0].float()@c.float()).view(1, 1, h//2, wd//2)
    c = F.interpolate(c, (h, wd), mode='bicubic')
    return (c-c.min())/(c.max()-c.min())

def test_lusd(double, wide, written):
    "Three steps: the mask's moving average, its narrowing, the length of the step"
    with rival(double, wide, 'lusd', steps=5) as run, torch.no_grad():
        m, mask = run.method, None
        words = [1, 2, 3]                                # black ink drawing
        assert m.conds.words[0].nonzero().flatten().tolist() == words
        for i in range(3):
            z, tt, eps = draws(run, 401, seed=i)
            z_t = written.noisy(z, 401, eps)
            e = written(z_t, 401, STYLED)-written(z_t, 401, CAPTION)
            here = released_lusd_map(written, z_t, 401, words)
            if i: mask = here if mask is None else .9*mask + .1*here
            where = 1. if mask is None else mask*(i/4) + 1-i/4
            d = .98*where*e + .02*(z-run.z_src)
            length = (1-1/(1+math.exp(-(-5+10*i/4))))*(.15-.01)+.01
            same(m.direction(m.step(z, tt, eps, i/5)).g, d/d.std()*length, 1e-4)

def test_lusd_draws_again(double, wide):
    "A step that says too little is drawn again, for its own image alone, and less is asked for every time"
    with rival(double, wide, 'lusd', terms=dict(threshold=10., decay=.1), steps=5, n=2) as run, torch.no_grad():
        asked, edit = [], run.method.edit
        def edit_and_note(step):
            asked.append(step.noise.clone())
            return edit(step)
        run.method.edit = edit_and_note
        run.method.direction(run.method.step(*draws(run, 401)))
        assert len(asked) > 2
        assert all((asked[1][i] != asked[0][i]).any() for i in range(2))
    with rival(double, wide, 'lusd', terms=dict(threshold=0.), steps=5) as run, torch.no_grad():
        asked, edit = [], run.method.edit
        run.method.edit = edit_and_note
        run.method.direction(run.method.step(*draws(run, 401)))
        assert len(asked) == 1


@pytest.mark.slow
def test_lusd_does_not_draw_for_ever(double, wide):
    "A style that changes nothing says nothing at any t"
    with rival(double, wide, 'lusd', terms=dict(threshold=1., decay=.999), steps=5) as run, torch.no_grad():
        asked, edit = [], run.method.edit
        def nothing(*a):
            asked.append(1)
            eps, where = edit(*a)
            return 0*eps, where
        run.method.edit = nothing
        run.method.draw_again(run.method.step(*draws(run, 401)))
        assert len(asked) == MOST_DRAWS+1


# ---- which settings a method reads ----

OTHER = dict(
    guidance_scale=3., guidance_from='base', lam=.2, cutoff=.6, t_cutoff=300, cutoff_power=2., sampler='linear',
    t_min=33, t_max=700, lr=.011, optimizer='adamw', schedule='released', weight='variance',
    adapt='none', relevance='grid', relevance_floor=.7,
    fake_score='noise', fake_noise=.4, fake_guidance=2., fake_rank=3, fake_alpha=3., fake_lr=.02,
    fake_targets=('to_v',),
    style_scale=.5, final_t=150, final_noise=.5, final_guidance=4., resolution=80,
    prompt='{caption}, {style}', edit_prompt='{style}!', negative_prompt='ugly')

def suiting(method, style):
    "A style that the method takes: one of the samples where it wants a picture"
    return load_style(asset('samples', 'taxi.ink.png')) if METHODS[method].PICTURE else style

def made(base, style, cfg):
    "The picture of two steps, whatever the method says it reads"
    style = suiting(cfg.method, style)
    return stylize(owl(), style, 'an owl', backbone=base, preset=cfg, seed=1).image.tobytes()

@pytest.fixture
def anything(monkeypatch):
    for place in ('stylekit.methods.sms', 'stylekit.stylizer'):
        monkeypatch.setattr(f'{place}.refuse_unread', lambda cfg: cfg)

@pytest.mark.parametrize('name', METHODS)
def test_what_is_not_read_changes_nothing(base, style, name, anything):
    cfg = settings(method=name, steps=2, **{} if name == 'img2img' else dict(lam=.1, cutoff=.9))
    unread = {k: v for k, v in OTHER.items() if k not in METHODS[name].reads(cfg)}
    if unread.get('fake_score'): unread['fake_score'] = 'source_plain'
    for needed in METHODS[name].NEEDS: unread.pop(needed, None)
    assert unread
    assert made(base, style, replace(cfg, **unread)) == made(base, style, cfg)

@pytest.mark.parametrize('name', METHODS)
def test_what_is_read_changes_the_picture(base, style, name, anything):
    "Each setting of the direction alone"
    cfg = settings(method=name, steps=2, **dict(fake_score='lora_released', fake_guidance=3.) if name == 'sms' else {})
    terms = dict(negative=.5) if name == 'csd' else {}
    cfg = replace(cfg, lr=.06, guidance_from='uncond', optimizer='rms', weight='one', terms=terms)
    whole = made(base, style, cfg)
    for k in {*METHODS[name].READS} & {*METHODS[name].reads(cfg)} - {'fake_score'}:
        if name == 'img2img' and k == 'weight': continue
        if k == 'relevance' and cfg.relevance == 'grid': continue
        assert made(base, style, replace(cfg, **{k: OTHER[k]})) != whole, k

_USUAL = dict(adapt='reach', fake_score='source_plain', guidance_from='uncond', sampler='uniform')

@pytest.mark.parametrize('name', METHODS)
def test_what_is_not_read_is_refused(name):
    cfg = settings(method=name)
    for k in set(OTHER)-METHODS[name].reads(cfg):
        value = OTHER[k] if OTHER[k] != getattr(cfg, k) else _USUAL[k]
        assert value != getattr(cfg, k), k
        with pytest.raises(StylekitError, match=f'^{k}='): settings(cfg, **{k: value})
        assert settings(cfg, **{k: getattr(cfg, k)}) == cfg     # as it is anyway

@pytest.mark.parametrize('name, terms', [
    ('lusd', dict(threshold=1e9)), ('lusd', dict(decay=1.)), ('lusd', dict(keep=float('nan'))),
    ('cds', dict(patches=0)), ('cds', dict(patches=2.5)), ('cds', dict(sizes=[])), ('cds', dict(sizes=2)),
    ('cds', dict(sizes=[0])), ('cds', dict(tau=0)), ('nfsd', dict(switch=-1)), ('img2img', dict(draws=10**9)),
    ('csd', dict(styled='x')), ('ssd', dict(prompt=None)), ('sms', dict(x=1))])
def test_coefficients_have_ranges(name, terms):
    with pytest.raises(StylekitError, match=next(iter(terms))) as e: settings(method=name, terms=terms)
    assert '\n' not in str(e.value)


def test_plain_descent_is_sgd():
    c, z0 = settings(method='dds'), torch.ones(1, 4, 8, 8)
    p, opt = torch.nn.Parameter(z0.clone()), LatentOptimizer(settings(method='dds'), z0)
    sgd, z = torch.optim.SGD([p], lr=c.lr), z0
    for k in range(5):
        p.grad = torch.full_like(z0, math.sin(k))
        sgd.step()
        z = opt.step(z, p.grad)
    assert torch.allclose(z, p.detach())

@pytest.mark.parametrize('name', RIVALS)
@pytest.mark.parametrize('kind', ['sd15', 'sd21v', 'sdxl'])
def test_every_rival_runs_everywhere(models, random_style, kind, name):
    "Two images of unlike sizes in one call: finite, moved, recorded, nothing left on the UNet"
    b = load_backbone(models(kind))
    images = [owl(), sample_image('taxi').resize((128, 64))]
    lr = None if name == 'img2img' else 1e-3
    rs = stylize(images, str(random_style(b)), CAPTION, backbone=b, method=name, steps=2, lr=lr, seed=1)
    for r in rs:
        assert r.complete and r.info['method'] == name == r.settings.preset
        assert all(math.isfinite(v) for h in r.history.values() for v in h)
    assert not getattr(b.unet, 'peft_config', {})

@pytest.mark.parametrize('name', ['pds', 'cds', 'lusd', 'vsd'])
def test_a_resumed_rival_ends_alike(base, style, tmp_path, name):
    "Those that draw more than t and ε, or keep something"
    from stylekit.stylizer import Callback, Checkpoint, Interrupted
    class Stop(Callback):
        def after_step(self, run):
            if run.k == 2: raise Interrupted
    how = dict(backbone=base, method=name, steps=4, lr=1e-3, seed=1)
    def go(*callbacks): return stylize(owl(), style, CAPTION, **how, callbacks=callbacks)
    whole, part = go(), go(Checkpoint(tmp_path/'c.pt', 1), Stop())
    assert not part.complete
    assert go(Checkpoint(tmp_path/'c.pt', 1)).image.tobytes() == whole.image.tobytes()

def test_methods_by_name(base, style):
    assert settings(method='dds') == settings('dds') == RIVALS['dds']
    assert settings('paper', method='released') == settings(method='released') == settings('paper') == RELEASED
    assert set(METHODS) == {'sms', 'released', 'ad', *RIVALS, *FLOW_METHODS}
    with pytest.raises(StylekitError, match='is one of released, not of sms'): settings('paper', method='sms')
    with pytest.raises(StylekitError, match="no preset named 'magic'"): settings(method='magic')
    with pytest.raises(StylekitError, match='no terms named'):
        stylize(sample_image('owl'), style, CAPTION, backbone=base, method='cds', terms=dict(ncee=1.))
    with pytest.raises(StylekitError, match='terms'): settings(method='cds', terms=[1])

def test_img2img_is_the_sampler(base, style):
    "The object of the protocol draws what the function draws"
    with prepared(base, style, 'fast', method='img2img', steps=1, final_t=500) as run, torch.no_grad():
        state = [g.get_state() for g in run.generators]
        a = run.method.finish(run.z_src, run.generators)
        for g, s in zip(run.generators, state): g.set_state(s)
        conds = run.method.conds
        same(a, img2img(base, run.z_src, conds.styled, conds.empty, 500/999, run.generators))
        z, t, eps = draws(run, 300)
        assert not run.method.direction(run.method.step(z, t, eps)).g.any()


# ---- a schedule that ends in noise alone ----

@pytest.fixture(scope='module', params=['sd21v', 'sd15'])
def ends_in_noise(request, models, tmp_path_factory):
    "A model whose last timestep has ᾱ = 0"
    folder = tmp_path_factory.mktemp('z')/'ztsnr'
    shutil.copytree(models(request.param), folder)
    file = folder/'scheduler'/'scheduler_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(rescale_betas_zero_snr=True)))
    b = load_backbone(folder)
    assert b.alphas_cumprod[-1] == 0
    return b

@pytest.mark.parametrize('method', METHODS)
def test_the_last_timestep_of_a_schedule_that_ends_in_noise(ends_in_noise, random_style, method):
    style = suiting(method, load_style(random_style(ends_in_noise)))
    with prepared(ends_in_noise, style, settings(method=method), n=2, steps=3) as run:
        z, _, noise = draws(run, 999)
        for t in ([999, 999], [999, 500], [998, 1]):
            step = run.method.step(z, torch.tensor(t), noise)
            g, rec = run.method.gradient(step)
            for v in (g, *rec.values()): assert torch.isfinite(v).all()
        run.method.learn(step)

@pytest.mark.parametrize('strength', [1., .999, .5])
def test_img2img_from_noise_alone(ends_in_noise, strength):
    b, g = ends_in_noise, [torch.Generator().manual_seed(0)]
    z = torch.randn(1, b.latent_channels, 8, 8)
    for guidance in (1., 2.):
        prompt, empty = b.encode_prompt('an owl'), b.encode_prompt('')
        out = img2img(b, z, prompt, empty, strength, g, steps=3, guidance_scale=guidance, adapters=())
        assert torch.isfinite(out).all() and out.std() > 0

@pytest.mark.parametrize('kw', [
    dict(final_t=998), dict(t_max=999, sampler='uniform'), dict(t_min=997, t_max=999, relevance='grid'),
    dict(preset='paper', t_max=999)], ids=str)
def test_runs_to_the_end_of_a_schedule_that_ends_in_noise(ends_in_noise, random_style, kw):
    style = load_style(random_style(ends_in_noise))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = stylize(owl(), style, 'an owl', backbone=ends_in_noise, seed=0, steps=3, **kw)
    assert r.complete
    assert all(math.isfinite(v) for k, values in r.history.items() if k != 'fake' for v in values)


# ---- a style from one picture ----

INK_TAXI = asset('samples', 'taxi.ink.png')

def attention_of(base, z, t, cond):
    "Queries, keys and values of every self-attention of a UNet, read off its layers' inputs in plain torch"
    seen = []
    def keep(module, args, kw): seen.append((module, args[0] if args else kw['hidden_states']))
    layers = [m for n, m in base.unet.named_modules() if n.endswith('.attn1')]
    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in layers]
    base.predict(z, t, cond)
    for h in hooks: h.remove()
    def split(m, x): return torch.stack(x.chunk(m.heads, -1), 1)
    return [tuple(split(m, f(h)) for f in (m.to_q, m.to_k, m.to_v)) for m, h in seen]

def test_attention_distillation_is_its_formula(base):
    cfg = settings(method='ad', terms=dict(layers=2, content=.7))
    with prepared(base, load_style(INK_TAXI), cfg, n=2) as run:
        z, t, noise = draws(run, 400)
        example, empty = run.method.conds.example, run.method.conds.empty
        x = z.clone().requires_grad_()
        ours, theirs, content = (attention_of(base, v, t, empty)[-2:]
                                 for v in (x, example.expand(2, -1, -1, -1), run.z_src))
        loss = 0
        for (q, k, v), (_, ks, vs), (qc, _, _) in zip(ours, theirs, content):
            answer = torch.softmax(q@k.mT/math.sqrt(q.shape[-1]), -1)@v
            target = torch.softmax(q@ks.mT/math.sqrt(q.shape[-1]), -1)@vs
            loss = loss + (answer-target.detach()).abs().mean() + .7*(q-qc.detach()).abs().mean()
        g, = torch.autograd.grad(loss, x)
        got = run.method.direction(run.method.step(z, t, noise)).g
        torch.testing.assert_close(got, g*z.numel(), rtol=1e-4, atol=1e-5)

def test_one_picture_is_a_style_for_that_method_alone(base, style, tmp_path):
    for name, given in (('sms', INK_TAXI), ('ad', style)):
        with pytest.raises(StylekitError, match='picture'): stylize(owl(), given, 'an owl', backbone=base, method=name)
    how = dict(backbone=base, method='ad', steps=2, seed=1)
    r = stylize(owl(), INK_TAXI, 'an owl', **how)
    assert r.image.tobytes() == stylize(owl(), INK_TAXI, 'an owl', **how).image.tobytes() != owl().tobytes()
    assert r.info['style'] == 'taxi.ink' and r.info['style_coverage'] == '0/0'
    assert not getattr(base.unet, 'peft_config', {})
    held = stylize(owl(), INK_TAXI, 'an owl', **how, lam=5., lr=.2)
    assert held.image.tobytes() != stylize(owl(), INK_TAXI, 'an owl', **how, lr=.2).image.tobytes()

def test_no_attention_to_read_is_said(models):
    with pytest.raises(StylekitError, match='is no UNet'):
        stylize(owl(), INK_TAXI, 'an owl', backbone=load_backbone(models('sd3')), method='ad', steps=1)
