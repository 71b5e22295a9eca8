"LoRA files written by the tools people use give the same UNet and text encoders as the tool that wrote them"
import copy, json, warnings
import pytest, torch
from safetensors.torch import load_file, save_file
from stylekit import StylekitError, load_backbone, load_style, sample, stylize
from stylekit.formats import file_names, kohya_name, layer_shapes, read_lora, sgm_names
from stylekit.lora import add_style, save_lora

ATTN, FF, CONV = ['to_q', 'to_k', 'to_v', 'to_out.0'], ['ff.net.0.proj', 'ff.net.2', 'proj_in', 'proj_out'], ['conv1', 'conv2', 'conv_shortcut', 'time_emb_proj', 'conv']
TEXT = ['q_proj', 'k_proj', 'v_proj', 'out_proj', 'fc1', 'fc2']


@pytest.fixture(scope='module', params=['sd15', 'sdxl'])
def folder(request, models): return models(request.param)

@pytest.fixture(scope='module')
def sd15(models): return models('sd15')

def fill(module, adapter='default', seed=0):
    "Random weights for an adapter, big enough to be seen"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k, p in module.named_parameters():
            if f'.{adapter}' not in k: continue
            if 'magnitude' in k: p.mul_(1+.3*torch.rand(p.shape, generator=g))
            else: p.copy_(.1*torch.randn(p.shape, generator=g))

def inputs(b):
    g = torch.Generator().manual_seed(5)
    return torch.randn(2, b.latent_channels, 8, 8, generator=g), torch.tensor([100, 700])

def raw(unet, b, cond):
    z, t = inputs(b)
    with torch.no_grad(): return unet(z, t, cond.expand(2).embeds, added_cond_kwargs=dict(text_embeds=cond.expand(2).pooled, time_ids=cond.expand(2).time_ids)).sample

def same(path, folder, want, cond=None, **kw):
    "The style at `path` gives ε `want`, and all of it found its place"
    b = load_backbone(folder)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        report = add_style(b, load_style(path, **kw))
    assert report.matched == report.total > 0, str(report)
    got = b.predict(*inputs(b), cond or b.text('an owl'), ('style',))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got-b.predict(*inputs(b), b.text('an owl'))).abs().max() > 1e-3
    return b, report


PEFTS = dict(plain=dict(r=4, lora_alpha=8), uneven=dict(r=4, lora_alpha=8, rank_pattern={'to_q': 2}, alpha_pattern={'to_k': 1}), rslora=dict(r=4, lora_alpha=8, use_rslora=True),
             dora=dict(r=4, lora_alpha=2, use_dora=True), dora_conv=dict(r=4, use_dora=True, target_modules=ATTN+['conv1']), conv=dict(r=4, lora_alpha=8, target_modules=ATTN+FF+CONV))

@pytest.mark.parametrize('name', PEFTS)
def test_peft(folder, tmp_path, name):
    from peft import LoraConfig, get_peft_model
    b = load_backbone(folder)
    model = get_peft_model(copy.deepcopy(b.unet), LoraConfig(**dict(target_modules=ATTN) | PEFTS[name]))
    fill(model)
    model.save_pretrained(tmp_path/'mine')
    b, report = same(tmp_path/'mine', folder, raw(model, b, b.text('an owl')))
    assert report.writer == 'PEFT' and ('DoRA' in report.kind) == ('dora' in name) and load_style(tmp_path/'mine').name == 'mine'


@pytest.mark.parametrize('header', [True, False])
def test_diffusers(folder, tmp_path, header):
    "UNet and text encoders, α in the header or lost with it, as diffusers' own loader reads them"
    import diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    cls = diffusers.StableDiffusionXLPipeline if 'sdxl' in str(folder) else diffusers.StableDiffusionPipeline
    pipe = cls.from_pretrained(folder)
    parts = dict(unet=pipe.unet, text_encoder=pipe.text_encoder) | (dict(text_encoder_2=pipe.text_encoder_2) if hasattr(pipe, 'text_encoder_2') else {})
    layers, meta = {}, {}
    for part, m in parts.items():
        cfg = LoraConfig(r=4, lora_alpha=8, target_modules=ATTN+FF if part == 'unet' else TEXT)
        m.add_adapter(cfg); fill(m)
        layers[f'{part}_lora_layers'] = get_peft_model_state_dict(m)
        if header: meta[f'{part}_lora_adapter_metadata'] = cfg.to_dict()
    cls.save_lora_weights(tmp_path, **layers, **meta)
    fresh = cls.from_pretrained(folder)
    fresh.load_lora_weights(str(tmp_path))
    b = load_backbone(folder)
    b.text_encoders = [getattr(fresh, p) for p in list(parts)[1:]]
    cond = b.text('an owl', adapters=('default_0',))
    mine, report = same(tmp_path/'pytorch_lora_weights.safetensors', folder, raw(fresh.unet, b, cond), cond)
    got, base = mine.text('an owl', adapters=('style',)), mine.text('an owl')
    torch.testing.assert_close(got.embeds, cond.embeds, atol=1e-5, rtol=1e-5)
    assert (got.embeds-base.embeds).abs().max() > 1e-3 and report.writer == 'diffusers'
    if b.is_xl: torch.testing.assert_close(got.pooled, cond.pooled, atol=1e-5, rtol=1e-5)
    mine.remove('style')
    assert torch.equal(mine.text('an owl', adapters=()).embeds, base.embeds)


