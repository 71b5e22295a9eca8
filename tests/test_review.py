"""A review's log under two writers, kills and torn lines; what it says against a plain fold over it; redos that are
killed, asked for twice or no longer wanted; the export"""
import csv, json, multiprocessing, os, random, shutil, signal, time, uuid
from pathlib import Path
import pytest
from PIL import Image
from stylekit import Review, StylekitError, export_accepted, read_output, sample_image, stylize, stylize_folder
from stylekit.cli import main
from stylekit.core import file_sha256
from stylekit.folders import MANIFEST
from stylekit.pictures import list_pictures
from stylekit.records import json_line, payload_hash, read_lines
from stylekit.review import ASKS, EXPORT_LOG, Decision, ExportedFile, ReviewLog, ReviewRound, as_proof, utc_now
from sweeps import json_mutants, resealed, sweep, sweep_file

FORK = multiprocessing.get_context('fork')
SEEDS = range(int(os.environ.get('STYLEKIT_REVIEWS', 6)))

def decision(item, made='accept', who='ann', **about):
    return Decision(uuid.uuid4().hex[:16], who, utc_now(), item, made, **about)


# ---- the log ----

def write_on(path, who, told, seed):
    "Append until killed; each line that is safe is told"
    g, log = random.Random(seed), ReviewLog(path)
    while True:
        made = decision(f'{g.randrange(9)}.png', g.choice(('accept', 'reject')), who, reason='é猫'*g.randrange(40))
        told.send(log.append(made).id)

@pytest.mark.parametrize('seed', SEEDS)
def test_two_writers_are_killed_and_nothing_is_lost(tmp_path, seed):
    "What `append` has returned is in the log, once, in each writer's order; a torn line takes nothing else along"
    g, path = random.Random(seed), tmp_path/'review.jsonl'
    safe, torn = {}, 0
    for part in range(3):
        writers = []
        for who in ('ann', 'ben'):
            ours, theirs = FORK.Pipe(False)
            p = FORK.Process(target=write_on, args=(path, f'{who} {part}', theirs, g.random()))
            p.start()
            theirs.close()
            writers.append((f'{who} {part}', p, ours))
        assert all(ours.poll(30) for _, _, ours in writers)    # both are at it
        time.sleep(.2*g.random())
        for who, p, ours in writers:
            os.kill(p.pid, signal.SIGKILL)
            p.join()
            safe[who] = []
            while ours.poll():
                try: safe[who].append(ours.recv())
                except (EOFError, OSError): break
        whole = path.read_bytes()
        if g.random() < .8:                                    # a kill in the middle of a line
            line = json_line(decision('torn.png', reason='猫'*30)).encode()
            path.write_bytes(whole+line[:g.randrange(1, len(line)-1)])
            torn += 1
    last = ReviewLog(path).append(decision('last.png'))
    log = ReviewLog(path)
    log.read()
    assert log.torn == torn and log.records[-1] == last
    ids = [r.id for r in log.records]
    assert len(set(ids)) == len(ids)
    for who, told in safe.items():
        there = [r.id for r in log.records if r.who == who]
        assert told and there[:len(told)] == told and len(there) <= len(told)+1    # one may be safe and not yet told

def test_a_reader_sees_whole_lines_only(tmp_path):
    "A line that arrives byte by byte is read once, and then whole"
    path, log = tmp_path/'review.jsonl', ReviewLog(tmp_path/'review.jsonl')
    d = decision('größe.png', reason='ü')
    raw = json_line(d).encode()
    for i in range(len(raw)):
        with open(path, 'ab') as f: f.write(raw[i:i+1])
        assert log.read() == ([d] if i == len(raw)-1 else [])
    path.write_bytes(b'')                                      # an older copy is put back
    assert log.read() == [] and log.records == []

