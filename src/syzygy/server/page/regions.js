// Phrases and their places: what is drawn, and every earlier state of it.

import { sheet } from "./dom.js";
import { decoded } from "./files.js";
import { places } from "./phrases.js";

/** Pixels of a mask's longer side: the server reduces larger ones to this. */
export const SIDE = 256;
const MOST_STATES = 60;
export const COLOURS = [
  "#e5484d", "#3b82f6", "#2f9e62", "#f2a20c", "#8e4ec6", "#0ea5b7", "#e0458b", "#84911c",
  "#d9661f", "#5b5bd6", "#c06bd8", "#a8752a", "#4d9221", "#b3446c", "#64748b", "#7a5c49",
];

/**
 * The regions of the prompt. Tells "change" when phrases, places or choice are others, and "draw" when only pixels are.
 * A region is {id, phrase, colour, weight, layer}: frozen, so that earlier states stay what they were. The alpha of a layer is its mask.
 */
export class Regions extends EventTarget {
  list = [];
  active = null;
  /** A phrase that is selected in the prompt, but has no place yet. */
  candidate = null;
  prompt = "";
  most = COLOURS.length;
  /** Whether the selected phrase is one too many. */
  full = false;
  #size = [SIDE, SIDE];
  #earlier = [];
  #later = [];
  #before = null;
  #number = 0;
  #found = new WeakMap();

  get size() {
    return this.#size;
  }

  get canUndo() {
    return this.#earlier.length > 0;
  }

  get canRedo() {
    return this.#later.length > 0;
  }

  /** The region that strokes go to. */
  get target() {
    return this.list.find((one) => one.id === this.active) ?? null;
  }

  /** Whether the prompt holds its phrase. */
  isIn(region) {
    return places(this.prompt, region.phrase).length > 0;
  }

  /** Those that can be sent: in the prompt, and somewhere. */
  get drawn() {
    return this.list.filter((one) => this.isIn(one) && this.centre(one) !== null);
  }

