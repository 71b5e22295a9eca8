"Training a style: folders as people have them, and what stops, resumes and is refused"
import json, os, re, signal, warnings
import pytest, torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from stylekit import StylekitError, list_samples, list_styles, load_backbone, load_style, sample_image, stylize
from stylekit import train_lora
from stylekit import finetune
from stylekit.cli import main
from stylekit.core import digest, folder_lock
from stylekit.finetune import Example, LoraBatch, LoraSettings, LoraTrainer, encode_views, lora_loss, read_folder
from stylekit.lora import LORA_FILE, SEAL, add_style, built_in_styles
from stylekit.records import load_state, save_state
from stylekit.training import EarlyStoppingState, TrainingState
from sweeps import json_mutants, sweep, sweep_file

TINY = dict(rank=2, steps=4, batch=2, check=2, views=2, hold_out=.15)


@pytest.fixture
def folder(tmp_path):
    (tmp_path/'pictures').mkdir()
    for n in list_samples(): sample_image(n, 'ink').resize((80, 64)).save(tmp_path/'pictures'/f'{n}.png')
    return tmp_path/'pictures'

@pytest.fixture(scope='module', params=['sd15', 'sd21v', 'sdxl'])
def b(request, models): return load_backbone(models(request.param))

@pytest.fixture
def base(models): return load_backbone(models('small'))

@pytest.fixture
def train(base, folder, tmp_path):
    "A few steps on a few pictures"
    def go(name='x', trigger_words=None, **changes):
        return train_lora(folder, name, trigger_words, **dict(backbone=base, out=tmp_path) | TINY | changes)
    return go

def small(name): return sample_image(name).resize((64, 64))

def adapters(b): return getattr(b.unet, 'peft_config', {})

def style_parameters(b): return {k: p for k, p in b.unet.named_parameters() if '.style.' in k}

def all_finite(tensors): return all(torch.isfinite(v).all() for v in tensors)

def same_weights(a, b):
    "Of two styles; not the bytes: safetensors orders its header by chance"
    a, b = load_file(a.path), load_file(b.path)
    return all(torch.equal(a[k], b[k]) for k in a)

def test_every_kind_of_model_learns(b, folder, tmp_path):
    "Train, save, load and stylise; the file says what it was made from"
    out, words = tmp_path/'styles', 'black ink drawing'
    s = train_lora(folder, 'mine', words, backbone=b, out=out, previews=[(small('taxi'), 'a taxi')], **TINY)
    assert s.path == out/'mine'/'pytorch_lora_weights.safetensors' and s.trigger_words == words
    assert json.loads(s.metadata['stylekit.settings'])['rank'] == 2
    assert s.metadata['stylekit.base_sha256'] == b.sha256
    assert str(tmp_path) not in json.dumps(s.metadata)
    r = stylize(small('owl'), s, 'an owl', backbone=b, steps=1, seed=0)
    assert r.complete and not adapters(b)

@pytest.mark.parametrize('names, dora', [('kohya', False), ('diffusers', True), ('kohya', True)])
def test_written_as_asked(base, train, names, dora):
    s = train(names=names, dora=dora, lr=.05)
    report = add_style(base, s)
    assert report.writer == names
    assert ('DoRA' in report.kind) == dora
    assert report.matched == report.total
    base.delete_adapter('style')

def test_half_precision_learns_the_same(models, folder):
    "bfloat16 and float16 base, float32 LoRA: nearly the same weights, no overflow"
    got = {}
    for dtype in ('float32', 'bfloat16', 'float16'):
        b = load_backbone(models('small'), dtype=None if dtype == 'float16' else dtype)
        if dtype == 'float16':      # `load_backbone` refuses it on a CPU, where it is slow
            b.unet.half()
            b.dtype = torch.float16
        LoraTrainer(b, read_folder(folder), 'ink', LoraSettings(**TINY | dict(hold_out=0., lr=1e-3))).run()
        got[dtype] = torch.cat([p.detach().float().flatten() for p in style_parameters(b).values()])
        assert torch.isfinite(got[dtype]).all()
    for dtype in ('bfloat16', 'float16'):
        assert torch.nn.functional.cosine_similarity(got[dtype], got['float32'], 0) > .98