def test_a_line_that_was_changed_is_refused(tmp_path):
    "Every key, every type, with a hash that fits and without"
    path, good = tmp_path/'review.jsonl', json.loads(json_line(decision('a.png', seconds=2.)))
    def read(data):
        path.write_text(json.dumps(data)+'\n')
        log = ReviewLog(path)
        log.read()
        if log.torn: raise StylekitError('torn')               # what is no JSON: NaN
        return log.records
    sweep(read, json_mutants(good), same=read(good))
    free = ('id', 'who', 'when', 'item', 'output_sha256', 'run', 'settings', 'reason', 'mask', 'undoes')
    odd = [f'{name}: {v}' for name in free for v in ('str x', 'str ')]+[': missing', 'seconds: int 3', 'NoneType None']
    odd += [f'{name}: {v}' for name in ('seconds', 'lam') for v in ('int 3', 'int -1', 'float 0.5')]
    odd += ['round: int 3', 'round: int -1', 'seed: int 3', 'seed: int -1', "asked: str ", 'x'*20]
    sweep(read, ((what, resealed(m) if isinstance(m, dict) else m) for what, m in json_mutants(good)),
          same=read(good), may_differ=odd)

def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path/'review.jsonl'
    log = ReviewLog(path)
    log.append(decision('a.png'))
    before = path.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', lambda f: (_ for _ in ()).throw(OSError(28, 'no space left on device')))
        with pytest.raises(StylekitError, match='free some space'): log.append(decision('b.png'))
    assert path.read_bytes() == before
    log.append(decision('c.png'))
    assert [r.item for r in log.read()] == ['a.png', 'c.png']


# ---- what it says ----

class Plain:
    "The rules once more, in the plainest way: a list of decisions, looked through from its beginning"
    def __init__(self): self.made = []          # [who, item, decision, reason, taken back]
    def act(self, who, item, what, reason=''):
        if what != 'undo': return self.made.append([who, item, what, reason, False])
        own = [d for d in self.made if d[0] == who and not d[4]]
        if own: own[-1][4] = True
        return own and own[-1][1]
    def status(self, item):
        live = [d for d in self.made if d[1] == item and not d[4]]
        if not live: return 'open', ''
        return dict(accept='accepted', reject='rejected', redo='redo')[live[-1][2]], live[-1][3]

@pytest.fixture(scope='module')
def home(results, tmp_path_factory):
    "Six small results"
    d = tmp_path_factory.mktemp('review')
    results(d)
    return d

@pytest.fixture
def out(home, tmp_path):
    "A copy of them that nobody has looked at"
    for name in ('in', 'out'): shutil.copytree(home/name, tmp_path/name)
    return tmp_path/'out'

@pytest.mark.parametrize('seed', SEEDS)
def test_any_sequence_says_what_the_plain_rules_say(out, seed):
    "Of two reviewers, each with an own view of the log that is renewed now and then, and opened anew"
    g, plain = random.Random(seed), Plain()
    views = {who: Review(out, who=who, style='ink') for who in ('ann', 'ben')}
    for step in range(40):
        who = g.choice([*views])
        review, item = views[who], g.choice(views[who].items)
        what = g.choice(('accept', 'accept', 'reject', 'redo', 'undo'))
        taken = plain.act(who, item, what, dict(reject='too much style').get(what, ''))
        if what == 'undo' and not taken:
            with pytest.raises(StylekitError, match='nothing to take back'): review.undo()
        elif what == 'undo': assert review.undo().item == taken
        else: getattr(review, what)(item, *dict(reject=['too much style'], redo=['other seed']).get(what, []))
        if g.random() < .1: views[who] = Review(out, who=who, style='ink')       # a kernel that was restarted
        if g.random() < .3:
            with open(out/'review.jsonl', 'ab') as f: f.write(json_line(decision(item)).encode()[:g.randrange(200)])
    for review in views.values():
        review.refresh()
        for item in review.items:
            s = review.state(item)
            status, note = plain.status(item)
            assert s.status == status and (status != 'rejected' or s.note == note)
    p = review.progress
    assert p.accepted == sum(plain.status(i)[0] == 'accepted' for i in review.items)
    assert p.decided+p.redo+sum(plain.status(i)[0] == 'open' for i in review.items) == p.of == 6

