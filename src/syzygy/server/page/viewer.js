// One picture, large, with what can be done with it.

import { find, make } from "./dom.js";
import { download } from "./gallery.js";

const FACTS = [
  ["negative_prompt", "Negative prompt"], ["steps", "Steps"], ["guidance_scale", "Guidance"], ["sampler", "Sampler"],
  ["region_strength", "Region strength"], ["style_guidance", "Style strength"], ["size", "Size"],
];

/** Opens pictures; `actions` are [text, whether it is possible, what it does with a picture]. */
export class Viewer {
  #dialog = find("viewer");

  constructor(actions) {
    this.actions = [...actions, ["Download with settings", () => true, download]];
    find("viewer-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  open(picture) {
    const { job, seed, url } = picture;
    const layers = [make("img", { src: url, alt: job.title })];
    if (job.overlay) layers.push(make("img", { class: "overlay", alt: "", src: job.overlay.toDataURL() }));
    find("viewer-picture").replaceChildren(...layers);
    find("viewer-picture").classList.toggle("places", find("overlay").checked);
    find("viewer-title").textContent = job.title;
    find("viewer-facts").replaceChildren(...facts({ ...job.body, seed }));
    const buttons = this.actions
      .filter(([, possible]) => possible(picture))
      .map(([text, , act]) => make("button", { type: "button", onclick: () => this.#act(act, picture) }, text));
    buttons[0].className = "main-button";
    find("viewer-actions").replaceChildren(...buttons);
    this.#dialog.showModal();
    buttons[0].focus({ preventScroll: true }); // the picture comes first
  }

  #act(act, picture) {
    if (act !== download) this.#dialog.close();
    act(picture);
  }
}

function facts(body) {
  const rows = [["Seed", body.seed], ...FACTS.map(([name, title]) => [title, body[name]])];
  for (const one of body.regions ?? []) rows.push(["Region", `${one.phrase} × ${one.weight ?? 1}`]);
  return rows
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .flatMap(([title, value]) => [make("dt", {}, title), make("dd", {}, String(value))]);
}
