// Pictures with names, one of which is chosen. They are native radio buttons, so that arrow keys, names and high contrast
// are the browser's own; with `press` they are buttons, each of which does something once.
function render({ model, el }) {
  el.classList.add('sk-choose');
  const group = `sk-${crypto.getRandomValues(new Uint32Array(2)).join('-')}`;
  const get = (key) => model.get(key);
  const legend = Object.assign(document.createElement('div'), { className: 'sk-legend', id: `${group}-legend` });
  const box = Object.assign(document.createElement('div'), { className: 'sk-options' });
  const note = Object.assign(document.createElement('small'), { className: 'sk-note' });
  note.setAttribute('role', 'status');
  box.setAttribute('role', get('press') ? 'group' : 'radiogroup');
  box.setAttribute('aria-labelledby', legend.id);
  el.append(legend, box, note);
  let entries = [], urls = [];

  function choose(value) {
    if (get('press')) return model.send({ pressed: value });
    model.set('value', value);
    model.save_changes();
  }
  function entry({ value, label, tip }) {
    const press = get('press');
    const frame = document.createElement(press ? 'button' : 'label');
    const input = press ? frame : Object.assign(document.createElement('input'), { type: 'radio', name: group, value });
    const img = Object.assign(document.createElement('img'), { alt: tip, hidden: true });
    const empty = Object.assign(document.createElement('span'), { className: 'sk-none' });
    const name = Object.assign(document.createElement('span'), { className: 'sk-name', textContent: label });
    frame.className = 'sk-option';
    frame.title = tip;
    input.setAttribute('aria-label', label);
    if (press) frame.type = 'button';
    else frame.append(input);
    frame.append(img, empty, name);
    input.addEventListener(press ? 'click' : 'change', () => choose(value));
    return { value, frame, input, img, empty };
  }
  function build() {
    entries = get('options').map(entry);
    box.replaceChildren(...entries.map((e) => e.frame));
    show();
    look();
  }
  function show() {                                              // pictures; an empty frame where there is none yet
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    const pictures = get('pictures'), any = get('framed');
    for (const e of entries) {
      const bytes = pictures[e.value];
      e.img.hidden = !bytes;
      e.empty.hidden = !!bytes || !any;
      if (!bytes) continue;
      urls.push(e.img.src = URL.createObjectURL(new Blob([bytes])));
    }
  }
  function look() {
    legend.textContent = get('label');
    if (note.textContent !== get('note')) note.textContent = get('note');
    for (const e of entries) {
      e.input.disabled = get('disabled');
      e.input.checked = e.value === get('value');
      e.frame.classList.toggle('sk-chosen', e.value === get('value'));
    }
  }
  model.on('change:options', build);
  model.on('change:pictures', show);
  for (const key of ['value', 'label', 'note', 'disabled']) model.on(`change:${key}`, look);
  build();
  return () => urls.forEach((url) => URL.revokeObjectURL(url));
}
export default { render };
