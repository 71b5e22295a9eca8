"A real browser on JupyterLab and on the page of `stylekit app`: what a person does there, and what they see"
import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run '
         '--disable-background-networking --disable-component-update --disable-sync').split()
SHOTS = os.environ.get('STYLEKIT_SHOTS')                       # a folder for screenshots
# The package that the servers load: this one, or an older
UNDER_TEST = os.environ.get('STYLEKIT_UNDER_TEST', str(ROOT))

# A notebook whose kernel is connected and idle, and whose cells are there: earlier, a dialog would open
READY = '''() => {
  const w = window.jupyterapp?.shell?.currentWidget, k = w?.sessionContext?.session?.kernel;
  return !!k && k.connectionStatus === 'connected' && k.status === 'idle' && w.content?.widgets?.length > 0;
}'''
PIXELS = '''const pixels = async (css, side) => {
  const img = document.querySelector(css);
  await img.decode();
  const c = document.createElement('canvas');
  c.width = c.height = side;
  const x = c.getContext('2d');
  x.drawImage(img, 0, 0, side, side);
  return x.getImageData(0, 0, side, side).data;
};'''
# Standard deviation of the red channel of what is shown: 0 for an empty picture
CONTRAST = f'''async () => {{
  {PIXELS}
  const red = (await pixels('img.sk-preview', 128)).filter((v, i) => i % 4 === 0);
  const mean = red.reduce((a, b) => a + b) / red.length;
  return Math.sqrt(red.reduce((a, b) => a + (b - mean) ** 2, 0) / red.length);
}}'''
# Mean difference between the picture now and the picture before
DISTANCE = f'''async () => {{
  {PIXELS}
  const now = await pixels('img.sk-preview', 128), before = await pixels('img.sk-before', 128);
  return now.reduce((sum, v, i) => sum + Math.abs(v - before[i]), 0) / now.length;
}}'''
# What runs past the right edge of its panel
BEYOND = '''() => {
  const seen = (e) => e.getBoundingClientRect().width && !e.closest('svg, .sk-said');
  const right = (e) => e.getBoundingClientRect().right;
  return [...document.querySelectorAll('.sk-panel')].flatMap((panel) => [...panel.querySelectorAll('*')]
    .filter((e) => seen(e) && right(e) > right(panel) + 1).map((e) => `${e.tagName} ${e.className}`));
}'''
# What a person with keys alone would be missing: a control without a name, one whose focus is not seen
UNNAMED = '''(css) => [...document.querySelector(css).querySelectorAll('button, input, img, [tabindex]')]
  .filter((e) => e.getClientRects().length)
  .filter((e) => !(e.innerText || e.alt || e.title || e.ariaLabel || e.labels?.[0]?.innerText
    || e.closest('.widget-inline-hbox')?.querySelector('label')?.innerText)).map((e) => e.outerHTML.slice(0, 120))'''
# Letters whose contrast to what lies behind them is less than 4.5 (WCAG 2)
PALE = '''([css, letters]) => {
  const numbers = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (a > .5) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [...document.querySelector(css).querySelectorAll(letters)];
  return found.filter((e) => e.getClientRects().length && !e.disabled).map((e) => {
    const [a, b] = [light(numbers(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.innerText];
  }).filter(([ratio]) => ratio < 4.5);
}'''
# axe-core (MPL-2.0) comes from npm, once, as it was when it was looked at; it is kept outside the repository
AXE, AXE_SHA512 = '4.14.1', 'FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=='
AXE_RUN = '''async ([css, impacts]) => {
  const { violations } = await axe.run(css, { resultTypes: ['violations'] });
  return violations.filter((v) => impacts.includes(v.impact)).flatMap((v) => v.nodes.map((n) =>
    `${v.id} (${v.impact}): ${n.html.slice(0, 160)} ${n.failureSummary.split('\\n')[1] || ''}`));
}'''
OPEN = '''async (path) => {
  await window.jupyterapp.restored;
  await window.jupyterapp.commands.execute('docmanager:open', { path });
}'''
CLOSE = '''() => {
  const notebook = window.jupyterapp.shell.currentWidget;
  notebook.context.model.dirty = false;                        // so that nobody is asked
  notebook.dispose();
}'''
EXECUTE = '''async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code, store_history: false });
  let said = '';
  future.onIOPub = (m) => {
    if (m.header.msg_type === 'stream') said += m.content.text;
    if (m.header.msg_type === 'error') said += `${m.content.ename}: ${m.content.evalue}`;
  };
  await future.done;
  return said.trim();
}'''

