"""A command that may not last for ever: limit.py MINUTES COMMAND ...

After so many minutes every thread of every Python process of the command prints where it is, whatever holds it; then
all of them are killed, and the status is 124.
"""
import os
import resource
import signal
import subprocess
import sys
import time


def processes(group):
    "What to signal, in turn: the processes of a group, its leader first; all at once where there is no `ps`"
    try: listed = subprocess.run(['ps', '-A', '-o', 'pid=,pgid='], capture_output=True, text=True).stdout
    except OSError: return [-group]
    rows = [[int(word) for word in line.split()] for line in listed.splitlines()]
    return sorted((pid for pid, of in rows if of == group), key=lambda pid: (pid != group, pid))


def end(group, show):
    "Kill a process group; first let its processes show their stacks, in turn so that they can be read"
    for pid in processes(group) if show else ():
        try: os.kill(pid, signal.SIGABRT)
        except ProcessLookupError: continue
        time.sleep(1)
    try: os.killpg(group, signal.SIGKILL)
    except ProcessLookupError: pass


def main(minutes, command):
    os.environ['PYTHONFAULTHANDLER'] = '1'   # Python's own handler of SIGABRT needs no lock
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for told_to_end in (signal.SIGTERM, signal.SIGHUP): signal.signal(told_to_end, signal.default_int_handler)
    run = subprocess.Popen(command, start_new_session=True)   # a group of its own, which no Ctrl-C reaches but ours
    try: return run.wait(60*minutes)
    except subprocess.TimeoutExpired:
        print(f'\n{" ".join(command)}: not done after {minutes:g} minutes. Where it is:', file=sys.stderr, flush=True)
        end(run.pid, show=True)
        return 124
    except KeyboardInterrupt:
        end(run.pid, show=False)
        return 130


if __name__ == '__main__': sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
