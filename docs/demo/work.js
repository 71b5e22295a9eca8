// The work, in a thread of its own: a picture's file in, a PNG out. Nothing is fetched but the page's own files.
import * as ort from './runtime/ort.wasm.bundle.min.mjs';
import { fitting, fromPlanes, toPlanes, withAlpha } from './pixels.js';
import { writePng } from './png.js';
import { resize } from './resample.js';

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL('./runtime/ort-wasm-simd-threaded.wasm', import.meta.url).href };
const MOST = 64_000_000, LEAST = 16, LONGEST = 8;        // as `images.check_size`

class Refusal extends Error {                            // `key` of words.js, and what it is told
  constructor(key, ...told) { super(key); this.told = told; }
}

const sessions = new Map();
async function sessionOf(network) {
  if (!sessions.has(network.file)) sessions.set(network.file, load(network.file));
  try { return await sessions.get(network.file); } catch (e) {
    sessions.delete(network.file);
    throw e;
  }
}

async function load(file) {
  const answer = await fetch(new URL(file, import.meta.url)).catch(() => null);
  if (!answer?.ok) throw new Refusal('lost');
  return ort.InferenceSession.create(await answer.arrayBuffer(), { executionProviders: ['wasm'] });
}

function check(w, h) {
  if (w * h > MOST) throw new Refusal('tooLarge', w, h);
  if (Math.min(w, h) < LEAST) throw new Refusal('tooSmall', w, h);
  if (Math.max(w, h) > LONGEST * Math.min(w, h)) throw new Refusal('tooLong', w, h);
}

// RGB over white, and the transparency where there is one
async function read(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Refusal('notPicture', file.name || '?'); });
  const { width: w, height: h } = bitmap;
  check(w, h);
  const context = new OffscreenCanvas(w, h).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let data = context.getImageData(0, 0, w, h).data;
  const alpha = new Uint8Array(w * h);
  for (let i = 0; i < alpha.length; i++) alpha[i] = data[4 * i + 3];
  const opaque = alpha.every((v) => v === 255);
  if (!opaque) {
    context.globalCompositeOperation = 'destination-over';
    context.fillStyle = 'white';
    context.fillRect(0, 0, w, h);
    data = context.getImageData(0, 0, w, h).data;
  }
  bitmap.close();
  const rgb = new Uint8ClampedArray(3 * w * h);
  for (let i = 0; i < w * h; i++) for (let c = 0; c < 3; c++) rgb[3 * i + c] = data[4 * i + c];
  return { w, h, rgb, alpha: opaque ? null : alpha };
}

async function draw({ rgb, w, h }, network, resolution, say) {
  const { inner, outer } = fitting(w, h, network.multiple, resolution);
  const planes = toPlanes(resize(rgb, w, h, ...inner), inner, outer);
  if (!sessions.has(network.file)) say('loading');
  const session = await sessionOf(network);
  say('drawing');
  const image = new ort.Tensor('float32', planes, [1, 3, outer[1], outer[0]]);
  const { styled } = await session.run({ image });
  return resize(fromPlanes(styled.data, inner, outer), ...inner, w, h);
}

async function stylize({ file, network, resolution }, say) {
  say('reading');
  const picture = await read(file);
  const { w, h, alpha } = picture;
  const rgb = await draw(picture, network, resolution, say);
  const png = await writePng(alpha ? withAlpha(rgb, alpha, w, h) : rgb, w, h, { ...network.run, resolution });
  return { png, w, h };
}

// One at a time; `id` says to which question an answer belongs
let before = Promise.resolve();
addEventListener('message', ({ data: { id, ...asked } }) => {
  const say = (status) => postMessage({ id, status });
  before = before.then(() => stylize(asked, say)).then(
    (made) => postMessage({ id, made }),
    (e) => postMessage({ id, refused: e instanceof Refusal ? [e.message, ...e.told] : ['failed', e.message] }));
});
