"""Where a published CLIP lies, on disk or in the hub's cache, and its weights. Nothing here builds a model."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from syzygy import artifact
from syzygy.errors import UserError

TEXT, IMAGE = "text_encoder", "image_encoder"
"""Folders of the two towers in a diffusers pipeline. A folder without them holds both towers in one `CLIPModel`."""
TOKENIZER = "tokenizer"
PREPARATIONS = ("image_processor", "feature_extractor")
"""Where pipelines keep how pictures are prepared: Kandinsky and Stable unCLIP."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
PREPARATION_FILES = ("processor_config.json", "preprocessor_config.json")
"""As transformers 5 saves a processor of text and pictures, and as everybody publishes it."""
TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"
"""How the two libraries name a file of weights."""
VARIANTS = ("", ".fp16")
"""Ways weights are published, best first."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a CLIP's files, and where it came from."""

    folder: Path
    source: str
    """As it was asked for: a folder or a hub id."""
    revision: str | None
    """The commit that the hub resolved the revision to; None for a folder."""

    @property
    def is_pipeline(self) -> bool:
        """True for diffusers' layout (a folder each for text and image encoder), false for `CLIPModel`'s."""
        return not (self.folder / artifact.CONFIG_FILE).is_file() and any(
            (self.folder / name).is_dir() for name in (TEXT, IMAGE)
        )


def locate(
    source: str | Path,
    revision: str | None,
    local_files_only: bool,
    example: str = "openai/clip-vit-large-patch14",
    download: Callable[[str, str | None], Checkpoint] | None = None,
) -> Checkpoint:
    """The folder itself, or the hub's snapshot of `revision`.

    Args:
        source: a folder, or a hub id such as `openai/clip-vit-large-patch14`, or with its revision as `id@revision`. A
            folder of that name goes first.
        revision: a commit, tag or branch of a hub id; None is its main branch.
        local_files_only: look in the hub's cache only; else download what is missing (safetensors and settings alone).
        example: a hub id to name to a user who gave something else.
        download: how to get of a repository's revision what is needed; None is a CLIP's files.

    Raises:
        UserError: it is in neither place, cannot be downloaded, or a revision is asked of a folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder and has no revision {revision!r}; a revision belongs to a hub id.")
        return Checkpoint(folder, str(folder), None)
    source, pinned = _pinned(source) if isinstance(source, str) else (source, None)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise UserError(f"there is no folder {source}. Give a folder, or a hub id such as {example}.")
    if pinned is not None and revision is not None:
        raise UserError(f"{source} is asked for at two revisions, {pinned!r} and {revision!r}: give one.")
    revision = pinned if revision is None else revision
    if local_files_only:
        return _cached(source, revision)
    with downloading(source):
        return (download or download_clip)(source, revision)


def is_hub_id(source: str) -> bool:
    """Whether it has the form of a hub id, with a revision or without."""
    return _HUB_ID.fullmatch(_pinned(source)[0]) is not None


def _pinned(source: str) -> tuple[str, str | None]:
    """A hub id and the revision that follows its "@", if one does."""
    name, at, revision = source.partition("@")
    if at and not (revision and _HUB_ID.fullmatch(name)):
        return source, None
    return name, revision or None


def _cached(source: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The hub's check that a snapshot is complete is confined to these two: what else is missing is named when it is read.
        return fetch(source, revision, [artifact.CONFIG_FILE, "model_index.json"], local_files_only=True)
    except LocalEntryNotFoundError:
        at = "" if revision is None else f" --revision {revision}"
        raise UserError(
            f"there is no folder {source}, and the hub's cache {constants.HF_HUB_CACHE} has no {source} at revision "
            f"{revision or constants.DEFAULT_REVISION}. Download it first (hf download {source}{at}), allow the download "
            "(--download, or local_files_only=False), or give a folder."
        ) from None


def download_clip(source: str, revision: str | None) -> Checkpoint:
    """A CLIP's files, of either layout."""
    found = fetch(source, revision, _settings(), local_files_only=False)
    towers = (f"{TEXT}/", f"{IMAGE}/") if found.is_pipeline else ("",)
    return fetch_weights(found, dict.fromkeys(towers, TRANSFORMERS))


