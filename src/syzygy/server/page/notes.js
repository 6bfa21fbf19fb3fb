// What went wrong, in the server's words, next to what caused it.

import { find, make, reveal } from "./dom.js";

const FEW = 2;
const PARTS = { prompt: "prompt-note", regions: "regions-note" };

/** Show a text in a place for notes, or remove it. */
export function note(element, text) {
  element.textContent = text ? sentence(text) : "";
  element.hidden = !text;
}

/** What the server remarks of a prompt, the first few of it. */
export function warn(warnings) {
  const texts = warnings.slice(0, FEW).map(sentence);
  if (warnings.length > FEW) texts.push(`And ${warnings.length - FEW} more.`);
  note(find("warnings"), texts.join(" "));
}

/** All notes are of the past. */
export function clearNotes() {
  warn([]);
  for (const one of document.querySelectorAll(".note")) note(one, "");
  for (const one of document.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
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
    field.addEventListener("input", () => field.removeAttribute("aria-invalid"), { once: true });
  }
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

/** A line for the whole page; it leaves by itself when `seconds` are given. */
export function notice(text, seconds = 0) {
  const line = find("notice");
  line.textContent = text;
  line.hidden = !text;
  clearTimeout(line.leaves);
  if (seconds) line.leaves = setTimeout(() => (line.hidden = true), 1000 * seconds);
}

/** The server's sentences begin small, as on a command line. */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
