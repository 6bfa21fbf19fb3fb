"""Strict loading of transformers' models and tokenizers from a folder, with clear errors and without running a repository's own code."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from syzygy.core import artifacts, hub_files
from syzygy.core.errors import UserError, install
from syzygy.core.model_files import GGUF, no_weights, variant_of, weight_file

LONGEST = 400
"""The most characters of a library's message that are shown."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.*")
"""A tokenizer has at least one of these files."""
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How llama.cpp names the parts of a model in several files."""
NOT_LOADED = (OSError, ValueError, ImportError, RuntimeError, LookupError, NotImplementedError)
"""What transformers raises where it cannot load a model."""
FROM_GGUF = " Use the repository that the file was converted from, with safetensors."
CODE = "auto_map"
"""The setting that names classes which a repository defines in its own Python files."""


def load_model(
    folder: Path,
    source: str,
    what: str,
    dtype: torch.dtype,
    kind: Callable[[Any], Any],
    bits: Literal[8, 4] | None = None,
) -> tuple[Any, Any]:
    """A model without its head, on the CPU, and its tokenizer.

    Args:
        source: the name of the folder in messages.
        bits: quantise the weights while they are loaded, onto the GPU; computations are in `dtype`.
        what: the kind of model in messages, such as "language model".
        kind: transformers' class for a configuration.

    Raises:
        UserError: a file is missing, a pickle, or a pointer of Git LFS; weights are missing or not finite; the model needs its own Python
            code, or a package that is not installed; the tokenizer is missing, broken or slow.
    """
    values = _checked(folder, source, what)
    weights = weight_file(folder, hub_files.TRANSFORMERS)
    if weights is None:
        raise UserError(no_weights(folder, hub_files.TRANSFORMERS))
    how: dict[str, Any] = {"variant": variant_of(weights), "use_safetensors": True}  # never pickle
    if bits is not None:
        if _method(values) is not None:
            raise UserError(
                f"bits={bits} has no effect: {source} is quantised already ({_method(values)}). Leave it out."
            )
        how["quantization_config"] = _quantisation(bits, dtype)
    model = _model(folder, source, what, dtype, kind, values, **how)
    return model, _tokenizer(folder, source)


def load_gguf(file: Path, what: str, dtype: torch.dtype, kind: Callable[[Any], Any]) -> tuple[Any, Any]:
    """As `load_model`, from a GGUF file, which holds configuration, tokenizer and weights. Quantised weights become numbers in `dtype`.

    Raises:
        UserError: the file is not there, is no GGUF file or a part of one, or holds a model that transformers cannot read from it; a package
            is missing.
    """
    from transformers import GgufConfig

    if not file.is_file():
        raise UserError(f"there is no file {file}. Check the path, or give a model's folder or hub id.")
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(f"{file} needs {' and '.join(missing)} to be read: {install('gguf')}.")
    artifacts.check_pointer(file)
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file, though its name says so. Copy or download it again.")
    if part := SPLIT.search(file.name):
        raise UserError(
            f"{file} is part {int(part[1])} of {int(part[2])} of a model: merge them first, with llama.cpp's llama-gguf-split --merge."
        )
    # The blocks of quantised weights would otherwise be computed on by kernels, which are fetched from the hub and differ by device.
    plain = GgufConfig(dequantize=True)
    model = _model(file.parent, str(file), what, dtype, kind, {}, gguf_file=file.name, quantization_config=plain)
    return model, _tokenizer(file.parent, str(file), gguf_file=file.name)


def _model(
    folder: Path,
    source: str,
    what: str,
    dtype: torch.dtype,
    kind: Callable[[Any], Any],
    values: dict[str, Any],
    **how: Any,
) -> Any:
    """The model itself; `values` is its configuration, for errors, and `how` is which of the folder's files to read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = {name: how[name] for name in how if name == "gguf_file"}
    try:
        # transformers would print a long report of the unused head, and a bar while it unpacks a GGUF file.
        with hub_files.silent(), redirect_stderr(StringIO()) if file else nullcontext():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **file)
            model, report = kind(config).from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **how,
            )
    except (*NOT_LOADED, SafetensorError, StrictDataclassError) as error:
        _refuse_code(values, folder, source, "model", error)
        more = FROM_GGUF if file else _quantised(values)
        raise UserError(f"the {what} in {source} cannot be loaded: {_reason(error)}{more}") from None
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"the {what} in {source} lacks weights: {', '.join(missing[:3])}. Copy or download {'it' if file else 'the whole folder'} again."
        )
    artifacts.check_finite(dict(model.named_parameters()), source)
    return getattr(model, "language_model", model)  # of a model that also reads images, such as Gemma 3


