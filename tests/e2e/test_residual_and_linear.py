"""Residual and linear priors wherever an ECLIPSE prior goes: trained, generated with, measured, exported, trained through."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy import LinearPrior, PriorPipeline, ResidualPrior, TextToImage
from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.lab.starter import prior_training
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.embedding_pairs import StorePairs, split
from syzygy.prior.prior_loading import load_network, load_prior
from syzygy.prior.residual_prior import ResidualPriorConfig
from syzygy.text_encoders.training import frozen_prior
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_unclip import Tiny

SIZES = ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16")
LOOP = ("task.batch_size=8", "loop.steps=6", "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=2")
SMALL = {"eclipse-residual": ("validation_images=10", *SIZES, *LOOP), "linear": ("validation_images=10",)}
KINDS = {"eclipse-residual": ResidualPrior, "linear": LinearPrior}
BOTH = pytest.mark.parametrize("preset", KINDS)


def called(*arguments: object) -> None:
    import sys
    from unittest.mock import patch

    from syzygy.cli.main import main

    with patch.object(sys, "argv", ["syzygy", *map(str, arguments)]), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store, and a training of each kind on it, named after its preset."""
    folder = tmp_path_factory.mktemp("runs")
    called("world", "sample", "--num", 60, "--out", folder / "pairs")
    called("embed", folder / "pairs", "--encoder", tiny_model / "clip", "--out", folder / "store")
    for preset, settings in SMALL.items():
        called("train", "prior", "--preset", preset, "--data", folder / "store", "--out", folder / preset, *settings)
    return folder


def training_pairs(folder: Path) -> StorePairs:
    from syzygy.data.store import EmbeddingStore

    return split(EmbeddingStore.open(folder / "store"), 10)[0]


def test_the_linear_map_is_fitted_on_the_training_pairs_of_a_store(runs: Path) -> None:
    fitted, loaded = LinearPrior.fit(training_pairs(runs)), LinearPrior.from_pretrained(runs / "linear")
    torch.testing.assert_close(loaded.weight, fitted.weight)
    record = artifacts.read_json(runs / "linear/prior/provenance.json")
    assert (record["kind"], record["steps"], record["samples"]) == ("prior", 0, 50)
    assert record["recipe"]["ridge"] == 1e-3
    assert {"loss", "cosine", "cosine_text", "cosine_other", "recall_at_1"} == set(record["metrics"])
    assert record["data"]
    assert record["validation"]


def test_the_residual_identity_is_measured_on_the_training_pairs_of_a_store(runs: Path) -> None:
    prior, identity = (
        ResidualPrior.from_pretrained(runs / "eclipse-residual"),
        TextIdentity.of_pairs(training_pairs(runs)),
    )
    assert identity.shift is not None
    torch.testing.assert_close(prior.identity_shift, identity.shift, rtol=1e-3, atol=1e-3)  # fp16 file
    record = artifacts.read_json(runs / "eclipse-residual/prior/provenance.json")
    assert record["recipe"]["task"]["penalty"] == 1
    assert record["metrics"]["correction"] > 0


@BOTH
def test_the_same_command_finds_the_finished_run_and_refuses_other_settings(
    syzygy: Callable[..., Any], runs: Path, preset: str
) -> None:
    command = ("train", "prior", "--preset", preset, "--data", runs / "store", "--out", runs / preset, *SMALL[preset])
    before = artifacts.fingerprint(artifacts.read_tensors(runs / preset / "prior/model.safetensors"))
    when = (runs / preset / "prior/model.safetensors").stat().st_mtime_ns
    assert syzygy(*command).code == 0
    assert artifacts.fingerprint(artifacts.read_tensors(runs / preset / "prior/model.safetensors")) == before
    assert preset != "linear" or (runs / preset / "prior/model.safetensors").stat().st_mtime_ns == when
    if preset == "linear":
        other = syzygy("train", "prior", "--data", runs / "store", "--out", runs / "linear", *SMALL["eclipse-residual"])
        assert "holds a linear map, which this training would replace" in other.err
    answer = syzygy(*command, "ridge=0.1" if preset == "linear" else "task.penalty=2")
    assert answer.code == 2
    assert re.search(r"holds a run with other settings: (ridge|task\.penalty) is", answer.err)


