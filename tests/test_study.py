"""Studies: what raters cannot know, schedules, logs under writers and kills, ballots in any order, and what is said"""
import itertools, json, multiprocessing, os, random, re, shutil, signal, subprocess, time, uuid
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from stylekit import StylekitError
from stylekit.cli import main
from stylekit.core import asset, file_sha256
from stylekit.pilot import study as P
from stylekit.pilot.statistics import plan
from stylekit.pilot.study import Vote, VoteLog, Voting, analyse, make_study, merge_votes, open_study, schedule
from stylekit.records import read_json, utc_now
from sweeps import byte_mutants, json_mutants, resealed

FORK = multiprocessing.get_context('fork')

def flat(path, colour, size=(48, 32), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **how)

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Eight sources and the results of three methods, in other formats and sizes, with metadata"
    home = tmp_path_factory.mktemp('folders')
    for n in range(8):
        flat(home/'source'/'shoes'/f'red {n}.jpg', (20, 30*n, 9))
        flat(home/'bright'/'shoes'/f'red {n}.png', (250, 30*n, 90))
        flat(home/'middle'/'shoes'/f'red {n}.webp', (150, 30*n, 90), (96, 64))
        flat(home/'dark'/'shoes'/f'red {n}.jpg', (60, 30*n, 90), comment=b'made by the dark method')
    flat(home/'style.png', (0, 0, 0))
    return home

def make(folders, out, methods=('bright', 'dark'), seed=1, **how):
    return make_study(out, {m: folders/m for m in methods}, [folders/'style.png'], folders/'source', seed=seed, **how)

@pytest.fixture(scope='module')
def study(folders, tmp_path_factory):
    "Nobody votes here: tests give their own log"
    return make(folders, tmp_path_factory.mktemp('study')/'study')

def answers(study, rater, choose=lambda ask: 'A', asks=None):
    "Votes of a rater, quicker than one by one"
    voting = Voting(study, rater, study.path/'none.jsonl')
    said = [(a, choose(a)) for a in voting.asks[:asks]]
    return [Vote(uuid.uuid4().hex[:16], study.sha256, voting.rater, utc_now(), *a.key, answer, a.showing.left,
                 reason='?'*(answer == 'skip')) for a, answer in said]

def looks(ask, better='m1'):
    "Knows the answers of catch trials; else likes one method"
    t = ask.showing.trial
    best = t.right if t.kind == 'catch' else ('first', 'second')[t.methods.index(better)]
    return 'A' if best == ask.showing.left else 'B'


# ---- what raters see ----

def test_nothing_tells_a_method(study):
    "One format, one size per item, no metadata, no names and no paths"
    for i in study.study.items:
        shown = [Image.open(study.picture(p)) for p in (i.content, *i.outputs.values())]
        assert len({im.size for im in shown}) == 1 and {im.format for im in shown} == {'WEBP'}
        assert not any({'exif', 'xmp', 'comment', 'icc_profile'} & {*im.info} for im in shown)
    text = (study.path/P.STUDY).read_text(encoding='utf-8')
    for word in ('bright', 'dark', 'red', 'shoes', str(study.path), '.jpg'): assert word not in text
    assert {p.stem for p in (study.path/P.PICTURES).iterdir()} == {*study.pictures}
    key = study.key()
    assert sorted(key.methods.values()) == ['bright', 'dark'] and len(key.sources) == 8
    some = next(iter(key.sources))
    name = next(m for m, called in key.methods.items() if called == 'bright')
    assert Image.open(study.picture(study.items[some].outputs[name])).getpixel((9, 9))[0] > 230

def test_what_a_page_may_know(study):
    told = json.dumps(study.for_raters(), ensure_ascii=False)
    for word in ('right', 'methods', 'kind', 'catch', 'repeat', 'pair'): assert word not in told
    assert study.sha256 in told and 'お手本' in told
    json.loads(told)

def test_neither_place_nor_id_tells_a_trial(folders, tmp_path):
    "Over studies: catch trials and repeats have any id, the right picture and the first method stand at either place"
    ids, right, first = [], [], []
    for seed in range(30):
        trials = make(folders, tmp_path/f'{seed}', seed=seed).study.trials
        assert [t.id for t in trials] == sorted(t.id for t in trials)
        ids += [n/len(trials) for n, t in enumerate(trials) if t.kind != 'pair']
        right += [t.right == 'first' for t in trials if t.kind == 'catch']
        first += [t.methods == ('m1', 'm2') for t in trials if t.kind == 'pair']
    assert abs(np.mean(ids)-.475) < .05 and abs(np.mean(right)-.5) < .1 and abs(np.mean(first)-.5) < .12

