// Thumbnails of takes, the newest first, as one list: arrows move, Enter or a click chooses, Delete deletes, P pins, and N
// goes to the field of the name. What each does is Python's: a key is sent with the take that it was meant for.
function render({ model, el }) {
  el.classList.add('sk-takes');
  const list = document.createElement('div');
  list.setAttribute('role', 'listbox');
  el.append(list);
  const pictures = new Map();                                    // id -> { data, url }
  let at = null;                                                 // id of the take that the arrows are on
  const options = () => [...list.children];
  const optionOf = (id) => options().find((option) => option.dataset.id === id);

  function urlOf(id) {
    const data = model.get('pictures')[id], known = pictures.get(id);
    if (known && known.data === data) return known.url;
    if (known) URL.revokeObjectURL(known.url);
    const url = data ? URL.createObjectURL(new Blob([data], { type: 'image/jpeg' })) : '';
    pictures.set(id, { data, url });
    return url;
  }
  function forget(ids) {
    for (const [id, { url }] of pictures) {
      if (ids.has(id)) continue;
      URL.revokeObjectURL(url);
      pictures.delete(id);
    }
  }
  function option(item) {
    const node = optionOf(item.id) || document.createElement('div');
    if (!node.dataset.id) {
      node.dataset.id = item.id;
      node.setAttribute('role', 'option');
      node.innerHTML = '<img><b></b><small></small>';
      node.addEventListener('click', () => { go(item.id); model.send({ key: 'Enter', id: item.id }); });
    }
    const [img, name, text] = node.children;
    const url = urlOf(item.id);
    if (url && img.src !== url) img.src = url;
    img.hidden = !url;
    img.alt = `${item.label}: ${item.text}`;
    name.textContent = item.label;
    text.textContent = item.text;
    node.title = `${item.label}: ${item.text}`;
    node.setAttribute('aria-label', item.said);
    node.classList.toggle('sk-pinned', item.pinned);
    node.classList.toggle('sk-variant', item.variant);
    return node;
  }
  function choose() {
    const chosen = model.get('chosen');
    list.setAttribute('aria-multiselectable', String(chosen.length > 1));
    for (const node of options()) {
      const is = chosen.includes(node.dataset.id);
      node.setAttribute('aria-selected', String(is));
      node.tabIndex = node.dataset.id === at ? 0 : -1;           // one stop for the Tab key
    }
  }
  function look() {
    const items = model.get('items'), ids = new Set(items.map((item) => item.id));
    const focused = list.contains(document.activeElement), before = options().map((node) => node.dataset.id);
    if (!ids.has(at)) {                                          // it was deleted: the one that took its place
      const next = before.slice(before.indexOf(at)).find((id) => ids.has(id));
      at = next || (items.length ? items[before.includes(at) ? items.length - 1 : 0].id : null);
    }
    list.setAttribute('aria-label', model.get('label'));
    list.replaceChildren(...items.map(option));
    forget(ids);
    choose();
    if (focused && at) optionOf(at).focus({ preventScroll: true });
  }
  const go = (id) => optionOf(id).focus();
  function rows() {                                              // how many stand beside each other
    const tops = options().map((node) => node.offsetTop);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  }
  list.addEventListener('focusin', (e) => {
    at = e.target.closest('[role=option]').dataset.id;
    choose();
  });
  list.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !at) return;
    const ids = options().map((node) => node.dataset.id), i = ids.indexOf(at);
    const moves = { ArrowLeft: i - 1, ArrowRight: i + 1, ArrowUp: i - rows(), ArrowDown: i + rows(), Home: 0, End: ids.length - 1 };
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    if (key in moves) { if (ids[moves[key]]) go(ids[moves[key]]); }
    else if (key === 'n') {
      model.send({ key: 'select', id: at });
      el.closest('.sk-panel').querySelector('.sk-take-name input').focus();
    }
    else if (['Enter', ' ', 'Delete', 'Backspace', 'p'].includes(key)) {
      if (!e.repeat) model.send({ key: { ' ': 'Enter', Backspace: 'Delete' }[key] || key, id: at });
    }
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  for (const key of ['items', 'pictures', 'label']) model.on(`change:${key}`, look);
  model.on('change:chosen', choose);
  look();
  return () => forget(new Set());
}
export default { render };
