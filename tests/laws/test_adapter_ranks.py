"""Two processes under torchrun train an adapter as one does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from syzygy.core.artifacts import read_tensors
from tests.closeness import NETWORK, about
from tests.tiny_llm import save_tiny_llm

SIZES = ("adapter.queries=2", "adapter.layers=1", "adapter.heads=2", "adapter.width=16", "validation_lines=2")
SHORT = (
    "task.batch_size=8",
    "loop.steps=4",
    "loop.warmup=1",
    "loop.validate_every=2",
    "loop.checkpoint_every=2",
    "loop.log_every=1",
)
PICTURES = ("scenes=20", "validation_images=4", 'languages=["en","de"]', 'lengths=["short"]', "task.frozen=none")
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "syzygy.cli")


def trained(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return read_tensors(out / "checkpoint/model.safetensors"), lines


@pytest.mark.slow
def test_two_processes_train_as_one(syzygy: Callable, tiny_model: Path, tmp_path: Path) -> None:
    """Stage align, and stage image on what it made."""
    save_tiny_llm("llama", tmp_path / "llm")
    rows = [{"texts": {"en": f"a ring and {i} stars", "de": f"ein Ring und {i} Sterne"}} for i in range(12)]
    (tmp_path / "corpus").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("train", "adapter", "--clip", tiny_model, "--prior", tiny_model, "--device", "cpu", *SHORT)
    stages = {
        "align": ("--llm", tmp_path / "llm", "--corpus", tmp_path / "corpus", *SIZES),
        "image": ("--from", tmp_path / "align-one", *PICTURES),
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for stage, own in stages.items():
        command = (*common, "--stage", stage, *own, "--out")
        outs = one, two = tmp_path / f"{stage}-one", tmp_path / f"{stage}-two"
        answer = syzygy(*command, one)
        assert answer.code == 0, answer.err
        done = subprocess.run(
            [*LAUNCH, *map(str, command), str(two)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Trained:") == 1  # only the first one talks
        (weights, lines), (others, other_lines) = map(trained, outs)
        for line, expected in zip(other_lines, lines, strict=True):
            assert line == about(expected, depth=NETWORK)
        assert ("prior" in {name.split(".")[0] for name in weights}) == (stage == "image"), "both learn from pictures"
        for name, value in weights.items():
            if name.endswith(
                "to_k.bias"
            ):  # softmax ignores it: its gradient is rounding, which Adam makes as large as any
                continue
            torch.testing.assert_close(others[name], value, rtol=0, atol=1e-4, msg=name)
        assert (two / "adapter/provenance.json").is_file()
