"LoRA files written by the tools people use give the same UNet and text encoders as the tool that wrote them"
import copy, json, re, subprocess, sys, time, warnings
import pytest, torch
from safetensors.torch import load_file, save_file
from sweeps import byte_mutants, check_full_disk, json_mutants, sweep
from stylekit import StylekitError, load_backbone, load_style, sample_image, stylize
from stylekit.cli import main
from stylekit.formats import find_layer, kohya_name, layer_index, layer_shapes, parameter_shapes, sgm_names
from stylekit.lora import (LORA_FILE, SEAL, add_style, built_in_styles, find_styles, parse_style, read_safetensors,
                           read_styles, read_trigger_words, save_lora, list_styles)

ATTN = ['to_q', 'to_k', 'to_v', 'to_out.0']
FF = ['ff.net.0.proj', 'ff.net.2', 'proj_in', 'proj_out']
CONV = ['conv1', 'conv2', 'conv_shortcut', 'time_emb_proj', 'conv']
TEXT = ['q_proj', 'k_proj', 'v_proj', 'out_proj', 'fc1', 'fc2']

def ones(*shape): return torch.ones(shape)

def rows(layer, **roles): return {f'{layer}.{role}': v for role, v in roles.items()}

def down_up(layer, down, up, **more): return rows(layer, **{'lora_down.weight': down, 'lora_up.weight': up}, **more)

def a_b(layer, down, up): return rows(layer, **{'lora_A.weight': down, 'lora_B.weight': up})

def in_unet(role, values):
    "layer -> value, in kohya's names"
    return {f'{kohya_name("unet", l)}.{role}': v for l, v in values.items()}


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
    c = cond.expand(2)
    added = dict(text_embeds=c.pooled, time_ids=c.time_ids)
    with torch.no_grad(): return unet(z, t, c.embeds, added_cond_kwargs=added).sample

def add(b, path, **kw): return add_style(b, load_style(path, **kw))

def styled(b): return b.predict(*inputs(b), b.encode_prompt('an owl'), ('style',))

def pipeline_class(xl):
    import diffusers
    return diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline

def same(path, folder, want, cond=None, **kw):
    "The style at `path` gives ε `want`, and all of it found its place"
    b = load_backbone(folder)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        report = add(b, path, **kw)
    assert report.matched == report.total > 0, str(report)
    got = b.predict(*inputs(b), cond or b.encode_prompt('an owl'), ('style',))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got-b.predict(*inputs(b), b.encode_prompt('an owl'))).abs().max() > 1e-3
    return b, report


PEFTS = dict(
    plain=dict(r=4, lora_alpha=8),
    uneven=dict(r=4, lora_alpha=8, rank_pattern={'to_q': 2}, alpha_pattern={'to_k': 1}),
    rslora=dict(r=4, lora_alpha=8, use_rslora=True),
    dora=dict(r=4, lora_alpha=2, use_dora=True),
    dora_conv=dict(r=4, use_dora=True, target_modules=ATTN+['conv1']),
    conv=dict(r=4, lora_alpha=8, target_modules=ATTN+FF+CONV))

@pytest.mark.parametrize('name', PEFTS)
def test_peft(folder, tmp_path, name):
    from peft import LoraConfig, get_peft_model
    b = load_backbone(folder)
    model = get_peft_model(copy.deepcopy(b.unet), LoraConfig(**dict(target_modules=ATTN) | PEFTS[name]))
    fill(model)
    model.save_pretrained(tmp_path/'mine')
    b, report = same(tmp_path/'mine', folder, raw(model, b, b.encode_prompt('an owl')))
    assert report.writer == 'PEFT' and ('DoRA' in report.kind) == ('dora' in name)
    assert load_style(tmp_path/'mine').name == 'mine'


@pytest.mark.parametrize('header', [True, False])
def test_diffusers(folder, tmp_path, header):
    "UNet and text encoders, α in the header or lost with it, as diffusers' own loader reads them"
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict
    cls = pipeline_class('sdxl' in str(folder))
    theirs = load_backbone(folder)
    layers, meta = {}, {}
    for part, m in theirs.parts.items():
        cfg = LoraConfig(r=4, lora_alpha=8, target_modules=ATTN+FF if part == 'unet' else TEXT)
        inject_adapter_in_model(cfg, m)
        fill(m)
        layers[f'{part}_lora_layers'] = get_peft_model_state_dict(m)
        if header: meta[f'{part}_lora_adapter_metadata'] = cfg.to_dict()
        for layer in m.modules():
            if not header and hasattr(layer, 'scaling'): layer.scaling['default'] = 1.
    cls.save_lora_weights(tmp_path, **layers, **meta)
    cond = theirs.encode_prompt('an owl', adapters=('default',))
    theirs.set_adapters(('default',))
    mine, report = same(tmp_path/'pytorch_lora_weights.safetensors', folder, raw(theirs.unet, theirs, cond), cond)
    assert header == (not any('unknown' in n for n in report.notes))
    got, base = mine.encode_prompt('an owl', adapters=('style',)), mine.encode_prompt('an owl')
    torch.testing.assert_close(got.embeds, cond.embeds, atol=1e-5, rtol=1e-5)
    assert (got.embeds-base.embeds).abs().max() > 1e-3 and report.writer == 'diffusers'
    if mine.is_xl: torch.testing.assert_close(got.pooled, cond.pooled, atol=1e-5, rtol=1e-5)
    mine.delete_adapter('style')
    assert torch.equal(mine.encode_prompt('an owl', adapters=()).embeds, base.embeds)


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


def delta(state, name, strength):
    "What one layer of a kohya file adds to the weights"
    down, up = state[f'{name}.lora_down.weight'], state[f'{name}.lora_up.weight']
    return strength*(up.flatten(1)@down.flatten(1)).view(len(up), *down.shape[1:])

@pytest.mark.parametrize('model, sgm', [('sd15', False), ('sdxl', False), ('sdxl', True)])
def test_kohya_as_diffusers_reads_it(models, tmp_path, model, sgm):
    "Linear layers and convolutions, both text encoders; SDXL also with the block numbers kohya writes"
    xl, folder = model == 'sdxl', models(model)
    cls = pipeline_class(xl)
    b = load_backbone(folder)
    state = kohya(b.parts, ATTN+FF+CONV+TEXT, sgm=sgm)
    save_file(state, tmp_path/'k.safetensors')
    pipe = cls.from_pretrained(folder)
    names = sgm_names(list(layer_shapes(b.unet))) if sgm else {}
    changed = [l for l in layer_shapes(b.unet) if l.endswith(tuple(ATTN+FF+CONV))]
    deltas = {l: delta(state, kohya_name('unet', names.get(l, l)), .5) for l in changed}
    cond = b.encode_prompt('an owl')
    _, report = same(tmp_path/'k.safetensors', folder, raw(merged(b.unet, deltas), b, cond), cond)
    assert report.writer == 'kohya' and 'text_encoder' in report.blocks
    assert report.matched == sum(k.endswith('.alpha') for k in state)
    # and the names, one by one, as diffusers' converter has them
    xlkw = dict(unet_config=pipe.unet.config) if xl else {}
    theirs, _ = cls.lora_state_dict({k: v.clone() for k, v in state.items()}, **xlkw)
    def clean(k): return k.replace('.processor', '').replace('to_out_lora', 'to_out.0_lora')
    theirs = {clean(k): v for k, v in theirs.items() if k.startswith('unet.')}
    index = layer_index(b.parts)
    for k, v in state.items():
        part, layer = find_layer(k.split('.')[0], index)
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
    add(b, tmp_path/'k.safetensors')
    got, want = b.encode_prompt(['an owl', ''], adapters=('style',)), hand.encode_prompt(['an owl', ''])
    torch.testing.assert_close(got.embeds, want.embeds, atol=1e-5, rtol=1e-5)
    if b.is_xl: torch.testing.assert_close(got.pooled, want.pooled, atol=1e-5, rtol=1e-5)


