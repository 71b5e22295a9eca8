"The panels and the page in a real browser, on the embedded model. Each fault that people met has a test"
import base64
import io
import json
import os
import re
import signal
from importlib.util import find_spec
import pytest
import browser
from browser import BEYOND, CONTRAST, DISTANCE, Page, Server, ask

if not browser.CHROMIUM:
    pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)', allow_module_level=True)
for name in ('playwright', 'jupyterlab', 'voila'):
    if not find_spec(name): pytest.skip(f'{name} is not installed: pip install -e ".[dev]"', allow_module_level=True)
from PIL import Image
from stylekit import read_output, sample_image, stylize
from stylekit.app.live import pixels_sha256, replay
from stylekit.app.setting_controls import start_settings
from stylekit.methods.sms import PRESETS
from stylekit.pilot.study import Voting, make_study

def panel(*given):
    "A cell that shows a `StylizePanel`"
    return f'from stylekit import StylizePanel\npanel = StylizePanel({", ".join(given)})\npanel'

def opened(png): return Image.open(io.BytesIO(png)).convert('RGB')

def noise(path, side):
    "A PNG that no compression makes smaller; its bytes"
    Image.frombytes('RGB', (side, side), os.urandom(3*side*side)).save(path, compress_level=1)
    return path.stat().st_size

# Counts what a screen reader is told from now on: changes of a live region, and new ones
ANNOUNCED = '''() => {
  const LIVE = '[aria-live], [role=status], [role=alert]';
  const inside = (node) => (node.closest ? node : node.parentElement)?.closest(LIVE);
  const fresh = (node) => node.matches?.(LIVE) || node.querySelector?.(LIVE);
  window.announced = 0;
  new MutationObserver((changes) => {
    window.announced += changes.filter((c) => inside(c.target) || [...c.addedNodes].some(fresh)).length;
  }).observe(document.querySelector('.sk-panel'), { childList: true, characterData: true, subtree: true });
}'''

def test_a_run_is_steered(chrome, lab):
    "λ, curve, mask, pause, rewind, stop; the recipe gives the same picture; 12: a count is no announcement"
    with lab.notebook(chrome, panel('steps=400', 'lr=.04')) as p:
        first = p.preview()
        p.tab.evaluate(ANNOUNCED)
        p.click('start')
        p.past(20)
        assert p.preview() != first                            # the preview follows
        assert p.tab.evaluate('window.announced') < 12         # of 20 steps
        free = p.tab.evaluate(DISTANCE)
        p.shot('lab-run')
        p.slide('lam', .99)
        p.open_tab('Changes')
        p.logs('lam')
        nearer = f'async () => await ({DISTANCE})() < {.8*free}'    # to the content
        p.tab.wait_for_function(nearer, polling=200)
        p.open_fold('advanced')
        p.drag('.sk-curve .corner', '.sk-curve .bg', .3)
        p.logs('cutoff 0')
        p.tab.focus('.sk-curve .corner')
        for key in ('ArrowUp', 'ArrowRight'): p.tab.keyboard.press(key)
        p.until("document.querySelector('.sk-log').innerText.split('cutoff').length > 2")
        p.open_fold('stay')
        p.drag('.sk-brush canvas', '.sk-brush canvas', .7)
        p.open_tab('Changes')
        p.logs('protect mask')
        p.click('pause')
        p.says('Paused')
        p.enabled('pause')
        still = p.preview(), p.status()
        at = p.counted()
        p.tab.wait_for_timeout(500)
        assert (p.preview(), p.status()) == still              # nothing moves
        p.click('pause')
        p.past(at+3)
        p.number('to', 10)
        p.click('pause')
        p.says('Paused')
        p.click('rewind')
        p.before(at)
        p.past(12)
        p.click('stop')
        p.says('Stopped after step')
        at = p.counted()
        p.tab.wait_for_timeout(300)
        assert p.counted() == at and p.tab.evaluate(CONTRAST) > 5
        recipe, shown = p.download('recipe').decode(), opened(p.download('save'))
        assert json.loads(recipe)['steps_done'] == at
        assert replay(recipe, sample_image('owl')).image.tobytes() == shown.tobytes()    # bit for bit, without a panel
        p.caption('')
        p.click('start')
        p.says('caption is empty')                             # an error is seen
        p.command('docmanager:save')
        p.tab.wait_for_timeout(500)
        p.tab.reload()                                         # the panel comes back, and lives
        p.see('.sk-panel img.sk-preview')
        p.caption('an owl')
        p.click('start')
        p.past(5)
        p.click('stop')
        p.says('Stopped after step')

