"""Captions by a model: tiny ones of the real classes with their real processors; what is there is never touched, what
was written is never silent, and a killed run goes on where it was"""
import json, os, shutil, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stylekit import captions as cap
from stylekit.captions import *
from stylekit.core import StylekitError, file_sha256
from stylekit.images import list_samples, sample_image
from stylekit.pictures import list_pictures
from stylekit.records import read_lines

NAMES = ['owl', 'taxi', 'penguin']
THINGS = ['an owl', 'a taxi', 'a penguin']
SENTENCES = [f'A drawing of {thing} on a white background.' for thing in THINGS]


# ---- tiny models of the real classes

def byte_tokenizer(folder):
    "BART's tokenizer with its bytes and a few joints"
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BartTokenizer
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    tok.train_from_iterator(['What does the image describe?', *SENTENCES]*3, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    said = json.loads(tok.to_str())['model']
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'vocab.json').write_text(json.dumps(said['vocab']))
    (folder/'merges.txt').write_text('#version: 0.2\n' + '\n'.join(map(' '.join, said['merges'])) + '\n')
    return BartTokenizer(vocab=str(folder/'vocab.json'), merges=str(folder/'merges.txt'),
                         extra_special_tokens={'image_token': '<image>'})

def tiny_florence(folder):
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers import CLIPImageProcessorPil
    from transformers.models.florence2 import Florence2VisionConfig
    tok = byte_tokenizer(folder)
    vision = Florence2VisionConfig(
        depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True),
        embed_dim=(16, 32), num_heads=(1, 2), num_groups=(1, 2), window_size=4, projection_dim=32, drop_path_rate=0)
    text = BartConfig(vocab_size=len(tok), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                      decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, dropout=0,
                      max_position_embeddings=128)
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(
        Florence2Config(text_config=text, vision_config=vision, image_token_id=tok.image_token_id))
    for w in model.parameters():
        if w.ndim > 1: w.data *= 10
    pixels = CLIPImageProcessorPil(size=dict(height=32, width=32), do_center_crop=False, image_seq_length=17)
    return model, Florence2Processor(pixels, tok)

def tiny_blip(folder):
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil
    from transformers import BlipProcessor
    words = '[PAD] [UNK] [CLS] [SEP] [MASK] a red mug on the table photo of cat and dog'.split()
    n = len(words)
    folder.mkdir(parents=True, exist_ok=True)
    tok = BertTokenizer(vocab={w: i for i, w in enumerate(words)})
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=16)
    # as the real one, it begins with a word that its tokenizer does not have
    text = small | dict(vocab_size=n+2, encoder_hidden_size=16, bos_token_id=n, eos_token_id=3, sep_token_id=3,
                        pad_token_id=0, max_position_embeddings=128, initializer_range=.5)
    torch.manual_seed(1)
    config = BlipConfig(text_config=text, vision_config=small | dict(image_size=32, patch_size=16), projection_dim=16)
    return BlipForConditionalGeneration(config).eval(), BlipProcessor(
        BlipImageProcessorPil(size=dict(height=32, width=32)), tok)

def teach(model, processor, steps=120):
    "By heart: a picture that is read in another way would not bring its sentence back"
    asked = processor(images=[sample_image(n) for n in NAMES], text=['<CAPTION>']*3, return_tensors='pt')
    labels = processor.tokenizer(SENTENCES, padding=True, return_tensors='pt').input_ids
    labels = labels.masked_fill(labels == processor.tokenizer.pad_token_id, -100)
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = model(**asked, labels=labels).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    model.eval()

@pytest.fixture(scope='module')
def florence(tmp_path_factory):
    "A folder as transformers saves it, of a model that knows three pictures"
    folder = tmp_path_factory.mktemp('models')/'florence'
    model, processor = tiny_florence(folder.parent/'words')
    teach(model, processor)
    for part in (model, processor): part.save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')/'blip'
    for part in tiny_blip(folder): part.save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def captioner(florence): return load_captioner(florence, 'cpu')

@pytest.fixture
def shop(tmp_path):
    "Three pictures of which nothing is known"
    folder = tmp_path/'shop'
    folder.mkdir()
    for i, n in enumerate(NAMES): sample_image(n).save(folder/f'IMG_000{i}.png')
    return folder

