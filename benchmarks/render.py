"""Speed of the embedded world on one thread: scenes rendered, pairs of scene and caption made, captions read, a second.

    python benchmarks/render.py [--num 1024] [--size 64]

The target is 500 scenes of 64 px a second. Prints the best of three rounds.
"""

import argparse
import time
from collections.abc import Callable

import torch

from syzygy.core.artifacts import machine
from syzygy.core.randomness import Draw
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import language

ROUNDS = 3


def rate(number: int, work: Callable[[], object]) -> float:
    """Things a second, best of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return number / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = scene_source.pairs(0, 0, args.num)
    rows = {
        f"render, {args.size} px": lambda: scene_source.pictures(pairs, args.size),
        "pair": lambda: scene_source.pairs(0, 0, args.num),
        "pair, long caption": lambda: scene_source.pairs(0, 0, args.num, length="long"),
        "swapped caption": lambda: [scene_source.swapped(pair, Draw(0, i)) for i, pair in enumerate(pairs)],
        "read a caption": lambda: [language("en").parse(pair.caption.text) for pair in pairs],
    }
    print(machine())
    for name, work in rows.items():
        print(f"{name:<20} {rate(args.num, work):>8.0f} /s")


if __name__ == "__main__":
    main()
