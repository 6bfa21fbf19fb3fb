"""Filters over a store's columns: what they mean, and that they are read, never run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.core.errors import UserError
from syzygy.data.filtering import Comparison, Joined, parse_filter, passing
from syzygy.data.store import EmbeddingStore

NAN = float("nan")


class Columns(EmbeddingStore):
    """What a filter asks of a store."""

    columns = {"width": "number", "aesthetic": "number", "nsfw": "boolean", "source": "text", "a b": "number"}
    values: dict[str, Any] = {
        "width": torch.tensor([512.0, 100, NAN, 600]).double(),
        "aesthetic": torch.tensor([5.5, 9, 7, 6]).double(),
        "nsfw": torch.tensor([False, True, False, False]),
        "source": ["photo", "", "drawing", "photo"],
        "a b": torch.tensor([1.0, 2, 3, 4]).double(),
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
    ],
)
def test_what_passes(text: str, expected: list[int]) -> None:
    assert passed(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks a column at its end"),
        ("width", "lacks one of < <= > >= == != at its end"),
        ("width > 5 6", "lacks and, or, or the end before '6'"),
        ("width > 'a", 'cannot be read from "\'a" on'),
        ("(width > 5", "lacks a closing bracket"),
        ("width > height", "lacks a number, true, false, or a text in quotes before 'height'"),
        ("and > 5", "lacks a column before 'and > 5'"),
        ("width > 5 and", "lacks a column at its end"),
        ("__import__('os').system('true')", "cannot be read from"),
        ("width = 5", "cannot be read from '= 5' on"),
        ("5abc > 5", "cannot be read"),
        ("height > 5", "unknown column of store 'height'.*Known: a b, aesthetic, nsfw, source, width"),
        ("width > true", "holds number; it cannot be compared with a boolean"),
        ("source > 'a'", "compare it by == or !="),
        ("nsfw == 1", "holds boolean; it cannot be compared with a number"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        passed(text)


conditions = st.recursive(
    st.builds(
        Comparison,
        column=st.sampled_from(["width", "a_b", "clip.score"]),
        sign=st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        value=st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text("ab c(<", max_size=4),
    ),
    lambda parts: st.builds(Joined, parts=st.lists(parts, min_size=2, max_size=3).map(tuple), every=st.booleans()),
    max_leaves=6,
)


def written(condition: Comparison | Joined) -> str:
    if isinstance(condition, Comparison):
        value = condition.value
        said = (
            f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
        )
        return f"{condition.column}{condition.sign}{said}"
    return f" {'and' if condition.every else 'or'} ".join(f"({written(part)})" for part in condition.parts)


@given(conditions)
def test_what_is_written_is_read(condition: Comparison | Joined) -> None:
    assert parse_filter(written(condition)) == condition
