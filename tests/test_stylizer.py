"The loop: resume, seeds, batches, interrupts, faults, sizes, and what it refuses"
import itertools, json, os, re, signal, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from stylekit import (Callback, Checkpoint, Settings, StylekitError, load_backbone, load_style, read_output,
                      sample_image,
                      settings, stylize)
from stylekit.lora import LORA_FILE, Style, read_safetensors
from stylekit.core import digest
from stylekit.records import load_state, save_state
from stylekit.stylizer import Interrupted, NaNGuard, RunState, Stylizer
from sweeps import json_mutants, sweep, sweep_file


@pytest.fixture(scope='module')
def base(models): return load_backbone(models('small'))

@pytest.fixture(scope='module')
def style(base, random_style): return load_style(random_style(base))

@pytest.fixture(autouse=True)
def nothing_left(base):
    "However a run ends, its adapters leave the UNet, and Ctrl-C is the caller's again"
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a background job may have it off
    yield
    left = list(getattr(base.unet, 'peft_config', {}))
    for a in left: base.delete_adapter(a)
    assert not left
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

def owl(size=(64, 64)): return sample_image('owl').resize(size)

def go(base, style, image=None, caption='an owl', **kw):
    return stylize(owl() if image is None else image, style, caption, backbone=base, **{'steps': 4, 'seed': 5} | kw)

class At(Callback):
    "Do something after step `k`"
    def __init__(self, k, do, order=0):
        self.k, self.do = k, do
        self.order = order
    def after_step(self, run):
        if run.k == self.k: self.do(run)

class Watch(Callback):
    "Remember the latents after each step"
    order = 99
    def __init__(self):
        self.z, self.t = [], []
        self.at = []
    def after_step(self, run):
        self.z.append(run.z.clone())
        self.t.append(run.records[-1]['t'].clone())
        self.at.append(run.k)

def stop(run): raise Interrupted
def no_work(run): pytest.fail('work was done')
def diff(a, b): return np.abs(np.asarray(a, float)-np.asarray(b, float)).max()/255
def identical(a, b): assert a.image.tobytes() == b.image.tobytes()

@pytest.fixture(scope='module')
def whole(base, style):
    "Uninterrupted runs to compare with, one for each preset"
    out = {}
    def get(preset):
        if preset not in out:
            w = Watch()
            out[preset] = go(base, style, preset=preset, callbacks=[w]), w
        return out[preset]
    return get


# ---- resume ----

ONLINE = settings('fast', fake_score='lora')
KINDS = pytest.mark.parametrize('preset', ['fast', ONLINE, 'paper'], ids=['fast', 'online', 'paper'])

@KINDS
@pytest.mark.parametrize('every', [1, 50])
def test_resume_is_bit_equal(base, style, whole, tmp_path, preset, every):
    path, (full, w) = tmp_path/'deep'/'run.pt', whole(preset)
    part = go(base, style, preset=preset, callbacks=[At(2, stop), Checkpoint(path, every)])
    assert not part.complete and path.exists() and part.info['steps_done'] == 2
    seen = Watch()
    rest = go(base, style, preset=preset, callbacks=[Checkpoint(path, every), seen])
    assert seen.at == [3, 4] and rest.complete
    assert all((a == b).all() for a,b in zip(seen.z, w.z[2:]))
    identical(rest, full)
    assert rest.history == full.history and rest.info == full.info
    assert not path.exists()                                # a finished run leaves none

@KINDS
def test_ctrl_c_in_the_middle_of_a_step_resumes_bit_equal(base, style, whole, tmp_path, preset):
    "The signal comes while the UNet runs: the checkpoint must still be that of a whole number of steps"
    calls = []
    def hook(*_):
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), signal.SIGINT)
    hooks = []
    arm = At(1, lambda run: hooks.append(base.unet.register_forward_hook(hook)))
    try: part = go(base, style, preset=preset, callbacks=[arm, Checkpoint(tmp_path/'run.pt')])
    finally:
        for h in hooks: h.remove()
    assert not part.complete and 'interrupted' in part.info['note'] and 1 <= part.info['steps_done'] < 4
    assert len(part.history['t']) == part.info['steps_done']
    rest = go(base, style, preset=preset, callbacks=[Checkpoint(tmp_path/'run.pt')])
    identical(rest, whole(preset)[0])
    assert rest.history == whole(preset)[0].history

def interrupted(base, style, path, **kw):
    go(base, style, callbacks=[At(1, stop), Checkpoint(path)], **kw)
    return path