def test_what_is_written_down(out):
    "All that the pilot's log wants to know"
    review = Review(out, who=' Ann ')
    item = review.items[0]
    d = review.reject(item, 'too\nmuch  style', seconds=3.14159)
    assert (d.who, d.reason, d.seconds, d.round) == ('Ann', 'too much style', 3.14, 0)
    assert d.output_sha256 == file_sha256(out/item) and d.run == review.all[item].run.id and len(d.settings) == 16
    assert d.when.endswith('+00:00') and read_lines(out/'review.jsonl', Decision) == [d]
    for wrong in (-1, float('nan'), 'long'):
        with pytest.raises(StylekitError, match='seconds'): review.accept(item, seconds=wrong)
    assert len(review.log.records) == 1

def test_an_output_that_has_changed_counts_no_more(out):
    review = Review(out)
    a, b, c = review.items[:3]
    for item in (a, b, c): review.accept(item)
    (out/a).write_bytes((out/c).read_bytes())
    (out/b).unlink()
    s, t = review.state(a), review.state(b)
    assert (s.status, t.status) == ('open', 'open') and 'changed since' in s.note and 'is gone' in t.note
    made = export_accepted(out, out.parent/'final')
    assert [e.file for e in made.files] == [c] and 'changed since' in made.left_out[a]
    assert made.left_out[b] == 'its result is gone'

def test_a_folder_run_and_a_review_leave_each_other_alone(out, small_network):
    "The run goes on, the log and the rounds stay; a list of the folder's pictures has no rounds"
    review = Review(out, style='ink', steps=2)
    item = review.items[0]
    review.redo(item, 'other seed')
    review.work()
    review.accept(item)
    names = [p.name for p in list_pictures(out)]
    assert names == sorted(review.items)
    (out/review.items[1]).unlink()
    done = stylize_folder(out.parent/'in', out, feedforward=small_network)
    assert done.made == 1 and review.state(item).status == 'accepted' and review.state(item).round == 1
    assert [p.name for p in list_pictures(out)] == names
    assert len(read_lines(out/'review.jsonl', Decision, ReviewRound)) == 3

def test_folders_that_are_none(tmp_path, out):
    for folder in (tmp_path/'nothing', out.parent/'in', out/MANIFEST):
        with pytest.raises(StylekitError, match='holds no manifest'): Review(folder)
    for wrong in ('../secret.png', '/etc/secret.png', 'a/../../b.png', '..\\b.png'):
        lines = (out/MANIFEST).read_text().splitlines()
        data = json.loads(lines[-1])
        del data['sha256']
        data['result'] = wrong
        evil = out.parent/f'evil {uuid.uuid4().hex}'
        evil.mkdir()
        line = json.dumps(data | dict(sha256=payload_hash(data)))
        (evil/MANIFEST).write_text('\n'.join([*lines[:-1], line])+'\n')
        with pytest.raises(StylekitError, match='lies elsewhere'): Review(evil)

def test_order_is_worst_first(out):
    names = Review(out).items
    scores = dict(zip(names, (.5, None, .1, float('nan'), .9)))
    assert Review(out, proof=scores).items == [names[i] for i in (2, 0, 4, 1, 3, 5)]
    (out.parent/'p.json').write_text(json.dumps({names[3]: dict(score=-1, sentences='letters lost')}))
    review = Review(out, proof=out.parent/'p.json')
    assert review.items[0] == names[3] and review.proof(names[3]).sentences == ('letters lost',)
    asked = []
    def prove(source, result):
        asked.append((source, result))
        return dict(score=len(asked))
    review = Review(out, proof=prove)
    assert len(asked) == 6 and asked[0] == (out.parent.resolve()/'in'/review.all[names[0]].picture, out/names[0])
    (out.parent/'p.json').write_text('{"a": ')
    with pytest.raises(StylekitError, match='p.json'): Review(out, proof=out.parent/'p.json')


# ---- redos ----

def working(out, steps, told=None):
    "In a process of its own: make what is to be redone"
    os.environ['OMP_NUM_THREADS'] = '1'
    review = Review(out, style='ink', steps=steps)
    if told: review.listeners.append(lambda r: r.now and told.send(r.now[1]))
    review.work()

@pytest.fixture(scope='module')
def loaded():
    "The libraries are loaded before processes are forked"
    stylize(sample_image('owl').resize((64, 64)), 'ink', 'an owl', steps=1)

