// What a widget says: its trait `words`, with values in the place of names in braces.
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name]);
const speaker = (model) => (name, values = {}) => fill(model.get('words')[name] || '', values);
