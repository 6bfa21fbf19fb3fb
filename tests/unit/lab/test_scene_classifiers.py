"""Both scene classifiers, the reader and the judge, read what their networks say, and learn to say what an image holds."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import syzygy
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.lab.starter.classifier_training import (
    ClassifierBatch,
    ClassifierTask,
    ClassifierTaskConfig,
    Losses,
    conditions,
    degraded,
    measure,
    rendered,
)
from syzygy.lab.starter.judge_training import judge_losses, owners
from syzygy.lab.starter.reader_training import reader_losses
from syzygy.lab.world.classifier_scores import (
    accuracy,
    agreement,
    best_threshold,
    confusion,
    count_accuracy,
    read_all,
    shifted,
)
from syzygy.lab.world.judge import PIXELS, Judge, JudgeConfig, vote_places
from syzygy.lab.world.reader import CELLS, Reader, ReaderConfig
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Scene
from syzygy.lab.world.scene_classifier import Prediction, SceneClassifier

KINDS = ("shape", "colour", "texture", "attributes", "count", "style", "scene")
LABELS = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}


def tiny_reader() -> Reader:
    return Reader(ReaderConfig(features=16, blocks=1))


def tiny_judge() -> Judge:
    return Judge(JudgeConfig(channels=8, width=16, blocks=1))


def perfect_reader(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """What a reader without fault would put out."""
    sizes = {"heat": 1, "shape": 8, "colour": 8, "texture": 3, "offset": 2, "radius": 1}
    found = {name: torch.zeros(len(scenes), n, CELLS, CELLS) for name, n in sizes.items()}
    found["heat"] -= 12
    found["style"] = torch.full((len(scenes), len(STYLES)), -12.0)
    for b, scene in enumerate(scenes):
        found["style"][b, STYLES.index(scene.style)] = 12
        for t in scene.things:
            row, column = int(t.y * CELLS), int(t.x * CELLS)
            found["heat"][b, 0, row, column] = 12
            found["shape"][b, SHAPES.index(t.shape), row, column] = 12
            found["colour"][b, COLOURS.index(t.colour), row, column] = 12
            found["texture"][b, TEXTURES.index(t.texture), row, column] = 12
            found["offset"][b, :, row, column] = torch.tensor([t.x * CELLS - column - 0.5, t.y * CELLS - row - 0.5])
            found["radius"][b, 0, row, column] = t.radius
    return found


def perfect_judge(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """What a judge without fault would put out."""
    inside, owner, table = owners(scenes, torch.device("cpu"))
    sizes = {"inside": 1, "shape": 8, "colour": 8, "texture": 3, "centre": 2, "radius": 1}
    found = {name: torch.zeros(len(scenes), n, PIXELS, PIXELS) for name, n in sizes.items()}
    found["inside"][:, 0] = torch.where(inside, 12.0, -12.0)
    found["style"] = torch.full((len(scenes), len(STYLES)), -12.0)
    for b, scene in enumerate(scenes):
        found["style"][b, STYLES.index(scene.style)] = 12
        true = table[b, owner[b]]
        found["centre"][b] = (true[..., :2] - vote_places()).permute(2, 0, 1)
        found["radius"][b, 0] = true[..., 2]
        for place, name in enumerate(LABELS, 3):
            found[name][b] = 12 * torch.nn.functional.one_hot(true[..., place].long(), sizes[name]).permute(2, 0, 1)
    return found


BOTH = {
    "reader": (tiny_reader, perfect_reader, reader_losses),
    "judge": (tiny_judge, perfect_judge, judge_losses),
}
both = pytest.mark.parametrize(("build", "perfect", "losses"), BOTH.values(), ids=BOTH)
each = pytest.mark.parametrize("build", [tiny_reader, tiny_judge], ids=BOTH)


@pytest.fixture
def batch() -> ClassifierBatch:
    return rendered("test", 5, 0, 24)


@both
def test_perfect_networks_are_read_perfectly(
    build, perfect, losses, batch: ClassifierBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = list(batch.scenes)
    classifier = build()
    monkeypatch.setattr(type(classifier), "forward", lambda self, images: perfect(scenes))
    predictions = classifier.read(batch.images)
    for prediction, scene in zip(predictions, scenes, strict=True):
        assert prediction.style == scene.style
        wanted = sorted(scene.things, key=lambda t: t.x)
        assert [t.appearance for t in prediction.things] == [t.appearance for t in wanted]
        for seen, thing in zip(prediction.things, wanted, strict=True):
            assert (seen.x, seen.y, seen.radius) == pytest.approx((thing.x, thing.y, thing.radius), abs=1e-5)
    assert accuracy(predictions, scenes) == dict.fromkeys(KINDS, 1.0)


@both
def test_losses_are_least_for_the_perfect_answer(build, perfect, losses: Losses, batch: ClassifierBatch) -> None:
    right = perfect(batch.scenes)
    least = {name: float(part) for name, part in losses(right, batch.scenes).items()}
    assert all(part < 1e-2 for part in least.values())
    for name in right:
        wrong = 1.5 * right[name] if name == "radius" else right[name].roll(1, 1 if right[name].shape[1] > 1 else 2)
        worse = losses(right | {name: wrong}, batch.scenes)
        assert sum(map(float, worse.values())) > 0.1 + sum(least.values()), name


@both
def test_a_few_steps_lower_the_loss(build, perfect, losses: Losses, batch: ClassifierBatch) -> None:
    torch.manual_seed(0)
    classifier = build()
    config = ClassifierTaskConfig(batch_size=24, clean=1.0)
    task = ClassifierTask(classifier, losses, lambda step: batch, batch, config, 0)
    optimizer = torch.optim.Adam(classifier.parameters(), 5e-3)
    found = []
    for step in range(25):
        optimizer.zero_grad()
        loss = task.loss(step)["loss"]
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.7 * found[0]


def test_every_vote_is_for_the_nearest_object(batch: ClassifierBatch) -> None:
    """Each object of a scene owns pixels, its centre among them; padding owns none."""
    inside, owner, _ = owners(batch.scenes, torch.device("cpu"))
    for b, scene in enumerate(batch.scenes):
        assert set(owner[b][inside[b]].tolist()) == set(range(len(scene.things)))
        for k, thing in enumerate(scene.things):
            row, column = int(thing.y * PIXELS), int(thing.x * PIXELS)
            assert inside[b, row, column]
            assert owner[b, row, column] == k


def test_reader_and_judge_learn_from_different_scenes() -> None:
    one, other = (rendered(kind, 0, 0, 8).scenes for kind in ("reader", "judge"))
    assert not set(one) & set(other)
    assert rendered("judge", 0, 3, 2).scenes == other[3:5]


def test_degraded_is_keyed_and_keeps_the_clean_part(batch: ClassifierBatch) -> None:
    images, config = batch.images, ClassifierTaskConfig(clean=0.5, mottle=0.1)
    worse = degraded(images, config, generator(0, "a"))
    assert torch.equal(worse, degraded(images, config, generator(0, "a")))
    kept = (worse == images).flatten(1).all(1)
    assert 0 < kept.sum() < len(images)
    assert torch.equal(degraded(images, ClassifierTaskConfig(clean=1.0), generator(0, "a")), images)
    assert (worse - images).abs().mean() < 0.1


def test_a_mottle_is_smooth(batch: ClassifierBatch) -> None:
    def apart(**strength: float) -> float:
        none = ClassifierTaskConfig(blur=0.01, noise=0.0, mottle=0.0, clean=0.0)
        added = degraded(batch.images, none.changed(**strength), generator(0, "a")) - batch.images
        return float((added[..., 1:] - added[..., :-1]).square().mean() / added.square().mean())

    assert apart(noise=0.1) == pytest.approx(2, abs=0.1)  # neighbours of white noise
    assert apart(mottle=0.1) < 0.4


@each
def test_save_and_load(build, tmp_path: Path, batch: ClassifierBatch) -> None:
    classifier: SceneClassifier = build().eval()
    folder = tmp_path / classifier.kind
    classifier.save_pretrained(folder, {"kind": classifier.kind})
    again = type(classifier).from_pretrained(folder)
    assert again.config == classifier.config
    assert torch.equal(again.features(batch.images), classifier.features(batch.images))
    (folder / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="truncated"):
        type(classifier).from_pretrained(folder)


def test_a_reader_is_no_judge(tmp_path: Path) -> None:
    tiny_reader().save_pretrained(tmp_path / "reader", {})
    with pytest.raises(UserError, match="features"):
        Judge.from_pretrained(tmp_path / "reader")


def prediction_of(scene: Scene, confidence: float = 0.9) -> Prediction:
    things = tuple(sorted(scene.things, key=lambda t: t.x))
    return Prediction(things, scene.style, (confidence,) * len(things))


def test_confusion_and_accuracy_by_hand(batch: ClassifierBatch) -> None:
    scene = next(scene for scene in batch.scenes if len(scene.things) == 2)
    first, second = scene.things
    other = "ring" if first.shape != "ring" else "moon"
    seen = Prediction((replace(first, shape=other),), scene.style, (0.9,))
    assert accuracy([seen], [scene]) == pytest.approx(
        {"shape": 0, "colour": 0.5, "texture": 0.5, "attributes": 1 / 3, "count": 0, "style": 1, "scene": 0}
    )
    tables = confusion([seen], [scene])
    assert tables["shape"][first.shape][other] == 1
    assert tables["shape"][second.shape]["missed"] == 1
    assert sum(sum(row.values()) for row in tables["colour"].values()) == 2
    far = Prediction((replace(first, x=first.x + 0.11), second), scene.style, (0.9, 0.9))
    assert confusion([far], [scene])["shape"][first.shape]["missed"] == 1


def test_counts_and_agreement_by_hand(batch: ClassifierBatch) -> None:
    scene = next(scene for scene in batch.scenes if len(scene.things) == 2)
    right = prediction_of(scene)
    one = Prediction(right.things[:1], scene.style, (0.9,))
    nothing = Prediction((), scene.style, ())
    assert count_accuracy([right, one], [scene, scene]) == {2: 0.5}
    assert agreement([right], [right]) == dict.fromkeys(("shape", "colour", "texture", "count", "style", "scene"), 1.0)
    found = agreement([one, right], [right, right])
    assert (found["shape"], found["count"], found["style"], found["scene"]) == (0.75, 0.5, 1.0, 0.5)
    assert agreement([nothing], [nothing]) == {"count": 1.0, "style": 1.0, "scene": 1.0}


def test_the_threshold_that_counts_best(batch: ClassifierBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scene has one thing too many with a confidence of 0.5, its own have 0.75: best is any threshold between."""
    scenes = [scene for scene in batch.scenes if len(scene.things) < 4]

    def read(self: Judge, images: torch.Tensor, *, threshold: float | None = None) -> list[Prediction]:
        assert threshold == 0
        return [Prediction((*s.things, s.things[0]), s.style, (*[0.75] * len(s.things), 0.5)) for s in scenes]

    monkeypatch.setattr(Judge, "read", read)
    assert 0.5 <= best_threshold(tiny_judge(), torch.zeros(len(scenes), 3, 64, 64), scenes) < 0.75


