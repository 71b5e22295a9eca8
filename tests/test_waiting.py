"""What a panel keeps: thirty runs in one panel leave nothing behind; snapshots are few and in main memory;
the page is for those who have its link"""
import gc, os, time, weakref
import pytest, torch
from ipywidgets.widgets import widget
from stylekit import StylizePanel, load_backbone
from stylekit.app.live import LiveRun, moved_state, state_bytes
from stylekit.app.serve import Serving
from stylekit.images import sample_image

def rss():
    "Megabytes of main memory of this process"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6

def run_once(panel):
    panel.start.click()
    panel.wait(60)
    assert panel.run.state == 'done', panel.status.value

@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='memory is read from /proc')
def test_thirty_runs_leave_nothing(models, random_style):
    small = load_backbone(models('small'))
    panel = StylizePanel(style=str(random_style(small)), backbone=small, simple=True, steps=1, resolution=32, final_t=0)
    def held():
        gc.collect()
        return [o for o in gc.get_objects() if isinstance(o, LiveRun)]
    others = weakref.WeakSet(held())                           # of tests before this one
    def runs_held(): return sum(run not in others for run in held())
    def counts():
        patient = time.monotonic()+20                          # what answers the page knows its run for a second more
        while (runs := runs_held()) > 1 and time.monotonic() < patient: time.sleep(.5)
        return len(widget._instances), runs, sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(4): run_once(panel)
    before, memory = counts(), rss()
    for _ in range(26): run_once(panel)
    after = counts()
    assert after[:2] == before[:2] and after[1] == 1
    assert after[2] <= before[2]+20 and rss()-memory < 30

def test_snapshots_are_in_main_memory_and_share_their_records():
    live = LiveRun(sample_image('owl'), 'ink', 'an owl', preset='paper', backbone=load_backbone(), steps=4, seed=0,
                   resolution=32)
    moved = []
    def noted(state, device):
        moved.append(str(device))
        return moved_state(state, device)
    from stylekit.app import live as room
    room.moved_state, real = noted, room.moved_state
    try:
        while live.advance(): pass
    finally: room.moved_state = real
    assert moved == ['cpu']*4 and [s['k'] for s in live._shots] == [0, 1, 2, 3]
    assert all(p.device.type == 'cpu' for s in live._shots for p in s['method']['params'])
    one = state_bytes(live._shots[-1:])                        # the first has no moments yet
    assert 3*one < state_bytes(live._shots) < 3.6*one
    assert live._shots[3]['records'][0] is live._shots[1]['records'][0]

def test_the_link_holds_a_token_everywhere():
    for host in ('127.0.0.1', '0.0.0.0'): assert len(Serving(host=host).secret) == 32
    assert Serving(host='0.0.0.0', token='').secret == ''

def test_a_stranger_names_no_folder():
    from stylekit.app.page_panel import PagePanel
    page = PagePanel(backbone=load_backbone(), steps=2)
    assert page.tabs.layout.display == 'none' and page.folder is None
