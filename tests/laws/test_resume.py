"""20 steps equal 10, an interruption, and 10 more, bit for bit; nothing that stops a run harms its checkpoint."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.training import checkpoints, loop
from syzygy.training.loop import FitResult, Interrupted, LoopConfig, fit

RUN = {"seed": 0, "loop": {"lr": 1e-2, "steps": 20}}
CONFIG = LoopConfig(
    steps=20,
    lr=1e-2,
    warmup=3,
    weight_decay=0.1,
    grad_clip=1.0,
    ema_half_life=5.0,
    validate_every=6,
    checkpoint_every=7,
    log_every=4,
)


class Task:
    """A small network with batch norm (buffers); `on_step` runs inside the loss of each step."""

    def __init__(self, on_step=lambda step: None) -> None:
        torch.manual_seed(0)
        self.modules = {"body": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU()), "head": nn.Linear(8, 2)}
        self.on_step = on_step

    def loss(self, step):
        self.on_step(step)
        x = torch.randn(16, 4, generator=generator(0, "batch", step))
        return {"loss": (self.modules["head"](self.modules["body"](x)) - x[:, :2]).square().mean()}

    def validate(self):
        x = torch.randn(16, 4, generator=generator(0, "validation"))
        return {"mean": float(self.modules["head"](self.modules["body"](x)).mean())}


def train(out: Path, on_step=lambda step: None, run=RUN, config=CONFIG) -> tuple[Task, FitResult]:
    torch.manual_seed(0)
    task = Task(on_step)
    return task, fit(task, config, out, run=run)


def bits(out: Path) -> dict[str, bytes]:
    """Every file but the clock's. (The header of safetensors lists its metadata in random order.)"""
    found = {name: (out / name).read_bytes() for name in ("metrics.jsonl", "run.json")}
    for name in ("model", "ema", "optimizer"):
        for key, x in artifacts.read_tensors(out / f"checkpoint/{name}.safetensors").items():
            found[f"{name}/{key}"] = x.numpy().tobytes()
    return found


def weights(task: Task) -> list[torch.Tensor]:
    return [x for module in task.modules.values() for x in module.state_dict().values()]


def at(step: int, action):
    """Call `action` inside the loss of this step."""
    return lambda now: action() if now == step else None


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def wait_for_signal() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    print("waiting", flush=True)
    while signal.getsignal(signal.SIGTERM) is handler:
        time.sleep(0.05)


def crash() -> None:
    raise RuntimeError("power cut")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Task, FitResult]:
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, *train(out)


def assert_same(out: Path, task: Task, result: FitResult, whole: tuple[Path, Task, FitResult]) -> None:
    assert bits(out) == bits(whole[0])
    assert all(torch.equal(a, b) for a, b in zip(weights(task), weights(whole[1]), strict=True))
    assert result.history == whole[2].history
    assert result.steps == whole[2].steps == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twenty_steps_equal_ten_and_ten(tmp_path, whole, number):
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"after step 10 of 20.*[Rr]un the same command again"):
        train(tmp_path, at(9, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is handler
    assert checkpoints.read_json(tmp_path / "checkpoint/state.json")["step"] == 10
    seen = []
    task, result = train(tmp_path, seen.append)
    assert seen == list(range(10, 20))
    assert_same(tmp_path, task, result, whole)


def test_a_crash_goes_back_to_the_last_checkpoint_and_repeats_no_metrics(tmp_path, whole):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, at(13, crash))
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4, 6, 8, 12]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # killed while writing
    seen = []
    task, result = train(tmp_path, seen.append)
    assert seen[0] == 7
    assert_same(tmp_path, task, result, whole)


def test_a_crash_before_the_first_checkpoint_starts_anew(tmp_path, whole):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, at(5, crash), run={"lr": "another"})
    assert_same(tmp_path, *train(tmp_path), whole)


