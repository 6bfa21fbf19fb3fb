"""Subjects: pictures that words of a prompt stand for, as a λ-ECLIPSE prior reads them (arXiv 2402.05195).

Shapes: B rows, T tokens, D width of CLIP's joint space, H × W pixels of a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.clip.tokenization import encoded
from syzygy.core.arguments import shown
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_layers, as_mask, open_file
from syzygy.core.pixels import to_uint8
from syzygy.data.references import References
from syzygy.generation.image_files import to_tensor
from syzygy.generation.mixing import KINDS, Picture, checked
from syzygy.regions.phrases import places

PUBLISHED_PRIOR = "ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0"
NAMED = 3
"""Prompts that an error names."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A word of the prompt, and a picture of what it stands for."""

    word: str
    """One or more words as they occur in the prompt, in any case. The picture replaces every token of the prompt that is one of theirs."""
    image: Picture
    """The picture; its transparent parts become white, because the prior was trained with subjects on white."""
    mask: str | Path | Image.Image | Tensor | None = None
    """Which part of the picture is the subject: a picture of the same size, white here and black elsewhere, or a tensor [H, W] from 0 to 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.word, str) or not self.word.strip():
            raise UserError(f"a subject needs a word of the prompt, got {shown(self.word)}.")
        for name, value in (("picture", self.image), ("mask", self.mask)):
            if not isinstance(value, KINDS) and not (name == "mask" and value is None):
                raise UserError(
                    f"the {name} of the subject {self.word!r} must be a file's name, a Pillow image or a tensor, got {shown(value)}."
                )

    def cut_out(self) -> Image.Image | Tensor:
        """The subject on white: a Pillow image, a tensor [3, H, W] for a tensor, or the embedding [1, D] that was given instead of a picture.

        Raises:
            UserError: the picture or the mask cannot be read, they differ in size, or there is nothing but white.
        """
        colours, opacity = self._layers()
        if opacity is None:
            return colours
        if self.mask is not None:
            opacity = opacity * self._mask(opacity)
        found = colours * opacity + (1 - opacity)
        levels = to_uint8(found[None])[0]
        if (levels == 255).all():
            raise UserError(
                f"the picture of the subject {self.word!r} holds nothing but white"
                f"{'' if self.mask is None else ' where its mask is white'}: give a picture that shows the subject."
            )
        return found if isinstance(self.image, Tensor) else Image.fromarray(levels.permute(1, 2, 0).numpy())

    def _layers(self) -> tuple[Tensor, Float[Tensor, "H W"] | None]:
        """Colours [3, H, W] and opacity; or an embedding [1, D] and no opacity."""
        if not isinstance(self.image, Tensor):
            name = "the picture" if isinstance(self.image, Image.Image) else str(self.image)
            opened = self.image if isinstance(self.image, Image.Image) else open_file(Path(self.image))
            picture, opacity = as_layers(opened, name)
            return to_tensor(picture), opacity
        if self.image.ndim == 2:
            if self.mask is not None:
                raise UserError(f"a mask has no effect on the embedding of the subject {self.word!r}: leave it out.")
            return self.image, None
        picture = checked(self.image)
        return picture, torch.ones_like(picture[0])

    def _mask(self, opacity: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
        """The mask as numbers from 0 to 1, of the picture's size."""
        if isinstance(self.mask, Tensor):
            mask = self.mask
            if mask.ndim != 2 or not mask.is_floating_point() or not ((mask >= 0) & (mask <= 1)).all():
                raise UserError(
                    f"the mask of the subject {self.word!r} must be a tensor [H, W] of numbers from 0 to 1."
                )
        else:
            assert self.mask is not None
            mask = as_mask(self.mask if isinstance(self.mask, Image.Image) else open_file(Path(self.mask)))
        if mask.shape != opacity.shape:
            sizes = " and ".join(f"{width} × {height}" for height, width in (opacity.shape, mask.shape))
            raise UserError(f"picture and mask of the subject {self.word!r} must have one size, got {sizes}.")
        return mask.to(opacity)


