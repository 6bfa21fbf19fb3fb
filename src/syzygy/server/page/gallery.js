// The images of this session, the newest first.

import { find, icon, make, reveal, say } from "./dom.js";
import { keep } from "./files.js";
import { notice } from "./notes.js";
import { zipped } from "./zip.js";

/** If fewer pixels of new images are on the screen, it scrolls to them. */
const SEEN = 240;
const UNDO_SECONDS = 10;

/**
 * Groups of images, one for each request. A picture is {id, run, png, url, seed, favourite, job, figure}; `on` has the listeners
 * open, reuse, put and remove, which get a picture.
 */
export class Gallery {
  #pictures = new Map();

  constructor(on) {
    this.on = on;
    const gallery = find("gallery");
    find("overlay").addEventListener("change", () => gallery.classList.toggle("places", find("overlay").checked));
    find("favourites").addEventListener("change", () => this.#count());
    find("download-all").addEventListener("click", () => this.#downloadAll());
    this.#count();
  }

  /** All that are not deleted, in the order of the page. */
  get pictures() {
    const figures = [...find("gallery").querySelectorAll("figure.done:not([hidden])")];
    return figures.map((one) => this.#pictures.get(one));
  }

  /** Those that are shown. */
  get shown() {
    return find("favourites").checked ? this.pictures.filter((one) => one.favourite) : this.pictures;
  }

  /** Room for the images of a request that has begun. */
  begin(job) {
    const run = Date.now() + Math.random();
    const cells = Array.from({ length: job.body.n }, () => cell(job));
    const group = this.#group(job, cells);
    group.setAttribute("aria-busy", "true");
    find("gallery").prepend(group);
    this.#count();
    if (group.getBoundingClientRect().top > innerHeight - SEEN) reveal(group, "end");
    return {
      preview: (index, png) => preview(cells[index], png),
      done: (index, png, seed) => {
        const picture = { id: `${run}-${String(index).padStart(3, "0")}`, run, png, seed, favourite: false, job };
        this.#done(cells[index], picture);
        this.on.put(picture);
      },
      end: () => {
        group.removeAttribute("aria-busy");
        for (const one of cells) if (!one.classList.contains("done")) one.remove();
        if (!group.querySelector("figure")) group.remove();
        this.#count();
      },
    };
  }

  /** Images that were kept. */
  restore(kept) {
    const runs = Map.groupBy(kept, (one) => one.run);
    for (const run of [...runs.keys()].sort((a, b) => a - b)) {
      const pictures = runs.get(run).sort((a, b) => (a.id < b.id ? -1 : 1));
      const cells = pictures.map((one) => cell(one.job));
      pictures.forEach((picture, i) => this.#done(cells[i], picture));
      find("gallery").prepend(this.#group(pictures[0].job, cells));
    }
    this.#count();
  }

  /** Delete a picture; a notice offers to undo it. */
  remove(picture) {
    const gone = (hidden) => {
      picture.figure.hidden = hidden;
      this.#count();
    };
    gone(true);
    this.on.remove(picture);
    notice("The image is deleted.", UNDO_SECONDS, ["Undo", () => (gone(false), this.on.put(picture))]);
  }

  clear() {
    for (const picture of this.#pictures.values()) URL.revokeObjectURL(picture.url);
    this.#pictures.clear();
    for (const group of find("gallery").querySelectorAll(".run:not([aria-busy])")) group.remove();
    this.#count();
  }

  toggleFavourite(picture) {
    picture.favourite = !picture.favourite;
    markFavourite(picture);
    this.on.put(picture);
    this.#count();
  }

  #group(job, cells) {
    const title = make("p", { class: "title" }, job.title);
    return make("article", { class: "run", "aria-label": job.title }, title, make("div", { class: "grid" }, ...cells));
  }

  #done(figure, picture) {
    const image = figure.querySelector("img.result");
    URL.revokeObjectURL(image.src);
    picture.url = image.src = URL.createObjectURL(picture.png);
    picture.figure = figure;
    image.alt = `${picture.job.title}, seed ${picture.seed}`;
    this.#pictures.set(figure, picture);
    figure.classList.add("done");
    const open = figure.querySelector("button");
    open.disabled = false;
    open.ariaLabel = `Open: ${image.alt}`;
    open.addEventListener("click", () => this.on.open(picture));
    figure.append(
      make(
        "figcaption",
        {},
        make("span", { class: "quiet", title: "Seed" }, String(picture.seed)),
        tool("star", "Favourite", () => this.toggleFavourite(picture)),
        tool("again", "Reuse settings", () => this.on.reuse(picture)),
        tool("save", "Download with settings", () => download(picture)),
      ),
    );
    markFavourite(picture);
    this.#count();
  }

  /** Numbers and buttons that depend on how many images there are. */
  #count() {
    const { pictures, shown } = this;
    const only = find("favourites").checked;
    find("gallery").classList.toggle("only-favourites", only);
    find("empty").hidden = find("gallery").querySelector("figure:not([hidden])") !== null;
    find("no-favourites").hidden = !(only && pictures.length && !shown.length);
    find("download-all").disabled = !shown.length;
    find("download-all").textContent = `Download ${only ? "favourites" : "all"}${shown.length ? ` (${shown.length})` : ""}`;
    find("forget").disabled = !pictures.length;
    find("tab-images").textContent = pictures.length ? `Images (${pictures.length})` : "Images";
  }

  async #downloadAll() {
    const { shown } = this;
    if (shown.length === 1) download(shown[0]);
    else keep(await zipped(shown.map((one) => [nameOf(one), one.png])), "syzygy.zip");
    say(`${shown.length} downloaded`);
  }
}

function nameOf(picture) {
  const words = picture.job.title.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${words.join("-").slice(0, 40) || "image"}-${picture.seed}.png`;
}

export function download(picture) {
  keep(picture.png, nameOf(picture));
}

function markFavourite(picture) {
  picture.figure.classList.toggle("favourite", picture.favourite);
  picture.figure.querySelector("[aria-label=Favourite]").setAttribute("aria-pressed", String(picture.favourite));
}

function tool(name, text, onclick) {
  return make("button", { type: "button", class: "plain", "aria-label": text, title: text, onclick }, icon(name));
}

function cell(job) {
  const image = make("img", { class: "result", alt: "" });
  const open = make("button", { type: "button", class: "open", disabled: true, "aria-label": "Not finished yet" }, image);
  if (job.overlay) open.append(make("img", { class: "overlay", alt: "", src: job.overlay }));
  return make("figure", {}, open);
}

function preview(figure, png) {
  const image = figure.querySelector("img.result");
  const old = image.src;
  image.src = URL.createObjectURL(png);
  if (old) URL.revokeObjectURL(old);
  figure.classList.add("coming");
}
