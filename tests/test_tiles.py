"Large pictures in windows: records, resume, refusals, memory, several kinds of models; and devices that are not here"
import pytest, torch
from PIL import Image
from stylekit import load_backbone, sample_image, settings, stylize
from stylekit.core import StylekitError, pick_dtype
from stylekit.scores import FakeScore
from stylekit.stylizer import Callback, Checkpoint, Interrupted, Progress, Stylizer, working_size
from stylekit.tiles import Tiling, tile_starts, tiled, tiling_for

WIDE = sample_image('owl').resize((160, 96), Image.LANCZOS)

@pytest.fixture(scope='module')
def sdxl(models): return load_backbone(models('sdxl'))

@pytest.fixture(scope='module')
def style(sdxl, random_style): return random_style(sdxl)

def go(b, style, **how): return stylize(WIDE, style, 'an owl', backbone=b, **dict(steps=2, seed=3, tile=64) | how)

class Stop(Callback):
    def after_step(self, run):
        if run.k == 1: raise Interrupted

def same(a, b): return a.image.tobytes() == b.image.tobytes()

def test_a_run_in_windows_is_recorded_and_is_another_run(sdxl, style, tmp_path):
    from stylekit import read_output
    result = go(sdxl, style)
    assert result.image.size == WIDE.size and result.settings.tile == 64
    assert result.info['tiles'] == dict(side=8, overlap=4, count=[2, 4])
    saved = read_output(result.save(tmp_path/'x.png')).run
    assert saved['settings']['tile'] == 64 and saved['tiles'] == result.info['tiles']
    assert go(sdxl, style, tile=96).info['run_id'] != result.info['run_id']
    assert 'tiles' not in go(sdxl, style, tile=None).info
    assert sdxl.tiling is None   # the backbone is as it was

@pytest.mark.parametrize('how', [{}, dict(fake_score='lora'), dict(relevance='grid', noise='independent')])
def test_it_resumes_bit_for_bit(sdxl, style, tmp_path, how):
    file = tmp_path/'run.pt'
    part = go(sdxl, style, callbacks=[Checkpoint(file, 1), Stop()], **how)
    assert not part.complete and file.exists()
    assert same(go(sdxl, style, callbacks=[Checkpoint(file, 1)], **how), go(sdxl, style, **how))

def test_one_window_is_one_pass(sdxl, style):
    "A picture that fits into a window comes out as without"
    small = sample_image('owl').resize((64, 64))
    a, b = (stylize(small, style, 'an owl', backbone=sdxl, steps=1, seed=1, tile=t) for t in (None, 64))
    assert same(a, b)

def test_auto_is_one_pass_until_a_picture_is_large(sdxl, style):
    assert 'tiles' not in go(sdxl, style, tile='auto', resolution=80).info
    result = go(sdxl, style, tile='auto')
    assert result.info['tiles']['side']*8 == sdxl.native_size

def test_the_own_size_is_worked_at_only_with_windows():
    assert working_size(2048, 1536, 512, 64)[0] == (887, 665)
    assert working_size(2048, 1536, 512, 64, tile='auto') == ((2048, 1536),)*2
    assert working_size(2048, 1536, 512, 64, 1024, 512)[0] == (1182, 887)
    assert working_size(200, 100, 512, 64, tile=512)[0] == (724, 362)   # never below the model's own

def test_sdxl_is_told_what_it_sees(sdxl, style):
    cfg = settings(steps=1, tile=64)
    from stylekit import load_style
    run = Stylizer(sdxl, load_style(style), cfg, [WIDE], ['an owl'], [0])
    try: assert run.method.conds.plain.time_ids[0].tolist() == [64, 64, 0, 0, 64, 64]
    finally: run.close()

@pytest.mark.parametrize('method', ['cds', 'lusd'])
def test_methods_that_read_attention_are_refused(sdxl, style, method):
    with pytest.raises(StylekitError, match=f'tile=64: {method} does not read this setting'):
        go(sdxl, style, method=method)