def killed_at(out, step, steps=26):
    "Begin the redo, and kill it after a step"
    ours, theirs = FORK.Pipe(False)
    p = FORK.Process(target=working, args=(out, steps, theirs))
    p.start()
    until = time.monotonic()+120
    while not (ours.poll(.1) and ours.recv() >= step): assert time.monotonic() < until and p.is_alive()
    os.kill(p.pid, signal.SIGKILL)
    p.join()

def test_a_redo_is_killed_twice_and_ends_as_if_it_had_not_been(out, loaded):
    review = Review(out, style='ink', steps=26)
    item = review.items[2]
    d = review.redo(item, 'keep more')
    killed_at(out, 12)
    killed_at(out, 22)
    seen = []
    review.listeners.append(lambda r: r.now and seen.append(r.now[1]))
    made, = review.work()
    assert seen[0] > 12                                        # it did not begin anew
    plain = stylize(review.before(item), 'ink', review.all[item].caption, steps=26, lam=d.lam, seed=d.seed)
    file = review.rounds(item)[1]
    assert Image.open(file).tobytes() == plain.image.tobytes()
    assert file.name == f'{Path(item).stem}.r1.png' and made.output_sha256 == file_sha256(file)
    assert not [*(out/'.review'/'work').glob('*')] and len(review.log.records) == 2

def test_killed_between_the_file_and_its_line(out):
    "The round is there and not written down: it is taken, not made again"
    review = Review(out, style='ink', steps=2)
    review.redo(review.items[0], 'other seed')
    made, = review.work()
    log = out/'review.jsonl'
    log.write_bytes(b''.join(log.read_bytes().splitlines(True)[:-1]))
    file = review.rounds(made.item)[1]
    at = file.stat().st_mtime_ns
    again = Review(out, style='ink', steps=2)
    taken, = again.work()
    assert (taken.file, taken.output_sha256, taken.seconds) == (made.file, made.output_sha256, None)
    assert file.stat().st_mtime_ns == at and again.state(made.item).round == 1

def test_two_processes_make_each_redo_once(out, loaded):
    review = Review(out)
    for item in review.items: review.redo(item, 'other seed')
    both = [FORK.Process(target=working, args=(out, 2)) for _ in range(2)]
    for p in both: p.start()
    for p in both: p.join()
    review.refresh()
    rounds = [r for r in review.log.records if isinstance(r, ReviewRound)]
    assert sorted(r.item for r in rounds) == sorted(review.items) and {r.round for r in rounds} == {1}
    assert not any(r.error for r in rounds) and not review.pending()

def test_what_each_asking_does(out):
    "λ halved and doubled, the next seed, a mask; on top of each other, and of the round that was looked at"
    review = Review(out, style='ink', steps=2)
    item, lam = review.items[0], .15
    def redone(asked, **kw):
        review.redo(item, asked, **kw)
        made, = review.work()
        assert not made.error
        return made
    a = redone('more style')
    b = redone('more style')
    assert (a.lam, b.lam, b.seed) == (lam/2, lam/4, 0)
    c = redone('other seed')
    d = redone('keep more', round=1)                           # of the first round, whose seed was another
    assert (c.lam, c.seed, d.lam, d.seed, d.round) == (lam/4, 1, lam, 0, 4)
    assert redone('other seed').seed == 2                      # not one that it has had
    mask = Image.new('L', (64, 64), 255)
    e = redone('protect this', mask=mask)
    f = redone('more style')
    assert f.mask == e.mask and f.lam == e.lam/2               # the mask stays
    told = [read_output(p).run for n, p in review.rounds(item).items() if n]
    assert [t['settings']['lam'] for t in told] == [r.lam for r in (a, b, c, d)]+[lam, lam, lam/2]
    assert [t['seed'] for t in told] == [0, 0, 1, 0, 2, 2, 2] and [t['round'] for t in told] == [*range(1, 8)]
    assert len({file_sha256(p) for p in review.rounds(item).values()}) > 4

