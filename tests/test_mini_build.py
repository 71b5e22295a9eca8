"The build of the embedded model: what a stage leaves when it fails, and the order of the notebooks"
import json, re
from dataclasses import replace
from pathlib import Path
import pytest
from stylekit.core import StylekitError
from stylekit.lora import load_style
from stylekit.mini import build as B
from stylekit.mini.data import sample_corpus
from stylekit.mini.fast import Limit
from stylekit.mini.unet import BaseTraining


@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return sample_corpus(tmp_path_factory.mktemp('build')/'corpus')


SHORT = Limit(steps=1)
ROUNDS = tuple(replace(how, limit=SHORT, batch=1, copies=1) for how in B.BuildPlan().rounds)
SMALL = B.BuildPlan(SHORT, SHORT, SHORT, SHORT, crops=2, things=2, training=BaseTraining(1, slots=1, first=1),
                    rounds=ROUNDS, decoder_crops=2, most=2, looks=('ink',))


def test_a_stage_that_fails_leaves_nothing_and_the_ones_before_it(corpus, tmp_path, monkeypatch):
    data, work = corpus.root.parent, tmp_path/'work'
    how = dict(plan=SMALL, device='cpu', report=None)
    def broken(*args, **kwargs): raise StylekitError('the loss is NaN')
    with monkeypatch.context() as m:
        m.setattr(B, 'refine_base', broken)
        with pytest.raises(StylekitError, match='NaN'): B.build_model(data, work, **how)
    assert sorted(p.name for p in work.iterdir()) == ['clip', 'vae']
    with monkeypatch.context() as m:
        m.setattr(B, 'refine_autoencoder', broken)        # it is not asked again
        m.setattr(B, 'refine_decoder', broken)
        with pytest.raises(StylekitError, match='NaN'): B.build_model(data, work, **how)
    assert sorted(p.name for p in work.iterdir()) == ['base', 'clip', 'styles', 'vae']
    assert B.build_model(data, work, **how) == work/'model'


def test_a_second_round_that_fails_leaves_no_style(corpus, tmp_path, monkeypatch):
    "A style that has only learnt its first round is not taken for a whole one"
    data, work, learn = corpus.root.parent, tmp_path/'work', B.learn_style
    def once(*args, go_on=False, **how):
        if go_on: raise StylekitError('the loss is NaN')
        return learn(*args, go_on=go_on, **how)
    monkeypatch.setattr(B, 'learn_style', once)
    with pytest.raises(StylekitError, match='NaN'): B.build_model(data, work, plan=SMALL, device='cpu', report=None)
    assert not (work/'styles'/'ink').exists() and (work/'base').exists()


def test_looks_that_learn_once(corpus, tmp_path, monkeypatch):
    seen, learn = [], B.learn_style
    def watched(backbone, views, words, how, **rest):
        seen.append((words, how.grounds, rest['go_on']))
        return learn(backbone, views, words, how, **rest)
    monkeypatch.setattr(B, 'learn_style', watched)
    plan = replace(SMALL, looks=('ink', 'watercolour'))
    B.build_model(corpus.root.parent, tmp_path/'work', plan=plan, device='cpu', report=None)
    ink, wash = 'black ink drawing', 'watercolour painting'
    assert seen == [(ink, True, False), (ink, False, True), (wash, True, False)]
    said = [load_style(tmp_path/'work'/'styles'/look).metadata['stylekit.steps'] for look in plan.looks]
    assert said == ['1 of 1, then 1 of 1 on white', '1 of 1']


ROOT = Path(__file__).parent.parent/'nbs'/'mini'

@pytest.mark.skipif(not ROOT.exists(), reason='not a clone')
def test_notebooks_import_only_from_those_before_them():
    "What is exported everywhere; up to the build, what the notebooks show as well"
    rooms = []
    for path in sorted(ROOT.glob('*.ipynb')):
        cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
        shown = cells if 'build' not in rooms else [c for c in cells if c.startswith('#| export')]
        asked = {*re.findall(r'from stylekit\.mini\.(\w+) import', '\n'.join(shown))}
        assert asked <= {*rooms}, f'{path.name} imports {asked-{*rooms}}, which comes after it'
        if room := re.search(r'#\| default_exp mini\.(\w+)', '\n'.join(cells)): rooms.append(room[1])
    assert rooms[:7] == ['data', 'fast', 'vae', 'views', 'clip', 'unet', 'build']
