"Real file layouts of SD 1.5, SD 2.1 (v) and SDXL load, predict ε and run the whole loop"
import json, random, re, shutil, subprocess, sys, threading, warnings
import pytest, torch
from safetensors.torch import load_file, save_file
from stylekit import StylekitError, load_backbone, sample_image, stylize
from stylekit.backbone import Backbone
from stylekit.scores import FakeScore

KINDS = ('sd15', 'sd21v', 'sdxl')


@pytest.mark.parametrize('kind', KINDS)
def test_three_iterations(models, random_style, kind):
    b = load_backbone(models(kind))
    owl = sample_image('owl').resize((64, 64))
    def go(): return stylize(owl, random_style(b), 'an owl', backbone=b, steps=3, seed=0)
    r = go()
    assert r.image.size == (64, 64) and r.complete
    assert all(torch.isfinite(torch.tensor(v)).all() and len(v) == 3 for v in r.history.values())
    assert go().image.tobytes() == r.image.tobytes()        # same seed, same image
    assert not getattr(b.unet, 'peft_config', {})           # nothing is left on the one UNet


@pytest.mark.parametrize('kind', KINDS)
def test_fake_score_loss_falls(models, kind):
    b = load_backbone(models(kind))
    fake = FakeScore(b, lr=1e-2)
    g = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    t = torch.tensor([100, 400])
    z_t = b.add_noise(z, noise, t)
    losses = [fake.learn(z_t, t, b.encode_prompt('an owl'), noise)[1].mean().item() for _ in range(4)]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    fake.close()


def test_matches_the_pipelines_own_unet_call(models):
    "ε of SDXL, with its added conditions, equals a call of diffusers' own pipeline parts"
    from diffusers import StableDiffusionXLPipeline
    path = models('sdxl')
    pipe = StableDiffusionXLPipeline.from_pretrained(path)
    e, _, p, _ = pipe.encode_prompt('an owl', device='cpu', do_classifier_free_guidance=False)
    ids = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), e.dtype, pipe.text_encoder_2.config.projection_dim)
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([300])
    want = pipe.unet(z, t, e, added_cond_kwargs=dict(text_embeds=p, time_ids=ids)).sample
    b = load_backbone(path)
    got = b.predict(z, t, b.encode_prompt('an owl'))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert b.encode_prompt('').embeds.abs().sum() == 0               # force_zeros_for_empty_prompt


def test_v_prediction_becomes_epsilon(models):
    b = load_backbone(models('sd21v'))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([50, 700])
    c = b.encode_prompt('an owl')
    v, A = b.unet(z, t, c.expand(2).embeds).sample, b.alpha_bar(t)
    torch.testing.assert_close(b.predict(z, t, c), A.sqrt()*v+(1-A).sqrt()*z)
    assert b.prediction_type == 'v_prediction'


def test_latents_round_trip_the_vaes_scaling(models):
    b = load_backbone(models('sd15'))
    x = torch.rand(1, 3, 64, 64)
    z = b.encode(x)
    torch.testing.assert_close(z, b.vae.encode(x*2-1).latent_dist.mode()*.18215)
    assert b.vae_scale_factor == 8 and b.native_size == 64 and b.multiple == 64


# Backbones that people have: told apart before work, or loaded as they are

@pytest.fixture
def copy(models, tmp_path):
    "A copy of a model, to be changed"
    def get(kind='sd15', name='model'):
        shutil.copytree(models(kind), tmp_path/name)
        return tmp_path/name
    return get


def edit(path, drop=(), **changes):
    d = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in d.items() if k not in drop}))

def edit_tensors(path, change):
    save_file({k: change(v) for k, v in load_file(path).items()}, path)


def rebuild(folder, **changes):
    "The UNet made anew with a changed config"
    from diffusers import UNet2DConditionModel
    config = {k: v for k, v in UNet2DConditionModel.load_config(folder/'unet').items() if not k.startswith('_')}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config | changes).save_pretrained(folder/'unet')


def refused(folder, *words, **kw):
    "One line that says all the words"
    with pytest.raises(StylekitError) as e: load_backbone(folder, **kw)
    text = str(e.value)
    assert '\n' not in text and len(text) <= 300
    for w in words: assert w in text, text


def asked(b, texts=('an owl', ''), t=(50, 700)):
    "What a backbone answers"
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, b.latent_channels, 8, 8, generator=g)
    return b.predict(z, torch.tensor(t), b.encode_prompt(list(texts), size=(64, 64)))


@pytest.mark.parametrize('channels,family', [
    (9, 'an inpainting model'), (8, 'InstructPix2Pix'), (5, 'a depth model'), (7, 'an upscaler'),
    (6, 'do not belong together')])
def test_more_channels_than_latents(copy, channels, family):
    f = copy()
    rebuild(f, in_channels=channels)
    refused(f, family)


@pytest.mark.parametrize('changes,family', [
    (dict(_class_name='StableDiffusionXLInpaintPipeline'), 'inpainting'),
    (dict(_class_name='StableDiffusionInstructPix2PixPipeline'), 'InstructPix2Pix'),
    (dict(_class_name='StableDiffusionControlNetPipeline'), 'ControlNet'),
    (dict(_class_name='TextToVideoSDPipeline'), 'video'),
    (dict(_class_name='PixArtAlphaPipeline'), 'PixArt'),
    (dict(_class_name='HunyuanDiTPipeline'), 'Hunyuan'),
    (dict(_class_name='Flux2Pipeline'), 'FLUX'),
    (dict(_class_name='FluxPipeline'), 'unet'),
    (dict(_class_name='KolorsPipeline'), 'Kolors'),
    (dict(_class_name='StableDiffusionUpscalePipeline'), 'upscaler'),
    (dict(text_encoder=['alt_diffusion', 'RobertaSeriesModelWithTransformation']), 'AltDiffusion'),
    (dict(text_encoder=['kolors', 'ChatGLMModel']), 'Kolors'),
    (dict(text_encoder=['transformers', 'T5EncoderModel']), 'T5'),
    (dict(unet=['diffusers', 'UNetMotionModel']), 'video'),
    (dict(vae=['diffusers', 'AutoencoderKLTemporalDecoder']), 'video'),
    (dict(vae=['diffusers', 'AutoencoderDC']), 'another vae'),
    (dict(controlnet=['diffusers', 'ControlNetModel']), 'ControlNet'),
    (dict(motion_adapter=['diffusers', 'MotionAdapter']), 'video'),
    (dict(prior=['diffusers', 'PriorTransformer']), 'prior')])