def test_a_coin_says_which_method_is_the_first(folders, tmp_path):
    firsts = {make(folders, tmp_path/f'{s}', items=2, seed=s).key().methods['m1'] for s in range(8)}
    assert firsts == {'bright', 'dark'}

def test_a_seed_makes_the_same_study(folders, tmp_path):
    a, b = (make(folders, tmp_path/name, seed=5).study for name in 'ab')
    assert replace(a, made='') == replace(b, made='')

def test_what_cannot_be_shown_is_left_out(folders, tmp_path):
    shutil.copytree(folders/'dark', tmp_path/'odd')
    flat(tmp_path/'odd'/'shoes'/'red 0.jpg', 'black', (48, 48))
    shutil.copy(folders/'bright'/'shoes'/'red 1.png', tmp_path/'odd'/'shoes'/'red 1.png')
    (tmp_path/'odd'/'shoes'/'red 1.jpg').unlink()
    (tmp_path/'odd'/'shoes'/'red 2.jpg').write_bytes(b'\xff\xd8\xff broken')
    methods = dict(bright=folders/'bright', odd=tmp_path/'odd')
    made = make_study(tmp_path/'s', methods, [folders/'style.png'], folders/'source', seed=0)
    out = made.key().left_out
    why = {'0': 'red 0.jpg has another shape than its source', '2': 'no result of odd',
           '1': 'two methods made the same picture'}
    assert {name[-5:-4]: said for name, said in out.items()} == why
    assert len(made.items) == 5 and str(tmp_path) not in (made.path/P.KEY).read_text()

def test_folder_runs_say_what_they_were_made_from(results, folders, tmp_path):
    "By the manifest: names that end otherwise, the sources' folder; one of two methods is a folder run"
    out = results(tmp_path, n=4, side=32)
    for p in (tmp_path/'in').rglob('*.png'): flat(tmp_path/'other'/p.relative_to(tmp_path/'in'), 'red', (32, 32))
    made = make_study(tmp_path/'s', dict(ours=out, other=tmp_path/'other'), [folders/'style.png'])
    assert sorted(made.key().sources.values()) == [f'{"abca"[i]}/thing {i}.png' for i in (0, 3, 1, 2)]
    ours = next(m for m, name in made.key().methods.items() if name == 'ours')
    hashes = {file_sha256(p) for p in out.rglob('*.png')}
    assert {o[ours] for o in made.key().outputs.values()} == hashes

@pytest.mark.parametrize('change, said', [
    (dict(methods=('bright',)), 'two methods or more'), (dict(catch=9), '10 at least'), (dict(repeat=2), 'repeat is 2'),
    (dict(items=1), 'two pictures at least'), (dict(questions=P.QUESTIONS[1:]), "must have 'style'")])
def test_a_study_is_refused(folders, tmp_path, change, said):
    with pytest.raises(StylekitError, match=said): make(folders, tmp_path/'s', **change)
    assert not (tmp_path/'s').exists()

def test_a_folder_that_holds_a_study_is_kept(study, folders):
    before = file_sha256(study.path/P.STUDY)
    with pytest.raises(StylekitError, match='holds a study already'): make(folders, study.path)
    assert file_sha256(study.path/P.STUDY) == before


# ---- files that were changed ----

def opens(path):
    "Is it refused in one line, or usable to its end?"
    try: opened = open_study(path)
    except StylekitError as e:
        assert '\n' not in str(e)
        return False
    for ask in Voting(opened, 'ann', path/'none.jsonl').asks: assert opened.picture(ask.a)
    analyse(opened, [])
    return True

def test_a_changed_study_is_refused(study, tmp_path):
    "Bytes; and every key missing, null, of another type, with a hash that fits"
    shutil.copytree(study.path, tmp_path/'s')
    path = tmp_path/'s'/P.STUDY
    raw = path.read_bytes()
    for what, mutant in byte_mutants(raw, 60):
        path.write_bytes(mutant)
        assert not opens(tmp_path/'s') or read_json(path, P.Study) == study.study, what
    data = json.loads(raw)
    small = dict(data, items=data['items'][:2], trials=[t for t in data['trials'] if t['item'] in ('i001', 'i002')])
    small['trials'] = [t for t in small['trials'] if not t['repeats']]
    (tmp_path/'s'/P.KEY).unlink()
    path.write_text(json.dumps(resealed(small)))
    assert opens(tmp_path/'s')
    mutants = random.Random(0).sample([*json_mutants(small)], 400)
    for what, mutant in mutants:
        path.write_text(json.dumps(resealed(mutant) if isinstance(mutant, dict) else mutant))
        opens(tmp_path/'s')