@contextmanager
def downloading(source: str) -> Iterator[None]:
    """Turn the hub's refusals into one clear line."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError:
        raise UserError(
            f"{source} is not in the hub's cache and the hub cannot be reached. Try again, or give a folder."
        ) from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise UserError(
            f"the hub has no {source} for you: check its name, its terms, and that you are logged in."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be downloaded: {error}") from None


def fetch_weights(found: Checkpoint, stems: Mapping[str, str]) -> Checkpoint:
    """Download the weights of folders of a snapshot (each with a slash at its end) named `stems`: the best variant that all of them have."""
    for variant in VARIANTS:
        patterns = [folder + name for folder, stem in stems.items() for name in _names(stem, variant, "-*")]
        found = fetch(found.source, found.revision, patterns, local_files_only=False)
        if all(_weight_files(found.folder / folder, stem) for folder, stem in stems.items()):
            break
    return found


def _names(stem: str, variant: str, *more: str) -> list[str]:
    """Names of one file of weights and of an index of shards; with "-*" also of the shards."""
    files = [f"{stem}{variant}{part}.safetensors" for part in ("", *more)]
    return [*files, f"{stem}.safetensors.index{variant}.json"]


def _settings() -> list[str]:
    """Patterns of the small files of both layouts."""
    folders = {
        ("", TEXT, IMAGE): (artifact.CONFIG_FILE,),
        ("", TOKENIZER): TOKENIZER_FILES,
        ("", *PREPARATIONS): PREPARATION_FILES,
    }
    return [
        "model_index.json",
        *(str(Path(folder, name)) for places, names in folders.items() for folder in places for name in names),
    ]


def fetch(source: str, revision: str | None, patterns: list[str], *, local_files_only: bool) -> Checkpoint:
    """A snapshot in the hub's cache; files that match `patterns` are downloaded first, if that is allowed."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    )
    return Checkpoint(folder, source, folder.name)


def read_weights(
    folder: Path, stem: str = TRANSFORMERS, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The tensors of a model's folder whose names are to `keep`, from one file or from shards, as stored.

    Raises:
        UserError: there is no safetensors file, or one is missing, truncated, or not what the index says.
    """
    found = _weight_files(folder, stem)
    if found is None:
        raise UserError(_no_weights(folder, stem))
    if found.suffix != ".json":
        return artifact.read_tensors(found, keep)
    places = artifact.read_json(found).get("weight_map")
    if not isinstance(places, dict) or any(Path(str(name)).name != name for name in places.values()):
        raise UserError(f"{found} is not an index of weights: it needs a weight_map from tensors to files beside it.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        part = artifact.read_tensors(folder / shard)
        stray = sorted(part.keys() ^ {name for name, place in places.items() if place == shard})
        if stray:
            raise UserError(
                f"{folder / shard} does not hold what {found.name} says: {', '.join(stray[:3])}. Copy it again."
            )
        tensors |= {name: value for name, value in part.items() if keep(name)}
    return tensors


def _weight_files(folder: Path, stem: str) -> Path | None:
    """The file of all weights, or the index of their shards; full precision before half."""
    names = (name for variant in VARIANTS for name in _names(stem, variant))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _no_weights(folder: Path, stem: str) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern))
    if not pickles:
        return (
            f"{folder / stem}.safetensors is missing, and so are its half-precision variant and an index of shards. "
            "Copy or download the folder again, whole."
        )
    return (
        f"{folder} has its weights only as pickle ({', '.join(pickles)}), which can run code and is never read here. "
        "Take a revision with safetensors (on the hub often a pull request, such as refs/pr/1), or convert them "
        "where you trust them: load with the library that wrote them, then save_pretrained."
    )


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
