"""How a published decoder declares itself: `@register_decoder` in the file of its family.

A declaration names the repository, the classes of diffusers' pipelines that are laid out in the same way, the parts that are
needed, the CLIP and the prior that belong to the decoder, and its options. Everything else follows from it: `--model NAME`,
recognising a folder, what is downloaded, flags of the command line and fields of the HTTP API.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import ImageDecoder
from syzygy.core.diffusers_weights import load_model
from syzygy.core.errors import UserError
from syzygy.core.options import Option
from syzygy.core.registry import DECODERS


@dataclass(frozen=True, kw_only=True)
class LoadContext:
    """Where a decoder's files are, and where and in which precision it computes."""

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    offload: bool = False
    """Keep each part on the CPU and move it to the device only while it computes."""
    tiling: bool = False
    """Decode latents tile by tile and image by image: large images in little memory, with blended seams."""
    own_text: bool = True
    """Load text encoders of the decoder's own; not where others replace them."""
    unet: Path | None = None
    """Folder of a trained U-Net that replaces that of `folder`, and has the same configuration."""
    clip: Clip | None = None
    """The CLIP whose embeddings the decoder reads; None for a decoder that reads texts alone."""
    clip_identity: str = ""
    """The CLIP's repository and commit, for caches."""

    def model(self, kind: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        """The part of diffusers' class `kind`, where it belongs. Raises as `load_model`."""
        place = self.unet if part == "unet" and self.unet is not None else self.folder / part
        return self.placed(load_model(kind, place.parent, place.name, dtype or self.dtype))

    def placed(self, module: Any) -> Any:
        """The module on the device, or on the CPU with `offload`."""
        return module if self.offload else module.to(self.device)


class PretrainedDecoder(ImageDecoder):
    """A decoder that is loaded from a folder of files.

    `options` and everything else that the declaration says come from `@register_decoder`. A subclass sets the attributes of
    `ImageDecoder` that differ from its defaults, and defines `load`, `generate`, and `embedding_width` if it reads image
    embeddings.
    """

    options: ClassVar[tuple[Option, ...]] = ()

    @classmethod
    @abstractmethod
    def load(cls, context: LoadContext) -> "PretrainedDecoder":
        """The decoder in a folder.

        Raises:
            UserError: a part is missing, truncated, pickle or another kind; parts do not fit together; a setting has no effect.
        """

    @classmethod
    def embedding_width(cls, folder: Path) -> int:
        """The width of the image embeddings that the decoder in a folder reads, without reading its weights."""
        raise NotImplementedError(f"{cls.__name__} reads image embeddings, but does not define embedding_width")


@dataclass(frozen=True, kw_only=True)
class DecoderFamily:
    """What `@register_decoder` declares."""

    name: str
    decoder: type[PretrainedDecoder]
    hub_id: str | None
    pipeline_classes: tuple[str, ...]
    parts: tuple[str, ...]
    clip: str | None
    prior: str | None
    options: tuple[Option, ...]


D = TypeVar("D", bound=type[PretrainedDecoder])


def register_decoder(
    name: str,
    *,
    pipeline_class: str | tuple[str, ...],
    hub_id: str | None = None,
    parts: tuple[str, ...] = (),
    clip: str | None = None,
    prior: str | None = None,
    options: tuple[Option, ...] = (),
) -> Callable[[D], D]:
    """Declare the decorated class, a `PretrainedDecoder`, as the decoder `name`.

    Args:
        name: what `--model` takes. An entry point of the group "syzygy.decoders" has the same name.
        pipeline_class: `_class_name` in the `model_index.json` of folders with such a decoder; one or several.
        hub_id: the repository that `name` stands for, perhaps followed by "@" and a revision. None: only folders and hub ids
            are given as `--model`, no name.
        parts: the folders inside the repository that are needed.
        clip: hub id of the CLIP whose image embeddings the decoder reads; for a decoder that reads texts alone, of the CLIP
            that chooses the best of several images.
        prior: hub id of the prior, or a registered prior's name; None where the user must give one, or for a decoder that
            reads texts alone.
        options: the decoder's own options, for `--help`, calls from Python and HTTP.
    """
    classes = (pipeline_class,) if isinstance(pipeline_class, str) else pipeline_class

    def register(decoder: D) -> D:
        decoder.options = options
        family = DecoderFamily(
            name=name,
            decoder=decoder,
            hub_id=hub_id,
            pipeline_classes=classes,
            parts=parts,
            clip=clip,
            prior=prior,
            options=options,
        )
        DECODERS.register(name, family)
        return decoder

    return register


def family(name: str) -> DecoderFamily:
    """The declaration of a decoder.

    Raises:
        UserError: an unknown name, or an entry point that leads to a class without a declaration.
    """
    found = DECODERS.get(name)
    if not isinstance(found, DecoderFamily):
        raise UserError(
            f"the decoder {name!r} of another package is not declared: decorate its class with @register_decoder({name!r}, …)."
        )
    return found


def families() -> list[DecoderFamily]:
    """All declarations. Imports every decoder; one of another package that fails is left out with a warning."""
    found = []
    for name in DECODERS.names():
        try:
            found.append(family(name))
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
    return found