def unnamed(tab, css):
    "Controls and pictures below an element that have no name"
    return tab.evaluate(UNNAMED, css)

def pale(tab, css, letters):
    "What can hardly be read below an element, of what `letters` selects"
    return tab.evaluate(PALE, [css, letters])

def axe_core():
    "Its JavaScript; the test is skipped where npm or its registry is out of reach"
    import pytest
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home()/'.cache'))/'stylekit-tests'/f'axe-{AXE}.min.js'
    if cache.exists(): return cache.read_text(encoding='utf-8')
    if not shutil.which('npm'): pytest.skip('axe-core comes by npm, which is not installed')
    with tempfile.TemporaryDirectory() as d:
        pack = ['npm', 'pack', f'axe-core@{AXE}', '--silent', '--fetch-retries=0', '--pack-destination', d]
        try: subprocess.run(pack, check=True, capture_output=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired): pytest.skip('npm cannot fetch axe-core')
        data = next(Path(d).iterdir()).read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == AXE_SHA512, 'not the axe-core that was pinned'
    with tarfile.open(fileobj=io.BytesIO(data)) as t: code = t.extractfile('package/axe.min.js').read()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as f: f.write(code)
    os.replace(f.name, cache)                                  # whole or not at all: tests run side by side
    return code.decode('utf-8')

def violations(tab, css, impacts=('serious', 'critical')):
    "What axe-core finds below an element"
    if not tab.evaluate("typeof axe !== 'undefined'"): tab.evaluate(axe_core())
    return tab.evaluate(AXE_RUN, [css, list(impacts)])

def write_notebook(path, cells):
    "A notebook of code cells"
    def cell(n, code):
        return dict(cell_type='code', id=f'{path.stem}-{n}', metadata={}, source=code, outputs=[], execution_count=None)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    made = [cell(n, code) for n, code in enumerate(cells)]
    book = dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(book))