def test_checkpoint_of_another_run_is_refused(base, style, tmp_path):
    light = dict(relevance='none')
    path = interrupted(base, style, tmp_path/'run.pt', **light)
    kept, half = path.read_bytes(), Style(style.name, style.trigger_words, style.path, .5)
    others = [dict(lam=.5), dict(steps=5), dict(seed=6), dict(caption='a taxi'),
              dict(image=sample_image('taxi').resize((64, 64))), dict(style=half), dict(preset='paper')]
    for kw in others:
        kw = dict(style=style, callbacks=[Checkpoint(path)], **light) | kw
        with pytest.raises(StylekitError, match='run.pt.*other settings'): go(base, **kw)
        assert path.read_bytes() == kept, kw                # and left as it was

@pytest.mark.parametrize('kind', ['half', 'empty', 'text', 'list', 'dict', 'folder'])
def test_damaged_checkpoint_is_refused(base, style, tmp_path, kind):
    path = interrupted(base, style, tmp_path/'run.pt') if kind == 'half' else tmp_path/'run.pt'
    if kind == 'half': path.write_bytes(path.read_bytes()[:len(path.read_bytes())//2])
    if kind == 'empty': path.write_bytes(b'')
    if kind == 'text': path.write_text('<html>')
    if kind == 'list': torch.save([1, 2], path)
    if kind == 'dict': torch.save(dict(k=1), path)
    if kind == 'folder': path.mkdir()
    with pytest.raises(StylekitError, match='run.pt'): go(base, style, callbacks=[Checkpoint(path)])

def test_checkpoint_appears_whole_or_not_at_all(base, style, tmp_path, monkeypatch):
    path = interrupted(base, style, tmp_path/'run.pt')
    kept = path.read_bytes()
    def full_disk(f): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.warns(UserWarning, match='disk is full'):
        r = go(base, style, callbacks=[Checkpoint(path, every=1), At(3, stop)])
    assert r.image.size == (64, 64) and r.info['steps_done'] == 3       # the result is not lost with the checkpoint
    assert path.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == ['run.pt']


def test_a_list_in_several_batches_resumes(base, style, tmp_path):
    ims, path = [owl(), owl((64, 100))], tmp_path/'run.pt'
    whole = go(base, style, ims)
    part = go(base, style, ims, callbacks=[Checkpoint(path), At(2, lambda run: stop(run) if run.group else None)])
    assert [r.complete for r in part] == [True, False] and (tmp_path/'run-1.pt').exists()
    for a,b in zip(go(base, style, ims, callbacks=[Checkpoint(path)]), whole): identical(a, b)


# ---- seeds and batches ----

def recorded(base, style, images, seeds, preset, steps=2):
    "t and noise of every draw, per image"
    from stylekit.methods.sms import SMS
    run = Stylizer(base, style, settings(preset, steps=steps), images, ['an owl']*len(images), seeds)
    try: return [run.method.draw(run.generators, k/steps) for k in range(steps)]
    finally: run.close()

@pytest.mark.parametrize('preset', ['fast', 'paper'])
def test_draws_are_the_same_alone_and_in_a_batch(base, style, preset):
    ims = [owl(), sample_image('taxi').resize((64, 64))]
    both = recorded(base, style, ims, [5, 6], preset)
    for i in range(2):
        alone = recorded(base, style, ims[i:i+1], [5+i], preset)
        for (t, n), (tt, nn) in zip(alone, both): assert t[0] == tt[i] and (n[0] == nn[i]).all()
    assert (both[0][1][0] != both[0][1][1]).any() and (both[0][1] != both[1][1]).any()

def test_same_seed_same_image(base, style, whole):
    identical(go(base, style), whole('fast')[0])
    other = go(base, style, seed=6)
    assert diff(other.image, whole('fast')[0].image) > 0
    a = go(base, style, seed=None, steps=1)
    identical(a, go(base, style, seed=a.info['seed'], steps=1))     # drawn, recorded, repeatable

def test_list_in_list_out(base, style, whole):
    ims = [owl(), sample_image('taxi').resize((96, 40)), sample_image('penguin').resize((64, 64))]
    for preset in ('fast', ONLINE):
        out = go(base, style, ims, ['an owl', 'a taxi', 'a penguin'], preset=preset, independent=True)
        assert isinstance(out, list) and [r.image.size for r in out] == [im.size for im in ims]
        assert [r.info['caption'] for r in out] == ['an owl', 'a taxi', 'a penguin']
        identical(out[0], whole(preset)[0])
        assert diff(out[2].image, go(base, style, ims[2], 'a penguin', preset=preset).image) < 1e-4
    many = [go(base, style, ims, 'an owl', independent=alone) for alone in (True, False)]
    # Preset `fast` shares nothing: a batch gives what single runs give, up to rounding
    assert all(diff(x.image, y.image) < .01 for x,y in zip(*many))
    assert isinstance(go(base, style, [owl()], steps=1), list)

def test_batch_shares_a_fake_score_and_keeps_its_order(base, style):
    ims = [owl(), sample_image('taxi').resize((96, 40)), sample_image('penguin').resize((64, 64))]
    w = Watch()
    out = go(base, style, ims, seed=[5, 6, 7], steps=2, preset=ONLINE, callbacks=[w])
    assert [len(z) for z in w.z] == [2, 2, 1, 1] and [r.image.size for r in out] == [im.size for im in ims]
    assert [r.info['seed'] for r in out] == [5, 6, 7]
    assert all(len(r.history['t']) == 2 and r.complete for r in out)
    alone = Watch()
    one = go(base, style, ims[2], seed=7, steps=2, preset=ONLINE, callbacks=[alone])
    assert one.history['t'] == out[2].history['t']          # the same timesteps alone
    first, second = [(a[0]-b[1]).abs().max() for a, b in zip(alone.z, w.z)]
    assert first < 1e-3 < .01 < second       # only the fake score differs, and that only once it has learnt

def test_stop_ends_the_whole_list(base, style):
    "Ctrl-C at the first image does not start the second; every image comes back, marked"
    w, ims = Watch(), [owl(), owl(), owl((96, 40))]
    out = go(base, style, ims, independent=True, callbacks=[w, At(2, stop)])
    assert w.at == [1]                                      # the first run only; its second step was not seen any more
    assert len(out) == 3 and not any(r.complete for r in out)
    assert [r.image.size for r in out] == [im.size for im in ims]
    assert all('interrupted' in r.info['note'] for r in out)


# ---- interrupts and faults ----

def test_interrupt_leaves_a_marked_result(base, style, whole, tmp_path):
    r = go(base, style, callbacks=[At(2, stop)])
    assert not r.complete and r.info['complete'] is False
    assert r.info['steps_done'] == 2 and 'interrupted after step 2' in r.info['note']
    assert r.image.size == (64, 64) and len(r.history['t']) == 2
    run = read_output(r.save(tmp_path/'x.png')).run
    assert run['complete'] is False and 'interrupted' in run['note'] and whole('fast')[0].info['note'] == ''

@pytest.mark.parametrize('when', [1, 4])
def test_ctrl_c(base, style, when):
    r = go(base, style, callbacks=[At(when, lambda run: os.kill(os.getpid(), signal.SIGINT))])
    assert r.image.size == (64, 64) and r.info['steps_done'] == when
    assert r.complete == (when == 4)                        # after the last step there was nothing left to stop

def test_a_second_ctrl_c_ends_it_at_once(base, style):
    def twice(run):
        for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): go(base, style, callbacks=[At(1, twice)])

def test_runs_outside_the_main_thread(base, style, whole):
    import threading
    out = []
    t = threading.Thread(target=lambda: out.append(go(base, style)))
    t.start()
    t.join()
    identical(out[0], whole('fast')[0])

@pytest.mark.parametrize('hook', ['before_run', 'after_step', 'after_run'])
@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt])
def test_a_failing_callback_leaves_nothing_behind(base, style, hook, error):
    class Bad(Callback): pass
    def fail(self, run): raise error('mine')
    setattr(Bad, hook, fail)
    with pytest.raises(error): go(base, style, steps=1, callbacks=[Bad()])     # `nothing_left` looks at the UNet