def texts(folder): return {p.name: p.caption for p in list_pictures(folder)}
def whole(folder): return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob('*') if p.is_file()}


# ---- words

@pytest.mark.parametrize('said, short', [
    ('a photo of a red mug on a table', 'a red mug on a table'), ('A Photo of a Red Mug.', 'a red mug'),
    ('The image shows a red mug.', 'a red mug'), ('This is a picture of a red mug', 'a red mug'),
    ('In this image we can see a red mug.', 'a red mug'), ('there are two mugs on a table', 'two mugs on a table'),
    ('a close-up photo of a mug', 'a mug'), ('an aerial view of a city', 'a city'),
    ('arafed dog on a bed', 'dog on a bed'),
    ('a red mug isolated on a white background.', 'a red mug'), ('a mug, on a plain light grey background', 'a mug'),
    ('a red mug on a white background with a handle', 'a red mug with a handle'),
    ('a dog in the background', 'a dog in the background'),
    ('a white dog on a white sofa', 'a white dog on a white sofa'),
    ('A man who is riding a horse. The sky is blue.', 'a man riding a horse'), ('photos of cats', 'cats'),
    ('a drawing board', 'a drawing board'), ('the view', 'the view'), ('a mug\ufffd\n\x07 here', 'a mug here'),
    ('ein roter Becher', 'ein roter becher'), ('красный дом', 'красный дом'), ('猫', '猫'), ('.', ''), ('   ', ''),
    ('a photo of', ''), ('an image of the', ''), ('a a a a', '')])
def test_a_sentence_becomes_what_a_prompt_wants(said, short): assert style_caption(said) == short

def test_any_text_becomes_a_short_line():
    g = np.random.default_rng(0)
    words = ('a an the photo picture of on with in image shows is are that which cat dog mug white background . , ! '
             'standing next to 12 % \n \ufffd é 猫 "stop" (x:1.2)').split(' ')
    for _ in range(3000):
        said, longest = ' '.join(g.choice(words, g.integers(0, 30))), int(g.integers(1, 15))
        short = style_caption(said, longest)
        assert len(short.split()) <= longest and short == short.lower() and '\n' not in short
        assert not short.endswith(('.', ',', ' ')) and not short.startswith(' ')

def test_no_text_takes_long():
    for said in ('a '*20_000, 'a photo of '*5_000, 'a cat with '*5_000, 'x'*100_000, 'is standing '*5_000):
        start = time.perf_counter()
        style_caption(said)
        assert time.perf_counter()-start < 10

@pytest.mark.parametrize('longest', [0, -1, 1.5, None, 'x'])
def test_a_wrong_length_is_refused(longest):
    with pytest.raises(StylekitError, match='longest'): style_caption('a cat', longest)


# ---- models

def test_what_it_has_learnt_comes_back(captioner):
    images = [sample_image(n) for n in NAMES]
    assert captioner(images) == SENTENCES and captioner(images, batch=1) == SENTENCES
    assert captioner(images[1]) == SENTENCES[1] and captioner([]) == []
    assert captioner.model.dtype == torch.float32 and not captioner.model.training
    assert not any(p.requires_grad for p in captioner.model.parameters())

@pytest.mark.parametrize('kind', ['florence', 'blip'])
def test_it_says_what_transformers_says(kind, request):
    "The library's own way, with its automatic classes"
    from transformers import AutoModelForImageTextToText, AutoProcessor
    folder = request.getfixturevalue(kind)
    processor = AutoProcessor.from_pretrained(folder, backend='pil')
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    images = [sample_image(n) for n in list_samples()[:4]]
    text = dict(text=['<CAPTION>']*4) if kind == 'florence' else {}
    tokens = model.generate(**processor(images=images, return_tensors='pt', **text), do_sample=False, num_beams=3,
                            max_new_tokens=64)
    said = [' '.join(t.split()) for t in processor.batch_decode(tokens, skip_special_tokens=True)]
    c = load_captioner(folder, 'cpu')
    assert c(images) == said == c(images, batch=3) and all(said)

