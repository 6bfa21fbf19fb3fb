// Ranges of the prompt that follow its edits, so that a region keeps its words.

import { places, snapped } from "./phrases.js";

/** The one piece in which two texts differ: {at, removed, added}. `caret` is where the edit ended in the new text. */
export function difference(before, after, caret) {
  const most = Math.min(before.length, after.length);
  const tail = after.length - caret;
  let end = tail <= most && before.endsWith(after.slice(caret)) ? tail : 0; // what follows the caret is as it was
  let start = 0;
  while (start < most - end && before[start] === after[start]) start++;
  while (end < most - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  return { at: start, removed: before.length - start - end, added: after.length - start - end };
}

/**
 * A range {start, end, open} after an edit; null if its text was replaced together with other text.
 * An open range grows with what is typed at its end, because its last words were just edited.
 */
export function moved({ start, end, open }, { at, removed, added }) {
  const last = at + removed;
  const shift = added - removed;
  const typedAtEnd = open && removed === 0 && at === end;
  if (typedAtEnd || (removed > 0 && at >= start && last <= end)) return { start, end: end + shift, open: typedAtEnd || last === end };
  if (last <= start) return { start: start + shift, end: end + shift, open: false };
  if (at >= end) return { start, end, open: false };
  if (at >= start && last <= end) return { start, end: end + shift, open: false };
  if (at <= start && last >= end) return null;
  return at < start ? { start: at + added, end: end + shift, open: false } : { start, end: at, open: false };
}

/** What a region is anchored to, {phrase, range}, after an edit; `range` is null if it has no place in the text any more. */
export function followed({ phrase, range }, edit, text) {
  const next = range && moved(range, edit);
  const words = next && next.start < next.end && snapped(text, next.start, next.end);
  if (words) return { phrase: text.slice(...words), range: next.open ? next : { start: words[0], end: words[1], open: false } };
  const found = anchored(text, phrase);
  return found.range ? found : { phrase, range: next?.open ? next : null };
}

/** A phrase with its first place in a text. */
export function anchored(text, phrase) {
  const [first] = places(text, phrase);
  return { phrase, range: first ? { start: first[0], end: first[1], open: false } : null };
}
