import pytest

from syzygy.prior import presets
from syzygy.training.fitting import AS_GIVEN, Fitting


def fitted(pictures: int, captions: int, *given: str):
    lines: list[str] = []
    fitting = Fitting(frozenset(given), lines.append)
    run = fitting.validation(presets.prior_eclipse_karlo(), "validation_images", pictures, "STORE")
    return fitting.batch(run, captions), lines


@pytest.mark.parametrize(
    ("pictures", "captions", "validation", "batch"),
    [(2983, 2387, 596, 1024), (10, 8, 2, 8), (3, 2, 1, 2), (2, 1, 1, 1)],
)
def test_a_preset_fits_small_data_down_to_two_pairs(pictures: int, captions: int, validation: int, batch: int) -> None:
    run, lines = fitted(pictures, captions)
    assert (run.validation_images, run.task.batch_size) == (validation, batch)
    assert lines[0] == (
        f"validation_images is {validation} instead of the preset's 4,096, to fit the {pictures:,} pictures in STORE."
    )
    assert (len(lines) == 2) == (batch < 1024)
    if captions == 1:
        assert lines[1].endswith("to fit the 1 caption to train on.")


def test_large_data_and_given_settings_change_nothing() -> None:
    for run, lines in (fitted(40_000, 30_000), fitted(10, 8, "validation_images", "task.batch_size")):
        assert (run.validation_images, run.task.batch_size, lines) == (4096, 1024, [])
    run = presets.prior_eclipse()
    assert AS_GIVEN.validation(run, "validation_images", 10, "") is run
    assert AS_GIVEN.batch(run, 5) is run


@pytest.mark.parametrize(("processes", "batch"), [(1, 47), (2, 46), (4, 44), (100, 100)])
def test_a_batch_that_fits_the_data_can_be_shared_among_processes(processes: int, batch: int) -> None:
    lines: list[str] = []
    run = Fitting(frozenset(), lines.append).batch(presets.prior_eclipse_karlo(), 47, processes)
    assert run.task.batch_size == batch
    assert lines == [f"task.batch_size is {batch} instead of the preset's 1,024, to fit the 47 captions to train on."]


def test_so_many_passes_that_they_overfit_are_named() -> None:
    lines: list[str] = []
    fitting = Fitting(frozenset(), lines.append)
    fitting.passes(1, 1, 1)
    fitting.passes(100, 25, 150)
    fitting.passes(100, 25, 1_000_000)
    assert lines[:2] == [
        "1 caption to train on, 1 to validate on; each is seen once.",
        "100 captions to train on, 25 to validate on; each is seen 1.5 times.",
    ]
    assert "each is seen 10,000 times. That many passes overfit" in lines[2]
