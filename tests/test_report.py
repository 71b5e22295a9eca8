"""The report of a pilot: correlations and the learned score against SciPy and scikit-learn, on data whose truth is
known; the page as people and programs read it"""
import csv, io, json, math, re, shutil
from html.parser import HTMLParser
import numpy as np, pytest
from stylekit import Review, StylekitError
from stylekit.cli import main
from stylekit.core import atomic_path
from stylekit.pilot import report as module
from stylekit.pilot.log import PictureLog, PictureTable, QualityLog, make_costs, read_quality_log
from stylekit.pilot.report import (LEAST_EACH, TEXTS, QualityScore, TooFewAnswers, Words, average_ranks, build_report,
                                   cluster_draws, cross_validated, fit_logistic, learn_score, make_report,
                                   rank_correlation, roc_auc, track, write_report)
from stylekit.records import read_json

SEEDS = range(4)


# ---- rank correlation ----

@pytest.mark.parametrize('seed', SEEDS)
def test_ranks_and_correlation_are_scipys(seed):
    "With ties, and with every draw of a bootstrap written out"
    stats, rng = pytest.importorskip('scipy.stats'), np.random.default_rng(seed)
    x, y = rng.integers(0, 2+3*seed, 40).astype(float), rng.standard_normal(40).round(seed)
    if seed == 0: x[:2] = 0, 1
    assert np.allclose(average_ranks(x)[0], stats.rankdata(x))
    assert abs(rank_correlation(x, y+x).rho-stats.spearmanr(x, y+x)[0]) < 1e-12
    for w in cluster_draws(range(40), 5, seed):
        drawn = np.repeat(np.arange(40), w.astype(int))
        assert np.allclose(average_ranks(x, w[None])[0][drawn], stats.rankdata(x[drawn]))

def spearman_of(r): return 6/math.pi*math.asin(r/2)   # of a Gaussian pair

@pytest.mark.parametrize('n,r', [(15, .8), (40, 0.), (40, .5)])
def test_the_interval_covers_the_truth(n, r):
    rng, held = np.random.default_rng(1), 0
    for k in range(200):
        x = rng.standard_normal(n)
        c = rank_correlation(x, r*x+math.sqrt(1-r*r)*rng.standard_normal(n), draws=300, seed=k)
        held += c.low <= spearman_of(r) <= c.high
    assert 178 <= held   # 95 % of 200 is 190 ± 3

def test_results_of_one_source_are_not_so_many_answers():
    "Four results of each source that are nearly the same: only with groups does the interval hold"
    rng, held = np.random.default_rng(2), dict(groups=0, none=0)
    for k in range(100):
        x, y = rng.standard_normal((2, 20))
        many = [np.repeat(v, 4)+.05*rng.standard_normal(80) for v in (x, y)]
        for name, groups in dict(groups=np.repeat(np.arange(20), 4), none=None).items():
            c = rank_correlation(*many, groups, draws=200, seed=k)
            held[name] += c.low <= 0 <= c.high
    assert held['groups'] >= 86 and held['none'] < 75

def test_metrics_that_say_nothing_are_left_out():
    answers = dict(enumerate(np.arange(30.)))
    found, left_out = track(dict(same=dict.fromkeys(answers, 1.), few={1: 2., 2: 3.}, good=answers), answers, 'x')
    assert [c.metric for c in found] == ['good'] and {*left_out} == {'same', 'few'}


# ---- the learned score ----

@pytest.mark.parametrize('l2', [.1, 1., 30.])
def test_the_fit_is_scikit_learns(l2):
    linear, rng = pytest.importorskip('sklearn.linear_model'), np.random.default_rng(0)
    x = rng.standard_normal((80, 4))
    y = (x[:, 0]-x[:, 1]+rng.standard_normal(80) > 1).astype(float)
    theirs = linear.LogisticRegression(C=1/l2, tol=1e-10, max_iter=10_000).fit(x, y)
    assert np.allclose(fit_logistic(x, y, l2), [*theirs.coef_[0], theirs.intercept_[0]], atol=1e-4)
    apart = fit_logistic(np.r_[-np.ones((9, 1)), np.ones((9, 1))], np.r_[np.zeros(9), np.ones(9)])
    assert np.isfinite(apart).all()                            # what one number decides outright

