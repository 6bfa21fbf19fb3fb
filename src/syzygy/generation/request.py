"""The one request behind Python calls, the command line and HTTP: what to generate, and how."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.contracts import Progress, Region, Sampling
from syzygy.core.deprecation import with_new_name
from syzygy.core.errors import UserError
from syzygy.core.options import decoder_options
from syzygy.core.registry import imported
from syzygy.generation.mixing import Picture, Source, shares
from syzygy.generation.subjects import Subject, check_subjects, check_words
from syzygy.regions.phrases import for_each

EMPTY = "the prompt is empty: describe an image, such as 'a red circle left of a blue star'."
Mixture = Sequence[tuple[Source, float]]
"""Texts and pictures with their weights. A `str` is always a text here, and a tensor [1, D] is an image embedding."""


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What to generate, prompts or mixtures of texts and pictures, and how.

    Whatever can be checked without a model is checked here, so that Python, command line and HTTP refuse the same values with the
    same words.

    Raises:
        UserError: a value has another type, is out of range, or has no effect.
    """

    prompts: Sequence[str] = ()
    """The prior predicts an image embedding from each. The decoder reads it, and the prompt where it reads text."""
    _: KW_ONLY
    mixtures: Sequence[Mixture] = ()
    """Instead of prompts. The decoder reads the image embedding of each mixture and no text; a mixture of one picture gives variations."""
    num_images: int = 1
    """Images for each prompt or mixture."""
    negative_prompt: str | Sequence[str] | None = None
    """What the images should avoid: one text for all, or one for each prompt or mixture."""
    best_of: int = 1
    """Candidates for each image. The one whose CLIP score is best is kept."""
    batch_size: int | None = None
    """Images to denoise at once; None is all of them."""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """One for each candidate of each image, those of an image together; or one from which each gets its own in turn, so that neither the
    batch nor what follows changes an image. None draws a fresh seed."""
    sampling: Sampling = field(default_factory=Sampling)
    """Steps, guidance, size and so on. None of them means the decoder's own."""
    conditions: Sequence[str] | None = None
    """What the decoder reads of prompts, such as "image" and "text"; None is the model's own choice, or else all that it can."""
    regions: Sequence[Sequence[Region]] | None = None
    """Where phrases of a prompt should be (paint-with-words): a list for each prompt. One list of regions is for all prompts."""
    style: Picture | None = None
    """A picture whose style the images should have, or embeddings [S, D]: one for all images, or one for each."""
    style_content: str | Sequence[str] | None = None
    """What the style reference shows, in words; its content is then taken out of the style. One text for all, or one for each prompt."""
    subjects: Sequence[Subject] = ()
    """Pictures that words of the prompts stand for, with a λ-ECLIPSE prior. Of subjects that share a token, the last one counts."""
    layout: Picture | None = None
    """A picture whose edges the images should follow, with a λ-ECLIPSE prior; or the edges' CLIP embedding, a tensor [1, D]."""
    image: Picture | None = None
    """A picture to start from (image-to-image), or to repaint where a mask is (inpainting). It is resized to the images' size."""
    mask: Picture | None = None
    """White, or 1 in a tensor [H, W], where the image is repainted; black or transparent where it is kept."""
    depth: Picture | None = None
    """A depth map that the images should follow, bright where the scene is near."""
    callback: Callable[[Progress], None] | None = None
    """Is called after each sampling step."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name)))
        if self.mixtures:
            self._check_mixtures()
        elif not self.prompts:
            raise UserError(EMPTY)
        if self.regions is not None:
            object.__setattr__(self, "regions", for_each(self.regions, len(self.prompts)))
        for name in ("negative_prompt", "style_content"):
            self._check_number(name)
        if self.regions is None and self.sampling.region_strength is not None:
            raise UserError("region_strength has no effect without regions: give regions, or leave it out.")
        if self.style is None and self.sampling.style_guidance is not None:
            raise UserError(
                "style_guidance has no effect without a style: give a picture as the style, or leave it out."
            )
        if self.style is None and self.style_content is not None:
            raise UserError("style_content describes a style: give a picture as the style, or leave it out.")
        if self.image is None and (self.mask is not None or self.sampling.strength is not None):
            name = "strength" if self.mask is None else "mask"
            raise UserError(f"{name} has no effect without an image: give an image, or leave the {name} out.")
        check_words(self.subjects, self.prompts)
        if self.style is not None and (self.subjects or self.layout is not None):
            raise UserError(
                "a style replaces the image embedding that subjects and layout change: leave out the style, or these."
            )

    def _check_number(self, name: str) -> None:
        """One text for all, or one for each prompt or mixture."""
        given = getattr(self, name)
        if isinstance(given, list) and len(given) != len(self.items):
            each = "prompt" if self.prompts else "picture"
            raise UserError(
                f"{name} is a list of {len(given)} for {len(self.items)} {each}{'' if len(self.items) == 1 else 's'}: give one text for all, "
                f"or a list with one for each {each}."
            )

    def _check_mixtures(self) -> None:
        names = (
            "prompts",
            "conditions",
            "regions",
            "style",
            "style_content",
            "subjects",
            "layout",
            "image",
            "mask",
            "depth",
        )
        without_effect = [name for name in names if isinstance(value := getattr(self, name), Tensor) or value]
        if without_effect:
            raise UserError(
                f"{', '.join(without_effect)}: the decoder reads the image embedding of a mixture and nothing else. Leave this out."
            )
        for mixture in self.mixtures:
            shares([weight for _, weight in mixture])
            check_texts([source for source, _ in mixture if isinstance(source, str)])

    @classmethod
    def from_keywords(
        cls,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        **settings: Any,
    ) -> "GenerationRequest":
        """From keyword arguments with the names that diffusers has. What is not a field belongs to the sampling.

        Args:
            settings: fields; height, width, region_strength, style_guidance, strength; and options of the decoder, which refuses others.
        """
        given = with_new_name(settings, "painting", "region_strength", stacklevel=3)
        _check_spelling(given, {one.name for one in fields(cls)})
        own = {one.name: given.pop(one.name) for one in fields(cls) if one.name in given}
        height, width = (_if_given(arguments.whole, given.pop(name, None), name) for name in ("height", "width"))
        if (height is None) != (width is None):
            raise UserError("height and width come together: give both, or neither.")
        strengths = {name: given.pop(name, None) for name in ("region_strength", "style_guidance")}
        strength = _if_given(_strength, given.pop("strength", None), "strength")
        sampling = Sampling(
            steps=_if_given(arguments.whole, num_inference_steps, "num_inference_steps"),
            guidance_scale=_if_given(arguments.number, guidance_scale, "guidance_scale"),
            sampler=arguments.optional(sampler, "sampler", str, "a name (str)"),
            size=None if height is None or width is None else (height, width),
            strength=strength,
            options={name: _plain(value) for name, value in given.items() if value is not None},
            **{name: _if_given(arguments.number, value, name) for name, value in strengths.items()},
        )
        return cls(**own, sampling=sampling)

    @property
    def items(self) -> Sequence[Any]:
        """The prompts, or the mixtures."""
        return self.prompts or self.mixtures

    @property
    def rows(self) -> list[int]:
        """For each image the index of its prompt or mixture; the images of one are together."""
        return [index for index in range(len(self.items)) for _ in range(self.num_images)]

    def batches(self) -> "Sequence[GenerationRequest]":
        """Requests of at most `batch_size` images, in order, with a generator for each candidate."""
        number = len(self.rows)
        whole: GenerationRequest = replace(
            self, generator=one_each(self.generator, number * self.best_of), batch_size=None
        )
        size = self.batch_size or number
        return [whole] if number <= size else [whole._part(start, start + size) for start in range(0, number, size)]

    def _part(self, start: int, stop: int) -> "GenerationRequest":
        """The images from `start` to before `stop`, each with a prompt or mixture of its own."""
        rows, own = self.rows[start:stop], {}
        for name in ("prompts", "mixtures", "regions", "negative_prompt", "style_content"):
            value = getattr(self, name)
            own[name] = (
                value if value is None or isinstance(value, str) or not len(value) else [value[row] for row in rows]
            )
        if own["regions"] is not None and not any(own["regions"]):
            own |= {"regions": None, "sampling": replace(self.sampling, region_strength=None)}
        style = self.style
        if isinstance(style, Tensor) and style.ndim == 2 and len(style) > 1:
            style = style[start:stop]
        assert isinstance(self.generator, list)
        generators = self.generator[start * self.best_of : stop * self.best_of]
        return replace(self, num_images=1, style=style, generator=generators, **own)

    def candidates(self) -> "Sequence[GenerationRequest]":
        """A request for the first candidate of each image, one for the second, and so on. The generators are a list."""
        assert isinstance(self.generator, list)
        return [replace(self, generator=self.generator[i :: self.best_of], best_of=1) for i in range(self.best_of)]


def check_texts(texts: Any, name: str = "prompt") -> list[str]:
    """One text, or several, as a list.

    Raises:
        UserError: another type, or broken characters; an empty one, except as a negative prompt.
    """
    found = arguments.texts(texts, name)
    what = name.replace("_", " ")
    if name == "prompt" and not all(text.strip() for text in found):
        raise UserError(EMPTY)
    if broken := [text for text in found if any("\ud800" <= c <= "\udfff" for c in text)]:
        raise UserError(f"the {what} is not text, it holds broken characters: {broken[0]!r}. Give it in UTF-8.")
    return found


def notes(text: str, languages: Sequence[str] | None, subjects: Sequence[Subject] = ()) -> list[str]:
    """What a model of the embedded world does not understand in a text, one sentence each. Other models, whose `languages` are None, have
    no notes. The words of subjects stand for their pictures, and need not be known."""
    if languages is None or not text.strip():
        return []
    known = {word for subject in subjects for word in subject.word.casefold().split()}
    return imported("syzygy.lab.world.vocabulary:notes")(text, languages, known)


def _texts(value: Any, name: str) -> str | list[str] | None:
    if value is None:
        return None
    found = check_texts(value, name)
    if name == "style_content" and not all(text.strip() for text in found):
        raise UserError(
            "style_content is empty: say what the style reference shows, such as 'a red ring', or leave it out."
        )
    return found[0] if isinstance(value, str) else found


def _conditions(value: Any) -> list[str] | None:
    if isinstance(value, str):
        raise UserError(f"conditions must be a list of names such as ['image', 'text'], got the text {value[:40]!r}.")
    return None if value is None else arguments.texts(value, "conditions")


def _regions(value: Any) -> Any:
    if value is None:
        return None
    rows: Any = value if isinstance(value, list | tuple) else (None,)
    lists = all(isinstance(row, list | tuple) and all(isinstance(one, Region) for one in row) for row in rows)
    if not lists and not all(isinstance(row, Region) for row in rows):
        raise UserError(
            f"regions must be a list of Region, or one such list for each prompt, got {arguments.shown(value)}."
        )
    return value


def check_generator(value: Any) -> Any:
    """None, a `torch.Generator`, or a list of them.

    Raises:
        UserError: another type.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(one, torch.Generator) for one in value):
        raise UserError(
            f"generator must be a torch.Generator or a list of them, got {arguments.shown(value)}. From a seed: "
            "torch.Generator().manual_seed(7)."
        )
    return list(value)


