// A thing that is wanted or not, with a number where there is one: "Edges kept, at least [0.8]".
function render({ model, el }) {                                 // needs words.js before it
  el.classList.add('sk-tick');
  el.innerHTML = `
    <label><input type="checkbox"> <span></span></label>
    <input type="number" step="any"><span class="sk-unit"></span>
    <small class="sk-note" role="status"></small>`;
  const [box, number] = el.querySelectorAll('input');
  const [name, unit] = el.querySelectorAll('span');
  const note = el.querySelector('small');
  const get = (key) => model.get(key), word = speaker(model);

  function look() {
    name.textContent = get('label');
    el.title = get('tip');
    [box.checked, box.disabled] = [get('value'), get('disabled')];
    const numbered = get('highest') > get('lowest');
    number.hidden = unit.hidden = !numbered;
    number.value = get('number');
    number.disabled = get('disabled') || !get('value');
    number.setAttribute('aria-label', word('number', { label: get('label') }));
    unit.textContent = get('unit');
    note.textContent = get('note');
  }
  function put(key, value) {
    model.set(key, value);
    model.save_changes();
    look();
  }
  box.addEventListener('change', () => put('value', box.checked));
  number.addEventListener('change', () => {
    const [lo, hi, typed] = [get('lowest'), get('highest'), number.value];
    if (typed !== '' && +typed >= lo && +typed <= hi) return put('number', +typed);
    look();
    note.textContent = word('refused', { typed, lo, hi });
  });
  for (const key of ['value', 'number', 'label', 'tip', 'unit', 'note', 'disabled', 'lowest', 'highest', 'words']) model.on(`change:${key}`, look);
  look();
}
export default { render };
