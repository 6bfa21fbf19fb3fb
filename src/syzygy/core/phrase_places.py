"""Where a phrase occurs in a text: regions, subjects and training data find the tokens of their words by it."""

import unicodedata


def places(text: str, phrase: str) -> list[tuple[int, int]]:
    """Find a phrase in a text, as whole words: the characters of each place (from, to), in the text as it was given.

    Case does not matter, nor does spelling that looks alike: composed and decomposed letters (Unicode's NFC), any white space for one
    blank, typographic quotation marks, apostrophes and hyphens for those of a keyboard, characters without a width. The list is empty
    if the text does not contain the phrase, or the phrase is empty.
    """
    folded, spans = _folded(text)
    wanted = _folded(phrase)[0].strip(" ")
    found: list[tuple[int, int]] = []
    start = folded.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        whole = not (_one_word(folded[start - 1 : start], wanted[0]) or _one_word(wanted[-1], folded[end : end + 1]))
        # Half of a letter that folds to two (ß) is no place.
        if (
            whole
            and spans[start - 1 : start] != spans[start : start + 1]
            and spans[end - 1] not in spans[end : end + 1]
        ):
            found.append((spans[start][0], spans[end - 1][1]))
        start = folded.find(wanted, start + 1)
    return found


_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"')
    | dict.fromkeys("\u2010\u2011", "-")
)
"""Quotation marks, apostrophes, primes and hyphens that keyboards, phones and text programs put for one another."""


def _folded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text as phrases are compared, and for each of its characters the ones (from, to) of the given text that it stands for."""
    letters, spans, start = [], [], 0
    for end in range(1, len(text) + 1):
        if end < len(text) and _joins(text[start:end], text[end]):
            continue
        found = _letter(text[start:end])
        if found == " " and letters and letters[-1] == " ":
            spans[-1] = (spans[-1][0], end)
        else:
            letters += found
            spans += [(start, end)] * len(found)
        start = end
    return "".join(letters), spans


def _joins(before: str, character: str) -> bool:
    """Whether a character belongs to the letter before it: a mark on it, or what is composed with it, as the jamo of Korean syllables."""
    if character.isascii():
        return False
    if character in _SELECTORS:
        return True
    if unicodedata.category(character).startswith("M") and unicodedata.category(before[-1])[0] in "LNM":
        return True  # a mark after a blank or an emoji is a letter of its own: the words around it must stay selectable
    return len(unicodedata.normalize("NFC", before + character)) <= len(unicodedata.normalize("NFC", before))


def _letter(text: str) -> str:
    """One letter with its marks, folded: a blank for white space, nothing for what has no width."""
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in _SELECTORS)
    if seen.isspace():
        return " "
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", seen).translate(_ALIKE).casefold())


_SELECTORS = "\ufe0e\ufe0f"
"""They choose between a sign as text and as picture, and have no width."""


def _one_word(left: str, right: str) -> bool:
    """Whether these neighbours belong to one word. Chinese and Japanese are written without spaces, so there the answer is no."""
    return _in_word(left) and _in_word(right) and not any("\u3040" <= c <= "\u9fff" for c in left + right)


def _in_word(character: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one."""
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")
