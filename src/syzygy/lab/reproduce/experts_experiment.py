"""eDiff-I's experts (arXiv 2211.01324, section 4) against one model of equal total samples, in small: pictures, losses, cost.

Every step leaves a file, so an interrupted run goes on where it stopped.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core import artifacts, wording
from syzygy.core.contracts import Conditioning, Sampling, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.training import DecoderBatch, DecoderTask
from syzygy.experts.routing import Experts
from syzygy.experts.training import growth
from syzygy.generation.image_files import to_tensor
from syzygy.generation.pipeline import to_uint8
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition
from syzygy.lab.evaluate.composition import REFERENCE, ScoredImage
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.experts_candidates import (
    LOSS_BATCH,
    START,
    TRAINED,
    Bench,
    Job,
    ReproduceExpertsRun,
    denoiser_of,
    jobs,
    leaves,
    prepare,
    serving,
    train,
)
from syzygy.lab.starter.decoder_training import Encoding
from syzygy.lab.world.reader import Reader
from syzygy.prior.embedding_statistics import frechet_distance
from syzygy.training.precision import precision_on
from syzygy.training.run_records import Bar, no_bar

PAINT_BATCH, FEATURE_BATCH, TIMED_BATCH = 32, 256, 32
"""Pictures at a time."""
TIMED = 15
"""Evaluations whose time is taken, for each candidate."""


def paint(bench: Bench, name: str, denoiser: nn.Module, progress: Callable[[int], None] = lambda done: None) -> None:
    """Every prompt's picture, from the same noise for every candidate, read and judged; kept in files."""
    run, began = bench.run, time.perf_counter()
    pipeline = replace(bench.model.pipeline, decoder=replace(bench.painter, denoiser=denoiser))
    how = Sampling(steps=run.steps, guidance_scale=run.guidance_scale)
    pictures = []
    for start in range(0, len(bench.wanted), PAINT_BATCH):
        texts = [prompt.text for prompt in bench.wanted[start : start + PAINT_BATCH]]
        noise = [generator(run.seed, "experts", text) for text in texts]
        output = pipeline(GenerationRequest(texts, sampling=how, generator=noise))
        pictures += [to_tensor(image) for image in output.images]
        progress(len(texts))
    seconds = (time.perf_counter() - began) / len(pictures)
    keep(bench, name, torch.stack(pictures), seconds)


def keep(bench: Bench, name: str, pictures: Float[Tensor, "P 3 H W"], seconds: float) -> None:
    """Judge a picture a prompt, and write what comes out; `seconds` is the time that one took."""
    reader, painted = bench.model.reader(), []
    device = next(reader.parameters()).device
    for start in range(0, len(pictures), PAINT_BATCH):
        some = pictures[start : start + PAINT_BATCH]
        readings = reader.read(some.to(device))
        for prompt, picture, reading in zip(bench.wanted[start:], to_uint8(some), readings, strict=False):
            painted.append(ScoredImage(name, prompt, 0, picture, reading))
    distances = {} if name == REFERENCE else frechet(bench, reader, pictures)
    score_files.keep(bench.out, name, painted, bench.wanted, frechet=distances, seconds=seconds)


@torch.no_grad()
def frechet(bench: Bench, reader: Reader, pictures: Float[Tensor, "P 3 H W"]) -> dict[str, float]:
    """Distance of the pictures to renders of the same prompts, in the reader's and in CLIP's features; where there are more prompts
    than features.
    """
    renders = composition.reference_images(bench.wanted, bench.run.seed, bench.model.clip.image_size)
    found = {}
    for name, features in (("reader", reader.features), ("CLIP", bench.model.clip.encode_image)):
        ours, true = (
            torch.cat([features(part.to(bench.model.pipeline.device)).cpu() for part in some.split(FEATURE_BATCH)])
            for some in (pictures, renders)
        )
        if len(ours) > ours.shape[1]:
            found[name] = frechet_distance(ours, true)
    return found


