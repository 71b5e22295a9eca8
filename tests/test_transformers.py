"SD 3, FLUX.1 and FLUX.2 klein behind the one backbone: what diffusers' own pipelines would do, and the whole loop"
import pytest, torch
from safetensors.torch import load_file, save_file
from stylekit import StylekitError, load_backbone, load_style, sample_image, stylize
from stylekit.lora import add_style, new_adapter
from stylekit.scores import Score, scores
from test_flow import Halt

OWL = sample_image('owl').resize((64, 64))
KINDS = 'sd3', 'flux', 'klein'
every = pytest.mark.parametrize('kind', KINDS)

@pytest.fixture(scope='module')
def bases(models):
    made = {}
    def get(kind):
        if kind not in made: made[kind] = load_backbone(models(kind))
        return made[kind]
    return get

@pytest.fixture(scope='module')
def pipes(models):
    import diffusers
    made = {}
    def get(kind):
        none = dict(text_encoder_3=None, tokenizer_3=None) if kind == 'sd3_no_t5' else {}
        if kind not in made: made[kind] = diffusers.DiffusionPipeline.from_pretrained(models(kind), **none)
        return made[kind]
    return get


# ---- the same as diffusers' pipelines ----

def told(pipe, kind, prompt):
    "The transformer's arguments for a prompt, as its pipeline makes them"
    if kind == 'klein':
        embeds, ids = pipe.encode_prompt(prompt, device='cpu', text_encoder_out_layers=(1, 2, 3))
        return dict(encoder_hidden_states=embeds, txt_ids=ids)
    if kind == 'flux':
        embeds, pooled, ids = pipe.encode_prompt(prompt, None, device='cpu')
        return dict(encoder_hidden_states=embeds, pooled_projections=pooled, txt_ids=ids, guidance=torch.tensor([3.5]))
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, None, None, device='cpu', do_classifier_free_guidance=False)
    return dict(encoder_hidden_states=embeds, pooled_projections=pooled)

