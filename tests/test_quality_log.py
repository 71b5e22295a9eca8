"""The quality log against the review's own log: undo, two rounds, torn lines; times and costs whose truth is known"""
import csv, io, random, shutil
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
import pytest
from PIL import Image
from stylekit import Review, StylekitError
from stylekit.app.review_panel import AWAY
from stylekit.core import file_sha256
from stylekit.pilot.log import (PAUSE, PictureLog, PictureTable, QualityLog, account, make_costs, match_table,
                                numbers_of, read_costs, read_picture_table, read_quality_log, reviewer_seconds,
                                with_groups)
from stylekit.records import json_line, read_lines
from stylekit.review import Decision, ReviewLog

SEEDS = range(6)
MORNING = datetime(2026, 11, 27, 9, tzinfo=timezone.utc)

def at(seconds): return (MORNING+timedelta(seconds=seconds)).isoformat(timespec='milliseconds')

def decided(n, seconds, who='ann', measured=None, item='a.png', what='accept'):
    return Decision(f'd{n}', who, at(seconds), item, what, seconds=measured)


# ---- minutes ----

@pytest.mark.parametrize('seed', SEEDS)
def test_the_true_time_lies_in_the_range(seed):
    "Two people who look, or are away for longer than a pause; the panel measures some of it, and shuffles the lines"
    g, truth, lines = random.Random(seed), {}, []
    for who in ('ann', 'ben'):
        now = g.uniform(0, 100)
        for n in range(60):
            away = g.uniform(PAUSE, 9999) if g.random() < .15 else 0.
            looked = g.uniform(.5, 290)
            now += away+looked
            measured = None if g.random() < .4 else round(min(AWAY, looked+away*(g.random() < .5)), 2)
            lines.append(decided(f'{who}{n}', now, who, measured))
            truth[f'd{who}{n}'] = looked
    g.shuffle(lines)
    found = reviewer_seconds(lines)
    assert AWAY == PAUSE and found.keys() == truth.keys()
    for k, (low, high) in found.items(): assert low-.01 <= truth[k] <= high+.01, k
    assert sum(high-low < .1 for low, high in found.values()) > 70       # and it is no empty statement

def test_a_clock_that_goes_back_says_nothing():
    lines = [decided(1, 100), decided(2, 50, 'ben'), decided(3, 40, measured=5.)]
    assert reviewer_seconds(lines) == dict(d3=(5, 5), d2=(0, PAUSE), d1=(60, 60))


# ---- the log ----

@pytest.fixture(scope='module')
def home(results, tmp_path_factory):
    d = tmp_path_factory.mktemp('log')
    results(d)
    return d

@pytest.fixture
def out(home, tmp_path):
    for name in ('in', 'out'): shutil.copytree(home/name, tmp_path/name)
    return tmp_path/'out'

@pytest.fixture
def quick(monkeypatch):
    "Redos cost nothing: another grey each time"
    shades = iter(range(1, 99))
    def draw(review, d):
        def save(path, **marks):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (64, 64), (next(shades),)*3).save(path)
        return SimpleNamespace(complete=True, interrupted=False, info={}, save=save)
    monkeypatch.setattr(Review, '_draw', draw)
    monkeypatch.setattr(Review, '_asked', lambda *a: dict(asked='other seed', lam=None, seed=1, mask=''))

def of(log, item): return next(p for p in log.pictures if p.item == item)

def test_two_rounds_with_undo(out, quick):
    "Redone twice; the acceptance of the first redo is taken back; every line is tied to bytes, run and settings"
    review = Review(out, who='ann')
    item = review.items[0]
    review.redo(item, 'other seed', seconds=4.)
    one, = review.work()
    review.accept(item, seconds=3.)
    review.undo()
    review.redo(item, 'other seed', seconds=2.)
    two, = review.work()
    Review(out, who='ben').accept(item, seconds=7.)
    p = of(read_quality_log(out), item)
    assert (p.status, p.first, p.rounds, p.round, p.reason) == ('accepted', 'redo', 2, 2, '')
    assert p.output_sha256 == two.output_sha256 != p.made_sha256 == file_sha256(out/item)
    assert [(d.decision, d.undone, d.who) for d in p.decisions] == [
        ('redo', False, 'ann'), ('accept', True, 'ann'), ('undo', False, 'ann'), ('redo', False, 'ann'),
        ('accept', False, 'ben')]
    assert [d.output_sha256 for d in p.decisions] == [p.made_sha256]+[one.output_sha256]*3+[two.output_sha256]
    assert all(d.run == p.run == review.all[item].run.id for d in p.decisions)
    assert all(len(d.settings) == 16 for d in p.decisions if d.decision != 'undo')
    assert p.reviewer[1] >= 16 and p.machine[0] >= one.seconds+two.seconds
    review.undo(item)                                          # back to what holds before
    assert of(read_quality_log(out), item).status == 'open'

