// The page, put together.

import { ask, onKeyWanted, recipeOf } from "./api.js";
import { Surface } from "./canvas.js";
import { find, reveal } from "./dom.js";
import { chooseFile, prepareDrops } from "./drops.js";
import { decoded, reduced } from "./files.js";
import { Gallery, download } from "./gallery.js";
import { offerExamples, watchLanguages } from "./hints.js";
import { overlaid, sent } from "./layers.js";
import { Mix } from "./mix.js";
import { note, notice, prepareNotes, sentence, showError } from "./notes.js";
import { preparePhraseList } from "./phraselist.js";
import { preparePrompt, setPrompt } from "./prompt.js";
import { Regions } from "./regions.js";
import { Runner, count } from "./runner.js";
import { prepareSeed, reuseSeed, seedUsed } from "./seed.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { prepareTabs, showTab } from "./tabs.js";
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

/** What the model is and can do. */
function describe(card) {
  const { size, languages, regions } = card.capabilities;
  find("about").textContent = size ? `${card.id} · ${size.replace("x", " × ")}` : card.id;
  find("phrases-part").hidden = find("place").hidden = find("overlay-part").hidden = !regions;
  find("main").classList.toggle("no-places", !regions);
  watchLanguages(languages);
  offerExamples(languages);
}

/** All parts of the page, for a server's model. */
class Page {
  constructor(card) {
    this.card = card;
    this.regions = new Regions();
    this.regions.most = Math.min(this.regions.most, card.capabilities.regions ? card.limits.regions : 0);
    this.surface = new Surface(this.regions, new Tools(this.regions));
    this.settings = new Settings(card, (shape) => this.regions.reshape(shape));
    this.mix = new Mix(card, chooseFile, () => this.#relabel());
    this.gallery = new Gallery({
      open: (picture) => this.viewer.open(picture),
      reuse: (picture) => this.reuse(picture),
      put: (picture) => this.session.put(picture),
      remove: (picture) => this.session.remove(picture),
    });
    this.viewer = new Viewer(this.gallery, this.#actions());
    this.runner = new Runner(this.gallery, card.capabilities.partial_images);
    this.session = new Session(this.gallery, { take: () => this.#draft(), give: (draft) => this.#giveDraft(draft) });
    preparePrompt(this.regions, () => this.generate());
    prepareWords(this.regions);
    preparePhraseList(this.regions, () => find("canvas").focus());
    prepareSeed();
    prepareNotes(this.regions);
    prepareTabs();
    this.#listen();
  }

  /** Generate images from the prompt and its regions. */
  generate() {
    const prompt = find("prompt").value;
    const { drawn, lost } = this.regions;
    const unused = [...new Set(lost.map((one) => `“${one.phrase}”`))].join(", ");
    const remark = unused && `Regions without words in the prompt were not used: ${unused}.`;
    const bodyOf = (common) => ({
      prompt: this.settings.checked("prompt", prompt),
      ...common,
      ...this.settings.special(drawn.length > 0),
      ...(drawn.length ? { regions: drawn.map(sent) } : {}),
    });
    this.#run(GENERATIONS, prompt.trim(), drawn, bodyOf, remark);
  }

  generateMixture() {
    this.#run(MIXES, this.mix.title, [], (common) => ({ ...common, sources: this.mix.sources }));
  }

  async vary(picture) {
    const image = await reduced(picture.png);
    this.#run(MIXES, `Variations of: ${picture.job.title}`, [], (common) => ({ ...common, sources: [{ image }] }));
  }

  /** The settings of an image, without its seed. */
  reuse(picture) {
    return this.#restored("This image", picture.png, ({ request, notes }) => {
      const { seed: _, ...body } = request.body;
      return this.#apply({ ...request, body }, "All settings but the seed are restored.", notes);
    });
  }

  /** Everything that an image file holds, so that the same image is generated again. */
  restore(file, name) {
    return this.#restored(name, file, async ({ request, notes }) => {
      const button = request.path === MIXES ? "Generate mixture" : "Generate";
      const done = `All settings are restored: ${button} makes this image again.`;
      await this.#apply({ ...request, body: { ...request.body, n: 1 } }, done, notes);
      this.#show(file, request);
    });
  }

