// A picture that may not be there yet: then there is an empty frame, not a broken image.
function render({ model, el }) {
  el.classList.add('sk-picture');
  const img = document.createElement('img');
  el.append(img);
  let last = null;
  function look() {
    const bytes = model.get('value');
    const empty = !bytes || !bytes.byteLength;
    el.classList.toggle('sk-empty', empty);
    img.hidden = empty;
    img.alt = model.get('alt');
    const old = last;
    last = empty ? null : URL.createObjectURL(new Blob([bytes]));
    if (empty) img.removeAttribute('src');
    else img.src = last;
    if (old) setTimeout(() => URL.revokeObjectURL(old), 1000);
  }
  model.on('change:value', look);
  model.on('change:alt', look);
  look();
}
export default { render };
