"The page in a real browser: a folder that outlives its kernel, and people who wait and see nothing of each other"
import io
from importlib.util import find_spec
import pytest
import browser
from browser import BEYOND, PIXELS, Page, Server, page_command, pale, unnamed

if not browser.CHROMIUM:
    pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)', allow_module_level=True)
for name in ('playwright', 'voila'):
    if not find_spec(name): pytest.skip(f'{name} is not installed: pip install -e ".[dev]"', allow_module_level=True)
from PIL import Image, ImageDraw
from stylekit import sample_image
from stylekit.folders import FolderRecord, FolderRun
from stylekit.records import read_lines

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "A page whose pictures take few steps"
    how = dict(folders=True, queue=True, patience=3, steps=6, max_upload=5_000_000)
    with Server(tmp_path_factory.mktemp('page'), [], page_command(how, token='right', max_kernels=2)) as server:
        server.link = f'{server.url}?token=right'
        yield server

def folder_of(home, names=('an owl', 'a taxi', 'a penguin', 'an owl at night')):
    (home/'in').mkdir()
    for name in names: sample_image(name.split()[1]).resize((64, 64)).save(home/'in'/f'{name}.png')
    (home/'in'/'no picture.png').write_bytes(b'nothing')
    return home/'in', home/'in-stylized'

def view(p, label): p.tab.click(f'.sk-views button >> text={label}')

def leave(p):
    "As somebody does who closes a tab: the page says goodbye"
    p.tab.goto('about:blank')
    p.close()

IN_FOLDER = "document.querySelector('.sk-view-folder .sk-status')?.innerText || ''"

def test_a_folder_goes_on_after_a_kill(chrome, page, tmp_path):
    "Its kernel is killed in the middle; the page is loaded again, knows the folder, and makes what is missing"
    folder, out = folder_of(tmp_path)
    p = Page(chrome, page.link, 1300, 'commit')
    p.see('.sk-panel img.sk-preview')
    assert 'token' not in p.tab.url
    view(p, 'A folder')
    p.tab.fill('.sk-view-folder .sk-folder input', str(folder))
    p.tab.keyboard.press('Enter')
    p.until(f"({IN_FOLDER}).startsWith('5 pictures')")
    p.click('folder-start')
    p.until("document.querySelectorAll('.sk-thumb img').length > 0")
    p.tab.wait_for_timeout(1200)                               # the session is kept once a second
    assert page.kill_kernels() == 1
    made = {f.name: f.stat().st_mtime_ns for f in out.glob('*.png')}
    assert 1 <= len(made) < 4
    p.tab.reload(wait_until='commit')
    p.see('.sk-panel img.sk-preview')
    view(p, 'A folder')
    p.until(f"/^{len(made)} of 5 pictures are there/.test({IN_FOLDER})")
    assert p.tab.input_value('.sk-view-folder .sk-folder input') == str(folder)
    p.click('folder-start')
    p.until(f"({IN_FOLDER}).startsWith('Done: 4 of 5')")
    assert {name: (out/name).stat().st_mtime_ns for name in made} == made            # not made again
    said = p.tab.inner_text('.sk-view-folder .sk-wrong')
    assert 'no picture.png' in said and p.tab.locator('.sk-thumb img').count() == 4
    records = [r for r in read_lines(out/'manifest.jsonl', FolderRun, FolderRecord) if isinstance(r, FolderRecord)]
    assert len(records) == 5 and sum(bool(r.error) for r in records) == 1
    for width in (1300, 400):
        p.resize(width)
        assert p.tab.evaluate(BEYOND) == [], width
        p.shot(f'page-folder-{width}')
    assert unnamed(p.tab, '.sk-view-folder') == []
    assert pale(p.tab, '.sk-view-folder', 'button, label, li, .sk-status') == []
    p.click('folder-review')
    p.until("document.querySelector('.sk-review .sk-title')?.innerText.includes('picture 1 of 4')")
    p.shot('page-review-400')
    view(p, 'One picture')
    p.see('.sk-view-one img.sk-preview')
    leave(p)
    page.until_kernels(0)

RED = f'''async () => {{
  {PIXELS}
  const data = await pixels('img.sk-before', 16);
  return data.filter((v, i) => i % 4 === 0 && v > 200 && data[i + 1] < 40).length / 256;
}}'''

def test_people_wait_and_see_nothing_of_each_other(chrome, page, tmp_path):
    "18: a paused run gives its turn up, is there again after a reload, and is its owner's alone"
    red = Image.new('RGBA', (128, 128), '#e00000')
    red.paste((0, 0, 0, 0), (0, 0, 30, 30))
    ImageDraw.Draw(red).ellipse((40, 40, 100, 100), fill='#e0e000')
    red.save(tmp_path/'xylo4711.png')
    one, two = (Page(chrome, page.link, 800, 'commit') for _ in range(2))
    for p in (one, two): p.see('.sk-panel img.sk-preview')
    three = Page(chrome, page.link, 800)
    assert 'You are number 1 of 1 who wait' in three.tab.inner_text('main')
    one.choose_picture(tmp_path/'xylo4711.png')
    one.says('128 × 128')
    one.caption('a thing of xylo4711')
    one.click('start')
    one.press('pause')
    one.says('Paused')
    two.click('start')
    two.says('this one is next')
    two.shot('page-waits-800')
    two.says('Done')
    one.says('Others may have the turn')
    one.tab.wait_for_timeout(1200)                             # the session is kept once a second
    one.tab.reload(wait_until='commit')
    one.says('The page was loaded again. The picture was at step')
    assert one.tab.input_value('.sk-caption input') == 'a thing of xylo4711' and one.tab.evaluate(RED) > .3
    one.shot('page-again-800')
    one.click('pause')                                         # Resume
    one.says('Done: 6 steps')
    assert one.recipe()['caption'] == 'a thing of xylo4711'
    with Image.open(io.BytesIO(one.download('save'))) as made:
        assert made.mode == 'RGBA' and made.getpixel((5, 5))[3] == 0
    two.tab.reload(wait_until='commit')
    two.says('this is the last picture')
    assert two.tab.input_value('.sk-caption input') == 'an owl' and two.tab.evaluate(RED) == 0
    assert 'xylo4711' not in two.tab.content()
    one.tab.wait_for_timeout(1200)
    one.tab.reload(wait_until='commit')
    one.says('this is the last picture')                       # and can be saved
    assert one.recipe()['caption'] == 'a thing of xylo4711'
    for p in (three, one, two): leave(p)
    page.until_kernels(0)