# A picture file dropped on an element, or pasted there
GIVE = '''async ([css, kind, url]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([await (await fetch(url)).blob()], `${kind}.png`, { type: 'image/png' }));
  const about = { bubbles: true, cancelable: true };
  const event = kind === 'drop' ? new DragEvent('drop', { ...about, dataTransfer: carried })
    : new ClipboardEvent('paste', { ...about, clipboardData: carried });
  document.querySelector(css).dispatchEvent(event);
}'''

def as_url(image):
    image.save(f := io.BytesIO(), 'PNG')
    return f'data:image/png;base64,{base64.b64encode(f.getvalue()).decode()}'

def test_choosing_by_looking(chrome, lab):
    "A sample, a style and a start by their pictures, with keys too; a picture dropped or pasted anywhere in the panel"
    with lab.notebook(chrome, panel('steps=8')) as p:
        for kind, css, side in (('drop', '.sk-tabs', 60), ('paste', '.sk-status', 90)):
            p.tab.evaluate(GIVE, [css, kind, as_url(sample_image('owl').resize((side, side)))])
            p.says(f'{side} × {side} pixels')
        p.tab.click('.sk-samples button >> text=taxi')
        p.until("document.querySelector('.sk-caption input').value === 'a taxi'")
        p.tab.focus('.sk-choice input[value=ink]')
        p.tab.keyboard.press('ArrowRight')
        p.until("document.querySelector('.sk-choice input[value=flat]').checked")
        p.tab.click('.sk-choice label >> text=pixel')
        p.tab.click('.sk-starts label >> text=bold')
        bold = start_settings(PRESETS['fast'], 'bold')
        p.until(f"+document.querySelector('.sk-strength input[type=number]').value === {bold.style_scale}")
        first = p.preview()
        p.click('start')
        p.until(f"document.querySelector('img.sk-preview').src !== '{first}'")
        p.says('Done')
        recipe = p.recipe()
        p.number('lam', 3)                                     # no longer one of the three
        p.until("!document.querySelector('.sk-starts input:checked')")
    assert recipe['style'] == [['pixel', 1.]] and recipe['caption'] == 'a taxi' and recipe['changes'] == []
    assert recipe['image_sha256'] == pixels_sha256(sample_image('taxi'))
    assert all(recipe['settings'][f] == getattr(bold, f) for f in ('lam', 'style_scale', 'lr', 'guidance_scale'))

@pytest.mark.parametrize('preset', ['fast', 'paper'])
def test_an_untouched_panel_is_stylize(chrome, lab, preset):
    "1: the browser rounds nothing, and λ is the preset's"
    with lab.notebook(chrome, panel(f'preset={preset!r}', 'steps=4', 'style_scale=2.')) as p:
        p.tab.wait_for_timeout(1000)                           # the browser has had its say
        p.click('start')
        p.says('Done')
        recipe, shown = p.recipe(), opened(p.download('save'))
    for field in ('lam', 'lr', 'guidance_scale', 'relevance_floor', 'cutoff', 't_cutoff', 'cutoff_power'):
        assert recipe['settings'][field] == getattr(PRESETS[preset], field), field
    plain = stylize(sample_image('owl'), 'ink', 'an owl', preset=preset, steps=4, style_scale=2., seed=0)
    assert shown.tobytes() == plain.image.tobytes()

def test_a_value_beyond_the_slider_acts(chrome, lab):
    "1: it is neither cut nor hidden"
    given = dict(guidance_scale=15., lam=300., lr=2e-4)
    with lab.notebook(chrome, panel('steps=2', *(f'{name}={value}' for name, value in given.items()))) as p:
        p.click('start')
        p.says('Done')
        settings = p.recipe()['settings']
        assert {name: settings[name] for name in given} == given
        for name, css in dict(guidance_scale='guidance', lam='lam', lr='lr').items():
            assert float(p.tab.input_value(f'.sk-{css} input[type=number]')) == given[name]

