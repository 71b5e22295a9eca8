// A native range input, and a box with the exact number. The number is the truth: the handle shows where it lies
// and writes only when a person moves it, so that nothing is rounded, cut or changed by being looked at. While it is
// dragged Python hears of it some ten times a second: each message takes time from the run.
const OFTEN = 80;                                                // milliseconds between two messages of a drag
function render({ model, el }) {                                 // needs words.js before it
  el.classList.add('sk-slider');
  const name = document.createElement('span');
  const range = Object.assign(document.createElement('input'), { type: 'range', min: 0, step: 1 });
  const box = Object.assign(document.createElement('input'), { type: 'number', step: 'any' });
  const note = Object.assign(document.createElement('small'), { className: 'sk-note' });
  note.setAttribute('role', 'status');
  el.append(name, range, box, note);
  const get = (key) => model.get(key), word = speaker(model);
  const tidy = (v, digits) => Number(v.toPrecision(digits));
  const shown = (v) => (get('reverse') ? tidy(1 - v, 12) : v);   // what a person reads; the setting is 1 minus it
  const setting = shown;                                         // its own inverse

  function steps() {
    const [lo, hi] = [get('min'), get('max')];
    return Math.max(1, get('log') ? Math.round(20 * Math.log10(hi / lo)) : Math.round((hi - lo) / get('step')));
  }
  function position(v) {                                         // of the handle, 0 to 1
    const [lo, hi] = [get('min'), get('max')];
    const share = get('log') ? Math.log(Math.max(v, 1e-300) / lo) / Math.log(hi / lo) : (v - lo) / (hi - lo);
    return Math.min(1, Math.max(0, share));
  }
  function at(share) {                                           // the number there: on a log scale two digits
    const [lo, hi] = [get('min'), get('max')];
    if (get('log')) return tidy(lo * Math.pow(hi / lo, share), 2);
    return tidy(lo + Math.round(share * (hi - lo) / get('step')) * get('step'), 9);
  }
  const first = () => (get('log') && get('zero') ? 1 : 0);       // the left end then is exactly 0
  function look() {
    const v = shown(get('value'));
    name.textContent = get('label');
    el.title = get('tip');
    range.max = steps() + first();
    range.value = first() && v <= 0 ? 0 : first() + position(v) * steps();
    box.value = v;
    for (const input of [range, box]) input.disabled = get('disabled');
    range.setAttribute('aria-label', get('label'));
    range.setAttribute('aria-valuetext', String(v));
    box.setAttribute('aria-label', word('exact', { label: get('label') }));
    const beyond = v > get('max') || v < get('min') && !(first() && v === 0);
    const said = get('note') || (beyond ? word('beyond') : '');
    if (note.textContent !== said) note.textContent = said;
  }
  let waiting = null;
  function put(v) {
    model.set('value', setting(v));
    waiting = waiting || setTimeout(send, OFTEN);
    look();
  }
  function send() {
    clearTimeout(waiting);
    waiting = null;
    model.save_changes();
  }
  range.addEventListener('input', () => put(+range.value < first() ? 0 : at((range.value - first()) / steps())));
  range.addEventListener('change', send);                        // let go: at once
  box.addEventListener('change', () => {
    const [lo, hi, typed] = [get('lowest'), get('highest'), box.value];
    const v = get('whole') ? Math.round(+typed) : +typed;
    if (typed !== '' && Number.isFinite(v) && v >= lo && v <= hi) {
      put(v);
      return send();
    }
    look();
    note.textContent = word('refused', { typed, lo, hi });
  });
  for (const key of ['value', 'label', 'tip', 'min', 'max', 'step', 'log', 'zero', 'note', 'disabled', 'words']) model.on(`change:${key}`, look);
  look();
}
export default { render };
