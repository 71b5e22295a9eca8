"Control-CLIP: two readings of a frozen tower, their losses written out, training, files, a pipeline's cross-attention"
import copy, json, math, shutil, warnings
from dataclasses import replace
from functools import partial
import pytest, torch, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from stylekit.cli import main
from stylekit.clip.clip import Clip, load_clip
from stylekit.clip.control_clip import (
    CONFIG_FILE, CONTROL_FILE, LABELLED, MODES, ROLES, ControlClip, ControlSettings, ControlTrainer, Words,
    check_base, far_from_uniform, image_triplet_loss, labelled_loss, load_control_clip, prompt_triplet_loss,
    read_control_clip, role_logits,
    train_control_clip)
from stylekit.core import StylekitError
from stylekit.images import sample_image, list_samples
from stylekit.clip.grids import Grid, Shot
from stylekit.records import load_state
from stylekit.training import TrainingReport
from stylekit.clip.guidance import ControlGuidance, attach, control_clip, detach, join_attention, latents_on_white
from sweeps import check_full_disk, json_mutants, resealed, sweep, sweep_file

TEXTS = ['an owl', 'black ink drawing, a red taxi', '']
TINY = dict(steps=4, batch=6, prompts=6, check=2)

@pytest.fixture(scope='module')
def clip(): return load_clip()

@pytest.fixture(scope='module')
def grid():
    kinds = dict(owl='animal', penguin='animal', taxi='vehicle', airplane='vehicle')
    def shot(name, look):
        split = 'val' if name in ('owl', 'taxi') else 'train'
        return Shot(kinds.get(name, 'thing'), look, name, sample_image(name, look), split)
    return Grid(shot(n, look) for n in list_samples() for look in ('render', 'flat', 'ink'))

@pytest.fixture(scope='module')
def train(clip, grid): return partial(train_control_clip, grid, clip, **TINY)

def trainer_of(clip, grid, **changes):
    cfg, words = ControlSettings(**TINY | changes), Words(grid.categories, grid.styles)
    return ControlTrainer(clip, grid.split('train'), grid.split('val'), cfg, words)

def new(clip, mode='lora+adapter', **kw):
    model = clip.model
    return ControlClip(model.text_model, clip.tokenizer, model.text_projection, mode,
                       temperature=clip.temperature, **kw)

def disturbed(control, size=.05):
    "As if trained: every weight of both roles is moved"
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for r in ROLES:
            for p in control.part(r).values(): p += size*torch.randn(p.shape, generator=g).to(p)
    return control

def same_roles(a, b): return all(torch.equal(p, b.part(r)[n]) for r in ROLES for n, p in a.part(r).items())

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize('mode', MODES)
def test_the_tower_is_never_touched(clip, mode):
    "Whatever the roles have learnt, f_0 is the CLIP's own reading bit for bit, and the CLIP has no new keys"
    keys, before = list(clip.model.state_dict()), clip.encode_text(TEXTS)
    untrained = new(clip, mode)
    for role in (None, *ROLES): assert torch.allclose(untrained.features(TEXTS, role), before, atol=1e-6)
    c = disturbed(new(clip, mode))
    ids = clip.ids(TEXTS, 'max_length')
    with torch.no_grad(): own = clip.model.text_model(ids).last_hidden_state
    with torch.no_grad(): assert torch.equal(c.tokens(ids), own)
    for role in ROLES:
        with torch.no_grad(): moved = (c.tokens(ids, role)-own).abs().amax(-1)
        assert (moved[:, 1:] > 1e-4).all()      # every token after the first: cross-attention reads them all
    with torch.no_grad(): assert torch.equal(c.tokens(ids), own)
    assert list(clip.model.state_dict()) == keys
    assert torch.equal(clip.encode_text(TEXTS), before)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('role', ROLES)
