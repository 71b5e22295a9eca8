"The command line: exit status, one line for bad input, where results go, and what is not imported"
import ast, inspect, io, itertools, json, os, re, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest
import stylekit.backbone, stylekit.evaluate, stylekit.folders   # before anything is put in the place of `load_backbone`
from safetensors import safe_open
from stylekit import StylekitError, __version__, cli, load_backbone, load_image, load_style, read_output, sample, styles
from stylekit.cli import COMMANDS, Kind, common, main, make_parser
from stylekit.lora import built_in_styles
from stylekit.stylizer import Stylizer

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
    monkeypatch.setattr('stylekit.backbone.load_backbone', lambda name=None, device=None, *a, **kw: model if name == folder and not device else load(name, device, *a, **kw))

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

def interrupted_at(monkeypatch, n):
    "Ctrl-C in the n-th step from now"
    step, seen = Stylizer.step, []
    def pressed(run):
        step(run)
        seen.append(1)
        if len(seen) == n: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(Stylizer, 'step', pressed)

def test_interrupt_goes_on_later(loaded, folder, style, photo, tmp_path, capsys, monkeypatch):
    "Ctrl-C: status 130, the picture so far under another name; the same command goes on and ends as an unbroken run; the next image is not begun"
    sample('taxi').resize((64, 64)).save(tmp_path/'taxi.png')
    argv = ['stylize', photo, str(tmp_path/'taxi.png'), '--style', style, '--caption', 'a thing', '--backbone', folder, '--steps', '4', '--seed', '5', '--out']
    o, whole = tmp_path/'o', tmp_path/'whole'
    assert main([*argv, str(whole)]) == 0 and main([*argv, str(o)]) == 0
    capsys.readouterr()
    finished = (o/'photo-random.png').read_bytes()
    with monkeypatch.context() as m:
        interrupted_at(m, 2)
        assert main([*argv, str(o)]) == 130
    cap = capsys.readouterr()
    assert cap.out == '' and cap.err.count('\n') == 1 and 'interrupted after step 2 of 4' in cap.err and '--seed 5' in cap.err
    assert (o/'photo-random.png').read_bytes() == finished
    unfinished = o/'photo-random-2-unfinished.png'
    assert read_output(unfinished)['run']['complete'] is False and not (o/'photo-random-2.png').exists()
    steps = []
    monkeypatch.setattr(Stylizer, 'step', lambda run, step=Stylizer.step: (steps.append(1), step(run)))
    assert main([*argv, str(o)]) == 0 and len(steps) == 2+4
    assert sorted(p.name for p in o.iterdir()) == ['photo-random-2.png', 'photo-random.png', 'taxi-random-2.png', 'taxi-random.png']
    assert load_image(o/'photo-random-2.png').tobytes() == load_image(whole/'photo-random.png').tobytes()

def test_an_interrupted_run_of_other_settings_stays_apart(loaded, folder, style, photo, tmp_path, capsys, monkeypatch):
    argv = ['stylize', photo, '--style', style, '--caption', 'a thing', '--backbone', folder, '--steps', '3', '--out', str(tmp_path/'x.png'), '--seed']
    for seed in '5', '6', '6':
        with monkeypatch.context() as m:
            interrupted_at(m, 1)
            assert main([*argv, seed]) == 130
    kept = {p.name: read_output(p)['run']['seed'] for p in tmp_path.glob('x-unfinished*.png')}
    assert kept == {'x-unfinished.png': 5, 'x-unfinished-2.png': 6} and not (tmp_path/'x.png').exists()
    assert main([*argv, '6']) == 0 and (tmp_path/'x.png').exists() and not (tmp_path/'x-unfinished-2.png').exists() and (tmp_path/'x-unfinished.png').exists()

def test_one_real_process(tmp_path):
    "A refusal ends a process with status 2 and one line"
    for start in ['-m', 'stylekit'], ['-m', 'stylekit.cli'], ['-c', 'from stylekit.__main__ import main; main()']:
        r = python(start, 'stylize', str(tmp_path/'absent.png'), '--caption', 'an owl')
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


# What the help says

def options(name): return [a for a in make_parser(COMMANDS[name], f'stylekit {name}')._actions if a.dest != 'help']

def comment_of(source, line):
    "What stands beside the parameter of a line, or in lines of comment above it"
    beside = source[line-1].partition(' # ')[2].strip()
    above = itertools.takewhile(lambda text: text.strip().startswith('# '), reversed(source[:line-1]))
    return beside or ' '.join(text.strip()[2:] for text in reversed([*above]))