def kernels_of(server):
    "Process ids of a server's kernels: processes below it"
    parents, commands = {}, {}
    listed = subprocess.run(['ps', '-e', '-o', 'pid=,ppid=,args='], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        pid, parents[pid], commands[pid] = line.split(None, 2)
    def below(pid): return pid == str(server) or pid in parents and below(parents[pid])
    return [int(pid) for pid, command in commands.items() if 'ipykernel_launcher' in command and below(pid)]

def ask(url, method='GET', body=None, **headers):
    "Status and text of an answer"
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer: return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.read().decode()

def _lab(home, port):
    settings = {'@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False)}
    folder = home/'cfg'/'labconfig'
    folder.mkdir(parents=True)
    (folder/'default_setting_overrides.json').write_text(json.dumps(settings))
    server = dict(ip='127.0.0.1', port=port, port_retries=0, root_dir=home, disable_check_xsrf=True)
    return ['-m', 'jupyterlab', '--allow-root', '--no-browser', '--IdentityProvider.token=',
            '--LabApp.expose_app_in_browser=True', '--LabApp.extension_manager=readonly',
            *(f'--ServerApp.{name}={value}' for name, value in server.items())]

def _app(options, port, command='app'):
    run = 'import sys; from stylekit.cli import main; sys.exit(main())'
    token = [] if '--token' in options else ['--token', '']    # most tests have no use for one
    return ['-c', run, command, '--port', str(port), '--no-browser', *token, *map(str, options)]

def page_command(how, **serving):
    "Makes the command that serves a page with arguments that the command line does not have"
    def made(port):
        asked = f'Serving(port={port}, browser=False, **{serving!r})'
        run = f'serve_panel("PagePanel", {how!r}, {asked})'
        return ['-c', f'from stylekit.app.serve import Serving, serve_panel; {run}']
    return made

def _wait_for(process, port, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1): return
        time.sleep(.1)
    raise AssertionError(log.read_text())

def _end(process):
    os.killpg(process.pid, signal.SIGTERM)
    try: process.wait(15)
    except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)

class Server:
    "JupyterLab (`options` is None) or a page of `stylekit` (or of a `page_command`), in a home of its own"
    def __init__(self, home, options=None, command='app'):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        made = command if callable(command) else lambda port: _app(options, port, command)
        command = _lab(home, port) if options is None else made(port)
        own = dict(PYTHONPATH=UNDER_TEST, JUPYTER_CONFIG_DIR=home/'cfg', JUPYTER_DATA_DIR=home/'d', TMPDIR=home,
                   JUPYTER_RUNTIME_DIR=home/'r', IPYTHONDIR=home/'i')
        self.home, self.log, self.url = home, home/'log', f'http://127.0.0.1:{port}/'
        env = os.environ | {k: str(v) for k, v in own.items()}
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen([sys.executable, *command], cwd=home, env=env, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        self._numbers, self.kernel, self.page = itertools.count(), None, None
        _wait_for(self.process, port, self.log)
    def __enter__(self): return self
    def __exit__(self, *_): _end(self.process)
    def kernels(self): return len(kernels_of(self.process.pid))
    def kill_kernels(self):
        "As the system does when memory runs out; how many"
        found = kernels_of(self.process.pid)
        for pid in found: os.kill(pid, signal.SIGKILL)
        return len(found)
    def until_kernels(self, most, seconds=60):
        "Wait until there are no more kernels than that"
        deadline = time.monotonic()+seconds
        while self.kernels() > most:
            assert time.monotonic() < deadline, f'{self.kernels()} kernels after {seconds} s'
            time.sleep(.2)
    def session(self, name):
        "Connect a notebook with the kernel that all share"
        kernel = dict(id=self.kernel) if self.kernel else dict(name='python3')
        body = dict(name=name, path=name, type='notebook', kernel=kernel)
        status, text = ask(f'{self.url}api/sessions', 'POST', body)
        assert status == 201, text
        self.kernel = json.loads(text)['kernel']['id']
    @contextlib.contextmanager
    def notebook(self, browser, *cells, width=1300):
        "A notebook of these cells, open and run in the one JupyterLab; its panels end with it"
        name = f'n{next(self._numbers)}.ipynb'
        write_notebook(self.home/name, cells)
        self.session(name)
        self.page = page = self.page or Page(browser, f'{self.url}lab?reset', width)
        try:
            page.resize(width, 0)
            page.open_notebook(name)
            page.run_all()
            page.see('.sk-panel')
            yield page
            page.end_panels()
            page.tab.evaluate(CLOSE)
        except BaseException:
            page.close()
            self.page = None                                   # nobody knows what state it is in
            raise

class Page:
    "What a person does at a panel"
    def __init__(self, browser, url, width=1300, wait='load'):
        self.tab = browser.new_page()                          # with cookies of its own
        self.tab.set_viewport_size(dict(width=width, height=1400))
        self.tab.set_default_timeout(60_000)
        self.tab.goto(url, wait_until=wait)
    def close(self): self.tab.close()
    def seen(self):
        "What the page says: why a test waited in vain"
        with contextlib.suppress(Exception):
            return f'{self.tab.url} says: {self.tab.inner_text("body", timeout=5000)[-2000:]}'
        return 'the page says nothing'
    def see(self, css): self.tab.wait_for_selector(css)
    def open_notebook(self, name):
        self.until('window.jupyterapp')
        self.tab.evaluate(OPEN, name)
        self.until(f"window.jupyterapp.shell.currentWidget?.context?.path === '{name}'")
    def run_all(self):
        self.tab.wait_for_function(READY)
        self.command('notebook:run-all-cells')
    def command(self, name):
        "One of JupyterLab's commands; it is not waited for"
        self.tab.evaluate(f"() => {{ window.jupyterapp.commands.execute('{name}') }}")
    def execute(self, code):
        "What this code prints in the notebook's kernel"
        return self.tab.evaluate(EXECUTE, code)
    def end_panels(self):
        self.execute('import gc; from stylekit.app.panels import Panel\n'
                     'for p in [o for o in gc.get_objects() if isinstance(o, Panel)]:\n'
                     '    p.shut()\n    if hasattr(p, "wait"): p.wait(60)')
    def click(self, name): self.tab.click(f'button.sk-{name}')
    def until(self, js, seconds=60):
        # Asked ten times a second: by default at each frame, and a page that is not drawn has none
        try: self.tab.wait_for_function(f'() => {js}', polling=100, timeout=1000*seconds)
        except Exception as e: raise AssertionError(f'{js} never came; {self.seen()}') from e
    def enabled(self, *names):
        for name in names: self.until(f"document.querySelector('button.sk-{name}')?.disabled === false")
    def press(self, name):
        "A button of a run that may soon be over: found and clicked at once"
        self.until(f"(b => b && !b.disabled && (b.click(), true))(document.querySelector('button.sk-{name}'))")
    def status(self): return self.tab.inner_text('.sk-status')
    def error(self): return self.tab.inner_text('.sk-error span')
    def says(self, text, seconds=60):
        self.until(f"document.querySelector('.sk-status')?.innerText.includes({text!r})", seconds)
    def counted(self):
        "Steps done, by the status"
        said = [word.strip('.:') for word in self.status().split()]
        return next((int(word) for word in said if word.isdigit()), 0)
    def past(self, step):
        counted = "+(/tep (\\d+)/.exec(document.querySelector('.sk-status')?.innerText || '') || [0, 0])[1]"
        self.until(f'{counted} > {step}')
    def before(self, step):
        counted = "+(/tep (\\d+)/.exec(document.querySelector('.sk-status')?.innerText || '') || [0, 1e9])[1]"
        self.until(f'{counted} < {step}')
    def preview(self): return self.tab.get_attribute('img.sk-preview', 'src')
    def open_tab(self, name): self.tab.locator(f'.sk-tabs >> text={name}').first.click()
    def open_fold(self, name):
        "If it is not open"
        button = self.tab.locator(f'.sk-{name} > button')
        if '▸' in button.inner_text(): button.click()
        self.see(f'.sk-{name} .sk-folded')
    def tick(self, name): self.tab.click(f'.sk-{name} input[type=checkbox]')
    def drag(self, handle, along, share, down=.5):
        self.tab.locator(along).first.scroll_into_view_if_needed()
        h, t = (self.tab.locator(css).first.bounding_box() for css in (handle, along))
        self.tab.mouse.move(h['x']+h['width']/2, h['y']+h['height']/2)
        self.tab.mouse.down()
        self.tab.mouse.move(t['x']+t['width']*share, t['y']+t['height']*down, steps=8)
        self.tab.mouse.up()
    def slide(self, name, share):
        t = self.tab.locator(f'.sk-{name} input[type=range]').first.bounding_box()
        self.tab.mouse.click(t['x']+8+(t['width']-16)*share, t['y']+t['height']/2)
    def number(self, name, value):
        self.tab.fill(f'.sk-{name} input[type=number]', str(value))
        self.tab.keyboard.press('Enter')
        self.tab.keyboard.press('Tab')
    def caption(self, text):
        self.tab.fill('.sk-caption input', text)
        self.tab.keyboard.press('Tab')
    def logs(self, text): self.until(f"document.querySelector('.sk-log')?.innerText.includes({text!r})")
    def choose_picture(self, path):
        with self.tab.expect_file_chooser() as chosen: self.tab.get_by_role('button', name='Picture…').click()
        chosen.value.set_files(str(path))
    def download(self, name):
        with self.tab.expect_download() as d: self.tab.click(f'.sk-{name} button')
        return Path(d.value.path()).read_bytes()
    def recipe(self): return json.loads(self.download('recipe'))
    def resize(self, width, wait=400):
        self.tab.set_viewport_size(dict(width=width, height=1400))
        self.tab.wait_for_timeout(wait)
    def shot(self, name):
        if SHOTS: self.tab.screenshot(path=f'{SHOTS}/{name}.png', full_page=True)
