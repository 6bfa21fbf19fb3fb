"""The starter's CLIP, trained from nothing on the embedded world."""

from itertools import count, islice, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
from syzygy.clip.training import ClipBatch, ClipTask, ClipTaskConfig, alignment
from syzygy.core.config import Config
from syzygy.core.randomness import Draw, seed_of
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import ALL_FACTS, Description, Mention
from syzygy.lab.world.language import language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.language.english import ENGLISH
from syzygy.lab.world.scene import COLOURS, SHAPES
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

TOKENIZER_CAPTIONS = 5000
VALIDATION_PAIRS = 512


class ClipRun(Config):
    """All settings of a CLIP of the embedded world."""

    clip: ClipConfig
    """Sizes."""
    task: ClipTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, scenes and captions."""


def train(run: ClipRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished CLIP is `out/clip`, in transformers' layout, fp16."""
    texts = [p.caption.text for p in scene_source.pairs(seed_of(run.seed, "tokenizer"), 0, TOKENIZER_CAPTIONS)]
    clip = build_clip(
        run.clip, [*texts, *ENGLISH.fillers.sentences, *ENGLISH.fillers.sentences], seed_of(run.seed, "clip weights")
    ).to(device)
    unseen = distinct_full_pairs(seed_of(run.seed, "clip validation"), VALIDATION_PAIRS)
    validation = _batch(clip, unseen, [p.caption.text for p in unseen], device)

    def batches(step: int) -> ClipBatch:
        draw = Draw(run.seed, "clip step", step)
        length: Length = "medium" if draw.chance(run.task.medium_captions) else "short"
        size = run.task.batch_size
        found = scene_source.pairs(run.seed, step * size, size, length=length)
        texts = [p.caption.text for p in found]
        for p in found[: round(run.task.hard_negatives * size)]:
            wrong = scene_source.swapped(p, draw)
            texts += [wrong] if wrong else []
        return _batch(clip, found, texts, device)

    task = ClipTask(clip, batches, validation, run.task, precision=precision_on(device))

    def save(folder: Path, record: dict[str, Any]) -> None:
        clip.save_pretrained(folder, record, torch.float16)

    return train_part(
        run, task, out, save, kind="clip", report="CLIP", measure=lambda result: measure(clip, unseen, run.seed)
    )


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
    """Matched cosine, distance of the two means, R@1 among these pairs (text → image), and `zero_shot`."""
    image = clip.encode_image(scene_source.pictures(unseen, clip.image_size, clip.device))
    aligned = alignment(image, clip.encode_text([p.caption.text for p in unseen]).pooled)
    return aligned | zero_shot(clip, seed_of(seed, "zero-shot"), len(unseen))


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


def _batch(clip: Clip, found: list[scene_source.Pair], texts: list[str], device: torch.device) -> ClipBatch:
    ids, mask = clip.tokenize(texts)
    return ClipBatch(scene_source.pictures(found, clip.image_size, device), ids.to(device), mask.to(device))