def velocity(pipe, kind, x, sigma, args):
    if kind == 'sd3': return pipe.transformer(x, timestep=1000*sigma, **args).sample
    h, w = x.shape[-2:]
    if kind == 'flux':
        ids = pipe._prepare_latent_image_ids(1, h//2, w//2, 'cpu', torch.float32)
        out = pipe.transformer(pipe._pack_latents(x, 1, x.shape[1], h, w), timestep=sigma, img_ids=ids, **args).sample
        return pipe._unpack_latents(out, 8*h, 8*w, 8)
    squares = pipe._patchify_latents(x)
    ids = pipe._prepare_latent_ids(squares)
    out = pipe.transformer(pipe._pack_latents(squares), timestep=sigma, img_ids=ids, **args).sample
    return pipe._unpatchify_latents(pipe._unpack_latents_with_ids(out, ids))

@pytest.mark.parametrize('kind', [*KINDS, 'sd3_no_t5'])
@torch.no_grad()
def test_epsilon_is_that_of_the_pipelines_parts(bases, pipes, kind):
    b, pipe, real = bases(kind), pipes(kind), kind[:3] if kind[:3] == 'sd3' else kind
    z, noise = torch.randn(2, 1, b.latent_channels, 6, 8, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([400]), b.encode_prompt('an owl')
    if kind == 'flux': cond = cond.guided(3.5)
    sigma = b.noising.sigma(t)
    x = b.add_noise(z, noise, t)
    v = velocity(pipe, real, x, sigma.flatten(), told(pipe, real, 'an owl'))
    torch.testing.assert_close(b.predict(x, t, cond), x+(1-sigma)*v, atol=1e-5, rtol=1e-4)
    other = b.predict(x, t, b.encode_prompt('black ink drawing'))
    assert (other-b.predict(x, t, cond)).abs().max() > 1e-4     # it reads

@every
@torch.no_grad()
def test_latents_are_those_of_the_pipeline(bases, pipes, kind):
    b, pipe, x = bases(kind), pipes(kind), torch.rand(1, 3, 64, 96)
    if kind == 'klein': want = pipe._unpatchify_latents(pipe._encode_vae_image(x*2-1, None))
    else: want = (pipe.vae.encode(x*2-1).latent_dist.mode()-.06)*1.5
    z = b.encode(x)
    torch.testing.assert_close(z, want, atol=1e-5, rtol=1e-4)
    raw = pipe.vae.encode(x*2-1).latent_dist.mode()
    torch.testing.assert_close(b.decode(z), (pipe.vae.decode(raw).sample/2+.5).clamp(0, 1), atol=1e-4, rtol=1e-4)
    assert z.shape == (1, b.latent_channels, 8, 12) and b.multiple == 16

@every
def test_identities_of_the_spec(bases, kind):
    b = bases(kind)
    z, z_src, noise = torch.randn(3, 1, b.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    styled, plain, t = b.encode_prompt('black ink drawing'), b.encode_prompt('an owl'), torch.tensor([600])
    sigma = b.noising.sigma(t)
    def v(x, cond): return b.network.ask(x, b.noising.told(t), cond)
    x, x_src = (b.add_noise(a, noise, t) for a in (z, z_src))
    here, there = scores(t, (Score(b), x, styled), (Score(b), x_src, plain))
    with torch.no_grad(): want = (1-sigma)*(v(x, styled)-v(x_src, plain)+z-z_src)
    torch.testing.assert_close(here-there, want, atol=1e-4, rtol=1e-4)


# ---- the loop ----

@every
def test_five_steps_and_resume(bases, random_style, tmp_path, kind):
    from stylekit import Checkpoint
    b = bases(kind)
    style, path = random_style(b), tmp_path/'run.pt'
    def go(*callbacks):
        return stylize(OWL, style, 'an owl', backbone=b, steps=5, seed=0, callbacks=[*callbacks])
    full = go()
    assert full.complete and full.image.size == (64, 64)
    assert all(torch.isfinite(torch.tensor(v)).all() and len(v) == 5 for v in full.history.values())
    assert not go(Halt(), Checkpoint(path, 1)).complete
    assert go(Checkpoint(path, 1)).image.tobytes() == full.image.tobytes()
    assert not getattr(b.unet, 'peft_config', {})

@pytest.mark.parametrize('method,kind', [('lusd', 'sd3'), ('cds', 'klein')])
def test_methods_that_look_into_a_unet_are_refused(bases, random_style, method, kind):
    b = bases(kind)
    with pytest.raises(StylekitError, match='is no UNet'):
        stylize(OWL, random_style(b), 'an owl', backbone=b, method=method, steps=1)

def test_a_distilled_model_is_guided_away_from_its_base_only(bases, random_style):
    b = bases('klein_distilled')
    style = random_style(b)
    assert stylize(OWL, style, 'an owl', backbone=b, steps=1).complete     # final_guidance is 2, from the base
    with pytest.raises(StylekitError, match='distilled.*guidance_from'):
        stylize(OWL, style, 'an owl', backbone=b, steps=1, guidance_scale=4, guidance_from='uncond')

def test_guidance_that_is_an_input(bases):
    "FLUX.1 dev hears the scale; no empty prompt is asked"
    b = bases('flux')
    x, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([500]), b.encode_prompt('an owl')
    score = Score(b, (), 3.5, b.encode_prompt(''))
    assert len(score.questions(x, cond)) == 1
    torch.testing.assert_close(score(x, t, cond), b.predict(x, t, cond.guided(3.5)))
    assert (score(x, t, cond)-b.predict(x, t, cond)).abs().max() > 1e-5

@every
def test_low_memory_changes_nothing(models, bases, kind):
    small, b, x = load_backbone(models(kind), low_memory=True), bases(kind), torch.rand(1, 3, 64, 64)
    z, t = small.encode(x), torch.tensor([300])
    assert torch.equal(z, b.encode(x)) and torch.equal(small.decode(z), b.decode(z))
    c = small.encode_prompt('an owl')
    assert torch.equal(c.embeds, b.encode_prompt('an owl').embeds)
    torch.testing.assert_close(small.predict(z, t, c), b.predict(z, t, c))
    assert small.unet.is_gradient_checkpointing


# ---- LoRAs ----

def lora_state(b, names, rank=2, seed=0):
    "Random pairs for layers of the transformer"
    g = torch.Generator().manual_seed(seed)
    def pair(layer):
        out, width = layer.weight.shape
        return torch.randn(rank, width, generator=g)*.2, torch.randn(out, rank, generator=g)*.2
    layers = dict(b.unet.named_modules())
    return {n: pair(layers[n]) for n in names}

def linear_layers(b):
    "All linear maps inside the blocks"
    return [n for n, m in b.unet.named_modules() if isinstance(m, torch.nn.Linear) and 'blocks.' in n]

def written(pairs, prefix, a='.lora_A.weight', b='.lora_B.weight'):
    return {prefix+n+k: v for n, (down, up) in pairs.items() for k, v in ((a, down), (b, up))}

def kohya_flux(b, dim):
    "Names and fused matrices of the original code, with an α that is not the rank"
    g = torch.Generator().manual_seed(4)
    mlp = 4*dim if b.network.family == 'FLUX.1' else 6*dim
    single = 3*dim+mlp, dim+(mlp if b.network.family == 'FLUX.1' else mlp//2)
    shapes = {'double_blocks_0_img_attn_qkv': (3*dim, dim), 'double_blocks_0_txt_attn_proj': (dim, dim),
              'double_blocks_0_img_mlp_0': (mlp, dim), 'single_blocks_0_linear2': (dim, single[1])}
    # diffusers' converter for FLUX.1 cuts only matrices of the real width
    if b.network.family == 'FLUX.2': shapes['single_blocks_0_linear1'] = single[0], dim
    state = {}
    for name, (out, width) in shapes.items():
        state |= {f'lora_unet_{name}.lora_down.weight': torch.randn(4, width, generator=g)*.2,
                  f'lora_unet_{name}.lora_up.weight': torch.randn(out, 4, generator=g)*.2,
                  f'lora_unet_{name}.alpha': torch.tensor(2.)}
    return state

def ai_toolkit(b, dim):
    "The original code's names, dotted, under diffusion_model"
    state = kohya_flux(b, dim)
    dotted = (('double_blocks_0_', 'double_blocks.0.'), ('single_blocks_0_', 'single_blocks.0.'),
              ('_attn_', '_attn.'), ('_mlp_0', '_mlp.0'))
    out = {}
    for k, v in state.items():
        if k.endswith('alpha'): continue
        for old, new in dotted: k = k.replace(old, new)
        k = k.replace('lora_unet_', 'diffusion_model.').replace('lora_down', 'lora_A').replace('lora_up', 'lora_B')
        out[k] = v
    return out

WRITERS = [(kind, w) for kind in KINDS for w in ('diffusers', 'PEFT')]
WRITERS += [('flux', 'kohya'), ('klein', 'kohya'), ('klein', 'ai-toolkit')]

def lora_file(b, writer):
    if writer == 'kohya': return kohya_flux(b, 16)
    if writer == 'ai-toolkit': return ai_toolkit(b, 16)
    return written(lora_state(b, linear_layers(b)), 'transformer.' if writer == 'diffusers' else 'base_model.model.')

@pytest.mark.parametrize('kind,writer', WRITERS)
@torch.no_grad()
def test_loras_load_whole_and_as_diffusers_loads_them(models, bases, tmp_path, kind, writer):
    import diffusers
    b, state = bases(kind), lora_file(bases(kind), writer)
    path = tmp_path/'some style.safetensors'
    save_file(state, path)
    report = add_style(b, load_style(path))
    assert report.matched == report.total > 3 and not report.unmatched
    pipe = diffusers.DiffusionPipeline.from_pretrained(models(kind))
    pipe.load_lora_weights({k.replace('base_model.model.', 'transformer.'): v for k, v in state.items()})
    x, t, cond = torch.randn(1, b.latent_channels, 8, 8), torch.tensor([400]), b.encode_prompt('an owl')
    told_time = b.noising.told(t)
    args = told(pipe, kind, 'an owl')
    if kind == 'flux': cond = cond.guided(3.5)
    want = velocity(pipe, kind, x, told_time/1000, args)
    plain = b.network.ask(x, told_time, cond)
    b.set_adapters(('style',))
    got = b.network.ask(x, told_time, cond)
    b.delete_adapter('style')
    assert (got-plain).abs().max() > 1e-2
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

def test_our_own_file_comes_back(bases, random_style):
    b = bases('klein')
    path = random_style(b)
    assert all(k.startswith('transformer.') for k in load_file(path))
    report = add_style(b, load_style(path))
    b.delete_adapter('style')
    assert report.matched == report.total and 'diffusers' in str(report)

def refused_style(b, state, tmp_path, *words):
    path = tmp_path/'wrong.safetensors'
    save_file(state, path)
    with pytest.raises(StylekitError) as e: add_style(b, load_style(path))
    text = str(e.value)
    assert '\n' not in text and len(text) < 300
    for w in words: assert w in text, text
    assert not getattr(b.unet, 'peft_config', {})

@pytest.mark.parametrize('kind,other,family', [
    ('klein', 'flux', 'FLUX.1'), ('flux', 'klein', 'FLUX.2'), ('sd3', 'flux', 'FLUX.1'), ('sd3', 'klein', 'FLUX.2')])
@pytest.mark.parametrize('writer', ['diffusers', 'kohya'])
def test_wrong_transformers_are_named(bases, tmp_path, kind, other, family, writer):
    refused_style(bases(kind), lora_file(bases(other), writer), tmp_path, family, bases(kind).network.family)

@every
def test_a_unets_style_is_named(models, bases, random_style, tmp_path, kind):
    sd = random_style(load_backbone(models('sd15')))
    refused_style(bases(kind), load_file(sd), tmp_path, 'none of its')

def test_a_transformers_style_on_a_unet(models, bases, tmp_path):
    refused_style(load_backbone(models('flow')), lora_file(bases('klein'), 'diffusers'), tmp_path, 'FLUX.2')

@every
def test_nothing_that_is_called_a_lora(bases, tmp_path, kind):
    pair = {'.lora_A.weight': torch.ones(2, 4), '.lora_B.weight': torch.ones(4, 2)}
    state = {'transformer.somewhere'+k: v for k, v in pair.items()}
    refused_style(bases(kind), state, tmp_path, 'none of its 1 layers')

def test_dropped_magnitudes_are_reported(bases, tmp_path):
    b = bases('flux')
    state = kohya_flux(b, 16)
    state['lora_unet_double_blocks_0_img_attn_qkv.dora_scale'] = torch.ones(48, 1)
    path = tmp_path/'dora.safetensors'
    save_file(state, path)
    report = add_style(b, load_style(path))
    b.delete_adapter('style')
    assert 'magnitudes of 1 layers are left out' in str(report)

@every
def test_a_lora_learns(bases, kind):
    b = bases(kind)
    from stylekit.scores import FakeScore
    fake = FakeScore(b, lr=1e-2)
    z, noise = torch.randn(2, 2, b.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([100, 400])
    z_t = b.add_noise(z, noise, t)
    losses = [fake.learn(z_t, t, b.encode_prompt('an owl'), noise)[1].mean().item() for _ in range(4)]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    fake.close()
