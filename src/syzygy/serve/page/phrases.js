// Where phrases stand in a prompt. The server's rule (syzygy/diffusion/regions.py): whole words, capitals do not matter.

const WORD = /[\p{L}\p{N}]/u;
const CHINESE_OR_JAPANESE = /[\u3040-\u9fff]/;

/** Whether these neighbours belong to one word; between Chinese and Japanese characters there is no telling. */
function oneWord(left, right) {
  return WORD.test(left ?? "") && WORD.test(right ?? "") && !CHINESE_OR_JAPANESE.test(left + right);
}

/** As Python's casefold, letter by letter: ß is ss, ς is σ, and the Turkish ı is itself. */
const folded = (letters) => letters.map((letter) => (letter === "ı" ? letter : letter.toUpperCase().toLowerCase()));

/** Where `phrase` stands in `prompt`: pairs of offsets, as JavaScript counts them. */
export function places(prompt, phrase) {
  const raw = [...prompt];
  let text = folded(raw);
  let wanted = [...folded([...phrase.trim()]).join("")];
  if (text.some((letter) => [...letter].length > 1)) [text, wanted] = [raw, [...phrase.trim()]]; // then capitals do matter
  if (!wanted.length) return [];
  const offsets = [0];
  for (const letter of raw) offsets.push(offsets.at(-1) + letter.length);
  const found = [];
  for (let start = 0; start + wanted.length <= text.length; start++) {
    const end = start + wanted.length;
    if (!wanted.every((letter, i) => text[start + i] === letter)) continue;
    if (oneWord(text[start - 1], wanted[0]) || oneWord(wanted.at(-1), text[end])) continue;
    found.push([offsets[start], offsets[end]]);
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
