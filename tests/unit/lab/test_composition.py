"""Scores: intervals, pairing, rows; and that a right picture is scored right, a wrong one wrong."""

from pathlib import Path

import torch

from syzygy.core.randomness import Draw
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition, harness
from syzygy.lab.evaluate.composition import CompositionConfig, ScoredImage
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_sampling import scene_for


def scored(candidate: str, prompt: Prompt, right: bool, draw: int = 0) -> ScoredImage:
    scene = scene_for(prompt.description, Draw(1, prompt.text))
    wrong = Description(tuple(Mention("star" if m.shape != "star" else "ring") for m in prompt.description.mentions))
    other = scene_for(wrong, Draw(1, "other"))
    shown = scene if right else other
    seen = Prediction(shown.things, shown.style, (0.9,) * len(shown.things))
    return ScoredImage(candidate, prompt, draw, torch.zeros(3, 8, 8, dtype=torch.uint8), seen)


def test_table_keeps_seen_and_unseen_apart() -> None:
    wanted = prompts("colour", 4, 0, False) + prompts("colour", 4, 0, True)
    found = [scored("a", prompt, not prompt.unseen) for prompt in wanted]
    rows = composition.table(wanted, composition.scenes_of(found))
    shares = {(r["category"], r["side"]): r["prompt_accuracy"].mean for r in rows if r["side"] != "all"}
    assert shares == {("colour", "seen"): 1, ("colour", "unseen"): 0, ("all", "seen"): 1, ("all", "unseen"): 0}
    assert all(r["prompt_accuracy"].number == (8 if r["side"] == "all" else 4) for r in rows)
    kinds = {r["side"]: r["atoms"] for r in rows if r["category"] == "all"}
    assert kinds["seen"] == {"shape": 1.0, "colour": 1.0}
    assert kinds["all"]["shape"] == 0.5
    assert [one.correct for one in found] == [True] * 4 + [False] * 4


def test_images_of_a_prompt_stay_together_and_differences_are_paired() -> None:
    wanted = prompts("colour", 3, 0, False)
    several = {
        name: [scored(name, p, (i + draw) % 2 == right, draw).scene for i, p in enumerate(wanted) for draw in range(2)]
        for right, name in enumerate((composition.REFERENCE, "a"))
    }
    assert harness.accuracies(wanted, several["reference"])["prompt_accuracy"] == [[1, 0], [0, 1], [1, 0]]
    rows = {(row["candidate"], row["category"], row["side"]): row for row in composition.table(wanted, several)}
    assert rows["a", "all", "all"]["against_reference"].number == 3
    assert rows["a", "all", "all"]["against_reference"].mean == 0
    assert "against_reference" not in rows["reference", "all", "all"]


def test_each_image_of_a_prompt_has_noise_of_its_own(tiny_model: Path) -> None:
    model = TextToImage.from_pretrained(tiny_model)
    wanted = prompts("single", 2, 0, False)
    embeddings = {"reference": composition.reference_embeddings(wanted, model.clip, 0, 32)}
    one, two = (
        composition.generate_and_score(
            model, embeddings, wanted, CompositionConfig(steps=2, guidance_scale=1.0, draws=draws)
        )
        for draws in (1, 2)
    )
    assert [(p.prompt, p.draw) for p in two] == [(wanted[0], 0), (wanted[0], 1), (wanted[1], 0), (wanted[1], 1)]
    assert not torch.equal(two[0].image, two[1].image)
    for first, again in zip(one, two[::2], strict=True):
        assert (first.image.int() - again.image.int()).abs().max() <= 1


def test_shuffled_prompts_are_others_of_the_same_category_and_side() -> None:
    wanted = prompts("colour", 5, 0, False) + prompts("single", 4, 0, True)
    other = composition.shuffled_prompts(wanted, 0)
    assert sorted(other) == list(range(9))
    assert all(i != j for i, j in enumerate(other))
    assert all(wanted[i].category == wanted[j].category for i, j in enumerate(other))