@pytest.mark.slow
def test_prior_keeps_the_models_own_hand(base, folder):
    "With `prior` the captions without the style's words change less"
    moved = {}
    for prior in (0., 30.):
        cfg = LoraSettings(rank=4, steps=40, batch=4, check=20, views=1, lr=5e-3, hold_out=0., prior=prior)
        t = LoraTrainer(base, read_folder(folder), 'ink', cfg)
        t.run()
        z, ts = t.data.z[:, 0], torch.full((8,), 300)
        z_t = base.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(3)), ts)
        c = t.data.plain.map(lambda a: a[:8])
        moved[prior] = (base.predict(z_t, ts, c, ('style',))-base.predict(z_t, ts, c)).pow(2).mean().item()
        base.delete_adapter('style')
    assert moved[30.] < .5*moved[0.]

def test_ends_early_and_keeps_the_best(base, folder, monkeypatch):
    errors = iter([.5, .3, .4, .6, .1])
    monkeypatch.setattr(LoraTrainer, 'held_out', lambda self: next(errors))
    t = LoraTrainer(base, read_folder(folder), 'ink', LoraSettings(**TINY | dict(steps=20, patience=2), lr=.01))
    history = t.run()
    assert [r.held_out for r in history if not r.ended] == [.5, .3, .4, .6] and t.best.step == 4
    assert (t.end.ended, t.end.step, t.end.best_step, t.end.best_error) == ('no better', 8, 4, .3)
    assert all(torch.equal(p, t.best.weights[k]) for k, p in style_parameters(base).items())

def header(style)->dict:
    "Without the hash of the file, which is that of one order of its header"
    return {k: v for k, v in style.metadata.items() if k != SEAL}

def test_minutes_stop_and_the_same_call_goes_on(train, tmp_path):
    whole = train(out=tmp_path/'a')
    with pytest.warns(UserWarning, match='cut short at step 1 of 4: run again to go on'):
        train(out=tmp_path/'b', minutes=1e-9)
    assert (tmp_path/'b'/'x'/'training.pt').exists()
    again = train(out=tmp_path/'b')
    assert same_weights(whole, again) and header(whole) == header(again)
    assert sorted(p.name for p in (tmp_path/'b'/'x').iterdir()) == [LORA_FILE, 'rights.toml']

def test_one_picture_is_enough_to_start(base, tmp_path):
    e = [Example(tmp_path/'a.png', sample_image('owl', 'ink'), '', 'x')]
    t = LoraTrainer(base, e, 'ink', LoraSettings(**TINY))
    assert t.held == [] and [r.step for r in t.run()] == [2, 4, 4]

def test_empty_caption_is_the_last(base, folder):
    "Dropped captions are the empty prompt, the others the style's words and what is shown"
    cfg = LoraSettings(**TINY)
    d = encode_views(base, read_folder(folder), 'ink', cfg)
    t, noise = torch.tensor([300]), torch.randn(1, *d.z.shape[2:])
    def loss(empty):
        batch = LoraBatch([2], [0], t, noise, torch.tensor([empty]))
        return lora_loss(base, d, batch, cfg, adapter_of(base), train=False)
    assert torch.equal(d.styled.embeds[8], base.encode_prompt('').embeds[0])
    assert not torch.equal(loss(True), loss(False))
    base.delete_adapter('style')

def adapter_of(b):
    from stylekit.lora import new_adapter
    new_adapter(b, 'style', 2)
    return 'style'