@pytest.mark.parametrize('name', COMMANDS)
def test_a_parameter_is_a_line_and_its_comment_the_help(name, capsys):
    "Each parameter stands on a line of its own; the help shows this line's comment beside this option, then range and default, in 100 columns"
    with pytest.raises(SystemExit) as e: main([name, '--help'])
    shown = capsys.readouterr().out
    assert e.value.code == 0 and max(map(len, shown.splitlines())) <= 100 and not re.search(r"<class|\{str\}|Kind\(|==SUPPRESS==", shown)
    words = ' '.join(shown.split())
    for f in COMMANDS[name], common:
        source = inspect.getsource(f).splitlines()
        args = ast.parse(inspect.getsource(f)).body[0].args
        at = {a.arg: a.lineno for a in [*args.args, *args.kwonlyargs, *([args.vararg] if args.vararg else [])]}
        assert len(set(at.values())) == len(at), f'two parameters of {name} share a line'
        for p in inspect.signature(f).parameters.values():
            comment = comment_of(source, at[p.name])
            assert comment, f'{name}: {p.name} has no comment'
            flag = p.annotation.name if p.kind is p.VAR_POSITIONAL or p.default is p.empty else f'--{p.name.replace("_", "-")}'
            value = '' if p.annotation is bool or flag[0] != '-' else f' {p.annotation.name}'
            assert f'{flag}{value} {comment}' in words, f'{name}: {flag}{value} {comment}'
            assert p.annotation is bool or isinstance(p.annotation, Kind)
            facts = getattr(p.annotation, 'span', '')
            if facts: assert f'{comment} [{facts}' in words
            if p.default not in (None, False, p.empty) and flag[0] == '-': assert re.search(re.escape(comment)+r' \[[^\]]*default ', words)

def test_short_flags_are_one_thing_everywhere():
    for name in COMMANDS:
        for a in options(name):
            for s in a.option_strings:
                if re.fullmatch('-[a-z]', s): assert cli.SHORT[a.dest] == s[1]

def test_the_help_says_what_a_status_means():
    for status in '0', '1', '2', '70', '130', '141': assert re.search(rf'\b{status} ', cli.HELP)
    assert all(f'stylekit {name}' in cli.HELP for name in COMMANDS) and max(map(len, cli.HELP.splitlines())) <= 100

OUT_OF_RANGE = [('train-lora x --minutes -1', '0 to'), ('train-feedforward x --minutes nan', '0 to'), ('train-control-clip x --minutes -.1', '0 to'),
    ('stylize x --workers 0', '1 to'), ('evaluate x --workers 0', '1 to'), ('stylize x --batch 0', '1 to'), ('evaluate x --batch 0', '1 to'), ('train-lora x --batch 0', '1 to'),
    ('bench --rounds 0', '1 to'), ('bench --size 3', '64 to'), ('evaluate x --seeds ,', 'at least one'), ('evaluate x --seeds 1,1', 'twice'), ('evaluate x --seeds 1,-2', '0 to'),
    ('evaluate x --seeds 1,x', 'whole number'), ('evaluate x --styles=', 'at least one'), ('evaluate x --methods ,,', 'at least one'), ('evaluate x --metrics=', 'at least one'),
    ('bench --variants ,', 'at least one'), ('stylize x --template cat', '{}'), ('stylize x --template {}{}', '{}'), ('stylize x --template {x}', '{}'), ('train-lora x --template {0}', '{}'),
    ('train-control-clip x --template {c}', '{s}'), ('train-control-clip x --template {c}{s}{x}', '{c}'), ('train-control-clip x --shots 0', 'at least 1'),
    ('train-control-clip x --loss T3', 'T1+T2'), ('stylize x --alpha 2.5', '0 to 2'), ('stylize x --resolution 15', '16 to'), ('stylize x --preset fsat', 'did you mean fast'),
    ('train-lora x --rank 0', '1 to 512'), ('train-lora x --lr 2', '0 to 1'), ('train-lora x --names peft', 'diffusers'), ('train-feedforward x --space pixels', 'did you mean pixel'),
    ('train-feedforward x --areas -1', '0 to'), ('app --port 0', '1 to'), ('app --port 70000', '65,535'), ('app --silence 0', '1 to'), ('app --max-upload 0', '1,000'),
    ('stylize x --dtype float32', '--dtype'), ('train-lora x --dtype int8', 'bfloat16'), ('stylize x --out=', 'empty'), ('stylize x --style=', 'empty'), ('stylize x --seed 9223372036854775808', '9,223'),
    ('completion fish', 'bash, zsh')]

@pytest.mark.parametrize('line,word', OUT_OF_RANGE, ids=[l for l, _ in OUT_OF_RANGE])
def test_what_is_out_of_range_is_refused_with_the_range(line, word, capsys):
    assert main(line.split()) == 2
    cap = capsys.readouterr()
    assert cap.out == '' and cap.err.count('\n') == 1 and word in cap.err, cap.err

