"The picture in a real browser, by its pixels: line, zoom, difference, tint, brush; dark themes; what axe-core finds"
import io
import time
from importlib.util import find_spec
from types import SimpleNamespace
import pytest
import browser
from browser import BEYOND, Page, Server, pale, unnamed, violations

if not browser.CHROMIUM:
    pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)', allow_module_level=True)
for name in ('playwright', 'jupyterlab', 'voila'):
    if not find_spec(name): pytest.skip(f'{name} is not installed: pip install -e ".[dev]"', allow_module_level=True)
import numpy as np
from PIL import Image

def seen(p, css):
    "What is on the screen there, as numbers (height, width, RGB)"
    png = p.tab.locator(css).first.screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)

# ---- themes, and what axe-core finds ----

ALL = """
from pathlib import Path
from IPython.display import display
import stylekit as s
from stylekit.backbone import load_backbone
from stylekit.clip.control_clip import ControlClip
from stylekit.pilot.study import make_study
for folder, looks in dict(source='render', a='flat', b='ink').items():
    Path(folder).mkdir()
    for name in ('owl', 'taxi'): s.sample_image(name, looks).save(f'{folder}/{name}.png')
make_study(Path('study'), dict(a=Path('a'), b=Path('b')), Path('b'), Path('source'))
s.stylize_folder('source', 'out', feedforward=NETWORK)
model = load_backbone()
control = ControlClip(model.text_encoders[0], model.tokenizers[0], mode='adapter')
panel = s.StylizePanel(steps=2, limits='edge_f1=.999', backbone=model)
grid = s.ControlClipPanel(control, styles=('soft cartoon',), steps=2, backbone=model)
review, lora, spectrum = s.ReviewPanel('out', style='ink'), s.LoraPanel(), s.SpectrumPanel()
panel.start.click(), panel.wait(), panel.safely(lambda: 1/0)()
panel.view.position = 50
review._open('reasons')
for fold in (panel.stay, panel.colors, panel.limits): fold.button.value = True
shown = dict(stylize=panel, spectrum=spectrum, compare=s.ComparePanel(), lora=lora, control=grid, review=review,
             vote=s.VotePanel('study', 'ann'))
display(*shown.values())
"""
THEME = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
LETTERS = ('button, b, li, label, span, small, p, h2, select, input:not([type=range], [type=checkbox], [type=file]), '
           '.sk-text, .sk-hint, .sk-error')
PLOTS = """async (css) => Promise.all([...document.querySelectorAll(css)].filter((i) => i.src).map(async (img) => {
  await img.decode();
  const c = Object.assign(document.createElement('canvas'), { width: img.naturalWidth, height: img.naturalHeight });
  const x = c.getContext('2d');
  x.drawImage(img, 0, 0);
  const { data } = x.getImageData(0, 0, c.width, c.height);
  const seen = [];
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen.push(data[i] + data[i + 1] + data[i + 2]);
  return [data[3], Math.min(...seen), Math.max(...seen)];      // of the corner's ground; of letters and lines
}))"""

def test_all_panels_in_both_themes(chrome, lab, small_network):
    "No serious violation, nothing pale, nothing without a name or past the edge; plots have the theme's ground"
    with lab.notebook(chrome, ALL.replace('NETWORK', repr(str(small_network)))) as p:
        p.until("document.querySelectorAll('.sk-panel').length === 7")
        p.until("document.querySelector('.sk-vote')?.dataset.open === 'true'")
        p.command('application:toggle-left-area')
        for theme in ('Dark', 'Light'):
            p.tab.evaluate(THEME, f'JupyterLab {theme}')
            p.until(f"document.querySelectorAll('.sk-panel.sk-dark').length === {7*(theme == 'Dark')}")
            for width in (1300, 800, 400):
                p.resize(width, 200)
                assert p.tab.evaluate(BEYOND) == [], (theme, width)
                assert violations(p.tab, '.sk-panel') == [], (theme, width)
            assert pale(p.tab, 'body', f'.sk-panel :is({LETTERS})') == [], theme
            p.until("document.querySelectorAll('.sk-plot img[src]').length > 1")
            for ground, darkest, lightest in p.tab.evaluate(PLOTS, '.sk-panel .sk-plot img'):
                assert ground == 0 and (lightest > 600 if theme == 'Dark' else darkest < 100), theme
        assert unnamed(p.tab, 'body') == []

