"""Generate images with the starter, offline on a laptop.

    python examples/generate.py "a red heart left of a blue star" --out out/examples

Change MODEL to "kandinsky-2.2" or "karlo" for a published decoder (its weights must be in the hub's cache).
"""

import argparse
from pathlib import Path

import torch

from syzygy import TextToImage

MODEL = "starter"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("prompt", nargs="?", default="a red heart left of a blue star")
parser.add_argument("--out", type=Path, default=Path("out/examples"))
arguments = parser.parse_args()
arguments.out.mkdir(parents=True, exist_ok=True)

model = TextToImage.from_pretrained(MODEL, device="cuda" if torch.cuda.is_available() else "cpu")

# One generator for each image: image i looks the same whatever the batch size.
seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
result = model(arguments.prompt, num_images_per_prompt=4, generator=seeds, negative_prompt="a green circle")
for number, image in enumerate(result.images):
    image.save(arguments.out / f"prompt-{number}.png")

# Variations of the first image, and images between it and a text.
first = result.images[0]
for number, image in enumerate(model.vary(first, num_images=2, generator=torch.Generator().manual_seed(0)).images):
    image.save(arguments.out / f"variation-{number}.png")
mixed = model.mix([(first, 0.6), ("a yellow moon", 0.4)], generator=torch.Generator().manual_seed(0))
mixed.images[0].save(arguments.out / "mixed.png")
print(f"{len(list(arguments.out.glob('*.png')))} images in {arguments.out}")
