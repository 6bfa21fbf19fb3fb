// The page, put together.

import { ask, onKeyWanted, recipeOf } from "./api.js";
import { Surface } from "./canvas.js";
import { find, reveal } from "./dom.js";
import { chooseFile, prepareDrops } from "./drops.js";
import { decoded, reduced } from "./files.js";
import { Gallery } from "./gallery.js";
import { Mix } from "./mix.js";
import { note, notice, sentence, showError } from "./notes.js";
import { preparePhraseList } from "./phraselist.js";
import { preparePrompt, setPrompt } from "./prompt.js";
import { Regions, overlaid, sent } from "./regions.js";
import { Runner, count } from "./runner.js";
import { Settings } from "./settings.js";
import { Tools } from "./tools.js";
import { Viewer } from "./viewer.js";
import { prepareWords } from "./words.js";

const GENERATIONS = "/v1/images/generations";
const MIXES = "/v1/images/mixes";

/** Ask for the server's key in a dialog, until one is given. */
function askForKey(again) {
  const dialog = find("key-dialog");
  note(find("key-note"), again ? "the server does not accept this key." : "");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => dialog.showModal(); // nothing works without a key
    find("key-form").onsubmit = () => {
      dialog.onclose = null;
      resolve(find("key").value);
      find("key").value = "";
    };
  });
}

/** The model on the page: what it is, and what it reads. */
function describe(card) {
  const { size, languages, regions } = card.capabilities;
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const read = languages.map((code) => names.of(code));
  const last = read.pop();
  find("about").textContent = size ? `${card.id} · ${size.replace("x", " × ")}` : card.id;
  find("languages").textContent = read.length
    ? `Write in ${read.join(", ")} or ${last}.`
    : `Write in ${last}.`;
  find("phrases-part").hidden = find("place").hidden = find("overlay-part").hidden = !regions;
  find("main").classList.toggle("no-places", !regions);
}

