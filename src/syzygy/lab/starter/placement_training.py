"""The starter's placement predictor, trained on captions of the embedded world; nothing is rendered."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.randomness import Draw, seed_of
from syzygy.decoder.network import Decoder
from syzygy.decoder.placement import PlacementConfig, PlacementPredictor, Read, build_placement, placement_loss
from syzygy.lab.starter.decoder_data import Rows, cell_mentions, token_mentions
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import FactRates, Placed
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import Bar, RunResult, no_bar, train_part
from syzygy.training.schedule import LoopConfig

RELATED = scene_source.FullDescriptions(alike=0.05, alone=0.05, relation=0.65)
FACTS = FactRates(thing=0.95, colour=0.9, texture=0.6, style=0.25, relation=0.95)
VALIDATION_PAIRS = 256
CHUNK = 256
"""Captions that are encoded at a time."""
Encode: TypeAlias = Callable[[list[str]], TextFeatures | TextStates]
Encoders: TypeAlias = Mapping[str, Encode]


class PlacementTaskConfig(Config):
    """What one training step sees."""

    batch_size: int = Field(default=64, ge=1)
    """Captions of each step."""


class PlacementRun(Config):
    """All settings of a placement predictor of the embedded world."""

    layers: int = 2
    """Layers of self-attention over the words."""
    side: int = 8
    """Cells in a row and a column of the grid over the image."""
    captions: int = Field(default=30_000, ge=1)
    """Captions, which are encoded once and seen several times."""
    fully_described: float = Field(default=0.8, ge=0, le=1)
    """Share of the captions that describe a scene of two objects, and the relation of these, fully. The others are of any scene."""
    medium_captions: float = Field(default=0.05, ge=0, le=1)
    """Share of the captions that begin with other sentences."""
    task: PlacementTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights and scenes."""

    def pair(self, index: int) -> scene_source.Pair:
        """Training pair number `index`."""
        key = seed_of(self.seed, "placement")
        at = Draw(key, "kind", index).random()
        if at < self.fully_described:
            return scene_source.fully_described(key, index, RELATED)
        medium = at < self.fully_described + self.medium_captions
        return scene_source.pair(key, index, facts=FACTS, length="medium" if medium else "short")


@dataclass(frozen=True)
class Captions:
    """Encoded captions: token states with mask and the mention that each token names, by condition; and the mention in each cell.

    N captions, T tokens, P cells.
    """

    states: dict[str, Float[Tensor, "N T _"]]
    masks: dict[str, Bool[Tensor, "N T"]]
    words: dict[str, Int[Tensor, "N T"]]
    cells: Int[Tensor, "N P"]

    def __getitem__(self, rows: Tensor) -> "Captions":
        """These, without the padding that none of them needs."""
        masks = {name: own[rows] for name, own in self.masks.items()}
        longest = {name: int(own.sum(1).max()) for name, own in masks.items()}
        return Captions(
            {name: own[rows, : longest[name]].float() for name, own in self.states.items()},
            {name: own[:, : longest[name]] for name, own in masks.items()},
            {name: own[rows, : longest[name]].long() for name, own in self.words.items()},
            self.cells[rows].long(),
        )

    def read(self, names: Sequence[str]) -> Read:
        return {name: (self.states[name], self.masks[name]) for name in names}


@torch.no_grad()
def encoded(
    encoders: Encoders, found: Sequence[scene_source.Pair], side: int, precision: torch.dtype | None, bar: Bar = no_bar
) -> Captions:
    """The captions of pairs, on the CPU and in half precision."""
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in encoders}
    with bar("captions", len(found)) as progress:
        for start in range(0, len(found), CHUNK):
            chunk = found[start : start + CHUNK]
            texts = [pair.caption.text for pair in chunk]
            for name, encode in encoders.items():
                with autocast(torch.device("cpu"), precision):
                    states = encode(texts)
                words = token_mentions(states, chunk)
                parts[name].append((states.states.half().cpu(), states.mask.cpu(), words))
            progress(len(chunk))
    joined: list[dict[str, Tensor]] = []
    for place, fill in enumerate((0.0, 0.0, -1.0)):
        joined.append({name: _padded([part[place] for part in own], fill) for name, own in parts.items()})
    return Captions(joined[0], joined[1], joined[2], cell_mentions(found, side))


def _padded(parts: list[Tensor], fill: float) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    rest = [(0, 0) * (part.ndim - 2) + (0, longest - part.shape[1]) for part in parts]
    return torch.cat([F.pad(part, pad, value=fill) for part, pad in zip(parts, rest, strict=True)])