def test_missing_alpha_means_rank(sd15, tmp_path):
    "Some layers without α, others with: each has its own strength"
    b = load_backbone(sd15)
    state = kohya(dict(unet=b.unet), ATTN, without_alpha=['to_q'])
    deltas = {}
    for l in layer_shapes(b.unet):
        k = kohya_name('unet', l)
        if f'{k}.lora_up.weight' in state: deltas[l] = delta(state, k, 1. if l.endswith('to_q') else .5)
    save_file(state, tmp_path/'k.safetensors')
    same(tmp_path/'k.safetensors', sd15, raw(merged(b.unet, deltas), b, b.encode_prompt('an owl')))


@pytest.mark.parametrize('kind, kw', [
    ('LoHa', dict(r=3)), ('LoHa', dict(r=8)), ('LoKr', dict(r=2, decompose_factor=4)), ('LoKr', dict(r=64)),
    ('LoKr', dict(r=2, decompose_both=True, decompose_factor=8))])
def test_lycoris(sd15, tmp_path, kind, kw):
    "LoHa and LoKr, weights made by PEFT's layers, in LyCORIS' names"
    import peft
    b = load_backbone(sd15)
    config = getattr(peft, f'{kind}Config')(target_modules=ATTN+['conv1'], alpha=kw['r']*.5, **kw)
    model = peft.get_peft_model(copy.deepcopy(b.unet), config)
    fill(model)
    state = {}
    for k, v in peft.get_peft_model_state_dict(model).items():
        layer, role = k.removeprefix('base_model.model.').rsplit('.', 1)
        n = kohya_name('unet', layer)
        state |= {f'{n}.{role}': v.contiguous(), f'{n}.alpha': torch.tensor(kw['r']*.5)}
    # PEFT scales whole factors by α/r as well; LyCORIS does not, and sets α to r there
    for n in {k.split('.')[0] for k in state}:
        if f'{n}.lokr_w1' in state and f'{n}.lokr_w2' in state: state[f'{n}.lokr_w1'] = state[f'{n}.lokr_w1']*.5
    save_file({k: v.clone() for k, v in state.items()}, tmp_path/'l.safetensors')
    _, report = same(tmp_path/'l.safetensors', sd15, raw(model, b, b.encode_prompt('an owl')))
    assert report.kind == kind


def test_kohya_dora_as_peft(sd15, tmp_path):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    b = load_backbone(sd15)
    config = LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=ATTN+['conv1'])
    model = get_peft_model(copy.deepcopy(b.unet), config)
    fill(model)
    state, shapes = {}, layer_shapes(b.unet)
    for k, v in get_peft_model_state_dict(model).items():
        layer, role = k.removeprefix('base_model.model.').rsplit('.lora_', 1)
        n = kohya_name('unet', layer)
        if 'magnitude' in role:
            state[f'{n}.dora_scale'] = v.reshape(-1, *[1]*(len(shapes[layer])-1)).clone()
            continue
        state[f'{n}.lora_{"down" if role[0] == "A" else "up"}.weight'] = v.clone()
        state[f'{n}.alpha'] = torch.tensor(2.)
    save_file(state, tmp_path/'d.safetensors')
    _, report = same(tmp_path/'d.safetensors', sd15, raw(model, b, b.encode_prompt('an owl')))
    assert report.kind == 'LoRA (DoRA)'


@pytest.mark.parametrize('names', ['diffusers', 'kohya'])
def test_written_files_read_elsewhere(folder, tmp_path, names):
    "What `save_lora` writes, at a strength that is not one, diffusers reads"
    b = load_backbone(folder)
    save_file(kohya(dict(unet=b.unet), ATTN+['conv1']), tmp_path/'k.safetensors')
    add(b, tmp_path/'k.safetensors', scale=.7)
    save_lora(b, 'style', tmp_path/'mine.safetensors', 'words', names=names)
    pipe = pipeline_class(b.is_xl).from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name='mine.safetensors')
    c = b.encode_prompt('an owl')
    # half precision
    torch.testing.assert_close(raw(pipe.unet, b, c), b.predict(*inputs(b), c, ('style',)), atol=3e-3, rtol=1e-3)
    same(tmp_path/'mine.safetensors', folder, raw(pipe.unet, b, c))


def test_text_encoder_part_reaches_the_picture(sd15, tmp_path):
    "The style's own reading of the prompt is used, by the style's score alone"
    b = load_backbone(sd15)
    state = kohya(b.parts, ATTN+TEXT)
    unet = {k: v for k, v in state.items() if k.startswith('lora_unet')}
    def pixels(name, state):
        save_file(state, tmp_path/name)
        style = load_style(tmp_path/name, trigger_words='ink')
        owl = sample_image('owl').resize((64, 64))
        return stylize(owl, style, 'an owl', backbone=b, steps=2, seed=0).image.tobytes()
    assert pixels('both.safetensors', state) != pixels('unet.safetensors', unet)
    assert not any(getattr(m, 'peft_config', {}) for m in b.parts.values())


