"Somebody tunes a run, as a GIF: python tests/tuning_gif.py nbs/images/tuning.gif (needs Chromium)"
import io, sys, tempfile
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
from browser import CHROMIUM, FLAGS, Server

def record(out):
    # Short steps, to see the picture move
    cell = 'from stylekit import StylizePanel\nStylizePanel(steps=120, lr=.05, lam=0.)'
    frames = []
    with sync_playwright() as pw, Server(Path(tempfile.mkdtemp())) as lab:
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with lab.notebook(browser, cell, width=1060) as page: play(page, frames)
    small = [f.quantize(40, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for f in frames]
    durations = [500]*(len(small)-1)+[2500]   # milliseconds
    small[0].save(out, save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)

def play(page, frames):
    "A sample, a style, Start; the structure is held more in mid-run; the line is drawn over the result"
    page.command('application:toggle-left-area')
    page.tab.wait_for_timeout(1000)
    box = page.tab.locator('.sk-panel').first.bounding_box()
    clip = dict(x=box['x'], y=box['y'], width=box['width'], height=740)
    size = 520, round(740*520/box['width'])
    def shot(times=1):
        png = page.tab.screenshot(clip=clip)
        frames.extend([Image.open(io.BytesIO(png)).convert('RGB').resize(size, Image.LANCZOS)]*times)
    def press(css):
        page.tab.click(css)
        page.tab.wait_for_timeout(300)
        shot(2)
    shot(2)
    press('.sk-samples button >> text=taxi')
    press('.sk-choice label >> text=flat')
    page.click('start')
    for step in range(1, 60, 10):
        page.past(step)
        shot()
    page.slide('lam', .85)
    for step in range(61, 118, 10):
        page.past(step)
        shot()
    page.says('Done')
    shot(2)
    page.tab.focus('.sk-handle')
    for _ in range(5):
        page.tab.keyboard.press('Shift+ArrowRight')
        page.tab.wait_for_timeout(200)
        shot()

if __name__ == '__main__': record(sys.argv[1])
