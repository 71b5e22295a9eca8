// What a run says. The count of steps is text like any other; only what begins, ends or goes wrong is announced, as a
// screen reader would else speak ten times a second. An error stays until somebody takes it away.
function render({ model, el }) {                                 // needs words.js before it
  el.classList.add('sk-status');
  el.innerHTML = `
    <div class="sk-text"></div>
    <div class="sk-error" role="alert"><span></span><button type="button">×</button></div>
    <div class="sk-said" role="status"></div>`;
  const find = (css) => el.querySelector(css);
  function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
  const word = speaker(model);
  function look() {
    find('button').title = word('close');
    find('button').setAttribute('aria-label', word('close_tip'));
    put(find('.sk-text'), model.get('text'));
    put(find('.sk-said'), model.get('said') === model.get('text') ? '' : model.get('said'));
    put(find('.sk-error span'), model.get('error'));
    find('.sk-error').classList.toggle('sk-none', !model.get('error'));
  }
  find('button').addEventListener('click', () => { model.set('error', ''); model.save_changes(); look(); });
  for (const key of ['text', 'said', 'error', 'words']) model.on(`change:${key}`, look);
  look();
}
export default { render };