def test_wrong_files_say_why(sd15, models, tmp_path):
    b, xl = load_backbone(sd15), load_backbone(models('sdxl'))
    unet = dict(unet=b.unet)
    good, q = kohya(unet, ATTN), kohya_name('unet', 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q')
    wide = {k: torch.cat([v, v], 1) if 'attn2_to_k.lora_down' in k else v for k, v in good.items()}
    text = {k: v for k, v in kohya(b.parts, TEXT).items() if 'te_' in k}
    cases = {
        'sdxl': (kohya(dict(unet=xl.unet), ATTN, sgm=True), 'another base model'),
        'wide': (wide, 'does not fit'),
        'flux': (down_up('lora_unet_double_blocks_0_img_attn_proj', ones(4, 8), ones(8, 4)), 'LoRA for Flux'),
        'checkpoint': ({'model.diffusion_model.input_blocks.0.0.weight': ones(4, 4)}, 'whole checkpoint'),
        'embedding': ({'emb_params': ones(2, 768)}, 'embedding'),
        'text': (text, 'only changes the text encoder'),
        'halved': ({k: v for k, v in good.items() if k != f'{q}.lora_up.weight'}, 'half of it is missing'),
        'some_dora': (good | {f'{q}.dora_scale': ones(32, 1)}, 'incomplete'),
        'columns': (good | {f'{q}.dora_scale': ones(1, 32)}, 'columns')}
    for name, (state, why) in cases.items():
        save_file({k: v.clone() for k, v in state.items()}, tmp_path/f'{name}.safetensors')
        with pytest.raises(StylekitError, match=why) as e: add(b, tmp_path/f'{name}.safetensors')
        assert '\n' not in str(e.value) and len(str(e.value)) <= 300
        assert not any(getattr(m, 'peft_config', {}) for m in b.parts.values()), name


def test_base_is_guessed_by_text_width(tmp_path, sd15):
    b = load_backbone(sd15)
    good = kohya(dict(unet=b.unet), ATTN)
    for width, base in ((768, 'SD 1.x'), (1024, 'SD 2.x'), (2048, 'SDXL')):
        state = {k: ones(4, width) if 'attn2_to_k.lora_down' in k else v for k, v in good.items()}
        save_file(state, tmp_path/'k.safetensors')
        with pytest.raises(StylekitError, match=f'made for {base}'): add(b, tmp_path/'k.safetensors')


def test_hub_ids(monkeypatch, tmp_path, sd15):
    "One file in a repository is found by itself, one of several must be named"
    save_file(kohya(dict(unet=load_backbone(sd15).unet), ['to_q']), tmp_path/'a.safetensors')
    files = ['README.md', 'a.safetensors']
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('stylekit.model_files.hub_names', lambda repo, revision: ('c'*40, files))
    fetched = []
    def fetch(repo, commit, names):
        fetched.append(names)
        return tmp_path
    monkeypatch.setattr('stylekit.model_files.hub_fetch', fetch)
    assert load_style('someone/style').path == tmp_path/'a.safetensors' and fetched == [['a.safetensors']]
    files.append('b.safetensors')
    with pytest.raises(StylekitError, match='a.safetensors, b.safetensors; name the one'): load_style('someone/style')
    assert load_style('someone/style/a.safetensors').name == 'a'
    (tmp_path/'a.safetensors').rename(tmp_path/'pytorch_lora_weights.safetensors')
    files[1:] = ['pytorch_lora_weights.safetensors']
    assert load_style('someone/style').name == 'style'     # not the folder of a cache


CACHED = '''
import os, sys
os.environ.update(HF_HUB_OFFLINE='1', HF_HOME=sys.argv[1])
from stylekit import load_style, StylekitError
for name in ('org/style', 'org/style/a.safetensors', 'org/style/b.safetensors', 'org/other'):
    try: print(load_style(name).name)
    except StylekitError as e: print(e)
'''

def test_a_style_in_the_hubs_cache(tmp_path, sd15):
    "Without a network the copy that is here is used; one line where there is none"
    repo = tmp_path/'hub'/'models--org--style'
    for folder in (repo/'snapshots'/('a'*40), repo/'refs'): folder.mkdir(parents=True)
    (repo/'refs'/'main').write_text('a'*40)
    save_file(kohya(dict(unet=load_backbone(sd15).unet), ['to_q']), repo/'snapshots'/('a'*40)/'a.safetensors')
    done = subprocess.run([sys.executable, '-c', CACHED, tmp_path], capture_output=True, text=True, timeout=100)
    lines = done.stdout.strip().split('\n')
    assert lines[:2] == ['a', 'a'] and 'b.safetensors' in lines[2] and 'org/other' in lines[3], done
    assert len(lines) == 4 and not done.stderr, done


# Files as people have them: names, strengths, families

@pytest.fixture(scope='module')
def pair(sd15):
    "layer -> (down, up), of rank 4, for the attention of the UNet"
    g = torch.Generator().manual_seed(3)
    shapes = {l: s for l, s in layer_shapes(load_backbone(sd15).unet).items() if l.endswith(tuple(ATTN))}
    def randn(*shape): return .1*torch.randn(*shape, generator=g)
    return {l: (randn(4, s[1]), randn(s[0], 4)) for l, s in shapes.items()}

@pytest.fixture(scope='module')
def loaded(sd15): return load_backbone(sd15)

@pytest.fixture
def base(loaded):
    "One backbone for all, without what a failed test left on it"
    yield loaded
    loaded.delete_adapter('style')

def kohya_file(pair, alpha=2.):
    out = {}
    for l, (d, u) in pair.items():
        out |= down_up(kohya_name('unet', l), d.clone(), u.clone())
    if alpha is not None: out |= in_unet('alpha', dict.fromkeys(pair, torch.tensor(alpha)))
    return out

def ab(pair, prefix='', name='', tail='.weight', rename=lambda l: l):
    return {f'{prefix}{rename(l)}.lora_{k}{name}{tail}': v.clone() for l, p in pair.items() for k, v in zip('AB', p)}

def write(path, state, **meta):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous().clone() for k, v in state.items()}
    meta = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
    save_file(state, str(path), metadata=meta or None)
    return path

def strength_of(b, path, pair, **kw):
    "By how much the file's product is multiplied, the same in every layer; and the report"
    report = add(b, path, **kw)
    assert report.matched == report.total == len(pair), str(report)
    found = set()
    for l, (d, u) in pair.items():
        m = b.unet.get_submodule(l)
        got = m.lora_B['style'].weight.flatten(1)@m.lora_A['style'].weight.flatten(1)
        found.add(round(float((got*(u@d)).sum()/((u@d)**2).sum()), 3))
        torch.testing.assert_close(got, list(found)[0]*(u@d), atol=1e-5, rtol=1e-3)
    b.delete_adapter('style')
    assert len(found) == 1, found
    return found.pop(), report

def ldm(b):
    names = sgm_names(list(layer_shapes(b.unet)))
    return lambda l: names[l]

NAMES = dict(
    default=dict(prefix='base_model.model.', name='.default'),
    default_0=dict(prefix='base_model.model.', name='.default_0'),
    style=dict(prefix='base_model.model.', name='.style'),
    mine=dict(prefix='base_model.model.', name='.my_adapter'),
    weight=dict(prefix='base_model.model.', name='.weight'),
    unet_name=dict(prefix='unet.', name='.Ink-v1'),
    bare_name=dict(name='.lora', tail=''),
    twice=dict(prefix='unet.unet.'),
    peft_unet=dict(prefix='base_model.model.unet.'),
    comfy=dict(prefix='diffusion_model.'),
    model_comfy=dict(prefix='model.diffusion_model.'),
    compiled=dict(prefix='unet._orig_mod.'),
    parallel=dict(prefix='module.unet.'),
    pipe=dict(prefix='pipe.unet.'),
    none=dict())