/** All parts of the page, for a server's model. */
class Page {
  constructor(card) {
    this.card = card;
    this.regions = new Regions();
    this.regions.most = Math.min(this.regions.most, card.capabilities.regions ? card.limits.regions : 0);
    this.tools = new Tools(this.regions);
    this.surface = new Surface(this.regions, this.tools);
    this.settings = new Settings(card, (shape) => this.regions.reshape(shape));
    this.mix = new Mix(card, chooseFile);
    this.viewer = new Viewer(this.#actions());
    this.gallery = new Gallery({ onOpen: (picture) => this.viewer.open(picture), onAgain: (picture) => this.again(picture) });
    this.runner = new Runner(this.gallery, card.capabilities.partial_images);
    preparePrompt(this.regions, () => this.generate());
    prepareWords(this.regions);
    preparePhraseList(this.regions, () => find("canvas").focus());
    this.#listen();
  }

  /** Generate images from the prompt and its regions. */
  generate() {
    const prompt = find("prompt").value;
    const drawn = this.regions.drawn;
    const body = (common) => ({ prompt, ...common, ...this.settings.special(drawn.length > 0) });
    this.#run(GENERATIONS, prompt.trim(), find("go-note"), drawn, (common) => {
      return drawn.length ? { ...body(common), regions: drawn.map(sent) } : body(common);
    });
  }

  generateMixture() {
    this.#run(MIXES, this.mix.title, find("go-note"), [], (common) => ({ ...common, sources: this.mix.sources }));
  }

  async vary(picture) {
    const image = await reduced(picture.png);
    this.#run(MIXES, `Variations of: ${picture.job.title}`, find("go-note"), [], (common) => ({ ...common, sources: [{ image }] }));
  }

  /** The page as it was when a picture was made; its recipe says how. */
  async again(picture) {
    await this.restore(picture.png, null);
  }

  /** All that made a picture, from its file; `name` for one that comes from outside. */
  async restore(file, name) {
    try {
      const { request, missing, notes } = await recipeOf(file);
      const several = Array.isArray(request.body.style) && delete request.body.style;
      await this.#apply(request);
      if (name) this.#show(file, request);
      const elsewhere = ["subjects", "layout"].filter((name) => request.body[name] || missing.includes(name));
      if (several) elsewhere.push("several style references");
      const texts = missing.filter((param) => !elsewhere.includes(param)).map((param) => `The image file does not contain the picture of its ${param === "style" ? "style reference" : "mixture"}: add it again.`);
      if (elsewhere.length) texts.push(`This page cannot set ${elsewhere.join(" and ")}, so Generate makes another image: send them in a request to the API.`);
      texts.push(...notes.map(sentence));
      notice(texts.length ? texts.join(" ") : "All settings are restored: Generate makes this image again.", texts.length ? 0 : 8);
    } catch (error) {
      notice(`${name ?? "This image"} cannot be restored: ${error.message}`);
    }
  }

  async #apply({ path, body }) {
    this.settings.restore({ ...body, n: 1 });
    this.mix.restore(body.sources ?? []);
    if (path === GENERATIONS) {
      setPrompt(body.prompt);
      if (this.regions.most) await this.regions.restore(body.regions ?? []);
    }
    find("go").focus();
  }

  /** A picture from outside, among those of the session. */
  #show(file, { path, body }) {
    const title = path === MIXES ? this.mix.title : body.prompt;
    const group = this.gallery.begin({ path, body: { ...body, n: 1 }, title, regions: [], overlay: this.#overlay(this.regions.drawn) });
    group.done(0, file, body.seed);
    group.end();
  }

  #overlay(regions) {
    return regions.length ? overlaid(regions, this.regions.size) : null;
  }

  #run(path, title, beside, regions, bodyOf) {
    let body;
    try {
      body = bodyOf(this.settings.common);
    } catch (error) {
      showError(error, [], beside);
      return;
    }
    if (path === GENERATIONS && !title) {
      showError({ param: "prompt", message: "describe the image." }, []);
      find("prompt").focus();
      return;
    }
    this.runner.run({ path, body, title, regions, overlay: this.#overlay(regions) }, beside);
  }

  #actions() {
    const { capabilities } = this.card;
    return [
      ["Reuse settings", () => true, (picture) => this.again(picture)],
      ["Use as canvas background", () => capabilities.regions, (picture) => this.#setBackground(picture)],
      ["Generate variations", () => capabilities.mixes, (picture) => this.vary(picture)],
      ["Add to mixture", () => capabilities.mixes, (picture) => this.mix.takePicture(picture.png)],
      ["Use as style", () => capabilities.style, (picture) => this.settings.takeStyle(picture.png)],
    ];
  }

  async #setBackground(picture) {
    this.under = await decoded(picture.url);
    find("background").hidden = false;
    find("show-background").checked = true;
    this.#showBackground();
    reveal(find("canvas"));
  }

  #showBackground() {
    this.surface.background = find("show-background").checked ? this.under : null;
    this.surface.plan();
  }

  #listen() {
    const go = find("go");
    const relabel = () => {
      go.textContent = this.runner.busy ? "Cancel" : `Generate ${count(Number(find("n").value) || 1).toLowerCase()}`;
      go.classList.toggle("stop", this.runner.busy);
      find("mix-go").disabled = this.runner.busy || !this.mix.sources.length;
    };
    go.addEventListener("click", () => (this.runner.busy ? this.runner.cancel() : this.generate()));
    find("mix-go").addEventListener("click", () => this.generateMixture());
    this.runner.addEventListener("change", relabel);
    find("n").addEventListener("input", relabel);
    find("show-background").addEventListener("change", () => this.#showBackground());
    find("drop-background").addEventListener("click", () => {
      this.under = null;
      find("background").hidden = true;
      this.#showBackground();
    });
    find("open").addEventListener("click", () => chooseFile((file) => this.restore(file, file.name)));
    find("style-choose").addEventListener("click", () => chooseFile((file) => this.settings.takeStyle(file)));
    const places = { "style-drop": (file) => this.settings.takeStyle(file), "mix-part": (file) => this.mix.takePicture(file) };
    prepareDrops(places, (file) => this.restore(file, file.name));
    relabel();
  }
}

async function begin() {
  onKeyWanted(askForKey);
  try {
    const { data } = await ask("v1/models");
    describe(data[0]);
    new Page(data[0]);
    find("go").disabled = false;
    performance.mark("usable");
  } catch (error) {
    notice(`${sentence(error.message)} Load this page again to retry.`);
  }
}

begin();
