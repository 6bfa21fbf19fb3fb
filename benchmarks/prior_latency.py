"""One prompt through the 34M prior: all 80 tokens against its own, fp32 and bf16, CPU.

    python benchmarks/prior_latency.py [--quick] [--tokens 12] [--json FILE]

Targets, of one run: fp32 without padding ≤ 1/2.5 of padded fp32, bf16 ≤ 1/4. The floor is the time that merely reading the
weights once from memory takes. `--quick`: a tiny one that only shows that it runs.
"""

import copy

import torch
from padded import conditions, options, over_all_80_tokens, prompts, published_prior, seconds, write


def reading(size: int) -> torch.Tensor:
    """So many bytes, as numbers that are quick to sum."""
    return torch.ones(size // 4)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=12, help="of the prompt, start and end included")
    args = parser.parse_args()
    layers, rounds = (2, 3) if args.quick else (10, 30)
    prior = published_prior(layers).requires_grad_(False)
    half = copy.deepcopy(prior).to(torch.bfloat16)
    features, noise = prompts(torch.tensor([args.tokens]))
    in_half, noise_in_half = features.to(dtype=torch.bfloat16), noise.to(torch.bfloat16)
    # The table of positions is not read whole.
    size = 4 * sum(p.numel() for name, p in prior.named_parameters() if name != "positional_embedding")
    floor, floor_in_half = reading(size), reading(size // 2)
    with torch.no_grad():
        exact = over_all_80_tokens(prior, features, noise)
        apart = (prior.predict(features, noise=noise) - exact).abs().max().item()
        in_bf16 = half.predict(features, noise=noise).float()
        cosine = torch.cosine_similarity(in_bf16, exact).item()
        taken = seconds(
            {
                "padded fp32": lambda: over_all_80_tokens(prior, features, noise),
                "packed fp32": lambda: prior.predict(features, noise=noise),
                "padded bf16": lambda: over_all_80_tokens(half, in_half, noise_in_half),
                "packed bf16": lambda: half.predict(features, noise=noise),
                "floor fp32": floor.sum,
                "floor bf16": floor_in_half.sum,
            },
            rounds,
        )
    where = conditions(rounds)
    print(f"{where}; a prompt of {args.tokens} tokens, {layers} layers, weights of {size / 1e6:.0f} MB in fp32")
    for name, value in taken.items():
        print(f"{name}   {1e3 * value:7.2f} ms   {taken['padded fp32'] / value:5.2f} times as fast as padded fp32")
    print(f"fp32 packed and padded differ by {apart:.1e} at most; bf16 has cosine {cosine:.5f} to it")
    write(
        args.json,
        where | {"tokens": args.tokens, "layers": layers, "seconds": taken, "apart": apart, "cosine_bf16": cosine},
    )
    if apart > 1e-5:
        raise SystemExit("packed and padded predictions differ by more than 1e-5")


if __name__ == "__main__":
    main()
