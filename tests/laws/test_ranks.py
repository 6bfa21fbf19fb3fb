"""Two processes under torchrun train as one does, and a killed one goes on as if it had lived."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from syzygy.artifact import read_tensors

SCRIPT = '''
"""Trains a tiny prior in parts, as one of as many processes as torchrun starts; the first one leaves weights and metrics."""
import os
import signal
import sys
from pathlib import Path

import torch

from syzygy import artifact
from syzygy.prior.model import EclipsePrior, EclipsePriorConfig
from syzygy.rng import generator
from syzygy.train.loop import fit
from syzygy.train.objectives import EclipseObjective, PriorTaskConfig
from syzygy.train.pairs import PriorData
from syzygy.train.parallel import joined
from syzygy.train.prior import PriorTask
from syzygy.train.schedule import LoopConfig
from syzygy.types import TextFeatures

out, micro = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)


def train(world):
    draw = generator(0, "data")
    mask = torch.arange(6) < torch.randint(1, 7, (20, 1), generator=draw)
    features = TextFeatures(torch.randn(20, 6, 8, generator=draw), mask, torch.randn(20, 8, generator=draw))
    data = PriorData(torch.randn(20, 8, generator=draw), features, torch.arange(20), torch.arange(20) % 18)
    torch.manual_seed(world.rank)  # ranks begin with different weights: the first one's must win
    prior = EclipsePrior(EclipsePriorConfig(embedding_dim=8, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeddings=6))
    objective = EclipseObjective(prior, PriorTaskConfig(batch_size=12), logit_scale=10.0)
    task = PriorTask(objective, data, data, 12, 0, micro_batch=micro, world=world)
    loop = LoopConfig(steps=6, lr=1e-3, grad_clip=0.5, ema_half_life=4, validate_every=3, checkpoint_every=2, log_every=1, best="max cosine")
    parts = task.parts

    def mortal(step):
        if step == int(os.environ.get("KILLED_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return parts(step)

    task.parts = mortal
    fit(task, loop, out, run={}, world=world)
    if world.first:
        artifact.write_tensors(out / "weights.safetensors", prior.state_dict())


with joined(torch.device("cpu")) as world:
    train(world)
'''


def trained(folder: Path, processes: int, micro: int = 0) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and lines of metrics."""
    done = run(folder, processes, micro)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return read_tensors(folder / "run/weights.safetensors"), lines


def run(folder: Path, processes: int, micro: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, to its end."""
    folder.mkdir(exist_ok=True)
    script, out = folder / "train.py", folder / "run"
    script.write_text(SCRIPT)
    launch = (
        ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"] if processes > 1 else []
    )
    command = [sys.executable, *launch, str(script), str(out), str(micro)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_two_processes_and_parts_of_a_batch_train_as_one(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "one", 1)
    for name, found in {"two": trained(tmp_path / "two", 2), "in parts": trained(tmp_path / "parts", 2, 4)}.items():
        for key, value in weights.items():
            # Softmax ignores a bias of the keys: its gradient is rounding, which Adam makes as large as any.
            if key.endswith("to_k.bias"):
                continue
            torch.testing.assert_close(found[0][key], value, rtol=0, atol=1e-6, msg=f"{name}: {key}")
        for line, expected in zip(found[1], lines, strict=True):
            assert line == pytest.approx(expected, rel=2e-6, abs=2e-6), name
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert sorted(p.name for p in (tmp_path / "two/run").iterdir()) == sorted(
        p.name for p in (tmp_path / "one/run").iterdir()
    )


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "whole", 1, 5)
    killed = run(tmp_path / "killed", 1, 5, KILLED_AT="5")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/run/weights.safetensors").exists()
    again = trained(tmp_path / "killed", 1, 5)
    assert again[1] == lines
    assert all(torch.equal(again[0][name], value) for name, value in weights.items())
