"Every text of every panel has its Japanese, and every Japanese its text"
import ast, re
from pathlib import Path
import pytest
import stylekit as s
from stylekit.app.languages import is_english, read_texts, translate, untranslated
from stylekit.app.panels import Panel
from stylekit.known_models import KNOWN

# The same in every language: styles, models, presets, files, what is typed as an example
NAMES = [*s.list_styles(), *KNOWN, 'fast', 'paper', 'soft cartoon', 'px', 'pictures/', '#e4002b, white', 'English',
         '日本語', 'a cat face', 'the label', 'stylekit stylize', 'owl.png', 'taxi.png']
SOURCES = Path(s.__file__).parent

@pytest.fixture
def told(monkeypatch):
    "Whatever panels say, errors aside"
    said, say = [], Panel.say
    def note(panel, text, error=False, announce=True):
        if not error: said.append(text)
        say(panel, text, error, announce)
    monkeypatch.setattr(Panel, 'say', note)
    return said

@pytest.fixture(scope='module')
def model():
    from stylekit.backbone import load_backbone
    return load_backbone()

@pytest.fixture(scope='module')
def folders(tmp_path_factory, model):
    "Pictures, and results of theirs"
    home = tmp_path_factory.mktemp('languages')
    for folder, look in dict(source='render', a='flat', b='ink').items():
        (home/folder).mkdir()
        for name in ('owl', 'taxi'): s.sample_image(name, look).save(home/folder/f'{name}.png')
    s.stylize_folder(home/'source', home/'out', style='ink', steps=2, backbone=model)
    return home

def lacking(panel, told): return untranslated(panel.speaker, NAMES) + [t for t in told if is_english(t, NAMES)]

def check(panel, told=()):
    assert lacking(panel, told) == []
    panel.shut()

def test_stylize(told, model, tmp_path):
    "Before a run, after it, with limits, takes, variants, another model"
    panel = s.StylizePanel(steps=2, limits='edge_f1=.5', backbone=model, lang='ja', takes=tmp_path/'takes')
    assert lacking(panel, told) == []
    panel.start.click(), panel.wait()
    panel.takes.vary.click(), panel.wait()
    panel.takes.choose(1), panel.takes._delete(2), panel.takes._undo()
    panel.base.list.value = 'SDXL'
    panel.limits.search.value = panel.stay.button.value = True
    assert panel.pause.get_state('description')['description'] == '一時停止' and panel.pause.description == 'Pause'
    check(panel, told)

def test_waiting(told, model, monkeypatch):
    "A run that waits, is paused, and is sought within limits says so"
    from stylekit.app.run_status import paused_words, step_words
    simple = s.StylizePanel(steps=2, backbone=model, simple=True, lang='ja')
    simple.start.click(), simple.wait()
    run = simple.run
    monkeypatch.setattr(type(run), 'has_turn', False)
    run.queue = True
    said = [paused_words(run), step_words(run, 64., 'GPU memory: 2.0 GiB in use, 1.0 GiB free'), run._queue_note(0, 0),
            run._queue_note(1, 2), 'Try 2 of at most 7, λ = 0.3: ' + step_words(run, 7000.),
            'Variant 1 of 3, seed 4: measuring', 'Every limit is kept at λ = 0.3 (7 tries).']
    check(simple, told+said)
    assert translate(said[1]) == 'ステップ 2 / 2（残り約 64 秒）。GPU メモリ：2.0 GiB 使用中、空き 1.0 GiB'

def test_folders(told, folders, model):
    "The page with its three views, a folder that is made, results that are looked through"
    page = s.PagePanel(folders=True, lang='ja')
    for name in ('folder', 'review'): page.tabs.value = name
    folder = s.FolderPanel(folders/'source', folders/'made', backbone=model, steps=2, lang='ja')
    folder.start.click(), folder.wait()
    review = s.ReviewPanel(folders/'out', lang='ja', steps=2, backbone=model)
    for mode in ('reasons', 'protect', ''): review._open(mode)
    review._press('a'), review._press('z'), review._press('s'), review.wait(60), review._press('r'), review._press('1')
    for panel in (page, folder, review): check(panel, told)

def test_the_others(told, folders, model):
    "Cut-off, grid, training, Control-CLIP, votes"
    from stylekit.clip.control_clip import ControlClip
    from stylekit.pilot.study import make_study
    make_study(folders/'study', dict(a=folders/'a', b=folders/'b'), folders/'b', folders/'source')
    control = ControlClip(model.text_encoders[0], model.tokenizers[0], mode='adapter')
    grid = s.ComparePanel(lang='ja', lam=(0.,), guidance_scale=(1.,), steps=2, backbone=model)
    grid.start.click(), grid.wait(), grid.adopt((0., 1.)), grid.look((0., 1.))
    drawn = s.ControlClipPanel(control, styles=('soft cartoon',), steps=1, backbone=model, lang='ja')
    drawn.draw(), drawn.wait()
    for panel in (grid, drawn, s.SpectrumPanel(lang='ja'), s.LoraPanel(lang='ja')): check(panel, told)
    vote = s.VotePanel(folders/'study', 'ann', lang='ja')
    check(vote)
    vote = s.VotePanel(folders/'study')
    vote.pulse.lang = 'ja'                                     # the browser's
    assert vote.switch.value == 'ja'
    check(vote)

def test_errors_stay_english():
    panel = s.SpectrumPanel(lang='ja')
    panel.say('the folder is empty: give a folder of pictures', error=True)
    assert panel.status.get_state('error')['error'] == 'エラー：the folder is empty: give a folder of pictures'

def _texts(path):
    "All string constants of a module; what is computed in an f-string is left open"
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str): yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield ''.join(v.value if isinstance(v, ast.Constant) else '{}' for v in node.values)

def _words(text): return re.findall('[a-z]+', text.lower())

def _runs(english):
    "Three words in a row, or all if there are fewer, of each piece of an entry"
    for piece in re.split(r'\{\w+(?::d)?\}|</?\w+>|\(.\)', english):
        words = _words(piece)
        for i in range(max(1, len(words)-2)):
            if words: yield ' '.join(words[i:i+3])

def test_no_entry_is_dead():
    "Some words of every entry stand in a module"
    rooms = 'limits folders review letters training measure/proof known_models'.split()    # whose sentences panels show
    modules = [*(SOURCES/'app').glob('*.py'), *(SOURCES/f'{room}.py' for room in rooms)]
    there = '\n'.join(' '.join(_words(t)) for p in modules for t in _texts(p))
    samples = {f'{made}{n.replace("-", " ")}' for n in s.list_samples() for made in ('', 'a ', 'an ')}
    dead = [e for e in read_texts() if e not in samples and [*_runs(e)] and not any(r in there for r in _runs(e))]
    assert dead == []

def test_values_come_through():
    "Every value of a template is in its Japanese"
    for english, japanese in read_texts().items():
        values = {name for name, _ in re.findall(r'\{(\w+)(:d)?\}', english)}
        assert {*re.findall(r'\{(\w+)\}', japanese)} == values, english

def test_a_language_reaches_every_page(results, tmp_path, monkeypatch):
    from stylekit.app import serve
    from stylekit.cli import main
    opened, out = [], results(tmp_path)
    monkeypatch.setattr(serve, 'serve_panel', lambda panel, how, *rest: opened.append(how))
    for command in (['app'], ['review', str(out)]):
        assert not main([*command, '--no-browser', '--lang', 'ja']) and not main([*command, '--no-browser'])
        assert main([*command, '--lang', 'fr']) == 2
    assert [how.get('lang') for how in opened] == ['ja', None]*2
