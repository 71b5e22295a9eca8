"The site: pages of docs/ and every notebook as it is; `make docs` builds it"
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT/'docs'/'_ext')]

project, author = 'stylekit', 'The stylekit authors'
project_copyright = author
version = release = re.search(r'__version__ = "([^"]+)"', (ROOT/'stylekit'/'__init__.py').read_text())[1]
# Sources are the repository, so that a link means the same here and on the forge
root_doc = 'docs/index'
include_patterns = ['docs/**', 'nbs/**', 'stylekit/assets/**', '*.md']
exclude_patterns = ['README.md', 'docs/_*/**', '**/.ipynb_checkpoints', 'nbs/**/README.md']

extensions = ['myst_nb', 'reference']
nb_execution_mode = 'off'
nb_custom_formats = {'.ipynb': ['notebooks.read', {}]}
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 4
myst_dmath_double_inline = True   # $$…$$ within a line, as in a list
nb_code_prompt_show = 'Imports'
nb_code_prompt_hide = 'Imports'
smartquotes = False              # what is said of values stays as it is typed
python_display_short_literal_types = True
add_module_names = False

html_theme = 'furo'
pygments_dark_style = 'github-dark'
html_title = 'stylekit'
html_static_path = ['_static', '_build/npm/mathjax-3.2.2']
mathjax_path = 'tex-svg.js'      # of our own, see tools/pages.py: the site loads nothing from elsewhere
mathjax3_config = {'options': {'enableMenu': False}}
html_css_files = ['stylekit.css']
html_copy_source = html_show_sourcelink = False
html_additional_pages = {'index': 'forward.html'}
templates_path = ['_templates']
