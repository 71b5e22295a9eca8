"""Commands that are killed at any moment and called again end bit-equal to an undisturbed run, with nothing half-made.

For another command: `check_kills(tmp_path, lambda out: ['evaluate', ..., '--out', str(out)])`, and `contents=`
where files say when they were made.
Two moments each, in a suite that people run; `STYLEKIT_KILLS=20` for the full count."""
import hashlib, json, multiprocessing, os, random, re, signal, sys, time
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from stylekit import list_samples, load_backbone, sample_image
from stylekit.cli import main

KILLS = int(os.environ.get('STYLEKIT_KILLS', 2))
# Names that no finished run leaves
CRUMBS = re.compile(r'\..*stylekit-.*|\.stylekit\.lock|work|training\.pt|best\.pt|.*\.tmp')


# Each command runs in a fork of a process that has the libraries loaded and nothing else:
# a kill hits our work, not five seconds of imports
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload([
    'stylekit.stylizer', 'stylekit.finetune', 'stylekit.feedforward_training', 'stylekit.clip.control_clip',
    'stylekit.measure.evaluate', 'stylekit.folders', 'peft', 'transformers.models.clip.modeling_clip',
    'diffusers.models.unets.unet_2d_condition',
    'diffusers.models.autoencoders.autoencoder_kl', 'diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion'])

def command_line(args, cwd, said):
    "In the new process: a group of its own, on one thread, without a network"
    os.setsid()
    os.chdir(cwd)
    os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    with open(said, 'w') as f:
        for stream in (1, 2): os.dup2(f.fileno(), stream)
    torch.set_num_threads(1)
    sys.exit(main(args))

class Command:
    "A command of `stylekit` that runs in a process of its own"
    def __init__(self, args, cwd):
        self.said = Path(cwd)/f'said-{time.time_ns()}.txt'
        self.process = FORKS.Process(target=command_line, args=(list(args), str(cwd), str(self.said)))
        self.process.start()
    def running(self)->bool: return self.process.is_alive()
    def signal(self, which):
        "To the process and all its children"
        while self.running() and not self.said.exists(): time.sleep(.01)     # it has no group of its own before
        if self.running(): os.killpg(self.process.pid, which)
    def wait(self, seconds:float)->tuple: # exit status, None: it still runs; what it said
        self.process.join(seconds)
        return self.process.exitcode, self.said.read_text() if self.said.exists() else ''

def to_the_end(args, cwd)->float: # seconds
    t = time.time()
    status, said = Command(args, cwd).wait(600)
    assert status == 0, f'{args} ended with {status}:\n{said[-2000:]}'
    return time.time()-t

def kill_after(args, cwd, seconds)->bool: # whether it was still running
    "Start the command and kill it with all its children"
    command = Command(args, cwd)
    command.wait(seconds)
    command.signal(signal.SIGKILL)
    return command.wait(60)[0] == -signal.SIGKILL

def file_contents(path:Path):
    "What must be equal: all bytes; of safetensors tensors and text: the header has no fixed order and is in our seal"
    if path.suffix != '.safetensors': return hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, 'np') as f:
        tensors = {k: f.get_tensor(k).tobytes() for k in f.keys()}
        meta = f.metadata() or {}
    text = {k: v for k, v in meta.items() if 'stylekit-sha256:' not in v}
    return hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest(), text

def folder_contents(folder, contents=file_contents)->dict: # path in the folder -> what it holds; None: of no matter
    files = {str(p.relative_to(folder)): p for p in sorted(Path(folder).rglob('*')) if p.is_file()}
    return {name: contents(p) for name, p in files.items()}

def crumbs(folder)->list:
    return [str(p.relative_to(folder)) for p in Path(folder).rglob('*') if CRUMBS.fullmatch(p.name)]

def moments(seconds:float, n:int, seed:int)->list:
    "`n` random moments of a run, spread over all of it"
    g = random.Random(seed)
    return [seconds*(i+g.random())/n for i in range(n)]

WHOLE = {}   # a command without the paths of its test -> what a run leaves that nobody disturbed, and its seconds

