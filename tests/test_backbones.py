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
