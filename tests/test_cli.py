"The command line: exit status, one line for bad input, where results go, and what is not imported"
import ast, inspect, io, itertools, json, os, re, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest
# before anything is put in the place of `load_backbone`
import stylekit.backbone, stylekit.measure.evaluate, stylekit.folders
from safetensors import safe_open
from stylekit import StylekitError, __version__, cli, list_styles, load_backbone, load_image, load_style
from stylekit import read_output, sample_image
from stylekit.cli import COMMANDS, Kind, common, main, make_parser
from stylekit.lora import built_in_styles
from stylekit.stylizer import Stylizer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def folder(models): return str(models('small'))

@pytest.fixture(scope='module')
def model(folder): return load_backbone(folder)

@pytest.fixture(scope='module')
def style(model, random_style): return str(random_style(model))

@pytest.fixture
def loaded(folder, model, monkeypatch):
    "Loading is tested elsewhere: here the folder's model is there at once"
    load = stylekit.backbone.load_backbone
    def load_backbone(name=None, device=None, *a, **kw):
        return model if name == folder and not device else load(name, device, *a, **kw)
    monkeypatch.setattr('stylekit.backbone.load_backbone', load_backbone)

@pytest.fixture
def with_style(folder, style):
    "The options that name the small model and its style"
    return ['--style', style, '--backbone', folder]

def small(name): return sample_image(name).resize((64, 64))

@pytest.fixture
def photo(tmp_path):
    small('owl').save(tmp_path/'photo.png')
    return str(tmp_path/'photo.png')

@pytest.fixture
def command(capsys):
    "A command ends with this status; what it wrote since the last one"
    def go(*argv, status=0):
        assert main([*map(str, argv)]) == status
        return capsys.readouterr()
    return go

def is_one_line(err, *words):
    assert err.count('\n') == 1, err
    for word in words: assert word in err, err

def environment(**kw):
    return dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', **kw)

def python(code, *args):
    return subprocess.run([sys.executable, *code, *args], capture_output=True, text=True, env=environment(), cwd='/')

def test_stylize_writes_and_names_its_file(with_style, photo, tmp_path, command):
    out = tmp_path/'made'/'x.png'
    argv = ['stylize', photo, *with_style, '--caption', 'an owl', '--steps', '2', '--seed', '7', '--out', out, '--gif']
    assert command(*argv).out.split('\n') == [str(out), str(out.with_suffix('.gif')), '']
    found = read_output(out)
    assert found.size == (64, 64)
    assert found.run['seed'] == 7 and found.run['settings']['steps'] == 2
    assert str(tmp_path) not in json.dumps(found.to_json())

def test_several_images_go_to_a_folder(loaded, with_style, photo, tmp_path, command):
    sample_image('taxi').resize((64, 40)).save(tmp_path/'taxi.png')
    argv = ['stylize', photo, tmp_path/'taxi.png', *with_style, '--caption', 'a thing', '--steps', '1']
    lines = command(*argv, '--out', tmp_path/'o').out.split()
    assert lines == [str(tmp_path/'o'/f'{n}-random.png') for n in ('photo', 'taxi')]
    assert all(Path(l).exists() for l in lines)

def test_quiet_commands(command, capsys):
    assert command('--version').out == f'stylekit {__version__}\n'
    for argv in ([], ['--help'], ['-h']):
        cap = command(*argv)
        assert 'stylekit stylize' in cap.out and cap.err == ''
    assert [l.split()[0] for l in command('styles').out.splitlines()] == list_styles()
    with pytest.raises(SystemExit) as e: main(['stylize', '--help'])
    assert e.value.code == 0
    assert '--caption' in capsys.readouterr().out

def test_a_lora_file_is_looked_into(loaded, folder, style, command):
    words, report = command('styles', style, '--backbone', folder).out.splitlines()
    assert words.split(maxsplit=1) == ['random', 'black ink drawing']
    for word in ('of', 'layers (diffusers LoRA, rank 4)', 'mid_block'): assert word in report
    assert 'does not fit' in command('styles', style, status=2).err

def test_a_mix_of_styles(loaded, folder, style, photo, tmp_path, command):
    argv = ['stylize', photo, '--caption', 'an owl', '--out', tmp_path, '--style']
    mixed = tmp_path/'photo-random+random.png'
    both = [f'{style}:0.5+{style}:0.5', '--backbone', folder, '--steps', '1', '--seed', '0']
    assert command(*argv, *both).out == f'{mixed}\n'
    assert read_output(mixed).run['style'] == 'random+random'
    assert 'oil' in command(*argv, f'{style}:0.5+oil:0.5', status=2).err

GOOD = ['{photo}', '--style', '{style}', '--caption', 'an owl', '--backbone', '{folder}', '--steps', '1',
        '--out', '{out}']
BAD = [(['frobnicate'], 'frobnicate'), (['stylise'], 'stylise'), (['--versoin'], '--versoin'),
       (['styles', 'extra'], 'extra')]