def test_ranges_are_those_of_the_library():
    "What the command line lets through, the settings take at both ends"
    from stylekit.finetune import LoraSettings
    from stylekit.feedforward import FeedForwardSettings
    from stylekit.sms import settings
    ends = lambda f, name: [float(x.replace(',', '')) for x in inspect.signature(f).parameters[name].annotation.span.split(' to ')]
    extra = lambda name: dict(space='pixel') if name == 'adversarial' else {}
    whole = lambda v, name: int(v) if name in ('steps', 'rank', 'batch', 'areas', 'refine') else v
    for f, make, names in (cli.stylize, settings, 'steps lam cutoff guidance_scale'), (cli.train_lora, LoraSettings, 'rank steps batch lr prior'), (cli.train_feedforward, FeedForwardSettings, 'steps batch lr refine adversarial'):
        for name in names.split():
            lo, hi = ends(f, name)
            for v in lo, hi: make(**extra(name) | {name: whole(v, name)})
            for v in lo-1, hi+1:
                with pytest.raises(StylekitError): make(**extra(name) | {name: whole(v, name)})

# What does not apply

@pytest.mark.parametrize('line,word', [
    ('{photo} --generator flat --lam .8', '--lam'), ('{photo} --generator flat --caption owl', '--caption'), ('{photo} --generator flat --style ink', '--style'),
    ('{photo} --generator flat --steps 3', '--steps'), ('{photo} --generator flat --seed 0', '--seed'), ('{photo} --generator flat --gif', '--gif'),
    ('{photo} --generator flat --protect m.png', '--protect'), ('{photo} --generator flat --cutoff 0', '--cutoff'), ('{dir} --generator flat --preset paper', '--preset'),
    ('{photo} --workers 4', '--workers'), ('{photo} --batch 2', '--batch'), ('{photo} --alpha .3', '--alpha'), ('{dir} --caption owl', '--caption'), ('{dir} --gif', '--gif'),
    ('{dir} --protect m.png', '--protect'), ('{dir} --control shipped', '--control'), ('{photo} --caption owl --template {{}}', '--template')])
