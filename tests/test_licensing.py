"What may be done with a style: manifests and their mistakes, what is blocked where, and who lets it pass"
import json, shutil
from datetime import date
from pathlib import Path
import pytest
from stylekit import StylekitError, export_accepted, load_style, read_output, sample_image
from stylekit import train_feedforward, train_lora
from stylekit.cli import main
from stylekit.core import asset, file_sha256
from stylekit.licensing import FLAGS, OVERRIDES, USES, Override, OverrideLine, RightsError, RightsManifest
from stylekit.licensing import check_pictures, check_recorded, check_rights, find_rights, note_rights, read_rights
from stylekit.licensing import rights_rows, rights_text
from stylekit.records import read_lines
from stylekit.review import EXPORT_LOG, ExportedFile, Review

TODAY = date(2026, 11, 27)
GOOD = dict(id='mine', licence='CC-BY-4.0', holder='Studio', allowed=[*USES], acquired_on='2026-11-01',
            attribution='Studio, CC BY 4.0')
INK = asset('styles', 'ink', 'pytorch_lora_weights.safetensors')

@pytest.fixture
def mine(tmp_path):
    "A style of one's own, without a manifest"
    return Path(shutil.copy(INK, tmp_path/'mine.safetensors'))

def manifest(path, **changed):
    "A manifest beside a file, or in a folder"
    made = path/'rights.toml' if path.is_dir() else path.with_suffix('.rights.toml')
    made.write_text(rights_text(**GOOD | changed))
    return made

def put(**changed): return rights_text(**GOOD | changed)

def without(key): return ''.join(line+'\n' for line in put().splitlines() if line.split(' =')[0] != key)


# ---- mistakes ----

BAD = { # text -> what is said
    'this is no TOML': 'it is not TOML',
    b'id = "\xff"': 'it is not TOML',
    'a = '+'['*5000: 'it is not TOML',
    without('id'): 'id is missing',
    put(id='../x'): "id '../x' is not a plain file name",
    put(id='').replace('id = ""', 'id = 5'): 'id must be a text, not 5',
    put(license='MIT'): "'license' is not known: did you mean 'licence'",
    put(holder=''): 'neither author nor holder is named',
    put(source='/home/me/pictures'): "source '/home/me/pictures' must be an address",
    put(source='file:///home/me'): 'must be an address',
    put(acquired_on=''): 'acquired_on is empty',
    put(acquired_on='last week'): "acquired_on 'last week' is no date",
    put(acquired_on='2026-12-24'): 'acquired_on 2026-12-24 has not come',
    put(licence=''): 'licence is empty',
    put(licence='Creative Commons'): "licence 'Creative Commons' is not known to SPDX: for terms without a name",
    put(licence='CC-BY-NC'): 'is not known to SPDX: did you mean CC-BY-NC-4.0?',
    put(licence='MIT AND'): "licence 'MIT AND' is no expression of SPDX",
    put(licence='LicenseRef-my_terms'): 'must be LicenseRef- and letters, digits',
    put(licence='LicenseRef-'): 'must be LicenseRef- and letters, digits',
    put(licence='NOASSERTION'): 'licence NOASSERTION says nothing',
    put(licence='LLVM-exception'): 'licence LLVM-exception is an exception',
    put(evidence='/tmp/mail.pdf', evidence_sha256='0'*64): "evidence '/tmp/mail.pdf' must lie beside rights.toml",
    put(evidence='../mail.pdf', evidence_sha256='0'*64): 'must lie beside rights.toml',
    put(evidence='mail.pdf'): 'evidence lacks evidence_sha256',
    put(evidence_sha256='0'*64): 'is the hash of no file',
    put(evidence='mail.pdf', evidence_sha256='abc'): "evidence_sha256 'abc' must be 64 hexadecimal digits",
    put(allowed=[]): 'allowed is empty',
    put(allowed=['comercial']): "allowed has the unknown word 'comercial': did you mean 'commercial'",
    put(allowed=['client', 'client']): 'allowed says a word twice',
    put().replace('allowed = [', 'allowed = [7, '): 'allowed[0] must be a text, not 7',
    put(flags=['famous']): f"flags has the unknown word 'famous': there are {', '.join(FLAGS)}",
    put(expires='2027-02-30'): "expires '2027-02-30' is no date",
    put(expires='2026-10-01'): 'expires 2026-10-01 is before acquired_on 2026-11-01',
    put(sha256=['12']): "sha256 '12' must be 64 hexadecimal digits",
    put(sha256=['a'*64, 'A'*64]): 'sha256 names a file twice'}