def test_a_run_that_has_ended_is_rewound(chrome, lab):
    "2: Pause and Stop work on what goes on from there"
    with lab.notebook(chrome, panel('steps=400', 'lr=.02')) as p:
        p.click('start')
        p.past(20)
        p.click('stop')
        p.says('Stopped after step')
        p.click('rewind')
        p.enabled('pause', 'stop')
        p.click('pause')
        p.says('Paused')
        p.click('stop')
        p.says('Stopped after step')

def test_no_upload_vanishes(chrome, lab, tmp_path):
    "4: what JupyterLab's websocket does not take in one piece; what is no picture; and what Start then takes"
    with lab.notebook(chrome, panel('steps=2')) as p:
        assert noise(tmp_path/'large.png', 1950) > 11e6
        p.choose_picture(tmp_path/'large.png')
        p.says('1950 × 1950')
        (tmp_path/'bad.png').write_bytes(b'nothing')
        p.choose_picture(tmp_path/'bad.png')
        p.until("document.querySelector('.sk-error').innerText.length > 5")
        p.caption('x')
        p.click('start')
        p.says('no picture')                                   # not the one before
        sample_image('taxi').save(tmp_path/'taxi.png')
        p.choose_picture(tmp_path/'taxi.png')
        p.says('128 × 128')
        p.caption('a taxi')
        p.click('start')
        p.says('Done')
        assert p.recipe()['image_sha256'] == pixels_sha256(sample_image('taxi'))

PAINTED = '''() => {
  const c = document.querySelector('.sk-brush canvas');
  const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
  const colours = new Set();
  let n = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] <= 128) continue;
    n += 1;
    colours.add(data[i + 1] > 128);
  }
  return [n, colours.size];
}'''

def test_a_mask_stays(chrome, lab):
    "5: after a reload, under the next stroke; it is seen on white, can be rubbed out, and a stroke taken back"
    near = f'(n) => Math.abs(({PAINTED})()[0] - n) < .1 * n'
    with lab.notebook(chrome, panel('steps=3')) as p:
        p.open_fold('stay')
        p.drag('.sk-brush canvas', '.sk-brush canvas', .7)
        painted, colours = p.tab.evaluate(PAINTED)
        assert painted > 50 and colours == 2                   # of a light and a dark colour
        p.tab.wait_for_timeout(300)
        p.command('docmanager:save')
        p.tab.wait_for_timeout(800)
        p.tab.reload()
        p.see('.sk-panel img.sk-preview')
        p.open_fold('stay')
        p.tab.wait_for_function(near, arg=painted)
        p.drag('.sk-brush canvas', '.sk-brush canvas', .2, .2)
        more = p.tab.evaluate(PAINTED)[0]
        assert more > 1.1*painted
        p.tab.click('.sk-undo')
        p.tab.wait_for_function(near, arg=painted)
        p.shot('lab-brush')
        p.tab.click('.sk-erase')
        p.drag('.sk-brush canvas', '.sk-brush canvas', .7)
        assert p.tab.evaluate(PAINTED)[0] < .7*painted

JAR = '''
from PIL import ImageDraw
from stylekit import StylizePanel, sample_image
jar = sample_image('penguin').resize((192, 192))
ImageDraw.Draw(jar).rounded_rectangle((40, 110, 152, 158), 6, fill='#f4e6c0', outline='#7a3b10')
ImageDraw.Draw(jar).text((48, 116), 'HONEY', fill='#7a3b10', font_size=30)
'''