def test_a_redo_of_an_optimised_folder_has_its_settings(tmp_path):
    "Style and model must be the very ones, or be given"
    for n in ('owl', 'taxi'):
        (tmp_path/'in').mkdir(exist_ok=True)
        sample_image(n).resize((64, 64)).save(tmp_path/'in'/f'{n}.png')
    stylize_folder(tmp_path/'in', tmp_path/'out', 'ink', steps=3, lam=2., seed=5)
    review = Review(tmp_path/'out')
    d = review.redo('owl.png', 'more style')
    made, = review.work()
    assert (d.lam, d.seed, made.error) == (1., 5, '')
    plain = stylize(tmp_path/'in'/'owl.png', 'ink', 'owl', steps=3, lam=1., seed=5)
    assert Image.open(review.rounds('owl.png')[1]).tobytes() == plain.image.tobytes()
    review._workers.clear()
    run = review.all['taxi.png'].run
    object.__setattr__(run, 'key', 'another')                  # a style of that name with other weights
    review.redo('taxi.png', 'more style')
    made, = review.work()
    assert 'another style' in made.error or 'has changed' in made.error
    stylize_folder(tmp_path/'in', tmp_path/'plain', 'ink', method='img2img', steps=2)
    with pytest.raises(StylekitError, match='does not read'): Review(tmp_path/'plain').redo('owl.png', 'more style')
    stylize_folder(tmp_path/'in', tmp_path/'free', 'ink', steps=2, lam=0.)
    free = Review(tmp_path/'free')
    with pytest.raises(StylekitError, match='is 0 already'): free.redo('owl.png', 'more style')
    assert free.redo('owl.png', 'keep more').lam > 0

def test_what_cannot_be_redone_is_said_at_its_picture(out):
    review = Review(out, style='ink', steps=2)
    a, b, c = review.items[:3]
    for item in (a, b, c): review.redo(item, 'other seed')
    shutil.copy(review.before(b), review.before(a))            # another picture under the same name
    review.before(b).unlink()
    made = {r.item: r for r in review.work()}
    assert 'has changed since' in made[a].error and 'is not in the folder' in made[b].error and not made[c].error
    assert str(out.parent) not in (out/'review.jsonl').read_text()
    assert review.state(a).status == 'open' and 'could not be redone' in review.state(a).note
    moved = out.rename(out.parent.parent/f'moved-{uuid.uuid4().hex}')
    lonely = Review(moved)
    assert lonely.source is None and lonely.before(c) is None
    lonely.accept(c)                                           # deciding needs no sources
    lonely.redo(c, 'other seed')
    assert 'give it as source=' in lonely.work()[0].error or 'style' in lonely.log.records[-1].error
    assert Review(moved, source=out.parent/'in', style='ink', steps=2).before(c).exists()

def test_a_redo_that_nobody_wants_any_more(out):
    "Undone or decided otherwise in mid-run: it ends, and its picture does not count"
    review = Review(out, style='ink', steps=10)
    other, item = Review(out, who='ben'), review.items[0]
    review.redo(item, 'keep more')
    review.listeners.append(lambda r: r.now and r.now[1] == 7 and other.accept(item))
    assert review.work() == [] and review.state(item).status == 'accepted' and not review.pending()
    assert not [*(out/'.review'/'rounds').rglob('*.png')]
    review.listeners.clear()
    review.undo()                                              # its own redo, that ben's word had overtaken
    assert review.state(item).status == 'accepted'


# ---- the export ----

def test_an_export_holds_just_what_was_accepted(out, capsys):
    review = Review(out, who='ann', style='ink', steps=2)
    a, b, c, d, e, f = review.items
    review.redo(b, 'other seed')
    review.work()
    review.accept(a, seconds=1)
    review.accept(b, seconds=2)
    review.accept(c)
    review.undo()
    review.reject(d, '=1+1')
    review.redo(e, 'more style')
    to = out.parent/'final'
    assert main(['export', str(out), '--accepted', '--to', str(to)]) == 0
    said = capsys.readouterr()
    assert '2 accepted' in said.out and f'{d} is left out: rejected: =1+1' in said.err
    assert {p.relative_to(to).as_posix() for p in to.rglob('*') if p.is_file()} == {a, b, EXPORT_LOG, 'accepted.csv'}
    assert (to/a).read_bytes() == (out/a).read_bytes() and (to/b).read_bytes() == review.rounds(b)[1].read_bytes()
    first, second = read_lines(to/EXPORT_LOG, ExportedFile)
    assert (first.round, second.round, second.rounds, second.seconds) == (0, 1, 1, 2.)
    assert first.source_type and second.run_id == read_output(to/b).run['run_id']
    with open(to/'accepted.csv', newline='', encoding='utf-8') as f: rows = [*csv.DictReader(f)]
    assert [r['file'] for r in rows] == [a, b] and all(file_sha256(to/r['file']) == r['output_sha256'] for r in rows)

