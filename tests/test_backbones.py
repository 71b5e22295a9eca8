"Real file layouts of SD 1.5, SD 2.1 (v) and SDXL load, predict ε and run the whole loop"
import pytest, torch
from stylekit import load_backbone, sample, stylize
from stylekit.backbone import Cond
from stylekit.scores import FakeScore

KINDS = ('sd15', 'sd21v', 'sdxl')


@pytest.mark.parametrize('kind', KINDS)
def test_three_iterations(models, random_style, kind):
    b = load_backbone(models(kind))
    r = stylize(sample('owl').resize((64, 64)), random_style(b), 'an owl', backbone=b, steps=3, seed=0)
    assert r.image.size == (64, 64) and r.complete
    assert all(torch.isfinite(torch.tensor(v)).all() and len(v) == 3 for v in r.history.values())
    before = stylize(sample('owl').resize((64, 64)), random_style(b), 'an owl', backbone=b, steps=3, seed=0)
    assert before.image.tobytes() == r.image.tobytes()      # same seed, same image
    assert not getattr(b.unet, 'peft_config', {})           # nothing is left on the one UNet


@pytest.mark.parametrize('kind', KINDS)
def test_fake_score_loss_falls(models, kind):
    b = load_backbone(models(kind))
    fake = FakeScore(b, lr=1e-2)
    g = torch.Generator().manual_seed(0)
    z, noise, t = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g), torch.tensor([100, 400])
    losses = [fake.learn(b.add_noise(z, noise, t), t, b.text('an owl'), noise)[1].mean().item() for _ in range(4)]
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
    got = b.predict(z, t, b.text('an owl'))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert b.text('').embeds.abs().sum() == 0               # force_zeros_for_empty_prompt


def test_v_prediction_becomes_epsilon(models):
    b = load_backbone(models('sd21v'))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([50, 700])
    c = b.text('an owl')
    v, A = b.unet(z, t, c.expand(2).embeds).sample, b.abar(t)
    torch.testing.assert_close(b.predict(z, t, c), A.sqrt()*v+(1-A).sqrt()*z)
    assert b.prediction_type == 'v_prediction'


def test_latents_round_trip_the_vaes_scaling(models):
    b = load_backbone(models('sd15'))
    x = torch.rand(1, 3, 64, 64)
    z = b.encode(x)
    torch.testing.assert_close(z, b.vae.encode(x*2-1).latent_dist.mode()*.18215)
    assert b.factor == 8 and b.native_size == 64 and b.multiple == 64


# Backbones that people have: told apart before work, or loaded as they are
import json, shutil, subprocess, sys, threading, warnings
from pathlib import Path
from safetensors.torch import load_file, save_file
from stylekit import StylekitError
from stylekit.backbone import Backbone


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
    return b.predict(z, torch.tensor(t), b.text(list(texts), size=(64, 64)))


@pytest.mark.parametrize('channels,family', [(9, 'an inpainting model'), (8, 'InstructPix2Pix'), (5, 'a depth model'), (7, 'an upscaler'), (6, 'do not belong together')])
def test_more_channels_than_latents(copy, channels, family):
    f = copy()
    rebuild(f, in_channels=channels)
    refused(f, family)


@pytest.mark.parametrize('changes,family', [(dict(_class_name='StableDiffusionXLInpaintPipeline'), 'inpainting'), (dict(_class_name='StableDiffusionInstructPix2PixPipeline'), 'InstructPix2Pix'),
    (dict(_class_name='StableDiffusionControlNetPipeline'), 'ControlNet'), (dict(_class_name='TextToVideoSDPipeline'), 'video'), (dict(_class_name='PixArtAlphaPipeline'), 'PixArt'),
    (dict(_class_name='HunyuanDiTPipeline'), 'Hunyuan'), (dict(_class_name='FluxPipeline'), 'FLUX'), (dict(_class_name='KolorsPipeline'), 'Kolors'), (dict(_class_name='StableDiffusionUpscalePipeline'), 'upscaler'),
    (dict(text_encoder=['alt_diffusion', 'RobertaSeriesModelWithTransformation']), 'AltDiffusion'), (dict(text_encoder=['kolors', 'ChatGLMModel']), 'Kolors'), (dict(text_encoder=['transformers', 'T5EncoderModel']), 'T5'),
    (dict(unet=['diffusers', 'UNetMotionModel']), 'video'), (dict(vae=['diffusers', 'AutoencoderKLTemporalDecoder']), 'video'), (dict(vae=['diffusers', 'AutoencoderDC']), 'another vae'),
    (dict(controlnet=['diffusers', 'ControlNetModel']), 'ControlNet'), (dict(motion_adapter=['diffusers', 'MotionAdapter']), 'video'), (dict(prior=['diffusers', 'PriorTransformer']), 'prior')])