BAD_MORE = [
    (['--steps', '0'], 'steps'), (['--steps', 'many'], 'steps'), (['--steps', '1.5'], 'steps'), (['--steps'], 'steps'),
    (['--lam', '-1'], 'lam'), (['--lam', 'nan'], 'lam'), (['--cutoff', '1.5'], 'cutoff'),
    (['--guidance_scale', '-1'], 'guidance_scale'), (['--seed', '-1'], 'seed'), (['--seed', 'x'], 'seed'),
    (['--preset', 'best'], 'best'), (['--caption', ''], 'caption'), (['--caption', '  '], 'caption'),
    (['--style', 'nosuch'], 'nosuch'), (['--style', '../x'], '../x'), (['--style', '{photo}'], 'photo.png'),
    (['--backbone', '{dir}'], 'model_index.json'), (['--backbone', '{photo}'], 'photo.png'),
    (['--device', 'abacus'], 'abacus'), (['--nosuch', '1'], 'nosuch'),
    (['{dir}/absent.png'], 'absent.png'), (['{dir}'], 'folder'), (['{page}'], 'HTML'), (['{photo}'], 'share a name'),
    (['{second}', '--out', '{dir}/one.png'], 'one.png'),
    (['--out', '{dir}/x.bmp'], 'x.bmp'), (['--out', '{dir}/x.txt'], 'x.txt'), (['--out', '{photo}'], 'photo.png'),
    (['--out', '{photo}/x.png'], 'photo.png'), (['--out', ''], 'out')]

def added(more):
    "A good call and more: another picture in front, options behind, where the last of a name counts"
    pictures = more[:1] if more[0][0] == '{' else []
    return ['stylize', *pictures, *GOOD, *more[len(pictures):]]

BAD += [(added(more), word) for more, word in BAD_MORE]

