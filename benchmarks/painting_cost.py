"""What painting words costs: a painted step against a plain one, on the starter's decoder and on a U-Net of Stable Diffusion 1.5's size.

    python benchmarks/painting_cost.py [--quick] [--rounds 15] [--json FILE]

The U-Net has 860M random weights in fp32 (3.4 GB) and reads 2 × 4 × 64 × 64 latents and 77 tokens, as for a picture of 512 × 512
with guidance; its step is one evaluation through a pipeline's hooks, two regions painted. The starter's is one evaluation of its
guided decoder. Painted and plain take turns; times are the processor's, so that other work on the machine counts little, and
medians. `--quick` is tiny and only shows that it runs.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from padded import conditions, options, write
from torch import Tensor

from syzygy.core.contracts import Guide, Region
from syzygy.decoder.guidance import Guided
from syzygy.decoder.latent_decoder import LatentDecoder, conditioning_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.regions.diffusers_hook import region_conditioning

PROMPT = "a red star and a blue ring"
TARGETS = {"starter": 1.3, "stable diffusion 1.5": 1.1}


def regions(side: int) -> list[Region]:
    """The left half for one phrase, the right half for the other."""
    left = torch.zeros(side, side)
    left[:, : side // 2] = 1
    return [Region("a red star", left), Region("a blue ring", 1 - left)]


def medians(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Of each, after one untimed, which shows that there is something to pay for; taken in turn."""
    first, second = (run() for run in runs.values())
    assert not torch.equal(first, second), "nothing was painted"
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def starter(batch: int) -> dict[str, Callable[[], Tensor]]:
    """An evaluation of the guided decoder for `batch` pictures."""
    model = TextToImage.from_pretrained("starter")
    decoder = model.pipeline.decoder
    assert isinstance(decoder, LatentDecoder)
    features = model.clip.encode_text([PROMPT] * batch)
    embeddings = torch.randn(batch, model.clip.width, generator=torch.Generator().manual_seed(0))
    encoders = {name: one.encode_states([PROMPT] * batch) for name, one in decoder.encoders.items()}
    denoiser, x = Guided(decoder.denoiser, 2.0), torch.randn(batch, *decoder.autoencoder.latent_shape)
    sigma = torch.full((batch,), 3.0)

    def step(own: list[Region] | None) -> Callable[[], Tensor]:
        told = Guide(embeddings, features, [PROMPT] * batch, None if own is None else [own] * batch)
        read = conditioning_of(told, torch.device("cpu"), 0.4, encoders)
        return lambda: denoiser(x, sigma, read)

    return {"plain": step(None), "painted": step(regions(64))}


class _Reader:
    """A tokenizer of whole words with places, as fast ones of transformers answer."""

    model_max_length, bos_token_id, eos_token_id, pad_token_id = 77, 0, 1, 1

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        words = PROMPT.split()
        starts = [PROMPT.index(word) for word in words]
        spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
        return {"input_ids": [list(range(2, 2 + len(words)))] * len(texts), "offset_mapping": [spans] * len(texts)}


class _Pipeline(SimpleNamespace):
    """What is asked of a pipeline."""

    do_classifier_free_guidance = True


def stable_diffusion(quick: bool, held: ExitStack) -> tuple[dict[str, Callable[[], Tensor]], float]:
    """An evaluation for one picture with guidance, as a pipeline of diffusers makes it; and millions of parameters."""
    sizes: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1} if quick else {}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }

    def made() -> UNet2DConditionModel:
        with torch.device("meta"):
            return UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8, **(sizes | blocks if quick else {})
            )

    unet, twin = made(), made()
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    twin.load_state_dict(unet.state_dict(), assign=True)  # the same numbers, not twice in memory
    twin.eval().requires_grad_(False)
    pipeline: Any = _Pipeline(unet=twin, scheduler=DDIMScheduler(), tokenizer=_Reader(), text_encoder=None)
    held.enter_context(region_conditioning(pipeline, PROMPT, regions(512)))  # entering is no part of a step
    latents, states, t = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768), torch.tensor(600)

    def step(one: UNet2DConditionModel) -> Callable[[], Tensor]:
        return lambda: one(latents, t, encoder_hidden_states=states, return_dict=False)[0]

    return {"plain": step(unet), "painted": step(twin)}, sum(p.numel() for p in unet.parameters()) / 1e6


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of the starter; of the big U-Net a third of them")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    rounds = 2 if args.quick else args.rounds
    where = conditions(rounds)
    print(where)
    taken = {f"starter, {n} pictures": medians(starter(n), rounds) for n in (1, 16)}
    with ExitStack() as held:
        big, millions = stable_diffusion(args.quick, held)
        taken[f"stable diffusion 1.5, {millions:.0f}M"] = medians(big, max(rounds // 3, 1))
    for name, own in taken.items():
        target = next(value for start, value in TARGETS.items() if name.startswith(start))
        print(
            f"{name:<28}plain {1e3 * own['plain']:>9.1f} ms   painted {1e3 * own['painted']:>9.1f} ms   "
            f"ratio {own['painted'] / own['plain']:.3f} (target ≤ {target})"
        )
    write(args.json, where | {"parameters_millions": millions, "seconds": taken})


if __name__ == "__main__":
    main()
