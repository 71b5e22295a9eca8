// A ballot in one file: a study's pictures and questions, one rater after the other, answers kept in this browser.
// Needs schedule.js and vote.js. The page holds `for_raters()` of the study, texts and pictures as JSON.

// Lines of one study in this browser's storage, each under a key of its own, so that two tabs lose nothing
function voteStore(study) {
  const prefix = `stylekit ${study} `;
  const held = new Map();                                        // all that this tab knows, stored or not
  let works = true, unsaved = false;
  function read() {
    try {
      for (const key of Object.keys(localStorage).filter((k) => k.startsWith(prefix))) {
        const vote = JSON.parse(localStorage.getItem(key));
        held.set(vote.id, vote);
      }
    } catch { works = false; }
    return [...held.values()].sort((a, b) => (a.when < b.when ? -1 : 1));
  }
  function write(vote) {
    held.set(vote.id, vote);
    try { localStorage.setItem(prefix + vote.id, JSON.stringify(vote)); } catch { works = false; }
    unsaved = unsaved || !works;
  }
  try {
    localStorage.setItem(`${prefix}?`, '{}');
    localStorage.removeItem(`${prefix}?`);
  } catch { works = false; }
  return { read, write, saved: () => { unsaved = false; }, works: () => works, unsaved: () => unsaved };
}

// Votes in the order of time -> the Map 'trial question' -> vote of what holds, as `standing_votes` in Python
function standingVotes(votes) {
  const undone = new Set(votes.map((v) => v.undoes)), last = new Map();
  for (const v of votes) {
    const key = `${v.trial} ${v.question}`;
    if (v.answer === 'undo' || undone.has(v.id)) continue;
    last.delete(key);                                            // so that the Map ends with the latest
    last.set(key, v);
  }
  return last;
}

function ballot(study, body) {
  const store = voteStore(study.sha256), items = new Map(study.items.map((i) => [i.id, i]));
  const trials = new Map(study.trials.map((t) => [t.id, t]));
  const languages = Object.keys(study.texts);
  let lang = languages.find((l) => navigator.language.startsWith(l)) || languages[0], rater = '', asks = [], asked = null;
  const texts = () => study.texts[lang];

  const title = make('h1', {}, study.title || 'A / B');
  const switchers = languages.map((l) => {
    const el = make('button', { type: 'button', lang: l }, study.texts[l].language);
    el.addEventListener('click', () => { lang = l; look(); });
    return el;
  });
  const warning = make('p', { className: 'sk-warning', role: 'alert', hidden: true });
  const instructions = make('p'), name = make('input', { type: 'text', maxLength: 100, autocomplete: 'name', required: true });
  const nameLabel = make('label', {}, make('span'), name), begin = make('button', { type: 'submit', className: 'sk-main' });
  const start = make('form', { className: 'sk-start' }, instructions, nameLabel, begin);
  const board = make('div', { hidden: true });
  const saving = make('button', { type: 'button', className: 'sk-download' }), kept = make('p');
  const foot = make('div', { className: 'sk-save', hidden: true }, saving, kept);
  const header = make('header', {}, title);
  if (languages.length > 1) header.append(make('div', { className: 'sk-languages' }, ...switchers));
  body.append(make('main', {}, header, warning, start, board, foot));
  const view = voteView(board, press);

  const mine = () => store.read().filter((v) => v.rater === rater);
  const picture = (id) => `data:image/webp;base64,${study.pictures[id]}`;
  function pictures({ trial, left }) {
    const t = trials.get(trial), item = items.get(t.item), swapped = left === 'second';
    return {
      content: picture(item.content), references: item.references.map(picture),
      a: picture(swapped ? t.second : t.first), b: picture(swapped ? t.first : t.second),
    };
  }
  function look() {                                              // all that is seen, from what is kept
    document.documentElement.lang = lang;
    document.title = study.title || texts().heading;
    if (!study.title) title.textContent = texts().heading;
    switchers.forEach((el) => el.setAttribute('aria-pressed', String(el.lang === lang)));
    instructions.textContent = study.instructions[lang] || study.instructions.en;
    nameLabel.firstChild.textContent = texts().rater;
    begin.textContent = texts().begin;
    saving.textContent = texts().save;
    kept.textContent = texts().kept;
    if (!store.works()) warn('no_storage');
    start.hidden = Boolean(rater);
    board.hidden = foot.hidden = !rater;
    if (rater) showNext();
  }
  function showNext() {
    const standing = standingVotes(mine());
    asked = asks.find((a) => !standing.has(`${a.trial} ${a.question.key}`));
    saving.classList.toggle('sk-main', !asked);
    view.show({
      texts: texts(), lang, answered: standing.size, of: asks.length, undo: standing.size > 0,
      question: asked && (asked.question[lang] || asked.question.en), pictures: asked ? pictures(asked) : null,
    });
  }
  function warn(which, values = {}) {
    warning.hidden = !which;
    warning.textContent = which ? fill(texts()[which], values) : '';
  }

  function enter(typed) {
    const who = raterName(typed), all = new Set(store.read().map((v) => v.rater));
    const twin = [...all].find((r) => r.toLowerCase() === who.toLowerCase() && r !== who);
    if (!who || [...who].length > 100 || /[\p{C}\p{Z}]/u.test(who.replaceAll(' ', ''))) return warn('bad_name');
    if (twin) return warn('twin', { twin });
    warn('');
    rater = who;
    asks = schedule(study, rater).flatMap((s) => study.questions.map((question) => ({ ...s, question })));
    look();
    board.querySelector('button').focus({ preventScroll: true });
  }
  function press(what, { seconds = null, reason = '' }) {
    const votes = mine(), standing = standingVotes(votes);
    const taken = what === 'undo' ? [...standing.values()].pop() : null;
    const last = votes.length ? Date.parse(votes[votes.length - 1].when) : 0;
    store.write({
      kind: 'vote', id: [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, '0')).join(''),
      study: study.sha256, rater,
      when: new Date(Math.max(Date.now(), last + 1)).toISOString(),          // a clock that was put back changes no order
      trial: taken ? taken.trial : asked.trial, question: taken ? taken.question : asked.question.key, answer: what,
      left: taken ? taken.left : asked.left, reason, seconds, undoes: taken ? taken.id : '',
    });
    look();
  }
  function save() {
    const lines = mine().map((v) => `${JSON.stringify(v)}\n`).join('');
    const url = URL.createObjectURL(new Blob([lines], { type: 'application/x-ndjson' }));
    const safe = rater.replace(/[^\p{L}\p{N}-]+/gu, '-');
    const link = make('a', { href: url, download: `ballot-${study.sha256.slice(0, 8)}-${safe}.jsonl` });
    body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    store.saved();
  }

  start.addEventListener('submit', (e) => { e.preventDefault(); enter(name.value); });
  saving.addEventListener('click', save);
  document.addEventListener('keydown', (e) => { if (rater) view.key(e); });
  window.addEventListener('storage', () => { if (rater) look(); });          // the same ballot in another tab
  window.addEventListener('beforeunload', (e) => { if (store.unsaved()) e.preventDefault(); });
  const known = store.read();
  if (known.length) name.value = known[known.length - 1].rater;
  look();
  name.select();
}

ballot(JSON.parse(document.getElementById('study').textContent), document.body);
