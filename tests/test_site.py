"""The site: it knows every public name and every record, a search finds the right page first, nothing comes from
elsewhere"""
import ast
import re
import subprocess
import sys
from pathlib import Path
import pytest
from stylekit import _modidx

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'docs'/'_ext'))
from definitions import Reader, definitions_of, read_package

# Records that are no file, and no line of one
ANSWERS = {'ColorDifference', 'PaletteError', 'ColorShift', 'TrainingReport', 'Credentials', 'RightsCheck', 'Override',
           'RightsRow', 'Try', 'Found', 'CostAccount', 'Plan', 'StudyAnalysis', 'RankCorrelation'}
SAMPLE = '''
__all__ = ['LIMIT', 'Thing', 'shrink']
LIMIT = 3   # of tries

# %% ../nbs/x.ipynb #aaaa1111
@dataclass
class Thing(Record):
    "A thing"
    size: tuple[int, int]   # (width, height) in pixels
    name: str = limited('', choices=(1, 2))  # what it is called
    def __init_subclass__(cls): ...

# %% ../nbs/x.ipynb #bbbb2222
@patch
def grow(self:Thing, by:float=.5, # share; of its size
        )->'Thing': # a new one
    "Make it larger"

def shrink(x, y:int=2): # (H, W) in [0, 1]; times; like x
    "Make it smaller"
'''

def test_a_module_is_read_from_its_text():
    limit, thing, shrink = definitions_of(Reader(SAMPLE), ast.parse(SAMPLE))
    assert (limit.kind, limit.doc, limit.parameters[0].default) == ('data', 'of tries', '3')
    assert [(p.name, p.type, p.about) for p in thing.parameters] == [
        ('size', 'tuple[int, int]', '(width, height) in pixels'), ('name', 'str', 'what it is called')]
    grow, = thing.members
    assert (thing.cell, grow.cell, grow.kind) == ('aaaa1111', 'bbbb2222', 'method')
    assert [(p.name, p.default, p.about) for p in grow.parameters] == [('by', '.5', 'share; of its size')]
    assert (grow.returns.type, grow.returns.about) == ("'Thing'", 'a new one')
    assert [p.about for p in shrink.parameters] == ['(H, W) in [0, 1]', 'times'] and shrink.returns.about == 'like x'

MODULES = read_package(ROOT/'stylekit')

def public_names(): # as nbdev has them: not by what is tested here
    for home, names in _modidx.d['syms'].items():
        for name in names:
            parts = name[len(home)+1:].split('.')
            if not any(p.startswith('_') and p != '__call__' for p in parts): yield name

def test_every_public_name_is_read():
    known = {f'stylekit.{m.name}.{d.name}' for m in MODULES for top in m.definitions for d in [top, *top.members]}
    assert len(known) > 1000 and not {*public_names()} - known

def test_parameters_are_read():
    stylize = next(d for m in MODULES if m.name == 'stylizer' for d in m.definitions if d.name == 'stylize')
    told = {p.name: p for p in stylize.parameters}
    assert told['caption'].default == "''" and 'without the style' in told['caption'].about
    assert 'StylizeResult' in stylize.returns.about and all(p.about for p in stylize.parameters)

def test_file_formats_know_every_record():
    page = (ROOT/'docs'/'formats.md').read_text(encoding='utf-8')
    shown = {name.rpartition('.')[2] for name in re.findall(r'{fields} (\S+)', page)}
    records = {d.name for m in MODULES if m.name.partition('.')[0] not in ('mini', 'studies')
               for d in m.definitions if 'Record' in d.bases}
    assert not records - shown - ANSWERS


# ---- built ----

@pytest.fixture(scope='module')
def site():
    "The folder that `make docs` writes; what has not changed since is not read again"
    pytest.importorskip('myst_nb', reason='the extra `docs`, for Python 3.11 and newer')
    made = subprocess.run([sys.executable, ROOT/'tools'/'pages.py'], capture_output=True, text=True, cwd=ROOT)
    assert made.returncode == 0, made.stderr[-3000:]
    return ROOT/'docs'/'_build'/'html'

@pytest.mark.slow
def test_every_public_name_has_its_place(site):
    from sphinx.util.inventory import InventoryFile
    with open(site/'objects.inv', 'rb') as f: found = InventoryFile.load(f, '', lambda _, page: page)
    found = getattr(found, 'data', found)             # newer Sphinx
    named = {name for kind, names in found.items() if kind.startswith('py:') for name in names}
    assert not {*public_names()} - named

@pytest.mark.slow
def test_cells_of_the_reference_are_there(site):
    "What is said to be written in a cell leads to it"
    for page in ('docs/api/stylizer.html', 'docs/api/methods.sms.html', 'docs/api/mini.data.html'):
        links = re.findall(r'href="([^"#]+)#(cell-\w+)"', (site/page).read_text(encoding='utf-8'))
        assert links
        for link, cell in links: assert f'id="{cell}"' in (site/page).parent.joinpath(link).read_text(encoding='utf-8')

@pytest.mark.slow
def test_links_of_html_lead_somewhere(site):
    "Sphinx looks at all links but those that are written as HTML"
    for page in [site/'index.html', *(site/'docs').glob('*.html'), site/'demo'/'index.html']:
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding='utf-8')):
            if not re.match(r'[a-z]+:', link): assert (page.parent/link).exists(), (page, link)

@pytest.fixture(scope='module')
def served(site):
    import functools, http.server, threading
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

@pytest.mark.slow
@pytest.mark.parametrize('word, page', [
    ('kohya', 'nbs/03b_formats'), ('resume', 'nbs/08_stylizer'), ('transparent', 'nbs/00b_images'),
    ('own style', 'nbs/tutorials/own_style'), ('protect', 'nbs/05a_regions')])
def test_a_search_finds_the_right_page_first(served, chrome, word, page):
    tab = chrome.new_page()
    tab.goto(f'{served}search.html?q={word.replace(" ", "+")}')
    tab.wait_for_selector('#search-results li a', timeout=60_000)
    first = tab.get_attribute('#search-results li a', 'href')
    tab.close()
    assert f'{page}.html' in first

@pytest.mark.slow
def test_formulas_are_drawn_and_nothing_comes_from_elsewhere(served, chrome):
    tab, asked = chrome.new_page(), []
    tab.on('request', lambda r: asked.append(r.url))
    tab.goto(f'{served}nbs/06_sms.html')
    tab.wait_for_selector('mjx-container svg', state='attached', timeout=60_000)
    assert tab.locator('mjx-container').count() > 20 and tab.locator('mjx-merror').count() == 0
    tab.close()
    assert not [url for url in asked if not url.startswith((served, 'data:'))]

@pytest.mark.slow
def test_the_page_in_the_browser_is_part_of_the_site(served, chrome):
    tab, asked = chrome.new_page(), []
    tab.on('request', lambda r: asked.append(r.url))
    tab.goto(f'{served}docs/index.html')
    tab.click('a.button')
    tab.wait_for_selector('#download[href]', timeout=120_000)
    tab.close()
    assert not [url for url in asked if not url.startswith((served, 'data:', f'blob:{served}'))]
