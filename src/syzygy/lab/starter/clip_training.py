"""The starter's CLIP, trained from nothing on the embedded world: the image tower first, with supervision by the renderer, then both."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from syzygy.cli.common import progress_bar
from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
from syzygy.clip.training import ClipBatch, ClipTask, ClipTaskConfig, alignment
from syzygy.core.config import Config
from syzygy.core.randomness import Draw, seed_of
from syzygy.lab.starter.clip_probe import probe
from syzygy.lab.starter.clip_supervision import CELLS, ImageReadings, SceneLabels, SupervisionConfig, scene_columns
from syzygy.lab.starter.sample_store import SampleStore
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import ALL_FACTS, Description, FactRates, Mention
from syzygy.lab.world.language import language
from syzygy.lab.world.language.english import ENGLISH
from syzygy.lab.world.scene import COLOURS, SHAPES
from syzygy.training.loop import fit
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import RunResult, reporter, train_part
from syzygy.training.schedule import LoopConfig
from syzygy.training.shuffled import Shuffled

TOKENIZER_CAPTIONS = 5000
VALIDATION_PAIRS = 512
VALIDATION_SCENES = 1000
MORE_FACTS = FactRates(thing=1.0, colour=0.9, texture=0.7, style=0.4, relation=0.7)


class ClipRun(Config):
    """All settings of a CLIP of the embedded world."""

    clip: ClipConfig
    """Sizes."""
    scenes: int = Field(default=150_000, ge=1)
    """Rendered scenes with a caption and a hard negative each. They are stored once, in the folder `scenes` (13 KB each)."""
    supervision: SupervisionConfig = SupervisionConfig()
    """Weights of the supervision while both towers are trained."""
    vision_batch: int = Field(default=128, ge=1)
    """Images a step while the image tower is trained alone, with both weights at 1."""
    vision_loop: LoopConfig
    """Length and learning rate of that."""
    task: ClipTaskConfig
    """What a step sees while both towers are trained."""
    loop: LoopConfig
    """Length and learning rate of that."""
    seed: int = 0
    """Seed of weights, scenes and captions."""

    @model_validator(mode="after")
    def _cells_fit_patches(self) -> "ClipRun":
        grid = self.clip.image_size / self.clip.patch_size
        if CELLS % grid:
            raise ValueError(f"clip.image_size / clip.patch_size must divide {CELLS}, the cells a side; got {grid:g}")
        return self


@dataclass(frozen=True)
class LabelledBatch(ClipBatch):
    """Pairs with the labels of their scenes."""

    labels: SceneLabels


def train(run: ClipRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished CLIP is `out/clip`, in transformers' layout, fp16."""
    texts = [p.caption.text for p in scene_source.pairs(seed_of(run.seed, "tokenizer"), 0, TOKENIZER_CAPTIONS)]
    fillers = ENGLISH.fillers.sentences
    clip = build_clip(run.clip, [*texts, *fillers, *fillers], seed_of(run.seed, "clip weights")).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "clip readings"))
        grid = run.clip.image_size // run.clip.patch_size
        readings = ImageReadings(run.clip.vision_width, run.clip.width, grid).to(device)
    store = SampleStore.build(
        out / "scenes",
        run.scenes,
        lambda start, number: _columns(clip, run, start, number),
        {
            "seed": run.seed,
            "positions": run.clip.positions,
            "image_size": run.clip.image_size,
            "medium_captions": run.task.medium_captions,
        },
        progress_bar,
    )
    images = StoredImages(store, run.seed, clip, device)
    precision = precision_on(device)
    vision = VisionTask(clip, readings, images, run.vision_batch, precision)
    report = reporter("CLIP, image tower", run.vision_batch)
    settings = run.model_dump(mode="json", include={"clip", "scenes", "vision_batch", "vision_loop", "seed"})
    fit(vision, run.vision_loop, out / "vision", reporter=report, run=settings)

    unseen = distinct_full_pairs(seed_of(run.seed, "clip validation"), VALIDATION_PAIRS)
    validation = _labelled(clip, unseen, device)
    task = SupervisedClipTask(clip, readings, images, validation, run, precision)

    def save(folder: Path, record: dict[str, Any]) -> None:
        clip.save_pretrained(folder, record, torch.float16)

    return train_part(
        run, task, out, save, kind="clip", report="CLIP", measure=lambda result: measure(clip, unseen, run.seed)
    )


