"""What scenes are chosen by."""

import torch

from syzygy.data.filtering import Table, passing
from syzygy.lab.world import scene_source
from syzygy.lab.world.scene_columns import SceneTable


def test_columns_are_as_the_scenes_and_captions_say() -> None:
    pairs = scene_source.pairs(0, 0, 60)
    table = SceneTable(pairs)
    assert isinstance(table, Table)
    objects, unnamed, smallest = (table.column(name) for name in ("objects", "unnamed", "smallest"))
    for row, pair in enumerate(pairs):
        assert objects[row] == len(pair.scene.things)
        assert unnamed[row] == len(pair.scene.things) - sum(one.count for one in pair.caption.description.mentions)
        assert smallest[row] == min(thing.radius for thing in pair.scene.things)
    assert isinstance(unnamed, torch.Tensor)
    assert 0 <= unnamed.min() < unnamed.max()
    chosen = passing(table, "unnamed == 0 and (objects >= 2 or style == 'night')")
    assert torch.equal(chosen, torch.tensor([
        unnamed[row] == 0 and (len(pair.scene.things) >= 2 or pair.scene.style == "night") for row, pair in enumerate(pairs)
    ]))  # fmt: skip
    assert 0 < chosen.sum() < 60
    assert table.columns.keys() == {"objects", "unnamed", "smallest", "style"}