def test_gradients_reach_the_role_alone(clip, mode, role):
    c = disturbed(new(clip, mode))
    for r in ROLES:
        for p in c.part(r).values(): p.requires_grad_(True)
    t = c.features(TEXTS, role)
    (t[0]@t[1]).backward()
    reached = {n for n, p in c.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached and reached <= {*c.part(role)}
    assert not {*c.part('style')} & {*c.part('category')}
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
    assert torch.allclose(role_logits(l, 'style').softmax(1), p.sum(1))
    assert torch.allclose(role_logits(l, 'category').softmax(1), p.sum(2))

def log_sum_exp(v): return math.log(sum(map(math.exp, v)))

def written(l, k, s, loss, lam):
    "L_s, one picture at a time"
    total = 0.
    for i, table in enumerate(l.tolist()):
        cat = [log_sum_exp(row) for row in table]
        style = [log_sum_exp(column) for column in zip(*table)]
        ce_s = log_sum_exp(style)-style[s[i]]
        ce_k = log_sum_exp(cat)-cat[k[i]]
        K = len(cat)
        kl = sum(1/K*math.log((1/K)/math.exp(c-log_sum_exp(cat))) for c in cat)
        other = dict(uniform=kl, subtract=-ce_k, clamp=-min(ce_k, math.log(K)), grl=0., both=ce_k/lam)[loss]
        total += ce_s + lam*other
    return total/len(l)

@pytest.mark.parametrize('loss', LABELLED)
def test_labelled_losses_are_their_formulas(loss):
    l = torch.randn(7, 3, 4, dtype=torch.double)*3
    k, s = torch.arange(7)%3, torch.arange(7)%4
    want = pytest.approx(written(l, k.tolist(), s.tolist(), loss, .3))
    assert labelled_loss(l, dict(category=k, style=s), 'style', loss, .3).item() == want
    mirrored = labelled_loss(l.transpose(1, 2), dict(category=s, style=k), 'category', loss, .3)
    assert mirrored.item() == want   # L_c is the mirror

def test_uniform_has_a_bottom_and_subtract_has_none():
    l = torch.randn(6, 3, 4)
    assert far_from_uniform(torch.zeros(6, 3)).abs() < 1e-6
    assert far_from_uniform(role_logits(l, 'category')) > 0
    labels = dict(category=torch.zeros(6, dtype=torch.long), style=torch.zeros(6, dtype=torch.long))
    def worse(k, loss):
        "Ever surer that it is not category 0"
        surer = l-k*F.one_hot(torch.tensor(0), 3).view(1, 3, 1)
        return labelled_loss(surer, labels, 'style', loss, 1.).item()
    assert worse(50, 'subtract') < worse(5, 'subtract')-5
    assert worse(50, 'uniform') > worse(5, 'uniform')+5
    assert worse(50, 'clamp') == pytest.approx(worse(5, 'clamp'), abs=.05)

def hinge(anchor, candidates, right):
    "Of the hardest wrong candidate, at a margin of .2"
    wrong = max((anchor@c).item() for i, c in enumerate(candidates) if i != right)
    return max(0., .2 - (anchor@candidates[right]).item() + wrong)

def test_triplets_are_their_formulas():
    def g(): return torch.Generator().manual_seed(3)
    v, t = F.normalize(torch.randn(8, 5), dim=-1), F.normalize(torch.randn(3, 4, 5), dim=-1)
    s, k = torch.arange(8)%4, torch.randint(3, (8,), generator=g())
    hard = sum(hinge(v[i], t[k[i]], s[i]) for i in range(8))/8
    assert image_triplet_loss(v, t, s, g(), .2, hard=True).item() == pytest.approx(hard, abs=1e-6)
    soft = image_triplet_loss(v, t, s, g(), .2).item()
    assert 0 <= soft <= hard+1e-6
    moved = t + torch.randn(3, 1, 5)                  # what a category adds on both sides cancels in T1
    def near(t): return image_triplet_loss(v, t, s, g(), 2.).item()
    assert near(moved) == pytest.approx(near(t), abs=1e-5)
    g2 = g()
    k, st = torch.randint(3, (16,), generator=g2), torch.randint(4, (16,), generator=g2)
    other = (k + torch.randint(1, 3, k.shape, generator=g2))%3
    hard2 = sum(hinge(t[a, b], t[c], b) for a, b, c in zip(k, st, other))/16
    assert prompt_triplet_loss(t, 16, g(), .2, hard=True).item() == pytest.approx(hard2, abs=1e-6)


# training

def test_a_batch_knows_its_own_labels(clip, grid, monkeypatch):
    "Pictures drawn for a part of the grid carry the places of their own category and style in that part"
    trainer = trainer_of(clip, grid, prompts=4)
    shots, seen = grid.split('train').shots, {}
    def features(prompts, role):
        seen.setdefault('prompts', prompts)
        return F.normalize(torch.ones(len(prompts), 128), dim=-1)
    def labels_seen(l, labels, *a):
        seen.update(labels)
        return l.sum()
    trainer.control.features = features
    monkeypatch.setattr('stylekit.clip.control_clip.labelled_loss', labels_seen)
    for seed in range(20):
        seen.clear()
        k, s, rows = trainer.draw(torch.Generator().manual_seed(seed))
        trainer.loss('style', None, torch.Generator().manual_seed(seed))
        for row, a, b in zip(rows.tolist(), seen['category'].tolist(), seen['style'].tolist()):
            words = dict(c=shots[row].category, s=shots[row].style)
            assert seen['prompts'][a*len(s)+b] in [t.format(**words) for t in trainer.control.words.templates]

@pytest.mark.parametrize('loss', ['uniform', 'T1+T2'])
def test_it_learns_the_style_and_not_the_category(clip, grid, train, loss):
    "On pictures it has seen, and on other things in the same styles"
    how = dict(steps=100, batch=16, prompts=9, check=25, lr=1e-2, lora_lr=5e-3, keep=.1)
    c = train(loss=loss, templates=('{s}, a {c}',), **how)
    def right(part, role=None):
        logits = c.logits(clip.encode_image(s.image for s in part), role)
        styles = dict(zip(ROLES, part.labels()))['style']
        return (role_logits(logits, 'style').argmax(1) == styles).float().mean().item()
    for part in (grid.split('train'), grid.split('val')):
        assert right(part, 'style') >= right(part)+.15
    if loss != 'uniform': return
    v = clip.encode_image(s.image for s in grid)
    def tells_category(role): return far_from_uniform(role_logits(c.logits(v, role), 'category'))
    assert tells_category('style') < tells_category(None)

def weights_of(control): return {(r, n): p.detach().clone() for r in ROLES for n, p in control.part(r).items()}

@pytest.mark.parametrize('mode', ['lora', 'lora+adapter', 'full'])
def test_what_stands_in_the_tower_learns_at_its_own_rate(clip, train, mode):
    "`lora_lr` 0 leaves it as it was, another rate leads elsewhere, and the adapters go on at `lr`"
    def weights(lora_lr):
        "Those in the tower, those of the adapters"
        own = weights_of(train(mode=mode, steps=2, keep=0., lora_lr=lora_lr))
        adapters = {k: p for k, p in own.items() if 'residual' in k[1]}
        return {k: p for k, p in own.items() if k not in adapters}, adapters
    first = weights_of(new(clip, mode, seed=0))
    still, moved = weights(0.)
    assert still and all(torch.equal(p, first[k]) for k, p in still.items())
    assert (mode == 'lora+adapter') == any(not torch.equal(p, first[k]) for k, p in moved.items())
    def distance(tower): return sum((p-first[k]).norm().item() for k, p in tower.items())
    slow, fast = weights(1e-4)[0], weights(1e-2)[0]
    assert 0 < 5*distance(slow) < distance(fast)

def test_the_best_weights_are_kept(clip, grid, monkeypatch):
    errors = iter([.5, .2, .9]*2)
    monkeypatch.setattr(ControlTrainer, 'held_out', lambda self, role: next(errors))
    trainer = trainer_of(clip, grid, steps=6)
    at = {}
    def report(r):
        if r.held_out is None: return
        at[r.step] = {n: p.clone() for n, p in trainer.control.part('style').items()}
    trainer.report = report
    end = trainer.run_role('style')
    assert [r.held_out for r in trainer.history if r.held_out is not None] == [.5, .2, .9]
    assert (end.best_step, end.best_error, end.ended, end.part) == (4, .2, 'finished', 'style')
    now = trainer.control.part('style')
    assert not all(torch.equal(p, at[6][n]) for n, p in now.items())

def test_two_rates_go_on_as_in_one_piece(train, tmp_path):
    kw = dict(mode='lora+adapter', lora_lr=5e-3)
    whole = train(**kw)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(9):
            c = train(out=tmp_path/'c', minutes=1e-9, **kw)
            if c.about['ended'] == 'finished': break
    assert c.about['ended'] == 'finished'
    assert same_roles(whole, c)

def test_a_home_folder_in_python(clip, train, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    train(out='~/c')
    assert (tmp_path/'home'/'c'/CONTROL_FILE).exists() and not (tmp_path/'~').exists()
    again = load_control_clip('~/c', clip)
    again.save('~/d')
    assert {p.name for p in (tmp_path/'home'/'d').iterdir()} == {CONTROL_FILE, CONFIG_FILE}

@pytest.mark.parametrize('at', [1, 3, 6, 'held out'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_no_step_on_what_is_no_number(train, tmp_path, monkeypatch, at, bad):
    "The training ends in one line; what was good is kept, and the same call goes on from there"
    calls, loss = [], ControlTrainer.loss
    def poisoned(self, *a):
        calls.append(1)
        return loss(self, *a)*(bad if len(calls) == at else 1)
    monkeypatch.setattr(ControlTrainer, 'loss', poisoned)
    if at == 'held out': monkeypatch.setattr(ControlTrainer, 'held_out', lambda self, role: bad)
    with pytest.raises(StylekitError, match='NaN') as e: train(out=tmp_path/'c')
    assert '\n' not in str(e.value)
    assert not (tmp_path/'c'/CONTROL_FILE).exists()
    for p in (tmp_path/'c').glob('work/*-training.pt'):
        assert all(torch.isfinite(v).all() for v in load_state(p, 'training')['model'].values())
    monkeypatch.undo()
    assert same_roles(train(), train(out=tmp_path/'c'))

@pytest.mark.parametrize('error', [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError('CUDA out of memory')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('where', ['loss', 'held_out'])
def test_memory_that_runs_out_names_a_lever(train, tmp_path, monkeypatch, error, where):
    def fail(*a): raise error
    monkeypatch.setattr(ControlTrainer, where, fail)
    with pytest.raises(StylekitError, match='ran out of memory: lower `prompts` or `batch`'): train(out=tmp_path/'c')
    monkeypatch.undo()
    assert train(out=tmp_path/'c').about['ended'] == 'finished'

def test_another_training_is_refused(clip, grid, train, tmp_path):
    begun = partial(train, out=tmp_path/'c', report=lambda r: None)
    begun(minutes=1e-9)
    with pytest.raises(StylekitError, match='another training'): begun(seed=1)
    (tmp_path/'c'/CONTROL_FILE).unlink()                                        # no result yet, only checkpoints
    with pytest.raises(StylekitError, match='other settings'): begun(seed=1)
    assert begun(seed=1, overwrite=True).about['settings'].seed == 1
    done = contents(tmp_path/'c')
    assert {*done} == {CONFIG_FILE, CONTROL_FILE}
    for other in (dict(seed=2), dict(steps=5), dict(keep_prompts=['a house']), dict(templates=('{s}, a {c}',)),
                  dict(hold_out=[('animal', 'ink')]), dict(shots=1)):
        with pytest.raises(StylekitError, match='another training'): begun(**dict(seed=1) | other)
    same_name = replace(grid.shots[0], source=sample_image('owl', 'ink').transpose(0))   # and another picture
    shown = Grid([*grid.shots[1:], same_name], grid.categories, grid.styles)
    with pytest.raises(StylekitError, match='another training'):
        train_control_clip(shown, clip, out=tmp_path/'c', seed=1, **TINY)
    assert contents(tmp_path/'c') == done

@pytest.mark.parametrize('name', [
    'mine.txt', 'style-training.pt', 'ink/owl.png', '.git/HEAD', 'work/mine.pt', 'config.json', 'model.safetensors'])
def test_a_folder_of_others_is_left_alone(train, tmp_path, monkeypatch, name):
    "Neither mixed into nor swept, whatever is insisted on; by its path and as ."
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text('{"mine": 1}')
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, '.'):
        for insist in (False, True):
            with pytest.raises(StylekitError, match='holds other files') as e: train(out=out, overwrite=insist)
            assert name.split('/')[0] in str(e.value) and '\n' not in str(e.value)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()] == [name]
    assert (tmp_path/name).read_text() == '{"mine": 1}'
    assert main(['train-control-clip', str(tmp_path), '--out', '.']) == 2
    assert (tmp_path/name).exists()

def test_what_a_killed_save_leaves_is_mended(clip, train, tmp_path, monkeypatch):
    "Killed between its two files, over the encoders of an earlier training"
    out, begun = tmp_path/'c', partial(train, report=lambda r: None)
    begun(out=out, seed=1)
    old = (out/CONTROL_FILE).read_bytes()
    whole = begun(out=tmp_path/'whole')
    monkeypatch.setattr('stylekit.clip.control_clip.drop_states', lambda *a: None)   # as if killed before
    begun(out=out, overwrite=True)
    monkeypatch.undo()
    (out/CONTROL_FILE).write_bytes(old)
    with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(out, clip)
    with pytest.raises(StylekitError, match='another training'): begun(out=out, seed=1)   # not theirs to mend
    begun(out=out)
    assert load_control_clip(out, clip).config() == whole.config()
    assert {*contents(out)} == {CONFIG_FILE, CONTROL_FILE}

@pytest.mark.parametrize('loss', ['uniform', 'grl', 'T1+T2'])
def test_parts_are_the_whole(train, tmp_path, loss):
    "Stopped after each step, with nothing else the same: bit for bit what one call makes"
    whole = train(out=tmp_path/'whole', loss=loss)
    for i in range(5):
        torch.manual_seed(i)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            part = train(out=tmp_path/'parts', minutes=0, loss=loss)
        assert part.about['ended'] == ('finished' if i > 2 else 'cut short')
    assert part.config() == whole.config()
    for (n, p), q in zip(whole.named_parameters(), part.parameters()): assert torch.equal(p, q), n

def test_the_time_is_for_both(clip, grid, train):
    "The first encoder takes half of it at most, and the second what is left"
    trainer = trainer_of(clip, grid)
    given = {}
    def run_role(role, minutes): given[role] = minutes
    trainer.run_role = run_role
    trainer.run(10)
    assert given['category'] == 5 and 9.9 < given['style'] <= 10
    trainer.run()
    assert given == dict(category=None, style=None)
    for bad in (-1, math.nan, 'x'):
        with pytest.raises(StylekitError, match='minutes'): train_control_clip(grid, clip, minutes=bad)

def test_a_report_says_what_a_training_does(train):
    seen = []
    c = train(report=seen.append)
    steps = [(2, ''), (4, ''), (4, 'finished')]
    assert [(r.part, r.step, r.ended) for r in seen] == [(role, *step) for role in ROLES for step in steps]
    for r in seen:
        if r.ended: continue
        assert isinstance(r, TrainingReport)
        assert r.loss > 0 and r.held_out > 0 and r.seconds > 0
    assert c.about['steps'] == dict(category=4, style=4)
    assert c.about['ended'] == 'finished'


# files

WORDS = Words(('cat', 'dog'), ('ink', 'flat'))

def test_files_that_are_not_whole(clip, tmp_path):
    c = disturbed(new(clip, words=WORDS))
    back = load_control_clip(c.save(tmp_path/'c'), clip)
    for role in ROLES: assert torch.equal(back.features(TEXTS, role), c.features(TEXTS, role))
    assert back.words == c.words
    v = clip.encode_text(TEXTS)
    assert torch.allclose(back.logits(v, 'style'), c.logits(v, 'style'))
    with pytest.raises(StylekitError, match='no control_clip'): load_control_clip(tmp_path)
    config = tmp_path/'c'/CONFIG_FILE
    good = json.loads(config.read_text())
    config.write_text(json.dumps(good | dict(mode='lora')))
    with pytest.raises(StylekitError, match='config.json of c was changed'): load_control_clip(tmp_path/'c', clip)
    config.write_text(json.dumps(resealed(good | dict(rho=.1))))
    with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(tmp_path/'c', clip)
    config.write_text('{')
    with pytest.raises(StylekitError, match='config.json'): load_control_clip(tmp_path/'c', clip)

def as_before(folder):
    "The files as they were before they had hashes"
    state = load_file(folder/CONTROL_FILE)
    save_file(state, folder/CONTROL_FILE)
    config = json.loads((folder/CONFIG_FILE).read_text())
    for k in ('kind', 'sha256', 'ended'): config.pop(k, None)
    (folder/CONFIG_FILE).write_text(json.dumps(config))
    return state

WRONG_CONFIGS = dict(
    mode='prefix', rank='4', rho=-1, temperature=None, base_sha256=3, words=[], settings=3, held_out=[['a']],
    steps={'style': 'x'}, more=1)

def test_files_without_hashes_are_read_with_care(clip, tmp_path):
    "Those of an earlier version: types and shapes must be right, and half of a pair is no pair"
    c = disturbed(new(clip, words=WORDS))
    folder = c.save(tmp_path/'c')
    state = as_before(folder)
    back = load_control_clip(folder, clip)
    for role in ROLES: assert torch.equal(back.features(TEXTS, role), c.features(TEXTS, role))
    name = next(n for n, t in state.items() if t.ndim == 2 and len(t) > 1 and n != 'base_reads')
    weight = state[name]
    wrong_states = [state | {'more': torch.zeros(1)}, {k: v for k, v in state.items() if k != name}]
    wrong_states += [state | {name: w} for w in (weight[:1], weight.flatten(), weight.long(), weight*torch.nan)]
    for wrong in wrong_states:
        save_file(wrong, folder/CONTROL_FILE)
        with pytest.raises(StylekitError): load_control_clip(folder, clip)
    save_file(state, folder/CONTROL_FILE)
    text = (folder/CONFIG_FILE).read_text()
    for key, wrong in WRONG_CONFIGS.items():
        (folder/CONFIG_FILE).write_text(json.dumps(json.loads(text) | {key: wrong}))
        with pytest.raises(StylekitError, match=f'config.json of c.*{key}'): load_control_clip(folder, clip)
    (folder/CONFIG_FILE).write_text(text)
    whole = c.save(tmp_path/'whole')
    for name in CONFIG_FILE, CONTROL_FILE:
        mixed = tmp_path/f'mixed-{name}'
        shutil.copytree(whole, mixed)
        shutil.copy(folder/name, mixed)
        with pytest.raises(StylekitError, match='do not belong together'): load_control_clip(mixed, clip)
    sealed = load_control_clip(folder, clip).save(folder)
    assert load_control_clip(sealed, clip).config() == c.config()

def test_every_change_of_a_file_is_refused(clip, tmp_path):
    "Config: keys with a hash that fits, and bytes; weights: bytes"
    c = disturbed(new(clip, 'embedding', words=WORDS))
    c.about = dict(settings=ControlSettings(**TINY), pictures=2, held_out=(('cat', 'ink'),), run_id='a',
                   steps=dict(style=4), ended='finished')
    folder = c.save(tmp_path/'c')
    def read(_): return read_control_clip(folder)[0]
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
    def save(): disturbed(c).save(tmp_path/'c')
    for _ in ('a new folder', 'older encoders'): check_full_disk(monkeypatch, tmp_path/'c'/name, save)

def test_the_base_is_checked_by_how_it_reads(clip, tmp_path):
    "Half precision is the same reader; other weights are not, nor is another tokenizer"
    folder = disturbed(new(clip)).save(tmp_path/'c')
    half = copy.deepcopy(clip.model.text_model).to(torch.bfloat16).float()
    other = copy.deepcopy(clip.model.text_model)
    with torch.no_grad():
        for p in other.parameters(): p += .1*torch.randn_like(p)
    def as_clip(tower): return type('Pipe', (), dict(text_encoder=tower, tokenizer=clip.tokenizer))()
    control = load_control_clip(folder, clip)
    assert load_control_clip(folder, as_clip(half))
    assert check_base(control, as_clip(half))
    with pytest.raises(StylekitError, match='another text encoder'): load_control_clip(folder, as_clip(other))
    with pytest.raises(StylekitError, match='another text encoder'): check_base(control, as_clip(other))


# the cross-attention

def test_joined_answers_are_their_formulas():
    torch.manual_seed(0)
    q = torch.randn(2, 3, 5, 4, dtype=torch.double)
    ks, vs = (list(torch.randn(3, 2, 3, 7, 4, dtype=torch.double)) for _ in range(2))
    scores = [q@k.mT/2 for k in ks]
    o = [s.softmax(-1)@v for s, v in zip(scores, vs)]
    a = .3
    odds = torch.cat([scores[0].exp()*(1-a), scores[1].exp()*a], -1)
    want = dict(
        lerp=(1-a)*o[0]+a*o[1],
        add=o[0]+a*o[1],
        concat=odds/odds.sum(-1, keepdim=True)@torch.cat(vs[:2], 2),
        kv_swap=scores[0].softmax(-1)@((1-a)*vs[0]+a*vs[1]))
    for combine, x in want.items():
        assert torch.allclose(join_attention(q, ks[:2], vs[:2], combine, (1., a)), x, atol=1e-10), combine
    delta = o[0]+.7*(o[1]-o[0])+a*(o[2]-o[0])
    assert torch.allclose(join_attention(q, ks, vs, 'delta', (.7, a)), delta, atol=1e-10)

def load_pipe(folder):
    from diffusers import StableDiffusionPipeline
    none = dict(safety_checker=None, feature_extractor=None)
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **none)

@pytest.fixture(scope='module')
def pipes(models):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
    p = load_pipe(models('small'))
    made = dict(text=p)
    for kind, cls in dict(img2img=StableDiffusionImg2ImgPipeline, inpaint=StableDiffusionInpaintPipeline).items():
        made[kind] = cls(**p.components, requires_safety_checker=False)
    for x in made.values(): x.set_progress_bar_config(disable=True)
    return made

def draw(pipe, prompt=('an owl', 'a cat face'), seed=0, **kw):
    how = dict(num_inference_steps=3, guidance_scale=4., output_type='latent')
    how['generator'] = torch.Generator().manual_seed(seed)
    kind, x = type(pipe).__name__, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if 'Img2Img' in kind: how |= dict(image=x, strength=.6)
    else: how |= dict(height=64, width=64)
    if 'Inpaint' in kind: how |= dict(image=x, mask_image=torch.ones(2, 1, 64, 64))
    if prompt: how['prompt'] = list(prompt)
    return pipe(**how | kw).images

def of(pipe, mode='lora+adapter', size=.2):
    return disturbed(ControlClip(pipe.text_encoder, pipe.tokenizer, mode=mode), size)

@pytest.mark.parametrize('kind', ['text', 'img2img', 'inpaint'])
def test_the_ends_are_one_encoder_alone(pipes, kind):
    """lerp at 0 and 1, and embed between, against the untouched pipeline fed with these embeddings;
    several pictures for each prompt"""
    pipe = pipes[kind]
    c = of(pipe)
    with torch.no_grad():
        category, style, plain = (c.tokens(c.ids(['an owl', 'a cat face'], 'max_length'), r)
                                  for r in ('category', 'style', None))
        nothing = c.tokens(c.ids(['', ''], 'max_length'))
    def fed(e, **kw): return draw(pipe, None, prompt_embeds=e, negative_prompt_embeds=nothing, **kw)
    many = {} if kind == 'inpaint' else dict(num_images_per_prompt=2)
    for combine, alpha, want in (
            ('lerp', 0., category), ('lerp', 1., style), ('concat', 1., style), ('kv_swap', 0., category),
            ('delta', (1., 0.), category), ('delta', (0., 1.), style), ('delta', (0., 0.), plain),
            ('add', 0., category), ('embed', .6, category+.6*(style-plain))):
        with control_clip(pipe, c, alpha, combine): got = draw(pipe, **many)
        assert torch.allclose(got, fed(want, **many), atol=1e-5), (combine, alpha)
    assert (fed(style)-fed(category)).abs().max() > 1e-3

def test_equal_encoders_and_zero_are_the_base_picture(pipes):
    pipe = pipes['text']
    def drawn(): return draw(pipe, negative_prompt=['black ink']*2)
    base = drawn()
    same = ControlClip(pipe.text_encoder, pipe.tokenizer)
    for combine in ('lerp', 'concat', 'kv_swap', 'delta', 'embed'):
        with control_clip(pipe, same, .7, combine): assert torch.allclose(drawn(), base, atol=1e-5), combine
    with control_clip(pipe, of(pipe), 0., 'delta'): assert torch.allclose(drawn(), base, atol=1e-5)

def test_everything_is_put_back(pipes):
    "Processors, methods and weights, after use and after an error within"
    pipe, base = pipes['text'], draw(pipes['text'])
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    processors, own = dict(pipe.unet.attn_processors), dict(pipe.__dict__)
    text = list(pipe.text_encoder.state_dict())
    with pytest.raises(ZeroDivisionError):
        with control_clip(pipe, of(pipe), dual=(3., 5.)):
            assert pipe.unet.state_dict().keys() == state.keys()
            assert draw(pipe).shape == base.shape
            1/0
    assert pipe.unet.attn_processors.keys() == processors.keys()
    assert all(pipe.unet.attn_processors[k] is p for k, p in processors.items())
    assert pipe.__dict__.keys() == own.keys() and 'forward' not in pipe.unet.__dict__
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())
    assert list(pipe.text_encoder.state_dict()) == text
    assert torch.equal(draw(pipe), base)
    with pytest.raises(StylekitError, match='nothing is attached'): detach(pipe)

def test_settings_change_between_steps(pipes):
    pipe = pipes['text']
    with control_clip(pipe, of(pipe), 0.) as steer:
        still = draw(pipe)
        def turn(p, i, t, kw):
            if i == 1: steer.alpha = {'up_blocks': 1.}
            return kw
        draw(pipe, num_inference_steps=2, callback_on_step_end=turn)
        assert steer.alpha == {'up_blocks': 1.}
        steer.alpha = 0.
        turned = draw(pipe, callback_on_step_end=turn)
        assert (turned-still).abs().max() > 1e-4
        steer.alpha = {'': 1., 'up_blocks': 0.}
        part = draw(pipe)
        steer.alpha = {'': 1., 'down_blocks': 0., 'up_blocks': 0., 'mid_block': 0.}
        assert torch.allclose(draw(pipe), still, atol=1e-6)
        assert (part-still).abs().max() > 1e-4
    with control_clip(pipe, of(pipe), 1., blocks='style_up') as steer:
        assert steer.alpha_at('up_blocks.1.attentions.0.x') == (1., 1.)
        assert steer.alpha_at('up_blocks.2') == (0., 0.)

def test_dual_guidance_is_its_formula(pipes):
    "ε_∅ + w_c(ε_c − ε_∅) + w_s(ε_cs − ε_c), by three calls of the plain UNet"
    pipe, c = pipes['text'], of(pipes['text'])
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad():
        ec = c.tokens(c.ids('an owl', 'max_length'), 'category')
        e0 = c.tokens(c.ids('', 'max_length'))
    def plain(e): return pipe.unet(z, t, e, return_dict=False)[0]
    for combine, alpha in (('lerp', .4), ('delta', (1., .4)), ('embed', .4)):
        with torch.no_grad():
            nothing, cat = plain(e0), plain(ec)
            with control_clip(pipe, c, alpha, combine) as steer: both = plain(steer.embeds(['an owl']))
            with control_clip(pipe, c, alpha, combine, dual=(3., 5.)) as steer:
                pipe._guidance_scale = 4.
                embeds = torch.cat([steer.embeds([''], True), steer.embeds(['an owl'])])
                out = pipe.unet(torch.cat([z, z]), t, embeds, return_dict=False)[0]
        if combine == 'embed': cat = both   # one text: there is no category alone in it
        e0_, e1 = out.chunk(2)
        assert torch.allclose(e0_ + 4.*(e1-e0_), nothing + 3.*(cat-nothing) + 5.*(both-cat), atol=1e-4), combine

def test_other_guests_are_refused(pipes, models):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    pipe = pipes['text']
    c = of(pipe)
    p = load_pipe(models('small'))
    p.unet.fuse_qkv_projections()
    with pytest.raises(StylekitError, match='[Ff]use'): attach(p, c)
    p.unet.unfuse_qkv_projections()
    attach(p, c)
    detach(p)
    p = load_pipe(models('small'))
    class IPAdapterAttnProcessor2_0:
        def __call__(self, *a, **k): pass
    processors = p.unet.attn_processors
    processors |= {n: IPAdapterAttnProcessor2_0() for n in processors if n.endswith('attn2.processor')}
    p.unet.set_attn_processor(processors)
    with pytest.raises(StylekitError, match='unload_ip_adapter'): attach(p, c)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    p = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    with pytest.raises(StylekitError, match='controlnet'): attach(p, c)
    from stylekit import load_backbone
    with pytest.raises(StylekitError, match='SDXL'): attach(load_backbone(models('sdxl')), c)
    with pytest.raises(StylekitError, match='another text encoder'): attach(load_backbone(), c)
    with pytest.raises(StylekitError, match='no UNet'): attach(object(), c)
    with control_clip(pipe, c):
        with pytest.raises(StylekitError, match='attached already'): attach(pipe, c)
        e = torch.zeros(2, 77, 32)
        with pytest.raises(StylekitError, match='give words'):
            draw(pipe, None, prompt_embeds=e, negative_prompt_embeds=e)
        with pytest.raises(StylekitError, match='clip_skip'): draw(pipe, clip_skip=1)
    for bad, why in ((dict(alpha=3.), 'alpha'), (dict(combine='sum'), 'choose'), (dict(blocks='down'), 'choose'),
                     (dict(alpha={'mid': 'x'}), 'alpha')):
        with pytest.raises(StylekitError, match=why): ControlGuidance(c, **bad)

def test_pictures_begin_on_white(models):
    "The first latents are a white sheet under the noise; so the embedded model draws on white, whatever the noise"
    from stylekit import load_backbone
    from stylekit.scores import Score, ddim, ddim_timesteps
    for b in load_backbone(models('small')), load_backbone():
        noise = torch.randn(3, b.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        A = b.alphas_cumprod[700].item()
        side = 16*b.vae_scale_factor
        white = b.encode(torch.ones(1, 3, side, side))
        for t in 700, torch.tensor(700): # a scheduler's timesteps are tensors
            assert torch.allclose(latents_on_white(b, noise, t), A**.5*white + (1-A)**.5*noise, atol=1e-5)
    ts, score = ddim_timesteps(914, 6), Score(b, (), 3., b.encode_prompt(''))
    def corner(z):
        with torch.no_grad(): x = b.decode(ddim(score, b, z, ts, b.encode_prompt(['a bicycle']*3)))
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
    text = dict(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768, **ids)
    vision = dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=14, projection_dim=768)
    big = Clip('vit-l-14', CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)), tok)
    grid = Grid(Shot(n, l, n, sample_image(n, l), 'train') for n in ('owl', 'taxi') for l in ('flat', 'ink'))
    c = train_control_clip(grid, big, steps=1, batch=2, prompts=4, out=tmp_path/'c')
    assert sum(p.numel() for p in c.part('style').values()) < 1e6
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32),
        norm_num_groups=8, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
    class Pipe:
        text_encoder, tokenizer = big.model.text_model, tok
        def encode_prompt(self, *a, **k): pass
    pipe = Pipe()
    pipe.unet = unet
    with control_clip(pipe, tmp_path/'c') as steer, torch.no_grad():
        e = steer.embeds(['an owl'])
        assert e.shape == (1, 154, 768)
        assert unet(torch.randn(1, 4, 8, 8), 500, e).sample.shape == (1, 4, 8, 8)
