"""The reference: a page for each module, made from its text; fields of records; words of the index."""
import ast
import re
import tomllib
from pathlib import Path
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from definitions import read_package
from notebooks import link_names, mend_readme, place_of

FORGE = 'https://github.com/stylekit/stylekit/blob/main'
log = logging.getLogger(__name__)

def escape(text:str)->str:
    "Plain text in a cell of a Markdown table; what is in backticks stays code"
    parts = text.split('`')
    if len(parts) % 2 == 0: parts = [text.replace('`', "'")]
    for n, part in enumerate(parts):
        if n % 2 == 0:
            for c in '\\*_<[]${}|~': part = part.replace(c, f'\\{c}')
        else: part = part.replace('|', r'\|')
        parts[n] = part
    return '`'.join(parts)

def code(text:str)->str: return f'`{text}`'.replace('|', r'\|') if text else ''

def rows_of(parameters:list, returns=None)->list: # lines of a Markdown table
    rows = [(code(p.name), code(p.type.strip("'")), code(p.default), escape(p.about)) for p in parameters]
    if returns and (returns.type or returns.about):
        rows.append(('*returns*', code(returns.type.strip("'")), '', escape(returns.about)))
    if not any(''.join(row[1:]) for row in rows): return []
    heads = ['', 'type', 'default', 'meaning']
    kept = [0, *(n for n in (1, 2, 3) if any(row[n] for row in rows))]
    lines = [[heads[n] for n in kept], ['---']*len(kept), *([row[n] for n in kept] for row in rows)]
    return [f'| {" | ".join(line)} |' for line in lines]

def signature(d)->str:
    if d.kind in ('property', 'data', 'attribute'): return ''
    return f'({", ".join(p.name+(f"={p.default}" if p.default else "") for p in d.parameters)})'

def block(d, module)->list: # lines of MyST
    "One definition, with its members within"
    name = f'stylekit.{d.home}.{d.name}' if d.home else d.name
    inner = [line for m in d.members for line in block(m, module)]
    ticks = '`'*(4 if inner else 3)
    at = f'../../{place_of(module.notebook)}.html#cell-{d.cell}'
    lines = [f'{ticks}{{py:{d.kind}}} {name}{signature(d)}', '']
    if d.kind == 'data': lines += data_lines(d)
    else: lines += [escape(d.doc.replace('\n', ' ')), '', *rows_of(d.parameters, d.returns), '']
    if d.bases: lines += [f'Based on {", ".join(code(b) for b in d.bases)}.', '']
    return [*lines, f'<a class="source" href="{at}">source and why</a>', '', *inner, ticks, '']

def data_lines(d)->list:
    p = d.parameters[0] if d.parameters else None
    value = p.default if p and len(p.default) <= 100 else ''
    return [escape(d.doc), '', f'Value: {code(value)}' if value else '', '']

def page_of(module)->str:
    head = ['---', 'orphan: true', '---', '', f'# stylekit.{module.name}', '', escape(module.doc), '']
    where = [f'Written in the notebook [{module.notebook}](../../{module.notebook}), which says why; '
             f'[as a module]({FORGE}/stylekit/{module.name.replace(".", "/")}.py). [All modules](index.md)', '']
    lines = [*head, *where, f'```{{py:module}} stylekit.{module.name}', '```', '']
    lines += [line for d in module.definitions for line in block(d, module)]
    return '\n'.join(lines)

