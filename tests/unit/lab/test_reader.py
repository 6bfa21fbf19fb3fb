"""The reader reads what its heads say, and learns to say what a picture holds."""

from dataclasses import replace

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.lab.starter.reader_training import ReaderBatch, ReaderTask, ReaderTaskConfig, degraded, reader_loss
from syzygy.lab.world import scene_source
from syzygy.lab.world.reader import CELLS, Prediction, Reader, ReaderConfig
from syzygy.lab.world.reader_scores import accuracy, best_threshold, confusion, read_all, shifted
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Scene

TINY = ReaderConfig(features=16, blocks=1)


def perfect_answer(scenes: list[Scene]) -> dict[str, torch.Tensor]:
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


@pytest.fixture
def pairs() -> list[scene_source.Pair]:
    return scene_source.pairs(5, 0, 24)


def test_perfect_heads_are_read_perfectly(pairs: list[scene_source.Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [p.scene for p in pairs]
    reader = Reader(TINY)
    monkeypatch.setattr(Reader, "forward", lambda self, images: perfect_answer(scenes))
    readings = reader.read(scene_source.pictures(pairs))
    for reading, scene in zip(readings, scenes, strict=True):
        assert reading.style == scene.style
        wanted = sorted(scene.things, key=lambda t: t.x)
        assert [t.appearance for t in reading.things] == [t.appearance for t in wanted]
        for seen, thing in zip(reading.things, wanted, strict=True):
            assert (seen.x, seen.y, seen.radius) == pytest.approx((thing.x, thing.y, thing.radius), abs=1e-5)
    assert accuracy(readings, scenes) == dict.fromkeys(
        ("shape", "colour", "texture", "attributes", "count", "style"), 1.0
    )


def test_loss_is_least_for_the_perfect_answer(pairs: list[scene_source.Pair]) -> None:
    scenes = [p.scene for p in pairs]
    right = perfect_answer(scenes)
    least = {name: float(part) for name, part in reader_loss(right, scenes).items()}
    assert all(part < 1e-2 for part in least.values())
    for name in ("heat", "shape", "colour", "texture", "style", "radius"):
        worse = reader_loss(right | {name: right[name].roll(1, 1 if right[name].shape[1] > 1 else 2)}, scenes)
        assert sum(map(float, worse.values())) > 1 + sum(least.values()) or name == "radius"
        assert sum(map(float, worse.values())) > sum(least.values())


def test_a_few_steps_lower_the_loss(pairs: list[scene_source.Pair]) -> None:
    torch.manual_seed(0)
    reader = Reader(TINY)
    batch = ReaderBatch(scene_source.pictures(pairs), [p.scene for p in pairs])
    task = ReaderTask(reader, lambda step: batch, batch, ReaderTaskConfig(batch_size=24, clean=1.0), 0)
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    first = float(task.loss(0)["loss"].detach())
    for step in range(25):
        optimizer.zero_grad()
        loss = task.loss(step)["loss"]
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * first


def test_degraded_is_keyed_and_keeps_the_clean_part(pairs: list[scene_source.Pair]) -> None:
    images = scene_source.pictures(pairs)
    config = ReaderTaskConfig(clean=0.5)
    worse = degraded(images, config, generator(0, "a"))
    assert torch.equal(worse, degraded(images, config, generator(0, "a")))
    kept = (worse == images).flatten(1).all(1)
    assert 0 < kept.sum() < len(images)
    assert torch.equal(degraded(images, ReaderTaskConfig(clean=1.0), generator(0, "a")), images)
    assert (worse - images).abs().mean() < 0.1


def test_save_and_load(tmp_path, pairs: list[scene_source.Pair]) -> None:
    reader = Reader(TINY).eval()
    reader.save_pretrained(tmp_path / "reader", {"kind": "reader"})
    images = scene_source.pictures(pairs[:2])
    assert torch.equal(Reader.from_pretrained(tmp_path / "reader")(images)["heat"], reader(images)["heat"])
    (tmp_path / "reader" / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="truncated"):
        Reader.from_pretrained(tmp_path / "reader")


def reading_of(scene: Scene, confidence: float = 0.9) -> Prediction:
    things = tuple(sorted(scene.things, key=lambda t: t.x))
    return Prediction(things, scene.style, (confidence,) * len(things))


def test_confusion_and_accuracy_by_hand(pairs: list[scene_source.Pair]) -> None:
    scene = next(p.scene for p in pairs if len(p.scene.things) == 2)
    first, second = scene.things
    other = "ring" if first.shape != "ring" else "moon"
    seen = Prediction((replace(first, shape=other),), scene.style, (0.9,))
    assert accuracy([seen], [scene]) == pytest.approx(
        {"shape": 0, "colour": 0.5, "texture": 0.5, "attributes": 1 / 3, "count": 0, "style": 1}
    )
    tables = confusion([seen], [scene])
    assert tables["shape"][first.shape][other] == 1
    assert tables["shape"][second.shape]["missed"] == 1
    assert sum(sum(row.values()) for row in tables["colour"].values()) == 2
    far = Prediction((replace(first, x=first.x + 0.11), second), scene.style, (0.9, 0.9))
    assert confusion([far], [scene])["shape"][first.shape]["missed"] == 1


def test_the_threshold_that_counts_best(pairs: list[scene_source.Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scene has one thing too many with a heat of 0.5, its own have 0.75: best is any threshold between."""
    scenes = [p.scene for p in pairs if len(p.scene.things) < 4]

    def read(self: Reader, images: torch.Tensor, *, threshold: float | None = None) -> list[Prediction]:
        assert threshold == 0
        return [Prediction((*s.things, s.things[0]), s.style, (*[0.75] * len(s.things), 0.5)) for s in scenes]

    monkeypatch.setattr(Reader, "read", read)
    assert 0.5 <= best_threshold(Reader(TINY), torch.zeros(len(scenes), 3, 64, 64), scenes) < 0.75


def test_shifted_pictures_show_shifted_scenes(pairs: list[scene_source.Pair]) -> None:
    images, scenes = scene_source.pictures(pairs), [p.scene for p in pairs]
    moved, there = shifted(images, scenes, (3, -2))
    assert moved.shape == images.shape
    assert torch.equal(moved[..., :-2, 3:], images[..., 2:, :-3])
    for thing, before in zip(there[0].things, scenes[0].things, strict=True):
        assert (thing.x, thing.y) == pytest.approx((before.x + 3 / 64, before.y - 2 / 64))
    same, _ = shifted(images, scenes, (0, 0))
    assert torch.equal(same, images)


def test_reading_in_parts_is_reading_at_once(pairs: list[scene_source.Pair]) -> None:
    reader = Reader(TINY).eval()
    images = scene_source.pictures(pairs)
    whole, parts = reader.read(images, threshold=0.0), reader.read(images)
    assert [len(r.things) for r in whole] >= [len(r.things) for r in parts]
    assert [r.style for r in read_all(reader, images, chunk=5)] == [r.style for r in parts]
    assert reader.features(images).shape == (len(images), 32)
