"""What happens to takes when a kernel is killed, a disk is full, two panels write at once, or a file is damaged"""
import json, multiprocessing, os, signal, time
from pathlib import Path
import pytest
from PIL import Image
from stylekit import StylekitError, sample_image
from stylekit.app import takes as room
from stylekit.app.live import Recipe
from stylekit.app.takes import LINE, PICTURE, RECIPE, THUMBNAIL, Take, Takes, session_folder
from stylekit.rights import save_output

FORK = multiprocessing.get_context('fork')
pytestmark = pytest.mark.skipif(os.name == 'nt', reason='processes are forked and killed here')

class Result:
    "As much of a `StylizeResult` as is written"
    def __init__(self, color='red', side=32): self.image = Image.new('RGB', (side, side), color)
    def save(self, path, **marks): return save_output(self.image, path, dict(made='here'), **marks)

RECIPE_OF = Recipe('', 'an owl', [('ink', 1.)], dict(preset='fast', lam=.15), 0)

def added(folder, n=1, **kw):
    takes = Takes(folder, **kw)
    for i in range(n): takes.add(Result(), RECIPE_OF, Take(differs=f'seed {i}'))
    return takes

def numbers(takes): return [t.number for t in takes.read()]

def in_child(work, *args):
    "Run in a process of its own; its exit status"
    child = FORK.Process(target=work, args=args)
    child.start()
    child.join(60)
    return child.exitcode

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.parametrize('file', [PICTURE, RECIPE, THUMBNAIL, LINE])
def test_a_kill_in_mid_write_costs_one_take(tmp_path, monkeypatch, file):
    "Killed before any of its files is in its place"
    added(tmp_path, 2)
    def killed():
        replace = os.replace
        monkeypatch.setattr(os, 'replace', lambda a, b: die() if Path(b).name == file else replace(a, b))
        added(tmp_path)
    assert in_child(killed) == -signal.SIGKILL
    takes = Takes(tmp_path)
    assert numbers(takes) == [2, 1] and not takes.news()       # somebody may be writing it
    os.utime(tmp_path/'0003', (0, time.time()-100))
    assert numbers(takes) == [2, 1] and takes.news() == 'take 3 is left out: it was never finished'
    assert takes.add(Result(), RECIPE_OF).number == 4 and not takes.news()
    os.utime(tmp_path/'0003', (0, time.time()-90_000))
    assert numbers(Takes(tmp_path)) == [4, 2, 1] and not (tmp_path/'0003').exists()

def test_two_writers_lose_nothing(tmp_path):
    "Processes that add, name and pin at once"
    def work(who):
        takes = Takes(tmp_path)
        for i in range(8):
            take = takes.add(Result(), RECIPE_OF, Take(differs=f'{who} {i}'))
            takes.rename(take.number, f'{who}{i}')
            if i == 3: takes.pin(take.number)
            if i == 5: takes.delete(take.number)
        takes.empty()
    children = [FORK.Process(target=work, args=(who,)) for who in 'ab']
    for child in children: child.start()
    for child in children: child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    takes = Takes(tmp_path)
    assert sorted(t.name for t in takes.read()) == sorted(f'{who}{i}' for who in 'ab' for i in range(8) if i != 5)
    assert all(t.differs.replace(' ', '') == t.name for t in takes.read()) and not takes.news()
    assert sum(t.pinned for t in takes.read()) == 2 and len(set(numbers(takes))) == 14