def test_folds_are_those_of_scikit_learn():
    "The same folds, fitted by scikit-learn: each result by a model that has not seen its source"
    linear, pre = pytest.importorskip('sklearn.linear_model'), pytest.importorskip('sklearn.preprocessing')
    rng = np.random.default_rng(3)
    x, items = rng.standard_normal((90, 3))*[1, 10, .1]+5, np.repeat(np.arange(30), 3)
    y = (x[:, 0]+rng.standard_normal(90) > 5).astype(float)
    said = cross_validated(x, y, items, seed=4)
    order = np.random.default_rng(4).permutation(30)
    for k in range(10):
        test = np.isin(items, order[k::10])
        scale = pre.StandardScaler().fit(x[~test])
        fit = linear.LogisticRegression(tol=1e-10, max_iter=10_000).fit(scale.transform(x[~test]), y[~test])
        assert np.allclose(said[0, test], fit.predict_proba(scale.transform(x[test]))[:, 1], atol=1e-4)
        assert np.allclose(said[2, test], y[~test].mean())

def test_auc_and_error_are_scikit_learns():
    metrics, rng = pytest.importorskip('sklearn.metrics'), np.random.default_rng(5)
    y, said = rng.random(60) < .4, rng.random(60).round(1)
    assert abs(roc_auc(said, y)-metrics.roc_auc_score(y, said)) < 1e-12

def named(x): return {str(i): dict(enumerate(x[:, i])) for i in range(x.shape[1])}

def test_a_score_from_noise_is_not_useful():
    "Of forty sets of metrics that know nothing, two at most look useful; a score that must not be used refuses"
    rng, useful = np.random.default_rng(6), 0
    for k in range(40):
        s = learn_score(named(rng.standard_normal((80, 3))), dict(enumerate(rng.random(80) < .5)), seed=k)
        useful += s.is_useful
        if not s.is_useful:
            with pytest.raises(StylekitError, match='must not be used'): s({str(i): 0. for i in range(3)})
    assert useful <= 2

def test_twins_do_not_leak():
    "Results of one source share metrics and fate, by luck: a score over results would seem good"
    rng = np.random.default_rng(7)
    x, y = np.repeat(rng.standard_normal((30, 8)), 4, 0), np.repeat(rng.random(30) < .5, 4)
    answers, items = dict(enumerate(y)), dict(enumerate(np.repeat(np.arange(30), 4).tolist()))
    assert learn_score(named(x), answers).error[0] < learn_score(named(x), answers, items).error[0]
    assert not learn_score(named(x), answers, items).is_useful

@pytest.mark.parametrize('yes,no,metrics', [(LEAST_EACH-1, 99, 1), (99, LEAST_EACH-1, 1), (LEAST_EACH, 99, 11)])
def test_too_few_answers_are_refused(yes, no, metrics):
    rng = np.random.default_rng(8)
    x, answers = named(rng.standard_normal((yes+no, metrics))), dict(enumerate([True]*yes+[False]*no))
    with pytest.raises(TooFewAnswers, match=f'needs {max(LEAST_EACH, 2*metrics)} .*there are {yes} and {no}'):
        learn_score(x, answers)
    more = dict(enumerate([True]*40+[False]*40))
    assert learn_score(named(rng.standard_normal((80, metrics))), more).n == 80

def test_results_without_a_metric_are_not_guessed():
    rng = np.random.default_rng(9)
    x, answers = named(rng.standard_normal((100, 2))), dict(enumerate(rng.random(100) < .5))
    for k in range(5): del x['0'][k]
    for k in range(50): del x['1'][k]
    s = learn_score(x, answers)
    assert s.metrics == ('0',) and s.n == 95
    with pytest.raises(StylekitError, match='no metric is known'): learn_score(dict(a={1: 2.}), answers)


# ---- the page ----

