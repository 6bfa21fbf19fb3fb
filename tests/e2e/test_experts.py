"""Experts from the command line: grown, interrupted, grown on, planned, and painting."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.contracts import Conditioning
from syzygy.decoder.backbone import load_decoder
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.experts.expert_folders import load_experts
from tests.closeness import NETWORK, assert_close

pytestmark = pytest.mark.usefixtures("few_pictures")
SMALL = (
    "leaves=[\"E1_0\",\"E1_1\"]", "task.batch_size=4", "loop.steps=4", "loop.validate_every=4", "loop.warmup=0",
    "loop.checkpoint_every=2", "loop.lr=0.01",
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE)


def test_grown_and_planned(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = syzygy("train", "experts", "--model", tiny_model, "--out", run, *SMALL)
    assert answer.code == 0, answer.err
    assert "1/2  E1_0" in answer.err
    experts = load_experts(run / "experts")
    assert experts.stages.experts == ("E1_0", "E1_1")
    low, high = (weights(run / "experts" / name) for name in ("E1_0", "E1_1"))
    root = weights(tiny_model / "decoder")
    assert all(any(not torch.equal(one[key], root[key]) for key in root) for one in (low, high))
    assert any(not torch.equal(low[key], high[key]) for key in low)
    record = artifacts.read_json(run / "experts" / "E1_1" / artifacts.PROVENANCE_FILE)
    assert (record["node"], record["shares"], record["parent"]) == ("E1_1", [[0.5, 1.0]], None)
    assert record["from"] == artifacts.fingerprint(load_decoder(tiny_model / "decoder").state_dict())

    # A node that is lost is grown again, to the same bits; the other is not touched.
    shutil.rmtree(run / "nodes" / "E1_1")
    before = (run / "nodes" / "E1_0" / "metrics.jsonl").read_bytes()
    answer = syzygy("train", "experts", "--model", tiny_model, "--out", run, *SMALL)
    assert "E1_0: done before" in answer.err
    assert all(torch.equal(value, high[key]) for key, value in weights(run / "experts" / "E1_1").items())
    assert (run / "nodes" / "E1_0" / "metrics.jsonl").read_bytes() == before

    answer = syzygy("train", "experts", "--model", tiny_model, "--out", run, *SMALL, "loop.lr=0.02")
    assert answer.code == 2
    assert "trained with other settings (loop)" in answer.err

    planned = json.loads(syzygy("experts", "plan", run, "--steps", 10, "--sampler", "heun", "--json").out)
    assert (planned["evaluations"], [stage["expert"] for stage in planned["stages"]]) == (19, ["E1_0", "E1_1"])
    assert sum(stage["evaluations"] for stage in planned["stages"]) == 19


def test_low_rank_experts_share_a_frozen_decoder(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [one for one in SMALL if not one.startswith("leaves")]
    leaves = 'leaves=["E2_0","E2_1","complement"]'
    answer = syzygy("train", "experts", "--model", tiny_model, "--out", run, "form=lora", "rank=2", leaves, *small)
    assert answer.code == 0, answer.err
    assert "4/4  complement" in answer.err
    root = load_decoder(tiny_model / "decoder")
    kept = load_decoder(run / "experts" / "trunk")
    assert artifacts.fingerprint(kept.state_dict()) == artifacts.fingerprint(root.state_dict())
    experts = load_experts(run / "experts")
    own = sum(p.numel() for p in experts.parameters()) - sum(p.numel() for p in root.parameters())
    assert 0 < own < 0.5 * sum(p.numel() for p in root.parameters())
    x, sigma = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.05, 1.0, 1.1, 40.0])
    alone = Preconditioned(root, root.config.sigma_data)
    with torch.no_grad():
        together, plain = experts(x, sigma, Conditioning({})), alone(x, sigma, Conditioning({}))
        single = torch.cat([experts.at(float(s))(x[i : i + 1], s[None], Conditioning({})) for i, s in enumerate(sigma)])
        # What serves one noise level leaves the others as they were.
        again = alone(x, sigma, Conditioning({}))
    assert_close(together, single, depth=NETWORK)
    assert (together - plain).abs().amax((1, 2, 3)).min() > 1e-5
    assert torch.equal(plain, again)


def test_a_plan_of_names(syzygy) -> None:
    answer = syzygy("experts", "plan", "E3_0,complement,E9_511")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "25 steps of dpm++2m: 25 evaluations"
    assert [line.split()[0] for line in lines[1:]] == ["E9_511", "complement", "E3_0"]


def test_wrong_input(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("experts", "plan", "E3_0"), "leave gaps"),
        (("experts", "plan", "late"), "is not a node of the tree"),
        (("experts", "plan", tmp_path), "holds no experts"),
        (("experts", "plan", "E1_0,E1_1", "--sampler", "magic"), "unknown sampler 'magic'"),
        (("train", "experts", "--model", tiny_model, "--out", tmp_path / "run", 'leaves=["E1_0"]'), "leave gaps"),
    ):
        answer = syzygy(*arguments)
        assert (answer.code, answer.out) == (2, "")
        assert message in answer.err