def test_a_finished_run_returns_at_once(whole):
    def never(step: int) -> None:
        raise AssertionError(step)

    before = bits(whole[0])
    assert_same(whole[0], *train(whole[0], never), whole)
    assert bits(whole[0]) == before


def test_seconds_count_all_sittings(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    def second_a_step(step: int) -> None:
        clock[0] += 1.0

    def stopped_at_third(step: int) -> None:
        second_a_step(step)
        if step == 2:
            interrupt()

    with pytest.raises(Interrupted):
        train(tmp_path, stopped_at_third)
    clock[0] += 100.0  # between the sittings
    assert train(tmp_path, second_a_step)[1].seconds == 20.0


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, whole, monkeypatch):
    save_file = artifacts.save_file

    def full(tensors, path, **options):
        if "optimizer" in str(path) and (tmp_path / "checkpoint").exists():
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "save_file", full)
        with pytest.raises(UserError, match="No space left"):
            train(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    seen = []
    task, result = train(tmp_path, seen.append)
    assert seen[0] == 7
    assert_same(tmp_path, task, result, whole)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, whole):
    with pytest.raises(Interrupted):
        train(tmp_path, at(9, interrupt))
    aside, half = tmp_path / ".checkpoint.old.x1", tmp_path / ".checkpoint.x2"
    aside.mkdir()
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint").rename(aside / "checkpoint")
    assert_same(tmp_path, *train(tmp_path), whole)
    assert not aside.exists()
    assert not half.exists()


@pytest.mark.parametrize(
    ("run", "difference"),
    [
        ({"seed": 0, "loop": {"lr": 0.5, "steps": 20}}, r"loop\.lr is 0\.01 there and 0\.5 now"),
        ({"seed": 0, "loop": {"lr": 1e-2, "steps": 20, "betas": [0, 0]}}, r"loop\.betas is set only now"),
        ({"loop": {"lr": 1e-2, "steps": 20}}, "seed is set only there"),
    ],
)
def test_other_settings_are_refused_and_named(whole, run, difference):
    before = bits(whole[0])
    with pytest.raises(UserError, match=f"{difference}.*choose another --out"):
        train(whole[0], run=run)
    assert bits(whole[0]) == before


def test_tuples_and_lists_are_the_same_settings(tmp_path):
    train(tmp_path, run={"betas": (0.9, 0.99)})
    assert train(tmp_path, run={"betas": [0.9, 0.99]})[1].steps == 20


def test_a_setting_that_is_null_may_be_missing(tmp_path):
    """As in runs of older versions, which did not have it."""
    train(tmp_path, run={"loop": {"lr": 1}})
    assert train(tmp_path, run={"loop": {"lr": 1, "new": None}, "other": None})[1].steps == 20


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_damaged_checkpoints_are_clear_errors(tmp_path, whole, name, damage):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint" / f"{name}.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        tensors = artifacts.read_tensors(path)
        key = next(key for key in tensors if key.startswith("head.weight"))
        artifacts.write_tensors(path, {"body.0.wrong" if k == key else k: x for k, x in tensors.items()})
    with pytest.raises(UserError, match=name):
        train(tmp_path)


def test_sigterm_from_outside_leaves_a_checkpoint_that_continues(tmp_path, whole):
    """The process announces step 10 and then waits inside it for the signal."""
    with subprocess.Popen([sys.executable, __file__, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "waiting\n"
            process.terminate()
            assert "Run the same command again" in process.communicate(timeout=200)[0]
            assert process.returncode == 2
        finally:
            process.kill()
    seen = []
    train(tmp_path, seen.append)
    assert seen == list(range(10, 20))
    assert [json.loads(x)["step"] for x in bits(tmp_path)["metrics.jsonl"].splitlines()] == [
        row["step"] for row in whole[2].history
    ]


if __name__ == "__main__":
    try:
        train(Path(sys.argv[1]), at(9, wait_for_signal))
    except Interrupted as stopped:
        print(stopped)
        sys.exit(2)