def test_options_that_do_not_apply_are_refused(line, word, photo, tmp_path, capsys):
    assert main(['stylize', *(a.format(photo=photo, dir=tmp_path) for a in line.split())]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f'{word} does not apply' in err, err

def test_options_of_other_commands_that_do_not_apply(tmp_path, capsys):
    for argv in ['export', 'flat', '--calibrate', str(tmp_path)], ['styles', '--backbone', 'x'], ['train-feedforward', str(tmp_path), '--preset', 'gradient', '--refine', '3']:
        assert main(argv) == 2 and 'does not apply' in capsys.readouterr().err

# Nothing is overwritten unasked

@pytest.fixture
def quick(photo, tmp_path):
    "A call of a network: one pass, with the names of an ordinary run"
    return ['stylize', photo, '--generator', 'ink']

def test_a_second_result_has_another_name(quick, tmp_path, capsys):
    made = []
    for _ in range(3):
        assert main([*quick, '--out', str(tmp_path/'o')]) == 0
        made.append(Path(capsys.readouterr().out.strip()))
    assert [p.name for p in made] == ['photo-ink.png', 'photo-ink-2.png', 'photo-ink-3.png']
    before = made[0].stat().st_mtime_ns
    assert main([*quick, '--out', str(tmp_path/'o'), '--overwrite']) == 0 and capsys.readouterr().out.strip() == str(made[0])
    assert made[0].stat().st_mtime_ns > before and len(list((tmp_path/'o').iterdir())) == 3

def test_a_named_file_is_only_replaced_when_asked(quick, tmp_path, capsys):
    x = tmp_path/'x.png'
    x.write_bytes(b'mine')
    assert main([*quick, '-o', str(x)]) == 2 and '--overwrite' in capsys.readouterr().err and x.read_bytes() == b'mine'
    assert main([*quick, '-o', str(x), '--overwrite']) == 0 and x.read_bytes() != b'mine'
    (tmp_path/'y.gif').write_bytes(b'mine')
    assert main(['stylize', quick[1], '--caption', 'an owl', '--gif', '-o', str(tmp_path/'y.png')]) == 2 and (tmp_path/'y.gif').read_bytes() == b'mine'

@pytest.fixture
def folder_of_two(tmp_path):
    (tmp_path/'in').mkdir()
    for n in 'owl', 'taxi': sample(n).resize((64, 64)).save(tmp_path/'in'/f'{n}.png')
    return tmp_path/'in'

TRAINED = dict(steps='2', batch='2')

def trained(name, *args): return main([name, *map(str, args), *(x for k, v in TRAINED.items() for x in (f'--{k}', v))])

def test_a_trained_style_stays(loaded, folder, folder_of_two, tmp_path, capsys):
    out = tmp_path/'styles'
    argv = ['train-lora', folder_of_two, '--name', 'mine', '--out', out, '--backbone', folder, '--rank', '1']
    assert trained(*argv) == 0
    made = Path(capsys.readouterr().out.strip())
    weights = made.read_bytes()
    rights = made.with_name('rights.toml').read_text().replace('licence = ""', 'licence = "CC0-1.0"')
    made.with_name('rights.toml').write_text(rights)
    assert trained(*argv, '--seed', '1') == 2 and '--overwrite' in capsys.readouterr().err
    assert made.read_bytes() == weights and made.with_name('rights.toml').read_text() == rights
    assert trained(*argv, '--seed', '1', '--overwrite') == 0 and made.read_bytes() != weights

@pytest.mark.parametrize('name', ['ink', 'flat', 'Ink'])
def test_what_comes_with_stylekit_is_not_shadowed(name, folder_of_two, tmp_path, capsys):
    assert trained('train-lora', folder_of_two, '--name', name, '--out', tmp_path/'styles', '--overwrite') == 2
    assert 'comes with stylekit' in capsys.readouterr().err and not (tmp_path/'styles').exists()

def test_trained_networks_and_exports_stay(loaded, folder, folder_of_two, tmp_path, capsys):
    argv = ['train-feedforward', folder_of_two, '--out', tmp_path/'g', '--backbone', folder, '--preset', 'gradient', '--name', 'net', '--space', 'pixel', '--style']
    style = str(tmp_path/'styles'/'mine')
    assert trained('train-lora', folder_of_two, '--name', 'mine', '--out', tmp_path/'styles', '--backbone', folder, '--rank', '1') == 0
    assert trained(*argv, style) == 0
    file = tmp_path/'g'/'net'/'generator.safetensors'
    before = file.read_bytes()
    assert trained(*argv, style, '--seed', '1') == 2 and file.read_bytes() == before
    assert '--overwrite' in capsys.readouterr().err
    (tmp_path/'x.onnx').write_bytes(b'mine')
    assert main(['export', str(tmp_path/'g'/'net'), '--out', str(tmp_path/'x.onnx')]) == 2 and (tmp_path/'x.onnx').read_bytes() == b'mine'
    for shipped in 'flat', 'ink': assert main(['export', shipped]) == 2 and 'ONNX already' in capsys.readouterr().err.splitlines()[-1]

@pytest.fixture
def grid(tmp_path):
    for s in 'flat', 'ink':
        for n, k in dict(owl='animal', taxi='vehicle').items():
            (tmp_path/'grid'/s/k).mkdir(parents=True)
            sample(n, s).resize((64, 64)).save(tmp_path/'grid'/s/k/f'{n}.png')
    return tmp_path/'grid'

def test_a_control_folder_stays(grid, tmp_path, capsys):
    argv = ['train-control-clip', grid, '--out', tmp_path/'c']
    assert trained(*argv) == 0
    err = capsys.readouterr().err
    assert 'fewer than 8 pictures of flat, ink' in err and 'step 2 of 2' in err
    before = (tmp_path/'c'/'control_clip.safetensors').read_bytes()
    assert trained(*argv, '--seed', '1') == 2 and (tmp_path/'c'/'control_clip.safetensors').read_bytes() == before

def test_the_tables_of_another_evaluation_stay(folder_of_two, tmp_path, capsys):
    argv = ['evaluate', str(folder_of_two), '--methods', 'unchanged', '--metrics', 'ssim_src', '--out', str(tmp_path/'e')]
    assert main(argv) == 0 and 'unchanged' in capsys.readouterr().out
    table = (tmp_path/'e'/'table.csv').read_bytes()
    assert main(argv) == 0   # the same question
    assert main([*argv, '--seeds', '1']) == 2 and '--overwrite' in capsys.readouterr().err and (tmp_path/'e'/'table.csv').read_bytes() == table
    assert main([*argv, '--seeds', '1', '--overwrite', '--json']) == 0
    lines = [json.loads(l) for l in capsys.readouterr().out.splitlines()]
    assert lines and all(l['metric'] == 'ssim_src' and l['value'] == 1 for l in lines)

# The last net

def failing(monkeypatch, e):
    def styles(): raise e
    monkeypatch.setitem(COMMANDS, 'styles', styles)

@pytest.mark.parametrize('e', [KeyError('x'), RuntimeError('two\nlines'), ZeroDivisionError(), RecursionError(), AssertionError('no'), OSError(5, 'Input/output error')], ids=repr)
def test_a_fault_of_ours_is_one_line_and_a_file(e, monkeypatch, capsys):
    failing(monkeypatch, e)
    assert main(['styles']) == 70
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith(f'stylekit: this is a fault of stylekit: {type(e).__name__}: '), err
    trace = Path(re.search(r'the full trace is in (\S+)', err)[1])
    assert 'Traceback' in trace.read_text() and type(e).__name__ in trace.read_text()
    trace.unlink()

def wrapped(kind):
    try:
        try: raise KeyboardInterrupt
        except BaseException: raise kind('could not import module')
    except kind as e: return e

@pytest.mark.parametrize('e,status,word', [(KeyboardInterrupt(), 130, 'interrupted'), (wrapped(RuntimeError), 130, 'interrupted'), (wrapped(StylekitError), 130, 'interrupted'), (MemoryError(), 2, 'memory'), (OSError(28, 'No space left on device'), 2, 'free some space'),
                                           (PermissionError(13, 'Permission denied', 'x'), 2, 'x'), (BrokenPipeError(), 141, '')], ids=['ctrl-c', 'wrapped', 'wrapped by us', 'memory', 'disk', 'rights', 'pipe'])
def test_what_is_no_fault(e, status, word, monkeypatch, capsys):
    failing(monkeypatch, e)
    assert main(['styles']) == status
    err = capsys.readouterr().err
    assert err.count('\n') <= 1 and word in err and 'fault' not in err

def test_a_name_that_is_too_long(photo, capsys):
    for argv in ['info', 'a'*5000], ['stylize', photo, '--generator', 'ink', '--out', 'a'*5000], ['styles', 'a'*300+'.safetensors']:
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and len(err) < 330 and 'fault' not in err, err

def process(*argv, **kw):
    "The command line as a process that says when it has begun"
    env = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    code = 'import os\nfrom stylekit.__main__ import main, _on_interrupt, signal\nsignal.signal(signal.SIGINT, _on_interrupt)\nos.write(2, b"begun\\n")\nmain()'
    p = subprocess.Popen([sys.executable, '-c', code, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **kw)
    assert p.stderr.readline() == b'begun\n'
    return p

@pytest.mark.parametrize('wait', [.01, .03, .06, .1, .2, .5, 1, 2, 3])
def test_ctrl_c_at_any_moment(wait, photo, tmp_path):
    "While libraries are imported, while weights are read, in the run: status 130, no trace, nothing that looks finished"
    p = process('stylize', photo, '--caption', 'an owl', '--steps', '2000', '--out', str(tmp_path/'o'))
    time.sleep(wait)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and out == b'' and b'Traceback' not in err and b'rror' not in err and err.count(b'\n') <= 1, (p.returncode, err)
    assert not list(tmp_path.glob('o/photo-ink.png'))

@pytest.mark.parametrize('argv', [['styles'], ['styles', '--json'], ['info', 'ink', 'flat'], ['completion', 'zsh'], ['--help'], ['stylize', '--help'], ['--version']], ids=' '.join)
def test_a_closed_pipe_is_quiet(argv):
    p = process(*argv)
    p.stdout.close()
    p.wait(60)
    assert p.returncode in ((0, 141) if 'stylize' in argv else (141,)) and p.stderr.read() == b''   # argparse writes the help of a command, and may not see that it could not

def test_folders_that_bench_cannot_write(tmp_path, capsys, monkeypatch):
    (tmp_path/'file').write_text('x')
    for folder in tmp_path/'file', tmp_path/'file'/'below':
        assert main(['bench', '--shape', 'tiny', '--folder', str(folder)]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and 'part of the path is a file' in err, err
    def no(*a, **kw): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'mkdir', no)
    assert main(['bench', '--shape', 'tiny', '--folder', str(tmp_path/'new')]) == 2 and 'you may not write there' in capsys.readouterr().err

def test_letters_that_the_terminal_does_not_have(photo, tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONIOENCODING='ascii')
    run = lambda *a: subprocess.run([sys.executable, '-m', 'stylekit', *a], capture_output=True, env=env, cwd=tmp_path)
    r = run('stylize', '--help')
    assert r.returncode == 0 and b'?: how strictly' in r.stdout
    r = run('stylize', 'größe.png', '--caption', 'x')
    assert r.returncode == 2 and b'gr??e.png' in r.stderr and b'Traceback' not in r.stderr
    r = run('stylize', photo, '--generator', 'ink', '--out', 'größe.png')
    assert r.returncode == 0 and r.stdout == b'gr??e.png\n' and (tmp_path/'größe.png').exists()

@pytest.mark.skipif(os.name == 'nt', reason='arguments are text there')
def test_an_argument_that_is_not_text_is_named(tmp_path):
    for argv in ['stylize', b'caf\xe9.png'], ['styles', b'\xff'], [b'\xfe']:
        r = subprocess.run([sys.executable, '-m', 'stylekit', *argv], capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)), cwd=tmp_path)
        assert r.returncode == 2 and r.stderr.count(b'\n') == 1 and b'is not UTF-8' in r.stderr, r.stderr

