// On a phone the page shows either what is edited or the images.

import { find } from "./dom.js";

const TABS = ["edit", "images"];

export function prepareTabs() {
  for (const tab of TABS) find(`tab-${tab}`).addEventListener("click", () => showTab(tab));
  showTab("edit");
}

/** Shows a tab; on wider screens both are there. */
export function showTab(shown) {
  const changed = find("main").dataset.tab !== shown;
  find("main").dataset.tab = shown;
  for (const tab of TABS) find(`tab-${tab}`).setAttribute("aria-pressed", String(tab === shown));
  if (changed && find("tabs").checkVisibility()) scrollTo(0, 0);
}
