"""What a decoder of the embedded world is trained on: scenes with captions, encoded once into a store or anew for each step.

Legend: N samples, T tokens of a condition, D its width, P patches of the backbone, M mentions.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.config import Config
from syzygy.core.contracts import Condition, Conditioning, TextFeatures, TextStates, image_condition
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.supervision import BACKGROUND, UNKNOWN, PatchTargets
from syzygy.decoder.training import DecoderBatch
from syzygy.lab.starter.sample_store import Columns, SampleStore
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import FactRates
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.render import cell_owners
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, TEXTURES
from syzygy.lab.world.scene_regions import mention_regions
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.precision import autocast
from syzygy.training.run_records import Bar, no_bar

VALIDATION_PICTURES = 256
FACTS = FactRates(thing=0.95, colour=0.9, texture=0.6, style=0.25, relation=0.6)
"""What captions of scenes of any kind say: more than CLIP's, as every word that is missing is one that the decoder cannot learn."""
ATTRIBUTES = ((SHAPES, "shape"), (COLOURS, "colour"), (TEXTURES, "texture"))
VALUES = tuple(len(names) for names, _ in ATTRIBUTES)
"""How many values each attribute of an object has."""
WIDTHS: Mapping[Length, Mapping[str, int]] = {
    "short": {"text": 48, "t5": 48},
    "medium": {"text": 77, "t5": 96},
    "long": {"text": 77, "t5": 320},
}
"""Most tokens of a stored caption, by condition."""
CHUNK = 128
"""Pairs that are encoded at a time."""
GROUP = 8
"""Steps whose samples are drawn together and sorted by length, so that little of a batch is padding."""


class CaptionMixture(Config):
    """Which scenes and captions a decoder sees."""

    fully_described: float = Field(default=0.45, ge=0, le=1)
    """Share of the scenes with short captions that are described fully: one or two objects, of different shapes and colours. Words are learned
    sooner from these. The others have up to four objects, alike ones among them, and captions that may omit facts."""
    medium_captions: float = Field(default=0.06, ge=0, le=1)
    """Share of the batches whose captions begin with other sentences."""
    long_captions: float = Field(default=0.02, ge=0, le=1)
    """Share of the batches whose captions are so long that CLIP reads none of the decisive words, and T5 all of them."""

    def pair(self, key: int, index: int, length: Length) -> scene_source.Pair:
        """Sample number `index` of a key."""
        if length == "short" and Draw(key, "kind", index).chance(self.fully_described):
            return scene_source.fully_described(key, index)
        return scene_source.pair(key, index, length=length, facts=FACTS)

    def length(self, seed: int, step: int) -> Length:
        """The length of the captions of a step."""
        at = Draw(seed, "decoder step", step).random()
        longer = self.medium_captions + self.long_captions
        return "medium" if at < self.medium_captions else "long" if at < longer else "short"