def test_other_pipelines_and_parts_by_family(copy, changes, family):
    f = copy()
    edit(f/'model_index.json', **changes)
    refused(f, family, 'choose Stable Diffusion')


def test_refiner_transformer_and_cousins(copy):
    f = copy('sdxl', 'refiner')
    rebuild(f, projection_class_embeddings_input_dim=5*8+24, cross_attention_dim=24)
    edit(f/'model_index.json', text_encoder=[None, None], tokenizer=[None, None], _class_name='StableDiffusionXLImg2ImgPipeline')
    refused(f, 'refiner')
    f = copy('sdxl', 'five')      # both encoders, and yet five numbers
    rebuild(f, projection_class_embeddings_input_dim=5*8+24)
    refused(f, 'refiner', 'five numbers')
    f = copy('sd15', 'dit')
    d = json.loads((f/'model_index.json').read_text())
    d.pop('unet')
    (f/'model_index.json').write_text(json.dumps(d | dict(transformer=['diffusers', 'SD3Transformer2DModel'], _class_name='StableDiffusion3Pipeline')))
    refused(f, 'Stable Diffusion 3')
    (f/'model_index.json').write_text(json.dumps(d | dict(transformer=['diffusers', 'Transformer2DModel'])))
    refused(f, 'transformer')
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
    shutil.copytree(f/'text_encoder', f/'text_encoder_2')
    edit(f/'model_index.json', text_encoder_2=['transformers', 'CLIPTextModelWithProjection'], tokenizer_2=['transformers', 'CLIPTokenizer'])
    shutil.copytree(f/'tokenizer', f/'tokenizer_2')
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


@pytest.mark.parametrize('cls,changes,family', [('EDMDPMSolverMultistepScheduler', {}, 'EDM'), ('EDMEulerScheduler', {}, 'EDM'), ('FlowMatchEulerDiscreteScheduler', dict(shift=3.), 'flow matching'),
    ('FlowMatchHeunDiscreteScheduler', {}, 'flow matching'), ('UniPCMultistepScheduler', dict(use_flow_sigmas=True), 'flow matching'), ('DPMSolverMultistepScheduler', dict(prediction_type='flow_prediction'), 'flow matching'),
    ('CogVideoXDDIMScheduler', {}, 'unknown'), ('DDPMWuerstchenScheduler', {}, 'unknown')])
@pytest.mark.parametrize('where', ['both', 'index', 'config'])
def test_schedulers_without_betas(copy, cls, changes, family, where):
    f = copy()
    if where != 'config': edit(f/'model_index.json', scheduler=['diffusers', cls])
    if where != 'index' or changes: edit(f/'scheduler'/'scheduler_config.json', _class_name=cls, **changes)
    refused(f, family, 'betas')


@pytest.mark.parametrize('cls', ['LCMScheduler', 'EulerAncestralDiscreteScheduler', 'DPMSolverMultistepScheduler', 'PNDMScheduler', 'HeunDiscreteScheduler'])
def test_schedulers_with_betas(copy, cls):
    import diffusers
    f = copy()
    want = asked(load_backbone(f))
    edit(f/'model_index.json', scheduler=['diffusers', cls])
    edit(f/'scheduler'/'scheduler_config.json', _class_name=cls)
    b = load_backbone(f)
    assert torch.equal(asked(b), want)
    (f/'scheduler'/'scheduler_config.json').write_text(json.dumps(dict(_class_name=cls)))   # defaults are those of the class
    torch.testing.assert_close(load_backbone(f).alphas_cumprod, getattr(diffusers, cls)().alphas_cumprod)


@pytest.mark.parametrize('changes,words', [(dict(num_train_timesteps=0), '0'), (dict(num_train_timesteps=10**9), '1e+09'), (dict(num_train_timesteps=None), 'None'), (dict(num_train_timesteps=True), 'True'),
    (dict(beta_start=float('nan')), 'NaN'), (dict(beta_end=float('inf')), 'Infinity'), (dict(beta_end='0.012'), 'number'), (dict(beta_start=-1), '-1'), (dict(beta_end=2.), '2'), (dict(beta_schedule='none'), 'betas'),
    (dict(beta_schedule=3), 'str'), (dict(prediction_type='velocity'), 'velocity'), (dict(prediction_type=None), 'None'), (dict(trained_betas=[.1, .2]), '2 trained_betas'), (dict(rescale_betas_zero_snr='yes'), 'yes')])
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
    eps = b.predict(z, last, b.text('an owl'))
    assert b.alphas_cumprod[-1] == 0 and torch.equal(eps[0], z[0]) and not torch.equal(eps[1], z[1]) and eps.isfinite().all()