@pytest.mark.parametrize('argv,word', BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_input_is_one_line_and_status_2(argv, word, loaded, folder, style, photo, tmp_path, command, monkeypatch):
    monkeypatch.setattr(Stylizer, 'step', lambda run: pytest.fail('work was done before the refusal'))
    names = dict(photo=photo, style=style, folder=folder, out=tmp_path/'out', dir=tmp_path,
                 page=tmp_path/'page.png', second=tmp_path/'second.png')
    names['page'].write_text('<html>')
    small('taxi').save(names['second'])
    before, kept = sorted(tmp_path.rglob('*')), Path(photo).read_bytes()
    cap = command(*[a.format(**names) for a in argv], status=2)
    is_one_line(cap.err, word)
    assert cap.err.startswith('stylekit: ') and 'Traceback' not in cap.err, cap.err
    assert cap.out == ''
    assert sorted(tmp_path.rglob('*')) == before and Path(photo).read_bytes() == kept

def interrupted_at(monkeypatch, n):
    "Ctrl-C in the n-th step from now"
    step, seen = Stylizer.step, []
    def pressed(run):
        step(run)
        seen.append(1)
        if len(seen) == n: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(Stylizer, 'step', pressed)

def test_interrupt_goes_on_later(loaded, with_style, photo, tmp_path, command, monkeypatch):
    """Ctrl-C: status 130, the picture so far under another name, the next image is not begun;
    the same command goes on and ends as an unbroken run"""
    small('taxi').save(tmp_path/'taxi.png')
    argv = ['stylize', photo, tmp_path/'taxi.png', *with_style, '--caption', 'a thing', '--steps', '4', '--seed', '5']
    o, whole = tmp_path/'o', tmp_path/'whole'
    for out in (whole, o): command(*argv, '--out', out)
    finished = (o/'photo-random.png').read_bytes()
    with monkeypatch.context() as m:
        interrupted_at(m, 2)
        cap = command(*argv, '--out', o, status=130)
    assert cap.out == ''
    is_one_line(cap.err, 'interrupted after step 2 of 4', '--seed 5')
    assert (o/'photo-random.png').read_bytes() == finished
    unfinished = o/'photo-random-2-unfinished.png'
    assert read_output(unfinished).run['complete'] is False
    assert not (o/'photo-random-2.png').exists()
    steps, step = [], Stylizer.step
    def counted(run):
        steps.append(1)
        step(run)
    monkeypatch.setattr(Stylizer, 'step', counted)
    command(*argv, '--out', o)
    assert len(steps) == 2+4
    assert {p.name for p in o.iterdir()} == {f'{name}-random{n}.png' for name in ('photo', 'taxi') for n in ('', '-2')}
    assert load_image(o/'photo-random-2.png').tobytes() == load_image(whole/'photo-random.png').tobytes()

def test_an_interrupted_run_of_other_settings_stays_apart(loaded, with_style, photo, tmp_path, command, monkeypatch):
    x, one, two = (tmp_path/name for name in ('x.png', 'x-unfinished.png', 'x-unfinished-2.png'))
    argv = ['stylize', photo, *with_style, '--caption', 'a thing', '--steps', '3', '--out', x, '--seed']
    for seed in '5', '6', '6':
        with monkeypatch.context() as m:
            interrupted_at(m, 1)
            command(*argv, seed, status=130)
    assert {p: read_output(p).run['seed'] for p in tmp_path.glob('x-unfinished*.png')} == {one: 5, two: 6}
    assert not x.exists()
    command(*argv, '6')
    assert x.exists() and one.exists() and not two.exists()

def test_one_real_process(tmp_path):
    "A refusal ends a process with status 2 and one line"
    for start in ['-m', 'stylekit'], ['-m', 'stylekit.cli'], ['-c', 'from stylekit.__main__ import main; main()']:
        r = python(start, 'stylize', str(tmp_path/'absent.png'), '--caption', 'an owl')
        assert r.returncode == 2 and r.stdout == '', (r.returncode, r.stderr)
        is_one_line(r.stderr, 'absent.png')

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
    for name in ('stylize', 'load_backbone', 'load_style', 'Stylizer', 'Settings', 'StylizeResult'):
        assert getattr(stylekit, name).__module__.startswith('stylekit.')
    with pytest.raises(AttributeError, match='nosuch'): stylekit.nosuch


# What the help says

def options(name):
    return [a for a in make_parser(COMMANDS[name], f'stylekit {name}')._actions if a.dest != 'help']

def comment_at(source, line):
    "What stands beside the parameter of a line, or in lines of comment above it"
    beside = source[line-1].partition(' # ')[2].strip()
    above = itertools.takewhile(lambda text: text.strip().startswith('# '), reversed(source[:line-1]))
    return beside or ' '.join(text.strip()[2:] for text in reversed([*above]))

def comments(f)->dict:
    "parameter -> its comment; each has a line of its own"
    source = inspect.getsource(f)
    args = ast.parse(source).body[0].args
    named = [*args.args, *args.kwonlyargs]
    if args.vararg: named.append(args.vararg)
    at = {a.arg: a.lineno for a in named}
    assert len(set(at.values())) == len(at), f'two parameters of {f.__name__} share a line'
    lines = source.splitlines()
    return {name: comment_at(lines, n) for name, n in at.items()}

@pytest.mark.parametrize('name', COMMANDS)
def test_a_parameter_is_a_line_and_its_comment_the_help(name, capsys):
    """Each parameter stands on a line of its own;
    the help shows this line's comment beside this option, then range and default, in 100 columns"""
    with pytest.raises(SystemExit) as e: main([name, '--help'])
    shown = capsys.readouterr().out
    assert e.value.code == 0
    assert max(map(len, shown.splitlines())) <= 100
    assert not re.search(r"<class|\{str\}|Kind\(|==SUPPRESS==", shown)
    words = ' '.join(shown.split())
    for f in COMMANDS[name], common:
        comment_of = comments(f)
        for p in inspect.signature(f).parameters.values():
            comment = comment_of[p.name]
            assert comment, f'{name}: {p.name} has no comment'
            assert p.annotation is bool or isinstance(p.annotation, Kind)
            positional = p.kind is p.VAR_POSITIONAL or p.default is p.empty
            flag = p.annotation.name if positional else f'--{p.name.replace("_", "-")}'
            value = '' if p.annotation is bool or positional else f' {p.annotation.name}'
            assert f'{flag}{value} {comment}' in words, f'{name}: {flag}{value} {comment}'
            facts = getattr(p.annotation, 'span', '')
            if facts: assert f'{comment} [{facts}' in words
            if p.default not in (None, False, p.empty) and not positional:
                assert re.search(re.escape(comment)+r' \[[^\]]*default ', words)

def test_short_flags_are_one_thing_everywhere():
    for name in COMMANDS:
        for a in options(name):
            for s in a.option_strings:
                if re.fullmatch('-[a-z]', s): assert cli.SHORT[a.dest] == s[1]

def test_the_help_says_what_a_status_means():
    for status in '0', '1', '2', '70', '130', '141': assert re.search(rf'\b{status} ', cli.HELP)
    assert all(f'stylekit {name}' in cli.HELP for name in COMMANDS)
    assert max(map(len, cli.HELP.splitlines())) <= 100

OUT_OF_RANGE = [
    ('train-lora x --minutes -1', '0 to'), ('train-feedforward x --minutes nan', '0 to'),
    ('train-control-clip x --minutes -.1', '0 to'), ('stylize x --workers 0', '1 to'),
    ('evaluate x --workers 0', '1 to'), ('stylize x --batch 0', '1 to'), ('evaluate x --batch 0', '1 to'),
    ('train-lora x --batch 0', '1 to'), ('bench --rounds 0', '1 to'), ('bench --size 3', '64 to'),
    ('evaluate x --seeds ,', 'at least one'), ('evaluate x --seeds 1,1', 'twice'), ('evaluate x --seeds 1,-2', '0 to'),
    ('evaluate x --seeds 1,x', 'whole number'), ('evaluate x --styles=', 'at least one'),
    ('evaluate x --methods ,,', 'at least one'), ('evaluate x --metrics=', 'at least one'),
    ('bench --variants ,', 'at least one'), ('stylize x --template cat', '{}'), ('stylize x --template {}{}', '{}'),
    ('stylize x --template {x}', '{}'), ('train-lora x --template {0}', '{}'),
    ('train-control-clip x --template {c}', '{s}'), ('train-control-clip x --template {c}{s}{x}', '{c}'),
    ('train-control-clip x --shots 0', 'at least 1'), ('train-control-clip x --loss T3', 'T1+T2'),
    ('stylize x --alpha 2.5', '0 to 2'), ('stylize x --resolution 15', '16 to'),
    ('stylize x --preset fsat', 'did you mean fast'), ('train-lora x --rank 0', '1 to 512'),
    ('train-lora x --lr 2', '0 to 1'), ('train-lora x --names peft', 'diffusers'),
    ('train-feedforward x --space pixels', 'did you mean pixel'), ('train-feedforward x --areas -1', '0 to'),
    ('app --port 0', '1 to'), ('app --port 70000', '65,535'), ('app --silence 0', '1 to'),
    ('app --max-upload 0', '1,000'), ('stylize x --dtype float32', '--dtype'),
    ('train-lora x --dtype int8', 'bfloat16'), ('stylize x --out=', 'empty'), ('stylize x --style=', 'empty'),
    ('stylize x --seed 9223372036854775808', '9,223'), ('completion fish', 'bash, zsh')]

@pytest.mark.parametrize('line,word', OUT_OF_RANGE, ids=[l for l, _ in OUT_OF_RANGE])
def test_what_is_out_of_range_is_refused_with_the_range(line, word, command):
    cap = command(*line.split(), status=2)
    assert cap.out == ''
    is_one_line(cap.err, word)

def test_ranges_are_those_of_the_library():
    "What the command line lets through, the settings take at both ends"
    from stylekit.finetune import LoraSettings
    from stylekit.feedforward_training import FeedForwardSettings
    from stylekit.methods.sms import settings
    def check(command, make, names):
        for name in names.split():
            span = inspect.signature(command).parameters[name].annotation.span
            lo, hi = (float(x.replace(',', '')) for x in span.split(' to '))
            number = int if name in ('steps', 'rank', 'batch', 'areas', 'refine') else float
            extra = dict(space='pixel') if name == 'adversarial' else {}
            for v in lo, hi: make(**extra, **{name: number(v)})
            for v in lo-1, hi+1:
                with pytest.raises(StylekitError): make(**extra, **{name: number(v)})
    check(cli.stylize, settings, 'steps lam cutoff guidance_scale')
    check(cli.train_lora, LoraSettings, 'rank steps batch lr prior')
    check(cli.train_feedforward, FeedForwardSettings, 'steps batch lr refine adversarial')

# What does not apply

@pytest.mark.parametrize('line,word', [
    ('{photo} --feedforward flat --lam .8', '--lam'), ('{photo} --feedforward flat --caption owl', '--caption'),
    ('{photo} --feedforward flat --style ink', '--style'), ('{photo} --feedforward flat --steps 3', '--steps'),
    ('{photo} --feedforward flat --seed 0', '--seed'), ('{photo} --feedforward flat --gif', '--gif'),
    ('{photo} --feedforward flat --cutoff 0', '--cutoff'),
    ('{dir} --feedforward flat --preset paper', '--preset'), ('{photo} --workers 4', '--workers'),
    ('{photo} --batch 2', '--batch'), ('{photo} --alpha .3', '--alpha'), ('{dir} --caption owl', '--caption'),
    ('{dir} --gif', '--gif'), ('{dir} --control shipped', '--control'),
    ('{photo} --caption owl --template {{}}', '--template')])
def test_options_that_do_not_apply_are_refused(line, word, photo, tmp_path, command):
    argv = [a.format(photo=photo, dir=tmp_path) for a in line.split()]
    is_one_line(command('stylize', *argv, status=2).err, f'{word} does not apply')

def test_options_of_other_commands_that_do_not_apply(tmp_path, command):
    for argv in (['export', 'flat', '--calibrate', tmp_path], ['styles', '--backbone', 'x'],
                 ['train-feedforward', tmp_path, '--preset', 'gradient', '--refine', '3']):
        assert 'does not apply' in command(*argv, status=2).err

# Nothing is overwritten unasked

@pytest.fixture
def quick(photo, tmp_path):
    "A call of a network: one pass, with the names of an ordinary run"
    return ['stylize', photo, '--feedforward', 'ink']

def test_a_second_result_has_another_name(quick, tmp_path, command):
    argv = [*quick, '--out', tmp_path/'o']
    made = [Path(command(*argv).out.strip()) for _ in range(3)]
    assert [p.name for p in made] == ['photo-ink.png', 'photo-ink-2.png', 'photo-ink-3.png']
    before = made[0].stat().st_mtime_ns
    assert command(*argv, '--overwrite').out.strip() == str(made[0])
    assert made[0].stat().st_mtime_ns > before
    assert len(list((tmp_path/'o').iterdir())) == 3

def test_a_named_file_is_only_replaced_when_asked(quick, tmp_path, command):
    x = tmp_path/'x.png'
    x.write_bytes(b'mine')
    assert '--overwrite' in command(*quick, '-o', x, status=2).err
    assert x.read_bytes() == b'mine'
    command(*quick, '-o', x, '--overwrite')
    assert x.read_bytes() != b'mine'
    (tmp_path/'y.gif').write_bytes(b'mine')
    command('stylize', quick[1], '--caption', 'an owl', '--gif', '-o', tmp_path/'y.png', status=2)
    assert (tmp_path/'y.gif').read_bytes() == b'mine'

@pytest.fixture
def folder_of_two(tmp_path):
    (tmp_path/'in').mkdir()
    for n in 'owl', 'taxi': small(n).save(tmp_path/'in'/f'{n}.png')
    return tmp_path/'in'

BRIEF = ['--steps', '2', '--batch', '2']

@pytest.fixture
def train_mine(folder, folder_of_two):
    "The arguments that train a style named mine"
    return ['train-lora', folder_of_two, '--name', 'mine', '--backbone', folder, '--rank', '1']

def test_a_trained_style_stays(loaded, train_mine, tmp_path, command):
    argv = [*train_mine, *BRIEF, '--out', tmp_path/'styles']
    made = Path(command(*argv).out.strip())
    weights = made.read_bytes()
    rights = made.with_name('rights.toml').read_text().replace('licence = ""', 'licence = "CC0-1.0"')
    made.with_name('rights.toml').write_text(rights)
    assert '--overwrite' in command(*argv, '--seed', '1', status=2).err
    assert made.read_bytes() == weights
    assert made.with_name('rights.toml').read_text() == rights
    command(*argv, '--seed', '1', '--overwrite')
    assert made.read_bytes() != weights

@pytest.mark.parametrize('name', ['ink', 'flat', 'Ink'])
def test_what_comes_with_stylekit_is_not_shadowed(name, folder_of_two, tmp_path, command):
    argv = ['train-lora', folder_of_two, '--name', name, '--out', tmp_path/'styles', '--overwrite', *BRIEF]
    assert 'comes with stylekit' in command(*argv, status=2).err
    assert not (tmp_path/'styles').exists()

def test_trained_networks_and_exports_stay(loaded, folder, folder_of_two, train_mine, tmp_path, command):
    command(*train_mine, *BRIEF, '--out', tmp_path/'styles')
    argv = ['train-feedforward', folder_of_two, '--style', tmp_path/'styles'/'mine', '--out', tmp_path/'g',
            '--backbone', folder, '--preset', 'gradient', '--name', 'net', '--space', 'pixel', *BRIEF,
            '--override', 'me: these pictures are mine']
    command(*argv)
    file = tmp_path/'g'/'net'/'feedforward.safetensors'
    before = file.read_bytes()
    assert '--overwrite' in command(*argv, '--seed', '1', status=2).err
    assert file.read_bytes() == before
    (tmp_path/'x.onnx').write_bytes(b'mine')
    command('export', tmp_path/'g'/'net', '--out', tmp_path/'x.onnx', status=2)
    assert (tmp_path/'x.onnx').read_bytes() == b'mine'
    for shipped in 'flat', 'ink': assert 'ONNX already' in command('export', shipped, status=2).err.splitlines()[-1]

@pytest.fixture
def grid(tmp_path):
    for s in 'flat', 'ink':
        for n, k in dict(owl='animal', taxi='vehicle').items():
            (tmp_path/'grid'/s/k).mkdir(parents=True)
            sample_image(n, s).resize((64, 64)).save(tmp_path/'grid'/s/k/f'{n}.png')
    return tmp_path/'grid'

def test_a_control_folder_stays(grid, tmp_path, command):
    argv = ['train-control-clip', grid, '--out', tmp_path/'c', *BRIEF]
    err = command(*argv).err
    assert 'fewer than 8 pictures of flat, ink' in err and 'step 2 of 2' in err
    before = (tmp_path/'c'/'control_clip.safetensors').read_bytes()
    command(*argv, '--seed', '1', status=2)
    assert (tmp_path/'c'/'control_clip.safetensors').read_bytes() == before

def test_the_tables_of_another_evaluation_stay(folder_of_two, tmp_path, command):
    argv = ['evaluate', folder_of_two, '--methods', 'unchanged', '--metrics', 'ssim_src', '--out', tmp_path/'e']
    assert 'unchanged' in command(*argv).out
    table = (tmp_path/'e'/'table.csv').read_bytes()
    command(*argv)   # the same question
    assert '--overwrite' in command(*argv, '--seeds', '1', status=2).err
    assert (tmp_path/'e'/'table.csv').read_bytes() == table
    lines = records(command(*argv, '--seeds', '1', '--overwrite', '--json'))
    assert lines
    assert all(l['metric'] == 'ssim_src' and l['value'] == 1 for l in lines)

def records(cap): return [json.loads(l) for l in cap.out.splitlines()]

# The last net

def failing(monkeypatch, e):
    def styles(): raise e
    monkeypatch.setitem(COMMANDS, 'styles', styles)

@pytest.mark.parametrize('e', [
    KeyError('x'), RuntimeError('two\nlines'), ZeroDivisionError(), RecursionError(), AssertionError('no'),
    OSError(5, 'Input/output error')], ids=repr)
def test_a_fault_of_ours_is_one_line_and_a_file(e, monkeypatch, command):
    failing(monkeypatch, e)
    err = command('styles', status=70).err
    is_one_line(err)
    assert err.startswith(f'stylekit: this is a fault of stylekit: {type(e).__name__}: '), err
    trace = Path(re.search(r'the full trace is in (\S+)', err)[1])
    assert 'Traceback' in trace.read_text() and type(e).__name__ in trace.read_text()
    trace.unlink()

def wrapped(kind):
    try:
        try: raise KeyboardInterrupt
        except BaseException: raise kind('could not import module')
    except kind as e: return e

NO_FAULTS = {
    'ctrl-c': (KeyboardInterrupt(), 130, 'interrupted'), 'wrapped': (wrapped(RuntimeError), 130, 'interrupted'),
    'wrapped by us': (wrapped(StylekitError), 130, 'interrupted'), 'memory': (MemoryError(), 2, 'memory'),
    'disk': (OSError(28, 'No space left on device'), 2, 'free some space'),
    'rights': (PermissionError(13, 'Permission denied', 'x'), 2, 'x'), 'pipe': (BrokenPipeError(), 141, '')}

@pytest.mark.parametrize('e,status,word', NO_FAULTS.values(), ids=NO_FAULTS)
def test_what_is_no_fault(e, status, word, monkeypatch, command):
    failing(monkeypatch, e)
    err = command('styles', status=status).err
    assert err.count('\n') <= 1 and word in err and 'fault' not in err

def test_a_name_that_is_too_long(photo, command):
    for argv in (['info', 'a'*5000], ['stylize', photo, '--feedforward', 'ink', '--out', 'a'*5000],
                 ['styles', 'a'*300+'.safetensors']):
        err = command(*argv, status=2).err
        is_one_line(err)
        assert len(err) < 330 and 'fault' not in err, err

BEGIN = '''
import os
from stylekit.__main__ import main, _on_interrupt, signal
signal.signal(signal.SIGINT, _on_interrupt)
os.write(2, b"begun\\n")
main()
'''

def process(*argv):
    "The command line as a process that says when it has begun"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p = subprocess.Popen([sys.executable, '-c', BEGIN, *argv], **pipes, env=environment())
    assert p.stderr.readline() == b'begun\n'
    return p

@pytest.mark.parametrize('wait', [.01, .03, .06, .1, .2, .5, 1, 2, 3])
def test_ctrl_c_at_any_moment(wait, photo, tmp_path):
    "While libraries are imported, weights are read, in the run: status 130, no trace, nothing that looks finished"
    p = process('stylize', photo, '--caption', 'an owl', '--steps', '2000', '--out', str(tmp_path/'o'))
    time.sleep(wait)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and out == b'', (p.returncode, err)
    assert b'Traceback' not in err and b'rror' not in err and err.count(b'\n') <= 1, err
    assert not list(tmp_path.glob('o/photo-ink.png'))

@pytest.mark.parametrize('argv', [
    ['styles'], ['styles', '--json'], ['info', 'ink', 'flat'], ['completion', 'zsh'], ['--help'],
    ['stylize', '--help'], ['--version']], ids=' '.join)
def test_a_closed_pipe_is_quiet(argv):
    p = process(*argv)
    p.stdout.close()
    p.wait(60)
    # argparse writes the help of a command, and may not see that it could not
    assert p.returncode in ((0, 141) if 'stylize' in argv else (141,))
    assert p.stderr.read() == b''

def test_folders_that_bench_cannot_write(tmp_path, command, monkeypatch):
    argv = ['bench', '--shape', 'tiny', '--folder']
    (tmp_path/'file').write_text('x')
    for folder in tmp_path/'file', tmp_path/'file'/'below':
        is_one_line(command(*argv, folder, status=2).err, 'part of the path is a file')
    def no(*a, **kw): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'mkdir', no)
    assert 'you may not write there' in command(*argv, tmp_path/'new', status=2).err

