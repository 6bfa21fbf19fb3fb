"""From a folder of pairs to a prior that paints: embed, train on the store, go on, generate."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.artifacts import read_tensors
from syzygy.core.errors import UserError
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_files import mapped, write_tensors
from syzygy.prior.eclipse import EclipseObjective, EclipsePrior, EclipsePriorConfig, EclipseTaskConfig
from syzygy.prior.embedding_pairs import PriorData, StorePairs, split
from syzygy.prior.prior_task import PriorTask
from tests.closeness import assert_close
from tests.stopping import stopped
from tests.tiny_unclip import tiny_clip_pipeline

SMALL = (
    "num_layers=1",
    "num_attention_heads=2",
    "attention_head_dim=16",
    "validation_images=10",
    "task.batch_size=8",
    "loop.steps=6",
    "loop.warmup=1",
    "loop.validate_every=3",
    "loop.checkpoint_every=2",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """40 pairs of the world, embedded by the tiny model's CLIP, in two shards."""
    import sys
    from unittest.mock import patch

    from syzygy.cli.main import main

    folder = tmp_path_factory.mktemp("store")
    for arguments in (
        ("world", "sample", "--num", "40", "--out", folder / "pairs"),
        ("embed", folder / "pairs", "--encoder", tiny_model / "clip", "--out", folder / "store"),
    ):
        with patch.object(sys, "argv", ["syzygy", *map(str, arguments)]), pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    return folder / "store"