def test_latents_mean_and_std(copy):
    "As diffusers' own pipelines for such models: (raw - mean)·factor/std, and back"
    f = copy('sdxl')
    mean, std = torch.tensor([-1.6574, 1.886, -1.383, 2.5155]), torch.tensor([8.4927, 5.9022, 6.5498, 5.2299])
    edit(f/'vae'/'config.json', latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=.5)
    b, x = load_backbone(f), torch.rand(1, 3, 64, 64)
    raw, z = b.vae.encode(x*2-1).latent_dist.mode(), b.encode(x)
    torch.testing.assert_close(z, (raw-mean.view(1, 4, 1, 1))*.5/std.view(1, 4, 1, 1))
    torch.testing.assert_close(b.decode(z), (b.vae.decode(raw).sample/2+.5).clamp(0, 1), atol=1e-5, rtol=1e-4)
    for bad in (dict(latents_std=[1.]), dict(latents_std=[1., 1., 1., 0.]), dict(latents_mean='x'), dict(latents_mean=[1., None, 1., 1.])):
        edit(f/'vae'/'config.json', **dict(latents_mean=mean.tolist(), latents_std=std.tolist()) | bad)
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
        if form == 'beside': save_file({k: v*2 for k, v in load_file(file).items()}, f/part/f'{stem}.fp16.safetensors')   # the full ones win
    b = load_backbone(f)
    assert torch.equal(asked(b), want) and len(b.sha256) == 64
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
    for new, old in (('.to_q.', '.query.'), ('.to_k.', '.key.'), ('.to_v.', '.value.'), ('.to_out.0.', '.proj_attn.')): t = {k.replace(new, old): v for k, v in t.items()}
    save_file(t, w)
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
        assert b.text('an owl '*80).embeds.shape[1] == 77
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
    for w in (f/'vae'/'diffusion_pytorch_model.safetensors', f/'text_encoder'/'model.safetensors', f/'text_encoder_2'/'model.safetensors', f/'unet'/'diffusion_pytorch_model.safetensors'):
        t = load_file(w)
        k = sorted(t)[0]
        save_file(t | {k: t[k]+.01}, w)
        seen.add(load_backbone(f).sha256)
    for path, change in ((f/'vae'/'config.json', dict(scaling_factor=.2)), (f/'scheduler'/'scheduler_config.json', dict(beta_end=.013)), (f/'scheduler'/'scheduler_config.json', dict(prediction_type='v_prediction')),
                         (f/'unet'/'config.json', dict(norm_eps=1e-4)), (f/'text_encoder'/'config.json', dict(hidden_act='gelu')), (f/'model_index.json', dict(force_zeros_for_empty_prompt=False)),
                         (f/'tokenizer_2'/'tokenizer_config.json', dict(pad_token='!'))):
        edit(path, **change)
        seen.add(load_backbone(f).sha256)
    assert len(seen) == 12
    last = load_backbone(f).sha256
    edit(f/'unet'/'config.json', _diffusers_version='0.99')     # says nothing about pictures
    assert load_backbone(f).sha256 == last


def test_a_file_that_changed_after_loading_has_no_hash(copy):
    f = copy()
    b = load_backbone(f)
    w = f/'vae'/'diffusion_pytorch_model.safetensors'
    save_file({k: v+1 for k, v in load_file(w).items()}, w)
    with pytest.raises(StylekitError, match='has changed'): b.sha256


def test_unknown_is_never_an_identity(models):
    b = load_backbone(models('sd15'))
    make = lambda: Backbone(b.unet, b.vae, b.text_encoders, b.tokenizers, b.schedule)
    first = make().sha256
    assert len(first) == 64 == len(set(first))*0+64 and make().sha256 == first
    from stylekit.lora import new_adapter
    new_adapter(b, 'x', 2, seed=0)
    assert make().sha256 == first                             # an adapter is not the model
    b.remove('x')
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
        assert 'another run' in thread(None) and 'another run' in thread(object())
        with pytest.raises(StylekitError, match='load the model once more'):
            with b.lease(): pass                              # `stylize` in the panel's own thread
    with b.lease():
        with b.lease(): pass
        assert 'another run' in thread(None)
    with pytest.raises(ZeroDivisionError):
        with b.lease(): 1/0
    assert thread(None) == 'in'
