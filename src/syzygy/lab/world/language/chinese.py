"""Chinese (simplified): measure words, no spaces, and relations around their target: A 在 B 的左边.

A text is cut into the longest words that are known; what lies between is one unknown word.
"""

# ruff: noqa: RUF001 (letters and marks of another script are no slips here)

import re
from collections.abc import Mapping, Sequence

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import Lexicon, Token, Word, meaning
from syzygy.lab.world.language.sentence import Link, Opening, Phrase, Slot, StyleWording, Turned
from syzygy.lab.world.scene import Colour, Relation, Shape, Style, Texture

NOUNS: dict[Shape, tuple[tuple[str, str], ...]] = {
    "circle": (("圆形", "个"),),
    "square": (("正方形", "个"), ("方块", "个")),
    "triangle": (("三角形", "个"),),
    "star": (("星星", "颗"), ("五角星", "颗"), ("五角星", "个")),
    "heart": (("心形", "个"), ("爱心", "颗"), ("爱心", "个")),
    "cross": (("十字", "个"), ("十字形", "个")),
    "ring": (("圆环", "个"),),
    "moon": (("月亮", "个"), ("月亮", "轮"), ("弯月", "轮")),
}
"""With measure words."""
COLOURS: dict[Colour, tuple[str, ...]] = {
    "red": ("红色",),
    "orange": ("橙色", "橘色"),
    "yellow": ("黄色",),
    "green": ("绿色",),
    "cyan": ("青色",),
    "blue": ("蓝色",),
    "purple": ("紫色",),
    "pink": ("粉色", "粉红色"),
}
TEXTURES: dict[Texture, tuple[str, ...]] = {"plain": ("纯色",), "striped": ("条纹",), "dotted": ("波点",)}
"""Directly before the noun."""
LONG_TEXTURES: dict[Texture, tuple[str, ...]] = {
    "plain": ("纯色的",),
    "striped": ("带条纹的", "条纹图案的"),
    "dotted": ("带圆点的", "带波点的", "圆点图案的"),
}
"""Before the colour."""
RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上方", "上面"),
    "below": ("下方", "下面"),
}
NUMBERS = "一两三四五六七八九"
MEASURES = "个颗轮枚弯只"


def _wording(openings: Sequence[str], heading: str, tail: str) -> StyleWording:
    return StyleWording([Opening(text) for text in openings], [Opening(f"{heading}：")], f"，{tail}")


STYLE_WORDINGS: dict[Style, tuple[StyleWording, ...]] = {
    "flat": (
        _wording(("一幅扁平风格的画，画中有", "一张扁平风格的图，图中有"), "扁平风格的画", "扁平风格"),
        _wording(("一幅扁平化的画，画中有",), "扁平化的画", "扁平化风格"),
    ),
    "outline": (
        _wording(("一幅线稿，画中有", "一张线稿，图中有"), "线稿", "线稿风格"),
        _wording(("一幅线描画，画中有",), "线描画", "线描风格"),
    ),
    "pastel": (
        _wording(("一幅粉彩画，画中有", "一张粉彩风格的图，图中有"), "粉彩画", "粉彩风格"),
        _wording(("一幅淡彩画，画中有",), "淡彩画", "淡彩风格"),
    ),
    "night": (
        _wording(("一幅夜景画，画中有", "一张夜景图，图中有"), "夜景画", "夜景风格"),
        _wording(("一幅夜晚风格的画，画中有",), "夜晚风格的画", "夜晚风格"),
    ),
}
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "flat": ("扁平", "扁平化", "平面"),
    "outline": ("线稿", "线描", "轮廓", "线条"),
    "pastel": ("粉彩", "淡彩", "柔和"),
    "night": ("夜景", "夜晚", "夜间", "黑夜"),
}
OPENINGS = [Opening(text) for text in ("图中有", "画面上有", "这里有", "图上有", "画里有")]