@pytest.mark.parametrize('name', NAMES)
def test_any_single_name_and_known_prefix(base, pair, tmp_path, name):
    assert strength_of(base, write(tmp_path/'a.safetensors', ab(pair, **NAMES[name])), pair)[0] == 1

@pytest.mark.parametrize('prefix', ['diffusion_model.', 'lora_unet_', 'lycoris_', 'model.diffusion_model.'])
def test_block_numbers_of_the_first_code(base, pair, tmp_path, prefix):
    "As ComfyUI and trainers on checkpoints name layers"
    flat = (lambda l: ldm(base)(l).replace('.', '_')) if prefix.endswith('_') else ldm(base)
    assert strength_of(base, write(tmp_path/'a.safetensors', ab(pair, prefix, rename=flat)), pair)[0] == 1

def test_the_outer_layers_have_stabilitys_names_in_the_module_too():
    names = {'conv_in': 'input_blocks.0.0', 'conv_out': 'out.2', 'conv_norm_out': 'out.0',
             'time_embedding.linear_1': 'time_embed.0', 'add_embedding.linear_2': 'label_emb.0.2'}
    assert sgm_names([*names]) == names

def test_old_diffusers(base, pair, tmp_path):
    old = {}
    for l, p in pair.items():
        home, _, q = l.replace('.to_out.0', '.to_out').rpartition('.')
        old |= {f'unet.{home}.processor.{q}_lora.{r}.weight': v for r, v in zip(('down', 'up'), p)}
    assert strength_of(base, write(tmp_path/'old.safetensors', old), pair)[0] == 1

SECOND = [dict(name='.ink'), dict(prefix='unet.'), dict(prefix='diffusion_model.', name='.flat')]
@pytest.mark.parametrize('other', SECOND)
def test_two_adapters_in_one_file(base, pair, tmp_path, other):
    first = ab(pair, **(dict(name='.flat') if other.get('name') == '.ink' else {}))
    path = write(tmp_path/'two.safetensors', first | ab(pair, **other))
    with pytest.raises(StylekitError, match='2 adapters|twice|two tensors'): add(base, path)

@pytest.mark.parametrize('dtype', ['float8_e4m3fn', 'float8_e5m2', 'bfloat16', 'float16', 'float64'])
def test_narrow_numbers(base, pair, tmp_path, dtype):
    dtype = getattr(torch, dtype)
    narrow = {l: tuple(v.to(dtype).float() for v in p) for l, p in pair.items()}
    state = {k: v.to(dtype) for k, v in kohya_file(narrow).items()}
    assert strength_of(base, write(tmp_path/'a.safetensors', state), narrow)[0] == .5
    key = next(iter(state))
    bad = state | {key: torch.full(state[key].shape, float('nan')).to(dtype)}
    with pytest.raises(StylekitError, match='NaN'): load_style(write(tmp_path/'bad.safetensors', bad))


HEADERS = dict(
    lora_alpha=(dict(lora_alpha='32'), 8),
    alpha=(dict(alpha='32', rank='4'), 8),
    ss=(dict(ss_network_alpha='2', ss_network_dim='4'), .5),
    network=(dict(network_alpha='8.0'), 2),
    nested=(dict(adapter_config={'peft_type': 'LORA', 'lora_alpha': 16}), 4),
    deeper=(dict(config={'network': {'alpha': 8}}), 2),
    rslora=(dict(lora_adapter_metadata={'lora_alpha': 8, 'use_rslora': True}), 4))

@pytest.mark.parametrize('name', HEADERS)
def test_alpha_in_the_header(base, pair, tmp_path, name):
    meta, want = HEADERS[name]
    got, report = strength_of(base, write(tmp_path/'a.safetensors', ab(pair), **meta), pair)
    assert got == want and any('the header' in n for n in report.notes)

@pytest.mark.parametrize('beside', ['adapter_config.json', 'a.json', 'config.json', 'lora_config.json',
                                    'settings_of_my_training.json', 'a.safetensors.json'])
def test_alpha_beside_the_file(base, pair, tmp_path, beside):
    "It goes before the header, and α in tensors before both"
    path = write(tmp_path/'a.safetensors', ab(pair), lora_alpha='400')
    (tmp_path/beside).write_text(json.dumps(dict(peft_type='LORA', r=4, lora_alpha=32)))
    got, report = strength_of(base, path, pair)
    assert got == 8 and any(beside in n for n in report.notes)
    write(path, kohya_file(pair), lora_alpha='400')
    assert strength_of(base, path, pair)[0] == .5

def test_a_configuration_of_another_file(base, pair, tmp_path):
    path = write(tmp_path/'a.safetensors', ab(pair))
    write(tmp_path/'b.safetensors', ab(pair))
    (tmp_path/'adapter_config.json').write_text('{"lora_alpha": 32}')
    got, report = strength_of(base, path, pair)
    assert got == 1 and any('unknown' in n for n in report.notes) and 'α is unknown' in str(report)

ODD = dict(
    list='[1]', number='3', null='null', text='"a"', deep='['*200_000, deep_object='{"a":'*100_000,
    digits='{"a": {"b": '+'9'*5000+'}}', count='{"10_x": {"a": 1000000000000}}', empty='', half='{', nan='NaN',
    none='None', lists='{"lora_alpha": [1, 2], "alpha_pattern": 3}',
    patterns='{"lora_alpha": "x", "alpha_pattern": {"(a+)+$": 1, "[": 2}}', huge='{"lora_alpha": 1e300}',
    minus='{"lora_alpha": -3}')

@pytest.mark.parametrize('name', ODD)
def test_odd_headers_are_ignored(base, pair, tmp_path, name):
    keys = ['ss_tag_frequency', 'ss_dataset_dirs', 'lora_adapter_metadata', 'ss_network_args', 'config',
            'modelspec.title']
    if name != 'number': keys += ['lora_alpha', 'alpha', 'ss_network_alpha']
    path = write(tmp_path/'a.safetensors', ab(pair), **dict.fromkeys(keys, ODD[name]))
    (tmp_path/'adapter_config.json').write_text(ODD[name])
    started = time.process_time()
    got, report = strength_of(base, path, pair)
    assert got == 1 and any('unknown' in n for n in report.notes) and load_style(path).trigger_words
    assert time.process_time()-started < 5


def whole(b, bias=False):
    g, shapes = torch.Generator().manual_seed(4), parameter_shapes(b.unet)
    def some(part, ends):
        found = {l: s[part] for l, s in shapes.items() if l.endswith(ends)}
        return {l: .05*torch.randn(s, generator=g) for l, s in found.items()}
    return some('weight', (*ATTN, 'conv1')), some('bias', ('to_out.0', 'conv1')) if bias else {}