def kohya(parts, targets, rank=4, alpha=2., seed=0, without_alpha=(), sgm=False):
    "A file with kohya's names and shapes for every layer with one of these endings"
    g, out = torch.Generator().manual_seed(seed), {}
    for part, model in parts.items():
        shapes = layer_shapes(model)
        names = sgm_names(list(shapes)) if sgm and part == 'unet' else {}
        for l, s in shapes.items():
            if not l.endswith(tuple(targets)): continue
            n = kohya_name(part, names.get(l, l), 'text_encoder_2' in parts)
            out[f'{n}.lora_down.weight'] = .1*torch.randn(rank, *s[1:], generator=g)
            out[f'{n}.lora_up.weight'] = .1*torch.randn(s[0], rank, *[1]*(len(s)-2), generator=g)
            if not l.endswith(tuple(without_alpha) or ('\0',)): out[f'{n}.alpha'] = torch.tensor(alpha)
    return out

def merged(unet, deltas):
    "The UNet with its weights changed by hand"
    u = copy.deepcopy(unet)
    with torch.no_grad():
        for l, d in deltas.items(): u.get_submodule(l).weight += d
    return u


@pytest.mark.parametrize('model, sgm', [('sd15', False), ('sdxl', False), ('sdxl', True)])
def test_kohya_as_diffusers_reads_it(models, tmp_path, model, sgm):
    "Linear layers and convolutions, both text encoders; SDXL also with the block numbers kohya writes"
    import diffusers
    xl, folder = model == 'sdxl', models(model)
    b = load_backbone(folder)
    state = kohya(b.parts, ATTN+FF+CONV+TEXT, sgm=sgm)
    save_file(state, tmp_path/'k.safetensors')
    cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    pipe = cls.from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name='k.safetensors')
    _, report = same(tmp_path/'k.safetensors', folder, raw(pipe.unet, b, b.text('an owl')), b.text('an owl'))
    assert report.writer == 'kohya' and report.matched == sum(k.endswith('.alpha') for k in state) and 'text_encoder' in report.blocks
    # and the names, one by one, as diffusers' converter has them
    xlkw = dict(unet_config=pipe.unet.config) if xl else {}
    theirs, _ = cls.lora_state_dict({k: v.clone() for k, v in state.items()}, **xlkw)
    clean = lambda k: k.replace('.processor', '').replace('to_out_lora', 'to_out.0_lora')
    theirs = {clean(k): v for k, v in theirs.items() if k.startswith('unet.')}
    names = file_names(b.parts)
    for k, v in state.items():
        part, layer = names[k.split('.')[0]]
        if part == 'unet' and '.lora_down' in k:
            match = [n for n, w in theirs.items() if w.shape == v.shape and torch.equal(w, v)]
            assert len(match) == 1 and match[0].startswith(f'unet.{layer}'), (k, match)


def test_text_encoders_by_hand(folder, tmp_path):
    "Text encoder parts at kohya's α: weights changed by hand give the same text"
    b = load_backbone(folder)
    state = kohya(b.parts, ATTN+TEXT)
    save_file(state, tmp_path/'k.safetensors')
    hand = load_backbone(folder)
    for part, m in list(hand.parts.items())[1:]:
        layers = {kohya_name(part, l, b.is_xl): l for l in layer_shapes(m)}
        for k in [k.removesuffix('.alpha') for k in state if k.endswith('.alpha')]:
            down, up = state[f'{k}.lora_down.weight'], state[f'{k}.lora_up.weight']
            if k in layers:
                with torch.no_grad(): m.get_submodule(layers[k]).weight += state[f'{k}.alpha']/len(down)*(up@down)
    add_style(b, load_style(tmp_path/'k.safetensors'))
    got, want = b.text(['an owl', ''], adapters=('style',)), hand.text(['an owl', ''])
    torch.testing.assert_close(got.embeds, want.embeds, atol=1e-5, rtol=1e-5)
    if b.is_xl: torch.testing.assert_close(got.pooled, want.pooled, atol=1e-5, rtol=1e-5)