def pilot(n=60, group='shoes', seed=0):
    rng, pictures, metrics = np.random.default_rng(seed), [], {}
    for i in range(n):
        good = rng.random() < .6
        said = ('accepted', 'accept') if good else ('rejected', 'reject')
        about = dict(machine=(4., 4.), reviewer=(5., 9.), elapsed=.1, reason='' if good else 'ugly <b>')
        pictures.append(PictureLog('out', f'{i}.png', f'{i}.jpg', 'ink', group if i%2 else 'bags', *said, **about))
        metrics[pictures[-1].key] = good+rng.standard_normal()
    return QualityLog(pictures), dict(likeness=metrics)

class Tags(HTMLParser):
    "Every tag that is opened is closed, in order"
    def __init__(self):
        super().__init__()
        self.open, self.text, self.seen = [], [], set()
    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(k in ('src', 'href') or k.startswith('on') for k, _ in attrs)
        if tag not in ('meta', 'line', 'circle', 'rect'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_startendtag(self, tag, attrs): self.seen.add(tag)
    def handle_data(self, data): self.text.append(data)

@pytest.mark.parametrize('lang', ['en', 'ja'])
def test_all_forms_say_the_same_numbers(tmp_path, lang):
    log, metrics = pilot(group='<script>|=1')
    rows = tuple(dict(picture=p.item, clicks=str(i)) for i, p in enumerate(log.pictures))
    shop = PictureTable('shop.csv', ('clicks',), rows)
    costs = make_costs(currency='円', reviewer_per_hour=[40, 60], quote_price=3)
    made = write_report(build_report(log, metrics, costs, shop, lang=lang), tmp_path, title='Ü | <i>')
    page = Tags()
    page.feed((tmp_path/'report.html').read_text(encoding='utf-8'))
    assert not page.open and 'script' not in page.seen and 'i' not in page.seen and 'b' in page.seen
    html, text = ' '.join(page.text), (tmp_path/'report.md').read_text(encoding='utf-8')
    for part in made.parts:
        for sentence in part.said: assert sentence in html, sentence
    assert '<script>' not in text and 'Ü \\| &lt;i>' in text
    rows = list(csv.DictReader(io.StringIO((tmp_path/'report.csv').read_text(encoding='utf-8'))))
    assert {r['part'] for r in rows} == {'share', 'rounds', 'reasons', 'cost', 'time', 'lead', 'tracks', 'score', 'kpi'}
    share = next(r for r in rows if r['part'] == 'share')
    assert f"{float(share['value']):.0%}" in html and f"{float(share['value']):.0%}" in text
    assert read_json(tmp_path/'score.json', QualityScore) == made.score

def test_every_text_has_both_languages():
    for key, (en, ja) in TEXTS.items():
        assert en.strip() and ja.strip() and en.isascii() or set(en) & set('−×'), key
        assert key in ('n',) or not ja.isascii() or ja.startswith('{'), key
        assert {*re.findall(r'\{\w+', en)} == {*re.findall(r'\{\w+', ja)}, key
    with pytest.raises(StylekitError, match='choose en or ja'): Words('fr')

def test_a_report_that_is_killed_leaves_the_old_one(tmp_path, monkeypatch):
    "Killed at any file: each file is whole, the page is the last, and the same call makes the new one"
    log, metrics = pilot()
    write_report(build_report(log, metrics), tmp_path/'r')
    old = (tmp_path/'r'/'report.html').read_bytes()
    new = build_report(*pilot(seed=1))
    for n in range(5):
        calls = iter(range(99))
        def dies(path):
            if next(calls) == n: raise KeyboardInterrupt
            return atomic_path(path)
        with monkeypatch.context() as m:
            m.setattr(module, 'atomic_path', dies)
            with pytest.raises(KeyboardInterrupt): write_report(new, tmp_path/'r', overwrite=True)
        assert (tmp_path/'r'/'report.html').read_bytes() == old and not [*(tmp_path/'r').glob('.*')]
    write_report(new, tmp_path/'r', overwrite=True)
    assert (tmp_path/'r'/'report.html').read_bytes() != old

def test_figures_that_cannot_be_joined_are_said():
    log, metrics = pilot()
    rows = [dict(picture=p.item, clicks=str(i), sold='1,234', score='7') for i, p in enumerate(log.pictures)]
    table = PictureTable('shop.csv', ('clicks', 'sold', 'score'), (*rows, dict(rows[0], picture='gone.png')))
    part = build_report(log, dict(cost=metrics['likeness']), kpi=table, lang='ja').part('kpi')
    assert '1行' in part.said[1] and part.said[2].endswith('：sold、score、作り直し回数。')
    assert [r.label for r in part.rows] == ['clicks：cost']       # names of ours are not taken for texts of ours

@pytest.fixture(scope='module')
def reviewed(results, tmp_path_factory):
    home = tmp_path_factory.mktemp('reviewed')
    out = results(home, n=12)
    review = Review(out, who='ann')
    for i, item in enumerate(review.items):
        review.accept(item, seconds=3.) if i%2 else review.reject(item, 'too much style', seconds=5.)
    return out

def test_the_command(reviewed, tmp_path, capsys):
    "From a folder to a page, in Japanese; refusals before any work; a file for one's own figures"
    costs, to = tmp_path/'costs.toml', tmp_path/'page'
    assert main(['report', '--new-costs', str(costs)]) == 0
    costs.write_text(costs.read_text().replace('#quote_price', 'quote_price'))
    lines = [f'{p.item},{i}' for i, p in enumerate(make_report(reviewed).log.pictures)]
    (tmp_path/'m.csv').write_text('\n'.join(['picture,edges', *lines]))
    (tmp_path/'other.csv').write_text('picture,edges\nnowhere.png,1\n')
    asked = ['report', str(reviewed), '--costs', str(costs), '--metrics', str(tmp_path/'m.csv'), '--out', str(to)]
    capsys.readouterr()
    assert main([*asked, '--lang', 'ja', '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said['accepted'], said['decided'], said['score']) == (6, 12, False) and '採用率' in said['short'][0]
    assert '外部の見積もり' in (to/'report.html').read_text(encoding='utf-8')
    for wrong, why in ((asked, '--overwrite'), (['report'], 'name a folder'), (asked[:2]+['--lang', 'de'], "'de'"),
                       (asked[:2]+['--votes', 'x'], 'without --study'), (['report', str(tmp_path)], 'manifest'),
                       (asked[:2]+['--metrics', str(tmp_path/'other.csv')], 'say nothing of'),
                       (asked[:2]+['--costs', str(tmp_path/'m.csv')], 'cannot read m.csv')):
        assert main(wrong) == 2
        assert why in capsys.readouterr().err, wrong
    assert main([*asked, '--overwrite', '--quiet']) == 0 and 'are accepted' in capsys.readouterr().out

def test_proofs_can_be_made_on_the_way(reviewed):
    tables = module.prove_results(reviewed, letters=False, net=False)
    found = make_report(reviewed, metrics=tables).part('tracks')
    assert 'displacement' in tables[0].columns and len(tables[0].rows) == 12 and found.rows

def test_a_table_in_a_folder_of_results_speaks_of_these(reviewed, tmp_path):
    "Two folders have results of one source: `verdicts.csv` of each needs no column for it"
    other = tmp_path/'other'
    shutil.copytree(reviewed, other)
    log = read_quality_log([reviewed, other])
    text = '\n'.join(['picture,edges', *(f'{p.picture},{n}' for n, p in enumerate(log.pictures[:12]))])
    (other/'verdicts.csv').write_text(text)
    assert {*module.read_metrics(other/'verdicts.csv', log.pictures)['edges']} == {p.key for p in log.pictures[12:]}
    (tmp_path/'m.csv').write_text(text)
    with pytest.raises(StylekitError, match='2 results of'): module.read_metrics(tmp_path/'m.csv', log.pictures)

def test_the_page_fits_screens(chrome, tmp_path):
    "No part runs over the edge, at 1300 and 400 pixels; what is dashed has no upper end"
    log, metrics = pilot(group='とても長い名前の商品群'*3)
    write_report(build_report(log, metrics, make_costs(reviewer_per_hour=50), lang='ja'), tmp_path)
    for width in (1300, 400):
        page = chrome.new_page(viewport=dict(width=width, height=900))
        page.goto((tmp_path/'report.html').as_uri())
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.locator('line.open').count() and page.locator('circle.value').first.bounding_box()['width'] > 8
        page.close()
