"""Place objects in a Stable Diffusion pipeline of diffusers that you have already, without training.

    python examples/regions_in_diffusers.py stable-diffusion-v1-5/stable-diffusion-v1-5 --out out/regions.png

While the `with` block runs, the image attends more to a phrase where its mask is white (paint-with-words, eDiff-I,
section 4.3). Afterwards the pipeline is what it was.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from syzygy import Region, region_conditioning

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or hub id of a Stable Diffusion 1.x or 2.x pipeline")
parser.add_argument("--prompt", default="a red star and a blue ring")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--out", type=Path, default=Path("out/regions.png"))
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline = StableDiffusionPipeline.from_pretrained(arguments.model, local_files_only=True, safety_checker=None).to(
    device
)

left, right = torch.zeros(64, 64), torch.zeros(64, 64)
left[16:48, 4:30] = 1  # a mask has any resolution: it covers the whole image
right[16:48, 34:60] = 1
regions = [Region("a red star", left), Region("a blue ring", right, weight=1.5)]

with region_conditioning(pipeline, arguments.prompt, regions, strength=0.4):
    image = pipeline(
        arguments.prompt, num_inference_steps=arguments.steps, generator=torch.Generator().manual_seed(0)
    ).images[0]
arguments.out.parent.mkdir(parents=True, exist_ok=True)
image.save(arguments.out)
