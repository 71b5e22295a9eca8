"Training a generator: it goes on bit for bit, has its folder for itself, and names what is wrong"
from pathlib import Path
import pytest, torch
from stylekit import StylekitError, load_backbone
from stylekit.core import folder_lock
from stylekit.feedforward import GENERATOR_FILE, FeedForward, train_feedforward
from stylekit.finetune import Example
from stylekit.images import sample, samples
from stylekit.training import TrainingReport

HOW = dict(widths=(8, 16), blocks=(1, 1), steps=4, batch=2, check=2, lr=1e-2, views=1)


@pytest.fixture(scope='module')
def b(models): return load_backbone(models('sd15'))

@pytest.fixture(scope='module')
def style(b, random_style): return str(random_style(b))

@pytest.fixture(scope='module')
def examples():
    return [Example(Path(f'{n}.png'), sample(n).resize((64, 64)), f'a {n}', n) for n in samples()[:3]]

@pytest.fixture(scope='module')
def train(b, style, examples):
    def go(out, name='g', **changes): return train_feedforward(style, examples, name, backbone=b, out=out, **HOW | changes)
    return go

@pytest.fixture(scope='module')
def made(train, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    return train(out), out/'g'/GENERATOR_FILE

def test_stopped_it_goes_on_bit_for_bit(train, made, tmp_path):
    said = []
    part = train(tmp_path, minutes=1e-9, report=said.append)
    assert isinstance(said[-1], TrainingReport) and said[-1].ended == 'cut short' and part.about['steps_done'] == said[-1].step < 4
    whole = train(tmp_path)
    assert whole.about['steps_done'] == 4 and all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), made[0].net.state_dict().values()))
    assert [p.name for p in (tmp_path/'g').iterdir()] == [GENERATOR_FILE]

def test_another_training_is_not_mixed_in(train, tmp_path):
    train(tmp_path, minutes=1e-9)
    (tmp_path/'g'/'work'/'mine.pt').write_text('of the user')
    before = (tmp_path/'g'/GENERATOR_FILE).read_bytes()
    with pytest.raises(StylekitError, match='another training'): train(tmp_path, lr=1e-3)
    assert (tmp_path/'g'/GENERATOR_FILE).read_bytes() == before
    (tmp_path/'g'/GENERATOR_FILE).unlink()
    with pytest.raises(StylekitError, match='another training'): train(tmp_path, lr=1e-3)   # its checkpoint alone
    assert train(tmp_path, lr=1e-3, overwrite=True).about['steps_done'] == 4
    assert [p.name for p in (tmp_path/'g'/'work').iterdir()] == ['mine.pt']

def test_one_run_for_a_folder_and_for_a_model(train, b, tmp_path):
    with folder_lock(tmp_path/'held'), pytest.raises(StylekitError, match='another run is writing'): train(tmp_path, 'held')
    with b.lease('somebody'), pytest.raises(StylekitError, match='drawing for another run'): train(tmp_path)
    assert not (tmp_path/'g').exists() and not getattr(b.unet, 'peft_config', {})

def test_steps_that_are_no_numbers_are_not_taken(train, tmp_path, monkeypatch):
    monkeypatch.setattr('stylekit.feedforward.FeedForwardTrainer.loss', lambda self, g: self.net.head.weight.sum()*torch.nan)
    with pytest.raises(StylekitError, match='NaN or infinite at step 1'): train(tmp_path)
    assert not (tmp_path/'g'/GENERATOR_FILE).exists()

def test_memory_that_runs_out_is_named(train, b, tmp_path, monkeypatch):
    def full(self, g): raise MemoryError
    monkeypatch.setattr('stylekit.feedforward.FeedForwardTrainer.loss', full)
    with pytest.raises(StylekitError, match='ran out of memory: lower `batch`'): train(tmp_path)
    assert not getattr(b.unet, 'peft_config', {})

def test_a_changed_file_is_refused(made, b, tmp_path):
    raw = made[1].read_bytes()
    for i in (len(raw)-3, len(raw)//2):
        (tmp_path/'x.safetensors').write_bytes(raw[:i]+bytes([raw[i]^1])+raw[i+1:])
        with pytest.raises(StylekitError, match='was changed'): FeedForward.load(tmp_path/'x.safetensors', b)
