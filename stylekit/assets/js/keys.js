// The keys of a panel, wherever in it the focus is. Each press says for which view it was meant: a second press that comes
// before the next picture is shown does nothing to that one. What takes text keeps its letters. Needs words.js
// before it.
function render({ model, el }) {
  el.classList.add('sk-keys');
  Object.assign(el, { tabIndex: 0 });
  el.setAttribute('role', 'group');
  let panel = null, mine = false;

  const typing = (node) => node.matches('input, textarea, select');
  const seen = (node) => node && node !== document.body && node.getClientRects().length > 0 && !node.disabled;
  function press(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented || typing(e.target)) return;
    if (e.target.closest('button') && [' ', 'Enter'].includes(e.key)) return;        // they press the button
    send(e, e.key.length === 1 ? e.key.toLowerCase() : e.key);
  }
  function write(e) {                                            // before the text field, which keeps all keys to itself
    if (!typing(e.target) || !e.target.closest('.sk-own') || e.isComposing) return;  // letters that are still being chosen
    if (['Enter', 'Escape'].includes(e.key)) send(e, e.key, e.target.value);
  }
  function send(e, key, text) {
    if (!model.get('listens').includes(key)) return;
    e.preventDefault();
    e.stopPropagation();
    const turn = model.get('turn'), asked = model.get('asks');
    if (e.repeat) return;
    if (key !== 'Enter' || !asked || text !== undefined) return model.send({ key, turn, text });
    model.widget_manager.get_model(asked).then((other) => {      // what was painted last may still be on its way to Python
      model.send({ key, turn, text: other.get('mask') });
    });
  }
  function keep() {                                              // a button that is switched off takes the focus with it
    if (mine && !seen(document.activeElement)) el.focus({ preventScroll: true });
  }
  function look() {
    el.textContent = model.get('text');
    el.dataset.turn = model.get('turn');
    el.setAttribute('aria-label', fill(model.get('words').keys, { text: model.get('text') }));
    requestAnimationFrame(keep);
  }
  function attach() {
    panel = el.closest('.sk-panel');
    if (!panel) return;
    panel.addEventListener('keydown', press);
    panel.addEventListener('keydown', write, true);
    panel.addEventListener('focusin', () => { mine = true; });
    panel.addEventListener('click', () => { mine = true; requestAnimationFrame(keep); });
    if (model.get('grab')) el.focus({ preventScroll: true });
  }
  const elsewhere = (e) => { if (panel && !panel.contains(e.target)) mine = false; };
  for (const name of ['focusin', 'pointerdown']) document.addEventListener(name, elsewhere, true);
  model.on('msg:custom', ({ focus }) => {                        // what has just been shown may not be there yet
    let left = 60;
    const go = () => {
      const node = panel && panel.querySelector(focus);
      if (seen(node)) node.focus();
      else if ((left -= 1) > 0) requestAnimationFrame(go);
    };
    if (focus) go();
  });
  for (const key of ['listens', 'turn', 'text', 'words']) model.on(`change:${key}`, look);
  let over = false;
  function soon() {
    if (!panel) attach();
    if (!panel && !over) requestAnimationFrame(soon);
  }
  look();
  soon();
  return () => {
    over = true;
    for (const name of ['focusin', 'pointerdown']) document.removeEventListener(name, elsewhere, true);
    if (!panel) return;
    panel.removeEventListener('keydown', press);
    panel.removeEventListener('keydown', write, true);
  };
}
export default { render };
