"Somebody tunes a run, as a GIF: python tests/tuning_gif.py nbs/images/tuning.gif (needs Chromium)"
import io, sys, tempfile
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
from browser import CHROMIUM, FLAGS, Server

def record(out):
    # Short steps, to see the picture move
    cell = 'from stylekit import StylizePanel\nStylizePanel(steps=200, lr=.02, lam=0.)'
    frames = []
    with sync_playwright() as pw, Server(Path(tempfile.mkdtemp())) as lab:
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with lab.notebook(browser, cell, width=1060) as page: play(page, frames)
    small = [f.quantize(40, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for f in frames]
    durations = [500]*(len(small)-1)+[2500]   # milliseconds
    small[0].save(out, save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)

def play(page, frames):
    "Turn λ up, then the curve, then λ down; keep what is seen"
    page.command('application:toggle-left-area')
    page.tab.wait_for_timeout(1000)
    box = page.tab.locator('.sk-panel').first.bounding_box()
    clip = dict(x=box['x'], y=box['y'], width=box['width'], height=600)
    size = 520, round(600*520/box['width'])
    def shot():
        png = page.tab.screenshot(clip=clip)
        frames.append(Image.open(io.BytesIO(png)).convert('RGB').resize(size, Image.LANCZOS))
    def watch(first, last):
        for step in range(first, last, 12):
            page.past(step)
            shot()
    shot()
    page.click('start')
    watch(1, 40)
    page.slide('lam', .95)
    watch(41, 80)
    page.open_fold('advanced')
    page.drag('.sk-curve .corner', '.sk-curve .bg', .75, .85)
    watch(81, 120)
    page.slide('lam', .3)
    watch(121, 190)
    page.says('Done')
    shot()

if __name__ == '__main__': record(sys.argv[1])