class Chinese:
    """`Grammar` of Chinese. What stands before a place word ("…的左边") has the genitive's slot: with as few 的 as it can."""

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        return STYLE_WORDINGS[style]

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        return Opening(""), Opening(""), draw.pick(OPENINGS), draw.pick(OPENINGS)

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        noun, measure = draw.pick(NOUNS[mention.shape])
        colour = draw.pick(COLOURS[mention.colour]) if mention.colour else ""
        loose = (
            "的" if colour and (slot.case, slot.article) == ("nominative", "indefinite") and draw.chance(0.5) else ""
        )
        if mention.texture and (draw.chance(0.4) or mention.texture == "plain"):  # 红色纯色 would name two colours
            look = draw.pick(LONG_TEXTURES[mention.texture]) + colour
        elif mention.texture:
            look = colour + loose + draw.pick(TEXTURES[mention.texture])
        else:
            look = colour + loose
        number = NUMBERS[mention.count - 1] + measure
        return Phrase(("" if mention.count == 1 and slot.article == "none" else number) + look + noun)

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        return text, phrase

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        place = draw.pick(RELATIONS[relation])
        at = "，后者在" if again else draw.pick(("在", "在", "位于"))
        of = draw.pick(("的", "")) if place.endswith(("边", "面")) else draw.pick(("的", "的", ""))
        return Link(at, slot._replace(case="genitive"), f"{of}{place}")

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned | None:
        if not alone:  # what follows would be there too
            return None
        between = f"的{draw.pick(RELATIONS[relation])}{draw.pick(('有', '是'))}"
        return Turned(draw.pick(("", "在")) if between.endswith("有") else "", Slot("genitive"), between, Slot())

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        if clauses:
            return "，还有" if last and slot.article != "none" else "，"
        return "和" if last and slot.article != "none" else "、"

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        return text if alone and draw.chance(0.5) else f"{text}。"


def _counts() -> Mapping[int, list[str]]:
    spelled = {n: (NUMBERS[n - 1], str(n), *(["二"] if n == 2 else [])) for n in range(1, 10)}
    return {n: [s + m for s in spelled[n] for m in ("", *MEASURES)] for n in spelled}


AT = ("在", "位于")
_WORDS: dict[str, Word] = {
    **meaning("noun", {s: [noun for noun, _ in found] for s, found in NOUNS.items()}),
    **meaning("noun", {"circle": ("圆", "圆圈"), "square": ("方形",), "star": ("星", "星形"), "heart": ("心",)}),
    **meaning("noun", {"cross": ("十字架",), "ring": ("环", "环形"), "moon": ("月", "月牙")}),
    **meaning("colour", COLOURS),
    **meaning("colour", {c: [word.removesuffix("色") for word in words] for c, words in COLOURS.items()}),
    **meaning("texture", TEXTURES),
    **meaning("texture", {"plain": ("单色", "素色"), "dotted": ("圆点", "斑点")}),
    **meaning("style", STYLE_WORDS),
    **meaning("relation", RELATIONS),
    **meaning("relation", {"left of": ("左面",), "right of": ("右面",), "above": ("上边",), "below": ("下边",)}),
    **meaning("number", _counts()),
    **meaning(
        "picture",
        {None: ("画", "图", "图片", "画面", "画面上", "图中", "图上", "画里", "画中", "一幅", "一张", "幅", "张")},
    ),
    **meaning(
        "glue",
        {None: ("的", "是", "有", "和", "与", "带", "着", "画着", "风格", "里", "还有", "这里", "后者", "图案", *AT)},
    ),
}


def _place_before_target(tokens: list[Token]) -> list[Token]:
    """With each relation before its target, where a reader expects it: A 在 B 左边 becomes A 左边 B."""
    found: list[Token] = []
    begins, at = [0], False
    for token in tokens:
        role = token.word.role if token.word else None
        if token.word and role == "relation" and len(begins) > 1:
            opens = token.word._replace(opens=not at or len(begins) < 3)
            found.insert(begins[-2], Token(token.text, opens))
            begins, at = [*begins[:-1], len(found)], False
            continue
        at = at or token.text in AT
        found.append(token)
        if role == "noun":
            begins.append(len(found))
    return found


def _word() -> str:
    known = "|".join(re.escape(word) for word in sorted(_WORDS, key=len, reverse=True))
    return rf"(?:{known})|(?:(?!{known})\w)+"


CHINESE = Language(
    "Chinese",
    "一个红色的圆形在一颗蓝色星星的左边",
    Chinese(),
    Lexicon(_WORDS, [found[0][0] for found in NOUNS.values()], word=_word(), ordered=_place_before_target),
    Fillers(sentences("zh"), medium=(14.0, 48.0), long=(120.0, 240.0), size=len, space="", ends="。！？"),
)
