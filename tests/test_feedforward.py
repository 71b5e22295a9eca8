"""Training a network: it goes on bit for bit, has its folder for itself, and names what is wrong;
its files are refused when they are not what was written"""
import json
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from safetensors.torch import save_file
from stylekit import StylekitError, load_backbone
from stylekit.core import folder_lock
from stylekit.feedforward import FEEDFORWARD_FILE, HEADER, SEAL, FeedForward, StyleNet
from stylekit.feedforward_training import train_feedforward
from stylekit.finetune import Example
from stylekit.images import sample_image, list_samples
from stylekit.onnx_network import stamp_onnx
from stylekit.records import UNSEALED, seal_file
from stylekit.training import TrainingReport
from sweeps import check_full_disk, json_mutants, keys_only, sweep, sweep_file

HOW = dict(widths=(8, 16), blocks=(1, 1), steps=4, batch=2, check=2, lr=1e-2, views=1)


@pytest.fixture(scope='module')
def b(models): return load_backbone(models('small'))

@pytest.fixture(scope='module')
def style(b, random_style): return str(random_style(b))

@pytest.fixture(scope='module')
def examples():
    return [Example(Path(f'{n}.png'), sample_image(n).resize((64, 64)), f'a {n}', n) for n in list_samples()[:3]]

@pytest.fixture(scope='module')
def train(b, style, examples):
    def go(out, name='g', **changes):
        return train_feedforward(style, examples, name, backbone=b, out=out, **HOW | changes)
    return go