def test_shifted_pictures_show_shifted_scenes(batch: ClassifierBatch) -> None:
    images, scenes = batch.images, batch.scenes
    moved, there = shifted(images, scenes, (3, -2))
    assert moved.shape == images.shape
    assert torch.equal(moved[..., :-2, 3:], images[..., 2:, :-3])
    for thing, before in zip(there[0].things, scenes[0].things, strict=True):
        assert (thing.x, thing.y) == pytest.approx((before.x + 3 / 64, before.y - 2 / 64))
    same, _ = shifted(images, scenes, (0, 0))
    assert torch.equal(same, images)


@each
def test_reading_in_parts_is_reading_at_once(build, batch: ClassifierBatch) -> None:
    classifier: SceneClassifier = build().eval()
    whole, parts = classifier.read(batch.images, threshold=0.0), classifier.read(batch.images)
    assert [len(r.things) for r in whole] >= [len(r.things) for r in parts]
    assert [r.style for r in read_all(classifier, batch.images, chunk=5)] == [r.style for r in parts]
    features = classifier.features(batch.images)
    assert len(features) == len(batch.images)
    assert classifier.features(torch.nn.functional.interpolate(batch.images, (32, 32))).shape == features.shape


@each
def test_scores_name_their_conditions(build, batch: ClassifierBatch) -> None:
    found = measure(build().eval(), conditions(batch, through=lambda images: images))
    assert list(found.accuracy) == ["clean", "blur", "noise", "mottle", "shift", "autoencoder"]
    assert found.accuracy["autoencoder"] == found.accuracy["clean"]
    assert found.metrics().keys() >= {*KINDS, "blur/attributes", "shift/count"}