def test_what_must_stay_colours_and_limits(chrome, lab):
    "Shown before Start, applied, proved, and all of it in the recipe; colours after the end as well"
    pytest.importorskip('rapidocr_onnxruntime')
    made = {}
    exec(JAR, made)                                            # the same picture here
    cell = JAR+"panel = StylizePanel(jar, 'ink', 'a penguin', steps=3, seed=0)\npanel"
    with lab.notebook(chrome, cell) as p:
        for name in ('stay', 'colours', 'limits'): p.open_fold(name)
        p.tick('letters')
        p.says('Found letters: HONEY')
        p.tab.wait_for_function(f'() => ({PAINTED})()[0] > 3000', polling=100)
        found = p.tab.evaluate(PAINTED)[0]
        p.tab.focus('.sk-brush canvas')
        for key in ('ArrowUp', 'Shift+ArrowLeft', 'ArrowLeft'): p.tab.keyboard.press(key)
        p.tab.wait_for_function(f'(n) => ({PAINTED})()[0] > n + 3000', polling=100, arg=found)
        p.tab.select_option('.sk-colors select', 'as in the picture')
        p.tick('limit-edge_f1')
        p.number('limit-edge_f1', .999)
        p.until("/letters, painted/.test(document.querySelector('.sk-stay > button').innerText)")
        p.until("/edges kept/.test(document.querySelector('.sk-limits > button').innerText)")
        p.click('start')
        p.says('Done')
        p.until("document.querySelector('.sk-missed')")
        recipe, shown = p.recipe(), opened(p.download('save'))
        assert recipe['regions'] == ['letters: HONEY', 'a mask'] and recipe['match_color']['how'] == 'source'
        assert recipe['limits'] == dict(edge_f1=.999)
        again = replay(recipe, made['jar']).image
        assert again.tobytes() == shown.tobytes()
        assert again.getpixel((70, 130)) == made['jar'].getpixel((70, 130))      # of the label
        first = p.preview()
        p.tab.select_option('.sk-colors select', 'as the style has them')
        p.until(f"document.querySelector('img.sk-preview').src !== '{first}'")
        assert p.recipe()['match_color'] is None and not p.error()
        for width in (800, 400):
            p.resize(width)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'lab-stay-{width}')

def test_the_model_is_loaded_once(chrome, lab):
    "6: not at every Start"
    count = '''
import stylekit.backbone as made
loads, load = [], made.load_backbone
def counted(source=None, *args, **kw):
    if not isinstance(source, made.Backbone): loads.append(source)
    return load(source, *args, **kw)
made.load_backbone = counted
'''
    with lab.notebook(chrome, count+panel('steps=3')) as p:
        def loads():
            p.click('start')
            p.says('Done')
            return p.execute('print(len(loads))')
        first = loads()
        p.caption('a bird')
        p.execute("panel.say('')")                             # so that the next Done is a new one
        assert loads() == first
        p.execute('made.load_backbone = load')

def test_a_dead_kernel_does_not_look_alive(chrome, lab):
    "8"
    gone = "/kernel is gone/.test(document.querySelector('.sk-panel').innerText)"
    with lab.notebook(chrome, panel('steps=100000', 'lr=.001')) as p:
        pid = int(p.execute('import os; print(os.getpid())'))
        p.click('start')
        p.past(2)
        os.kill(pid, signal.SIGSTOP)
        try:
            p.until(gone)
            p.shot('lab-dead')
        finally: os.kill(pid, signal.SIGCONT)
        p.until(f'!{gone}')                                    # it was not, after all
        p.past(p.counted())

AT_WORK = '''
import sys, time
def at_work(*names):
    "How many threads are in a function of one of these names"
    found = 0
    for frame in sys._current_frames().values():
        while frame and frame.f_code.co_name not in names: frame = frame.f_back
        found += frame is not None
    return found
def settled(n, *names):
    "Is that the number, after some seconds at most?"
    until = time.time()+15
    while at_work(*names) != n and time.time() < until: time.sleep(.1)
    return at_work(*names) == n
'''
TRAINING = AT_WORK+'''
from stylekit import LoraPanel, sample_image
from pathlib import Path
folder = Path('{name}')
folder.mkdir(exist_ok=True)
for name in ('owl', 'taxi', 'penguin'): sample_image(name, 'ink').save(folder/f'{{name}}.png')
panel = LoraPanel(folder, '{name}', steps=4000, check=10, batch=1, views=1, rank=2)
panel
'''

def test_one_training_at_a_time(chrome, lab):
    "9: the panel that is made again in its cell ends the first one's training"
    with lab.notebook(chrome, TRAINING.format(name='again')) as p:
        p.click('start')
        p.past(5)
        assert p.execute("print(settled(1, '_train'))") == 'True'
        p.run_all()
        p.says('Give a folder')
        assert p.execute("print(settled(0, '_train'))") == 'True'
        p.click('start')
        p.past(5)
        assert p.execute("print(at_work('_train'))") == '1'

