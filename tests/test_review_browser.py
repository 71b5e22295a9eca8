"""Sixty pictures are gone through by keys alone, in JupyterLab and on the page, while the kernel is killed twice;
two reviewers at once; what is seen"""
import os, re, signal, subprocess, time
from importlib.util import find_spec
import pytest
import browser
from browser import BEYOND, Page, Server, pale, unnamed

if not browser.CHROMIUM:
    pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)', allow_module_level=True)
for name in ('playwright', 'jupyterlab', 'voila'):
    if not find_spec(name): pytest.skip(f'{name} is not installed: pip install -e ".[dev]"', allow_module_level=True)
from PIL import Image
from stylekit import Review, export_accepted
from stylekit.records import read_lines
from stylekit.review import REASONS, Decision, ReviewRound

N = 60
TURN = "document.querySelector('.sk-keys')?.dataset.turn"
FOCUSED = "document.activeElement.closest('.sk-panel') !== null"
TITLE = "document.querySelector('.sk-title')?.innerText || ''"

# What is shown at each press, before the panel hears it
NOTE = f'''() => {{
  if (window.noted) return;
  window.noted = [];
  document.addEventListener('keydown', () => {{ window.noted = [{TURN}, {TITLE}]; }}, true);
}}'''

class Keys:
    "A person at a review, who has nothing but keys; what they have decided"
    def __init__(self, page, out, who='ann'):
        self.page, self.who, self.made = page, who, []
        self.log = Review(out).log.path
    def turn(self): return self.page.tab.evaluate(TURN)
    def item(self): return item_in(self.page.tab.evaluate(TITLE))
    def lines(self):
        "How many of the log are theirs; it begins with the first decision"
        if not self.log.exists(): return 0
        return sum(r.kind == 'decision' and r.who == self.who for r in read_lines(self.log, Decision, ReviewRound))
    def decide(self, what, *keys, text=''):
        "Until the log has it: a redo that ends brings another picture, and a press at that moment is for none"
        n, until = self.lines(), time.monotonic()+90
        while self.lines() == n:
            assert time.monotonic() < until, self.page.seen()
            self.page.tab.evaluate(NOTE)
            for key in keys: self.page.tab.keyboard.press(key)
            if text: self.write(text)
            turn, title = self.page.tab.evaluate('window.noted')
            self.page.until(f"{TURN} !== '{turn}'")
        self.made.append((self.made[-1][0] if what == 'undo' else item_in(title), what))
    def write(self, text):
        self.page.until("document.activeElement.closest('.sk-own')")
        self.page.tab.keyboard.type(text)                      # letters that are keys elsewhere
        self.page.tab.keyboard.press('Enter')
    def accept(self): self.decide('accept', 'a')
    def reject(self, n): self.decide(REASONS[n-1], 'r', str(n))
    def in_words(self, text): self.decide(text, 'r', '0', text=text)
    def redo(self, key, asked): self.decide(asked, key)
    def undo(self): self.decide('undo', 'z')
    def decided(self): return int(re.search(r'(\d+) of \d+ decided', self.page.tab.evaluate(TITLE))[1])
    def until_done(self):
        "Everything that is left, as it comes, until nothing is open nor being redone"
        until = time.monotonic()+90
        while self.decided() < N:
            assert time.monotonic() < until
            if 'not decided' in self.page.tab.evaluate(TITLE): self.accept()
            else: self.page.tab.wait_for_timeout(100)

def item_in(title): return re.match(r'\S.*?\.png', title)[0]

def in_lab(chrome, lab, out, how):
    "Stages (enter the panel, kill the kernel) of a notebook"
    cell = f'from stylekit import ReviewPanel\npanel = ReviewPanel({str(out)!r}, "ann", **{how!r})\npanel'
    with lab.notebook(chrome, cell) as p:
        def enter():
            p.see('.sk-before[src]')
            p.tab.click('.jp-Cell >> nth=0 >> .jp-InputPrompt')
            for _ in range(40):
                if p.tab.evaluate(FOCUSED): break
                p.tab.keyboard.press('Tab')
            assert p.tab.evaluate("document.activeElement.matches('.sk-keys')")     # the first thing there
        def kill():
            os.kill(int(p.execute('import os; print(os.getpid())')), signal.SIGKILL)
            p.tab.get_by_role('button', name='Ok', exact=False).click()      # the notebook says so
            p.run_all()
            p.tab.wait_for_timeout(300)
            p.until("!document.querySelector('.sk-panel.sk-dead')")
            p.says('Ready')
        yield p, enter, kill
        lab.kernel = None

def kernels_of(server):
    "Processes of kernels below a server"
    listed = subprocess.run(['ps', '-e', '-o', 'pid=,ppid=,args='], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, args in rows if parent == str(server.process.pid) and 'ipykernel' in args]

