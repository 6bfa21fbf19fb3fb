"""A small conv-transformer hybrid as the decoder's backbone: convolutions at the latents' resolution around a transformer on patches.

Legend: B samples, L latent channels, H × W latents, C width of the tokens, T tokens of all conditions, P patches, D width of a patch,
N heads, V width of the pooled vector.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from syzygy.decoder.network import DecoderConfig, HybridConfig
from syzygy.decoder.recording import RecordingBackbone
from syzygy.regions import region_bias as regions
from syzygy.regions.region_bias import RegionBias

FREQUENCIES = 32
"""Sines and cosines of the noise level; their frequencies rise from 1 to 100 as c_noise moves by 1/2."""
HIDDEN = -1e4
"""Added to the scores of hidden tokens: exp of it is 0 in bf16 and in fp32."""


class HybridBackbone(RecordingBackbone):
    """The `Backbone` contract on a hybrid: convolutions → patches → transformer blocks with cross-attention → convolutions, with a skip.

    Every operation follows the precision of its input, so that a pass under autocast stays in bf16 from the first convolution to the last.
    Norms of tokens have no parameters, and attention is written out: on a CPU these have fast backward passes in bf16, unlike norms with
    parameters and fused attention.
    """

    frequencies: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        sizes = config.backbone
        assert isinstance(sizes, HybridConfig)
        width, channels, patch = sizes.width, sizes.channels, sizes.patch
        self.patch, self.depth, self.feature_width = patch, sizes.depth, width
        self.level_in = nn.Linear(2 * FREQUENCIES, width)
        self.level_hidden = nn.Linear(width, width)
        self.vector_in = nn.Linear(config.vector_width, width)
        self.shifts = nn.Linear(width, sizes.depth * width)
        self.conv_shifts = nn.Linear(width, 2 * channels)
        self.conv_in = nn.Conv2d(config.channels, channels, 3, padding=1)
        self.convs = nn.ModuleList(_ConvBlock(channels, sizes.norm_groups) for _ in range(2))
        self.patches_in = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn((config.size // patch) ** 2, width))
        self.context_blocks = nn.ModuleList(
            _ContextBlock(config.cross_attention_width, sizes) for _ in range(sizes.context_depth)
        )
        self.blocks = nn.ModuleList(_Block(config.cross_attention_width, sizes) for _ in range(sizes.depth))
        self.patches_out = nn.Linear(width, channels * patch**2)
        self.conv_out = nn.Conv2d(channels, config.channels, 3, padding=1)
        # F starts as zero, so the loss starts at 1 at every noise level (EDM, section 5).
        for layer in (self.shifts, self.conv_out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        frequencies = torch.logspace(0, 2, FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "B L H W"],
        c_noise: Float[Tensor, "B"],
        tokens: Float[Tensor, "B T C"],
        mask: Bool[Tensor, "B T"],
        vector: Float[Tensor, "B V"],
        region_bias: RegionBias | None = None,
    ) -> Float[Tensor, "B L H W"]:
        """Latents of the same shape. Hidden tokens have no influence; each row of `mask` must show at least one."""
        angles = 2 * c_noise[:, None] * self.frequencies
        level = F.silu(self.level_in(torch.cat([angles.sin(), angles.cos()], -1)))
        level = F.silu(self.level_hidden(level) + self.vector_in(vector))
        shifts = self.shifts(level).unflatten(-1, (self.depth, 1, -1)).unbind(1)
        first, last = self.conv_shifts(level)[:, :, None, None].chunk(2, 1)
        fine = self.convs[0](self.conv_in(x), first)
        patches = self.patches_in(F.pixel_unshuffle(fine, self.patch).flatten(2).transpose(1, 2))
        patches = patches + self.positions.to(patches.dtype)
        hidden = torch.zeros(mask.shape, dtype=patches.dtype, device=mask.device).masked_fill(~mask, HIDDEN)
        context = tokens.to(patches.dtype)
        for block in self.context_blocks:
            context = block(context, hidden)
        context, recorded = _normalized(context), self._recorded
        for number, (block, shift) in enumerate(zip(self.blocks, shifts, strict=True)):
            seen = None if recorded is None or number == 0 else recorded.attention
            patches = block(patches, shift, context, hidden, region_bias, seen)
            if recorded is not None and number == self.depth // 2:
                recorded.features = _normalized(patches)
        grid = x.shape[2] // self.patch, x.shape[3] // self.patch
        coarse = self.patches_out(_normalized(patches)).transpose(1, 2).unflatten(2, grid)
        return self.conv_out(F.relu(self.convs[1](fine + F.pixel_shuffle(coarse, self.patch), last)))


class _ConvBlock(nn.Module):
    """A residual block of two convolutions; the noise level and the pooled vector shift the normalised features."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B c H W"], shift: Float[Tensor, "B c 1 1"]) -> Float[Tensor, "B c H W"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(self.norm(x) + shift))))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = _small(nn.Linear(width, width, bias=False))

    def forward(self, x: Float[Tensor, "B L D"], hidden: Float[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        q, k, v = (_heads(y, self.heads) for y in self.to_qkv(x).chunk(3, -1))
        return self.to_out(_joined(torch.bmm(_attention(q, k, hidden), v), self.heads))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context_width, 2 * width, bias=False)
        self.to_out = _small(nn.Linear(width, width, bias=False))

    def forward(
        self,
        x: Float[Tensor, "B P D"],
        context: Float[Tensor, "B T C"],
        hidden: Float[Tensor, "B T"],
        bias: RegionBias | None,
        seen: list[Tensor] | None,
    ) -> Float[Tensor, "B P D"]:
        q = _heads(self.to_q(x), self.heads)
        k, v = (_heads(y, self.heads) for y in self.to_kv(context).chunk(2, -1))
        if bias is None:
            attention = _attention(q, k, hidden)
            if seen is not None:
                seen.append(attention[:: self.heads])
            return self.to_out(_joined(torch.bmm(attention, v), self.heads))
        if seen is not None:
            seen.append(_attention(q[:: self.heads], k[:: self.heads], hidden))
        q, k, v = (y.unflatten(0, (-1, self.heads)) for y in (q, k, v))
        read = regions.attention(q, k, v, bias, hidden[:, None, None])
        return self.to_out(read.transpose(1, 2).flatten(2))


class _ContextBlock(nn.Module):
    """Refines the tokens of all conditions together: each reads all others that are visible."""

    def __init__(self, width: int, sizes: HybridConfig) -> None:
        super().__init__()
        self.attn1 = _SelfAttention(width, sizes.heads)
        self.ff = _feed_forward(width, sizes.mlp_ratio, bias=False)

    def forward(self, x: Float[Tensor, "B T C"], hidden: Float[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        x = x + self.attn1(_normalized(x), hidden)
        return x + self.ff(_normalized(x))


class _Block(nn.Module):
    """Self-attention, cross-attention and feed-forward on the patches, before a shift by the noise level and the pooled vector."""

    def __init__(self, context_width: int, sizes: HybridConfig) -> None:
        super().__init__()
        self.attn1 = _SelfAttention(sizes.width, sizes.heads)
        self.attn2 = _CrossAttention(sizes.width, context_width, sizes.heads)
        self.ff = _feed_forward(sizes.width, sizes.mlp_ratio, bias=True)

    def forward(
        self,
        x: Float[Tensor, "B P D"],
        shift: Float[Tensor, "B 1 D"],
        context: Float[Tensor, "B T C"],
        hidden: Float[Tensor, "B T"],
        bias: RegionBias | None,
        seen: list[Tensor] | None,
    ) -> Float[Tensor, "B P D"]:
        x = x + shift
        x = x + self.attn1(_normalized(x))
        x = x + self.attn2(_normalized(x), context, hidden, bias, seen)
        return x + self.ff(_normalized(x))


def _feed_forward(width: int, ratio: int, *, bias: bool) -> nn.Sequential:
    out = _small(nn.Linear(ratio * width, width, bias=False))
    return nn.Sequential(nn.Linear(width, ratio * width, bias=bias), nn.ReLU(), out)


def _small(layer: nn.Linear) -> nn.Linear:
    """Halves the initial weights of a layer that adds to a residual stream."""
    with torch.no_grad():
        layer.weight.mul_(0.5)
    return layer


def _normalized(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    return F.layer_norm(x, x.shape[-1:])


def _heads(x: Float[Tensor, "B L D"], heads: int) -> Float[Tensor, "BN L E"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _joined(x: Float[Tensor, "BN L E"], heads: int) -> Float[Tensor, "B L D"]:
    return x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def _attention(
    q: Float[Tensor, "BN L E"], k: Float[Tensor, "BN T E"], hidden: Float[Tensor, "B T"] | None
) -> Float[Tensor, "BN L T"]:
    """softmax(QKᵀ/√E), without the hidden keys."""
    scale = 1 / math.sqrt(q.shape[-1])
    if hidden is None:
        return torch.bmm(q * scale, k.transpose(1, 2)).softmax(-1)
    bias = hidden[:, None].repeat_interleave(len(q) // len(hidden), 0)
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)