def test_whole_weights_are_added_exactly(base, tmp_path):
    "Full and biases: bit by bit the model with its weights changed, at any strength; then the model that was loaded"
    weights, biases = whole(base, True)
    path = write(tmp_path/'full.safetensors', in_unet('diff', weights) | in_unet('diff_b', biases))
    cond, own = base.encode_prompt('an owl'), dict(base.unet.named_parameters())
    for scale in (1., -.5, 2.):
        report = add(base, path, scale=scale)
        hand = copy.deepcopy(base.unet)
        for l, v in weights.items(): hand.get_submodule(l).weight.data += scale*v
        for l, v in biases.items(): hand.get_submodule(l).bias.data += scale*v
        plain = raw(base.unet, base, cond)
        assert torch.equal(base.predict(*inputs(base), cond, ('style',)), raw(hand, base, cond))
        assert report.kind == 'full+bias' and report.matched == len(weights)
        assert torch.equal(base.predict(*inputs(base), cond), plain)
    base.set_adapters(('style',))
    base.delete_adapter('style')
    assert all(p is own[n] for n, p in base.unet.named_parameters())

@pytest.mark.parametrize('kind', ['GroupNorm', 'LayerNorm'])
def test_norms_beside_a_lora(base, sd15, pair, tmp_path, kind):
    g = torch.Generator().manual_seed(5)
    sizes = {n: len(m.weight) for n, m in base.unet.named_modules() if isinstance(m, getattr(torch.nn, kind))}
    norms = {n: [.1*torch.randn(size, generator=g) for _ in 'wb'] for n, size in sizes.items()}
    state = kohya_file(pair)
    for i, role in enumerate(('w_norm', 'b_norm')): state |= in_unet(role, {n: p[i] for n, p in norms.items()})
    hand = merged(base.unet, {l: .5*u@d for l, (d, u) in pair.items()})
    for n, (w, b) in norms.items():
        hand.get_submodule(n).weight.data += w
        hand.get_submodule(n).bias.data += b
    _, report = same(write(tmp_path/'a.safetensors', state), sd15, raw(hand, base, base.encode_prompt('an owl')))
    assert report.kind == 'LoRA+norm'

def test_peft_biases(base, sd15, tmp_path):
    from peft import LoraConfig, get_peft_model
    config = LoraConfig(r=4, lora_alpha=8, target_modules=['to_out.0', 'conv1'], lora_bias=True)
    model = get_peft_model(copy.deepcopy(base.unet), config)
    fill(model)
    model.save_pretrained(tmp_path/'mine')
    _, report = same(tmp_path/'mine', sd15, raw(model, base, base.encode_prompt('an owl')))
    assert report.kind == 'LoRA+bias'

@pytest.mark.parametrize('names', ['diffusers', 'kohya'])
def test_whole_weights_are_mixed_and_written(base, sd15, pair, tmp_path, names):
    weights, _ = whole(base)
    full = write(tmp_path/'full.safetensors', in_unet('diff', weights))
    thin = write(tmp_path/'thin.safetensors', kohya_file(pair))
    add(base, f'{full}:0.5+{thin}:0.3')
    got = styled(base)
    save_lora(base, 'style', tmp_path/'out.safetensors', 'ink', names=names)
    base.delete_adapter('style')
    deltas = {l: .5*v + (.15*pair[l][1]@pair[l][0] if l in pair else 0) for l, v in weights.items()}
    want = raw(merged(base.unet, deltas), base, base.encode_prompt('an owl'))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    again = load_backbone(sd15)
    add(again, tmp_path/'out.safetensors')
    torch.testing.assert_close(styled(again), want, atol=3e-3, rtol=1e-3)    # half precision

def test_whole_weights_in_a_run(base, tmp_path):
    "Beside a LoRA that learns, with rows of several adapters in one batch: as at each its own"
    weights, _ = whole(base)
    style = load_style(write(tmp_path/'full.safetensors', in_unet('diff', weights)), trigger_words='ink')
    own, before = dict(base.unet.named_modules()), dict(base.unet.named_parameters())
    for kw in (dict(), dict(fake_score='lora')):
        stylize(sample_image('owl').resize((64, 64)), style, 'an owl', backbone=base, steps=2, seed=0, **kw)
        assert {n: id(m) for n, m in base.unet.named_modules()} == {n: id(m) for n, m in own.items()}
        assert all(p is before[n] for n, p in base.unet.named_parameters())
    add_style(base, style)
    (z, t), c = inputs(base), base.encode_prompt('an owl')
    asked = base.predict_many(t, (z, c, ('style',)), (z, c, ()))
    for got, adapters in zip(asked, (('style',), ())):
        torch.testing.assert_close(got, base.predict(z, t, c, adapters), atol=1e-5, rtol=1e-5)
    base.delete_adapter('style')


def test_the_networks_are_as_they_were(models, pair, tmp_path):
    "Module by module, after runs and after a failure in the middle"
    b = load_backbone(models('sd15'))
    state = kohya(b.parts, ATTN+TEXT)
    path = write(tmp_path/'a.safetensors', state)
    def fact(net):
        modules = {n: id(m) for n, m in net.named_modules()}
        return modules, set(vars(net)), [p.requires_grad for p in net.parameters()], list(net.state_dict())
    def facts(): return {part: fact(net) for part, net in b.parts.items()}
    was = facts()
    for _ in range(2):
        owl = sample_image('owl').resize((64, 64))
        stylize(owl, load_style(path), 'an owl', backbone=b, steps=1, seed=0, fake_score='lora')
        assert facts() == was
    add(b, path)
    from stylekit.lora import new_adapter
    new_adapter(b, 'fake', 2)
    for name in ('style', 'fake'): b.delete_adapter(name)
    assert facts() == was
    with pytest.raises(StylekitError, match='no layer'): new_adapter(b, 'fake', 2, targets=('nowhere',))
    assert facts() == was

def test_a_bad_file_leaves_the_style_that_is_on(base, pair, tmp_path):
    add(base, write(tmp_path/'a.safetensors', kohya_file(pair)))
    got = styled(base)
    bad = write(tmp_path/'b.safetensors', a_b('x', ones(2, 2), ones(2, 2)))
    with pytest.raises(StylekitError): add(base, bad)
    assert torch.equal(styled(base), got)
    base.delete_adapter('style')


Q = 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
N = kohya_name('unet', Q)
def pairs_of(down, up, **more): return down_up(N, down, up, **more)

def loha(down, up, **more):
    "Its two pairs alike"
    return rows(N, hada_w1_a=down, hada_w1_b=up, hada_w2_a=down, hada_w2_b=up, **more)

def lokr(**factors): return rows(N, **{f'lokr_{k}': v for k, v in factors.items()})

