// The pictures of this session, newest first.

import { find, icon, make, reveal } from "./dom.js";
import { keep } from "./files.js";

/** Pixels of new pictures that must be on the screen: else it moves to them, as on a phone. */
const SEEN = 240;

/** Groups of pictures, one a request; `onOpen` and `onAgain` are called with a picture: {png, url, seed, job}. */
export class Gallery {
  constructor({ onOpen, onAgain }) {
    this.onOpen = onOpen;
    this.onAgain = onAgain;
    const box = find("overlay");
    box.addEventListener("change", () => find("gallery").classList.toggle("places", box.checked));
  }

  /** Places for the pictures of a request that has begun. */
  begin(job) {
    find("empty").hidden = true;
    const cells = Array.from({ length: job.body.n }, () => cell(job));
    const grid = make("div", { class: "grid" }, ...cells);
    const title = make("p", { class: "title" }, job.title);
    const group = make("article", { class: "run", "aria-busy": "true", "aria-label": job.title }, title, grid);
    find("gallery").prepend(group);
    if (group.getBoundingClientRect().top > innerHeight - SEEN) reveal(group, "end");
    return {
      preview: (index, png) => preview(cells[index], png),
      done: (index, png, seed) => this.#done(cells[index], { png, seed, job }),
      end: () => {
        group.removeAttribute("aria-busy");
        for (const one of cells) if (!one.classList.contains("done")) one.remove();
        if (!grid.childElementCount) group.remove();
        find("empty").hidden = find("gallery").querySelector(".run") !== null;
      },
    };
  }

  #done(figure, picture) {
    picture.url = URL.createObjectURL(picture.png);
    const image = figure.querySelector("img.result");
    URL.revokeObjectURL(image.src);
    image.src = picture.url;
    image.alt = `${picture.job.title}, seed ${picture.seed}`;
    figure.classList.add("done");
    const open = figure.querySelector("button");
    open.disabled = false;
    open.setAttribute("aria-label", `Open: ${image.alt}`);
    open.addEventListener("click", () => this.onOpen(picture));
    figure.append(
      make(
        "figcaption",
        {},
        make("span", { class: "quiet", title: "Seed" }, String(picture.seed)),
        tool("again", "Reuse settings", () => this.onAgain(picture)),
        tool("save", "Download with settings", () => download(picture)),
      ),
    );
  }
}

export function download(picture) {
  const words = picture.job.title.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  keep(picture.png, `${words.join("-").slice(0, 40) || "picture"}-${picture.seed}.png`);
}

function tool(name, text, onclick) {
  return make("button", { type: "button", class: "plain", "aria-label": text, title: text, onclick }, icon(name));
}

function cell(job) {
  const image = make("img", { class: "result", alt: "" });
  const open = make("button", { type: "button", class: "open", disabled: true, "aria-label": "Not finished yet" }, image);
  if (job.overlay) open.append(make("img", { class: "overlay", alt: "", src: job.overlay.toDataURL() }));
  return make("figure", {}, open);
}

function preview(figure, png) {
  const image = figure.querySelector("img.result");
  const old = image.src;
  image.src = URL.createObjectURL(png);
  if (old) URL.revokeObjectURL(old);
  figure.classList.add("coming");
}