DAMAGE = dict(cut=lambda raw: raw[:len(raw)//2], empty=lambda raw: b'', gone=None)

@pytest.mark.parametrize('how', DAMAGE)
@pytest.mark.parametrize('file', [PICTURE, RECIPE, THUMBNAIL, LINE])
def test_damage_is_said_once_and_costs_one_take(tmp_path, file, how):
    added(tmp_path, 3)
    path = tmp_path/'0002'/file
    if DAMAGE[how]: path.write_bytes(DAMAGE[how](path.read_bytes()))
    else: path.unlink()
    os.utime(tmp_path/'0002', (0, time.time()-100))
    takes = Takes(tmp_path)
    assert numbers(takes) == [3, 1] and sorted(takes.thumbnails) == [1, 3]
    assert takes.news().startswith('take 2 is left out') and numbers(takes) == [3, 1] and not takes.news()
    with pytest.raises(StylekitError, match='not there any more'): takes.take(2)

def test_what_has_the_right_size_and_says_something_else(tmp_path):
    "A line that was edited, that of another take, a recipe with another λ, a picture with a flipped byte"
    takes = added(tmp_path, 4)
    line = tmp_path/'0001'/LINE
    line.write_text(line.read_text().replace('seed 0', 'seed 9'))
    (tmp_path/'0002'/LINE).write_bytes((tmp_path/'0003'/LINE).read_bytes())
    recipe, picture = tmp_path/'0003'/RECIPE, tmp_path/'0004'/PICTURE
    recipe.write_text(recipe.read_text().replace('0.15', '0.95'))
    raw = bytearray(picture.read_bytes())
    raw[raw.index(b'IDAT')+9] ^= 255
    picture.write_bytes(raw)
    takes = Takes(tmp_path)
    assert numbers(takes) == [4, 3]
    said = takes.news()
    assert 'take 1 is left out' in said and 'was changed' in said and 'its line is that of take 3' in said
    with pytest.raises(StylekitError, match='changed'): takes.recipe(3)
    with pytest.raises(StylekitError): takes.picture(4)
    assert takes.picture(3).size == (32, 32)

def test_what_others_left_in_the_folder_stays(tmp_path):
    for name in ('notes.txt', '0007', 'abc', '12'): (tmp_path/name).write_text('mine')
    takes = added(tmp_path, 2)
    assert [t.differs for t in takes.read()] == ['seed 1', 'seed 0'] and 7 not in numbers(takes)
    assert {p.name for p in tmp_path.iterdir()} > {'notes.txt', '0007', 'abc', '12'}

def test_bounds(tmp_path):
    "The oldest go first, pinned ones never, the newest neither; each is said"
    takes = added(tmp_path/'number', 3, most=3)
    takes.pin(1)
    takes.rename(2, 'mine')
    for _ in range(2): takes.add(Result(), RECIPE_OF)
    assert numbers(takes) == [5, 4, 3, 1] and takes.news().startswith('mine made room: the 3 newest are kept')
    size = takes.take(5).size
    takes = added(tmp_path/'bytes', 5, most_bytes=2.5*size)
    assert numbers(takes) == [5, 4] and len([*(tmp_path/'bytes').iterdir()]) == 2
    takes = added(tmp_path/'large', 2, most_bytes=1)
    assert numbers(takes) == [2]
    with pytest.raises(StylekitError, match='most'): Takes(tmp_path, most=0)

def test_a_number_is_never_had_twice(tmp_path):
    "What says \"from take 3\" must not come to mean another one"
    takes = added(tmp_path, 3)
    takes.delete(3)
    assert added(tmp_path).read()[0].number == 4               # another panel, while it can be brought back
    takes.undo()
    assert numbers(takes) == [4, 3, 2, 1]
    takes.delete(4)
    assert takes.add(Result(), RECIPE_OF).number == 5

def test_a_full_disk_costs_nothing_that_is_there(tmp_path, monkeypatch):
    takes = added(tmp_path, 2)
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', full)
        with pytest.raises(StylekitError, match='disk is full'): takes.add(Result(), RECIPE_OF)
        with pytest.raises(StylekitError, match='disk is full'): takes.rename(1, 'mine')
    assert numbers(takes) == [2, 1] and [p.name for p in sorted(tmp_path.iterdir())] == ['0001', '0002']
    assert takes.take(1).name == '' and takes.add(Result(), RECIPE_OF).number == 4

def test_many_takes_are_thumbnails_in_memory(tmp_path):
    takes = Takes(tmp_path)
    for _ in range(3): takes.add(Result(side=1500), RECIPE_OF)
    fresh = Takes(tmp_path)
    assert len(fresh.read()) == 3 and max(map(len, fresh.thumbnails.values())) < 10_000
    assert not any(isinstance(v, Image.Image) for v in vars(fresh).values())

def test_each_process_has_a_folder_of_its_own(tmp_path, monkeypatch):
    "As each visitor of a page has; nobody else may read it, and it goes with its process, killed or not"
    monkeypatch.setattr(room.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(room, '_SESSION', [])
    def visit(end):
        room._SESSION.clear()
        Takes(session_folder()).add(Result(), RECIPE_OF)
        end(0)
    assert in_child(visit, os._exit) == 0 and in_child(visit, die) == -signal.SIGKILL
    left = list(tmp_path.glob('*/takes/session-*'))
    assert len(left) == 2
    for folder in left: os.utime(folder, (0, time.time()-100))
    mine = session_folder()
    assert list(tmp_path.glob('*/takes/session-*')) == [mine] and Takes(mine).read() == []
    assert mine.stat().st_mode & 0o77 == 0 == mine.parent.parent.stat().st_mode & 0o77
    os.utime(mine, (0, time.time()-100))
    assert in_child(visit, os._exit) == 0 and mine.exists()   # whoever comes next leaves what is in use

def test_a_folder_that_somebody_else_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room.tempfile, 'tempdir', str(tmp_path))
    (tmp_path/'theirs').mkdir()
    (tmp_path/f'stylekit-{os.getuid()}').symlink_to(tmp_path/'theirs')
    with pytest.raises(StylekitError, match='somebody else'): room.user_folder()


# ---- a panel ----

def stepping(panel, steps=1):
    panel.start.click()
    until = time.monotonic()+60
    while not (panel.run and panel.run.k >= steps) and time.monotonic() < until: time.sleep(.002)

def test_a_panel_that_is_closed_keeps_its_picture(tmp_path):
    "A cell that is run again, cleared or deleted in mid-run"
    from stylekit import StylizePanel
    panel = StylizePanel(sample_image('owl').resize((64, 64)), caption='an owl', steps=300, takes=tmp_path)
    stepping(panel)
    panel.shut()
    until = time.monotonic()+60
    while not Takes(tmp_path).read() and time.monotonic() < until: time.sleep(.05)
    [take] = Takes(tmp_path).read()
    assert 'stopped at step' in take.differs and Takes(tmp_path).recipe(1).steps_done

def test_a_take_that_cannot_be_kept_costs_no_picture(tmp_path, monkeypatch):
    "It is said, and tried again before anything takes its place"
    from stylekit import StylizePanel
    def full(*_): raise OSError(28, 'No space left on device')
    panel = StylizePanel(sample_image('owl').resize((64, 64)), caption='an owl', steps=2, takes=tmp_path)
    with monkeypatch.context() as m:
        m.setattr(Takes, '_write', full)
        panel.start.click()
        panel.wait(60)
        assert 'cannot be kept' in panel.status.error and panel.result and panel.save(tmp_path/'mine.png').exists()
    first = panel.result.image.tobytes()
    panel.seed.value = 5
    panel.start.click()
    panel.wait(60)
    assert Takes(tmp_path).picture(2).tobytes() == first and [t.number for t in Takes(tmp_path).read()] == [3, 2]

def test_settings_of_a_style_that_is_not_here_change_nothing(tmp_path):
    from stylekit import StylizePanel
    panel = StylizePanel(steps=2, takes=tmp_path)
    data = json.loads(json.dumps(RECIPE_OF.to_json())) | dict(style=[['mine', 1.]])
    panel.seed.value = 7
    panel.safely(panel.use_recipe)(Recipe.from_json(data))
    assert 'the style mine is not here' in panel.status.error
    assert (panel.seed.value, panel.styles['ink'].value) == (7, 1.)
