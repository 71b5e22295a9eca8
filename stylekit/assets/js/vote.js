// What a rater sees and presses, in a ballot and in a panel: pictures, one question, buttons, keys. It keeps no answer.
function make(tag, about = {}, ...inside) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name.includes('-') || name === 'role' || name === 'for') el.setAttribute(name, value);
    else el[name] = value;
  }
  el.append(...inside);
  return el;
}

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name]);
const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
const LEAST = 250;                 // ms that a question is seen before it can be answered: a key pressed twice is one answer

// act: (what: 'A', 'B', 'tie', 'skip' or 'undo', {seconds, reason}) when something is pressed
// -> {show(now), refuse(), key(event)}; now: {texts, lang, question, pictures: {content, references, a, b} or null: all is
// answered, answered, of, undo: is there anything to take back?}
function voteView(root, act) {
  let turn = 0, open = false, lacks = false, since = 0, now = null;   // lacks: a picture that cannot be shown

  const shown = (name) => {
    const img = make('img', { alt: '' }), label = make('figcaption');
    return { name, img, label, el: make('figure', { className: `sk-${name}` }, label, img) };
  };
  const sides = ['content', 'a', 'b'].map(shown);
  const styleLabel = make('p', { className: 'sk-label', 'aria-hidden': 'true' });
  const examples = make('div', { className: 'sk-examples' });
  const references = make('div', { className: 'sk-references' }, styleLabel, examples);
  const question = make('h2', { className: 'sk-question', 'aria-live': 'polite' });
  const bar = make('progress', { className: 'sk-bar', max: 1, value: 0 });
  const count = make('p', { className: 'sk-count', role: 'status' });

  const button = (name, press) => {
    const el = make('button', { type: 'button', className: `sk-${name}` });
    el.addEventListener('click', press);
    return el;
  };
  const buttons = {
    A: button('choose-a', () => answer('A')), tie: button('tie', () => answer('tie')),
    B: button('choose-b', () => answer('B')), skip: button('skip', () => ask(true)), undo: button('undo', () => undo()),
  };
  const row = make('div', { className: 'sk-answers', role: 'group' }, ...Object.values(buttons));

  const reason = make('input', { type: 'text', maxLength: 300, required: true, autocomplete: 'off' });
  const reasonLabel = make('label', {}, make('span'), reason);
  const go = make('button', { type: 'submit', className: 'sk-skip-go' });
  const cancel = button('cancel', () => ask(false));
  const why = make('form', { className: 'sk-why', hidden: true }, reasonLabel, go, cancel);
  const pictures = make('div', { className: 'sk-pair' }, ...sides.map((s) => s.el));
  const board = make('div', { className: 'sk-board' }, question, references, pictures, row, why);
  const done = make('p', { className: 'sk-done', hidden: true, tabIndex: -1 });
  root.classList.add('sk-vote');
  root.append(make('div', { className: 'sk-progress' }, bar, count), done, board);

  const seconds = () => Math.round(performance.now() - since) / 1000;
  function lock(closed) {                                        // not `disabled`: that would take the focus away
    open = !closed;
    root.classList.toggle('sk-wait', closed);
    root.dataset.open = open;
    buttons.skip.setAttribute('aria-disabled', String(closed));
    for (const name of ['A', 'B', 'tie']) buttons[name].setAttribute('aria-disabled', String(closed || lacks));
    buttons.undo.setAttribute('aria-disabled', String(closed || !now.undo));
  }
  function answer(what, about = {}) {
    if (!open || !now.pictures || (lacks && what !== 'skip')) return;
    lock(true);
    act(what, { seconds: seconds(), ...about });
  }
  function undo() {
    if (!open || !now.undo) return;
    lock(true);
    act('undo', {});
  }
  function ask(opens) {
    if (opens && (!open || !now.pictures)) return;
    const was = !why.hidden;
    why.hidden = !opens;
    reason.value = '';
    if (opens) reason.focus();
    else if (was) buttons.skip.focus();
  }
  function give(e) {
    e.preventDefault();
    e.stopPropagation();
    const text = reason.value.trim();
    if (!text) return reason.focus();
    ask(false);
    answer('skip', { reason: text });
  }
  why.addEventListener('submit', give);
  reason.addEventListener('keydown', (e) => {                    // JupyterLab lets no form be sent by Enter
    if (e.key === 'Enter' && !e.isComposing) give(e);            // while composing, it takes the letters that were chosen
  });

  const KEYS = {
    a: () => answer('A'), b: () => answer('B'), t: () => answer('tie'), s: () => ask(true), z: undo,
    ArrowLeft: () => answer('A'), ArrowRight: () => answer('B'),
  };
  function key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || !now) return;
    const presses = e.target.matches('button') && [' ', 'Enter'].includes(e.key);
    if (e.repeat && presses) e.preventDefault();                 // a key that is held down is one answer
    const typing = e.target.matches('input, textarea, select');
    const does = typing ? null : KEYS[e.key.length === 1 ? e.key.toLowerCase() : e.key];
    const closes = e.key === 'Escape' && !why.hidden;
    if (!does && !closes) return;
    e.preventDefault();
    e.stopPropagation();
    if (closes) ask(false);
    else if (!e.repeat) does();
  }

  function say({ texts, lang }) {                                // what stands there, in a language
    const press = (name, text, key, keys = key) => {
      buttons[name].replaceChildren(text, ' ', make('kbd', { 'aria-hidden': 'true' }, key));
      buttons[name].setAttribute('aria-keyshortcuts', keys);
    };
    root.lang = lang;
    press('A', texts.a, '←', 'A ArrowLeft');
    press('B', texts.b, '→', 'B ArrowRight');
    press('tie', texts.tie, 'T');
    press('skip', texts.skip, 'S');
    press('undo', texts.undo, 'Z');
    row.setAttribute('aria-label', texts.answers);
    for (const s of sides) s.label.textContent = s.img.alt = texts[s.name];
    styleLabel.textContent = texts.references;
    reasonLabel.firstChild.textContent = texts.reason;
    go.textContent = texts.skip;
    cancel.textContent = texts.cancel;
    done.textContent = texts.done;
    bar.setAttribute('aria-label', texts.progress_name);
  }
  function draw({ content, a, b, references: styles }, alt) {
    const put = (img, url) => { if (img.getAttribute('src') !== url) img.src = url; };
    Object.entries({ content, a, b }).forEach(([name, url]) => put(sides.find((s) => s.name === name).img, url));
    while (examples.children.length > styles.length) examples.lastChild.remove();
    while (examples.children.length < styles.length) examples.append(make('img'));
    styles.forEach((url, i) => {
      put(examples.children[i], url);
      examples.children[i].alt = `${alt} ${i + 1}`;
    });
    return [...sides.map((s) => s.img), ...examples.children];
  }
  async function show(next) {
    const mine = (turn += 1), held = root.contains(document.activeElement);
    now = next;
    lock(true);
    say(now);
    why.hidden = true;
    bar.value = now.of ? now.answered / now.of : 0;
    count.textContent = fill(now.texts.progress, now);
    done.hidden = Boolean(now.pictures);
    for (const el of [question, references, pictures, buttons.A, buttons.tie, buttons.B, buttons.skip]) {
      el.hidden = !now.pictures;
    }
    const begun = performance.now();
    if (now.pictures) {
      question.textContent = now.question;
      const images = draw(now.pictures, now.texts.references);
      const found = await Promise.all(images.map((img) => img.decode().then(() => true, () => false)));
      if (mine === turn) lacks = found.includes(false);
    } else if (held) done.focus();
    await drawn();
    await new Promise((go_on) => { setTimeout(go_on, LEAST - (performance.now() - begun)); });
    if (mine !== turn) return;
    since = performance.now();
    lock(false);
  }
  return { show, key, refuse: () => lock(false) };
}
