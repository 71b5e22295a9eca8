"The method against a straight-line transcription of the released settings, and what preset `fast` promises"
import copy, gc, math
from contextlib import contextmanager
from dataclasses import dataclass, replace
import numpy as np, pytest, torch, torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from stylekit import StylekitError, load_backbone, load_style, sample_image, settings
from stylekit.scores import guided
from stylekit.images import image_to_tensor
from stylekit.methods.sms import CHOICES, FALL, PRESETS, SAMPLERS, Settings, edit_difference, reach
from stylekit.methods.sms import released_relevance, sigma2
from stylekit.stylizer import LatentOptimizer, Stylizer

WORDS, CAPTION = 'black ink drawing', 'an owl'      # conftest writes these words into the style file
# The fake score a LoRA, learning as the image moves
ONLINE = settings('fast', fake_score='lora', fake_noise=0., guidance_from='uncond', guidance_scale=4.5)


@pytest.fixture(scope='module')
def base(models): return load_backbone(models('small'))

@pytest.fixture(scope='module')
def style(base, random_style): return load_style(random_style(base))

@pytest.fixture(scope='module')
def wide(base, style, tmp_path_factory):
    "The style file with weights ten times as large, so that differences of scores stand clear of rounding"
    from safetensors.torch import load_file, save_file
    path = tmp_path_factory.mktemp('wide')/'wide.safetensors'
    state = {k: v*10 if 'lora_B' in k else v for k,v in load_file(style.path).items()}
    save_file(state, path, metadata={'stylekit.words': WORDS})
    return load_style(path)

@contextmanager
def prepared(base, style, preset, n=1, size=(128, 64), **changes):
    "A Stylizer before its first step"
    pictures = [sample_image(s).resize(size) for s in ('owl', 'taxi', 'penguin')[:n]]
    changes = {'steps': 10} | changes
    run = Stylizer(base, style, settings(preset, **changes), pictures, [CAPTION]*n, [3+i for i in range(n)])
    try: yield run
    finally: run.close()

def draws(run, t, seed=0):
    "Latents that have moved away from the content, timesteps, noise"
    g = torch.Generator().manual_seed(seed)
    def r(): return torch.randn(run.z_src.shape, generator=g)
    return run.z_src+r(), torch.tensor([t]*len(run.z_src)), r()

def same(a, b, tol=1e-5):
    "`a` equals `b` to `tol`, relative to the size of `b`"
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape and b.norm() > 0
    assert (a-b).norm() <= tol*b.norm(), f'relative difference {(a-b).norm()/b.norm():.2e}'


# ---- the transcription: plain torch, three UNets, LoRAs merged into the weights, as read in spec/sms.md ----

BETA = torch.linspace(.00085**.5, .012**.5, 1000, dtype=torch.float64)**2     # the scheduler of Stable Diffusion
ABAR = (1-BETA).cumprod(0)

def lora_pairs(state, sep):
    "module name -> (down, up) matrices"
    down = {k.split('.lora_A')[0].removeprefix('unet.'): v for k,v in state.items() if 'lora_A'+sep in k}
    up = {k.split('.lora_B')[0].removeprefix('unet.'): v for k,v in state.items() if 'lora_B'+sep in k}
    assert down.keys() == up.keys() and down
    return {k: (down[k].detach().double().clone(), up[k].detach().double().clone()) for k in down}

def merged(unet, pairs, scale):
    "A UNet of its own whose weights hold the LoRA"
    unet = copy.deepcopy(unet)
    with torch.no_grad():
        for name,(a,b) in pairs.items(): unet.get_submodule(name).weight += scale*b@a
    return unet

def dct(n):
    i = torch.arange(n, dtype=torch.float64)
    c = torch.cos(math.pi/n*(i+.5)*i[:, None])*math.sqrt(2/n)
    c[0] = math.sqrt(1/n)
    return c