def test_missing_alpha_means_rank(sd15, tmp_path):
    "Some layers without α, others with: each has its own strength"
    b = load_backbone(sd15)
    state = kohya(dict(unet=b.unet), ATTN, without_alpha=['to_q'])
    deltas = {l: (state[f'{k}.lora_up.weight']@state[f'{k}.lora_down.weight'])*(1. if l.endswith('to_q') else .5)
              for l in layer_shapes(b.unet) if (k := kohya_name('unet', l))+'.lora_up.weight' in state}
    save_file(state, tmp_path/'k.safetensors')
    same(tmp_path/'k.safetensors', sd15, raw(merged(b.unet, deltas), b, b.text('an owl')))


@pytest.mark.parametrize('kind, kw', [('LoHa', dict(r=3)), ('LoHa', dict(r=8)), ('LoKr', dict(r=2, decompose_factor=4)), ('LoKr', dict(r=64)), ('LoKr', dict(r=2, decompose_both=True, decompose_factor=8))])
def test_lycoris(sd15, tmp_path, kind, kw):
    "LoHa and LoKr, weights made by PEFT's layers, in LyCORIS' names"
    import peft
    b = load_backbone(sd15)
    model = peft.get_peft_model(copy.deepcopy(b.unet), getattr(peft, f'{kind}Config')(target_modules=ATTN+['conv1'], alpha=kw['r']*.5, **kw))
    fill(model)
    state, ranks = {}, {n.removeprefix('base_model.model.'): m.r['default'] for n, m in model.named_modules() if 'default' in getattr(m, 'r', {})}
    for k, v in peft.get_peft_model_state_dict(model).items():
        layer, role = k.removeprefix('base_model.model.').rsplit('.', 1)
        state[f'{kohya_name("unet", layer)}.{role}'] = v.contiguous()
        state[f'{kohya_name("unet", layer)}.alpha'] = torch.tensor(kw['r']*.5)
    if kind == 'LoKr':      # PEFT scales whole factors by α/r as well; LyCORIS does not, and sets α to r there
        whole = [l for l in ranks if f'{kohya_name("unet", l)}.lokr_w1' in state and f'{kohya_name("unet", l)}.lokr_w2' in state]
        for l in whole: state[f'{kohya_name("unet", l)}.lokr_w1'] = state[f'{kohya_name("unet", l)}.lokr_w1']*.5
    save_file({k: v.clone() for k, v in state.items()}, tmp_path/'l.safetensors')
    _, report = same(tmp_path/'l.safetensors', sd15, raw(model, b, b.text('an owl')))
    assert report.kind == kind


def test_kohya_dora_as_peft(sd15, tmp_path):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    b = load_backbone(sd15)
    model = get_peft_model(copy.deepcopy(b.unet), LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=ATTN+['conv1']))
    fill(model)
    state = {}
    for k, v in get_peft_model_state_dict(model).items():
        layer, role = k.removeprefix('base_model.model.').rsplit('.lora_', 1)
        n = kohya_name('unet', layer)
        if 'magnitude' in role: state[f'{n}.dora_scale'] = v.reshape(-1, *[1]*(len(layer_shapes(b.unet)[layer])-1)).clone()
        else: state[f'{n}.lora_{"down" if role[0] == "A" else "up"}.weight'], state[f'{n}.alpha'] = v.clone(), torch.tensor(2.)
    save_file(state, tmp_path/'d.safetensors')
    _, report = same(tmp_path/'d.safetensors', sd15, raw(model, b, b.text('an owl')))
    assert report.kind == 'LoRA (DoRA)'


@pytest.mark.parametrize('names', ['diffusers', 'kohya'])
def test_written_files_read_elsewhere(folder, tmp_path, names):
    "What `save_lora` writes, at a strength that is not one, diffusers reads"
    import diffusers
    b = load_backbone(folder)
    save_file(kohya(dict(unet=b.unet), ATTN+['conv1']), tmp_path/'k.safetensors')
    add_style(b, load_style(tmp_path/'k.safetensors', scale=.7))
    save_lora(b, 'style', tmp_path/'mine.safetensors', 'words', names=names)
    pipe = (diffusers.StableDiffusionXLPipeline if b.is_xl else diffusers.StableDiffusionPipeline).from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name='mine.safetensors')
    c = b.text('an owl')
    torch.testing.assert_close(raw(pipe.unet, b, c), b.predict(*inputs(b), c, ('style',)), atol=3e-3, rtol=1e-3)    # half precision
    same(tmp_path/'mine.safetensors', folder, raw(pipe.unet, b, c))


