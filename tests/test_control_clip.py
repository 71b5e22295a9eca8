"Control-CLIP: two readings of a frozen tower, their losses written out, training, files, and the cross-attention of a frozen pipeline"
import copy, json, math, shutil, warnings
from dataclasses import replace
from functools import partial
import pytest, torch, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from stylekit.cli import main
from stylekit.clip import Clip, load_clip
from stylekit.control_clip import (CONFIG_FILE, CONTROL_FILE, LABELLED, MODES, ROLES, UNLABELLED, ControlClip, ControlSettings, ControlTrainer, Words, check_base, far_from_uniform, grid_logits, labelled_loss,
                                   load_control_clip, read_control_clip, role_logits, t1, t2, train_control_clip)
from stylekit.core import StylekitError
from stylekit.images import sample, samples
from stylekit.grids import Grid, Shot
from stylekit.records import load_state
from stylekit.training import TrainingReport
from stylekit.guidance import COMBINE, Steer, attach, control_clip, detach, join_attention, latents_on_white
from sweeps import check_full_disk, json_mutants, resealed, sweep, sweep_file

TEXTS = ['an owl', 'black ink drawing, a red taxi', '']
TINY = dict(steps=4, batch=6, prompts=6, check=2)

@pytest.fixture(scope='module')
def clip(): return load_clip()

@pytest.fixture(scope='module')
def grid():
    kinds = dict(owl='animal', penguin='animal', taxi='vehicle', airplane='vehicle')
    return Grid(Shot(kinds.get(n, 'thing'), l, n, sample(n, l), 'val' if n in ('owl', 'taxi') else 'train') for n in samples() for l in ('render', 'flat', 'ink'))

def new(clip, mode='lora+adapter', **kw): return ControlClip(clip.model.text_model, clip.tokenizer, clip.model.text_projection, mode, temperature=clip.temperature, **kw)

def disturbed(control, size=.05):
    "As if trained: every weight of both roles is moved"
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for r in ROLES:
            for p in control.part(r).values(): p += size*torch.randn(p.shape, generator=g).to(p)
    return control


@pytest.mark.parametrize('mode', MODES)
def test_the_tower_is_never_touched(clip, mode):
    "Whatever the roles have learnt, f_0 is the CLIP's own reading bit for bit, and the CLIP has no new keys"
    keys, before = list(clip.model.state_dict()), clip.read(TEXTS)
    untrained = new(clip, mode)
    for role in (None, *ROLES): assert torch.allclose(untrained.features(TEXTS, role), before, atol=1e-6)
    c = disturbed(new(clip, mode))
    ids = clip.ids(TEXTS, 'max_length')
    with torch.no_grad(): own = clip.model.text_model(ids).last_hidden_state
    with torch.no_grad(): assert torch.equal(c.tokens(ids), own)
    for role in ROLES:
        with torch.no_grad(): moved = (c.tokens(ids, role)-own).abs().amax(-1)
        assert (moved[:, 1:] > 1e-4).all(), 'every token after the first must be reached: cross-attention reads them all'
    with torch.no_grad(): assert torch.equal(c.tokens(ids), own)
    assert list(clip.model.state_dict()) == keys and torch.equal(clip.read(TEXTS), before)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('role', ROLES)