tall, broad = ones(80_000, 1), ones(1, 80_000)
empty = rows(N, hada_w1_a=ones(32, 0), hada_w1_b=ones(0, 32))
BROKEN = {
    'rank 0': (pairs_of(ones(0, 32), ones(32, 0)), 'rank 0'),
    'rank 0 of a LoHa': (loha(ones(32, 2), ones(2, 32)) | empty, 'rank 0'),
    'empty whole': (rows(N, diff=ones(0, 32)), 'rank 0'),
    '0-d': (pairs_of(ones(), ones()), '0 axes'),
    '1-d': (pairs_of(ones(32), ones(32, 1)), '1 axes'),
    '3-d': (pairs_of(ones(4, 32, 1), ones(32, 4, 1)), '3 axes'),
    '5-d': (pairs_of(ones(4, 32, 1, 1, 1), ones(32, 4)), '5 axes'),
    '1-d LoKr': (lokr(w1=ones(8), w2=ones(4, 32)), '1 axes'),
    '5-d whole': (rows(N, diff=ones(32, 32, 1, 1, 1)), '5 axes'),
    'two alphas': (pairs_of(ones(4, 32), ones(32, 4), alpha=ones(2)), '2 values'),
    'no alpha inside': (pairs_of(ones(4, 32), ones(32, 4), alpha=ones(0)), '0 values'),
    'ranks': (pairs_of(ones(4, 32), ones(32, 5)), 'ranks'),
    'whole numbers': (pairs_of(ones(4, 32).to(torch.int8), ones(32, 4).to(torch.int8)), 'int8'),
    'overflow': (pairs_of(1e30*ones(4, 32), 1e30*ones(32, 4)), 'not finite'),
    'overflow by alpha': (pairs_of(1e10*ones(4, 32), 1e10*ones(32, 4), alpha=torch.tensor(1e30)), 'not finite'),
    'overflow of a LoHa': (loha(1e12*ones(32, 2), 1e12*ones(2, 32)), 'not finite'),
    'overflow of a LoKr': (lokr(w1=1e30*ones(4, 4), w2=1e30*ones(8, 8)), 'not finite'),
    'overflow of a whole weight': (rows(N, diff=3e38*ones(32, 32)), 'not finite'),
    '23 GB': (lokr(w1=tall, w2=broad), 'another size'),
    '23 GB in factors': (lokr(w1_a=tall, w1_b=broad, w2=ones(1, 1)), 'another size'),
    '23 GB of LoHa': (loha(tall, broad), 'another size'),
    '23 GB of Tucker': (loha(broad, broad, hada_t1=ones(1, 1, 1, 1), hada_t2=ones(1, 1, 1, 1)), 'another size'),
    'a norm': (down_up('lora_unet_conv_norm_out', ones(4, 16), ones(16, 4)), 'neither'),
    'no bias': (rows(N, diff_b=ones(32)), 'has none'),
    'a norm of another size': (rows('lora_unet_conv_norm_out', w_norm=ones(17)), 'layer is')}

@pytest.mark.parametrize('name', BROKEN)
def test_sizes_and_numbers_are_checked_first(base, pair, tmp_path, name):
    state, why = BROKEN[name]
    rest = {k: v for k, v in kohya_file(pair).items() if not k.startswith(N+'.')}
    path = write(tmp_path/'a.safetensors', rest | state)
    started = time.process_time()
    with pytest.raises(StylekitError, match=why) as e: add(base, path)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 300 and time.process_time()-started < 5
    assert not hasattr(base.unet, 'peft_config')


PEFT_Q = f'base_model.model.{Q}'
GLORA = {f'{part}{i}.weight': ones(32, 4) if i == 1 else ones(4, 32) for part in 'ab' for i in (1, 2)}
FAMILY = {
    '(IA)³': rows(N, weight=ones(32, 1), on_input=torch.tensor(False)),
    'GLoRA': rows(N, **GLORA),
    'OFT': rows(N, oft_blocks=ones(4, 8, 8), alpha=ones()),
    'BOFT': rows(N, oft_blocks=ones(2, 4, 8, 8), alpha=ones()),
    'VeRA': rows(PEFT_Q, vera_lambda_b=ones(4), vera_lambda_d=ones(4)),
    'AdaLoRA': rows(PEFT_Q, lora_A=ones(4, 32), lora_B=ones(32, 4), lora_E=ones(4, 1)),
    'OFT ': rows(PEFT_Q, oft_R=ones(4, 8, 8)),
    'HRA': rows(PEFT_Q, hra_u=ones(32, 2))}

@pytest.mark.parametrize('name', FAMILY)
def test_other_families_are_named(base, pair, tmp_path, name):
    "Also where only a few layers are of that family"
    for rest in ({}, {k: v for k, v in kohya_file(pair).items() if not k.startswith(N)}):
        path = write(tmp_path/'a.safetensors', FAMILY[name] | rest)
        with pytest.raises(StylekitError, match=re.escape(f'family {name.strip()},')): add(base, path)

def test_a_family_that_only_the_configuration_names(base, pair, tmp_path):
    path = write(tmp_path/'adapter_model.safetensors', ab(pair))
    (tmp_path/'adapter_config.json').write_text('{"peft_type": "SOMETHINGNEW"}')
    with pytest.raises(StylekitError, match='SOMETHINGNEW'): add(base, path)

def lora_of(layer, width=3072): return a_b(layer, ones(4, width), ones(width, 4))

def weights_of(*layers): return {f'{l}.weight': ones(4, 4) for l in layers}

OTHER = {
    'Flux': lora_of('transformer.transformer_blocks.0.attn.to_q'),
    'Flux ': lora_of('transformer.single_transformer_blocks.0.attn.to_q'),
    'Flux  ': lora_of('lora_unet_double_blocks_0_img_attn_qkv'),
    'SD3': lora_of('transformer.transformer_blocks.0.attn.to_q', 1536),
    'SD3 ': lora_of('diffusion_model.joint_blocks.0.x_block.attn.qkv', 1536),
    'SD3  ': lora_of('lora_unet_joint_blocks_0_context_block_mlp_fc1'),
    'IP-Adapter': {'image_proj.proj.weight': ones(8, 8), 'ip_adapter.1.to_k_ip.weight': ones(8, 8)},
    'embedding': {'emb_params': ones(2, 768)},
    'embedding ': {'clip_l': ones(2, 768), 'clip_g': ones(2, 1280)},
    'embedding  ': {'<my-style>': ones(768)},
    'ControlNet': weights_of('controlnet_cond_embedding.conv_in', 'down_blocks.0.resnets.0.conv1'),
    'ControlNet ': weights_of('control_model.input_blocks.0.0'),
    'whole checkpoint': weights_of('model.diffusion_model.input_blocks.0.0', 'first_stage_model.encoder.conv_in'),
    'UNet': weights_of('down_blocks.0.resnets.0.conv1'),
    'VAE': weights_of('encoder.down_blocks.0.resnets.0.conv1'),
    'text encoder': weights_of('text_model.embeddings.token_embedding'),
    'Wan': lora_of('diffusion_model.blocks.0.self_attn.q'),
    'language model': lora_of('base_model.model.model.layers.0.self_attn.q_proj', 64),
    'T2I': weights_of('body.0.resnets.0.block1'),
    'AnimateDiff': weights_of('down_blocks.0.motion_modules.0.proj_in')}

