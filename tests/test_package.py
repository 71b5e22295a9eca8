"Packaging: every module stands alone, no star imports, one version"
import ast, os, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
import stylekit

PKG = Path(stylekit.__file__).parent
FILES = sorted(p for p in PKG.rglob('*.py') if 'assets' not in p.parts)
MODULES = ['.'.join(p.relative_to(PKG.parent).with_suffix('').parts).removesuffix('.__init__') for p in FILES]

# One process loads the libraries, then each module is imported in a fork of it: nothing of stylekit is there before
EACH = '''import os, sys, torch, peft
import transformers.models.clip.modeling_clip, diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
assert not any(m.split('.')[0] == 'stylekit' for m in sys.modules)
for name in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        try:
            m = __import__(name, fromlist=['*'])
            for n in getattr(m, '__all__', []): getattr(m, n)
            missing = ''
        except BaseException as e: missing = f'{type(e).__name__}: {e}'
        print(name, 'FAILED '+missing if missing else 'ok', flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
'''

OTHERS = [m for m in MODULES if m != 'stylekit']

def run_python(*args, **env):
    "Runs Python where nothing but the package can be found"
    env = dict(os.environ, PYTHONPATH=str(PKG.parent), **env)
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd='/')

@pytest.fixture(scope='module')
def imported():
    if not hasattr(os, 'fork'): pytest.skip('needs fork')
    r = run_python('-c', EACH, *OTHERS, OMP_NUM_THREADS='1', MPLBACKEND='agg')
    return dict(line.split(' ', 1) for line in r.stdout.splitlines()) | dict(stderr=r.stderr)

@pytest.mark.parametrize('name', OTHERS)
def test_module_imports_alone(imported, name): assert imported.get(name) == 'ok', imported

def imports(tree, top=True):
    "(module, names) of the import statements; with `top` only those that run on import"
    nodes = tree.body if top else ast.walk(tree)
    for n in nodes:
        if isinstance(n, ast.Import): yield from ((a.name, ()) for a in n.names)
        if isinstance(n, ast.ImportFrom): yield '.'*n.level+(n.module or ''), tuple(a.name for a in n.names)

HEAVY = {'diffusers', 'transformers', 'peft', 'matplotlib', 'scipy', 'sklearn', 'IPython'}
LIGHT = ['__init__.py', '_modidx.py', 'core.py', 'records.py', 'images.py', 'pictures.py', 'rights.py', 'marks.py',
         'cli.py']

def names_in(nodes): return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}

@pytest.mark.parametrize('path', FILES, ids=MODULES)
def test_source(path):
    "No star imports; light modules import nothing heavy; every public name is defined in the module"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    assert not any('*' in names for _, names in imports(tree, top=False))
    tops = {m.lstrip('.').split('.')[0] for m, _ in imports(tree) if not m.startswith('.')}
    if path.parent.name in ('mini', 'studies'): return       # these build and measure, and are imported on purpose
    light = path.name in LIGHT
    assert not tops & (HEAVY | {'torch', 'numpy', 'PIL'} if light else HEAVY), tops
    assigned = [n for n in tree.body if isinstance(n, ast.Assign)]
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    defined |= names_in(t for n in assigned for t in n.targets)
    if path.name == '__init__.py': return
    for n in assigned:
        if getattr(n.targets[0], 'id', '') == '__all__' and isinstance(n.value, ast.List):
            assert set(ast.literal_eval(n.value)) <= defined

def test_one_version():
    "The version stands in `__init__` only; the other files point to it"
    root = PKG.parent
    if not (root/'pyproject.toml').exists(): pytest.skip('not a clone')
    text = (root/'pyproject.toml').read_text(encoding='utf-8')
    assert re.search(r'version\s*=\s*\{\s*attr\s*=\s*"stylekit\.__version__"', text)
    assert not re.search(r'^version\s*=\s*"', text, re.M)
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    assert 'version' not in cfg['DEFAULT'] and re.fullmatch(r'\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?', stylekit.__version__)
    assert all((root/f).exists() for f in ('LICENSE', 'MANIFEST.in', 'setup.py', 'Makefile'))
    assert 'settings.ini' in (root/'MANIFEST.in').read_text()