def test_a_failing_set_up_leaves_nothing_behind(base, style, monkeypatch):
    with pytest.raises(StylekitError, match='fake_targets|no_such_layer'):
        go(base, style, fake_score='lora', fake_targets=('no_such_layer',))
    assert not getattr(base.unet, 'peft_config', {})
    def fail(*a, **kw): raise RuntimeError('mine')
    for part, kw in dict(RelevanceGrid=dict(relevance='grid'), reach=dict(fake_score='lora')).items():
        with monkeypatch.context() as m:
            m.setattr(f'stylekit.methods.sms.{part}', fail)
            with pytest.raises(RuntimeError, match='mine'): go(base, style, **kw)
        assert not getattr(base.unet, 'peft_config', {}), part

def test_out_of_memory_names_a_lever(base, style):
    def oom(run): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(StylekitError, match='memory.*resolution'): go(base, style, callbacks=[At(1, oom)])

def poison(run): run.z = run.z*float('nan')

def test_nan_gives_the_last_good_state(base, style, whole, tmp_path):
    with pytest.warns(UserWarning, match='NaN'):
        r = go(base, style, callbacks=[At(3, poison, -20), NaNGuard(every=1)])
    assert not r.complete and 'NaN' in r.info['note']
    assert r.info['steps_done'] == 2 and len(r.history['t']) == 2
    assert np.isfinite(r.history['style']).all()
    identical(r, go(base, style, callbacks=[At(2, stop)]))

