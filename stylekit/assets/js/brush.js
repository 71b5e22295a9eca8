// Paint over a picture, or move a box over it by keys. What is painted lives in a canvas of its own, in the picture's
// pixels; what is seen is that canvas, and what is held for other reasons, filled with stripes of two colours, one of
// which stands out on any picture.
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

// A mask as the opacity of white; brightness becomes opacity
async function opacity(mask, width, height) {
  const image = new Image();
  image.src = mask;
  await image.decode();
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const c = canvas.getContext('2d', { willReadFrequently: true });
  c.drawImage(image, 0, 0, width, height);
  const data = c.getImageData(0, 0, width, height);
  for (let i = 0; i < data.data.length; i += 4) {
    data.data[i + 3] = data.data[i];
    data.data[i] = data.data[i + 1] = data.data[i + 2] = 255;
  }
  c.putImageData(data, 0, 0);
  return canvas;
}

function render({ model, el }) {
  el.classList.add('sk-brush');
  el.innerHTML = `
    <div class="sk-pair">
      <img alt="picture to paint on" hidden>
      <canvas tabindex="0" aria-label="Paint what must not change. Keys: arrows move a box, with Shift they make it larger or smaller, B begins another, E eraser, Z undo, Delete clears"></canvas>
    </div>
    <div class="sk-hint"><b>Keys</b> arrows: move a box · Shift and arrows: its size · B: another box · E: rub out ·
      Z: a stroke or box back · Del: clear</div>
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
  let last = null, erasing = false, sent = null, box = null, under = null, held = null;

  function show() {
    seen.globalCompositeOperation = 'copy';
    seen.drawImage(paint, 0, 0);
    seen.globalCompositeOperation = 'source-over';
    if (held) seen.drawImage(held, 0, 0);
    seen.globalCompositeOperation = 'source-in';
    seen.fillStyle = stripes(seen);
    seen.fillRect(0, 0, view.width, view.height);
    if (box) outline();
    for (const css of ['.sk-erase', '.sk-clear']) find(css).disabled = model.get('disabled');
    find('.sk-undo').disabled = model.get('disabled') || !past.length;
    find('.sk-erase').setAttribute('aria-pressed', erasing);
  }
  const ready = () => !img.hidden && img.naturalWidth > 0 && paint.width === img.naturalWidth;
  function outline() {                                           // where the box is, over any picture
    Object.assign(seen, { globalCompositeOperation: 'source-over', lineWidth: Math.max(2, view.width / 120) });
    for (const [colour, dash] of [['#000', []], ['#fff', [6, 6]]]) {
      seen.strokeStyle = colour;
      seen.setLineDash(dash.map((v) => v * seen.lineWidth / 2));
      seen.strokeRect(box.x, box.y, box.w, box.h);
    }
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
    box = null;
    sent = mask;
    if (mask) {
      p.drawImage(await opacity(mask, paint.width, paint.height), 0, 0);
    }
    show();
  }
  async function readHeld() {                                    // what the brush does not hold, and cannot rub out
    const mask = model.get('held');
    const found = mask && paint.width ? await opacity(mask, paint.width, paint.height) : null;
    if (mask === model.get('held')) held = found;
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
      [past.length, sent, box, held] = [0, null, null, null];
      show();
      read();
      readHeld();
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
    box = null;
    p.putImageData(past.pop(), 0, 0);
    save();
  }
  function clear() {
    remember();
    box = null;
    p.clearRect(0, 0, paint.width, paint.height);
    save();
  }
  function erase() {
    [erasing, box] = [!erasing, null];
    show();
  }
  function another() {
    box = null;
    show();
  }
  function arrow(dx, dy, resize) {                               // the first one lays a box on the middle
    const [W, H] = [paint.width, paint.height];
    if (!box) {
      remember();
      under = past[past.length - 1];
      box = { x: W / 4, y: H / 4, w: W / 2, h: H / 2 };
    } else if (resize) {
      box.w = Math.min(W - box.x, Math.max(W / 25, box.w + dx * W / 25));
      box.h = Math.min(H - box.y, Math.max(H / 25, box.h + dy * H / 25));
    } else {
      box.x = Math.min(W - box.w, Math.max(0, box.x + dx * W / 25));
      box.y = Math.min(H - box.h, Math.max(0, box.y + dy * H / 25));
    }
    p.putImageData(under, 0, 0);
    p.globalCompositeOperation = erasing ? 'destination-out' : 'source-over';
    p.fillStyle = '#fff';
    p.fillRect(Math.round(box.x), Math.round(box.y), Math.round(box.w), Math.round(box.h));
    p.globalCompositeOperation = 'source-over';
    save();
  }
  view.addEventListener('pointerdown', (e) => {
    if (model.get('disabled') || !ready()) return;
    view.setPointerCapture(e.pointerId);
    box = null;
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
    if (e.ctrlKey || e.metaKey || e.altKey || !ready()) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const act = { Delete: clear, Backspace: clear, e: erase, z: undo, b: another }[e.key.length > 1 ? e.key : e.key.toLowerCase()];
    if (!way && !act) return;
    e.preventDefault();
    e.stopPropagation();
    if (model.get('disabled')) return;
    if (way) arrow(...way, e.shiftKey);
    else act();
  });
  range.value = model.get('brush');
  range.addEventListener('input', () => { model.set('brush', +range.value); model.save_changes(); });
  model.on('change:image', load);
  model.on('change:mask', read);
  model.on('change:held', readHeld);
  model.on('change:disabled', show);
  load();
}
export default { render };
