"""The page that runs in the browser: its pixels are Python's, it is used by mouse and keys, and nothing leaves it"""
import functools
import http.server
import io
import shutil
import subprocess
import sys
import threading
from pathlib import Path
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw, ImageFilter
import browser
from stylekit import FeedForward, read_output, sample_image
from stylekit.images import flatten

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'tools'))
pytestmark = pytest.mark.skipif(not browser.CHROMIUM or not shutil.which('npm'), reason='no Chromium, or no npm')
# Gives a file to the page as a drop or a paste does
GIVE = '''([kind, bytes, name]) => {
  const given = new DataTransfer();
  given.items.add(new File([Uint8Array.from(bytes)], name, { type: 'image/png' }));
  const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: given, bubbles: true, cancelable: true })
    : new ClipboardEvent('paste', { clipboardData: given, bubbles: true });
  document.body.dispatchEvent(event);
}'''

@pytest.fixture(scope='module')
def address():
    "The page, served as `python -m http.server` does"
    from pages import BUILD, make_demo
    try: make_demo(BUILD/'demo')
    except subprocess.CalledProcessError as e: pytest.skip(f'the runtime cannot be fetched: {e}')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(BUILD/'demo'))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

class Demo:
    "What a person does at the page"
    def __init__(self, tab, address):
        self.tab, self.asked, self.wrong = tab, [], []
        tab.set_default_timeout(120_000)
        tab.on('request', lambda r: self.asked.append(r.url))
        tab.on('pageerror', lambda e: self.wrong.append(str(e)))
        tab.goto(address)
        self.until_done()
    def until_done(self): self.tab.wait_for_selector('#download[href]', state='attached')
    def choose(self, name, value): self.tab.check(f'input[name={name}][value="{value}"]', force=True)
    def give(self, im, name='picture.png', **options):
        "By the file chooser"
        data = io.BytesIO()
        im.save(data, name.rpartition('.')[2].replace('jpg', 'jpeg'), **options)
        self.tab.set_input_files('#file', dict(name=name, mimeType='image/png', buffer=data.getvalue()))
        self.until_done()
        return data
    def result(self):
        with self.tab.expect_download() as d: self.tab.click('#download')
        return Path(d.value.path()), d.value.suggested_filename

@pytest.fixture(scope='module')
def demo(chrome, address):
    tab = chrome.new_page(locale='en-GB')
    yield Demo(tab, address)
    tab.close()

def cut_out():
    "A sample with soft edges on nothing, no square"
    im = sample_image('taxi').crop((0, 20, 128, 110))
    mask = Image.new('L', im.size, 0)
    ImageDraw.Draw(mask).ellipse((6, 4, 120, 84), fill=255)
    im.putalpha(mask.filter(ImageFilter.GaussianBlur(3)))
    return im

def differences(a, b, every=1): # of what can be seen; of every so-many-th pixel
    a, b = (np.asarray(im.convert('RGBA'))[::every, ::every].astype(int) for im in (a, b))
    seen = (a[..., 3] > 0)[..., None]
    return np.abs(a-b)*seen

def test_it_begins_with_a_sample(demo):
    assert 'Done' in demo.tab.inner_text('#status') and demo.tab.inner_text('#error') == ''

@pytest.mark.parametrize('style', ['flat', 'ink', 'pixel'])
def test_pixels_are_pythons(demo, style):
    "As the samples are, every pixel is equal to 2/255"
    demo.choose('style', style)
    demo.choose('detail', 128)
    demo.give(sample_image('penguin'))
    path, name = demo.result()
    own = FeedForward.load(style)(sample_image('penguin'), resolution=128)
    assert name == f'picture-{style}.png' and differences(own.image, Image.open(path)).max() <= 2

def test_pixels_are_pythons_when_scaled(demo):
    """Scaled and padded too, but for places where the network cannot decide to which area they belong: there another
    order of a sum in the runtime is another colour (Python's own levels of optimisation differ by more)"""
    im = sample_image('taxi').resize((150, 117))
    demo.choose('style', 'flat')
    demo.choose('detail', 256)
    demo.give(im)
    off = differences(FeedForward.load('flat')(im, resolution=256).image, Image.open(demo.result()[0]))
    assert (off <= 2).mean() > .997 and off.mean() < .05

