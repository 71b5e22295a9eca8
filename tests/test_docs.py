"""The pages for those who carry on: their code runs, and they know every room"""
import re
from pathlib import Path
import pytest
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