class PlacementTask:
    """The training loop's `Task` for a placement predictor. Every second step reads all conditions, the others one of them."""

    def __init__(
        self,
        predictor: PlacementPredictor,
        captions: Captions,
        unseen: Captions,
        relations: Sequence[Placed | None],
        batch_size: int,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            relations: those of the unseen captions.
        """
        self.modules: Mapping[str, nn.Module] = {"placement": predictor}
        self._predictor, self._captions, self._unseen, self._relations = predictor, captions, unseen, relations
        self._precision = precision
        lengths = torch.stack([mask.sum(1) for mask in captions.masks.values()]).sum(0)
        self._rows = Rows(lengths, batch_size, seed_of(seed, "placement rows"))
        names = list(captions.states)
        self._single = [[name] for name in names]
        self._subsets = [names, *(self._single if len(names) > 1 else [])]

    def loss(self, step: int) -> dict[str, Tensor]:
        """Cross-entropy of the cells of the objects, and of naming none."""
        names = self._single[step // 2 % len(self._single)] if step % 2 else self._subsets[0]
        return {"loss": self._loss(self._captions[self._rows.of(step)], names)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on unseen captions, a mean over the choices of conditions; and `right/…`, the share of the relations that the predicted
        regions of the two objects show.
        """
        captions = self._unseen[torch.arange(len(self._unseen.cells))]
        losses = torch.stack([self._loss(captions, names) for names in self._subsets])
        right = {f"right/{'+'.join(names)}": self._right(captions, names) for names in self._subsets}
        return {"loss": float(losses.mean())} | right

    def _loss(self, captions: Captions, names: Sequence[str]) -> Tensor:
        read = {name: (x.to(self._device), mask.to(self._device)) for name, (x, mask) in captions.read(names).items()}
        with autocast(self._device, self._precision):
            logits = self._predictor(read)
        losses = [
            placement_loss(one, read[name][1], captions.words[name].to(self._device), captions.cells.to(self._device))
            for name, one in logits.items()
        ]
        return torch.stack(losses).mean()

    @property
    def _device(self) -> torch.device:
        return next(self._predictor.parameters()).device

    def _right(self, captions: Captions, names: Sequence[str]) -> float:
        read = {name: (x.to(self._device), mask.to(self._device)) for name, (x, mask) in captions.read(names).items()}
        regions = {name: own.cpu() for name, own in self._predictor.regions(read).items()}
        along = torch.linspace(0, 1, self._predictor.config.side)
        right = []
        for row, placed in enumerate(self._relations):
            if placed is None:
                continue

            def centre(mention: int, row: int = row) -> tuple[float, float]:
                own = torch.cat([regions[name][row][captions.words[name][row] == mention] for name in names]).sum(0)
                total = own.sum().clamp_min(1e-6)
                return float((own.sum(0) * along).sum() / total), float((own.sum(1) * along).sum() / total)

            (x, y), (u, v) = centre(placed.subject), centre(placed.target)
            sides = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
            right.append(max(sides, key=lambda side: sides[side]) == placed.relation)
        return sum(right) / max(len(right), 1)


def train(
    run: PlacementRun, clip: Clip, t5: T5Text, decoder: Decoder, out: Path, device: torch.device, bar: Bar = no_bar
) -> RunResult:
    """Train (or resume) in `out`, with frozen text encoders on `device`; the finished predictor is `out/placement`, fp16.

    It reads words as `decoder` does, and works with others.
    """
    every: dict[str, tuple[Encode, int, str]] = {
        "text": (clip.encode_text, clip.width, clip.fingerprint()),
        "t5": (t5.encode_states, t5.width, t5.fingerprint()),
    }
    reads = {name: one for name, one in every.items() if name in decoder.slots}
    encoders = {name: encode for name, (encode, _, _) in reads.items()}
    recorded = {"clip": every["text"][2], "t5": every["t5"][2], "decoder": artifacts.fingerprint(decoder.state_dict())}
    widths = {name: width for name, (_, width, _) in reads.items()}
    config = PlacementConfig(reads=widths, width=decoder.config.cross_attention_width, layers=run.layers, side=run.side)
    predictor = build_placement(config, seed=run.seed)
    predictor.read_as(decoder)
    predictor = predictor.to(device)
    key, precision = seed_of(run.seed, "placement validation"), precision_on(device)
    validation = [scene_source.fully_described(key, i, RELATED) for i in range(VALIDATION_PAIRS)]
    relations = [next(iter(pair.caption.description.relations), None) for pair in validation]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captions of medium length are cut on purpose
        captions = encoded(encoders, [run.pair(i) for i in range(run.captions)], run.side, precision, bar)
    unseen = encoded(encoders, validation, run.side, precision)
    task = PlacementTask(predictor, captions, unseen, relations, run.task.batch_size, run.seed, precision)

    def save(folder: Path, record: dict[str, Any]) -> None:
        predictor.save_pretrained(folder, record)

    return train_part(run, task, out, save, kind="placement", recorded=recorded, measure=lambda result: task.validate())
