"""The starter's decoder, trained on the embedded world with a frozen CLIP and a frozen autoencoder."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Conditioning, TextFeatures, TextStates, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import build_decoder, load_decoder, save_decoder
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.scene_regions import regions
from syzygy.regions.phrases import region_maps
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

SCALE_PAIRS = 1024
VALIDATION_PICTURES = 256
QUERIES_AND_KEYS = re.compile(r"attn2\.to_[qk]\.")
"""The queries and keys of the cross-attention, as diffusers names them."""


class CaptionMixture(Config):
    """Which parts of the batches are other than plain pairs with short captions."""

    medium_captions: float = 0.1
    """Share of the batches whose captions begin with other sentences."""
    long_captions: float = 0.0
    """Share of the batches whose captions are so long that CLIP reads none of the decisive words, and T5 all of them."""
    just_told: float = 0.0
    """Share of the batches whose scenes are fully described: one or two objects and nothing that captions omit. Words are learned sooner
    from these."""


class DecoderRun(CaptionMixture):
    """All settings of a decoder of the embedded world."""

    backbone: UNetConfig
    """The U-Net."""
    cross_attention_width: int = 128
    """Width of the tokens that the U-Net attends to."""
    vector_width: int = 128
    """Width of the vector that joins the time embedding."""
    image_tokens: int = 4
    """Number of cross-attention tokens that represent the image embedding."""
    fresh_attention: bool = False
    """When continuing from another decoder, start its attention weights again. Trained attention is nearly hard (scores of 10 to 60 before
    the softmax): tokens that it never saw get no weight and no gradient, and are not learned."""
    task: DecoderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, scenes and noise."""


def train(
    run: DecoderRun,
    clip: Clip,
    autoencoder: Autoencoder,
    out: Path,
    device: torch.device,
    *,
    t5: T5Text | None = None,
    init: Path | None = None,
) -> RunResult:
    """Train (or resume) in `out`, with frozen networks on `device`; the finished decoder is `out/decoder`, fp16.

    Args:
        t5: its token states are a further condition, `t5`.
        init: continue from this decoder; conditions that it does not read are added.

    Raises:
        UserError: `init` has other sizes or further conditions; fresh attention without `init`.
    """
    encode = Encoding(clip, autoencoder, precision_on(device), t5, painted=run.task.painted > 0)
    recorded = encode.fingerprints()
    sample = encode(scene_source.pairs(seed_of(run.seed, "decoder scale"), 0, SCALE_PAIRS))
    channels, size, _ = autoencoder.latent_shape
    slots = (
        SlotConfig(name="image", pooled_width=clip.width, pooled_tokens=run.image_tokens),
        SlotConfig(name="text", token_width=clip.width, pooled_width=clip.width),
        *([] if t5 is None else [SlotConfig(name="t5", token_width=t5.width, standardized=True)]),
    )
    config = DecoderConfig(
        slots=slots,
        cross_attention_width=run.cross_attention_width,
        vector_width=run.vector_width,
        size=size,
        channels=channels,
        backbone=run.backbone,
    )
    decoder = build_decoder(config, seed=run.seed)
    if init is not None:
        recorded["init"] = extend(decoder, init, fresh_attention=run.fresh_attention)
    elif run.fresh_attention:
        raise UserError(
            "fresh_attention is for continuing from another decoder: give one with --init, or leave it out."
        )
    for name, condition in sample.conditioning.conditions.items():
        if condition.pooled is not None and not decoder.has_scale(name):
            decoder.set_scale(name, condition.pooled.square().mean().sqrt().item())
    if t5 is not None and not decoder.has_statistics("t5"):
        read = sample.conditioning.conditions["t5"]
        assert read.states is not None and read.mask is not None
        decoder.set_statistics("t5", read.states[read.mask].cpu())
    decoder = decoder.to(device)

    batches = encode.stream(run.task.pictures, run, run.seed)
    task = DecoderTask(decoder, batches, [encode.unseen(run.seed)], run.task, run.seed, encode.precision)

    def save(folder: Path, record: dict[str, Any]) -> None:
        save_decoder(decoder, folder, record)

    return train_part(run, task, out, save, kind="decoder", recorded=recorded)