def undisturbed(tmp_path:Path, command, contents, cwd)->tuple: # as for `check_kills`; from `WHOLE`
    "What the command leaves, asked for once in all tests"
    key = tuple(a.replace(str(tmp_path), '') for a in command(tmp_path/'whole'))
    if key in WHOLE: return WHOLE[key]
    if not WHOLE: to_the_end(['--version'], cwd)     # starts what the others are forked from
    seconds = to_the_end(command(tmp_path/'whole'), cwd)
    assert not crumbs(tmp_path/'whole')
    WHOLE[key] = folder_contents(tmp_path/'whole', contents), seconds
    assert WHOLE[key][0]
    return WHOLE[key]

def check_kills(tmp_path:Path,
                command, # command(out) -> arguments of `stylekit`
                contents=file_contents, # contents(path) -> what must be the same in both runs
                kills:int=None, seed:int=0, cwd=None
               )->int: # how often it was hit while it ran
    "Kill the command at random moments, twice in each fresh folder, call it again, and compare with a run left alone"
    cwd = cwd or tmp_path
    whole, seconds = undisturbed(tmp_path, command, contents, cwd)
    n, hits = kills or KILLS, 0
    late = moments(seconds*.7, n, seed)     # what the first call has done, the second need not do
    for i in range(0, n, 2):
        out, when = tmp_path/f'killed-{i}', late[i:i+2]
        for moment in when: hits += kill_after(command(out), cwd, moment)
        to_the_end(command(out), cwd)
        said = 'killed after ' + ', '.join(f'{m:.2f}' for m in when) + f' of {seconds:.2f} s'
        assert folder_contents(out, contents) == whole, said
        assert not crumbs(out), said
    print(f'hit {hits} of {n} times, in runs of {seconds:.1f} s that leave {len(whole)} files')
    return hits


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'pictures'
    folder.mkdir()
    for n in list_samples()[:5]: sample_image(n, 'ink').resize((80, 64)).save(folder/f'{n}.png')
    return folder

@pytest.fixture(scope='module')
def model(models): return ['--backbone', str(models('small'))]

@pytest.fixture(scope='module')
def style(model, random_style): return str(random_style(load_backbone(model[1]), 'ink'))

@pytest.mark.slow
def test_train_lora(model, pictures, tmp_path):
    more = [*model, '--steps', '60', '--rank', '2', '--batch', '2']
    def command(out): return ['train-lora', str(pictures), '--name', 'mine', '--out', str(out), *more]
    assert check_kills(tmp_path, command) > 0

def manifest_contents(path:Path):
    "As `file_contents`; of a manifest's lines all but what the clock and the number of calls decide, and their hash"
    if path.name != 'manifest.jsonl': return file_contents(path)
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    return [{k: v for k, v in line.items() if k not in ('seconds', 'made', 'sha256')} for line in lines]

@pytest.fixture
def stylize_pictures(model, style, pictures):
    more = [*model, '--style', style, '--steps', '4', '--batch', '2', '--no-sheet']
    return lambda out, *others: ['stylize', str(pictures), '--out', str(out), *more, *others]

def test_stylize_folder(stylize_pictures, tmp_path):
    assert check_kills(tmp_path, stylize_pictures, manifest_contents) > 0

@pytest.fixture
def train_network(model, style, pictures):
    more = [*model, '--style', style, '--name', 'g', '--steps', '5', '--batch', '4']
    return lambda out, *others: ['train-feedforward', str(pictures), '--out', str(out), *more, *others]

@pytest.mark.slow
def test_train_feedforward(train_network, tmp_path):
    "A teacher, its lessons, and the pupil"
    assert check_kills(tmp_path, train_network) > 0

@pytest.fixture
def grid(tmp_path):
    for n, kind in dict(owl='animal', penguin='animal', taxi='vehicle', airplane='vehicle').items():
        for look in ('flat', 'ink'):
            folder = tmp_path/'grid'/look/kind
            folder.mkdir(parents=True, exist_ok=True)
            sample_image(n, look).resize((64, 64)).save(folder/f'{n}.png')
    return tmp_path/'grid'

def train_control(grid, out, *more)->list:
    return ['train-control-clip', str(grid), '--out', str(out), '--steps', '60', '--batch', '4', *more]

def test_train_control_clip(grid, tmp_path):
    assert check_kills(tmp_path, lambda out: train_control(grid, out)) > 0