def test_gradients_reach_the_role_alone(clip, mode, role):
    c = disturbed(new(clip, mode))
    for r in ROLES:
        for p in c.part(r).values(): p.requires_grad_(True)
    t = c.features(TEXTS, role)
    (t[0]@t[1]).backward()
    reached = {n for n, p in c.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached and reached <= {*c.part(role)} and not {*c.part('style')} & {*c.part('category')}
    assert all(p.grad is None for p in clip.model.parameters())

def test_a_role_must_exist(clip):
    with pytest.raises(StylekitError, match='category or style'): new(clip).features(TEXTS, 'colour')
    with pytest.raises(StylekitError, match='choose embedding'): new(clip, 'prefix')
    for bad in (dict(loss='ce'), dict(prompts=3), dict(steps=0), dict(weight=-1), dict(rank=1.5), dict(rank=5000)):
        with pytest.raises(StylekitError, match=next(iter(bad))): ControlSettings(**bad)


# losses, written out

def test_role_logits_are_marginals():
    l = torch.randn(5, 3, 4, dtype=torch.double)
    p = l.exp()/l.exp().sum((1, 2), keepdim=True)
    assert torch.allclose(role_logits(l, 'style').softmax(1), p.sum(1)) and torch.allclose(role_logits(l, 'category').softmax(1), p.sum(2))

def written(l, k, s, loss, lam):
    "L_s, one picture at a time"
    total = 0.
    for i in range(len(l)):
        style, cat = [math.log(sum(math.exp(l[i, a, b]) for a in range(l.shape[1]))) for b in range(l.shape[2])], [math.log(sum(math.exp(l[i, a, b]) for b in range(l.shape[2]))) for a in range(l.shape[1])]
        z = lambda v: math.log(sum(map(math.exp, v)))
        ce_s, ce_k = z(style)-style[s[i]], z(cat)-cat[k[i]]
        K = len(cat)
        other = dict(uniform=sum(1/K*math.log((1/K)/(math.exp(c-z(cat)))) for c in cat), subtract=-ce_k, clamp=-min(ce_k, math.log(K)), grl=0., both=ce_k/lam)[loss]
        total += ce_s + lam*other
    return total/len(l)

@pytest.mark.parametrize('loss', LABELLED)
def test_labelled_losses_are_their_formulas(loss):
    l, k, s = torch.randn(7, 3, 4, dtype=torch.double)*3, torch.arange(7)%3, torch.arange(7)%4
    assert labelled_loss(l, dict(category=k, style=s), 'style', loss, .3).item() == pytest.approx(written(l, k.tolist(), s.tolist(), loss, .3))
    mirrored = labelled_loss(l.transpose(1, 2), dict(category=s, style=k), 'category', loss, .3)
    assert mirrored.item() == pytest.approx(written(l, k.tolist(), s.tolist(), loss, .3))   # L_c is the mirror

def test_uniform_has_a_bottom_and_subtract_has_none():
    l = torch.randn(6, 3, 4)
    assert far_from_uniform(torch.zeros(6, 3)).abs() < 1e-6 and far_from_uniform(role_logits(l, 'category')) > 0
    labels = dict(category=torch.zeros(6, dtype=torch.long), style=torch.zeros(6, dtype=torch.long))
    worse = lambda k, loss: labelled_loss(l-k*F.one_hot(torch.tensor(0), 3).view(1, 3, 1), labels, 'style', loss, 1.).item()   # ever surer that it is not category 0
    assert worse(50, 'subtract') < worse(5, 'subtract')-5 and worse(50, 'uniform') > worse(5, 'uniform')+5
    assert worse(50, 'clamp') == pytest.approx(worse(5, 'clamp'), abs=.05)

def test_triplets_are_their_formulas():
    g = lambda: torch.Generator().manual_seed(3)
    v, t, s = F.normalize(torch.randn(8, 5), dim=-1), F.normalize(torch.randn(3, 4, 5), dim=-1), torch.arange(8)%4
    k = torch.randint(3, (8,), generator=g())
    hard = sum(max(0., .2 - (v[i]@t[k[i], s[i]]).item() + max((v[i]@t[k[i], o]).item() for o in range(4) if o != s[i])) for i in range(8))/8
    assert t1(v, t, s, g(), .2, hard=True).item() == pytest.approx(hard, abs=1e-6)
    soft = t1(v, t, s, g(), .2).item()
    assert 0 <= soft <= hard+1e-6
    moved = t + torch.randn(3, 1, 5)                  # what a category adds on both sides cancels in T1
    near = lambda t: t1(v, t, s, g(), 2.).item()
    assert near(moved) == pytest.approx(near(t), abs=1e-5)
    g2 = g(); k, st = torch.randint(3, (16,), generator=g2), torch.randint(4, (16,), generator=g2)
    other = (k + torch.randint(1, 3, k.shape, generator=g2))%3
    hard2 = sum(max(0., .2 - (t[a, b]@t[c, b]).item() + max((t[a, b]@t[c, o]).item() for o in range(4) if o != b)) for a, b, c in zip(k, st, other))/16
    assert t2(t, 16, g(), .2, hard=True).item() == pytest.approx(hard2, abs=1e-6)


# training

def test_a_batch_knows_its_own_labels(clip, grid):
    "Pictures drawn for a part of the grid carry the places of their own category and style in that part"
    trainer = ControlTrainer(clip, grid.split('train'), grid.split('val'), ControlSettings(**TINY | dict(prompts=4)), Words(grid.categories, grid.styles))
    shots, seen = grid.split('train').shots, {}
    trainer.control.features = lambda prompts, role: seen.setdefault('prompts', prompts) and F.normalize(torch.ones(len(prompts), 128), dim=-1)
    import stylekit.control_clip as C
    kept, C.labelled_loss = C.labelled_loss, lambda l, labels, *a: seen.update(labels) or l.sum()
    try:
        for seed in range(20):
            seen.clear()
            k, s, rows = trainer.draw(torch.Generator().manual_seed(seed))
            trainer.loss('style', None, torch.Generator().manual_seed(seed))
            for row, a, b in zip(rows.tolist(), seen['category'].tolist(), seen['style'].tolist()):
                template = [t.format(c=shots[row].category, s=shots[row].style) for t in trainer.control.words.templates]
                assert seen['prompts'][a*len(s)+b] in template
    finally: C.labelled_loss = kept

@pytest.mark.parametrize('loss', ['uniform', 'T1+T2'])
def test_it_learns_the_style_and_not_the_category(clip, grid, loss):
    "On pictures it has seen, and on other things in the same styles"
    c = train_control_clip(grid, clip, loss=loss, steps=100, batch=16, prompts=9, check=25, templates=('{s}, a {c}',), lr=1e-2, lora_lr=5e-3, keep=.1)
    def right(part, role):
        v, y = clip.see(s.image for s in part), dict(zip(ROLES, part.labels()))
        return (role_logits(c.logits(v, role), role).argmax(1) == y[role]).float().mean().item(), (role_logits(c.logits(v), role).argmax(1) == y[role]).float().mean().item()
    for part in (grid.split('train'), grid.split('val')):
        now, before = right(part, 'style')
        assert now >= before+.15
    if loss == 'uniform':
        v = clip.see(s.image for s in grid)
        assert far_from_uniform(role_logits(c.logits(v, 'style'), 'category')) < far_from_uniform(role_logits(c.logits(v), 'category'))

@pytest.mark.parametrize('mode', ['lora', 'lora+adapter', 'full'])
def test_what_stands_in_the_tower_learns_at_its_own_rate(clip, grid, mode):
    "`lora_lr` 0 leaves it as it was, another rate leads elsewhere, and the adapters go on at `lr`"
    def weights(**kw):
        c = train_control_clip(grid, clip, mode=mode, **TINY | dict(steps=2, keep=0.) | kw)
        own = {(r, n): p.detach().clone() for r in ROLES for n, p in c.part(r).items()}
        return {k: p for k, p in own.items() if 'residual' not in k[1]}, {k: p for k, p in own.items() if 'residual' in k[1]}
    first = {(r, n): p.detach().clone() for r in ROLES for n, p in new(clip, mode, seed=0).part(r).items()}
    still, moved = weights(lora_lr=0.)
    assert still and all(torch.equal(p, first[k]) for k, p in still.items())
    assert (mode == 'lora+adapter') == any(not torch.equal(p, first[k]) for k, p in moved.items())
    slow, fast = weights(lora_lr=1e-4)[0], weights(lora_lr=1e-2)[0]
    far = lambda there: sum((p-first[k]).norm().item() for k, p in there.items())
    assert 0 < 5*far(slow) < far(fast)

def test_the_best_weights_are_kept(clip, grid, monkeypatch):
    errors = iter([.5, .2, .9]*2)
    monkeypatch.setattr(ControlTrainer, 'held_out', lambda self, role: next(errors))
    trainer = ControlTrainer(clip, grid.split('train'), grid.split('val'), ControlSettings(**TINY | dict(steps=6)), Words(grid.categories, grid.styles))
    at = {}
    trainer.report = lambda r: at.update({r.step: {n: p.clone() for n, p in trainer.control.part('style').items()}}) if r.held_out is not None else None
    end = trainer.run_role('style')
    assert [r.held_out for r in trainer.history if r.held_out is not None] == [.5, .2, .9]
    assert (end.best_step, end.best_error, end.ended, end.part) == (4, .2, 'finished', 'style')
    now = trainer.control.part('style')
    assert not all(torch.equal(p, at[6][n]) for n, p in now.items())

def test_two_rates_go_on_as_in_one_piece(clip, grid, tmp_path):
    kw = dict(mode='lora+adapter', lora_lr=5e-3, **TINY)
    whole, out = train_control_clip(grid, clip, **kw), tmp_path/'c'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(9):
            c = train_control_clip(grid, clip, out=out, minutes=1e-9, **kw)
            if c.about['ended'] == 'finished': break
    assert c.about['ended'] == 'finished'
    for r in ROLES: assert all(torch.equal(p, c.part(r)[n]) for n, p in whole.part(r).items())

def test_a_home_folder_in_python(clip, grid, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    train_control_clip(grid, clip, out='~/c', **TINY)
    assert (tmp_path/'home'/'c'/CONTROL_FILE).exists() and not (tmp_path/'~').exists()
    again = load_control_clip('~/c', clip)
    again.save('~/d')
    assert {p.name for p in (tmp_path/'home'/'d').iterdir()} == {CONTROL_FILE, CONFIG_FILE}

@pytest.mark.parametrize('at', [1, 3, 6, 'held out'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_no_step_on_what_is_no_number(clip, grid, tmp_path, monkeypatch, at, bad):
    "The training ends in one line; what was good is kept, and the same call goes on from there"
    calls, loss = [], ControlTrainer.loss
    def poisoned(self, *a):
        calls.append(1)
        return loss(self, *a)*(bad if len(calls) == at else 1)
    monkeypatch.setattr(ControlTrainer, 'loss', poisoned)
    if at == 'held out': monkeypatch.setattr(ControlTrainer, 'held_out', lambda self, role: bad)
    with pytest.raises(StylekitError, match='NaN') as e: train_control_clip(grid, clip, out=tmp_path/'c', **TINY)
    assert '\n' not in str(e.value) and not (tmp_path/'c'/CONTROL_FILE).exists()
    for p in (tmp_path/'c').glob('work/*-training.pt'): assert all(torch.isfinite(v).all() for v in load_state(p, 'training')['model'].values())
    monkeypatch.undo()
    whole, again = train_control_clip(grid, clip, **TINY), train_control_clip(grid, clip, out=tmp_path/'c', **TINY)
    for r in ROLES: assert all(torch.equal(p, again.part(r)[n]) for n, p in whole.part(r).items())

@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError('CUDA out of memory')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('where', ['loss', 'held_out'])
def test_memory_that_runs_out_names_a_lever(clip, grid, tmp_path, monkeypatch, error, where):
    def fail(*a): raise error
    monkeypatch.setattr(ControlTrainer, where, fail)
    with pytest.raises(StylekitError, match='ran out of memory: lower `prompts` or `batch`'): train_control_clip(grid, clip, out=tmp_path/'c', **TINY)
    monkeypatch.undo()
    assert train_control_clip(grid, clip, out=tmp_path/'c', **TINY).about['ended'] == 'finished'

def test_another_training_is_refused(clip, grid, tmp_path):
    begun = partial(train_control_clip, grid, clip, out=tmp_path/'c', report=lambda r: None, **TINY)
    begun(minutes=1e-9)
    with pytest.raises(StylekitError, match='another training'): begun(seed=1)
    (tmp_path/'c'/CONTROL_FILE).unlink()                                        # no result yet, only checkpoints
    with pytest.raises(StylekitError, match='other settings'): begun(seed=1)
    assert begun(seed=1, overwrite=True).about['settings'].seed == 1
    done = {p.name: p.read_bytes() for p in (tmp_path/'c').iterdir()}
    assert {*done} == {CONFIG_FILE, CONTROL_FILE}
    for other in (dict(seed=2), dict(steps=5), dict(keep_prompts=['a house']), dict(templates=('{s}, a {c}',)), dict(hold_out=[('animal', 'ink')]), dict(shots=1)):
        with pytest.raises(StylekitError, match='another training'): begun(**dict(seed=1) | other)
    shown = Grid([*grid.shots[1:], replace(grid.shots[0], source=sample('owl', 'ink').transpose(0))], grid.categories, grid.styles)   # the same name, another picture
    with pytest.raises(StylekitError, match='another training'): train_control_clip(shown, clip, out=tmp_path/'c', seed=1, **TINY)
    assert {p.name: p.read_bytes() for p in (tmp_path/'c').iterdir()} == done

@pytest.mark.parametrize('name', ['mine.txt', 'style-training.pt', 'ink/owl.png', '.git/HEAD', 'work/mine.pt', 'config.json', 'model.safetensors'])
def test_a_folder_of_others_is_left_alone(clip, grid, tmp_path, monkeypatch, name):
    "Neither mixed into nor swept, whatever is insisted on; by its path and as ."
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text('{"mine": 1}')
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, '.'):
        for insist in (False, True):
            with pytest.raises(StylekitError, match='holds other files') as e: train_control_clip(grid, clip, out=out, overwrite=insist, **TINY)
            assert name.split('/')[0] in str(e.value) and '\n' not in str(e.value)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()] == [name] and (tmp_path/name).read_text() == '{"mine": 1}'
    assert main(['train-control-clip', str(tmp_path), '--out', '.']) == 2 and (tmp_path/name).exists()

def test_what_a_killed_save_leaves_is_mended(clip, grid, tmp_path, monkeypatch):
    "Killed between its two files, over the encoders of an earlier training"
    out, kw = tmp_path/'c', dict(report=lambda r: None, **TINY)
    train_control_clip(grid, clip, out=out, seed=1, **kw)
    old = (out/CONTROL_FILE).read_bytes()
    whole = train_control_clip(grid, clip, out=tmp_path/'whole', **kw)
    monkeypatch.setattr('stylekit.control_clip.drop_states', lambda *a: None)   # as if killed before
    train_control_clip(grid, clip, out=out, overwrite=True, **kw)
    monkeypatch.undo()
    (out/CONTROL_FILE).write_bytes(old)
    with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(out, clip)
    with pytest.raises(StylekitError, match='another training'): train_control_clip(grid, clip, out=out, seed=1, **kw)   # not theirs to mend
    train_control_clip(grid, clip, out=out, **kw)
    assert load_control_clip(out, clip).config() == whole.config() and {p.name for p in out.iterdir()} == {CONFIG_FILE, CONTROL_FILE}

@pytest.mark.parametrize('loss', ['uniform', 'grl', 'T1+T2'])
def test_parts_are_the_whole(clip, grid, tmp_path, loss):
    "Stopped after each step, with nothing else the same: bit for bit what one call makes"
    kw = dict(loss=loss, **TINY)
    whole = train_control_clip(grid, clip, out=tmp_path/'whole', **kw)
    for i in range(5):
        torch.manual_seed(i)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            part = train_control_clip(grid, clip, out=tmp_path/'parts', minutes=0, **kw)
        assert part.about['ended'] == ('finished' if i > 2 else 'cut short')
    assert part.config() == whole.config()
    for (n, p), q in zip(whole.named_parameters(), part.parameters()): assert torch.equal(p, q), n

def test_the_time_is_for_both(clip, grid):
    "The first encoder takes half of it at most, and the second what is left"
    trainer = ControlTrainer(clip, grid.split('train'), grid.split('val'), ControlSettings(**TINY), Words(grid.categories, grid.styles))
    given = {}
    trainer.run_role = lambda role, minutes: given.update({role: minutes})
    trainer.run(10)
    assert given['category'] == 5 and 9.9 < given['style'] <= 10
    trainer.run()
    assert given == dict(category=None, style=None)
    for bad in (-1, math.nan, 'x'):
        with pytest.raises(StylekitError, match='minutes'): train_control_clip(grid, clip, minutes=bad)

def test_a_report_says_what_a_training_does(clip, grid):
    seen = []
    c = train_control_clip(grid, clip, report=seen.append, **TINY)
    assert [(r.part, r.step, r.ended) for r in seen] == [(role, *end) for role in ROLES for end in ((2, ''), (4, ''), (4, 'finished'))]
    assert all(isinstance(r, TrainingReport) and r.loss > 0 and r.held_out > 0 and r.seconds > 0 for r in seen if not r.ended)
    assert c.about['steps'] == dict(category=4, style=4) and c.about['ended'] == 'finished'


# files

def test_files_that_are_not_whole(clip, tmp_path):
    c = disturbed(new(clip, words=Words(('cat', 'dog'), ('ink', 'flat'))))
    back = load_control_clip(c.save(tmp_path/'c'), clip)
    for role in ROLES: assert torch.equal(back.features(TEXTS, role), c.features(TEXTS, role))
    assert back.words == c.words and torch.allclose(back.logits(clip.read(TEXTS), 'style'), c.logits(clip.read(TEXTS), 'style'))
    with pytest.raises(StylekitError, match='no control_clip'): load_control_clip(tmp_path)
    how = json.loads((tmp_path/'c'/'config.json').read_text())
    (tmp_path/'c'/'config.json').write_text(json.dumps(how | dict(mode='lora')))
    with pytest.raises(StylekitError, match='config.json of c was changed'): load_control_clip(tmp_path/'c', clip)
    (tmp_path/'c'/'config.json').write_text(json.dumps(resealed(how | dict(rho=.1))))
    with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(tmp_path/'c', clip)
    (tmp_path/'c'/'config.json').write_text('{')
    with pytest.raises(StylekitError, match='config.json'): load_control_clip(tmp_path/'c', clip)

def as_before(folder):
    "The files as they were before they had hashes"
    state = load_file(folder/CONTROL_FILE)
    save_file(state, folder/CONTROL_FILE)
    how = json.loads((folder/CONFIG_FILE).read_text())
    (folder/CONFIG_FILE).write_text(json.dumps({k: v for k, v in how.items() if k not in ('kind', 'sha256', 'ended')}))
    return state

def test_files_without_hashes_are_read_with_care(clip, tmp_path):
    "Those of an earlier version: types and shapes must be right, and half of a pair is no pair"
    c = disturbed(new(clip, words=Words(('cat', 'dog'), ('ink', 'flat'))))
    folder = c.save(tmp_path/'c')
    state = as_before(folder)
    back = load_control_clip(folder, clip)
    for role in ROLES: assert torch.equal(back.features(TEXTS, role), c.features(TEXTS, role))
    name = next(n for n, t in state.items() if t.ndim == 2 and len(t) > 1 and n != 'base_reads')
    for wrong in (dict(state, more=torch.zeros(1)), {k: v for k, v in state.items() if k != name}, state | {name: state[name][:1]}, state | {name: state[name].flatten()},
                  state | {name: state[name].long()}, state | {name: state[name]*torch.nan}):
        save_file(wrong, folder/CONTROL_FILE)
        with pytest.raises(StylekitError): load_control_clip(folder, clip)
    save_file(state, folder/CONTROL_FILE)
    text = (folder/CONFIG_FILE).read_text()
    for key, wrong in dict(mode='prefix', rank='4', rho=-1, temperature=None, base_sha256=3, words=[], settings=3, held_out=[['a']], steps={'style': 'x'}, more=1).items():
        (folder/CONFIG_FILE).write_text(json.dumps(json.loads(text) | {key: wrong}))
        with pytest.raises(StylekitError, match=f'config.json of c.*{key}'): load_control_clip(folder, clip)
    (folder/CONFIG_FILE).write_text(text)
    whole = c.save(tmp_path/'whole')
    for name in CONFIG_FILE, CONTROL_FILE:
        mixed = tmp_path/f'mixed-{name}'
        shutil.copytree(whole, mixed)
        shutil.copy(folder/name, mixed)
        with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(mixed, clip)
    assert load_control_clip(load_control_clip(folder, clip).save(folder), clip).config() == c.config()   # sealed, and still the same

def test_every_change_of_a_file_is_refused(clip, tmp_path):
    "Config: keys with a hash that fits, and bytes; weights: bytes"
    c = disturbed(new(clip, 'embedding', words=Words(('cat', 'dog'), ('ink', 'flat'))))
    c.about = dict(settings=ControlSettings(**TINY), pictures=2, held_out=(('cat', 'ink'),), run_id='a', steps=dict(style=4), ended='finished')
    folder = c.save(tmp_path/'c')
    read = lambda _: read_control_clip(folder)[0]
    assert sweep_file(folder/CONFIG_FILE, read, json_mutants, read(0)) > 300
    assert sweep_file(folder/CONTROL_FILE, read, same=read(0)) > 30
    raw = (folder/CONTROL_FILE).read_bytes()
    header = 8 + int.from_bytes(raw[:8], 'little')   # names, shapes and the seal itself
    flips = [(f'byte {i}', raw[:i] + bytes([raw[i]^1]) + raw[i+1:]) for i in range(0, header, 5)]
    def of(b):
        (folder/CONTROL_FILE).write_bytes(b)
        return read(0)
    assert sweep(of, flips, read(0)) == len(flips)

@pytest.mark.parametrize('name', [CONFIG_FILE, CONTROL_FILE])
def test_a_full_disk_keeps_the_old_encoders(clip, tmp_path, monkeypatch, name):
    c = new(clip, 'embedding')
    for _ in range(2): check_full_disk(monkeypatch, tmp_path/'c'/name, lambda: disturbed(c).save(tmp_path/'c'))   # a new folder, and one with older encoders

def test_the_base_is_checked_by_how_it_reads(clip, tmp_path):
    "Half precision is the same reader; other weights are not, nor is another tokenizer"
    folder = disturbed(new(clip)).save(tmp_path/'c')
    half = copy.deepcopy(clip.model.text_model).to(torch.bfloat16).float()
    other = copy.deepcopy(clip.model.text_model)
    with torch.no_grad():
        for p in other.parameters(): p += .1*torch.randn_like(p)
    as_clip = lambda tower: type('Pipe', (), dict(text_encoder=tower, tokenizer=clip.tokenizer))()
    assert load_control_clip(folder, as_clip(half)) and check_base(load_control_clip(folder, clip), as_clip(half))
    with pytest.raises(StylekitError, match='another text encoder'): load_control_clip(folder, as_clip(other))
    with pytest.raises(StylekitError, match='another text encoder'): check_base(load_control_clip(folder, clip), as_clip(other))


# the cross-attention

def test_joined_answers_are_their_formulas():
    torch.manual_seed(0)
    q, ks, vs = torch.randn(2, 3, 5, 4, dtype=torch.double), list(torch.randn(3, 2, 3, 7, 4, dtype=torch.double)), list(torch.randn(3, 2, 3, 7, 4, dtype=torch.double))
    w = lambda *k: torch.cat([q@x.mT/2 for x in k], -1).softmax(-1)
    o = [w(k)@v for k, v in zip(ks, vs)]
    a = .3
    odds = torch.cat([(q@ks[0].mT/2).exp()*(1-a), (q@ks[1].mT/2).exp()*a], -1)
    want = dict(lerp=(1-a)*o[0]+a*o[1], add=o[0]+a*o[1], concat=odds/odds.sum(-1, keepdim=True)@torch.cat(vs[:2], 2), kv_swap=w(ks[0])@((1-a)*vs[0]+a*vs[1]))
    for combine, x in want.items(): assert torch.allclose(join_attention(q, ks[:2], vs[:2], combine, (1., a)), x, atol=1e-10), combine
    assert torch.allclose(join_attention(q, ks, vs, 'delta', (.7, a)), o[0]+.7*(o[1]-o[0])+a*(o[2]-o[0]), atol=1e-10)

@pytest.fixture(scope='module')
def pipes(models):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
    p = StableDiffusionPipeline.from_pretrained(models('sd15'), torch_dtype=torch.float32, safety_checker=None, feature_extractor=None)
    made = dict(text=p, img2img=StableDiffusionImg2ImgPipeline(**p.components, requires_safety_checker=False), inpaint=StableDiffusionInpaintPipeline(**p.components, requires_safety_checker=False))
    for x in made.values(): x.set_progress_bar_config(disable=True)
    return made

def draw(pipe, prompt=('an owl', 'a cat face'), seed=0, **kw):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kind = type(pipe).__name__
    if 'Img2Img' in kind: kw = dict(image=x, strength=.6) | kw
    elif 'Inpaint' in kind: kw = dict(image=x, mask_image=torch.ones(2, 1, 64, 64), height=64, width=64) | kw
    else: kw = dict(height=64, width=64) | kw
    words = dict(prompt=list(prompt)) if prompt else {}
    return pipe(**words, **dict(num_inference_steps=3, guidance_scale=4., output_type='latent', generator=torch.Generator().manual_seed(seed)) | kw).images

def of(pipe, mode='lora+adapter', size=.2): return disturbed(ControlClip(pipe.text_encoder, pipe.tokenizer, mode=mode), size)

@pytest.mark.parametrize('kind', ['text', 'img2img', 'inpaint'])
def test_the_ends_are_one_encoder_alone(pipes, kind):
    "lerp at 0 and 1, and embed between, against the untouched pipeline fed with these embeddings; several pictures for each prompt"
    pipe = pipes[kind]
    c = of(pipe)
    ids = c.ids(['an owl', 'a cat face'], 'max_length')
    with torch.no_grad(): e = {r: c.tokens(ids, r) for r in (None, *ROLES)}; nothing = c.tokens(c.ids(['', ''], 'max_length'))
    fed = lambda e, **kw: draw(pipe, None, prompt_embeds=e, negative_prompt_embeds=nothing, **kw)
    many = {} if kind == 'inpaint' else dict(num_images_per_prompt=2)
    for combine, alpha, want in (('lerp', 0., e['category']), ('lerp', 1., e['style']), ('concat', 1., e['style']), ('kv_swap', 0., e['category']), ('delta', (1., 0.), e['category']),
                                 ('delta', (0., 1.), e['style']), ('delta', (0., 0.), e[None]), ('add', 0., e['category']), ('embed', .6, e['category']+.6*(e['style']-e[None]))):
        with control_clip(pipe, c, alpha, combine): got = draw(pipe, **many)
        assert torch.allclose(got, fed(want, **many), atol=1e-5), (combine, alpha)
    assert (fed(e['style'])-fed(e['category'])).abs().max() > 1e-3

def test_equal_encoders_and_zero_are_the_base_picture(pipes):
    pipe, base = pipes['text'], draw(pipes['text'], negative_prompt=['black ink']*2)
    same = ControlClip(pipe.text_encoder, pipe.tokenizer)
    for combine in ('lerp', 'concat', 'kv_swap', 'delta', 'embed'):
        with control_clip(pipe, same, .7, combine): assert torch.allclose(draw(pipe, negative_prompt=['black ink']*2), base, atol=1e-5), combine
    with control_clip(pipe, of(pipe), 0., 'delta'): assert torch.allclose(draw(pipe, negative_prompt=['black ink']*2), base, atol=1e-5)

def test_everything_is_put_back(pipes):
    "Processors, methods and weights, after use and after an error within"
    pipe, base = pipes['text'], draw(pipes['text'])
    state, processors, own = {k: v.clone() for k, v in pipe.unet.state_dict().items()}, dict(pipe.unet.attn_processors), dict(pipe.__dict__)
    text = list(pipe.text_encoder.state_dict())
    with pytest.raises(ZeroDivisionError):
        with control_clip(pipe, of(pipe), dual=(3., 5.)):
            assert pipe.unet.state_dict().keys() == state.keys() and draw(pipe).shape == base.shape
            1/0
    assert pipe.unet.attn_processors.keys() == processors.keys() and all(pipe.unet.attn_processors[k] is p for k, p in processors.items())
    assert pipe.__dict__.keys() == own.keys() and 'forward' not in pipe.unet.__dict__
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items()) and list(pipe.text_encoder.state_dict()) == text and torch.equal(draw(pipe), base)
    with pytest.raises(StylekitError, match='nothing is attached'): detach(pipe)

def test_settings_change_between_steps(pipes):
    pipe = pipes['text']
    with control_clip(pipe, of(pipe), 0.) as steer:
        still = draw(pipe)
        def turn(p, i, t, kw):
            if i == 1: steer.alpha = {'up_blocks': 1.}
            return kw
        assert torch.equal(draw(pipe, num_inference_steps=2, callback_on_step_end=turn), draw(pipe, num_inference_steps=2)) is False or steer.alpha == {'up_blocks': 1.}
        steer.alpha = 0.
        turned = draw(pipe, callback_on_step_end=turn)
        assert (turned-still).abs().max() > 1e-4
        steer.alpha = {'': 1., 'up_blocks': 0.}
        part = draw(pipe)
        steer.alpha = {'': 1., 'down_blocks': 0., 'up_blocks': 0., 'mid_block': 0.}
        assert torch.allclose(draw(pipe), still, atol=1e-6) and (part-still).abs().max() > 1e-4
    with control_clip(pipe, of(pipe), 1., blocks='style_up') as a, torch.no_grad(): assert a.alpha_at('up_blocks.1.attentions.0.x') == (1., 1.) and a.alpha_at('up_blocks.2') == (0., 0.)

def test_dual_guidance_is_its_formula(pipes):
    "ε_∅ + w_c(ε_c − ε_∅) + w_s(ε_cs − ε_c), by three calls of the plain UNet"
    pipe, c = pipes['text'], of(pipes['text'])
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad(): ec, e0 = c.tokens(c.ids('an owl', 'max_length'), 'category'), c.tokens(c.ids('', 'max_length'))
    plain = lambda e: pipe.unet(z, t, e, return_dict=False)[0]
    for combine, alpha in (('lerp', .4), ('delta', (1., .4)), ('embed', .4)):
        with torch.no_grad():
            nothing, cat = plain(e0), plain(ec)
            with control_clip(pipe, c, alpha, combine) as steer: both = plain(steer.embeds(['an owl']))
            with control_clip(pipe, c, alpha, combine, dual=(3., 5.)) as steer:
                pipe._guidance_scale = 4.
                out = pipe.unet(torch.cat([z, z]), t, torch.cat([steer.embeds([''], True), steer.embeds(['an owl'])]), return_dict=False)[0]
        if combine == 'embed': cat = both   # one text: there is no category alone in it
        e0_, e1 = out.chunk(2)
        assert torch.allclose(e0_ + 4.*(e1-e0_), nothing + 3.*(cat-nothing) + 5.*(both-cat), atol=1e-4), combine

def test_other_guests_are_refused(pipes, models):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
    pipe = pipes['text']
    c = of(pipe)
    fresh = lambda: StableDiffusionPipeline.from_pretrained(models('sd15'), torch_dtype=torch.float32, safety_checker=None, feature_extractor=None)
    p = fresh(); p.unet.fuse_qkv_projections()
    with pytest.raises(StylekitError, match='[Ff]use'): attach(p, c)
    p.unet.unfuse_qkv_projections(); attach(p, c); detach(p)
    p = fresh()
    IPAdapterAttnProcessor2_0 = type('IPAdapterAttnProcessor2_0', (), dict(__call__=lambda self, *a, **k: None))
    p.unet.set_attn_processor({n: IPAdapterAttnProcessor2_0() if n.endswith('attn2.processor') else x for n, x in p.unet.attn_processors.items()})
    with pytest.raises(StylekitError, match='unload_ip_adapter'): attach(p, c)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    with pytest.raises(StylekitError, match='controlnet'): attach(StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False), c)
    from stylekit import load_backbone
    with pytest.raises(StylekitError, match='SDXL'): attach(load_backbone(models('sdxl')), c)
    with pytest.raises(StylekitError, match='another text encoder'): attach(load_backbone(), c)
    with pytest.raises(StylekitError, match='no UNet'): attach(object(), c)
    with control_clip(pipe, c):
        with pytest.raises(StylekitError, match='attached already'): attach(pipe, c)
        with pytest.raises(StylekitError, match='give words'): draw(pipe, None, prompt_embeds=torch.zeros(2, 77, 32), negative_prompt_embeds=torch.zeros(2, 77, 32))
        with pytest.raises(StylekitError, match='clip_skip'): draw(pipe, clip_skip=1)
    for bad, why in ((dict(alpha=3.), 'alpha'), (dict(combine='sum'), 'choose'), (dict(blocks='down'), 'choose'), (dict(alpha={'mid': 'x'}), 'alpha')):
        with pytest.raises(StylekitError, match=why): Steer(c, **bad)

