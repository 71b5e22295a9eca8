"Hands what settings.ini says to setuptools; everything else about the package is in pyproject.toml"
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['=']); cfg.read('settings.ini', encoding='utf-8')
s = cfg['DEFAULT']
setup(description=s['description'], author=s['author'], keywords=s['keywords'].split(),
      install_requires=s['requirements'].split(),
      extras_require={k: s[f'{k}_requirements'].split() for k in ('eval', 'app')} | dict(dev=' '.join(s[f'{k}_requirements'] for k in ('dev', 'eval', 'app')).split()),
      entry_points=dict(console_scripts=s['console_scripts'].split(), nbdev=['stylekit=stylekit._modidx:d']))