@pytest.mark.parametrize('kind', ['florence', 'blip'])
def test_sixteen_bits(kind, request):
    c = load_captioner(request.getfixturevalue(kind), 'cpu', 'bfloat16')
    assert c.model.dtype == torch.bfloat16 and isinstance(c(sample_image('owl')), str)
    with pytest.raises(StylekitError, match='float16 is very slow'):
        load_captioner(request.getfixturevalue(kind), 'cpu', 'float16')

def test_a_folder_saved_again_is_the_same(florence, captioner, tmp_path):
    for part in (captioner.model, captioner.processor): part.save_pretrained(tmp_path/'again', max_shard_size='200KB')
    again = load_captioner(tmp_path/'again', 'cpu')
    assert len(list((tmp_path/'again').glob('model-*.safetensors'))) > 1
    assert again(sample_image('taxi')) == SENTENCES[1]
    shutil.copytree(florence, tmp_path/'copy')
    copy = load_captioner(tmp_path/'copy', 'cpu')
    assert copy.revision == captioner.revision and copy.name == 'copy'   # a path is nobody's business

@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', 'CMYK', 'I;16', '1'])
def test_every_kind_of_picture(captioner, mode, tmp_path):
    im = sample_image('owl')
    if mode == 'I;16': im = Image.fromarray(np.asarray(im.convert('L')).astype('uint16')*257)
    else: im = im.convert(mode)
    file = tmp_path/('x.tif' if mode == 'CMYK' else 'x.png')
    im.save(file)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of CMYK's colours
        assert isinstance(captioner(file), str)

@pytest.mark.parametrize('kind', ['florence', 'blip'])
def test_nothing_needs_torchvision(kind, request):
    "Pixels by Pillow, also where torchvision is installed and the library would take it"
    from importlib.util import find_spec
    c = load_captioner(request.getfixturevalue(kind), 'cpu')
    c(sample_image('owl'))
    pixels = type(c.processor.image_processor)
    assert pixels.__name__.endswith('Pil') and not [k for k in pixels.__mro__ if 'Torchvision' in k.__name__]
    assert find_spec('torchvision') or 'torchvision' not in sys.modules

def test_nothing_is_printed(florence, capfd):
    load_captioner(florence, 'cpu')(sample_image('owl'))
    assert capfd.readouterr() == ('', '')


# ---- what is no model

def cut(path, share=.5): path.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
def change(path, **values): path.write_text(json.dumps(json.loads(path.read_text()) | values))
def drop(folder, part):
    file = folder/'model.safetensors'
    save_file({k: v for k, v in load_file(file).items() if part not in k}, file, metadata=dict(format='pt'))
def widen(folder):
    file = folder/'model.safetensors'
    key = next(k for k, v in load_file(file).items() if v.ndim == 2)
    save_file({k: torch.zeros(3, 3) if k == key else v for k, v in load_file(file).items()}, file,
              metadata=dict(format='pt'))

FAULTS = {
    'no config': (lambda d: (d/'config.json').unlink(), 'no config.json'),
    'cut config': (lambda d: cut(d/'config.json'), 'config.json cannot be read'),
    'list as config': (lambda d: (d/'config.json').write_text('[]'), 'not an object'),
    'another model': (lambda d: change(d/'config.json', model_type='clip'), "is 'clip' by its config.json"),
    'no kind': (lambda d: change(d/'config.json', model_type=None), 'by its config.json'),
    'no weights': (lambda d: (d/'model.safetensors').unlink(), 'no model.safetensors'),
    'a pickle': (lambda d: (d/'model.safetensors').rename(d/'pytorch_model.bin'), 'pickled weights are refused'),
    'cut weights': (lambda d: cut(d/'model.safetensors'), 'cannot be loaded'),
    'cut head': (lambda d: cut(d/'model.safetensors', .001), 'cannot be loaded'),
    'empty weights': (lambda d: (d/'model.safetensors').write_bytes(b''), 'cannot be loaded'),
    'noise as weights': (lambda d: (d/'model.safetensors').write_bytes(os.urandom(5000)), 'cannot be loaded'),
    'another shape': (widen, 'cannot be loaded'),
    'no tokenizer': (lambda d: [f.unlink() for f in d.glob('*') if f.name.startswith(('tokenizer', 'vocab', 'merges'))],
                     'no tokenizer.json'),
    'cut tokenizer': (lambda d: cut(d/'tokenizer.json'), 'cannot be loaded'),
    'no processor': (lambda d: (d/'processor_config.json').unlink(), 'no processor_config.json'),
    'cut processor': (lambda d: cut(d/'processor_config.json'), 'processor_config.json')}

