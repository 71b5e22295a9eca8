"Somebody tunes a run, as a GIF: python tests/tuning_gif.py nbs/images/tuning.gif (needs Chromium)"
import io, sys, tempfile
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
from test_browser import CHROMIUM, FLAGS, Page, notebook, serve

def record(out):
    home, frames = Path(tempfile.mkdtemp()), []
    nb = notebook(home, ['from stylekit.panels import StylizePanel\nStylizePanel(lam=1e-3)'])
    with sync_playwright() as pw, serve('lab', home) as (url, _):
        p = Page(pw.chromium.launch(executable_path=CHROMIUM, args=FLAGS), f'{url}lab/workspaces/t/tree/{nb}?reset', 1060)
        p.run_all()
        p.pg.wait_for_selector('.sk-panel img.sk-preview')
        p.pg.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        p.pg.wait_for_timeout(1000)
        box = p.pg.locator('.sk-panel').first.bounding_box()
        def shot(n=1):
            for _ in range(n):
                png = p.pg.screenshot(clip=dict(x=box['x'], y=box['y'], width=box['width'], height=600))
                frames.append(Image.open(io.BytesIO(png)).convert('RGB').resize((520, round(600*520/box['width'])), Image.LANCZOS))
                p.pg.wait_for_timeout(900)
        shot(); p.click('start'); p.past(1); shot(6)
        p.drag('.sk-lam .noUi-handle', '.sk-lam .noUi-base', .85); shot(5)
        p.drag('.sk-curve .corner', '.sk-curve .bg', .75, .35); shot(4)
        p.drag('.sk-lam .noUi-handle', '.sk-lam .noUi-base', .3); shot(5)
        p.says('Done'); shot()
    small = [f.quantize(40, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for f in frames]
    small[0].save(out, save_all=True, append_images=small[1:], duration=[500]*(len(small)-1)+[2500], loop=0, optimize=True)

if __name__ == '__main__': record(sys.argv[1])