SOURCES = {path: path.read_text() for path in Path(syzygy.__file__).parent.rglob("*.py")}
SCORING = ("lab/evaluate/", "lab/reproduce/", "lab/demo.py", "lab/demo_report.py", "lab/commands/")
JUDGES_OWN = ("lab/world/judge.py", "lab/starter/judge_training.py", "lab/starter/presets.py")
READERS_USERS = (
    "lab/evaluate/selection.py",  # chooses settings
    "lab/evaluate/classifiers.py",  # measures it
    "lab/commands/world_commands.py",  # shows users what it reads
)


def using(pattern: str) -> set[str]:
    """The modules of the package, as paths in it, whose text holds the pattern."""
    root = Path(syzygy.__file__).parent
    return {path.relative_to(root).as_posix() for path, text in SOURCES.items() if re.search(pattern, text)}


def scores(name: str) -> bool:
    """Whether the module belongs to what scores images; the commands that train do not."""
    return name.startswith(SCORING) and not name.startswith("lab/commands/train")


def test_only_scoring_uses_the_judge() -> None:
    """No training, generation or selection can see the judge, nor what scores with it: it is imported by nothing else."""
    users = using(r"lab\.world\.judge\b|lab\.world import .*\bjudge\b") - set(JUDGES_OWN)
    assert users
    assert {name for name in users if not scores(name)} == set()
    users = using(r"lab\.(evaluate|reproduce)\b|lab import .*\b(evaluate|reproduce)\b")
    assert {name for name in users if not scores(name) and not name.startswith("cli/")} == set()


def test_scores_are_never_the_readers() -> None:
    users = using(r"lab\.world\.reader\b|\.reader\(\)|lab\.world import .*\breader\b")
    assert {name for name in users if scores(name)} == set(READERS_USERS)
