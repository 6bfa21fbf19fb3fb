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
  note(find("key-note"), again ? "the server does not know this key." : "");
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
    : `Reads ${last} only.`;
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
    preparePrompt(this.regions, () => this.paint());
    prepareWords(this.regions);
    preparePhraseList(this.regions, () => find("canvas").focus());
    this.#listen();
  }

  /** Paint what the page says. */
  paint() {
    const prompt = find("prompt").value;
    const painted = this.regions.painted;
    const body = (common) => ({ prompt, ...common, ...this.settings.special(painted.length > 0) });
    this.#run(GENERATIONS, prompt.trim(), find("go-note"), painted, (common) => {
      return painted.length ? { ...body(common), regions: painted.map(sent) } : body(common);
    });
  }

  paintMixture() {
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
      await this.#apply(request);
      if (name) this.#show(file, request);
      const told = missing.map((param) => `The picture of its ${param === "style" ? "style" : "mixture"} is not inside: give it again.`);
      told.push(...notes.map(sentence));
      notice(told.length ? told.join(" ") : "Everything is as it was: painting makes this picture again.", told.length ? 0 : 8);
    } catch (error) {
      notice(`${name ?? "This picture"} restores nothing: ${error.message}`);
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
    const group = this.gallery.begin({ path, body: { ...body, n: 1 }, title, regions: [], overlay: this.#overlay(this.regions.painted) });
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
      showError({ param: "prompt", message: "say what to paint." }, []);
      find("prompt").focus();
      return;
    }
    this.runner.run({ path, body, title, regions, overlay: this.#overlay(regions) }, beside);
  }

  #actions() {
    const { capabilities } = this.card;
    return [
      ["Again with these settings", () => true, (picture) => this.again(picture)],
      ["Put it beneath the canvas", () => capabilities.regions, (picture) => this.#putBeneath(picture)],
      ["Paint variations", () => capabilities.mixes, (picture) => this.vary(picture)],
      ["Add it to a mixture", () => capabilities.mixes, (picture) => this.mix.takePicture(picture.png)],
      ["Take it as the style", () => capabilities.style, (picture) => this.settings.takeStyle(picture.png)],
    ];
  }

  async #putBeneath(picture) {
    this.under = await decoded(picture.url);
    find("beneath").hidden = false;
    find("show-beneath").checked = true;
    this.#showBeneath();
    reveal(find("canvas"));
  }

  #showBeneath() {
    this.surface.beneath = find("show-beneath").checked ? this.under : null;
    this.surface.plan();
  }

  #listen() {
    const go = find("go");
    const relabel = () => {
      go.textContent = this.runner.busy ? "Cancel" : `Paint ${count(Number(find("n").value) || 1).toLowerCase()}`;
      go.classList.toggle("stop", this.runner.busy);
      find("mix-go").disabled = this.runner.busy || !this.mix.sources.length;
    };
    go.addEventListener("click", () => (this.runner.busy ? this.runner.cancel() : this.paint()));
    find("mix-go").addEventListener("click", () => this.paintMixture());
    this.runner.addEventListener("change", relabel);
    find("n").addEventListener("input", relabel);
    find("show-beneath").addEventListener("change", () => this.#showBeneath());
    find("drop-beneath").addEventListener("click", () => {
      this.under = null;
      find("beneath").hidden = true;
      this.#showBeneath();
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
