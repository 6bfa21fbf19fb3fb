"""What experts cost: routing's part of a step, and the peak of memory of experts that come one at a time. CPU; offloading on a GPU.

    python benchmarks/experts_cost.py [--quick] [--json FILE]

Targets, of one run: routing ≤ 1 % of a step on the starter's decoder (four identical experts against the decoder alone, guidance 2, one
picture, median of pairs of samplings taken in turn, processor time); peak memory of three lazily loaded U-Nets in sampling ≤ 1.1 × that of
one alone, each in a process of its own, less what the process holds before. All three resident are measured beside. With a GPU the same is
measured of offloaded ones there. `--quick`: few rounds and a small U-Net that only show that it runs.
"""

import argparse
import copy
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from padded import conditions, options, write

from syzygy.core.contracts import Conditioning, image_condition
from syzygy.core.model_parts import model_folder
from syzygy.decoder.backbone import load_decoder
from syzygy.decoder.guidance import Guided
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.decoder.samplers import sample
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.expert_unets import ExpertUNet
from syzygy.experts.routing import Experts, Stages

CUT = Stages(("a", "b", "c"), (0.9, 4.0))
STEPS = 25


def routing(rounds: int) -> dict[str, float]:
    """Seconds a step of the starter's decoder, alone and as four identical experts."""
    decoder = load_decoder(model_folder("starter") / "decoder").requires_grad_(False)
    alone = Preconditioned(decoder, decoder.config.sigma_data)
    stages = Stages(("a", "b", "c", "d"), (0.1, 0.9, 9.0))
    routed = Experts(stages, {name: copy.deepcopy(alone) for name in stages.experts})
    size = decoder.config
    noise = torch.randn(1, size.channels, size.size, size.size, generator=torch.Generator().manual_seed(0))
    told = Conditioning({"image": image_condition(torch.ones(1, size.slots[0].pooled_width or 1))})
    sigmas = KarrasSchedule().sigmas(STEPS)

    def seconds(denoiser: Any) -> float:
        began = time.process_time()
        sample(Guided(denoiser, 2.0), noise, sigmas, told)
        return (time.process_time() - began) / STEPS

    gc.disable()  # its pauses are the machine's business
    with torch.inference_mode():
        assert torch.equal(
            sample(Guided(routed, 2.0), noise, sigmas, told), sample(Guided(alone, 2.0), noise, sigmas, told)
        )
        pairs = [
            (seconds(alone), seconds(routed)) if i % 2 else tuple(reversed((seconds(routed), seconds(alone))))
            for i in range(rounds)
        ]
    gc.enable()
    over = statistics.median(after / before for before, after in pairs)
    began = time.process_time()
    for _ in range(1000):
        for sigma in sigmas[:-1].tolist():
            Guided(routed, 2.0).at(sigma)
    choosing = (time.process_time() - began) / 1000 / STEPS
    return {"step": statistics.median(before for before, _ in pairs), "ratio": over, "choosing": choosing}


def unet(quick: bool) -> Any:
    """Random, with weights of about 300 MB that a small picture's activations do not reach."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(64, 128) if quick else (320, 640), layers_per_block=1, cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def resident(which: str) -> int:
    """Bytes of memory now (`VmRSS`) or at the highest (`VmHWM`), files that are mapped included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))


def peak(folder: Path, memory: str, device: str) -> float:
    """In a process of its own: bytes at the highest, less those before the weights, over one schedule of all experts."""
    from syzygy.core.diffusers_weights import load_model

    small = unet(True)
    kind: Any = type(small)

    def walk(network: Any, steps: int) -> None:
        x, states = torch.zeros(1, 4, 8, 8, device=device), torch.zeros(1, 2, 64, device=device)
        with torch.inference_mode():
            for t in torch.linspace(999, 0, steps, device=device):
                network(x, t, states)

    walk(small.to(device), 1)  # what libraries allocate at their first use
    del small
    gc.collect()
    before = 0
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the highest is now
        before = resident("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    if memory == "one":
        network: Any = load_model(kind, folder, "a", torch.float32).to(device)
    else:
        network = ExpertUNet.from_pretrained(folder, device=device, offload_policy=OffloadPolicy(memory=memory))
    walk(network, 6)
    return (resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()) - before


def measured(folder: Path, memory: str, device: str) -> float:
    command = [sys.executable, __file__, "--of", str(folder), memory, device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def ensemble(folder: Path, quick: bool) -> float:
    """Three experts on disk; bytes of one's weights."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    made = unet(quick)
    counted = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ExpertUNet(CUT, {name: made for name in CUT.experts}, counted).save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in made.parameters())


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--of", nargs=3, help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    if args.of:
        torch.set_num_threads(1)
        print(peak(Path(args.of[0]), args.of[1], args.of[2]))
        return
    torch.set_num_threads(1)
    rounds = 3 if args.quick else 60
    found: dict[str, Any] = conditions(rounds)
    print(found)
    cost = routing(rounds)
    print(
        f"step of the starter  {1e3 * cost['step']:.3f} ms alone; four identical experts {cost['ratio']:.4f} times as long"
    )
    print(f"choosing the expert  {1e6 * cost['choosing']:.2f} µs, {100 * cost['choosing'] / cost['step']:.3f} % of it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "experts"
        weights = ensemble(folder, args.quick)
        print(f"weights of an expert {weights / 1e6:.1f} MB, three of them")
        memory: dict[str, float] = {}
        for device, ways in (("cpu", ("one", "lazy", "all")), ("cuda", ("one", "offload", "lazy", "all"))):
            if device == "cuda" and not torch.cuda.is_available():
                continue
            taken = {way: measured(folder, way, device) for way in ways}
            for way, value in taken.items():
                print(f"peak on {device:<5} {way:<8} {value / 1e6:8.1f} MB  {value / taken['one']:.3f} times one")
            memory |= {f"{device} {way}": value for way, value in taken.items()}
    write(args.json, found | {"routing": cost, "weights": weights, "peak": memory})


if __name__ == "__main__":
    main()
