// One image, large: zoom, its neighbours, a comparison of two, and what can be done with it.

import { find, make } from "./dom.js";

const FACTS = [
  ["negative_prompt", "Negative prompt"], ["steps", "Steps"], ["guidance_scale", "Guidance"], ["sampler", "Sampler"],
  ["region_strength", "Region strength"], ["style_content", "Style shows"], ["style_guidance", "Style strength"], ["size", "Size"],
];
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

/** Opens pictures of the gallery; `actions` are {text(), possible, act(picture), stay}. */
export class Viewer {
  #dialog = find("viewer");
  #picture = null;
  /** The other image of a comparison, or null. */
  #other = null;
  #zoom = 1;

  constructor(gallery, actions) {
    this.gallery = gallery;
    this.actions = actions.filter((one) => one.possible);
    const on = (id, act) => find(id).addEventListener("click", act);
    on("viewer-close", () => this.#dialog.close());
    on("previous", () => this.#go(-1));
    on("next", () => this.#go(1));
    on("zoom-in", () => this.#setZoom(ZOOMS.find((one) => one > this.#zoom) ?? ZOOMS.at(-1)));
    on("zoom-out", () => this.#setZoom(ZOOMS.findLast((one) => one < this.#zoom) ?? 1));
    on("zoom-reset", () => this.#setZoom(1));
    on("compare", () => this.#compare());
    on("favourite", () => {
      this.gallery.toggleFavourite(this.#picture);
      this.#show();
    });
    find("viewer-picture").addEventListener("dblclick", () => this.#setZoom(this.#zoom > 1 ? 1 : 2));
    find("share").addEventListener("input", () => this.#share());
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  open(picture) {
    this.#picture = picture;
    this.#other = null;
    this.#setZoom(1);
    this.#show();
    this.#dialog.showModal();
    find("viewer-actions").querySelector("button").focus({ preventScroll: true }); // the image comes first
  }

  #show() {
    const { job, seed } = this.#picture;
    const { shown } = this.gallery;
    const at = shown.indexOf(this.#picture);
    const both = this.#other ? [this.#picture, this.#other] : [this.#picture];
    find("viewer-picture").replaceChildren(make("div", { class: "layers" }, ...both.map((one, i) => layers(one, i === 1))));
    find("viewer-picture").classList.toggle("places", find("overlay").checked);
    this.#setZoom(this.#zoom);
    find("viewer-title").textContent = job.title;
    find("viewer-facts").replaceChildren(...facts({ ...job.body, seed }));
    find("viewer-place").textContent = `${at + 1} of ${shown.length}`;
    find("previous").disabled = !this.#neighbour(-1);
    find("next").disabled = !this.#neighbour(1);
    find("favourite").setAttribute("aria-pressed", String(this.#picture.favourite));
    find("compare").disabled = shown.length < 2;
    find("compare").setAttribute("aria-pressed", String(this.#other !== null));
    find("compare-part").hidden = this.#other === null;
    if (this.#other) [find("name-a").textContent, find("name-b").textContent] = [`A: seed ${this.#other.seed}`, `B: seed ${seed}`];
    this.#share();
    this.#offer();
  }

  /** Buttons for what can be done with the image. The one with the focus keeps it. */
  #offer() {
    const focused = [...find("viewer-actions").children].indexOf(document.activeElement);
    const buttons = this.actions.map((one) => make("button", { type: "button", onclick: () => this.#act(one) }, one.text()));
    buttons[0].className = "main-button";
    find("viewer-actions").replaceChildren(...buttons);
    buttons[focused]?.focus({ preventScroll: true });
  }

  #act({ act, stay }) {
    if (!stay) this.#dialog.close();
    act(this.#picture);
  }

  /** The next or the previous image; in a comparison not the one that it is compared with. */
  #neighbour(step) {
    const { shown } = this.gallery;
    let at = shown.indexOf(this.#picture) + step;
    if (this.#other && shown[at] === this.#other) at += step;
    return shown[at];
  }

  #go(step) {
    const next = this.#neighbour(step);
    if (!next) return;
    this.#picture = next;
    this.#show();
    this.#refocus();
  }

  /** A button that is disabled now gives the focus to the image, where the same keys work. */
  #refocus() {
    const { activeElement } = document;
    if (activeElement === document.body || activeElement.disabled) find("viewer-picture").focus({ preventScroll: true });
  }

  /** This image becomes A, and its neighbour B; or the comparison ends. */
  #compare() {
    if (this.#other) {
      this.#other = null;
    } else {
      const next = this.#neighbour(1) ?? this.#neighbour(-1);
      [this.#other, this.#picture] = [this.#picture, next];
    }
    this.#show();
  }

  #share() {
    const part = find("viewer-picture").querySelector(".above");
    if (part) part.style.clipPath = `inset(0 ${100 - Number(find("share").value)}% 0 0)`;
  }

  #setZoom(zoom) {
    const box = find("viewer-picture");
    const [x, y] = [(box.scrollLeft + box.clientWidth / 2) / box.scrollWidth, (box.scrollTop + box.clientHeight / 2) / box.scrollHeight];
    this.#zoom = zoom;
    const inside = box.firstElementChild;
    if (inside) inside.style.width = `${100 * zoom}%`;
    box.scrollTo(x * box.scrollWidth - box.clientWidth / 2, y * box.scrollHeight - box.clientHeight / 2);
    find("zoom-reset").textContent = `${Math.round(100 * zoom)} %`;
    find("zoom-out").disabled = zoom === 1;
    find("zoom-in").disabled = zoom === ZOOMS.at(-1);
    if (this.#dialog.open) this.#refocus();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "range") return;
    const zoomed = event.target.id === "viewer-picture" && this.#zoom > 1; // there the arrows scroll
    const keys = { "+": "zoom-in", "-": "zoom-out", 0: "zoom-reset", c: "compare", f: "favourite" };
    if (!zoomed) Object.assign(keys, { ArrowLeft: "previous", ArrowRight: "next" });
    if (!(event.key in keys)) return;
    event.preventDefault();
    find(keys[event.key]).click();
  }
}

/** An image with its regions; the one above is cut by the slider of a comparison. */
function layers({ url, job }, above) {
  const all = [make("img", { src: url, alt: job.title })];
  if (job.overlay) all.push(make("img", { class: "overlay", alt: "", src: job.overlay }));
  return make("div", { class: above ? "layer above" : "layer" }, ...all);
}

function facts(body) {
  const rows = [["Seed", body.seed], ...FACTS.map(([name, title]) => [title, body[name]])];
  for (const one of body.regions ?? []) rows.push(["Region", `${one.phrase} × ${one.weight ?? 1}`]);
  return rows
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .flatMap(([title, value]) => [make("dt", {}, title), make("dd", {}, String(value))]);
}
