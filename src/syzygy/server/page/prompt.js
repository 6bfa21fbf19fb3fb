// The prompt: a text field, and behind it the same text with its phrases in their colours.

import { find, make } from "./dom.js";
import { cut, places, snapped } from "./phrases.js";
import { COLOURS } from "./regions.js";

/** Joins the text field to the regions; `onEnter` is called for Ctrl+Enter. */
export function preparePrompt(regions, onEnter) {
  const field = find("prompt");
  const tell = () => {
    const words = document.activeElement === field ? snapped(field.value, field.selectionStart, field.selectionEnd) : null;
    const phrase = words && field.value.slice(...words);
    const wanted = regions.candidate?.phrase ?? null;
    if (field.value !== regions.prompt || (document.activeElement === field && phrase !== wanted)) {
      regions.setPrompt(field.value, words, field.selectionEnd);
    }
  };
  field.addEventListener("input", tell);
  field.addEventListener("select", tell);
  field.addEventListener("keyup", tell);
  field.addEventListener("pointerup", () => setTimeout(tell));
  document.addEventListener("selectionchange", tell);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      onEnter();
    }
  });
  regions.addEventListener("change", () => colour(regions));
  field.addEventListener("scroll", () => (find("mirror").scrollTop = field.scrollTop));
}

/** Another text, as if typed. */
export function setPrompt(text) {
  find("prompt").value = text;
  find("prompt").dispatchEvent(new Event("input", { bubbles: true }));
}

function colour(regions) {
  const text = regions.prompt;
  const shown = regions.candidate ? [...regions.list, regions.candidate] : regions.list;
  const marks = shown.flatMap((one) => places(text, one.phrase).map(([start, end]) => ({ start, end, one })));
  const pieces = cut(text, marks).map(([piece, mark]) => {
    if (!mark) return document.createTextNode(piece);
    const element = make("mark", { class: mark.one.id === regions.active ? "active" : null }, piece);
    element.style.setProperty("--colour", COLOURS[mark.one.colour]);
    return element;
  });
  find("mirror").replaceChildren(...pieces, "\n");
}
