"""Where the objects lie that a prompt names: predicted from its text encoders' states, and given to cross-attention as regions.

A decoder learns late what relations mean ("a circle left of a ring"): places are decided at high noise, where no object can be recognised yet,
and cross-attention looks at words one by one, whose states tell what they name and hardly how they relate. A small network over all words
learns it within minutes, from captions of scenes whose places are known. What it predicts becomes a region of each word, as if a user had
drawn it (paint-with-words, eDiff-I section 4.3); so the decoder stays as it is.

Legend: B texts, T tokens, D width of states, C width of the network, P cells of a grid over the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.contracts import Conditioning
from syzygy.core.randomness import seed_of
from syzygy.decoder.network import Decoder

STRENGTH = 1.0
"""The strength of predicted regions."""
HIDDEN = -10_000.0
"""Added to the attention scores of hidden tokens."""
NAMED_WEIGHT = 0.2
"""Weight, in the loss, of whether a token names an object."""
SEEN = 0.05
"""A token whose chance to name an object is smaller gets no region."""
LEAST_APART = 0.13
"""The least total variation distance of the words' cells from their mean, for regions. In the starter, 99 % of 200 prompts with a relation
have more (nine in ten from 0.22 to 0.30), and 2 % of 712 others."""

Read = Mapping[str, tuple[Float[Tensor, "B _ _"], Bool[Tensor, "B _"]]]
"""Token states and their mask, by condition."""


class Predicted(NamedTuple):
    """What is predicted of each token."""

    cells: Float[Tensor, "B T P"]
    """Logits of the cells in which its object lies."""
    names: Float[Tensor, "B T"]
    """Logit of naming an object."""


class PlacementConfig(Config):
    """Sizes of a placement predictor."""

    reads: dict[str, int] = Field(min_length=1)
    """The conditions that it reads, with the widths of their token states."""
    width: int = Field(default=128, gt=0)
    """Width of the network, that of the decoder's cross-attention."""
    layers: int = Field(default=2, ge=1)
    """Layers of self-attention over the tokens of all conditions."""
    side: int = Field(default=8, gt=1)
    """Cells in a row and a column of the grid over the image."""


