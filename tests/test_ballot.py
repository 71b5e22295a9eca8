"""A ballot: what the page tells and forbids; votes cast in a browser without a network, brought home once"""
import base64, hashlib, json, os, re, signal
import pytest
from PIL import Image
import browser
from browser import violations
from stylekit import StylekitError
from stylekit.cli import main
from stylekit.pilot.ballot import make_ballot
from stylekit.pilot.study import QUESTIONS, VoteLog, Voting, analyse, make_study, merge_votes, read_votes
from stylekit.pilot.study import standing_votes

SHOTS = browser.SHOTS
ALL = ('minor', 'moderate', 'serious', 'critical')               # of axe-core

def flat(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (96, 64), colour).save(path)

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two sources and the results of two methods"
    home = tmp_path_factory.mktemp('ballot')
    for n in range(2):
        flat(home/'source'/f'slipper{n}.png', (20, 60*n, 9))
        flat(home/'glossy'/f'slipper{n}.png', (250, 60*n, 90))
        flat(home/'dullish'/f'slipper{n}.png', (60, 60*n, 90))
    flat(home/'style.png', (0, 0, 0))
    return home

def make(folders, name, seed=1):
    methods = dict(glossy=folders/'glossy', dullish=folders/'dullish')
    return make_study(folders/name, methods, [folders/'style.png'], folders/'source', title='Slippers </script>',
                      questions=QUESTIONS[:2], seed=seed)

@pytest.fixture(scope='module')
def study(folders): return make(folders, 'study')

def told(page):
    "What a page says, without its pictures"
    return re.sub('"UklGR[^"]*"', '""', page.read_text(encoding='utf-8'))


def test_page_tells_no_method(study, folders):
    "Names, sources, answers and paths are not in the page; pictures, questions and both languages are"
    page = make_ballot(study, folders/'page.html')
    text = told(page)
    secret = 'glossy', 'dullish', 'slipper', '"m1"', '"right"', '"methods"', '"kind"', '"catch"', '"repeats"'
    for word in (*secret, str(folders)): assert word not in text
    data = json.loads(re.search('id="study">(.*?)</script>', page.read_text(encoding='utf-8'), re.S)[1])
    assert {*data['pictures']} == {*study.pictures} and {*data['texts']} == {'en', 'ja'}
    assert {frozenset(t) for t in data['trials']} == {frozenset(('id', 'item', 'first', 'second'))}
    assert data['title'] == 'Slippers </script>' and '<title>Slippers &lt;/script&gt;' in text

def test_page_forbids_the_network(study, folders):
    text = told(make_ballot(study, folders/'closed.html'))
    assert "default-src 'none'; img-src data:;" in text and 'unsafe' not in text
    assert not re.search(r'(src|href)=|https?:|@import|url\(|fetch\(|XMLHttp', text)

def test_command(study, folders, capsys):
    "A page beside the study, in one language; what is there stays"
    assert main(['ballot', str(study.path), '--lang', 'ja']) == 0
    page = study.path/'ballot.html'
    assert '<html lang="ja">' in told(page) and str(page) in capsys.readouterr().out
    assert main(['ballot', str(study.path)]) == 2 and 'is there already' in capsys.readouterr().err
    assert main(['ballot', str(study.path), '--overwrite', '--out', str(page)]) == 0
    assert '<html lang="en">' in told(page)
    assert main(['ballot', str(study.path), '--lang', 'fr']) == 2
    assert main(['ballot', str(folders/'source')]) == 2


# ---- in a browser ----

# Pictures that are not shown, of all
UNSEEN = "[...document.querySelectorAll('.sk-vote img')].filter((e) => !e.naturalWidth).length"

