// Strokes of the brush, the eraser and the rectangle, by pointer or by keys. Places are from 0 to 1.

/** The stroke that is being drawn, if one is. */
export class Strokes {
  /** Where the keys are. */
  cursor = [0.5, 0.5];
  #context = null;
  #last = null;
  #corner = null;
  #byKeys = false;

  constructor(regions, tools) {
    this.regions = regions;
    this.tools = tools;
  }

  /** Whether a stroke is being drawn. */
  get under() {
    return this.#context !== null;
  }

  /** The corners of a rectangle that is not done yet, upper left and lower right; or null. */
  get rectangle() {
    if (!this.#corner) return null;
    const [a, b] = [this.#corner, this.#last];
    return [a.map((one, i) => Math.min(one, b[i])), a.map((one, i) => Math.max(one, b[i]))];
  }

  /** Begin at a place; false where there is no phrase to draw. */
  down(at) {
    this.finish();
    this.#context = this.regions.begin();
    if (!this.#context) return false;
    this.#last = at;
    if (this.tools.tool === "rectangle") this.#corner = at;
    else this.#line(at, at);
    this.regions.touched();
    return true;
  }

  move(at) {
    if (!this.#context) return;
    if (!this.#corner) this.#line(this.#last, at);
    this.#last = at;
  }

  up(at) {
    if (!this.#context) return;
    this.move(at);
    if (this.#corner) this.#fill(...this.rectangle);
    this.#forget();
    this.regions.end();
  }

  /** End at the last place. */
  finish() {
    if (this.#context) this.up(this.#last);
  }

  giveUp() {
    if (!this.#context) return;
    this.#forget();
    this.regions.giveUp();
  }

  /** The keys move. */
  step(x, y) {
    this.cursor = [this.cursor[0] + x, this.cursor[1] + y].map((one) => Math.min(1, Math.max(0, one)));
    if (this.#byKeys) this.move(this.cursor);
  }

  /** The keys set the brush down, or lift it; the value is what to say of it. */
  press() {
    const place = this.cursor.map((one) => `${Math.round(100 * one)} %`).join(" from the left, ");
    if (this.#byKeys) {
      this.up(this.cursor);
      return `Lifted at ${place} from the top.`;
    }
    if (!this.down(this.cursor)) return "Choose words of the prompt first.";
    this.#byKeys = true;
    return `Down at ${place} from the top.`;
  }

  #forget() {
    this.#context = this.#corner = null;
    this.#byKeys = false;
  }

  #line(from, to) {
    const [width, height] = this.regions.size;
    const context = this.#context;
    context.globalCompositeOperation = this.tools.tool === "eraser" ? "destination-out" : "source-over";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = this.tools.size * Math.max(width, height);
    context.beginPath();
    context.moveTo(from[0] * width, from[1] * height);
    context.lineTo(to[0] * width + 0.01, to[1] * height);
    context.stroke();
  }

  #fill([left, top], [right, bottom]) {
    const [width, height] = this.regions.size;
    this.#context.globalCompositeOperation = "source-over";
    this.#context.fillRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
  }
}