def test_other_pipelines_and_parts_by_family(copy, changes, family):
    f = copy()
    edit(f/'model_index.json', **changes)
    refused(f, family, 'choose Stable Diffusion')


def test_refiner_transformer_and_cousins(copy):
    f = copy('sdxl', 'refiner')
    rebuild(f, projection_class_embeddings_input_dim=5*8+24, cross_attention_dim=24)
    nothing = [None, None]
    edit(f/'model_index.json', text_encoder=nothing, tokenizer=nothing, _class_name='StableDiffusionXLImg2ImgPipeline')
    refused(f, 'refiner')
    f = copy('sdxl', 'five')      # both encoders, and yet five numbers
    rebuild(f, projection_class_embeddings_input_dim=5*8+24)
    refused(f, 'refiner', 'five numbers')
    f = copy('sd15', 'dit')
    edit(f/'model_index.json', drop=('unet',), transformer=['diffusers', 'Transformer2DModel'])
    refused(f, 'transformer')
    sd3 = dict(transformer=['diffusers', 'SD3Transformer2DModel'], _class_name='StableDiffusion3Pipeline')
    edit(f/'model_index.json', **sd3)
    refused(f, 'another text_encoder', 'CLIPTextModel')
    f = copy('sd15', 'lcm')
    rebuild(f, time_cond_proj_dim=16)
    refused(f, 'latent consistency')
    f = copy('sd15', 'unclip')
    rebuild(f, class_embed_type='projection', projection_class_embeddings_input_dim=16)
    refused(f, 'unCLIP')
    f = copy('sd15', 'wide')
    rebuild(f, cross_attention_dim=48)
    refused(f, 'width [48]', '32')
    f = copy('sd15', 'two')
    for part, cls in dict(text_encoder='CLIPTextModelWithProjection', tokenizer='CLIPTokenizer').items():
        shutil.copytree(f/part, f/f'{part}_2')
        edit(f/'model_index.json', **{f'{part}_2': ['transformers', cls]})
    refused(f, 'two text encoders')


def test_folders_that_hold_something_else(copy, tmp_path):
    f = copy()
    refused(f/'unet', 'UNet2DConditionModel', 'whole model')
    edit(f/'unet'/'config.json', _class_name='ControlNetModel')
    refused(f/'unet', 'ControlNet', 'model_index.json')
    d = tmp_path/'lora'
    d.mkdir()
    (d/'pytorch_lora_weights.safetensors').write_bytes(b'')
    refused(d, 'LoRA', 'style')
    (d/'sd.safetensors').write_bytes(b'')
    (d/'pytorch_lora_weights.safetensors').unlink()
    refused(d, 'lora/sd.safetensors')


@pytest.mark.parametrize('cls,changes,family', [
    ('EDMDPMSolverMultistepScheduler', {}, 'EDM'), ('EDMEulerScheduler', {}, 'EDM'),
    ('FlowMatchEulerDiscreteScheduler', dict(invert_sigmas=True), 'flow matching'),
    ('FlowMatchLCMScheduler', {}, 'flow matching'),
    ('UniPCMultistepScheduler', dict(use_flow_sigmas=True), 'flow matching'),
    ('CogVideoXDDIMScheduler', {}, 'unknown'), ('DDPMWuerstchenScheduler', {}, 'unknown')])
@pytest.mark.parametrize('where', ['both', 'index', 'config'])
def test_schedulers_without_betas(copy, cls, changes, family, where):
    f = copy()
    if where != 'config': edit(f/'model_index.json', scheduler=['diffusers', cls])
    if where != 'index' or changes: edit(f/'scheduler'/'scheduler_config.json', _class_name=cls, **changes)
    refused(f, family, 'betas')


def test_index_and_config_of_two_families(copy):
    f = copy()
    edit(f/'model_index.json', scheduler=['diffusers', 'FlowMatchEulerDiscreteScheduler'])
    refused(f, 'FlowMatchEulerDiscreteScheduler', 'DDIMScheduler', 'download')


@pytest.mark.parametrize('cls', [
    'LCMScheduler', 'EulerAncestralDiscreteScheduler', 'DPMSolverMultistepScheduler', 'PNDMScheduler',
    'HeunDiscreteScheduler'])
def test_schedulers_with_betas(copy, cls):
    import diffusers
    f = copy()
    want = asked(load_backbone(f))
    edit(f/'model_index.json', scheduler=['diffusers', cls])
    edit(f/'scheduler'/'scheduler_config.json', _class_name=cls)
    b = load_backbone(f)
    assert torch.equal(asked(b), want)
    # defaults are those of the class
    (f/'scheduler'/'scheduler_config.json').write_text(json.dumps(dict(_class_name=cls)))
    torch.testing.assert_close(load_backbone(f).alphas_cumprod, getattr(diffusers, cls)().alphas_cumprod)


