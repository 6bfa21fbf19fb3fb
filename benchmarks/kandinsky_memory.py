"""Does Kandinsky 2.2 fit an 8 GB card? Peak memory and time of a picture, with the stock prior of 1B and with ECLIPSE's 34M.

    python benchmarks/kandinsky_memory.py [--quick] [--size 512] [--steps 50] [--json FILE]

Real sizes, random weights, bf16 (ECLIPSE in fp32), on a GPU: text tower, prior, U-Net and MOVQ, each with all parts on the device and with
`offload` (each there only while it computes). A prompt of a dozen tokens, one picture, guidance on, its zero image kept from before. The
second run of two counts. A card needs the peak that torch reserved, and what CUDA itself takes, which is measured too.
`--quick`: tiny ones, on the CPU if there is no GPU, that only show that it runs; memory is then not measured.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from padded import conditions, options, write
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from syzygy.clip.clip_loading import Towers
from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
from syzygy.core.contracts import Prior, Sampling
from syzygy.core.randomness import generator
from syzygy.generation.pipeline import Pipeline
from syzygy.generation.request import GenerationRequest
from syzygy.pretrained.kandinsky import KandinskyDecoder
from syzygy.pretrained.visiting import VisitingPrior, VisitingText
from syzygy.prior.diffusion_prior import DiffusionPrior, DiffusionPriorConfig, SampledPrior
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig

CARD = 8 * 2**30
PROMPT = "a red cat, 4k photo, sitting left of a blue star"
HALF = torch.bfloat16


class Sizes(NamedTuple):
    """Of the networks, as in their published configurations."""

    text: Mapping[str, Any]
    prior: Mapping[str, Any]
    eclipse: Mapping[str, Any]
    unet: Mapping[str, Any]
    movq: Mapping[str, Any]


REAL = Sizes(
    text={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    prior={"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20},
    eclipse={},
    unet={
        "block_out_channels": (384, 768, 1152, 1536),
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "cross_attention_dim": 768,
    },
    movq={"block_out_channels": (128, 256, 256, 512), "layers_per_block": 2, "num_vq_embeddings": 16384},
)
TINY = Sizes(
    text={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    prior={"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2},
    eclipse={"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2},
    unet={
        "block_out_channels": (32, 32, 64, 64),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
    },
    movq={"block_out_channels": (32, 32, 32, 64), "layers_per_block": 1, "num_vq_embeddings": 16},
)


def filled(make: Callable[[], Any], dtype: torch.dtype, device: str) -> Any:
    """The network on `device`, with small random weights, which a GPU draws fastest."""
    with torch.device("meta"):
        model: nn.Module = make()
    # diffusers' own `to` warns of modules to keep in fp32, of which it then names none.
    model = (
        nn.Module.to(model, dtype)
        .to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
        .eval()
        .requires_grad_(False)
    )
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]))
    return nn.Module.to(model, device)


def text_encoder(sizes: Sizes, device: str) -> Clip:
    """ViT-bigG/14's text tower; the image tower, which no picture needs once its zero image is kept, is tiny."""
    texts = build_clip(ClipConfig(width=32, text_layers=1, text_heads=2, vision_layers=1), [PROMPT] * 3, seed=0)
    width, end = sizes.text["hidden_size"], len(texts.tokenizer) - 1
    text = CLIPTextConfig(**sizes.text, projection_dim=width, hidden_act="gelu", bos_token_id=end - 1, eos_token_id=end)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = CLIPVisionConfig(**small, image_size=28, patch_size=14, projection_dim=width)
    towers = Towers(
        filled(lambda: CLIPTextModelWithProjection(text), HALF, device),
        filled(lambda: CLIPVisionModelWithProjection(image), HALF, device),
    )
    return Clip(towers, texts.tokenizer, texts.preparation, "random weights").eval()


