"""Paint-with-words in diffusers' U-Nets: attention processors that wrap the existing ones. No class is patched.

Legend: B samples, P prompts, T tokens, N heads, L positions, K tokens of the context, C channels, h × w latent positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from syzygy.clip.tokenization import Tokenized, tokenized
from syzygy.core.contracts import Guide, Region, Sampling
from syzygy.core.errors import UserError
from syzygy.core.offload import SequentialOffload
from syzygy.regions import region_bias
from syzygy.regions.phrases import check_read, region_maps, resized
from syzygy.regions.region_bias import REGION_STRENGTH, RegionBias

PLAIN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
ADDED = (
    "AttnAddedKVProcessor",
    "AttnAddedKVProcessor2_0",
    "SlicedAttnAddedKVProcessor",
    "XFormersAttnAddedKVProcessor",
)
"""Processors that compute the same function, each in its own way. Others add something that would be lost with a region bias."""
NOISIEST = 4096.0
"""Stands for σ where a schedule starts from pure noise and σ is infinite, as in diffusers' Euler scheduler."""


@dataclass(frozen=True)
class AttentionRecord:
    """Keeps the cross-attention of the first head, without the bias of regions, of layers at one resolution."""

    kept: list[Float[Tensor, "B L K"]]
    positions: int
    """Of the resolution; other layers are left out."""

    def add(self, attn: Any, x_BLC: Tensor, context_BKC: Tensor, mask_B1K: Tensor | None) -> None:
        """The attention of a layer, computed again for the first head."""
        if x_BLC.shape[1] != self.positions:
            return
        q, k = (y.unflatten(-1, (attn.heads, -1))[..., 0, :] for y in (attn.to_q(x_BLC), attn.to_k(context_BKC)))
        scores = q @ k.transpose(1, 2) * attn.scale
        self.kept.append((scores if mask_B1K is None else scores + mask_B1K).softmax(-1))


class RegionAttnProcessor:
    """Computes cross-attention with a region bias, and leaves every other call to the processor that it wraps."""

    def __init__(self, plain: Any) -> None:
        kind = type(plain).__name__
        if kind not in (*PLAIN, *ADDED):
            raise UserError(
                f"attention processor {kind} does not support regions; supported are {', '.join((*PLAIN, *ADDED))}. Unload what set it (an "
                "IP-Adapter, old LoRA layers, fused projections) first."
            )
        self.plain = plain
        self.biased = _shared_attention if kind in ADDED else _cross_attention

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        region_bias: RegionBias | None = None,
        recorded: "AttentionRecord | None" = None,
        **more: Any,
    ) -> Tensor:
        """As diffusers calls a processor; `region_bias` and `recorded` come in `cross_attention_kwargs`."""
        if recorded is not None and encoder_hidden_states is not None:
            recorded.add(attn, hidden_states, encoder_hidden_states, attention_mask)
        if region_bias is None or encoder_hidden_states is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **more)
        return self.biased(attn, hidden_states, encoder_hidden_states, attention_mask, region_bias)


def add_region_processors(unet: nn.Module) -> None:
    """Let a U-Net, or an ensemble of them, take a `region_bias` in its `cross_attention_kwargs`; calls without one do not change.

    Raises:
        UserError: an attention processor that is not supported.
    """
    for module in _attentions(unet):
        if not isinstance(module.processor, RegionAttnProcessor):
            module.set_processor(RegionAttnProcessor(module.processor))
    for visitors in _one_at_a_time(unet):
        visitors.each(add_region_processors)


def remove_region_processors(unet: nn.Module) -> None:
    """Undo `add_region_processors`."""
    for module in _attentions(unet):
        if isinstance(module.processor, RegionAttnProcessor):
            module.set_processor(module.processor.plain)
    for visitors in _one_at_a_time(unet):
        visitors.each(remove_region_processors)


def _attentions(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if hasattr(module, "set_processor")]


def _one_at_a_time(unet: nn.Module) -> list[SequentialOffload]:
    return [module for module in unet.modules() if isinstance(module, SequentialOffload)]


def _cross_attention(
    attn: Any,
    x_BLC: Tensor,
    context_BKC: Tensor,
    mask_B1K: Tensor | None,
    bias: RegionBias,
) -> Tensor:
    """As `AttnProcessor2_0` of a cross-attention within a transformer block."""
    assert attn.group_norm is None and attn.spatial_norm is None and not attn.residual_connection
    if attn.norm_cross:
        context_BKC = attn.norm_encoder_hidden_states(context_BKC)
    q, k, v = (_heads(attn, y) for y in (attn.to_q(x_BLC), attn.to_k(context_BKC), attn.to_v(context_BKC)))
    q, k = (y if norm is None else norm(y) for y, norm in ((q, attn.norm_q), (k, attn.norm_k)))
    read = _partly_biased(q, k, v, bias, mask_B1K)
    return attn.to_out[1](attn.to_out[0](read)) / attn.rescale_output_factor


