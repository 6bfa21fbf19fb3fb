"""Labels for CLIP's image tower are those of the scene, and its readings learn them."""

import pytest
import torch
from pydantic import ValidationError

from syzygy.lab.starter.clip_supervision import CELLS, STATEMENTS, ImageReadings, SceneLabels, scene_columns
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.presets import clip_starter
from syzygy.lab.world import scene_source
from syzygy.lab.world.render import cell_owners, masks
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Background, Scene, Thing

BACKGROUND = Background(0.1, 0.2, 0.5, 0.0)
SCENE = Scene(
    (
        Thing("square", "red", "plain", 0.25, 0.25, 0.2),
        Thing("circle", "blue", "striped", 0.75, 0.75, 0.2),
        Thing("circle", "green", "dotted", 0.75, 0.25, 0.1),
    ),
    "night",
    BACKGROUND,
)


def test_patches_that_do_not_divide_the_cells_are_refused() -> None:
    run = clip_starter().model_dump(mode="json")
    run["clip"]["image_size"] = 48  # three patches a side
    with pytest.raises(ValidationError, match="must divide 8"):
        ClipRun.model_validate(run)


def labels_of(*scenes: Scene) -> SceneLabels:
    columns = scene_columns(scenes)
    return SceneLabels(*(columns[name] for name in SceneLabels._fields))


def test_cells_name_what_covers_them() -> None:
    cells = labels_of(SCENE).cells().view(CELLS, CELLS, 3)
    assert cells[2, 2].tolist() == [SHAPES.index("square"), COLOURS.index("red"), TEXTURES.index("plain")]
    assert cells[6, 6].tolist() == [SHAPES.index("circle"), COLOURS.index("blue"), TEXTURES.index("striped")]
    assert cells[7, 0].tolist() == [len(SHAPES), len(COLOURS), len(TEXTURES)]


def test_the_owner_of_a_cell_is_the_thing_that_shows_most_there() -> None:
    scenes = [p.scene for p in scene_source.pairs(3, 0, 20)]
    right = total = 0
    for owners, scene in zip(cell_owners(scenes, CELLS), scenes, strict=True):
        shares = torch.nn.functional.avg_pool2d(masks(scene, 64), 64 // CELLS)
        clear = shares.max(0).values > 0.6
        right += int((owners == shares.argmax(0))[clear].sum())
        total += int(clear.sum())
        assert (owners[shares.max(0).values < 0.05] == -1).all()
    assert total > 100
    assert right == total


def test_statements_are_the_scenes_combinations_counts_style_and_number() -> None:
    said = labels_of(SCENE).statements()[0]
    assert said.shape == (STATEMENTS,)
    coloured = said[:64].nonzero().flatten().tolist()
    pairs = [("square", "red"), ("circle", "blue"), ("circle", "green")]
    assert coloured == sorted(SHAPES.index(s) * 8 + COLOURS.index(c) for s, c in pairs)
    counts = said[112:136].view(3, 8)
    assert counts[:, SHAPES.index("circle")].tolist() == [1, 1, 0]
    assert counts[:, SHAPES.index("square")].tolist() == [1, 0, 0]
    assert said[136:140].argmax() == STYLES.index("night")
    assert said[140:].tolist() == [0, 0, 1, 0]
    assert said.sum() == 3 + 3 + 3 + 3 + 1 + 1


def test_readings_learn_and_are_scored_from_what_they_read() -> None:
    """States that hold each cell's labels can be read; then every score is 1."""
    scenes = [scene_source.fully_described(5, i).scene for i in range(64)]
    labels = labels_of(*scenes)
    torch.manual_seed(0)
    readings = ImageReadings(vision_width=4 * 22, width=STATEMENTS, grid=4)
    cells = labels.cells().view(-1, 4, 2, 4, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 4, 3)
    states = torch.cat(
        [torch.nn.functional.one_hot(cells[..., kind], size).float() for kind, size in enumerate((9, 9, 4))], -1
    ).flatten(2)
    embeddings = labels.statements()
    optimizer = torch.optim.Adam(readings.parameters(), 0.1)
    first = sum(readings.losses(states, embeddings, labels).values())
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(readings.losses(states, embeddings, labels).values())).sum().backward()
        optimizer.step()
    assert sum(readings.losses(states, embeddings, labels).values()) < 0.2 * first
    assert readings.accuracy(states, embeddings, labels) == {"cell_shape": 1.0, "one_object": 1.0, "two_objects": 1.0}
