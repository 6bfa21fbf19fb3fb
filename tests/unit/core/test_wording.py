"""Numbers in messages."""

import pytest

from syzygy.core.wording import counted, duration, printable, shortlist, size


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (2983, "2,983 pairs"), (-1, "-1 pairs")]
)
def test_a_noun_follows_its_number(number: int, text: str) -> None:
    assert counted(number, "pair") == text


def test_a_plural_that_is_not_regular() -> None:
    assert counted(1, "image of which", "images of which") == "1 image of which"
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2134, "0.21 s"),
        (42.4, "42 s"),
        (200, "3 min 20 s"),
        (18180, "5 h 3 min"),
        (86400 * 2 + 4 * 3600, "2 days 4 h"),
        (90000, "1 day 1 h"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_for_people() -> None:
    assert [size(x) for x in (900, 12_340_000, 3_456_000_000)] == ["1 kB", "12.3 MB", "3.5 GB"]


def test_long_lists_are_cut_and_the_rest_is_counted() -> None:
    assert [shortlist(list("abcd")[:number], 2) for number in range(5)] == [
        "",
        "a",
        "a, b",
        "a, b and 1 more",
        "a, b and 2 more",
    ]


def test_control_characters_of_text_from_elsewhere_do_not_reach_a_terminal() -> None:
    assert (
        printable("a\x1b[31m\x00\x9b red\tcircle\nü ‍👩‍🎨 \ud800")
        == r"a\x1b[31m\x00\x9b red" + "\tcircle\nü ‍👩‍🎨 " + r"\ud800"
    )
