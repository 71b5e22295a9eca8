// In which order a rater sees the trials of a study, and on which side: the same as `stylekit.pilot.study.schedule`.
// It needs no other file and no secure page, so that a page without a server can hold it.
function trialHash(study, rater, word, trial) {                  // FNV-1a, then MurmurHash3's last steps: 32 bits
  let h = 0x811c9dc5;
  for (const byte of new TextEncoder().encode([study, rater, word, trial].join('\n'))) h = Math.imul(h ^ byte, 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

const raterName = (typed) => typed.normalize('NFC').trim().replace(/\s+/g, ' ');

// sha256: of the study; trials: [{id, kind, repeats, ...}]; rater: as `raterName` gives it
// -> [{trial: id, left: 'first' or 'second'}], in the order of showing
function schedule(sha256, trials, rater) {
  const by = (word) => (a, b) => {
    const d = trialHash(sha256, rater, word, a.id) - trialHash(sha256, rater, word, b.id);
    return d || (a.id < b.id ? -1 : 1);
  };
  const base = trials.filter((t) => t.kind !== 'repeat').sort(by('order'));
  const repeats = trials.filter((t) => t.kind === 'repeat');
  const seenAgain = new Set(repeats.map((t) => t.repeats));
  const once = base.filter((t) => !seenAgain.has(t.id)), third = Math.floor(once.length / 3);
  const begin = [...base.filter((t) => seenAgain.has(t.id)), ...once.slice(0, third)].sort(by('order'));
  const end = [...repeats, ...once.slice(2 * third)].sort(by('order'));
  const left = {};
  for (const kind of ['pair', 'catch'])
    base.filter((t) => t.kind === kind).sort(by('side')).forEach((t, i) => { left[t.id] = i % 2 ? 'second' : 'first'; });
  for (const t of repeats) left[t.id] = left[t.repeats] === 'first' ? 'second' : 'first';
  return [...begin, ...once.slice(third, 2 * third), ...end].map((t) => ({ trial: t.id, left: left[t.id] }));
}