def test_a_training_stops(chrome, lab):
    "9: at once, and says truly where it would go on"
    with lab.notebook(chrome, TRAINING.format(name='stops')) as p:
        p.click('start')
        p.past(15)
        p.click('stop')
        p.says('Stopped')
        assert p.execute("print(settled(0, '_train'))") == 'True'
        said = int(re.search(r'goes on from step (\d+)', p.status())[1])
        state = 'load_state("styles/stops/training.pt", "training")'
        read = f'from stylekit.training import load_state; print({state}["step"])'
        assert p.execute(read) == str(said) and said >= 10
        p.click('start')
        p.past(said+10)
        assert p.execute('print(panel.checks[0].step)') == str(said+10)
        p.click('stop')
        p.says('Stopped')

def test_a_grid_stops(chrome, lab):
    "9: the one of two encoders"
    cell = AT_WORK+'''
from stylekit import ControlClipPanel
from stylekit.backbone import load_backbone
from stylekit.clip.control_clip import ControlClip
model = load_backbone()
control = ControlClip(model.text_encoders[0], model.tokenizers[0], mode='adapter')
panel = ControlClipPanel(control, steps=400, backbone=model)
panel
'''
    with lab.notebook(chrome, cell) as p:
        p.click('start')
        assert p.execute("print(settled(1, '_one'))") == 'True'
        p.tab.click('button.sk-stop', timeout=3000)
        p.says('Stopped')
        assert p.execute("print(settled(0, '_one'))") == 'True'

def test_keys_stay_in_the_panel(chrome, lab):
    "10, 14: the notebook's shortcuts do not act on it: `b` adds a cell, `x` cuts it, `dd` deletes it"
    cells = 'window.jupyterapp.shell.currentWidget.content.widgets.length'
    with lab.notebook(chrome, panel('steps=3')) as p:
        n = p.tab.evaluate(cells)
        p.open_fold('advanced')
        for css in ('.sk-curve .corner', '.sk-lam input[type=range]', 'button.sk-start'):
            if not p.tab.locator(css).count(): continue
            p.tab.focus(css)
            for key in 'bxdd': p.tab.keyboard.press(key)
            p.tab.wait_for_timeout(300)
            assert p.tab.evaluate(cells) == n and p.tab.locator('.sk-panel').count() == 1, css

ALL = '''
from IPython.display import display
from stylekit import ComparePanel, ControlClipPanel, LoraPanel, SpectrumPanel, StylizePanel
from stylekit.backbone import load_backbone
from stylekit.clip.control_clip import ControlClip
model = load_backbone()
control = ControlClip(model.text_encoders[0], model.tokenizers[0], mode='adapter')
panel = StylizePanel(steps=3)
display(panel, ComparePanel(), LoraPanel(), SpectrumPanel(), ControlClipPanel(control, backbone=model))
'''
BROKEN = '''() => [...document.querySelectorAll('.sk-panel img')].filter((i) => i.offsetParent)
  .filter((i) => !(i.getAttribute('src') && i.complete && i.naturalWidth)).length'''
UNNAMED = '''() => [...document.querySelectorAll('.sk-panel img')].filter((i) => i.offsetParent && !i.alt).length'''

def test_votes_in_a_notebook(chrome, lab, tmp_path):
    "Keys that are JupyterLab's own elsewhere vote; a reason is written, and sent by Enter"
    for folder, looks in dict(source='render', a='flat', b='ink').items():
        (tmp_path/folder).mkdir()
        for name in ('owl', 'taxi'): sample_image(name, looks).save(tmp_path/folder/f'{name}.png')
    study = make_study(tmp_path/'study', dict(a=tmp_path/'a', b=tmp_path/'b'), tmp_path/'b', tmp_path/'source')
    opened = "document.querySelector('.sk-vote')?.dataset.open === 'true'"
    with lab.notebook(chrome, f'from stylekit import VotePanel\nVotePanel({str(study.path)!r}, "ann")') as p:
        p.until(opened)
        p.tab.click('.sk-pair img >> nth=1')
        for n, key in enumerate('btz', 1):
            p.tab.keyboard.press(key)
            p.until(f"{opened} && document.querySelector('.sk-count').innerText.startsWith('{(1, 2, 1)[n-1]} of')")
        p.tab.keyboard.press('s')
        p.tab.keyboard.type('add')                             # `a` and `dd` are keys of the notebook
        p.tab.keyboard.press('Enter')
        p.until("document.querySelector('.sk-count').innerText.startsWith('2 of')")
        assert p.tab.evaluate("document.querySelectorAll('.jp-Cell').length") == 1
        assert p.tab.evaluate("[...document.querySelectorAll('.sk-vote img')].every((e) => e.naturalWidth)")
    said = [(v.answer, v.reason) for v in Voting(study, 'ann').log.records]
    assert said == [('B', ''), ('tie', ''), ('undo', ''), ('skip', 'add')]

