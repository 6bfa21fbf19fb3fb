"""Subjects: what is asked, what is measured, what the candidates read, and the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from syzygy.clip.zero_image import ZeroImage
from syzygy.core.model_parts import part_folder
from syzygy.generation.best_of import pixel_scores
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import subject_accuracy
from syzygy.lab.evaluate.subject_accuracy import NONE, OTHER, REFERENCE, SUBJECT, WORDS, SubjectCase, SubjectsConfig
from syzygy.lab.world.language import language
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_subjects import WORD
from syzygy.lab.world.vocabulary import notes
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from tests.conftest import Answer
from tests.tiny_unclip import tiny_lambda_eclipse

STARTER_WIDTH = 192


@pytest.fixture(scope="module")
def cases() -> list[SubjectCase]:
    return subject_accuracy.subject_cases(SubjectsConfig(prompts=6))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lambda_eclipse(tmp_path_factory.mktemp("lambda") / "prior", STARTER_WIDTH)


def test_the_word_stands_for_a_thing_that_the_other_text_names_fully(cases: list[SubjectCase]) -> None:
    assert len(cases) == 6 * 2 * len(subject_accuracy.KINDS)
    for case in cases:
        assert WORD in case.text.replace(".", "").replace(",", "").split()
        understood = language("en").parse(case.words.text).description
        assert understood.key == case.words.description.key
        assert case.mention.colour
        assert case.mention.texture
        assert case.words.unseen == understood.unseen
        for named in (case.mention.shape, case.mention.texture):
            assert named not in case.text.split() or len(understood.mentions) > 1
        others = [one for one in understood.mentions if one != case.mention]
        assert all(one.shape in case.text for one in others)


def test_the_subject_counts_only_with_all_attributes_and_the_rest_without_it(cases: list[SubjectCase]) -> None:
    case = next(one for one in cases if one.words.category == "colour")
    mention, other = case.mention, next(m for m in case.words.description.mentions if m != case.mention)
    rest = Thing(other.shape, other.colour or "red", other.texture or "plain", 0.7, 0.7, 0.1)
    texture = next(one for one in ("plain", "striped", "dotted") if one != mention.texture)

    def values(*things: Thing) -> dict[str, float]:
        found = subject_accuracy.scores([case], [Prediction(things, "flat", (0.9,) * len(things))])
        return {name: rows[0][0] for name, rows in found.items()}

    right, wrong = (Thing(mention.shape, mention.colour, one, 0.2, 0.2, 0.1) for one in (mention.texture, texture))
    assert set(values(right, rest).values()) == {1.0}
    only = values(right)
    assert (only["appearance"], only["rest"], only["prompt_accuracy"]) == (1.0, 0.0, 0.0)
    other_texture = values(wrong, rest)
    assert (other_texture["appearance"], other_texture["shape"], other_texture["rest"]) == (0.0, 1.0, 1.0)


def test_candidates_differ_in_what_the_prior_reads(cases: list[SubjectCase], prior: Path) -> None:
    model = TextToImage.from_pretrained("starter", prior=prior)
    assert model.pipeline.conditions == ("image",), "the texts do not show the subject"
    network = LambdaEclipsePrior.from_pretrained(prior)
    network.zero_image = ZeroImage(model.clip, "test")
    found = subject_accuracy.guides(model, network, cases, SubjectsConfig(prompts=6))
    assert list(found) == [SUBJECT, WORDS, NONE, OTHER, REFERENCE]
    embeddings = {name: embedding for name, (_, _, embedding) in found.items()}
    for first in found:
        for second in found:
            assert (first == second) == torch.equal(embeddings[first], embeddings[second])
    assert found[WORDS][0] == [case.words.text for case in cases]
    assert found[SUBJECT][0] == found[NONE][0] == found[OTHER][0] == [case.text for case in cases]


def test_a_prompt_may_name_a_subject_alone() -> None:
    assert notes("a thing", ["en"], {"thing"}) == []
    assert len(notes("a thing", ["en"])) == 1


def test_of_several_images_the_one_nearest_to_the_prediction_is_scored(cases: list[SubjectCase], prior: Path) -> None:
    model = TextToImage.from_pretrained("starter", prior=prior)
    network = subject_accuracy.check(model, None)

    def images(best_of: int) -> torch.Tensor:
        config = SubjectsConfig(prompts=6, steps=1, best_of=best_of)
        return subject_accuracy.candidates(model, network, cases[:6], config)[-1].generate(range(6))

    true = subject_accuracy.guides(model, network, cases[:6], SubjectsConfig(prompts=6))[REFERENCE][2]
    one, three = pixel_scores(images(1), true, model.clip), pixel_scores(images(3), true, model.clip)
    assert (three >= one - 1e-4).all()
    assert (three > one + 1e-4).any()


def test_the_command_compares_with_its_controls(syzygy: Callable[..., Answer], prior: Path, tmp_path: Path) -> None:
    common = ("evaluate", "subjects", "--prompts", 2, "--steps", 1, "--device", "cpu")
    answer = syzygy(*common, "--prior", prior, "--json", "-", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["conditions"] == ["image"]
    assert result["prompts"] == 12
    rows = [row for row in result["rows"] if (row["category"], row["side"]) == ("all", "all")]
    assert [row["candidate"] for row in rows] == [SUBJECT, WORDS, NONE, OTHER, REFERENCE]
    assert {"rest_against_words", "against_none"} <= set(rows[0])
    assert "against_none" not in rows[1]
    for file in ("index.html", "report.md", "grid.png", "results.json", "predictions.jsonl"):
        assert (tmp_path / "out" / file).is_file()
    other = syzygy(*common, "--prior", part_folder("starter", "prior"))
    assert other.code
    assert "reads no subjects" in other.err