@pytest.mark.parametrize('name', OTHER)
def test_files_of_other_models_are_named(base, tmp_path, name):
    path = write(tmp_path/'a.safetensors', OTHER[name])
    with pytest.raises(StylekitError, match=name.strip()) as e: add(base, path)
    assert len(str(e.value)) <= 300


TAGS = {'10_inkwash': {'1girl': 40, 'solo': 39, 'inkwash': 38}}
CAPTIONS = {'10_ink_wash': {'a photo of a cat sitting on a table': 1}}
WORDS = dict( # header; words; whether they are guessed
    tags=(dict(ss_tag_frequency=TAGS), 'inkwash', True),
    captions=(dict(ss_tag_frequency=CAPTIONS), 'ink wash', True),
    most=(dict(ss_tag_frequency={'1_more': {'x': 9}, '5_inkwash': {'x': 1}}), 'inkwash', True),
    dirs=(dict(ss_dataset_dirs={'7_sumi': {'n_repeats': 7, 'img_count': 3}}), 'sumi', True),
    path=(dict(ss_tag_frequency={r'C:\data\10_sumi': {}}), 'sumi', True),
    generic=(dict(ss_tag_frequency={'img': {'1girl': 4}}, ss_output_name='sumi_v2'), 'sumi v2', True),
    number=(dict(ss_tag_frequency={'10_': {'1girl': 4}}, ss_output_name='sumi'), 'sumi', True),
    output=(dict(ss_output_name='sumi'), 'sumi', True),
    said=({'modelspec.trigger_phrase': ' in\n ink '}, 'in ink', False),
    blank=({'modelspec.trigger_phrase': ' \n'}, 'k', True),
    megabyte=({'modelspec.trigger_phrase': 'ink '*250_000, 'ss_output_name': 'sumi'}, 'sumi', True),
    huge_tag=(dict(ss_tag_frequency={'10_'+'x'*10**6: {}}), 'k', True),
    braces=({'modelspec.trigger_phrase': '{red|blue} ink, {style}'}, '{red|blue} ink, {style}', False),
    ours=({'stylekit.words': 'my ink', 'ss_output_name': 'x'}, 'my ink', False),
    silent=({}, 'k', True))

@pytest.mark.parametrize('name', WORDS)
def test_trigger_words(base, pair, tmp_path, name):
    meta, want, guessed = WORDS[name]
    style = load_style(write(tmp_path/'k.safetensors', kohya_file(pair), **meta))
    assert (style.trigger_words, bool(style.guess)) == (want, guessed)
    assert read_trigger_words(style.metadata)[0] in (want, '')
    report = add_style(base, style)
    assert guessed == any('guess' in n for n in report.notes) and not load_style(style, trigger_words='ink').guess
    base.delete_adapter('style')


@pytest.mark.parametrize('name', ['ink+wash v1.5', 'a+b+c', 'ink:2', 'ink+flat:0.3', 'blue ink'])
def test_a_path_that_exists_wins_over_the_mix(pair, tmp_path, name):
    path = write(tmp_path/f'{name}.safetensors', kohya_file(pair))
    for text, scale in ((f'{path}', 1), (f'{path}:0.7', .7), (f' {path}:-1 ', -1)):
        style = load_style(text)
        assert (style.name, style.scale, style.path) == (name, scale, path)
    mix = load_style(f'{path}:0.7+flat:0.3+{path}')
    assert [(p.name, p.scale) for p in mix.parts] == [(name, .7), ('flat', .3), (name, 1)]

@pytest.mark.parametrize('name', ['ink:2', 'ink:0.7', 'ink+flat', 'a:1+b:2'])
def test_a_folder_that_reads_like_a_mix(pair, tmp_path, name):
    path = write(tmp_path/name/LORA_FILE, kohya_file(pair))
    style = load_style(str(path.parent))
    assert (style.path, style.name, style.scale) == (path, name, 1)

def test_the_mix_language():
    mix = [('ink', .7), ('flat', .3)]
    assert parse_style('ink:0.7+flat:0.3') == mix and parse_style('org/model') == 'org/model'
    for text, spec in (('ink:0.7+flat:0.3', mix), ('ink + flat', ['ink', 'flat']), ('ink:.5', [('ink', .5)])):
        a, b = load_style(text), load_style(spec)
        assert (a.name, a.trigger_words, a.scale, a.sha256) == (b.name, b.trigger_words, b.scale, b.sha256)
    half = load_style('ink:0.5')
    assert half.path == load_style('ink').path and load_style('ink:0.5', scale=2).scale == 1
    for bad in ('ink+', '+', 'ink:x', 'ink:nan', 'ink:9', 'ink:-2.1', 'ink:1e400', 'ink+oil', 'ink:1+nothing',
                'ink+'*50_000, '\0', ':'):
        with pytest.raises(StylekitError) as e: load_style(bad)
        assert len(str(e.value)) <= 300 and '\n' not in str(e.value)

@pytest.mark.parametrize('scale', [-2, -1, 0, .3, 3, 4, {'up': -1, 'mid': 3}])
def test_sliders(base, pair, tmp_path, scale):
    path = write(tmp_path/'a.safetensors', kohya_file(pair))
    report = add(base, path, scale=scale)
    uneven = isinstance(scale, dict)
    n = Q if uneven else list(pair)[0]
    m, (d, u) = base.unet.get_submodule(n), pair[n]
    got = m.lora_B['style'].weight@m.lora_A['style'].weight
    torch.testing.assert_close(got, .5*(3 if uneven else scale)*u@d)
    said = next(x for x in report.notes if 'strength' in x)
    assert ('turned round' in said) == (scale != 0 and (uneven or scale < 0))
    base.delete_adapter('style')
    for bad in (-2.1, 4.1, float('nan'), 'x', {'up': 5}, {'up': float('inf')}):
        with pytest.raises(StylekitError, match='scale'): load_style(path, scale=bad)

def test_a_dora_is_not_turned_round(base, pair, tmp_path):
    state = kohya_file(pair) | in_unet('dora_scale', {l: ones(len(u), 1) for l, (d, u) in pair.items()})
    path = write(tmp_path/'d.safetensors', state)
    with pytest.raises(StylekitError, match='turned round'): add(base, path, scale=-1)
    assert add(base, path, scale=2).matched
    base.delete_adapter('style')