TAKES = "document.querySelectorAll('.sk-takes [role=option]')"

def test_takes(chrome, lab, tmp_path):
    "Variants, one of which is gone on from; two beside each other; settings come back; keys; and after a restart"
    folder = str(tmp_path/'takes')
    with lab.notebook(chrome, panel('steps=2', f'takes={folder!r}')) as p:
        def takes(n): p.until(f'{TAKES}.length === {n}')
        def take(number): return p.tab.locator(f'.sk-takes [data-id="{number}"]')
        p.click('start')
        takes(1)
        p.tab.select_option('.sk-vary-count select', '3')
        p.click('vary')
        p.says('Variant 2 of 3, λ = 0.15')
        takes(4)
        p.enabled('start')
        assert p.tab.evaluate(f"[...{TAKES}].map((e) => e.querySelector('small').innerText)")[0] == 'λ 0.15 → 0.9'
        take(4).click()
        p.until("document.querySelector('.sk-take-shown').innerText.startsWith('Take 4')")
        p.click('take-use')
        p.says('what Take 4 was made with')
        p.number('strength', 1.5)
        p.open_fold('stay')
        p.drag('.sk-brush canvas', '.sk-brush canvas', .7)
        p.click('start')
        takes(5)
        p.enabled('start')
        recipe, said = p.recipe(), take(5).inner_text()
        assert recipe['settings']['lam'] == .9 and recipe['protect'] and 'style strength 1 → 1.5' in said
        take(1).click()
        p.click('take-compare')
        take(5).focus()
        p.tab.keyboard.press('Enter')
        p.until("/Left: Take 1 .* Right: Take 5/.test(document.querySelector('.sk-take-shown').innerText)")
        p.tab.wait_for_function(f'async () => await ({DISTANCE})() > 1', polling=100)
        for width in (1300, 400):
            p.resize(width)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'lab-takes-{width}')
        assert browser.unnamed(p.tab, '.sk-takes-box') == []
        assert browser.pale(p.tab, '.sk-takes-box', 'b, small') == []
        p.click('take-back')
        take(5).focus()
        for key in ('End', 'Enter'): p.tab.keyboard.press(key)
        p.until("document.querySelector('.sk-take-shown').innerText.startsWith('Take 1')")
        p.click('take-use')
        p.says('what Take 1 was made with')
        assert p.tab.input_value('.sk-strength input[type=number]') == '1'
        assert not p.tab.evaluate(PAINTED)[0]                  # nothing stayed in the first
        assert p.tab.input_value('.sk-lam input[type=number]') == '0.15'
        assert p.download('take-save') == (tmp_path/'takes'/'0001'/'picture.png').read_bytes()
        take(1).press('p')
        take(1).press('n')
        p.tab.keyboard.type('the first')
        p.tab.keyboard.press('Enter')
        p.until(f"[...{TAKES}].at(-1).innerText.startsWith('★ the first')")
        take(2).press('Delete')
        takes(4)
        p.click('take-undo')
        takes(5)
        p.run_all()                                            # another panel, as after a restart
        p.says('Ready')
        p.until(f"[...{TAKES}].at(-1)?.innerText.startsWith('★ the first')")
        assert not p.error()

def test_what_is_seen_of_all_panels(chrome, lab):
    "12: no broken picture, none without words, nothing past the edge"
    with lab.notebook(chrome, ALL) as p:
        p.until("document.querySelectorAll('.sk-panel').length === 5")
        p.tab.wait_for_timeout(500)
        assert p.tab.evaluate(BROKEN) == 0
        assert p.tab.evaluate(UNNAMED) == 0
        for width in (1300, 800, 400, 400):
            p.resize(width)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'lab-{width}')
            if width == 400: p.command('application:toggle-left-area')   # the second time without the side bar

