"""Candidates of one training are compared with those of several, whichever comes first."""

from typing import Any

import pytest

from syzygy.lab.reproduce import experiment


def judged(*right: bool) -> list[dict[str, Any]]:
    return [{"held_out": False, "category": "single", "agrees": one, "atoms": [["shape", one]]} for one in right]


def test_one_training_is_paired_with_each_of_several() -> None:
    one: Any = [judged(True, True, False, False)]
    several: Any = [judged(True, False, False, False), judged(True, True, False, False)]
    less, more = (experiment.gain(*both, "single", False) for both in ((one, several), (several, one)))
    assert less is not None
    assert more is not None
    assert less["mean"] == -more["mean"] == pytest.approx(0.5 - (0.25 + 0.5) / 2)
    won, lost = (experiment.preference(*both, False) for both in ((one, several), (several, one)))
    assert won is not None
    assert lost is not None
    assert won["mean"] + lost["mean"] == pytest.approx(1)
