"""Russian: three genders, cases, and numerals with cases of their own ("два красных круга", "две синие звезды").

Над and под want the instrumental; слева от, левее, выше and the like the genitive, as do "рисунок" and "изображение". Captions are
written with ё; a reader takes е for it.
"""

# ruff: noqa: RUF001, RUF002 (letters and marks of another script are no slips here)

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import Lexicon, Word, meaning
from syzygy.lab.world.language.sentence import Case, Link, Opening, Phrase, Slot, StyleWording, Turned, sentence_case
from syzygy.lab.world.scene import Colour, Relation, Shape, Style, Texture

M, F, N, PLURAL = range(4)
Value = TypeVar("Value")
CASES: tuple[Case, ...] = ("nominative", "genitive", "instrumental")


class Noun(NamedTuple):
    """A noun; nominative, genitive and instrumental of one and of many."""

    gender: int
    one: str
    many: str

    def form(self, case: Case, count: int) -> str:
        if count > 1 and case == "nominative":  # after два, три, четыре
            return self.one.split()[CASES.index("genitive")]
        return (self.many if count > 1 else self.one).split()[CASES.index(case)]


NOUNS: dict[Shape, tuple[Noun, ...]] = {
    "circle": (Noun(M, "круг круга кругом", "круги кругов кругами"),),
    "square": (Noun(M, "квадрат квадрата квадратом", "квадраты квадратов квадратами"),),
    "triangle": (Noun(M, "треугольник треугольника треугольником", "треугольники треугольников треугольниками"),),
    "star": (
        Noun(F, "звезда звезды звездой", "звёзды звёзд звёздами"),
        Noun(F, "звёздочка звёздочки звёздочкой", "звёздочки звёздочек звёздочками"),
    ),
    "heart": (
        Noun(N, "сердце сердца сердцем", "сердца сердец сердцами"),
        Noun(N, "сердечко сердечка сердечком", "сердечки сердечек сердечками"),
    ),
    "cross": (Noun(M, "крест креста крестом", "кресты крестов крестами"),),
    "ring": (Noun(N, "кольцо кольца кольцом", "кольца колец кольцами"),),
    "moon": (Noun(F, "луна луны луной", "луны лун лунами"),),
}
"""All nouns of a shape have one gender, as a pronoun may take it up."""
OTHER_FORMS: dict[Shape, tuple[str, ...]] = {
    "star": ("звезду", "звезде", "звёздочку", "звёздочке"),
    "moon": ("луну", "луне", "месяц", "месяца", "месяцем", "полумесяц", "полумесяца", "полумесяцем"),
}
"""Read, not said."""

HARD = "ый ая ое ые", "ого ой ого ых", "ым ой ым ыми", "ому ой ому ым", "ый ую ое ые", "ом ой ом ых"
STRESSED = "ой ая ое ые", *HARD[1:4], "ой ую ое ые", HARD[5]
SOFT = "ий яя ее ие", "его ей его их", "им ей им ими", "ему ей ему им", "ий юю ее ие", "ем ей ем их"
VELAR = "ий ая ое ие", "ого ой ого их", "им ой им ими", "ому ой ому им", "ий ую ое ие", "ом ой ом их"
"""Endings of adjectives: masculine, feminine, neuter, plural; by `CASES`, then dative, accusative, prepositional, which are only read."""


class Adjective(NamedTuple):
    """A stem and the endings it takes."""

    stem: str
    endings: Sequence[str] = HARD

    def form(self, case: Case, gender: int) -> str:
        return self.stem + self.endings[CASES.index(case)].split()[gender]

    def forms(self, plural: bool) -> list[str]:
        """All of one, or of many."""
        return [self.stem + end for row in self.endings for end in (row.split()[3:] if plural else row.split()[:3])]


