"A folder of pictures, killed and gone on with, in one process, in several, on two Ray workers, and generators trained by two processes"
import json, os, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from PIL import Image
from stylekit.images import sample, samples
from stylekit.feedforward import GENERATOR_FILE, FeedForward, Generator, train_feedforward
from stylekit.finetune import Example
from stylekit.folders import FolderRecord, FolderRun, stylize_folder
from stylekit.records import read_lines

ENV = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "200 pictures in three shapes, five of them broken, and a generator that changes something"
    d = tmp_path_factory.mktemp('folder')
    torch.manual_seed(0)
    net = Generator(widths=(8, 16), blocks=(1, 1))
    with torch.no_grad(): [p.add_(.03*torch.randn_like(p)) for p in net.parameters()]
    FeedForward(net, dict(name='noise', space='pixel', shape=net.shape, multiple=net.multiple, style='noise', style_sha256='', words='noise', backbone='', backbone_sha256='', settings=dict(sms={}))).save(d/'noise'/GENERATOR_FILE)
    names = samples()
    for i in range(200):
        p = d/'in'/f'{"abc"[i%3]}'/f'thing {i}.{"png" if i%2 else "jpg"}'
        p.parent.mkdir(parents=True, exist_ok=True)
        sample(names[i%len(names)]).resize(((64, 64), (96, 64), (64, 80))[i%7%3]).save(p)
    pictures = sorted((d/'in').rglob('thing*'))
    for p, bad in zip(pictures[::37], (b'', b'<html>gone</html>', pictures[1].read_bytes()[:300], b'%PDF-1.7 offer', pictures[2].read_bytes()[:40])): p.write_bytes(bad)
    return d

def run(home, out, **how):
    args = ', '.join(f'{k}={v!r}' for k, v in how.items())
    code = f"from stylekit.folders import stylize_folder\nif __name__ == '__main__': stylize_folder({str(home/'in')!r}, {str(out)!r}, generator={str(home/'noise')!r}, batch=4, {args})"
    (out.parent/f'{out.name}.py').write_text(code)   # a file, as processes are spawned from it
    return subprocess.Popen([sys.executable, str(out.parent/f'{out.name}.py')], env=ENV)

def results(out): return sorted(p for p in out.rglob('*.png') if not p.name.startswith('.'))

def killed_at(home, out, n, **how):
    p = run(home, out, **how)
    while len(results(out)) < n and p.poll() is None: time.sleep(.01)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL)
    p.wait()

@pytest.mark.parametrize('workers', [1, 2])
def test_killed_twice_it_ends_complete(home, tmp_path, workers):
    "195 results, five named errors, nothing made twice, nothing half"
    out = tmp_path/'out'
    killed_at(home, out, 25, workers=workers)
    early = {p: p.stat().st_mtime_ns for p in results(out)}
    killed_at(home, out, len(early)+30, workers=workers)
    assert 195 > len(results(out)) > len(early)
    assert run(home, out, workers=workers).wait() == 0
    assert len(results(out)) == 195 and all(Image.open(p).load() for p in results(out))
    assert early == {p: p.stat().st_mtime_ns for p in early}
    run_, *lines = [json.loads(l) for l in (out/'manifest.jsonl').read_text().splitlines()]
    assert run_['kind'] == 'folder run' and len(lines) == 200 and len({l['picture'] for l in lines}) == 200 and {l['run'] for l in lines} == {read_lines(out/'manifest.jsonl', FolderRun, FolderRecord)[0].id}
    errors = [l['error'] for l in lines if l['error']]
    assert len(errors) == 5 and all(re.search('empty|HTML|damaged|PDF|not an image', e) for e in errors), errors
    assert {l['result'] for l in lines if not l['error']} == {p.relative_to(out).as_posix() for p in results(out)}
    assert {p.name for p in out.rglob('*') if p.is_file()} == {p.name for p in results(out)} | {'manifest.jsonl'}   # no crumbs

def test_any_workers_give_the_same_bytes(home, tmp_path):
    pytest.importorskip('ray.data')
    outs = [tmp_path/n for n in ('one', 'two', 'cluster')]
    for out, how in zip(outs, ({}, dict(workers=2), dict(workers=2, cluster='ray'))): assert run(home, out, **how).wait() == 0
    one, *others = [{p.relative_to(o): p.read_bytes() for p in results(o)} for o in outs]
    assert len(one) == 195 and all(o == one for o in others)
    lists = [[replace(r, seconds=None) for r in read_lines(o/'manifest.jsonl', FolderRun, FolderRecord)[1:]] for o in outs]   # runs into three folders
    assert all([(r.picture, r.result, r.error, r.made) for r in l] == [(r.picture, r.result, r.error, r.made) for r in lists[0]] for l in lists)


TRAIN = """
from stylekit.images import sample, samples
from stylekit.feedforward import train_feedforward
from stylekit.finetune import Example
from pathlib import Path
import sys
examples = [Example(Path(f'{n}.png'), sample(n), f'a {n}', n) for n in samples()[:4]]
train_feedforward('ink', examples, 'g', out=Path(sys.argv[1]), widths=(8, 16), blocks=(1, 1), steps=5, batch=4, check=2, lr=1e-2)
train_feedforward('ink', examples, 'pupil', out=Path(sys.argv[1]), teacher=Path(sys.argv[1])/'g', space='pixel', widths=(8, 16), blocks=(1, 1), areas=4, steps=5, batch=4, check=2, lr=1e-2, views=8, vary=True, refine=1)
"""

def test_two_processes_train_what_one_does(tmp_path):
    "Accelerate starts them; gradients are averaged and lessons shared, so the weights agree up to rounding"
    (tmp_path/'train.py').write_text(TRAIN)
    accelerate = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0']
    for launch, out in (([sys.executable], 'one'), (accelerate, 'two')):
        subprocess.run([*launch, str(tmp_path/'train.py'), str(tmp_path/out)], check=True, env=ENV, timeout=300)
    for what in ('pupil', 'g'):
        one, two = (FeedForward.load(tmp_path/o/what) for o in ('one', 'two'))
        for (n, a), b in zip(one.net.state_dict().items(), two.net.state_dict().values()): assert torch.allclose(a, b, atol=2e-3), (what, n)
    assert not torch.equal(one.net.head.weight, torch.zeros_like(one.net.head.weight))

def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
    examples = [Example(Path(f'{n}.png'), sample(n), f'a {n}', n) for n in samples()[:4]]
    how = dict(widths=(8, 16), blocks=(1, 1), steps=6, batch=2, check=2, lr=1e-2, fake='shared')
    whole = train_feedforward('ink', examples, 'whole', out=tmp_path, **how)
    train_feedforward('ink', examples, 'parts', out=tmp_path, minutes=1e-9, **how)
    assert (tmp_path/'parts'/'work'/'training.pt').exists()
    parts = train_feedforward('ink', examples, 'parts', out=tmp_path, **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values()))
