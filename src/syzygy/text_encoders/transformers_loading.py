"""Strict loading of transformers' models and tokenizers from a folder, with clear errors and without running a repository's own code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from syzygy.core import artifacts, hub_files
from syzygy.core.errors import UserError
from syzygy.core.model_files import GGUF, no_gguf, no_weights, variant_of, weight_file

LONGEST = 400
"""The most characters of a library's message that are shown."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.*")
"""A tokenizer has at least one of these files."""
CODE = "auto_map"
"""The setting that names classes which a repository defines in its own Python files."""


def load_model(folder: Path, source: str, what: str, dtype: torch.dtype, kind: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A model without its head, on the CPU, and its tokenizer.

    Args:
        source: the name of the folder in messages.
        what: the kind of model in messages, such as "language model".
        kind: transformers' class for a configuration.

    Raises:
        UserError: a file is missing, a pickle, or a pointer of Git LFS; weights are missing or not finite; the model needs its own Python
            code, or a package that is not installed; the tokenizer is missing, broken or slow.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = _checked(folder, source, what)
    weights = weight_file(folder, hub_files.TRANSFORMERS)
    if weights is None:
        raise UserError(no_weights(folder, hub_files.TRANSFORMERS))
    try:
        with hub_files.silent():  # transformers would print a long report of the unused head
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = kind(config).from_pretrained(
                folder,
                dtype=dtype,
                variant=variant_of(weights),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        _refuse_code(values, folder, source, "model", error)
        raise UserError(f"the {what} in {source} cannot be loaded: {_reason(error)}{_quantised(values)}") from None
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"the {what} in {source} lacks weights: {', '.join(missing[:3])}. Copy or download the whole folder again."
        )
    artifacts.check_finite(dict(model.named_parameters()), source)
    model = getattr(model, "language_model", model)  # of a model that also reads images, such as Gemma 3
    return model, _tokenizer(folder, source)


def _tokenizer(folder: Path, source: str) -> Any:
    from transformers import AutoTokenizer

    if not any(True for pattern in TOKENIZERS for _ in folder.glob(pattern)):
        raise UserError(
            f"{source} has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model's repository into the folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises bare Exception for a broken file
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
            raise UserError(f"{source} holds a GGUF file ({gguf}), and {no_gguf(gguf)}")
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