def measure_losses(bench: Bench, job: Job | None, folder: Path) -> None:
    """The loss of every unseen picture at a noise level of each expert's, [pictures] a leaf, in batches whose rows rise in σ.

    Pictures, noise, σ and the conditions that are left are drawn as in training, and the same for every candidate.
    """
    run, device = bench.run, bench.model.pipeline.device
    file = losses_file(bench.out, START if job is None else job.name)
    if file.is_file():
        return
    task = run.experts.task
    precision = precision_on(device)
    encode = Encoding(bench.model.clip, bench.autoencoder, precision, bench.t5, painted=task.painted > 0)
    batches = encode.stream(LOSS_BATCH, run.experts, seed_of(run.seed, "experts", "unseen"))
    held: list[DecoderBatch] = []
    measured: dict[str, DecoderTask] = {}
    for leaf in leaves(run):
        decoder, lora = serving(folder, leaf.name, None if job is None else job.candidate, device)
        noise = task.noise.model_copy(update={"shares": leaf.shares, "weights": None})
        config = task.model_copy(update={"batch_size": LOSS_BATCH, "draws": 1, "noise": noise})
        key = seed_of(run.seed, "experts", "loss", leaf.name)
        measured[leaf.name] = DecoderTask(decoder, lambda _: held[0], [], config, key, precision, lora)
    found: dict[str, list[Tensor]] = {name: [] for name in measured}
    with torch.no_grad():
        for step in range(run.pictures // LOSS_BATCH):
            held[:] = [batches(step)]
            for name, one in measured.items():
                found[name].append(one.each(step).float().cpu())
    artifacts.write_tensors(file, {name: torch.cat(parts) for name, parts in found.items()})


def losses_file(out: Path, name: str) -> Path:
    """Where a training's losses are, once they are measured."""
    return out / "losses" / f"{name}.safetensors"


def measure_cost(bench: Bench, folders: dict[str, Path]) -> None:
    """Seconds of one evaluation of each candidate, all in one sitting and in turn, so that they can be compared."""
    file = bench.out / "cost.json"
    if file.is_file():
        return
    device = bench.model.pipeline.device
    denoisers = {candidate: denoiser_of(bench, candidate, folder) for candidate, folder in folders.items()}
    x = torch.randn((TIMED_BATCH, *bench.autoencoder.latent_shape), generator=generator(0, "timed")).to(device)
    conditioning = _told(bench)
    sigmas = [float(one) for one in bench.painter.schedule.sigmas(TIMED)[:-1]]
    times: dict[str, list[float]] = {candidate: [] for candidate in denoisers}
    with torch.inference_mode():
        for sigma in (sigmas[0], *sigmas):  # the first warms up
            for candidate, denoiser in denoisers.items():
                began = time.perf_counter()
                chosen = denoiser.at(sigma) if isinstance(denoiser, Experts) else denoiser
                chosen(x, torch.full((TIMED_BATCH,), sigma, device=device), conditioning)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[candidate].append(time.perf_counter() - began)
    found = {candidate: median(some[1:]) for candidate, some in times.items()}
    artifacts.write_json(file, {"batch": TIMED_BATCH, "evaluations": TIMED, "seconds": found})


def _told(bench: Bench) -> Conditioning:
    """All that the decoder reads, of one prompt."""
    texts = [bench.wanted[0].text] * TIMED_BATCH
    features = bench.model.clip.encode_text(texts)
    conditions = {"image": image_condition(features.pooled), "text": text_condition(features)}
    conditions |= {name: text_condition(one.encode_states(texts)) for name, one in bench.painter.encoders.items()}
    return Conditioning(conditions)


@contextmanager
def counted(out: Path) -> Iterator[None]:
    """Adds the time of a sitting, also of one that was interrupted, to that of those before."""
    began = time.perf_counter()
    try:
        yield
    finally:
        file = out / "time.json"
        before = artifacts.read_json(file)["seconds"] if file.is_file() else 0.0
        seconds = round(before + time.perf_counter() - began, 1)
        artifacts.write_json(file, {"seconds": seconds, "machine": artifacts.machine()})


def reproduce(
    run: ReproduceExpertsRun, out: Path, *, model: str, device: str, say: Callable[[str], None], bar: Bar = no_bar
) -> Bench:
    """Everything but the report: train, measure losses, paint. What is in `out` already is not done again.

    Raises:
        UserError: leaves that are no tree's; `out` holds a comparison with other settings; a model that experts cannot be grown from.
    """
    number = len(growth(run.experts))
    loaded = TextToImage.from_pretrained(model, device=device)
    bench = prepare(run, loaded, out)
    plain = run.model_dump(mode="json") | {"model": model, "decoder": loaded.fingerprints()["decoder"]}
    if (out / "run.json").is_file() and artifacts.read_json(out / "run.json") != plain:
        raise UserError(f"{out} holds a comparison with other settings. Choose another --out, or the settings it has.")
    artifacts.write_json(out / "run.json", plain)
    with counted(out):
        todo = jobs(run)
        say(
            f"1/3  {wording.counted(len(todo), 'training')} of {wording.counted(number * run.experts.loop.steps, 'step')}"
        )
        folders = {}
        for place, job in enumerate(todo, 1):
            say(f"{place}/{len(todo)}  {job.name}")
            folders[job] = train(job, bench, say)
        say(
            f"2/3  loss on {wording.counted(run.pictures, 'unseen picture')} at {len(leaves(run))} experts' noise levels"
        )
        measure_losses(bench, None, bench.root)
        for job, folder in folders.items():
            measure_losses(bench, job, folder)
        measure_cost(bench, {START: bench.root} | {c: folders[Job(c, 0)] for c in TRAINED})
        say(f"3/3  painting {wording.counted(len(bench.wanted), 'prompt')} with each candidate")
        paint_all(bench, folders, bar)
    return bench


def paint_all(bench: Bench, folders: dict[Job, Path], bar: Bar = no_bar) -> None:
    """The reference's judgements, and pictures of the start and of every training."""
    if not score_files.painted_file(bench.out, REFERENCE).is_file():
        renders = composition.reference_images(bench.wanted, bench.run.seed, bench.model.clip.image_size)
        keep(bench, REFERENCE, renders, 0.0)
    everyone = [(START, START, bench.root), *((job.name, job.candidate, folder) for job, folder in folders.items())]
    for name, candidate, folder in everyone:
        if not score_files.painted_file(bench.out, name).is_file():
            with bar(f"painting {name}", len(bench.wanted)) as progress:
                paint(bench, name, denoiser_of(bench, candidate, folder), progress)