def test_the_page_follows_the_system(chrome, tmp_path):
    "Light or dark, as the reader's system has it; its main part is a landmark"
    with Server(tmp_path, ['--silence', 30]) as app:
        p = Page(chrome, app.url)
        p.see('.sk-panel img.sk-preview')
        for name in ('stay', 'colours', 'limits'): p.open_fold(name)
        for scheme in ('light', 'dark'):
            p.tab.emulate_media(color_scheme=scheme)
            p.until(f"!!document.querySelector('.sk-panel.sk-dark') === {str(scheme == 'dark').lower()}")
            ground = seen(p, '#rendered_cells')[2, 2]
            assert (ground < 60).all() if scheme == 'dark' else (ground == 255).all()
            assert pale(p.tab, '.sk-panel', LETTERS) == []
            for width in (1300, 800, 400):
                p.resize(width, 200)
                assert violations(p.tab, 'html', ('serious', 'critical', 'moderate')) == [], (scheme, width)
                assert p.tab.evaluate(BEYOND) == [], (scheme, width)
                p.shot(f'page-{scheme}-{width}')
        assert p.tab.locator('[role=main] h2').count() == 1
        p.close()

def test_the_page_in_japanese(chrome, tmp_path):
    "In the language of the browser: labels, a run's line, errors' first word; nothing runs past the edge"
    japanese = SimpleNamespace(new_page=lambda: chrome.new_page(locale='ja-JP'))
    with Server(tmp_path, ['--silence', 30]) as app:
        p = Page(japanese, app.url)
        p.until("document.querySelector('button.sk-start')?.innerText === '開始'")
        assert p.tab.evaluate("document.querySelector('.sk-panel .sk-panel').lang") == 'ja'
        for name in ('stay', 'colours', 'limits'): p.open_fold(name)
        for width in (1300, 400):
            p.resize(width, 200)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'page-ja-{width}')
        p.click('start')
        p.says('ステップ')
        p.click('stop')
        p.says('停止しました')
        p.resize(400, 200)
        assert p.tab.evaluate(BEYOND) == []
        p.shot('page-ja-run-400')
        p.resize(1300, 200)
        p.shot('page-ja-run-1300')
        p.close()


# ---- the picture ----

# Red before, blue now; the blue one has squares of 8 colours in its middle, a pixel each
VIEW = '''
from PIL import Image
from stylekit.app.panels import Panel
from stylekit.app.picture_view import BeforeAfter
from stylekit.app.views import MaskBrush
red, blue = Image.new('RGB', (64, 48), (200, 30, 30)), Image.new('RGB', (64, 48), (30, 30, 200))
for x in range(24, 40):
    for y in range(16, 32): blue.putpixel((x, y), ((x*y*37) % 256, (x*91) % 256, (y*53) % 256))
panel = Panel()
view = BeforeAfter(red, blue, label_before='take 1', label_after='take 2')
brush = MaskBrush(image=view.after)
panel.children = [panel.pulse, view, brush]
panel
'''

@pytest.fixture(scope='module')
def page(chrome, lab):
    "The one notebook of the tests of the view"
    with lab.notebook(chrome, VIEW, width=800) as p:
        p.until("document.querySelector('.sk-preview')?.naturalWidth === 64")
        yield p

RED, BLUE = (200, 30, 30), (30, 30, 200)

def near(colour, what, tolerance=3): return (np.abs(colour-np.array(what)) <= tolerance).all()

def column(p, share, css='.sk-stage'):
    "Which picture is seen at a share of the width, near the lower edge"
    x = seen(p, css)
    at = x[int(.9*len(x)), int(share*x.shape[1])]
    return 'before' if near(at, RED) else 'after' if near(at, BLUE) else tuple(at)

def trait(p, name): return p.execute(f'print(view.{name})')

def until(p, name, value):
    for _ in range(50):
        if trait(p, name) == str(value): return
        p.tab.wait_for_timeout(50)
    raise AssertionError((name, trait(p, name), value))

