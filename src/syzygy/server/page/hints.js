// What helps while typing a prompt: examples, the number of characters, the languages of the model.

import { find, make } from "./dom.js";
import { setPrompt } from "./prompt.js";

const EXAMPLES = ["a red star left of a blue ring", "a striped green heart and a yellow moon", "a purple square above an orange circle"];
/** From this part of the limit on, the number of characters is shown. */
const NEAR = 0.8;

/** The characters of a text, as the server counts them. */
export const characters = (text) => [...text].length;

/** Shows how many characters a field has, if they come close to the most that the server accepts. */
export function countCharacters(id, most) {
  const field = find(id);
  const counter = find(`${id}-count`);
  const show = () => {
    const number = characters(field.value);
    counter.hidden = number < NEAR * most;
    counter.textContent = `${number} of at most ${most} characters`;
    counter.classList.toggle("over", number > most);
  };
  field.addEventListener("input", show);
  show();
}

/** Prompts to start with, as long as there is none. */
export function offerExamples(languages) {
  const field = find("prompt");
  const take = (text) => {
    setPrompt(text);
    field.focus();
  };
  const button = (text) => make("button", { type: "button", class: "example", onclick: () => take(text) }, text);
  find("examples").append("Try: ", ...EXAMPLES.map(button));
  const show = () => (find("examples").hidden = field.value !== "" || !languages.includes("en"));
  field.addEventListener("input", show);
  show();
}

const named = (languages) => {
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const all = languages.map((code) => names.of(code));
  return all.length > 1 ? `${all.slice(0, -1).join(", ")} or ${all.at(-1)}` : all[0];
};

/** Says which languages the model reads, and warns of words in the scripts of others. */
export function watchLanguages(languages) {
  const wanted = `Write in ${named(languages)}.`;
  const foreign = foreignWords(languages);
  const line = find("languages");
  const show = () => {
    const found = foreign(find("prompt").value);
    line.classList.toggle("warning", found.length > 0);
    line.textContent = found.length ? `This model may not understand “${found[0]}”. ${wanted}` : wanted;
  };
  find("prompt").addEventListener("input", show);
  show();
}

const SCRIPTS = { Jpan: ["Hani", "Hira", "Kana"], Kore: ["Hang", "Hani"], Hans: ["Hani"], Hant: ["Hani"] };

/** Finds words with letters of scripts in which none of these languages is written. */
export function foreignWords(languages) {
  const scripts = languages.map((code) => new Intl.Locale(code).maximize().script).flatMap((one) => SCRIPTS[one] ?? [one]);
  const known = ["Zyyy", "Zinh", ...scripts].map((one) => `\\p{Script=${one}}`).join("");
  const word = new RegExp(`[\\p{L}\\p{M}]*(?![${known}])\\p{L}[\\p{L}\\p{M}]*`, "gu");
  return (text) => text.match(word) ?? [];
}