BAD = [(16, 'at least 32'), (1.5, 'whole'), ('big', 'tile'), (8, 'tile'), (True, 'tile')]

@pytest.mark.parametrize('tile, why', BAD)
def test_a_bad_tile_is_refused(sdxl, style, tile, why):
    with pytest.raises(StylekitError, match=why): go(sdxl, style, tile=tile)
    assert sdxl.tiling is None and sdxl._held == 0

def test_attention_is_recorded_of_the_whole_picture(sdxl):
    z, t = torch.randn(1, 4, 16, 24), torch.tensor([300])
    words = sdxl.encode_prompt('an owl')
    with sdxl.record_attention('attn2', maps=True) as whole: sdxl.predict(z, t, words)
    with tiled(sdxl, 64) as tiling:
        with sdxl.record_attention('attn2', maps=True) as seen: sdxl.predict(z, t, words)
        assert sdxl.tiling is tiling
    assert len(seen) == len(whole) and all(torch.equal(a, b) for a, b in zip(seen, whole))

def test_a_learning_fake_score_learns_the_same(sdxl):
    "Windows that are computed again for the gradient give the gradient of those that are kept"
    z, t, noise = torch.randn(1, 4, 12, 20), torch.tensor([300]), torch.randn(1, 4, 12, 20)
    words = sdxl.encode_prompt('an owl')
    def gradients(checkpointed):
        fake = FakeScore(sdxl, 2)
        try:
            with torch.no_grad():
                g = torch.Generator().manual_seed(0)
                for p in fake.params: p.copy_(torch.randn(p.shape, generator=g))
            with tiled(sdxl, 64):
                if not checkpointed: sdxl.tiling.blend = plain_blend(sdxl.tiling)
                loss = (sdxl.predict(z, t, words, ('fake',), train=True)-noise).pow(2).mean()
            return torch.autograd.grad(loss, [p for p in fake.params if p.requires_grad])
        finally: fake.close()
    def plain_blend(tiling):
        def blend(f, x, reads=1, writes=1, shift=0.):
            out = torch.zeros_like(x)
            for rows, columns, weight in tiling.windows(*x.shape[-2:], 1, shift):
                part = torch.nn.functional.pad(weight*f(x[..., rows, columns]), (
                    columns.start, x.shape[-1]-columns.stop, rows.start, x.shape[-2]-rows.stop))
                out = out+part
            return out
        return blend
    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert a.abs().sum() > 0 or b.abs().sum() == 0
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)

def test_memory_is_that_of_one_window(sdxl):
    "Tensor by tensor: three times as many windows, hardly more memory, the backward pass included"
    from stylekit.bench import Ledger
    words, t = sdxl.encode_prompt('an owl'), torch.tensor([300])
    def most(w):
        fake = FakeScore(sdxl, 2)
        z = torch.randn(1, 4, 32, w)
        try:
            with Ledger(sdxl.unet, sdxl.vae) as ledger, tiled(sdxl, 256):
                start = ledger.now
                fake.learn(z, t, words, z)
                return ledger.peak-start
        finally: fake.close()
    assert most(120) < 1.2*most(32)

def test_progress_says_which_part(sdxl, style):
    from stylekit import load_style
    run = Stylizer(sdxl, load_style(style), settings(steps=1, tile=64), [WIDE], ['an owl'], [0], [Progress()])
    heard = []
    bar = run.callbacks[-1]
    bar.on_tile = lambda i, n: heard.append((i, n))
    run.run()
    assert heard[0][0] == 1 and all(1 <= i <= n <= 15 for i, n in heard)

