"""What a module defines, read from its text: names, parameters with what stands beside them, the cell of each.

Nothing is imported, so the reference is made in a second, on any Python, with nothing installed."""
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

@dataclass
class Parameter:
    name: str
    type: str = ''
    default: str = ''
    about: str = ''       # the comment beside it

@dataclass
class Definition:
    "A function, a class, a property or a value"
    name: str             # within its module: `Backbone.encode`
    kind: str             # 'function', 'class', 'method', 'property', 'attribute', 'data'
    doc: str = ''
    cell: str = ''        # id of the notebook's cell
    parameters: list = field(default_factory=list)
    returns: Parameter = None
    members: list = field(default_factory=list)
    bases: tuple = ()
    home: str = ''        # module of the class that a method is added to, if it is another

@dataclass
class Module:
    name: str             # 'methods.sms'
    notebook: str         # 'nbs/06_sms.ipynb'
    doc: str
    definitions: list

def comments_of(text:str)->dict: # line -> (column, comment)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: (t.start[1], t.string.lstrip('# ').strip()) for t in tokens if t.type == tokenize.COMMENT}

class Reader:
    "One module's text"
    def __init__(self, text:str):
        self.text, self.lines = text, text.splitlines()
        self.comments = comments_of(text)
    def source(self, node)->str:
        "As it is written, in one line; `ast.get_source_segment` reads the whole module each time"
        if node is None: return ''
        lines = [line.encode() for line in self.lines[node.lineno-1:node.end_lineno]]
        lines[-1] = lines[-1][:node.end_col_offset]
        lines[0] = lines[0][node.col_offset:]
        return re.sub(r'\s+', ' ', b' '.join(lines).decode())
    def cell(self, line:int)->str:
        "Id of the notebook's cell that a line comes from"
        for at in range(line-1, -1, -1):
            if found := re.match(r'# %% \S+ #(\w+)', self.lines[at]): return found[1]
        return ''
    def above(self, line:int)->str:
        "The comment in a line of its own over this one"
        column, text = self.comments.get(line-1, (0, ''))
        return text if text and self.lines[line-2][:column].strip() == '' else ''
    def beside(self, line:int)->str: return self.comments.get(line, (0, ''))[1]

