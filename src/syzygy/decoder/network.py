"""The decoder's network: noisy latents and any subset of embeddings in, EDM's F out (several embeddings: eDiff-I).

It owns the condition slots; the backbone behind them is passed in.
Shapes: B batch, L latent channels, T tokens of all slots, C cross-attention width, V vector width, E pooled width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from syzygy.core.config import Config
from syzygy.core.contracts import Condition, Conditioning
from syzygy.core.errors import UserError, unknown
from syzygy.regions.region_bias import RegionBias, noise_factor

STATES_GAIN = 3.0  # standardised states then make tokens as large as trained ones of image embeddings: a spread of 1.7
NULL_STD = 0.5  # about the spread of a fresh linear layer's output on unit-variance input: null tokens start as equals


class SlotConfig(Config):
    """One embedding the decoder can read. It reads only what is declared here, whatever else a condition carries."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_]+$")
    """Name of the condition, such as `image`, `text`, `t5`."""
    token_width: int | None = Field(default=None, gt=0)
    """Width of the token states; null if the embedding has none."""
    standardized: bool = False
    """Normalise each channel of the token states to zero mean and unit variance over the training tokens. Otherwise the part that all tokens
    share (three quarters of the energy of a small T5's states) hides the differences between words."""
    pooled_width: int | None = Field(default=None, gt=0)
    """Width of the pooled vector; null where the embedding has none."""
    pooled_tokens: int = Field(default=0, ge=0)
    """How many cross-attention tokens the pooled vector becomes, in addition to its part in the time embedding."""

    @model_validator(mode="after")
    def _reads_something(self) -> "SlotConfig":
        if self.token_width is None and self.pooled_width is None:
            raise ValueError(f"slot {self.name!r} reads nothing: set token_width, pooled_width, or both")
        if self.pooled_tokens and self.pooled_width is None:
            raise ValueError(f"slot {self.name!r}: pooled_tokens needs a pooled_width")
        if self.standardized and self.token_width is None:
            raise ValueError(f"slot {self.name!r}: standardized needs a token_width")
        return self


class UNetConfig(Config):
    """Size of a U-Net backbone; one entry per resolution, finest first."""

    channels: tuple[int, ...] = Field(default=(64, 96), min_length=1)
    """Channels at each resolution; every further one halves height and width."""
    layers_per_block: int = Field(default=1, ge=1)
    """Residual blocks per resolution on the way down (one more on the way up)."""
    attention: tuple[bool, ...] = (False, True)
    """Whether a resolution has self- and cross-attention. The middle block always has both."""
    head_width: int = Field(default=32, gt=0)
    """Channels of one attention head."""
    norm_groups: int = Field(default=16, gt=0)
    """Groups of the group normalisation; divides every number of channels."""

    @model_validator(mode="after")
    def _fits_together(self) -> "UNetConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries, channels {len(self.channels)}: give one each"
            )
        for width, attends in zip(self.channels, (*self.attention[:-1], True), strict=True):
            if width % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide {width} channels")
            if attends and width % self.head_width:
                raise ValueError(f"head_width {self.head_width} does not divide {width} channels")
        return self

    @property
    def factor(self) -> int:
        """Height and width of the latents must be multiples of this."""
        return 2 ** (len(self.channels) - 1)

    @property
    def finest_attention(self) -> int:
        """The index of the finest resolution that has attention besides the middle block's; of the coarsest where none has."""
        return self.attention.index(True) if any(self.attention) else len(self.attention) - 1

    @property
    def patch(self) -> int:
        """Height and width, in latents, of the positions of that resolution."""
        return 2**self.finest_attention


