// Where phrases stand in a prompt. The server's rule (syzygy/diffusion/regions.py): whole words; case and spelling that looks alike do
// not matter.

const WORD = /[\p{L}\p{N}\p{M}]/u;
const CHINESE_OR_JAPANESE = /[\u3040-\u9fff]/;

/** Whether these neighbours belong to one word; between Chinese and Japanese characters there is no telling. */
function oneWord(left, right) {
  return WORD.test(left ?? "") && WORD.test(right ?? "") && !CHINESE_OR_JAPANESE.test(left + right);
}

/** As Python's casefold, letter by letter: ß is ss, ς is σ, and the Turkish ı is itself. */
const folded = (letter) => (letter === "ı" ? letter : letter.toUpperCase().toLowerCase());

/** What keyboards, phones and text programs put for one another. */
const ALIKE = new Map([
  ...[..."\u2018\u2019\u201a\u201b\u02bc\u2032\u00b4`"].map((one) => [one, "'"]),
  ...[..."\u201c\u201d\u201e\u201f\u2033"].map((one) => [one, '"']),
  ...[..."\u2010\u2011"].map((one) => [one, "-"]),
]);
const BLANK = /^[\s\x1c-\x1f\x85]$/;
const SELECTORS = /[\ufe0e\ufe0f]/;
const WIDTHLESS = /[\p{Cf}\ufe0e\ufe0f]/gu;

/** Whether a character belongs to the letter before it: a mark on it, or what is composed with it, as the jamo of Korean syllables. */
function joins(before, character) {
  if (character < "\x80") return false;
  if (SELECTORS.test(character)) return true;
  if (/\p{M}/u.test(character) && WORD.test(before)) return true; // a mark after a blank or an emoji is a letter of its own
  return [...(before + character).normalize("NFC")].length <= [...before.normalize("NFC")].length;
}

/** One letter with its marks as phrases are compared: a blank for white space, nothing for what has no width. */
function comparable(letter) {
  const seen = letter.replace(WIDTHLESS, "");
  if (BLANK.test(seen)) return [" "];
  return [...[...seen.normalize("NFC")].map((one) => folded(ALIKE.get(one) ?? one)).join("").normalize("NFC")];
}

/** A text as phrases are compared, and which part of the given text each of its characters stands for. */
function compared(text) {
  const letters = [];
  const spans = [];
  const all = [...text];
  let letter = "";
  let start = 0;
  all.forEach((character, i) => {
    letter += character;
    if (i + 1 < all.length && joins(letter, all[i + 1])) return;
    const found = comparable(letter);
    const end = start + letter.length;
    if (found[0] === " " && found.length === 1 && letters.at(-1) === " ") spans[spans.length - 1] = [spans.at(-1)[0], end];
    else for (const one of found) letters.push(one), spans.push([start, end]);
    [letter, start] = ["", end];
  });
  return [letters, spans];
}

/** Where `phrase` stands in `prompt`: pairs of offsets, as JavaScript counts them. */
export function places(prompt, phrase) {
  const [text, spans] = compared(prompt);
  const wanted = compared(phrase)[0];
  if (wanted[0] === " ") wanted.shift();
  if (wanted.at(-1) === " ") wanted.pop();
  if (!wanted.length) return [];
  const same = (one, other) => one >= 0 && other < spans.length && spans[one][0] === spans[other][0];
  const found = [];
  for (let start = 0; start + wanted.length <= text.length; start++) {
    const end = start + wanted.length;
    if (!wanted.every((letter, i) => text[start + i] === letter)) continue;
    if (oneWord(text[start - 1], wanted[0]) || oneWord(wanted.at(-1), text[end])) continue;
    if (same(start - 1, start) || same(end - 1, end)) continue; // half of a letter that folds to two (ß)
    found.push([spans[start][0], spans[end - 1][1]]);
  }
  return found;
}

/** The words that a selection touches, without blanks and signs at their ends; null where there is none. */
export function snapped(text, start, end) {
  if (start === end) return null;
  const whole = (at) => oneWord(text[at - 1], text[at]);
  while (start > 0 && whole(start)) start--;
  while (end < text.length && whole(end)) end++;
  while (start < end && !WORD.test(letterAt(text, start))) start++;
  while (end > start && !WORD.test(letterBefore(text, end))) end--;
  return start < end ? [start, end] : null;
}

/** The words of a text: pairs of offsets. Where Chinese and Japanese words end the browser tells. */
export function words(text) {
  const found = [];
  for (const { index, segment, isWordLike } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) {
    const place = isWordLike && snapped(text, index, index + segment.length);
    if (!place) continue;
    const last = found.at(-1);
    if (last && place[0] < last[1]) last[1] = Math.max(last[1], place[1]); // one word by the server's rule
    else found.push(place);
  }
  return found;
}

const letterAt = (text, at) => String.fromCodePoint(text.codePointAt(at));
const letterBefore = (text, at) => [...text.slice(Math.max(0, at - 2), at)].at(-1) ?? "";

/** A text cut into pieces: [piece, what lies there or null]. `marks` are {start, end, …}; the earlier one wins where two overlap. */
export function cut(text, marks) {
  const pieces = [];
  let at = 0;
  for (const mark of [...marks].sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (mark.start < at) continue;
    if (mark.start > at) pieces.push([text.slice(at, mark.start), null]);
    pieces.push([text.slice(mark.start, mark.end), mark]);
    at = mark.end;
  }
  if (at < text.length) pieces.push([text.slice(at), null]);
  return pieces;
}
