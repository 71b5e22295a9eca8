// A rater's view in a panel. Needs vote.js before it. What is pressed goes to Python, which writes it down.
function render({ model, el }) {
  const root = make('div', { tabIndex: -1 });
  el.append(root);
  const view = voteView(root, (what, about) => model.send({ what, turn: model.get('now').turn, ...about }));
  let urls = new Map();
  function fetchPictures() {
    const old = urls, given = Object.entries(model.get('pictures'));
    urls = new Map(given.map(([id, data]) => [id, old.get(id) || URL.createObjectURL(new Blob([data], { type: 'image/webp' }))]));
    for (const [id, url] of old) if (!urls.has(id)) setTimeout(() => URL.revokeObjectURL(url), 2000);
  }
  function look() {
    const now = model.get('now'), ids = now.pictures;
    el.hidden = !now.texts;
    if (!now.texts) return;
    fetchPictures();                                             // told of together, in any order
    const url = (id) => urls.get(id);
    view.show({ ...now, pictures: ids && {
      content: url(ids.content), a: url(ids.a), b: url(ids.b), references: ids.references.map(url) } });
    if (model.get('grab') && !root.contains(document.activeElement)) root.focus({ preventScroll: true });
  }
  root.addEventListener('keydown', view.key);
  model.on('change:now', look);
  model.on('msg:custom', ({ refused }) => { if (refused) view.refuse(); });   // it could not be written down
  look();
}
export default { render };