@pytest.fixture(scope='module')
def made(train, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    return train(out), out/'g'/FEEDFORWARD_FILE

def same_weights(a:FeedForward, b:FeedForward)->bool:
    return all(torch.equal(x, y) for x, y in zip(a.net.state_dict().values(), b.net.state_dict().values()))

@pytest.mark.parametrize('fake', ['source_plain', 'lora'])
def test_stopped_it_goes_on_bit_for_bit(train, tmp_path, fake):
    said = []
    whole = train(tmp_path, 'whole', fake_score=fake)
    part = train(tmp_path, minutes=1e-9, report=said.append, fake_score=fake)
    assert isinstance(said[-1], TrainingReport) and said[-1].ended == 'cut short'
    assert part.about['steps_done'] == said[-1].step < 4 and not same_weights(part, whole)
    again = train(tmp_path, fake_score=fake)
    assert again.about['steps_done'] == 4 and same_weights(again, whole)
    assert [p.name for p in (tmp_path/'g').iterdir()] == [FEEDFORWARD_FILE]

def test_a_critic_goes_on_bit_for_bit(train, tmp_path):
    how = dict(space='pixel', areas=2, refine=1, adversarial=.1)
    def stop(r):
        if r.step == 2 and not r.part: raise KeyboardInterrupt
    whole = train(tmp_path, 'whole', **how)
    without = train(tmp_path, 'without', **how | dict(adversarial=0.))
    with pytest.raises(KeyboardInterrupt): train(tmp_path, report=stop, **how)
    again = train(tmp_path, **how)
    assert same_weights(again, whole) and not same_weights(whole, without)

def test_another_training_is_not_mixed_in(train, tmp_path):
    train(tmp_path, minutes=1e-9)
    (tmp_path/'g'/'work'/'mine.pt').write_text('of the user')
    before = (tmp_path/'g'/FEEDFORWARD_FILE).read_bytes()
    with pytest.raises(StylekitError, match='another training'): train(tmp_path, lr=1e-3)
    assert (tmp_path/'g'/FEEDFORWARD_FILE).read_bytes() == before
    (tmp_path/'g'/FEEDFORWARD_FILE).unlink()
    with pytest.raises(StylekitError, match='another training'): train(tmp_path, lr=1e-3)   # its checkpoint alone
    assert train(tmp_path, lr=1e-3, overwrite=True).about['steps_done'] == 4
    assert [p.name for p in (tmp_path/'g'/'work').iterdir()] == ['mine.pt']

def test_one_run_for_a_folder_and_for_a_model(train, b, tmp_path):
    with folder_lock(tmp_path/'held'):
        with pytest.raises(StylekitError, match='another run is writing'): train(tmp_path, 'held')
    with b.lease('somebody'):
        with pytest.raises(StylekitError, match='drawing for another run'): train(tmp_path)
    assert not (tmp_path/'g').exists()
    assert not getattr(b.unet, 'peft_config', {})

def test_steps_that_are_no_numbers_are_not_taken(train, tmp_path, monkeypatch):
    def loss(self, g): return self.net.head.weight.sum()*torch.nan
    monkeypatch.setattr('stylekit.feedforward_training.FeedForwardTrainer.loss', loss)
    with pytest.raises(StylekitError, match='NaN or infinite at step 1'): train(tmp_path)
    assert not (tmp_path/'g'/FEEDFORWARD_FILE).exists()

def test_memory_that_runs_out_is_named(train, b, tmp_path, monkeypatch):
    def full(self, g): raise MemoryError
    monkeypatch.setattr('stylekit.feedforward_training.FeedForwardTrainer.loss', full)
    with pytest.raises(StylekitError, match='ran out of memory: lower `batch`'): train(tmp_path)
    assert not getattr(b.unet, 'peft_config', {})

@pytest.mark.parametrize('e', [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")])
def test_memory_that_runs_out_in_one_pass(e, made, small):
    def full(x): raise e
    for ff in (FeedForward(full, small.about), FeedForward(full, made[0].about, made[0].backbone)):
        with pytest.raises(StylekitError, match='ran out of memory: lower `resolution`'): ff(sample_image('owl'))

def flipped(raw:bytes, i:int, bit:int)->bytes:
    return raw[:i]+bytes([raw[i]^bit])+raw[i+1:]

def test_a_changed_file_is_refused(made, b, tmp_path):
    raw = made[1].read_bytes()
    for i in (len(raw)-3, len(raw)//2):
        (tmp_path/'x.safetensors').write_bytes(flipped(raw, i, 1))
        with pytest.raises(StylekitError, match='was changed'): FeedForward.load(tmp_path/'x.safetensors', b)


# ---- the folder, and that of the teacher

def files(folder)->dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}

@pytest.fixture
def no_training(monkeypatch):
    "From now on nothing may be trained any more"
    def stop():
        def loss(self, g): raise AssertionError('it trains')
        monkeypatch.setattr('stylekit.feedforward_training.FeedForwardTrainer.loss', loss)
        monkeypatch.setattr('stylekit.feedforward_training.FeedForwardTrainer.lesson', loss)
    return stop

@pytest.fixture(scope='module')
def taught(train, tmp_path_factory):
    "A folder with a network that has learnt from a teacher of its own"
    out = tmp_path_factory.mktemp('taught')
    train(out, teacher=True)
    return out

@pytest.fixture
def copy(taught, tmp_path):
    import shutil
    shutil.copytree(taught, tmp_path/'out')
    return tmp_path/'out'

def test_what_has_ended_is_not_trained_again(train, copy, no_training):
    before, said = files(copy), []
    (copy/'g'/'teacher'/'work').mkdir()   # killed while it tidied up
    no_training()
    again = train(copy, teacher=True, report=said.append)
    assert files(copy) == before
    assert [r.ended for r in said] == ['finished']
    assert again.about['steps_done'] == 4
    assert not (copy/'g'/'teacher'/'work').exists()

def test_one_training_gives_one_file(train, taught, tmp_path):
    "The teacher is known by the hash of its file: were that another each time, nothing could go on"
    train(tmp_path, teacher=True)
    assert files(tmp_path) == files(taught)

@pytest.mark.parametrize('left', ['all', 'the teacher', 'the network', "the teacher's checkpoint"])
def test_another_training_is_refused_before_any_work(train, copy, no_training, left):
    teacher, own = copy/'g'/'teacher'/FEEDFORWARD_FILE, copy/'g'/FEEDFORWARD_FILE
    name = 'g'
    if left == 'the teacher': own.unlink()
    if left == 'the network': teacher.unlink()
    if left == "the teacher's checkpoint":
        name = 'cut'
        train(copy, name, teacher=True, minutes=1e-9)
        (copy/name/'teacher'/FEEDFORWARD_FILE).unlink()
    before = files(copy)
    no_training()
    where = name if left == 'the network' else f'{name}/teacher'
    with pytest.raises(StylekitError, match=f"'{where}' holds a network of another training"):
        train(copy, name, teacher=True, seed=1)
    assert files(copy) == before
    if left != 'all': return
    for how in dict(), dict(teacher=teacher): # without a teacher, or with one that is given
        with pytest.raises(StylekitError, match="'g' holds a network of another training"): train(copy, **how)
    assert files(copy) == before

def test_to_insist_goes_on_too(train, copy, monkeypatch):
    "A training that replaces another goes on where it was killed, while the other's network still lies there"
    class Killed(BaseException): pass
    other, said = files(copy), []
    def die(r):
        if not r.part and r.step == 2: raise Killed   # the pupil's first checkpoint
    how = dict(teacher=True, seed=1, overwrite=True)
    with pytest.raises(Killed): train(copy, report=die, **how)
    assert files(copy)[f'g/{FEEDFORWARD_FILE}'] == other[f'g/{FEEDFORWARD_FILE}']
    monkeypatch.setattr('stylekit.feedforward_training.FeedForwardTrainer.lesson', None)   # they are made
    train(copy, report=said.append, **how)
    assert [(r.part, r.step) for r in said] == [('teacher', 4), ('lessons', 1), ('', 4), ('', 4)]
    new = files(copy)
    assert new.keys() == other.keys() and all(new[k] != other[k] for k in new)

FOREIGN = ('notes.txt', 'work/mine.pt', 'work/lessons-1/00000.pt', 'work/lessons-1/notes.txt')

def place_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')

def test_what_is_not_ours_stays(train, tmp_path):
    for name in FOREIGN:
        for home in ('g', 'g/teacher'): place_file(tmp_path/home/name)
    before = files(tmp_path)
    train(tmp_path, teacher=True)
    train(tmp_path, teacher=True, seed=1, overwrite=True)
    after = files(tmp_path)
    assert after | before == after
    assert {*after}-{*before} == {f'g/{FEEDFORWARD_FILE}', f'g/teacher/{FEEDFORWARD_FILE}'}

@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('place', [
    'g/teacher', f'g/teacher/{FEEDFORWARD_FILE}/x', f'g/{FEEDFORWARD_FILE}/x', 'g/work/training.pt/x'])
def test_what_is_in_the_way_is_named_before_any_work(train, tmp_path, no_training, place, overwrite):
    place_file(tmp_path/place)
    no_training()
    with pytest.raises(StylekitError, match='is a file|holds a folder'):
        train(tmp_path, teacher=True, overwrite=overwrite)
    assert files(tmp_path) == {place: b'mine'}

@pytest.mark.parametrize('place', [
    f'g/teacher/{FEEDFORWARD_FILE}', f'g/{FEEDFORWARD_FILE}', 'g/teacher/work/training.pt'])
def test_a_file_of_that_name_that_is_not_ours(train, tmp_path, no_training, place):
    place_file(tmp_path/place)
    no_training()
    with pytest.raises(StylekitError, match='another training'): train(tmp_path, teacher=True)
    assert files(tmp_path) == {place: b'mine'}


# ---- its files

X = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))

@pytest.fixture(scope='module')
def small():
    "A network in pixel space that changes something, with a short header"
    torch.manual_seed(0)
    net = StyleNet(widths=(4, 8), blocks=(1, 1))
    with torch.no_grad():
        for p in net.parameters(): p.add_(.05*torch.randn_like(p))
    about = dict(
        name='small', space='pixel', shape=net.shape, multiple=net.multiple, style='ink', style_sha256='1'*64,
        words='ink', backbone='mini', backbone_sha256='2'*64, settings=dict(steps=4, sms=dict(lam=.05, steps=1)),
        pictures=2, sha256=['3'*64], teacher='', run_id='4'*16, steps_done=4)
    return FeedForward(net, about)

def needs_onnx():
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')

@pytest.fixture(params=['safetensors', 'onnx'])
def file(request, small, tmp_path):
    if request.param == 'safetensors': return small.save(tmp_path/'g.safetensors')
    needs_onnx()
    return small.export(tmp_path/'g.onnx')

def read(path):
    ff = FeedForward.load(path)
    return ff.about, ff.tensor(X)

def with_notes(path:Path, notes:dict)->Path: # text of the header, by key
    "The file with other notes in its header, and the hash that belongs to it, where there is a place for one"
    if path.suffix == '.onnx':
        import onnx
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {k: v for k, v in notes.items() if k != SEAL})
        onnx.save(model, path)
        if SEAL in notes: stamp_onnx(path, SEAL)
        return path
    with safe_open(path, 'pt') as f: state = {k: f.get_tensor(k) for k in f.keys()}
    save_file(state, path, notes)
    if SEAL in notes: seal_file(path)
    return path

