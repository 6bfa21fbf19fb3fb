// Errors and warnings in the server's words, next to their cause. They go when the cause does.

import { find, icon, make, reveal } from "./dom.js";
import { showTab } from "./tabs.js";

const FEW = 2;
const PARTS = { regions: "regions-note" };

/** Show a text in a place for notes, or remove it. */
export function note(element, text) {
  element.textContent = text ? sentence(text) : "";
  element.hidden = !text;
}

/** The first few warnings of the server about a prompt. */
export function warn(warnings) {
  const texts = warnings.slice(0, FEW).map(sentence);
  if (warnings.length > FEW) texts.push(`And ${warnings.length - FEW} more.`);
  note(find("warnings"), texts.join(" "));
}

/** Remove all notes inside an element. */
export function clearNotes(part = document) {
  for (const one of part.querySelectorAll(".note")) note(one, "");
  for (const one of part.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  if (part === document) warn([]);
}

/** A note about a field goes when the field changes, and one about the prompt or its regions when these change. */
export function prepareNotes(regions) {
  const changed = (event) => {
    if (event.target.id === "prompt") warn([]);
    const part = event.target.closest("[data-param]");
    if (part) clearNotes(part);
    note(find("go-note"), "");
  };
  for (const name of ["input", "change"]) find("main").addEventListener(name, changed);
  let [prompt, list] = [regions.prompt, regions.list];
  regions.addEventListener("change", () => {
    if (regions.prompt === prompt && regions.list === list) return;
    [prompt, list] = [regions.prompt, regions.list];
    clearNotes(find("phrases-part"));
  });
}

/**
 * Show an error where it belongs: `param` names a field of the request (`regions.0.mask`), `regionIds` says which rows were sent.
 * What belongs to no field is shown next to the button `otherwise`.
 */
export function showError(error, regionIds, otherwise = find("go-note")) {
  const [name, index] = (error.param ?? "").replaceAll("[", ".").split(/[.\]]+/);
  const row = name === "regions" && document.querySelector(`[data-region="${regionIds[Number(index)]}"] .note`);
  const place = (index && row) || placeOf(name) || otherwise;
  note(place, error.message);
  const field = name && find(name);
  if (field && place !== otherwise) {
    field.setAttribute("aria-invalid", "true");
  }
  if (place.closest(".edit")) showTab("edit");
  place.closest("details")?.setAttribute("open", "");
  reveal(place);
}

function placeOf(name) {
  if (PARTS[name]) return find(PARTS[name]);
  const part = name && document.querySelector(`[data-param="${CSS.escape(name)}"]`);
  if (!part || part.hidden) return null;
  if (!part.querySelector(".note")) part.append(make("span", { class: "note", role: "alert" }));
  return part.querySelector(".note");
}

let leaves = null;

/** A line for the whole page; it leaves by itself if `seconds` are given. `action` is a button's [text, act]. */
export function notice(text, seconds = 0, action = null) {
  const line = find("notice");
  const close = () => (line.hidden = true);
  const act = () => (close(), action[1]());
  find("notice-text").textContent = text;
  find("notice-actions").replaceChildren(
    ...(action ? [make("button", { type: "button", class: "plain", onclick: act }, action[0])] : []),
    make("button", { type: "button", class: "plain", "aria-label": "Dismiss", onclick: close }, icon("close")),
  );
  line.hidden = !text;
  clearTimeout(leaves);
  if (seconds) leaves = setTimeout(close, 1000 * seconds);
}

/** The server's sentences begin small, as on a command line. */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