def test_a_run_ends_with_its_cell(chrome, lab):
    "14: one that is cleared, deleted or run again; nothing holds the device"
    with lab.notebook(chrome, AT_WORK+panel('steps=100000', 'lr=.001'), 'more = 1') as p:
        def starts():
            p.click('start')
            p.past(2)
        def ended(): assert p.execute("print(settled(0, '_work'))") == 'True'
        made = panel('steps=100000', 'lr=.001')
        p.execute(made)                                        # by a front end that gives cells no id
        p.execute('panel.start.click()')
        assert p.execute("print(settled(1, '_work'))") == 'True'
        p.execute(made)
        ended()
        starts()
        p.run_all()                                            # run again
        p.says('Ready')
        ended()
        starts()
        p.tab.click('.jp-Cell >> nth=0 >> .jp-InputPrompt')
        p.command('notebook:clear-cell-output')
        ended()
        p.run_all()
        p.says('Ready')
        starts()
        p.tab.click('.jp-Cell >> nth=0 >> .jp-InputPrompt')
        p.command('notebook:delete-cell')
        ended()

def test_widgets_do_not_pile_up(chrome, lab):
    "14: a cell that is run again closes what it made before"
    with lab.notebook(chrome, panel('steps=3')) as p:
        count = 'import ipywidgets; print(len(ipywidgets.widgets.widget._instances))'
        def run_again():
            p.run_all()
            p.says('Ready')
            p.tab.wait_for_timeout(1000)
            return int(p.execute(count))
        first = run_again()
        for _ in range(2): last = run_again()
        assert last < first+20

def test_an_error_in_mid_run_stays(chrome, lab):
    "14: until somebody takes it away"
    with lab.notebook(chrome, panel('steps=4000', 'lr=.001')) as p:
        p.click('start')
        p.past(2)
        p.execute('panel.safely(lambda: 1/0)()')
        p.says('ZeroDivisionError')
        at = p.counted()
        p.past(at+5)
        p.tab.wait_for_timeout(1200)
        p.says('ZeroDivisionError')
        p.tab.click('.sk-error button')
        p.until("!document.querySelector('.sk-status').innerText.includes('ZeroDivisionError')")

def test_what_is_not_read_cannot_be_turned(chrome, lab):
    "Without a map of relevance there is no focus: that control is off, and turning the others does no harm"
    focused = panel("preset=settings('fast', relevance='grid')", 'steps=400', 'relevance_floor=.5')
    with lab.notebook(chrome, f'from stylekit import settings\n{focused}') as p:
        p.open_fold('advanced')
        focus = p.tab.locator('.sk-relevance input[type=range]')
        assert focus.is_enabled()
        p.tab.select_option('.sk-preset select', 'paper')
        p.until("document.querySelector('.sk-relevance input[type=range]').disabled")
        p.click('start')
        p.past(3)
        p.slide('guidance', .9)
        p.open_tab('Changes')
        p.logs('guidance_scale')
        p.click('stop')
        p.says('Stopped after step')
        recipe = p.recipe()
        assert recipe['settings']['relevance_floor'] == PRESETS['paper'].relevance_floor
        assert not p.error()
        p.tab.select_option('.sk-preset select', 'as given')
        p.until("!document.querySelector('.sk-relevance input[type=range]').disabled")
        p.caption('something else')
        p.click('rewind')                                      # of the run as it was begun: the controls say so
        p.until("document.querySelector('.sk-preset select').selectedOptions[0].innerText === 'paper'")
        assert p.tab.input_value('.sk-caption input') == 'an owl'
        p.until("document.querySelector('.sk-relevance input[type=range]').disabled")
        p.click('stop')
        p.says('Stopped after step')
        assert p.recipe()['caption'] == 'an owl' and not p.error()

FORBIDDEN = ('voila/files/secret.png', 'files/secret.png', 'voila/files/..%2fsecret.png', 'voila/files/stylekit.ipynb',
             'api/contents', 'voila/files/etc/passwd')

