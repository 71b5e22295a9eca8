// A button that saves a file, or copies a text, which Python makes when it is pressed.
async function copy(text) {
  try { await navigator.clipboard.writeText(text); }
  catch {                                                        // no permission, or no HTTPS
    const area = document.createElement('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}
function save(name, bytes) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = name;
  document.body.append(link);                                    // VS Code follows no link that is not in the page
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1e4);
}
function render({ model, el }) {                                 // needs words.js before it
  const button = Object.assign(document.createElement('button'), { type: 'button', className: 'sk-saver' });
  const note = Object.assign(document.createElement('span'), { className: 'sk-saver-note' });
  el.append(button, note);
  function look() {
    button.textContent = model.get('label');
    button.title = model.get('tip');
    button.disabled = !model.get('enabled');
    note.textContent = model.get('note');
  }
  button.addEventListener('click', () => model.send('make'));
  model.on('msg:custom', async (message, buffers) => {
    if (message.text === undefined) return save(message.name, buffers[0]);
    await copy(message.text);
    button.textContent = speaker(model)('copied');
    setTimeout(look, 1200);
  });
  for (const key of ['label', 'tip', 'enabled', 'note']) model.on(`change:${key}`, look);
  look();
}
export default { render };