def test_entry_point():
    cfg = ConfigParser(delimiters=['='])
    if not cfg.read(PKG.parent/'settings.ini', encoding='utf-8'): pytest.skip('not a clone')
    assert cfg['DEFAULT']['console_scripts'].split() == ['stylekit=stylekit.__main__:main']

def test_lazy_names_exist():
    for name in stylekit.__all__: assert getattr(stylekit, name) is not None
    assert set(stylekit.__all__) <= set(dir(stylekit))

def test_settings_know_every_method_in_a_fresh_process():
    say = "print(settings('paper').method, settings('img2img').method, settings(method='dds').preset)"
    r = run_python('-c', f'from stylekit import settings\n{say}')
    assert r.stdout.split() == ['released', 'img2img', 'dds'], r.stderr

def test_panels_import_nothing_heavy():
    "The panels' modules may be imported by whoever shows them; the model's libraries come with the first panel"
    panels = [f'stylekit.{stylekit._HOMES[name]}' for name in stylekit.__all__ if name.endswith('Panel')]
    modules = ', '.join(['sys', *panels, 'stylekit.app.serve'])
    r = run_python('-c', f"import {modules}\nfor m in sys.modules: print(m.split('.')[0])")
    assert 'stylekit' in r.stdout.split(), r.stderr
    heavy = {'torch', 'diffusers', 'transformers', 'peft', 'matplotlib'} & {*r.stdout.split()}
    assert not heavy, heavy


ROOT = PKG.parent
in_a_clone = pytest.mark.skipif(not (ROOT/'constraints.txt').exists(), reason='not a clone')


def constraints():
    "(name, version, marker) of each line of constraints.txt"
    from packaging.requirements import Requirement
    lines = [line for line in (ROOT/'constraints.txt').read_text().splitlines() if not line.startswith('#')]
    return [Requirement(line) for line in lines]


def asked(*how):
    from packaging.requirements import Requirement
    command = [sys.executable, ROOT/'tools'/'requirements.py', *how]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Requirement(line) for line in said.split()]


def is_meant_for(requirement, python, system='linux')->bool:
    place = dict(python_version=python, python_full_version=f'{python}.5', platform_machine='x86_64',
                 sys_platform=system, platform_system=system.capitalize())
    return requirement.marker is None or requirement.marker.evaluate(place)


def for_python(python, system='linux'):
    "name -> version of what constraints.txt has for a Python"
    fitting = [r for r in constraints() if is_meant_for(r, python, system)]
    return {r.name.lower().replace('_', '-'): str(r.specifier)[2:] for r in fitting}


def stated_pythons():
    return re.findall(r'Python :: (3\.\d+)"', (ROOT/'pyproject.toml').read_text())


@in_a_clone
@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_constraints_fit_what_is_asked(python):
    "Every stated Python has one exact version of everything that is asked for, within its range"
    assert python in stated_pythons() and len(stated_pythons()) == 4
    have = for_python(python)
    for r in asked():
        if not is_meant_for(r, python): continue
        version = have.get(r.name.lower().replace('_', '-'))
        said = f'{r} on Python {python}: constraints.txt has {version}'
        assert version and r.specifier.contains(version, prereleases=True), said


@in_a_clone
def test_tested_bounds_hold():
    "What tools/tested.txt forbids is in no line of constraints.txt"
    from packaging.requirements import Requirement
    for line in (ROOT/'tools'/'tested.txt').read_text().splitlines():
        if line.startswith('#'): continue
        bound = Requirement(line)
        for r in constraints():
            if r.name != bound.name: continue
            assert bound.specifier.contains(str(r.specifier)[2:]), f'{r} is beyond {bound}'


