// Phrases and their regions, with every earlier state of them.

import { anchored, difference, followed } from "./anchors.js";
import { sheet } from "./dom.js";
import { decoded } from "./files.js";
import { copied, layerOf, middle, recoloured } from "./layers.js";
import { places } from "./phrases.js";

/** Pixels of a mask's longer side: the server reduces larger ones to this. */
export const SIDE = 256;
const MOST_STATES = 60;
export const COLOURS = [
  "#e5484d", "#3b82f6", "#2f9e62", "#f2a20c", "#8e4ec6", "#0ea5b7", "#e0458b", "#84911c",
  "#d9661f", "#5b5bd6", "#c06bd8", "#a8752a", "#4d9221", "#b3446c", "#64748b", "#7a5c49",
];

/**
 * The regions of the prompt. Dispatches "change" when phrases, masks or the selection change, and "draw" when only pixels do.
 * A region is {id, phrase, colour, weight, hidden, layer}: frozen, so that earlier states stay as they were. Its phrase follows the
 * prompt: the undo history does not touch it.
 */
export class Regions extends EventTarget {
  list = [];
  active = null;
  /** The only region that is shown and used, or null for all. */
  solo = null;
  /** A phrase that is selected in the prompt, but has no region yet. */
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
  #anchors = new Map();
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

  /** Whether it is shown and used. */
  isShown(region) {
    return this.solo === null ? !region.hidden : region.id === this.solo;
  }

  /** Those that can be sent: in the prompt, shown, and not empty. */
  get drawn() {
    return this.list.filter((one) => this.isShown(one) && this.isIn(one) && this.centre(one) !== null);
  }

  /** Those that would be sent if the prompt held their phrases. */
  get lost() {
    return this.list.filter((one) => this.isShown(one) && !this.isIn(one) && this.centre(one) !== null);
  }

  /** Where the middle of its mask lies, from 0 to 1; null for an empty one. */
  centre(region) {
    const known = this.#found.get(region.layer);
    if (known !== undefined) return known;
    const found = middle(region.layer);
    if (!this.#before) this.#found.set(region.layer, found); // the layer of a stroke still changes
    return found;
  }

  /** The prompt as it is now, edited up to the caret; `words` is the range that is selected in it, or null. */
  setPrompt(prompt, words, caret = prompt.length) {
    if (prompt !== this.prompt) this.#follow(difference(this.prompt, prompt, caret), prompt);
    this.prompt = prompt;
    const phrase = words && prompt.slice(...words);
    const known = phrase && this.list.find((one) => same(one.phrase, phrase));
    this.full = Boolean(phrase && !known && this.list.length >= this.most);
    this.candidate = phrase && !known && !this.full ? { phrase, words, colour: this.#freeColour() } : null;
    if (known) this.active = known.id;
    this.#tell("change");
  }

  /** Every region keeps its words, also those that undo may bring back. */
  #follow(edit, prompt) {
    for (const [id, anchor] of this.#anchors) this.#anchors.set(id, followed(anchor, edit, prompt));
    this.list = this.#phrased(this.list);
  }

  #phrased(list) {
    const phrase = (one) => this.#anchors.get(one.id).phrase;
    return list.map((one) => (phrase(one) === one.phrase ? one : Object.freeze({ ...one, phrase: phrase(one) })));
  }

  /** The selected phrase becomes a region. */
  accept() {
    if (!this.candidate) return;
    const region = this.#region({ ...this.candidate, layer: sheet(...this.#size) });
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

  /** Change its weight, or whether it is hidden. */
  set(id, change) {
    this.#change(this.list.map((one) => (one.id === id ? Object.freeze({ ...one, ...change }) : one)));
  }

  /** Another phrase of the prompt for a region. */
  attach(id, phrase) {
    this.#anchors.set(id, anchored(this.prompt, phrase));
    this.list = this.#phrased(this.list);
    this.active = id;
    this.candidate = null;
    this.#tell("change");
  }

  /** Show and use only this region, or all again. */
  toggleSolo(id) {
    this.solo = this.solo === id ? null : id;
    this.#tell("change");
  }

  /** A second region for the same phrase. */
  duplicate(id) {
    const one = this.list.find((region) => region.id === id);
    if (!one || this.list.length >= this.most) return;
    const colour = this.#freeColour();
    const copy = this.#region({ ...one, colour, layer: recoloured(one.layer, COLOURS[colour]) });
    this.#anchors.set(copy.id, this.#anchors.get(id));
    this.active = copy.id;
    this.#change(this.list.flatMap((region) => (region === one ? [one, copy] : [region])));
  }

  /** Begin a stroke: the 2D context of the region that it goes to, which is shown from now on; null if there is none. */
  begin() {
    this.accept();
    const region = this.target;
    if (!region) return null;
    this.#before = this.list;
    const layer = copied(region.layer, ...this.#size);
    this.list = this.list.map((one) => (one === region ? Object.freeze({ ...one, hidden: false, layer }) : one));
    if (this.solo !== region.id) this.solo = null;
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

  /** Change all pixels of the region at once: `act` gets its 2D context and its colour. False if there is no region. */
  edit(act) {
    const context = this.begin();
    if (!context) return false;
    act(context, COLOURS[this.target.colour]);
    this.end();
    return true;
  }

  undo() {
    this.#step(this.#earlier, this.#later);
  }

  redo() {
    this.#step(this.#later, this.#earlier);
  }

  /** Masks for another shape of image: [width, height] in any unit. What is drawn is stretched to it. */
  reshape([width, height]) {
    const scale = SIDE / Math.max(width, height);
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    if (size.join() === this.#size.join()) return;
    this.#size = size;
    this.#change(this.list.map((one) => Object.freeze({ ...one, layer: copied(one.layer, ...size) })));
  }

  /** Replace all regions by those of a request. */
  async restore(given) {
    const pictures = await Promise.all(given.map((one) => decoded(one.mask)));
    const list = given.map((one, i) => {
      const colour = i % COLOURS.length;
      return this.#region({ ...one, colour, layer: layerOf(pictures[i], COLOURS[colour], ...this.#size) });
    });
    this.active = list[0]?.id ?? null;
    this.candidate = null;
    this.#change(list);
  }

  #region({ phrase, words = null, colour, weight = 1, hidden = false, layer }) {
    const id = ++this.#number;
    const range = words && { start: words[0], end: words[1], open: false };
    this.#anchors.set(id, range ? { phrase, range } : anchored(this.prompt, phrase));
    return Object.freeze({ id, phrase, colour, weight, hidden, layer });
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
    this.#show(list);
  }

  #step(from, to) {
    if (this.#before || !from.length) return;
    to.push(this.list);
    this.#show(this.#phrased(from.pop()));
    if (!this.target) this.choose(this.list.at(-1)?.id ?? null);
  }

  #show(list) {
    this.list = list;
    if (!list.some((one) => one.id === this.solo)) this.solo = null;
    this.#tell("change");
  }

  #tell(what) {
    this.dispatchEvent(new Event(what));
  }
}

const same = (one, other) => one.toLowerCase() === other.toLowerCase();
