"""The judge that scores: one for all models, named in all results; settings of sweeps are chosen by the reader."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import region_accuracy, selection
from syzygy.lab.evaluate.composition import ScoredImage
from syzygy.lab.evaluate.harness import EvaluationContext, Predictions
from syzygy.lab.evaluate.judging import FOLDER, judge_of, judge_on, judge_record
from syzygy.lab.evaluate.region_accuracy import RegionCase, RegionsConfig, region_cases, region_prompts
from syzygy.lab.reproduce.experiment import ExperimentFolder, judge_lines, judged
from syzygy.lab.starter.classifier_training import rendered
from syzygy.lab.world.classifier_scores import accuracy, read_all
from syzygy.lab.world.prompts import prompts
from syzygy.lab.world.reader import Reader
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_classifier import Prediction


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImage:
    return TextToImage.from_pretrained(tiny_model)


def test_one_judge_scores_every_model(model: TextToImage) -> None:
    assert all(
        torch.equal(a, b) for a, b in zip(judge_of(model).parameters(), judge_on("cpu").parameters(), strict=True)
    )
    with pytest.raises(UserError, match="embedded world only"):
        judge_of(replace_world(model))


def replace_world(model: TextToImage) -> TextToImage:
    """The same model, as if it made images of anything."""
    other = object.__new__(TextToImage)
    other.__dict__.update(vars(model) | {"world": False, "name": "other"})
    return other


@pytest.mark.parametrize("kind", ["reader", "judge"])
def test_the_starters_classifiers_read_almost_everything(kind: str) -> None:
    folder = FOLDER.parent / kind
    classifier = judge_on("cpu") if kind == "judge" else Reader.from_pretrained(folder)
    batch = rendered("test of the starter", 0, 0, 400)
    found = accuracy(read_all(classifier, batch.images), batch.scenes)
    assert min(found[name] for name in ("shape", "colour", "texture", "count", "style")) >= 0.98, found
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2**20


def test_results_name_the_judge_and_its_errors() -> None:
    record = judge_record()
    assert 0 <= record["errors"]["shape"] <= record["errors"]["scene"] < 0.05
    results = judged({"a": 1})
    assert results == {"a": 1, "judge": record}
    (line,) = judge_lines(results)
    assert record["fingerprint"] in line
    assert judge_lines({"a": 1}) == []


def test_images_that_another_judge_scored_are_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ExperimentFolder(tmp_path)
    prompt = prompts("single", 1, 0, False)[0]
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    folder.keep_images("one", [ScoredImage("one", prompt, 0, image, Prediction((), "flat", ()))], [prompt])
    assert folder.has_images("one")
    assert not folder.has_images("two")
    other = judge_record() | {"fingerprint": "of another judge"}
    monkeypatch.setattr("syzygy.lab.reproduce.experiment.judge_record", lambda: other)
    assert not folder.has_images("one")


def perfect(case: RegionCase) -> Prediction:
    """Every object in its region."""
    things = []
    for mention, region in zip(case.mentions, case.regions, strict=True):
        rows, columns = region.mask.nonzero(as_tuple=True)
        place = float(columns.float().mean()) / region.mask.shape[1], float(rows.float().mean()) / region.mask.shape[0]
        things.append(Thing(mention.shape, mention.colour or "red", mention.texture or "plain", *place, 0.1))
    return Prediction(tuple(things), "flat", (1.0,) * len(things))


def test_the_reader_chooses_and_the_judge_scores(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the two disagree, the strength is the reader's choice, and the rows are of the judge."""
    config = RegionsConfig(steps=1, prompts=2, strengths=(0.5, 1.0))
    nothing = Prediction((), "flat", ())

    def predict(self: EvaluationContext, candidates, *, also) -> dict[str, Predictions]:
        assert list(also) == [selection.READER]
        found = {}
        for one in candidates:
            right = cases if "exchanged" not in one.name else region_accuracy.with_two(cases)
            judged = [perfect(case) if "w' 1" in one.name else nothing for case in right]
            read = [perfect(case) if "w' 0.5" in one.name else nothing for case in right]
            found[one.name] = Predictions(judged, {selection.READER: [asdict(each) for each in read]})
        return found

    cases = region_cases(region_prompts(config), config.seed)
    monkeypatch.setattr(EvaluationContext, "predict", predict)
    result = region_accuracy.evaluate(EvaluationContext("regions", model, config, None)).result
    assert result["chosen_strength"] == 0.5
    rows = {
        row["candidate"]: row["in_place"]["mean"] for row in result["rows"] if row["category"] == row["side"] == "all"
    }
    assert (rows["w' 0.5"], rows["w' 1"]) == (0, 1)
    assert 0 < result["agreement"]["count"] < 1
    assert result["judge"] == judge_record()


def test_by_reader_is_what_the_reader_reads(model: TextToImage) -> None:
    images = torch.rand(3, 3, 64, 64)
    found = Predictions([], {selection.READER: selection.by_reader(model)[selection.READER](images, range(3))})
    assert selection.read_scenes({"one": found}) == {"one": model.reader().read(images)}