@pytest.mark.parametrize('text', BAD, ids=lambda t: BAD[t][:40])
def test_every_mistake_is_said_in_its_own_words(tmp_path, text):
    path = tmp_path/'rights.toml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RightsError) as e: read_rights(path, TODAY)
    assert len(e.value.mistakes) == 1 and BAD[text] in e.value.mistakes[0]
    assert str(e.value).startswith('rights.toml: ') and len(str(e.value)) <= 300

def test_mistakes_have_words_of_their_own():
    assert len(BAD) >= 20 and len({*BAD.values()}) >= 25

def test_several_mistakes_are_all_listed(tmp_path, mine, capsys):
    "By the error, by the check and by the command, a line each"
    path = manifest(mine, licence='', allowed=['everything'], expires='soon', flags=['famous'], sha256=['x'], holder='')
    with pytest.raises(RightsError, match=r'\(and 5 more\)') as e: read_rights(path, TODAY)
    assert len(e.value.mistakes) == 6
    check = check_rights(mine, 'client', TODAY)
    assert check.status == 'block' and len(check.sentences) == 6
    assert main(['rights', str(mine)]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for mistake in e.value.mistakes: assert f'{path.name}: {mistake}' in lines
    assert len(lines) == 2+6

def test_what_is_right_is_read(tmp_path):
    "Dates of TOML's own, a mark at the beginning, comments, blanks left out"
    text = (b'\xef\xbb\xbf# ours\nid = "g"\nlicence = "mit OR cc-by-nc-4.0"\nauthor = "A"\n'
            b'allowed = ["train"]\nacquired_on = 2026-11-01\nexpires = 2027-01-01\n')
    (tmp_path/'rights.toml').write_bytes(text)
    m = read_rights(tmp_path/'rights.toml', TODAY)
    assert m == RightsManifest('g', 'mit OR cc-by-nc-4.0', ['train'], '2026-11-01', author='A', expires='2027-01-01')
    assert RightsManifest.from_json(json.loads(json.dumps(m.to_json()))) == m
    for licence in ('LicenseRef-Civitai', 'MIT AND LicenseRef-x.1', 'GPL-2.0-only WITH Classpath-exception-2.0'):
        (tmp_path/'rights.toml').write_text(put(licence=licence))
        assert read_rights(tmp_path/'rights.toml', TODAY).licence == licence


# ---- what is checked ----

CASES = [ # what the manifest says, the use -> status, a word of the sentence
    (dict(), 'client', 'ok', ''),
    (dict(allowed=['internal']), 'client', 'block', 'allows internal, and not client'),
    (dict(allowed=['client']), 'internal', 'block', 'not internal'),
    (dict(licence='CC-BY-NC-4.0'), 'commercial', 'block', 'forbids commercial use'),
    (dict(licence='CC-BY-NC-4.0'), 'client', 'warn', 'forbids commercial use'),
    (dict(licence='CC-BY-NC-4.0'), 'train', 'ok', ''),
    (dict(licence='MIT OR CC-BY-NC-4.0'), 'commercial', 'ok', ''),
    (dict(licence='MIT AND CC-BY-NC-4.0'), 'commercial', 'block', 'forbids commercial use'),
    (dict(licence='PolyForm-Noncommercial-1.0.0'), 'commercial', 'block', 'forbids commercial use'),
    (dict(licence='CC-BY-ND-4.0'), 'client', 'warn', 'what was changed'),
    (dict(licence='CC-BY-SA-4.0'), 'redistribute', 'warn', 'same licence'),
    (dict(attribution=''), 'client', 'warn', 'attribution is empty'),
    (dict(attribution=''), 'internal', 'ok', ''),
    (dict(licence='LicenseRef-Contract'), 'train', 'warn', 'no evidence'),
    (dict(expires='2026-11-26'), 'internal', 'block', 'ended on 2026-11-26'),
    (dict(expires='2026-11-27'), 'internal', 'warn', 'end on 2026-11-27'),
    (dict(expires='2027-11-27'), 'commercial', 'ok', ''),
    (dict(flags=['living-artist']), 'commercial', 'warn', 'flag living-artist'),
    (dict(flags=['person']), 'internal', 'ok', ''),
    (dict(sha256=['0'*64]), 'train', 'block', 'speaks of other files'),
    (dict(evidence='mail.txt', evidence_sha256='0'*64), 'train', 'block', 'evidence mail.txt is not there')]

@pytest.mark.parametrize('says, use, status, word', CASES)
def test_check(mine, says, use, status, word):
    manifest(mine, **says)
    check = check_rights(str(mine), use, TODAY)
    assert check.status == status and bool(check.sentences) == (status != 'ok')
    assert word in ' '.join(check.sentences)

def test_without_a_manifest(mine):
    assert [check_rights(mine, use).status for use in USES] == ['warn', *['block']*4]
    with pytest.raises(StylekitError, match='is not one of internal'): check_rights(mine, 'fun')

def test_the_shipped_styles_may_be_used():
    for name in ('ink', 'flat', 'pixel', 'freehand', 'watercolour'):
        assert [check_rights(name, use).status for use in USES] == ['ok']*5, name

def test_hashes_bind(tmp_path, mine):
    "To the style's file, or to all pictures that it was learnt from; and the paper to what was looked at"
    manifest(mine, sha256=[file_sha256(mine).upper()])
    assert check_rights(mine, 'client', TODAY).status == 'ok'
    mine.write_bytes(asset('styles', 'flat', 'pytorch_lora_weights.safetensors').read_bytes())
    assert check_rights(mine, 'client', TODAY).status == 'block'
    (tmp_path/'mail.txt').write_text('yes, for the autumn catalogue')
    manifest(mine, evidence='mail.txt', evidence_sha256=file_sha256(tmp_path/'mail.txt'))
    assert check_rights(mine, 'client', TODAY).status == 'ok'
    (tmp_path/'mail.txt').write_text('yes, for all catalogues')
    assert 'is another file than was looked at' in check_rights(mine, 'client', TODAY).sentences[0]

def test_the_pictures_in_a_styles_header_count(mine):
    style = load_style(mine)
    style.metadata['stylekit.sha256'] = json.dumps(['1'*64, '2'*64])
    for named, status in ((['1'*64, '2'*64, '3'*64], 'ok'), (['1'*64], 'block')):
        manifest(mine, sha256=named)
        assert check_rights(style, 'client', TODAY).status == status
    style.metadata['stylekit.sha256'] = '{"odd": 1}'
    assert check_rights(style, 'client', TODAY).status == 'block'

def test_a_mix_is_as_good_as_its_worst_part(mine):
    check = check_rights([('ink', .5), (str(mine), .5)], 'client')
    said, = check.sentences
    assert check.status == 'block' and said.startswith('mine: nothing says what may be done with it')

def test_which_manifest_speaks(tmp_path, mine):
    "The file's own before the folder's; another file's not at all"
    (tmp_path/'other.rights.toml').write_text(put())
    assert find_rights(mine) is None
    (tmp_path/'rights.toml').write_text(put(allowed=['internal']))
    assert check_rights(mine, 'client', TODAY).status == 'block'
    manifest(mine)
    assert find_rights(mine).name == 'mine.rights.toml' and check_rights(mine, 'client', TODAY).status == 'ok'

def test_pictures_need_no_manifest_and_one_that_is_there_is_believed(tmp_path):
    sample_image('owl').save(tmp_path/'a.png')
    assert [check_pictures(tmp_path, use, TODAY).status for use in ('internal', 'train')] == ['ok', 'warn']
    manifest(tmp_path, sha256=[file_sha256(tmp_path/'a.png')], allowed=['internal', 'client'])
    assert [check_pictures(tmp_path, use, TODAY).status for use in ('client', 'train')] == ['ok', 'block']
    assert check_pictures(tmp_path/'a.png', 'client', TODAY).status == 'ok'
    sample_image('taxi').save(tmp_path/'b.png')
    assert 'does not name b.png' in check_pictures(tmp_path, 'client', TODAY).sentences[0]


# ---- training ----

@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'pictures'
    folder.mkdir()
    for n in ('owl', 'taxi'): sample_image(n, 'ink').resize((64, 64)).save(folder/f'{n}.png')
    return folder

NO_MODEL = 'no model is loaded before rights are clear'

@pytest.fixture
def no_model(monkeypatch):
    def fail(*_, **__): raise AssertionError(NO_MODEL)
    for room in ('finetune', 'feedforward_training'): monkeypatch.setattr(f'stylekit.{room}.load_backbone', fail)

@pytest.mark.filterwarnings('ignore:2 pictures')
def test_a_style_is_not_learnt_from_pictures_that_forbid_it(pictures, tmp_path, no_model, capsys):
    manifest(pictures, allowed=['internal'])
    with pytest.raises(StylekitError, match="'pictures' is blocked for the use 'train'.*override"):
        train_lora(pictures, 'x', out=tmp_path/'s')
    assert main(['train-lora', str(pictures), '--out', str(tmp_path/'s')]) == 2
    assert 'allows internal, and not train' in capsys.readouterr().err
    with pytest.raises(AssertionError, match=NO_MODEL): train_lora(pictures, 'x', override=Override('Ann', 'asked'))
    for bad in ('Ann', ': why', 'Ann:'):
        assert main(['train-lora', str(pictures), '--override', bad]) == 2
    assert not (tmp_path/'s').exists()

@pytest.mark.filterwarnings('ignore:2 pictures')
def test_an_override_of_a_training_is_logged_and_stamped(pictures, tmp_path):
    manifest(pictures, allowed=['internal', 'client'], acquired_on='2026-11-03')
    how = dict(out=tmp_path/'s', rank=2, steps=1, batch=1, views=1, resolution=64)
    style = train_lora(pictures, 'x', override=Override('Ann', 'agreed by phone'), **how)
    line, = read_lines(tmp_path/'s'/'x'/OVERRIDES, OverrideLine)
    assert (line.who, line.reason) == ('Ann', 'agreed by phone') and line.checks[0].status == 'block'
    assert style.metadata['stylekit.rights_override'] == f'{line.id}: agreed by phone'
    assert b'Ann' not in style.path.read_bytes()
    m = read_rights(tmp_path/'s'/'x'/'rights.toml', TODAY)      # what was known of the pictures is carried over
    assert (m.holder, m.allowed, m.acquired_on, m.id) == ('Studio', ['internal', 'client'], '2026-11-03', 'x')
    assert {*m.sha256} == {file_sha256(p) for p in pictures.glob('*.png')}
    assert check_rights(style, 'client', TODAY).status == 'ok' and check_rights(style, 'train', TODAY).status == 'block'

def test_no_network_is_learnt_from_a_style_that_forbids_it(mine, pictures, no_model, tmp_path, capsys):
    with pytest.raises(StylekitError, match="'mine' is blocked for the use 'train'"): train_feedforward(mine, pictures)
    assert main(['train-feedforward', str(pictures), '--style', str(mine), '--out', str(tmp_path/'f')]) == 2
    assert 'there is no rights.toml' in capsys.readouterr().err
    for style, override in ((mine, Override('Ann', 'asked')), ('ink', None)):
        with pytest.raises(AssertionError, match=NO_MODEL): train_feedforward(style, pictures, override=override)
    manifest(pictures, allowed=['internal'])
    with pytest.raises(StylekitError, match="'pictures' is blocked"): train_feedforward('ink', pictures)

def test_a_network_says_whose_style_it_carries_on(mine, pictures, tmp_path):
    "In its header, and in every picture that it makes"
    manifest(mine, allowed=['internal', 'client'], reviewer='Ann')
    how = dict(out=tmp_path/'f', widths=(8, 16), blocks=(1, 1), steps=2, batch=1, check=1, views=1)
    network = train_feedforward(mine, pictures, override=Override('Ben', 'asked'), **how)
    said, = network.about['style_rights']
    assert said['rights']['holder'] == 'Studio' and 'reviewer' not in said['rights']
    line, = read_lines(tmp_path/'f'/'mine'/OVERRIDES, OverrideLine)
    file = network(sample_image('owl').resize((64, 64))).save(tmp_path/'owl.png')
    run = read_output(file).run
    assert run['style_rights'] == [said] and run['rights_override'] == f'{line.id}: asked'
    assert check_recorded(run, 'client', today=TODAY).status == 'ok'       # the style's file is not found by its name
    assert check_recorded(run, 'commercial', today=TODAY).status == 'block'
    assert b'Ben' not in file.read_bytes() and b'Ann' not in file.read_bytes()


# ---- what goes out ----

@pytest.fixture
def review(results, tmp_path):
    r = Review(results(tmp_path, 2))
    for item in r.items: r.accept(item)
    return r

def test_what_is_cleared_goes_out(review, tmp_path):
    "Of a style that is not here: by what the run noted of its manifest"
    assert len(export_accepted(review, tmp_path/'to').files) == 2
    assert not (tmp_path/'to'/OVERRIDES).exists()

def unclear(review):
    "The same pictures, made by a network of which nothing is known"
    from stylekit.rights import save_output
    for item in review.items:
        path = review.out/item
        run = read_output(path).run | dict(style_rights=[], style='somewhere', style_sha256='1'*64)
        save_output(path, path, run)
        review.accept(item)

def test_what_is_not_cleared_stays(review, tmp_path, capsys):
    unclear(review)
    to = tmp_path/'to'
    with pytest.raises(StylekitError, match="'somewhere' is blocked for the use 'client'"): export_accepted(review, to)
    assert not to.exists()
    with pytest.warns(UserWarning, match='not here'): export_accepted(review, tmp_path/'inside', use='internal')
    command = ['export', str(review.out), '--accepted', '--to', str(to)]
    assert main(command) == 2 and 'give it as style' in capsys.readouterr().err
    assert main([*command, '--override', 'Ann: the client has the licence herself']) == 0
    line, = read_lines(to/OVERRIDES, OverrideLine)
    assert (line.who, line.reason) == ('Ann', 'the client has the licence herself')
    files = read_lines(to/EXPORT_LOG, ExportedFile)
    assert {f.override for f in files} == {f'{line.id}: {line.reason}'} and len(files) == 2
    assert main([*command, '--override', 'Ben: still so', '--overwrite']) == 0
    assert [x.who for x in read_lines(to/OVERRIDES, OverrideLine)] == ['Ann', 'Ben']      # the log only grows

def test_sources_with_a_manifest_are_asked_too(review, tmp_path):
    manifest(review.source, allowed=['internal'])
    with pytest.raises(StylekitError, match="'in' is blocked for the use"): export_accepted(review, tmp_path/'to')

def test_a_style_that_is_given_speaks_for_itself(mine):
    record = dict(style='gone', style_sha256=load_style(mine).sha256, style_rights=note_rights(load_style(mine)))
    assert check_recorded(record, 'client').status == 'block'
    manifest(mine)
    assert check_recorded(record, 'client', style=mine).status == 'ok'
    assert check_recorded(record, 'client', style='flat').status == 'block'      # it is another one

BROKEN = (7, [1], [{}], [dict(rights='x')], [dict(rights=dict(id=1))])
ODD = [{}, dict(style=5), *(dict(style_rights=x) for x in BROKEN)]

@pytest.mark.parametrize('odd', ODD)
def test_odd_records_are_blocked(odd): assert check_recorded(odd, 'client').status == 'block'


# ---- the page, and the command ----

def test_the_page_refuses_what_is_forbidden(mine):
    from stylekit import StylizePanel
    inside, outside = (StylizePanel(style=str(mine), use=use) for use in ('internal', 'client'))
    inside._check_ready()
    with pytest.raises(StylekitError, match="blocked for the use 'client'"): outside._check_ready()
    manifest(mine, flags=['trademark'])
    outside._check_ready()
    assert 'flag trademark' in outside.status.error
    manifest(mine, allowed=['client'])
    with pytest.raises(StylekitError, match="blocked for the use 'internal'"): inside._check_ready()

def test_the_page_is_not_served_for_what_is_forbidden(mine, monkeypatch):
    from stylekit.app import serve
    monkeypatch.setattr(serve, 'serve_panel', lambda *a: a)
    with pytest.raises(StylekitError, match='is blocked'): serve.app(style=str(mine), use='client')
    for use in ('internal', 'client'): serve.app(style='ink', use=use)

def test_command(tmp_path, mine, capsys):
    assert main(['rights', str(tmp_path), '--json']) == 1
    row, = map(json.loads, capsys.readouterr().out.splitlines())
    assert row['mistakes'] == ['there is no rights.toml']
    assert [c['status'] for c in row['checks']] == ['warn', *['block']*4]
    assert main(['rights', '--new', str(mine)]) == 0
    made = Path(capsys.readouterr().out.strip())
    assert made == tmp_path/'mine.rights.toml' and file_sha256(mine) in made.read_text()
    assert main(['rights', '--new', str(mine)]) == 2 and 'there already' in capsys.readouterr().err
    made.write_text(put(licence='CC-BY-NC-4.0', sha256=[file_sha256(mine)]))
    assert [main(['rights', str(tmp_path), '--use', use]) for use in ('train', 'commercial')] == [0, 1]
    assert 'commercial: CC-BY-NC-4.0 forbids commercial use' in capsys.readouterr().out
    assert main(['rights', str(tmp_path/'nowhere')]) == 2 and 'nowhere' in capsys.readouterr().err
    assert main(['rights']) == 0 and 'freehand' in capsys.readouterr().out
    (tmp_path/'broken.safetensors').write_bytes(b'x')
    assert main(['rights', str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert 'broken' in said and 'mine' in said                      # one broken file does not hide the others

def test_a_folder_of_pictures(tmp_path, capsys):
    sample_image('owl').save(tmp_path/'a.png')
    assert main(['rights', '--new', str(tmp_path)]) == 0
    assert main(['rights', str(tmp_path)]) == 1 and 'licence is empty' in capsys.readouterr().out
    manifest(tmp_path)
    row, = rights_rows(tmp_path)
    assert not row.mistakes and row.licence == 'CC-BY-4.0'

def test_a_style_without_a_manifest_is_told_of_and_works(mine, tmp_path, capsys):
    go = ['stylize', '--style', str(mine), '--steps', '1', '--out', str(tmp_path/'x.png')]
    assert main(go) == 0 and 'mine: warn for internal use' in capsys.readouterr().err
    run = read_output(tmp_path/'x.png').run
    assert run['style_rights'] == [dict(style='mine', style_sha256=file_sha256(mine), rights={})]
    assert main(['stylize', '--steps', '1', '--out', str(tmp_path/'y.png')]) == 0
    assert 'internal use' not in capsys.readouterr().err
    assert read_output(tmp_path/'y.png').run['style_rights'][0]['rights']['licence'] == 'MIT'
