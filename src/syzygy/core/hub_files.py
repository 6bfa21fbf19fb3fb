"""A published CLIP's files, on disk or in the hub's cache, and weights as tensors. Nothing here builds a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syzygy.core import artifacts, model_files
from syzygy.core.model_files import (
    DIFFUSERS,
    TRANSFORMERS,
    Download,
    Located,
    fetch,
    fetch_weights,
    is_hub_id,
    read_weights,
)

__all__ = ["DIFFUSERS", "TRANSFORMERS", "fetch", "fetch_weights", "is_hub_id", "read_weights"]

TEXT, IMAGE = "text_encoder", "image_encoder"
"""Folders of the two towers in a diffusers pipeline. A folder without them holds both towers in one `CLIPModel`."""
TOKENIZER = "tokenizer"
ZERO_IMAGE = "zero_image.safetensors"
"""What a pipeline of ours that is saved without its image encoder needs of it: the embedding of an image of zeros."""
PREPARATIONS = ("image_processor", "feature_extractor")
"""Where pipelines keep the settings of image preparation: Kandinsky and Stable unCLIP."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
PREPARATION_FILES = ("processor_config.json", "preprocessor_config.json")
"""As transformers 5 saves a processor of text and images, and as checkpoints are published."""


def is_pipeline(folder: Path) -> bool:
    """True for diffusers' layout (a folder each for text and image encoder), false for `CLIPModel`'s."""
    return not (folder / artifacts.CONFIG_FILE).is_file() and any((folder / name).is_dir() for name in (TEXT, IMAGE))


def locate(
    source: str | Path,
    revision: str | None,
    local_files_only: bool,
    example: str = "openai/clip-vit-large-patch14",
    download: Download | None = None,
) -> Located:
    """As `model_files.locate`; what is downloaded are a CLIP's or a language model's files, unless `download` says otherwise."""
    return model_files.locate(source, revision, local_files_only, example, download or download_model)


def download_model(source: str, revision: str | None, variant: str | None = None) -> Located:
    """The files of a CLIP of either layout, or of another model of transformers'; `variant` as of `fetch_weights`."""
    found = fetch(source, revision, _settings(), local_files_only=False)
    if not is_pipeline(found.folder):
        return fetch_weights(found, {"": TRANSFORMERS}, variant)
    towers = [tower for tower in (TEXT, IMAGE) if (found.folder / tower / artifacts.CONFIG_FILE).is_file()]
    return fetch_weights(found, {f"{tower}/": TRANSFORMERS for tower in towers}, variant)


def _settings() -> list[str]:
    """Patterns of the small files of both layouts."""
    folders = {
        ("", TEXT, IMAGE): (artifacts.CONFIG_FILE,),
        ("", TOKENIZER): TOKENIZER_FILES,
        ("", *PREPARATIONS): PREPARATION_FILES,
    }
    return [
        "model_index.json",
        *(str(Path(folder, name)) for places, names in folders.items() for folder in places for name in names),
    ]


@contextmanager
def silent() -> Iterator[None]:
    """transformers loads without a word: no progress bar, no report of what is left out."""
    from transformers.utils import logging

    loud, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(loud)
        if bar:
            logging.enable_progress_bar()
