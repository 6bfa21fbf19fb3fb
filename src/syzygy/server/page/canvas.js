// The canvas: what it shows, and what pointers and keys do on it.

import { byFinger, find, isText, say } from "./dom.js";
import { COLOURS } from "./regions.js";
import { Strokes } from "./strokes.js";

const MOST_PIXELS = 900;
const STEP = 0.02;
const LABEL_FONT = 13;
const LONGEST_LABEL = 26;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The drawing surface over some regions. */
export class Surface {
  #canvas = find("canvas");
  #context = this.#canvas.getContext("2d");
  #planned = false;
  #pointer = null;
  /** Whether the place of the keys is shown while the canvas has the focus. */
  #keys = !byFinger();
  /** An image behind the regions, or null. */
  background = null;

  constructor(regions, tools) {
    this.regions = regions;
    this.tools = tools;
    this.strokes = new Strokes(regions, tools);
    for (const name of ["change", "draw"]) regions.addEventListener(name, () => this.plan());
    tools.addEventListener("change", () => this.plan());
    new ResizeObserver(() => this.#fit()).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.plan());
    this.#listen();
  }

  /** Draw before the next frame. */
  plan() {
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => {
      this.#planned = false;
      this.#draw();
    });
  }

  #fit() {
    const [width, height] = this.regions.size;
    this.#canvas.style.aspectRatio = `${width} / ${height}`;
    const scale = Math.min(devicePixelRatio, MOST_PIXELS / Math.max(1, this.#canvas.clientWidth));
    const wide = Math.max(1, Math.round(this.#canvas.clientWidth * scale));
    if (this.#canvas.width !== wide) {
      this.#canvas.width = wide;
      this.#canvas.height = Math.max(1, Math.round((wide * height) / width));
    }
    this.plan();
  }

  #draw() {
    const { width, height } = this.#canvas;
    const context = this.#context;
    if (Math.round((width * this.regions.size[1]) / this.regions.size[0]) !== height) this.#fit();
    context.globalAlpha = 1;
    context.clearRect(0, 0, width, height);
    if (this.background) context.drawImage(this.background, 0, 0, width, height);
    const shown = this.regions.list.filter((one) => this.regions.isShown(one));
    for (const one of shown) {
      const faint = this.regions.isIn(one) ? 1 : 0.35;
      context.globalAlpha = faint * (one.id === this.regions.active ? 0.8 : 0.55) * (this.background ? 0.7 : 1);
      context.drawImage(one.layer, 0, 0, width, height);
    }
    context.globalAlpha = 1;
    for (const one of shown) if (!(this.strokes.under && one.id === this.regions.active)) this.#label(one);
    this.#mark();
    this.#hint();
  }

  /** The phrase, in the middle of where it is. */
  #label(region) {
    const at = this.regions.centre(region);
    if (!at) return;
    const context = this.#context;
    const unit = this.#canvas.width / Math.max(1, this.#canvas.clientWidth);
    context.font = `600 ${LABEL_FONT * unit}px system-ui, sans-serif`;
    const text = region.phrase.length > LONGEST_LABEL ? `${region.phrase.slice(0, LONGEST_LABEL - 1).trimEnd()}…` : region.phrase;
    const wide = context.measureText(text).width + 14 * unit;
    const high = (LABEL_FONT + 9) * unit;
    const x = Math.min(Math.max(at[0] * this.#canvas.width - wide / 2, 2), Math.max(2, this.#canvas.width - wide - 2));
    const y = Math.min(Math.max(at[1] * this.#canvas.height - high / 2, 2), this.#canvas.height - high - 2);
    context.beginPath();
    context.roundRect(x, y, wide, high, high / 2);
    context.fillStyle = "#fffffff0";
    context.fill();
    context.lineWidth = 1.5 * unit;
    context.strokeStyle = COLOURS[region.colour];
    context.setLineDash(this.regions.isIn(region) ? [] : [4 * unit, 3 * unit]);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = "#1b1d29";
    context.textBaseline = "middle";
    context.fillText(text, x + 7 * unit, y + high / 2 + unit / 2);
  }

  /** Where the pointer or the keys are: the brush's ring, or the rectangle so far. */
  #mark() {
    const at = this.#pointer ?? (this.#keys && document.activeElement === this.#canvas ? this.strokes.cursor : null);
    const context = this.#context;
    const { width, height } = this.#canvas;
    const corners = this.strokes.rectangle;
    context.lineWidth = width / Math.max(1, this.#canvas.clientWidth);
    for (const [colour, wider] of [["#fffc", 1], ["#000b", 0]]) {
      context.strokeStyle = colour;
      context.beginPath();
      if (corners) {
        const [[left, top], [right, bottom]] = corners;
        const [wide, high] = [(right - left) * width, (bottom - top) * height];
        context.rect(left * width - wider, top * height - wider, wide + 2 * wider, high + 2 * wider);
      } else if (at && this.tools.tool !== "rectangle") {
        context.arc(at[0] * width, at[1] * height, (this.tools.size * Math.max(width, height)) / 2 + wider, 0, 7);
      } else if (at) {
        context.moveTo(at[0] * width - 8, at[1] * height + wider);
        context.lineTo(at[0] * width + 8, at[1] * height + wider);
        context.moveTo(at[0] * width + wider, at[1] * height - 8);
        context.lineTo(at[0] * width + wider, at[1] * height + 8);
      }
      context.stroke();
    }
  }

  #hint() {
    const { list, candidate, target } = this.regions;
    const drawn = list.some((one) => this.regions.isShown(one) && this.regions.centre(one));
    const phrase = candidate?.phrase ?? target?.phrase;
    find("canvas-hint").textContent = phrase
      ? `Draw where “${phrase}” should appear.`
      : "Choose words of the prompt, then draw here where they should appear.";
    find("canvas-hint").hidden = drawn || this.strokes.under || this.background !== null;
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      event.preventDefault();
      this.#keys = false;
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      if (!this.strokes.down(this.#place(event))) say("Choose words of the prompt first.");
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.isPrimary) return;
      this.#pointer = this.#place(event);
      const parts = event.getCoalescedEvents?.() ?? [];
      for (const part of parts.length ? parts : [event]) this.strokes.move(this.#place(part));
      this.plan();
    });
    canvas.addEventListener("pointerup", (event) => event.isPrimary && this.strokes.up(this.#place(event)));
    canvas.addEventListener("pointercancel", () => this.strokes.giveUp());
    const kept = (event) => event.touches.length === 1 && event.cancelable && event.preventDefault();
    canvas.addEventListener("touchmove", kept, { passive: false }); // a quick stroke is no fling, which would swallow the next tap
    canvas.addEventListener("contextmenu", (event) => this.strokes.under && event.preventDefault()); // a finger that rests
    canvas.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.plan();
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => {
      this.strokes.finish();
      this.#keys = !byFinger();
      this.plan();
    });
    document.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || isText(event.target) || event.altKey) return;
      const key = event.key.toLowerCase();
      if (key !== "z" && key !== "y") return;
      event.preventDefault();
      if (key === "y" || event.shiftKey) this.regions.redo();
      else this.regions.undo();
    });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    this.#pointer = null;
    this.#keys = true;
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key];
      const step = event.shiftKey ? 5 * STEP : STEP;
      this.strokes.step(x * step, y * step);
    } else if (event.key === " " || event.key === "Enter") {
      say(this.strokes.press());
    } else if (event.key === "Escape") {
      this.strokes.giveUp();
    } else if (!this.tools.key(event.key)) {
      return;
    }
    event.preventDefault();
    this.plan();
  }
}
