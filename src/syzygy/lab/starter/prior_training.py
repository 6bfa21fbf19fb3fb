"""A prior on pairs of the embedded world, which are rendered and embedded with the frozen CLIP before training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.clip.zero_image import ZeroImage
from syzygy.core.contracts import TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, seed_of
from syzygy.data.references import References
from syzygy.generation.image_files import to_tensor
from syzygy.generation.layout_edges import edge_map
from syzygy.generation.subjects import positions
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import detect_language, language
from syzygy.lab.world.scene import Style, Thing
from syzygy.lab.world.scene_subjects import WORD, SubjectPair, cut_outs, described_pairs, subject_pair
from syzygy.prior.embedding_pairs import PriorData, caption_ids
from syzygy.prior.lambda_training import LambdaEclipseTaskConfig
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


def embed_with_subjects(
    clip: Clip, seed: int, number: int, edges: bool, progress: Callable[[int], None] = lambda done: None
) -> PriorData:
    """`embed`, with captions in which a word stands for an object (`scene_subjects`) and, if wanted, the edges of each image."""
    images, features, texts, references = [], [], [], []
    for start in range(0, number, CHUNK):
        rows = range(start, min(start + CHUNK, number))
        found = described_pairs(seed, start, len(rows))
        pixels = scene_source.pictures(found, clip.image_size, clip.device)
        images.append(clip.encode_image(pixels).cpu())
        pairs = [subject_pair(one, Draw(seed, "subject", row)) for row, one in zip(rows, found, strict=True)]
        captions = [one.text for one in pairs]
        features.append(clip.encode_text(captions).to("cpu"))
        control = embed_edges(clip, pixels) if edges else None
        references.append(References.of(placed_subjects(clip, pairs), clip.width, control))
        texts += captions
        progress(len(rows))
    return PriorData(
        torch.cat(images),
        TextFeatures.cat(features),
        torch.arange(number),
        caption_ids(texts),
        References.cat(references),
        ZeroImage(clip, clip.fingerprint())(),
    )


def placed_subjects(clip: Clip, pairs: Sequence[SubjectPair]) -> list[list[tuple[list[int], Float[Tensor, "D"]]]]:
    """For each pair its subjects: the positions of the word's tokens, and the embedding of the object's cut-out."""
    with_one: list[tuple[Thing, Style]] = [(pair.thing, pair.scene.style) for pair in pairs if pair.thing is not None]
    pixels = cut_outs(with_one, clip.image_size, clip.device)
    embeddings = iter(clip.encode_image(pixels).cpu() if with_one else ())
    return [[] if pair.thing is None else [(positions(clip, pair.text, WORD), next(embeddings))] for pair in pairs]


def embed_edges(clip: Clip, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """The image embeddings of these images' edges: controls."""
    edges = torch.stack([to_tensor(edge_map(image)) for image in pixels.cpu()])
    return clip.encode_image(edges.to(clip.device)).cpu()


def embedded(run: PriorRun | LinearRun, clip: Clip, bar: Bar = no_bar) -> tuple[PriorData, PriorData]:
    """The run's training and validation pairs of the world.

    Raises:
        UserError: the run is for a store.
    """
    if run.scenes is None:
        raise UserError("this preset trains on an embedding store: give --data STORE, or set scenes=20000.")
    batch = 1 if isinstance(run, LinearRun) else run.task.batch_size
    scenes, unseen = rehearsed(run.scenes, batch), run.validation_images
    task = None if isinstance(run, LinearRun) else run.task

    def pairs(what: str, number: int, progress: Callable[[int], None]) -> PriorData:
        seed = seed_of(run.seed, what)
        if isinstance(task, LambdaEclipseTaskConfig):
            return embed_with_subjects(clip, seed, number, task.controlled > 0, progress)
        return embed(clip, seed, number, progress)

    with bar("embedding", scenes + unseen) as progress, preparing(run.scenes + unseen, scenes + unseen):
        return pairs("prior data", scenes, progress), pairs("prior validation", run.validation_images, progress)


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
    known = [not {*language(detect_language(text)).unknown(text)} - {WORD} for text in captions]
    return bool(known) and sum(known) >= KNOWN * len(known)