def test_a_file_that_changed_is_not_what_was_decided_about(out):
    review = Review(out)
    a, b = review.items[:2]
    review.accept(a)
    review.reject(b, 'too much style')
    Image.new('RGB', (64, 64)).save(out/a)
    (out/b).unlink()
    log = read_quality_log(out)
    assert (of(log, a).status, of(log, a).first, of(log, a).output_sha256) == ('open', '', '')
    assert (of(log, b).status, of(log, b).first, of(log, b).made_sha256) == ('gone', '', '')
    assert of(log, a).decisions[0].run_id == '' and account(log).decided == 0

@pytest.mark.parametrize('seed', SEEDS)
def test_any_review_is_told_as_it_stands(out, seed):
    "Random decisions of two people with kills in mid-line: states, counts and times are those of the review"
    g, views = random.Random(seed), {}
    for who in ('ann', 'ben'): views[who] = Review(out, who=who)
    torn = 0
    for _ in range(30):
        review = views[g.choice([*views])]
        item = g.choice(review.items)
        what = g.choice(('accept', 'reject', 'undo'))
        if what == 'undo':
            try: review.undo()
            except StylekitError: pass
        elif what == 'accept': review.accept(item, seconds=g.choice((None, 3.)))
        else: review.reject(item, g.choice(('ugly', 'too much style')))
        if g.random() < .1:
            half = json_line(decided(0, 0)).encode()[:g.randrange(5, 90)]
            with open(out/'review.jsonl', 'ab') as f: f.write(half+b'\n')
            torn += 1
    log, now = read_quality_log(out), Review(out)
    lines = [r for r in now.log.records if isinstance(r, Decision)]
    assert log.torn == torn and sorted(d.id for p in log.pictures for d in p.decisions) == sorted(d.id for d in lines)
    for p in log.pictures:
        s = now.state(p.item)
        assert (p.status, p.reason) == (s.status, s.note if s.status == 'rejected' else '')
    spent = reviewer_seconds(lines)
    for i in (0, 1): assert abs(sum(p.reviewer[i] for p in log.pictures)-sum(s[i] for s in spent.values())) < 1e-6
    assert read_quality_log(out) == log                        # derived: nothing of it is kept

def test_tables_for_a_spreadsheet(out):
    review = Review(out, who='=ann')
    review.reject(review.items[0], '=1+1', seconds=2.)
    log = read_quality_log(out)
    pictures = list(csv.DictReader(io.StringIO(log.pictures_csv())))
    assert len(pictures) == 6 and [r['reason'] for r in pictures if r['reason']] == ["'=1+1"]
    line, = csv.DictReader(io.StringIO(log.decisions_csv()))
    assert line['who'] == "'=ann" and line['output_sha256'] == file_sha256(out/review.items[0])
    assert len(line['settings']) == 16 and line['reviewer_seconds_most'] == '2.0'


# ---- tables of one's own ----

def picture(name, folder='out', style='ink', status='open', **about):
    return PictureLog(folder, f'{name}.png', f'{name}.jpg', style, '', status, **about)

