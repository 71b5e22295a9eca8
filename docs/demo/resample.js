// Lanczos as Pillow has it, in whole numbers with two passes, so that both give the same bytes.
const SUPPORT = 3, BITS = 22;

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const lanczos = (x) => (x > -SUPPORT && x < SUPPORT ? sinc(x) * sinc(x / SUPPORT) : 0);

// For each place of the result: the first place it is made from, and a weight for each
function weightsFor(from, to) {
  const scale = from / to, wide = Math.max(1, scale), reach = SUPPORT * wide, found = [];
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const shares = [];
    for (let at = first; at < end; at++) shares.push(lanczos((at - centre + 0.5) / wide));
    const sum = shares.reduce((a, b) => a + b, 0);
    const whole = shares.map((s) => { const v = s / sum * 2 ** BITS; return Math.trunc(v < 0 ? v - 0.5 : v + 0.5); });
    found.push({ first, weights: Int32Array.from(whole) });
  }
  return found;
}

const clip = (sum) => { const v = sum >> BITS; return v < 0 ? 0 : v > 255 ? 255 : v; };
const HALF = 1 << (BITS - 1);

// RGB, w pixels wide, to another width
function across(source, w, h, W) {
  const out = new Uint8ClampedArray(3 * W * h), table = weightsFor(w, W);
  for (let y = 0, to = 0; y < h; y++) {
    for (let x = 0; x < W; x++, to += 3) {
      const { first, weights } = table[x];
      let r = HALF, g = HALF, b = HALF, at = 3 * (y * w + first);
      for (let k = 0; k < weights.length; k++, at += 3) {
        r += source[at] * weights[k];
        g += source[at + 1] * weights[k];
        b += source[at + 2] * weights[k];
      }
      out[to] = clip(r);
      out[to + 1] = clip(g);
      out[to + 2] = clip(b);
    }
  }
  return out;
}

// Rows of bytes to another number of rows
function down(source, row, h, H) {
  const out = new Uint8ClampedArray(row * H), sums = new Int32Array(row), table = weightsFor(h, H);
  for (let y = 0; y < H; y++) {
    const { first, weights } = table[y];
    sums.fill(HALF);
    for (let k = 0; k < weights.length; k++) {
      const weight = weights[k], at = (first + k) * row;
      for (let x = 0; x < row; x++) sums[x] += source[at + x] * weight;
    }
    for (let x = 0; x < row; x++) out[y * row + x] = clip(sums[x]);
  }
  return out;
}

// `pixels` (h × w × 3 bytes) at another size
export function resize(pixels, w, h, W, H) {
  const wide = W === w ? pixels : across(pixels, w, h, W);
  return H === h ? wide : down(wide, 3 * W, h, H);
}
