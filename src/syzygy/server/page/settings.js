// The form: what a request holds in addition to prompt, regions and sources.

import { find, make } from "./dom.js";
import { reduced } from "./files.js";
import { characters, countCharacters } from "./hints.js";
import { clearNotes, showError } from "./notes.js";
import { lock, reuseSeed } from "./seed.js";

const NUMBERS = [["steps", "Steps"], ["guidance_scale", "Guidance"]];
const FEW = 4;
const NUMERIC = ["integer", "number"];

/** A mistake that the page finds itself. */
export class Mistake extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

/** The form's fields, as the model and its server have them. */
export class Settings {
  /** The style reference as a data URL, or null. */
  style = null;

  constructor({ capabilities, limits }, onShape) {
    const { defaults, samplers, size, regions, style } = capabilities;
    this.capabilities = capabilities;
    this.defaults = defaults;
    this.onShape = onShape;
    find("n").max = limits.number;
    find("n").value = Math.min(FEW, limits.number);
    find("steps").max = limits.steps;
    for (const [name] of NUMBERS) find(name).value = defaults[name] ?? "";
    if (defaults.negative_prompt) find("negative_prompt").placeholder = `default: ${defaults.negative_prompt}`;
    find("region_strength").value = defaults.region_strength ?? "";
    find("style_guidance").placeholder = defaults.style_guidance ?? "same as guidance";
    this.longest = limits.prompt;
    for (const id of ["prompt", "negative_prompt"]) countCharacters(id, limits.prompt);
    this.options = Object.entries(capabilities.options ?? {});
    for (const [name, option] of this.options) find("advanced-fields").append(optionField(name, option));
    find("sampler").append(...samplers.map((name) => make("option", { value: name }, name)));
    find("sampler").value = defaults.sampler ?? "";
    show("sampler", samplers.length > 0);
    show("size", size === null);
    show("region_strength", regions);
    find("style-part").hidden = !style;
    if (size) onShape(size.split("x").map(Number));
    find("size").addEventListener("change", () => this.#shape());
    find("style-remove").addEventListener("click", () => {
      this.setStyle(null);
      find("style-choose").focus();
    });
    this.own = this.#advanced();
    find("advanced").addEventListener("input", () => this.#count());
  }

  /** The fields under "Advanced" with their values. */
  #advanced() {
    return [...find("advanced").querySelectorAll("input, select")].map((one) => [one, one.value]);
  }

  /** How many of them differ from the model's defaults: a closed fold must not hide it. */
  #count() {
    const changed = this.own.filter(([field, value]) => field.value !== value).length;
    find("advanced-changed").textContent = changed ? `(${changed} changed)` : "";
  }

  /** Back to the defaults. */
  reset() {
    for (const [field, value] of this.own) field.value = value;
    clearNotes(find("advanced"));
    this.#count();
  }

  /** A prompt that is not longer than the server allows. */
  checked(name, text) {
    const over = characters(text) - this.longest;
    if (over > 0) throw new Mistake(name, `The text is ${over} characters too long: at most ${this.longest} are allowed here.`);
    return text;
  }

  /** Fields that every request has. */
  get common() {
    const found = { n: number("n", "Images") };
    const seed = find("seed").value.trim();
    if (seed) found.seed = seedOf(seed);
    for (const [name, title] of NUMBERS) if (find(name).value !== "") found[name] = number(name, title);
    if (find("sampler").value) found.sampler = find("sampler").value;
    const without = this.checked("negative_prompt", find("negative_prompt").value.trim());
    if (without) found.negative_prompt = without;
    for (const [name, { type }] of this.options) {
      const value = find(name).value.trim();
      if (value) found[name] = NUMERIC.includes(type) ? number(name, titleOf(name)) : type === "boolean" ? value === "true" : value;
    }
    const size = find("size").value.trim();
    if (size && size !== "auto") found.size = size;
    return found;
  }

  /** Fields for regions and for a style, if there are any. */
  special(drawn) {
    const found = {};
    if (drawn && find("region_strength").value !== "") found.region_strength = number("region_strength", "Region strength");
    if (this.style) found.style = this.style;
    const content = find("style_content").value.trim();
    if (this.style && this.capabilities.mixes && content) found.style_content = this.checked("style_content", content);
    const guided = this.style && this.capabilities.style_guidance && find("style_guidance").value !== "";
    if (guided) found.style_guidance = number("style_guidance", "Style strength");
    return found;
  }

