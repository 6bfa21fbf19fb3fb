"""Prompt accuracy for several guidance scales and numbers of sampling steps, by the reader (the judge only scores what is published).

    python benchmarks/guidance.py [--model MODEL] [--prompts N] [--scales 1 2 3 …] [--steps 10 25]

Prompts are of one object, two coloured objects, relations and counts, with seen and with unseen compositions. The decoder reads the words
alone, the prior's image embedding alone, and all that it can. Image i of every row starts from the same noise.
"""

import argparse

import torch

from syzygy import TextToImage
from syzygy.core.model_parts import part_folder
from syzygy.lab.evaluate.harness import evaluation_prompts, prompt_accuracy, tensors
from syzygy.lab.world.reader import Reader

CATEGORIES = ("single", "colour", "spatial", "numeracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--prompts", type=int, default=16, help="of each category, seen and unseen each")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    parser.add_argument("--seed", type=int, default=1, help="not that of the evaluations")
    args = parser.parse_args()
    model, reader = TextToImage.from_pretrained(args.model), Reader.from_pretrained(part_folder("starter", "reader"))
    wanted = evaluation_prompts(CATEGORIES, args.prompts, args.seed)
    every = model.pipeline.decoder.conditions
    for conditions in ([name for name in every if name != "image"], ["image"], list(every)):
        for steps in args.steps:
            for scale in args.scales:
                noise = [torch.Generator().manual_seed(args.seed + i) for i in range(len(wanted))]
                images = model(
                    [one.text for one in wanted],
                    conditions=conditions,
                    generator=noise,
                    guidance_scale=scale,
                    num_inference_steps=steps,
                ).images
                right: dict[str, list[float]] = {}
                for prompt, scene in zip(wanted, reader.read(tensors(images)), strict=True):
                    side = "unseen" if prompt.unseen else "seen"
                    right.setdefault(f"{prompt.category} {side}", []).append(prompt_accuracy(prompt, scene))
                values = ", ".join(f"{name} {100 * sum(x) / len(x):.0f} %" for name, x in right.items())
                print(f"{'+'.join(conditions)}, {steps} steps, guidance {scale:g}: {values}", flush=True)


if __name__ == "__main__":
    main()