def _shared_attention(
    attn: Any,
    x_BCHW: Tensor,
    context_BKC: Tensor,
    mask_B1K: Tensor | None,
    bias: RegionBias,
) -> Tensor:
    """As `AttnAddedKVProcessor2_0`: one softmax over the context's keys and the image's own.

    The bias applies to the words' keys, and their largest score is its scale. eDiff-I takes the maximum over the scores of a
    cross-attention, which here are those of the text; the image's own keys come from other projections, so their scores are no scale for words.
    """
    x = x_BCHW.flatten(2).transpose(1, 2)
    if attn.norm_cross:
        context_BKC = attn.norm_encoder_hidden_states(context_BKC)
    x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    keys, values = [attn.add_k_proj(context_BKC)], [attn.add_v_proj(context_BKC)]
    if not attn.only_cross_attention:
        keys, values = [*keys, attn.to_k(x)], [*values, attn.to_v(x)]
        mask_B1K = None if mask_B1K is None else F.pad(mask_B1K, (0, x.shape[1]))
    q, k, v = (_heads(attn, y) for y in (attn.to_q(x), torch.cat(keys, 1), torch.cat(values, 1)))
    read = _partly_biased(q, k, v, bias, mask_B1K)
    read = attn.to_out[1](attn.to_out[0](read))
    return read.transpose(1, 2).reshape(x_BCHW.shape) + x_BCHW


def _heads(attn: Any, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B N L D"]:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _partly_biased(
    q: Tensor, k: Tensor, v: Tensor, bias: RegionBias, mask_B1K: Tensor | None
) -> Float[Tensor, "B L C"]:
    """Samples without a bias, which come first, are computed as in diffusers, to the bit."""
    first = bias.negatives
    mask = None if mask_B1K is None else mask_B1K[:, None]
    own = None if mask is None else mask[first:]
    read = region_bias.attention(q[first:], k[first:], v[first:], bias, own)
    if first:
        own = None if mask is None else mask[:first]
        plain = F.scaled_dot_product_attention(q[:first], k[:first], v[:first], attn_mask=own)
        read = torch.cat([plain, read])
    return read.transpose(1, 2).flatten(2)


def combined_region_maps(
    prompts: Sequence[str],
    spans: Sequence[Int[Tensor, "P T 2"]],
    regions: Sequence[Sequence[Region]],
    strength: float,
    size: tuple[int, int],
) -> Float[Tensor, "P T h w"] | None:
    """w'·A for a U-Net that reads the states of one text encoder, or of several side by side in the channels of each token.

    With several (Stable Diffusion XL) a phrase is located in each one's tokens. Where those differ, a token is a phrase's by the share of
    encoders for which it is.

    Args:
        spans: of each encoder: which characters its tokens stand for.
        size: of the maps: the latents'.

    Returns:
        None where no region has any strength: the result is then the same to the bit as without regions.

    Raises:
        UserError: as `region_maps`; a phrase that every encoder has cut off.
    """
    check_read(prompts, spans, regions)
    small = [[resized(one, size) for one in own] for own in regions]
    found = torch.stack([region_maps(prompts, one, small, strength) for one in spans]).mean(0)
    return found if found.any() else None


def region_bias_of(
    guide: Guide,
    sampling: Sampling,
    spans: Sequence[Int[Tensor, "P T 2"] | None],
    size: tuple[int, int],
    device: torch.device,
    *,
    start: int = 0,
    negatives: int = 0,
) -> RegionBias | None:
    """The region bias of a guide for a published decoder's U-Net, before `at_level`. None where there are no regions.

    Args:
        spans: of each text encoder; None where its states do not belong to single words.
        size: of the latents.
        start: tokens before the words' own.
        negatives: samples of the negative branch, which come before those of the guide.

    Raises:
        UserError: as `combined_region_maps`; the decoder reads no text, or an encoder's states do not belong to single words.
    """
    if guide.regions is None or not any(guide.regions):
        return None
    if guide.texts is None:
        raise UserError("regions need words that the decoder reads: let it read the text (conditions image,text).")
    known = [one for one in spans if one is not None]
    if len(known) < len(spans):
        raise UserError(
            "regions need a text encoder with a state for each word, and the states of an adapter do not belong to single words: "
            "leave the text encoder out."
        )
    strength = REGION_STRENGTH if sampling.region_strength is None else sampling.region_strength
    maps = combined_region_maps(guide.texts, known, guide.regions, strength, size)
    if maps is None:
        return None
    weights = maps.to(device)
    return RegionBias(weights, size, weights.new_zeros(len(weights)), start, negatives)


def region_kwargs(bias: RegionBias | None, sigma: float) -> dict[str, Any] | None:
    """A U-Net's `cross_attention_kwargs` at a noise level."""
    return None if bias is None else {"region_bias": at_level(bias, sigma)}


def padded_tokens(
    tokenizer: Any, prompts: Sequence[str], *, most: int | None = None, control: bool = False
) -> Tokenized:
    """Tokens of prompts, padded to the longest that the encoder reads as in diffusers' pipelines, and truncated there with a warning.

    Args:
        most: tokens that the encoder reads; None is the tokenizer's maximum.
        control: whether special tokens that a prompt spells out act as such, as in diffusers' pipelines.
    """
    most = int(tokenizer.model_max_length if most is None else most)
    pad = tokenizer.pad_token_id
    around = {"before": [tokenizer.bos_token_id], "after": [tokenizer.eos_token_id], "pad": pad}
    found = tokenized(tokenizer, list(prompts), most=most, **around, stacklevel=5, control=control)
    room = most - found.ids.shape[1]
    ids, mask = F.pad(found.ids, (0, room), value=pad), F.pad(found.mask, (0, room))
    return Tokenized(ids, mask, F.pad(found.spans, (0, 0, 0, room)))


def at_level(bias: RegionBias, sigma: float) -> RegionBias:
    """The same at another noise level. It is a tensor, so that compiled networks are not compiled again."""
    factor = region_bias.noise_factor(torch.tensor(min(sigma, NOISIEST), dtype=torch.float64)).item()
    return replace(bias, level=torch.full_like(bias.level, factor))
