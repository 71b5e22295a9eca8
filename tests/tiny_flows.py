"Random weights in the real layouts of SD 3, FLUX.1 and FLUX.2 klein, written by diffusers' own pipelines"
import torch

LETTERS = 'abcdefghijklmnopqrstuvwxyz'

def t5():
    "An encoder and its tokenizer"
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast
    pieces = [('<pad>', 0.), ('</s>', 0.), ('<unk>', -5.), ('▁', -2.), *((c, -3.) for c in LETTERS+',.0123456789')]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config), T5TokenizerFast(vocab=pieces, extra_ids=0)

def qwen():
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM
    tok = Qwen2TokenizerFast(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tok.add_special_tokens(dict(additional_special_tokens=['<|im_start|>', '<|im_end|>']))
    tok.chat_template = ('{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
                         '<|im_start|>assistant\n')
    config = Qwen3Config(vocab_size=272, hidden_size=16, intermediate_size=32, num_hidden_layers=4, head_dim=8,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config), tok

def clip(pooled=None):
    from conftest import _text_config
    from stylekit.mini.clip import train_tokenizer
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    tok = train_tokenizer(['an owl', 'a cat face', 'black ink drawing', 'turn into'])
    tok.model_max_length = 77
    if pooled is None: return CLIPTextModel(_text_config(tok, 16)), tok
    return CLIPTextModelWithProjection(_text_config(tok, 16, projection_dim=pooled)), tok

def vae(cls, channels, **kw):
    "An autoencoder of a factor of 8"
    import diffusers
    return getattr(diffusers, cls)(
        block_out_channels=(8,)*4, norm_num_groups=4, latent_channels=channels, sample_size=64,
        down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, **kw)

def shifted():
    plain = dict(use_quant_conv=False, use_post_quant_conv=False)
    return vae('AutoencoderKL', 4, scaling_factor=1.5, shift_factor=.06, **plain)

def sd3(with_t5=True):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    network = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm='rms_norm')
    (text, tok), (text2, tok2), (text3, tok3) = clip(8), clip(16), t5() if with_t5 else (None, None)
    return StableDiffusion3Pipeline(network, scheduler(), shifted(), text, tok, text2, tok2, text3, tok3)

def flux(guided=True):
    from diffusers import FluxPipeline, FluxTransformer2DModel
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=guided, axes_dims_rope=(2, 2, 4))
    (text, tok), (text2, tok2) = clip(), t5()
    return FluxPipeline(scheduler(), shifted(), text, tok, text2, tok2, network)

def klein(distilled=False):
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
    network = Flux2Transformer2DModel(
        in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, guidance_embeds=False, axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=16)
    codec = vae('AutoencoderKLFlux2', 8)
    codec.bn.running_mean.normal_(0, .3)
    codec.bn.running_var.uniform_(.5, 2)
    text, tok = qwen()
    return Flux2KleinPipeline(scheduler(), codec, text, tok, network, is_distilled=distilled)

def scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler
    return FlowMatchEulerDiscreteScheduler(shift=3.)

TRANSFORMERS = dict(sd3=sd3, sd3_no_t5=lambda: sd3(False), flux=flux, klein=klein, klein_distilled=lambda: klein(True))

def make_flow(folder, kind):
    "Write a diffusers folder of `kind`, one of `TRANSFORMERS`"
    torch.manual_seed(0)
    pipe = TRANSFORMERS[kind]()
    with torch.no_grad():   # what a fresh transformer ends in is zero, or nearly
        for p in pipe.transformer.parameters(): p.add_(.05*torch.randn_like(p))
    pipe.save_pretrained(folder)
    return folder