def test_warnings_are_one_line_once(monkeypatch, capsys):
    core = str(Path(stylekit.__file__).parent/'core.py')
    def styles():
        for _ in range(3): warnings.warn_explicit('the mask\nis odd', UserWarning, core, 1, module='stylekit.core')
        warnings.warn_explicit('use the new name', FutureWarning, '/x/diffusers/utils.py', 1)
        warnings.warn_explicit('a library of others', UserWarning, '/x/transformers/y.py', 1)
    monkeypatch.setitem(COMMANDS, 'styles', styles)
    assert main(['styles']) == 0 and capsys.readouterr().err == 'stylekit: the mask is odd\n'
    assert main(['styles', '--quiet']) == 0 and capsys.readouterr().err == ''

# Results for programs

def test_json_is_all_there_is_on_stdout(loaded, folder, style, photo, tmp_path, capsys):
    assert main(['stylize', photo, '--style', style, '--backbone', folder, '--caption', 'an owl', '--steps', '1', '--seed', '4', '--out', str(tmp_path/'o'), '--gif', '--json']) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert one['file'] == str(tmp_path/'o'/'photo-random.png') and one['complete'] is True and one['seed'] == 4 and two['file'].endswith('.gif')
    assert main(['styles', '--json']) == 0
    assert [json.loads(l)['name'] for l in capsys.readouterr().out.splitlines()] == styles()
    assert main(['info', one['file'], '--json']) == 0
    assert json.loads(capsys.readouterr().out)['run']['seed'] == 4