class PlacementPredictor(nn.Module):
    """Token states of any subset of its conditions → where the object lies that each token names. Absent conditions are left out."""

    def __init__(self, config: PlacementConfig) -> None:
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        self.config = config
        self.inputs = nn.ModuleDict({name: nn.Linear(width, config.width) for name, width in config.reads.items()})
        for name, width in config.reads.items():
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))
        heads = max(config.width // 32, 1)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(config.width, heads, config.width // heads, ff_inner_dim=config.width)
            for _ in range(config.layers)
        )
        self.cells = nn.Linear(config.width, config.side**2)
        self.names = nn.Linear(config.width, 1)

    def read_as(self, decoder: Decoder) -> None:
        """Read words as this decoder's tokens, which tell objects and attributes apart, and keep that fixed. Learned anew, it takes many times
        longer to find relations.
        """
        for name in self.config.reads:
            slot: Any = decoder.slots[name]
            self.inputs[name].load_state_dict(slot.states_in.state_dict())
            self.inputs[name].requires_grad_(False)
            if slot.config.standardized:
                self.get_buffer(f"{name}_mean").copy_(slot.states_mean)
                self.get_buffer(f"{name}_std").copy_(slot.states_std)

    def forward(self, read: Read) -> dict[str, Predicted]:
        """Hidden tokens have no influence on others."""
        names = [name for name in self.config.reads if name in read]
        assert names, f"reads {list(self.config.reads)}, given {list(read)}"
        tokens, masks = [], []
        for name in names:
            states, mask = read[name]
            states = (states - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")
            states = F.layer_norm(states, states.shape[-1:]).masked_fill(~mask[..., None], 0.0)
            tokens.append(self.inputs[name](states))
            masks.append(mask)
        x, bias = torch.cat(tokens, 1), torch.where(torch.cat(masks, 1), 0.0, HIDDEN)[:, None]
        for block in self.blocks:
            x = block(x, attention_mask=bias.to(x.dtype))
        lengths = [mask.shape[1] for mask in masks]
        parts = zip(self.cells(x).split(lengths, 1), self.names(x)[..., 0].split(lengths, 1), strict=True)
        return {name: Predicted(*part) for name, part in zip(names, parts, strict=True)}

    def regions(self, read: Read) -> dict[str, Float[Tensor, "B _ side side"]]:
        """A region for each token, from 0 to 1: where its object is expected rather than the others of the prompt.

        With p of a token over the cells and the mean p̄ over all that name objects, it is p / p̄ − 1 where that is positive, at most 1. Prompts
        whose p hardly differ from p̄ get none: of one object, or of several without a relation.
        """
        logits = self(read)
        named = {name: one.names.float().sigmoid() for name, one in logits.items()}
        named = {name: torch.where(read[name][1] & (one > SEEN), one, 0.0) for name, one in named.items()}
        cells = {name: one.cells.float().softmax(-1) for name, one in logits.items()}
        total = torch.stack([one.sum(1) for one in named.values()]).sum(0).clamp_min(SEEN)
        mean = torch.stack([(named[name][..., None] * cells[name]).sum(1) for name in cells]).sum(0) / total[:, None]
        side = self.config.side
        apart = [(named[name] * (own - mean[:, None]).abs().sum(-1) / 2).sum(1) for name, own in cells.items()]
        related = torch.stack(apart).sum(0) / total > LEAST_APART
        found = {}
        for name, own in cells.items():
            region = (own / mean[:, None].clamp_min(1e-6) - 1).clamp(0, 1)
            found[name] = (region * (named[name] * related[:, None])[..., None]).unflatten(-1, (side, side))
        return found

    @torch.no_grad()
    def placed(self, conditioning: Conditioning, strength: float, drawn: Sequence[int] = ()) -> Conditioning:
        """The conditions with the predicted regions, times `strength`; none where not all conditions that this reads are there, as predictions
        from CLIP's states alone are not reliable enough.

        Args:
            drawn: the samples that have regions already, and keep these.
        """
        read = {}
        for name in self.config.reads:
            condition = conditioning.conditions.get(name)
            if condition is not None and condition.states is not None and condition.mask is not None:
                read[name] = condition.states, condition.mask & condition.present[:, None]
        if read.keys() != self.config.reads.keys() or not strength:
            return conditioning
        conditions = dict(conditioning.conditions)
        for name, found in self.regions(read).items():
            maps, own = strength * found, conditions[name].region_maps
            if drawn:
                maps[list(drawn)] = 0
            if own is not None:
                maps = own + F.interpolate(maps, own.shape[-2:])
            if own is not None or maps.any():  # without regions, attention is the plain one, to the bit
                conditions[name] = replace(conditions[name], region_maps=maps)
        return Conditioning(conditions)

    def fingerprint(self) -> str:
        """Sixteen hex digits over the weights."""
        return artifacts.fingerprint(self.state_dict())

    def save_pretrained(
        self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = torch.float16
    ) -> None:
        """Write weights, configuration and provenance as one folder, atomically."""
        with artifacts.folder_written(folder, "a placement predictor") as temporary:
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, self.state_dict(), dtype)
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, self.config.model_dump(mode="json"))
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "PlacementPredictor":
        """The predictor in `folder`, in fp32 and evaluation mode; weights that do not fit the configuration are an error."""
        path = folder / artifacts.CONFIG_FILE
        predictor = build_placement(parse(PlacementConfig, artifacts.read_json(path), str(path)))
        artifacts.load_strictly(predictor, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
        return predictor.eval()


def build_placement(config: PlacementConfig, *, seed: int = 0) -> PlacementPredictor:
    """A predictor with fresh weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "placement", "weights"))
        return PlacementPredictor(config)


def placement_loss(
    predicted: Predicted, mask: Bool[Tensor, "B T"], words: Int[Tensor, "B T"], mentions: Int[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the cells of the object that a token names, a mean over such tokens, and of whether tokens name one.

    Args:
        words: the mention that each token names, −1 for others.
        mentions: the mention of the object in each cell, negative where there is none.

    For the cells, a token whose object lies in none of them is left out.
    """
    lies = ((mentions[:, None] == words[..., None]) & (words >= 0)[..., None]).float()
    total = lies.sum(-1, keepdim=True)
    counted = mask & (total[..., 0] > 0)
    wanted = lies / total.clamp_min(1)
    losses = F.cross_entropy(predicted.cells.float().flatten(0, 1), wanted.flatten(0, 1), reduction="none")
    where = (losses * counted.flatten()).sum() / counted.sum().clamp_min(1)
    named = F.binary_cross_entropy_with_logits(predicted.names.float(), (words >= 0).float(), reduction="none")
    return where + NAMED_WEIGHT * (named * mask).sum() / mask.sum().clamp_min(1)
