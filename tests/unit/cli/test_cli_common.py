"""Shared options and checks of the command line."""

from itertools import chain, repeat
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from syzygy.cli.common import Whole, available_device, device_option, json_option, paced, seed_option, writable_folder
from syzygy.cli.main import cli
from syzygy.core.errors import UserError
from syzygy.lab.commands.evaluation_options import named_runs


@click.command()
@click.option("--num", type=Whole(1, 9), default=1)
@device_option
@seed_option
@json_option
def probe(num: int, device: str, seed: int, as_json: bool) -> None:
    click.echo(f"{num} {device} {seed} {as_json}")


def test_options_arrive_with_their_values() -> None:
    result = CliRunner().invoke(probe, ["--num", "9", "--device", "cpu", "--seed", "7", "--json"])
    assert result.output == "9 cpu 7 True\n"
    result = CliRunner().invoke(probe, ["--num", "1", "--device", "cpu"])
    assert result.output == "1 cpu 0 False\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num", "0"], "0 is out of range; allowed: from 1 to 9."),
        (["--num", "10"], "10 is out of range; allowed: from 1 to 9."),
        (["--num", "two"], "'two' is not a whole number; allowed: from 1 to 9."),
        (["--seed", "-1"], "-1 is out of range; allowed: at least 0."),
        (["--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'."),
    ],
)
def test_wrong_values_say_what_is_allowed(args: list[str], message: str) -> None:
    result = CliRunner().invoke(probe, args)
    assert result.exit_code == 2
    assert f"Invalid value for '{args[0]}': {message}" in result.output


def test_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert available_device("auto") == "cpu"
    with pytest.raises(UserError, match=r"device 'cuda' is not available here\. Available: cpu;"):
        available_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert available_device("auto") == available_device("cuda") == "cuda"
    assert available_device("cpu") == "cpu"


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())
    assert writable_folder(folder) == folder


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=r"cannot write to .*file: File exists\. Choose another folder\."):
        writable_folder(file)
    with pytest.raises(UserError, match=r"cannot write to .*inner: Not a directory"):
        writable_folder(file / "inner")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which even root cannot write")
def test_a_folder_that_is_there_but_read_only_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"cannot write to /proc/self: .+\. Choose another folder\."):
        writable_folder(Path("/proc/self"))


def test_pace_is_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with paced("painting", 1200, "pictures") as advance:
        advance(1.0)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("syzygy.cli.common.PLAIN_LINE_SECONDS", 0.0)
    times = chain([0.0, 0.0], repeat(100.0))
    monkeypatch.setattr("syzygy.cli.common.time.monotonic", lambda: next(times))
    with paced("painting", 1200, "pictures") as advance:
        advance(400.0)
    assert capsys.readouterr().err == "painting: 400/1,200 pictures · 4 pictures/s · 0:03:20 left\n"


def test_priors_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lr=1e-4").mkdir(parents=True)
    assert named_runs(("a=RUN", "runs/b", "runs/lr=1e-4"), ()) == {
        "a": "RUN",
        "b": "runs/b",
        "lr=1e-4": "runs/lr=1e-4",
    }
    with pytest.raises(UserError, match="two priors are called 'b'"):
        named_runs(("b=one", "runs/b"), ())


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(("generate", "a"), "--paint-strength", "--region-strength"), (("evaluate", "prior"), "--html", "--page")],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_old_and_the_new_name_of_an_option_exclude_each_other(
    command: tuple[str, ...], old: str, new: str, swapped: bool
) -> None:
    names = (new, old) if swapped else (old, new)
    with pytest.raises(UserError, match=f"{old} is the old name of {new}: give only {new}"):
        cli.main([*command, names[0], "1", f"{names[1]}=2"], prog_name="syzygy", standalone_mode=False)
