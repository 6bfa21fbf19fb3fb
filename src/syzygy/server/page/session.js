// The session in this browser: images and draft come back after a reload, unless a person opts out.

import { find } from "./dom.js";
import { notice, sentence } from "./notes.js";
import { allImages, clearImages, getValue, putImage, putValue, removeImage, removeValue } from "./store.js";

const PAUSE = 400;
/** A browser that does not answer must not keep the page from being used. */
const PATIENCE = 3000;
const FULL = "This browser has no more space: further images are lost when you close or reload the page.";
const NOT_KEPT = "This browser cannot keep the session: images are lost when you close or reload the page.";

/** Keeps pictures and the draft; `draft` is {take(), give(value)}. */
export class Session {
  #kept = true;
  #timer = null;
  #warned = false;

  constructor(gallery, draft) {
    this.gallery = gallery;
    this.draft = draft;
    find("keep").addEventListener("change", () => this.#choose(find("keep").checked));
    find("forget").addEventListener("click", () => this.clear());
  }

  /** Restore what was kept, then keep what changes from now on. */
  async begin() {
    const restored = this.#tried(async () => {
      this.#kept = (await getValue("keep")) ?? true;
      find("keep").checked = this.#kept;
      if (!this.#kept) return;
      const [images, draft] = [await allImages(), await getValue("draft")];
      this.gallery.restore(images);
      if (draft && !find("prompt").value) await this.draft.give(draft);
    });
    await Promise.race([restored, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
    this.#say();
    for (const name of ["input", "change", "filled"]) find("main").addEventListener(name, () => this.touch());
    document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && this.#timer !== null && this.#write());
  }

  /** The draft has changed. */
  touch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#write(), PAUSE);
  }

  put(picture) {
    if (!this.#kept) return;
    const { id, run, png, seed, favourite, job } = picture;
    const { path, title, overlay, body } = job;
    this.#tried(() => putImage({ id, run, png, seed, favourite, job: { path, title, overlay, body: briefly(body) } }));
  }

  remove(picture) {
    this.#tried(() => removeImage(picture.id));
  }

  /** Delete all images. */
  async clear() {
    if (!confirm("Delete all images on this page, favourites too? Files that you downloaded stay.")) return;
    this.gallery.clear();
    await this.#tried(clearImages);
  }

  #write() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#kept) this.#tried(() => putValue("draft", this.draft.take()));
  }

  async #choose(kept) {
    this.#kept = kept;
    this.#say();
    await this.#tried(() => putValue("keep", kept));
    if (kept) {
      for (const picture of this.gallery.pictures) this.put(picture);
      this.#write();
    } else {
      clearTimeout(this.#timer);
      await this.#tried(clearImages);
      await this.#tried(() => removeValue("draft"));
    }
  }

  #say() {
    find("empty").textContent = this.#kept
      ? "Generated images appear here. They stay in this browser until you delete them."
      : "Generated images appear here. They are gone when you close or reload the page.";
  }

  async #tried(act) {
    try {
      await act();
    } catch (error) {
      if (!this.#warned) notice(error?.name === "QuotaExceededError" ? FULL : `${NOT_KEPT} ${sentence(error?.message ?? "")}`);
      this.#warned = true;
    }
  }
}

/** A request without its images and masks, which its PNG holds. */
function briefly({ style, sources, regions, ...body }) {
  return regions ? { ...body, regions: regions.map(({ phrase, weight }) => ({ phrase, weight })) } : body;
}
