// Pixels of a region's layer. Its alpha is the mask; its colour is the one that the page shows.

import { sheet } from "./dom.js";

/** Radius of one pass of the blur, as a part of the longer side; three passes come close to a Gaussian. */
const BLUR = 0.02;
const PASSES = 3;

/** Parts of the canvas to fill: title, then left, top, width and height from 0 to 1. */
export const TEMPLATES = [
  ["Whole canvas", 0, 0, 1, 1],
  ["Left half", 0, 0, 1 / 2, 1],
  ["Right half", 1 / 2, 0, 1 / 2, 1],
  ["Upper half", 0, 0, 1, 1 / 2],
  ["Lower half", 0, 1 / 2, 1, 1 / 2],
  ["Left third", 0, 0, 1 / 3, 1],
  ["Middle third", 1 / 3, 0, 1 / 3, 1],
  ["Right third", 2 / 3, 0, 1 / 3, 1],
];

const reading = { willReadFrequently: true };

export function copied(layer, width = layer.width, height = layer.height) {
  const copy = sheet(width, height);
  copy.getContext("2d", reading).drawImage(layer, 0, 0, width, height);
  return copy;
}

/** Change each pixel's alpha: `change` gets all alphas with width and height, and returns the new ones. */
function changeAlpha(context, colour, change) {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height);
  const alphas = change(Float32Array.from({ length: width * height }, (_, i) => pixels.data[4 * i + 3]), width, height);
  const rgb = rgbOf(colour);
  alphas.forEach((alpha, i) => pixels.data.set([...rgb, Math.round(alpha)], 4 * i));
  context.putImageData(pixels, 0, 0);
}

/** Swap what is in the region and what is not. */
export function invert(context, colour) {
  changeAlpha(context, colour, (alphas) => alphas.map((alpha) => 255 - alpha));
}

/** Soften the border. */
export function blur(context, colour) {
  changeAlpha(context, colour, (alphas, width, height) => {
    const radius = Math.max(1, Math.round(BLUR * Math.max(width, height)));
    let now = alphas;
    for (let pass = 0; pass < PASSES; pass++) {
      now = averaged(now, height, width, width, 1, radius);
      now = averaged(now, width, height, 1, width, radius);
    }
    return now;
  });
}

/** The mean of neighbours along `lines` lines of `length` values; values outside the canvas do not count. */
function averaged(values, lines, length, line, step, radius) {
  const found = new Float32Array(values.length);
  for (let i = 0; i < lines; i++) {
    let [sum, count] = [0, 0];
    for (let at = -radius; at < length; at++) {
      if (at + radius < length) (sum += values[i * line + (at + radius) * step]), count++;
      if (at - radius > 0) (sum -= values[i * line + (at - radius - 1) * step]), count--;
      if (at >= 0) found[i * line + at * step] = sum / count;
    }
  }
  return found;
}

/** The same mask in another colour. */
export function recoloured(layer, colour) {
  const copy = copied(layer);
  const context = copy.getContext("2d", reading);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, copy.width, copy.height);
  context.globalCompositeOperation = "source-over";
  return copy;
}

/** A region as the API takes it: its mask white where it is, transparent elsewhere. */
export function sent({ phrase, weight, layer }) {
  return { phrase, weight, mask: recoloured(layer, "#fff").toDataURL("image/png") };
}

/** All masks in their colours, to lie over an image: a data URL, or null for none. */
export function overlaid(regions, [width, height]) {
  if (!regions.length) return null;
  const all = sheet(width, height);
  const context = all.getContext("2d");
  for (const region of regions) context.drawImage(region.layer, 0, 0);
  return all.toDataURL();
}

/** The image of a mask (bright and opaque is inside) as a layer in this colour. */
export function layerOf(picture, colour, width, height) {
  const layer = sheet(width, height);
  const context = layer.getContext("2d", reading);
  context.drawImage(picture, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const rgb = rgbOf(colour);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b, alpha] = pixels.data.subarray(i, i + 4);
    pixels.data.set([...rgb, Math.round(((r + g + b) / 3) * (alpha / 255))], i);
  }
  context.putImageData(pixels, 0, 0);
  return layer;
}

/** The middle of a layer's alpha, from 0 to 1; null for an empty layer. */
export function middle(layer) {
  const { width, height } = layer;
  const { data } = layer.getContext("2d", reading).getImageData(0, 0, width, height);
  let [sum, x, y] = [0, 0, 0];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const alpha = data[4 * (row * width + column) + 3];
      sum += alpha;
      x += alpha * column;
      y += alpha * row;
    }
  }
  return sum ? [(x / sum + 0.5) / width, (y / sum + 0.5) / height] : null;
}

const rgbOf = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