def test_a_folder_with_failures(folder_of_two, tmp_path, capsys):
    "Status 1 with a count; every picture is a line; --quiet says nothing but that"
    (folder_of_two/'torn.png').write_bytes(b'')
    argv = ['stylize', str(folder_of_two), '--generator', 'ink', '--out', str(tmp_path/'o')]
    assert main([*argv, '--json']) == 1
    cap = capsys.readouterr()
    lines = {r['picture']: r for r in map(json.loads, cap.out.splitlines())}
    assert {n: bool(r['error']) for n, r in lines.items()} == {'owl.png': False, 'taxi.png': False, 'torn.png': True} and 'torn.png: ' in cap.err
    assert main([*argv, '--quiet']) == 1
    cap = capsys.readouterr()
    assert cap.err == '' and '1 failed' in cap.out and cap.out.count('\n') == 1
    (folder_of_two/'torn.png').unlink()
    assert main([*argv, '--quiet']) == 0

# What is worked at, and with

@pytest.mark.parametrize('size,fits', [((64, 64), True), ((128, 128), True), ((32, 64), False), ((64, 32), False), ((65, 67), False)])
def test_a_mask_has_the_shape_of_the_picture(size, fits, loaded, folder, style, photo, tmp_path, capsys):
    sample('owl').resize(size).convert('L').save(tmp_path/'mask.png')
    status = main(['stylize', photo, '--style', style, '--backbone', folder, '--caption', 'an owl', '--steps', '1', '--out', str(tmp_path/'o'), '--protect', str(tmp_path/'mask.png')])
    assert status == (0 if fits else 2) and ('mask.png' in capsys.readouterr().err) != fits

def test_what_is_protected_stays(photo, tmp_path, capsys):
    from PIL import Image, ImageChops
    Image.new('L', (64, 64), 255).save(tmp_path/'all.png')
    argv = ['stylize', photo, '--caption', 'an owl', '--steps', '3', '--seed', '0', '--preset', 'fast', '--out']
    assert main([*argv, str(tmp_path/'free.png')]) == main([*argv, str(tmp_path/'kept.png'), '--protect', str(tmp_path/'all.png')]) == 0
    off = lambda name: sum(ImageChops.difference(load_image(tmp_path/name), load_image(photo)).convert('L').histogram()[40:])
    assert off('kept.png') < off('free.png')

def test_a_file_name_is_a_caption(loaded, folder, style, tmp_path, capsys):
    argv = lambda p, *a: ['stylize', str(p), '--style', style, '--backbone', folder, '--steps', '1', '--out', str(tmp_path/'o'), '--json', *a]
    sample('owl').resize((64, 64)).save(tmp_path/'small owl_03.png')
    assert main(argv(tmp_path/'small owl_03.png')) == 0 and json.loads(capsys.readouterr().out)['caption'] == 'small owl'
    assert main(argv(tmp_path/'small owl_03.png', '--template', 'a {} here')) == 0 and json.loads(capsys.readouterr().out)['caption'] == 'a small owl here'
    (tmp_path/'small owl_03.txt').write_text('an old owl')
    assert main(argv(tmp_path/'small owl_03.png')) == 0 and json.loads(capsys.readouterr().out)['caption'] == 'an old owl'
    sample('owl').resize((64, 64)).save(tmp_path/'IMG_0123.png')
    assert main(argv(tmp_path/'IMG_0123.png')) == 2 and '--caption' in capsys.readouterr().err

def test_it_says_what_it_works_at(photo, tmp_path, capsys):
    from PIL import Image
    Image.effect_noise((96, 96), 90).convert('RGB').save(tmp_path/'photo of noise.png')
    sample('owl').resize((512, 512)).save(tmp_path/'large.png')
    lines = {}
    for name in 'photo of noise.png', 'large.png', 'photo.png':
        assert main(['stylize', str(tmp_path/name), '--caption', 'x', '--steps', '1', '--out', str(tmp_path/'o')]) == 0
        lines[name] = capsys.readouterr().err
    assert 'like a photograph' in lines['photo of noise.png'] and 'icons' in lines['photo of noise.png']
    assert '512×512 pixels, worked at' in lines['large.png'] and lines['large.png'].count('\n') == 1 and lines['photo.png'] == ''

