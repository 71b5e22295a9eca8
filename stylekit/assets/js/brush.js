// Paint over a picture. What is painted lives in a canvas of its own, in the picture's pixels; what is seen is that
// canvas filled with stripes of two colours, one of which stands out on any picture.
const STEPS_BACK = 20;

function stripes(context) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 16;
  const t = tile.getContext('2d');
  t.fillStyle = '#d6006e';
  t.fillRect(0, 0, 16, 16);
  t.fillStyle = '#ffffff';
  for (const x of [-8, 8]) {
    t.beginPath();
    for (const [px, py] of [[x, 16], [x + 16, 0], [x + 22, 0], [x + 6, 16]]) t.lineTo(px, py);
    t.fill();
  }
  return context.createPattern(tile, 'repeat');
}

function render({ model, el }) {
  el.classList.add('sk-brush');
  el.innerHTML = `
    <div class="sk-pair">
      <img alt="picture to paint on" hidden>
      <canvas tabindex="0" aria-label="Paint what must not change. Keys: E eraser, Z undo, Delete clears"></canvas>
    </div>
    <div class="sk-tools">
      <label>Brush <input type="range" min="2" max="40" aria-label="size of the brush"></label>
      <button type="button" class="sk-erase" aria-pressed="false" title="Take paint away">Eraser</button>
      <button type="button" class="sk-undo" title="Back to before the last stroke">Undo</button>
      <button type="button" class="sk-clear" title="Nothing is protected any more">Clear</button>
    </div>`;
  const find = (css) => el.querySelector(css);
  const img = find('img'), view = find('canvas'), range = find('input'), seen = view.getContext('2d');
  const paint = document.createElement('canvas'), p = paint.getContext('2d', { willReadFrequently: true });
  const past = [];
  let last = null, erasing = false, sent = null;

  function show() {
    seen.globalCompositeOperation = 'copy';
    seen.drawImage(paint, 0, 0);
    seen.globalCompositeOperation = 'source-in';
    seen.fillStyle = stripes(seen);
    seen.fillRect(0, 0, view.width, view.height);
    find('.sk-undo').disabled = !past.length;
    find('.sk-erase').setAttribute('aria-pressed', erasing);
  }
  const empty = () => !p.getImageData(0, 0, paint.width, paint.height).data.some((v, i) => i % 4 === 3 && v > 0);
  function save() {                                              // white on black; '' for nothing
    const out = document.createElement('canvas');
    [out.width, out.height] = [paint.width, paint.height];
    const o = out.getContext('2d');
    o.fillRect(0, 0, out.width, out.height);
    o.drawImage(paint, 0, 0);
    sent = empty() ? '' : out.toDataURL('image/png');
    model.set('mask', sent);
    model.save_changes();
    show();
  }
  function remember() {
    past.push(p.getImageData(0, 0, paint.width, paint.height));
    if (past.length > STEPS_BACK) past.shift();
  }
  async function read() {                                        // what is protected already, say after a reload
    const mask = model.get('mask');
    if (mask === sent || !paint.width) return;
    p.clearRect(0, 0, paint.width, paint.height);
    past.length = 0;
    sent = mask;
    if (mask) {
      const old = new Image();
      old.src = mask;
      await old.decode();
      p.drawImage(old, 0, 0, paint.width, paint.height);
      const data = p.getImageData(0, 0, paint.width, paint.height);
      for (let i = 0; i < data.data.length; i += 4) {            // brightness becomes opacity
        data.data[i + 3] = data.data[i];
        data.data[i] = data.data[i + 1] = data.data[i + 2] = 255;
      }
      p.putImageData(data, 0, 0);
    }
    show();
  }
  function load() {
    const bytes = model.get('image');
    img.hidden = !bytes || !bytes.byteLength;
    if (img.hidden) return;
    const url = URL.createObjectURL(new Blob([bytes], { type: 'image/jpeg' }));
    img.onload = () => {
      URL.revokeObjectURL(url);
      for (const c of [view, paint]) [c.width, c.height] = [img.naturalWidth, img.naturalHeight];
      [past.length, sent] = [0, null];
      show();
      read();
    };
    img.src = url;
  }
  function at(e) {
    const r = view.getBoundingClientRect();
    return [(e.clientX - r.left) * view.width / r.width, (e.clientY - r.top) * view.height / r.height];
  }
  function stroke(from, to) {                                    // with a soft edge
    const width = model.get('brush') / 100 * paint.width;
    p.globalCompositeOperation = erasing ? 'destination-out' : 'source-over';
    Object.assign(p, { lineCap: 'round', strokeStyle: '#fff', shadowColor: '#fff', lineWidth: width * .7, shadowBlur: width * .3 });
    p.beginPath();
    p.moveTo(...from);
    p.lineTo(...to);
    p.stroke();
    [p.globalCompositeOperation, p.shadowBlur] = ['source-over', 0];
    show();
  }
  function undo() {
    if (!past.length) return;
    p.putImageData(past.pop(), 0, 0);
    save();
  }
  function clear() {
    remember();
    p.clearRect(0, 0, paint.width, paint.height);
    save();
  }
  function erase() {
    erasing = !erasing;
    show();
  }
  view.addEventListener('pointerdown', (e) => {
    view.setPointerCapture(e.pointerId);
    remember();
    last = at(e);
    stroke(last, last);
  });
  view.addEventListener('pointermove', (e) => {
    if (!last) return;
    const next = at(e);
    stroke(last, next);
    last = next;
  });
  for (const end of ['pointerup', 'pointercancel']) {
    view.addEventListener(end, () => {
      if (last) save();
      last = null;
    });
  }
  find('.sk-clear').addEventListener('click', clear);
  find('.sk-undo').addEventListener('click', undo);
  find('.sk-erase').addEventListener('click', erase);
  view.addEventListener('keydown', (e) => {
    const act = { Delete: clear, Backspace: clear, e: erase, z: undo }[e.key];
    if (!act) return;
    e.preventDefault();
    e.stopPropagation();
    act();
  });
  range.value = model.get('brush');
  range.addEventListener('input', () => { model.set('brush', +range.value); model.save_changes(); });
  model.on('change:image', load);
  model.on('change:mask', read);
  load();
}
export default { render };