def _callback(value: Any) -> Any:
    if value is not None and not callable(value):
        raise UserError(f"callback must be a function that takes a Progress, got {arguments.shown(value)}.")
    return value


def _batch_size(value: Any) -> int | None:
    return None if value is None else arguments.whole(value, "batch_size", 1)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "prompts": check_texts,
    "num_images": partial(arguments.whole, name="num_images", least=1),
    "negative_prompt": partial(_texts, name="negative_prompt"),
    "style_content": partial(_texts, name="style_content"),
    "best_of": partial(arguments.whole, name="best_of", least=1),
    "batch_size": _batch_size,
    "generator": check_generator,
    "conditions": _conditions,
    "regions": _regions,
    "subjects": check_subjects,
    "callback": _callback,
}
"""Field → what turns the given value into the plain one, or refuses it."""


def _strength(value: Any, name: str) -> float:
    found = arguments.number(value, name)
    if not 0 < found <= 1:
        raise UserError(f"{name} must be above 0 and at most 1, got {found:g}.")
    return found


def _plain(value: Any) -> Any:
    """A whole number of numpy as one of Python."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _check_spelling(given: Mapping[str, Any], own: set[str]) -> None:
    """An unknown name that is close to a known one is a slip. Other unknown names are for the decoder, which refuses what is not its own.

    Raises:
        UserError: such a slip.
    """
    keywords = own | {
        "height",
        "width",
        "region_strength",
        "style_guidance",
        "strength",
        "num_inference_steps",
        "guidance_scale",
        "sampler",
    }
    options = {one.name for one in decoder_options()}
    for name in given.keys() - keywords - options:
        near = get_close_matches(name, sorted(keywords | options), n=1, cutoff=0.75)
        if near or name == "steps":
            raise UserError(f"unknown option {name!r}. Did you mean {(near or ['num_inference_steps'])[0]!r}?")


def _if_given(check: Callable[[Any, str], Any], value: Any, name: str) -> Any:
    return None if value is None else check(value, name)


def one_each(generator: torch.Generator | Sequence[torch.Generator] | None, number: int) -> list[torch.Generator]:
    """A generator for each of `number` images: those given, or drawn one after the other from a single one."""
    if isinstance(generator, Sequence):
        if len(generator) != number:
            raise UserError(f"{len(generator)} generators for {number} images: pass one each, or one for all.")
        return list(generator)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    seeds = [int(torch.randint(2**62, (), generator=generator, device=generator.device)) for _ in range(number)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seeds_of(generators: Sequence[torch.Generator]) -> list[int | None]:
    """The seed of each generator that is as fresh as `manual_seed` left it; None for others, and for those that are given several times."""
    given = Counter(map(id, generators))

    def fresh(one: torch.Generator) -> bool:
        again = torch.Generator(one.device).manual_seed(one.initial_seed())
        return given[id(one)] == 1 and torch.equal(again.get_state(), one.get_state())

    return [one.initial_seed() if fresh(one) else None for one in generators]
