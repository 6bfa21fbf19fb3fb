import pytest

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


def test_rates_of_full_descriptions() -> None:
    rates = scene_source.FullDescriptions(alike=0.3, alone=0.2, relation=0.8)
    found = [scene_source.fully_described(3, index, rates) for index in range(400)]
    said = [pair.caption.description for pair in found]
    for pair, one in zip(found, said, strict=True):
        assert all(atom.holds for atom in check_facts(one, pair.scene, exact_counts=True))
        assert sum(mention.count for mention in one.mentions) == len(pair.scene.things) <= 4
    alike = [one for one in said if any(mention.count > 1 for mention in one.mentions)]
    assert len(alike) / 400 == pytest.approx(0.3, abs=0.07)
    assert {sum(mention.count for mention in one.mentions) for one in alike} == {2, 3, 4}
    assert 0.35 < sum(len(one.mentions) == 2 for one in alike) / len(alike) < 0.65
    others = [one for one in said if one not in alike]
    assert sum(len(one.mentions) == 1 for one in others) / len(others) == pytest.approx(0.2, abs=0.07)
    two = [one for one in others if len(one.mentions) == 2]
    assert sum(bool(one.relations) for one in two) / len(two) == pytest.approx(0.8, abs=0.07)