def test_a_changed_picture_or_key_is_refused(study, folders, tmp_path):
    shutil.copytree(study.path, tmp_path/'s')
    some = next((tmp_path/'s'/P.PICTURES).iterdir())
    raw = some.read_bytes()
    some.write_bytes(raw+b'x')
    with pytest.raises(StylekitError, match='missing or was changed'): open_study(tmp_path/'s')
    some.write_bytes(raw)
    shutil.copy(make(folders, tmp_path/'other', items=3, seed=9).path/P.KEY, tmp_path/'s'/P.KEY)
    with pytest.raises(StylekitError, match='belongs to another study'): open_study(tmp_path/'s').key()


# ---- schedules ----

def test_schedules(study):
    trials = study.study.trials
    for rater in ('ann', 'ben', 'Zoë 猫', 'x'*100):
        seen = schedule(study.sha256, trials, rater)
        places = {s.trial.id: n for n, s in enumerate(seen)}
        left = {s.trial.id: s.left for s in seen}
        assert sorted(places) == sorted(t.id for t in trials)
        for kind in ('pair', 'catch'):
            of = [left[t.id] == (t.right or ('first' if t.methods == ('m1', 'm2') else 'second'))
                  for t in trials if t.kind == kind]
            assert abs(of.count(True)-of.count(False)) <= 1
        for t in [t for t in trials if t.repeats]:
            assert places[t.id] > places[t.repeats]+len(trials)//4 and left[t.id] != left[t.repeats]
    assert len({tuple(s.trial.id for s in P.one_schedule(study.sha256, trials, n)) for n in range(50)}) == 50
    orders = {tuple(s.trial.id for s in schedule(study.sha256, trials, f'r{n}')) for n in range(50)}
    assert len(orders) > 40 and schedule('0'*64, trials, 'ann') != schedule(study.sha256, trials, 'ann')

def test_first_places_are_spread_over_trials(study):
    "No trial stands in front more often than by chance"
    once = [t for t in study.study.trials if not t.repeats]
    front = [schedule(f'{n:064x}', once, 'ann')[0].trial.id for n in range(900)]
    counts = [front.count(t.id) for t in once]
    assert sum((c-50)**2/50 for c in counts) < 45                  # χ² of 17 degrees

@pytest.mark.skipif(not shutil.which('node'), reason='needs Node.js')
def test_the_page_has_the_same_schedule(study):
    told = study.for_raters()
    raters = ['ann', ' Zoë  猫 ', 'Jose\u0301 Ruiz', '😀', *map(str, range(20))]
    script = asset('js', 'schedule.js').read_text(encoding='utf-8')
    script += f'\nconst s = {json.dumps(told)}, raters = {json.dumps(raters)}.map(raterName);\n'
    script += 'console.log(JSON.stringify(raters.map((r) => [r, schedule(s, r)])))'
    ran = subprocess.run([shutil.which('node'), '-e', script], capture_output=True, text=True, check=True)
    said = json.loads(ran.stdout)
    for typed, (name, seen) in zip(raters, said):
        assert name == P.rater_name(typed)
        assert seen == [dict(trial=s.trial.id, left=s.left) for s in schedule(study.sha256, study.study.trials, name)]


# ---- voting ----

def test_a_random_walk_is_what_a_plain_list_says(study, tmp_path):
    "Votes, skips, undos, restarts, and two windows of one rater, against a stack"
    g, log, stack = random.Random(0), tmp_path/'v.jsonl', []
    windows = [Voting(study, 'ann', log), Voting(study, 'ann', log)]
    for _ in range(120):
        v = g.choice(windows)
        if g.random() < .1: windows[0] = v = Voting(study, 'ann', log)
        if g.random() < .3 and stack: assert v.undo().id == stack.pop().id
        elif g.random() < .1: stack.append(v.skip('blurred'))
        else: stack.append(v.vote(g.choice('AB'), seconds=g.random()))
        v.refresh()
        assert [x.id for x in v.answers.values()] == [x.id for x in stack]
        assert v.ask.key == v.asks[len(stack)].key
        time.sleep(.001)                                           # votes of one millisecond have no order among files
    assert str(v.progress) == str(Voting(study, ' ann ', log).progress)

