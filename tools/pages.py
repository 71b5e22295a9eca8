"""The site: pages, reference, and the page that stylises in the browser.

  pages.py         all of it, in docs/_build/html; a warning is an error
  pages.py demo    the page in the browser alone, in docs/_build/demo: serve it with `python -m http.server`

Two files come from npm, pinned by hash, once: ONNX Runtime for the page (MIT), MathJax for the formulas (Apache-2.0).
The site has all that it needs: nothing is loaded from elsewhere."""
import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT/'docs'/'_build'
PACKAGES = {   # name -> version, integrity as npm says it, files
    'onnxruntime-web': ('1.30.0',
                        'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==',
                        ('dist/ort.wasm.bundle.min.mjs', 'dist/ort-wasm-simd-threaded.wasm')),
    'mathjax': ('3.2.2',
                'Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==',
                ('es5/tex-svg.js', 'LICENSE'))}
ORT_LICENCE = '''ONNX Runtime Web 1.30.0, https://github.com/microsoft/onnxruntime, MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
'''

def fetch(name:str)->Path: # folder with the files of an npm package
    "Once; the archive is what it was when it was looked at, or it is refused"
    version, integrity, files = PACKAGES[name]
    folder = BUILD/'npm'/f'{name}-{version}'
    if folder.exists(): return folder
    if not shutil.which('npm'): raise SystemExit(f'npm is needed to fetch {name}: install Node.js')
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(['npm', 'pack', f'{name}@{version}', '--silent', '--pack-destination', d], check=True,
                       stdout=subprocess.DEVNULL)
        data = next(Path(d).iterdir()).read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != integrity:
        raise SystemExit(f'{name}@{version} is another file than was pinned')
    tmp = folder.with_suffix('.tmp')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        for file in files: (tmp/Path(file).name).write_bytes(t.extractfile(f'package/{file}').read())
    tmp.rename(folder)
    return folder

def header_of(network:Path)->dict: # of a feed-forward network's file, as stylekit wrote it
    data = network.read_bytes()
    start = data.index(b'{', data.index(b'stylekit_feedforward'))
    return json.JSONDecoder().raw_decode(data[start:].decode('utf-8', 'replace'))[0]

def network_of(file:Path, version:str)->dict: # what the page has to know of it
    about = header_of(file)
    run = dict(stylekit=version, method='feed-forward', network_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    known = 'style', 'style_sha256', 'style_rights', 'backbone', 'backbone_sha256'   # as `FeedForward` tells of them
    run |= {k: about[k] for k in known if k in about}
    return dict(file=f'networks/{file.name}', multiple=about['multiple'], run=run)

def replace_text(file:Path, old:str, new:str):
    file.write_text(file.read_text(encoding='utf-8').replace(old, new), encoding='utf-8')

def make_demo(out:Path, alone:bool=True):
    "The page with all that it needs; alone, it leads to the repository and not to the site around it"
    version = re.search(r'__version__ = "([^"]+)"', (ROOT/'stylekit'/'__init__.py').read_text())[1]
    assets, runtime = ROOT/'stylekit'/'assets', fetch('onnxruntime-web')
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT/'docs'/'demo', out)
    if alone: replace_text(out/'index.html', '../docs/index.html', 'https://github.com/stylekit/stylekit')
    shutil.copytree(runtime, out/'runtime')
    (out/'runtime'/'LICENSE').write_text(ORT_LICENCE)
    for folder in ('networks', 'samples'): (out/folder).mkdir()
    networks, samples = sorted((assets/'feedforward').glob('*.onnx')), sorted((assets/'samples').glob('*.shaded.png'))
    for file in networks: shutil.copy(file, out/'networks')
    for file in samples: shutil.copy(file, out/'samples')
    about = dict(networks={f.stem: network_of(f, version) for f in networks},
                 samples=[dict(name=f.name.split('.')[0].replace('-', ' '), file=f'samples/{f.name}') for f in samples])
    (out/'demo.json').write_text(json.dumps(about))

def make_site(out:Path)->int: # exit status
    """Sphinx, with every warning an error; what it has read is forgotten if it fails, or it would pass the next time.

    All pages are written (-a): the search forgets the index's words of a page that is not."""
    try: from sphinx.cmd.build import build_main
    except ImportError: raise SystemExit('the site needs Sphinx 9: pip install -e ".[docs]", on Python 3.11 or newer')
    doctrees = BUILD/'doctrees'
    fetch('mathjax')
    where = ['-c', str(ROOT/'docs'), '-d', str(doctrees), '-b', 'html', str(ROOT), str(out)]
    status = build_main(['-q', '-W', '-a', *where])
    if status: shutil.rmtree(doctrees, ignore_errors=True)
    else: make_demo(out/'demo', alone=False)
    return status

if __name__ == '__main__':
    if sys.argv[1:] == ['demo']: make_demo(BUILD/'demo')
    else: sys.exit(make_site(BUILD/'html'))
