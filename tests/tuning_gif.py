"Somebody tunes a run, as a GIF: python tests/tuning_gif.py nbs/images/tuning.gif (needs Chromium)"
import io, sys, tempfile
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
from browser import CHROMIUM, FLAGS, Server

def record(out):
    frames, cell = [], 'from stylekit.panels import StylizePanel\nStylizePanel(lam=1e-3)'
    with sync_playwright() as pw, Server(Path(tempfile.mkdtemp())) as lab:
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with lab.notebook(browser, cell, width=1060) as page: play(page, frames)
    small = [f.quantize(40, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for f in frames]
    small[0].save(out, save_all=True, append_images=small[1:], duration=[500]*(len(small)-1)+[2500], loop=0, optimize=True)

def play(page, frames):
    "Turn λ up, then the curve, then λ down; keep what is seen"
    page.command('application:toggle-left-area')
    page.tab.wait_for_timeout(1000)
    box = page.tab.locator('.sk-panel').first.bounding_box()
    clip = dict(x=box['x'], y=box['y'], width=box['width'], height=600)
    size = 520, round(600*520/box['width'])
    def shot(n=1):
        for _ in range(n):
            png = page.tab.screenshot(clip=clip)
            frames.append(Image.open(io.BytesIO(png)).convert('RGB').resize(size, Image.LANCZOS))
            page.tab.wait_for_timeout(900)
    shot()
    page.click('start')
    page.past(1)
    shot(6)
    page.slide('lam', .85)
    shot(5)
    page.drag('.sk-curve .corner', '.sk-curve .bg', .75, .35)
    shot(4)
    page.slide('lam', .3)
    shot(5)
    page.says('Done')
    shot()

if __name__ == '__main__': record(sys.argv[1])