def test_a_question_can_be_answered_again(study, tmp_path):
    v = Voting(study, 'ann', tmp_path/'v.jsonl')
    first = v.ask
    v.vote('A')
    time.sleep(.002)
    again = v.vote('B', at=first)                                  # a window that still shows it
    assert v.answers[first.key] == again and v.progress.answered == 1
    assert v.undo() == again and v.answers[first.key].answer == 'A'

@pytest.mark.parametrize('wrong', [
    lambda v: v.vote('C'), lambda v: v.vote('skip'), lambda v: v.skip(' '), lambda v: v.undo(),
    lambda v: v.vote('A', seconds=-1), lambda v: Voting(v.study, ''), lambda v: Voting(v.study, 3)])
def test_a_vote_is_refused(study, tmp_path, wrong):
    v = Voting(study, 'ann', tmp_path/'v.jsonl')
    with pytest.raises(StylekitError): wrong(v)
    assert not v.log.path.exists()

def vote_on(study, rater, log, told):
    voting = Voting(study, rater, log)
    while True:
        while voting.ask: told.send(voting.vote('A').id)
        while voting.answers: told.send(voting.undo().id)

@pytest.mark.parametrize('seed', range(3))
def test_two_raters_are_killed_and_lose_nothing(study, tmp_path, seed):
    log, g = tmp_path/'v.jsonl', random.Random(seed)
    safe = {}
    for rater in ('ann', 'ben'):
        ours, theirs = FORK.Pipe(False)
        p = FORK.Process(target=vote_on, args=(study.path, rater, log, theirs))
        p.start()
        theirs.close()
        safe[rater] = p, ours
    assert all(ours.poll(30) for _, ours in safe.values())
    time.sleep(.3*g.random())
    for rater, (p, ours) in safe.items():
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        told = []
        while ours.poll():
            try: told.append(ours.recv())
            except (EOFError, OSError): break
        there = VoteLog(log)
        there.read()
        lines = [v.undoes or v.id for v in there.records if v.rater == rater]
        assert told and lines[:len(told)] == told and len(lines) <= len(told)+1
    assert Voting(study, 'ann', log).vote('tie')


# ---- ballots ----

def write_ballot(path, votes): # as a page writes it
    path.write_text('\n'.join(json.dumps(dict(kind='vote', **v.to_json()), ensure_ascii=False) for v in votes))
    return path

def test_ballots_in_any_order_and_number(study, tmp_path):
    "Three ballots, overlapping, in all orders, each twice: the same votes hold"
    ann, ben = answers(study, 'ann'), answers(study, 'ben', lambda a: 'B')
    late = dict(answer='tie', when='2099-01-01T00:00:00.000Z')
    change = [replace(v, id=uuid.uuid4().hex[:16], **late) for v in ann[:5]]
    back = [replace(change[0], id='undo'+'0'*12, answer='undo', undoes=change[0].id, when='2099-01-02T00:00:00.000Z')]
    parts = [ann+ben[:9], ben, change+back+ann[3:8]]
    files = [write_ballot(tmp_path/f'{n}.jsonl', votes) for n, votes in enumerate(parts)]
    seen = set()
    for n, order in enumerate(itertools.permutations(files)):
        log = tmp_path/f'log{n}.jsonl'
        for f in order*2: merge_votes(study, f, f, log=log)
        held = P.standing_votes(P.read_votes(study, log))
        seen.add(frozenset((v.rater, v.trial, v.question, v.answer) for v in held))
        assert len(P.read_votes(study, log)) == len(ann)+len(ben)+6
    assert len(seen) == 1 and len(held) == len(ann)+len(ben) and sum(v.answer == 'tie' for v in held) == 4

def test_a_ballot_that_was_cut_is_refused_and_a_log_with_a_torn_line_is_not(study, tmp_path):
    votes = answers(study, 'ann', asks=7)
    log = tmp_path/'log.jsonl'
    cut = write_ballot(tmp_path/'b.jsonl', votes)
    assert merge_votes(study, cut, log=log).added == 7                 # it has no last line break
    cut.write_text(cut.read_text()[:-30])
    with pytest.raises(StylekitError, match='line 7 is damaged'): merge_votes(study, cut, log=log)
    with open(log, 'ab') as f: f.write(b'{"kind": "vote", "id')        # killed in mid-line
    assert len(P.read_votes(study, log)) == 7
    assert merge_votes(study, write_ballot(tmp_path/'b.jsonl', answers(study, 'ben', asks=3)), log=log).added == 3
    assert len(P.read_votes(study, log)) == 10