def test_a_prior_is_trained_on_a_store_and_paints(
    syzygy: Callable[..., Any], store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    answer = syzygy("train", "prior", "--data", store, "--out", out, "--json", *SMALL)
    assert answer.code == 0, answer.err
    assert {"cosine", "cosine_text", "cosine_other", "recall_at_1"} <= set(json.loads(answer.out)["metrics"])
    record = artifacts.read_json(out / "prior/provenance.json")
    assert record["data"] == EmbeddingStore.open(store).digest
    assert record["recipe"]["scenes"] is None
    assert artifacts.read_json(out / "environment.json")["processes"] == 1
    painted = syzygy(
        "generate", "a red circle", "--model", tiny_model, "--prior", out, "--steps", 1, "--out", tmp_path / "pictures"
    )
    assert painted.code == 0, painted.err

    again = syzygy("train", "prior", "--data", store, "--out", tmp_path / "parts", *SMALL, "task.micro_batch=3")
    assert again.code == 0, again.err
    one, other = (EclipsePrior.from_pretrained(folder / "prior") for folder in (out, tmp_path / "parts"))
    torch.testing.assert_close(one.proj_in.weight, other.proj_in.weight, rtol=0, atol=2e-3)  # fp16 files


def test_a_diffusion_prior_is_trained_on_a_store_and_paints(
    syzygy: Callable[..., Any], store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """It needs the features of the empty text: the store has those of its encoder, and generation asks the encoder."""
    run = tmp_path / "run"
    arguments = (
        "--preset",
        "diffusion",
        "--data",
        store,
        "task.sampling.steps=2",
        "task.condition_dropout=0.5",
        *SMALL,
    )
    answer = syzygy("train", "prior", *arguments, "--out", run, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["metrics"].keys() >= {"loss", "cosine", "recall_at_1"}
    whole = read_tensors(run / "prior/diffusion_pytorch_model.safetensors")
    painted = syzygy(
        "generate", "a red circle", "--model", tiny_model, "--prior", run, "--steps", 1, "--out", tmp_path / "pictures"
    )
    assert painted.code == 0, painted.err
    clip = Clip.from_pretrained(tiny_model / "clip")
    torch.testing.assert_close(
        EmbeddingStore.open(store).empty_text().states.float(), clip.encode_text([""]).states[0], rtol=2e-3, atol=1e-3
    )

    other = tmp_path / "other"
    shutil.copytree(store, other)
    (file,) = other.glob("shards/*-empty.clip.safetensors")
    tensors = mapped(file)
    write_tensors(file, {**tensors, "states": -tensors["states"]})  # of the same size: what the loss reads is this file
    assert syzygy("train", "prior", *arguments, "--data", other, "--out", tmp_path / "changed").code == 0
    changed = read_tensors(tmp_path / "changed/prior/diffusion_pytorch_model.safetensors")
    assert not torch.equal(whole["proj_in.weight"], changed["proj_in.weight"])


def test_an_older_store_trains_eclipse_only(syzygy: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    for path in (tmp_path / "store").rglob("*.json"):
        values = artifacts.read_json(path) | {"schema_version": 1}
        values.pop("empty", None)
        values.get("features", {}).get("clip", {}).pop("empty", None)
        artifacts.write_json(path, values)
    arguments = ("train", "prior", "--data", tmp_path / "store", *SMALL, "--out")
    assert syzygy(*arguments, tmp_path / "eclipse").code == 0
    answer = syzygy(*arguments, tmp_path / "diffusion", "--preset", "diffusion")
    assert answer.code == 2
    assert (
        "holds no features of the empty text, because an older version wrote it. Embed its source again" in answer.err
    )
    command = re.search(r"Embed its source again: syzygy (embed .*) --out STORE", answer.err)
    assert command
    assert syzygy(*command[1].split(), "--out", tmp_path / "new").code == 0
    arguments = ("train", "prior", "--data", tmp_path / "new", *SMALL, "--out")
    assert syzygy(*arguments, tmp_path / "diffusion", "--preset", "diffusion", "task.sampling.steps=1").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["eclipse", "eclipse-residual", "diffusion", "flow", "starter"])
def test_a_killed_training_on_a_store_goes_on_bit_for_bit(
    syzygy: Callable[..., Any], store: Path, tmp_path: Path, preset: str
) -> None:
    settings = [text for text in SMALL if not text.startswith("loop.steps")] + ["loop.steps=30"]
    settings += ["task.sampling.steps=1"] if preset in ("diffusion", "flow") else []

    def arguments(out: Path) -> list[str]:
        return [
            *("train", "prior", "--preset", preset, "--data", str(store), "--device", "cpu"),
            "--out",
            str(out),
            *settings,
        ]

    def finish(out: Path) -> dict[str, bytes]:
        answer = syzygy(*arguments(out))
        assert answer.code == 0, answer.err
        (weights,) = (out / "prior").glob("*.safetensors")
        tensors = read_tensors(weights)
        found = {name: x.numpy().tobytes() for name, x in tensors.items()}
        return found | {"metrics": (out / "metrics.jsonl").read_bytes()}

    out = tmp_path / "killed"
    ended = stopped(
        [sys.executable, "-m", "syzygy.cli", *arguments(out)],
        out,
        signal.SIGKILL,
        reached=lambda _: (out / "checkpoint/state.json").exists(),
        finished=out / "prior",
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (out / "prior").exists()
    assert finish(out) == finish(tmp_path / "whole")


def test_samples_a_second_follow_the_batch_that_was_fitted_to_the_data(
    syzygy: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    fitted = [text for text in SMALL if not text.startswith("task.batch_size")]
    answer = syzygy("train", "prior", "--data", store, "--out", tmp_path / "run", *fitted)
    assert "task.batch_size is 30 instead of" in answer.err + answer.out
    steps, samples = re.findall(r"([\d.e+]+) steps/s · ([\d.e+]+) samples/s", answer.err)[-1]
    assert 29 < float(samples) / float(steps) < 31


def test_a_store_is_no_prior_and_no_training_run(syzygy: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    for arguments in (
        ("evaluate", "prior", "--data", store, "--prior", store),
        ("generate", "a red circle", "--prior", store, "--out", tmp_path / "pictures"),
        ("export", store, "--out", tmp_path / "exported"),
    ):
        answer = syzygy(*arguments)
        assert answer.code == 2
        assert f"{store} is an embedding store, not a " in answer.err
        assert f"`syzygy train prior --data {store}` trains" in answer.err


def test_one_picture_is_too_few_whatever_the_settings(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    assert syzygy("world", "sample", "--num", 1, "--out", tmp_path / "one").code == 0
    embedded = syzygy("embed", tmp_path / "one", "--encoder", tiny_model / "clip", "--out", tmp_path / "store")
    assert embedded.code == 0
    for given in ((), ("validation_images=1",)):
        answer = syzygy("train", "prior", "--data", tmp_path / "store", "--out", tmp_path / "run", *given)
        assert answer.code == 2
        assert "holds 1 different picture: a prior needs at least two" in answer.err
        assert "validation_images" not in answer.err + answer.out


def test_tensorboard_gets_every_line_of_metrics(syzygy: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    answer = syzygy("train", "prior", "--data", store, "--out", tmp_path, "--tensorboard", *SMALL, "loop.log_every=2")
    assert answer.code == 0, answer.err
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    assert [e.step for e in events.Scalars("validation/cosine")] == [3, 6]


def test_a_store_and_memory_give_the_same_batches(store: Path) -> None:
    opened = EmbeddingStore.open(store)
    everything = torch.arange(len(opened))
    text = opened.captions(everything)
    memory = PriorData(
        opened.images(torch.arange(opened.number_of_images)),
        text.padded(),
        opened.all_images_of(),
        opened.ids(everything),
    )
    tasks = []
    for pairs in (StorePairs(opened, everything), memory):
        torch.manual_seed(0)
        sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
        prior = EclipsePrior(EclipsePriorConfig(embedding_dim=opened.width, **sizes))
        objective = EclipseObjective(prior, EclipseTaskConfig(batch_size=16), logit_scale=10.0)
        tasks.append(PriorTask(objective, pairs, pairs, 16, 0))
    assert tasks[0].loss(3)["loss"].item() == tasks[1].loss(3)["loss"].item()
    with torch.no_grad():
        assert tasks[0].validate() == tasks[1].validate()
    a, b = (task.objective.prior for task in tasks)
    assert_close(a.get_parameter("clip_mean"), b.get_parameter("clip_mean"))
    assert_close(a.get_parameter("clip_std"), b.get_parameter("clip_std"))
    assert all(key.startswith("000") for key in tasks[0].keys(0))


def test_validation_pictures_are_left_out_of_training_with_all_their_captions(store: Path) -> None:
    opened = EmbeddingStore.open(store)
    training, validation = split(opened, 10)
    seen, unseen = (set(pairs.image_numbers(torch.arange(len(pairs))).tolist()) for pairs in (training, validation))
    assert len(unseen) == 10
    assert not seen & unseen
    assert len(training) + len(validation) == len(opened)
    assert torch.equal(split(opened, 10)[1].chosen, validation.chosen)
    with pytest.raises(UserError, match="validation_images=40 of the 40 different images"):
        split(opened, 40)


def test_two_pairs_train_with_the_presets_of_the_published_models(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """Every default follows the data: validation, batch, warm-up, restarts and statistics."""
    assert syzygy("world", "sample", "--num", 2, "--out", tmp_path / "pairs").code == 0
    assert syzygy("embed", tmp_path / "pairs", "--encoder", tiny_model / "clip", "--out", tmp_path / "store").code == 0
    sizes = ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "embedding_dim=null")
    arguments = ("train", "prior", "--preset", "eclipse-karlo", "--data", tmp_path / "store", *sizes, "loop.steps=3")
    answer = syzygy(*arguments, "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["metrics"]["cosine"] <= 1
    said = (
        "validation_images is 1 instead of the preset's 4,096, to fit the 2 pictures in",
        "task.batch_size is 1 instead of the preset's 1,024, to fit the 1 caption to train on.",
        "loop.warmup is 0 instead of the preset's 500, to fit loop.steps=3.",
        "1 caption to train on, 1 to validate on; each is seen 3 times.",
        "The metric frechet is not measured",
    )
    for line in said:
        assert line in answer.err, line
    rates = re.findall(r"(\S+) steps/s · (\S+) samples/s", answer.err)
    assert rates
    assert all(steps == samples for steps, samples in rates), "a step is one caption"
    recipe = artifacts.read_json(tmp_path / "run/prior/provenance.json")["recipe"]
    assert (recipe["validation_images"], recipe["task"]["batch_size"]) == (1, 1)
    again = syzygy(*arguments, "--out", tmp_path / "run", "--json")
    assert (again.code, again.out) == (0, answer.out), "the same command finds the finished run"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "eclipse-karlo"), "is for embeddings of width 768; the data's are 32 wide"),
        (("scenes=5",), "scenes=5 has no effect on a store"),
        (("--clip", "starter"), "--clip has no effect with --data"),
        (("--data", "nowhere"), "there is no embedding store nowhere"),
        (("--init", "nowhere"), "nowhere"),
        (("validation_images=40",), "choose at least 1, and fewer than there are"),
    ],
)
def test_wrong_input(
    syzygy: Callable[..., Any], store: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    small = () if "eclipse-karlo" in arguments else SMALL
    answer = syzygy("train", "prior", "--data", store, "--out", tmp_path / "run", *small, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_a_stock_prior_is_nothing_to_go_on_from(syzygy: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    stock = tiny_clip_pipeline(tmp_path / "stock")
    answer = syzygy("train", "prior", "--data", store, "--out", tmp_path / "run", *SMALL, "--init", stock)
    assert answer.code == 2
    assert "holds a diffusion prior (it has a time embedding)" in answer.err
    assert "An ECLIPSE prior is needed" in answer.err


def test_a_store_that_is_none_needs_one_or_scenes(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    preset = ("--preset", "eclipse-karlo", "embedding_dim=null")
    answer = syzygy("train", "prior", "--clip", tiny_model, "--out", tmp_path / "run", *preset)
    assert answer.code == 2
    assert "give --data STORE, or set scenes=20000" in answer.err
