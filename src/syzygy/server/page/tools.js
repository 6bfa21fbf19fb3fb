// The toolbars under the canvas.

import { find, make } from "./dom.js";
import { TEMPLATES, blur, invert } from "./layers.js";

const KEYS = { b: "brush", r: "rectangle", e: "eraser" };
/** Buttons that need a region, and those that need one with pixels. */
const OF_A_REGION = ["invert", "duplicate", "solo"];
const OF_PIXELS = ["clear", "blur"];

/** The drawing tool. Dispatches "change". */
export class Tools extends EventTarget {
  tool = "brush";

  constructor(regions) {
    super();
    this.buttons = [...find("tools").children];
    for (const button of this.buttons) button.addEventListener("click", () => this.choose(button.dataset.tool));
    find("brush-size").addEventListener("input", () => this.#tell());
    const on = (id, act) => find(id).addEventListener("click", act);
    on("undo", () => regions.undo());
    on("redo", () => regions.redo());
    on("clear", () => regions.edit((context) => context.clearRect(0, 0, ...regions.size)));
    on("invert", () => regions.edit(invert));
    on("blur", () => regions.edit(blur));
    on("duplicate", () => regions.duplicate(regions.active));
    on("solo", () => regions.toggleSolo(regions.active));
    prepareTemplates(regions);
    regions.addEventListener("change", () => {
      const { target } = regions;
      find("undo").disabled = !regions.canUndo;
      find("redo").disabled = !regions.canRedo;
      for (const id of OF_A_REGION) find(id).disabled = !target;
      for (const id of OF_PIXELS) find(id).disabled = !target || !regions.centre(target);
      if (regions.list.length >= regions.most) find("duplicate").disabled = true;
      find("solo").setAttribute("aria-pressed", String(target !== null && regions.solo === target.id));
      find("fill").classList.toggle("unusable", !target && !regions.candidate);
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

  /** Do what a key means; false if it means nothing. */
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

/** The menu that fills a part of the canvas. */
function prepareTemplates(regions) {
  const menu = find("fill");
  const close = () => {
    const inside = menu.contains(document.activeElement);
    menu.open = false;
    if (inside) menu.firstElementChild.focus();
  };
  const fill = (left, top, wide, high) => {
    const [width, height] = regions.size;
    regions.edit((context) => {
      context.clearRect(0, 0, width, height);
      context.fillRect(Math.round(left * width), Math.round(top * height), Math.round(wide * width), Math.round(high * height));
    });
    close();
  };
  const buttons = TEMPLATES.map(([title, ...box]) => make("button", { type: "button", class: "plain", onclick: () => fill(...box) }, title));
  find("templates").append(...buttons);
  menu.addEventListener("toggle", () => {
    for (const button of buttons) button.disabled = !regions.target && !regions.candidate;
  });
  menu.addEventListener("keydown", (event) => event.key === "Escape" && close());
  document.addEventListener("pointerdown", (event) => !menu.contains(event.target) && (menu.open = false));
}