def test_windows_move_with_the_timestep_and_only_with_it(sdxl):
    "Two scores of a step look through the same windows, and so does a run that is resumed"
    z, words, seen = torch.randn(1, 4, 16, 24), sdxl.encode_prompt('an owl'), []
    with tiled(sdxl, 64) as tiling:
        blend = tiling.blend
        def watched(f, x, reads=1, writes=1, shift=0.):
            seen.append(shift)
            return blend(f, x, reads, writes, shift)
        tiling.blend = watched
        for t in (300, 301, 300): sdxl.predict(z, torch.tensor([t]), words)
    assert seen[0] == seen[2] != seen[1] and all(0 <= s < 1 for s in seen)

def test_a_seam_is_found_sharp_or_blurred():
    from stylekit.tiles import seam_ratio
    x = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))*.01
    assert seam_ratio(x, [48], [48], 24, 1, 12) < 1.5
    ramp = (torch.arange(96)-40.).clamp(0, 16)/16*.02
    blurred = x+ramp[:, None]
    assert seam_ratio(blurred, [48], width=12, pitch=24, reach=1) > 4 > 1.3 > seam_ratio(blurred, [48])

def test_windows_cover_every_place():
    for n in range(1, 70):
        for side, overlap in ((8, 2), (8, 4), (16, 1), (5, 2)):
            starts = tile_starts(n, side, overlap)
            assert starts[0] == 0 and starts[-1] == max(0, n-side)
            assert all(0 < b-a <= side-overlap for a, b in zip(starts, starts[1:]))
            cuts = Tiling(side, overlap).cuts(n, n, 8)['rows']
            assert all(0 < c < 8*n for c in cuts)


# ---- devices that are not here ----

def mps(monkeypatch, newer=True):
    monkeypatch.setattr(torch.backends.mps, 'is_macos_or_newer', lambda major, minor: newer, raising=False)

def test_apple_gpus_take_float32_unless_asked(monkeypatch):
    mps(monkeypatch)
    assert pick_dtype('mps') == torch.float32 and pick_dtype('cpu') == torch.float32
    assert pick_dtype('mps', 'bf16') == torch.bfloat16 and pick_dtype('mps', 'fp16') == torch.float16
    mps(monkeypatch, newer=False)
    with pytest.raises(StylekitError, match='macOS 14'): pick_dtype('mps', 'bf16')

@pytest.mark.parametrize('has_bf16, want', [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_takes_bfloat16_where_it_is_real(monkeypatch, has_bf16, want):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: has_bf16)
    assert pick_dtype('cuda') == want

def test_what_an_apple_gpu_lacks_is_switched_over_before_torch_is_there():
    import subprocess, sys
    code = ('import sys; sys.platform = "darwin"; import stylekit, os; '
            'assert "torch" not in sys.modules; print(os.environ["PYTORCH_ENABLE_MPS_FALLBACK"])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == '1', done.stderr

def test_spectra_where_autocast_is_unknown(monkeypatch):
    from stylekit.spectrum import dct2
    x = torch.randn(1, 2, 6, 5)
    want = dct2(x)
    monkeypatch.setattr(torch.amp, 'is_autocast_available', lambda kind: False)
    monkeypatch.setattr(torch, 'autocast', None)
    assert torch.equal(dct2(x), want)

def test_the_reach_of_a_style_without_the_pooling(sdxl, style, monkeypatch):
    "Pooling to sizes that do not divide is lacking on Apple's GPUs: the answer comes from the CPU"
    import stylekit.methods.sms as sms
    asked = []
    def on_cpu(f, x):
        asked.append(x.shape)
        return f(x)
    monkeypatch.setattr(sms, 'cpu_if_lacking', on_cpu)
    go(sdxl, style, steps=1)
    assert asked

@pytest.mark.slow
def test_a_large_picture_is_in_memory_few_times():
    "A process that stylises one holds some two copies of it in float32 more than one of a single window"
    from stylekit.studies.large import peak_memory
    size = 1536, 1024
    one, many = peak_memory(size=(128, 128), final_t=0), peak_memory(size=size, tile=128, final_t=0)
    copy = 3*4*size[0]*size[1]/2**20
    assert (many['most']-one['most'])/copy < 2.8