COLOURS: dict[Colour, tuple[Adjective, ...]] = {
    "red": (Adjective("красн"),),
    "orange": (Adjective("оранжев"),),
    "yellow": (Adjective("жёлт"),),
    "green": (Adjective("зелён"),),
    "cyan": (Adjective("голуб", STRESSED), Adjective("бирюзов")),
    "blue": (Adjective("син", SOFT),),
    "purple": (Adjective("фиолетов"), Adjective("лилов")),
    "pink": (Adjective("розов"),),
}
TEXTURES: dict[Texture, tuple[Adjective, ...]] = {
    "plain": (Adjective("однотонн"), Adjective("одноцветн")),
    "striped": (Adjective("полосат"),),
    "dotted": (Adjective("пятнист"), Adjective("крапчат")),
}
PATTERNS: dict[Texture, tuple[str, ...]] = {
    "plain": ("без узора",),
    "striped": ("в полоску", "в полосочку"),
    "dotted": ("в горошек", "в крапинку"),
}
RELATIONS: dict[Relation, tuple[tuple[str, Case], ...]] = {
    "left of": (("слева от", "genitive"), ("левее", "genitive")),
    "right of": (("справа от", "genitive"), ("правее", "genitive")),
    "above": (("над", "instrumental"), ("выше", "genitive")),
    "below": (("под", "instrumental"), ("ниже", "genitive")),
}
NUMERALS: dict[int, Mapping[Case, str]] = {
    2: {"nominative": "два две два", "genitive": "двух двух двух", "instrumental": "двумя двумя двумя"},
    3: {"nominative": "три три три", "genitive": "трёх трёх трёх", "instrumental": "тремя тремя тремя"},
    4: {
        "nominative": "четыре четыре четыре",
        "genitive": "четырёх четырёх четырёх",
        "instrumental": "четырьмя четырьмя четырьмя",
    },
}
WHICH = ("который", "которая", "которое", "которые")
STYLE_WORDS: dict[Style, tuple[Adjective, ...]] = {
    "flat": (Adjective("плоск", VELAR),),
    "outline": (Adjective("контурн"),),
    "pastel": (Adjective("пастельн"),),
    "night": (Adjective("ночн", STRESSED),),
}
STYLE_NOUNS: dict[Style, tuple[str, ...]] = {
    "outline": ("контур", "контуры", "контуров", "контурами", "контурах"),
    "pastel": ("пастель", "пастели", "пастелью"),
    "night": ("ночь", "ночи", "ночью"),
}


def _wording(heading: str, tail: str, **openings: tuple[str, ...]) -> StyleWording:
    genitive = [Opening(f"{text} ", "genitive") for text in openings.get("genitive", ())]
    instrumental = [Opening(f"{text} ", "instrumental") for text in openings.get("instrumental", ())]
    return StyleWording([*genitive, *instrumental], [Opening(f"{heading}: ")], f", {tail}")


STYLE_WORDINGS: dict[Style, tuple[StyleWording, ...]] = {
    "flat": (
        _wording("плоский рисунок", "в плоском стиле", genitive=("плоский рисунок", "плоское изображение")),
        _wording("плоское изображение", "плоская графика", instrumental=("картинка в плоском стиле с",)),
    ),
    "outline": (
        _wording("контурный рисунок", "в контурном стиле", genitive=("контурный рисунок", "контурное изображение")),
        _wording("контурное изображение", "одними контурами", instrumental=("контурная картинка с",)),
    ),
    "pastel": (
        _wording("пастельный рисунок", "в пастельных тонах", genitive=("пастельный рисунок",)),
        _wording("рисунок пастелью", "в пастельном стиле", instrumental=("картинка в пастельных тонах с",)),
    ),
    "night": (
        _wording("ночной рисунок", "в ночном стиле", genitive=("ночной рисунок", "ночное изображение")),
        _wording("ночная картинка", "ночная сцена", instrumental=("ночная картинка с",)),
    ),
}
THERE = [Opening(text) for text in ("на рисунке ", "на картинке ", "здесь ", "перед нами ")]
PICTURES = [
    *(Opening(text, "genitive") for text in ("изображение ", "рисунок ")),
    *(Opening(text, "instrumental") for text in ("картинка с ", "рисунок с ")),
]