class Rater:
    "A person at a ballot, from a file, without a network"
    def __init__(self, context, page):
        self.asked = []
        self.tab = context.new_page()
        self.tab.set_default_timeout(5000)
        self.tab.on('request', lambda r: self.asked.append(r.url))
        self.tab.on('pageerror', lambda e: self.asked.append(f'error {e}'))
        self.url = page.as_uri()
        self.tab.goto(self.url)
    def enter(self, name):
        self.tab.fill('.sk-start input', name)
        self.tab.keyboard.press('Enter')
    def ready(self): self.tab.wait_for_selector('.sk-vote[data-open=true]')
    def count(self): return int(re.search(r'\d+', self.tab.inner_text('.sk-count'))[0])
    def shown(self, name):
        "Which picture stands there: the id is the beginning of its hash"
        data = self.tab.get_attribute(f'.sk-{name} img', 'src').partition(',')[2]
        return hashlib.sha256(base64.b64decode(data)).hexdigest()[:16]
    def press(self, *keys):
        for key in keys:
            self.ready()
            assert self.tab.evaluate(UNSEEN) == 0
            self.tab.keyboard.press(key)
        self.ready()
    def save(self, to):
        with self.tab.expect_download() as d: self.tab.click('.sk-download')
        assert re.fullmatch(r'ballot-[0-9a-f]{8}-\S+\.jsonl', d.value.suggested_filename)
        d.value.save_as(to)
        return to
    def shot(self, name):
        if not SHOTS: return
        for width in (1300, 400):
            self.tab.set_viewport_size(dict(width=width, height=900))
            self.tab.wait_for_timeout(100)
            self.tab.screenshot(path=f'{SHOTS}/{name}-{width}.png', full_page=True)
            wide = self.tab.evaluate('document.documentElement.scrollWidth')
            assert wide <= width, f'{wide} of {width} px'
        self.tab.set_viewport_size(dict(width=1300, height=900))

@pytest.fixture
def context(chrome):
    c = chrome.new_context(offline=True, locale='en-GB', viewport=dict(width=1300, height=900))
    yield c
    c.close()

@pytest.mark.skipif(not browser.CHROMIUM, reason='no Chromium on this machine')
def test_votes_come_home(study, folders, context, tmp_path):
    "By keys and buttons, undo, a skip, a reload in the middle; the file counts once and only here"
    pytest.importorskip('playwright.sync_api')
    ann = Rater(context, make_ballot(study, tmp_path/'ballot.html'))
    assert violations(ann.tab, 'html', ALL) == []
    ann.enter(' Zoë  猫 ')
    asks = Voting(study, 'Zoë 猫', tmp_path/'none').asks
    for ask in (asks[0], asks[2]):                               # of two trials
        ann.ready()
        assert [ann.shown(name) for name in ('content', 'a', 'b')] == [ask.content, ask.a, ask.b]
        ann.press('a', 'ArrowRight')
    for left in (3, 2):
        ann.press('z')
        assert ann.count() == left
    ann.tab.evaluate('''() => { for (const key of 'aa') document.querySelector('.sk-vote').dispatchEvent(
        new KeyboardEvent('keydown', { key, bubbles: true })); }''')             # pressed twice: one answer
    ann.ready()
    assert ann.count() == 3
    ann.press('s')
    ann.tab.keyboard.type('bat')                                 # letters that are keys elsewhere
    assert violations(ann.tab, 'html', ALL) == []
    ann.tab.keyboard.press('Enter')
    ann.ready()
    half = ann.save(tmp_path/'half.jsonl')
    ann.shot('ballot-en')
    ann.tab.goto(ann.url)                                        # loaded again, in the middle
    assert ann.tab.input_value('.sk-start input') == 'Zoë 猫'
    ann.enter('zoë 猫')
    assert 'Zoë 猫' in ann.tab.inner_text('.sk-warning')         # somebody else, or a slip
    ann.enter('Zoë 猫')
    ann.ready()
    assert ann.count() == 4
    ann.tab.click('button[lang=ja]')
    ann.ready()
    assert violations(ann.tab, 'html', ALL) == [] and '回答済み' in ann.tab.inner_text('.sk-count')
    ann.shot('ballot-ja')
    of = len(study.trials)*2
    ann.tab.evaluate('''() => new Promise((done) => {            // as fast as it opens
        const go = () => document.querySelector('.sk-done:not([hidden])') ? done()
          : (document.querySelector('.sk-choose-a').click(), setTimeout(go, 30));
        go();
    })''')
    whole = ann.save(tmp_path/'whole.jsonl')
    ann.shot('ballot-done')
    urls = {u for u in ann.asked if not u.startswith(('data:', 'blob:', 'file:'))}
    assert not urls
    votes = read_votes(study, whole)                             # sides as the schedule of Python has them
    standing = standing_votes(votes)
    assert len(standing) == of and len(votes) == of+4 and {v.rater for v in votes} == {'Zoë 猫'}
    shown = [a.key for a in asks]
    first = {(v.trial, v.question): v for v in standing}
    assert [first[key].answer for key in shown[:5]] == ['A', 'B', 'A', 'skip', 'A']
    assert first[shown[3]].reason == 'bat' and all(v.seconds >= 0 for v in standing)
    log = tmp_path/'votes.jsonl'
    assert merge_votes(study, half, log=log).added == 8
    assert merge_votes(study, whole, half, whole, log=log).added == of+4-8
    assert len(VoteLog(log).read()) == of+4
    assert Voting(study, 'Zoë 猫', log).ask is None
    with pytest.raises(StylekitError, match='vote of another study'):
        merge_votes(make(folders, 'other', 2), whole, log=tmp_path/'others.jsonl')

