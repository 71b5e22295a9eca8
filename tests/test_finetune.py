"Training a style: folders as people have them, and what stops, resumes and is refused"
import json, os, re, signal, warnings
import pytest, torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from stylekit import StylekitError, load_backbone, load_style, sample, samples, stylize, styles, train_lora
from stylekit import finetune
from stylekit.cli import main
from stylekit.core import digest, folder_lock
from stylekit.finetune import Example, LoraSettings, LoraTrainer, encode_views, lora_loss, read_folder
from stylekit.lora import LORA_FILE, SEAL, add_style, built_in_styles
from stylekit.records import load_state, save_state
from stylekit.training import BestState, TrainingState
from sweeps import json_mutants, sweep, sweep_file

TINY = dict(rank=2, steps=4, batch=2, check=2, views=2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path/'pictures').mkdir()
    for n in samples(): sample(n, 'ink').resize((80, 64)).save(tmp_path/'pictures'/f'{n}.png')
    return tmp_path/'pictures'

@pytest.fixture(scope='module', params=['sd15', 'sd21v', 'sdxl'])
def b(request, models): return load_backbone(models(request.param))

def test_every_kind_of_model_learns(b, folder, tmp_path):
    "Train, save, load and stylise; the file says what it was made from"
    s = train_lora(folder, 'mine', 'black ink drawing', backbone=b, out=tmp_path/'styles', previews=[(sample('taxi').resize((64, 64)), 'a taxi')], **TINY)
    assert s.path == tmp_path/'styles'/'mine'/'pytorch_lora_weights.safetensors' and s.words == 'black ink drawing'
    assert json.loads(s.metadata['stylekit.settings'])['rank'] == 2 and s.metadata['stylekit.base_sha256'] == b.sha256 and str(tmp_path) not in json.dumps(s.metadata)
    r = stylize(sample('owl').resize((64, 64)), s, 'an owl', backbone=b, steps=1, seed=0)
    assert r.complete and not getattr(b.unet, 'peft_config', {})

@pytest.mark.parametrize('names, dora', [('kohya', False), ('diffusers', True), ('kohya', True)])
def test_written_as_asked(models, folder, tmp_path, names, dora):
    b = load_backbone(models('sd15'))
    s = train_lora(folder, 'x', backbone=b, out=tmp_path, names=names, dora=dora, lr=.05, **TINY)
    report = add_style(b, s)
    assert report.writer == names and ('DoRA' in report.kind) == dora and report.matched == report.total
    b.remove('style')

def test_half_precision_learns_the_same(models, folder):
    "bfloat16 and float16 base, float32 LoRA: nearly the same weights, no overflow"
    got = {}
    for dtype in ('float32', 'bfloat16', 'float16'):
        b = load_backbone(models('sd15'), dtype=None if dtype == 'float16' else dtype)
        if dtype == 'float16': b.unet.half(); b.dtype = torch.float16     # `load_backbone` refuses it on a CPU, where it is slow
        LoraTrainer(b, read_folder(folder), 'ink', LoraSettings(**TINY | dict(hold_out=0.), lr=1e-3)).run()
        got[dtype] = torch.cat([p.detach().float().flatten() for k, p in b.unet.named_parameters() if '.style.' in k])
        assert torch.isfinite(got[dtype]).all()
    for dtype in ('bfloat16', 'float16'): assert torch.nn.functional.cosine_similarity(got[dtype], got['float32'], 0) > .98

@pytest.mark.slow
def test_prior_keeps_the_models_own_hand(models, folder):
    "With `prior` the captions without the style's words change less"
    b, moved = load_backbone(models('sd15')), {}
    for prior in (0., 30.):
        cfg = LoraSettings(rank=4, steps=40, batch=4, check=20, views=1, lr=5e-3, hold_out=0., prior=prior)
        t = LoraTrainer(b, read_folder(folder), 'ink', cfg)
        t.run()
        z_t, ts = b.add_noise(t.data.z[:, 0], torch.randn(t.data.z[:, 0].shape, generator=torch.Generator().manual_seed(3)), torch.full((8,), 300)), torch.full((8,), 300)
        c = t.data.plain.map(lambda a: a[:8])
        moved[prior] = (b.predict(z_t, ts, c, ('style',))-b.predict(z_t, ts, c)).pow(2).mean().item()
        b.remove('style')
    assert moved[30.] < .5*moved[0.]

