"""Language models from GGUF files: the features of the model that was converted, and one clear line for what cannot be read."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.text_encoders import transformers_loading
from syzygy.text_encoders.adapter_folders import load_adapted
from syzygy.text_encoders.llm import Llm, load_llm
from tests.closeness import NETWORK, assert_close
from tests.tiny_adapter import save_tiny_adapter
from tests.tiny_llm import TEXTS, save_tiny_gguf, save_tiny_llm
from tests.tiny_unclip import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm("qwen2", tmp_path_factory.mktemp("llm") / "qwen2")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return save_tiny_gguf(folder, folder.parent / "tiny.gguf")


def test_the_features_are_those_of_the_model_that_was_converted(folder: Path, file: Path) -> None:
    found, wanted = load_llm(file), load_llm(folder)
    assert type(found.model) is type(wanted.model)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    texts = ["", *TEXTS]
    assert torch.equal(found.tokenize(texts).ids, wanted.tokenize(texts).ids)
    assert_close(found.encode_states(texts).states, wanted.encode_states(texts).states, depth=NETWORK)
    assert found.fingerprint() == wanted.fingerprint()
    coarse = load_llm(str(file), dtype=torch.bfloat16)
    assert coarse.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in coarse.parameters()} == {torch.bfloat16}


def test_an_adapter_finds_its_file_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another working directory, though it was given as a relative path; and by a new place."""
    clip = Clip.from_pretrained(tiny_clip(tmp_path / "clip"))
    monkeypatch.chdir(file.parent)
    own = Path(shutil.copy(file.name, "own.gguf"))
    save_tiny_adapter(tmp_path / "adapter", own, clip)
    monkeypatch.chdir(tmp_path)
    wanted = load_adapted("adapter", clip).encode_text(["a red star"]).pooled
    assert artifacts.read_json(tmp_path / "adapter/provenance.json")["llm"]["source"] == str(file.parent / "own.gguf")
    (file.parent / "own.gguf").unlink()
    with pytest.raises(UserError, match=r"was in .*own\.gguf, which is not there"):
        load_adapted("adapter", clip)
    assert torch.equal(load_adapted("adapter", clip, llm=file).encode_text(["a red star"]).pooled, wanted)


def test_what_cannot_be_read(folder: Path, file: Path, tmp_path: Path) -> None:
    other = save_tiny_gguf(folder, tmp_path / "other.gguf", architecture="rwkv7")
    mute = save_tiny_gguf(folder, tmp_path / "mute.gguf", tokenizer=False)
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-5000])
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"PK" * 99)
    part = Path(shutil.copy(file, tmp_path / "m-00001-of-00003.gguf"))
    for path, message in (
        (
            other,
            r"other\.gguf cannot be loaded: .*rwkv7.* not supported yet\. Use the repository that the file was converted",
        ),
        (mute, r"the tokenizer in .*mute\.gguf cannot be read: .* Use the repository that the file was converted from"),
        (short, r"short\.gguf cannot be loaded: "),
        (wrong, r"wrong\.gguf is not a GGUF file, though its name says so"),
        (part, r"is part 1 of 3 of a model: merge them first, with llama\.cpp's llama-gguf-split --merge"),
        (tmp_path / "no.gguf", r"there is no file .*no\.gguf\. Check the path"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            Llm.from_pretrained(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="is a file and has no revision 'main'"):
        Llm.from_pretrained(file, revision="main")


def test_a_package_that_is_missing_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_loading, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(
        UserError, match=r"tiny\.gguf needs gguf to be read: run pip install -e '\.\[gguf\]' in the folder"
    ):
        Llm.from_pretrained(file)