def on_page(chrome, home, out, how):
    "The same of the page that the command serves"
    options = [out, '--who', 'ann', '--style', 'ink', '--proof', how['proof'], '--steps', how['steps']]
    with Server(home, options, 'review') as server:
        p = Page(chrome, server.url)
        def enter():
            p.see('.sk-before[src]')
            p.until(FOCUSED)                                   # it has the focus from the beginning
        def kill():
            for pid in kernels_of(server): os.kill(pid, signal.SIGKILL)
            p.tab.reload()
        yield p, enter, kill
        p.close()

@pytest.fixture(scope='module')
def sixty(results, tmp_path_factory):
    home = tmp_path_factory.mktemp('sixty')
    results(home, N, side=32)
    return home

@pytest.fixture
def out(sixty, tmp_path):
    import shutil
    for name in ('in', 'out'): shutil.copytree(sixty/name, tmp_path/name)
    (tmp_path/'proof.json').write_text('{"b/thing 1.png": {"score": 0.1, "sentences": ["letters: 2 of 4 kept"]}}')
    return tmp_path/'out'

@pytest.mark.parametrize('where', ['lab', 'page'])
def test_sixty_pictures_by_keys_and_two_killed_kernels(chrome, lab, out, where, tmp_path):
    "The log has each decision, in order; the export just what was accepted; who comes back stands at an open one"
    how = dict(style='ink', proof=str(tmp_path/'proof.json'), steps=2)
    stages = in_lab(chrome, lab, out, how) if where == 'lab' else on_page(chrome, tmp_path, out, how)
    for p, enter, kill in stages:
        keys = Keys(p, out)
        enter()
        assert keys.item() == 'b/thing 1.png' and 'letters: 2 of 4' in p.tab.inner_text('.sk-proof')
        keys.reject(1)
        keys.redo('k', 'keep more')
        for _ in range(12): keys.accept()
        keys.in_words('ears: a bit szary')
        keys.undo()
        keys.accept()
        keys.redo('o', 'other seed')
        last = keys.made[-1][0]
        kill()                                                 # with redos in hand
        enter()
        assert keys.item() != last and keys.decided() in (14, 15)
        for _ in range(20): keys.accept()
        keys.reject(3)
        kill()
        enter()
        keys.until_done()
        assert p.tab.evaluate(BEYOND) == [] and not p.error()
    review = Review(out)
    said = [(d.item, d.reason or d.asked or d.decision) for d in review.log.records if isinstance(d, Decision)]
    assert said == keys.made
    assert all(d.seconds is not None and d.who == 'ann' for d in read_lines(review.log.path, Decision, ReviewRound)
               if d.kind == 'decision' and d.decision != 'undo')
    assert sum(r.kind == 'round' and not r.error for r in review.log.records) == 2
    final = {}
    for item, what in keys.made: final[item] = what
    made = export_accepted(review, tmp_path/'final')
    assert {e.file for e in made.files} == {i for i, what in final.items() if what == 'accept'}
    assert {e.file for e in made.files} == {f.relative_to(made.to).as_posix() for f in made.to.rglob('*.png')}
    assert set(made.left_out) == {i for i, what in final.items() if what in REASONS} and len(made.left_out) == 2

def test_two_reviewers_at_once(chrome, out, tmp_path):
    "On two pages of one server; each line is there, and each sees what the other did"
    with Server(tmp_path, [out, '--style', 'ink'], 'review') as server:
        pages = [Page(chrome, server.url, 800) for _ in range(2)]
        people = [Keys(p, out, who) for p, who in zip(pages, ('ann', 'ben'))]
        for keys, p in zip(people, pages):
            p.see('.sk-before[src]')
            p.tab.fill('.sk-who input', keys.who)
            p.tab.keyboard.press('Enter')
            p.tab.focus('.sk-keys')
        for i in range(12):
            for n, keys in enumerate(people):
                keys.page.tab.bring_to_front()
                if (i+n) % 4 == 3: keys.reject(2)
                else: keys.accept()
        keys = people[0]
        item = keys.made[-1][0]
        keys.undo()
        assert keys.item() == item
        told = [(d.who, d.item, d.reason or d.decision) for d in Review(out).log.records]
        for keys in people: assert [t[1:] for t in told if t[0] == keys.who] == keys.made
        done = Review(out).progress.decided
        for p in pages: p.until(f"({TITLE}).includes('{done} of {N} decided')")
        for p in pages: p.close()

