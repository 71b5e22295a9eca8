// A picture from a file, dropped or pasted. Websockets have limits (10 MB in JupyterLab), so it is sent in pieces; what
// is larger than Python takes is scaled down here first. Either the picture arrives or there is a sentence why not. Needs
// words.js before it.
const PIECE = 512 * 1024;
const SMALLEST = 256;                                            // pixels of the longer side
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function draw(bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}
function transparent(bitmap) {
  const small = draw(bitmap, 512);
  const { data } = small.getContext('2d').getImageData(0, 0, small.width, small.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
  return false;
}
async function shrink(file, limit, side, word) {
  const sizes = { name: file.name, size: megabytes(file.size), most: megabytes(limit) };
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error(word('unreadable', sizes));
  const type = transparent(bitmap) ? 'image/png' : 'image/jpeg'; // PNG keeps what is transparent
  for (; side >= SMALLEST; side = Math.round(side / 1.5)) {
    const canvas = draw(bitmap, side);
    const blob = await new Promise((done) => canvas.toBlob(done, type, .92));
    if (blob && blob.size <= limit) {
      return { blob, note: word('scaled', { width: bitmap.width, height: bitmap.height, ...sizes }) };
    }
  }
  throw new Error(word('too_large', sizes));
}

function render({ model, el }) {
  el.classList.add('sk-drop');
  const button = Object.assign(document.createElement('button'), { type: 'button' });
  const input = Object.assign(document.createElement('input'), { type: 'file', hidden: true, accept: 'image/*,.heic,.heif,.tif,.tiff' });
  const hint = document.createElement('small');
  el.append(button, input, hint);
  const get = (key) => model.get(key), word = speaker(model);
  const off = () => get('disabled');
  function look() {
    input.setAttribute('aria-label', word('file'));
    button.textContent = get('label');
    button.title = get('tip');
    button.disabled = off();
    hint.textContent = get('hint');
  }
  async function take(file) {
    if (!file || off()) return;
    const id = crypto.getRandomValues(new Uint32Array(2)).join('-');
    model.send({ kind: 'begin', id, name: file.name });          // from here on the picture before does not count
    try {
      const { blob, note } = file.size <= get('max_bytes') ? { blob: file, note: '' }
        : await shrink(file, get('max_bytes'), get('max_side'), word);
      const of = Math.max(1, Math.ceil(blob.size / PIECE));
      for (let n = 0; n < of; n++) {
        const piece = await blob.slice(n * PIECE, (n + 1) * PIECE).arrayBuffer();
        model.send({ kind: 'piece', id, n, of, note }, undefined, [piece]);
      }
    } catch (error) {
      model.send({ kind: 'failed', id, why: `${error.message || error}` });
    }
  }
  button.addEventListener('click', () => input.click());
  input.addEventListener('change', () => {
    take(input.files[0]);
    input.value = '';                                            // so that the same file can be chosen again
  });
  const files = (e) => e.dataTransfer && [...e.dataTransfer.types].includes('Files');
  function carried(e) {                                          // over the panel: text that is dragged is not meant
    if (!files(e)) return;
    e.preventDefault();
    e.stopPropagation();
    panel.classList.toggle('sk-dropping', e.type === 'dragover' && !off());
    if (e.type === 'drop') take(e.dataTransfer.files[0]);
  }
  function pasted(e) {                                           // with the focus in the panel, or nowhere on its page
    const nowhere = e.target === document.body && document.querySelectorAll('.sk-panel').length === 1;
    const file = (e.clipboardData || {}).files?.[0];
    if (!file || !nowhere && !panel.contains(e.target)) return;
    e.preventDefault();
    take(file);
  }
  let panel = null, over = false;
  function attach() {                                            // once it is in the page
    panel = el.closest('.sk-panel');
    if (!panel) return over || requestAnimationFrame(attach);
    if (!panel.hasAttribute('tabindex')) panel.tabIndex = -1;    // so that a click into it makes it the target of a paste
    for (const name of ['dragover', 'dragleave', 'drop']) panel.addEventListener(name, carried);
    document.addEventListener('paste', pasted);
  }
  attach();
  for (const key of ['label', 'tip', 'hint', 'disabled', 'words']) model.on(`change:${key}`, look);
  look();
  return () => {
    over = true;
    document.removeEventListener('paste', pasted);
    if (!panel) return;
    for (const name of ['dragover', 'dragleave', 'drop']) panel.removeEventListener(name, carried);
  };
}
export default { render };