def _tokenizer(folder: Path, source: str, **file: str) -> Any:
    """The tokenizer of a folder, or of the GGUF file in it that `file` names."""
    from transformers import AutoTokenizer

    if not file and not any(True for pattern in TOKENIZERS for _ in folder.glob(pattern)):
        raise UserError(
            f"{source} has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model's repository into the folder."
        )
    try:
        with hub_files.silent():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **file)
    except Exception as error:  # the Rust library raises bare Exception for a broken file
        if file:
            raise UserError(f"the tokenizer in {source} cannot be read: {_reason(error)}{FROM_GGUF}") from None
        settings = folder / "tokenizer_config.json"
        _refuse_code(artifacts.read_json(settings) if settings.is_file() else {}, folder, source, "tokenizer", error)
        raise UserError(
            f"the tokenizer of {source} cannot be read: {_reason(error)} A folder needs a tokenizer.json and a tokenizer_config.json."
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {source} cannot map tokens to characters: its folder needs a tokenizer.json."
        )
    return tokenizer


def _checked(folder: Path, source: str, what: str) -> dict[str, Any]:
    """The configuration of a folder that holds all files of a model."""
    adapter, names = folder / "adapter_config.json", sorted(path.name for path in folder.iterdir())
    if adapter.is_file() and weight_file(folder, hub_files.TRANSFORMERS) is None:
        base = artifacts.read_json(adapter).get("base_model_name_or_path")
        raise UserError(
            f"{source} holds only an adapter of PEFT (LoRA and others) for the model {base!r}, not the model. Merge them first: "
            f"peft's PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(MERGED), with BASE = "
            f"AutoModelForCausalLM.from_pretrained({base!r}), and its tokenizer's save_pretrained(MERGED). Then give MERGED."
        )
    if not (folder / artifacts.CONFIG_FILE).is_file():
        gguf = next((name for name in names if name.endswith(GGUF)), None)
        if gguf is not None:
            raise UserError(
                f"{source} holds no {artifacts.CONFIG_FILE} but a GGUF file: give the file itself, {folder / gguf}."
            )
        held = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") or "nothing"
        raise UserError(
            f"{source} has no {artifacts.CONFIG_FILE}, so it is not the folder of a {what} (it holds {held}). Copy or download it again."
        )
    for path in (*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.model")):
        artifacts.check_pointer(path)
    values = artifacts.read_json(folder / artifacts.CONFIG_FILE)
    _check_quantisation(values, source, what)
    return values


def _check_quantisation(values: dict[str, Any], source: str, what: str) -> None:
    """Refuse a quantisation that transformers does not know, as it would read the weights as if they were not quantised."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = _method(values)
    # transformers' names for bitsandbytes end in the number of bits.
    if method is not None and not any(known.startswith(method) for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise UserError(
            f"the {what} in {source} is quantised with {method!r}, which the installed transformers does not know. Use the model's "
            "repository that is not quantised."
        )


def _quantisation(bits: Literal[8, 4], dtype: torch.dtype) -> Any:
    """bitsandbytes' settings: 8-bit integers (LLM.int8, arXiv 2208.07339), or 4-bit normal floats (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise UserError(
            f"bits={bits} needs a CUDA GPU, and torch finds none here. Leave it out; bf16 takes 2 bytes for each parameter."
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"bits={bits} needs the package bitsandbytes: pip install bitsandbytes.")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _method(values: dict[str, Any]) -> str | None:
    found = values.get("quantization_config")
    return str(found.get("quant_method") or "bitsandbytes") if isinstance(found, dict) else None


def _quantised(values: dict[str, Any]) -> str:
    method = _method(values)
    if method is None:
        return ""
    return f" The model is quantised ({method}): install what is missing, or use its repository that is not quantised."


def _refuse_code(values: dict[str, Any], folder: Path, source: str, part: str, error: Exception) -> None:
    """Raise a clear error if loading failed because the classes are defined in the repository's own Python files."""
    if CODE not in json.dumps(values) or "trust_remote_code" not in str(error):
        return
    files = ", ".join(sorted(path.name for path in folder.glob("*.py"))[:3]) or "in another repository"
    raise UserError(
        f"{source} needs Python code of its own ({files}), because transformers has no class for its {part}. Such code is never run here. "
        "Use a model whose architecture is part of transformers (Llama, Qwen, Gemma, Mistral and many others; some models are also "
        "published converted, often with -hf in the name)."
    ) from None


def _reason(error: Exception) -> str:
    """A library's message on one line, shortened to whole sentences."""
    words = " ".join(str(error).split()) or type(error).__name__
    if len(words) > LONGEST:
        head = words[:LONGEST]
        words = head[: head.rfind(". ") + 1] or f"{head} …"
    return words if words.endswith((".", "…")) else f"{words}."
