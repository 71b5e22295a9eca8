"What is said of a base before it is loaded, computed again from the shapes of its networks"
import pytest
from stylekit.known_models import KNOWN, GIB
from stylekit.studies.memory import bytes_of, denoiser, downloads, lesson_bytes, lora_bytes, on_meta, pass_bytes
from stylekit.studies.memory import MODELS, picture_bytes

SAME = {'Stable Diffusion 1.5': 'SD 1.5', 'SDXL': 'SDXL', 'FLUX.2 klein 4B': 'FLUX.2 klein 4B'}
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ('SDXL', 'FLUX.2 klein 4B')]

@pytest.mark.parametrize('name', ['Stable Diffusion 1.5', *LARGE])
def test_memory_is_that_of_the_networks(name):
    k, m = KNOWN[name], SAME[name]
    sizes = k.denoiser, k.vae, k.texts
    shape = MODELS[m]
    parts = bytes_of(denoiser(m))+lora_bytes(m), bytes_of(on_meta(*shape.vae))
    import torch
    assert sizes == (*parts, sum(bytes_of(on_meta(*t, torch.bfloat16)) for t in shape.texts))
    size = 768                                                 # the figures come from others
    assert 2*k.answer*size**2+k.fixed == pytest.approx(pass_bytes(m, 2, size), rel=.01)
    assert k.draw*size**2 == pytest.approx(picture_bytes(m, size), rel=.01)
    assert k.lesson*k.native**2 == pytest.approx(lesson_bytes(m, k.native), rel=.06)
    assert k.native == shape.side

@pytest.mark.slow
def test_downloads():
    for name, m in SAME.items(): assert round(KNOWN[name].download/GIB, 1) == downloads()[m]
