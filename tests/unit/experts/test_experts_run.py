"""The order in which a tree of experts is grown, and what each node sees."""

import pytest

from syzygy.core.errors import UserError
from syzygy.experts.routing import COMPLEMENT
from syzygy.experts.training import node_trainings
from syzygy.lab.starter.experts_training import ExpertsRun
from syzygy.lab.starter.presets import experts_full


def run(*leaves: str, every_level: bool = True) -> ExpertsRun:
    return experts_full().model_copy(update={"leaves": leaves, "every_level": every_level})


def test_parents_come_before_children_and_once() -> None:
    todo = node_trainings(run("E2_0", "E2_1", COMPLEMENT))
    assert [(one.name, one.parent) for one in todo] == [
        ("E1_0", None),
        ("E2_0", "E1_0"),
        ("E2_1", "E1_0"),
        (COMPLEMENT, None),
    ]


def test_each_sees_its_own_part_of_the_noise() -> None:
    shares = {one.name: one.shares for one in node_trainings(run("E2_1", "E3_7", COMPLEMENT))}
    assert shares["E2_1"] == ((0.25, 0.5),)
    assert shares["E1_1"] == ((0.5, 1.0),)
    assert shares[COMPLEMENT] == ((0.0, 0.25), (0.5, 0.875))


def test_the_papers_tree_has_thirteen_nodes() -> None:
    todo = node_trainings(experts_full())
    assert len(todo) == 13
    assert todo[-1].shares == ((0.125, 511 / 512),)


def test_leaves_may_start_from_the_decoder_at_once() -> None:
    todo = node_trainings(run("E3_0", COMPLEMENT, every_level=False))
    assert [(one.name, one.parent) for one in todo] == [("E3_0", None), (COMPLEMENT, None)]


def test_the_whole_is_one_expert() -> None:
    assert [(one.name, one.shares) for one in node_trainings(run("E0_0", every_level=False))] == [
        ("E0_0", ((0.0, 1.0),))
    ]
    assert node_trainings(run(COMPLEMENT))[0].shares == ((0.0, 1.0),)


def test_gaps_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match="leave gaps"):
        node_trainings(run("E3_0"))