@pytest.mark.parametrize('changes,words', [
    (dict(num_train_timesteps=0), '0'), (dict(num_train_timesteps=10**9), '1e+09'),
    (dict(num_train_timesteps=500), 'count to 1000'), (dict(num_train_timesteps=4000), 'count to 1000'),
    (dict(num_train_timesteps=999), '999'), (dict(num_train_timesteps=None), 'None'),
    (dict(num_train_timesteps=True), 'True'), (dict(beta_start=float('nan')), 'NaN'),
    (dict(beta_end=float('inf')), 'Infinity'), (dict(beta_end='0.012'), 'number'), (dict(beta_start=-1), '-1'),
    (dict(beta_end=2.), '2'), (dict(beta_schedule='none'), 'betas'), (dict(beta_schedule=3), 'str'),
    (dict(prediction_type='velocity'), 'velocity'), (dict(prediction_type=None), 'None'),
    (dict(trained_betas=[.1, .2]), '2 trained_betas'), (dict(rescale_betas_zero_snr='yes'), 'yes')])
def test_schedules_that_cannot_be(copy, changes, words):
    f = copy()
    edit(f/'scheduler'/'scheduler_config.json', **changes)
    refused(f, 'scheduler', words)


@pytest.mark.parametrize('kind', ['sd15', 'sd21v'])
def test_zero_terminal_snr(copy, kind):
    f = copy(kind)
    edit(f/'scheduler'/'scheduler_config.json', rescale_betas_zero_snr=True, timestep_spacing='trailing')
    b = load_backbone(f)
    z, last = torch.randn(2, 4, 8, 8), torch.tensor([999, 500])
    eps = b.predict(z, last, b.encode_prompt('an owl'))
    assert b.alphas_cumprod[-1] == 0
    assert torch.equal(eps[0], z[0]) and not torch.equal(eps[1], z[1])
    assert eps.isfinite().all()


def test_latents_mean_and_std(copy):
    "As diffusers' own pipelines for such models: (raw - mean)·factor/std, and back"
    f = copy('sdxl')
    mean, std = torch.tensor([-1.6574, 1.886, -1.383, 2.5155]), torch.tensor([8.4927, 5.9022, 6.5498, 5.2299])
    good = dict(latents_mean=mean.tolist(), latents_std=std.tolist())
    edit(f/'vae'/'config.json', scaling_factor=.5, **good)
    b, x = load_backbone(f), torch.rand(1, 3, 64, 64)
    raw, z = b.vae.encode(x*2-1).latent_dist.mode(), b.encode(x)
    torch.testing.assert_close(z, (raw-mean.view(1, 4, 1, 1))*.5/std.view(1, 4, 1, 1))
    torch.testing.assert_close(b.decode(z), (b.vae.decode(raw).sample/2+.5).clamp(0, 1), atol=1e-5, rtol=1e-4)
    for bad in (dict(latents_std=[1.]), dict(latents_std=[1., 1., 1., 0.]), dict(latents_mean='x'),
                dict(latents_mean=[1., None, 1., 1.])):
        edit(f/'vae'/'config.json', **good | bad)
        refused(f, 'vae/config.json', next(iter(bad)))


