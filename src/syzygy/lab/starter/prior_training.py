"""A prior on pairs of the embedded world, which are rendered and embedded with the frozen CLIP before training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import detect_language, language
from syzygy.prior.embedding_pairs import PriorData, caption_ids
from syzygy.prior.linear_prior import LinearRun
from syzygy.prior.next_steps import counts
from syzygy.prior.training import PriorRun, PriorTrainingData, train_prior
from syzygy.training.estimate import preparing, rehearsed
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.parallel import Ranks
from syzygy.training.progress import Reporter
from syzygy.training.run_records import Bar, RunResult, no_bar

CHUNK = 512
KNOWN = 0.9
"""The share of captions whose words the embedded world must all have."""
WORLD_SOURCE = "rendered scenes of Syzygy's embedded world"


def embed(
    clip: Clip,
    seed: int,
    number: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    encoder: TextEncoder | None = None,
) -> PriorData:
    """Embed `number` pairs without unseen compositions in memory, with CLIP's two towers, or the captions with another text encoder."""
    images, features, texts = [], [], []
    for start in range(0, number, CHUNK):
        found = scene_source.pairs(seed, start, min(CHUNK, number - start), unseen=False)
        images.append(clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device)).cpu())
        captions = [p.caption.text for p in found]
        features.append((encoder or clip).encode_text(captions).to("cpu"))
        texts += captions
        progress(len(found))
    return PriorData(torch.cat(images), TextFeatures.cat(features), torch.arange(number), caption_ids(texts))


def embedded(run: PriorRun | LinearRun, clip: Clip, bar: Bar = no_bar) -> tuple[PriorData, PriorData]:
    """The run's training and validation pairs of the world.

    Raises:
        UserError: the run is for a store.
    """
    if run.scenes is None:
        raise UserError("this preset trains on an embedding store: give --data STORE, or set scenes=20000.")
    batch = 1 if isinstance(run, LinearRun) else run.task.batch_size
    scenes, unseen = rehearsed(run.scenes, batch), run.validation_images
    with bar("embedding", scenes + unseen) as progress, preparing(run.scenes + unseen, scenes + unseen):
        return (
            embed(clip, seed_of(run.seed, "prior data"), scenes, progress),
            embed(clip, seed_of(run.seed, "prior validation"), run.validation_images, progress),
        )


def train(
    run: PriorRun | LinearRun,
    clip: Clip,
    out: Path,
    world: Ranks | torch.device,
    *,
    data: tuple[PriorData, PriorData] | None = None,
    init: str | Path | None = None,
    bar: Bar = no_bar,
    report: Reporter | str = "",
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out` on the embedded world, with the frozen CLIP; the finished prior is `out/prior`.

    `data` = (training, validation) avoids embedding them again when several priors learn from the same pairs.
    """
    world = Ranks(world) if isinstance(world, torch.device) else world
    clip = clip.to(world.device)
    training, validation = data or embedded(run, clip, bar)
    material = PriorTrainingData(
        training,
        validation,
        clip.positions,
        clip.logit_scale,
        unconditional=lambda: clip.encode_text([""]),
        recorded={"clip": clip.fingerprint()},
        about={"source": WORLD_SOURCE, "world": True, **counts(training, validation)},
    )
    return train_prior(run, material, out, world, init=init, report=report, fitting=fitting)


def of_the_world(captions: Sequence[str]) -> bool:
    """Whether captions are of the embedded world: nearly all consist of words from its languages."""
    known = [not language(detect_language(text)).unknown(text) for text in captions]
    return bool(known) and sum(known) >= KNOWN * len(known)