def extend(decoder: Decoder, init: Path, *, fresh_attention: bool = False) -> str:
    """Copy the weights of a decoder that reads a part of the conditions into a new one; returns the fingerprint of the former.

    Args:
        fresh_attention: do not copy the queries and keys of the cross-attention.

    Raises:
        UserError: it has other sizes, or conditions that the new one lacks.
    """
    old = load_decoder(init)
    own, weights = decoder.state_dict(), old.state_dict()
    strange = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    added = {slot.name for slot in decoder.config.slots} - {slot.name for slot in old.config.slots}
    lacking = [name for name in own.keys() - weights.keys() if name.split(".")[1] not in added]
    if strange or lacking:
        raise UserError(
            f"cannot continue from the decoder in {init}: {', '.join([*strange, *lacking][:3])} would not fit. Use the sizes that "
            "it was trained with."
        )
    kept = {name: value for name, value in weights.items() if not (fresh_attention and QUERIES_AND_KEYS.search(name))}
    decoder.load_state_dict(own | kept)
    return artifacts.fingerprint(weights)


@dataclass(frozen=True)
class Encoding:
    """Encodes pairs for the training of a decoder: latents of the images, and the conditions of each pair."""

    clip: Clip
    autoencoder: Autoencoder
    precision: torch.dtype | None = None
    """The precision of the frozen networks; their outputs are fp32."""
    t5: T5Text | None = None
    painted: bool = False
    """Whether the words for objects are painted where these are (with the strength 1)."""

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the frozen networks, by part."""
        t5 = {} if self.t5 is None else {"t5": self.t5.fingerprint()}
        return {"clip": self.clip.fingerprint(), "autoencoder": self.autoencoder.fingerprint(), **t5}

    @torch.no_grad()
    def __call__(self, found: list[scene_source.Pair]) -> DecoderBatch:
        images, texts = (
            scene_source.pictures(found, self.autoencoder.image_size, self.clip.device),
            [p.caption.text for p in found],
        )
        with autocast(self.clip.device, self.precision), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long captions are cut on purpose
            read: dict[str, TextFeatures | TextStates] = {"text": self.clip.encode_text(texts)}
            if self.t5 is not None:
                read["t5"] = self.t5.encode_states(texts)
            conditions = {"image": image_condition(self.clip.encode_image(images))}
            conditions |= {name: text_condition(states) for name, states in read.items()}
            latents = self.autoencoder.encode(images)
        if self.painted:
            draws = [Draw(0, "regions", pair.caption.text, repr(pair.scene.things)) for pair in found]
            where = [regions(pair, draw, latents.shape[-1]) for pair, draw in zip(found, draws, strict=True)]
            for name, states in read.items():
                assert states.spans is not None
                maps = region_maps(texts, states.spans, where, 1.0) if any(where) else None
                if maps is not None:
                    conditions[name] = replace(conditions[name], region_maps=maps.to(latents.device))
        return DecoderBatch(latents, Conditioning(conditions))

    def stream(self, number: int, mixture: CaptionMixture, seed: int) -> Callable[[int], DecoderBatch]:
        """Step → `number` images of the world, the same ones for the same step."""

        def batches(step: int) -> DecoderBatch:
            at, key = Draw(seed, "decoder step", step).random(), seed_of(seed, "decoder")
            longer = mixture.medium_captions + mixture.long_captions
            if longer <= at < longer + mixture.just_told:
                return self([scene_source.fully_described(key, step * number + i) for i in range(number)])
            length: Length = "medium" if at < mixture.medium_captions else "long" if at < longer else "short"
            return self(scene_source.pairs(key, step * number, number, length=length))

        return batches

    def unseen(self, seed: int) -> DecoderBatch:
        """Images that no step sees, for validation."""
        return self(scene_source.pairs(seed_of(seed, "decoder validation"), 0, VALIDATION_PICTURES))
