// What FeedForward does around its network: size, padding, transparency. Pictures are bytes, RGB.

// As Python rounds: a half goes to the even number
export function round(x) {
  const down = Math.floor(x), rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

// The size of the scaled picture, and of the padded one, in pixels
export function fitting(w, h, multiple, resolution) {
  const scale = resolution / Math.sqrt(w * h);
  const inner = [w, h].map((v) => Math.max(1, round(v * scale)));
  return { inner, outer: inner.map((v) => Math.ceil(v / multiple) * multiple) };
}

const offset = (inner, outer) => [0, 1].map((k) => Math.floor((outer[k] - inner[k]) / 2));
const within = (v, n) => Math.min(Math.max(v, 0), n - 1);

// Bytes to (3, H, W) in [0, 1]; the border is repeated as padding
export function toPlanes(rgb, inner, outer) {
  const [w, h] = inner, [W, H] = outer, [left, top] = offset(inner, outer), out = new Float32Array(3 * W * H);
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < W; x++) {
      const at = 3 * (within(y - top, h) * w + within(x - left, w));
      for (let c = 0; c < 3; c++) out[c * W * H + y * W + x] = rgb[at + c] / 255;
    }
  }
  return out;
}

// The way back, without the padding
export function fromPlanes(planes, inner, outer) {
  const [w, h] = inner, [W, H] = outer, [left, top] = offset(inner, outer), out = new Uint8ClampedArray(3 * w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      for (let c = 0; c < 3; c++) {
        const v = planes[c * W * H + (y + top) * W + x + left];
        out[3 * (y * w + x) + c] = round(Math.min(Math.max(v, 0), 1) * 255);
      }
    }
  }
  return out;
}

// What was drawn over white is given its transparency again: no white fringe over another ground
export function withAlpha(rgb, alpha, w, h) {
  const seen = new Uint8Array(alpha.length);
  for (let i = 0; i < alpha.length; i++) {
    seen[i] = alpha[i] > 0 ? 255 : 0;
    if (alpha[i] === 0 || alpha[i] === 255) continue;
    const share = alpha[i] / 255;
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = round(within((rgb[3 * i + c] - (1 - share) * 255) / share, 256));
  }
  bleed(rgb, seen, w, h);
  const out = new Uint8ClampedArray(4 * w * h);
  for (let i = 0; i < alpha.length; i++) out.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], alpha[i]], 4 * i);
  return out;
}

// Colours of what cannot be seen, from the nearest pixels that can: means of squares that grow
function bleed(rgb, seen, w, h) {
  if (Math.max(w, h) === 1 || seen.every((v) => v)) return;
  const W = Math.ceil(w / 2), H = Math.ceil(h / 2), half = new Uint8ClampedArray(3 * W * H);
  const there = new Uint8Array(W * H);
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) mean(rgb, seen, w, h, x, y, half, there, y * W + x);
  bleed(half, there, W, H);
  for (let i = 0; i < seen.length; i++) {
    if (seen[i]) continue;
    const from = 3 * ((Math.floor(i / w) >> 1) * W + ((i % w) >> 1));
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = half[from + c];
  }
}

function mean(rgb, seen, w, h, x, y, half, there, at) {
  const sum = [0, 0, 0];
  let n = 0;
  for (const v of [2 * y, 2 * y + 1]) {
    for (const u of [2 * x, 2 * x + 1]) {
      if (u >= w || v >= h || !seen[v * w + u]) continue;
      for (let c = 0; c < 3; c++) sum[c] += rgb[3 * (v * w + u) + c];
      n++;
    }
  }
  there[at] = n > 0 ? 255 : 0;
  if (n) for (let c = 0; c < 3; c++) half[3 * at + c] = sum[c] / n;
}