def test_text_encoder_part_reaches_the_picture(sd15, tmp_path):
    "The style's own reading of the prompt is used, by the style's score alone"
    b = load_backbone(sd15)
    state = kohya(b.parts, ATTN+TEXT)
    unet = {k: v for k, v in state.items() if k.startswith('lora_unet')}
    save_file(state, tmp_path/'both.safetensors'); save_file(unet, tmp_path/'unet.safetensors')
    go = lambda f: stylize(sample('owl').resize((64, 64)), load_style(f, words='ink'), 'an owl', backbone=b, steps=2, seed=0)
    both, only = go(tmp_path/'both.safetensors'), go(tmp_path/'unet.safetensors')
    assert both.image.tobytes() != only.image.tobytes()
    assert not any(getattr(m, 'peft_config', {}) for m in b.parts.values())


def test_trigger_words(sd15, tmp_path):
    state = kohya(dict(unet=load_backbone(sd15).unet), ['to_q'])
    tags = {'5_set': {'inkwash': 40, 'a tree': 3}, '1_more': {'a tree': 5}}
    for meta, want in ((dict(ss_tag_frequency=json.dumps(tags)), 'inkwash'), ({'modelspec.trigger_phrase': 'in ink'}, 'in ink'), (dict(ss_tag_frequency='{'), 'k'), ({}, 'k')):
        save_file(state, tmp_path/'k.safetensors', metadata=meta)
        assert load_style(tmp_path/'k.safetensors').words == want


def test_wrong_files_say_why(sd15, models, tmp_path):
    b, xl = load_backbone(sd15), load_backbone(models('sdxl'))
    unet = dict(unet=b.unet)
    good, q = kohya(unet, ATTN), kohya_name('unet', 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q')
    wide = {k: torch.cat([v, v], 1) if 'attn2_to_k.lora_down' in k else v for k, v in good.items()}
    cases = {'sdxl': (kohya(dict(unet=xl.unet), ATTN, sgm=True), 'another base model'),
             'wide': (wide, 'does not fit'),
             'flux': ({'lora_unet_double_blocks_0_img_attn_proj.lora_down.weight': torch.ones(4, 8), 'lora_unet_double_blocks_0_img_attn_proj.lora_up.weight': torch.ones(8, 4)}, 'none of its 1 layers'),
             'checkpoint': ({'model.diffusion_model.input_blocks.0.0.weight': torch.ones(4, 4)}, 'not a LoRA'),
             'embedding': ({'emb_params': torch.ones(2, 768)}, 'not a LoRA'),
             'text': ({k: v for k, v in kohya(b.parts, TEXT).items() if 'te_' in k}, 'only changes the text encoder'),
             'halved': ({k: v for k, v in good.items() if k != f'{q}.lora_up.weight'}, 'half of it is missing'),
             'some_dora': (good | {f'{q}.dora_scale': torch.ones(32, 1)}, 'incomplete'),
             'columns': (good | {f'{q}.dora_scale': torch.ones(1, 32)}, 'columns'),
             'config': (good, 'not JSON')}
    for name, (state, why) in cases.items():
        save_file({k: v.clone() for k, v in state.items()}, tmp_path/f'{name}.safetensors', metadata={'lora_adapter_metadata': '{'} if name == 'config' else None)
        with pytest.raises(StylekitError, match=why) as e: add_style(b, load_style(tmp_path/f'{name}.safetensors'))
        assert '\n' not in str(e.value) and len(str(e.value)) < 600
        assert not any(getattr(m, 'peft_config', {}) for m in b.parts.values()), name


def test_base_is_guessed_by_text_width(tmp_path, sd15):
    b = load_backbone(sd15)
    for width, base in ((768, 'SD 1.x'), (1024, 'SD 2.x'), (2048, 'SDXL')):
        state = {k: torch.ones(4, width) if 'attn2_to_k.lora_down' in k else v for k, v in kohya(dict(unet=b.unet), ATTN).items()}
        save_file(state, tmp_path/'k.safetensors')
        with pytest.raises(StylekitError, match=f'made for {base}'): add_style(b, load_style(tmp_path/'k.safetensors'))


def test_hub_ids(monkeypatch, tmp_path, sd15):
    "One file in a repository is found by itself, one of several must be named"
    import huggingface_hub
    save_file(kohya(dict(unet=load_backbone(sd15).unet), ['to_q']), tmp_path/'a.safetensors')
    files = ['README.md', 'a.safetensors']
    monkeypatch.setattr(huggingface_hub, 'list_repo_files', lambda repo: files)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda repo, f: str(tmp_path/f))
    assert load_style('someone/style').path == tmp_path/'a.safetensors'
    files.append('b.safetensors')
    with pytest.raises(StylekitError, match='a.safetensors, b.safetensors; name the one'): load_style('someone/style')
    assert load_style('someone/style/a.safetensors').name == 'a'
