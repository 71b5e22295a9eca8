// Two pictures of one size, and three ways to look at them: a line between them that stands on the picture, side by side,
// or what differs. All are seen through one window, which can be moved and brought near until pixels are squares. Needs
// mask.js and words.js before it. The window is a matter of the view; mode, line and zoom are told to Python.
const SQUARES = 2;                                               // beyond this zoom a pixel is a square, not a blur
const CLOSEST = 64;                                              // screen pixels of a picture's pixel
const MODES = ['slide', 'side', 'difference'];
const clamp = (v, lo, hi) => Math.min(hi, Math.max(lo, v));

function render({ model, el }) {
  el.classList.add('sk-compare');
  el.innerHTML = `
    <div class="sk-stage" tabindex="0" role="group">
      <div class="sk-pane sk-pane-after"><img class="sk-preview" hidden><canvas hidden></canvas></div>
      <div class="sk-pane sk-pane-before"><img class="sk-before" hidden><canvas hidden></canvas></div>
      <div class="sk-pane sk-pane-difference"><img class="sk-difference" hidden></div>
      <span class="sk-tag sk-tag-before"></span><span class="sk-tag sk-tag-after"></span>
      <div class="sk-line"></div>
      <div class="sk-handle" tabindex="0" role="slider" aria-orientation="horizontal" aria-valuemin="0" aria-valuemax="100"></div>
    </div>
    <div class="sk-scale" role="status"></div>
    <div class="sk-tools sk-view-tools">
      <span>${MODES.map((mode) => `<button type="button" data-mode="${mode}"></button>`).join('')}</span>
      <span>${['farther', 'closer', 'fit', 'one'].map((name) => `<button type="button" class="sk-${name}"></button>`).join('')}</span>
      <button type="button" class="sk-tinted"></button>
      <span class="sk-zoomed"></span>
    </div>`;
  const find = (css) => el.querySelector(css);
  const get = (name) => model.get(name);
  const stage = find('.sk-stage'), handle = find('.sk-handle'), pane = find('.sk-pane-after');
  const pictures = { after: find('.sk-preview'), before: find('.sk-before'), difference: find('.sk-difference') };
  const tints = [...el.querySelectorAll('canvas')];
  const middle = { x: .5, y: .5 };                               // of the window, as a share of the picture
  const word = speaker(model);

  function save(values) {
    for (const key in values) model.set(key, values[key]);
    model.save_changes();
  }
  function put(name, then) {
    const img = pictures[name], bytes = get(name);
    img.hidden = !bytes || !bytes.byteLength;
    if (img.hidden) {
      img.removeAttribute('src');
      return place();
    }
    URL.revokeObjectURL(img.src);
    img.onload = () => {
      place();
      if (then) then();
    };
    img.src = URL.createObjectURL(new Blob([bytes]));
  }
  function fresh() {
    const frame = get('frame');
    put('after', () => save({ shown: frame }));                  // seen: the next may come
  }

  // The window. Zoom is screen pixels for a pixel of the picture; 0: all of it is seen
  function size() {
    const img = [pictures.after, pictures.before].find((i) => !i.hidden && i.naturalWidth);
    return img ? [img.naturalWidth, img.naturalHeight] : [0, 0];
  }
  const density = () => window.devicePixelRatio || 1;
  function fitting() {
    const [w, h] = size();
    return w ? Math.min(pane.clientWidth / w, pane.clientHeight / h) * density() : 1;
  }
  const zoom = () => get('zoom') || fitting();
  function place() {
    const [w, h] = size(), mode = get('mode');
    el.classList.toggle('sk-empty', !w);
    for (const m of MODES) el.classList.toggle(`sk-as-${m}`, m === mode);
    if (w) {
      const wide = (mode === 'side' ? 2 : 1) * w;
      stage.style.aspectRatio = `${wide} / ${h}`;
      stage.style.maxWidth = `max(200px, calc(var(--sk-most, 80vh) * ${wide / h}))`;
    }
    const scale = zoom() / density(), style = {};
    const axes = [['x', w * scale, pane.clientWidth], ['y', h * scale, pane.clientHeight]];
    const [left, top] = axes.map(([axis, whole, seen]) => {
      const half = seen / whole / 2;
      middle[axis] = whole > seen ? clamp(middle[axis], half, 1 - half) : .5;
      return Math.round(seen / 2 - middle[axis] * whole);
    });
    Object.assign(style, { width: `${w * scale}px`, height: `${h * scale}px`, transform: `translate(${left}px, ${top}px)` });
    for (const layer of [...Object.values(pictures), ...tints]) Object.assign(layer.style, style);
    el.classList.toggle('sk-near', get('zoom') > 0);
    el.classList.toggle('sk-squares', get('zoom') > SQUARES);
    line();
    tell(w, h);
  }
  function zoomTo(next, x = .5, y = .5) {                        // a point of the window stays where it is
    const before = zoom(), fit = fitting();
    const [w, h] = size(), now = next <= fit * 1.001 ? 0 : Math.min(CLOSEST, next);
    const after = now || fit;
    const off = { x: (x - .5) * pane.clientWidth / w, y: (y - .5) * pane.clientHeight / h };
    for (const axis of ['x', 'y']) middle[axis] += off[axis] * density() * (1 / before - 1 / after);
    save({ zoom: now });
    place();
  }
  const closer = () => zoomTo(2 ** (Math.floor(Math.log2(zoom()) + .01) + 1));
  const farther = () => zoomTo(2 ** (Math.ceil(Math.log2(zoom()) - .01) - 1));
  const one = () => { save({ zoom: 1 }); place(); };
  function pan(dx, dy) {                                         // screen pixels
    const [w, h] = size();
    middle.x -= dx * density() / zoom() / w;
    middle.y -= dy * density() / zoom() / h;
    place();
  }

  // The line
  function line() {
    const at = get('position'), edge = stage.clientWidth * at / 100;
    stage.style.setProperty('--sk-at', `${at}%`);
    handle.setAttribute('aria-valuenow', Math.round(at));
    const [before, after] = ['before', 'after'].map((name) => find(`.sk-tag-${name}`));
    const slide = get('mode') === 'slide';
    before.style.visibility = slide && edge < before.offsetWidth + 12 ? 'hidden' : '';
    after.style.visibility = slide && stage.clientWidth - edge < after.offsetWidth + 12 ? 'hidden' : '';
  }
  function moveTo(at) {
    save({ position: +clamp(at, 0, 100).toFixed(1) });
    line();
  }
  const below = (e) => {
    const r = stage.getBoundingClientRect();
    return 100 * (e.clientX - r.left - stage.clientLeft) / stage.clientWidth;
  };

  // What is said; a text that stays is not written again, as it would be announced again
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  function tell(w, h) {
    const label = { before: get('label_before'), after: get('label_after') };
    for (const name of ['before', 'after']) {
      write(find(`.sk-tag-${name}`), label[name]);
      pictures[name].alt = word('alt', { label: label[name] });
    }
    pictures.difference.alt = word('difference_alt', label);
    stage.setAttribute('aria-label', word('stage', label));
    handle.setAttribute('aria-label', word('handle', label));
    const shown = get('mode') === 'difference' && get('difference').byteLength;
    const scale = { factor: get('factor'), span: Math.floor(127 / (get('factor') || 1)), ...label };
    write(find('.sk-scale'), shown ? word(get('factor') ? 'scale' : 'same', scale) : '');
    for (const button of el.querySelectorAll('[data-mode]')) {
      write(button, word(button.dataset.mode));
      button.title = word(`${button.dataset.mode}_tip`);
      button.setAttribute('aria-pressed', button.dataset.mode === get('mode'));
    }
    for (const name of ['tinted', 'farther', 'closer', 'fit', 'one']) {
      const button = find(`.sk-${name}`);
      write(button, word(name));
      button.title = word(`${name}_tip`);
      if (word(name).length < 2) button.setAttribute('aria-label', word(`${name}_tip`));
      button.disabled = !w;
    }
    find('.sk-tinted').setAttribute('aria-pressed', get('tinted'));
    find('.sk-tinted').disabled = !get('mask');
    find('.sk-fit').setAttribute('aria-pressed', !get('zoom'));
    find('.sk-one').setAttribute('aria-pressed', get('zoom') === 1);
    write(find('.sk-zoomed'), w ? word('zoomed', { width: w, height: h, percent: Math.round(100 * zoom()) }) : '');
  }

  // What is protected, as a tint
  async function tint() {
    const mask = get('mask'), seen = Boolean(mask && get('tinted'));
    const canvas = seen ? await opacity(mask) : null;
    if (mask !== get('mask') || seen !== Boolean(mask && get('tinted'))) return;
    for (const layer of tints) {
      layer.hidden = !seen;
      if (!seen) continue;
      [layer.width, layer.height] = [canvas.width, canvas.height];
      const c = layer.getContext('2d');
      c.drawImage(canvas, 0, 0);
      c.globalCompositeOperation = 'source-in';
      c.fillStyle = '#d6006e';
      c.fillRect(0, 0, layer.width, layer.height);
    }
    place();
  }

  // Hands: on the grip the line moves; on the picture too while all of it is seen, else the window; two fingers zoom
  const fingers = new Map();
  let holds = '', spread = 0;
  const apart = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  function share(e) {                                            // of the window below a pointer
    const r = pane.getBoundingClientRect(), x = (e.clientX - r.left) / r.width;
    return [x > 1 ? x - 1 : x, (e.clientY - r.top) / r.height];
  }
  stage.addEventListener('pointerdown', (e) => {
    if (e.button > 0 || el.classList.contains('sk-empty')) return;
    fingers.set(e.pointerId, e);
    stage.setPointerCapture(e.pointerId);
    const grip = e.target === handle, flat = !get('zoom') && get('mode') === 'slide';
    holds = fingers.size > 1 ? 'zoom' : grip || flat ? 'line' : 'window';
    if (fingers.size === 2) spread = zoom() / apart([...fingers.values()]);
    if (holds === 'line') handle.focus({ preventScroll: true });
    if (flat && !grip) moveTo(below(e));
    if (grip) e.preventDefault();
  });
  stage.addEventListener('pointermove', (e) => {
    const last = fingers.get(e.pointerId);
    if (!last) return;
    fingers.set(e.pointerId, e);
    if (holds === 'line') moveTo(below(e));
    else if (holds === 'window') pan(e.clientX - last.clientX, e.clientY - last.clientY);
    else if (fingers.size === 2) zoomTo(spread * apart([...fingers.values()]), ...share(e));
  });
  for (const end of ['pointerup', 'pointercancel']) {
    stage.addEventListener(end, (e) => {
      fingers.delete(e.pointerId);
      if (!fingers.size) holds = '';
    });
  }
  stage.addEventListener('wheel', (e) => {                       // without a modifier the page is scrolled
    if (!(e.ctrlKey || e.metaKey) || el.classList.contains('sk-empty')) return;
    e.preventDefault();
    zoomTo(zoom() * 2 ** clamp(-e.deltaY / 100, -1, 1), ...share(e));
  }, { passive: false });
  stage.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const at = get('position'), far = e.shiftKey ? 10 : 1;
    const ends = { Home: 0, End: 100, PageDown: at - 10, PageUp: at + 10 };
    const all = get('listens') ? { 0: () => zoomTo(0), 1: one } : {};
    const act = { '+': closer, '=': closer, '-': farther, ...all }[e.key];
    if (act) act();
    else if (e.target === handle && way) moveTo(at + far * (way[0] - way[1]));
    else if (e.target === handle && e.key in ends) moveTo(ends[e.key]);
    else if (way && get('zoom') && get('listens')) pan(-40 * way[0], -40 * way[1]);
    else return;
    e.preventDefault();
    e.stopPropagation();
  });

  for (const button of el.querySelectorAll('[data-mode]')) {
    button.addEventListener('click', () => { save({ mode: button.dataset.mode }); place(); });
  }
  find('.sk-tinted').addEventListener('click', () => { save({ tinted: !get('tinted') }); tint(); });
  for (const [name, act] of Object.entries({ farther, closer, one, fit: () => zoomTo(0) })) {
    find(`.sk-${name}`).addEventListener('click', act);
  }
  model.on('change:after', fresh);
  for (const name of ['before', 'difference']) model.on(`change:${name}`, () => put(name));
  for (const name of ['mask', 'tinted']) model.on(`change:${name}`, tint);
  for (const name of ['mode', 'position', 'zoom', 'factor', 'label_before', 'label_after', 'words']) {
    model.on(`change:${name}`, place);
  }
  const watch = new ResizeObserver(place);
  watch.observe(stage);
  for (const name of ['before', 'difference']) put(name);
  fresh();
  tint();
  place();
  return () => watch.disconnect();
}
export default { render };
