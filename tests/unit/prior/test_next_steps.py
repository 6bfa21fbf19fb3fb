"""Commands to try next: with the user's own captions, and only where a decoder can show them."""

from pathlib import Path

import pytest

from syzygy.lab.starter.prior_training import of_the_world
from syzygy.prior.next_steps import ABOUT, NO_PICTURES, generated, shortened, starter_clip

WORLD = ["a red circle above a blue star", "three green hearts", "ein roter Kreis"]
OWN = ["a photo of my grandmother's garden in spring", "two cats on a sofa", "a red circle"]


def test_captions_tell_whether_they_are_of_the_embedded_world() -> None:
    assert of_the_world(WORLD)
    assert not of_the_world(OWN)
    assert not of_the_world([])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"clip": "starter", ABOUT: {"world": True}}, ("syzygy generate 'a cat'\"'\"'s tail' --prior 'my run'",)),
        ({"clip": "starter"}, ("syzygy generate 'a cat'\"'\"'s tail' --prior 'my run'",)),
        ({"clip": "starter", ABOUT: {"world": False}}, (NO_PICTURES,)),
        ({"clip": "x", "recipe": {"embedding_dim": 768}}, ("syzygy generate 'a cat'\"'\"'s tail' --model karlo --prior 'my run'",)),
        ({"clip": "x", "recipe": {"embedding_dim": 1280}}, ("syzygy generate 'a cat'\"'\"'s tail' --model kandinsky-2.2 --prior 'my run'",)),
        ({"clip": "x", "recipe": {"embedding_dim": None}}, ()),
    ],
)  # fmt: skip
def test_only_a_decoder_that_can_show_it_is_suggested(record: dict[str, object], expected: tuple[str, ...]) -> None:
    record = record | ({"clip": starter_clip()} if record["clip"] == "starter" else {})
    assert generated(record, "a  cat's\ntail", Path("my run")) == expected


def test_without_an_own_caption_the_world_has_one() -> None:
    assert generated({"clip": starter_clip()}, None, Path("run")) == ("syzygy generate 'a red circle' --prior run",)


def test_long_captions_are_cut_between_words() -> None:
    text = shortened("a very " * 30)
    assert len(text) <= 60
    assert text.endswith(("a", "very"))
    assert shortened("x" * 100) == "x" * 60
    assert shortened("a cat") == "a cat"


def test_a_prior_that_reads_subjects_is_tried_with_one() -> None:
    recipe = {"task": {"controlled": 0.2}, "embedding_dim": 1280}
    world = generated({"clip": starter_clip(), "recipe": recipe}, None, Path("run"))
    assert world[0].startswith("syzygy world show ")
    assert "--prior run --subject thing=subject.png" in world[1]
    assert world[2] == "syzygy evaluate subjects --prior run"
    assert generated({"clip": "x", "recipe": recipe}, "a dog", Path("run")) == (
        "syzygy generate 'a dog' --model kandinsky-2.2 --prior run --subject WORD=PICTURE",
    )
