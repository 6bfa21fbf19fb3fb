from syzygy.lab.world import scene_source
from syzygy.lab.world.description import check_facts


def test_what_is_just_told_is_all_there_is() -> None:
    numbers = []
    for index in range(200):
        found = scene_source.fully_described(3, index)
        told = found.caption.description
        assert all(atom.holds for atom in check_facts(told, found.scene, exact_counts=True))
        assert len(told.mentions) == len(found.scene.things)
        assert all(mention.colour for mention in told.mentions)
        numbers.append(len(told.mentions))
    assert 0.4 < numbers.count(1) / len(numbers) < 0.7
    assert set(numbers) == {1, 2}
    assert (
        scene_source.fully_described(3, 7) == scene_source.fully_described(3, 7) != scene_source.fully_described(3, 8)
    )
