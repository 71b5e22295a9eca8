// Paint over a picture, or move a box over it by keys. What is painted lives in a canvas of its own, in the picture's
// pixels; what is seen is that canvas, and what is held for other reasons, filled with stripes of two colours, one of
// which stands out on any picture. What is painted last holds, at the strength it was painted with; rubbing out is strength
// 0. Needs mask.js before it.
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
    <div class="sk-pair"><img hidden><canvas tabindex="0" role="application"></canvas></div>
    <div class="sk-hint"></div>
    <div class="sk-tools">
      <label><span></span> <input type="range" class="sk-size" min="2" max="40"></label>
      <label><span></span> <input type="range" class="sk-strength" min="10" max="100" step="10"></label>
    </div>
    <div class="sk-tools">
      <button type="button" class="sk-box"></button>
      <button type="button" class="sk-erase"></button>
      <button type="button" class="sk-undo"></button>
      <button type="button" class="sk-redo"></button>
      <button type="button" class="sk-clear"></button>
    </div>`;
  const find = (css) => el.querySelector(css);
  const img = find('img'), view = find('canvas'), seen = view.getContext('2d');
  const ranges = { brush: find('.sk-size'), strength: find('.sk-strength') };
  const layer = () => document.createElement('canvas');
  const paint = layer(), p = paint.getContext('2d', { willReadFrequently: true });
  const ink = layer(), i = ink.getContext('2d');                 // the stroke or the box in progress
  const past = [], future = [];
  let last = null, from = null, erasing = false, boxing = false, sent = null, box = null, under = null, held = null;

  function tell() {
    const words = model.get('words');
    img.alt = words.alt || '';
    view.setAttribute('aria-label', words.canvas || '');
    find('.sk-hint').textContent = words.keys || '';
    for (const name of ['brush', 'strength']) ranges[name].previousElementSibling.textContent = words[name] || '';
    for (const name of ['box', 'erase', 'undo', 'redo', 'clear']) {
      const button = find(`.sk-${name}`);
      button.textContent = words[name] || '';
      button.title = words[`${name}_tip`] || '';
    }
  }
  const whole = () => [0, 0, paint.width, paint.height];
  function see(area = whole()) {                                 // of a large picture a stroke changes little
    seen.save();
    seen.beginPath();
    seen.rect(...area);
    seen.clip();
    seen.clearRect(...area);
    seen.drawImage(paint, 0, 0);
    if (held) seen.drawImage(held, 0, 0);
    seen.globalCompositeOperation = 'source-in';
    seen.fillStyle = stripes(seen);
    seen.fillRect(...area);
    seen.restore();
    if (box) outline();
  }
  function show() {
    see();
    const off = model.get('disabled');
    for (const css of ['.sk-box', '.sk-erase', '.sk-clear']) find(css).disabled = off;
    find('.sk-undo').disabled = off || !past.length;
    find('.sk-redo').disabled = off || !future.length;
    find('.sk-erase').setAttribute('aria-pressed', erasing);
    find('.sk-box').setAttribute('aria-pressed', boxing);
    for (const name in ranges) ranges[name].value = model.get(name);
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
  const empty = () => !p.getImageData(0, 0, paint.width, paint.height).data.some((v, n) => n % 4 === 3 && v > 0);
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
  const now = () => p.getImageData(0, 0, paint.width, paint.height);
  function remember() {                                          // what the next stroke is laid upon
    under = now();
    past.push(under);
    if (past.length > STEPS_BACK) past.shift();
    future.length = 0;
    i.clearRect(0, 0, ink.width, ink.height);
  }
  function lay(area = whole()) {                                 // the ink over what was there, at its strength
    p.putImageData(under, 0, 0, ...area);
    p.save();
    p.beginPath();
    p.rect(...area);
    p.clip();
    p.globalCompositeOperation = 'destination-out';
    p.drawImage(ink, 0, 0);
    p.globalCompositeOperation = 'lighter';
    p.globalAlpha = erasing ? 0 : model.get('strength') / 100;
    p.drawImage(ink, 0, 0);
    p.restore();
    see(area);
  }
  async function read() {                                        // what is protected already, say after a reload
    const mask = model.get('mask');
    if (mask === sent || !paint.width) return;
    p.clearRect(0, 0, paint.width, paint.height);
    [past.length, future.length] = [0, 0];
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
      for (const c of [view, paint, ink]) [c.width, c.height] = [img.naturalWidth, img.naturalHeight];
      [past.length, future.length, sent, box, held] = [0, 0, null, null, null];
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
  function stroke(a, b) {                                        // with a soft edge
    const width = model.get('brush') / 100 * paint.width;
    Object.assign(i, { lineCap: 'round', strokeStyle: '#fff', shadowColor: '#fff', lineWidth: width * .7, shadowBlur: width * .3 });
    i.beginPath();
    i.moveTo(...a);
    i.lineTo(...b);
    i.stroke();
    i.shadowBlur = 0;
    const [left, top] = [0, 1].map((n) => Math.floor(Math.min(a[n], b[n]) - width));
    const [right, low] = [0, 1].map((n) => Math.ceil(Math.max(a[n], b[n]) + width));
    lay([left, top, right - left, low - top]);
  }
  function fillBox() {
    i.clearRect(0, 0, ink.width, ink.height);
    i.fillStyle = '#fff';
    i.fillRect(Math.round(box.x), Math.round(box.y), Math.round(box.w), Math.round(box.h));
    lay();
  }
  function corners([ax, ay], [bx, by]) {                         // of a box that is drawn, within the picture
    const cut = (v, most) => Math.min(most, Math.max(0, v));
    const [x0, x1] = [cut(ax, paint.width), cut(bx, paint.width)].sort((a, b) => a - b);
    const [y0, y1] = [cut(ay, paint.height), cut(by, paint.height)].sort((a, b) => a - b);
    return { x: x0, y: y0, w: x1 - x0, h: y1 - y0 };
  }
  function turn(back, ahead) {                                   // undo and redo
    if (!back.length) return;
    box = null;
    ahead.push(now());
    p.putImageData(back.pop(), 0, 0);
    save();
  }
  const undo = () => turn(past, future), redo = () => turn(future, past);
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
  function draw() {
    [boxing, box] = [!boxing, null];
    show();
  }
  function another() {
    box = null;
    show();
  }
  function set(name, value) {
    const { min, max } = ranges[name];
    model.set(name, Math.min(+max, Math.max(+min, value)));
    model.save_changes();
    show();
  }
  function arrow(dx, dy, resize) {                               // the first one lays a box on the middle
    const [W, H] = [paint.width, paint.height];
    if (!box) {
      remember();
      box = { x: W / 4, y: H / 4, w: W / 2, h: H / 2 };
    } else if (resize) {
      box.w = Math.min(W - box.x, Math.max(W / 25, box.w + dx * W / 25));
      box.h = Math.min(H - box.y, Math.max(H / 25, box.h + dy * H / 25));
    } else {
      box.x = Math.min(W - box.w, Math.max(0, box.x + dx * W / 25));
      box.y = Math.min(H - box.h, Math.max(0, box.y + dy * H / 25));
    }
    fillBox();
    save();
  }
  view.addEventListener('pointerdown', (e) => {
    if (model.get('disabled') || !ready()) return;
    view.setPointerCapture(e.pointerId);
    remember();
    [box, last] = [null, at(e)];
    from = boxing ? last : null;
    if (!from) stroke(last, last);
  });
  view.addEventListener('pointermove', (e) => {
    if (!last) return;
    const next = at(e);
    if (from) {
      box = corners(from, next);
      fillBox();
    } else stroke(last, next);
    last = next;
  });
  for (const end of ['pointerup', 'pointercancel']) {
    view.addEventListener(end, () => {
      if (last && from && !box) past.pop();                      // a click is no box
      else if (last) save();
      last = null;
    });
  }
  for (const [name, act] of Object.entries({ box: draw, erase, undo, redo, clear })) {
    find(`.sk-${name}`).addEventListener('click', act);
  }
  view.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !ready()) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const acts = {
      Delete: clear, Backspace: clear, e: erase, b: another, d: draw, z: e.shiftKey ? redo : undo, y: redo,
      '[': () => set('brush', model.get('brush') - 2), ']': () => set('brush', model.get('brush') + 2),
    };
    const act = acts[e.key.length > 1 ? e.key : e.key.toLowerCase()];
    if (!way && !act) return;
    e.preventDefault();
    e.stopPropagation();
    if (model.get('disabled')) return;
    if (way) arrow(...way, e.shiftKey);
    else act();
  });
  for (const name in ranges) ranges[name].addEventListener('input', () => set(name, +ranges[name].value));
  model.on('change:image', load);
  model.on('change:mask', read);
  model.on('change:held', readHeld);
  model.on('change:words', tell);
  for (const name of ['disabled', 'brush', 'strength']) model.on(`change:${name}`, show);
  tell();
  show();
  load();
}
export default { render };
