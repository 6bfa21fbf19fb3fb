// What is mixed: texts and images with their shares.

import { find, icon, make } from "./dom.js";
import { reduced } from "./files.js";
import { clearNotes, showError } from "./notes.js";
import { Mistake, whole } from "./settings.js";

/** The list of sources. */
export class Mix {
  #sources = [];

  constructor({ capabilities, limits }, choosePicture, onChange) {
    this.onChange = onChange;
    this.most = limits.sources;
    find("mix-part").hidden = !capabilities.mixes;
    find("mix-text").addEventListener("click", () => this.#add({ text: "", weight: 1 }).focus());
    find("mix-picture").addEventListener("click", () => choosePicture((file) => this.takePicture(file)));
  }

  /** As a request has them. */
  get sources() {
    return this.#sources.map(({ text, image, weight }) => (image ? { image, weight } : { text, weight }));
  }

  /** Whether it makes variations of one image. */
  get isVariation() {
    return this.#sources.length === 1 && Boolean(this.#sources[0].image);
  }

  get title() {
    if (this.isVariation) return "Variations of an image";
    return `Mixture: ${this.#sources.map((one) => one.text ?? "an image").join(" + ")}`;
  }

  restore(sources) {
    this.#sources = [];
    find("sources").replaceChildren();
    for (const { text, image, weight = 1 } of sources) {
      if (image || text) this.#add(image ? { image: whole(image), weight } : { text, weight });
    }
    find("mix-part").open = sources.length > 0;
    this.#tell();
  }

  async takePicture(file) {
    try {
      this.#add({ image: await reduced(file), weight: 1 });
    } catch (error) {
      showError(new Mistake("sources", error.message), []);
    }
  }

  /** Adds a source; the value is its first field. */
  #add(source) {
    find("mix-part").open = true;
    this.#sources.push(source);
    const what = source.image
      ? make("img", { class: "thumb", src: source.image, alt: "An image" })
      : make("input", { type: "text", value: source.text, placeholder: "a text", "aria-label": "A text to mix", dir: "auto" });
    what.addEventListener("input", () => (source.text = what.value));
    const range = { type: "range", min: 0, max: 1, step: 0.05, value: source.weight };
    const share = make("input", { ...range, "aria-label": "Share", title: "Share" });
    share.addEventListener("input", () => (source.weight = Number(share.value)));
    const leave = make("button", { type: "button", class: "plain remove", "aria-label": "Remove", title: "Remove" }, icon("close"));
    const item = make("li", {}, what, share, leave);
    leave.addEventListener("click", () => {
      this.#sources = this.#sources.filter((one) => one !== source);
      item.remove();
      this.#tell();
    });
    find("sources").append(item);
    this.#tell();
    return what;
  }

  #tell() {
    clearNotes(find("mix-part"));
    this.onChange();
    for (const name of ["mix-text", "mix-picture"]) find(name).disabled = this.#sources.length >= this.most;
  }
}
