// Two pictures of one size, and a line between them that can be moved.
function render({ model, el }) {
  el.classList.add('sk-compare');
  el.innerHTML = `
    <div class="sk-pair">
      <img class="sk-preview" alt="the picture as it is now" hidden>
      <img class="sk-before" alt="the picture before" hidden>
    </div>
    <input type="range" min="0" max="100" step="1" aria-label="how much of the picture before is shown"
      title="Drag: the picture before, over the picture now">`;
  const [now, old] = el.querySelectorAll('img');
  const range = el.querySelector('input');

  function put(img, name, then) {
    const bytes = model.get(name);
    const empty = !bytes || !bytes.byteLength;
    img.hidden = empty;
    if (empty) return img.removeAttribute('src');
    const last = img.src;
    img.onload = () => {
      if (last) URL.revokeObjectURL(last);
      if (then) then();
    };
    img.src = URL.createObjectURL(new Blob([bytes], { type: 'image/jpeg' }));
  }
  function fresh() {
    const frame = model.get('frame');
    put(now, 'after', () => { model.set('shown', frame); model.save_changes(); });   // seen: the next may come
  }
  function cut() {
    range.value = model.get('position');
    old.style.clipPath = `inset(0 ${100 - model.get('position')}% 0 0)`;
  }
  model.on('change:after', fresh);
  model.on('change:before', () => put(old, 'before'));
  model.on('change:position', cut);
  range.addEventListener('input', () => { model.set('position', +range.value); model.save_changes(); cut(); });
  put(old, 'before');
  fresh();
  cut();
}
export default { render };