def test_bytes(file):
    assert sweep_file(file, read, same=read(file), flips=150) > 100

def test_every_part_of_the_file_counts(file):
    "One bit in each stretch of a 60th of it: header, weights, the note at the end"
    raw, good = file.read_bytes(), read(file)
    def of(i):
        file.write_bytes(flipped(raw, i, 4))
        return read(file)
    assert sweep(of, [(f'byte {i}', i) for i in range(0, len(raw), max(1, len(raw)//60))], good) >= 60

def test_notes(file):
    "Of the two notes one is missing, or both, or one says something else"
    good, about = read(file), json.dumps(FeedForward.load(file).about)
    def of(notes): return read(with_notes(file, notes))
    assert sweep(of, [('as it is', {HEADER: about, SEAL: UNSEALED})], good) == 1
    headers = ['', '{', 'null', '[]', '3', '['*100_000]
    headers += [about[:-1], about+'}', about+'x', about.replace('"space"', '"name"')]
    odd = [{}, {HEADER: about}, {SEAL: UNSEALED}, {HEADER.upper(): about, SEAL: UNSEALED}]
    odd += [{HEADER: t, SEAL: UNSEALED} for t in headers]
    sweep(of, [(f'{ {k: v[:20] for k, v in o.items()} }', o) for o in odd], None)

def test_keys_and_types(file):
    "With a hash that fits: refused, or it is what the file says, and the picture is as ever"
    about, good = read(file)
    def of(mutant):
        got, made = read(with_notes(file, {HEADER: json.dumps(mutant), SEAL: UNSEALED}))
        assert got == mutant
        return made
    mutants = json_mutants if file.suffix == '.safetensors' else keys_only
    assert sweep(of, mutants(about), good) > 50

def test_a_network_that_is_another(small, tmp_path):
    "Weights that are missing, too many, of another shape, not finite"
    state = {k: v.half() for k, v in small.net.state_dict().items()}
    first = next(iter(state))
    weight = state[first]
    odd = [('one is missing', {k: v for k, v in state.items() if k != first}),
           ('one too many', state | {'x': weight}),
           ('another shape', state | {first: weight[:1]}),
           ('NaN', state | {first: weight*torch.nan}),
           ('flat', state | {first: weight.reshape(-1)}),
           ('none of them', {'x': torch.zeros(1)})]
    path, notes = tmp_path/'g.safetensors', {HEADER: json.dumps(small.about), SEAL: UNSEALED}
    def of(weights):
        save_file({k: v.clone() for k, v in weights.items()}, path, notes)
        seal_file(path)
        return read(path)
    sweep(of, odd, None)

SHAPES = [dict(patch=8), dict(channels=4), dict(widths=[4, 4096]), dict(blocks=[64, 64]),
          dict(widths=[8192]*8, blocks=[64]*8), dict(areas=3), dict(widths=[4]), dict(widths=[], blocks=[])]
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_a_header_of_another_shape(small, tmp_path, shape):
    about = small.about | dict(shape=small.about['shape'] | shape)
    file = with_notes(small.save(tmp_path/'g.safetensors'), {HEADER: json.dumps(about), SEAL: UNSEALED})
    with pytest.raises(StylekitError, match='g.safetensors'): read(file)

@pytest.mark.parametrize('form', ['safetensors', 'onnx', 'int8'])
def test_a_full_disk_keeps_the_old_one(small, tmp_path, monkeypatch, form):
    path = tmp_path/'new'/('g.safetensors' if form == 'safetensors' else 'g.onnx')
    if form != 'safetensors': needs_onnx()
    def save():
        ff = FeedForward(small.net, small.about | dict(name=str(path.exists())))   # no second one is like the first
        if form == 'safetensors': return ff.save(path)
        return ff.export(path, **how)
    how = dict(int8=True, calibrate=[sample_image('owl').resize((32, 32))]) if form == 'int8' else {}
    for _ in range(2): check_full_disk(monkeypatch, path, save)

@pytest.mark.parametrize('form', ['safetensors', 'onnx', 'int8'])
def test_a_disk_that_is_full_in_the_middle(small, tmp_path, form):
    "No file may be longer than so many bytes: a real error of the system, wherever it is met"
    resource = pytest.importorskip('resource')
    if form != 'safetensors': needs_onnx()
    path = tmp_path/('g.safetensors' if form == 'safetensors' else 'g.onnx')
    path.write_text('the old one')
    def save():
        if form == 'safetensors': return small.save(path)
        return small.export(path, int8=form == 'int8', calibrate=[sample_image('owl').resize((32, 32))])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 1000, 5000, 8000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
        try:
            with pytest.raises(StylekitError, match=path.name) as e: save()
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert len(str(e.value)) <= 300, most
        assert files(tmp_path) == {path.name: b'the old one'}, most
    save()
    assert read(path)[0]['name'] == 'small'
