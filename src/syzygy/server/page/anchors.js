// Ranges of the prompt that follow its edits, so that a region keeps its words.

import { places, snapped, words } from "./phrases.js";

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

/**
 * What a region is anchored to, {phrase, range, count}, after an edit; `range` is null if it has no place in the text any more.
 * While a phrase is typed anew it grows to as many words as it had, `count`: what follows is not part of it.
 */
export function followed({ phrase, range, count }, edit, text) {
  const most = range?.open ? count : Math.max(1, words(phrase).length);
  const next = range && limited(moved(range, edit), text, most);
  const part = next && next.start < next.end && snapped(text, next.start, next.end);
  if (part) return { phrase: text.slice(...part), range: next.open ? next : { start: part[0], end: part[1], open: false }, count: most };
  const found = anchored(text, phrase);
  return found.range ? found : { phrase, range: next?.open ? next : null, count: most };
}

/** An open range, closed before what is one word too many. */
function limited(range, text, most) {
  if (!range?.open) return range;
  const inside = words(text.slice(range.start, range.end));
  return inside.length > most ? { start: range.start, end: range.start + inside[most - 1][1], open: false } : range;
}

/** A phrase with its first place in a text. */
export function anchored(text, phrase) {
  const [first] = places(text, phrase);
  return { phrase, range: first ? { start: first[0], end: first[1], open: false } : null };
}
