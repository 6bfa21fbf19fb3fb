"""Two processes under torchrun train an adapter as one does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from syzygy.artifact import read_tensors
from tests.tiny_llm import save_tiny_llm

SMALL = ("adapter.queries=2", "adapter.layers=1", "adapter.heads=2", "adapter.width=16", "validation_lines=2", "task.batch_size=8",
         "loop.steps=4", "loop.warmup=1", "loop.validate_every=2", "loop.checkpoint_every=2", "loop.log_every=1")  # fmt: skip


LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "syzygy.cli")


def trained(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return read_tensors(out / "checkpoint/model.safetensors"), lines


@pytest.mark.slow
def test_two_processes_align_as_one(syzygy: Callable, tiny_model: Path, tmp_path: Path) -> None:
    save_tiny_llm("llama", tmp_path / "llm")
    rows = [{"texts": {"en": f"a ring and {i} stars", "de": f"ein Ring und {i} Sterne"}} for i in range(12)]
    (tmp_path / "corpus").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("train", "adapter", "--stage", "align", "--llm", tmp_path / "llm", "--clip", tiny_model, "--prior", tiny_model, "--corpus",
              tmp_path / "corpus", "--device", "cpu", *SMALL)  # fmt: skip
    answer = syzygy(*common, "--out", tmp_path / "one")
    assert answer.code == 0, answer.err
    command = [*LAUNCH, *map(str, common), "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained:") == 1  # only the first one talks
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    for line, expected in zip(two[1], one[1], strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, value in one[0].items():
        if name.endswith("to_k.bias"):  # softmax ignores it: its gradient is rounding, which Adam makes as large as any
            continue
        torch.testing.assert_close(two[0][name], value, rtol=0, atol=1e-4, msg=name)
    assert (tmp_path / "two/adapter/provenance.json").is_file()