def top_names(package:Path)->dict: # name -> module, as `stylekit/__init__.py` has them
    tree = ast.parse((package/'__init__.py').read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_NAMES':
            return ast.literal_eval(node.value)
    return {}

WINGS = {'': 'The loop and what it needs'} | dict(
    methods='Methods', clip='Control-CLIP', measure='Measures', pilot='Pilot', app='Panels and the page',
    mini='How the embedded model was made', studies='Studies: not in the wheel')

def contents(modules:list, top:dict)->str: # of docs/api/index.md
    "Names that are had by `from stylekit import ...`, then all modules"
    docs = {f'{m.name}.{d.name}': d.doc for m in modules for d in m.definitions}
    lines = ['# API', '', 'A page for each module, made from its text: each public name with its parameters, their '
             'types, shapes, units and defaults, and a link to the cell that it is written in.', '',
             '## What `from stylekit import ...` has', '', '| name | |', '|---|---|']
    for home, names in top.items():
        for n in names.split():
            lines.append(f'| {{py:obj}}`{n} <stylekit.{home}.{n}>` | {escape(docs.get(f"{home}.{n}", ""))} |')
    lines += ['', '## Modules', '']
    wings = {m.name.rpartition('.')[0] for m in modules}
    for wing in [*(w for w in WINGS if w in wings), *sorted(wings-{*WINGS})]:
        lines += [f'### {WINGS.get(wing, wing)}', '']
        lines += [f'- [`stylekit.{m.name}`]({m.name}.md): {escape(m.doc)}' for m in modules
                  if m.name.rpartition('.')[0] == wing]
        lines.append('')
    return '\n'.join(lines)

def write_changed(path:Path, text:str): # so that only what changed is read again
    if not path.exists() or path.read_text(encoding='utf-8') != text: path.write_text(text, encoding='utf-8')

def write_pages(app):
    "docs/api, one page a module; pages of modules that are gone go too"
    root, folder = Path(app.srcdir), Path(app.srcdir)/'docs'/'api'
    folder.mkdir(exist_ok=True)
    modules = read_package(root/'stylekit')
    for m in modules: write_changed(folder/f'{m.name}.md', page_of(m))
    write_changed(folder/'index.md', contents(modules, top_names(root/'stylekit')))
    for file in folder.glob('*.md'):
        if file.stem not in {m.name for m in modules} | {'index'}: file.unlink()
    app.env.stylekit_modules = {m.name: m for m in modules}
    app.env.stylekit_cells = names_by_cell(modules)

def names_by_cell(modules)->dict: # (docname, cell) -> [(label, page, anchor)]
    found = {}
    for m in modules:
        for d in [x for d in m.definitions for x in (d, *d.members)]:
            home = d.home or m.name
            told = d.name, f'docs/api/{m.name}', f'stylekit.{home}.{d.name}'
            found.setdefault((place_of(m.notebook), d.cell), []).append(told)
    return found

class Fields(SphinxDirective):
    "`{fields} records.Record`: the fields of a record, from its class"
    required_arguments = 1
    def run(self):
        home, _, name = self.arguments[0].rpartition('.')
        module = self.env.stylekit_modules.get(home)
        d = next((d for d in module.definitions if d.name == name), None) if module else None
        if d is None:
            log.warning('no class %s in the package', self.arguments[0], location=self.get_location())
            return []
        self.env.note_dependency(str(Path(self.env.srcdir)/'stylekit'/f'{home.replace(".", "/")}.py'))
        lines = [f'{escape(d.doc)} {{py:class}}`stylekit.{self.arguments[0]}`', '', *rows_of(d.parameters), '']
        node = nodes.container(classes=['fields'])
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), 0, node)
        return node.children

def expand_patterns(app, docname, source):
    "In toctrees of the first page, a pattern stands for what it matches and no other line names; that may be nothing"
    if docname != app.config.root_doc: return
    folder, lines = Path(app.srcdir)/'docs', source[0].split('\n')
    named = {entry_of(line) for line in lines}
    out = []
    for line in lines:
        if not PATTERN.fullmatch(line): out.append(line)
        else: out += [page for page in matches(folder, line) if page not in named and not named.add(page)]
    source[0] = '\n'.join(out)

def read_again(app, env, added, changed, removed): # the first page: what its patterns match may have come or gone
    return [app.config.root_doc]

PATTERN = re.compile(r'[\w./]*\*[\w./*]*')   # a line that is one

def entry_of(line:str)->str: # of a toctree: the page, without its title
    return line.partition('<')[2].rstrip('>') if line.endswith('>') else line.strip()

def matches(folder:Path, pattern:str)->list: # pages, relative to the folder
    up = pattern.startswith('../')
    home = folder.parent if up else folder
    files = [f for f in home.glob(pattern.removeprefix('../')) if f.suffix in ('.md', '.ipynb')]
    return sorted(('../' if up else '')+str(f.relative_to(home).with_suffix('')) for f in files)

def index_words(app, tree):
    "Entries of the index, so that a search for a word finds its page first: docs/index.toml"
    words = app.config.stylekit_words.get(app.env.docname, ())
    if not words: return
    section = next(iter(tree.findall(nodes.section)))
    section.insert(1, addnodes.index(entries=[('single', w, section['ids'][0], 'main', None) for w in words]))

def read_words(app, config):
    text = (Path(app.srcdir)/'docs'/'index.toml').read_text(encoding='utf-8')
    config.stylekit_words = {page: words for page, words in tomllib.loads(text).items()}

def set_language(app, pagename, templatename, context, doctree):
    "A page whose name ends in .ja says that it is Japanese"
    if pagename.endswith('.ja'): context['language'] = 'ja'

def setup(app):
    app.add_config_value('stylekit_words', {}, 'env')
    app.connect('config-inited', read_words)
    app.connect('builder-inited', write_pages)
    app.connect('source-read', mend_readme)
    app.connect('source-read', expand_patterns)
    app.connect('env-get-outdated', read_again)
    app.connect('doctree-read', link_names)
    app.connect('doctree-read', index_words)
    app.connect('html-page-context', set_language)
    app.add_directive('fields', Fields)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
