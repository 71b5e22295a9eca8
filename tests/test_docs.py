"""The pages for those who carry on: their code runs, and they know every room"""
import json
import re
import shlex
from pathlib import Path
import pytest
from stylekit.cli import COMMANDS, make_parser
from stylekit.measure import evaluate
from stylekit.methods import rivals
from test_house import FILES, LATER, PLACES

ROOT = Path(__file__).parents[1]

REGISTERS = rivals.METHODS, rivals.PRESETS, evaluate.METRICS

@pytest.fixture
def registers():
    "What a page adds is gone afterwards"
    before = [dict(r) for r in REGISTERS]
    yield
    for register, old in zip(REGISTERS, before):
        register.clear()
        register.update(old)

@pytest.mark.parametrize('page', ['ARCHITECTURE.md', 'CONTRIBUTING.md'])
def test_the_code_of_a_page_runs(page, registers):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/page).read_text(encoding='utf-8'), re.S)
    assert blocks
    for block in blocks: exec(compile(block, page, 'exec'), {})

def test_every_room_is_named_in_its_order():
    page = (ROOT/'ARCHITECTURE.md').read_text(encoding='utf-8')
    table = page.partition('## The rooms')[2].partition('## Words')[0]
    lines = [line.split('|')[1] for line in table.splitlines() if line.startswith('| `')]
    rooms = [m for line in lines for m in re.findall(r'`([\w.]+)`', line) if not m.startswith('stylekit.')]
    assert set(rooms) == {m for m in FILES if m.partition('.')[0] not in LATER}
    assert rooms == sorted(rooms, key=PLACES.get)

GUIDES = [ROOT/'docs'/'guide'/name for name in ('pilot.md', 'pilot.ja.md')]

PAGES = [ROOT/'README.md', *GUIDES, *sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))]

def text_of(page:Path)->str:
    "Of a notebook the prose"
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.md': return text
    return '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')

def commands_of(page:Path)->list: # lines of its shell blocks, split as a shell does
    blocks = re.findall(r'```sh\n(.*?)```', text_of(page), re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line[0] == 'stylekit']

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.json').write_text('{"a": {}}')   # one of them reads it
    for program, name, *rest in commands_of(page):
        make_parser(COMMANDS[name], name).parse_args(rest)

def test_commands_are_found():
    found = {page.stem: {line[1] for line in commands_of(page)} for page in PAGES}
    assert len(found['pilot.ja']) > 5 and len(found['quick_start']) > 12 and found['README'] == {'stylize'}

def test_guides_say_the_same():
    "The same commands, figures, links and parts"
    english, japanese = (page.read_text(encoding='utf-8') for page in GUIDES)
    for pattern in (r'^stylekit.*?(?= +#|$)', r'^#+ ', r'^- \[ \]', r'^\| \*\*', r'\.\./[\w./]+'):
        a, b = (re.findall(pattern, text, re.M) for text in (english, japanese))
        if pattern.startswith('^stylekit'): b = [line.replace(' --lang ja', '') for line in b]
        assert sorted(a) == sorted(b), pattern

def test_figures_of_the_guides_are_computed():
    from stylekit.pilot.statistics import detectable_preference, needed_items, wilson_interval
    for page in GUIDES:
        text = page.read_text(encoding='utf-8')
        rows = re.findall(r'^\| (?:100 枚中 )?(\d\d)(?: of 100(?: pictures)?| 枚) \| (\d+) \|$', text, re.M)
        assert {int(share): int(n) for share, n in rows} == {s: needed_items(s/100) for s in (60, 65, 70, 75, 80)}
        low, high = wilson_interval(24, 30)
        assert f'{low:.0%}'[:-1] in text and f'{high:.0%}'[:-1] in text and round(100*detectable_preference(30)) == 75
