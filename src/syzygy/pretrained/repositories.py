"""Published models on this machine: found by name, folder or hub id, recognised by their pipeline's class, downloaded in part.

Layouts were checked against stored listings of the repositories' files: kandinsky-2-2-decoder (`movq`, `scheduler`,
`unet`), kandinsky-2-2-prior (`image_encoder` of 3.69 GB in fp16, `text_encoder` of 2.78 GB in fp32, `image_processor`, `tokenizer`,
`prior`, `scheduler`), stable-diffusion-2-1-unclip-small (class `StableUnCLIPImg2ImgPipeline`; `PARTS` of `stable_unclip`, and an image
encoder), karlo-v1-alpha (`PARTS` of `karlo`, `text_encoder`, `tokenizer`, `prior`, `prior_scheduler`), both ECLIPSE priors (`config.json`
and `diffusion_pytorch_model.safetensors`), stable-diffusion-xl-base-1.0 (`XL_PARTS` of `stable_diffusion`; both half and full
precision), stable-diffusion-v1-5 (`PARTS` of it; by listings of its duplicates, as its first publisher has withdrawn it). All of them hold
safetensors. Their configurations were seen in part (Kandinsky's U-Net; DDPM, PNDM and Euler schedulers; XL's second text encoder) and are
read, never assumed. Stable Diffusion 2.x was withdrawn by its publisher and has no name here; a folder of it, or a hub id, is read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from syzygy.core import artifacts, hub_files
from syzygy.core.diffusers_weights import SCHEDULER_FILE
from syzygy.core.errors import UserError
from syzygy.core.model_files import Located
from syzygy.core.registry import DECODERS
from syzygy.pretrained.families import DecoderFamily, families, family

INDEX_FILE = "model_index.json"
CLASS = "_class_name"
EXAMPLE = "kandinsky-community/kandinsky-2-2-decoder"


@dataclass(frozen=True)
class FoundDecoder:
    """A decoder's repository on this machine."""

    family: DecoderFamily
    at: Located


def is_published(model: str | Path) -> bool:
    """Whether a model is a registered name, a folder in diffusers' layout, or may be a hub id; not one of our own folders.

    Raises:
        UserError: its index cannot be read.
    """
    if str(model) in DECODERS:
        return True
    folder = Path(model)
    if folder.is_dir():
        index = folder / INDEX_FILE
        return index.is_file() and artifacts.read_json(index).get(CLASS) in known_classes()
    return isinstance(model, str) and hub_files.is_hub_id(model)


def known_classes() -> list[str]:
    """The pipeline classes whose folders can be read."""
    return [kind for one in families() for kind in one.pipeline_classes]


def named_family(model: str | Path) -> DecoderFamily | None:
    """The decoder of a registered name; None for a folder and a hub id."""
    return family(str(model)) if str(model) in DECODERS and not Path(model).is_dir() else None


def find_decoder(model: str | Path, *, local_files_only: bool = True) -> FoundDecoder:
    """The decoder of a registered name, a folder in diffusers' layout, or a hub id (with `@` and a revision, if wanted).

    Args:
        local_files_only: take a hub id from the hub's cache only; else download what is missing of the parts that are needed.

    Raises:
        UserError: it is neither here nor allowed to be downloaded, or cannot be; another class of pipeline.
    """
    source, named = model, named_family(model)
    if named is not None:
        if named.hub_id is None:
            raise UserError(f"the decoder {named.name} has no repository of its own: give the folder that holds one.")
        source = named.hub_id
    at = hub_files.locate(source, None, local_files_only, EXAMPLE, _download)
    return FoundDecoder(family_of(at.folder), at)


def family_of(folder: Path) -> DecoderFamily:
    """Which decoder a folder holds, by the class of its pipeline.

    Raises:
        UserError: one that is not known.
    """
    kind = artifacts.read_json(folder / INDEX_FILE).get(CLASS)
    for one in families():
        if kind in one.pipeline_classes:
            return one
    raise UserError(f"{folder} holds a {kind!r}, which is no decoder known here. Known: {', '.join(known_classes())}.")


def _download(source: str, revision: str | None) -> Located:
    """The parts that are needed, in safetensors, and no more."""
    found = hub_files.fetch(source, revision, [INDEX_FILE], local_files_only=False)
    parts = family_of(found.folder).parts
    names = (artifacts.CONFIG_FILE, SCHEDULER_FILE, *hub_files.TOKENIZER_FILES)
    settings = [f"{part}/{name}" for part in parts for name in names]
    found = hub_files.fetch(source, found.revision, settings, local_files_only=False)
    stems = {
        f"{part}/": hub_files.TRANSFORMERS if part.startswith(hub_files.TEXT) else hub_files.DIFFUSERS
        for part in parts
        if (found.folder / part / artifacts.CONFIG_FILE).is_file()
    }
    return hub_files.fetch_weights(found, stems)


def identity(at: Located) -> str:
    """What tells a repository from another without reading its gigabytes: the commit, or names, sizes and times of a folder's files."""
    if at.revision is not None:
        return f"{at.source}@{at.revision}"
    folder = at.folder.resolve()
    files = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    digest = hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()
    return f"{folder}#{digest}"