def test_folders_as_people_have_them(tmp_path):
    "Odd names, a hidden file, text beside, a broken picture"
    sample_image('owl').save(tmp_path/'Größe 2.PNG')
    sample_image('taxi').save(tmp_path/'b.jpg')
    for name in ('.DS_Store', 'notes.md'): (tmp_path/name).write_text('x')
    (tmp_path/'b.txt').write_text('  a taxi\n in town ')
    assert [e.caption for e in read_folder(tmp_path, 'a {}')] == ['a größe', 'a taxi in town']
    (tmp_path/'c.png').write_bytes(b'\x89PNG broken')
    with pytest.warns(UserWarning, match='c.png is left out'): assert len(read_folder(tmp_path)) == 2
    (tmp_path/'c.png').unlink()
    (tmp_path/'b.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.warns(UserWarning, match='b.jpg is left out.*b.txt'): assert len(read_folder(tmp_path)) == 1

def test_own_styles_are_found_by_name(base, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_lora(folder, 'my-ink', backbone=base, **TINY)
    assert list_styles() == sorted(['my-ink', *built_in_styles()])
    assert load_style('my-ink').trigger_words == 'my ink'
    assert main(['styles']) == 0
    assert 'my-ink' in capsys.readouterr().out

def test_command(models, folder, tmp_path, capsys):
    argv = ['train-lora', str(folder), '--out', str(tmp_path/'s'), '--backbone', str(models('small'))]
    argv += ['--steps', '2', '--rank', '2', '--batch', '2']
    assert main(argv) == 0
    out = capsys.readouterr()
    assert out.out == f'{tmp_path/"s"/"pictures"/"pytorch_lora_weights.safetensors"}\n'
    assert 'loss' in out.err and 'rights.toml' in out.err
    for option, value, why in (('--rank', '0', 'rank'), ('--names', 'x', 'is not one of diffusers, kohya'),
                               ('--template', 'x', 'template'), ('--name', '../x', 'name')):
        assert main([*argv, option, value]) == 2
        err = capsys.readouterr().err
        assert why in err and err.count('\n') == 1
    assert main(['train-lora', str(tmp_path/'nowhere')]) == 2
    assert 'nowhere' in capsys.readouterr().err


# ---- what goes wrong on the way ----

def state_of(b)->tuple:
    "The UNet's modules, all of its weights and its adapters"
    modules = [type(m).__name__ for m in b.unet.modules()]
    weights = digest(*[p.detach().numpy().tobytes() for p in b.unet.parameters()])
    return modules, weights, list(adapters(b))

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
    assert len(t.data.z)
    ts, noise = torch.tensor([999, 999]), torch.randn(2, *t.data.z.shape[2:])
    loss = lora_loss(b, t.data, LoraBatch([0, 1], [0, 0], ts, noise, torch.tensor([False, False])), t.cfg)
    assert torch.isfinite(loss).all()
    b.delete_adapter('style')
    s = train_lora(folder, 'x', backbone=b, out=tmp_path, **TINY)
    assert all_finite(load_file(s.path).values())

@pytest.mark.parametrize('at', [1, 3, 'held out'])
def test_no_step_on_what_is_no_number(base, train, tmp_path, monkeypatch, at):
    "The training ends, the checkpoint before stays and is finite, no LoRA is written, the model is as it was"
    before, calls = state_of(base), []
    loss = LoraTrainer.loss
    def poisoned(self, g):
        calls.append(1)
        return loss(self, g)*(float('nan') if len(calls) == at else 1)
    monkeypatch.setattr(LoraTrainer, 'loss', poisoned)
    if at == 'held out': monkeypatch.setattr(LoraTrainer, 'held_out', lambda self: float('nan'))
    with pytest.raises(StylekitError, match='NaN') as e: train()
    assert '\n' not in str(e.value)
    assert state_of(base) == before
    kept = tmp_path/'x'/'training.pt'
    assert kept.exists() == (at == 3)
    assert not (tmp_path/'x'/LORA_FILE).exists()
    if at == 3: assert all_finite(load_state(kept, 'training')['model'].values())
    monkeypatch.undo()
    assert train().path.exists()      # and it goes on from there

FAILURES = {
    'ctrl-c': KeyboardInterrupt, 'type': TypeError, 'memory': MemoryError,
    'cpu': RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    'gpu': torch.OutOfMemoryError('CUDA out of memory')}

@pytest.mark.parametrize('where', ['first step', 'later', 'encoding', 'saving'])
@pytest.mark.parametrize('error', FAILURES.values(), ids=FAILURES)
def test_whatever_fails_the_model_is_as_it_was(base, train, tmp_path, monkeypatch, where, error):
    before, calls = state_of(base), []
    target = {'encoding': 'encode_views', 'saving': 'save_lora'}.get(where, 'lora_loss')
    real = getattr(finetune, target)
    def failing(*a, **kw):
        calls.append(1)
        if len(calls) == 2 or where != 'later': raise error
        return real(*a, **kw)
    monkeypatch.setattr(finetune, target, failing)
    is_memory = error is MemoryError or isinstance(error, RuntimeError)
    with pytest.raises(StylekitError if is_memory else error) as e: train()
    if is_memory: assert 'ran out of memory: lower `batch`' in str(e.value)
    assert state_of(base) == before
    assert not (tmp_path/'x').exists() or where == 'saving'
    monkeypatch.undo()
    assert train().path.exists()

def test_ctrl_c_before_the_first_check_keeps_a_checkpoint(models, train, tmp_path):
    "The signal comes in the middle of step 1; going on ends in the very same LoRA"
    def go(out, **kw): return train(**dict(backbone=load_backbone(models('small'))) | kw, out=out, steps=6, check=4)
    whole, said = go(tmp_path/'a'), []
    b = load_backbone(models('small'))
    calls = []
    def press(*_):
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), signal.SIGINT)
    hook = b.unet.register_forward_hook(press)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', backbone=b, report=said.append)
    hook.remove()
    assert load_state(tmp_path/'b'/'x'/'training.pt', 'training')['step'] == 2
    assert said[-1].step == 2
    assert not adapters(b)
    assert not (tmp_path/'b'/'x'/'.stylekit.lock').exists()
    again = go(tmp_path/'b')
    assert header(whole) == header(again) and same_weights(whole, again)