def test_ends_early_and_keeps_the_best(models, folder, monkeypatch):
    b = load_backbone(models('sd15'))
    errors = iter([.5, .3, .4, .6, .1])
    monkeypatch.setattr(LoraTrainer, 'held_out', lambda self: next(errors))
    t = LoraTrainer(b, read_folder(folder), 'ink', LoraSettings(**TINY | dict(steps=20, patience=2), lr=.01))
    history = t.run()
    assert [r.held_out for r in history if not r.ended] == [.5, .3, .4, .6] and t.best.step == 4
    assert (t.end.ended, t.end.step, t.end.best_step, t.end.best_error) == ('no better', 8, 4, .3)
    now = {k: p for k, p in b.unet.named_parameters() if '.style.' in k}
    assert all(torch.equal(p, t.best.weights[k]) for k, p in now.items())

def header(style)->dict: return {k: v for k, v in style.metadata.items() if k != SEAL}   # the hash of the file is that of one order of its header

def test_minutes_stop_and_the_same_call_goes_on(models, folder, tmp_path):
    b = load_backbone(models('sd15'))
    go = lambda out, **kw: train_lora(folder, 'x', backbone=b, out=out, **TINY, **kw)
    whole = go(tmp_path/'a')
    with pytest.warns(UserWarning, match='cut short at step 1 of 4: run again to go on'): go(tmp_path/'b', minutes=1e-9)
    assert (tmp_path/'b'/'x'/'training.pt').exists()
    again = go(tmp_path/'b')
    a, b = load_file(whole.path), load_file(again.path)     # not the bytes: safetensors orders its header by chance
    assert all(torch.equal(a[k], b[k]) for k in a) and header(whole) == header(again) and sorted(p.name for p in (tmp_path/'b'/'x').iterdir()) == [LORA_FILE, 'rights.toml']

def test_one_picture_is_enough_to_start(models, tmp_path):
    b = load_backbone(models('sd15'))
    e = [Example(tmp_path/'a.png', sample('owl', 'ink'), '', 'x')]
    t = LoraTrainer(b, e, 'ink', LoraSettings(**TINY))
    assert t.held == [] and [r.step for r in t.run()] == [2, 4, 4]

def test_empty_caption_is_the_last(models, folder):
    "Dropped captions are the empty prompt, the others the style's words and what is shown"
    b = load_backbone(models('sd15'))
    cfg = LoraSettings(**TINY)
    d = encode_views(b, read_folder(folder), 'ink', cfg)
    t, noise, g = torch.tensor([300]), torch.randn(1, *d.z.shape[2:]), lambda e: lora_loss(b, d, [2], [0], t, noise, torch.tensor([e]), cfg, adapter_of(b), train=False)
    assert torch.equal(d.styled.embeds[8], b.text('').embeds[0]) and not torch.equal(g(True), g(False))
    b.remove('style')

def adapter_of(b):
    from stylekit.lora import new_adapter
    new_adapter(b, 'style', 2)
    return 'style'

