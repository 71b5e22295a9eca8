// A picture from a file, dropped or pasted. Websockets have limits (10 MB in JupyterLab), so it is sent in pieces; what
// is larger than Python takes is scaled down here first. Either the picture arrives or there is a sentence why not.
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
async function shrink(file, limit, side) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error(`${file.name} has ${megabytes(file.size)}, and this browser cannot open it to make it smaller: `
    + `at most ${megabytes(limit)} are taken`);
  const type = transparent(bitmap) ? 'image/png' : 'image/jpeg'; // PNG keeps what is transparent
  for (; side >= SMALLEST; side = Math.round(side / 1.5)) {
    const canvas = draw(bitmap, side);
    const blob = await new Promise((done) => canvas.toBlob(done, type, .92));
    if (blob && blob.size <= limit) {
      return { blob, note: `scaled down from ${bitmap.width} × ${bitmap.height} pixels (${megabytes(file.size)})` };
    }
  }
  throw new Error(`${file.name} cannot be made small enough: at most ${megabytes(limit)} are taken`);
}

function render({ model, el }) {
  el.classList.add('sk-drop');
  const button = Object.assign(document.createElement('button'), { type: 'button' });
  const input = Object.assign(document.createElement('input'), { type: 'file', hidden: true, accept: 'image/*,.heic,.heif,.tif,.tiff' });
  input.setAttribute('aria-label', 'picture file');
  el.append(button, input);
  const off = () => model.get('disabled');
  function look() {
    button.textContent = model.get('label');
    button.title = model.get('tip');
    button.disabled = off();
  }
  async function take(file) {
    if (!file || off()) return;
    const id = crypto.getRandomValues(new Uint32Array(2)).join('-');
    model.send({ kind: 'begin', id, name: file.name });          // from here on the picture before does not count
    try {
      const { blob, note } = file.size <= model.get('max_bytes') ? { blob: file, note: '' }
        : await shrink(file, model.get('max_bytes'), model.get('max_side'));
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
  for (const name of ['dragover', 'drop']) {
    el.addEventListener(name, (e) => {
      e.preventDefault();
      e.stopPropagation();
      if (name === 'drop') take(e.dataTransfer.files[0]);
    });
  }
  el.addEventListener('paste', (e) => take(e.clipboardData.files[0]));
  for (const key of ['label', 'tip', 'disabled']) model.on(`change:${key}`, look);
  look();
}
export default { render };
