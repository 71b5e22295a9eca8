"The command line: exit status, one line for bad input, where results go, and what is not imported"
import json, os, subprocess, sys
from pathlib import Path
import pytest
import stylekit.backbone
from stylekit import __version__, load_backbone, read_output, sample, styles
from stylekit.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def folder(models): return str(models('sd15'))

@pytest.fixture(scope='module')
def model(folder): return load_backbone(folder)

@pytest.fixture(scope='module')
def style(model, random_style): return str(random_style(model))

@pytest.fixture
def loaded(folder, model, monkeypatch):
    "Loading is tested elsewhere: here the folder's model is there at once"
    load = stylekit.backbone.load_backbone
    monkeypatch.setattr('stylekit.backbone.load_backbone', lambda name=None, device=None, **kw: model if name == folder and not device else load(name, device, **kw))

@pytest.fixture
def photo(tmp_path):
    sample('owl').resize((64, 64)).save(tmp_path/'photo.png')
    return str(tmp_path/'photo.png')

def python(code, *args):
    env = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, *code, *args], capture_output=True, text=True, env=env, cwd='/')

def test_stylize_writes_and_names_its_file(folder, style, photo, tmp_path, capsys):
    out = tmp_path/'made'/'x.png'
    assert main(['stylize', photo, '--style', style, '--caption', 'an owl', '--backbone', folder, '--steps', '2', '--seed', '7', '--out', str(out), '--gif']) == 0
    assert capsys.readouterr().out.split('\n') == [str(out), str(out.with_suffix('.gif')), '']
    found = read_output(out)
    assert found['size'] == (64, 64) and found['run']['seed'] == 7 and found['run']['settings']['steps'] == 2 and str(tmp_path) not in json.dumps(found)

def test_several_images_go_to_a_folder(loaded, folder, style, photo, tmp_path, capsys):
    sample('taxi').resize((64, 40)).save(tmp_path/'taxi.png')
    assert main(['stylize', photo, str(tmp_path/'taxi.png'), '--style', style, '--caption', 'a thing', '--backbone', folder, '--steps', '1', '--out', str(tmp_path/'o')]) == 0
    lines = capsys.readouterr().out.split()
    assert lines == [str(tmp_path/'o'/f'{n}-random.png') for n in ('photo', 'taxi')] and all(Path(l).exists() for l in lines)

def test_quiet_commands(capsys):
    assert main(['--version']) == 0 and capsys.readouterr().out == f'stylekit {__version__}\n'
    for argv in ([], ['--help'], ['-h']):
        assert main(argv) == 0
        assert 'stylekit stylize' in (cap := capsys.readouterr()).out and cap.err == ''
    assert main(['styles']) == 0
    assert [l.split()[0] for l in capsys.readouterr().out.splitlines()] == styles()
    with pytest.raises(SystemExit) as e: main(['stylize', '--help'])
    assert e.value.code == 0 and '--caption' in capsys.readouterr().out

def test_a_lora_file_is_looked_into(loaded, folder, style, capsys):
    assert main(['styles', style, '--backbone', folder]) == 0
    words, report = capsys.readouterr().out.splitlines()
    assert words.split(maxsplit=1) == ['random', 'black ink drawing'] and 'of' in report and 'layers (diffusers LoRA, rank 4)' in report and 'mid_block' in report
    assert main(['styles', style]) == 2 and 'does not fit' in capsys.readouterr().err

def test_a_mix_of_styles(loaded, folder, style, photo, tmp_path, capsys):
    assert main(['stylize', photo, '--style', f'{style}:0.5+{style}:0.5', '--caption', 'an owl', '--backbone', folder, '--steps', '1', '--seed', '0', '--out', str(tmp_path)]) == 0
    mixed = tmp_path/'photo-random+random.png'
    assert capsys.readouterr().out == f'{mixed}\n' and read_output(mixed)['run']['style'] == 'random+random'
    assert main(['stylize', photo, '--style', f'{style}:0.5+oil:0.5', '--caption', 'an owl', '--out', str(tmp_path)]) == 2 and 'oil' in capsys.readouterr().err

