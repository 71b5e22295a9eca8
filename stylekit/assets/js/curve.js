// The cut-off curve over t: `cutoff·min(1, t/t_cutoff)^power`, with two points to drag.
const WIDTH = 300, HEIGHT = 120, LEFT = 34, BOTTOM = 22, TOP = 10;
const clip = (v, lo, hi) => Math.min(hi, Math.max(lo, v));
const X = (t) => LEFT + WIDTH * t / 1000;
const Y = (c) => TOP + HEIGHT * (1 - c);

function render({ model, el }) {
  el.classList.add('sk-curve');
  el.innerHTML = `
    <svg viewBox="0 0 ${WIDTH + LEFT + 8} ${HEIGHT + BOTTOM + 14}" role="group">
      <rect x="${LEFT}" y="${TOP}" width="${WIDTH}" height="${HEIGHT}" class="bg"/>
      <path class="area"/><path class="line"/><line class="now" y1="${TOP}" y2="${HEIGHT + TOP}"/>
      <text x="${LEFT}" y="${HEIGHT + BOTTOM + 6}" data-word="least"></text>
      <text x="${LEFT + WIDTH}" y="${HEIGHT + BOTTOM + 6}" text-anchor="end" data-word="most"></text>
      <text x="2" y="16" data-word="all"></text><text x="2" y="${HEIGHT + TOP}" data-word="none"></text>
      <circle r="8" class="mid" tabindex="0" role="slider" aria-valuemin="0" aria-valuemax="1"/>
      <circle r="8" class="corner" tabindex="0" role="slider" aria-valuemin="0" aria-valuemax="1"/>
    </svg>
    <small class="sk-note" role="status"></small>`;
  const find = (css) => el.querySelector(css);
  const get = (name) => model.get(name);
  const svg = find('svg');
  const word = speaker(model);
  const curve = (t) => get('cutoff') * Math.pow(Math.min(1, t / get('t_cutoff')), get('power'));

  function handle(circle, t, c, text) {
    circle.setAttribute('cx', X(t));
    circle.setAttribute('cy', Y(c));
    circle.setAttribute('aria-valuenow', c.toFixed(2));
    circle.setAttribute('aria-valuetext', text);
  }
  function draw() {
    let path = '';
    for (let t = 0; t <= 1000; t += 10) path += `${t ? 'L' : 'M'}${X(t)},${Y(curve(t))}`;
    find('.line').setAttribute('d', path);
    find('.area').setAttribute('d', path + `L${X(1000)},${Y(0)}L${X(0)},${Y(0)}Z`);
    const held = { t: get('t_cutoff'), share: Math.round(100 * get('cutoff')), power: get('power').toFixed(2) };
    handle(find('.corner'), get('t_cutoff'), get('cutoff'), word('held', held));
    handle(find('.mid'), get('t_cutoff') / 2, curve(get('t_cutoff') / 2), word('power', held));
    svg.setAttribute('aria-label', word('curve'));
    for (const name of ['mid', 'corner']) find(`.${name}`).setAttribute('aria-label', word(name));
    for (const text of el.querySelectorAll('text')) text.textContent = word(text.dataset.word);
    find('.now').style.display = get('now') < 0 ? 'none' : '';
    el.classList.toggle('sk-off', get('disabled'));
    el.classList.toggle('sk-faint', get('faint'));
    const note = find('.sk-note');                               // a live region: written only when it changes
    if (note.textContent !== get('note')) note.textContent = get('note');
    for (const circle of el.querySelectorAll('circle')) {
      circle.setAttribute('aria-disabled', get('disabled'));
      circle.setAttribute('tabindex', get('disabled') ? -1 : 0);
    }
    for (const end of ['x1', 'x2']) find('.now').setAttribute(end, X(get('now')));
  }
  function save(values) {
    for (const key in values) model.set(key, values[key]);
    model.save_changes();
    draw();
  }
  const corner = (t, c) => save({ t_cutoff: Math.round(clip(t, 1, 999)), cutoff: +clip(c, 0, 1).toFixed(3) });
  function mid(c) {
    if (get('cutoff') <= 0) return;
    const height = clip(c / get('cutoff'), .004, .933);
    save({ power: +clip(Math.log(height) / Math.log(.5), .1, 8).toFixed(2) });
  }
  function drag(circle, move) {
    circle.addEventListener('pointerdown', (e) => {
      e.preventDefault();
      if (get('disabled')) return;
      circle.focus();
      circle.setPointerCapture(e.pointerId);
      const go = (e) => {
        const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse());
        move(1000 * (p.x - LEFT) / WIDTH, 1 - (p.y - TOP) / HEIGHT);
      };
      circle.addEventListener('pointermove', go);
      circle.addEventListener('pointerup', () => circle.removeEventListener('pointermove', go), { once: true });
    });
  }
  function keys(circle, move) {
    const arrows = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, .02], ArrowDown: [0, -.02] };
    circle.addEventListener('keydown', (e) => {
      if (!arrows[e.key] || get('disabled')) return;
      e.preventDefault();
      e.stopPropagation();
      move(...arrows[e.key]);
    });
  }
  drag(find('.corner'), corner);
  drag(find('.mid'), (t, c) => mid(c));
  keys(find('.corner'), (dt, dc) => corner(get('t_cutoff') + dt, get('cutoff') + dc));
  keys(find('.mid'), (dt, dc) => mid(curve(get('t_cutoff') / 2) + dc + dt / 1000));
  const traits = ['t_cutoff', 'cutoff', 'power', 'now', 'disabled', 'faint', 'note', 'words'];
  for (const name of traits) model.on(`change:${name}`, draw);
  draw();
}
export default { render };
