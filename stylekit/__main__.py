"""What `stylekit` and `python -m stylekit` start: first Ctrl-C is seen to, then the command line is imported."""
import os, signal, sys


def _is_importing(frame)->bool:
    "Is a library being imported? An interrupt in the middle of one comes out as another error, or not at all"
    while frame:
        if frame.f_code.co_filename.startswith('<frozen importlib'): return True
        frame = frame.f_back
    return False

def _end():
    "End at once and quietly"
    try: sys.stdout.flush()
    finally: os._exit(130)

def _on_interrupt(_, frame):
    signal.signal(signal.SIGINT, lambda *_: _end())   # a second one is not waited for
    if 'threading' in sys.modules: sys.modules['threading'].excepthook = lambda *_: None   # what is torn down complains
    if _is_importing(frame): _end()
    raise KeyboardInterrupt

def _on_lost(lost, usual=sys.unraisablehook):
    "An interrupt that fell where nothing can be raised"
    if lost.exc_type is KeyboardInterrupt: _end()
    usual(lost)

def main():
    "The command line as a process"
    signal.signal(signal.SIGINT, _on_interrupt)
    os.environ['STYLEKIT_COMMAND'] = str(os.getpid())   # its workers know by this whose they are
    sys.unraisablehook = _on_lost
    try:
        from stylekit.cli import main as run
        status = run()
    except KeyboardInterrupt: _end()   # before or after all that `run` sees to
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # what is left takes a moment, and its result is known
    sys.exit(status)


if __name__ == '__main__': main()