@dataclass(frozen=True)
class Encoding:
    """Encodes pairs for the training of a decoder: latents of the images, the conditions of each pair, and what is where."""

    clip: Clip
    autoencoder: Autoencoder
    precision: torch.dtype | None = None
    """The precision of the frozen networks."""
    t5: T5Text | None = None
    painted: bool = False
    """Whether the words for objects have the regions of these (with the strength 1)."""
    patch: int = 2
    """Height and width of the patches, in latents, for which batches say what is there."""

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the frozen networks, by part."""
        t5 = {} if self.t5 is None else {"t5": self.t5.fingerprint()}
        return {"clip": self.clip.fingerprint(), "autoencoder": self.autoencoder.fingerprint(), **t5}

    def __call__(self, found: list[scene_source.Pair]) -> DecoderBatch:
        """A batch of these pairs, encoded now."""
        return self.batch(self.columns(found))

    @torch.no_grad()
    def columns(self, found: list[scene_source.Pair], widths: Mapping[str, int] | None = None) -> Columns:
        """The pairs as columns, on the CPU and in half precision; tokens are padded to `widths`, or else to the longest caption."""
        images = scene_source.pictures(found, self.autoencoder.image_size, self.clip.device)
        texts = [pair.caption.text for pair in found]
        with autocast(self.clip.device, self.precision), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long captions are cut on purpose
            read: dict[str, TextFeatures | TextStates] = {"text": self.clip.encode_text(texts)}
            if self.t5 is not None:
                read["t5"] = self.t5.encode_states(texts)
            latents, image = self.autoencoder.encode(images), self.clip.encode_image(images)
        columns = {"latents": latents.half().cpu(), "image": image.half().cpu()}
        for name, states in read.items():
            columns |= _text_columns(name, states, found, None if widths is None else widths[name])
        side = latents.shape[-1]
        return {**columns, **_places(found, side // self.patch), "regions": _regions(found, side)}

    def batch(self, columns: Columns) -> DecoderBatch:
        """Columns as a batch on the training device, without the padding that no sample needs."""
        device = self.clip.device
        columns = {name: value.to(device) for name, value in columns.items()}
        conditions = {"image": image_condition(columns["image"].float())}
        words: dict[str, Tensor] = {}
        for name in ("text", "t5")[: 1 if self.t5 is None else 2]:
            longest = int(columns[f"{name}_length"].max())
            mask = torch.arange(longest, device=device) < columns[f"{name}_length"][:, None]
            states = columns[f"{name}_states"][:, :longest].float()
            pooled = columns["text_pooled"].float() if name == "text" else None
            conditions[name] = Condition(torch.ones_like(mask[:, 0]), states, mask, pooled)
            words[name] = columns[f"{name}_mentions"][:, :longest].long()
            if self.painted:
                regions = columns["regions"].float()
                rows = torch.arange(len(regions), device=device)[:, None]
                maps = regions[rows, words[name].clamp_min(0)] * (words[name] >= 0)[..., None, None]
                conditions[name] = replace(conditions[name], region_maps=maps)
        targets = PatchTargets(columns["mentions"].long(), columns["attributes"].long(), words)
        return DecoderBatch(columns["latents"].float(), Conditioning(conditions), targets)

    def stream(self, number: int, mixture: CaptionMixture, seed: int) -> Callable[[int], DecoderBatch]:
        """Step → `number` images of the world, encoded when they are asked for; the same ones for the same step."""
        key = seed_of(seed, "decoder")

        def batches(step: int) -> DecoderBatch:
            length = mixture.length(seed, step)
            return self([mixture.pair(key, step * number + i, length) for i in range(number)])

        return batches

    def stored(
        self, folder: Path, scenes: int, number: int, mixture: CaptionMixture, seed: int, bar: Bar = no_bar
    ) -> Callable[[int], DecoderBatch]:
        """Step → `number` images out of `scenes` that are encoded once, in `folder`; the same ones for the same step.

        Scenes with medium and long captions come in addition, as many as their share of the batches is.
        """
        shares: dict[Length, float] = {"medium": mixture.medium_captions, "long": mixture.long_captions}
        sizes: dict[Length, int] = {"short": scenes}
        sizes |= {length: max(round(scenes * share), number) for length, share in shares.items() if share}
        settings = {**self.fingerprints(), "seed": seed, "patch": self.patch}
        parts = {length: self._store(folder, length, size, mixture, settings, bar) for length, size in sizes.items()}
        rows = {
            length: Rows(store.column("text_length"), number, seed_of(seed, "rows", length))
            for length, store in parts.items()
        }

        def batches(step: int) -> DecoderBatch:
            length = mixture.length(seed, step)
            return self.batch(parts[length][rows[length].of(step)])

        return batches

    def _store(
        self,
        folder: Path,
        length: Length,
        size: int,
        mixture: CaptionMixture,
        settings: Mapping[str, Any],
        bar: Bar,
    ) -> SampleStore:
        key = seed_of(int(settings["seed"]), "decoder", length)

        def compute(start: int, many: int) -> Columns:
            chunks = range(start, start + many, CHUNK)
            made = [[mixture.pair(key, i, length) for i in range(c, min(c + CHUNK, start + many))] for c in chunks]
            parts = [self.columns(found, WIDTHS[length]) for found in made]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        # The shares of lengths decide which store a step reads, not what is in them.
        own = {"fully_described": mixture.fully_described} if length == "short" else {}
        return SampleStore.build(folder / length, size, compute, {**settings, **own}, bar)

    def unseen(self, seed: int, mixture: CaptionMixture) -> DecoderBatch:
        """Images that no step sees, for validation."""
        key = seed_of(seed, "decoder validation")
        return self([mixture.pair(key, i, "short") for i in range(VALIDATION_PICTURES)])


class Rows:
    """The rows of each step: all samples once before any comes again, in batches of samples with captions of like length."""

    def __init__(self, lengths: Int[Tensor, "N"], number: int, seed: int) -> None:
        """
        Args:
            lengths: of the captions, in tokens.
            number: rows of a step; at most as many as there are samples.
        """
        assert number <= len(lengths), f"{number} rows a step, out of {len(lengths)} samples"
        self._lengths, self._number, self._seed = lengths, number, seed
        self._steps = min(GROUP, len(lengths) // number)
        """Steps whose rows are drawn together."""
        self._groups = len(lengths) // (self._steps * number)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def of(self, step: int) -> Int[Tensor, "number"]:
        """The rows of a step."""
        group, place = divmod(step, self._steps)
        epoch, group_in_epoch = divmod(group, self._groups)
        if epoch != self._epoch:
            self._order = torch.randperm(len(self._lengths), generator=generator(self._seed, "epoch", epoch))
            self._epoch = epoch
        size = self._steps * self._number
        rows = self._order[group_in_epoch * size : (group_in_epoch + 1) * size]
        rows = rows[self._lengths[rows].argsort(stable=True)].view(self._steps, self._number)
        return rows[torch.randperm(self._steps, generator=generator(self._seed, "group", group))[place]]


def token_mentions(states: TextFeatures | TextStates, found: Sequence[scene_source.Pair]) -> Int[Tensor, "N T"]:
    """The mention that each token of the captions names, −1 for others; on the CPU."""
    assert states.spans is not None
    mentions = torch.full(states.mask.shape, -1, dtype=torch.int8)
    low, high = states.spans.cpu().unbind(-1)
    for row, pair in enumerate(found):
        for span in pair.caption.spans:
            mentions[row, (high[row] > low[row]) & (low[row] < span.stop) & (high[row] > span.start)] = span.mention
    return mentions


def cell_mentions(found: Sequence[scene_source.Pair], cells: int) -> Int[Tensor, "N P"]:
    """The mention of the object in each cell of a grid, `cells` in a row; `BACKGROUND` or `UNKNOWN` elsewhere."""
    return _places(found, cells)["mentions"]


def _text_columns(
    name: str, states: TextFeatures | TextStates, found: Sequence[scene_source.Pair], width: int | None
) -> Columns:
    """States, pooled vector and length of captions, and the mention that each token names."""
    length = states.mask.sum(1).cpu()
    width = states.states.shape[1] if width is None else width
    assert int(length.max()) <= width, f"a caption has {int(length.max())} tokens of {name}, stored are {width}"
    mentions = token_mentions(states, found)
    room = width - states.states.shape[1]
    columns = {
        f"{name}_states": F.pad(states.states.half().cpu(), (0, 0, 0, room)),
        f"{name}_length": length.to(torch.int16),
        f"{name}_mentions": F.pad(mentions, (0, room), value=-1),
    }
    return columns | ({"text_pooled": states.pooled.half().cpu()} if isinstance(states, TextFeatures) else {})


def _places(found: Sequence[scene_source.Pair], cells: int) -> Columns:
    """The mention and the attributes of the object in each patch."""
    owners = cell_owners([pair.scene for pair in found], cells).flatten(1)
    mentions = torch.full((len(found), MAX_OBJECTS + 1), UNKNOWN, dtype=torch.int8)
    attributes = torch.zeros(len(found), MAX_OBJECTS + 1, len(ATTRIBUTES), dtype=torch.uint8)
    mentions[:, -1] = BACKGROUND  # what owner -1 finds
    for row, pair in enumerate(found):
        for place, thing in enumerate(pair.scene.things):
            fitting = [(i, m) for i, m in enumerate(pair.caption.description.mentions) if m.fits(thing)]
            # "A circle" fits the red circle of "a red circle" too, which says more about it.
            named = max(
                fitting, key=lambda one: (one[1].colour is not None) + (one[1].texture is not None), default=None
            )
            mentions[row, place] = UNKNOWN if named is None else named[0]
            values = [names.index(getattr(thing, kind)) + 1 for names, kind in ATTRIBUTES]
            attributes[row, place] = torch.tensor(values, dtype=torch.uint8)
    rows = torch.arange(len(found))[:, None]
    return {"mentions": mentions[rows, owners], "attributes": attributes[rows, owners]}


def _regions(found: Sequence[scene_source.Pair], side: int) -> Tensor:
    """The regions of the mentions of each pair, 0 or 1 [N, M, side, side]; mentions without one have zeros."""
    masks = torch.zeros(len(found), MAX_OBJECTS, side, side, dtype=torch.uint8)
    for row, pair in enumerate(found):
        draw = Draw(0, "regions", pair.caption.text, repr(pair.scene.things))
        for mention, region in mention_regions(pair, draw, side).items():
            masks[row, mention] = region.mask.to(torch.uint8)
    return masks