@BOTH
def test_images_are_generated_with_it(
    syzygy: Callable[..., Any], runs: Path, tiny_model: Path, tmp_path: Path, preset: str
) -> None:
    arguments = ("a red circle", "--model", tiny_model, "--steps", 1, "--out", tmp_path, "--json")
    prints = [
        json.loads(syzygy("generate", *arguments, *prior).out)["settings"]["fingerprints"]["prior"]
        for prior in ((), ("--prior", runs / preset), ("--prior", runs / preset / "prior"))
    ]
    assert prints[0] != prints[1] == prints[2]
    own = TextToImage.from_pretrained(tiny_model, prior=runs / preset).pipeline.prior
    assert isinstance(own, KINDS[preset])
    assert own.fingerprint() == prints[1]
    model = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(model / "prior")
    shutil.copytree(runs / preset / "prior", model / "prior")
    assert isinstance(TextToImage.from_pretrained(model).pipeline.prior, KINDS[preset])


@BOTH
def test_it_comes_by_hub_id_and_in_the_pipeline_for_diffusers(
    runs: Path, tiny_model: Path, cache: Path, preset: str
) -> None:
    add_snapshot(cache, runs / preset / "prior", "somebody/prior", COMMIT, "main")
    clip = Clip.from_pretrained(tiny_model / "clip")
    loaded = load_prior("somebody/prior", clip)
    assert isinstance(loaded, KINDS[preset])
    pipeline = PriorPipeline.from_pretrained("somebody/prior", clip=tiny_model / "clip", local_files_only=True)
    noise, prompts = torch.randn(2, 32), ["a red circle", "two blue stars"]
    found = pipeline(prompts, latents=noise)
    expected = loaded.predict(clip.encode_text(prompts), noise=noise)
    torch.testing.assert_close(found.image_embeds, expected)
    again = KINDS[preset].from_pretrained("somebody/prior").predict(clip.encode_text(prompts), noise=noise)
    assert torch.equal(again, expected)


@BOTH
@pytest.mark.parametrize("decoder", ["tiny_kandinsky", "tiny_stable_unclip"])
def test_published_decoders_take_it(tmp_path: Path, preset: str, decoder: str, request: pytest.FixtureRequest) -> None:
    """Kandinsky 2.2's space and that of ViT-L/14, which Karlo and Stable unCLIP share, in small."""
    tiny: Tiny = request.getfixturevalue(decoder)
    clip = Clip.from_pretrained(tiny.clip)
    pairs = prior_training.embed(clip, 0, 12)
    if preset == "linear":
        prior = LinearPrior.fit(pairs)
    else:
        prior = ResidualPrior(ResidualPriorConfig(embedding_dim=clip.width, num_layers=1, num_attention_heads=2))
        prior.set_identity(TextIdentity.of_pairs(pairs))
        prior.set_statistics(pairs.statistics)
    prior.save_pretrained(tmp_path / "prior")
    model = TextToImage.from_pretrained(tiny.decoder, clip=tiny.clip, prior=tmp_path / "prior")
    found = model.pipeline.prior
    assert isinstance(found, KINDS[preset])
    features = clip.encode_text(["a red circle"])
    torch.testing.assert_close(found.predict(features), prior.predict(features))
    assert len(model("a red circle", num_inference_steps=2).images) == 1
    config = artifacts.read_json(tmp_path / "prior/config.json")
    artifacts.write_json(tmp_path / "prior/config.json", config | {"embedding_dim": 768})
    with pytest.raises(UserError, match=r"reads image embeddings .*; the prior .* predicts embeddings 768 wide"):
        TextToImage.from_pretrained(tiny.decoder, clip=tiny.clip, prior=tmp_path / "prior")


