"""An adapter with its language model, from their folders."""

import shutil
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.text_encoders.adapter_folders import load_adapted
from syzygy.text_encoders.llm import LlmRecipe
from tests.tiny_adapter import save_tiny_adapter
from tests.tiny_llm import TEXTS, save_tiny_llm

RECIPE = LlmRecipe(layers=(1, 3), max_tokens=40)


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> Clip:
    return Clip.from_pretrained(tiny_model / "clip")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm("qwen3", tmp_path_factory.mktemp("llm") / "qwen3")


@pytest.fixture
def folder(tmp_path: Path, llm: Path, clip: Clip) -> Path:
    """An adapter for features of two layers in bf16."""
    return save_tiny_adapter(tmp_path / "adapter", llm, clip, recipe=RECIPE, dtype=torch.bfloat16)


def test_it_reads_as_in_training(folder: Path, clip: Clip, llm: Path) -> None:
    encoder = load_adapted(folder, clip)
    assert encoder.llm.recipe == RECIPE
    assert encoder.llm.dtype == torch.bfloat16
    found = encoder.encode_text(["", *TEXTS])
    assert found.states.shape == (5, 3, 32)
    moved = shutil.copytree(llm, folder.parent / "elsewhere")
    again = load_adapted(folder.parent, clip, llm=moved)  # the folder of a run, too
    assert torch.equal(again.encode_text(["", *TEXTS]).pooled, found.pooled)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_what_does_not_belong_together(folder: Path, clip: Clip, tmp_path: Path, monkeypatch) -> None:
    other = save_tiny_llm("qwen3", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"the adapter in .* was made with other features .*: fingerprint"):
        load_adapted(folder, clip, llm=other)
    with pytest.raises(UserError, match=r"classes is \['Qwen3Model'"):
        load_adapted(folder, clip, llm=save_tiny_llm("llama", tmp_path / "llama"))
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "fingerprint", lambda self: "another")
        with pytest.raises(UserError, match="trained with another clip"):
            load_adapted(folder, clip)
    path = folder / artifacts.PROVENANCE_FILE
    record = artifacts.read_json(path)
    artifacts.write_json(path, record | {"llm": record["llm"] | {"source": "gone/far/away"}})
    with pytest.raises(
        UserError, match=rf"in the folder gone/far/away, .*{tmp_path}/gone/far/away and .*where it is now"
    ):
        load_adapted(folder, clip)
    artifacts.write_json(path, {"clip": record["clip"]})
    with pytest.raises(UserError, match="does not say on which language model"):
        load_adapted(folder, clip)


def test_a_recorded_folder_is_found_beside_or_from_here(folder: Path, clip: Clip, llm: Path, monkeypatch) -> None:
    """Older records have the path as it was given; a model that keeps both says where beside its adapter."""
    path = folder / artifacts.PROVENANCE_FILE
    record = artifacts.read_json(path)
    assert Path(record["llm"]["source"]).is_absolute()
    artifacts.write_json(path, record | {"llm": record["llm"] | {"source": "models/llm"}})
    with pytest.raises(UserError, match=r"in the folder models/llm, which is not there \(looked for .*--llm FOLDER"):
        load_adapted(folder, clip)  # it has the form of a hub id, but a folder has no revision
    around = shutil.copytree(llm, folder.parent / "models" / "llm")
    load_adapted(folder, clip)
    work = folder.parent / "work"
    work.mkdir()
    around.parent.rename(work / "models")
    monkeypatch.chdir(work)
    load_adapted(folder, clip)
