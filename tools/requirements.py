"""What settings.ini asks for, one requirement a line.

  requirements.py           everything that `.[dev]` installs
  requirements.py docs      what the site is made with
  requirements.py oldest    what `.` installs, each at the lowest version allowed, and what the tests need beside it
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

# nbdev wants a newer fastcore than stylekit does, JupyterLab and Voilà a newer ipywidgets; Ray is no part of the tests
NOT_WITH_OLDEST = re.compile(r'nbdev|jupyterlab|voila|ray|playwright|build|twine|sphinx|myst|furo')

settings = ConfigParser(delimiters=['='])
settings.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
lists = {key: value.split() for key, value in settings['DEFAULT'].items() if key.endswith('requirements')}
if sys.argv[1:] == ['docs']:
    print(*lists['docs_requirements'], sep='\n')
    sys.exit()
run_time, rest = lists.pop('requirements'), sum(lists.values(), [])
if sys.argv[1:] == ['oldest']:
    run_time = [r.replace('>=', '==') for r in run_time]
    rest = [r for r in rest if not NOT_WITH_OLDEST.match(r)]
print(*sorted({*run_time, *rest}), sep='\n')