class DecoderConfig(Config):
    """A decoder: its conditions, its latents, its backbone."""

    slots: tuple[SlotConfig, ...]
    """The embeddings that it can read; any subset may be present."""
    cross_attention_width: int = Field(default=128, gt=0)
    """Width of the tokens the backbone attends to."""
    vector_width: int = Field(default=128, gt=0)
    """Width of the pooled vector that joins the time embedding."""
    size: int = Field(default=16, gt=0)
    """Height and width of the latents."""
    channels: int = Field(default=4, gt=0)
    """Channels of the latents."""
    sigma_data: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Standard deviation of the clean latents; fixes the preconditioning."""
    backbone: UNetConfig = UNetConfig()
    """The U-Net."""

    @model_validator(mode="after")
    def _fits_together(self) -> "DecoderConfig":
        names = [slot.name for slot in self.slots]
        if len(set(names)) != len(names):
            raise ValueError(f"slot names must differ, got {names}")
        if self.size % self.backbone.factor:
            raise ValueError(f"size {self.size} must be a multiple of {self.backbone.factor} (the backbone's halvings)")
        return self


class Tokens(NamedTuple):
    """What the backbone reads besides the latents."""

    states_BTC: Float[Tensor, "B T C"]
    mask_BT: Bool[Tensor, "B T"]
    vector_BV: Float[Tensor, "B V"]
    maps_BTHW: Float[Tensor, "B T H W"] | None


class Slot(nn.Module):
    """Turns one condition into tokens and a vector; learned null values stand in where it is absent."""

    scale: Tensor
    states_mean: Tensor
    states_std: Tensor

    def __init__(self, config: SlotConfig, cross_attention_width: int, vector_width: int) -> None:
        super().__init__()
        self.config = config
        self.null_token = nn.Parameter(NULL_STD * torch.randn(cross_attention_width))
        if config.token_width is not None:
            self.states_in = nn.Linear(config.token_width, cross_attention_width)
            if config.standardized:
                with torch.no_grad():
                    self.states_in.weight.mul_(STATES_GAIN)
                for name in ("states_mean", "states_std"):
                    self.register_buffer(name, torch.full((config.token_width,), float("nan")))
        if config.pooled_width is not None:
            # Raw CLIP embeddings have norms of 1 to 30: the RMS of the training embeddings brings them to unit
            # variance. There is no sane default, so it starts as NaN and `forward` refuses to run on it.
            self.register_buffer("scale", torch.tensor(float("nan")))
            self.vector_in = nn.Linear(config.pooled_width, vector_width)
            self.null_vector = nn.Parameter(NULL_STD * torch.randn(vector_width))
            if config.pooled_tokens:
                self.tokens_in = nn.Linear(config.pooled_width, config.pooled_tokens * cross_attention_width)
        self._scale_seen = self._statistics_seen = False  # spare a device synchronisation a forward pass

    def _checked(self, x: Tensor | None, width: int, what: str) -> Tensor:
        if x is None:
            raise UserError(
                f"condition {self.config.name!r} lacks {what}, which this decoder reads (of width {width})."
            )
        if x.shape[-1] != width:
            raise UserError(
                f"condition {self.config.name!r}: {what} have width {x.shape[-1]}, this decoder reads width {width}."
            )
        return x.to(self.null_token.dtype)

    def check_scale(self) -> None:
        """Fails when this slot needs statistics of training's embeddings, and `Decoder.set_scale` or `set_statistics` was never called."""
        if self.config.standardized and not self._statistics_seen:
            if not torch.isfinite(self.states_std).all():
                raise UserError(
                    f"the statistics of condition {self.config.name!r} are unset: call set_statistics({self.config.name!r}, states) "
                    "with some of the training states, or load trained weights."
                )
            self._statistics_seen = True
        if self.config.pooled_width is not None and not self._scale_seen:
            if not torch.isfinite(self.scale):
                raise UserError(
                    f"the scale of condition {self.config.name!r} is unset: call set_scale({self.config.name!r}, rms) "
                    "with the root mean square of the training embeddings, or load trained weights."
                )
            self._scale_seen = True

    def forward(self, condition: Condition | None, batch: int) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Token groups [B, n, C], their masks [B, n], and the vector [B, V] (None where the slot has none)."""
        self.check_scale()
        null = self.null_token.expand(batch, 1, -1)
        if condition is None:
            vector = None if self.config.pooled_width is None else self.null_vector.expand(batch, -1)
            return [null], [torch.ones(batch, 1, dtype=torch.bool, device=null.device)], vector
        present_B1 = condition.present[:, None]
        if len(present_B1) != batch:
            raise UserError(f"condition {self.config.name!r} has {len(present_B1)} samples, the images have {batch}.")
        tokens, masks, vector = [null], [~present_B1], None
        if self.config.token_width is not None:
            states = self._checked(condition.states, self.config.token_width, "token states")
            assert condition.mask is not None
            visible = condition.mask & present_B1
            if self.config.standardized:
                states = (states - self.states_mean) / self.states_std
            # Hidden values become zero before anything mixes them with others: not even NaN among them could leak.
            states = states.masked_fill(~visible[:, :, None], 0.0)
            tokens.append(self.states_in(F.layer_norm(states, states.shape[-1:])))
            masks.append(visible)
        if self.config.pooled_width is not None:
            pooled = self._checked(condition.pooled, self.config.pooled_width, "pooled vectors")
            pooled = pooled.masked_fill(~present_B1, 0.0) / self.scale
            vector = torch.where(present_B1, self.vector_in(pooled), self.null_vector)
            if self.config.pooled_tokens:
                tokens.append(self.tokens_in(pooled).unflatten(1, (self.config.pooled_tokens, -1)))
                masks.append(present_B1.expand(-1, self.config.pooled_tokens))
        return tokens, masks, vector


class Decoder(nn.Module):
    """EDM's F with condition slots; wrap it in `Preconditioned(decoder, config.sigma_data)` for a `Denoiser`.

    A slot that is missing from the conditioning is absent; so is every sample whose `present` is false: its values have
    no influence. One learned token is always visible, so that attention has something to look at.

    The backbone maps latents x [B L H W] to latents of the same shape, given c_noise [B], tokens [B T C], their mask [B T], a vector [B V]
    and, where tokens have regions, a `RegionBias`; see `backbone.UNetBackbone`.
    """

    def __init__(self, config: DecoderConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.null_token = nn.Parameter(NULL_STD * torch.randn(config.cross_attention_width))
        self.slots = nn.ModuleDict(
            {slot.name: Slot(slot, config.cross_attention_width, config.vector_width) for slot in config.slots}
        )
        self.backbone = backbone

    def has_scale(self, name: str) -> bool:
        """Whether slot `name` has its scale already."""
        slot = self.slots[name]
        assert isinstance(slot, Slot)
        return bool(torch.isfinite(slot.scale))

    def set_scale(self, name: str, rms: float) -> None:
        """Fix, before training, the root mean square (over samples and channels) of slot `name`'s pooled embeddings."""
        if name not in self.slots:
            raise unknown("condition", name, self.slots)
        slot = self.slots[name]
        assert isinstance(slot, Slot)
        if slot.config.pooled_width is None:
            raise UserError(f"condition {name!r} has no pooled vector, so no scale.")
        if not 0 < rms < float("inf"):
            raise UserError(f"the scale of condition {name!r} must be positive and finite, got {rms}.")
        assert torch.isnan(slot.scale), f"the scale of {name} is already {slot.scale}: trained weights rely on it"
        slot.scale.fill_(rms)

    def has_statistics(self, name: str) -> bool:
        """Whether slot `name` has the statistics of its token states already."""
        slot = self.slots[name]
        assert isinstance(slot, Slot)
        return bool(torch.isfinite(slot.states_mean).all())

    def set_statistics(self, name: str, states: Float[Tensor, "N C"]) -> None:
        """Fix, before training, mean and standard deviation of each channel of slot `name`'s token states, from some of training's."""
        if name not in self.slots:
            raise unknown("condition", name, self.slots)
        slot = self.slots[name]
        assert isinstance(slot, Slot)
        assert slot.config.standardized, f"condition {name} is not standardised"
        assert not self.has_statistics(name), f"the statistics of {name} are set already: trained weights rely on them"
        slot.states_mean.copy_(states.mean(0))
        spread = states.std(0)
        slot.states_std.copy_(torch.where(spread > 0, spread, 1.0))  # a constant channel carries no information

    def places(self, conditioning: Conditioning) -> dict[str, int]:
        """The position of the first token state of each condition that has some, among the tokens that the backbone reads."""
        found: dict[str, int] = {}
        place = 1  # after the token that is always visible
        for slot in self.config.slots:
            condition = conditioning.conditions.get(slot.name)
            place += 1  # the slot's null token
            if condition is not None and condition.states is not None and slot.token_width is not None:
                found[slot.name] = place
                place += condition.states.shape[1]
            place += 0 if condition is None else slot.pooled_tokens
        return found

    def tokens(self, conditioning: Conditioning, batch: int) -> Tokens:
        """The cross-attention tokens, their mask, and the pooled vector for `batch` samples."""
        for name in conditioning.conditions:
            if name not in self.slots:
                raise unknown("condition", name, self.slots)
        tokens = [self.null_token.expand(batch, 1, -1)]
        masks = [torch.ones(batch, 1, dtype=torch.bool, device=self.null_token.device)]
        vector = self.null_token.new_zeros(batch, self.config.vector_width)
        for name, slot in self.slots.items():
            slot_tokens, slot_masks, slot_vector = slot(conditioning.conditions.get(name), batch)
            tokens += slot_tokens
            masks += slot_masks
            if slot_vector is not None:
                vector = vector + slot_vector
        mask = torch.cat(masks, 1)
        places = self.places(conditioning)
        maps = {places[n]: c.region_maps for n, c in conditioning.conditions.items() if c.region_maps is not None}
        return Tokens(torch.cat(tokens, 1), mask, vector, _placed(maps, mask.shape[1]))

    def forward(
        self, x: Float[Tensor, "B L H W"], c_noise: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B L H W"]:
        """F of EDM eq. 7 for x of unit variance.

        Raises UserError on a condition that is unknown, or whose parts or widths are not those of its slot.
        """
        *read, maps = self.tokens(conditioning, len(x))
        if maps is None:
            return self.backbone(x, c_noise, *read)
        size = int(x.shape[-2]), int(x.shape[-1])
        return self.backbone(x, c_noise, *read, RegionBias(maps, size, noise_factor((4 * c_noise).exp())))


def _placed(maps: dict[int, Tensor], number: int) -> Float[Tensor, "B T H W"] | None:
    """The region maps of all slots at the places of their tokens among all `number` tokens, in the finest resolution given."""
    if not maps:
        return None
    finest = max((one.shape[-2:] for one in maps.values()), key=lambda size: size[0] * size[1])
    first = next(iter(maps.values()))
    whole = first.new_zeros(len(first), number, *finest)
    for place, one in maps.items():
        whole[:, place : place + one.shape[1]] = F.interpolate(one, finest, mode="bilinear")
    return whole
