"""The published models by name: which repositories, which parts of them, and where they are on this machine.

Layouts were checked against stored listings of the repositories' files: kandinsky-2-2-decoder (`movq`, `scheduler`,
`unet`), kandinsky-2-2-prior (`image_encoder` of 3.69 GB in fp16, `text_encoder` of 2.78 GB in fp32, `image_processor`, `tokenizer`,
`prior`, `scheduler`), stable-diffusion-2-1-unclip-small (class `StableUnCLIPImg2ImgPipeline`; `PARTS` of `stable_unclip`, and an image
encoder), karlo-v1-alpha (`PARTS` of `karlo`, `text_encoder`, `tokenizer`, `prior`, `prior_scheduler`), both ECLIPSE priors (`config.json`
and `diffusion_pytorch_model.safetensors`), stable-diffusion-xl-base-1.0 (`XL_PARTS` of `stable_diffusion_decoder`; both half and full
precision), stable-diffusion-v1-5 (`PARTS` of it; by listings of its duplicates, as its first publisher has withdrawn it). All of them hold
safetensors. Their configurations were seen in part (Kandinsky's U-Net; DDPM, PNDM and Euler schedulers; XL's second text encoder) and are
read, never assumed. Stable Diffusion 2.x was withdrawn by its publisher and has no name here; a folder of it, or a hub id, is read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from syzygy.core import artifacts, checkpoint_files
from syzygy.core.diffusers_weights import SCHEDULER_FILE
from syzygy.core.errors import UserError
from syzygy.core.model_files import Located
from syzygy.pretrained import kandinsky, karlo, stable_diffusion, stable_unclip

INDEX_FILE = "model_index.json"
CLASS = "_class_name"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model, and what belongs to it unless something else is asked for."""

    decoder: str
    """Hub id; it may be followed by `@` and a revision, as the others."""
    clip: str
    """The CLIP whose image embeddings the decoder reads, and which reads the prompts. Of a decoder that reads texts alone: which
    chooses the best of several pictures."""
    prior: str | None
    """None for a decoder that reads texts alone."""
    classes: tuple[str, ...]
    """diffusers' pipelines whose folders hold such a decoder."""
    parts: tuple[str, ...]
    """Folders of the decoder that are needed."""


KANDINSKY, KARLO, STABLE_UNCLIP = "kandinsky-2.2", "karlo", "stable-unclip"
STABLE_DIFFUSION, STABLE_DIFFUSION_XL = "stable-diffusion-1.5", "stable-diffusion-xl"
PUBLISHED: Mapping[str, Published] = {
    KANDINSKY: Published(
        decoder="kandinsky-community/kandinsky-2-2-decoder",
        clip="kandinsky-community/kandinsky-2-2-prior",
        prior="ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior",
        classes=("KandinskyV22Pipeline", "KandinskyV22CombinedPipeline"),
        parts=kandinsky.PARTS,
    ),
    # Karlo's own text encoder is the text tower of OpenAI's ViT-L/14, whose image tower it does not publish: so take the whole.
    KARLO: Published(
        decoder="kakaobrain/karlo-v1-alpha",
        clip="openai/clip-vit-large-patch14",
        prior="ECLIPSE-Community/ECLIPSE_Karlo_Prior",
        classes=("UnCLIPPipeline", "UnCLIPImageVariationPipeline"),
        parts=karlo.PARTS,
    ),
    STABLE_UNCLIP: Published(
        decoder="stabilityai/stable-diffusion-2-1-unclip-small",
        clip="openai/clip-vit-large-patch14",
        prior="ECLIPSE-Community/ECLIPSE_Karlo_Prior",
        classes=("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"),
        parts=stable_unclip.PARTS,
    ),
    STABLE_DIFFUSION: Published(
        decoder="stable-diffusion-v1-5/stable-diffusion-v1-5",
        clip="openai/clip-vit-large-patch14",
        prior=None,
        classes=("StableDiffusionPipeline",),
        parts=stable_diffusion.PARTS,
    ),
    STABLE_DIFFUSION_XL: Published(
        decoder="stabilityai/stable-diffusion-xl-base-1.0",
        clip="openai/clip-vit-large-patch14",
        prior=None,
        classes=("StableDiffusionXLPipeline",),
        parts=stable_diffusion.XL_PARTS,
    ),
}
"""By the names that `--model` takes."""
EXAMPLE = PUBLISHED[KANDINSKY].decoder


@dataclass(frozen=True)
class Found:
    """A decoder's repository on this machine."""

    name: str
    """Which of `PUBLISHED` it is, or is like."""
    at: Located

    @property
    def published(self) -> Published:
        return PUBLISHED[self.name]


def is_foreign(model: str | Path) -> bool:
    """Whether a model is one of `PUBLISHED`, a folder in diffusers' layout, or may be a hub id; not one of our own folders.

    Raises:
        UserError: its index cannot be read.
    """
    if str(model) in PUBLISHED:
        return True
    folder = Path(model)
    if folder.is_dir():
        index = folder / INDEX_FILE
        return index.is_file() and artifacts.read_json(index).get(CLASS) in known_classes()
    return isinstance(model, str) and checkpoint_files.is_hub_id(model)


def known_classes() -> list[str]:
    """diffusers' pipelines that are read."""
    return [kind for one in PUBLISHED.values() for kind in one.classes]


def find_decoder(model: str | Path, *, local_files_only: bool = True) -> Found:
    """The decoder of a published model's name, a folder in diffusers' layout, or a hub id (with `@` and a revision, if wanted).

    Args:
        local_files_only: take a hub id from the hub's cache only; else download what is missing of the parts that are needed.

    Raises:
        UserError: it is neither here nor allowed to be downloaded, or cannot be; another class of pipeline.
    """
    source = PUBLISHED[str(model)].decoder if str(model) in PUBLISHED else model
    at = checkpoint_files.locate(source, None, local_files_only, EXAMPLE, _download)
    return Found(_like(at.folder), at)


def _like(folder: Path) -> str:
    """Which of `PUBLISHED` a folder is laid out as."""
    kind = artifacts.read_json(folder / INDEX_FILE).get(CLASS)
    for name, published in PUBLISHED.items():
        if kind in published.classes:
            return name
    raise UserError(f"{folder} holds a {kind!r}, which is no decoder known here. Known: {', '.join(known_classes())}.")


def _download(source: str, revision: str | None) -> Located:
    """The parts that are needed, in safetensors, and no more."""
    found = checkpoint_files.fetch(source, revision, [INDEX_FILE], local_files_only=False)
    parts = PUBLISHED[_like(found.folder)].parts
    names = (artifacts.CONFIG_FILE, SCHEDULER_FILE, *checkpoint_files.TOKENIZER_FILES)
    settings = [f"{part}/{name}" for part in parts for name in names]
    found = checkpoint_files.fetch(source, found.revision, settings, local_files_only=False)
    stems = {
        f"{part}/": checkpoint_files.TRANSFORMERS
        if part.startswith(stable_unclip.TEXT_ENCODER)
        else checkpoint_files.DIFFUSERS
        for part in parts
        if (found.folder / part / artifacts.CONFIG_FILE).is_file()
    }
    return checkpoint_files.fetch_weights(found, stems)


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