def test_where_styles_are_found(pair, tmp_path, monkeypatch):
    "The package's first, then ./styles, then the user's; a path is a path; what is broken is named and hides nothing"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('STYLEKIT_HOME', str(tmp_path/'home'))
    shipped, file = load_style('ink').path, kohya_file(pair)
    ours = built_in_styles()
    assert ours == ['flat', 'freehand', 'ink', 'pixel', 'watercolour'] == list_styles()
    mine = write(tmp_path/'ink'/'mine.safetensors', file)
    for name in ('flat', 'sumi'): (tmp_path/name).mkdir()
    assert load_style('ink').path == shipped and load_style('flat').name == 'flat'
    assert load_style(tmp_path/'ink').path == mine
    for path in ('./ink', 'ink/mine.safetensors'): assert load_style(path).path.samefile(mine)
    own = write(tmp_path/'styles'/'sumi'/'pytorch_lora_weights.safetensors', file)
    users = write(tmp_path/'home'/'styles'/'charcoal.safetensors', file)
    write(tmp_path/'home'/'styles'/'sumi'/'other.safetensors', file)
    assert list_styles() == sorted(['charcoal', 'sumi', *ours])
    assert load_style('sumi').path.samefile(own) and load_style('charcoal').path == users
    assert load_style('charcoal:0.5+sumi').name == 'charcoal+sumi'
    write(tmp_path/'styles'/'ink'/'pytorch_lora_weights.safetensors', file)
    with pytest.warns(UserWarning, match='comes with stylekit'): assert load_style('ink').path == shipped
    for name, data in (('torn', b'\0'), ('page', b'<html>'), ('empty', b'')):
        (tmp_path/'styles'/name).mkdir()
        (tmp_path/'styles'/name/'pytorch_lora_weights.safetensors').write_bytes(data)
    for name in ('notes.txt', '.hidden.safetensors'): (tmp_path/'styles'/name).write_text('x')
    (tmp_path/'styles'/'none').mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        good, broken = read_styles()
    assert {s.name for s in good} >= {'charcoal', *ours}
    assert set(broken) == {'torn', 'page', 'empty'} and 'web page' in broken['page']
    assert set(list_styles()) == {'charcoal', 'sumi', 'torn', 'page', 'empty', *ours} == set(find_styles())

def test_names_of_files_without_a_name(pair, tmp_path, monkeypatch):
    write(tmp_path/'sumi'/'pytorch_lora_weights.safetensors', kohya_file(pair))
    monkeypatch.chdir(tmp_path/'sumi')
    assert load_style('pytorch_lora_weights.safetensors').name == 'sumi'
    assert load_style('./pytorch_lora_weights.safetensors').trigger_words == 'sumi'


# what is written here carries a hash

def with_header(raw:bytes, head)->bytes: # a safetensors file with another header
    text = json.dumps(head).encode()
    text += b' '*(-len(text)%8)
    return len(text).to_bytes(8, 'little') + text + raw[8+int.from_bytes(raw[:8], 'little'):]

def header_of(raw:bytes)->dict: return json.loads(raw[8:8+int.from_bytes(raw[:8], 'little')])

def header_mutants(raw:bytes, tensors:int=2):
    "As `json_mutants`, of the metadata and of a few tensors' entries"
    head = header_of(raw)
    part = {k: head[k] for k in ['__metadata__', *[k for k in head if k != '__metadata__'][:tensors]]}
    for what, mutant in json_mutants(part):
        if isinstance(mutant, dict): mutant = {k: v for k, v in head.items() if k not in part} | mutant
        try: yield what, with_header(raw, mutant)
        except (TypeError, ValueError): pass   # no JSON

def read_style(path):
    state = {k: v.clone() for k, v in read_safetensors(path)[0].items()}   # not what the file is mapped to
    return state, load_style(path).trigger_words

def test_every_change_of_a_saved_style_is_refused(sd15, random_style):
    "Bytes of header and weights, keys of the header; without its note it is an earlier version's, the rest the same"
    path = random_style(load_backbone(sd15), 'mine')
    raw, good = path.read_bytes(), read_style(path)
    def read(b):
        path.write_bytes(b)
        return read_style(path)
    header = 8 + int.from_bytes(raw[:8], 'little')
    def flipped(i, bit): return raw[:i] + bytes([raw[i]^bit]) + raw[i+1:]
    flips = [(f'byte {i}', flipped(i, 1)) for i in range(0, header, max(1, header//300))]
    assert sweep(read, flips, good) >= 300
    assert sweep(read, byte_mutants(raw), good) > 30
    no_metadata = [f'__metadata__: {what}' for what in ('missing', 'NoneType None', 'dict {}', "dict {'x': 1}")]
    assert sweep(read, header_mutants(raw), good, no_metadata) > 100
    note = [raw.index(SEAL.encode()), raw.index(b'stylekit-sha256:')]   # no bit of it may be the one that hides it
    places = [i for at in note for i in range(at, at+13)]
    notes = [(f'byte {i} of the note', flipped(i, bit)) for i in places for bit in (1, 4, 32)]
    assert sweep(read, notes) == len(notes)

@pytest.mark.parametrize('change', [
    lambda raw: raw[:-2]+b'\0\0', lambda raw: raw.replace(b'black ink', b'white ink'),
    lambda raw: raw.replace(SEAL.encode(), b'stylekit.zeal')])
def test_a_changed_style_says_what_to_do(sd15, random_style, change):
    b = load_backbone(sd15)
    path = random_style(b, 'mine')
    style, good = load_style(path), path.read_bytes()
    path.write_bytes(change(good))
    assert path.read_bytes() != good
    for f in (lambda: load_style(path), lambda: add_style(b, style)):
        with pytest.raises(StylekitError, match='mine.safetensors was changed.*copy it again.*stylekit.seal') as e:
            f()
        assert len(str(e.value)) < 300
    assert main(['styles', str(path)]) == 2

def test_files_without_the_note_are_read_as_ever(sd15, random_style, tmp_path):
    "Of an earlier version, of other programs, and ours with the note taken out on purpose"
    path = random_style(load_backbone(sd15), 'mine')
    state, meta = read_safetensors(path)
    assert meta.pop(SEAL) != '0'*64
    for name, header in dict(old=meta, other={'format': 'pt'}, bare=None).items():
        save_file({k: 2*v for k, v in state.items()}, tmp_path/f'{name}.safetensors', header)
        report = add(load_backbone(sd15), tmp_path/f'{name}.safetensors')
        assert report.matched == report.total > 0
    again = load_backbone(sd15)
    add(again, path)
    old = load_style(path).metadata   # an old note does not come along
    saved = save_lora(again, 'style', tmp_path/'again.safetensors', 'ink', old)
    assert read_safetensors(saved)[1][SEAL] != old[SEAL]
    assert load_style(saved).trigger_words == 'ink'

def test_what_is_equal_has_the_same_bytes(sd15, random_style):
    assert len({random_style(load_backbone(sd15), 'mine').read_bytes() for _ in range(8)}) == 1

def test_shipped_styles_are_sealed():
    for name in built_in_styles(): assert SEAL in read_safetensors(find_styles()[name])[1]

@pytest.mark.parametrize('names', ['diffusers', 'kohya'])
def test_a_full_disk_keeps_the_old_style(sd15, random_style, tmp_path, monkeypatch, names):
    b = load_backbone(sd15)
    add(b, random_style(b))
    path = tmp_path/'s'/LORA_FILE
    for words in ('ink', 'flat'):
        check_full_disk(monkeypatch, path, lambda: save_lora(b, 'style', path, words, names=names))
