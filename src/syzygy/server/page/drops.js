// Files that are dropped on the page, or chosen.

import { find } from "./dom.js";

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** Files dropped on an element of `places` (id → what to do with a file) go there, all others to `otherwise`. */
export function prepareDrops(places, otherwise) {
  let depth = 0;
  const sheet = find("drop-sheet");
  const placeOf = (event) => Object.keys(places).find((id) => find(id).contains(event.target));
  const leave = () => {
    depth = 0;
    sheet.hidden = true;
    for (const id of Object.keys(places)) find(id).classList.remove("over");
  };
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth++;
    sheet.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event) && --depth <= 0) leave();
  });
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const place = placeOf(event);
    for (const id of Object.keys(places)) find(id).classList.toggle("over", id === place);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    const place = placeOf(event);
    leave();
    if (file) (places[place] ?? otherwise)(file);
  });
}

/** Ask for a file. */
export function chooseFile(take) {
  const field = find("file");
  field.value = "";
  field.onchange = () => field.files[0] && take(field.files[0]);
  field.click();
}
