"""Models of transformers from folders: code of theirs never runs, and what is wrong with a folder is said with what to do."""

import ast
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import syzygy
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.t5 import T5Text
from tests.tiny_llm import TEXTS, save_tiny_llm

SOURCE = Path(syzygy.__file__).parent
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm("llama", tmp_path_factory.mktemp("llm") / "llama")


def changed(folder: Path, **values: Any) -> None:
    path = folder / artifacts.CONFIG_FILE
    artifacts.write_json(path, artifacts.read_json(path) | values)


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Calls of methods of this name in the package: what they are called on, and the call."""
    texts = [text for path in SOURCE.rglob("*.py") if f".{name}(" in (text := path.read_text())]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [(ast.unparse(x.func.value), x) for x in nodes if isinstance(x.func, ast.Attribute) and x.func.attr == name]


def test_no_call_of_a_library_leaves_open_whether_code_runs() -> None:
    own = set(re.findall(r"\nclass (\w+)(?:(?!\nclass ).)*def from_pretrained", all_text(), re.DOTALL))
    assert {"Clip", "Llm", "TextToImage"} <= own
    own |= set(
        re.findall(r"\nclass (\w+)\((?:SceneClassifier|(?:Lambda)?EclipsePrior)\b", all_text())
    )  # which inherit theirs
    own |= {"syzygy.TextToImage", "loaders[name]", "kind"}  # names under which the package's own loaders are called
    theirs = [(receiver, call) for receiver, call in calls("from_pretrained") if receiver not in own]
    assert len(theirs) >= 4
    for receiver, call in theirs:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", f"{receiver}.from_pretrained, line {call.lineno}"
    # diffusers' classes take a dictionary there and run nothing; transformers' Auto classes would.
    assert not [receiver for receiver, _ in calls("from_config") if "Auto" in receiver]
    assert [*calls("from_pipe"), *calls("from_single_file")] == []


def all_text() -> str:
    return "".join(path.read_text() for path in SOURCE.rglob("*.py"))


def with_code(folder: Path, mark: Path, part: str) -> None:
    """Give a model, or its tokenizer, Python code that leaves a mark where it runs."""
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nimport transformers\n"
    if part == "model":
        classes = {"AutoConfig": "own_code.Own", "AutoModel": "own_code.OwnModel"}
        changed(folder, model_type="own", architectures=["OwnModel"], auto_map=classes)
        code += "class Own(transformers.LlamaConfig):\n    model_type = 'own'\n"
        code += "class OwnModel(transformers.LlamaModel):\n    config_class = Own\n"
    else:
        path = folder / "tokenizer_config.json"
        values = artifacts.read_json(path) | {"tokenizer_class": "OwnTokenizer"}
        artifacts.write_json(path, values | {"auto_map": {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}})
        code += "class OwnTokenizer(transformers.PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own_code.py").write_text(code)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_of_a_repository_never_runs(
    part: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mark = shutil.copytree(llama, tmp_path / "llm"), tmp_path / "ran"
    with_code(folder, mark, part)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(
        UserError, match=rf"Python code of its own \(own_code\.py\), .* for its {part}\. .*never run here\. Use a model"
    ):
        Llm.from_pretrained(folder)
    assert not mark.exists()
    assert "[y/N]" not in "".join(capsys.readouterr())


def renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def only(name: str, content: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_text(content)

    return change


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def quantised(method: str) -> Callable[[Path], object]:
    return lambda folder: changed(folder, quantization_config={"quant_method": method, "bits": 4})


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "only a GGUF file": (
        only("m.gguf", "GGUF"),
        r"holds no config\.json but a GGUF file: give the file itself, .*llm/m\.gguf",
    ),
    "an adapter of PEFT": (
        only("adapter_config.json", json.dumps({"base_model_name_or_path": "some/base"})),
        r"only an adapter of PEFT .* for the model 'some/base'.*merge_and_unload",
    ),
    "another folder": (
        only("notes.txt", ""),
        r"has no config\.json, so it is not the folder of a language model \(it holds n",
    ),
    "weights not pulled": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        r"model\.safetensors is only a pointer of Git LFS.*git lfs pull",
    ),
    "a tokenizer not pulled": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"tokenizer\.json is only a pointer",
    ),
    "pickle": (renamed("model.safetensors", "pytorch_model.bin"), r"only as pickle \(pytorch_model\.bin\).*refs/pr/1"),
    "no weights": (
        renamed("model.safetensors", "x.safetensors"),
        r"model\.safetensors is missing.*there is x\.safetensors",
    ),
    "no tokenizer": (without_tokenizer, r"has no tokenizer: copy tokenizer\.json and tokenizer_config\.json"),
    "awq": (quantised("awq"), r"requires gptqmodel.*The model is quantised \(awq\): install what is missing, or use"),
    "bitsandbytes": (
        lambda f: changed(f, quantization_config={"load_in_4bit": True}),
        r"requires bitsandbytes.*The model is quantised \(bitsandbytes\): install what is missing, or use",
    ),
    "unknown quantisation": (
        quantised("mystery"),
        r"quantised with 'mystery', which the installed transformers does not",
    ),
    "an unknown kind": (
        lambda f: changed(f, model_type="mystery"),
        r"`mystery`.*version of Transformers is out of date",
    ),
    "a wrong configuration": (
        lambda f: changed(f, num_attention_heads=5),
        r"32\) is not a multiple of .* heads \(5\)\.",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_read_says_why(name: str, llama: Path, tmp_path: Path) -> None:
    change, message = FOLDERS[name]
    folder = shutil.copytree(llama, tmp_path / "llm")
    change(folder)
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        Llm.from_pretrained(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (T5Text.from_pretrained, "m.gguf", r"is a GGUF file, which only a language model \(--llm\) can be read from"),
        (Llm.from_pretrained, "m.safetensors", "Give the folder"),
    ],
)
def test_a_file_is_no_folder(
    load: Callable[[Any], Any], name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).touch()
    for place in (tmp_path / "models" / name, f"models/{name}"):  # the latter has the form of a hub id
        with pytest.raises(UserError, match=message):
            load(place)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_weights_published_in_half_precision_alone_are_read(variant: str, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "llm")
    (folder / "model.safetensors").rename(folder / f"model.{variant}.safetensors")
    found, expected = (Llm.from_pretrained(place).encode_states([TEXTS[0]]).states for place in (folder, llama))
    assert torch.equal(found, expected)


def test_weights_that_are_no_numbers_are_refused(llama: Path, tmp_path: Path) -> None:
    t5 = save_tiny_llm("t5", tmp_path / "t5")
    for load, source in ((Llm.from_pretrained, llama), (T5Text.from_pretrained, t5), (Llm.from_pretrained, t5)):
        folder = shutil.copytree(source, tmp_path / "broken", dirs_exist_ok=True)
        tensors = artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE)
        name = next(
            name
            for name in tensors
            if name.endswith(("mlp.up_proj.weight", "encoder.block.1.layer.0.SelfAttention.k.weight"))
        )
        tensors[name][0, 0] = float("nan")
        artifacts.write_tensors(folder / artifacts.WEIGHTS_FILE, tensors)
        with pytest.raises(UserError, match=r"weights in .*broken: .*holds NaN or infinity"):
            load(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_tokens_that_the_model_does_not_know(family: str, tmp_path: Path) -> None:
    """Special ones, as Gemma 3's for pictures, no text can hold; others are named before anything is read."""
    folder = save_tiny_llm(family, tmp_path / family)
    load = Llm.from_pretrained if family == "llama" else T5Text.from_pretrained
    expected = load(folder).tokenize(["a red star"]).ids
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<img>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    reader = load(folder)
    assert torch.equal(reader.tokenize(["a red star"]).ids, expected)
    assert reader.tokenize(["a <img> star"]).ids.max() < rows
    end, tokenizer.eos_token = tokenizer.eos_token, "<img>"  # put behind every text
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"no embedding for 1 of its tokenizer's tokens \('<img>'\)"):
        load(folder)
    tokenizer.eos_token = end
    tokenizer.add_tokens(["cat-toy", "dog-toy"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        UserError, match=rf"no embedding for 2 of its .* \('cat-toy', 'dog-toy'\): .* the model {rows}\."
    ):
        load(folder)


def test_a_folder_is_recorded_with_its_whole_path(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    assert Llm.from_pretrained(llama.name).identity().source == str(llama.resolve())


def test_a_folder_that_is_not_there_is_told_from_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for local in (True, False):
        with pytest.raises(UserError, match=rf"no folder models/llm in {tmp_path} \(it has the folder models, but not"):
            Llm.from_pretrained("models/llm", local_files_only=local)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_loading_needs_a_gpu(bits: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"bits={bits} needs a CUDA GPU, and torch finds none here\. Leave it out"):
        Llm.from_pretrained(llama, bits=bits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=rf"bits={bits} needs the package bitsandbytes: pip install"):
        Llm.from_pretrained(llama, bits=bits)
    with pytest.raises(UserError, match=rf"bits={bits} has no effect on a GGUF file"):
        Llm.from_pretrained(tmp_path / "m.gguf", bits=bits)
    folder = shutil.copytree(llama, tmp_path / "llm")
    changed(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(UserError, match=rf"bits={bits} has no effect: .* is quantised already \(awq\)"):
        Llm.from_pretrained(folder, bits=bits)