def test_page_for_people_who_do_not_code(chrome, tmp_path):
    "3, 4: the style is that of the run; a picture of 41 MB is made smaller, and the next one is taken"
    (tmp_path/'secret.png').write_bytes(b'secret')
    sample_image('taxi').save(tmp_path/'taxi.png')
    with Server(tmp_path, ['--silence', 3]) as app:
        p = Page(chrome, app.url, 800)
        p.see('.sk-panel img.sk-preview')
        assert app.kernels() == 1
        assert noise(tmp_path/'huge.png', 3700) > 41e6
        p.choose_picture(tmp_path/'huge.png')
        p.says('scaled down from 3700 × 3700')
        width, height = map(int, re.search(r'(\d+) × (\d+) pixels', p.status()).groups())
        assert width == height <= 3700
        p.choose_picture(tmp_path/'taxi.png')
        p.says('128 × 128 pixels')
        p.caption('a taxi')
        first = p.preview()
        p.click('start')
        p.press('pause')                                       # while the model is loaded
        p.says('Paused')
        assert p.tab.is_disabled('.sk-choice input[value=flat]')
        p.tab.evaluate('''() => {
          const other = document.querySelector('.sk-choice input[value=flat]');
          other.disabled = false;
          other.click();
        }''')                                                  # as a browser's extension may
        p.says('this picture is made in the style ink')
        p.click('pause')
        p.says('Done')
        recipe = p.recipe()
        assert recipe['style'] == [['ink', 1.]] and recipe['changes'] == []
        assert p.tab.input_value('.sk-choice input:checked') == 'ink'
        assert recipe['image_sha256'] == pixels_sha256(sample_image('taxi'))
        assert p.preview() != first and p.tab.evaluate(CONTRAST) > 5
        (tmp_path/'out.png').write_bytes(p.download('save'))
        about = read_output(tmp_path/'out.png')
        assert about.run and str(tmp_path) not in str(about)
        for width in (1300, 800, 400):
            p.resize(width)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'app-{width}')
        for path in FORBIDDEN: assert ask(app.url+path)[0] in (403, 404), path
        p.close()
        app.until_kernels(0)

def test_who_may_use_the_page(chrome, tmp_path):
    "7: with the link, by the page's own name, so many at a time; and nobody keeps the others waiting"
    options = ['--token', 'right', '--max-kernels', 2, '--patience', 2, '--silence', 60, '--hosts', 'studio.example']
    with Server(tmp_path, options) as app:
        link = f'{app.url}?token=right'
        assert ask(app.url)[0] == ask(f'{app.url}?token=wrong')[0] == ask(f'{app.url}api/kernels')[0] == 403
        for name in ('evil.example', 'localhost.evil.example', '10.0.0.1'): assert ask(link, Host=name)[0] == 403, name
        for origin in ('http://evil.example', 'null'): assert ask(link, Origin=origin)[0] == 403, origin
        assert ask(link, Sec_Fetch_Site='cross-site', Sec_Fetch_Dest='image')[0] == 403
        assert ask(link, Sec_Fetch_Site='cross-site', Sec_Fetch_Dest='iframe', Sec_Fetch_User='?1')[0] == 403
        assert app.kernels() == 0                              # not one was begun for any of them
        one, two = (Page(chrome, link, 800, 'commit') for _ in range(2))
        for p in (one, two): p.see('.sk-panel img.sk-preview')
        assert 'token' not in one.tab.url
        three = Page(chrome, link, 800)          # one too many
        assert 'All 2 places are taken' in three.tab.inner_text('main') and app.kernels() == 2
        one.click('start')
        one.press('pause')
        one.says('Paused')
        two.click('start')
        two.says('Another picture is being made')
        two.says('Done', 55)                                   # by its patience: silence would last longer
        one.says('Others may have the turn')
        one.click('pause')
        one.says('Done')                                       # it goes on where it was
        one.click('start')
        one.press('pause')
        one.says('Paused')
        one.tab.reload()                                       # locks nobody out, its owner neither
        one.says('The page was loaded again')                  # and its run is there
        one.click('pause')
        one.says('Done')
        assert 'All 2 places are taken' in three.tab.inner_text('main')     # it did not slip in
        two.tab.goto('about:blank')
        three.tab.reload(wait_until='commit')                  # as it does by itself every ten seconds
        three.until("document.body && !document.body.innerText.includes('places are taken')")
