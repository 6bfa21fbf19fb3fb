"""The comparison of experts with one model: equal budgets, and where the re-weighted control's samples fall."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syzygy.core import artifacts
from syzygy.core.config import override
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.noise_levels import LogNormal
from syzygy.experts.routing import COMPLEMENT
from syzygy.experts.training import node_trainings
from syzygy.lab.reproduce import presets as comparisons
from syzygy.lab.reproduce.experts_candidates import (
    FULL,
    LORA,
    REWEIGHTED,
    SHARED,
    ReproduceExpertsRun,
    Training,
    all_trainings,
    leaves,
    mixture,
)
from syzygy.lab.reproduce.experts_candidates import settings as settings_of
from syzygy.lab.reproduce.experts_experiment import loss_differences, relative_differences
from syzygy.lab.starter import presets
from syzygy.lab.starter.experts_training import ExpertsRun, as_trained

TREES = (("E1_0", "E1_1"), ("E3_0", COMPLEMENT, "E4_15"), ("E2_1", "E3_7", COMPLEMENT), ("E2_0", "E2_1", "E1_1"))


def tree(*names: str, every_level: bool = True) -> ExpertsRun:
    return presets.experts_full().model_copy(update={"leaves": names, "every_level": every_level})


def test_the_mixture_of_a_tree() -> None:
    parts, weights = mixture(node_trainings(tree("E2_3", COMPLEMENT)))  # E1_1, E2_3, complement
    assert parts == ((0.0, 0.5), (0.5, 0.75), (0.75, 1.0))
    assert weights == pytest.approx((2 / 9, 1 / 9 + 1 / 6, 1 / 6 + 1 / 3))


def test_leaves_alone_weigh_the_same_each() -> None:
    parts, weights = mixture(node_trainings(tree("E3_0", COMPLEMENT, "E4_15", every_level=False)))
    assert parts == ((0.0, 1 / 8), (1 / 8, 15 / 16), (15 / 16, 1.0))
    assert weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@settings(max_examples=8)
@given(st.sampled_from(TREES), st.booleans())
def test_the_control_sees_the_noise_as_often_as_the_trainings_together(
    names: tuple[str, ...], every_level: bool
) -> None:
    trainings = node_trainings(tree(*names, every_level=every_level))
    parts, weights = mixture(trainings)
    assert sum(weights) == pytest.approx(1)
    size = 640
    theirs = [LogNormal(shares=one.shares).sample(size, generator(i, "tree")) for i, one in enumerate(trainings)]
    ours = LogNormal(shares=parts, weights=weights).sample(size * len(trainings), generator(9, "control"))
    edges = LogNormal().quantile(torch.linspace(1 / 64, 63 / 64, 63))
    counts = [torch.histc(torch.bucketize(x, edges).float(), 64, 0, 63) for x in (ours, torch.cat(theirs))]
    assert (counts[0] - counts[1]).abs().max() <= 2 * len(trainings)


@pytest.mark.parametrize("every_level", [False, True])
def test_every_candidate_has_the_same_number_of_steps(every_level: bool) -> None:
    full = comparisons.reproduce_experts_full()
    run = full.model_copy(update={"experts": full.experts.model_copy(update={"every_level": every_level})})
    number = len(node_trainings(run.experts))
    assert number == (7 if every_level else 3)
    found = {one: settings_of(one, run) for one in all_trainings(run)}
    assert len(found) == 4 * run.seeds
    for training, one in found.items():
        times = number if training.candidate in (FULL, LORA) else 1
        assert one.loop.steps * times == number * run.experts.loop.steps
        assert one.loop.warmup / one.loop.steps == pytest.approx(0.1)
        assert one.loop.ema_half_life / one.loop.steps == pytest.approx(0.1)
        assert one.seed == run.experts.seed + training.seed
        assert one.task == run.experts.task
        assert type(one).model_validate(one.model_dump()) == one
    assert found[Training(LORA, 0)].loop.lr == run.lora_lr != found[Training(FULL, 0)].loop.lr
    assert found[Training(SHARED, 1)] == found[Training(REWEIGHTED, 1)], "the noise is not part of the settings"


def test_leaves_come_from_the_least_noise() -> None:
    assert [one.name for one in leaves(comparisons.reproduce_experts_full())] == ["E3_0", COMPLEMENT, "E3_7"]


def test_one_form_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"leave experts\.form at full"):
        override(comparisons.reproduce_experts_full(), ["experts.form=lora"])


def test_differences_are_paired_and_relative() -> None:
    shared = [[1.0, 3.0], [2.0, 2.0]]
    assert relative_differences([[2.0, 3.0], [2.0, 4.0]], shared) == [[50.0, 0.0], [0.0, 100.0]]
    assert relative_differences([[2.0], [1.0]], shared) == [[50.0, -50.0], [-50.0, -50.0]], (
        "the start is paired with each training"
    )


def test_the_whole_weighs_each_expert_by_what_it_serves() -> None:
    run = ReproduceExpertsRun(experts=tree("E3_0", COMPLEMENT, "E4_15"), pictures=64)
    one = {leaf.name: torch.full((64,), 1.0) for leaf in leaves(run)}
    other = one | {"E3_0": torch.full((64,), 1.08)}
    found = loss_differences(run, [other], [one])
    assert found["E3_0"]["mean"] == pytest.approx(8, abs=1e-3)
    assert found["E4_15"]["mean"] == 0
    assert found["all of p(σ)"]["mean"] == pytest.approx(1, abs=1e-3)


def test_experts_train_on_what_their_decoder_was_trained_on(tmp_path: Path) -> None:
    words = presets.decoder_starter()
    artifacts.write_json(tmp_path / artifacts.PROVENANCE_FILE, {"recipe": words.model_dump(mode="json")})
    run = as_trained(presets.experts_full(), tmp_path)
    assert (run.task.subsets, run.task.painted, run.task.noise) == (
        words.task.subsets,
        words.task.painted,
        words.task.noise,
    )
    assert words.task.painted > 0
    assert words.task.supervised
    assert not run.task.supervised
    assert (run.medium_captions, run.long_captions) == (words.medium_captions, words.long_captions)
    own = presets.experts_full().changed(task={"batch_size": 8})
    assert as_trained(own, tmp_path).task.batch_size == 8
    artifacts.write_json(tmp_path / artifacts.PROVENANCE_FILE, {"clip": "unknown recipe"})
    assert as_trained(own, tmp_path) == own