def named_parameters(a:ast.arguments)->list: # (argument, default, stars)
    plain = [*a.posonlyargs, *a.args]
    found = list(zip(plain, [None]*(len(plain)-len(a.defaults))+a.defaults, ['']*len(plain)))
    if a.vararg: found.append((a.vararg, None, '*'))
    found += [(p, d, '') for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: found.append((a.kwarg, None, '**'))
    return found

def share_comment(group:list, text:str): # parameters of one line; a part for each, or one for all
    parts = [p.strip() for p in text.split(';')]
    if len(parts) != len(group): parts = [text]*len(group)
    for p, about in zip(group, parts): p.about = about

def parameters_of(reader:Reader, f)->tuple: # of a function, and what it returns
    "As in docments: a comment says what stands in its line, and after the last bracket what comes back"
    by_line, returns = {}, Parameter('', reader.source(f.returns))
    for arg, default, stars in named_parameters(f.args):
        if arg.arg in ('self', 'cls'): continue
        p = Parameter(stars+arg.arg, reader.source(arg.annotation), reader.source(default))
        by_line.setdefault((default or arg).end_lineno, []).append(p)
    end = max(f.lineno, f.body[0].lineno-1 if f.body[0].lineno > f.lineno else f.lineno)
    heads = [line for line in range(f.lineno, end+1) if re.search(r':\s*(#.*)?$|\)\s*(->.*)?:', reader.lines[line-1])]
    last = next((line for line in heads if line >= max(by_line, default=f.lineno)), f.lineno)
    for line, group in by_line.items():
        text = reader.beside(line) or reader.above(line)
        if line == last: text = split_return(text, group, returns)
        share_comment(group, text)
    if last not in by_line: returns.about = reader.beside(last)
    return [p for group in by_line.values() for p in group], returns

def split_return(text:str, group:list, returns:Parameter)->str: # what is left for the parameters
    "The comment of a last line that holds parameters too"
    parts = [p.strip() for p in text.split(';')]
    if len(parts) == len(group)+1:
        returns.about = parts.pop()
        return '; '.join(parts)
    if len(parts) == len(group) or not text: return text
    returns.about = text
    return ''

def decorators(node)->dict: # name -> call or name
    return {getattr(d.func if isinstance(d, ast.Call) else d, 'id', getattr(d, 'attr', '')): d
            for d in node.decorator_list}

def is_property(node)->bool:
    known = decorators(node)
    patch = known.get('patch')
    as_prop = isinstance(patch, ast.Call) and any(k.arg == 'as_prop' for k in patch.keywords)
    return as_prop or bool({'property', 'cached_property'} & {*known})

def function_of(reader:Reader, node, owner:str='')->Definition:
    parameters, returns = parameters_of(reader, node)
    kind = 'property' if owner and is_property(node) else 'method' if owner else 'function'
    name = f'{owner}.{node.name}' if owner else node.name
    return Definition(name, kind, ast.get_docstring(node) or '', reader.cell(node.lineno), parameters, returns)

def field_of(reader:Reader, node, owner:str='')->Definition: # an annotated name, or an assigned one
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    about = reader.beside(node.end_lineno) or reader.above(node.lineno)
    p = Parameter(target.id, reader.source(getattr(node, 'annotation', None)), default_of(reader, node.value), about)
    name = f'{owner}.{p.name}' if owner else p.name
    return Definition(name, 'attribute' if owner else 'data', about, reader.cell(node.lineno), [p])

def default_of(reader:Reader, value)->str: # of a dataclass's field, as a person would write it
    if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'field':
        said = {k.arg: k.value for k in value.keywords}
        if 'default' in said: return reader.source(said['default'])
        if 'default_factory' in said: return f'{reader.source(said["default_factory"])}()'
        return ''
    return reader.source(value)

def is_shown(name:str)->bool: return not name.startswith('_') or name == '__call__'

def class_of(reader:Reader, node)->Definition:
    bases = tuple(reader.source(b) for b in node.bases)
    found = Definition(node.name, 'class', ast.get_docstring(node) or '', reader.cell(node.lineno), bases=bases)
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            if item.name == '__init__': found.parameters, _ = parameters_of(reader, item)
            elif is_shown(item.name) and 'setter' not in decorators(item):
                found.members.append(function_of(reader, item, node.name))
        elif isinstance(item, ast.AnnAssign) and is_shown(item.target.id) and 'dataclass' in decorators(node):
            found.parameters += field_of(reader, item).parameters
    return found

def patched_class(node)->str: # its name, or ''
    if not isinstance(node, ast.FunctionDef) or 'patch' not in decorators(node): return ''
    first = next(iter(node.args.args), None)
    return getattr(first.annotation, 'id', '') if first is not None else ''

def listed(tree:ast.Module)->list: # __all__
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return ast.literal_eval(node.value)
    return []

def definitions_of(reader:Reader, tree:ast.Module)->list:
    public, found = listed(tree), {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in public: found[node.name] = class_of(reader, node)
        elif owner := patched_class(node):
            if is_shown(node.name): add_method(found, function_of(reader, node, owner))
        elif isinstance(node, ast.FunctionDef) and node.name in public: found[node.name] = function_of(reader, node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)): add_values(found, reader, node, public)
    return [*found.values()]

def add_method(found:dict, method:Definition): # to its class, or as one that another module's class gains
    owner = found.get(method.name.partition('.')[0])
    if owner is None: found[method.name] = method
    else: owner.members = [m for m in owner.members if m.name != method.name]+[method]

def add_values(found:dict, reader:Reader, node, public:list):
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    names = [t for t in targets for t in (t.elts if isinstance(t, ast.Tuple) else [t])]
    for t in names:
        if getattr(t, 'id', '') not in public or t.id in found: continue
        if len(names) == 1: found[t.id] = field_of(reader, node)
        else: found[t.id] = Definition(t.id, 'data', reader.beside(node.end_lineno), reader.cell(node.lineno))

def read_module(file:Path, package:Path)->Module: # None: no notebook wrote it
    text = file.read_text(encoding='utf-8')
    notebook = re.search(r'File to edit: \S*?(nbs/\S+\.ipynb)', text)
    if not notebook: return None
    tree = ast.parse(text)
    name = '.'.join(file.relative_to(package).with_suffix('').parts)
    return Module(name, notebook[1], ast.get_docstring(tree) or '', definitions_of(Reader(text), tree))

def read_package(package:Path)->list: # Modules, in the order of their notebooks; places of classes are known
    found = [m for f in sorted(package.rglob('*.py')) if (m := read_module(f, package))]
    homes = {d.name: m.name for m in found for d in m.definitions if d.kind == 'class'}
    for m in found:
        for d in m.definitions:
            owner, dot, _ = d.name.partition('.')
            if dot: d.home = homes.get(owner, '')
    return sorted(found, key=lambda m: m.notebook)