def test_an_export_overwrites_nothing_and_leaves_no_half(out, monkeypatch):
    review = Review(out)
    for item in review.items[:3]: review.accept(item)
    to = out.parent/'final'
    (to/'a').mkdir(parents=True)
    mine = to/review.items[1]
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b'mine')
    for overwrite in (False, True):
        with pytest.raises(StylekitError, match='is another file'): export_accepted(review, to, overwrite)
    assert mine.read_bytes() == b'mine' and [p for p in to.rglob('*') if p.is_file()] == [mine]
    mine.unlink()
    replace, done = os.replace, []
    def fails(a, b):
        done.append(b)
        if len(done) == 2: raise OSError(28, 'No space left on device')
        return replace(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', fails)
        with pytest.raises(StylekitError, match='free some space'): export_accepted(review, to)
    left = [p for p in to.rglob('*') if p.is_file()]
    assert len(left) == 1 and left[0].read_bytes() == (out/left[0].relative_to(to)).read_bytes()
    assert export_accepted(review, to).copied == 2             # the same call goes on
    (to/'own.txt').write_text('a note')
    review.reject(review.items[0], 'no')
    with pytest.raises(StylekitError, match='not accepted any more'): export_accepted(review, to)
    (to/review.items[0]).write_bytes(b'edited')                # not ours any more: it stays
    export_accepted(review, to, overwrite=True)
    assert (to/review.items[0]).read_bytes() == b'edited' and (to/'own.txt').exists()
    for item in review.items[1:3]: review.undo(item)
    with pytest.raises(StylekitError, match='nothing .* is accepted'): export_accepted(review, to, overwrite=True)

def test_an_export_while_a_picture_changes(out, monkeypatch):
    review = Review(out)
    review.accept(review.items[0])
    import stylekit.review as module
    check = module.check_output
    def late(path):
        (out/review.items[0]).write_bytes((out/review.items[1]).read_bytes())
        return check(path)
    monkeypatch.setattr(module, 'check_output', late)
    with pytest.raises(StylekitError, match='has changed just now'): export_accepted(review, out.parent/'final')
    assert not [p for p in (out.parent/'final').rglob('*.png')]

def test_names_of_any_letters(results, tmp_path):
    out = results(tmp_path, 3, names=('größe 猫', 'a.r1', '-x'))
    review = Review(out, style='ink', steps=2)
    for item in review.items: review.redo(item, 'other seed')
    assert not any(r.error for r in review.work())
    for item in review.items: review.accept(item)
    made = export_accepted(review, tmp_path/'to')
    assert [e.round for e in made.files] == [1, 1, 1] and not made.left_out
    assert all((tmp_path/'to'/e.file).is_file() for e in made.files)

def test_the_command_line(out, capsys):
    "One line for what is wrong; --redo makes what was asked for"
    assert main(['review', str(out.parent/'in')]) == 2 and 'holds no manifest' in capsys.readouterr().err
    assert main(['export', str(out), '--accepted']) == 2 and 'accepted yet' in capsys.readouterr().err
    assert main(['export', str(out), '--accepted', '--int8']) == 2 and 'does not apply' in capsys.readouterr().err
    review = Review(out)
    review.redo(review.items[0], 'other seed')
    assert main(['review', str(out), '--redo']) == 1           # there is no style of that name
    said = capsys.readouterr()
    assert "no style named 'noise'" in said.err and '0 of 6 decided' in said.out
    review.redo(review.items[0], 'other seed')
    assert main(['review', str(out), '--redo', '--style', 'ink', '--json']) == 0
    line, = capsys.readouterr().out.splitlines()
    assert json.loads(line)['round'] == 1
    review.refresh()
    review.accept(review.items[0])
    assert main(['export', str(out), '--accepted', '--json']) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])['file'] == review.items[0]
    assert (out.parent/'out-accepted'/review.items[0]).exists()