def test_control_says_what_it_has_learnt(tmp_path, capsys):
    argv = ['stylize', '--steps', '1', '--seed', '0', '--control', 'shipped', '--out', str(tmp_path)]
    assert main(argv) == 0 and '--words keld' in capsys.readouterr().err
    assert main([*argv, '--words', 'keld']) == 0 and capsys.readouterr().err == ''

def test_home_is_expanded_everywhere(photo, tmp_path, monkeypatch, capsys):
    "The shell leaves --out=~/x as it is"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    assert main(['stylize', photo, '--generator', 'ink', '--out=~/x.png']) == 0 and (tmp_path/'home'/'x.png').exists()
    for name, kinds in {n: inspect.signature(f).parameters for n, f in COMMANDS.items()}.items():
        for p in kinds.values():
            if getattr(p.annotation, 'name', '') in ('PATH', 'FILE', 'FOLDER', 'STYLE', 'MODEL', 'STYLE,...'):
                assert str(tmp_path/'home'/'a') in str(p.annotation('~/a')), (name, p.name)
    assert not (tmp_path/'~').exists()

def test_cut_short(loaded, folder, folder_of_two, grid, tmp_path, capsys):
    "--minutes: status 1, one last line, no path that does not exist; the same command goes on to the end"
    lora = ['train-lora', folder_of_two, '--name', 'mine', '--out', tmp_path/'styles', '--backbone', folder, '--rank', '1', '--steps', '40', '--batch', '1']
    ff = ['train-feedforward', folder_of_two, '--style', tmp_path/'styles'/'mine', '--out', tmp_path/'g', '--backbone', folder, '--steps', '40', '--batch', '1']
    control = ['train-control-clip', grid, '--out', tmp_path/'c', '--steps', '40', '--batch', '1']
    for argv in lora, ff, control:
        argv = [*map(str, argv)]
        assert main([*argv, '--minutes', '0.00001']) == 1, argv
        cap = capsys.readouterr()
        assert 'cut short' in cap.err.splitlines()[-1] and 'run again to go on' in cap.err
        assert all(Path(p).exists() for p in cap.out.split())
        for _ in range(20):
            status = main([*argv, '--minutes', '0.5'])
            if status != 1: break
        cap = capsys.readouterr()
        assert status == 0 and Path(cap.out.split()[-1]).exists(), (argv, status, cap.err[-500:])
        assert 'of 40' in cap.err

# Styles, and what files say