def decoder(sizes: Sizes, device: torch.device, home: str, offload: bool) -> KandinskyDecoder:
    """Kandinsky 2.2's U-Net, MOVQ and scheduler."""
    width = sizes.text["hidden_size"]
    crossing = ["SimpleCrossAttnDownBlock2D"] * 3, ["SimpleCrossAttnUpBlock2D"] * 3
    unet = filled(
        lambda: UNet2DConditionModel(
            **sizes.unet,
            sample_size=64,
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=width,
            down_block_types=("ResnetDownsampleBlock2D", *crossing[0]),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(*crossing[1], "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
        ),
        HALF,
        home,
    )
    movq = filled(
        lambda: VQModel(
            **sizes.movq,
            down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
            latent_channels=4,
            norm_type="spatial",
            vq_embed_dim=4,
        ),
        HALF,
        home,
    )
    scheduler = DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range"
    )
    return KandinskyDecoder(unet, movq, scheduler, device, lambda: torch.zeros(1, width), offload)


def path(stock: bool, offload: bool, sizes: Sizes, device: torch.device) -> Pipeline:
    """All that makes a picture of a prompt."""
    home = "cpu" if offload else str(device)
    clip, width = text_encoder(sizes, home), sizes.text["hidden_size"]
    prior: Prior
    if stock:
        config = DiffusionPriorConfig(embedding_dim=width, **sizes.prior)
        network = filled(lambda: DiffusionPrior(config), HALF, home)
        prior = SampledPrior(network, clip.to(device).encode_text([""]), schedule="cosine")
        clip.to(home)
    else:
        prior = filled(
            lambda: EclipsePrior(EclipsePriorConfig(embedding_dim=width, **sizes.eclipse)), torch.float32, home
        )
    painter = decoder(sizes, device, home, offload)
    if offload:
        return Pipeline(VisitingText(clip, device), VisitingPrior(prior, device), painter, device)
    return Pipeline(clip, prior, painter, device)


def measured(pipeline: Pipeline, how: Sampling, device: torch.device) -> dict[str, float]:
    """Seconds of text and prior, and of all; and in bytes, on a GPU, the peak of memory in use and reserved."""
    on_gpu, found = device.type == "cuda", {}

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(2):  # the first time kernels are chosen
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = now()
        features = pipeline.text_encoder.encode_text([PROMPT])
        noise = torch.randn(features.pooled.shape, generator=generator(0)).to(device)
        embedding: Tensor = pipeline.prior.predict(features, noise=noise)
        predicted = now()
        assert torch.isfinite(embedding).all()
        begun = now()
        pipeline(GenerationRequest([PROMPT], sampling=how, generator=generator(0)))
        found = {"text_and_prior_seconds": predicted - began, "picture_seconds": now() - begun}
        if on_gpu:
            found |= {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return found


def of_cuda_itself() -> int:
    """Bytes of the device that are neither free nor torch's (another program's too: measure on a free one)."""
    torch.cuda.synchronize()
    free, whole = torch.cuda.mem_get_info()
    return whole - free - torch.cuda.memory_reserved()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=50, help="of the decoder")
    args = parser.parse_args()
    if not (args.quick or torch.cuda.is_available()):
        parser.error("real sizes are measured on a GPU, and there is none; --quick shows that it runs.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, size, steps = (TINY, 64, 2) if args.quick else (REAL, args.size, args.steps)
    how = Sampling(steps=steps, size=(size, size))
    results: dict[str, Any] = {}
    where = conditions(1) | {"device": str(device), "pixels": size, "steps": steps, "dtype": "bf16"}
    print(f"{where}; one picture, guidance 4")
    for offload in (False, True):
        for stock in (True, False):
            name = f"{'stock prior' if stock else 'ECLIPSE'}{', offload' if offload else ''}"
            with torch.inference_mode():
                pipeline = path(stock, offload, sizes, device)
                results[name] = found = measured(pipeline, how, device)
            del pipeline
            gc.collect()
            line = f"{name:<22}text and prior {found['text_and_prior_seconds']:7.3f} s, picture {found['picture_seconds']:7.2f} s"
            if device.type == "cuda":
                torch.cuda.empty_cache()
                found["needs"] = found["reserved"] + of_cuda_itself()
                found["fits_8_gb"] = found["needs"] <= CARD
                verdict = "fits" if found["fits_8_gb"] else "does NOT fit"
                line += f", peak {found['peak'] / 2**30:5.2f} GiB, card needs {found['needs'] / 2**30:5.2f} GiB: {verdict} 8 GiB"
            print(line)
    write(args.json, where | {"results": results})


if __name__ == "__main__":
    main()