def raw_process(*argv, cwd, **env):
    "The command line as a process, its output in bytes"
    argv = [sys.executable, '-m', 'stylekit', *argv]
    return subprocess.run(argv, capture_output=True, env=environment(**env), cwd=cwd)

def test_letters_that_the_terminal_does_not_have(photo, tmp_path):
    def run(*argv): return raw_process(*argv, cwd=tmp_path, PYTHONIOENCODING='ascii')
    r = run('stylize', '--help')
    assert r.returncode == 0 and b'?: how strictly' in r.stdout
    r = run('stylize', 'größe.png', '--caption', 'x')
    assert r.returncode == 2 and b'gr??e.png' in r.stderr and b'Traceback' not in r.stderr
    r = run('stylize', photo, '--feedforward', 'ink', '--out', 'größe.png')
    assert r.returncode == 0 and r.stdout == b'gr??e.png\n' and (tmp_path/'größe.png').exists()

@pytest.mark.skipif(os.name == 'nt', reason='arguments are text there')
def test_an_argument_that_is_not_text_is_named(tmp_path):
    for argv in ['stylize', b'caf\xe9.png'], ['styles', b'\xff'], [b'\xfe']:
        r = raw_process(*argv, cwd=tmp_path)
        assert r.returncode == 2, r.stderr
        assert r.stderr.count(b'\n') == 1 and b'is not UTF-8' in r.stderr, r.stderr

