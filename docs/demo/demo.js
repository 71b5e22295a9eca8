// The page: what is chosen, what is shown, in which language. The work itself is in work.js.
import { words } from './words.js';

const at = (id) => document.getElementById(id);
const english = Object.fromEntries([...document.querySelectorAll('[data-word]')]
  .map((e) => [e.dataset.word, e.textContent]));
const labels = Object.fromEntries([...document.querySelectorAll('[data-word-label]')]
  .map((e) => [e.dataset.wordLabel, e.getAttribute('aria-label')]));
const there = await (await fetch('demo.json')).json();      // networks and samples, written by tools/pages.py
const worker = new Worker(new URL('work.js', import.meta.url), { type: 'module' });

const state = { language: 'en', file: null, style: 'flat', detail: 256, asked: 0, began: 0, said: null, refused: null };

// ---- words ----

const word = (key) => words[state.language][key] ?? english[key] ?? labels[key];
const phrase = ([key, ...told]) => (typeof word(key) === 'function' ? word(key)(...told) : word(key));

function speak(language) {
  state.language = words[language] ? language : 'en';
  document.documentElement.lang = state.language;
  for (const e of document.querySelectorAll('[data-word]')) e.textContent = word(e.dataset.word);
  for (const e of document.querySelectorAll('[data-word-label]')) e.setAttribute('aria-label', word(e.dataset.wordLabel));
  for (const b of document.querySelectorAll('[data-language]')) {
    b.setAttribute('aria-pressed', String(b.dataset.language === state.language));
  }
  for (const e of document.querySelectorAll('[data-style]')) e.textContent = word('styles')[e.dataset.style];
  for (const e of document.querySelectorAll('[data-detail]')) e.textContent = word('details')[e.dataset.detail];
  for (const e of document.querySelectorAll('[data-sample]')) {
    e.title = word('names')?.[e.dataset.sample] ?? e.dataset.sample;
    e.setAttribute('aria-label', e.title);
  }
  describe();
  show();
}

function describe() {
  at('before').alt = word('shows').before;
  at('after').alt = word('shows').after(word('styles')[state.style]);
}

function show() {
  at('status').textContent = state.said ? phrase(state.said) : '';
  at('error').textContent = state.refused ? phrase(state.refused) : '';
}

// ---- what is chosen ----

function choice(name, value, checked, ...inside) {
  const label = document.createElement('label'), input = document.createElement('input');
  Object.assign(input, { type: 'radio', name, value, checked });
  label.append(input, ...inside);
  return label;
}

function named(kind, value) {
  const text = document.createElement('span');
  text.dataset[kind] = value;
  return text;
}

function picture(src) { return Object.assign(document.createElement('img'), { src, alt: '', width: 64, height: 64 }); }

function lay() {
  at('styles').append(...Object.keys(there.networks).map((s) =>
    choice('style', s, s === state.style, picture(`styles/${s}.png`), named('style', s))));
  at('details').append(...[128, 256, 512, 1024].map((d) => choice('detail', d, d === state.detail, named('detail', d))));
  at('samples').append(...there.samples.map(({ name, file }) => {
    const button = Object.assign(document.createElement('button'), { type: 'button' });
    button.dataset.sample = name;
    button.append(picture(file));
    button.addEventListener('click', () => sample({ name, file }));
    return button;
  }));
}

async function sample({ name, file }) {
  const blob = await (await fetch(file)).blob();
  take(new File([blob], `${name}.png`, { type: blob.type }));
}

function take(file) {
  if (!file) return;
  state.file = file;
  replace('before', file);
  at('after').removeAttribute('src');
  run();
}

// ---- what is shown ----

function replace(id, blob) {
  URL.revokeObjectURL(at(id).src);
  at(id).src = URL.createObjectURL(blob);
}

function busy(now) {
  at('progress').hidden = !now;
  at('compare').toggleAttribute('data-busy', now);
  const link = at('download');
  link.setAttribute('aria-disabled', String(now));
  if (now) link.removeAttribute('href');
}

function run() {
  if (!state.file) return;
  Object.assign(state, { asked: state.asked + 1, began: performance.now(), said: ['reading'], refused: null });
  busy(true);
  describe();
  show();
  const { asked: id, file, style, detail: resolution } = state;
  worker.postMessage({ id, file, network: there.networks[style], resolution });
}

function finish({ png, w, h }) {
  replace('after', png);
  const link = at('download');
  link.href = at('after').src;
  link.download = `${state.file.name.replace(/\.[^.]*$/, '') || 'picture'}-${state.style}.png`;
  state.said = ['ready', ((performance.now() - state.began) / 1000).toFixed(1), w, h];
}

worker.addEventListener('message', ({ data: { id, status, made, refused } }) => {
  if (id !== state.asked) return;                           // something else was asked since
  if (status) state.said = [status];
  if (made) finish(made);
  if (refused) Object.assign(state, { refused, said: null });
  if (refused?.[0] === 'notPicture') at('before').removeAttribute('src');
  if (made || refused) busy(false);
  if (refused) at('download').setAttribute('aria-disabled', 'true');
  show();
});
worker.addEventListener('error', () => { Object.assign(state, { refused: ['lost'], said: null }); busy(false); show(); });

// ---- what people do ----

at('choices').addEventListener('submit', (e) => e.preventDefault());
at('choices').addEventListener('change', ({ target }) => {
  if (target.name === 'style') state.style = target.value;
  if (target.name === 'detail') state.detail = Number(target.value);
  if (target.id === 'file') take(target.files[0]);
  else run();
});
at('file').addEventListener('click', () => { at('file').value = ''; });   // the same file may be chosen again
at('handle').addEventListener('input', ({ target }) => at('compare').style.setProperty('--share', `${target.value}%`));
for (const b of document.querySelectorAll('[data-language]')) {
  b.addEventListener('click', () => speak(b.dataset.language));
}
const firstPicture = (files) => [...files].find((f) => f.type.startsWith('image/')) ?? files[0];
addEventListener('paste', (e) => { if (e.clipboardData?.files.length) take(firstPicture(e.clipboardData.files)); });
addEventListener('dragover', (e) => { e.preventDefault(); at('compare').dataset.over = ''; });
addEventListener('dragleave', (e) => { if (!e.relatedTarget) delete at('compare').dataset.over; });
addEventListener('drop', (e) => {
  e.preventDefault();
  delete at('compare').dataset.over;
  if (e.dataTransfer?.files.length) take(firstPicture(e.dataTransfer.files));
});

lay();
speak(new URLSearchParams(location.search).get('lang') ?? navigator.language.slice(0, 2));
sample(there.samples.find((s) => s.name === 'owl') ?? there.samples[0]);
