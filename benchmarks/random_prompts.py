"""Images of random prompts of the embedded world, nothing chosen: a contact sheet, and how many of them the judge finds right.

    python benchmarks/random_prompts.py [--model MODEL] [--number N] [--seed S] [--out FILE]

Prompts come in turn from all categories and both sides: compositions that trainings saw, and those that none did (of shapes there are no
such). Image i uses seed S + i and the model's own conditions, steps and guidance. A green frame: everything that the prompt names is
right.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import ImageOps

from syzygy import TextToImage
from syzygy.core.randomness import Draw
from syzygy.generation.image_files import contact_sheet
from syzygy.lab.evaluate.harness import evaluation_prompts, prompt_accuracy, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.world.prompts import CATEGORIES, Prompt

COLUMNS = 8
RIGHT, WRONG = "#3ba06a", "#d4643b"


def in_turn(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """One prompt of each category and side after the other, within each in random order, until none is left."""
    groups: dict[tuple[str, bool], list[Prompt]] = {}
    for prompt in Draw(seed, "random prompts").order(prompts):
        groups.setdefault((prompt.category, prompt.unseen), []).append(prompt)
    rounds = zip_longest(*(groups[key] for key in sorted(groups)))
    return [prompt for one in rounds for prompt in one if prompt is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("random-prompts.png"))
    args = parser.parse_args()
    each = -(-args.number // len(CATEGORIES))  # more than needed: a category may have no unseen compositions
    wanted = in_turn(evaluation_prompts(CATEGORIES, each, args.seed), args.seed)[: args.number]
    if len(wanted) < args.number:
        parser.error(f"there are only {len(wanted)} different prompts: give a smaller --number")
    model = TextToImage.from_pretrained(args.model)
    noise = [torch.Generator().manual_seed(args.seed + i) for i in range(len(wanted))]
    images = model([one.text for one in wanted], generator=noise).images
    scenes = judge_of(model).read(tensors(images))
    right = [bool(prompt_accuracy(prompt, scene)) for prompt, scene in zip(wanted, scenes, strict=True)]
    framed = [
        ImageOps.expand(image, border=2, fill=RIGHT if good else WRONG)
        for image, good in zip(images, right, strict=True)
    ]
    rows = range(0, len(wanted), COLUMNS)
    contact_sheet(
        [framed[i : i + COLUMNS] for i in rows],
        [[one.text for one in wanted[i : i + COLUMNS]] for i in rows],
        cell=128,
    ).save(args.out)
    found = Counter(one.category for one, good in zip(wanted, right, strict=True) if good)
    number = Counter(one.category for one in wanted)
    print(f"{sum(right)} of {len(right)} images are right: " + ", ".join(f"{c} {found[c]}/{number[c]}" for c in number))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
