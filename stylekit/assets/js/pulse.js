// The heart-beat of a panel, both ways. The page tells Python that somebody has it open and whether its view was taken
// away; Python answers, and a kernel that no longer answers is shown as gone. It is also where the panel's own box gets
// what ipywidgets cannot give it: notebook shortcuts are kept out, dark themes are known, and a page of its own has its main
// part named and follows the colours that the reader's system prefers.
// Needs words.js before it.
const AWAKE = 5 * 60e3;            // without a run, for so long after somebody touched the panel; then kernels may be culled
const SILENCE = 10;                // seconds without an answer

const numbers = (colour) => (colour.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
const dim = ([r, g, b]) => .3 * r + .59 * g + .11 * b < 110;
function dark(node) {
  for (; node; node = node.parentElement) {
    const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
    if (a > .5) return dim([r, g, b]);
  }
  return false;
}
const night = matchMedia('(prefers-color-scheme: dark)');
const page = () => document.body.hasAttribute('data-voila');     // nothing else is on it

function render({ model, el }) {
  el.classList.add('sk-pulse');
  el.dataset.skPulse = model.get('key');
  const banner = document.createElement('div');
  banner.className = 'sk-gone';
  banner.setAttribute('role', 'alert');
  el.append(banner);
  let panel = null, home = null, touched = Date.now(), misses = 0;
  const word = speaker(model);

  const listening = () => model.get('always') || model.get('going') || Date.now() - touched < AWAKE;
  function look() {
    const gone = misses * model.get('period') / 1000 >= SILENCE;
    if (panel) panel.classList.toggle('sk-dead', gone);
    const text = !gone ? '' : word(model.get('going') ? 'gone_run' : 'gone');
    if (banner.textContent !== text) banner.textContent = text;
  }
  function attach() {                                            // once the box is in the page
    panel = el.closest('.sk-panel');
    if (!panel) return;
    home = el.closest('.jp-Notebook');
    const quiet = (node) => node.setAttribute('data-lm-suppress-shortcuts', 'true');
    quiet(panel);                                                // and whatever has the focus: selectors may match it itself
    panel.addEventListener('focusin', (e) => quiet(e.target), true);
    for (const name of ['pointerdown', 'keydown']) panel.addEventListener(name, () => { touched = Date.now(); }, true);
    if (page() && !panel.parentElement.closest('.sk-panel')) panel.setAttribute('role', 'main');
    tongue();
    model.send({ kind: 'came' });
  }
  function tongue() {                                            // which language the panel has, and which the reader prefers
    for (const node of [panel, page() && document.documentElement]) if (node) node.lang = word('lang');
    const prefers = navigator.language.toLowerCase().startsWith('ja') ? 'ja' : 'en';
    if (model.get('lang') === prefers) return;
    model.set('lang', prefers);
    model.save_changes();
  }
  function theme() {
    if (!panel) return;
    if (page()) document.documentElement.classList.toggle('sk-night', night.matches);
    const found = dark(panel);
    panel.classList.toggle('sk-dark', found);
    panel.classList.remove('sk-night');                          // letters of the theme that are dark as well: not ours then
    panel.classList.toggle('sk-night', found && dim(numbers(getComputedStyle(el).color)));
    if (model.get('dark') === found) return;
    model.set('dark', found);
    model.save_changes();
  }
  function beat() {
    if (!panel) attach();
    theme();
    if (!listening()) { misses = 0; return; }
    misses += 1;
    look();
    model.set('beat', model.get('beat') + 1);
    model.save_changes();
  }
  function answered() {
    misses = 0;
    look();
  }
  model.on('change:answer', answered);
  model.on('change:going', answered);
  model.on('change:words', () => { look(); if (panel) tongue(); });
  const timer = setInterval(beat, model.get('period'));
  let over = false;
  function soon() {                                              // before a key can be pressed
    if (!panel) attach();
    if (panel) theme();
    else if (!over) requestAnimationFrame(soon);
  }
  soon();
  return () => {
    over = true;
    clearInterval(timer);
    const kept = document.querySelector(`[data-sk-pulse="${model.get('key')}"]`);
    if (home && home.isConnected && (!kept || kept === el)) model.send({ kind: 'left' });   // the cell was cleared or deleted
  };
}
export default { render };
