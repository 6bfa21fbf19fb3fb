"""Stage 2 of an adapter with a decoder instead of the prior, on the embedded world: the paper's own second stage (arXiv 2405.12914).

Adapter and decoder learn to denoise images, with a frozen CLIP and a frozen autoencoder; the decoder reads the adapter's token states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Conditioning, TextStates, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.decoder.network import Decoder
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.lab.starter.world_captions import languages_for
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.prior.prior_loading import check_trained_with
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.adapter_folders import PART, PreviousStage
from syzygy.text_encoders.llm import Llm
from syzygy.training.parallel import Ranks
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

SLOT = "text"
"""The decoder's condition that reads the adapter's token states."""
VALIDATION_PICTURES = 64


class AdapterDecoderRun(Config):
    """All settings of stage image with a decoder."""

    frozen: Literal["none", "adapter", "decoder"] = "none"
    """Which of the two keeps its weights."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages of the captions; null takes those of the previous stage."""
    lengths: tuple[Length, ...] = Field(min_length=1)
    """Lengths of the captions; steps take them in turn."""
    task: DecoderTaskConfig
    """Loss and batch."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of scenes and noise."""


@dataclass(frozen=True)
class Described:
    """Latents of B images with image embeddings and a language model's features of the captions, on the training device."""

    latents: Float[Tensor, "B C H W"]
    image: Float[Tensor, "B D"]
    text: TextStates


class AdaptedDecoderTask:
    """The training loop's `Task` for an adapter and a decoder, one of which may be frozen; otherwise as `DecoderTask`."""

    def __init__(
        self,
        adapter: TextAdapter,
        decoder: Decoder,
        batches: Callable[[int], Described],
        validation: Described,
        config: DecoderTaskConfig,
        seed: int,
        *,
        frozen: Literal["none", "adapter", "decoder"] = "none",
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Raises:
            UserError: the decoder reads no text, or text of another width; no subset of conditions has text.
        """
        slots = {slot.name: slot for slot in decoder.config.slots}
        if SLOT not in slots or slots[SLOT].token_width != adapter.config.clip_width:
            raise UserError(
                f"the decoder does not read the states of a CLIP {adapter.config.clip_width} wide: give one that was trained with it."
            )
        if not any(SLOT in subset.split("+") for subset, share in config.subsets.items() if share):
            raise UserError(f"no subset of task.subsets has {SLOT!r}: the adapter would learn nothing.")
        both: dict[str, nn.Module] = {"adapter": adapter, "decoder": decoder}
        if frozen != "none":
            both.pop(frozen).requires_grad_(False).eval()
        self.modules, self._adapter, self._decoder = both, adapter, decoder
        self._validation = validation
        self._settings = (config, seed, precision)
        self._batches = lambda step: self._conditioned(batches(step))

    def _conditioned(self, found: Described) -> DecoderBatch:
        text = text_condition(self._adapter(found.text.states, found.text.mask))
        return DecoderBatch(found.latents, Conditioning({"image": image_condition(found.image), SLOT: text}))

    def loss(self, step: int) -> dict[str, Tensor]:
        """The mean weighted denoising loss of one batch."""
        return self._denoising([]).loss(step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss for each subset of conditions, as in `DecoderTask.validate`, with the adapter's current features."""
        return self._denoising([self._conditioned(self._validation)]).validate()

    def _denoising(self, validation: list[DecoderBatch]) -> DecoderTask:
        config, seed, precision = self._settings
        return DecoderTask(self._decoder, self._batches, validation, config, seed, precision)


def train(
    run: AdapterDecoderRun,
    previous: PreviousStage,
    llm: Llm,
    clip: Clip,
    autoencoder: Autoencoder,
    decoder: Path,
    out: Path,
    world: Ranks,
) -> RunResult:
    """Train (or resume) in `out`; the results are `out/adapter` and `out/decoder`, fp16. No scene shows an unseen composition.

    Raises:
        UserError: the parts do not belong together; there are several processes; the task has regions, which an adapter's states cannot have.
    """
    if world.size > 1:
        raise UserError("a decoder is trained in one process: start it without torchrun.")
    if run.task.painted:
        raise UserError("an adapter's states stand for no words, so they can have no regions: set task.painted=0.")
    previous.check_clip(clip.fingerprint())
    for part, fingerprint in (("clip", clip.fingerprint()), ("autoencoder", autoencoder.fingerprint())):
        check_trained_with(decoder, part, fingerprint)
    network = load_decoder(decoder)
    made_with: dict[str, Any] = {
        "stage": "image",
        "llm": previous.llm,
        "clip": clip.fingerprint(),
        "autoencoder": autoencoder.fingerprint(),
        "decoder_before": artifacts.fingerprint(network.state_dict()),
        "data": "world",
        "lineage": previous.lineage,
    }
    languages = languages_for(run.languages, previous)
    clip, llm = clip.to(world.device).requires_grad_(False), llm.to(world.device)
    autoencoder = autoencoder.to(world.device).requires_grad_(False)

    @torch.no_grad()
    def described(key: int, start: int, number: int, step: int) -> Described:
        length = run.lengths[step % len(run.lengths)]
        found = [
            scene_source.pair(key, i, unseen=False, length=length, lang=languages[i % len(languages)])
            for i in range(start, start + number)
        ]
        images = scene_source.pictures(found, autoencoder.image_size, world.device)
        text = llm.encode_states([pair.caption.text for pair in found]).to(world.device, torch.float32)
        return Described(autoencoder.encode(images), clip.encode_image(images), text)

    number, key = run.task.pictures, seed_of(run.seed, "adapted decoder")
    task = AdaptedDecoderTask(
        previous.adapter.to(world.device),
        network.to(world.device),
        lambda step: described(key, step * number, number, step),
        described(seed_of(run.seed, "adapted decoder validation"), 0, VALIDATION_PICTURES, 0),
        run.task,
        run.seed,
        frozen=run.frozen,
        precision=precision_on(world.device),
    )

    def save(folder: Path, provenance: dict[str, Any]) -> None:
        provenance |= made_with | {"languages": previous.languages(languages), "prior": previous.record.get("prior")}
        save_decoder(network, out / "decoder", provenance | {"kind": "decoder"})
        provenance["decoder"] = artifacts.fingerprint(load_decoder(out / "decoder").state_dict())
        previous.adapter.save_pretrained(folder, provenance, torch.float16)

    recorded = made_with | {"llm": previous.llm["fingerprint"]}
    return train_part(run, task, out, save, kind=PART, recorded=recorded, report="adapter, decoder")