def test_warnings_are_one_line_once(monkeypatch, command):
    core = str(Path(stylekit.__file__).parent/'core.py')
    def styles():
        for _ in range(3): warnings.warn_explicit('the mask\nis odd', UserWarning, core, 1, module='stylekit.core')
        warnings.warn_explicit('use the new name', FutureWarning, '/x/diffusers/utils.py', 1)
        warnings.warn_explicit('a library of others', UserWarning, '/x/transformers/y.py', 1)
    monkeypatch.setitem(COMMANDS, 'styles', styles)
    assert command('styles').err == 'stylekit: the mask is odd\n'
    assert command('styles', '--quiet').err == ''

# Results for programs

def test_json_is_all_there_is_on_stdout(loaded, with_style, photo, tmp_path, command):
    argv = ['stylize', photo, *with_style, '--caption', 'an owl', '--steps', '1', '--seed', '4']
    one, two = records(command(*argv, '--out', tmp_path/'o', '--gif', '--json'))
    assert one['file'] == str(tmp_path/'o'/'photo-random.png')
    assert one['complete'] is True and one['seed'] == 4
    assert two['file'].endswith('.gif')
    assert [r['name'] for r in records(command('styles', '--json'))] == list_styles()
    assert json.loads(command('info', one['file'], '--json').out)['run']['seed'] == 4

