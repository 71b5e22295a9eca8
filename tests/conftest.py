"""Random weights in the real file layouts of models that people have: small channels, seconds on a CPU

`small` is SD 1.5 whose UNet looks at words at two resolutions of three: for loops, whatever they go round with."""
import gc, json
import pytest, torch
from tiny_flows import TRANSFORMERS, make_flow


def _unet(sample_size=8, cross=32, xl=False, small=False):
    from diffusers import UNet2DConditionModel
    if small: kw = dict(
        block_out_channels=(16, 32, 32), attention_head_dim=2,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'))
    elif xl: kw = dict(
        block_out_channels=(16, 32, 32), attention_head_dim=(2, 4, 4),
        down_block_types=('DownBlock2D',)+('CrossAttnDownBlock2D',)*2,
        up_block_types=('CrossAttnUpBlock2D',)*2+('UpBlock2D',),
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
        addition_embed_type='text_time', addition_time_embed_dim=8, projection_class_embeddings_input_dim=6*8+24)
    else: kw = dict(
        block_out_channels=(16, 32, 32, 32), attention_head_dim=2,
        down_block_types=('CrossAttnDownBlock2D',)*3+('DownBlock2D',),
        up_block_types=('UpBlock2D',)+('CrossAttnUpBlock2D',)*3)
    return UNet2DConditionModel(
        sample_size=sample_size, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=cross, **kw)


def _vae(xl):
    from diffusers import AutoencoderKL
    return AutoencoderKL(
        block_out_channels=(8,)*4, norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4,
        scaling_factor=.13025 if xl else .18215, force_upcast=xl)


def _scheduler(prediction_type):
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
    if prediction_type == 'flow_prediction': return FlowMatchEulerDiscreteScheduler(shift=3.)
    return DDIMScheduler(
        beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', steps_offset=1,
        clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)


def _text_config(tok, width, **kw):
    from transformers import CLIPTextConfig
    return CLIPTextConfig(
        vocab_size=len(tok), hidden_size=width, intermediate_size=2*width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, **kw)


PREDICTIONS = dict(sd21v='v_prediction', flow='flow_prediction')   # of the others: epsilon

def _index(xl, scheduler='DDIMScheduler'):
    index = dict(
        _class_name='StableDiffusionXLPipeline' if xl else 'StableDiffusionPipeline', _diffusers_version='0.35.0',
        unet=['diffusers', 'UNet2DConditionModel'], vae=['diffusers', 'AutoencoderKL'],
        text_encoder=['transformers', 'CLIPTextModel'], tokenizer=['transformers', 'CLIPTokenizer'],
        scheduler=['diffusers', scheduler])
    if not xl: return index
    return index | dict(
        text_encoder_2=['transformers', 'CLIPTextModelWithProjection'], tokenizer_2=['transformers', 'CLIPTokenizer'],
        force_zeros_for_empty_prompt=True)


def make_model(folder, kind):
    "Write a folder shaped like `kind`: 'sd15', 'sd21v', 'sdxl', 'small', or 'flow', an sd15 that predicts velocities"
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    from stylekit.mini.clip import train_tokenizer
    torch.manual_seed(0)
    xl = kind == 'sdxl'
    _unet(cross=48 if xl else 32, xl=xl, small=kind == 'small').save_pretrained(folder/'unet')
    _vae(xl).save_pretrained(folder/'vae')
    tok = train_tokenizer(['an owl', 'a cat face', 'black ink drawing', 'turn into'])
    tok.model_max_length = 77
    CLIPTextModel(_text_config(tok, 24 if xl else 32)).save_pretrained(folder/'text_encoder')
    tok.save_pretrained(folder/'tokenizer')
    if xl:
        CLIPTextModelWithProjection(_text_config(tok, 24, projection_dim=24)).save_pretrained(folder/'text_encoder_2')
        tok.save_pretrained(folder/'tokenizer_2')
    scheduler = _scheduler(PREDICTIONS.get(kind, 'epsilon'))
    scheduler.save_pretrained(folder/'scheduler')
    (folder/'model_index.json').write_text(json.dumps(_index(xl, type(scheduler).__name__)))
    return folder


@pytest.fixture(scope='session')
def models(tmp_path_factory):
    "kind -> folder, made when first asked for"
    made = {}
    def get(kind):
        make = make_flow if kind in TRANSFORMERS else make_model
        if kind not in made: made[kind] = make(tmp_path_factory.mktemp(kind), kind)
        return made[kind]
    return get


RIGHTS = dict(licence='CC0-1.0', author='nobody', acquired_on='2026-11-01',
              allowed=['internal', 'client', 'commercial', 'train', 'redistribute'])

@pytest.fixture(scope='session')
def random_style(tmp_path_factory):
    "A LoRA file with random weights that fits a backbone"
    def get(backbone, name='random'):
        from stylekit.licensing import rights_text
        from stylekit.lora import adapter_parameters, new_adapter, save_lora
        new_adapter(backbone, 'tmp', 4, seed=1)
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in adapter_parameters(backbone, 'tmp'):
                p.copy_(torch.randn(p.shape, generator=g)*.05)
        path = save_lora(backbone, 'tmp', tmp_path_factory.mktemp('style')/f'{name}.safetensors', 'black ink drawing')
        backbone.delete_adapter('tmp')
        path.with_name('rights.toml').write_text(rights_text(id=name, **RIGHTS))
        return path
    return get


@pytest.fixture(scope='session')
def small_network(tmp_path_factory):
    "A file of a network of one pass that changes something and costs nothing"
    from stylekit.feedforward import FEEDFORWARD_FILE, FeedForward, StyleNet
    torch.manual_seed(0)
    net = StyleNet(widths=(8, 16), blocks=(1, 1))
    with torch.no_grad():
        for p in net.parameters(): p.add_(.03*torch.randn_like(p))
    about = dict(name='noise', space='pixel', shape=net.shape, multiple=net.multiple, settings=dict(sms={}),
                 style='noise', style_sha256='', words='noise', backbone='', backbone_sha256='',
                 style_rights=[dict(style='noise', style_sha256='', rights=dict(id='noise', **RIGHTS))])
    return FeedForward(net, about).save(tmp_path_factory.mktemp('network')/FEEDFORWARD_FILE)


@pytest.fixture(scope='session')
def results(small_network):
    "home -> its folder `out` of results of a folder run, of `n` small pictures in `in`"
    def get(home, n=6, side=64, names='abc'):
        from stylekit import sample_image, list_samples, stylize_folder
        for i in range(n):
            to = home/'in'/names[i%len(names)]/f'thing {i}.png'
            to.parent.mkdir(parents=True, exist_ok=True)
            sample_image(list_samples()[i%8]).rotate(i//8*45, fillcolor='white').resize((side, side)).save(to)
        stylize_folder(home/'in', home/'out', feedforward=small_network)
        return home/'out'
    return get


@pytest.fixture(scope='module')
def chrome():
    "Chromium, without a display"
    import browser
    from playwright.sync_api import sync_playwright
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=browser.CHROMIUM, args=browser.FLAGS)
        yield b
        b.close()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab for all tests of a file"
    from browser import Server
    with Server(tmp_path_factory.mktemp('lab')) as server: yield server


LONG = ('test_browser', 'test_review_browser', 'test_view_browser', 'test_kill', 'test_stylizer', 'test_baselines',
        'test_transformers', 'test_site', 'test_backbones', 'test_flow_rivals', 'test_cli', 'test_finetune',
        'test_evaluate', 'test_folders', 'test_captions', 'test_control_clip', 'test_flow')

def pytest_collection_modifyitems(items):
    "Files that take long begin, so that all workers end at about the same time"
    places = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))

def pytest_collection_finish(session):
    "What is imported by now stays: no later pass of the collector, ours among them, goes through its million objects"
    gc.collect()
    gc.freeze()
