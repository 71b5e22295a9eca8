// A PNG with its pixels as they are (a canvas would lose colours where it is transparent) and a packet of XMP.
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function checksum(bytes) {
  let c = 0xffffffff;
  for (const b of bytes) c = TABLE[(c ^ b) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

function chunk(kind, data) {
  const out = new Uint8Array(12 + data.length), view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(kind), 4);
  out.set(data, 8);
  view.setUint32(8 + data.length, checksum(out.subarray(4, 8 + data.length)));
  return out;
}

// Each row as its difference from the row above: flat areas become zeros
function filtered(pixels, w, h, channels) {
  const row = w * channels, out = new Uint8Array((row + 1) * h);
  for (let y = 0; y < h; y++) {
    out[y * (row + 1)] = 2;
    for (let x = 0; x < row; x++) {
      const above = y ? pixels[(y - 1) * row + x] : 0;
      out[y * (row + 1) + 1 + x] = pixels[y * row + x] - above;
    }
  }
  return out;
}

async function deflate(bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream('deflate'));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

const escape = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');

// As `stylekit.rights.xmp_packet`: where it comes from, and the record of the run
function xmp(run) {
  const source = 'http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia';
  return '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">' +
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" ' +
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:stylekit="urn:x-stylekit:1.0/">' +
    `<Iptc4xmpExt:DigitalSourceType>${source}</Iptc4xmpExt:DigitalSourceType>` +
    `<stylekit:run>${escape(JSON.stringify(run))}</stylekit:run></rdf:Description></rdf:RDF></x:xmpmeta>` +
    '<?xpacket end="w"?>';
}

// `pixels`: h × w × 3 or 4 bytes
export async function writePng(pixels, w, h, run) {
  const channels = pixels.length / (w * h), head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, w);
  view.setUint32(4, h);
  head.set([8, channels === 4 ? 6 : 2, 0, 0, 0], 8);
  const told = new TextEncoder().encode(`XML:com.adobe.xmp\0\0\0\0\0${xmp(run)}`);
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const data = await deflate(filtered(pixels, w, h, channels));
  const parts = [signature, chunk('IHDR', head), chunk('iTXt', told), chunk('IDAT', data),
    chunk('IEND', new Uint8Array())];
  return new Blob(parts, { type: 'image/png' });
}
