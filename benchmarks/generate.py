"""Times what a user waits for: `syzygy --help`, loading the starter, four pictures in 25 steps with guidance.

    python benchmarks/generate.py

Loading is measured in a fresh process, imports included. Targets on 2 cores: help ≤ 0.3 s, load ≤ 6 s, pictures ≤ 2.5 s.
"""

import subprocess
import sys
import time

LOAD = """
import time
began = time.perf_counter()
import syzygy
model = syzygy.TextToImage.from_pretrained("starter")
print(time.perf_counter() - began)
"""


def best(run, repeats: int) -> float:
    """The least of several timings: the others measure what else the machine did."""
    return min(run() for _ in range(repeats))


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "syzygy.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def load_seconds() -> float:
    return float(subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    import torch

    import syzygy

    model = syzygy.TextToImage.from_pretrained("starter")

    def paint() -> float:
        began = time.perf_counter()
        model("a red circle left of a blue star", num_images_per_prompt=4, num_inference_steps=25, guidance_scale=2.0)
        return time.perf_counter() - began

    paint()
    print(f"threads            {torch.get_num_threads()}")
    print(f"syzygy --help      {best(help_seconds, 5):.2f} s")
    print(f"load the starter   {best(load_seconds, 3):.2f} s")
    print(f"4 pictures         {best(paint, 5):.2f} s  (25 DPM-Solver++ steps, guidance 2)")


if __name__ == "__main__":
    main()