def test_folders_as_people_have_them(tmp_path):
    "Odd names, a hidden file, text beside, a broken picture"
    sample('owl').save(tmp_path/'Größe 2.PNG'); sample('taxi').save(tmp_path/'b.jpg'); (tmp_path/'.DS_Store').write_bytes(b'x'); (tmp_path/'notes.md').write_text('x')
    (tmp_path/'b.txt').write_text('  a taxi\n in town ')
    assert [e.caption for e in read_folder(tmp_path, 'a {}')] == ['a größe', 'a taxi in town']
    (tmp_path/'c.png').write_bytes(b'\x89PNG broken')
    with pytest.warns(UserWarning, match='c.png is left out'): assert len(read_folder(tmp_path)) == 2
    (tmp_path/'c.png').unlink(); (tmp_path/'b.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.warns(UserWarning, match='b.jpg is left out.*b.txt'): assert len(read_folder(tmp_path)) == 1

def test_own_styles_are_found_by_name(models, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    b = load_backbone(models('sd15'))
    train_lora(folder, 'my-ink', backbone=b, **TINY)
    assert styles() == sorted(['my-ink', *built_in_styles()]) and load_style('my-ink').words == 'my ink'
    assert main(['styles']) == 0 and 'my-ink' in capsys.readouterr().out

def test_command(models, folder, tmp_path, capsys):
    argv = ['train-lora', str(folder), '--out', str(tmp_path/'s'), '--backbone', str(models('sd15')), '--steps', '2', '--rank', '2', '--batch', '2']
    assert main(argv) == 0
    out = capsys.readouterr()
    assert out.out == f'{tmp_path/"s"/"pictures"/"pytorch_lora_weights.safetensors"}\n' and 'loss' in out.err and 'rights.toml' in out.err
    for bad, why in ((['--rank', '0'], 'rank'), (['--names', 'x'], 'is not one of diffusers, kohya'), (['--template', 'x'], 'template'), (['--name', '../x'], 'name')):
        assert main([*argv, *bad]) == 2
        err = capsys.readouterr().err
        assert why in err and err.count('\n') == 1
    assert main(['train-lora', str(tmp_path/'nowhere')]) == 2 and 'nowhere' in capsys.readouterr().err


# ---- what goes wrong on the way ----

def state_of(b)->tuple:
    "The UNet's modules and all of its weights"
    return [type(m).__name__ for m in b.unet.modules()], digest(*[p.detach().numpy().tobytes() for p in b.unet.parameters()]), list(getattr(b.unet, 'peft_config', {}))

@pytest.fixture(scope='module')
def ztsnr(models, tmp_path_factory):
    "A v-prediction model whose last timestep is pure noise (SNR 0)"
    import shutil
    folder = tmp_path_factory.mktemp('z')/'ztsnr'
    shutil.copytree(models('sd21v'), folder)
    file = folder/'scheduler'/'scheduler_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(rescale_betas_zero_snr=True)))
    return folder

def test_zero_terminal_snr_learns(ztsnr, folder, tmp_path):
    "Every step of it at SNR 0, and the LoRA is finite"
    b = load_backbone(ztsnr)
    assert b.alphas_cumprod[-1] < 1e-8
    t = LoraTrainer(b, read_folder(folder), 'ink', LoraSettings(**TINY))
    n = len(t.data.z)
    loss = lora_loss(b, t.data, [0, 1], [0, 0], torch.tensor([999, 999]), torch.randn(2, *t.data.z.shape[2:]), torch.tensor([False, False]), t.cfg)
    assert n and torch.isfinite(loss).all()
    b.remove('style')
    s = train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY)
    assert all(torch.isfinite(v).all() for v in load_file(s.path).values())

@pytest.mark.parametrize('at', [1, 3, 'held out'])
def test_no_step_on_what_is_no_number(models, folder, tmp_path, monkeypatch, at):
    "The training ends, the checkpoint before stays and is finite, no LoRA is written, the model is as it was"
    b = load_backbone(models('sd15'))
    before, calls, loss = state_of(b), [], LoraTrainer.loss
    def poisoned(self, g):
        calls.append(1)
        return loss(self, g)*(float('nan') if len(calls) == at else 1)
    monkeypatch.setattr(LoraTrainer, 'loss', poisoned)
    if at == 'held out': monkeypatch.setattr(LoraTrainer, 'held_out', lambda self: float('nan'))
    with pytest.raises(StylekitError, match='NaN') as e: train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY)
    assert '\n' not in str(e.value) and state_of(b) == before
    kept = tmp_path/'x'/'training.pt'
    assert kept.exists() == (at == 3) and not (tmp_path/'x'/LORA_FILE).exists()
    if at == 3: assert all(torch.isfinite(v).all() for v in load_state(kept, 'training')['model'].values())
    monkeypatch.undo()
    assert train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY).path.exists()      # and it goes on from there

@pytest.mark.parametrize('where', ['first step', 'later', 'encoding', 'saving'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, TypeError, MemoryError, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError('CUDA out of memory')], ids=['ctrl-c', 'type', 'memory', 'cpu', 'gpu'])
def test_whatever_fails_the_model_is_as_it_was(models, folder, tmp_path, monkeypatch, where, error):
    b = load_backbone(models('sd15'))
    before, calls = state_of(b), []
    target = {'encoding': 'encode_views', 'saving': 'save_lora'}.get(where, 'lora_loss')
    real = getattr(finetune, target)
    def failing(*a, **kw):
        calls.append(1)
        if len(calls) == 2 or where != 'later': raise error
        return real(*a, **kw)
    monkeypatch.setattr(finetune, target, failing)
    is_memory = error is MemoryError or isinstance(error, RuntimeError)
    with pytest.raises(StylekitError if is_memory else error) as e: train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY)
    if is_memory: assert 'ran out of memory: lower `batch`' in str(e.value)
    assert state_of(b) == before
    assert not (tmp_path/'x').exists() or where == 'saving'
    monkeypatch.undo()
    assert train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY).path.exists()

