"Hands what settings.ini says to setuptools; everything else about the package is in pyproject.toml"
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
s = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in s.items() if k.endswith('_requirements')}
setup(description=s['description'], author=s['author'], keywords=s['keywords'].split(),
      install_requires=s['requirements'].split(),
      extras_require=extras | dict(dev=sum(extras.values(), [])),
      entry_points=dict(console_scripts=s['console_scripts'].split(), nbdev=['stylekit=stylekit._modidx:d']))
