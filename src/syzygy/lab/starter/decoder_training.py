"""The starter's decoder, trained on the embedded world with a frozen CLIP and a frozen autoencoder."""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import UNetBackbone, build_decoder, load_decoder, save_decoder
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.supervision import PatchClassifier
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.lab.starter.decoder_data import VALUES, CaptionMixture, Encoding
from syzygy.lab.starter.world_validation import WorldValidation
from syzygy.lab.world.reader import Reader
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.loop import Task
from syzygy.training.precision import precision_on
from syzygy.training.run_records import Bar, RunResult, no_bar, train_part
from syzygy.training.schedule import LoopConfig

SCALE_PAIRS = 1024
SAMPLES = "samples"
"""Folder of the encoded scenes, in a run's."""


class DecoderRun(CaptionMixture):
    """All settings of a decoder of the embedded world."""

    backbone: UNetConfig
    """The network behind the conditions: a U-Net or a hybrid."""
    cross_attention_width: int = 128
    """Width of the tokens that the backbone attends to."""
    vector_width: int = 128
    """Width of the vector that joins the time embedding."""
    image_tokens: int = 4
    """Number of cross-attention tokens that represent the image embedding."""
    pooled_text: bool = True
    """Read CLIP's pooled text embedding in addition to the states of its tokens."""
    scenes: int = Field(default=0, ge=0)
    """Number of scenes that are rendered and encoded once and seen again with new noise; 0 makes new scenes for each step."""
    task: DecoderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, scenes and noise."""

    @model_validator(mode="after")
    def _fits_together(self) -> "DecoderRun":
        if 0 < self.scenes < self.task.pictures:
            raise ValueError(f"scenes={self.scenes} are fewer than the {self.task.pictures} images of a step")
        return self


def train(
    run: DecoderRun,
    clip: Clip,
    autoencoder: Autoencoder,
    out: Path,
    device: torch.device,
    *,
    t5: T5Text | None = None,
    init: Path | None = None,
    reader: Reader | None = None,
    samples: Path | None = None,
    bar: Bar = no_bar,
) -> RunResult:
    """Train (or resume) in `out`, with frozen networks on `device`; the finished decoder is `out/decoder`, fp16.

    Args:
        t5: its token states are a further condition, `t5`.
        init: continue from this decoder; conditions that it does not read are added.
        reader: scores images of fixed prompts in each validation; a sheet of them is in `out/sheets`.
        samples: folder of the encoded scenes, where runs with the same frozen networks can share them; `out/samples` if omitted.
        bar: shows the progress of encoding.

    Raises:
        UserError: `init` has other sizes or further conditions; the task names a condition that is not encoded.
    """
    patch = run.backbone.patch
    encode = Encoding(clip, autoencoder, precision_on(device), t5, painted=run.task.painted > 0, patch=patch)
    recorded = encode.fingerprints()
    decoder = _decoder(run, encode)
    if init is not None:
        recorded["init"] = extend(decoder, init)
    _set_statistics(
        decoder, encode([run.pair(seed_of(run.seed, "decoder scale"), i, "short") for i in range(SCALE_PAIRS)])
    )
    decoder = decoder.to(device)
    classifier = None
    if run.task.classification_weight:
        assert isinstance(decoder.backbone, UNetBackbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(run.seed, "decoder", "classifier"))
            classifier = PatchClassifier(decoder.backbone.feature_width, VALUES).to(device)

    batches = encode.stream(run.task.pictures, run, run.seed)
    if run.scenes:
        place = out / SAMPLES if samples is None else samples
        batches = encode.stored(place, run.scenes, run.task.pictures, run, run.seed, bar)
    unseen = [encode.unseen(run.seed, run)]
    denoising = DecoderTask(decoder, batches, unseen, run.task, run.seed, encode.precision, classifier=classifier)
    task: Task = denoising
    if reader is not None:
        task = WorldValidation(denoising, decoder, encode, reader.to(device), out / "sheets", run.seed)

    def save(folder: Path, record: dict[str, Any]) -> None:
        save_decoder(decoder, folder, record)

    return train_part(run, task, out, save, kind="decoder", recorded=recorded)


def _decoder(run: DecoderRun, encode: Encoding) -> Decoder:
    """A decoder with fresh weights for what is encoded."""
    channels, size, _ = encode.autoencoder.latent_shape
    width = encode.clip.width
    slots = (
        SlotConfig(name="image", pooled_width=width, pooled_tokens=run.image_tokens),
        SlotConfig(name="text", token_width=width, pooled_width=width if run.pooled_text else None),
        *([] if encode.t5 is None else [SlotConfig(name="t5", token_width=encode.t5.width, standardized=True)]),
    )
    config = DecoderConfig(
        slots=slots,
        cross_attention_width=run.cross_attention_width,
        vector_width=run.vector_width,
        size=size,
        channels=channels,
        backbone=run.backbone,
    )
    return build_decoder(config, seed=run.seed)


def _set_statistics(decoder: Decoder, sample: DecoderBatch) -> None:
    """Scales of pooled embeddings and statistics of token states, for slots that need them and have none yet."""
    for slot in decoder.config.slots:
        condition = sample.conditioning.conditions[slot.name]
        if slot.pooled_width is not None and not decoder.has_scale(slot.name):
            assert condition.pooled is not None
            decoder.set_scale(slot.name, condition.pooled.square().mean().sqrt().item())
        if slot.standardized and not decoder.has_statistics(slot.name):
            assert condition.states is not None and condition.mask is not None
            decoder.set_statistics(slot.name, condition.states[condition.mask].cpu())


def extend(decoder: Decoder, init: Path) -> str:
    """Copy the weights of a decoder that reads a part of the conditions into a new one; returns the fingerprint of the former.

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
    decoder.load_state_dict(own | weights)
    return artifacts.fingerprint(weights)
