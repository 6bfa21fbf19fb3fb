"""Numbers in messages."""

import pytest

from syzygy.wording import counted, printable


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (2983, "2,983 pairs"), (-1, "-1 pairs")]
)
def test_a_noun_follows_its_number(number: int, text: str) -> None:
    assert counted(number, "pair") == text


def test_a_plural_that_is_not_regular() -> None:
    assert counted(1, "image of which", "images of which") == "1 image of which"
    assert counted(2, "entry", "entries") == "2 entries"


def test_control_characters_of_text_from_elsewhere_do_not_reach_a_terminal() -> None:
    assert (
        printable("a\x1b[31m\x00\x9b red\tcircle\nü ‍👩‍🎨 \ud800")
        == r"a\x1b[31m\x00\x9b red" + "\tcircle\nü ‍👩‍🎨 " + r"\ud800"
    )