def reset(p, **traits):
    for name, value in (dict(mode='slide', position=50., zoom=0., tinted=False) | traits).items():
        p.execute(f'view.{name} = {value!r}')
    p.tab.wait_for_timeout(100)

def test_line(page):
    "Left of it is the picture before; it is moved by its grip, on the picture, and by keys; the labels are Python's"
    p = page
    reset(p, position=0.)
    assert column(p, .03) == column(p, .97) == 'after' and p.tab.inner_text('.sk-tag-after') == 'take 2'
    p.drag('.sk-handle', '.sk-stage', .6)
    p.tab.wait_for_timeout(50)
    assert [column(p, x) for x in (.03, .55, .65, .97)] == ['before', 'before', 'after', 'after']
    assert 58 < float(trait(p, 'position')) < 62
    p.tab.focus('.sk-handle')
    for key in ('Home', *['Shift+ArrowRight']*3, 'ArrowRight', 'ArrowUp', 'ArrowLeft'): p.tab.keyboard.press(key)
    until(p, 'position', 31.)
    assert [column(p, x) for x in (.28, .34)] == ['before', 'after']
    box = p.tab.locator('.sk-stage').bounding_box()
    p.tab.mouse.click(box['x']+.8*box['width'], box['y']+20)
    p.tab.wait_for_timeout(50)
    assert [column(p, x) for x in (.75, .85)] == ['before', 'after']
    slider = p.tab.get_by_role('slider', name='take 1')
    assert slider.get_attribute('aria-valuenow') == '80'

def touch(p, *points):
    "A finger is put down on the picture at shares of its width and height, moved, and lifted"
    box, fingers = p.tab.locator('.sk-stage').bounding_box(), p.tab.context.new_cdp_session(p.tab)
    at = [dict(x=box['x']+x*box['width'], y=box['y']+y*box['height']) for x, y in points]
    for kind, where in (('touchStart', at[:1]), *(('touchMove', [xy]) for xy in at[1:]), ('touchEnd', [])):
        fingers.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=where))
    p.tab.wait_for_timeout(100)

def test_line_by_touch(page):
    "On the grip; and when the picture is near, a finger beside it moves the window"
    p = page
    reset(p)
    touch(p, (.5, .5), (.4, .5), (.25, .52))
    assert 23 < float(trait(p, 'position')) < 27 and [column(p, x) for x in (.2, .3)] == ['before', 'after']
    reset(p, zoom=32.)
    p.tab.wait_for_timeout(100)
    first = seen(p, '.sk-stage')
    touch(p, (.8, .2), (.75, .3), (.7, .4))
    assert trait(p, 'position') == '50.0' and (seen(p, '.sk-stage') != first).any()

