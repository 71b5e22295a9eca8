"""Notebooks as a reader wants them: nbdev's own lines are gone, and what is exported says where it goes."""
import re
from pathlib import PurePosixPath
import nbformat
from docutils import nodes

# What nbdev's flags mean for a reader
COSTS = dict(slow='takes minutes', cuda='needs a GPU', browser='needs a browser')

def directives_of(source:str)->dict: # name -> rest of its line
    found = (line[2:].strip().partition(' ') for line in source.splitlines() if line.startswith('#|'))
    return {name.rstrip(':'): rest.strip() for name, _, rest in found}

def is_for_readers(cell)->bool:
    if cell.cell_type != 'code': return True
    told = directives_of(cell.source)
    return not {'hide', 'default_exp'} & {*told} and bool(without_directives(cell.source))

def without_directives(source:str)->str: return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()

def is_import(line:str)->bool: # or a line that goes on with one
    return line.startswith(('import ', 'from ', ' ', ')', '#')) or not line.strip()

def is_all_imports(source:str)->bool:
    return source.startswith(('import ', 'from ')) and all(map(is_import, source.splitlines()))

def tidy(cell):
    "Directives off; tags say what they said"
    told = directives_of(cell.source)
    cell.source = without_directives(cell.source)
    if 'hide_output' in told: cell.outputs = []
    tags = [name for name in COSTS if name in told]
    if {'export', 'exports'} & {*told}: tags.append('exported')
    if is_all_imports(cell.source): tags.append('hide-input')
    cell.metadata = nbformat.from_dict(dict(tags=tags, cell=cell.get('id', '')))
    return cell

def read(text:str): # what myst-nb reads each .ipynb with
    book = nbformat.reads(text, as_version=4)
    book.cells = [tidy(c) if c.cell_type == 'code' else c for c in book.cells if is_for_readers(c)]
    return book

def link_names(app, tree):
    "A place for each cell, and over what is exported its names in the reference"
    docname = app.env.docname
    up = '../'*docname.count('/')
    for cell in [n for n in tree.findall(nodes.container) if n.get('nb_element') == 'cell_code']:
        told = cell.get('cell_metadata') or {}
        mark = told.get('cell')
        if mark: cell['ids'].append(f'cell-{mark}')
        said = [nodes.inline('', COSTS[t], classes=['cost']) for t in told.get('tags', ()) if t in COSTS]
        for label, page, anchor in app.env.stylekit_cells.get((docname, mark), ()):
            ref = nodes.reference('', '', nodes.literal('', label), refuri=f'{up}{page}.html#{anchor}', internal=True)
            said.append(ref)
        if said: cell.insert(0, nodes.paragraph('', '', *said, classes=['cell-head']))

def mend_readme(app, docname, source):
    "README.md is made from this notebook, which is on the site instead"
    if docname.count('/'): return
    source[0] = source[0].replace('](README.md)', '](nbs/index.ipynb)')

def place_of(notebook:str)->str: # docname
    return str(PurePosixPath(notebook).with_suffix(''))