@pytest.mark.parametrize('kind', ['florence', 'blip'])
@pytest.mark.parametrize('fault', FAULTS)
def test_a_folder_with_a_fault_is_refused(fault, kind, request, tmp_path):
    folder = tmp_path/'model'
    shutil.copytree(request.getfixturevalue(kind), folder)
    FAULTS[fault][0](folder)
    with pytest.raises(StylekitError, match=FAULTS[fault][1]) as e: load_captioner(folder, 'cpu')
    assert '\n' not in str(e.value) and str(tmp_path) not in str(e.value).replace(str(folder), '')

@pytest.mark.parametrize('kind, part', [('florence', 'decoder.layers.0.fc1'), ('blip', 'crossattention.self.key')])
def test_missing_weights_are_not_made_up(kind, part, request, tmp_path):
    shutil.copytree(request.getfixturevalue(kind), tmp_path/'model')
    drop(tmp_path/'model', part)
    with pytest.raises(StylekitError, match='lack 2 tensors'): load_captioner(tmp_path/'model', 'cpu')

def test_code_from_the_hub_is_not_run(florence, tmp_path):
    shutil.copytree(florence, tmp_path/'model')
    change(tmp_path/'model'/'config.json', auto_map={'AutoConfig': 'evil.Config'},
           vision_config={'model_type': 'davit'})
    (tmp_path/'model'/'evil.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")')
    with pytest.raises(StylekitError, match='code of its own'): load_captioner(tmp_path/'model', 'cpu')
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('name', ['', 'no such thing', 'a/b/c', 'org/nothing-here', '/nowhere', 7, b'x', ['a'],
                                  Path('x')])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(StylekitError): load_captioner(name, 'cpu')