def _sample(run: ClipRun, index: int) -> tuple[scene_source.Pair, str]:
    """Pair number `index` of the stored scenes, and a hard negative ("" where there is none)."""
    draw, seed = Draw(run.seed, "clip sample", index), seed_of(run.seed, "clip scenes")
    kind = draw.random()
    length = "medium" if draw.chance(run.task.medium_captions) else "short"
    if kind < 1 / 3:
        pair = scene_source.fully_described(seed, index)
    else:
        facts = MORE_FACTS if kind < 2 / 3 else None
        pair = scene_source.pair(seed, index, facts=facts, length=length)
    return pair, scene_source.swapped(pair, draw) or ""


def _columns(clip: Clip, run: ClipRun, start: int, number: int) -> dict[str, Tensor]:
    """Images, labels and tokens of so many stored samples. A text without tokens stands for none."""
    pairs, negatives = zip(*(_sample(run, index) for index in range(start, start + number)), strict=True)
    images = scene_source.pictures(list(pairs), run.clip.image_size)
    columns = {"images": (images * 255).round().byte()} | scene_columns([p.scene for p in pairs])
    for name, texts in (("caption", [p.caption.text for p in pairs]), ("negative", list(negatives))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captions of medium length may be cut
            ids, mask = clip.tokenize(texts)
        padded = torch.zeros(number, clip.positions, dtype=torch.int16)
        padded[:, : ids.shape[1]] = ids.to(torch.int16)
        there = torch.tensor([bool(text) for text in texts])
        columns |= {f"{name}_ids": padded, f"{name}_length": (mask.sum(1) * there).to(torch.int8)}
    return columns


class StoredImages:
    """The stored samples in the order of a training."""

    def __init__(self, store: SampleStore, seed: int, clip: Clip, device: torch.device) -> None:
        self._store, self._order, self._device = store, Shuffled(len(store), seed, "clip"), device
        self._pad = int(clip.tokenizer.pad_token_id)

    def images(self, step: int, batch: int) -> tuple[Float[Tensor, "B 3 H W"], SceneLabels]:
        """The images of a step, in [0, 1], with their labels."""
        return self._images(self._read(step, batch))

    def pairs(self, step: int, batch: int, negatives: float) -> LabelledBatch:
        """The pairs of a step; its texts are the captions and the hard negatives of a share of the pairs."""
        found = self._read(step, batch)
        images, labels = self._images(found)
        kept = found["negative_length"] > 0
        kept[round(negatives * batch) :] = False
        ids = torch.cat([found["caption_ids"], found["negative_ids"][kept]]).long()
        lengths = torch.cat([found["caption_length"], found["negative_length"][kept]]).long()
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.where(mask, ids[:, : mask.shape[1]], self._pad)
        return LabelledBatch(images, ids.to(self._device), mask.to(self._device), labels)

    def _read(self, step: int, batch: int) -> dict[str, Tensor]:
        return self._store[self._order.run(step * batch, batch)]

    def _images(self, found: Mapping[str, Tensor]) -> tuple[Tensor, SceneLabels]:
        labels = SceneLabels(*(found[name].to(self._device) for name in SceneLabels._fields))
        return found["images"].to(self._device).float() / 255, labels


class VisionTask:
    """The image tower alone: both readings, without any text."""

    def __init__(
        self,
        clip: Clip,
        readings: ImageReadings,
        images: StoredImages,
        batch_size: int,
        precision: torch.dtype | None = None,
    ) -> None:
        self._clip, self._readings, self._images = clip, readings, images
        self._batch_size, self._precision = batch_size, precision
        model = clip.model
        tower = nn.ModuleDict({"vision_model": model.vision_model, "visual_projection": model.visual_projection})
        self.modules: Mapping[str, nn.Module] = {"clip": tower, "readings": readings}
        self._validation = _validation_scenes(clip)

    def loss(self, step: int) -> dict[str, Tensor]:
        """Both readings of the images of a step, with equal weights."""
        images, labels = self._images.images(step, self._batch_size)
        with autocast(images.device, self._precision):
            states, embeddings = self._clip.image_features_in_chunks(images)
        losses = self._readings.losses(states.float(), embeddings.float(), labels)
        return {"loss": losses["dense"] + losses["pooled"]} | {n: x.detach() for n, x in losses.items()}

    def validate(self) -> dict[str, float]:
        """Accuracy of the readings on unseen, fully described scenes."""
        return _accuracy(self._clip, self._readings, self._validation)


class SupervisedClipTask(ClipTask):
    """Contrastive training of both towers, with the readings of the image tower as further losses."""

    def __init__(
        self,
        clip: Clip,
        readings: ImageReadings,
        images: StoredImages,
        validation: LabelledBatch,
        run: ClipRun,
        precision: torch.dtype | None = None,
    ) -> None:
        batches: Callable[[int], ClipBatch] = lambda step: images.pairs(  # noqa: E731
            step, run.task.batch_size, run.task.hard_negatives
        )
        super().__init__(clip, batches, validation, run.task, precision=precision)
        self._readings, self._weights = readings, run.supervision
        self._world_clip, self._scenes = clip, _validation_scenes(clip)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "readings": self._readings}

    def _supervision(self, batch: ClipBatch, states: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        assert isinstance(batch, LabelledBatch)
        losses = self._readings.losses(states.float(), embeddings, batch.labels)
        return {name: getattr(self._weights, name) * value for name, value in losses.items()}

    def validate(self) -> dict[str, float]:
        """Losses, alignment, and the accuracy of the readings."""
        return super().validate() | _accuracy(self._world_clip, self._readings, self._scenes)


def _validation_scenes(clip: Clip) -> tuple[Float[Tensor, "N 3 H W"], SceneLabels]:
    pairs = [scene_source.fully_described(seed_of(0, "clip validation scenes"), i) for i in range(VALIDATION_SCENES)]
    images, columns = scene_source.pictures(pairs, clip.image_size), scene_columns([p.scene for p in pairs])
    labels = SceneLabels(*(columns[name].to(clip.device) for name in SceneLabels._fields))
    return images.to(clip.device), labels


@torch.no_grad()
def _accuracy(
    clip: Clip, readings: ImageReadings, scenes: tuple[Float[Tensor, "N 3 H W"], SceneLabels]
) -> dict[str, float]:
    states, embeddings = clip.image_features_in_chunks(scenes[0])
    return readings.accuracy(states, embeddings, scenes[1])


def _labelled(clip: Clip, pairs: list[scene_source.Pair], device: torch.device) -> LabelledBatch:
    ids, mask = clip.tokenize([p.caption.text for p in pairs])
    images = scene_source.pictures(pairs, clip.image_size, device)
    columns = scene_columns([p.scene for p in pairs])
    labels = SceneLabels(*(columns[name].to(device) for name in SceneLabels._fields))
    return LabelledBatch(images, ids.to(device), mask.to(device), labels)


def distinct_full_pairs(seed: int, number: int) -> list[scene_source.Pair]:
    """Unseen pairs whose captions describe their scenes fully; no two captions mean the same."""
    found: dict[object, scene_source.Pair] = {}
    index = 0
    while len(found) < number:
        p = scene_source.pair(seed, index, facts=ALL_FACTS)
        found.setdefault(p.caption.description, p)
        index += 1
    return list(found.values())


def measure(clip: Clip, unseen: list[scene_source.Pair], seed: int = 0) -> dict[str, float]:
    """Matched cosine, distance of the two means, R@1 among these pairs (text → image), `zero_shot`, and `probe`."""
    image = clip.encode_image(scene_source.pictures(unseen, clip.image_size, clip.device))
    aligned = alignment(image, clip.encode_text([p.caption.text for p in unseen]).pooled)
    return aligned | zero_shot(clip, seed_of(seed, "zero-shot"), len(unseen)) | probe(clip, seed)


def zero_shot(clip: Clip, seed: int, number: int) -> dict[str, float]:
    """How often the nearest of the 64 texts "a red circle", … has the shape, and the colour, of an unseen image's only object.

    What an image embedding does not contain, no prior can predict and no decoder can draw.
    """
    draw = Draw(seed, "texts")
    appearances = list(product(SHAPES, COLOURS))
    texts = [language("en").caption(Description((Mention(shape, colour),)), draw).text for shape, colour in appearances]
    alone = (p for index in count() if len((p := scene_source.pair(seed, index)).scene.things) == 1)
    found = list(islice(alone, number))
    image = clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device))
    text = nn.functional.normalize(clip.encode_text(texts).pooled, dim=-1)
    nearest = [appearances[i] for i in (image @ text.T).argmax(1).tolist()]
    things = [p.scene.things[0] for p in found]
    shapes = [shape == thing.shape for (shape, _), thing in zip(nearest, things, strict=True)]
    colours = [colour == thing.colour for (_, colour), thing in zip(nearest, things, strict=True)]
    return {"zero_shot_shape": sum(shapes) / number, "zero_shot_colour": sum(colours) / number}
