"""How the house is kept: a module imports only what stands above it, in the notebooks' own order and within functions
too; cells and functions are short, and what is public says what it is"""
import ast, json, re, sys
from functools import cache
from pathlib import Path
import numpy as np, pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'docs'/'_ext'))
from definitions import patched_class

PACKAGE = ROOT/'stylekit'
LATER = ['mini', 'studies']   # these wings stand below all rooms of nbs/, in this order
BY_HAND = ['__init__', '__main__']   # no notebook; they fetch names when asked

def notebook_of(file:Path)->str:
    "nbdev writes it in the second lines of a module"
    found = re.search(r'File to edit: \S*?nbs/(\S+)\.ipynb', file.read_text(encoding='utf-8'))
    return found[1] if found else ''

def place(module:str, notebook:str)->tuple: # what sorts modules as they stand
    "The wing, then the notebook's number; real size is measured for the command line, which stands last"
    if module == 'bench': return 0, '15d'
    wing = module.split('.')[0]
    return 1+LATER.index(wing) if wing in LATER else 0, notebook.rpartition('/')[2]

def name_of(file:Path)->str: return '.'.join(file.relative_to(PACKAGE).with_suffix('').parts)

FILES = {name_of(f): f for f in sorted(PACKAGE.rglob('*.py')) if notebook_of(f)}
PLACES = {name: place(name, notebook_of(f)) for name, f in FILES.items()}

@cache
def tree_of(name:str)->ast.Module: return ast.parse(FILES[name].read_text(encoding='utf-8'))

def imported(name:str)->set: # modules of ours
    "By every import statement of a module"
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import): found |= {a.name.removeprefix('stylekit.') for a in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        home = node.module or ''
        if node.level:
            parents = name.split('.')[:-node.level]
            home = '.'.join([*parents, *home.split('.')]).strip('.')
        elif home.partition('.')[0] != 'stylekit': continue
        home = home.removeprefix('stylekit').strip('.')
        found |= {home} | {f'{home}.{a.name}'.strip('.') for a in node.names}
    return found & {*FILES}

def test_every_module_has_a_place():
    lacking = {name_of(f) for f in PACKAGE.rglob('*.py')} - {*FILES}
    assert all(name.rpartition('.')[2] in [*BY_HAND, '_modidx'] for name in lacking), lacking
    assert len(set(PLACES.values())) == len(PLACES) > 40

@pytest.mark.parametrize('name', FILES)
def test_a_module_imports_only_what_stands_above_it(name):
    back_up = [other for other in imported(name) if PLACES[other] >= PLACES[name]]
    assert not back_up, f'{name} imports {", ".join(back_up)}, below it'

def test_an_arrow_back_up_would_be_seen():
    assert {'core', 'methods.sms', 'methods.rivals'} <= imported('stylizer')
    known = ['core', 'methods.sms', 'stylizer', 'cli', 'mini.data', 'studies.tables']
    assert sorted(known, key=PLACES.get) == known


# ---- lines, cells, functions ----

NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
WHOLE = 40   # lines of a function, its parameters among them

def exported_cells()->list: # numbers of lines
    cells = [''.join(c['source']) for f in NOTEBOOKS for c in json.loads(f.read_text(encoding='utf-8'))['cells']]
    return [len([line for line in s.splitlines()[1:] if line.strip()]) for s in cells if s.startswith('#| export')]

def definitions(kind):
    for name in FILES:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, kind): yield name, node

def functions(): return [(f'{name}.{n.name}', n) for name, n in definitions((ast.FunctionDef, ast.AsyncFunctionDef))]

def test_an_exported_cell_is_one_idea():
    lines = exported_cells()
    assert np.median(lines) <= 12 and np.percentile(lines, 90) <= 22

def test_functions_are_short():
    lines = {name: n.end_lineno-n.lineno+1 for name, n in functions()}
    assert np.percentile([*lines.values()], 90) <= 14
    assert not [name for name, n in lines.items() if n > WHOLE]

MOST = 7   # parameters: more make a dataclass with a name, or stand one a line where people call by name

def parameters_of(node)->tuple: # but for self; how many have a name of their own
    a = node.args
    named = [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ('self', 'cls')]
    return [*named, *(p for p in (a.vararg, a.kwarg) if p)], len(named)

def called_by_people(module:ast.Module): # (name, function): what has no underscore, and how public classes are made
    for node in module.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        if isinstance(node, ast.FunctionDef): yield node.name, node
        for f in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(f, ast.FunctionDef): continue
            if f.name == '__init__' or not f.name.startswith('_'): yield f'{node.name}.{f.name}', f

def has_line_and_comment(parameters:list, lines:list)->bool: # the comment beside each, or above it
    if len({p.lineno for p in parameters}) < len(parameters): return False
    return all('#' in lines[p.end_lineno-1] or lines[p.lineno-2].lstrip().startswith('#') for p in parameters)

def test_functions_take_few_parameters():
    "Seven at most; public ones with more say what each is, on its own line"
    crowded = []
    for module, file in FILES.items():
        lines, tree = file.read_text(encoding='utf-8').splitlines(), tree_of(module)
        public = {id(f): name for name, f in called_by_people(tree)}
        for f in ast.walk(tree):
            if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
            parameters, named = parameters_of(f)
            told = id(f) in public and has_line_and_comment(parameters, lines)
            if named > MOST and not told: crowded.append(f'{module}.{public.get(id(f), f.name)}')
    assert not crowded

def test_what_is_public_says_what_it_is():
    silent = [f'{name}.{node.name}' for name in FILES
              for node in tree_of(name).body
              if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
              and not ast.get_docstring(node)]
    assert not silent

def test_no_statement_is_an_expression_for_its_effect():
    kinds = ast.ListComp, ast.SetComp, ast.Tuple, ast.BoolOp
    found = [f'{name}:{n.lineno}' for name, n in definitions(ast.Expr) if isinstance(n.value, kinds)]
    assert not found

def test_a_class_grows_in_its_own_module():
    "Else it depends on what has been imported what an object can do, and the reference has no page for it"
    for name in FILES:
        classes = {n.name for n in tree_of(name).body if isinstance(n, ast.ClassDef)}
        for node in tree_of(name).body:
            owner = patched_class(node)
            assert not owner or owner in classes, f'{name}.{node.name} is a method of {owner}'

def test_no_private_helper_crosses_a_room():
    found = [f'{name}: {a.name}' for name, n in definitions(ast.ImportFrom) if n.level or 'stylekit' in (n.module or '')
             for a in n.names if a.name.startswith('_') and not a.name.startswith('__')]
    assert not found


# ---- what notebooks show ----

@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_no_logs(notebook):
    "No warnings, no progress bars, no paths of a machine; a figure is small"
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        for o in cell.get('outputs', ()):
            text = ''.join(o.get('text', ()))
            assert o.get('name') != 'stderr' and '\r' not in text and str(ROOT) not in text, cell['id']
            assert max((len(''.join(v)) for v in o.get('data', {}).values()), default=0) < 1_500_000, cell['id']


# ---- links ----

PAGES = [*NOTEBOOKS, *ROOT.glob('*.md'), *(ROOT/'nbs').rglob('*.md'), *PACKAGE.rglob('*.md')]

def links_of(page:Path)->set:
    "Where Markdown points to, but for the web and places on the same page"
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.ipynb':
        text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    found = re.findall(r'\]\(([^)\s]+)\)', text)
    return {link.partition('#')[0] for link in found if not re.match(r'[a-z]+:|#', link)}

@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_link_points_at_a_file(page):
    lost = [link for link in links_of(page) if not (page.parent/link).exists()]
    assert not lost