  /** Where the middle of its mask lies, from 0 to 1; null for an empty one. */
  centre(region) {
    const known = this.#found.get(region.layer);
    if (known !== undefined) return known;
    const found = middle(region.layer);
    if (!this.#before) this.#found.set(region.layer, found); // the layer of a stroke still changes
    return found;
  }

  /** The prompt is another now; `phrase` is selected in it, or nothing is. */
  tellPrompt(prompt, phrase) {
    this.prompt = prompt;
    const known = phrase && this.list.find((one) => same(one.phrase, phrase));
    this.full = Boolean(phrase && !known && this.list.length >= this.most);
    this.candidate = phrase && !known && !this.full ? { phrase, colour: this.#freeColour() } : null;
    if (known) this.active = known.id;
    this.#tell("change");
  }

  /** The selected phrase becomes a region. */
  accept() {
    if (!this.candidate) return;
    const [width, height] = this.#size;
    const region = this.#region(this.candidate.phrase, this.candidate.colour, 1, sheet(width, height));
    this.candidate = null;
    this.active = region.id;
    this.#change([...this.list, region]);
  }

  choose(id) {
    this.active = id;
    this.candidate = null;
    this.#tell("change");
  }

  remove(id) {
    const at = this.list.findIndex((one) => one.id === id);
    const left = this.list.filter((one) => one.id !== id);
    if (this.active === id) this.active = left[Math.min(at, left.length - 1)]?.id ?? null;
    this.#change(left);
  }

  weigh(id, weight) {
    this.#change(this.list.map((one) => (one.id === id ? Object.freeze({ ...one, weight }) : one)));
  }

  /** Begin a stroke: the 2D context of the region that it goes to; null where there is none. */
  begin() {
    this.accept();
    const region = this.target;
    if (!region) return null;
    this.#before = this.list;
    const layer = copied(region.layer, ...this.#size);
    this.list = this.list.map((one) => (one === region ? Object.freeze({ ...one, layer }) : one));
    const context = layer.getContext("2d", { willReadFrequently: true });
    context.strokeStyle = context.fillStyle = COLOURS[region.colour];
    return context;
  }

  /** Pixels of the stroke have changed. */
  touched() {
    this.#tell("draw");
  }

  end() {
    const drawn = this.list;
    if (!this.#before) return;
    [this.list, this.#before] = [this.#before, null];
    this.#change(drawn);
  }

  giveUp() {
    if (!this.#before) return;
    [this.list, this.#before] = [this.#before, null];
    this.#tell("change");
  }

  clear() {
    const context = this.begin();
    if (!context) return;
    context.clearRect(0, 0, ...this.#size);
    this.end();
  }

  undo() {
    this.#step(this.#earlier, this.#later);
  }

  redo() {
    this.#step(this.#later, this.#earlier);
  }

  /** Masks of another shape of picture: [width, height] in any unit. What is drawn is stretched to it. */
  reshape([width, height]) {
    const scale = SIDE / Math.max(width, height);
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    if (size.join() === this.#size.join()) return;
    this.#size = size;
    this.#change(this.list.map((one) => Object.freeze({ ...one, layer: copied(one.layer, ...size) })));
  }

  /** Regions as a request has them, in the place of all that are there. */
  async restore(given) {
    const pictures = await Promise.all(given.map((one) => decoded(one.mask)));
    const list = given.map((one, i) => {
      const layer = layerOf(pictures[i], COLOURS[i % COLOURS.length], ...this.#size);
      return this.#region(one.phrase, i % COLOURS.length, one.weight ?? 1, layer);
    });
    this.active = list[0]?.id ?? null;
    this.candidate = null;
    this.#change(list);
  }

  #region(phrase, colour, weight, layer) {
    return Object.freeze({ id: ++this.#number, phrase, colour, weight, layer });
  }

  #freeColour() {
    const used = new Set(this.list.map((one) => one.colour));
    return COLOURS.findIndex((_, i) => !used.has(i));
  }

  #change(list) {
    this.#earlier.push(this.list);
    if (this.#earlier.length > MOST_STATES) this.#earlier.shift();
    this.#later = [];
    this.full = false;
    this.list = list;
    this.#tell("change");
  }

  #step(from, to) {
    if (this.#before || !from.length) return;
    to.push(this.list);
    this.list = from.pop();
    if (!this.target) this.active = this.list.at(-1)?.id ?? null;
    this.#tell("change");
  }

  #tell(what) {
    this.dispatchEvent(new Event(what));
  }
}

const same = (one, other) => one.toLowerCase() === other.toLowerCase();

/** A region as the API takes it: its mask white where it is, transparent elsewhere. */
export function sent(region) {
  const white = copied(region.layer, region.layer.width, region.layer.height);
  const context = white.getContext("2d");
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, white.width, white.height);
  return { phrase: region.phrase, weight: region.weight, mask: white.toDataURL("image/png") };
}

/** All masks in their colours, to lie over a picture. */
export function overlaid(regions, [width, height]) {
  const all = sheet(width, height);
  const context = all.getContext("2d");
  for (const region of regions) context.drawImage(region.layer, 0, 0);
  return all;
}

function copied(layer, width, height) {
  const copy = sheet(width, height);
  copy.getContext("2d", { willReadFrequently: true }).drawImage(layer, 0, 0, width, height);
  return copy;
}

/** A mask's picture (bright and opaque is here) as a layer in this colour. */
function layerOf(picture, colour, width, height) {
  const layer = sheet(width, height);
  const context = layer.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b, alpha] = pixels.data.subarray(i, i + 4);
    pixels.data.set([red, green, blue, Math.round(((r + g + b) / 3) * (alpha / 255))], i);
  }
  context.putImageData(pixels, 0, 0);
  return layer;
}

/** The middle of a layer's alpha, from 0 to 1; null where there is none. */
function middle(layer) {
  const { width, height } = layer;
  const { data } = layer.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height);
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