def test_nan_is_seen_at_the_end_of_a_short_run(base, style):
    with pytest.warns(UserWarning, match='NaN'): r = go(base, style, callbacks=[At(2, poison)])
    assert not r.complete and r.image.getextrema() != ((0, 0),)*3

def test_nan_does_not_reach_a_checkpoint(base, style, whole, tmp_path):
    path = tmp_path/'run.pt'
    go(base, style, callbacks=[At(2, stop), Checkpoint(path)])
    with pytest.warns(UserWarning, match='NaN'):
        r = go(base, style, callbacks=[At(4, poison, -20), Checkpoint(path, every=1)])
    assert r.info['steps_done'] >= 2                        # not the content image: the resumed state was good
    rest = go(base, style, callbacks=[Checkpoint(path)])
    assert rest.complete
    identical(rest, whole('fast')[0])


# ---- sizes, saving ----

@pytest.mark.parametrize('size', [(64, 40), (100, 37), (33, 64), (16, 128), (300, 200)])
def test_any_aspect_ratio(base, style, size):
    r = go(base, style, owl(size), steps=1)
    assert r.image.size == size and r.image.mode == 'RGB'

def test_the_step_does_not_depend_on_the_size():
    "On the embedded model, whose gradients are not noise: 128², 192² and 256×128 move alike, measured by their stretch"
    backbone = load_backbone()
    def moved(size): # rms of a step of the latents, mean over seeds, in the run's own measure
        w, stretch = Watch(), []
        how_far = At(1, lambda run: stretch.append(run.opt.stretch))
        pictures = [sample_image('owl').resize(size)]*3
        stylize(pictures, 'ink', 'an owl', backbone=backbone, steps=12, seed=[0, 1, 2], callbacks=[w, how_far])
        z = torch.stack(w.z[:-1])/stretch[0]    # the last has been finished
        assert z.shape[-2:] == (size[1]//8, size[0]//8)
        return (z[1:]-z[:-1]).pow(2).mean((2, 3, 4)).sqrt().mean()
    one = moved((128, 128))
    for size in ((192, 192), (256, 128)): assert abs(moved(size)/one-1) < .05, size

def test_image_kinds_give_one_result(base, style, tmp_path):
    im = owl()
    im.save(tmp_path/'ein Käuzchen.png')
    a = np.asarray(im)
    t = torch.from_numpy(a.copy()).permute(2, 0, 1)/255
    first, *rest = [go(base, style, x, steps=1) for x in (im, a, t, str(tmp_path/'ein Käuzchen.png'))]
    for r in rest: identical(first, r)

def test_saved_metadata_names_no_place(base, style, tmp_path):
    src = tmp_path/'photo.png'
    owl().save(src)
    r = go(base, style, src, steps=1)
    for name in ('a.png', 'b.jpg', 'c.webp'):
        path = r.save(tmp_path/'new'/name)
        found = read_output(path)
        run = found.run
        assert found.source == 'photo' and run['seed'] == 5 and run['settings']['steps'] == 1
        assert len(run['style_sha256']) == 64
        text = json.dumps(run)
        assert str(tmp_path) not in text and str(Path.home())+'/' not in text
        assert str(tmp_path).encode() not in path.read_bytes()

def test_places_that_cannot_be_written(base, style, tmp_path):
    r = go(base, style, steps=1)
    assert r.save(tmp_path/'absent'/'deep'/'x.png').exists()
    (tmp_path/'file').write_text('')
    for bad in (tmp_path/'file'/'x.png', tmp_path, tmp_path/'x.bmp', tmp_path/'x', '', 'a\0b.png'):
        with pytest.raises(StylekitError): r.save(bad)
    ro = tmp_path/'ro'
    ro.mkdir(mode=0o500)
    if os.geteuid():                                        # the superuser may write anywhere
        with pytest.raises(StylekitError, match='may not write'): r.save(ro/'x.png')
    assert not list(ro.iterdir())


# ---- what is refused, before any work ----

@pytest.mark.parametrize('caption', ['', '  \n', None, 3, ['an owl', ''], ['an owl', 'a taxi', 'three']])
def test_captions(base, style, caption):
    with pytest.raises(StylekitError, match='caption'): go(base, style, [owl(), owl()], caption)

UNUSABLE = [
    (dict(image=[]), 'image'), (dict(seed=-1), 'seed'), (dict(seed=[1, 2]), 'seed'), (dict(steps=0), 'steps'),
    (dict(lam=-1), 'lam'), (dict(guidance_scale=-1), 'guidance_scale'), (dict(cutoff=1.5), 'cutoff'),
    (dict(t_min=400, t_max=300), 't_min'), (dict(preset='best'), 'preset'), (dict(image=owl((5, 5))), '5'),
    (dict(image=3), 'image'), (dict(image='nowhere.png'), 'nowhere.png'), (dict(callbacks=3), 'callback'),
    (dict(callbacks=[print]), 'callback')]

def test_other_bad_input(base, style):
    for kw, word in UNUSABLE:
        with pytest.raises(StylekitError, match=word): go(base, style, **kw)

@pytest.mark.parametrize('size', [(64, 32), (32, 64), (64, 66), (128, 96), (65, 67)], ids=str)
def test_a_mask_of_another_shape(base, style, size):
    "Refused in a call, in a list, during a run and by a live run, before any work"
    from stylekit.app.live import LiveRun
    mask, unused = Image.new('L', size, 255), [At(1, no_work)]
    for kind in (mask, np.asarray(mask), mask.convert('RGB')):
        with pytest.raises(StylekitError, match='the mask has.*draw it on the picture'):
            go(base, style, protect=kind, callbacks=unused)
    with pytest.raises(StylekitError, match='the mask has'):
        go(base, style, [owl(size), owl()], protect=mask, callbacks=unused)
    run = by_hand(base, style)
    try:
        run.step()
        with pytest.raises(StylekitError, match='the mask has'): run.change(protect=mask, lam=1.)
        assert run.may is None and run.changes == [] and run.cfg == run.first
    finally: run.close()
    live = LiveRun(owl(), str(style.path), 'an owl', backbone=base, steps=1, seed=0, protect=mask)
    while live.advance(): pass
    assert live.state == 'error' and 'the mask has' in live.note

def test_a_mask_of_another_size(base, style):
    "Of the picture's shape, to one pixel: taken, and what is white stays"
    def white(size): return Image.new('L', size, 255)
    for size in ((64, 64), (128, 128), (33, 33), (64, 65)):
        assert go(base, style, protect=white(size), steps=1).complete
    assert go(base, style, [owl(), owl((128, 128))], protect=white((64, 64)), steps=1)[1].complete

# ---- one range of strengths ----

@pytest.mark.parametrize('scale', [-2, -1, 0, 3, 4])
def test_strengths_are_the_same_everywhere(base, style, scale):
    "Of the style, of the settings, of a mix: as a number, and as what they come to in all"
    one = go(base, load_style(style, scale=scale), steps=1)
    identical(go(base, style, style_scale=scale, steps=1), one)
    identical(go(base, [(style, scale/2)], style_scale=2, steps=1), one)
    def changed(**kw): return go(base, style, steps=2, callbacks=[At(1, lambda run: run.change(**kw))])
    identical(changed(style_scale=scale), changed(mix=[scale]))

OUT_OF_RANGE = [
    dict(style_scale=-2.1), dict(style_scale=4.1), dict(style_scale=float('nan')), dict(style=4, style_scale=2.),
    dict(style=-2, style_scale=1.5), dict(style={'mid_block': 3}, style_scale=3.)]

@pytest.mark.parametrize('kw', OUT_OF_RANGE, ids=str)
def test_strengths_out_of_range(base, style, kw):
    scale = kw.pop('style', None)
    before = state_of(base)
    with pytest.raises(StylekitError, match='-2 and 4'): go(base, load_style(style, scale=scale), **kw)
    assert state_of(base) == before

def test_a_strength_out_of_range_changes_nothing(base, style):
    run = by_hand(base, style)
    mask = Image.new('L', (64, 64), 255)
    try:
        run.step()
        before = state_of(base)
        mixes = [dict(mix=[5.]), dict(mix=[3.], style_scale=2.), dict(mix=[float('inf')]), dict(mix=[101.])]
        for bad in (*mixes, dict(style_scale=-3.)):
            with pytest.raises(StylekitError, match='between'): run.change(protect=mask, **bad)
            assert (run.may, run.changes, run.factors, run.cfg) == (None, [], (1.,), run.first)
            assert state_of(base) == before
        run.change(mix=[-1.], style_scale=2.)
        run.step()
    finally: run.close()

def test_an_error_hits_before_the_first_step(base, style):
    with pytest.raises(StylekitError): go(base, style, [owl(), 'nowhere.png'], callbacks=[At(1, no_work)])

@pytest.fixture
def bad_styles(tmp_path, style, models, random_style):
    "What people give instead of a LoRA for this model, and a word of the answer"
    from safetensors.torch import load_file, save_file
    data, state = style.path.read_bytes(), load_file(style.path)
    n = itertools.count()
    def file(content, suffix='.safetensors'):
        path = tmp_path/f's{next(n)}{suffix}'
        path.write_bytes(content)
        return path
    def saved(state):
        path = tmp_path/f's{next(n)}.safetensors'
        save_file(state, path)
        return path
    first = next(iter(state))
    def filled(value): return saved({**state, first: torch.full_like(state[first], value)})
    return [
        ('no-such-style', 'no style named'),
        ('../x', r'\.\./x'),
        ('', 'style'),
        ('  ', 'style'),
        (None, 'style'),
        (7, 'style'),
        ('a\0b', 'name'),
        ('x'*300, 'x'),
        (str(tmp_path/'absent.safetensors'), 'absent.safetensors'),
        (tmp_path, 'safetensors'),
        (file(b'\x80\x02}', '.ckpt'), 'pickle'),
        (file(b'PK', '.bin'), 'pickle'),
        (file(b'', '.pt'), 'pickle'),
        (file(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'), 'LFS'),
        (file(b'\n<!DOCTYPE html><html></html>'), 'web page'),
        (file(data[:len(data)//2]), 'damaged'),
        (file(data[:4]), 'damaged'),
        (file(b''), 'damaged'),
        (file(b'\xff'*64), 'damaged'),
        (file((8).to_bytes(8, 'little')+b'{"a":1, '), 'damaged'),
        (filled(float('nan')), 'NaN'),
        (filled(float('inf')), 'NaN or inf'),
        (saved({'foo.weight': torch.zeros(2)}), 'not a LoRA'),
        (saved({k.replace('attn', 'nosuch'): v for k,v in state.items()}), 'another base'),
        (saved({k: v for k,v in state.items() if 'lora_A' in k}), 'half of it is missing'),
        (random_style(load_backbone(models('sdxl'))), 'another base')]

def test_bad_styles(base, style, bad_styles):
    for bad, word in bad_styles:
        with pytest.raises(StylekitError, match=word) as e: go(base, bad)
        assert '\n' not in str(e.value) and len(str(e.value)) < 600, bad
        assert not getattr(base.unet, 'peft_config', {}), bad

def test_partial_match_is_reported(base, style, tmp_path):
    from safetensors.torch import load_file, save_file
    state = load_file(style.path)
    extra = {k.replace('mid_block', 'mid_block9'): v.clone() for k,v in state.items() if 'mid_block' in k}
    save_file({**state, **extra}, tmp_path/'partial.safetensors')
    n = len(state)//2
    total = n+len(extra)//2
    with pytest.warns(UserWarning, match=f'{n} of {total}'): r = go(base, tmp_path/'partial.safetensors', steps=1)
    assert r.info['style_coverage'] == f'{n}/{total}'

def test_cut_words_are_named(base, style):
    with pytest.warns(UserWarning, match='owl zebra') as w:
        go(base, style, caption=' '.join(['an owl']*120)+' zebra', steps=1)
    assert any('77' in str(x.message) for x in w)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        go(base, style, steps=1)                            # nothing to say about a short one

def test_style_metadata_and_scale(style):
    assert style.trigger_words == 'black ink drawing' and load_style(style, trigger_words='ink').trigger_words == 'ink'
    assert load_style(style.path, scale=.5).scale == .5
    for bad in (-3, 5, float('nan'), 'x'):
        with pytest.raises(StylekitError, match='scale'): load_style(style, scale=bad)
    with pytest.raises(StylekitError, match='nowhere'): read_safetensors('nowhere.safetensors')


def test_two_encoders_read_the_styled_prompt(base, style):
    "In every method; the rest of the model hears what it always hears, and nothing is left behind, even by an error"
    from stylekit.clip.control_clip import ROLES, ControlClip
    from stylekit.clip.guidance import ControlGuidance, detach
    def new(): return ControlClip(base.text_encoders[0], base.tokenizers[0], mode='adapter')
    taught, g = new(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for r in ROLES:
            for p in taught.part(r).values(): p += .5*torch.randn(p.shape, generator=g)
    processors = dict(base.unet.attn_processors)
    lusd = dict(method='lusd', preset='lusd')
    for kw in (dict(), dict(guidance_from='uncond'), dict(preset='paper'), dict(method='dds'), lusd):
        def pixels(control): return np.asarray(go(base, style, control=control, **kw).image, float)
        plain, moved = pixels(None), pixels(ControlGuidance(taught, 1.))
        assert np.abs(plain-pixels(ControlGuidance(new()))).max() <= 2 and np.abs(plain-moved).max() > 2, kw
        assert all(base.unet.attn_processors[k] is p for k, p in processors.items())
        assert not hasattr(base, '_steer')
    steer = ControlGuidance(taught, .3, 'delta')
    info = go(base, style, control=steer).info
    assert info['control']['combine'] == 'delta'
    plain = go(base, style).info
    assert info['run_id'] != plain['run_id'] != go(base, style, control=ControlGuidance(taught)).info['run_id']
    def fail(run): 1/0
    with pytest.raises(ZeroDivisionError): go(base, style, control=steer, callbacks=[At(2, fail)])
    with pytest.raises(StylekitError, match='nothing is attached'): detach(base)


# ---- two runs on one backbone ----

def state_of(b)->tuple:
    "Modules, weights and adapters of the UNet"
    modules = [type(m).__name__ for m in b.unet.modules()]
    weights = digest(*[p.detach().numpy().tobytes() for p in b.unet.parameters()])
    return modules, weights, list(getattr(b.unet, 'peft_config', {}))

def by_hand(base, style, seed=5, **kw):
    return Stylizer(base, load_style(style), settings(steps=4, **kw), [owl()], ['an owl'], [seed])

def test_two_runs_by_hand(base, style, whole):
    "The second is refused in one line, and the first one ends as if nothing had been"
    alone = whole('fast')[0]
    run = by_hand(base, style)
    try:
        steps = run.iterate()
        next(steps)
        others = (lambda: by_hand(base, style, seed=6), lambda: go(base, style),
                  lambda: go(base, style, method='vsd', steps=1))
        for other in others:
            with pytest.raises(StylekitError, match='another run') as e: other()
            assert '\n' not in str(e.value)
        for _ in steps: pass
        identical(run.results()[0], alone)
    finally: run.close()
    run.close()                                             # once more does no harm
    second = by_hand(base, style)                           # and now it is free
    second.close()

def test_closing_twice_does_not_take_off_anothers_adapters(base, style, whole):
    alone, first = whole('fast')[0], by_hand(base, style)
    first.close()
    second = by_hand(base, style)
    first.close()
    try:
        for _ in second.iterate(): pass
        identical(second.results()[0], alone)
    finally: second.close()

def test_two_threads(base, style, whole):
    "Whoever is refused is told; whoever draws draws what it would alone"
    import threading
    got = []
    def work():
        try: got.append(go(base, style))
        except StylekitError as e: got.append(e)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    made = [r for r in got if not isinstance(r, StylekitError)]
    assert made and all('another run' in str(e) for e in got if isinstance(e, StylekitError))
    for r in made: identical(r, whole('fast')[0])

def test_a_live_run_holds_the_model_until_it_ends(base, style, whole):
    from stylekit.app.live import LiveRun
    live = LiveRun(owl(), str(style.path), 'an owl', backbone=base, seed=5, steps=4)
    live.advance()
    with pytest.raises(StylekitError, match='another run'): go(base, style)
    while live.advance(): pass
    identical(live.result, whole('fast')[0])
    identical(go(base, style), whole('fast')[0])

ERRORS = [TypeError('mine'), KeyboardInterrupt(), MemoryError(), RuntimeError('std::bad_alloc'),
          torch.OutOfMemoryError('CUDA out of memory')]

@pytest.mark.parametrize('kw', [{}, dict(fake_score='lora'), dict(preset='paper'), dict(method='lusd'),
                                dict(method='vsd')],
                         ids=str)
@pytest.mark.parametrize('error', ERRORS, ids=lambda e: type(e).__name__+str(e)[:4])
@pytest.mark.parametrize('at', [1, 3, 8])
def test_whatever_fails_in_the_middle_the_unet_is_as_it_was(base, style, kw, error, at):
    "The UNet raises in its first, third or eighth pass: in the grid, in a step, in what learns"
    before, calls = state_of(base), []
    def fail(*_):
        calls.append(1)
        if len(calls) == at: raise error
    hook = base.unet.register_forward_hook(fail)
    is_memory = type(error) not in (TypeError, KeyboardInterrupt)
    try:
        with pytest.raises(StylekitError if is_memory else type(error)) as e:
            go(base, style, **{'steps': 6} | kw)
    finally: hook.remove()
    if is_memory: assert 'ran out of memory: lower `resolution`' in str(e.value)
    assert state_of(base) == before

@pytest.mark.parametrize('part', ['encode', 'decode', 'encode_prompt'])
def test_memory_runs_out_before_and_after(base, style, monkeypatch, part):
    before = state_of(base)
    words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes"
    def fail(*a, **kw): raise RuntimeError(f'[enforce fail at alloc_cpu.cpp:118] {words}')
    monkeypatch.setattr(type(base), part, fail)
    with pytest.raises(StylekitError, match='ran out of memory.*resolution'): go(base, style, steps=1)
    assert state_of(base) == before

def test_the_unet_has_its_plain_layers_back(base, style):
    before = state_of(base)
    for kw in (dict(fake_score='lora'), dict(method='vsd')): go(base, style, steps=1, **kw)
    assert state_of(base) == before

NUMBERS = [dict(steps=np.int64(2), lam=np.float32(.3)), dict(steps=torch.tensor(2), lam=torch.tensor(.3)),
           dict(seed=np.uint8(5)), dict(style_scale=np.float64(.5), resolution=np.int32(64))]

@pytest.mark.parametrize('kw', NUMBERS, ids=str)
def test_numbers_of_other_libraries(base, style, kw, tmp_path):
    plain = {k: v.item() for k, v in kw.items()}
    a, b = (go(base, style, **{'steps': 2} | x) for x in (kw, plain))
    identical(a, b)
    assert a.info == b.info and json.dumps(a.info) and a.save(tmp_path/'a.png')

def test_changes_with_numbers_of_other_libraries(base, style, tmp_path):
    def change(run): run.change(lam=np.float32(.5), style_scale=torch.tensor(.5))
    part = go(base, style, callbacks=[At(1, change), At(2, stop), Checkpoint(tmp_path/'run.pt')])
    assert json.dumps(part.info)
    assert go(base, style, callbacks=[Checkpoint(tmp_path/'run.pt')]).complete

def test_a_setting_that_is_not_read_is_refused_during_a_run_too(base, style):
    run = by_hand(base, style, relevance='none')
    try:
        with pytest.raises(StylekitError, match='relevance_floor'): run.change(relevance_floor=.7)
        assert run.changes == [] and run.cfg == run.first
    finally: run.close()
    pds = Settings(method='pds', weight='variance')
    ssd = dict(method='ssd', guidance_scale=3.)
    for kw in (dict(negative_prompt='blurry'), dict(fake_lr=1e-4), ssd, dict(preset=pds)):
        with pytest.raises(StylekitError, match='does not read'): go(base, style, **kw)

def test_an_interrupted_result_says_so(base, style):
    assert go(base, style, callbacks=[At(2, stop)]).interrupted and not go(base, style).interrupted
    with pytest.warns(UserWarning): bad = go(base, style, callbacks=[At(2, poison)])
    assert not bad.interrupted


# ---- checkpoints that are not what was written ----

def test_checkpoints_are_read_whole_or_refused(base, style, tmp_path):
    path = interrupted(base, style, tmp_path/'run.pt', preset=ONLINE)
    good = load_state(path, 'checkpoint', RunState)
    sweep_file(path, lambda p: load_state(p, 'checkpoint', RunState), same=good, flips=60)

def test_checkpoints_of_other_shapes_are_refused(base, style, tmp_path, whole):
    "Under a right hash: what is missing, of another type, another shape, NaN"
    wanted = whole(ONLINE)[0]       # before another run holds the backbone
    path = interrupted(base, style, tmp_path/'run.pt', preset=ONLINE)
    state = load_state(path, 'checkpoint')
    run = Stylizer(base, load_style(style), settings(ONLINE, steps=4), [owl()], ['an owl'], [5])
    def read(mutant):
        save_state(path, mutant, 'checkpoint')
        Checkpoint(path).before_run(run)
        return run.state_dict()
    keys = r'run_id|k|z|opt(\.\w+)?|method(\.params(\.0)?)?|generators(\.0)?|records(\.0(\.\w+)?)?|changes'
    what_is_read = rf'({keys}|all of it|one key too many)(:|$)'
    mutants = [(what, m) for what, m in json_mutants(state) if re.match(what_is_read, what)]
    mutants = mutants[::2]      # each is read from a file of its own
    assert len(mutants) > 150
    try:
        same = read(state)
        for _ in run.iterate(): pass
        identical(run.results()[0], wanted)
        sweep(read, mutants, same, may_differ=['fake: missing', 'psr: missing'])   # history that some steps lack
    finally: run.close()
