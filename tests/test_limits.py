"What must not wait for ever"
import os, random, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
in_a_clone = pytest.mark.skipif(not (ROOT/'tools'/'limit.py').exists(), reason='tools/ is not installed')

STUCK = '''import os, threading, time
def wait_for_the_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
def hold_everything():
    import ctypes
    ctypes.PyDLL(None).sleep(600)      # in C, with the interpreter's lock: no handler in Python is ever called
if os.fork(): wait_for_the_lock()
elif os.fork(): threading.Thread(target=wait_for_the_lock).start()
else: hold_everything()
'''


def limited(minutes, *command):
    return subprocess.run([sys.executable, ROOT/'tools'/'limit.py', str(minutes), *map(str, command)],
                          capture_output=True, text=True, timeout=120)


def group_of(script, pid_file):
    "The same script, which writes down its process group first"
    return f'import os\nopen({str(pid_file)!r}, "w").write(str(os.getpgrp()))\n{script}'


def alive(group):
    "Its processes, without those that are dead and wait for their parent to notice"
    listed = subprocess.run(['ps', '-A', '-o', 'pgid=,stat='], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == group and 'Z' not in line]


@in_a_clone
@pytest.mark.skipif(not shutil.which('ps'), reason='needs ps')
def test_a_hang_shows_where_and_ends(tmp_path):
    "Every process: one that waits for a lock, one whose thread does, one that lets nobody else run"
    (tmp_path/'stuck.py').write_text(group_of(STUCK, tmp_path/'group'))
    ran = limited(.05, sys.executable, tmp_path/'stuck.py')
    assert ran.returncode == 124 and 'not done after 0.05 minutes' in ran.stderr
    assert ran.stderr.count('in wait_for_the_lock') == 2 and ran.stderr.count('in hold_everything') == 1
    assert not alive((tmp_path/'group').read_text())


@in_a_clone
def test_what_ends_in_time_is_left_alone():
    "Its status and what it prints are its own"
    ran = limited(1, sys.executable, '-c', 'print("out"); raise SystemExit(3)')
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, 'out\n', '')


@in_a_clone
@pytest.mark.skipif(not shutil.which('ps'), reason='needs ps')
@pytest.mark.parametrize('told', [signal.SIGINT, signal.SIGTERM])
def test_who_ends_it_ends_all_of_it(tmp_path, told):
    script = group_of('import time, os\nos.fork()\ntime.sleep(600)', tmp_path/'group')
    def hears(): signal.signal(told, signal.SIG_DFL)   # what a shell starts behind its back hears no SIGINT
    command = [sys.executable, ROOT/'tools'/'limit.py', '5', sys.executable, '-c', script]
    run = subprocess.Popen(command, preexec_fn=hears)
    while not (tmp_path/'group').exists() or not (tmp_path/'group').read_text(): time.sleep(.05)
    run.send_signal(told)
    assert run.wait(60) == 130
    time.sleep(.5)
    assert not alive((tmp_path/'group').read_text())


@in_a_clone
def test_make_test_has_limits():
    "Both of its commands"
    rule = (ROOT/'Makefile').read_text().split('\ntest: ')[1].split('\n\n')[0]
    assert rule.count('$(LIMIT) ') == rule.count('\n\t') == 2


def test_a_stop_leaves_no_lock_taken(monkeypatch, tmp_path):
    "A training that takes one all the time is stopped again and again; whoever comes next gets it"
    pytest.importorskip('ipywidgets')
    import torch
    from stylekit import finetune
    from stylekit.backbone import load_backbone
    from stylekit.app.lora_panel import LoraPanel
    backbone, x = load_backbone(), torch.zeros(1, 3, 32, 32)
    event = threading.Event()
    def train_lora(folder, name, backbone, **_):
        while True:
            for _ in range(20000):
                event.set()            # in Python: takes a lock, does something, gives it back
                event.clear()
            backbone.encode(x)
    monkeypatch.setattr(finetune, 'train_lora', train_lora)
    panel = LoraPanel(tmp_path, 'style', backbone=backbone, out=tmp_path)
    for _ in range(30):
        panel.start.click()
        time.sleep(.02*random.random())
        panel.stop_.click()
        panel.wait(20)
        assert panel.ended, 'the training waits for a lock that nobody will give back'
        after = threading.Thread(target=event.set, daemon=True)
        after.start()
        after.join(20)
        assert not after.is_alive(), 'the training has ended and still holds a lock'
    assert 'Stopped before the first check' in panel.status.text and not panel.start.disabled


DYING = '''import os, sys
from stylekit.folders import WorkerPool
class Fatal:
    "Ends whoever reads it"
    def __reduce__(self): return os._exit, (7,)
def worker(arg): return lambda task: task
if __name__ == '__main__':
    with WorkerPool(worker, [Fatal(), bytes(3_000_000)], 2) as pool: print(sorted(pool([1, 2])))
'''

def test_a_process_that_dies_before_it_listens(tmp_path):
    "Nobody waits until it has read all that it is told, and the file with that is gone"
    (tmp_path/'dying.py').write_text(DYING)
    ran = subprocess.run([sys.executable, tmp_path/'dying.py'], capture_output=True, text=True, timeout=180,
                         env=os.environ | dict(TMPDIR=str(tmp_path)))
    assert ran.stdout == '[(0, None), (1, None)]\n', ran.stderr[-500:]
    assert not list(tmp_path.glob('stylekit-*.pickle'))
