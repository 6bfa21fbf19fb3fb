// The list of phrases under the prompt: colour, state, strength.

import { byFinger, find, icon, make, say } from "./dom.js";
import { COLOURS } from "./regions.js";

const STRONGEST = 3;

/** Keeps the list as the regions are; `onSettled` is called where a phrase was chosen to be drawn. */
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
    find("prompt-help").textContent = regions.full ? `At most ${regions.most} regions are allowed here: remove one first.` : help;
  };
  regions.addEventListener("change", draw);
  draw();
}

/** Puts items into a list, touching none that is in its place: what has the focus keeps it. */
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

/** One phrase's row: {show(region)} brings it up to date and returns its element. */
function row(regions, { id, phrase, colour }) {
  const state = make("span", { class: "state" });
  const choose = make(
    "button",
    { type: "button", class: "phrase", onclick: () => regions.choose(id) },
    make("span", { class: "swatch" }),
    make("span", { class: "words" }, phrase),
    state,
  );
  const value = make("output", { class: "value" });
  const range = { type: "range", min: 0, max: STRONGEST, step: 0.1 };
  const strength = make("input", { ...range, "aria-label": `Strength of ${phrase}`, title: "Strength" });
  strength.addEventListener("input", () => (value.value = `× ${Number(strength.value).toFixed(1)}`));
  strength.addEventListener("change", () => regions.weigh(id, Number(strength.value)));
  const leave = make("button", { type: "button", class: "plain remove", "aria-label": `Remove ${phrase}`, title: "Remove" }, icon("close"));
  leave.addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    regions.remove(id);
    say(`${phrase} removed`);
    (next?.querySelector("button") ?? find(byFinger() ? "canvas" : "prompt")).focus({ preventScroll: true });
  });
  const note = make("p", { class: "note", role: "alert", hidden: true });
  const item = make("li", {}, choose, make("div", { class: "strength" }, strength, value), leave, note);
  item.dataset.region = id;
  item.style.setProperty("--colour", COLOURS[colour]);
  const show = (region) => {
    choose.setAttribute("aria-pressed", String(regions.active === id && !regions.candidate));
    state.textContent = stateOf(regions, region);
    item.classList.toggle("absent", !regions.isIn(region));
    strength.max = Math.max(STRONGEST, region.weight);
    strength.value = region.weight;
    value.value = `× ${region.weight.toFixed(1)}`;
    return item;
  };
  return { show };
}

function stateOf(regions, region) {
  if (!regions.isIn(region)) return "not in the prompt";
  return regions.centre(region) ? "" : "not drawn yet";
}