def test_a_second_press_is_not_for_the_next_picture(chrome, lab, out):
    "Nor is a second click; keys stay in the panel; letters in a text field are letters"
    cells = 'window.jupyterapp.shell.currentWidget.content.widgets.length'
    cell = f'from stylekit import ReviewPanel\npanel = ReviewPanel({str(out)!r}, style="ink")\npanel'
    with lab.notebook(chrome, cell) as p:
        p.see('.sk-before[src]')
        n, keys = p.tab.evaluate(cells), Keys(p, out)
        p.tab.focus('.sk-keys')
        before = keys.turn()
        p.tab.evaluate('''() => {
          const press = () => new KeyboardEvent('keydown', { key: 'a', bubbles: true });
          for (let i = 0; i < 5; i += 1) document.activeElement.dispatchEvent(press());
        }''')
        p.until(f"{TURN} !== '{before}'")
        p.tab.wait_for_timeout(500)
        assert keys.decided() == 1
        p.tab.dblclick('button.sk-accept')
        p.tab.wait_for_timeout(500)
        assert keys.decided() == 2
        for key in 'bxdd': p.tab.keyboard.press(key)           # the focus is on a button
        p.tab.focus('.sk-who input')
        p.tab.keyboard.type('a rasz')
        p.tab.wait_for_timeout(300)
        assert p.tab.evaluate(cells) == n and keys.decided() == 2
        p.click('protect')
        p.until("document.querySelector('.sk-brush canvas')?.width === 32")      # the picture is there
        p.drag('.sk-brush canvas', '.sk-brush canvas', .8)
        p.tab.keyboard.press('z')                              # of the brush: a stroke back
        p.tab.keyboard.press('Enter')
        p.says('nothing is painted')
        p.drag('.sk-brush canvas', '.sk-brush canvas', .8)
        p.tab.keyboard.press('Enter')
        p.until(f"/1 being redone/.test({TITLE}) || /is ready/.test(document.querySelector('.sk-text').innerText)")
        p.execute('panel.review.stop()')

@pytest.mark.parametrize('where', ['lab', 'page'])
def test_protect_this_by_keys_alone(chrome, lab, out, where, tmp_path):
    "A box that is moved and made smaller, and a second one; the key line says how"
    how = dict(style='ink', proof=str(tmp_path/'proof.json'), steps=2)
    stages = in_lab(chrome, lab, out, how) if where == 'lab' else on_page(chrome, tmp_path, out, how)
    for p, enter, _ in stages:
        enter()
        p.tab.keyboard.press('p')
        p.until("document.activeElement.matches('.sk-brush canvas') && document.activeElement.width === 32")
        assert 'arrows: a box' in p.tab.inner_text('.sk-keys')
        keys = ['ArrowUp', *['Shift+ArrowLeft']*6, *['ArrowLeft']*9, 'b', 'ArrowDown', *['ArrowDown']*9, 'z', 'b',
                'ArrowRight', *['Shift+ArrowUp']*4, *['ArrowDown']*12, 'Enter']
        for key in keys: p.tab.keyboard.press(key)
        p.until(f"/1 being redone/.test({TITLE}) || /is ready/.test(document.querySelector('.sk-text').innerText)")
        assert p.tab.evaluate(BEYOND) == [] and not p.error()
    [decision] = [r for r in Review(out).log.records if isinstance(r, Decision)]
    mask = Image.open(Review(out).home/'masks'/f'{decision.mask}.png').convert('L')
    left, low = mask.crop((0, 8, 8, 24)), mask.crop((8, 24, 24, 32))
    assert decision.asked == 'protect this' and left.getextrema()[0] > 200 and low.getextrema()[0] > 200
    assert mask.getpixel((28, 4)) == mask.getpixel((2, 30)) == mask.getpixel((30, 16)) == 0

def test_what_is_seen(chrome, lab, out):
    "Nothing past the edge, all named, letters that can be read; light and dark, at three widths"
    cell = (f'from stylekit import ReviewPanel\npanel = ReviewPanel({str(out)!r}, '
            'proof={"b/thing 1.png": dict(score=0, sentences=["letters: 2 of 4 kept"])}, style="ink")\npanel')
    theme = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
    with lab.notebook(chrome, cell) as p:
        p.see('.sk-before[src]')
        p.tab.focus('.sk-keys')
        for name in ('JupyterLab Dark', 'JupyterLab Light'):
            p.tab.evaluate(theme, name)
            p.tab.wait_for_timeout(800)
            for mode in ('r', 'Escape'):
                p.tab.keyboard.press(mode)
                p.tab.wait_for_timeout(300)
                assert unnamed(p.tab, '.sk-panel') == []
                assert pale(p.tab, '.sk-review', 'button, b, li, .sk-state, .sk-text, .sk-keys') == [], name
        p.tab.keyboard.press('r')
        for width in (1300, 800, 400):
            p.resize(width)
            assert p.tab.evaluate(BEYOND) == [], width
            p.shot(f'review-{width}')