@pytest.mark.skipif(not browser.CHROMIUM, reason='no Chromium on this machine')
def test_a_browser_without_storage_says_so(study, context, tmp_path):
    pytest.importorskip('playwright.sync_api')
    context.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } })")
    ben = Rater(context, make_ballot(study, tmp_path/'ballot.html', 'en'))
    assert 'keeps nothing' in ben.tab.inner_text('.sk-warning') and not ben.tab.query_selector('header button')
    ben.enter('ben')
    ben.press('a', 'b')
    assert ben.count() == 2
    assert [v.answer for v in read_votes(study, ben.save(tmp_path/'ben.jsonl'))] == ['A', 'B']

class Panelist:
    "A person at the panel, in a notebook or on the page of the command"
    def __init__(self, page): self.page, self.tab = page, page.tab
    def enter(self, name):
        self.page.see('.sk-who input')
        assert violations(self.tab, '.sk-panel', ALL) == [] == browser.unnamed(self.tab, '.sk-panel')
        self.tab.fill('.sk-who input', name)
        self.tab.press('.sk-who input', 'Enter')
        self.page.see('.sk-vote[data-open=true]')
    def count(self): return self.tab.inner_text('.sk-count')
    def press(self, *keys):
        for key in keys:
            self.page.see('.sk-vote[data-open=true]')
            assert self.tab.evaluate(UNSEEN) == 0
            self.tab.keyboard.press(key)
            self.page.see('.sk-vote[data-open=false]')
        self.page.see('.sk-vote[data-open=true]')
    def skip(self, why, answered):
        self.page.see('.sk-vote[data-open=true]')
        self.tab.keyboard.press('s')
        self.tab.keyboard.type(why)                              # letters that are keys elsewhere
        self.tab.keyboard.press('Enter')
        self.page.until(f"document.querySelector('.sk-count').innerText.includes('{answered}')")
    def looks_right(self, name):
        for width in (1300, 400):
            self.page.resize(width)
            self.page.shot(f'{name}-{width}')
            assert self.tab.evaluate(browser.BEYOND) == []
        assert violations(self.tab, '.sk-panel', ALL) == [] == browser.pale(self.tab, '.sk-vote', LETTERS)

LETTERS = 'button, h2, p, figcaption, label span'