@dataclass(frozen=True, eq=False)
class EmbeddedSubject(Subject):
    """A subject as the prior reads it: its image is an embedding [1, D]."""

    positions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For each prompt the positions of the token states that the embedding replaces."""

    @property
    def embedding(self) -> Float[Tensor, "D"]:
        """The image's."""
        assert isinstance(self.image, Tensor), "pictures are embedded before"
        return self.image[0]


@runtime_checkable
class SubjectPrior(Prior, Protocol):
    """A prior that was trained with image embeddings in place of text states and with a control, as λ-ECLIPSE's."""

    takes_subjects: bool
    """Pipelines recognise it by this."""

    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
        references: References | None = None,
    ) -> Float[Tensor, "B D"]:
        """As of `Prior`; `references` are the subjects of the texts, and the CLIP image embeddings of the edges of their layouts."""
        ...


def check_subjects(given: Any) -> Sequence[Subject]:
    """A list of subjects with different words; None is an empty one.

    Raises:
        UserError: something else, or a word twice.
    """
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or not all(isinstance(one, Subject) for one in given):
        raise UserError(f"subjects must be a list of Subject, got {shown(given)}.")
    words: set[str] = set()
    for subject in given:
        word = " ".join(subject.word.casefold().split())
        if word in words:
            raise UserError(
                f"there are several subjects for the word {subject.word!r}: give one subject for each word."
            )
        words.add(word)
    return given


def check_words(subjects: Sequence[Subject], prompts: Sequence[str]) -> None:
    """Check that every prompt contains the words of every subject.

    Raises:
        UserError: names the prompts that do not.
    """
    for subject in subjects:
        lacking = [prompt for prompt in prompts if not _contains(prompt, subject.word)]
        if lacking:
            where = "the prompt" if len(prompts) == 1 else f"{len(lacking)} of {len(prompts)} prompts"
            names = ", ".join(repr(prompt[:60]) for prompt in lacking[:NAMED]) + ", …" * (len(lacking) > NAMED)
            raise UserError(
                f"the word {subject.word!r} of a subject is not in {where}: {names}. Give a word that every prompt contains."
            )


def _contains(prompt: str, word: str) -> bool:
    try:
        return bool(places(prompt, word))
    except UserError:
        return False


def positions(clip: Clip, prompt: str, word: str) -> list[int]:
    """Positions of the prompt's token states, as `Clip.encode_text` counts them, whose token is one of the word's.

    Raises:
        UserError: none that the text encoder reads.
    """
    (own, _), (wanted, _) = encoded(clip.tokenizer, [prompt, word])
    kept = own[: clip.positions - 2]  # between the start token and the end token
    found = [1 + place for place, token in enumerate(kept) if token in set(wanted)]
    if not found:
        raise UserError(
            f"the text encoder reads no token of the subject {word!r} in the prompt {prompt[:60]!r}: it reads {clip.positions} tokens, and "
            "only whole words. Shorten the prompt, or set the word apart by blanks."
        )
    return found


def references_of(
    prompts: Sequence[str], subjects: Sequence[Subject], layout: Float[Tensor, "1 D"] | None, width: int
) -> References:
    """What the words of prompts refer to: embedded subjects at their words' tokens, and the embedding of a layout, if there is one."""
    embedded = [subject for subject in subjects if isinstance(subject, EmbeddedSubject)]
    assert len(embedded) == len(subjects), "pictures are embedded before"
    found = [[(list(one.positions[prompt]), one.embedding) for one in embedded] for prompt in prompts]
    control = None if layout is None else layout.expand(len(prompts), -1)
    return References.of(found, width, control)


def subject_prior(prior: Any, subjects: Sequence[Subject]) -> SubjectPrior:
    """The prior, if it reads subjects and a layout.

    Args:
        prior: any prior, or None.
        subjects: those of the request, for the words of the error; without any, a layout was given.

    Raises:
        UserError: it does not.
    """
    if not getattr(prior, "takes_subjects", False):
        what = "subjects: it knows words alone" if subjects else "layout: it has no control"
        raise UserError(
            f"this model's prior reads no {what}. Give a λ-ECLIPSE prior (--prior, or prior=…): {PUBLISHED_PRIOR} for Kandinsky 2.2, or one of "
            f"`syzygy train prior --preset lambda-eclipse-residual` for the starter. Or leave the {'subjects' if subjects else 'layout'} out."
        )
    return prior