  /** Read the recipe in a file, and `act` on it. */
  async #restored(name, file, act) {
    try {
      const recipe = await recipeOf(file);
      const { request, missing } = recipe;
      const elsewhere = ["subjects", "layout", "image", "mask", "depth"].filter((one) => request.body[one] || missing.includes(one));
      if (Array.isArray(request.body.style) && delete request.body.style) elsewhere.push("several style references");
      const lacking = missing.filter((one) => !elsewhere.includes(one)).map((one) => (one === "style" ? "style reference" : "mixture"));
      const notes = lacking.map((one) => `The file does not contain the image of its ${one}: add it again.`);
      if (elsewhere.length) notes.push(`This page cannot set ${elsewhere.join(" and ")}, so it generates another image. Use the API instead.`);
      await act({ request, notes: [...notes, ...recipe.notes.map(sentence)] });
    } catch (error) {
      notice(`${name} cannot be restored: ${error.message}`);
    }
  }

  async #apply({ path, body }, done, notes) {
    this.settings.restore(body);
    this.mix.restore(body.sources ?? []);
    if (path === GENERATIONS) {
      setPrompt(body.prompt);
      if (this.regions.most) await this.regions.restore(body.regions ?? []);
    }
    showTab("edit");
    notice(notes.length ? notes.join(" ") : done, notes.length ? 0 : 8);
    find(path === MIXES ? "mix-go" : "go").focus();
  }

  /** An image from outside becomes one of the session. */
  #show(file, { path, body }) {
    const title = path === MIXES ? this.mix.title : body.prompt;
    const overlay = overlaid(this.regions.drawn, this.regions.size);
    const group = this.gallery.begin({ path, body: { ...body, n: 1 }, title, regions: [], overlay });
    group.done(0, file, body.seed);
    group.end();
  }

  #run(path, title, regions, bodyOf, remark = "") {
    let body;
    try {
      body = bodyOf(this.settings.common);
      if (path === GENERATIONS && !title) throw Object.assign(new Error("describe the image."), { param: "prompt" });
    } catch (error) {
      showError(error, []);
      if (error.param === "prompt") find("prompt").focus();
      return;
    }
    if (!this.runner.busy) showTab("images");
    this.runner.run({ path, body, title, regions, overlay: overlaid(regions, this.regions.size) }, remark);
  }

  #actions() {
    const { regions, mixes, style } = this.card.capabilities;
    const on = (text, act, possible = true, stay = false) => ({ text: typeof text === "string" ? () => text : text, act, possible, stay });
    const edit = (act) => (picture) => (showTab("edit"), act(picture));
    return [
      on("Reuse settings", (picture) => this.reuse(picture)),
      on("Reuse seed", edit((picture) => (reuseSeed(picture.seed), notice(`Seed ${picture.seed} is used from now on.`, 8)))),
      on(() => `Generate ${count(this.#number, "variation").toLowerCase()}`, (picture) => this.vary(picture), mixes),
      on("Use as style", edit((picture) => this.settings.takeStyle(picture.png)), style),
      on("Add to mixture", edit((picture) => this.mix.takePicture(picture.png)), mixes),
      on("Use as canvas background", edit((picture) => this.#setBackground(picture)), regions),
      on("Download with settings", download, true, true),
      on("Delete", (picture) => this.gallery.remove(picture)),
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

  get #number() {
    return Number(find("n").value) || 1;
  }

  /** Buttons say what they do now. */
  #relabel() {
    if (!this.runner) return;
    const { busy } = this.runner;
    const go = find("go");
    go.textContent = busy ? "Cancel" : `Generate ${count(this.#number).toLowerCase()}`;
    go.classList.toggle("stop", busy);
    find("mix-go").textContent = `Generate ${count(this.#number, this.mix.isVariation ? "variation" : "mixture").toLowerCase()}`;
    find("mix-go").disabled = busy || !this.mix.sources.length;
  }

  /** What a reload brings back in addition to the images. */
  #draft() {
    const regions = this.regions.list.map((one) => ({ ...sent(one), hidden: one.hidden }));
    return { prompt: find("prompt").value, settings: this.settings.draft, sources: this.mix.sources, regions };
  }

  async #giveDraft({ prompt, settings, sources, regions }) {
    this.settings.draft = settings;
    this.mix.restore(this.card.capabilities.mixes ? sources : []);
    setPrompt(prompt);
    if (this.regions.most) await this.regions.restore(regions.slice(0, this.regions.most));
  }

  #listen() {
    find("go").addEventListener("click", () => (this.runner.busy ? this.runner.cancel() : this.generate()));
    find("mix-go").addEventListener("click", () => this.generateMixture());
    find("reset").addEventListener("click", () => this.settings.reset());
    this.runner.addEventListener("change", () => this.#relabel());
    this.runner.addEventListener("seed", (event) => seedUsed(event.detail));
    this.regions.addEventListener("change", () => this.session.touch());
    find("n").addEventListener("input", () => this.#relabel());
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
    this.#relabel();
  }
}

async function begin() {
  onKeyWanted(askForKey);
  try {
    const { data } = await ask("v1/models");
    describe(data[0]);
    await new Page(data[0]).session.begin();
    find("go").disabled = false;
    performance.mark("usable");
  } catch (error) {
    notice(`${sentence(error.message)} Load this page again to retry.`);
  }
}

begin();
