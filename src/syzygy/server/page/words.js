// On touch screens, the words of the prompt as buttons: a finger taps what a mouse would select.

import { byFinger, find, make, say } from "./dom.js";
import { places, words } from "./phrases.js";
import { COLOURS } from "./regions.js";

const HELP = "Tap words, then draw on the canvas where they should appear.";

/** Keeps the buttons up to date with prompt and regions. */
export function prepareWords(regions) {
  const part = find("words");
  let text = "";
  let all = [];
  let owners = []; // of each word: the region or the candidate that holds it, or null
  let chosen = null; // the first and the last word of the candidate
  const range = ([first, last]) => [all[first][0], all[last][1]];
  const phrase = (chosen) => text.slice(...range(chosen));
  const tap = (at) => {
    find("prompt").blur(); // a phone's keyboard gives way to the canvas
    const owner = owners[at];
    if (owner && owner !== wantedOf(regions) && !(chosen && neighbours(chosen, at))) {
      regions.choose(owner.id);
    } else {
      chosen = tapped(chosen, at);
      regions.setPrompt(text, chosen && range(chosen));
    }
    say(regions.full ? find("prompt-help").textContent : `Chosen: ${wantedOf(regions)?.phrase ?? "nothing"}.`);
  };
  const draw = () => {
    if (!byFinger()) return;
    if (regions.prompt !== text) {
      [text, chosen] = [regions.prompt, null];
      all = words(text);
      part.replaceChildren(...all.map(([start, end], i) => word(text.slice(start, end), () => tap(i))));
      part.hidden = !all.length;
    }
    const { candidate } = regions;
    if (!candidate) chosen = null;
    else if (!chosen || phrase(chosen) !== candidate.phrase) chosen = within(all, places(text, candidate.phrase)[0]);
    owners = ownersOf(regions, text, all);
    owners.forEach((owner, i) => show(part.children[i], regions, owner));
  };
  if (byFinger()) find("prompt-help").textContent = HELP;
  regions.addEventListener("change", draw);
  matchMedia("(pointer: coarse)").addEventListener("change", draw);
}

/** The first and the last word after a tap: a neighbour joins, an end leaves, any other begins anew; null for none. */
export function tapped(chosen, at) {
  if (!chosen) return [at, at];
  const [first, last] = chosen;
  if (at === first && at === last) return null;
  if (at === first) return [first + 1, last];
  if (at === last) return [first, last - 1];
  return neighbours(chosen, at) ? [Math.min(first, at), Math.max(last, at)] : [at, at];
}

const neighbours = ([first, last], at) => at === first - 1 || at === last + 1;

/** What is drawn next. */
const wantedOf = (regions) => regions.candidate ?? regions.target;

/** What each word is part of, what is drawn next before all others. */
function ownersOf(regions, text, all) {
  const wanted = wantedOf(regions);
  const known = [...new Set(wanted ? [wanted, ...regions.list] : regions.list)].map((one) => [one, places(text, one.phrase)]);
  return all.map(([start, end]) => {
    const found = known.find(([, held]) => held.some(([from, to]) => from <= start && end <= to));
    return found?.[0] ?? null;
  });
}

/** The first and the last word that lie at a place; null for none. */
function within(all, place) {
  const inside = all.flatMap(([start, end], i) => (place && place[0] <= start && end <= place[1] ? [i] : []));
  return inside.length ? [inside[0], inside.at(-1)] : null;
}

/** A button that the tabulator passes over: keys select in the prompt itself. */
function word(text, onclick) {
  return make("button", { type: "button", class: "word", tabindex: -1, onclick }, text);
}

function show(button, regions, owner) {
  button.setAttribute("aria-pressed", String(owner !== null && owner === wantedOf(regions)));
  button.classList.toggle("placed", owner !== null);
  button.classList.toggle("candidate", owner !== null && owner === regions.candidate);
  button.style.setProperty("--colour", owner ? COLOURS[owner.colour] : null);
}