def test_a_folder_with_failures(folder_of_two, tmp_path, command):
    "Status 1 with a count; every picture is a line; --quiet says nothing but that"
    (folder_of_two/'torn.png').write_bytes(b'')
    argv = ['stylize', folder_of_two, '--feedforward', 'ink', '--out', tmp_path/'o']
    cap = command(*argv, '--json', status=1)
    failed = {r['picture']: bool(r['error']) for r in records(cap)}
    assert failed == {'owl.png': False, 'taxi.png': False, 'torn.png': True}
    assert 'torn.png: ' in cap.err
    cap = command(*argv, '--quiet', status=1)
    assert cap.err == ''
    is_one_line(cap.out, '1 failed')
    (folder_of_two/'torn.png').unlink()
    command(*argv, '--quiet')

# What is worked at, and with

@pytest.mark.parametrize('size,fits', [
    ((64, 64), True), ((128, 128), True), ((32, 64), False), ((64, 32), False), ((65, 67), False)])
def test_a_mask_has_the_shape_of_the_picture(size, fits, loaded, with_style, photo, tmp_path, command):
    mask = tmp_path/'mask.png'
    sample_image('owl').resize(size).convert('L').save(mask)
    argv = ['stylize', photo, *with_style, '--caption', 'an owl', '--steps', '1', '--out', tmp_path/'o']
    cap = command(*argv, '--protect', mask, status=0 if fits else 2)
    assert ('mask.png' in cap.err) != fits

def test_what_is_protected_stays(photo, tmp_path, command):
    from PIL import Image, ImageChops
    Image.new('L', (64, 64), 255).save(tmp_path/'all.png')
    argv = ['stylize', photo, '--caption', 'an owl', '--steps', '3', '--seed', '0', '--preset', 'fast', '--out']
    command(*argv, tmp_path/'free.png')
    command(*argv, tmp_path/'kept.png', '--protect', tmp_path/'all.png')
    def changed(name):
        "How many pixels are far from the photo"
        difference = ImageChops.difference(load_image(tmp_path/name), load_image(photo)).convert('L')
        return sum(difference.histogram()[40:])
    assert changed('kept.png') == 0 < changed('free.png')
    assert load_image(tmp_path/'kept.png').tobytes() == load_image(photo).tobytes()   # to the last bit

