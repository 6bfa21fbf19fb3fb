"""The starter's decoder, trained on the embedded world beside a frozen CLIP."""

from pathlib import Path

import torch

from syzygy.config import Config
from syzygy.diffusion.decoder import DecoderConfig, SlotConfig, UNetConfig
from syzygy.diffusion.preconditioning import Prediction
from syzygy.hub.clip import Clip
from syzygy.hub.unet import build_decoder, save_decoder
from syzygy.rng import Draw, seed_of
from syzygy.runs.common import RunResult, precision_on, provenance, reporter
from syzygy.train.decoder import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.train.loop import fit
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
    prediction: Prediction = "clean"
    """What the network predicts: "clean" pictures (a small U-Net on 48 planes cannot carry noise through), or "edm"."""
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


def train(run: DecoderRun, clip_folder: Path, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`, beside the frozen CLIP of `clip_folder`; the finished one is `out/decoder`, fp16."""
    clip = Clip.from_pretrained(clip_folder).to(device).requires_grad_(False)
    sample = encode(clip, source.pairs(seed_of(run.seed, "decoder scale"), 0, SCALE_PAIRS), device)
    slots = (
        SlotConfig(name="image", pooled_width=clip.width, pooled_tokens=run.image_tokens),
        SlotConfig(name="text", token_width=clip.width, pooled_width=clip.width),
    )
    config = DecoderConfig(
        slots=slots,
        cross_attention_width=run.cross_attention_width,
        vector_width=run.vector_width,
        image_size=clip.image_size,
        # Mostly light pictures: about the origin they spread further than the 0.5 of photographs.
        sigma_data=round(sample.images.square().mean().sqrt().item(), 2),
        prediction=run.prediction,
        backbone=run.backbone,
    )
    decoder = build_decoder(config, seed=run.seed).to(device)
    for name, condition in sample.conditioning.conditions.items():
        assert condition.pooled is not None
        decoder.set_scale(name, condition.pooled.square().mean().sqrt().item())

    def batches(step: int) -> DecoderBatch:
        long = Draw(run.seed, "decoder step", step).chance(run.medium_captions)
        length: Length = "medium" if long else "short"
        size = run.task.batch_size
        return encode(clip, source.pairs(seed_of(run.seed, "decoder"), step * size, size, length=length), device)

    unseen = source.pairs(seed_of(run.seed, "decoder validation"), 0, VALIDATION_PICTURES)
    precision = "bf16" if precision_on(device) else "fp32"
    task = DecoderTask(decoder, batches, [encode(clip, unseen, device)], run.task, run.seed, precision)
    settings = run.model_dump(mode="json") | {"clip": clip.fingerprint()}
    result = fit(task, run.loop, out, reporter=reporter("decoder", run.task.batch_size), run=settings)
    last = result.history[-1]
    metrics = {key.removeprefix("validation/"): value for key, value in last.items() if key.startswith("validation/")}
    record = provenance("decoder", run, result, result.steps * run.task.batch_size, metrics)
    save_decoder(decoder, out / "decoder", record | {"clip": clip.fingerprint()})
    return RunResult(out / "decoder", metrics, result.history)


def encode(clip: Clip, found: list[source.Pair], device: torch.device) -> DecoderBatch:
    """Pictures in [-1, 1] with both of their CLIP embeddings."""
    images = source.pictures(found, clip.image_size, device)
    features = clip.encode_text([p.caption.text for p in found])
    conditions = {"image": image_condition(clip.encode_image(images)), "text": text_condition(features)}
    return DecoderBatch(2 * images - 1, Conditioning(conditions))