class Russian:
    """`Grammar` of Russian."""

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        return STYLE_WORDINGS[style]

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        return Opening(""), Opening(""), draw.pick(THERE), draw.pick(PICTURES)

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        noun = draw.pick(NOUNS[mention.shape])
        colour = draw.pick(COLOURS[mention.colour]) if mention.colour else None
        texture = draw.pick(TEXTURES[mention.texture]) if mention.texture else None
        behind: list[str] = []
        if colour and draw.chance(0.12):
            behind.append(f"{colour.form('genitive', M)} цвета")
            colour = None
        if mention.texture and draw.chance(0.35):
            behind.append(draw.pick(PATTERNS[mention.texture]))
            texture = None
        adjectives = draw.order([a for a in (texture, colour) if a])
        before = _before(noun.gender, adjectives, mention.count, slot.case)
        return Phrase(" ".join([*before, noun.form(slot.case, mention.count), *behind]))

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        if text.endswith(" с ") and phrase.startswith("зв"):
            return f"{text[:-1]}о ", phrase
        return text, phrase

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        words, case = draw.pick(RELATIONS[relation])
        target = Slot(case, slot.article)
        if again:
            gender = PLURAL if subject.count > 1 else NOUNS[subject.shape][0].gender
            return Link(f", {WHICH[gender]} {_stands(subject)} {words} ", target, closing=",")
        return Link(f" {words} ", target)

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned | None:
        if not alone:
            return None
        words, case = draw.pick(RELATIONS[relation])
        return Turned(f"{words} ", Slot(case), f" {draw.pick(('—', _stands(subject)))} ", Slot())

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        return " и " if last and slot.article != "none" else ", "

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        return sentence_case(text, alone, draw)


def _stands(subject: Mention) -> str:
    return "находятся" if subject.count > 1 else "находится"


def _before(gender: int, adjectives: Sequence[Adjective], count: int, case: Case) -> list[str]:
    """Numeral and adjectives; after два, три, четыре in the nominative these are genitive, of feminine nouns nominative."""
    if count == 1:
        return [a.form(case, gender) for a in adjectives]
    own: Case = "genitive" if case == "nominative" and gender != F else case
    return [NUMERALS[count][case].split()[gender], *(a.form(own, PLURAL) for a in adjectives)]


def _forms(table: Mapping[Value, Sequence[Adjective]], plural: bool) -> dict[Value, list[str]]:
    return {value: [form for a in found for form in a.forms(plural)] for value, found in table.items()}


def _with_e(words: Mapping[str, Word]) -> dict[str, Word]:
    """Spellings with е for ё as well, where they are not words of their own ("звезды" is not "звёзды")."""
    return {spelled.replace("ё", "е"): word for spelled, word in words.items()} | dict(words)


_NUMBERS = {
    1: ("1", "один", "одна", "одно", "одного", "одной", "одним"),
    **{n: [str(n), *{form for row in rows.values() for form in row.split()}] for n, rows in NUMERALS.items()},
    5: ("5", "пять", "пяти", "пятью"),
    6: ("6", "шесть", "шести", "шестью"),
    7: ("7", "семь", "семи", "семью"),
    8: ("8", "восемь", "восьми", "восемью"),
    9: ("9", "девять", "девяти", "девятью"),
}
_OF_COLOUR = {colour: [f"{a.form('genitive', M)} цвета" for a in found] for colour, found in COLOURS.items()}
_WORDS = _with_e(
    {
        **meaning("noun", {s: [f for n in found for f in n.many.split()] for s, found in NOUNS.items()}, plural=True),
        **meaning("noun", {s: [f for n in found for f in n.one.split()] for s, found in NOUNS.items()}),
        **meaning("noun", OTHER_FORMS),
        **meaning("colour", _forms(COLOURS, plural=True), plural=True),
        **meaning("colour", _forms(COLOURS, plural=False)),
        **meaning("colour", _OF_COLOUR, after=True),
        **meaning("texture", _forms(TEXTURES, plural=True), plural=True),
        **meaning("texture", _forms(TEXTURES, plural=False)),
        **meaning("texture", PATTERNS, after=True),
        **meaning("style", _forms(STYLE_WORDS, plural=True)),
        **meaning("style", _forms(STYLE_WORDS, plural=False)),
        **meaning("style", STYLE_NOUNS),
        **meaning("relation", {r: [words for words, _ in found] for r, found in RELATIONS.items()}),
        **meaning("number", _NUMBERS),
        **meaning("picture", {None: ("рисунок", "рисунке", "картинка", "картинке", "изображение", "изображении")}),
        **meaning("that", {None: WHICH}),
        **meaning("glue", {None: ("и", "а", "с", "со", "в", "на", "здесь", "перед", "нами", "находится", "находятся")}),
        **meaning("glue", {None: ("стиле", "тонах", "цвета", "графика", "сцена", "одними", "есть", "это")}),
    }
)
RUSSIAN = Language(
    "Russian",
    "красный круг слева от синей звезды",
    Russian(),
    Lexicon(_WORDS, [found[0].one.split()[0] for found in NOUNS.values()]),
    Fillers(sentences("ru"), medium=(7.0, 26.0), long=(80.0, 160.0)),
)