  /** Fill the fields with a request's values. Its number of images and its seed are left out if they are undefined. */
  restore(body) {
    if (body.n !== undefined) find("n").value = body.n;
    if (body.seed !== undefined) reuseSeed(body.seed);
    for (const [name] of NUMBERS) find(name).value = body[name] ?? this.defaults[name] ?? "";
    for (const [name] of this.options) find(name).value = body[name] ?? "";
    find("sampler").value = body.sampler ?? this.defaults.sampler ?? "";
    find("negative_prompt").value = body.negative_prompt ?? "";
    find("region_strength").value = body.region_strength ?? this.defaults.region_strength ?? "";
    for (const name of ["style_content", "style_guidance"]) find(name).value = body[name] ?? "";
    find("size").value = body.size && body.size !== "auto" ? body.size : "";
    this.setStyle(body.style ? whole(body.style) : null);
    this.#restored();
  }

  #restored() {
    this.#shape();
    this.#count();
    for (const id of ["n", "negative_prompt"]) find(id).dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** The fields as they are, for the draft. */
  get draft() {
    const values = Object.fromEntries(this.#all().map((one) => [one.id, one.value]));
    return { values, locked: find("seed-lock").getAttribute("aria-pressed") === "true", style: this.style };
  }

  set draft({ values, locked, style }) {
    for (const one of this.#all()) if (one.id in values) one.value = values[one.id];
    for (const one of document.querySelectorAll(".area-settings select")) if (one.selectedIndex < 0) one.selectedIndex = 0;
    lock(locked);
    this.setStyle(this.capabilities.style ? style : null);
    this.#restored();
  }

  #all() {
    return [...document.querySelectorAll("#fields :is(input, select), #advanced :is(input, select), #style-part input")];
  }

  setStyle(url) {
    this.style = url;
    if (!url) find("style_content").value = "";
    clearNotes(find("style-part"));
    const picture = find("style-picture");
    if (url) picture.src = url;
    else picture.removeAttribute("src");
    for (const name of ["style-picture", "style-remove"]) find(name).hidden = !url;
    find("style-content-field").hidden = !url || !this.capabilities.mixes;
    find("style-guidance-field").hidden = !url || !this.capabilities.style_guidance;
    find("style-text").hidden = Boolean(url);
    find("style-choose").textContent = url ? "Another…" : "Choose…";
  }

  async takeStyle(file) {
    try {
      this.setStyle(await reduced(file));
      find("style_content").value = "";
    } catch (error) {
      showError(new Mistake("style", error.message), []);
    }
  }

  #shape() {
    const found = /^([1-9]\d*)x([1-9]\d*)$/.exec(find("size").value.trim());
    if (!find("size").closest("[data-param]").hidden) this.onShape(found ? [Number(found[1]), Number(found[2])] : [1, 1]);
  }
}

const titleOf = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

/** The field of a decoder's option, from its JSON schema; empty means the default. */
function optionField(name, { type, description, minimum, maximum, enum: choices }) {
  const values = type === "boolean" ? ["true", "false"] : choices;
  const numeric = { type: "number", min: minimum ?? "", max: maximum ?? "", step: type === "integer" ? 1 : "any" };
  const input = values
    ? make("select", { id: name }, ...["", ...values].map((value) => make("option", { value }, value || "default")))
    : make("input", { id: name, placeholder: "default", autocomplete: "off", ...(NUMERIC.includes(type) ? numeric : { type: "text" }) });
  input.setAttribute("aria-describedby", `${name}-help`);
  const help = make("p", { id: `${name}-help`, class: "quiet small" }, description ?? "");
  return make("div", { class: "field explained", "data-param": name }, make("label", { for: name }, titleOf(name)), input, help);
}

function show(name, there) {
  find(name).closest("[data-param]").hidden = !there;
}

function number(name, title) {
  const field = find(name);
  if (field.value === "" || !field.checkValidity()) {
    const range = [field.min && `at least ${field.min}`, field.max && `at most ${field.max}`].filter(Boolean).join(" and ");
    throw new Mistake(name, `${title} must be a ${field.step === "1" ? "whole " : ""}number${range && ` of ${range}`}.`);
  }
  return Number(field.value);
}

function seedOf(text) {
  const seed = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(seed)) {
    throw new Mistake("seed", `The seed must be a whole number up to ${Number.MAX_SAFE_INTEGER}. Leave it empty for a new one each time.`);
  }
  return seed;
}

/** Base64 as a data URL; browsers find out which kind of image it is. */
export const whole = (text) => (text.startsWith("data:") ? text : `data:image/png;base64,${text}`);