def squares(x, side, dx, dy):
    "The colour of each square of `side` pixels, and how far colours differ within the squares"
    h, w = ((n-d)//side*side for n, d in zip(x.shape, (dy, dx)))
    cells = x[dy:dy+h, dx:dx+w].reshape(h//side, side, w//side, side, 3)
    return cells[:, side//2, :, side//2], np.ptp(cells[:, 1:-1, :, 1:-1], axis=(1, 3)).max()

def test_zoom_to_pixels(page):
    "Each is a square of one colour, and the colours are the picture's own; keys, wheel and hand move the window"
    p = page
    reset(p, position=0.)
    p.tab.focus('.sk-stage')
    p.tab.keyboard.press('1')
    until(p, 'zoom', 1.)
    p.tab.wait_for_timeout(100)
    assert (np.abs(seen(p, '.sk-stage')-BLUE).max(-1) == 0).sum() == 64*48-16*16       # no more and no less
    p.execute('view.zoom = 8.')
    until(p, 'zoom', 8.)
    p.tab.wait_for_timeout(50)
    p.tab.keyboard.press('+')
    until(p, 'zoom', 16.)
    p.tab.wait_for_timeout(100)
    assert '1600 %' in p.tab.inner_text('.sk-zoomed') and '64 × 48 px' in p.tab.inner_text('.sk-zoomed')
    own = {(x*y*37 % 256, x*91 % 256, y*53 % 256) for x in range(24, 40) for y in range(16, 32)}
    middle = seen(p, '.sk-stage')[60:-60, 60:-60]
    spread, found = min((squares(middle, 16, dx, dy)[::-1] for dx in range(16) for dy in range(16)), key=lambda s: s[0])
    assert spread == 0 and {tuple(c) for c in found.reshape(-1, 3)} <= own | {BLUE}
    assert len({tuple(c) for c in found.reshape(-1, 3)}) > 20
    before = seen(p, '.sk-stage')
    for key in ('ArrowRight', 'ArrowDown'): p.tab.keyboard.press(key)
    p.tab.wait_for_timeout(50)
    after = seen(p, '.sk-stage')
    assert (after[60:-100, 60:-100] == before[100:-60, 100:-60]).all()           # by 40 pixels each way
    p.drag('.sk-stage', '.sk-stage', .6)
    p.tab.wait_for_timeout(50)
    assert (seen(p, '.sk-stage')[60:-60, 60:-60] != after[60:-60, 60:-60]).any() and trait(p, 'position') == '0.0'
    p.tab.keyboard.press('0')
    until(p, 'zoom', 0.)
    box = p.tab.locator('.sk-stage').bounding_box()
    p.tab.mouse.move(box['x']+box['width']*.5, box['y']+box['height']*.5)
    p.tab.keyboard.down('Control')
    p.tab.mouse.wheel(0, -100)
    p.tab.keyboard.up('Control')
    p.tab.wait_for_timeout(50)
    assert float(trait(p, 'zoom')) > 8
    p.tab.click('.sk-fit')
    until(p, 'zoom', 0.)

def test_side_by_side(page):
    "Each in its half, under its name"
    p = page
    reset(p)
    p.tab.click('[data-mode=side]')
    p.tab.wait_for_timeout(100)
    assert [column(p, x) for x in (.05, .45, .55, .95)] == ['before', 'before', 'after', 'after']
    tags = [p.tab.locator(f'.sk-tag-{n}').bounding_box()['x'] for n in ('before', 'after')]
    stage = p.tab.locator('.sk-stage').bounding_box()
    assert tags[0] < stage['x']+stage['width']/2 < tags[1] and p.tab.is_hidden('.sk-handle')

def test_difference(page):
    "Made in Python when it is asked for, amplified about grey; its scale is said"
    p = page
    p.execute('view.begin(red, Image.new("RGB", red.size, (203, 30, 24)))')
    reset(p)
    assert trait(p, 'difference') == "b''"
    p.tab.click('[data-mode=difference]')
    p.until("document.querySelector('img.sk-difference')?.naturalWidth === 64")
    p.tab.wait_for_timeout(100)
    assert near(seen(p, '.sk-stage')[100, 100], (128+16*3, 128, 128-16*6))
    assert '16 ×' in p.tab.inner_text('.sk-scale') and '7 of 255' in p.tab.inner_text('.sk-scale')
    p.execute('view.begin(red, red)')
    p.until("document.querySelector('.sk-scale').innerText.includes('pixel by pixel')")
    assert near(seen(p, '.sk-stage')[100, 100], (128, 128, 128))
    p.execute('view.begin(red, blue)')
    reset(p)

def test_every_frame_is_acknowledged(page):
    "Python sends the next picture when the last one is seen"
    p = page
    reset(p)
    for shade in (40, 80, 120): p.execute(f'view.show(Image.new("RGB", red.size, ({shade}, 0, 0)))')
    until(p, 'ready', True)
    p.execute('view.begin(red, blue)')
    until(p, 'ready', True)

MASK = """
import base64, io
mask = Image.new('L', red.size); mask.paste(255, (0, 0, 32, 48)); mask.save(f := io.BytesIO(), 'PNG')
view.mask = 'data:image/png;base64,' + base64.b64encode(f.getvalue()).decode()
"""

def test_what_is_protected_is_tinted(page):
    "Half of the picture, when somebody asks for it"
    p = page
    reset(p, position=0.)
    p.execute(MASK)
    p.until("!document.querySelector('.sk-tinted').disabled")
    assert column(p, .2) == 'after'
    p.tab.click('.sk-tinted')
    p.until("!document.querySelector('.sk-pane-after canvas').hidden")
    p.tab.wait_for_timeout(100)
    assert column(p, .2)[0] > 100 and column(p, .7) == 'after'
    p.tab.click('.sk-tinted')
    p.tab.wait_for_timeout(100)
    assert column(p, .2) == 'after'
    p.execute("view.mask = ''")

# The brush's mask, as Python has it, in numbers
PAINTED = """
import base64, io, numpy as np
def painted():
    if not brush.mask: return np.zeros((48, 64), int)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(brush.mask.partition(',')[2]))).convert('L')).astype(int)
"""

def test_brush(page):
    "A box by dragging; strengths; undo and redo; its size by keys"
    p, value = page, lambda x, y: int(p.execute(f'print(painted()[{y}, {x}])'))
    p.execute(PAINTED)
    p.until("document.querySelector('.sk-brush canvas').width === 64")
    box = p.tab.locator('.sk-brush canvas').bounding_box()
    def drag(*points):
        at = [(box['x']+x*box['width'], box['y']+y*box['height']) for x, y in points]
        p.tab.mouse.move(*at[0])
        p.tab.mouse.down()
        for xy in at[1:]: p.tab.mouse.move(*xy)
        p.tab.mouse.up()
        p.tab.wait_for_timeout(100)
    p.tab.click('.sk-box')
    drag((.25, .25), (.4, .4), (.75, .75))
    patient = time.monotonic()+20
    while p.execute('print(painted().any())') != 'True' and time.monotonic() < patient: time.sleep(.1)   # on its way
    inside = p.execute('print((painted() > 250).nonzero()[0].min(), (painted() > 250).nonzero()[0].max(), '
                       '(painted() > 250).nonzero()[1].min(), (painted() > 250).nonzero()[1].max())')
    assert inside == '12 35 16 47' and value(2, 2) == 0                          # of 48 × 64 pixels
    p.tab.click('.sk-box')
    p.execute('brush.strength = 50')
    p.tab.wait_for_timeout(50)
    drag((.5, .5), (.6, .5), (.5, .5))                         # over itself: no stronger for that
    assert abs(value(32, 24)-128) < 4 and value(18, 14) == 255
    p.tab.focus('.sk-brush canvas')
    p.tab.keyboard.press('z')
    p.tab.wait_for_timeout(100)
    assert value(32, 24) == 255
    p.tab.keyboard.press('y')
    p.tab.wait_for_timeout(100)
    assert abs(value(32, 24)-128) < 4
    size = int(p.execute('print(brush.brush)'))
    for key in ']][': p.tab.keyboard.press(key)
    p.tab.wait_for_timeout(100)
    assert int(p.execute('print(brush.brush)')) == size+2
    p.tab.click('.sk-erase')
    drag((.5, .5), (.6, .5))
    assert value(32, 24) == 0 and value(18, 14) == 255
    for _ in range(3): p.tab.click('.sk-undo')
    p.tab.wait_for_timeout(100)
    assert value(18, 14) == 0 and p.tab.is_disabled('.sk-undo') and p.execute('print(brush.mask)') == ''

def test_a_dark_ground_with_dark_letters(page):
    "As in VS Code, whose theme is not JupyterLab's: letters are made light, by its own colours where it says them"
    p = page
    p.tab.evaluate("""() => {
      const box = document.querySelector('.sk-panel').parentElement;
      box.style.background = '#1e1e1e';
      box.style.setProperty('--vscode-editor-foreground', 'rgb(212, 212, 212)');
    }""")
    p.until("document.querySelector('.sk-panel.sk-night.sk-dark')")
    assert pale(p.tab, '.sk-panel', LETTERS) == [] and violations(p.tab, '.sk-panel') == []
    assert p.tab.evaluate("getComputedStyle(document.querySelector('.sk-zoomed')).color") == 'rgb(212, 212, 212)'
    p.tab.evaluate("() => document.querySelector('.sk-panel').parentElement.removeAttribute('style')")
    p.until("!document.querySelector('.sk-panel.sk-dark')")
