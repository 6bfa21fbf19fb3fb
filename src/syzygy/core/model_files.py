"""A published model's files: where they are (a folder, or the hub's cache), which of them are weights, and the tensors in them.

Nothing here builds a model.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError

TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"
"""How the two libraries name a file of weights."""
VARIANTS = ("", ".fp16", ".bf16")
"""Ways weights are published, best first: in full precision, or only in half."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Names of files of weights that can run code and are never read."""
GGUF = ".gguf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NO_PICKLE = (
    "which can run code and is never read here. Use a revision with safetensors (on the hub often a pull request, such as "
    "refs/pr/1), or convert them where you trust them: load with the library that wrote them, then save_pretrained."
)


@dataclass(frozen=True)
class Located:
    """A folder with a model's files, and where it came from."""

    folder: Path
    source: str
    """As it was asked for: a folder or a hub id."""
    revision: str | None
    """The commit that the hub resolved the revision to; None for a folder."""


Download = Callable[[str, str | None], Located]
"""Gets what is needed of a repository's revision."""


def locate(
    source: str | Path, revision: str | None, local_files_only: bool, example: str, download: Download
) -> Located:
    """The folder itself, or the hub's snapshot of `revision`.

    Args:
        source: a folder, or a hub id such as `openai/clip-vit-large-patch14`, or with its revision as `id@revision`. A
            folder of that name goes first.
        revision: a commit, tag or branch of a hub id; None is its main branch.
        local_files_only: look in the hub's cache only; else download what is missing (safetensors and settings alone).
        example: a hub id to name to a user who gave something else.

    Raises:
        UserError: it is in neither place, cannot be downloaded, or a revision is asked of a folder; a file instead of a folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder and has no revision {revision!r}; a revision belongs to a hub id.")
        return Located(folder, str(folder), None)
    refuse_file(folder)
    source, pinned = _pinned(source) if isinstance(source, str) else (source, None)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise UserError(f"there is no folder {source}. Give a folder, or a hub id such as {example}.")
    if pinned is not None and revision is not None:
        raise UserError(f"{source} is asked for at two revisions, {pinned!r} and {revision!r}: give one.")
    revision = pinned if revision is None else revision
    if local_files_only:
        return _cached(source, revision)
    with downloading(source):
        return download(source, revision)


def refuse_file(path: Path) -> None:
    """Refuse a file where the folder of a model is needed.

    Raises:
        UserError: says how to get the folder.
    """
    if not path.is_file():
        return
    if path.suffix == GGUF:
        raise UserError(
            f"{path} is a GGUF file, which only a language model (--llm) can be read from. Use the repository that it was converted from, "
            "with safetensors."
        )
    raise UserError(
        f"{path} is a file; a model is a folder with its configuration and weights. Give the folder that holds the file. To make "
        "a folder of a single-file checkpoint: diffusers' from_single_file(FILE), then save_pretrained(FOLDER)."
    )


def is_hub_id(source: str) -> bool:
    """Whether it has the form of a hub id, with a revision or without."""
    return _HUB_ID.fullmatch(_pinned(source)[0]) is not None


def _pinned(source: str) -> tuple[str, str | None]:
    """A hub id and the revision that follows its "@", if one does."""
    name, at, revision = source.partition("@")
    if at and not (revision and _HUB_ID.fullmatch(name)):
        return source, None
    return name, revision or None


def _cached(source: str, revision: str | None) -> Located:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The hub's check that a snapshot is complete is confined to these two: what else is missing is named when it is read.
        return fetch(source, revision, [artifacts.CONFIG_FILE, "model_index.json"], local_files_only=True)
    except LocalEntryNotFoundError:
        at = "" if revision is None else f" --revision {revision}"
        raise UserError(
            f"there is no folder {source}{_from_here(source)}, and the hub's cache {constants.HF_HUB_CACHE} has no {source} at "
            f"revision {revision or constants.DEFAULT_REVISION}. Download it first (hf download {source}{at}), allow the download "
            "(--download, or local_files_only=False), or give a folder."
        ) from None


def _from_here(source: str) -> str:
    """Where a relative path was looked for, if its first part is a folder there: it is then hardly a hub id."""
    first = Path(source).parts[0]
    return f" in {Path.cwd()} (it has the folder {first}, but not {source})" if Path(first).is_dir() else ""


@contextmanager
def downloading(source: str) -> Iterator[None]:
    """Turn the hub's refusals into one clear line."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    no_folder = f"there is no folder {source}{_from_here(source)}, and as a hub id"
    try:
        yield
    except LocalEntryNotFoundError:
        raise UserError(
            f"{no_folder} it is not in the hub's cache and the hub cannot be reached. Try again, or give a folder."
        ) from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise UserError(
            f"{no_folder} it is not on the hub for you: check the name, its terms, and that you are logged in; or give a folder."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be downloaded: {error}") from None


def fetch(source: str, revision: str | None, patterns: list[str], *, local_files_only: bool) -> Located:
    """A snapshot in the hub's cache; files that match `patterns` are downloaded first, if that is allowed."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    )
    return Located(folder, source, folder.name)


def fetch_weights(found: Located, stems: Mapping[str, str], variant: str | None = None) -> Located:
    """Download the weights of folders of a snapshot (each with a slash at its end) named `stems`: the best variant that all of them have.

    Args:
        variant: "fp16" or "bf16" to prefer that one; None prefers full precision.

    Raises:
        UserError: the repository has the weights of one only as pickle.
    """
    for suffix in _preferred(variant):
        patterns = [folder + name for folder, stem in stems.items() for name in _names(stem, suffix, "-*")]
        found = fetch(found.source, found.revision, patterns, local_files_only=False)
        if all(weight_file(found.folder / folder, stem) for folder, stem in stems.items()):
            return found
    _refuse_pickles(found, [folder for folder, stem in stems.items() if not weight_file(found.folder / folder, stem)])
    return found


def _refuse_pickles(found: Located, lacking: list[str]) -> None:
    """Refuse a repository that has some of its weights only as pickle, which was not downloaded."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(found.source, revision=found.revision)
    except Exception:  # what is missing is named when it is read
        return
    published = [Path(name) for name in files]
    for folder in lacking:
        inside = [path for path in published if path.parent == Path(folder)]
        pickles = sorted(str(path) for path in inside if any(path.match(pattern) for pattern in PICKLES))
        if pickles:
            raise UserError(
                f"{found.source} publishes its weights only as pickle ({', '.join(pickles[:3])}), {_NO_PICKLE}"
            )


def _names(stem: str, variant: str, *more: str) -> list[str]:
    """Names of one file of weights and of an index of shards; with "-*" also of the shards."""
    files = [f"{stem}{variant}{part}.safetensors" for part in ("", *more)]
    return [*files, f"{stem}.safetensors.index{variant}.json"]


def _preferred(variant: str | None) -> tuple[str, ...]:
    """The variants, the one that is asked for first."""
    first = () if variant is None else (f".{variant}",)
    return (*first, *(one for one in VARIANTS if one not in first))


def weight_file(folder: Path, stem: str, variant: str | None = None) -> Path | None:
    """The file of all weights, or the index of their shards: of `variant` first, then full precision before half."""
    names = (name for suffix in _preferred(variant) for name in _names(stem, suffix))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def variant_of(path: Path) -> str | None:
    """How transformers calls the variant that a file of weights or an index of shards belongs to; None is full precision."""
    return next((variant[1:] for variant in VARIANTS[1:] if variant in path.name), None)


def no_weights(folder: Path, stem: str) -> str:
    """What to say of a folder without weights that can be read."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return f"{folder} has its weights only as pickle ({', '.join(pickles)}), {_NO_PICKLE}"
    others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:3])
    there = f" (there is {others})" if others else ""
    return (
        f"{folder / stem}.safetensors is missing, and so are its half-precision variants and an index of shards{there}. "
        "Copy or download the whole folder again."
    )


def read_weights(
    folder: Path,
    stem: str = TRANSFORMERS,
    keep: Callable[[str], bool] = lambda name: True,
    variant: str | None = None,
) -> dict[str, Tensor]:
    """The tensors of a model's folder whose names are to `keep`, from one file or from shards, as stored.

    Args:
        variant: "fp16" or "bf16" to prefer the file of that precision; None prefers full precision.

    Raises:
        UserError: there is no safetensors file, or one is missing, truncated, or not what the index says.
    """
    found = weight_file(folder, stem, variant)
    if found is None:
        raise UserError(no_weights(folder, stem))
    if found.suffix != ".json":
        return artifacts.read_tensors(found, keep)
    places = artifacts.read_json(found).get("weight_map")
    if not isinstance(places, dict) or any(Path(str(name)).name != name for name in places.values()):
        raise UserError(
            f"{found} is not an index of weights: it needs a weight_map from tensors to files in the same folder."
        )
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        part = artifacts.read_tensors(folder / shard)
        stray = sorted(part.keys() ^ {name for name, place in places.items() if place == shard})
        if stray:
            raise UserError(
                f"{folder / shard} does not hold what {found.name} says: {', '.join(stray[:3])}. Copy it again."
            )
        tensors |= {name: value for name, value in part.items() if keep(name)}
    return tensors