def test_pictures_begin_on_white(models):
    "The first latents are a white sheet under the noise; then the embedded model draws on white, whatever the noise"
    from stylekit import load_backbone
    from stylekit.scores import Score, ddim, falling
    for b in load_backbone(models('sd15')), load_backbone():
        noise = torch.randn(3, b.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        A = b.alphas_cumprod[700].item()
        side = 16*b.factor
        white = b.encode(torch.ones(1, 3, side, side))
        for t in 700, torch.tensor(700): # a scheduler's timesteps are tensors
            assert torch.allclose(latents_on_white(b, noise, t), A**.5*white + (1-A)**.5*noise, atol=1e-5)
    ts, score = falling(914, 6), Score(b, (), 3., b.text(''))
    def corner(z):
        with torch.no_grad(): x = b.decode(ddim(score, b, z, ts, b.text(['a bicycle']*3)))
        sides = x[..., :4, :4], x[..., :4, -4:], x[..., -4:, :4], x[..., -4:, -4:]
        return torch.stack(sides).mean((2, 3, 4)).min().item()
    assert corner(noise) < .9 and corner(latents_on_white(b, noise, ts[0])) > .95

@pytest.mark.slow
def test_the_size_of_stable_diffusion(tmp_path):
    "CLIP ViT-L/14 as large as it is, with random weights: one training step, and into a UNet that reads its tokens"
    from diffusers import UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel
    from stylekit.mini.clip import train_tokenizer
    tok = train_tokenizer(['an owl', 'a photo of a cat in ink style'])
    tok.model_max_length = 77
    ids = dict(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    text = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77, projection_dim=768, **ids)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14, projection_dim=768)
    big = Clip('vit-l-14', CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)), tok)
    grid = Grid(Shot(n, l, n, sample(n, l), 'train') for n in ('owl', 'taxi') for l in ('flat', 'ink'))
    c = train_control_clip(grid, big, steps=1, batch=2, prompts=4, out=tmp_path/'c')
    assert sum(p.numel() for p in c.part('style').values()) < 1e6
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=8, cross_attention_dim=768, attention_head_dim=8,
                                down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
    pipe = type('Pipe', (), {})()
    pipe.unet, pipe.text_encoder, pipe.tokenizer, pipe.encode_prompt = unet, big.model.text_model, tok, lambda *a, **k: None
    with control_clip(pipe, tmp_path/'c') as steer, torch.no_grad():
        e = steer.embeds(['an owl'])
        assert e.shape == (1, 154, 768) and unet(torch.randn(1, 4, 8, 8), 500, e).sample.shape == (1, 4, 8, 8)
