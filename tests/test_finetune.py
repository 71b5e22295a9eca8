"Training a style: folders as people have them, and what stops, resumes and is refused"
import json
import pytest, torch
from safetensors.torch import load_file
from stylekit import StylekitError, load_backbone, load_style, sample, samples, stylize, styles, train_lora
from stylekit.cli import main
from stylekit.finetune import Example, LoraSettings, LoraTrainer, encode_views, lora_loss, read_folder
from stylekit.lora import LORA_FILE, add_style

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

def test_minutes_stop_and_the_same_call_goes_on(models, folder, tmp_path):
    b = load_backbone(models('sd15'))
    go = lambda out, **kw: train_lora(folder, 'x', backbone=b, out=out, **TINY, **kw)
    whole = go(tmp_path/'a')
    with pytest.warns(UserWarning, match='cut short at step 1 of 4: run again to go on'): go(tmp_path/'b', minutes=1e-9)
    assert (tmp_path/'b'/'x'/'training.pt').exists()
    again = go(tmp_path/'b')
    a, b = load_file(whole.path), load_file(again.path)     # not the bytes: safetensors orders its header by chance
    assert all(torch.equal(a[k], b[k]) for k in a) and whole.metadata == again.metadata and sorted(p.name for p in (tmp_path/'b'/'x').iterdir()) == [LORA_FILE, 'rights.toml']

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
    with pytest.raises(StylekitError, match='c.png'): read_folder(tmp_path)
    (tmp_path/'c.png').unlink(); (tmp_path/'b.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(StylekitError, match='b.txt'): read_folder(tmp_path)

def test_own_styles_are_found_by_name(models, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    b = load_backbone(models('sd15'))
    train_lora(folder, 'my-ink', backbone=b, **TINY)
    assert styles() == ['flat', 'ink', 'my-ink'] and load_style('my-ink').words == 'my ink'
    assert main(['styles']) == 0 and 'my-ink' in capsys.readouterr().out

def test_command(models, folder, tmp_path, capsys):
    argv = ['train-lora', str(folder), '--out', str(tmp_path/'s'), '--backbone', str(models('sd15')), '--steps', '2', '--rank', '2', '--batch', '2']
    assert main(argv) == 0
    out = capsys.readouterr()
    assert out.out == f'{tmp_path/"s"/"pictures"/"pytorch_lora_weights.safetensors"}\n' and 'loss' in out.err and 'rights.toml' in out.err
    for bad, why in ((['--rank', '0'], 'rank'), (['--names', 'x'], 'choose'), (['--template', 'x'], 'template'), (['--name', '../x'], 'name')):
        assert main([*argv, *bad]) == 2
        err = capsys.readouterr().err
        assert why in err and err.count('\n') == 1
    assert main(['train-lora', str(tmp_path/'nowhere')]) == 2 and 'nowhere' in capsys.readouterr().err