def is_there(path:Path)->bool:
    "A lock is there when it is held: between its file and the lock a run may be stopped"
    if not path.exists() or path.suffix != '.lock': return path.exists()
    held = Path('/proc/locks')
    if not held.exists(): time.sleep(.5)   # no Linux: long enough
    return not held.exists() or f':{path.stat().st_ino} ' in held.read_text()

def check_two_at_once(tmp_path:Path,
                      command, # command(out, *more) -> arguments of `stylekit`
                      sign:str, # what lies in `out` as soon as the first has begun
                      name:str, # of the folder that the second is refused in
                      others=((), ('--seed', '1', '--overwrite')), # what else the second asks for, one after the other
                      contents=file_contents):
    "The second is refused in one line, and the first ends as if it had been alone"
    whole, _ = undisturbed(tmp_path, command, contents, tmp_path)
    first = Command(command(tmp_path/'c'), tmp_path)
    while not is_there(tmp_path/'c'/sign) and first.running(): time.sleep(.01)
    first.signal(signal.SIGSTOP)   # it holds the folder as long as the others need to come
    try:
        for more in others:
            status, said = Command(command(tmp_path/'c', *more), tmp_path).wait(300)
            assert status == 2 and 'Traceback' not in said, said
            assert f'another run is writing into {name!r}' in said.splitlines()[-1], said
        assert first.running(), 'it ended before the others began'
    finally:
        first.signal(signal.SIGCONT)   # whatever came: nobody waits for what is stopped
    status, said = first.wait(600)
    assert status == 0, said
    assert folder_contents(tmp_path/'c', contents) == whole and not crumbs(tmp_path/'c')

def test_two_trainings_in_one_folder(grid, tmp_path):
    check_two_at_once(tmp_path, lambda out, *more: train_control(grid, out, *more), 'work', 'c')

def test_two_folder_runs_into_one(stylize_pictures, tmp_path):
    others = [('--style', 'flat', '--overwrite')]
    check_two_at_once(tmp_path, stylize_pictures, '.stylekit.lock', 'c', others, manifest_contents)

def test_two_trainings_of_one_network(train_network, tmp_path):
    check_two_at_once(tmp_path, train_network, 'g/.stylekit.lock', 'g', [('--seed', '1', '--overwrite')])

def test_the_helper_sees_crumbs_and_differences(tmp_path):
    temporary = '.a.stylekit-abcd-12-00000000.png', '.a.training.stylekit-abcd-12-00000000.pt'
    for name in ('a.png', '.stylekit.lock', *temporary): (tmp_path/name).write_bytes(b'x')
    (tmp_path/'work').mkdir()
    assert len(crumbs(tmp_path)) == 4
    before = folder_contents(tmp_path)
    (tmp_path/'a.png').write_bytes(b'y')
    assert folder_contents(tmp_path) != before
    times = moments(10., 5, 0)
    assert times == sorted(times) == moments(10., 5, 0) and max(times) < 10 and moments(10., 5, 1) != times

@pytest.fixture
def evaluation(tmp_path):
    "Three pictures, with truths and references, and two methods"
    home = tmp_path/'set'
    names = list_samples()
    sets = ('.', 'shaded', names[:3]), ('truth/ink', 'ink', names[:3]), ('references/ink', 'ink', names[4:])
    for kind, look, names in sets:
        (home/kind).mkdir(parents=True, exist_ok=True)
        for n in names: sample_image(n, look).resize((64, 64)).save(home/kind/f'{n}.png')
    few = dict(steps=2, lr=.05)
    (tmp_path/'methods.json').write_text(json.dumps(dict(unchanged=None, dds=few | dict(method='dds'), sms=few)))
    return home

@pytest.fixture
def evaluate(model, style, evaluation):
    more = [*model, '--styles', style, '--methods', str(evaluation.parent/'methods.json')]
    return lambda out, *others: ['evaluate', str(evaluation), '--out', str(out), *more, *others]

@pytest.mark.slow
def test_evaluate(evaluate, tmp_path):
    "Pictures, kept measurements, tables and sheets"
    assert check_kills(tmp_path, lambda out: evaluate(out, '--batch', '2')) > 0

def test_two_evaluations_in_one_folder(evaluate, tmp_path):
    "Also where it would replace the tables"
    check_two_at_once(tmp_path, evaluate, 'evaluation.json', 'c', [(), ('--seeds', '1', '--overwrite')])