def shard(folder, stem, variant=''):
    "Split a weight file in two, with an index"
    dot = f'.{variant}' if variant else ''
    old = next(f for f in folder.glob(f'{stem}*.safetensors'))
    t = load_file(old)
    old.unlink()
    keys, where = sorted(t), {}
    for i, part in enumerate((keys[::2], keys[1::2])):
        name = f'{stem}{dot}-0000{i+1}-of-00002.safetensors'
        save_file({k: t[k] for k in part}, folder/name)
        where |= {k: name for k in part}
    (folder/f'{stem}.safetensors.index{dot}.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))


STEMS = dict(unet='diffusion_pytorch_model', vae='diffusion_pytorch_model', text_encoder='model')


@pytest.mark.parametrize('form', ['fp16', 'one_fp16', 'bf16', 'sharded', 'sharded_fp16', 'beside'])
def test_weights_in_other_files(copy, form):
    f = copy()
    old = load_backbone(f)
    want = asked(old)
    for part, stem in STEMS.items():
        file = f/part/f'{stem}.safetensors'
        if form == 'fp16' or form == 'one_fp16' and part == 'unet': file.rename(f/part/f'{stem}.fp16.safetensors')
        if form == 'bf16': file.rename(f/part/f'{stem}.bf16.safetensors')
        if form == 'sharded': shard(f/part, stem)
        if form == 'sharded_fp16': shard(f/part, stem, 'fp16')
        if form == 'beside':    # the full ones win
            half = f/part/f'{stem}.fp16.safetensors'
            shutil.copy(file, half)
            edit_tensors(half, lambda v: v*2)
    b = load_backbone(f)
    assert torch.equal(asked(b), want)
    assert len(b.sha256) == 64
    if form != 'sharded_fp16': return
    one = f/'unet'/'diffusion_pytorch_model.fp16-00002-of-00002.safetensors'   # any file counts
    t = load_file(one)
    save_file(t | {k: v+.01 for k, v in list(t.items())[:1]}, one)
    assert load_backbone(f).sha256 != b.sha256
    one.unlink()
    refused(f, 'missing')
    index = f/'unet'/'diffusion_pytorch_model.safetensors.index.fp16.json'
    for bad in ('{"weight_map": {"a": "../../secret.safetensors"}}', '{}', '[1]', '{"weight_map": {"a": 3}}'):
        index.write_text(bad)
        refused(f, 'index')


def test_pickles_only(copy):
    f = copy()
    w = f/'unet'/'diffusion_pytorch_model.safetensors'
    torch.save(load_file(w), w.with_suffix('.bin'))
    w.unlink()
    refused(f, 'diffusion_pytorch_model.bin', 'save_pretrained')
    w.with_suffix('.bin').rename(f/'unet'/'diffusion_flax_model.msgpack')
    refused(f, 'msgpack')


@pytest.mark.parametrize('part,stem', STEMS.items())
@pytest.mark.parametrize('fault', ['nan', 'inf', 'missing', 'more', 'shape', 'cut', 'int8', 'empty'])
def test_weights_that_are_wrong(copy, part, stem, fault):
    f = copy()
    w = f/part/f'{stem}.safetensors'
    t = load_file(w)
    k = max(t, key=lambda k: t[k].numel())
    if fault in ('nan', 'inf'): t[k].view(-1)[0] = float(fault)
    if fault == 'missing': t.pop(k)
    if fault == 'more': t['one.more'] = torch.zeros(2)
    if fault == 'shape': t[k] = t[k][:-1].contiguous()
    if fault == 'int8': t[k] = t[k].to(torch.int8)
    save_file(t, w)
    if fault == 'cut': w.write_bytes(w.read_bytes()[:-100])
    if fault == 'empty': w.write_bytes(b'')
    refused(f, part if fault not in ('cut', 'empty') else stem)


def test_old_names_of_a_vaes_attention(copy):
    f = copy()
    want = load_backbone(f).encode(torch.full((1, 3, 64, 64), .3))
    w = f/'vae'/'diffusion_pytorch_model.safetensors'
    t = load_file(w)
    names = {'.to_q.': '.query.', '.to_k.': '.key.', '.to_v.': '.value.', '.to_out.0.': '.proj_attn.'}
    save_file({renamed(k, names): v for k, v in t.items()}, w)
    assert torch.equal(load_backbone(f).encode(torch.full((1, 3, 64, 64), .3)), want)


def test_token_limit_is_the_text_encoders(copy):
    f = copy(name='longtok')
    want = asked(load_backbone(f))
    edit(f/'tokenizer'/'tokenizer_config.json', drop=('model_max_length',))
    assert torch.equal(asked(load_backbone(f)), want)
    edit(f/'tokenizer'/'tokenizer_config.json', model_max_length=10**30)
    assert torch.equal(asked(load_backbone(f)), want)
    (f/'tokenizer'/'tokenizer_config.json').unlink()
    b = load_backbone(f)
    assert torch.equal(asked(b), want)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert b.encode_prompt('an owl '*80).embeds.shape[1] == 77
    assert 'reads 77' in str(said[0].message)
    assert b.tokens_of('owl', ['an owl']).shape == (1, 77)


def test_tokenizers_that_read_nothing(copy):
    f = copy()
    tokens = f/'tokenizer'/'tokenizer.json'
    d = json.loads(tokens.read_text())
    tokens.rename(tokens.with_suffix('.away'))
    refused(f, 'vocabulary', 'unknown')
    (f/'tokenizer'/'vocab.json').write_text(json.dumps(d['model']['vocab']))
    refused(f, 'merges.txt')                                  # a vocabulary alone spells every word
    (f/'tokenizer'/'vocab.json').unlink()
    d['model']['vocab'], d['model']['merges'] = {'<|startoftext|>': 0, '<|endoftext|>': 1}, []
    tokens.write_text(json.dumps(d))
    refused(f, 'letter a')
    tokens.write_text('{"version": "1.0"')
    refused(f, 'tokenizer')
    shutil.rmtree(f/'tokenizer')
    refused(f, 'tokenizer', 'vocabulary')


def test_identity_is_all_that_draws(copy):
    f = copy('sdxl')
    b = load_backbone(f)
    seen = {b.sha256}
    assert load_backbone(f).sha256 == b.sha256
    for part, stem in (STEMS | dict(text_encoder_2='model')).items():
        w = f/part/f'{stem}.safetensors'
        t = load_file(w)
        k = sorted(t)[0]
        save_file(t | {k: t[k]+.01}, w)
        seen.add(load_backbone(f).sha256)
    for path, change in (
            ('vae/config.json', dict(scaling_factor=.2)), ('scheduler/scheduler_config.json', dict(beta_end=.013)),
            ('scheduler/scheduler_config.json', dict(prediction_type='v_prediction')),
            ('unet/config.json', dict(norm_eps=1e-4)), ('text_encoder/config.json', dict(hidden_act='gelu')),
            ('model_index.json', dict(force_zeros_for_empty_prompt=False)),
            ('tokenizer_2/tokenizer_config.json', dict(pad_token='!'))):
        edit(f/path, **change)
        seen.add(load_backbone(f).sha256)
    assert len(seen) == 12
    last = load_backbone(f).sha256
    edit(f/'unet'/'config.json', _diffusers_version='0.99')     # says nothing about pictures
    assert load_backbone(f).sha256 == last


def test_a_file_that_changed_after_loading_has_no_hash(copy):
    f = copy()
    b = load_backbone(f)
    edit_tensors(f/'vae'/'diffusion_pytorch_model.safetensors', lambda v: v+1)
    with pytest.raises(StylekitError, match='has changed'): b.sha256


def test_unknown_is_never_an_identity(models):
    b = load_backbone(models('sd15'))
    def make(): return Backbone(b.unet, b.vae, b.text_encoders, b.tokenizers, b.schedule)
    first = make().sha256
    assert len(first) == 64
    assert make().sha256 == first
    from stylekit.lora import new_adapter
    new_adapter(b, 'x', 2, seed=0)
    assert make().sha256 == first                             # an adapter is not the model
    b.delete_adapter('x')
    p = next(b.vae.parameters())
    p.data += .5
    assert make().sha256 != first


def test_source_without_private_folders(copy, monkeypatch):
    f = copy()
    assert load_backbone(f).source == 'model' and load_backbone().source == 'mini'
    monkeypatch.chdir(f.parent.parent)
    assert load_backbone(f'{f.parent.name}/model').source == f'{f.parent.name}/model'
    monkeypatch.chdir(f)
    assert load_backbone('.').source == 'model'
    refused(f, 'revision', revision='main')


def test_lease(models):
    b = load_backbone(models('sd15'))
    said = []
    def other(owner):
        try:
            with b.lease(owner): said.append('in')
        except StylekitError as e: said.append(str(e))
    def thread(owner):
        t = threading.Thread(target=other, args=(owner,))
        t.start()
        t.join()
        return said[-1]
    run = object()
    with b.lease(run):
        with b.lease(run): pass                               # once more
        assert thread(run) == 'in'                            # its own worker
        for owner in (None, object()): assert 'another run' in thread(owner)
        with pytest.raises(StylekitError, match='load the model once more'):
            with b.lease(): pass                              # `stylize` in the panel's own thread
    with b.lease():
        with b.lease(): pass
        assert 'another run' in thread(None)
    with pytest.raises(ZeroDivisionError):
        with b.lease(): 1/0
    assert thread(None) == 'in'


# One file, in the names of the original code.
# Random weights in the real layouts; heads and groups as in all models of the family

def renamed(name, pairs):
    for new, old in pairs.items(): name = name.replace(new, old)
    return name

UNET_ENDS = {
    'time_embedding.linear_1': 'time_embed.0', 'time_embedding.linear_2': 'time_embed.2',
    'add_embedding.linear_1': 'label_emb.0.0', 'add_embedding.linear_2': 'label_emb.0.2',
    'conv_in': 'input_blocks.0.0', 'conv_norm_out': 'out.0', 'conv_out': 'out.2'}
RESNET = {
    'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'norm2': 'out_layers.0', 'conv2': 'out_layers.3',
    'time_emb_proj': 'emb_layers.1', 'conv_shortcut': 'skip_connection'}
BLOCK = re.compile(
    r'(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)')

def original_unet_name(name, names, layers):
    head, last = name.rsplit('.', 1)
    if head in UNET_ENDS: return f'{UNET_ENDS[head]}.{last}'
    side, kind, j, rest = BLOCK.match(name).groups()
    i, j = int(side.split('.')[1]) if '.' in side else 0, int(j)
    first = i*(layers+1)
    if kind == 'downsamplers': return f'input_blocks.{first+layers+1}.0.op.{last}'
    if kind == 'upsamplers':
        place = 2 if any(n.startswith(f'up_blocks.{i}.attentions') for n in names) else 1
        return f'output_blocks.{first+layers}.{place}.conv.{last}'
    if kind == 'resnets': rest = RESNET[rest.split('.')[0]]+'.'+last
    if side == 'mid_block': return f'middle_block.{1 if kind == "attentions" else 2*j}.{rest}'
    block = f'input_blocks.{1+first+j}' if side.startswith('down') else f'output_blocks.{first+j}'
    return f'{block}.{1 if kind == "attentions" else 0}.{rest}'


def original_unet(t, layers):
    "diffusers' names of a UNet, back to the original ones"
    return {original_unet_name(k, t, layers): v for k, v in t.items()}


VAE_ATTENTION = {
    'mid_block.attentions.0': 'mid.attn_1', 'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v',
    'to_out.0': 'proj_out'}

def original_vae(t, levels):
    out = {}
    def up(m): return f'up.{levels-1-int(m[1])}'
    for k, v in t.items():
        k = re.sub(r'down_blocks\.(\d+)\.resnets\.(\d+)', r'down.\1.block.\2', k)
        k = re.sub(r'up_blocks\.(\d+)\.resnets\.(\d+)', lambda m: f'{up(m)}.block.{m[2]}', k)
        k = re.sub(r'down_blocks\.(\d+)\.downsamplers\.0', r'down.\1.downsample', k)
        k = re.sub(r'up_blocks\.(\d+)\.upsamplers\.0', lambda m: f'{up(m)}.upsample', k)
        k = re.sub(r'mid_block\.resnets\.(\d)', lambda m: f'mid.block_{int(m[1])+1}', k)
        k = renamed(k, {'conv_norm_out': 'norm_out', 'conv_shortcut': 'nin_shortcut'})
        if 'attentions' in k:
            k = renamed(k, VAE_ATTENTION)
            if v.ndim == 2: v = v[:, :, None, None].clone()
        out[k] = v
    return out


OPEN_CLIP = {
    'encoder.layers': 'transformer.resblocks', 'layer_norm': 'ln_', 'fc1': 'c_fc', 'fc2': 'c_proj',
    'self_attn.q_proj.': 'attn.in_proj_', 'self_attn': 'attn'}

def original_open_clip(t, unused_layer):
    t = {k.removeprefix('text_model.'): v for k, v in t.items()}
    out = {'token_embedding.weight': t['embeddings.token_embedding.weight'],
           'positional_embedding': t['embeddings.position_embedding.weight'], 'logit_scale': torch.tensor(4.6)}
    for k, v in t.items():
        if k.startswith('final_layer_norm'): out[k.replace('final_layer_norm', 'ln_final')] = v
        if k == 'text_projection.weight': out['text_projection'] = v.T.contiguous()
        if not k.startswith('encoder.layers.') or '.k_proj' in k or '.v_proj' in k: continue
        if '.q_proj' in k: v = torch.cat([t[k.replace('q_proj', f'{c}_proj')] for c in 'qkv'])
        out[renamed(k, OPEN_CLIP)] = v
    if not unused_layer: return out
    n = max(int(k.split('.')[2]) for k in out if 'resblocks' in k)
    last, unused = f'resblocks.{n}.', f'resblocks.{n+1}.'
    out |= {k.replace(last, unused): v+1 for k, v in out.items() if last in k}
    out['text_projection'] = torch.randn(64, 64)
    return out


@pytest.fixture(scope='session')
def singles(models, tmp_path_factory):
    "family -> (folder, the same weights as one file of the original code)"
    made = {}
    def get(family):
        if family not in made: made[family] = make_single(models, tmp_path_factory.mktemp(family), family)
        return made[family]
    return get


def family_unet(family):
    from diffusers import UNet2DConditionModel
    down = ('CrossAttnDownBlock2D',)*3+('DownBlock2D',)
    if family == 'xl': down = ('DownBlock2D',)+('CrossAttnDownBlock2D',)*2
    widths = dict(sd1=(32, 64, 64, 64), sd2=(64, 128, 128, 128), xl=(64, 128, 128))[family]
    kw = dict(attention_head_dim=8 if family == 'sd1' else tuple(w//64 for w in widths))
    if family == 'xl': kw |= dict(
        addition_embed_type='text_time', addition_time_embed_dim=8, projection_class_embeddings_input_dim=6*8+64,
        transformer_layers_per_block=(1, 1, 2))
    return UNet2DConditionModel(
        sample_size=dict(sd1=64, sd2=96, xl=128)[family], block_out_channels=widths, layers_per_block=2,
        down_block_types=down, up_block_types=tuple(d.replace('Down', 'Up') for d in down[::-1]),
        cross_attention_dim=128 if family == 'xl' else 64, use_linear_projection=family != 'sd1', **kw)

def family_vae(family):
    from diffusers import AutoencoderKL
    return AutoencoderKL(
        block_out_channels=(32,)*4, layers_per_block=1, scaling_factor=.13025 if family == 'xl' else .18215,
        down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4)

def family_text_encoders(family, old):
    "Of the sizes of the tokenizer that is there already"
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    def config(act, **more):
        kept = ('vocab_size', 'max_position_embeddings', 'bos_token_id', 'eos_token_id', 'pad_token_id')
        return CLIPTextConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=1, hidden_act=act,
            **{k: old[k] for k in kept}, **more)
    yield 'text_encoder', CLIPTextModel(config('gelu' if family == 'sd2' else 'quick_gelu'))
    if family == 'xl': yield 'text_encoder_2', CLIPTextModelWithProjection(config('gelu', projection_dim=64))

def make_single(models, home, family):
    folder = home/'folder'
    shutil.copytree(models(dict(sd1='sd15', sd2='sd21v', xl='sdxl')[family]), folder)
    torch.manual_seed(1)
    family_unet(family).save_pretrained(folder/'unet')
    family_vae(family).save_pretrained(folder/'vae')
    old = json.loads((folder/'text_encoder'/'config.json').read_text())
    for part, model in family_text_encoders(family, old): model.save_pretrained(folder/part)
    file = home/f'some{family}_v10.safetensors'
    save_file({k: v.contiguous().clone() for k, v in original_state(folder, family).items()}, file)
    return folder, file

def original_state(folder, family):
    "The weights of a folder in one state of the original code"
    t = {'model_ema.decay': torch.tensor(.9), 'alphas_cumprod': torch.zeros(1000)}
    def read(part): return load_file(next((folder/part).glob('*.safetensors')))
    def add(prefix, state):
        for k, v in state.items(): t[f'{prefix}.{k}'] = v
    add('model.diffusion_model', original_unet(read('unet'), 2))
    add('first_stage_model', original_vae(read('vae'), 4))
    clip = {'text_model.'+k.removeprefix('text_model.'): v for k, v in read('text_encoder').items()}
    if family == 'sd1':
        add('cond_stage_model.transformer', clip)
        t['cond_stage_model.transformer.text_model.embeddings.position_ids'] = torch.arange(77)[None]
    if family == 'sd2': add('cond_stage_model.model', original_open_clip(clip, True))
    if family == 'xl':
        add('conditioner.embedders.0.transformer', clip)
        add('conditioner.embedders.1.model', original_open_clip(read('text_encoder_2'), False))
    return t


@pytest.mark.parametrize('family', ['sd1', 'sd2', 'xl'])
def test_one_file_equals_the_folder_it_came_from(singles, family):
    folder, file = singles(family)
    a, b = load_backbone(folder), load_backbone(file, tokenizer=folder)
    for x in ('prediction_type', 'native_size', 'is_xl', 'vae_scale_factor'): assert getattr(a, x) == getattr(b, x), x
    torch.testing.assert_close(b.alphas_cumprod, a.alphas_cumprod)
    torch.testing.assert_close(b.encode_prompt(['an owl', '']).embeds, a.encode_prompt(['an owl', '']).embeds)
    torch.testing.assert_close(asked(b), asked(a))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(b.encode(x), a.encode(x))
    torch.testing.assert_close(b.decode(a.encode(x)), a.decode(a.encode(x)))
    assert b.name == file.stem and b.source == file.name
    assert len(b.sha256) == 64 and b.sha256 != a.sha256


def test_one_file_says_what_it_was_trained_for(singles, tmp_path):
    folder, file = singles('sd2')
    t = load_file(file)
    def kind(f): return load_backbone(f, tokenizer=folder).prediction_type
    f = tmp_path/'a.safetensors'
    save_file(t, f, {'modelspec.prediction_type': 'epsilon'})
    assert kind(f) == 'epsilon'
    save_file(t | {'v_pred': torch.zeros(0)}, f)
    assert kind(f) == 'v_prediction'
    save_file(t, f)
    f.with_suffix('.yaml').write_text('model:\n  params:\n    linear_start: 0.00085\n')
    assert kind(f) == 'epsilon'
    f.with_suffix('.yaml').write_text('model:\n  params:\n    parameterization: "v"\n')
    assert kind(f) == 'v_prediction'
    folder, file = singles('xl')
    save_file(load_file(file) | {'v_pred': torch.zeros(0), 'ztsnr': torch.zeros(0)}, f)
    b = load_backbone(f, tokenizer=folder)
    assert b.prediction_type == 'v_prediction' and b.alphas_cumprod[-1] == 0


def test_one_file_without_a_tokenizer(singles, tmp_path, monkeypatch):
    folder, file = singles('sd1')
    monkeypatch.setattr('stylekit.model_files._cached_vocabulary', lambda: None)
    refused(file, 'tokenizer=FOLDER', 'open_clip')
    refused(file, 'does not exist', tokenizer=tmp_path/'none')
    refused(file, 'vocabulary', tokenizer=tmp_path)
    want = asked(load_backbone(folder))
    assert torch.equal(asked(load_backbone(file, tokenizer=folder/'tokenizer')), want)
    beside = tmp_path/'x.safetensors'
    shutil.copy(file, beside)
    shutil.copytree(folder/'tokenizer', tmp_path/'tokenizer')
    assert torch.equal(asked(load_backbone(beside)), want)
    # as very old files have it
    old = {k.replace('transformer.text_model.', 'transformer.'): v for k, v in load_file(file).items()}
    save_file(old, beside)
    assert torch.equal(asked(load_backbone(beside)), want)


CONV_IN, REFINER = 'model.diffusion_model.input_blocks.0.0.weight', 'conditioner.embedders.0.model.'

def without(t, name): return {k: v for k, v in t.items() if name not in k}

def broken(t, name): return {k: v*torch.nan if name in k else v for k, v in t.items()}

@pytest.mark.parametrize('change,words', [
    (lambda t: t | {CONV_IN: torch.zeros(32, 9, 3, 3)}, 'inpainting'),
    (lambda t: t | {CONV_IN: torch.zeros(32, 8, 3, 3)}, 'InstructPix2Pix'),
    (lambda t: t | {'edm_mean': torch.zeros(4)}, 'EDM'),
    (lambda t: without(t, 'first_stage'), 'autoencoder'),
    (lambda t: without(t, 'cond_stage'), 'text encoder'),
    (lambda t: {k.replace('cond_stage_model.transformer.', REFINER): v for k, v in t.items()}, 'refiner'),
    (lambda t: {'double_blocks.0.img_attn.norm.key_norm.scale': torch.zeros(2)}, 'FLUX'),
    (lambda t: {'model.diffusion_model.joint_blocks.0.x': torch.zeros(2)}, 'Stable Diffusion 3'),
    (lambda t: {'lora_unet_x.lora_down.weight': torch.zeros(2)}, 'LoRA'),
    (lambda t: {'control_model.time_embed.0.weight': torch.zeros(2)}, 'ControlNet'),
    (lambda t: {'encoder.conv_in.weight': torch.zeros(2)}, 'autoencoder alone'),
    (lambda t: {'down_blocks.0.x': torch.zeros(2)}, 'UNet of a diffusers folder'),
    (lambda t: {'x': torch.zeros(2)}, 'no checkpoint'),
    (lambda t: {}, 'no checkpoint'),
    (lambda t: without(t, 'output_blocks.3'), 'tensors'),
    (lambda t: broken(t, 'middle_block.0.in_layers.2.weight'), 'NaN'),
    (lambda t: without(t, 'time_embed'), 'lacks'),
    (lambda t: without(t, 'encoder.layers.1.'), 'lacks')])
def test_one_file_that_is_something_else(singles, tmp_path, change, words):
    folder, file = singles('sd1')
    f = tmp_path/'x.safetensors'
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, f)
    refused(f, words, tokenizer=folder)


TOO_MUCH = [
    ('unet/config.json', dict(layers_per_block=10**9)), ('unet/config.json', dict(block_out_channels=[10**5]*4)),
    ('unet/config.json', dict(transformer_layers_per_block=10**5)), ('unet/config.json', dict(sample_size=10**9)),
    ('unet/config.json', dict(attention_head_dim=10**12)),
    ('text_encoder/config.json', dict(num_hidden_layers=10**9)), ('text_encoder/config.json', dict(vocab_size=10**6)),
    ('text_encoder/config.json', dict(max_position_embeddings=60_000)),
    ('vae/config.json', dict(layers_per_block=10**6)), ('vae/config.json', dict(block_out_channels=[8]*10**5)),
    ('tokenizer/tokenizer_config.json', dict(model_max_length=0))]

def test_small_files_that_ask_for_much(copy):
    for i, (path, change) in enumerate(TOO_MUCH):
        f = copy(name=f'm{i}')
        edit(f/path, **change)
        refused(f)


HUB = '''
import os, sys, time, json, socket, threading
home, *cases = sys.argv[1:]
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen(50)
html = b'HTTP/1.1 200 OK\\r\\nContent-Type: text/html\\r\\nContent-Length: 6\\r\\n\\r\\n<html>'
held, how = [], ''      # how it answers now
def answer(c, how):
    try:
        if how == 'hangs-up': c.close()
        elif how != 'silent': c.recv(4000)
        if how == 'breaks': c.sendall(b'HTTP/1.1 500 No\\r\\nContent-Length: 0\\r\\n\\r\\n')
        if how == 'is-no-hub': c.sendall(html)
        while how == 'drips':
            c.sendall(b'H')
            time.sleep(.2)
    except OSError: pass
def serve():
    while True:
        c, _ = server.accept()
        held.append(c)
        threading.Thread(target=answer, args=[c, how], daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
port = server.getsockname()[1]
os.environ.update(HF_ENDPOINT=f'http://127.0.0.1:{port}', HF_HUB_OFFLINE='0', HF_HOME=home)
import stylekit.backbone as B, stylekit.model_files as files
from stylekit.clip.clip import load_clip
from stylekit.lora import load_style
from stylekit.measure.metrics import load_features
B.load_backbone()       # libraries are imported in it
files.HUB_SECONDS = 1
def load_revision(name): B.load_backbone(name, revision='v2')
def load_mix(name): load_style(f'ink:0.5+{name}/a.safetensors:0.5')
ask = dict(backbone=B.load_backbone, revision=load_revision, style=load_style, mix=load_mix, clip=load_clip,
           features=load_features)
def asked(way, what):
    global how
    how, start = way, time.monotonic()
    try: ask[what](f'org/{how}')
    except B.StylekitError as e: return str(e), time.monotonic()-start
print(json.dumps({case: asked(*case.split()) for case in cases}))
sys.stdout.flush()
os._exit(0)
'''
HUBS = [f'{how} backbone' for how in ('silent', 'hangs-up', 'breaks', 'is-no-hub', 'drips')]
HUBS += [f'silent {what}' for what in ('revision', 'style', 'mix', 'clip', 'features')]
HUBS += ['breaks style', 'drips clip']


@pytest.fixture(scope='module')
def hubs(tmp_path_factory):
    "What each asking ends with"
    argv = [sys.executable, '-c', HUB, tmp_path_factory.mktemp('hub'), *HUBS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('case', HUBS)
def test_a_hub_that_never_answers(hubs, case):
    "Or answers with something else: one line in time, whatever is asked for; left alone, libraries ask for minutes"
    line, seconds = hubs[case]
    how = case.split()[0]
    assert seconds < 20, line
    assert '\n' not in line and len(line) <= 300, line
    assert f'org/{how}' in line, line
    if how in ('silent', 'drips'): assert 'no answer in 1 s' in line


CACHED = '''
import os, sys
os.environ.update(HF_HUB_OFFLINE='1', HF_HOME=sys.argv[1])
from stylekit import load_backbone, StylekitError
for revision in (None, 'main', 'a'*40, 'v2'):
    try: b = load_backbone('org/model', revision=revision)
    except StylekitError as e: print(e); continue
    print(b.name, b.source, b.revision, len(b.sha256))
'''


def test_a_model_in_the_hubs_cache(copy, tmp_path):
    repo = tmp_path/'home'/'hub'/'models--org--model'
    (repo/'refs').mkdir(parents=True)
    (repo/'refs'/'main').write_text('a'*40)
    (repo/'snapshots').mkdir()
    copy().rename(repo/'snapshots'/('a'*40))
    done = subprocess.run([sys.executable, '-c', CACHED, tmp_path/'home'], capture_output=True, text=True, timeout=100)
    lines = done.stdout.strip().split('\n')
    assert lines[:3] == [f'model org/model {"a"*40} 64']*3, done.stdout+done.stderr
    assert 'hub gave no such model' in lines[3], done.stdout+done.stderr


# Every structured file of a model: each key missing, null, of another type, huge; cut, appended, one byte flipped
CONFIGS = (
    'model_index.json', 'unet/config.json', 'vae/config.json', 'text_encoder/config.json',
    'scheduler/scheduler_config.json', 'tokenizer/tokenizer_config.json', 'tokenizer/tokenizer.json')


def answers(b):
    x = torch.linspace(0, 1, 3*64*64).view(1, 3, 64, 64)
    z = b.encode(x)
    return torch.cat([a.flatten() for a in (asked(b), z, b.decode(z))])


def mutations(data):
    "Changed versions of a JSON file's bytes"
    r, d = random.Random(0), json.loads(data)
    for k, v in d.items():
        other = 'x' if not isinstance(v, str) else [1]
        huge = -10**12 if isinstance(v, bool) else 10**12
        new, = r.sample([None, other, huge, [{'a': v}]], 1)
        yield json.dumps(d | {k: new}).encode()
        yield json.dumps({n: w for n, w in d.items() if n != k}).encode()
    yield from (b'', b'null', b'[]', data[:len(data)//2], data[:-3], data+b'}', data+b'\0', b'\xff'+data)
    for _ in range(10):
        i = r.randrange(len(data))
        yield data[:i]+bytes([data[i]^(1 << r.randrange(8))])+data[i+1:]


@pytest.mark.parametrize('file', CONFIGS)
def test_sweep_over_configs(copy, file):
    f = copy()
    good, data = load_backbone(f), (f/file).read_bytes()
    want, sha = answers(good), good.sha256
    taken = n = 0
    for bad in mutations(data):
        (f/file).write_bytes(bad)
        n += 1
        try: b = load_backbone(f)
        except StylekitError as e:
            assert '\n' not in str(e) and len(str(e)) <= 300, str(e)
            assert str(f.parent) not in str(e), str(e)
            continue
        taken += 1
        assert b.sha256 != sha or torch.equal(answers(b), want), bad[:3000]
    assert 0 < taken < n


@pytest.mark.parametrize('change', [
    dict(cross_attention_dim=[{}]), dict(cross_attention_dim={'a': 1}), dict(attention_type={}),
    dict(mid_block_scale_factor='1'), dict(downsample_padding=3), dict(freq_shift=[]), dict(act_fn='none')])
def test_unet_configs_that_no_shape_betrays(copy, change):
    f = copy()
    edit(f/'unet'/'config.json', **change)
    refused(f)