def test_what_else_is_refused(florence, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(StylekitError, match='is a file'): load_captioner(tmp_path/'file')
    with pytest.raises(StylekitError, match='no revision'): load_captioner(florence, revision='main')
    with pytest.raises(StylekitError, match='task'): load_captioner(florence, task='<OD>')
    with pytest.raises(StylekitError, match='device'): load_captioner(florence, 'tpu')

def test_from_the_hub(florence, monkeypatch):
    "What is asked for, and that the commit is known"
    asked = []
    names = ['config.json', 'model.safetensors', 'pytorch_model.bin', 'tf_model.h5', 'vocab.txt', 'onnx/model.onnx',
             'a.py']
    def copy(repo, wanted, revision):
        asked.append((repo, wanted(names), revision))
        return florence, 'c0ffee'
    monkeypatch.setattr(cap, 'hub_copy', copy)
    c = load_captioner('org/model', 'cpu', revision='v1')
    assert (c.name, c.revision) == ('org/model', 'c0ffee')
    assert asked == [('org/model', ['config.json', 'model.safetensors', 'vocab.txt'], 'v1')]
    assert load_captioner('auto', 'cpu').name == FLORENCE

def test_blip_in_the_place_of_florence(blip, monkeypatch):
    def copy(repo, wanted, revision):
        if repo == FLORENCE: raise StylekitError('gated')
        return blip, 'b11b'
    monkeypatch.setattr(cap, 'hub_copy', copy)
    with pytest.warns(UserWarning, match='not to be had'): c = load_captioner(device='cpu')
    assert (c.name, c.revision) == (BLIP, 'b11b')

def test_without_a_network(monkeypatch, tmp_path):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(StylekitError, match='neither florence-community.*nor Salesforce'): load_captioner()
    with pytest.raises(StylekitError, match='hub gave no such model'): load_captioner('org/model')


# ---- folders

def test_a_folder_is_captioned_and_says_so(shop, captioner):
    done = caption_folder(shop, captioner)
    assert texts(shop) == dict(zip(texts(shop), THINGS))
    assert (shop/'IMG_0001.txt').read_text() == 'a taxi\n' and not list(shop.glob('.*'))
    assert len(done.written) == 3 and not done.failed and done.kept == 0
    assert '3 captions written by florence' in str(done) and captioner.revision[:12] in str(done)
    records = read_lines(shop/AUTO_CAPTIONS, AutoCaption)
    assert records == done.written and {r.picture: r for r in records} == auto_captions(shop)
    r = records[1]
    assert (r.said, r.caption, r.model, r.revision) == (SENTENCES[1], 'a taxi', 'florence', captioner.revision)
    assert r.picture_sha256 == file_sha256(shop/r.picture) and r.written.endswith('+00:00')

def existing(folder):
    "Captions of every kind that is read, and files that are somebody's"
    for i in range(9): sample_image(NAMES[i%3]).save(folder/f'DSC_{i:04}.png')
    (folder/'DSC_0000.txt').write_text('mine')
    (folder/'DSC_0001.caption').write_text('mine')
    (folder/'DSC_0002.png.txt').write_bytes('красный дом'.encode('cp1251'))
    (folder/'metadata.csv').write_text('file_name,text\nDSC_0003.png,mine\n')
    (folder/'metadata.jsonl').write_text('{"file_name": "DSC_0004.png", "text": "mine"}\n')
    (folder/'DSC_0005.TXT').touch()
    (folder/'DSC_0006.txt').write_bytes(b'\0\1\2\3')
    (folder/'DSC_0007.txt').write_text(' \n ')
    sample_image('owl').save(folder/'red mug.png')

def test_what_is_there_is_never_touched(tmp_path, captioner):
    existing(tmp_path)
    before = whole(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        done = caption_folder(tmp_path, captioner, captions={'DSC_0008.png': 'from a table'})
        assert not done.written and done.kept == 7
        assert [*done.failed] == ['DSC_0005.png', 'DSC_0006.png', 'DSC_0007.png']
        assert whole(tmp_path) == before
        done = caption_folder(tmp_path, captioner, names=False)
    assert [r.sidecar for r in done.written] == ['DSC_0008.txt', 'red mug.txt']
    after = whole(tmp_path)
    assert {p: after[p] for p in before} == before
    assert {p.name for p in after}-{p.name for p in before} == {'DSC_0008.txt', 'red mug.txt', AUTO_CAPTIONS}

def test_a_text_that_appears_meanwhile_is_left(shop, captioner, monkeypatch):
    say = Captioner._say
    def slow(self, pictures):
        (shop/'IMG_0001.txt').write_text('mine')
        return say(self, pictures)
    monkeypatch.setattr(Captioner, '_say', slow)
    done = caption_folder(shop, captioner)
    assert (shop/'IMG_0001.txt').read_text() == 'mine' and [*auto_captions(shop)] == ['IMG_0000.png', 'IMG_0002.png']
    assert len(done.written) == 2 and 'meanwhile' in done.failed['IMG_0001.png']

@pytest.mark.parametrize('links', [True, False])
def test_never_over_what_is_there(tmp_path, links, monkeypatch):
    def none(*a): raise OSError(95, 'Operation not supported')
    if not links: monkeypatch.setattr(os, 'link', none)
    assert cap._write_new(tmp_path/'a.txt', 'é')
    assert not cap._write_new(tmp_path/'a.txt', 'other')
    assert (tmp_path/'a.txt').read_bytes() == 'é\n'.encode() and os.listdir(tmp_path) == ['a.txt']

def test_every_text_is_read_by_one_picture(tmp_path, captioner):
    names = ['IMG_1.png', 'IMG_1.webp', 'img_1.bmp', 'IMG_2.png', 'IMG_2.png.jpg', 'IMG_3.v1.png', 'sub/IMG_1.png',
             'sub/ünï_0.PNG', 'IMG_4']
    (tmp_path/'sub').mkdir()
    for i, n in enumerate(names): sample_image(NAMES[i%3]).save(tmp_path/n, format='PNG')
    done = caption_folder(tmp_path, captioner, names=False, batch=4)
    assert len({r.sidecar for r in done.written}) == len(names) and not done.failed
    assert texts(tmp_path) == {n: THINGS[i%3] for i, n in enumerate(names)} == {
        r.picture: r.caption for r in done.written}

def test_which_folders(tmp_path, captioner):
    for d in ('.', 'sub', 'out'):
        (tmp_path/d).mkdir(exist_ok=True)
        sample_image('owl').save(tmp_path/d/'IMG_0.png')
    assert [r.picture for r in caption_folder(tmp_path, captioner, below=False).written] == ['IMG_0.png']
    done = caption_folder(tmp_path, captioner, leave_out=tmp_path/'out')
    assert [r.sidecar for r in done.written] == ['sub/IMG_0.txt']
    assert not (tmp_path/'out'/'IMG_0.txt').exists() and not (tmp_path/'sub'/AUTO_CAPTIONS).exists()

def test_bad_pictures_one_by_one(shop, captioner):
    good = (shop/'IMG_0000.png').read_bytes()
    bad = dict(empty=b'', cut=good[:len(good)//2], none=b'no picture', flipped=good[:60]+b'\xff\xff'+good[62:])
    for i, data in enumerate(bad.values()): (shop/f'IMG_1{i:03}.png').write_bytes(data)
    Image.new('RGB', (1, 1)).save(shop/'IMG_2000.png')
    Image.new('RGB', (900, 17)).save(shop/'IMG_2001.png')
    done = caption_folder(shop, captioner)
    assert [r.caption for r in done.written] == THINGS and len(done.failed) == 6 and all(done.failed.values())
    assert not list(shop.glob('IMG_1*.txt')) and not list(shop.glob('IMG_2*.txt'))
    assert 'pictures without one' in str(done)

def test_a_batch_that_fails_is_tried_one_by_one(shop, captioner, monkeypatch):
    say, sizes = Captioner._say, []
    def picky(self, pictures):
        sizes.append(len(pictures))
        if len(pictures) > 1: raise StylekitError('the GPU ran out of memory')
        if pictures[0].tobytes() == sample_image('taxi').tobytes(): return ['A photo of']
        return say(self, pictures)
    monkeypatch.setattr(Captioner, '_say', picky)
    done = caption_folder(shop, captioner, batch=3)
    assert sizes == [3, 1, 1, 1] and [r.caption for r in done.written] == [THINGS[0], THINGS[2]]
    assert 'says nothing of it' in done.failed['IMG_0001.png'] and not (shop/'IMG_0001.txt').exists()

def never(*a, **kw): raise AssertionError('a model was loaded')

def test_no_model_is_loaded_for_nothing(shop, captioner, monkeypatch):
    caption_folder(shop, captioner)
    monkeypatch.setattr(cap, 'load_captioner', never)
    before = whole(shop)
    again = caption_folder(shop)
    assert (len(again.written), again.kept, again.model) == (0, 3, '') and whole(shop) == before

def test_a_folder_that_takes_nothing_is_said_first(shop, monkeypatch):
    monkeypatch.setattr(cap, 'load_captioner', never)
    def closed(*a, **kw): raise PermissionError(13, 'Permission denied')
    with monkeypatch.context() as m:
        m.setattr(cap.tempfile, 'TemporaryFile', closed)
        with pytest.raises(StylekitError, match="captions cannot be written into 'shop'.*copy the pictures"):
            caption_folder(shop)
    if os.getuid():
        shop.chmod(0o500)
        try:
            with pytest.raises(StylekitError, match='captions cannot be written'): caption_folder(shop)
        finally: shop.chmod(0o700)

@pytest.mark.parametrize('bad', [dict(batch=0), dict(batch=1.5), dict(captions='no.csv')])
def test_wrong_calls_are_named_before_the_model(shop, bad, monkeypatch):
    monkeypatch.setattr(cap, 'load_captioner', never)
    with pytest.raises(StylekitError): caption_folder(shop, **bad)
    with pytest.raises(StylekitError, match='no folder'): caption_folder(shop/'none')

def test_a_length_is_checked_before_the_model(shop, monkeypatch):
    monkeypatch.setattr(cap, 'load_captioner', never)
    with pytest.raises(StylekitError, match='longest'): caption_folder(shop, longest=0)

def test_a_person_corrects(shop, captioner):
    caption_folder(shop, captioner)
    (shop/'IMG_0000.txt').write_text('a snowy owl')
    (shop/'IMG_0001.txt').write_text(' a taxi \n\n')   # saved again by an editor, and as it was
    assert [*auto_captions(shop)] == ['IMG_0001.png', 'IMG_0002.png']
    assert not caption_folder(shop, captioner).written and texts(shop)['IMG_0000.png'] == 'a snowy owl'
    (shop/'IMG_0002.txt').unlink()
    assert [*auto_captions(shop)] == ['IMG_0001.png']

def test_no_record_no_automatic_caption(shop):
    assert auto_captions(shop) == {}
    with pytest.raises(StylekitError): auto_captions(shop/'none')

def test_a_line_cut_short_is_mended(shop, captioner):
    caption_folder(shop, captioner)
    file = shop/AUTO_CAPTIONS
    file.write_bytes(file.read_bytes()[:-20])
    (shop/'IMG_0002.txt').unlink()
    caption_folder(shop, captioner)
    assert [r.picture for r in read_lines(file, AutoCaption)] == [f'IMG_000{i}.png' for i in range(3)]
    assert len(auto_captions(shop)) == 3

def test_a_record_that_was_changed_is_named_before_the_model(shop, captioner, monkeypatch):
    caption_folder(shop, captioner)
    file = shop/AUTO_CAPTIONS
    file.write_text(file.read_text().replace('a taxi', 'a bus'))
    (shop/'IMG_0002.txt').unlink()
    monkeypatch.setattr(cap, 'load_captioner', never)
    with pytest.raises(StylekitError, match=f'{AUTO_CAPTIONS}, line 2 was changed'): caption_folder(shop, captioner)

def test_one_run_at_a_time(shop, captioner):
    from stylekit.core import folder_lock
    with folder_lock(shop), pytest.raises(StylekitError, match='another run'): caption_folder(shop, captioner)

def kill_at(n):
    "End the process at the n-th call that reaches the disk"
    left = [n]
    def deadly(name):
        real = getattr(os, name)
        def call(*a, **kw):
            left[0] -= 1
            if left[0] == 0: os._exit(9)
            return real(*a, **kw)
        setattr(os, name, call)
    for name in ('fsync', 'link', 'replace', 'chmod', 'unlink'): deadly(name)

@pytest.fixture
def remembering(captioner, monkeypatch):
    "The captioner, who looks at a picture once: its words are tested elsewhere"
    say, said = Captioner._say, {}
    def remembered(self, pictures):
        for p in pictures:
            if p.tobytes() not in said: said[p.tobytes()], = say(self, [p])
        return [said[p.tobytes()] for p in pictures]
    monkeypatch.setattr(Captioner, '_say', remembered)
    for name in NAMES: captioner(sample_image(name))
    return captioner

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_any_moment(shop, remembering, tmp_path):
    "After each kill every text is whole and has its line; what was written stays; in the end nothing is missing"
    kills = 0
    for n in range(1, 60):
        folder = tmp_path/f'at{n}'
        shutil.copytree(shop, folder)
        pid = os.fork()
        if pid == 0:
            kill_at(n)
            caption_folder(folder, remembering, batch=2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        written = {p: p.read_bytes() for p in folder.glob('[!.]*.txt')}
        lines = {r.sidecar: r.caption for r in cap._records(folder).values()}
        assert all(data.decode() == lines[p.name]+'\n' for p, data in written.items())
        kills += status == 9
        mtimes = {p: p.stat().st_mtime_ns for p in written}
        caption_folder(folder, remembering)
        assert [*texts(folder).values()] == THINGS and len(auto_captions(folder)) == 3
        assert {p: p.stat().st_mtime_ns for p in written} == mtimes
        assert not [p.name for p in folder.glob('.*')]
        if status == 0: break
    assert status == 0 and kills > 10


# ---- where it is asked for

ONE = dict(steps=1, final_t=0, adapt='none')

def test_stylize(captioner):
    from stylekit import stylize
    with pytest.warns(UserWarning, match="captions by florence: 'an owl'"):
        result = stylize(sample_image('owl'), 'ink', captioner, **ONE, seed=0)
    assert result.info['caption'] == 'an owl'
    plain = stylize(sample_image('owl'), 'ink', 'an owl', **ONE, seed=0)
    assert plain.image.tobytes() == result.image.tobytes()
    with pytest.raises(StylekitError, match='neither florence'): stylize(sample_image('owl'), 'ink', 'auto', steps=1)
    with pytest.raises(StylekitError, match='empty or no text'): stylize(sample_image('owl'), 'ink', np.zeros(3))

def test_stylize_folder(shop, florence, tmp_path):
    from stylekit import stylize_folder
    out, go = shop/'out', dict(**ONE, caption='auto', caption_model=florence, device='cpu')
    with pytest.warns(UserWarning, match='shop: 3 captions written by florence'): done = stylize_folder(shop, out, **go)
    assert done.made == 3 and [r.caption for r in done.records] == THINGS
    assert [r.caption_from for r in done.records] == [f'IMG_000{i}.txt, by florence' for i in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert stylize_folder(shop, out, **go).made == 0
    (shop/'IMG_0001.txt').write_text('a yellow taxi')
    assert stylize_folder(shop, out, **go).made == 1   # who corrects a caption gets that picture anew
    (shop/'IMG_0001.txt').unlink()
    with pytest.raises(StylekitError, match='cannot go into the folder of the pictures'):
        stylize_folder(shop, shop, **go)
    assert not (shop/'IMG_0001.txt').exists()

def test_train_lora(shop, florence, tmp_path):
    from stylekit import train_lora
    (shop/'sub').mkdir()
    sample_image('owl').save(shop/'sub'/'IMG_1.png')   # a training does not look there
    go = dict(out=tmp_path/'styles', rank=2, steps=2, batch=1, views=1)
    with pytest.warns(UserWarning, match='shop: 3 captions written by florence'):
        train_lora(shop, 'x', caption='auto', caption_model=florence, **go)
    assert [*auto_captions(shop)] == [f'IMG_000{i}.png' for i in range(3)] and not (shop/'sub'/'IMG_1.txt').exists()
    with pytest.raises(StylekitError, match="is for caption='auto'"):
        train_lora(shop, 'y', caption_model=florence, **go)

def run(capsys, *argv, status=0):
    from stylekit.cli import main
    assert main([str(a) for a in argv]) == status
    return capsys.readouterr()

def test_command_line_folder(shop, florence, tmp_path, capsys):
    argv = ['stylize', shop, '--caption', 'auto', '--caption-model', florence, '--steps', 1, '--out', tmp_path/'o']
    said = run(capsys, *argv)
    assert 'shop: 3 captions written by florence' in said.err and len(list((tmp_path/'o').glob('*.png'))) == 3
    assert texts(shop) == dict(zip(texts(shop), THINGS))

def test_command_line_pictures(shop, florence, tmp_path, capsys):
    (shop/'IMG_0000.txt').write_text('my owl')
    argv = ['stylize', shop/'IMG_0000.png', shop/'IMG_0001.png', '--caption', 'auto', '--caption-model', florence,
            '--steps', 1, '--json', '--out', tmp_path/'o']
    said = run(capsys, *argv)
    assert [json.loads(line)['caption'] for line in said.out.splitlines()] == ['my owl', 'a taxi']
    assert "captions by florence: 'a taxi'" in said.err and not (shop/'IMG_0001.txt').exists()

@pytest.mark.parametrize('args, why', [
    (['--caption', 'an owl'], '--caption does not apply to a folder'),
    (['--caption-model', 'x'], '--caption-model does not apply without --caption auto'),
    (['--feedforward', 'flat', '--caption', 'auto'], '--caption does not apply with --feedforward')])
def test_command_line_refusals(shop, args, why, tmp_path, capsys):
    assert why in run(capsys, 'stylize', shop, *args, '--out', tmp_path/'o', status=2).err

def test_command_line_training(shop, florence, tmp_path, capsys):
    argv = ['train-lora', shop, '--name', 'x', '--out', tmp_path/'s', '--rank', 2, '--steps', 1, '--batch', 1,
            '--caption', 'auto', '--caption-model', florence]
    assert '3 captions written by florence' in run(capsys, *argv).err and len(auto_captions(shop)) == 3
