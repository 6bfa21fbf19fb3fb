"""Settings of a preset that were not given follow those that were, and a line says so."""

import pytest

from syzygy.core.config import override
from syzygy.core.errors import UserError
from syzygy.experts.presets import PRESETS as EXPERT_UNETS
from syzygy.lab.starter import presets
from syzygy.prior.presets import PRESETS as PRIOR
from syzygy.text_encoders import presets as adapter


def adapted(table, preset: str, *assignments: str):
    lines: list[str] = []
    return override(table[preset](), assignments, lines.append), lines


ALL = [
    (table, name)
    for table in (
        presets.CLIP, presets.AUTOENCODER, presets.DECODER, presets.READER, presets.JUDGE, PRIOR, presets.T5,
        presets.LM, presets.EXPERTS, EXPERT_UNETS, adapter.ALIGN_PRESETS, adapter.IMAGE_PRESETS, adapter.QUALITY_PRESETS,
        presets.ADAPTER_DECODER,
    )
    for name in table
    if name != "linear"  # has no steps
]  # fmt: skip


@pytest.mark.parametrize(("table", "name"), ALL, ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("steps", [1, 7])
def test_every_preset_can_be_shortened_by_its_steps_alone(table, name: str, steps: int) -> None:
    loop = adapted(table, name, f"loop.steps={steps}")[0].loop
    assert loop.warmup < loop.steps == steps
    assert max(loop.validate_every, loop.checkpoint_every, loop.restart_every) <= steps


def test_the_warm_up_keeps_its_share_and_each_change_is_a_line() -> None:
    run, lines = adapted(PRIOR, "eclipse", "loop.steps=50")
    assert (run.loop.warmup, run.loop.validate_every, run.loop.checkpoint_every) == (5, 10, 10)
    assert lines[0] == "loop.warmup is 5 instead of the preset's 60, to fit loop.steps=50."
    assert len(lines) == 3


def test_a_run_that_is_long_enough_keeps_the_preset_and_says_nothing() -> None:
    run, lines = adapted(PRIOR, "eclipse", "loop.steps=300", "loop.lr=0.1")
    assert (run.loop.warmup, run.loop.validate_every, lines) == (60, 100, [])


def test_given_settings_stay_and_contradictions_are_errors() -> None:
    run, _ = adapted(PRIOR, "eclipse", "loop.steps=50", "loop.warmup=40", "loop.validate_every=100")
    assert (run.loop.warmup, run.loop.validate_every) == (40, 100)
    with pytest.raises(UserError, match="warmup=50 leaves nothing of steps=50"):
        adapted(PRIOR, "eclipse", "loop.steps=50", "loop.warmup=50")
    with pytest.raises(UserError, match=r"loop\.steps.*greater than 0"):
        adapted(PRIOR, "eclipse", "loop.steps=0")
    with pytest.raises(UserError, match=r"loop\.steps"):
        adapted(PRIOR, "eclipse", "loop.steps=many")


@pytest.mark.parametrize(
    ("assignment", "setting", "value"),
    [
        ("loop.schedule=cosine", "restart_every", 0),
        ("loop.schedule=constant", "restart_every", 0),
        ("loop.validate_every=0", "best", ""),
        ("loop.steps=2000", "restart_every", 1500),
    ],
)
def test_settings_that_would_lose_their_effect_are_reset(assignment: str, setting: str, value: object) -> None:
    run, lines = adapted(PRIOR, "eclipse-karlo", assignment)
    assert getattr(run.loop, setting) == value
    assert any(line.startswith(f"loop.{setting} is ") for line in lines)
