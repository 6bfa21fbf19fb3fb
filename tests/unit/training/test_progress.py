import sys
from functools import partial

import pytest
from rich.console import Console

from syzygy.training import progress
from syzygy.training.progress import ConsoleReporter


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_plain_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    reporter = ConsoleReporter("prior", samples_per_step=8)
    reporter.start(100, 200)
    for step in range(101, 126):
        clock[0] += 1.0
        reporter.step(step, 0.5)
        if step == 112:
            reporter.validated(step, {"cosine": 0.75})
    reporter.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "prior: step 110/200 · loss 0.5 · 1 steps/s · 8 samples/s · 0:01:30 left",
        "prior: step 120/200 · loss 0.5 · validation: cosine 0.75 · 1 steps/s · 8 samples/s · 0:01:20 left",
        "prior: step 125/200 · loss 0.5 · validation: cosine 0.75 · 1 steps/s · 8 samples/s · 0:01:15 left",
    ]


def test_the_loss_is_smoothed(clock, capsys):
    reporter = ConsoleReporter("prior")
    reporter.start(0, 4)
    for step, loss in enumerate([1.0, 2.0, 6.0], 1):
        reporter.step(step, loss)
    reporter.stop()
    assert "loss 3" in capsys.readouterr().err  # a plain mean at first


def test_on_a_terminal_the_display_is_live_and_leaves_its_last_state(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("rich.console.Console", partial(Console, force_terminal=True, width=100))
    reporter = ConsoleReporter("prior")
    reporter.start(0, 4)
    reporter.step(4, 0.25)
    reporter.validated(4, {"cosine": 0.75})
    reporter.stop()
    last = capsys.readouterr().err.splitlines()
    assert any("4/4" in line and "prior" in line for line in last)
    assert any("loss 0.25 · validation: cosine 0.75" in line for line in last)


def test_a_sitting_without_steps_prints_nothing(capsys):
    reporter = ConsoleReporter("prior")
    reporter.start(5, 9)
    reporter.stop()
    assert capsys.readouterr().err == ""