@in_a_clone
def test_every_run_time_requirement_has_a_lower_bound():
    "Or `make versions VERSIONS=oldest` tests nothing"
    text = (ROOT/'settings.ini').read_text()
    requirements = text.split('\nrequirements = ')[1].split('\n')[0]
    for r in asked('oldest'):
        if r.name in requirements: assert str(r.specifier).startswith('=='), r


@in_a_clone
def test_set_up_uses_the_constraints():
    "make stylize, make test, make app and CI install with them"
    rules = dict(re.findall(r'^([\w./-]+):.*\n((?:\t.*\n?)+)', (ROOT/'Makefile').read_text(), re.M))
    for target in ('app', '.venv/run', '.venv/dev'): assert '$(INSTALL)' in rules[target], target
    assert 'INSTALL := $(BIN)/pip install -q -c .venv/constraints.txt' in (ROOT/'Makefile').read_text()
    assert 'make .venv/dev' in (ROOT/'.ci'/'run').read_text()


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    "(wheel, sdist), made of a copy, so that nothing is left in the clone"
    import shutil
    home = tmp_path_factory.mktemp('dist')
    left = shutil.ignore_patterns('.git', '.venv*', 'data', 'runs', '_build', 'build', 'nbs', 'tests', '*.egg-info')
    shutil.copytree(ROOT, home/'clone', ignore=left, symlinks=True)
    command = [sys.executable, '-m', 'build', '-q', '--no-isolation', '--outdir', home, home/'clone']
    said = subprocess.run(command, capture_output=True, text=True)
    assert not said.returncode, said.stdout+said.stderr
    return next(home.glob('*.whl')), next(home.glob('*.tar.gz'))


@in_a_clone
@pytest.mark.slow
def test_wheel_and_sdist_are_sound(distributions):
    "PyPI takes them; the wheel has every asset and module, and nothing of what only the clone is for"
    import tarfile, zipfile
    said = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *distributions],
                          capture_output=True, text=True)
    assert not said.returncode, said.stdout
    wheel, sdist = distributions
    with zipfile.ZipFile(wheel) as z: names = {*z.namelist()}
    assets = {p.relative_to(ROOT).as_posix() for p in (PKG/'assets').rglob('*') if p.is_file() and p.suffix != '.pyc'}
    modules = {p.relative_to(ROOT).as_posix() for p in FILES if 'studies' not in p.parts}
    assert not (assets | modules | {'stylekit/py.typed'}) - names
    assert not [n for n in names if n.split('/')[0] != 'stylekit' and '.dist-info/' not in n or '/studies/' in n]
    with tarfile.open(sdist) as t: packed = {n.partition('/')[2] for n in t.getnames()}
    assert {'settings.ini', 'CHANGELOG.md', 'LICENSE', 'pyproject.toml', 'setup.py'} <= packed


@in_a_clone
def test_citation_says_what_the_package_says():
    import yaml
    told = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    assert told['license'] == cfg['DEFAULT']['license'] and 'version' not in told   # it stands in `__init__`
    assert [a['name'] for a in told['authors']] == [cfg['DEFAULT']['author']]

@pytest.mark.parametrize('theirs, spins', [
    ({}, '3000'), (dict(GOMP_SPINCOUNT='7'), '7'), (dict(OMP_WAIT_POLICY='passive'), '')])
def test_threads_do_not_fight_for_a_core(monkeypatch, theirs, spins):
    "How long they turn in circles is said before torch is there, and what somebody has said stays"
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'): monkeypatch.delenv(name, raising=False)
    code = 'import os, sys, stylekit; assert "torch" not in sys.modules; print(os.environ.get("GOMP_SPINCOUNT", ""))'
    done = run_python('-c', code, **theirs)
    assert done.stdout.strip() == spins, done.stderr
