"""Two processes under torchrun train as one does, and a killed one goes on as if it had lived."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from syzygy.core.artifacts import read_tensors
from tests.closeness import NETWORK, about

MOVED = 6e-3
"""The most that six steps of Adam move a weight, at this learning rate."""
SCRIPT = '''
"""Trains tiny priors, each in its folder and in parts of so many samples, as one of as many processes as torchrun starts; the first
one leaves weights and metrics."""
import os
import signal
import sys
from pathlib import Path

import torch

from syzygy.core import artifacts
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.core.randomness import generator
from syzygy.training.loop import fit
from syzygy.prior.eclipse import EclipseObjective, EclipseTaskConfig
from syzygy.prior.embedding_pairs import PriorData
from syzygy.training.parallel import process_group
from syzygy.prior.prior_task import PriorTask
from syzygy.training.schedule import LoopConfig
from syzygy.core.contracts import TextFeatures

torch.set_num_threads(1)


def train(world, out, micro):
    draw = generator(0, "data")
    mask = torch.arange(6) < torch.randint(1, 7, (20, 1), generator=draw)
    features = TextFeatures(torch.randn(20, 6, 8, generator=draw), mask, torch.randn(20, 8, generator=draw))
    data = PriorData(torch.randn(20, 8, generator=draw), features, torch.arange(20), torch.arange(20) % 18)
    torch.manual_seed(world.rank)  # ranks begin with different weights: the first one's must win
    prior = EclipsePrior(EclipsePriorConfig(embedding_dim=8, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeddings=6))
    objective = EclipseObjective(prior, EclipseTaskConfig(batch_size=12), logit_scale=10.0)
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
        artifacts.write_tensors(out / "weights.safetensors", prior.state_dict())


with process_group(torch.device("cpu")) as world:
    for out, micro in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        train(world, Path(out), int(micro))
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def here(script: Path, out: Path, micro: int = 0) -> None:
    """One training, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(out), str(micro)])
        runpy.run_path(str(script), run_name="__main__")


def elsewhere(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240, check=False)


def trained(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and lines of metrics."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return read_tensors(out / "weights.safetensors"), lines


@pytest.mark.slow
def test_two_processes_and_parts_of_a_batch_train_as_one(script: Path, tmp_path: Path) -> None:
    here(script, tmp_path / "one")
    weights, lines = trained(tmp_path / "one")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone")
    done = elsewhere(*launch, script, tmp_path / "two", 0, tmp_path / "parts", 4)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("two", "parts"):
        found = trained(tmp_path / name)
        for key, value in weights.items():
            # Softmax ignores a bias of the keys: its gradient is rounding, which Adam makes as large as any.
            if key.endswith("to_k.bias"):
                continue
            torch.testing.assert_close(found[0][key], value, rtol=0, atol=MOVED / 100, msg=f"{name}: {key}")
        for line, expected in zip(found[1], lines, strict=True):
            assert line == about(expected, depth=NETWORK), name
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(script: Path, tmp_path: Path) -> None:
    here(script, tmp_path / "whole", 5)
    weights, lines = trained(tmp_path / "whole")
    killed = elsewhere(script, tmp_path / "killed", 5, KILLED_AT="5")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/weights.safetensors").exists()
    here(script, tmp_path / "killed", 5)
    again = trained(tmp_path / "killed")
    assert again[1] == lines
    assert all(torch.equal(again[0][name], value) for name, value in weights.items())
