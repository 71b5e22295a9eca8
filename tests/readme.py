"README.md from nbs/index.ipynb"
import posixpath, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
nb = nbformat.read(root/'nbs/index.ipynb', 4)
nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\b', c.source, re.M)]
for c in nb.cells:
    if re.search(r'^#\|\s*hide_output\b', c.source, re.M): c.outputs = []
    if c.cell_type=='code': c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
body, _ = MarkdownExporter().from_notebook_node(nb)
def from_root(link): return f"]({posixpath.normpath('nbs/'+link[1])})"
body = re.sub(r'\]\((?!https?:|#)([^)]+)\)', from_root, body)
(root/'README.md').write_text(body.strip()+'\n', encoding='utf-8')