def in_a_notebook(chrome, lab, study):
    "Ann votes, her kernel is killed, and she goes on where she was, in Japanese"
    with lab.notebook(chrome, f'from stylekit import VotePanel\npanel = VotePanel({str(study.path)!r})\npanel') as p:
        ann = Panelist(p)
        ann.enter('ann')
        p.tab.focus('.sk-vote')
        ann.press('a', 'b', 'z', 't')
        os.kill(int(p.execute('import os; print(os.getpid())')), signal.SIGKILL)
        p.tab.get_by_role('button', name='Ok', exact=False).click()      # the notebook says so
        p.run_all()
        p.until("!document.querySelector('.sk-panel.sk-dead') && document.querySelector('.sk-who input')?.offsetParent")
        ann.enter('ann')
        assert ann.count().startswith('2 of')
        p.tab.get_by_text('日本語').click()
        p.until("document.querySelector('.sk-count').innerText.includes('2 問に回答済み')")
        p.tab.focus('.sk-vote')
        ann.skip('猫 bat', '3 問')
        lab.kernel = None

def on_the_page(chrome, home, study):
    "Ben votes, closes the page, and goes on where he was"
    with browser.Server(home, [study.path, '--lang', 'en'], 'vote') as server:
        page = browser.Page(chrome, server.url)
        ben = Panelist(page)
        ben.enter('ben')
        assert page.tab.evaluate("document.activeElement.matches('.sk-vote')")     # keys work at once
        ben.press('a', 'ArrowRight', 'z', 't')
        ben.skip('bat', '3 of')
        ben.looks_right('vote')
        page.close()
        page = browser.Page(chrome, server.url)
        Panelist(page).enter('ben')
        assert Panelist(page).count().startswith('3 of')
        page.close()

def by_ballot(context, study, home):
    "Eve votes from a file, without a network; her ballot"
    eve = Rater(context, make_ballot(study, home/'ballot.html'))
    eve.enter('eve')
    eve.press('a', 'b', 'z', 't')
    eve.tab.click('button[lang=ja]')
    eve.ready()
    assert '2 問に回答済み' in eve.tab.inner_text('.sk-count')
    assert violations(eve.tab, 'html', ALL) == [] == browser.unnamed(eve.tab, 'body')
    assert browser.pale(eve.tab, 'body', LETTERS) == []
    eve.press('a')
    assert not [u for u in eve.asked if not u.startswith(('data:', 'blob:', 'file:'))]
    return eve.save(home/'eve.jsonl')

@pytest.mark.skipif(not browser.CHROMIUM, reason='no Chromium on this machine')
def test_three_raters_and_three_ways(folders, chrome, lab, context, tmp_path):
    "One study: a panel whose kernel is killed, the page, a ballot that comes twice and one of another study"
    for name in ('playwright.sync_api', 'jupyterlab', 'voila'): pytest.importorskip(name)
    study, other = make(folders, 'served'), make(folders, 'another', 2)
    in_a_notebook(chrome, lab, study)
    on_the_page(chrome, tmp_path, study)
    ballot = by_ballot(context, study, tmp_path)
    (tmp_path/'foreign').mkdir()
    foreign = by_ballot(context, other, tmp_path/'foreign')
    assert merge_votes(study, ballot).added == 5 and merge_votes(study, ballot, ballot).added == 0
    with pytest.raises(StylekitError, match='vote of another study'): merge_votes(study, ballot, foreign)
    votes = VoteLog(study.path/'votes.jsonl').read()
    said = {r: [v.answer for v in votes if v.rater == r] for r in ('ann', 'ben', 'eve')}
    begin = ['A', 'B', 'undo', 'tie']
    assert said == dict(ann=[*begin, 'skip'], ben=[*begin, 'skip'], eve=[*begin, 'A']) and len(votes) == 15
    assert [v.reason for v in votes if v.answer == 'skip'] == ['猫 bat', 'bat']
    for r in said:
        mine = [v for v in votes if v.rater == r]
        assert mine[2].undoes == mine[1].id
        asked = [a.key for a in Voting(study, r).asks][:3]
        assert [(v.trial, v.question) for v in standing_votes(mine)] == asked
    assert {c.rater: c.answered for c in analyse(study).raters} == dict(ann=3, ben=3, eve=3)
