"""The starter's decoder, trained on the embedded world beside a frozen CLIP and a frozen autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from syzygy.config import Config
from syzygy.diffusion.decoder import DecoderConfig, SlotConfig, UNetConfig
from syzygy.hub.autoencoder import Autoencoder
from syzygy.hub.clip import Clip
from syzygy.hub.unet import build_decoder, save_decoder
from syzygy.rng import Draw, seed_of
from syzygy.runs.common import RunResult, provenance, reporter
from syzygy.train.decoder import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.train.loop import fit
from syzygy.train.precision import autocast, precision_on
from syzygy.train.schedule import LoopConfig
from syzygy.types import Conditioning, image_condition, text_condition
from syzygy.world import source
from syzygy.world.language.base import Length

SCALE_PAIRS = 1024
VALIDATION_PICTURES = 256


class DecoderRun(Config):
    """Everything that makes a decoder of the embedded world."""

    backbone: UNetConfig
    """The U-Net."""
    cross_attention_width: int = 128
    """Width of the tokens that the U-Net attends to."""
    vector_width: int = 128
    """Width of the vector that joins the time embedding."""
    image_tokens: int = 4
    """Cross-attention tokens made of the image embedding."""
    medium_captions: float = 0.1
    """Part of the batches whose captions open with other sentences."""
    task: DecoderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, scenes and noise follow from it."""


def train(run: DecoderRun, clip: Clip, autoencoder: Autoencoder, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`, beside frozen CLIP and autoencoder on `device`; the finished one is `out/decoder`, fp16."""
    beside = {"clip": clip.fingerprint(), "autoencoder": autoencoder.fingerprint()}
    precision = precision_on(device)
    encode = Encoding(clip, autoencoder, precision)
    sample = encode(source.pairs(seed_of(run.seed, "decoder scale"), 0, SCALE_PAIRS))
    channels, size, _ = autoencoder.latent_shape
    slots = (
        SlotConfig(name="image", pooled_width=clip.width, pooled_tokens=run.image_tokens),
        SlotConfig(name="text", token_width=clip.width, pooled_width=clip.width),
    )
    config = DecoderConfig(
        slots=slots,
        cross_attention_width=run.cross_attention_width,
        vector_width=run.vector_width,
        size=size,
        channels=channels,
        backbone=run.backbone,
    )
    decoder = build_decoder(config, seed=run.seed).to(device)
    for name, condition in sample.conditioning.conditions.items():
        assert condition.pooled is not None
        decoder.set_scale(name, condition.pooled.square().mean().sqrt().item())

    batches = encode.stream(run.task.pictures, run.medium_captions, run.seed)
    task = DecoderTask(decoder, batches, [encode.unseen(run.seed)], run.task, run.seed, precision)
    settings = run.model_dump(mode="json") | beside
    result = fit(task, run.loop, out, reporter=reporter("decoder", run.task.batch_size), run=settings)
    last = result.history[-1]
    metrics = {key.removeprefix("validation/"): value for key, value in last.items() if key.startswith("validation/")}
    record = provenance("decoder", run, result, result.steps * run.task.batch_size, metrics)
    save_decoder(decoder, out / "decoder", record | beside)
    return RunResult(out / "decoder", metrics, result.history)


@dataclass(frozen=True)
class Encoding:
    """Pairs → what a decoder is trained on: pictures' latents with both CLIP embeddings of each pair."""

    clip: Clip
    autoencoder: Autoencoder
    precision: torch.dtype | None = None
    """What the frozen networks run in; their answers are fp32."""

    @torch.no_grad()
    def __call__(self, found: list[source.Pair]) -> DecoderBatch:
        images = source.pictures(found, self.autoencoder.image_size, self.clip.device)
        with autocast(self.clip.device, self.precision):
            features = self.clip.encode_text([p.caption.text for p in found])
            conditions = {"image": image_condition(self.clip.encode_image(images)), "text": text_condition(features)}
            return DecoderBatch(self.autoencoder.encode(images), Conditioning(conditions))

    def stream(self, number: int, medium: float, seed: int) -> Callable[[int], DecoderBatch]:
        """Step → `number` pictures of the world, the same again for the same step; `medium` is the part with longer captions."""

        def batches(step: int) -> DecoderBatch:
            length: Length = "medium" if Draw(seed, "decoder step", step).chance(medium) else "short"
            return self(source.pairs(seed_of(seed, "decoder"), step * number, number, length=length))

        return batches

    def unseen(self, seed: int) -> DecoderBatch:
        """Pictures that no step sees, for validation."""
        return self(source.pairs(seed_of(seed, "decoder validation"), 0, VALIDATION_PICTURES))