@pytest.mark.parametrize('change, said', [
    (dict(study='f'*64), 'another study'), (dict(trial='t999'), 'not asked'), (dict(question='taste'), 'not asked'),
    (dict(rater=' ann'), 'no proper'), (dict(id=''), 'no proper'), (dict(when='yesterday'), 'no proper'),
    (dict(answer='C'), 'answer'), (dict(seconds='2'), 'seconds'), (dict(extra=1), 'extra'),
    (dict(left='left'), 'left')])
def test_a_bad_ballot_is_refused_whole(study, tmp_path, change, said):
    votes = [dict(kind='vote', **v.to_json()) for v in answers(study, 'ann', asks=4)]
    votes[3] |= change
    (tmp_path/'b.jsonl').write_text('\n'.join(map(json.dumps, votes)))
    with pytest.raises(StylekitError, match=said): merge_votes(study, tmp_path/'b.jsonl', log=tmp_path/'log.jsonl')
    assert not (tmp_path/'log.jsonl').exists()

def test_a_ballot_whose_sides_are_wrong_is_refused(study, tmp_path):
    votes = answers(study, 'ann', asks=9)
    votes[6] = replace(votes[6], left='first' if votes[6].left == 'second' else 'second')
    with pytest.raises(StylekitError, match='wrong side'): merge_votes(study, write_ballot(tmp_path/'b.jsonl', votes))
    assert not (study.path/P.VOTES).exists()


# ---- what is said ----

def test_outcomes_are_those_of_a_plain_count(folders, tmp_path):
    "Wins, ties and losses by loops over the votes; catch trials, repeats and skips do not count"
    made = make(folders, tmp_path/'s', ('bright', 'middle', 'dark'))
    g = random.Random(2)
    def choose(a): return looks(a) if a.showing.trial.kind == 'catch' else g.choice(('A', 'B', 'tie', 'skip'))
    votes = [v for r in ('ann', 'ben', 'carl') for v in answers(made, r, choose)]
    found, key = analyse(made, votes), made.key()
    assert not any(c.excluded for c in found.raters) and len(found.results) == 9
    for r in found.results:
        by_item = {}
        for v in votes:
            t = made.trials[v.trial]
            if t.kind != 'pair' or v.question != r.question or v.answer == 'skip': continue
            names = [key.methods[m] for m in t.methods]
            if {*names} != {r.first, r.second}: continue
            won = dict(zip(('first', 'second'), names)).get(v.won)
            by_item.setdefault(t.item, []).append({r.first: 1, r.second: -1, None: 0}[won])
        sums = [sum(x) for x in by_item.values()]
        assert (r.wins, r.ties, r.losses) == tuple(sum(test(s) for s in sums) for test in
                                                  (lambda s: s > 0, lambda s: s == 0, lambda s: s < 0))
        assert r.votes == sum(map(len, by_item.values()))
    assert {s.method for s in found.strengths} == {'bright', 'middle', 'dark'}
    assert [r.p_holm for r in found.results] == P.holm([r.p for r in found.results])

def test_a_clear_study(study):
    first = study.key().methods['m1']
    votes = [v for r in 'abcdef' for v in answers(study, r, looks)]
    votes += answers(study, 'left', lambda a: 'A')
    found = analyse(study, votes)
    assert {c.rater: c.excluded for c in found.raters if c.excluded} == {
        'left': '5 of 10 catch trials right, 80% are needed'}
    assert all(r.found == 'people' and r.wins == 8 and r.first == first and r.p_holm < .05 for r in found.results)
    assert '92 were planned' in str(found) and f'{first} is preferred' in str(found)
    twins = [v for v in votes if v.rater == 'a']+answers(study, 'A', looks)
    assert "'A' and 'a' may be one person" in str(analyse(study, twins))
    ja = '\n'.join(found.sentences('ja'))
    assert '確認問題10問中5問正解' in ja and f'{first}が' in ja and '92枚' in ja
    assert not re.search('prefer|votes|catch', ja)
    few = analyse(study, [v for v in votes if v.rater in 'abc'])
    assert {r.found for r in few.results} == {'these people'} and 'to speak for others' in str(few)