def test_styles_say_where_they_come_from(loaded, folder, folder_of_two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert trained('train-lora', folder_of_two, '--name', 'mine', '--backbone', folder, '--rank', '1') == 0
    capsys.readouterr()
    assert main(['styles', '--json']) == 0
    mine = {r['name']: r for r in map(json.loads, capsys.readouterr().out.splitlines())}['mine']
    assert Path(mine['path']).exists() and mine['pictures'] == '2' and mine['steps'] == '2' and mine['base']
    (tmp_path/'styles'/'torn').mkdir()
    (tmp_path/'styles'/'torn'/'pytorch_lora_weights.safetensors').write_bytes(b'\0')
    assert main(['styles']) == 1
    cap = capsys.readouterr()
    assert 'torn: ' in cap.err and cap.err.count('\n') == 1 and {*built_in_styles(), 'mine'} == {l.split()[0] for l in cap.out.splitlines()}

def test_info(style, photo, tmp_path, capsys):
    from PIL import Image, PngImagePlugin
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text('parameters', 'an owl\nNegative prompt: blurry\nSteps: 20, Seed: 7, Size: 64x64')
    Image.new('RGB', (64, 64)).save(tmp_path/'a1.png', pnginfo=chunk)
    assert main(['stylize', photo, '--generator', 'ink', '--out', str(tmp_path/'made.png')]) == 0
    capsys.readouterr()
    def info(*names):
        assert main(['info', *map(str, names), '--json']) == 0
        return [json.loads(l) for l in capsys.readouterr().out.splitlines()]
    a1, made, lora, ink, control = info(tmp_path/'a1.png', tmp_path/'made.png', style, 'ink', Path(stylekit.__file__).parent/'assets'/'control')
    assert a1['parameters'] == dict(prompt='an owl', negative_prompt='blurry', settings=dict(Steps='20', Seed='7', Size='64x64'))
    assert made['run']['method'] == 'feed-forward' and lora['kind'] == 'LoRA' and lora['about']['words'] == 'black ink drawing'
    with safe_open(load_style('ink').path, 'pt') as f: written = f.metadata()
    assert ink['kind'] == 'LoRA' and ink['about']['images'] == written['stylekit.images'] and control['kind'] == 'Control-CLIP'
    assert main(['info', str(tmp_path/'made.png'), style]) == 0 and 'feed-forward' in capsys.readouterr().out
    for name, raw in {'x.safetensors': b'\xff'*20, 'y.safetensors': b'\x02\0\0\0\0\0\0\0[]', 'z.json': b'[', 'n.json': b'7', 'p.png': b'x', 'e.safetensors': b''}.items():
        (tmp_path/name).write_bytes(raw)
        assert main(['info', str(tmp_path/name)]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and name in err, err
    assert main(['info']) == 2 and main(['info', str(tmp_path)]) == 2 and main(['info', 'absent.png']) == 2

def test_a_result_is_its_own_recipe(tmp_path):
    from stylekit import replay, stylize
    made = stylize(sample('owl'), 'flat', 'an owl', steps=2, seed=1)
    path = made.save(tmp_path/'a.webp')
    assert replay(path, sample('owl')).image.tobytes() == made.image.tobytes()
    for image, word in (None, 'image='), (sample('taxi'), 'another picture'):
        with pytest.raises(StylekitError, match=word): replay(str(path), image)

@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion(shell, capsys):
    assert main(['completion', shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        line = next(l for l in script.splitlines() if l.strip().startswith(f'{name})'))
        assert all(f for a in options(name) for f in a.option_strings if f.startswith('--') and '_' not in f and f in line)
    if shell == 'zsh': return
    ask = lambda *words: subprocess.run(['bash', '-c', f'{script}\nCOMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words)-1}; _stylekit; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True).stdout.split()
    assert ask('stylekit', 'train-l') == ['train-lora'] and ask('stylekit', 'stylize', '--guid') == ['--guidance-scale'] and '--seed' in ask('stylekit', 'train-lora', '--se')

def test_what_was_perhaps_meant(capsys):
    for argv, meant in (['stylise'], 'stylize'), (['train_lora'], 'train-lora'), (['stylize', 'x', '--stpes', '3'], '--steps'), (['stylize', 'x', '--lamda=3'], '--lam'), (['evalute'], 'evaluate'):
        assert main(argv) == 2 and f'did you mean {meant}?' in capsys.readouterr().err

# Notebook and Python

def test_the_index_installs_first():
    "Colab's button opens a notebook that begins with what it needs, which tests do not run; the README does not show it"
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    code = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']
    assert '%pip install' in code[0] and '#| eval: false' in code[0] and '#| hide' in code[0]
    assert re.search(r'"stylekit @ git\+https://github\.com/stylekit/stylekit"', code[0]) and 'pip install -q' not in (ROOT/'README.md').read_text(encoding='utf-8')

def test_the_index_runs_in_order(tmp_path):
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    code = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']
    (tmp_path/'nbs').mkdir()
    text = '\n'.join(s for s in code if not re.search(r'^#\| *(eval: false|slow)', s, re.M))
    r = subprocess.run([sys.executable, '-c', text], capture_output=True, text=True, cwd=tmp_path/'nbs', env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert r.returncode == 0 and (tmp_path/'out'/'owl-ink.png').exists(), r.stderr[-500:]

def test_comments_reach_help():
    "Each comment on a parameter is in the docstring, and names that share a line of code share its comment"
    import pydoc
    from fastcore.docments import docments
    for name in ('stylize', 'load_backbone', 'load_style', 'train_lora', 'save_output', 'replay', 'Stylizer', 'Settings'):
        doc = getattr(stylekit, name).__doc__
        for p, comment in docments(getattr(stylekit, name)).items():
            if p in ('self', 'return'): continue
            assert re.search(rf'\b{p}\b', doc), (name, p)
            if comment: assert re.search(rf'^    [\w, ]*\b{p}: {re.escape(" ".join(comment.split()))}$', doc, re.M), (name, p)
    assert 'path, PIL image' in pydoc.render_doc(stylekit.stylize, renderer=pydoc.plaintext)
    again = stylekit.stylize.__doc__
    assert again.count('Parameters:') == 1

def test_types_are_shipped():
    assert (ROOT/'stylekit'/'py.typed').exists() and 'stylekit/py.typed' in (ROOT/'MANIFEST.in').read_text()

def test_import_is_light():
    r = python(['-c', 'import time; t = time.perf_counter(); import stylekit; print(time.perf_counter()-t)'])
    assert float(r.stdout) < .5

def test_help_that_is_left_in_the_buffer(monkeypatch):
    "argparse writes a help and does not look; what is left is written at the end, when nobody reads any more"
    class Closed(io.StringIO):
        def flush(self): raise BrokenPipeError
    monkeypatch.setattr(sys, 'stdout', Closed())
    assert main(['stylize', '--help']) == 141
