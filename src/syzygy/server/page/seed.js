// The seed: empty for a new one each time, drawn by the dice, kept by the lock.

import { find } from "./dom.js";

const SEEDS = 2 ** 32;

const isLocked = () => find("seed-lock").getAttribute("aria-pressed") === "true";
let last = null; // of the latest request

/** The field's buttons. A seed that is typed is kept; one that was drawn is used once, unless it is locked. */
export function prepareSeed() {
  find("seed").addEventListener("input", () => lock(find("seed").value !== ""));
  find("seed-dice").addEventListener("click", () => fill(crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS));
  find("seed-lock").addEventListener("click", () => {
    if (isLocked()) {
      fill("");
      lock(false);
    } else {
      if (!find("seed").value) fill(last ?? crypto.getRandomValues(new Uint32Array(1))[0]);
      lock(true);
    }
  });
}

function fill(value) {
  find("seed").value = value;
  find("seed").dispatchEvent(new Event("filled", { bubbles: true })); // by the page, so notes about the request stay
}

export function lock(kept) {
  find("seed-lock").setAttribute("aria-pressed", String(kept));
}

/** Use this seed from now on. */
export function reuseSeed(seed) {
  fill(seed);
  lock(true);
}

/** A request's first image is there: its seed is the latest one, and a seed that is not locked was used. */
export function seedUsed(seed) {
  last = seed;
  if (!isLocked()) fill("");
}