def test_raters_who_differ_speak_for_themselves_only(folders, tmp_path):
    "Four like the one and two the other, in every picture: a majority wins all pictures, and people are not agreed"
    made = make(folders, tmp_path/'s')
    votes = [v for r in 'abcdef' for v in answers(made, r, lambda a: looks(a, 'm2' if r in 'ef' else 'm1'))]
    found = analyse(made, votes)
    assert all(r.wins == 8 and r.p_holm < .05 and r.found == 'these people' for r in found.results)

def test_too_early(study):
    votes = [v for r in 'abcdef' for v in answers(study, r, looks)]
    one = next(t.id for t in study.study.trials if t.kind == 'pair')
    found = analyse(study, [v for v in votes if v.trial != one])
    assert {r.found for r in found.results} == {'too early'} and '7 of 8 pictures have votes' in str(found)
    assert 'Not finished: a, b, c, d, e, f' in str(found)
    nobody = analyse(study, [])
    assert nobody.voted == 0 and nobody.results[0].preference is None and nobody.raters == ()

def test_the_same_side_in_all_repeats(folders, tmp_path):
    "Right in catch trials, and otherwise always the left"
    made = make(folders, tmp_path/'s', repeat=1.)
    def left(a): return looks(a) if a.showing.trial.kind == 'catch' else 'A'
    assert P.check_rater(made, 'ann', answers(made, 'ann', left)).excluded == 'chose the same side in 8 of 8 repeats'
    assert not P.check_rater(made, 'ben', answers(made, 'ben', looks)).excluded

def test_an_analysis_is_a_record_and_needs_no_key(study, tmp_path):
    votes = [v for r in 'abcdef' for v in answers(study, r, looks)]
    shutil.copytree(study.path, tmp_path/'s')
    (tmp_path/'s'/P.KEY).unlink()
    found = analyse(tmp_path/'s', votes)
    assert found.methods == ('m1', 'm2') and 'm1 is preferred' in str(found)
    P.write_json(tmp_path/'a.json', found)
    assert read_json(tmp_path/'a.json', P.StudyAnalysis) == found


# ---- the command line ----

def test_commands(folders, tmp_path, capsys):
    made = ['study', *(str(folders/name) for name in ('bright', 'dark')), '--names', 'ours,theirs', '--seed', '3',
            '--references', str(folders/'style.png'), '--source', str(folders/'source'), '--out', str(tmp_path/'s'),
            '--preference', '0.8']
    assert main(made) == 0
    cap = capsys.readouterr()
    assert cap.out.strip() == str(tmp_path/'s') and '8 pictures of 23 that were planned' in cap.err
    assert main(made) == 2 and 'holds a study already' in capsys.readouterr().err
    study = open_study(tmp_path/'s')
    ballot = write_ballot(tmp_path/'b.jsonl', answers(study, 'ann', looks))
    out = tmp_path/'a.json'
    assert main(['merge', str(tmp_path/'s'), str(ballot), str(ballot)]) == 0
    assert f'{len(answers(study, "ann"))} lines added' in capsys.readouterr().out
    assert main(['merge', str(tmp_path/'s'), '--analyse', '--json', '--out', str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said['methods'] in (['ours', 'theirs'], ['theirs', 'ours']) and said['raters'][0]['catch_right'] == 10
    assert read_json(out, P.StudyAnalysis) == analyse(study)
    assert said['sentences'][0].startswith('Raters whose votes count: 1;')
    assert main(['merge', str(tmp_path/'s'), '--analyse', '--lang', 'ja']) == 0
    assert '有効な評価者は1名' in capsys.readouterr().out and main(['merge', str(tmp_path/'s'), '--lang', 'ja']) == 2
    assert main(['merge', str(tmp_path/'s'), '--analyse', '--out', str(out)]) == 2
    assert '--overwrite' in capsys.readouterr().err

@pytest.mark.parametrize('argv, said', [
    (['study', 'a', 'b'], '--references is needed'), (['study', 'x/a', 'y/a', '--references', 's'], 'use --names'),
    (['study', 'a', 'b', '--references', 's', '--names', 'c'], '1 --names for 2 folders'), (['merge'], 'no study'),
    (['merge', 'nothing'], 'holds no study.json'), (['study', '--preference', '.5'], '0.55 to')])
def test_commands_refuse(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2 and said in capsys.readouterr().err

def test_a_plan_needs_no_folders(capsys):
    assert main(['study', '--preference', '.7', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['planned']['items'] == 54 == plan(.7).items
