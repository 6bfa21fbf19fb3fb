"""Filters over a store's columns: what they mean, and that they are read, never run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.core.errors import UserError
from syzygy.data.filtering import passing
from syzygy.data.store import EmbeddingStore

NAN = float("nan")


class Columns(EmbeddingStore):
    """What a filter asks of a store."""

    columns = {
        "width": "number",
        "aesthetic": "number",
        "nsfw": "boolean",
        "source": "text",
        "a b": "number",
        "clip.score": "number",
        "class": "text",
        "größe m": "number",
    }
    values: dict[str, Any] = {
        "width": torch.tensor([512.0, 100, NAN, 600]).double(),
        "aesthetic": torch.tensor([5.5, 9, 7, 6]).double(),
        "nsfw": torch.tensor([False, True, False, False]),
        "source": ["photo", "", "drawing", "photo"],
        "a b": torch.tensor([1.0, 2, 3, 4]).double(),
        "clip.score": torch.tensor([0.1, 0.2, 0.3, 0.4]).double(),
        "class": ["cat", "dog", "a \\n", "cat"],
        "größe m": torch.tensor([1.0, 2, 3, 4]).double(),
    }

    def __init__(self) -> None:
        self.path = Path("store")

    def column(self, name: str) -> Any:
        return self.values[name]


def passed(text: str) -> list[int]:
    return passing(Columns(), text).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width>=512 and aesthetic>5.5", [3]),
        ("width >= 512", [0, 3]),
        ("width != 512", [1, 3]),  # what is missing passes nothing
        ("width < 1e9", [0, 1, 3]),
        ("aesthetic <= 6", [0, 3]),
        ("nsfw == false", [0, 2, 3]),
        ("nsfw != false", [1]),
        ("source == 'photo'", [0, 3]),
        ('source != ""', [0, 2, 3]),
        ("`a b` == 2", [1]),
        ("aesthetic > 8 or width == 512 and nsfw == true", [1]),  # and binds more tightly
        ("(aesthetic > 8 or width == 512) and nsfw == false", [0]),
        ("aesthetic > -1", [0, 1, 2, 3]),
        ("aesthetic > .5e1", [0, 1, 2, 3]),
        ("width < 0512.", [1]),
        ("\n aesthetic\n > 6 ", [1, 2]),
        ("clip.score >= .3 and class == 'cat'", [3]),  # a dot, and a word of Python's
        ("class == 'a \\n'", [2]),  # a backslash is a backslash
        ("`größe m` >= 3 and source == 'photo'", [3]),
        ("source in ('photo', '')", [0, 1, 3]),
        ("source not in ('photo', '')", [2]),
        ("width in (100, 600, 5)", [1, 3]),
        ("not (width > 512)", [0, 1]),  # what is missing passes nothing, negated or not
        ("not (width > 512 or nsfw == true)", [0]),
        ("not (source == 'photo' and aesthetic < 6)", [1, 2, 3]),
        ("not source in ('photo', '')", [2]),
    ],
)
def test_what_passes(text: str, expected: list[int]) -> None:
    assert passed(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks a column at its end"),
        ("width", "lacks one of < <= > >= == != in at its end"),
        ("width > 5 6", "lacks and, or, or the end before '6'"),
        ("width > 'a", 'cannot be read from "\'a" on'),
        ("(width > 5", "lacks a closing bracket"),
        ("width > height", "lacks a number, true, false, or a text in quotes before 'height'"),
        ("and > 5", "lacks a column before 'and > 5'"),
        ("width > 5 and", "lacks a column at its end"),
        ("__import__('os').system('true')", "cannot be read from"),
        ("__import__('os') == 1", "lacks a column before"),
        ("width > (1).real", "cannot be read from"),
        ("width > 5 #", "cannot be read from '#' on"),
        ("5 < width < 9", "lacks and, or, or the end before '< 9'"),
        ("width > 5)", "lacks and, or, or the end before '\\)'"),
        ("width > 5 or or width < 3", "lacks a column before 'or width < 3'"),
        ("source == 'a' 'b'", "lacks and, or, or the end before \"'b'\""),
        ("width > 5-1", "lacks a number, .* before '5-1'"),
        ("width > not 5", "lacks a number, .* before 'not 5'"),
        ("true == 5", "lacks a column before 'true == 5'"),
        ("source in 'photo'", "lacks a list such as .* before \"'photo'\""),
        ("width, nsfw", "lacks one of < <= .* in at its end"),
        ("lambda: 5", "cannot be read from ': 5' on"),
        ("(" * 1000 + "width > 5" + ")" * 1000, "cannot be read: "),
        ("width in ('a', 5)", "holds number; it cannot be compared with a text"),
        ("width = 5", "cannot be read from '= 5' on"),
        ("5abc > 5", "cannot be read"),
        ("height > 5", "unknown column of store 'height'.*Known: a b, aesthetic, class, "),
        ("width > true", "holds number; it cannot be compared with a boolean"),
        ("source > 'a'", "compare it by == or !="),
        ("nsfw == 1", "holds boolean; it cannot be compared with a number"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        passed(text)


ROWS = [{"width": 1.0, "a_b": -0.5, "fine": True}, {"width": -3.0, "a_b": 2.5, "fine": False}]


class TwoRows(Columns):
    """What Python itself can say of each row."""

    columns = {"width": "number", "a_b": "number", "fine": "boolean"}
    values = {
        "width": torch.tensor([row["width"] for row in ROWS]).double(),
        "a_b": torch.tensor([row["a_b"] for row in ROWS]).double(),
        "fine": torch.tensor([row["fine"] for row in ROWS]),
    }


numbers = st.sampled_from(["1", "-3", "2.5", "-.5", "1e-9", "7"])
comparisons = st.one_of(
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["width", "a_b"]),
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        numbers,
    ),
    st.builds(
        "{} {} ({}, {})".format, st.sampled_from(["width", "a_b"]), st.sampled_from(["in", "not in"]), numbers, numbers
    ),
    st.builds("fine {} {}".format, st.sampled_from(["==", "!="]), st.sampled_from(["true", "false"])),
)
conditions = st.recursive(
    comparisons,
    lambda parts: st.one_of(
        st.builds("({})".format, parts),
        st.builds("not {}".format, parts),
        st.builds("{} and {}".format, parts, parts),
        st.builds("{} or {}".format, parts, parts),
    ),
    max_leaves=6,
)


@given(conditions)
def test_a_filter_means_what_python_means_by_it(condition: str) -> None:
    expected = [bool(eval(condition, {"true": True, "false": False}, row)) for row in ROWS]
    assert passing(TwoRows(), condition).tolist() == expected
