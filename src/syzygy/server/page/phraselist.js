// The list of regions under the prompt: colour, phrase, state, strength.

import { byFinger, find, icon, make, say } from "./dom.js";
import { words } from "./phrases.js";
import { COLOURS } from "./regions.js";

const STRONGEST = 3;
const LONGEST_OFFER = 2;

/** Keeps the list up to date; `onSettled` is called when a phrase was chosen for drawing. */
export function preparePhraseList(regions, onSettled) {
  const list = find("phrases");
  const help = find("prompt-help").textContent;
  const rows = new Map();
  const draw = () => {
    const kept = new Set(regions.list.map((one) => one.id));
    for (const id of [...rows.keys()]) if (!kept.has(id)) rows.delete(id);
    const items = regions.list.map((one) => {
      if (!rows.has(one.id)) rows.set(one.id, row(regions, one));
      return rows.get(one.id).show(one);
    });
    if (regions.candidate) items.push(candidate(regions, onSettled));
    place(list, items);
    find("prompt-help").hidden = items.length > 0 && !regions.full;
    find("prompt-help").textContent = regions.full ? `At most ${regions.most} regions are allowed here. Remove one first.` : help;
  };
  regions.addEventListener("change", draw);
  draw();
}

/** Puts items into a list without touching those in place, so that the focus stays where it is. */
function place(list, items) {
  for (const old of [...list.children]) if (!items.includes(old)) old.remove();
  items.forEach((item, i) => {
    if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
  });
}

function candidate(regions, onSettled) {
  const { phrase, colour } = regions.candidate;
  const take = make(
    "button",
    {
      type: "button",
      class: "phrase",
      onclick: () => {
        regions.accept();
        onSettled();
      },
    },
    make("span", { class: "swatch" }),
    make("span", { class: "words" }, phrase),
    make("span", { class: "state" }, "draw it now"),
  );
  const item = make("li", { class: "candidate" }, take);
  item.style.setProperty("--colour", COLOURS[colour]);
  return item;
}

/** One region's row: {show(region)} updates it and returns its element. */
function row(regions, { id, colour }) {
  const phrase = make("span", { class: "words" });
  const state = make("span", { class: "state" });
  const onclick = () => regions.choose(id);
  const choose = make("button", { type: "button", class: "phrase", onclick }, make("span", { class: "swatch" }), phrase, state);
  const value = make("output", { class: "value" });
  const strength = make("input", { type: "range", min: 0, max: STRONGEST, step: 0.1, title: "Strength" });
  strength.addEventListener("input", () => (value.value = `× ${Number(strength.value).toFixed(1)}`));
  strength.addEventListener("change", () => regions.set(id, { weight: Number(strength.value) }));
  const hide = make("button", { type: "button", class: "plain quiet-button" });
  hide.addEventListener("click", () => regions.set(id, { hidden: hide.getAttribute("aria-pressed") === "false" }));
  const leave = make("button", { type: "button", class: "plain quiet-button", title: "Remove" }, icon("close"));
  leave.addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    regions.remove(id);
    say(`${phrase.textContent} removed`);
    (next?.querySelector("button") ?? find(byFinger() ? "canvas" : "prompt")).focus({ preventScroll: true });
  });
  const attach = make("select");
  attach.addEventListener("change", () => {
    regions.attach(id, attach.value);
    say(`Attached to ${attach.value}.`);
    choose.focus({ preventScroll: true });
  });
  const lost = make("p", { class: "lost small" }, "Not in the prompt, so it is not used. ", attach);
  const note = make("p", { class: "note", role: "alert", hidden: true });
  const item = make("li", {}, choose, make("div", { class: "strength" }, strength, value), hide, leave, lost, note);
  item.dataset.region = id;
  item.style.setProperty("--colour", COLOURS[colour]);
  const show = (region) => {
    const isIn = regions.isIn(region);
    phrase.textContent = region.phrase;
    strength.ariaLabel = `Strength of ${region.phrase}`;
    leave.ariaLabel = `Remove ${region.phrase}`;
    attach.ariaLabel = `Attach the region of ${region.phrase} to`;
    hide.ariaLabel = `Hide ${region.phrase}`;
    hide.title = region.hidden ? "Show" : "Hide: a hidden region is not used";
    hide.setAttribute("aria-pressed", String(region.hidden));
    hide.replaceChildren(icon(region.hidden ? "hidden" : "shown"));
    choose.setAttribute("aria-pressed", String(regions.active === id && !regions.candidate));
    state.textContent = stateOf(regions, region);
    item.classList.toggle("absent", !isIn);
    item.classList.toggle("off", !regions.isShown(region));
    lost.hidden = isIn;
    if (!isIn) attach.replaceChildren(make("option", { value: "" }, "Attach to …"), ...offers(regions).map((one) => make("option", {}, one)));
    strength.max = Math.max(STRONGEST, region.weight);
    strength.value = region.weight;
    value.value = `× ${region.weight.toFixed(1)}`;
    return item;
  };
  return { show };
}

/** Phrases that a region can be attached to: what is selected, then one or two words that no region has. */
function offers(regions) {
  const { prompt, candidate, list } = regions;
  const all = words(prompt);
  const taken = new Set(list.map((one) => one.phrase));
  const found = candidate ? [candidate.phrase] : [];
  all.forEach(([start], first) => {
    for (let last = first; last < Math.min(first + LONGEST_OFFER, all.length); last++) found.push(prompt.slice(start, all[last][1]));
  });
  return [...new Set(found)].filter((one) => !taken.has(one));
}

function stateOf(regions, region) {
  if (!regions.isIn(region)) return "";
  if (regions.solo !== null && regions.solo !== region.id) return "off";
  if (region.hidden && regions.solo === null) return "hidden";
  if (!regions.centre(region)) return "not drawn yet";
  return regions.solo === region.id ? "solo" : "";
}
