"""Stage 2 of an adapter, with a decoder in place of the prior: on the embedded world, beside a frozen CLIP and a frozen autoencoder."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.decoder.training import DecoderTaskConfig
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.parallel_corpus import checked_languages
from syzygy.prior.prior_loading import check_trained_with
from syzygy.text_encoders.adapter_folders import PART
from syzygy.text_encoders.decoder_stage import AdaptedDecoderTask, Described
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.training import PreviousStage, check_clip
from syzygy.training.loop import fit
from syzygy.training.parallel import World
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, provenance, reporter
from syzygy.training.schedule import LoopConfig

VALIDATION_PICTURES = 64


class AdapterDecoderRun(Config):
    """Everything that makes an adapter that has denoised pictures, but the models."""

    frozen: Literal["none", "adapter", "decoder"] = "none"
    """Which of the two is left as it is."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages of the captions; null is those of the stage before."""
    lengths: tuple[Length, ...] = Field(min_length=1)
    """Lengths of the captions, each as often as it stands here, one a step."""
    task: DecoderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Scenes and noise follow from it."""


def train(
    run: AdapterDecoderRun, former: PreviousStage, llm: Llm, clip: Clip, autoencoder: Autoencoder, decoder: Path, out: Path, world: World
) -> RunResult:  # fmt: skip
    """Train (or resume) in `out`; the finished ones are `out/adapter` and `out/decoder`, fp16. Held-out compositions stay out.

    Raises:
        UserError: the parts do not belong together; several processes; words are to be painted, which an adapter's states do not stand for.
    """
    if world.size > 1:
        raise UserError("a decoder is trained in one process: start it without torchrun.")
    if run.task.painted:
        raise UserError("an adapter's states stand for no words, so none can be painted: set task.painted=0.")
    check_clip(former, clip.fingerprint())
    for part, fingerprint in (("clip", clip.fingerprint()), ("autoencoder", autoencoder.fingerprint())):
        check_trained_with(decoder, part, fingerprint)
    network = load_decoder(decoder)
    beside = {
        "stage": "image",
        "llm": former.llm,
        "clip": clip.fingerprint(),
        "autoencoder": autoencoder.fingerprint(),
        "decoder_before": artifacts.fingerprint(network.state_dict()),
        "data": "world",
        "lineage": former.lineage,
    }
    languages = checked_languages(run.languages or former.of_the_world)
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
        former.adapter.to(world.device),
        network.to(world.device),
        lambda step: described(key, step * number, number, step),
        described(seed_of(run.seed, "adapted decoder validation"), 0, VALIDATION_PICTURES, 0),
        run.task,
        run.seed,
        frozen=run.frozen,
        precision=precision_on(world.device),
    )
    settings = run.model_dump(mode="json") | beside | {"llm": former.llm["fingerprint"]}
    report = reporter("adapter, decoder", run.task.batch_size)
    result = fit(task, run.loop, out, reporter=report, run=settings)
    record = provenance("adapter", run, result, result.steps * run.task.batch_size, result.metrics) | beside
    record |= {"languages": list(former.taught(languages).languages), "prior": former.record.get("prior")}
    save_decoder(network, out / "decoder", record | {"kind": "decoder"})
    record["decoder"] = artifacts.fingerprint(load_decoder(out / "decoder").state_dict())
    former.adapter.save_pretrained(out / PART, record, torch.float16)
    return RunResult(out / PART, result.metrics, result.history)
