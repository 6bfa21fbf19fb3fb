// The toolbar under the canvas.

import { find } from "./dom.js";

const KEYS = { b: "brush", r: "rectangle", e: "eraser" };

/** The drawing tool. Tells "change". */
export class Tools extends EventTarget {
  tool = "brush";

  constructor(regions) {
    super();
    this.buttons = [...find("tools").children];
    for (const button of this.buttons) button.addEventListener("click", () => this.choose(button.dataset.tool));
    find("brush-size").addEventListener("input", () => this.#tell());
    find("undo").addEventListener("click", () => regions.undo());
    find("redo").addEventListener("click", () => regions.redo());
    find("clear").addEventListener("click", () => regions.clear());
    regions.addEventListener("change", () => {
      find("undo").disabled = !regions.canUndo;
      find("redo").disabled = !regions.canRedo;
      find("clear").disabled = !regions.target || !regions.centre(regions.target);
    });
  }

  /** The brush's diameter, as a part of the longer side. */
  get size() {
    return Number(find("brush-size").value) / 100;
  }

  choose(tool) {
    this.tool = tool;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    this.#tell();
  }

  /** Do what a key means; false where it means nothing. */
  key(name) {
    const size = find("brush-size");
    if (name.toLowerCase() in KEYS) this.choose(KEYS[name.toLowerCase()]);
    else if (name === "[") size.stepDown(3);
    else if (name === "]") size.stepUp(3);
    else return false;
    this.#tell();
    return true;
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}
