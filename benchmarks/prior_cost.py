"""What an image embedding costs: ECLIPSE's one pass of 34M against the stock diffusion prior of 1B (diffusers, Kandinsky 2.2's size).

    python benchmarks/prior_cost.py [--quick] [--tokens 12] [--json FILE]

The stock prior takes 25 steps with guidance, so 50 evaluations of 81 tokens. They cost the same each: *one* evaluation is
measured, at real size with random weights in fp32 on the CPU, and its time and FLOPs are multiplied by 50 (what the scheduler
adds is not counted). FLOPs are those of matrix products and attention as run, a multiplication and an addition counted as two.
Needs about 9 GB; `--quick` is a tiny one that only shows that it runs.
"""

from collections.abc import Callable

import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from padded import WIDTH, conditions, options, prompts, published_prior, seconds, write
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

EVALUATIONS = 50


def flops(run: Callable[[], object]) -> int:
    """Attention is taken apart into products: the counter does not know the CPU's fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=12, help="of the prompt, start and end included")
    args = parser.parse_args()
    layers, stock_layers, rounds = (2, 1, 2) if args.quick else (10, 20, 5)
    eclipse = published_prior(layers).requires_grad_(False)
    stock = PriorTransformer(
        num_attention_heads=32, attention_head_dim=64, num_layers=stock_layers, embedding_dim=WIDTH
    )
    stock.requires_grad_(False).eval()
    features, noise = prompts(torch.tensor([args.tokens]))

    def evaluation() -> object:
        return stock(noise, 500, features.pooled, features.states, features.mask)

    def one_pass() -> object:
        return eclipse.predict(features, noise=noise)

    with torch.no_grad():
        operations = {"eclipse": flops(one_pass), "stock, one evaluation": flops(evaluation)}
        taken = seconds({"eclipse": one_pass, "stock, one evaluation": evaluation}, rounds)
    where = conditions(rounds)
    print(f"{where}; a prompt of {args.tokens} tokens")
    print(f"parameters              eclipse {millions(eclipse):.1f} M, stock {millions(stock):.1f} M")
    for name in taken:
        print(f"{name:<24}{operations[name] / 1e9:>10.2f} GFLOP {1e3 * taken[name]:>10.1f} ms, measured")
    whole = {
        key: EVALUATIONS * values["stock, one evaluation"] for key, values in (("flops", operations), ("s", taken))
    }
    print(
        f"stock, {EVALUATIONS} evaluations    {whole['flops'] / 1e9:>10.2f} GFLOP {1e3 * whole['s']:>10.1f} ms, scaled from one"
    )
    ratios = {"flops": whole["flops"] / operations["eclipse"], "seconds": whole["s"] / taken["eclipse"]}
    print(f"ratio                   {ratios['flops']:.0f} in FLOPs, {ratios['seconds']:.0f} in time")
    write(
        args.json,
        where
        | {"tokens": args.tokens, "parameters_millions": {"eclipse": millions(eclipse), "stock": millions(stock)}}
        | {"flops": operations, "seconds": taken, "evaluations": EVALUATIONS, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