def test_ctrl_c_before_the_first_check_keeps_a_checkpoint(models, folder, tmp_path):
    "The signal comes in the middle of step 1; going on ends in the very same LoRA"
    def go(out, **kw): return train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out=out, **TINY | dict(steps=6, check=4), **kw)
    whole, said = go(tmp_path/'a'), []
    b = load_backbone(models('sd15'))
    calls = []
    def press(*_):
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), signal.SIGINT)
    hook = b.unet.register_forward_hook(press)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt): train_lora(folder, 'x', backbone=b, out=tmp_path/'b', report=said.append, **TINY | dict(steps=6, check=4))
    hook.remove()
    assert load_state(tmp_path/'b'/'x'/'training.pt', 'training')['step'] == 2 and said[-1].step == 2
    assert not getattr(b.unet, 'peft_config', {}) and not (tmp_path/'b'/'x'/'.stylekit.lock').exists()
    again = go(tmp_path/'b')
    assert header(whole) == header(again) and all(torch.equal(v, load_file(again.path)[k]) for k, v in load_file(whole.path).items())

def test_a_full_disk(models, folder, tmp_path, monkeypatch):
    "No checkpoint costs a warning; no LoRA is one line, and the same call gives it later"
    b = load_backbone(models('sd15'))
    real = os.fsync
    def full(f): raise OSError(28, 'No space left on device')
    def no_states(f):
        if os.readlink(f'/proc/self/fd/{f.fileno() if hasattr(f, "fileno") else f}').endswith('.pt'): full(f)
        real(f)
    monkeypatch.setattr(os, 'fsync', no_states)
    with pytest.warns(UserWarning, match='no training kept.*disk is full'): assert train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY).path.exists()
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(StylekitError, match='disk is full') as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        train_lora(folder, 'y', backbone=b, out=tmp_path, **TINY)
    assert '\n' not in str(e.value) and not getattr(b.unet, 'peft_config', {}) and not list((tmp_path/'y').iterdir()) if (tmp_path/'y').exists() else True
    monkeypatch.undo()
    def rust(*a, **kw): raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    monkeypatch.setattr('safetensors.torch.save_file', rust)
    with pytest.raises(StylekitError, match='disk is full'): train_lora(folder, 'y', backbone=b, out=tmp_path, **TINY)
    assert (tmp_path/'y'/'training.pt').exists()
    monkeypatch.undo()
    assert train_lora(folder, 'y', backbone=b, out=tmp_path, **TINY).path.exists()


# ---- what is somebody's stays ----

def test_the_same_training_again_is_done_already(models, folder, tmp_path, monkeypatch):
    "No step, nothing written; what was filled in stays, and so does what lies beside"
    b, out = load_backbone(models('sd15')), tmp_path/'styles'
    for name in ('work', 'x/work'): (out/name).mkdir(parents=True)
    for name in ('work/a.pt', 'x/work/training.pt', 'x/config.json', 'x/notes.txt'): (out/name).write_text('mine')
    first = train_lora(folder, 'x', backbone=b, out=out, **TINY)
    (out/'x'/'rights.toml').write_text('licence = "CC-BY-4.0"   # filled in\n')
    kept = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert {p.name for p in kept} == {'a.pt', 'training.pt', 'config.json', 'notes.txt', LORA_FILE, 'rights.toml'}
    monkeypatch.setattr(LoraTrainer, '__init__', None)      # nobody trains
    with pytest.warns(UserWarning, match='rights.toml stays as it is'): assert train_lora(folder, 'x', backbone=b, out=out, **TINY) == first
    assert {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == kept

def test_a_name_that_is_taken(models, folder, tmp_path):
    b = load_backbone(models('sd15'))
    train_lora(folder, 'x', 'first', backbone=b, out=tmp_path, **TINY)
    kept = (tmp_path/'x'/LORA_FILE).read_bytes()
    for other in (dict(words='second'), dict(rank=3), dict(seed=1), dict(names='kohya')):
        with pytest.raises(StylekitError, match="'x' is there already.*overwrite"): train_lora(folder, 'x', **dict(words='first') | other, backbone=b, out=tmp_path, **{k: v for k, v in TINY.items() if k not in other})
    (tmp_path/'x'/LORA_FILE).write_bytes(kept[:100])
    with pytest.raises(StylekitError, match="'x' is there already"): train_lora(folder, 'x', 'first', backbone=b, out=tmp_path, **TINY)     # damaged, but somebody's
    assert train_lora(folder, 'x', 'second', backbone=b, out=tmp_path, overwrite=True, **TINY).words == 'second'
    for name in ('ink', 'Flat', 'INK'):
        with pytest.raises(StylekitError, match='comes with stylekit'): train_lora(folder, name, backbone=b, out=tmp_path, **TINY)

def test_two_trainings_of_one_name_at_once(models, folder, tmp_path):
    b = load_backbone(models('sd15'))
    with folder_lock(tmp_path/'x'), pytest.raises(StylekitError, match='another run'): train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY)

