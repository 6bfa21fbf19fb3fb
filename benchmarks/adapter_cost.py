"""What an adapter adds to its language model: its forward pass against that of a 1B model of Llama's shape, at the same prompt.

    python benchmarks/adapter_cost.py [--quick] [--tokens 64] [--json FILE]

Llama 3.2 1B's sizes with random weights, without its head, all in bf16 on the CPU; the encoder of a T5 XL (1.2B, eDiff-I's is XXL)
beside it. The adapter reads the mean over all normalised layers, which counts to neither. FLOPs are those of matrix products and
attention as run, a multiplication and an addition counted as two; time is the processor's, so that other work beside does not count.
Target: the adapter costs at most 20 % of the language model. Needs about 6 GB; `--quick` is a tiny one that only shows that it runs.
"""

import time
from collections.abc import Callable

import torch
from padded import conditions, options, seconds, write
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel, T5Config, T5EncoderModel

from syzygy.text_encoders.adapter import SIZES, AdapterConfig, TextAdapter, TextStatistics

TARGET = 0.2
CLIPS = {"vit-l-14": 768, "bigg-14": 1280}


def llama(quick: bool) -> nn.Module:
    return LlamaModel(
        LlamaConfig(
            vocab_size=128 if quick else 128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=1 if quick else 16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=4096,
        )
    )


def t5(quick: bool) -> nn.Module:
    sizes = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(vocab_size=128 if quick else 32_128, num_layers=1 if quick else 24, **sizes))


def adapter(name: str, llm_width: int) -> TextAdapter:
    clip_width = CLIPS[name]
    made = TextAdapter(AdapterConfig(**SIZES[name].model_dump(), llm_width=llm_width, clip_width=clip_width))
    ones = torch.ones(clip_width)
    made.set_statistics(TextStatistics(0 * ones, ones, 0 * ones, ones))
    return made


def flops(run: Callable[[], object]) -> int:
    """Attention is taken apart into products: the counter does not know the CPU's fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="of the prompt, special ones included")
    args = parser.parse_args()
    rounds = 2 if args.quick else 5
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # never in fp32, which would take twice the memory
    models: dict[str, nn.Module] = {"llama 1B": llama(args.quick), "t5 xl encoder": t5(args.quick)}
    width = models["llama 1B"].config.hidden_size  # type: ignore[union-attr]
    models |= {f"adapter {name}": adapter(name, width) for name in CLIPS}
    ids, mask = torch.randint(128, (1, args.tokens)), torch.ones(1, args.tokens, dtype=torch.bool)
    states = torch.randn(1, args.tokens, width)

    def run(name: str) -> Callable[[], object]:
        model = models[name].eval()
        if isinstance(model, TextAdapter):
            return lambda: model(states, mask)
        return lambda: model(input_ids=ids, attention_mask=mask.long())

    runs = {name: run(name) for name in models}
    with torch.no_grad():
        operations = {name: flops(one) for name, one in runs.items()}
        taken = seconds(runs, rounds, time.process_time)
    where = conditions(rounds)
    print(f"{where}; a prompt of {args.tokens} tokens, bf16")
    for name, model in models.items():
        print(f"{name:<18}{millions(model):>9.1f} M {operations[name] / 1e9:>9.2f} GFLOP {1e3 * taken[name]:>9.1f} ms")
    ratios = {}
    for name in CLIPS:
        own = f"adapter {name}"
        for other in ("llama 1B", "t5 xl encoder"):
            ratios[f"{own} / {other}"] = found = (operations[own] / operations[other], taken[own] / taken[other])
            print(
                f"{own} / {other}: {found[0]:.1%} in FLOPs, {found[1]:.1%} in time (target {TARGET:.0%} of the 1B model)"
            )
    write(
        args.json,
        where
        | {"tokens": args.tokens, "parameters_millions": {name: millions(model) for name, model in models.items()}}
        | {"flops": operations, "seconds": taken, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
