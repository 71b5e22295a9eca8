"Balanced image stylisation: change the look of an image, keep what it shows"
__version__ = "0.2.0"

# Names are fetched when first used, so that `import stylekit` and `stylekit --help` need not wait for torch.
_NAMES = {
    'stylizer': 'stylize Stylizer StylizeResult Callback Checkpoint Preview Progress',
    'methods.sms': 'Settings settings',
    'backbone': 'load_backbone Backbone',
    'lora': 'load_style list_styles',
    'finetune': 'train_lora',
    'feedforward': 'FeedForward',
    'feedforward_training': 'train_feedforward',
    'folders': 'stylize_folder',
    'review': 'Review export_accepted',
    'pilot.study': 'make_study Voting merge_votes analyse',
    'pilot.ballot': 'make_ballot',
    'pilot.report': 'make_report',
    'clip.control_clip': 'train_control_clip load_control_clip',
    'clip.guidance': 'control_clip',
    'core': 'StylekitError',
    'images': 'load_image sample_image list_samples',
    'captions': 'caption_folder',
    'color': 'match_color',
    'measure.proof': 'prove',
    'measure.evaluate': 'evaluate',
    'limits': 'Limits',
    'measure.verdicts': 'evaluate_results',
    'rights': 'save_output read_output',
    'marks': 'verify Signer',
    'licensing': 'check_rights Override',
    'app.live': 'replay',
    'app.stylize_panel': 'StylizePanel',
    'app.spectrum_panel': 'SpectrumPanel',
    'app.compare_panel': 'ComparePanel',
    'app.lora_panel': 'LoraPanel',
    'app.control_clip_panel': 'ControlClipPanel',
    'app.review_panel': 'ReviewPanel',
    'app.folder_panel': 'FolderPanel',
    'app.page_panel': 'PagePanel',
    'app.vote_panel': 'VotePanel',
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ['__version__', *_HOMES]

def _source_lines(value)->dict: # parameter or field -> where it stands
    import ast, inspect, textwrap
    found = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))):
        if isinstance(node, ast.arg): found.setdefault(node.arg, node.lineno)
        if isinstance(node, ast.AnnAssign): found.setdefault(getattr(node.target, 'id', ''), node.lineno)
    return found

def _parameter_lines(value)->list:
    "The comments on parameters as lines 'name: comment'; names that share a line of code share its comment"
    from fastcore.docments import docments
    comments, at = docments(value), _source_lines(value)
    groups = {}
    for name in comments:
        if name not in ('self', 'return'): groups.setdefault(at.get(name, name), []).append(name)
    text = lambda names: ' '.join(' '.join(comments[n].split()) for n in names if comments[n])
    return [f'    {", ".join(names)}' + f': {text(names)}'*bool(text(names)) for names in groups.values()]

def _document(value):
    "Put the comments where `help` and shift-tab look for them"
    try: lines = _parameter_lines(value)
    except Exception: return   # without its source a thing has no comments
    text = value.__doc__ or ''
    if lines and 'Parameters:' not in text: value.__doc__ = '\n'.join([text, '', 'Parameters:', *lines])

def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    if _HOMES[name] == 'methods.sms': import_module(f'{__name__}.methods.rivals')   # the methods and presets that settings name
    module = import_module(f'{__name__}.{_HOMES[name]}')
    value = globals()[name] = getattr(module, name)
    _document(value)
    return value

def __dir__(): return sorted(__all__)

def _end_quietly_as_worker():
    "A worker of the command line says nothing at Ctrl-C, also while it imports: whoever started it does"
    import os, signal
    if os.environ.get('STYLEKIT_COMMAND') == str(os.getppid()): signal.signal(signal.SIGINT, lambda *_: os._exit(130))

_end_quietly_as_worker()

def _let_apple_gpus_fall_back():
    "PyTorch does on the CPU what it lacks on an Apple GPU, if it is told so before it is imported"
    import os, sys
    if sys.platform == 'darwin': os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')

_let_apple_gpus_fall_back()

def _share_cores():
    """GNU OpenMP's threads wait for one another by turning in circles. Where another program has one of two cores, a
    picture took more than ten times as long so; with short circles 1.6 times, and a training alone is no slower"""
    import os
    if 'OMP_WAIT_POLICY' not in os.environ: os.environ.setdefault('GOMP_SPINCOUNT', '3000')

_share_cores()