def test_a_full_disk(base, train, tmp_path, monkeypatch):
    "No checkpoint costs a warning; no LoRA is one line, and the same call gives it later"
    real = os.fsync
    def full(f): raise OSError(28, 'No space left on device')
    def no_states(f):
        fd = f.fileno() if hasattr(f, 'fileno') else f
        if os.readlink(f'/proc/self/fd/{fd}').endswith('.pt'): full(f)
        real(f)
    monkeypatch.setattr(os, 'fsync', no_states)
    with pytest.warns(UserWarning, match='no training kept.*disk is full'): assert train().path.exists()
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(StylekitError, match='disk is full') as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        train('y')
    assert '\n' not in str(e.value)
    assert not adapters(base)
    assert not list((tmp_path/'y').glob('*'))
    monkeypatch.undo()
    def rust(*a, **kw):
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    monkeypatch.setattr('safetensors.torch.save_file', rust)
    with pytest.raises(StylekitError, match='disk is full'): train('y')
    assert (tmp_path/'y'/'training.pt').exists()
    monkeypatch.undo()
    assert train('y').path.exists()


# ---- what is somebody's stays ----

def test_the_same_training_again_is_done_already(train, tmp_path, monkeypatch):
    "No step, nothing written; what was filled in stays, and so does what lies beside"
    out = tmp_path/'styles'
    def files(): return {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    for name in ('work', 'x/work'): (out/name).mkdir(parents=True)
    for name in ('work/a.pt', 'x/work/training.pt', 'x/config.json', 'x/notes.txt'): (out/name).write_text('mine')
    first = train(out=out)
    (out/'x'/'rights.toml').write_text('licence = "CC-BY-4.0"   # filled in\n')
    kept = files()
    assert {p.name for p in kept} == {'a.pt', 'training.pt', 'config.json', 'notes.txt', LORA_FILE, 'rights.toml'}
    monkeypatch.setattr(LoraTrainer, '__init__', None)      # nobody trains
    with pytest.warns(UserWarning, match='rights.toml stays as it is'): assert train(out=out) == first
    assert files() == kept

def test_a_name_that_is_taken(train, tmp_path):
    train(trigger_words='first')
    kept = (tmp_path/'x'/LORA_FILE).read_bytes()
    for other in (dict(trigger_words='second'), dict(rank=3), dict(seed=1), dict(names='kohya')):
        with pytest.raises(StylekitError, match="'x' is there already.*overwrite"):
            train(**dict(trigger_words='first') | other)
    (tmp_path/'x'/LORA_FILE).write_bytes(kept[:100])     # damaged, but somebody's
    with pytest.raises(StylekitError, match="'x' is there already"): train(trigger_words='first')
    assert train(trigger_words='second', overwrite=True).trigger_words == 'second'
    for name in ('ink', 'Flat', 'INK'):
        with pytest.raises(StylekitError, match='comes with stylekit'): train(name)

def test_two_trainings_of_one_name_at_once(train, tmp_path):
    with folder_lock(tmp_path/'x'), pytest.raises(StylekitError, match='another run'): train()

def test_a_training_while_another_run_draws(models, base, train, tmp_path, random_style):
    before = state_of(base)
    def busy(trainer, step):
        style = str(random_style(load_backbone(models('small'))))
        with pytest.raises(StylekitError, match='another run'):
            stylize(small('owl'), style, 'an owl', backbone=base, steps=1)
        with pytest.raises(StylekitError, match='another run'): train('y')
    train(watch=busy)
    assert state_of(base) == before
    assert not (tmp_path/'y').exists()

def test_few_pictures_are_said(train, folder):
    for p in list(folder.iterdir())[3:]: p.unlink()
    with pytest.warns(UserWarning, match='^3 pictures.*about 8'): train()

def test_reports_say_of_how_many_and_what_is_kept(train):
    said = []
    train(report=said.append)
    assert [(r.step, r.steps, r.ended) for r in said] == [(2, 4, ''), (4, 4, ''), (4, 4, 'finished')]
    assert said[0].eta > 0 and said[0].held_out is not None
    first = r'step 2 of 4: loss [\d.]+, held-out error [\d.]+, the best so far, about \d+ s left'
    last = r'finished after step 4; step [24] is kept, where the held-out error was smallest \([\d.]+\)'
    assert re.fullmatch(first, str(said[0]))
    assert re.fullmatch(last, str(said[-1]))

@pytest.mark.parametrize('bad', [
    dict(minutes=-1), dict(minutes=float('nan')), dict(minutes='x'), dict(batch=0), dict(settings=dict(rank=2)),
    dict(targets='to_q'), dict(targets=[]), dict(dora=1), dict(flip='no'), dict(rank=True), dict(lr='1'),
    dict(seed=-1), dict(seed=2**40), dict(previews=['a.png']), dict(check=0), dict(gamma=float('inf')),
    dict(steps=10**9)], ids=str)
def test_settings_out_of_range(folder, tmp_path, bad):
    with pytest.raises(StylekitError, match=next(iter(bad))) as e: train_lora(folder, 'x', out=tmp_path, **bad)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 300
    assert not (tmp_path/'x').exists()

def test_numbers_of_other_libraries(train):
    import numpy as np
    s = train(rank=np.int64(2), steps=torch.tensor(2), lr=np.float32(.01), minutes=np.float64(9))
    assert json.loads(s.metadata['stylekit.settings'])['rank'] == 2

def test_states_are_read_whole_or_refused(base, folder, tmp_path):
    "A checkpoint cut, appended, flipped, or with other content under a right hash"
    LoraTrainer(base, read_folder(folder), 'ink', LoraSettings(**TINY), tmp_path).run()
    keys = ('step', 'since', 'looked', 'error', 'run_id', 'opt', 'beside', 'model', 'ema', 'weights')
    values = ('int 3', 'int -1', 'float 0.5', 'str x', 'str ', 'dict {}', "dict {'x': 1}", 'NoneType None')
    may_differ = [f'{k}: {v}' for k in keys for v in values] + ['run_id: str '+'x'*20, 'beside: missing']
    for kind, cls in (('training', TrainingState), ('best', EarlyStoppingState)):
        path = tmp_path/f'{kind}.pt'
        sweep_file(path, lambda p: load_state(p, kind, cls), same=load_state(path, kind, cls))
        state, raw = load_state(path, kind), path.read_bytes()
        def read(mutant):
            save_state(path, mutant, kind)
            return load_state(path, kind, cls)
        sweep(read, json_mutants(state, deep=1), may_differ=may_differ)
        path.write_bytes(raw)

def test_a_home_folder_in_python(train, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    s = train(out='~/styles')
    assert s.path == tmp_path/'home'/'styles'/'x'/LORA_FILE
    assert s.path.exists() and not (tmp_path/'~').exists()
    kept = s.path.read_bytes()
    with pytest.raises(StylekitError, match="'x' is there already"): train(out='~/styles', seed=1)
    assert s.path.read_bytes() == kept
    assert [e.caption for e in read_folder('~/../pictures')]