@BOTH
def test_a_download_fetches_its_own_files(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(repo_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        return str(shutil.copytree(runs / preset / "prior", tmp_path / "snapshot", dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    KINDS[preset].from_pretrained("somebody/other", local_files_only=False)
    assert "model.safetensors" in asked
    assert "diffusion_pytorch_model.safetensors" not in asked


def test_priors_of_all_kinds_are_measured_together(syzygy: Callable[..., Any], runs: Path) -> None:
    names = [f"{preset}={runs / preset}" for preset in SMALL]
    answer = syzygy(
        "evaluate", "prior", "--data", runs / "store", "--prior", names[0], "--prior", names[1], "--json", "-"
    )
    assert answer.code == 0, answer.err
    rows = {row["name"]: row for row in json.loads(answer.out)["candidates"]}
    assert {"eclipse-residual", "linear", "linear map", "text identity, shifted"} <= set(rows)
    # The control is fitted on the captions that are not measured, which here are those of the training.
    for metric in ("cosine", "cosine_text", "R@1"):
        assert rows["linear"][metric]["mean"] == pytest.approx(rows["linear map"][metric]["mean"], abs=2e-3)


@BOTH
def test_export_refuses_the_published_layout_and_says_what_to_do(
    syzygy: Callable[..., Any], runs: Path, tiny_model: Path, tmp_path: Path, preset: str
) -> None:
    answer = syzygy("export", runs / preset, "--out", tmp_path / "mine")
    assert (answer.code, answer.out) == (2, "")
    assert "does not fit the layout that ECLIPSE's authors publish" in answer.err
    assert "give --layout syzygy" in answer.err
    assert not (tmp_path / "mine").exists()
    answer = syzygy(
        "export", runs / preset, "--out", tmp_path / "mine", "--layout", "syzygy", "--dtype", "fp32", "--json"
    )
    assert answer.code == 0, answer.err
    assert set(json.loads(answer.out)["files"]) == {"README.md", "config.json", "model.safetensors", "provenance.json"}
    one, other = (KINDS[preset].from_pretrained(folder) for folder in (tmp_path / "mine", runs / preset))
    assert one.fingerprint() == other.fingerprint()
    text = (tmp_path / "mine/README.md").read_text()
    name = {"eclipse-residual": "A residual prior.", "linear": "A linear map (ridge regression)"}[preset]
    for said in (name, "in a layout of Syzygy's own", "| cosine |", f"import {KINDS[preset].__name__}", "50 pairs of"):
        assert said in text, said
    assert ("penalty 1" in text) == (preset != "linear")
    assert ("closed form on 50 captions, regularisation 0.001" in text) == (preset == "linear")
    snippet = re.search("```python\n(.*?)```", text, re.DOTALL)
    assert snippet
    code = (
        snippet[1].replace('"mine"', repr(str(tmp_path / "mine"))).replace("folder or hub id", str(tiny_model / "clip"))
    )
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["embedding"].shape == (1, 32)


def test_an_eclipse_prior_has_the_published_layout_alone(
    syzygy: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert syzygy("train", "prior", "--data", runs / "store", "--out", out, *SMALL["eclipse-residual"]).code == 0
    answer = syzygy("export", out, "--out", tmp_path / "mine", "--layout", "syzygy")
    assert answer.code == 2
    assert "is exported in the published layout, which Syzygy loads too" in answer.err


def test_the_best_weights_of_a_residual_prior_are_exported(
    syzygy: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = (*SMALL["eclipse-residual"], "loop.best=min projection")
    answer = syzygy("train", "prior", "--preset", "eclipse-residual", "--data", runs / "store", "--out", run, *settings)
    assert answer.code == 0, answer.err
    export = ("export", run, "--out", tmp_path / "best", "--best", "--layout", "syzygy", "--dtype", "fp32")
    assert syzygy(*export).code == 0
    kept = artifacts.read_tensors(run / "best/model.safetensors")
    exported = ResidualPrior.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(x, kept[f"prior.{name}"]) for name, x in exported.items())


def test_training_goes_on_from_a_residual_prior_alone(syzygy: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    train = ("train", "prior", "--preset", "eclipse-residual", "--data", runs / "store", *SMALL["eclipse-residual"])
    answer = syzygy(*train, "--init", runs / "eclipse-residual", "--out", tmp_path / "on", "loop.lr=1e-30")
    assert answer.code == 0, answer.err
    old, new = (ResidualPrior.from_pretrained(folder) for folder in (runs / "eclipse-residual", tmp_path / "on"))
    for name, x in new.state_dict().items():
        torch.testing.assert_close(x, old.state_dict()[name], rtol=0, atol=2e-3)
    assert artifacts.read_json(tmp_path / "on/prior/provenance.json")["init"]
    other = syzygy("train", "prior", "--data", runs / "store", "--init", runs / "eclipse-residual",
                   "--out", tmp_path / "other", *SMALL["eclipse-residual"])  # fmt: skip
    assert other.code == 2
    assert "holds a residual prior, and a prior of the published layout" in other.err
    linear = syzygy("train", "prior", "--preset", "linear", "--data", runs / "store", "--init", runs / "linear",
                    "--out", tmp_path / "linear", *SMALL["linear"])  # fmt: skip
    assert linear.code == 2
    assert "a linear map is fitted anew on all pairs" in linear.err


def test_adapters_are_trained_through_a_residual_prior_and_refuse_a_linear_map(
    syzygy: Callable[..., Any], runs: Path, tiny_model: Path
) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip").fingerprint()
    assert isinstance(frozen_prior(runs / "eclipse-residual", clip), ResidualPrior)
    with pytest.raises(UserError, match="is a linear map, which reads pooled text embeddings alone"):
        frozen_prior(runs / "linear", clip)
    assert isinstance(load_network(tiny_model / "prior"), type(load_network(tiny_model / "prior")))
    with pytest.raises(UserError, match="trained with another clip"):
        frozen_prior(runs / "eclipse-residual", "another")


@BOTH
def test_a_dry_run_estimates_and_writes_nothing(
    syzygy: Callable[..., Any], runs: Path, tmp_path: Path, preset: str
) -> None:
    command = (
        "train",
        "prior",
        "--preset",
        preset,
        "--data",
        runs / "store",
        "--out",
        tmp_path / "run",
        *SMALL[preset],
    )
    answer = syzygy(*command, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["seconds"] >= 0
    assert found["steps"] == (1 if preset == "linear" else 6)
    assert found["validations"] >= 1
    assert not (tmp_path / "run").exists()


@BOTH
def test_it_is_trained_on_the_embedded_world_too(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, preset: str
) -> None:
    command = ("train", "prior", "--preset", preset, "--clip", tiny_model, "--out", tmp_path / "run", "scenes=40")
    answer = syzygy(*command, *SMALL[preset], "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["metrics"]["cosine"] <= 1
    assert artifacts.read_json(tmp_path / "run/prior/provenance.json")["recipe"]["scenes"] == 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "linear", "ridge=0"), "setting 'ridge'"),
        (("--preset", "linear", "loop.steps=3"), "unknown setting 'loop.steps'"),
        (("--preset", "linear", "--tensorboard"), "is fitted without steps, so there is nothing to watch"),
        (("--preset", "linear", "scenes=5"), "scenes=5 has no effect on a store"),
        (("--preset", "linear", "embedding_dim=768"), "is for embeddings of width 768; the data's are 32 wide"),
        (("--preset", "eclipse-residual", "task.penalty=-1"), "setting 'task.penalty'"),
        (("--preset", "eclipse-residual-karlo",), "is for embeddings of width 768; the data's are 32 wide"),
        (("--preset", "eclipse-residual-kandinsky22",), "is for embeddings of width 1280; the data's are 32 wide"),
    ],
)  # fmt: skip
def test_wrong_input(
    syzygy: Callable[..., Any], runs: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = syzygy("train", "prior", "--data", runs / "store", "--out", tmp_path / "run", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in " ".join(answer.err.split())