def released_mask(h, w, t):
    return torch.tensor([[float(i+j <= t*(h+w-2)//500) for j in range(w)] for i in range(h)], dtype=torch.float64)

@dataclass
class Released:
    "The released arithmetic for given z, z_src, t, ε and φ"
    real: torch.nn.Module
    style: torch.nn.Module
    fake: torch.nn.Module
    y: torch.Tensor
    edit: torch.Tensor
    empty: torch.Tensor
    def noisy(self, z, t, eps): return ABAR[t].sqrt()*z + (1-ABAR[t]).sqrt()*eps
    def cfg(self, unet, z_t, t):
        e, e0 = unet(z_t, t, self.y).sample, unet(z_t, t, self.empty).sample
        return e0 + 4.5*(e-e0)
    def g_style(self, z, t, eps):
        z_t = self.noisy(z, t, eps)
        w = (1-ABAR[t-2])/(1-ABAR[t])*BETA[t]
        return w*(self.cfg(self.style, z_t, t)-self.cfg(self.fake, z_t, t))
    def R(self, z_src, t, eps):
        z_t = self.noisy(z_src, t, eps)
        e, e0 = self.real(z_t, t, self.edit).sample, self.real(z_t, t, self.empty).sample
        d = (e-e0).mean(1, keepdim=True).abs()
        return (d-d.min())/(d.max()-d.min())
    def psr(self, z, z_src, t):
        h, w = z.shape[-2:]
        def spectrum(x): return released_mask(h, w, t)*(dct(h)@x@dct(w).T)
        return F.l1_loss(spectrum(z), spectrum(z_src))
    def total(self, z, z_src, t, eps):
        with torch.no_grad(): target = z - self.R(z_src, t, eps)*self.g_style(z, t, eps)
        x = z.clone().requires_grad_()
        return torch.autograd.grad(.5*F.mse_loss(x, target) + 5e-4*self.psr(x, z_src, t), x)[0]

@pytest.fixture(scope='module')
def released(wide, models):
    "Preset `paper` with a trained-looking φ, and its transcription; on 8×16 latents"
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from safetensors.torch import load_file
    b = load_backbone(models('small'))
    with prepared(b, wide, 'paper') as run:
        b.unet.double()
        b.dtype = torch.float64            # differences of scores cancel: float32 leaves them 1e-5
        g = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for p in run.method.fake.params: p.copy_(torch.randn(p.shape, generator=g)*.2)
        folder = models('small')
        tok = CLIPTokenizer.from_pretrained(folder/'tokenizer')
        enc = CLIPTextModel.from_pretrained(folder/'text_encoder')
        def embeds(prompt):
            ids = tok([prompt], padding='max_length', max_length=77, return_tensors='pt').input_ids
            return enc(ids).last_hidden_state.double()
        with torch.no_grad(): emb = [embeds(p) for p in (f'{WORDS}, {CAPTION}', f'Turn into {WORDS}', '')]
        real = UNet2DConditionModel.from_pretrained(folder/'unet').double().requires_grad_(False)
        fake = {k: v for k,v in b.unet.named_parameters() if '.fake.' in k}
        pairs = lora_pairs(fake, '.fake')
        style = merged(real, lora_pairs(load_file(wide.path), ''), .8)
        ref = Released(real, style, merged(real, pairs, 32/8), *emb)
        yield run, ref, pairs

TS = (21, 251, 499)

@pytest.mark.parametrize('t', TS)
def test_released_direction_relevance_and_gradient(released, t):
    run, ref, _ = released
    z, tt, eps = draws(run, t, seed=t)
    m, d = run.method, torch.Tensor.double
    with torch.no_grad():
        want, R = ref.g_style(d(z), t, d(eps)), ref.R(d(run.z_src), t, d(eps))
        edit = edit_difference(m.backbone, m.z_src, tt, eps, m.conds.edit, m.conds.empty)
        same(released_relevance(edit), R)
        step = m.step(z, tt, eps)
        same(m.direction(step).g, R*want)
        got = m.gradient(step)[0]
    same(got, ref.total(d(z), d(run.z_src), t, d(eps)))
    assert R.min() == 0 and R.max() == 1

@pytest.mark.parametrize('t', TS)
def test_released_spectrum_loss(released, t):
    from stylekit.spectrum import psr_l1
    run, ref, _ = released
    z = draws(run, t)[0]
    same(psr_l1(z, run.z_src, run.cfg.curve(torch.tensor([t]))), ref.psr(z.double(), run.z_src.double(), t))
    x = z.double().requires_grad_()
    with torch.no_grad(): got = run.method.regulariser_grad(run.method.step(z, torch.tensor([t]), None))
    same(got, torch.autograd.grad(ref.psr(x, run.z_src.double(), t), x)[0])

@pytest.mark.parametrize('h,w', [(8, 16), (64, 64), (51, 51), (7, 96)])
def test_released_mask(h, w):
    from stylekit.spectrum import band_mask
    t = torch.arange(21, 500, 2)
    got = band_mask(h, w, PRESETS['paper'].curve(t))
    for i in range(0, len(t), 7): assert (got[i, 0].double() == released_mask(h, w, t[i].item())).all(), t[i]

def test_released_fake_loss_and_its_gradient(released, monkeypatch):
    "MSE(ᾱ·ε_φ(y), ᾱ·ε) at its own t and noise, over the whole range of indices however late the step"
    run, ref, pairs = released
    seen, add = [], run.backbone.add_noise
    def add_noise(z, noise, t):
        seen.append((z, noise, t))
        return add(z, noise, t)
    monkeypatch.setattr(run.backbone, 'add_noise', add_noise)
    state = [p.detach().clone() for p in run.method.fake.params]
    z = draws(run, 99)[0]
    loss = run.method.learn(run.method.step(z, None, None))['fake']
    (zz, noise, t), = seen
    assert zz is z and t.item() % 2 == 1 and 21 <= t.item() <= 499
    def leaf(p): return p.detach().clone().requires_grad_()
    leaves = {k: (leaf(a), leaf(b)) for k,(a,b) in pairs.items()}
    weights = {f'{k}.weight': ref.real.get_submodule(k).weight + 4*b@a for k,(a,b) in leaves.items()}
    z_t = ref.noisy(z.double(), t.item(), noise.double())
    eps = torch.func.functional_call(ref.real, weights, (z_t, t.item(), ref.y)).sample
    want = F.mse_loss(ABAR[t.item()]*eps, ABAR[t.item()]*noise.double())
    want.backward()
    same(loss[0], want.detach())
    got = lora_pairs({k: p.grad for k,p in run.backbone.unet.named_parameters() if '.fake.' in k}, '.fake')
    for k,(a,b) in leaves.items():
        same(got[k][0], a.grad, 1e-4)
        same(got[k][1], b.grad, 1e-4)
    with torch.no_grad():
        for p,s in zip(run.method.fake.params, state): p.copy_(s)

def test_released_fake_adapter(released):
    run, _, pairs = released
    assert {k.rsplit('.', 1)[1] for k in pairs} == {'to_q', 'to_v'}
    assert all(a.shape[0] == 8 == b.shape[1] for a,b in pairs.values())
    group, = run.method.fake.opt.param_groups
    assert isinstance(run.method.fake.opt, torch.optim.AdamW) and group['lr'] == 1e-3

def test_fake_timesteps_do_not_narrow(base, style):
    "φ trains on the whole range at the last step too, whatever sampler the image uses"
    for sampler in SAMPLERS:
        with prepared(base, style, 'paper', size=(64, 64), sampler=sampler) as run:
            ts = []
            def learn(z_t, t, cond, noise, weight=None):
                ts.append(t.item())
                return noise, torch.zeros(1)
            run.method.fake.learn, run.k = learn, 9
            for _ in range(60): run.method.learn(run.method.step(run.z, None, None))
        assert min(ts) < 100 and max(ts) > 420 and len(set(ts)) > 20, (sampler, sorted(ts))

def test_sigma2_takes_a_stride_of_two(base):
    t = torch.tensor([21, 23, 101, 499])
    same(sigma2(base, t).flatten(), (1-ABAR[t-2])/(1-ABAR[t])*BETA[t])
    one = (1-ABAR[t-1])/(1-ABAR[t])*BETA[t]
    assert ((sigma2(base, t).flatten().double()-one).abs() > 1e-3*one).all()

def test_released_settings():
    c = PRESETS['paper']
    want = dict(steps=500, guidance_scale=4.5, lam=5e-4, lr=.1, style_scale=.8, fake_guidance=4.5, fake_rank=8,
                fake_alpha=32, fake_lr=1e-3, prompt='{style}, {caption}', edit_prompt='Turn into {style}')
    assert {k: getattr(c, k) for k in want} == want and set(c.fake_targets) == {'to_q', 'to_v'}
    assert (c.curve.top, c.curve.t_top, c.curve.power) == (1, 500, 1)
    assert settings().preset == 'fast'


# ---- timesteps ----

U = torch.cat([torch.linspace(0, 1-2**-24, 4001), torch.tensor([0., 1-2**-24])])

def test_released_grid():
    t = SAMPLERS['released'](U, 0., 21, 500)
    assert set(t.tolist()) == set(range(21, 500, 2))
    for k in range(0, 500, 13):
        t = SAMPLERS['released'](U, k/500, 21, 500)
        hi = max(11, math.floor(250*(500-k)/500))           # index in [10, 250·(1 − k/K)), at least one wide
        assert t.dtype == torch.long and set(t.tolist()) == set(range(21, 2*hi, 2)), k
    assert set(SAMPLERS['released'](U, 499/500, 21, 500).tolist()) == {21}

@pytest.mark.parametrize('lo,hi', [(20, 500), (0, 1), (998, 999), (1, 999), (300, 301)])
@pytest.mark.parametrize('name', ['narrowing', 'linear', 'uniform'])
def test_samplers_stay_in_range(name, lo, hi):
    for k in range(0, 100, 9):
        t = SAMPLERS[name](U, k/100, lo, hi)
        top = max(lo+1, (1-k/100)*hi) if name == 'narrowing' else hi
        assert t.dtype == torch.long and t.shape == U.shape
        assert t.min() >= lo and t.max() < top, (k, t.min(), t.max())

def test_samplers_move_as_named():
    def end(name, p): return SAMPLERS[name](U, p, 20, 500).float()
    assert abs(end('narrowing', .5).mean()-135) < 2 and abs(end('narrowing', 0.).mean()-260) < 2
    assert abs(end('uniform', 0.).mean()-end('uniform', .99).mean()) == 0
    lin = [end('linear', p/10) for p in range(10)]
    assert all((x == x[0]).all() for x in lin) and all(a[0] > b[0] for a,b in zip(lin, lin[1:]))
    assert lin[0][0] == 499 and abs(lin[5][0]-260) <= 1

def test_guidance():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    same(guided(a, b, 4.5), 4.5*a.double()-3.5*b.double())
    assert (guided(a, b, 0.) == b).all()
    same(guided(a, b, 1.), a)


# ---- optimisers ----

def optimise(cfg, grads, z):
    opt = LatentOptimizer(cfg, z)
    for g in grads:
        z = opt.step(z, g)
        yield z

class ReleasedAdamW:
    "Weight decay .01, 100 steps of warm-up, a cosine over 1.5·K"
    def __init__(self, z, K):
        self.p = torch.nn.Parameter(z.clone())
        self.opt = torch.optim.AdamW([self.p], lr=.1, weight_decay=.01)
        def factor(k): return k/100 if k < 100 else .5*(1+math.cos(math.pi*(k-100)/(1.5*K-100)))
        self.sched = torch.optim.lr_scheduler.LambdaLR(self.opt, factor)
    def step(self, grad):
        self.p.grad = grad
        self.opt.step()
        self.sched.step()
        return self.p.detach()

@pytest.mark.parametrize('K', [100, 40])
def test_released_optimizer_is_adamw(K):
    "Gradients as small as the released mean makes them"
    g = torch.Generator().manual_seed(0)
    z0 = torch.randn(1, 4, 8, 6, generator=g)
    grads = [torch.randn(z0.shape, generator=g)*3e-8 for _ in range(K)]
    ref = ReleasedAdamW(z0, K)
    for grad, z in zip(grads, optimise(settings('paper', steps=K), grads, z0)):
        torch.testing.assert_close(z, ref.step(grad), rtol=1e-5, atol=1e-6)

def test_released_optimizer_after_the_warm_up():
    z0, K = torch.ones(1, 1, 2, 2), 200
    grads = [torch.full_like(z0, math.sin(k)) for k in range(K)]
    ref = ReleasedAdamW(z0, K)
    for grad, z in zip(grads, optimise(settings('paper', steps=K), grads, z0)): want = ref.step(grad)
    torch.testing.assert_close(z, want, rtol=1e-5, atol=1e-6)

def rms_path(size, scale, steps=6):
    z, rms = torch.zeros(1, 4, *size), []
    g = torch.Generator().manual_seed(sum(size))
    grads = [torch.randn(1, 4, *size, generator=g)*scale for _ in range(steps)]
    for new in optimise(settings('fast', steps=20), grads, z):
        rms.append((new-z).pow(2).mean().sqrt().item())
        z = new
    return torch.tensor(rms)

def test_fast_step_does_not_depend_on_resolution_or_scale():
    one = rms_path((16, 16), 1.)
    assert (one > .2*settings().lr).all()
    for size in ((24, 24), (32, 16)): assert (rms_path(size, 1.)/one-1).abs().max() < .05
    for scale in (1e-6, 1e5): assert (rms_path((16, 16), scale)/one-1).abs().max() < 1e-3
    z = next(optimise(settings('fast'), [torch.zeros(1, 4, 4, 4)], torch.ones(1, 4, 4, 4)))
    assert (z == 1).all()                                   # no decay, no division by zero

def test_fast_rate_anneals_and_does_not_decay_latents():
    c = settings('fast', steps=50)
    opt, rates = LatentOptimizer(c, torch.zeros(1, 4, 4, 4)), []
    for opt.k in range(50): rates.append(opt.rate())
    assert rates[0] == c.lr and rates[-1] < .01*c.lr and all(a > b for a,b in zip(rates, rates[1:]))


# ---- settings ----

NAN, INF = float('nan'), float('inf')
BAD = dict(
    steps=[0, -1, 2.5, NAN, '10', True, [3]], guidance_scale=[-1, NAN, 'x'], lam=[-1e-9, NAN, INF, 'x'],
    cutoff=[-.01, 1.01, NAN, '1'], t_min=[-1, 950, 960, 20.5, NAN], t_max=[1000, 20, 5, NAN], lr=[-1, NAN],
    sampler=['ddim', 3, ['uniform']], optimizer=['lbfgs'], schedule=['linear'], weight=['sigma', 'sigma2'],
    adapt=['yes', True], noise=['paired', True], relevance=['yes', 'released'], fake_score=['none', True],
    guidance_from=['self', 1], fake_noise=[-.1, 1.1, NAN], relevance_floor=[-.1, 1.1], fake_rank=[0, 1.5, -2],
    fake_guidance=[-1, NAN], fake_lr=[-1], fake_alpha=[NAN, 'x', -1], style_scale=[-2.1, 4.1], t_cutoff=[0, -5, NAN],
    cutoff_power=[-1, NAN], resolution=[0, -64, 2.5, 'big', NAN], prompt=['', '{other}', '{', 3],
    edit_prompt=['{other}', '{', 3])

for name in CHOICES: BAD[name] = [*BAD[name], np.ones((2, 2)), np.array([]), torch.ones(2), {}, b'none']

@pytest.mark.parametrize('name,value', [(k, v) for k, vs in BAD.items() for v in vs], ids=lambda v: repr(v))
def test_bad_settings_name_the_argument(name, value):
    for make in (lambda: settings('fast', **{name: value}), lambda: Settings(**{name: value})):
        with pytest.raises(StylekitError) as e: make()
        assert name in str(e.value) and '\n' not in str(e.value)

def test_settings_take_changes():
    assert settings('paper', steps=7, lam=None).steps == 7
    assert settings('paper', lam=None).lam == PRESETS['paper'].lam
    assert settings(settings('fast', lam=0.)).lam == 0
    for bad in ('quick', None, 3, ['fast'], np.ones(2)):
        with pytest.raises(StylekitError, match='preset'): settings(bad)
    for bad in (3, ['sms'], np.ones(2)):
        with pytest.raises(StylekitError, match='method'): settings(method=bad)
    with pytest.raises(StylekitError, match='lambda_'): settings('fast', lambda_=3)
    with pytest.raises(StylekitError, match="mean 'steps'"): settings('fast', stepz=3)
    with pytest.raises(Exception): PRESETS['fast'].steps = 3    # frozen


# ---- preset fast ----

@contextmanager
def counted(unet):
    "Samples through the UNet, and the batch of each backward pass"
    n = dict(forward=[], backward=[])
    def hook(_, args, kwargs, out):
        n['forward'].append(len(args[0]))
        if out.sample.requires_grad: out.sample.register_hook(lambda g: n['backward'].append(len(g)))
    h = unet.register_forward_hook(hook, with_kwargs=True)
    try: yield n
    finally: h.remove()

@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('fake', ['source_styled', 'lora'])
def test_fast_cost(base, style, images, fake):
    from diffusers import UNet2DConditionModel
    def count():
        modules = (o for o in gc.get_objects() if isinstance(o, torch.nn.Module))
        return sum(isinstance(m, UNet2DConditionModel) for m in modules)
    unets, ptr = count(), next(base.unet.parameters()).data_ptr()
    with counted(base.unet) as n:
        with prepared(base, style, 'fast', images, size=(64, 64), fake_score=fake) as run:
            assert 0 < sum(n['forward']) <= 16*images and not n['backward']
            for _ in range(2):
                for batches in n.values(): batches.clear()
                run.step()
                assert 0 < sum(n['forward']) <= 3*images
                assert n['backward'] == ([images] if fake == 'lora' else [])
            assert count() == unets and next(base.unet.parameters()).data_ptr() == ptr

def test_fast_cost_in_all(base, style):
    with counted(base.unet) as n, prepared(base, style, 'fast', 2, size=(64, 64), steps=2) as run:
        for _ in range(2): run.step()
    most = 12 + 3*2 + 4*2   # the relevance grid, two steps, and the last four to finish, guided
    assert 0 < sum(n['forward']) <= most*2

def test_finish_ends_a_run(base, style):
    out = {}
    for finish in (0, 100):
        with prepared(base, style, 'fast', size=(64, 64), steps=2, final_t=finish) as run:
            run.step()
            first = run.z
            run.step()
            out[finish] = first, run.z
    assert torch.equal(out[0][0], out[100][0])
    assert not torch.equal(out[0][1], out[100][1])   # only the last step differs

def test_base_weights_stay_as_they_are(base, style):
    def plain():
        weights = {k.replace('.base_layer', ''): v for k,v in base.unet.named_parameters() if 'lora' not in k}
        return {k: v.detach().clone() for k,v in weights.items()}
    before = plain()
    with prepared(base, style, 'fast', size=(64, 64), fake_score='lora') as run:
        run.step()
        fake = [p.detach().clone() for p in run.method.fake.params]
        run.step()
        assert any((a != b).any() for a,b in zip(fake, run.method.fake.params))     # φ learns; nothing else does
        after = plain()
        assert not any(p.grad is not None for k,p in base.unet.named_parameters() if '.fake.' not in k)
    assert before.keys() == after.keys() and all((before[k] == after[k]).all() for k in before)

WAITS = torch.ops.aten.nonzero.default, torch.ops.aten.equal.default, torch.ops.aten.masked_select.default
READ = torch.ops.aten._local_scalar_dense.default

class NoSync(TorchDispatchMode):
    "Raises where a GPU would have to be waited for; the optimiser's own counters live on the CPU"
    def __init__(self, allowed):
        super().__init__()
        self.allowed = allowed
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not READ or args[0].data_ptr() in self.allowed(), 'a value is read from the device'
        assert func not in WAITS, f'{func} waits for the device'
        return func(*args, **kwargs or {})

KINDS = pytest.mark.parametrize('preset', ['fast', ONLINE, 'paper'], ids=['fast', 'online', 'paper'])

@KINDS
def test_a_step_never_waits_for_the_device(base, style, preset):
    with prepared(base, style, preset, size=(64, 64)) as run:
        def counters():
            fake = run.method.fake
            return {s['step'].data_ptr() for s in fake.opt.state.values()} if fake else ()
        with NoSync(counters):
            for _ in range(2): run.step()

def test_direction_of_the_other_fakes(base, style):
    "The exact score of a point makes SMS an SDS; an untrained fake is the real one; what guidance points away from"
    for guidance_from in ('base', 'uncond'):
        with prepared(base, style, 'fast', relevance='none', guidance_from=guidance_from, guidance_scale=3.) as run:
            z, t, eps = draws(run, 301)
            m, c = run.method, run.method.conds.styled
            z_t, z_t_src = base.add_noise(z, eps, t), base.add_noise(run.z_src, eps, t)
            with torch.no_grad():
                e, real = base.predict(z_t, t, c, ('style',)), base.predict(z_t, t, c)
                source = base.predict(z_t_src, t, c)
                e0 = real if guidance_from == 'base' else base.predict(z_t, t, m.conds.empty, ('style',))
                eps_style = e0 + 3*(e-e0)
                for fake, want in dict(noise=eps, base=real, source_styled=source).items():
                    for share in (0., .2):
                        m.cfg = replace(m.cfg, fake_score=fake, fake_noise=share)
                        same(m.direction(m.step(z, t, eps)).g, eps_style - (1-share)*want - share*eps, 1e-4)
            assert m.fake is None
    with prepared(base, style, ONLINE, relevance='none') as run, torch.no_grad():
        e, e0 = base.predict(z_t, t, c, ('style',)), base.predict(z_t, t, m.conds.empty, ('style',))
        eps_style = e0 + ONLINE.guidance_scale*(e-e0)
        step = run.method.step(z, t, eps)
        same(run.method.direction(step).g, eps_style-real, 1e-4)  # before φ has learnt anything
        assert (run.method.direction(step).g-(eps_style-real)).norm() > 1e-4*real.norm()

def test_fast_gradient(base, style):
    "R ⊙ g + λ·∂/∂z ½‖LPF(DCT(z − z_src))‖², and R in [floor, 1]"
    with prepared(base, style, 'fast', fake_score='noise', relevance='grid', size=(128, 64)) as run:
        z, t, eps = draws(run, 251)
        with torch.no_grad():
            step = run.method.step(z, t, eps)
            total, g = run.method.gradient(step)[0], run.method.direction(step).g
            R = run.method.relevance(step)
        h, w = z.shape[-2:]
        x = z.double().requires_grad_()
        edge = run.cfg.cutoff*251*(h+w-2)/run.cfg.t_cutoff
        mask = torch.tensor([[float(i+j <= edge) for j in range(w)] for i in range(h)])
        kept = (dct(h)@(x-run.z_src.double())@dct(w).T)*mask
        psr = torch.autograd.grad(.5*kept.pow(2).sum(), x)[0]
        same(total, g.double()+run.cfg.lam/run.method.stretch.double()**FALL*psr)
        floor, whole = run.cfg.relevance_floor, replace(run.method.cfg, relevance='none')
        assert R.shape == (1, 1, h, w) and R.max() > .8
        for s in (run.cfg.t_min, 137, run.cfg.t_max-1):
            r = run.method.relevance(replace(step, t=torch.tensor([s])))
            assert r.min() >= floor-1e-6 and r.max() <= 1+1e-6
        run.method.cfg = whole
        with torch.no_grad(): same(g, R*run.method.direction(step).g)

@KINDS
def test_gradients_of_a_batch_are_those_of_its_images(base, style, preset):
    "Given the fake score, an image's gradient does not depend on its company: neither its direction nor its size"
    with prepared(base, style, preset, 2, size=(64, 64)) as run:
        z, _, eps = draws(run, 0)
        t, m = torch.tensor([101, 401]), run.method
        with torch.no_grad():
            both = m.gradient(m.step(z, t, eps))[0]
            for i in range(2):
                own = {n: getattr(m.conds, n).map(lambda a: a[i:i+1]) for n in ('styled', 'plain')}
                one = copy.copy(m)
                one.__dict__ |= dict(z_src=m.z_src[i:i+1], stretch=m.stretch[i:i+1])
                one.conds = replace(m.conds, **own)
                if getattr(m, 'grid', None):
                    one.grid = copy.copy(m.grid)
                    one.grid.maps = m.grid.maps[:, i:i+1]
                if m.cfg.fake_score == 'lora': one.cfg = replace(m.cfg, fake_score='base')   # a fresh φ is the identity
                same(both[i:i+1], one.gradient(one.step(z[i:i+1], t[i:i+1], eps[i:i+1]))[0], 1e-4)

def test_reach_does_not_depend_on_the_size():
    "The squares have one size, however many there are: else a mean over few is noise, and over many nothing"
    from stylekit.lora import add_style
    b, ink = load_backbone(), load_style('ink')
    add_style(b, ink)
    asked = [b.encode_prompt(p) for p in (f'{ink.trigger_words}, an owl', 'an owl')]
    def far(w, h):
        z = b.encode(image_to_tensor(sample_image('owl').resize((w, h))))
        return reach(b, z, *asked, [torch.Generator().manual_seed(0)], draws=12).item()
    one = far(128, 128)
    for size in ((64, 64), (256, 256), (128, 256), (192, 96)): assert abs(far(*size)/one-1) < .15, size

def test_how_far_is_asked_of_each_picture_alone(base, wide):
    "Steps are longer, and λ is weaker, by what the picture's own noise and prompt say; guidance has no part in it"
    with prepared(base, wide, 'fast', 2, size=(64, 64), style_scale=2.) as run: both = run.method.stretch
    assert both.shape == (2, 1, 1, 1) and both.min() > 1 and both[0] != both[1]
    with prepared(base, wide, 'fast', 1, size=(64, 64), style_scale=2., guidance_scale=7.) as run:
        m = run.method
        same(m.stretch, both[:1], 1e-4)
        same(run.opt.stretch, m.stretch)
        step = m.step(*draws(run, 251))
        with torch.no_grad(): pull = m.gradient(step)[0]-m.direction(step).g
        same(pull, run.cfg.lam/m.stretch**FALL*m.regulariser_grad(step), 1e-3)
        m.stretch = torch.ones_like(m.stretch)
        with torch.no_grad(): unscaled = m.gradient(step)[0]-m.direction(step).g
        assert unscaled.norm() > 2*pull.norm()
    for preset, fixed in (('fast', dict(adapt='none')), ('paper', {})):
        with prepared(base, wide, preset, **fixed) as run: assert (run.method.stretch == 1).all()

def test_without_its_own_parts_sms_is_dds():
    "No R, λ, guidance or noise in the fake, the content's own caption: DDS with a style LoRA is left, bit for bit"
    from stylekit import load_backbone, sample_image, stylize
    both = dict(backbone=load_backbone(), steps=4, seed=0, t_min=20, t_max=900, lr=.05, guidance_scale=1.,
                adapt='reach', final_t=200)
    without = dict(lam=0., relevance='none', fake_noise=0.)
    theirs = dict(method='dds', optimizer='rms', schedule='cosine', sampler='uniform', guidance_from='base',
                  noise='antithetic')
    def pixels(**kw): return stylize(sample_image('owl'), 'ink', 'an owl', **both, **kw).image.tobytes()
    bare = pixels(fake_score='source_plain', **without)
    assert bare == pixels(**theirs)
    assert bare != pixels(fake_score='source_styled', **without)

def test_low_memory_gives_the_same_in_less():
    from stylekit import load_backbone
    from stylekit.bench import Ledger
    from stylekit.scores import FakeScore
    out = []
    for low in (False, True):
        b = load_backbone(low_memory=low)
        g, c = torch.Generator().manual_seed(0), b.encode_prompt('an owl')
        fake = FakeScore(b)
        z, noise = (torch.randn(4, b.latent_channels, 16, 16, generator=g) for _ in range(2))
        with Ledger(b.unet) as ledger:
            before = ledger.now
            for t in (300, 100):
                t = torch.full((4,), t)
                eps, loss = fake.learn(b.add_noise(z, noise, t), t, c, noise)
        out.append((ledger.peak-before, eps, [p.detach().clone() for p in fake.params]))
        fake.close()
    (much, eps, params), (little, same_eps, same_params) = out
    assert little < .6*much and torch.allclose(eps, same_eps, atol=1e-5)
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(params, same_params))