@pytest.mark.parametrize('protect,words', [
    ('box:1,2,3', 'x0, y0'), ('box:0,0,900,900', 'does not lie in'), ('words:', 'no word'),
    ('alpha', 'no transparency'), ('nowhere.png', 'nowhere.png'), ('letters+', 'empty'), ('box:5,5,1,9', 'empty')])
@pytest.mark.parametrize('way', [['--caption', 'an owl', '--steps', '1'], ['--feedforward', 'flat']])
def test_regions_that_are_none(protect, words, way, photo, tmp_path, command):
    cap = command('stylize', photo, *way, '--protect', protect, '--out', tmp_path/'o', status=2)
    is_one_line(cap.err, words)

def test_several_regions_by_a_network_and_in_a_folder(photo, tmp_path, command):
    box, argv = (slice(8, 40), slice(4, 30)), ['--feedforward', 'flat', '--protect', 'box:4,8,30,40+box:50,50,60,60']
    command('stylize', photo, *argv, '--out', tmp_path/'one.png')
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'owl.png').write_bytes(Path(photo).read_bytes())
    command('stylize', tmp_path/'in', *argv, '--out', tmp_path/'many')
    for path in (tmp_path/'one.png', tmp_path/'many'/'owl.png'):
        import numpy as np
        a, b = (np.asarray(load_image(p)) for p in (path, photo))
        assert np.array_equal(a[box], b[box]) and np.array_equal(a[50:60, 50:60], b[50:60, 50:60])
        assert not np.array_equal(a, b)

def test_a_file_name_is_a_caption(loaded, with_style, tmp_path, command):
    def draw(name, *more, **kw):
        argv = ['stylize', tmp_path/name, *with_style, '--steps', '1', '--out', tmp_path/'o', '--json']
        return command(*argv, *more, **kw)
    def caption(*argv): return json.loads(draw(*argv).out)['caption']
    small('owl').save(tmp_path/'small owl_03.png')
    assert caption('small owl_03.png') == 'small owl'
    assert caption('small owl_03.png', '--template', 'a {} here') == 'a small owl here'
    (tmp_path/'small owl_03.txt').write_text('an old owl')
    assert caption('small owl_03.png') == 'an old owl'
    small('owl').save(tmp_path/'IMG_0123.png')
    assert '--caption' in draw('IMG_0123.png', status=2).err

def test_it_says_what_it_works_at(photo, tmp_path, command):
    from PIL import Image
    Image.effect_noise((96, 96), 90).convert('RGB').save(tmp_path/'photo of noise.png')
    sample_image('owl').resize((512, 512)).save(tmp_path/'large.png')
    def said(name):
        return command('stylize', tmp_path/name, '--caption', 'x', '--steps', '1', '--out', tmp_path/'o').err
    noise = said('photo of noise.png')
    assert 'like a photograph' in noise and 'icons' in noise
    is_one_line(said('large.png'), '512×512 pixels, worked at')
    assert said('photo.png') == ''

def test_control_says_what_it_has_learnt(tmp_path, command):
    argv = ['stylize', '--steps', '1', '--seed', '0', '--control', 'shipped', '--out', tmp_path]
    assert '--trigger-words keld' in command(*argv).err
    assert command(*argv, '--trigger-words', 'keld').err == ''

def test_home_is_expanded_everywhere(photo, tmp_path, monkeypatch, command):
    "The shell leaves --out=~/x as it is"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    command('stylize', photo, '--feedforward', 'ink', '--out=~/x.png')
    assert (tmp_path/'home'/'x.png').exists()
    for name, f in COMMANDS.items():
        for p in inspect.signature(f).parameters.values():
            if getattr(p.annotation, 'name', '') in ('PATH', 'FILE', 'FOLDER', 'STYLE', 'MODEL', 'STYLE,...'):
                assert str(tmp_path/'home'/'a') in str(p.annotation('~/a')), (name, p.name)
    assert not (tmp_path/'~').exists()

def test_cut_short(loaded, folder, folder_of_two, train_mine, grid, tmp_path, command, capsys):
    "--minutes: status 1, one last line, no path that does not exist; the same command goes on to the end"
    styles = tmp_path/'styles'
    lora = [*train_mine, '--out', styles]
    ff = ['train-feedforward', folder_of_two, '--style', styles/'mine', '--out', tmp_path/'g', '--backbone', folder,
          '--override', 'me: these pictures are mine']
    control = ['train-control-clip', grid, '--out', tmp_path/'c']
    for argv in lora, ff, control:
        argv = [*map(str, argv), '--steps', '12', '--batch', '1']
        cap = command(*argv, '--minutes', '0.00001', status=1)
        assert 'cut short' in cap.err.splitlines()[-1] and 'run again to go on' in cap.err
        assert all(Path(p).exists() for p in cap.out.split())
        for _ in range(20):
            status = main([*argv, '--minutes', '0.5'])
            if status != 1: break
        cap = capsys.readouterr()
        assert status == 0, (argv, status, cap.err[-500:])
        assert Path(cap.out.split()[-1]).exists(), (argv, cap.out)
        assert 'of 12' in cap.err

# Styles, and what files say

