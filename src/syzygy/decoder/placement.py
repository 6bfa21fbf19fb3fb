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
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.contracts import Conditioning
from syzygy.core.randomness import seed_of

STRENGTH = 1.0
"""The strength of predicted regions."""
HIDDEN = -10_000.0
"""Added to the attention scores of hidden tokens."""
SEEN = 0.05
"""A token whose chance to name an object is smaller gets no region."""

Read = Mapping[str, tuple[Float[Tensor, "B _ _"], Bool[Tensor, "B _"]]]
"""Token states and their mask, by condition."""


class PlacementConfig(Config):
    """Sizes of a placement predictor."""

    reads: dict[str, int] = Field(min_length=1)
    """The conditions that it reads, with the widths of their token states."""
    width: int = Field(default=96, gt=0)
    """Width of the network; a multiple of 32."""
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
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in config.reads.items()})
        heads = max(config.width // 32, 1)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(config.width, heads, config.width // heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.side**2 + 1)

    def forward(self, read: Read) -> dict[str, Float[Tensor, "B _ P_and_1"]]:
        """Logits of the cells in which the object lies that a token names, and last of naming none. Hidden tokens have no influence."""
        names = [name for name in self.config.reads if name in read]
        assert names, f"reads {list(self.config.reads)}, given {list(read)}"
        tokens, masks = [], []
        for name in names:
            states, mask = read[name]
            states = states.masked_fill(~mask[..., None], 0.0)
            tokens.append(self.inputs[name](self.norms[name](states)))
            masks.append(mask)
        x, bias = torch.cat(tokens, 1), torch.where(torch.cat(masks, 1), 0.0, HIDDEN)[:, None]
        for block in self.blocks:
            x = block(x, attention_mask=bias.to(x.dtype))
        parts = self.out(self.norm(x)).split([mask.shape[1] for mask in masks], 1)
        return dict(zip(names, parts, strict=True))

    def regions(self, read: Read) -> dict[str, Float[Tensor, "B _ side side"]]:
        """A region for each token, from 0 to 1: where its object is expected rather than the others of the prompt.

        With p of a token over the cells and the mean p̄ over all that name objects, it is p / p̄ − 1 where that is positive, at most 1. So one
        object, or two without a relation, get none.
        """
        logits = self(read)
        named = {name: 1 - one.float().softmax(-1)[..., -1] for name, one in logits.items()}
        named = {name: torch.where(read[name][1] & (one > SEEN), one, 0.0) for name, one in named.items()}
        cells = {name: one[..., :-1].float().softmax(-1) for name, one in logits.items()}
        total = torch.stack([one.sum(1) for one in named.values()]).sum(0).clamp_min(SEEN)
        mean = torch.stack([(named[name][..., None] * cells[name]).sum(1) for name in cells]).sum(0) / total[:, None]
        side = self.config.side
        return {
            name: ((cells[name] / mean[:, None].clamp_min(1e-6) - 1).clamp(0, 1) * named[name][..., None]).unflatten(
                -1, (side, side)
            )
            for name in cells
        }

    @torch.no_grad()
    def placed(self, conditioning: Conditioning, strength: float, drawn: Sequence[int] = ()) -> Conditioning:
        """The conditions with the predicted regions, times `strength`. A sample that lacks a condition is predicted from its others.

        Args:
            drawn: the samples that have regions already, and keep these.
        """
        read = {}
        for name in self.config.reads:
            condition = conditioning.conditions.get(name)
            if condition is not None and condition.states is not None and condition.mask is not None:
                read[name] = condition.states, condition.mask & condition.present[:, None]
        if not read or not strength:
            return conditioning
        conditions = dict(conditioning.conditions)
        for name, found in self.regions(read).items():
            maps, own = strength * found, conditions[name].region_maps
            if drawn:
                maps[list(drawn)] = 0
            if own is not None:
                maps = own + F.interpolate(maps, own.shape[-2:])
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
    logits: Float[Tensor, "B T P_and_1"],
    mask: Bool[Tensor, "B T"],
    words: Tensor,
    mentions: Tensor,
) -> Float[Tensor, ""]:
    """Cross-entropy between the predicted cells and those of the object that a token names, a mean over the tokens.

    Args:
        words: the mention that each token names, −1 for others [B T].
        mentions: the mention of the object in each cell, negative where there is none [B P].

    A token whose object lies in no cell is left out.
    """
    lies = (mentions[:, None] == words[..., None]) & (words >= 0)[..., None]
    wanted = torch.cat([lies, (words < 0)[..., None]], -1).float()
    total = wanted.sum(-1, keepdim=True)
    counted = mask & (total[..., 0] > 0)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), (wanted / total.clamp_min(1)).flatten(0, 1), reduction="none"
    )
    return (losses * counted.flatten()).sum() / counted.sum().clamp_min(1)
