"""Scores: intervals, pairing, rows; and that a right picture is scored right, a wrong one wrong."""

from pathlib import Path

import torch

from syzygy.core.randomness import Draw
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition
from syzygy.lab.evaluate.composition import Painted
from syzygy.lab.world.description import Description, Mention, check_facts
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene_sampling import scene_for


def painted(candidate: str, prompt: Prompt, right: bool, draw: int = 0) -> Painted:
    scene = scene_for(prompt.description, Draw(1, prompt.text))
    wrong = Description(tuple(Mention("star" if m.shape != "star" else "ring") for m in prompt.description.mentions))
    other = scene_for(wrong, Draw(1, "other"))
    atoms = check_facts(prompt.description, scene if right else other)
    return Painted(candidate, prompt, draw, torch.zeros(3, 8, 8, dtype=torch.uint8), atoms, 0)


def test_table_keeps_seen_and_held_out_apart() -> None:
    seen, unseen = prompts("colour", 4, 0, False), prompts("colour", 4, 0, True)
    rows = composition.table([painted("a", p, True) for p in seen] + [painted("a", p, False) for p in unseen])
    shares = {(r["category"], r["held_out"]): r["agreement"] for r in rows}
    assert shares == {("colour", False): 1.0, ("colour", True): 0.0, ("all", False): 1.0, ("all", True): 0.0}
    assert all(r["prompts"] == 4 for r in rows)


def test_pictures_of_a_prompt_stay_together() -> None:
    asked = prompts("colour", 3, 0, False)
    several = [painted("a", p, (i + draw) % 2 == 0, draw) for draw in range(2) for i, p in enumerate(asked)]
    assert composition.by_prompt(several, lambda one: float(one.agrees)) == [[1, 0], [0, 1], [1, 0]]
    assert composition.agreement(several).number == 3


def test_each_picture_of_a_prompt_has_noise_of_its_own(tiny_model: Path) -> None:
    model = TextToImage.from_pretrained(tiny_model)
    asked = prompts("single", 2, 0, False)
    embeddings = {"reference": composition.reference_embeddings(asked, model.clip, 0, 32)}
    one, two = (
        composition.paint_and_judge(
            asked, embeddings, model.pipeline, model.reader(), composition.Painting(0, 2, 1.0, n)
        )
        for n in (1, 2)
    )
    assert [p.draw for p in two] == [0, 1, 0, 1]
    assert not torch.equal(two[0].picture, two[1].picture)
    for first, again in zip(one, two[::2], strict=True):
        assert (first.picture.int() - again.picture.int()).abs().max() <= 1
