"""The pages for those who carry on: their code runs, and they know every room"""
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

def commands_of(page:Path)->list: # lines of its shell blocks, split as a shell does
    blocks = re.findall(r'```sh\n(.*?)```', page.read_text(encoding='utf-8'), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]

@pytest.mark.parametrize('page', GUIDES, ids=lambda p: p.name)
def test_the_commands_of_a_guide_are_understood(page):
    commands = commands_of(page)
    assert len(commands) > 6
    for program, name, *rest in commands:
        assert program == 'stylekit'
        make_parser(COMMANDS[name], name).parse_args(rest)

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
