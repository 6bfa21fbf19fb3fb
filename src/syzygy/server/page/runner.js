// One request at a time: it is sent, can be cancelled, and is sent again if the server was busy.

import { generation } from "./api.js";
import { find, say } from "./dom.js";
import { pngOf } from "./files.js";
import { clearNotes, note, showError, warn } from "./notes.js";

const PREVIEWS = 5;
const WAITS = 20;
const BUSY = "Another request is running: wait for it, or cancel it.";

/** Dispatches "change" when a request begins and ends, and "seed" with the seed of its first image. */
export class Runner extends EventTarget {
  #control = null;

  constructor(gallery, previews) {
    super();
    this.gallery = gallery;
    this.previews = previews ? PREVIEWS : 0;
  }

  get busy() {
    return this.#control !== null;
  }

  cancel() {
    this.#control?.abort();
  }

  /** Generate: {path, body, title, regions (that are sent), overlay (a data URL or null)}. `remark` is shown while and after it runs. */
  async run(job, remark = "") {
    const beside = find("go-note");
    if (this.busy) {
      note(beside, BUSY);
      return;
    }
    clearNotes();
    note(beside, remark);
    this.#control = new AbortController();
    this.dispatchEvent(new Event("change"));
    const began = performance.now();
    const group = this.gallery.begin(job);
    say(`Generating ${count(job.body.n).toLowerCase()}.`);
    let end = "";
    try {
      await this.#patiently(job, group);
      end = `${count(job.body.n)} in ${((performance.now() - began) / 1000).toFixed(1)} s`;
    } catch (error) {
      end = error.name === "AbortError" ? "Cancelled." : "";
      if (error.name !== "AbortError") showError(error, job.regions.map((one) => one.id), beside);
    }
    group.end();
    this.#control = null;
    if (beside.textContent === BUSY) note(beside, "");
    this.#progress(null, end);
    say(end);
    this.dispatchEvent(new Event("change"));
  }

  /** Try again as long as the queue is full. */
  async #patiently(job, group) {
    for (let tried = 0; ; tried++) {
      this.#progress(0, "Waiting for the server…");
      try {
        await this.#once(job, group);
        return;
      } catch (error) {
        if (error.status !== 429 || tried === WAITS) throw error;
        await this.#wait(error.retryAfter ?? 1);
      }
    }
  }

  async #once(job, group) {
    const body = { ...job.body, stream: true, progress: true, partial_images: this.previews };
    for await (const event of generation(job.path, body, this.#control.signal)) {
      if (event.type === "syzygy.progress") {
        this.#progress(event.step / event.steps, `Step ${event.step} of ${event.steps}`);
      } else if (event.type === "syzygy.queue") {
        this.#progress(0, `Waiting: place ${event.position} in the queue, about ${Math.ceil(event.seconds)} s.`);
      } else if (event.type.endsWith(".partial_image")) {
        group.preview(event.index, pngOf(event.b64_json));
      } else if (event.type.endsWith(".completed")) {
        group.done(event.index, pngOf(event.b64_json), event.seed);
        if (event.index === 0) this.dispatchEvent(new CustomEvent("seed", { detail: event.seed }));
        warn(event.warnings);
      }
    }
  }

  async #wait(seconds) {
    const signal = this.#control.signal;
    for (let left = Math.ceil(seconds); left > 0; left--) {
      this.#progress(0, `The server is busy: its queue is full. Trying again in ${left} s.`);
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000);
        const stop = () => {
          clearTimeout(timer);
          reject(signal.reason);
        };
        signal.addEventListener("abort", stop, { once: true });
      });
    }
  }

  /** How far it is, from 0 to 1, or null at the end; and what to say of it. */
  #progress(part, text) {
    const bar = find("progress");
    bar.hidden = part === null;
    bar.setAttribute("aria-valuenow", Math.round(100 * (part ?? 0)));
    bar.firstElementChild.style.width = `${100 * (part ?? 0)}%`;
    find("go-status").textContent = text;
  }
}

/** "One image", "4 images". */
export const count = (number, what = "image") => (number === 1 ? `One ${what}` : `${number} ${what}s`);