def test_transparency_is_pythons(demo):
    demo.choose('style', 'flat')
    demo.choose('detail', 256)
    demo.give(cut_out())
    made, own = Image.open(demo.result()[0]), FeedForward.load('flat')(cut_out(), resolution=256).image
    assert made.mode == own.mode == 'RGBA'
    assert not (np.asarray(made)[..., 3] != np.asarray(own)[..., 3]).any()
    off = differences(flatten(own), flatten(made))     # what is nearly nothing has hardly a colour
    assert (off <= 2).mean() > .997 and not made.getpixel((0, 0))[3]

def test_a_photograph_of_twelve_megapixels(demo):
    "Turned as its camera says, scaled as Python does: the same size comes back"
    im, turned = sample_image('owl').resize((4000, 3000), Image.BICUBIC), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    demo.choose('style', 'ink')
    demo.choose('detail', 128)
    data = demo.give(im, 'large.jpg', quality=92, exif=turned)
    made, own = Image.open(demo.result()[0]), FeedForward.load('ink')(data.getvalue(), resolution=128).image
    assert made.size == own.size == (3000, 4000)
    assert (differences(own, made, 7) <= 2).mean() > .997

def test_a_result_says_where_it_comes_from(demo):
    record = read_output(demo.result()[0])
    assert record.source == 'photo' and record.entries['method'] == 'feed-forward'
    assert record.entries['network_sha256'] == FeedForward.load(record.entries['style']).sha256

@pytest.mark.parametrize('kind', ['drop', 'paste'])
def test_drop_and_paste(demo, kind):
    data = io.BytesIO()
    sample_image('airplane').save(data, 'png')
    demo.tab.evaluate(GIVE, [kind, list(data.getvalue()), f'{kind}ed.png'])
    demo.tab.wait_for_selector(f'#download[download^="{kind}ed"]')
    assert demo.tab.evaluate("document.getElementById('before').naturalWidth") == 128

def test_what_is_no_picture_is_refused(demo):
    demo.tab.set_input_files('#file', dict(name='notes.png', mimeType='image/png', buffer=b'no picture'))
    demo.tab.wait_for_function("document.getElementById('error').textContent.includes('notes.png cannot be read')")
    assert demo.tab.get_attribute('#download', 'href') is None
    demo.tab.set_input_files('#file', dict(name='s.png', mimeType='image/png', buffer=small_png()))
    demo.tab.wait_for_function("document.getElementById('error').textContent.includes('at least 16')")
    demo.give(sample_image('owl'))
    assert demo.tab.inner_text('#error') == ''

def small_png():
    data = io.BytesIO()
    Image.new('RGB', (40, 8)).save(data, 'png')
    return data.getvalue()

def test_keys_and_languages(demo):
    "The handle moves by arrows, the styles too; every word is there in both languages"
    tab = demo.tab
    tab.focus('#handle')
    for _ in range(5): tab.keyboard.press('ArrowRight')
    assert tab.evaluate("document.getElementById('compare').style.getPropertyValue('--share')") == '55%'
    english = tab.inner_text('body')
    tab.click('button[lang=ja]')
    assert tab.get_attribute('html', 'lang') == 'ja' and '外部に送信されません' in tab.inner_text('body')
    same = {*english.splitlines()} & {*tab.inner_text('body').splitlines()}
    assert {line for line in same if line.strip()} == {'stylekit', 'English', '日本語'}
    tab.click('button[lang=en]')
    assert tab.inner_text('body') == english

def test_no_request_leaves_the_page(demo, address):
    assert len(demo.asked) > 10 and not demo.wrong
    assert not [url for url in demo.asked if not url.startswith((address, f'blob:{address}'))]
    assert "default-src 'none'" in (ROOT/'docs'/'demo'/'index.html').read_text(encoding='utf-8')
