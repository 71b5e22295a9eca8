"Balanced image stylisation: change the look of an image, keep what it shows"
__version__ = "0.1.0"

# Names are fetched when first used, so that `import stylekit` and `stylekit --help` need not wait for torch.
_HOMES = dict(stylize='stylizer', Stylizer='stylizer', StylizeResult='stylizer', Callback='stylizer', Checkpoint='stylizer', Preview='stylizer', Progress='stylizer',
              Settings='sms', settings='sms', load_backbone='backbone', Backbone='backbone', load_style='lora', styles='lora', train_lora='finetune',
              StylekitError='core', load_image='images', sample='images', samples='images', save_output='rights', read_output='rights', replay='live', StylizePanel='panels', SpectrumPanel='panels', ComparePanel='panels',
              LoraPanel='panels', ControlClipPanel='panels')
__all__ = ['__version__', *_HOMES]

def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    module = import_module(f'{__name__}.{_HOMES[name]}')
    value = globals()[name] = getattr(module, name)
    return value

def __dir__(): return sorted(__all__)