GOOD = ['{photo}', '--style', '{style}', '--caption', 'an owl', '--backbone', '{folder}', '--steps', '1', '--out', '{out}']
BAD = [(['frobnicate'], 'frobnicate'), (['stylise'], 'stylise'), (['--versoin'], '--versoin'), (['styles', 'extra'], 'extra')] + [(['stylize', *(x for x in a[:1] if x[0] == '{'), *GOOD, *(a[1:] if a[0][0] == '{' else a)], word) for a, word in [
    (['--steps', '0'], 'steps'), (['--steps', 'many'], 'steps'), (['--steps', '1.5'], 'steps'), (['--steps'], 'steps'), (['--lam', '-1'], 'lam'), (['--lam', 'nan'], 'lam'), (['--cutoff', '1.5'], 'cutoff'),
    (['--guidance_scale', '-1'], 'guidance_scale'), (['--seed', '-1'], 'seed'), (['--seed', 'x'], 'seed'), (['--preset', 'best'], 'best'), (['--caption', ''], 'caption'), (['--caption', '  '], 'caption'),
    (['--style', 'nosuch'], 'nosuch'), (['--style', '../x'], '../x'), (['--style', '{photo}'], 'photo.png'), (['--backbone', '{dir}'], 'model_index.json'), (['--backbone', '{photo}'], 'photo.png'),
    (['--device', 'abacus'], 'abacus'), (['--nosuch', '1'], 'nosuch'), (['{dir}/absent.png'], 'absent.png'), (['{dir}'], 'folder'), (['{page}'], 'HTML'),
    (['{photo}'], 'share a name'), (['{second}', '--out', '{dir}/one.png'], 'one.png'), (['--out', '{dir}/x.bmp'], 'x.bmp'), (['--out', '{dir}/x.txt'], 'x.txt'), (['--out', '{photo}'], 'photo.png'),
    (['--out', '{photo}/x.png'], 'photo.png'), (['--out', ''], 'out')]]

@pytest.mark.parametrize('argv,word', BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_input_is_one_line_and_status_2(argv, word, loaded, folder, style, photo, tmp_path, capsys, monkeypatch):
    from stylekit.stylizer import Stylizer
    monkeypatch.setattr(Stylizer, 'step', lambda run: pytest.fail('work was done before the refusal'))
    (tmp_path/'page.png').write_text('<html>'), sample('taxi').resize((64, 64)).save(tmp_path/'second.png')
    names = dict(photo=photo, style=style, folder=folder, out=tmp_path/'out', dir=tmp_path, page=tmp_path/'page.png', second=tmp_path/'second.png')
    before, kept = sorted(tmp_path.rglob('*')), Path(photo).read_bytes()
    assert main([a.format(**names) for a in argv]) == 2
    cap = capsys.readouterr()
    assert cap.err.count('\n') == 1 and cap.err.startswith('stylekit: ') and word in cap.err and 'Traceback' not in cap.err, cap.err
    assert cap.out == '' and sorted(tmp_path.rglob('*')) == before and Path(photo).read_bytes() == kept

def test_interrupt_in_one_of_several(loaded, folder, style, photo, tmp_path, capsys, monkeypatch):
    "Ctrl-C keeps the result so far, says so, and does not go on to the next image"
    import signal
    from stylekit.stylizer import Stylizer
    step = Stylizer.step
    monkeypatch.setattr(Stylizer, 'step', lambda run: (step(run), os.kill(os.getpid(), signal.SIGINT)))
    sample('taxi').resize((64, 64)).save(tmp_path/'taxi.png')
    main(['stylize', photo, str(tmp_path/'taxi.png'), '--style', style, '--caption', 'a thing', '--backbone', folder, '--steps', '3', '--out', str(tmp_path/'o')])
    cap = capsys.readouterr()
    assert cap.out.split() == [str(tmp_path/'o'/'photo-random.png')] and 'interrupted after step 1' in cap.err
    assert read_output(tmp_path/'o'/'photo-random.png')['run']['complete'] is False

def test_one_real_process(tmp_path):
    "A refusal ends a process with status 2 and one line"
    r = python(['-m', 'stylekit.cli'], 'stylize', str(tmp_path/'absent.png'), '--caption', 'an owl')
    if r.returncode == 0 and not r.stdout and not r.stderr:     # no `__main__` part: through the entry point's function
        r = python(['-c', 'import sys; from stylekit.cli import main; sys.exit(main())'], 'stylize', str(tmp_path/'absent.png'), '--caption', 'an owl')
    assert r.returncode == 2 and r.stdout == '' and r.stderr.count('\n') == 1 and 'absent.png' in r.stderr, (r.returncode, r.stderr)

HEAVY = ('torch', 'diffusers', 'transformers', 'peft', 'matplotlib', 'ipywidgets', 'scipy')

def test_light_start():
    "`import stylekit`, `--help` and `--version` do not wait for torch"
    code = f'''import sys, stylekit
from stylekit.cli import main
assert dir(stylekit) and stylekit.__version__
import stylekit.core
assert main(["--help"]) == 0 and main(["--version"]) == 0 and main(["nosuch"]) == 2
print([m for m in {HEAVY} if m in sys.modules])'''
    r = python(['-c', code])
    assert r.returncode == 0 and r.stdout.splitlines()[-1] == '[]', (r.stdout, r.stderr)

def test_public_names():
    import stylekit
    for name in ('stylize', 'load_backbone', 'load_style', 'Stylizer', 'Settings', 'StylizeResult'): assert getattr(stylekit, name).__module__.startswith('stylekit.')
    with pytest.raises(AttributeError, match='nosuch'): stylekit.nosuch