@pytest.mark.parametrize('mark', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp932'])
def test_tables_as_excel_writes_them(tmp_path, mark, encoding):
    path, pictures = tmp_path/'shop.csv', [picture('靴/赤い靴'), picture('靴/青い靴')]
    path.write_bytes(f'Picture{mark}Group{mark}クリック\r\n赤い靴.jpg{mark}スニーカー{mark}12\r\n\r\n'.encode(encoding))
    table = read_picture_table(path)
    assert numbers_of(table, pictures) == {'クリック': {'out/靴/赤い靴.png': 12}}
    assert [p.group for p in with_groups(QualityLog(pictures), table).pictures] == ['スニーカー', '']

@pytest.mark.parametrize('text,why', [
    ('', 'is empty'), ('name,clicks\na,1', 'no column `picture`'), ('picture,a,a\nx,1,2', 'two columns'),
    ('picture,clicks\nx', 'row 2 has 1 cells'), ('picture,clicks\n"x,1', 'cannot read'),
    ('picture,clicks\nx,1\nx.png,2', 'two rows for x.png')])
def test_tables_that_are_none(tmp_path, text, why):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(StylekitError, match=why): match_table(read_picture_table(tmp_path/'t.csv'), [picture('x')])

def test_a_name_must_say_which_picture():
    def table(name, **which): return PictureTable('t', ('clicks',), (dict(picture=name, clicks='1', **which),))
    shoes, bags = picture('shoes/red'), picture('bags/red')
    assert [*match_table(table('shoes/red.jpg'), [shoes, bags])] == [shoes.key]
    with pytest.raises(StylekitError, match='name its folder'): match_table(table('red.jpg'), [shoes, bags])
    flat = picture('shoes/red', 'flat', 'flat')
    with pytest.raises(StylekitError, match='there are 2 results'): match_table(table('red'), [shoes, flat])
    assert [*match_table(table('red', style='Flat'), [shoes, flat])] == [flat.key]
    assert [*match_table(table('red'), [shoes, flat], once=False)] == [shoes.key, flat.key]
    assert match_table(table('nowhere'), [shoes]) == {}


# ---- costs ----

def worked(accepted, rejected, seconds=(30., 60.), machine=(10., 12.)):
    about = dict(reviewer=seconds, machine=machine, elapsed=.5, decided='2026-11-27T10:00:00+00:00')
    return QualityLog([picture(f'{i}', status='accepted' if i < accepted else 'rejected', **about)
                       for i in range(accepted+rejected)])

@pytest.mark.parametrize('seed', SEEDS)
def test_any_true_cost_lies_in_the_range(seed):
    "Whatever the true figures are within their ranges, the cost is within its own; and both ends are reached"
    g = random.Random(seed)
    spans = {k: sorted((g.uniform(0, 90), g.uniform(0, 90))) for k in ('reviewer_per_hour', 'machine_per_hour',
                                                                        'setup_hours', 'setup_per_hour')}
    few = g.randint(1, 50)
    log = worked(g.randint(1, 9), g.randint(0, 9))
    a = account(log, make_costs(setup_pictures=[few, 2*few], **spans))
    seen = []
    for k in range(300):
        ends = [(0., 0., 1.), (1., 1., 0.)][k] if k < 2 else None
        def drawn(span, e=0): return span[0]+(span[1]-span[0])*(ends[e] if ends else g.random())
        true = {k: drawn(s) for k, s in spans.items()}
        hours = sum(drawn(p.reviewer)*true['reviewer_per_hour']+drawn(p.machine)*true['machine_per_hour']
                    for p in log.pictures)/3600
        seen.append(hours/a.accepted+true['setup_hours']*true['setup_per_hour']/drawn((few, 2*few), 2))
    assert a.each[0]-1e-9 <= min(seen) and max(seen) <= a.each[1]+1e-9
    assert abs(seen[0]-a.each[0]) < 1e-9 and abs(seen[1]-a.each[1]) < 1e-9

def test_rejected_pictures_are_paid_by_the_accepted():
    costs = make_costs(reviewer_per_hour=60, machine_per_hour=0, setup_hours=0, setup_per_hour=0, quote_price=[2, 4])
    all_good, half = (account(worked(*n), costs) for n in ((10, 0), (5, 5)))
    assert all_good.each == (.5, 1) and half.each == (1, 2) and half.pays_from == (0, None)
    assert account(worked(1, 5), costs).pays_from[1] is None and account(worked(1, 9), costs).pays_from is None
    assert account(worked(0, 5), costs).each is None and account(worked(0, 5), costs).reviewer == (2.5, 5)

def test_what_is_not_known_has_no_upper_end():
    unseen = worked(4, 0, machine=(3., None))
    a = account(unseen, make_costs(reviewer_per_hour=60, machine_per_hour=1, setup_hours=0))
    assert a.each[0] == .5+3/3600 and a.each[1] is None and 'setup_per_hour' in a.unknown
    assert account(unseen, make_costs(machine_per_hour=0, setup_hours=0)).each == (0, None)
    ordered = account(worked(3, 0), make_costs(ordered='2026-11-26T10:00:00Z'))
    assert ordered.lead_hours == (.5+10/3600, 24) and account(worked(3, 0)).lead_hours[1] is None

@pytest.mark.parametrize('text,why', [
    ('reviewer_per_hour = [60, 40]', 'turn it round'), ('reviewer_per_hour = "x"', 'number or a range'),
    ('reviewer_per_hour = [1, 2, 3]', 'number or a range'), ('machine_per_hour = -1', 'at least 0'),
    ('machine_per_hour = nan', 'machine_per_hour'), ('setup_pictures = 0', 'at least 1'), ('wages = 3', 'unknown key'),
    ('ordered = "soon"', 'is no time'), ('currency = 3', 'must be a text'), ('a = ', 'cannot read'),
    ('quote_price = true', 'number')])
def test_wrong_figures_are_named(tmp_path, text, why):
    (tmp_path/'costs.toml').write_text(text)
    with pytest.raises(StylekitError, match=why): read_costs(tmp_path/'costs.toml')

def test_only_whole_lines_count(out):
    "A log whose last line is being written now"
    review = Review(out, who='ann')
    review.accept(review.items[0])
    before = (out/'review.jsonl').read_bytes()
    with open(out/'review.jsonl', 'ab') as f: f.write(json_line(decided(1, 0, item=review.items[1])).encode()[:-9])
    log = read_quality_log(out)
    assert log.count('accepted') == 1 and log.torn == 0
    assert (out/'review.jsonl').read_bytes().startswith(before) and len(read_lines(out/'review.jsonl', Decision)) == 1
    assert ReviewLog(out/'review.jsonl').read()[0].item == review.items[0]
