"""From images with subjects to a λ-ECLIPSE prior: `world sample --subjects`, `embed --subjects --edges`, `train prior --data`."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.core.artifacts import read_tensors
from syzygy.data.store import EmbeddingStore
from syzygy.lab.starter.prior_training import embed_with_subjects
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.lambda_residual import LambdaResidualPrior
from syzygy.prior.prior_loading import load_one_pass
from tests.closeness import assert_close
from tests.stopping import stopped

NUMBER = 40
SAMPLE = ("world", "sample", "--subjects", "--num", NUMBER, "--unseen", "exclude", "--size", 32)
EMBED = ("--subjects", "--edges", "--device", "cpu", "--batch-size", 8, "--threads", 1)
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


def done(*words: Any) -> None:
    from syzygy.cli.main import main

    with patch.object(sys, "argv", ["syzygy", *map(str, words)]), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects") / "scenes"
    done(*SAMPLE, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def store(scenes: Path, tiny_model: Path) -> Path:
    pytest.importorskip("cv2")
    done("embed", scenes, "--encoder", tiny_model / "clip", "--out", scenes.parent / "store", *EMBED)
    return scenes.parent / "store"


def test_the_store_agrees_with_the_pairs_that_training_makes_in_memory(store: Path, tiny_model: Path) -> None:
    """Captions, positions, images and edges are the same; cut-outs differ, because the store's are cropped from the image.

    In memory the object is drawn again, alone and at one size. The two embeddings still resemble each other.
    """
    clip = Clip.from_pretrained(tiny_model / "clip")
    made = embed_with_subjects(clip, 0, NUMBER, edges=True)
    opened = EmbeddingStore.open(store)
    found, expected = opened.references(range(NUMBER)), made.referred
    assert found is not None
    assert expected is not None
    for name in ("offsets", "positions", "position_offsets"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert 20 < len(found.embeddings) < NUMBER
    assert torch.equal(opened.captions(range(NUMBER)).lengths, made.text(torch.arange(NUMBER)).lengths)
    assert found.control is not None
    assert expected.control is not None
    assert made.zero_image is not None
    assert opened.zero_image is not None
    assert_close(opened.zero_image, made.zero_image)
    # The file holds 8 bits a channel, so a pixel near a threshold of Canny may fall on the other side.
    near = F.cosine_similarity(found.control.float(), expected.control)
    assert near.median() > 0.999
    assert F.cosine_similarity(opened.images(range(NUMBER)).float(), made.image_embeddings).min() > 0.999


def test_masks_show_the_object(scenes: Path) -> None:
    rows = [json.loads(line) for line in (scenes / "metadata.jsonl").read_text().splitlines()]
    with_one = [row for row in rows if row["subjects"]]
    assert len(with_one) > 20
    for row in with_one:
        (subject,) = row["subjects"]
        assert subject["phrase"] == "thing"
        assert "thing" in row["text"]
        assert "thing" not in row["words"]
        with Image.open(scenes / subject["mask"]) as mask, Image.open(scenes / row["file_name"]) as image:
            assert mask.size == image.size
            assert mask.getextrema()[1] > 200
    assert all("thing" not in row["text"] for row in rows if not row["subjects"])


@pytest.mark.usefixtures("store")
def test_info_dry_run_and_workers(
    syzygy: Callable[..., Any], scenes: Path, store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    text, info = (
        syzygy("store", "info", store).out,
        json.loads(syzygy("store", "info", store, "--json").out)["subjects"],
    )
    assert info["captions"] + info["captions_without"] == NUMBER
    assert (info["bad"], info["edges"]) == (0, True)
    assert (
        f"subjects: {info['number']}, in {info['captions']} captions; {info['captions_without']} captions without"
        in text
    )
    encoder = ("--encoder", tiny_model / "clip")
    expected = syzygy("embed", scenes, *encoder, "--out", tmp_path / "dry", *EMBED, "--dry-run")
    assert expected.code == 0, expected.err
    assert "per pair, on average over the first pairs" in expected.out
    plain = json.loads(syzygy("embed", scenes, *encoder, "--out", tmp_path / "dry", "--dry-run", "--json").out)
    more = json.loads(syzygy("embed", scenes, *encoder, "--out", tmp_path / "dry", *EMBED, "--dry-run", "--json").out)
    assert more["bytes"] > plain["bytes"]
    assert (plain["subjects"], 0 < more["subjects"] <= 1) == (None, True)
    answer = syzygy("embed", scenes, *encoder, "--out", tmp_path / "workers", *EMBED, "--workers", 2)
    assert answer.code == 0, answer.err
    assert contents(tmp_path / "workers") == contents(store)
    assert syzygy("store", "verify", store).code == 0
    again = syzygy("embed", scenes, *encoder, "--out", store)
    assert again.code == 0, again.err
    assert "0 of them embedded now" in again.out


@pytest.mark.parametrize(
    "preset",
    [
        ("lambda-eclipse",),
        ("lambda-eclipse", "scenes=null"),
        ("lambda-eclipse-kandinsky22", "embedding_dim=null"),
        ("lambda-eclipse-residual",),
        ("lambda-eclipse-residual-kandinsky22", "embedding_dim=null"),
    ],
)
def test_a_prior_is_trained_on_a_store_with_subjects(
    syzygy: Callable[..., Any], store: Path, tmp_path: Path, preset: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = syzygy("train", "prior", "--preset", *preset, "--data", store, "--out", tmp_path / "run", "--json", *SMALL)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["metrics"].keys() >= {"loss", "projection", "contrastive", "cosine"}
    kind = LambdaResidualPrior if "residual" in preset[0] else LambdaEclipsePrior
    assert type(load_one_pass(tmp_path / "run")) is kind
    own = ("--layout", "syzygy") if kind is LambdaResidualPrior else ()
    exported = syzygy("export", tmp_path / "run", "--out", tmp_path / "exported", *own)
    assert exported.code == 0, exported.err
    assert type(load_one_pass(tmp_path / "exported")) is kind
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "from images of subjects" in card
    shown = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert shown
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(shown[1], found)
    assert found["embedding"].shape[0] == 1
    measured = syzygy("evaluate", "prior", "--data", store, "--prior", tmp_path / "run", "--device", "cpu")
    assert measured.code == 0, measured.err
    assert "run also reads the subjects" in measured.out


def test_eclipse_is_trained_on_it_without_reading_subjects(
    syzygy: Callable[..., Any],
    scenes: Path,
    store: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ("--device", "cpu", "--batch-size", 8, "--threads", 1)
    assert syzygy("embed", scenes, "--encoder", tiny_model / "clip", "--out", tmp_path / "plain", *plain).code == 0

    def never(*_: Any) -> None:
        raise AssertionError("subjects are read")

    monkeypatch.setattr("syzygy.data.store_subjects.StoredSubjects.references", never)
    for name, data in (("with", store), ("without", tmp_path / "plain")):
        answer = syzygy("train", "prior", "--preset", "eclipse", "--data", data, "--out", tmp_path / name, *SMALL)
        assert answer.code == 0, answer.err
    one, other = (
        read_tensors(tmp_path / name / "prior/diffusion_pytorch_model.safetensors") for name in ("with", "without")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_store_without_subjects_is_refused(
    syzygy: Callable[..., Any], scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert syzygy("embed", scenes, "--encoder", tiny_model / "clip", "--out", tmp_path / "plain").code == 0
    train = ("train", "prior", "--preset", "lambda-eclipse", *SMALL)
    answer = syzygy(*train, "--data", tmp_path / "plain", "--out", tmp_path / "run")
    assert answer.code == 2
    assert (
        "is trained on captions with subjects, and these data have none. `syzygy embed --subjects` embeds" in answer.err
    )
    assert syzygy("embed", scenes, "--encoder", tiny_model / "clip", "--out", tmp_path / "only", "--subjects").code == 0
    answer = syzygy(*train, "--data", tmp_path / "only", "--out", tmp_path / "run2")
    assert answer.code == 2
    assert "embed with --edges, or set task.controlled=0" in answer.err
    answer = syzygy(*train, "--data", tmp_path / "only", "--out", tmp_path / "run2", "task.controlled=0")
    assert answer.code == 0, answer.err


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(syzygy: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    settings = [text for text in SMALL if not text.startswith("loop.steps")] + ["loop.steps=30"]

    def arguments(out: Path) -> list[str]:
        start = ("train", "prior", "--preset", "lambda-eclipse", "--data", str(store), "--device", "cpu")
        return [*start, "--threads", "1", "--out", str(out), *settings]

    def finish(out: Path) -> dict[str, bytes]:
        answer = syzygy(*arguments(out))
        assert answer.code == 0, answer.err
        tensors = read_tensors(out / "prior/diffusion_pytorch_model.safetensors")
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
    assert finish(out) == finish(tmp_path / "whole")


def test_options_without_effect_are_refused(
    syzygy: Callable[..., Any], scenes: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("embed", scenes, "--encoder", tiny_model / "clip", "--out", tmp_path / "store")
    answer = syzygy(*start, "--edges")
    assert (answer.code, "error: --edges has no effect without --subjects" in answer.err) == (2, True)
    answer = syzygy(*start, "--subject-column", "x")
    assert (answer.code, "error: --subject-column has no effect without --subjects." in answer.err) == (2, True)
    answer = syzygy(*start, "--subjects", "--subject-column", "x")
    assert (answer.code, "has no column 'x', from which --subjects reads" in answer.err) == (2, True)
    monkeypatch.setitem(sys.modules, "cv2", None)
    answer = syzygy(*start, "--subjects", "--edges")
    assert answer.code == 2
    assert "computing the edges of images needs OpenCV: run pip install -e '.[edges]'" in answer.err
    assert "Or leave --edges out, and train with task.controlled=0." in answer.err
    assert not (tmp_path / "store" / "store.json").exists()


def test_bad_subjects_are_counted_and_named(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.effect_noise((40, 30), 99).convert("RGB").save(tmp_path / "in" / "a.png")
    subjects = [{"phrase": "dog", "box": [0, 0, 400, 30]}, {"phrase": "cat", "box": [0, 0, 20, 20]}]
    row = {"file_name": "a.png", "text": "a dog", "subjects": subjects}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(row))
    store = tmp_path / "store"
    answer = syzygy("embed", tmp_path / "in", "--encoder", tiny_model / "clip", "--out", store, "--subjects")
    assert answer.code == 0, answer.err
    assert (
        "warning: 2 subjects of the first pairs cannot be used, such as a.png: 'dog': its box [0, 0, 400, 30]"
        in answer.err
    )
    for text in (answer.out, syzygy("store", "info", store).out):
        assert "subjects: 0, in 0 captions; 1 caption without" in text
        assert "warning: no subject can be used, so a λ-ECLIPSE prior cannot be trained on this store." in text
        assert "2 subjects could not be used; bad.jsonl lists each with its reason:" in text
        assert "a.png: 'cat': its phrase is in none of the captions" in text
    assert "1 picture, 1 caption" in answer.out
