"""docs/tutorials/another-language.md: its commands, one after the other, on tiny models under the published names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from syzygy.generation.image_files import read_record
from syzygy.generation.prior_pipeline import PriorPipeline
from tests.documents import ROOT, commands
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_llm import save_tiny_llm
from tests.tiny_unclip import Tiny

LOOP = ("loop.steps=3", "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=0", "task.batch_size=6")
SMALL: dict[tuple[str, ...], tuple[str, ...]] = {
    ("world", "corpus"): ("--num", "40"),
    ("train", "adapter", "align"): (*LOOP, "validation_lines=4", "adapter.queries=3", "adapter.layers=1", "adapter.heads=2",
                                    "adapter.width=16"),
    ("world", "sample"): ("--num", "40"),
    ("embed",): (),
    ("store", "add"): (),
    ("train", "adapter", "image"): (*LOOP, "validation_images=8"),
    ("train", "adapter", "quality"): (*LOOP, "validation_images=8"),
    ("generate",): ("--steps", "2", "--height", "64", "--width", "64", "--out", "pictures", "--device", "cpu"),
    ("evaluate", "text-encoder"): ("--captions", "4", "--languages", "en,de", "--device", "cpu"),
}  # fmt: skip
"""What each command is given besides, so that it takes a second; the last of an option counts."""


@pytest.fixture
def published(cache: Path, tiny_kandinsky: Tiny, tmp_path: Path) -> None:
    """The hub's cache, as `hf download` leaves it."""
    for folder, hub_id in (
        (save_tiny_llm("qwen3", tmp_path / "qwen3"), "Qwen/Qwen3-0.6B"),
        (tiny_kandinsky.clip, "kandinsky-community/kandinsky-2-2-prior"),
        (tiny_kandinsky.decoder, "kandinsky-community/kandinsky-2-2-decoder"),
        (tiny_kandinsky.prior, "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"),
    ):
        add_snapshot(cache, folder, hub_id, COMMIT, "main")


def _key(arguments: list[str]) -> tuple[str, ...]:
    if arguments[:2] == ["train", "adapter"]:
        return (*arguments[:2], arguments[arguments.index("--stage") + 1])
    return next(tuple(arguments[:number]) for number in (2, 1) if tuple(arguments[:number]) in SMALL)


def test_the_walk(syzygy: Callable[..., Any], published: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("syzygy.text_encoders.training.STATISTICS_CAPTIONS", 20)
    text = (ROOT / "docs/tutorials/another-language.md").read_text("utf-8").partition("## Example at small scale")[0]
    walked = [arguments for arguments in commands(text, torchrun=False)]
    assert [_key(arguments) for arguments in walked] == list(SMALL)
    for arguments in walked:
        answer = syzygy(*arguments, *SMALL[_key(arguments)])
        assert answer.code == 0, (arguments, answer.err)
        assert "warning" not in answer.err, (arguments, answer.err)
    record = artifacts.read_json(tmp_path / "quality/adapter/provenance.json")
    assert [one["stage"] for one in record["lineage"]] == ["align", "image"]
    assert record["llm"]["source"] == "Qwen/Qwen3-0.6B"
    assert 0 < record["captions"] < 40  # of the style that the filter names
    (picture,) = (tmp_path / "pictures").glob("*.png")
    assert read_record(picture)["text_encoder"] == "quality"
    result = json.loads((tmp_path / "out/text-encoder/results.json").read_text())
    assert {row["language"] for row in result["tail"]} == {"en", "de"}

    found: Any = PriorPipeline.from_pretrained("quality", text_encoder="quality", local_files_only=True,
                                               clip="kandinsky-community/kandinsky-2-2-prior")  # fmt: skip
    german, english = (
        found(text, latents=torch.zeros(1, 32)).image_embeds for text in ("ein roter Ring", "a red ring")
    )
    assert not torch.equal(german, english)

    # What the page says of failures.
    shutil.move("store", "kept")
    shutil.copytree("kept", "store")
    assert syzygy("store", "add", "store", "--llm", "Qwen/Qwen3-0.6B", "--name", "exact", "--compute", "fp32").code == 0
    wrong = (
        "train",
        "adapter",
        "--preset",
        "bigg-14",
        "--data",
        "store",
        "--out",
        "wrong",
        *LOOP,
        "validation_images=8",
    )
    for more, message in (
        (("--stage", "image", "--from", "align", "--features", "exact", "--prior", "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"),
         "was made with other features of a language model: dtype is"),
        (("--stage", "quality", "--from", "align", "--filter", "width >= 64"), "is of stage 'align'; stage 'quality' continues from"),
        (("--stage", "image", "--from", "align", "--prior", "image"), "was trained with another prior"),
    ):  # fmt: skip
        answer = syzygy(*wrong, *more)
        assert answer.code == 2
        assert message in " ".join(answer.err.split())
