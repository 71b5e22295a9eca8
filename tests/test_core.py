"Faults of core that the notebook has no room for"
import subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from stylekit.core import *
from stylekit.core import StylekitError


# ---- import and packaging

IMPORT = '''
import sys, time
start = time.perf_counter()
import stylekit.core
print(time.perf_counter()-start)
print([m for m in ('torch', 'numpy', 'PIL', 'diffusers', 'matplotlib') if m in sys.modules])
'''

def test_import_is_light():
    def imported():
        done = subprocess.run([sys.executable, '-c', IMPORT], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()
    out = [imported() for _ in range(2)]
    assert min(float(seconds) for seconds, _ in out) < .15, out
    assert out[0][1] == '[]', out


# ---- values, devices, seeds, names

@pytest.mark.parametrize('bad', [
    -.1, 1.1, float('nan'), float('inf'), None, 'x', '0.5', [1],
    torch.tensor([.5, 2.]), torch.tensor([.5, float('nan')]), np.array([])])
def test_check_range(bad):
    with pytest.raises(StylekitError, match='cutoff'): check_range('cutoff', bad, 0, 1)

def test_check_range_returns_value():
    x = torch.tensor([0., 1.])
    assert check_range('c', x, 0, 1) is x
    assert check_range('n', 5, 1) == 5
    assert check_range('n', -5, hi=0) == -5

def test_check_finite():
    for ok in (torch.zeros(3), torch.arange(3), np.zeros(3), 1.5): assert check_finite(ok) is ok
    imprecise = torch.tensor([torch.nan], dtype=torch.bfloat16)
    for bad in (torch.tensor([0, torch.inf]), np.array([np.nan]), float('nan'), imprecise):
        with pytest.raises(StylekitError, match='latents'): check_finite(bad, 'latents')

@pytest.mark.parametrize('bad', [
    '', ' ', '.', '..', '../x', 'a/../b', 'a..b', '/abs', '\\abs', 'C:\\x', 'C:', 'a/b', 'a\\b', 'a\0', 'a\n', 'a?',
    '.hidden', 'end.', 'x ', 'con', 'Com1.png', 'x'*300, '門'*100, '\ud800', None, 3, b'x', Path('x')])
def test_safe_name_refuses(bad):
    with pytest.raises(StylekitError): safe_name(bad)

@pytest.mark.parametrize('good', ['ink', 'v1.5', 'Ünïcode 門', 'a-b_c', 'console', "it's"])
def test_safe_name_keeps(good): assert safe_name(good) == good

def test_devices_and_types(monkeypatch):
    assert pick_device('cpu') == pick_device(torch.device('cpu')) == 'cpu'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert pick_device() == 'cpu'
    for bad in ('cuda', 'cuda:3', 'mps'):
        with pytest.raises(StylekitError, match='not available'): pick_device(bad)
    for bad, word in (('gpu', 'unknown'), ('meta', 'not supported'), (object(), 'unknown')):
        with pytest.raises(StylekitError, match=word): pick_device(bad)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert pick_device() == 'cuda' and pick_device('cuda:0') == 'cuda:0'
    with pytest.raises(StylekitError, match='not available'): pick_device('cuda:1')
    assert pick_dtype('cuda', 'fp16') == torch.float16
    assert pick_dtype('cpu') == pick_dtype('cpu', 'float32') == torch.float32
    for native, best in ((True, torch.bfloat16), (False, torch.float16)):   # a T4 says it has bfloat16: imitated, slow
        def is_bf16_supported(including_emulation=True): return native or including_emulation
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', is_bf16_supported)
        assert pick_dtype('cuda') == best
    for bad in ('float16', torch.int8, 'nn', 'float99', 3):
        with pytest.raises(StylekitError): pick_dtype('cpu', bad)

def test_seeds():
    assert [g.initial_seed() for g in make_generators(5, 3)] == [5]*3
    assert [g.initial_seed() for g in make_generators([1, np.int64(2)], 2)] == [1, 2]
    fresh = make_generators(None, 2)
    assert fresh[0].initial_seed() == fresh[1].initial_seed() != make_generators(None, 1)[0].initial_seed()
    assert fresh[0].device.type == 'cpu'
    state = torch.get_rng_state()
    make_generators(None, 2)
    assert torch.equal(state, torch.get_rng_state()) # the caller's own randomness is left alone
    for bad in ([], 1.5, '7', True, -1, 2**63):
        with pytest.raises(StylekitError): make_generators(bad, 1)
    for bad, n in (([1], 2), ([1, None], 2), (1, 0), (1, None)):
        with pytest.raises(StylekitError): make_generators(bad, n)
    assert make_generators(2**63-1)[0].initial_seed() == 2**63-1


# ---- files

def test_atomic_path(tmp_path):
    p = tmp_path/'new'/'ü x.png'
    with atomic_path(p) as t:
        assert t.parent == p.parent and t.suffix == '.png' and t != p
        t.write_bytes(b'one')
    assert p.read_bytes() == b'one'
    for stop in (RuntimeError, KeyboardInterrupt, SystemExit, StylekitError):
        with pytest.raises(stop):
            with atomic_path(p) as t:
                t.write_bytes(b'half')
                raise stop('x')
    with pytest.raises(StylekitError, match='nothing was written'):
        with atomic_path(p): pass
    assert p.read_bytes() == b'one' and list(p.parent.iterdir()) == [p]

def test_two_writers_do_not_mix(tmp_path):
    with atomic_path(tmp_path/'a') as t, atomic_path(tmp_path/'a') as u:
        t.write_bytes(b'1'*9)
        u.write_bytes(b'2'*9)
        assert t != u
    assert (tmp_path/'a').read_bytes() == b'1'*9 and len(list(tmp_path.iterdir())) == 1

def test_hash_and_assets(tmp_path):
    p = tmp_path/'x'
    p.write_bytes(b'abc')
    assert file_sha256(p) == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    for bad in (tmp_path, tmp_path/'none', None):
        with pytest.raises(StylekitError): file_sha256(bad)
    assert asset('samples').is_dir()
    for bad in (('..',), ('samples/../..',), ('/etc',), ('samples', 'no.png'), ('',)):
        with pytest.raises(StylekitError): asset(*bad)


def test_ctrl_c_keeps_the_step_it_came_after(tmp_path):
    "Between two steps, never in one; what is kept goes on to the same weights"
    import signal
    from stylekit.records import load_state
    from stylekit.training import FitSettings, TrainingState, fit
    def train(press_at=None, **kw):
        torch.manual_seed(0)
        m, seen = torch.nn.Linear(4, 1), []
        def loss(g):
            seen.append(1)
            if len(seen) == press_at: signal.raise_signal(signal.SIGINT)
            return (m(torch.randn(8, 4, generator=g))-1).pow(2).mean()
        fit(m, loss, FitSettings(steps=20, lr=.05), **kw)
        return m
    old = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train(7, path=tmp_path/'c.pt')
    assert signal.getsignal(signal.SIGINT) is old
    assert load_state(tmp_path/'c.pt', 'training', TrainingState).step == 7
    assert torch.equal(train(path=tmp_path/'c.pt').weight, train().weight)


def test_second_ctrl_c_acts_at_once():
    import signal
    from stylekit.core import deferred_interrupt
    heard = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # ignored in a background process
    try:
        with deferred_interrupt(lambda: heard.append(1)):
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    finally: signal.signal(signal.SIGINT, before)
    assert heard == [1]


# ---- the home folder ----

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder, and another to work in"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    return tmp_path/'home'

@pytest.mark.parametrize('kind', [str, Path])
def test_home_in_what_is_written(home, kind):
    "In Python too; what is written under `~` is read under `~`"
    from stylekit.records import load_state, read_json, save_state, write_json
    from stylekit.training import TrainingReport
    with atomic_path(kind('~/a/x.txt')) as tmp: tmp.write_text('x')
    assert (home/'a'/'x.txt').exists()
    with folder_lock(kind('~/b')): assert (home/'b'/'.stylekit.lock').exists()
    assert write_json(kind('~/r.json'), TrainingReport(1, 2)) == home/'r.json'
    assert read_json(kind('~/r.json'), TrainingReport).step == 1
    assert save_state(kind('~/s.pt'), dict(a=1), 'checkpoint') == home/'s.pt'
    assert load_state(kind('~/s.pt'), 'checkpoint') == dict(a=1)
    assert not any(Path.cwd().iterdir())

def test_home_in_what_is_read(home):
    from stylekit import load_image, load_style, sample_image
    from stylekit.lora import find_styles, read_safetensors
    from stylekit.pictures import image_caption, list_pictures, read_captions
    home.mkdir()
    sample_image('owl').save(home/'a.png')
    (home/'a.txt').write_text('an owl')
    (home/'c.csv').write_text('a.png,a cat')
    (home/'s.safetensors').write_bytes(find_styles()['ink'].read_bytes())
    assert load_image('~/a.png').size == sample_image('owl').size
    assert image_caption('~/a.png') == 'an owl'
    assert read_captions('~/c.csv') == {'a.png': 'a cat'}
    assert list_pictures('~', captions='~/c.csv')[0].caption == 'a cat'
    assert load_style('~/s.safetensors').name == 's'
    assert read_safetensors('~/s.safetensors')[0]

def test_home_of_a_run(home):
    from stylekit import Checkpoint, load_backbone, load_style, sample_image, stylize
    from stylekit.lora import add_style, save_lora
    from stylekit.stylizer import Preview
    b, frames = load_backbone(), Preview(every=1)
    owl = sample_image('owl').resize((64, 64))
    callbacks = [Checkpoint('~/run.pt', every=1), frames]
    r = stylize(owl, 'ink', 'an owl', backbone=b, steps=1, seed=0, callbacks=callbacks)
    assert r.save('~/o/a.png') == home/'o'/'a.png'
    assert frames.save_gif('~/o/a.gif') == home/'o'/'a.gif'
    add_style(b, load_style('ink'))
    assert save_lora(b, 'style', '~/o/mine.safetensors', 'ink') == home/'o'/'mine.safetensors'
    b.delete_adapter('style')
    assert {p.name for p in (home/'o').iterdir()} == {'a.png', 'a.gif', 'mine.safetensors'}
    assert not any(Path.cwd().iterdir())

def test_home_of_networks_folders_and_tables(home, small_network):
    from stylekit import FeedForward, Review, sample_image, stylize_folder
    from stylekit.app.live import Recipe, load_recipe
    from stylekit.core import file_sha256
    from stylekit.measure.evaluate import Table, read_table
    from stylekit.rights import read_parameters
    assert FeedForward.load(small_network).save('~/n/feedforward.safetensors') == home/'n'/'feedforward.safetensors'
    assert FeedForward.load('~/n').sha256 == file_sha256('~/n/feedforward.safetensors')
    (home/'in').mkdir()
    sample_image('owl').resize((64, 64)).save(home/'in'/'owl.png')
    assert stylize_folder('~/in', '~/out', feedforward='~/n').made == 1 and Review('~/out').source == home/'in'
    with pytest.raises(StylekitError, match='by a network'): stylize_folder('~/in', '~/b', like='~/out/owl.png')
    assert Table([], {}).save('~/t.json') == home/'t.json' and read_table('~/t.json').rows == []
    recipe = Recipe('0'*64, 'an owl', [('ink', 1.)], {}, 0)
    assert recipe.save('~/r.json') == home/'r.json' and load_recipe('~/r.json') == recipe
    assert read_parameters('~/in/owl.png') == {} and not any(Path.cwd().iterdir())
