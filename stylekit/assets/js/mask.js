// A mask (PNG as a data URL, white where something holds) as a canvas: white, its brightness become opacity
async function opacity(mask, width, height) {
  const image = new Image();
  image.src = mask;
  await image.decode();
  const size = { width: width || image.naturalWidth, height: height || image.naturalHeight };
  const canvas = Object.assign(document.createElement('canvas'), size);
  const c = canvas.getContext('2d', { willReadFrequently: true });
  c.drawImage(image, 0, 0, canvas.width, canvas.height);
  const data = c.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < data.data.length; i += 4) {
    data.data[i + 3] = data.data[i];
    data.data[i] = data.data[i + 1] = data.data[i + 2] = 255;
  }
  c.putImageData(data, 0, 0);
  return canvas;
}
