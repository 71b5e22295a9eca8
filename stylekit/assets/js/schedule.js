// Which of a study's orders a rater gets: the same as `stylekit.pilot.study.schedule`. What a trial is for, a page does not
// know. It needs no other file and no secure page, so that a page without a server can hold it.
function trialHash(study, who, word, trial = '') {               // FNV-1a, then MurmurHash3's last steps: 32 bits
  let h = 0x811c9dc5;
  for (const byte of new TextEncoder().encode([study, who, word, trial].join('\n'))) h = Math.imul(h ^ byte, 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

const raterName = (typed) => typed.normalize('NFC').trim().replace(/\s+/g, ' ');

// study: {sha256, trials: [{id, ...}], orders: see `neutral_orders`}; rater: as `raterName` gives it
// -> [{trial: id, left: 'first' or 'second'}], in the order of showing
function schedule({ sha256, trials, orders }, rater) {
  const order = orders[trialHash(sha256, rater, 'rater') % orders.length];
  return order.map((n) => ({ trial: trials[n >> 1].id, left: n % 2 ? 'second' : 'first' }));
}