def test_styles_say_where_they_come_from(loaded, train_mine, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    command(*train_mine, *BRIEF)
    mine = next(r for r in records(command('styles', '--json')) if r['name'] == 'mine')
    assert Path(mine['path']).exists()
    assert mine['pictures'] == '2' and mine['steps'] == '2' and mine['base']
    (tmp_path/'styles'/'torn').mkdir()
    (tmp_path/'styles'/'torn'/'pytorch_lora_weights.safetensors').write_bytes(b'\0')
    cap = command('styles', status=1)
    is_one_line(cap.err, 'torn: ')
    assert {*built_in_styles(), 'mine'} == {l.split()[0] for l in cap.out.splitlines()}

NO_FILES = {
    'x.safetensors': b'\xff'*20, 'y.safetensors': b'\x02\0\0\0\0\0\0\0[]', 'z.json': b'[', 'n.json': b'7',
    'p.png': b'x', 'e.safetensors': b''}

def test_info(style, photo, tmp_path, command):
    from PIL import Image, PngImagePlugin
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text('parameters', 'an owl\nNegative prompt: blurry\nSteps: 20, Seed: 7, Size: 64x64')
    Image.new('RGB', (64, 64)).save(tmp_path/'a1.png', pnginfo=chunk)
    command('stylize', photo, '--feedforward', 'ink', '--out', tmp_path/'made.png')
    control = Path(stylekit.__file__).parent/'assets'/'control'
    names = [tmp_path/'a1.png', tmp_path/'made.png', style, 'ink', control]
    a1, made, lora, ink, control = records(command('info', *names, '--json'))
    settings = dict(Steps='20', Seed='7', Size='64x64')
    assert a1['parameters'] == dict(prompt='an owl', negative_prompt='blurry', settings=settings)
    assert made['run']['method'] == 'feed-forward'
    assert lora['kind'] == 'LoRA' and lora['about']['words'] == 'black ink drawing'
    with safe_open(load_style('ink').path, 'pt') as f: written = f.metadata()
    assert ink['kind'] == 'LoRA' and ink['about']['images'] == written['stylekit.images']
    assert control['kind'] == 'Control-CLIP'
    assert 'feed-forward' in command('info', tmp_path/'made.png', style).out
    for name, raw in NO_FILES.items():
        (tmp_path/name).write_bytes(raw)
        is_one_line(command('info', tmp_path/name, status=2).err, name)
    for names in ([], [tmp_path], ['absent.png']): command('info', *names, status=2)

def test_a_result_is_its_own_recipe(tmp_path):
    from stylekit import replay, stylize
    made = stylize(sample_image('owl'), 'flat', 'an owl', steps=2, seed=1)
    path = made.save(tmp_path/'a.webp')
    assert replay(path, sample_image('owl')).image.tobytes() == made.image.tobytes()
    for image, word in (None, 'image='), (sample_image('taxi'), 'another picture'):
        with pytest.raises(StylekitError, match=word): replay(str(path), image)

@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion(shell, capsys):
    assert main(['completion', shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        line = next(l for l in script.splitlines() if l.strip().startswith(f'{name})'))
        flags = [f for a in options(name) for f in a.option_strings if f.startswith('--') and '_' not in f]
        assert all(f in line for f in flags), name
    if shell == 'zsh': return
    def ask(*words):
        lines = [script, f'COMP_WORDS=({" ".join(words)})', f'COMP_CWORD={len(words)-1}', '_stylekit',
                 'echo "${COMPREPLY[@]}"']
        return subprocess.run(['bash', '-c', '\n'.join(lines)], capture_output=True, text=True).stdout.split()
    assert ask('stylekit', 'train-l') == ['train-lora']
    assert ask('stylekit', 'stylize', '--guid') == ['--guidance-scale']
    assert '--seed' in ask('stylekit', 'train-lora', '--se')

def test_what_was_perhaps_meant(command):
    for line, meant in (('stylise', 'stylize'), ('train_lora', 'train-lora'), ('stylize x --stpes 3', '--steps'),
                        ('stylize x --lamda=3', '--lam'), ('evalute', 'evaluate')):
        assert f'did you mean {meant}?' in command(*line.split(), status=2).err

# Notebook and Python

def index_cells():
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']

def test_the_index_installs_first():
    """Colab's button opens a notebook that begins with what it needs, which tests do not run;
    the README does not show it"""
    first = index_cells()[0]
    for words in ('%pip install', '#| eval: false', '#| hide'): assert words in first
    assert re.search(r'"stylekit @ git\+https://github\.com/stylekit/stylekit"', first)
    assert 'pip install -q' not in (ROOT/'README.md').read_text(encoding='utf-8')

def test_the_index_runs_in_order(tmp_path, monkeypatch):
    (tmp_path/'nbs').mkdir()
    monkeypatch.chdir(tmp_path/'nbs')
    text = '\n'.join(s for s in index_cells() if not re.search(r'^#\| *(eval: false|slow)', s, re.M))
    exec(compile(text, 'index', 'exec'), {})
    assert (tmp_path/'out'/'owl-ink.png').exists()

def test_comments_reach_help():
    "Each comment on a parameter is in the docstring, and names that share a line of code share its comment"
    import pydoc
    from fastcore.docments import docments
    for thing in (stylekit.stylize, stylekit.load_backbone, stylekit.load_style, stylekit.train_lora,
                  stylekit.save_output, stylekit.replay, stylekit.Stylizer, stylekit.Settings):
        name, doc = thing.__name__, thing.__doc__
        for p, comment in docments(thing).items():
            if p in ('self', 'return'): continue
            assert re.search(rf'\b{p}\b', doc), (name, p)
            if not comment: continue
            words = re.escape(' '.join(comment.split()))
            assert re.search(rf'^    [\w, ]*\b{p}: {words}$', doc, re.M), (name, p)
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