def test_a_training_while_another_run_draws(models, folder, tmp_path, random_style):
    b = load_backbone(models('sd15'))
    before = state_of(b)
    def busy(trainer, step):
        with pytest.raises(StylekitError, match='another run'): stylize(sample('owl').resize((64, 64)), str(random_style(load_backbone(models('sd15')))), 'an owl', backbone=b, steps=1)
        with pytest.raises(StylekitError, match='another run'): train_lora(folder, 'y', backbone=b, out=tmp_path, **TINY)
    train_lora(folder, 'x', backbone=b, out=tmp_path, watch=busy, **TINY)
    assert state_of(b) == before and not (tmp_path/'y').exists()

def test_few_pictures_are_said(models, folder, tmp_path):
    for p in list(folder.iterdir())[3:]: p.unlink()
    with pytest.warns(UserWarning, match='^3 pictures.*about 8'): train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out=tmp_path, **TINY)

def test_reports_say_of_how_many_and_what_is_kept(models, folder, tmp_path):
    said = []
    train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out=tmp_path, report=said.append, **TINY)
    assert [(r.step, r.steps, r.ended) for r in said] == [(2, 4, ''), (4, 4, ''), (4, 4, 'finished')] and said[0].eta > 0 and said[0].held_out is not None
    assert re.fullmatch(r'step 2 of 4: loss [\d.]+, held-out error [\d.]+, the best so far, about \d+ s left', str(said[0]))
    assert re.fullmatch(r'finished after step 4; step [24] is kept, where the held-out error was smallest \([\d.]+\)', str(said[-1]))

@pytest.mark.parametrize('bad', [dict(minutes=-1), dict(minutes=float('nan')), dict(minutes='x'), dict(batch=0), dict(settings=dict(rank=2)), dict(targets='to_q'), dict(targets=[]), dict(dora=1), dict(flip='no'), dict(rank=True),
                                 dict(lr='1'), dict(seed=-1), dict(seed=2**40), dict(previews=['a.png']), dict(check=0), dict(gamma=float('inf')), dict(steps=10**9)], ids=str)
def test_settings_out_of_range(folder, tmp_path, bad):
    with pytest.raises(StylekitError, match=next(iter(bad))) as e: train_lora(folder, 'x', out=tmp_path, **bad)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 300 and not (tmp_path/'x').exists()

def test_numbers_of_other_libraries(models, folder, tmp_path):
    import numpy as np
    s = train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out=tmp_path, **TINY | dict(rank=np.int64(2), steps=torch.tensor(2), lr=np.float32(.01), minutes=np.float64(9)))
    assert json.loads(s.metadata['stylekit.settings'])['rank'] == 2

def test_states_are_read_whole_or_refused(models, folder, tmp_path):
    "A checkpoint cut, appended, flipped, or with other content under a right hash"
    def trainer(**kw): return LoraTrainer(load_backbone(models('sd15')), read_folder(folder), 'ink', LoraSettings(**TINY), tmp_path, **kw)
    trainer().run()
    for kind, cls in (('training', TrainingState), ('best', BestState)):
        path = tmp_path/f'{kind}.pt'
        sweep_file(path, lambda p: load_state(p, kind, cls), same=load_state(path, kind, cls))
        state, raw = load_state(path, kind), path.read_bytes()
        def read(mutant):
            save_state(path, mutant, kind)
            return load_state(path, kind, cls)
        tops = [(what, m) for what, m in json_mutants(state) if not isinstance(m, dict) or what.split(':')[0] in state or what == 'one key too many']
        sweep(read, tops, may_differ=[f'{k}: {v}' for k in ('step', 'since', 'looked', 'error', 'run_id', 'opt', 'beside', 'model', 'ema', 'weights') for v in ('int 3', 'int -1', 'float 0.5', 'str x', 'str ', 'dict {}', "dict {'x': 1}", 'NoneType None')] + ['run_id: str '+'x'*20, 'beside: missing'])
        path.write_bytes(raw)

def test_a_home_folder_in_python(models, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    s = train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out='~/styles', **TINY)
    assert s.path == tmp_path/'home'/'styles'/'x'/LORA_FILE and s.path.exists() and not (tmp_path/'~').exists()
    kept = s.path.read_bytes()
    with pytest.raises(StylekitError, match="'x' is there already"): train_lora(folder, 'x', backbone=load_backbone(models('sd15')), out='~/styles', **TINY | dict(seed=1))
    assert s.path.read_bytes() == kept
    assert [e.caption for e in read_folder('~/../pictures')]
