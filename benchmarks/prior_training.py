"""A training step of the 34M prior, with and without computing the padding: forward, loss with contrast, backward; fp32, CPU.

    python benchmarks/prior_training.py [--quick] [--json FILE]

256 captions of COCO's lengths, 1280 wide. Both compute the same loss from the same weights; the ratio is of one run, the
two timed in turn. Target: ≥ 4 (80 tokens to about 16 would be 5). Needs about 10 GB; `--quick` is a tiny one that only
shows that it runs.
"""

from collections.abc import Callable

import torch
from padded import coco_lengths, conditions, options, over_all_80_tokens, prompts, published_prior, seconds, write
from torch import Tensor

from syzygy.core.packed_attention import PackedText
from syzygy.prior.eclipse import eclipse_loss


def main() -> None:
    args = options(__doc__).parse_args()
    batch, layers, rounds = (16, 2, 2) if args.quick else (256, 10, 5)
    prior = published_prior(layers)
    lengths = coco_lengths(batch)
    features, noise = prompts(lengths)
    text = PackedText.of(features)  # an embedding store gives it so
    image = torch.randn(batch, features.pooled.shape[1], generator=torch.Generator().manual_seed(3))
    losses: dict[str, float] = {}

    def step(name: str, predict: Callable[[], Tensor]) -> None:
        prior.zero_grad()
        loss = eclipse_loss(
            predict(),
            image,
            features.pooled,
            lambda_contrastive=0.2,
            logit_scale=100.0,
            caption_ids=torch.arange(batch),
        )
        loss.total.backward()
        losses[name] = loss.total.item()

    taken = seconds(
        {
            "padded": lambda: step("padded", lambda: over_all_80_tokens(prior, features, noise)),
            "packed": lambda: step("packed", lambda: prior(text, noise)),
        },
        rounds,
    )
    ratio, apart = taken["padded"] / taken["packed"], abs(losses["padded"] - losses["packed"])
    where, tokens = conditions(rounds), int(lengths.sum()) + 3 * batch
    print(f"{where}; {batch} captions, {layers} layers")
    print(
        f"tokens     {tokens} of {80 * batch}: {80 * batch / tokens:.2f} times fewer; captions of {lengths.float().mean():.1f}"
    )
    for name, value in taken.items():
        print(f"{name}     {value:.3f} s a step, {batch / value:.0f} captions/s, loss {losses[name]:.6f}")
    print(f"ratio      {ratio:.2f}; losses apart by {apart:.1e}")
    write(
        args.json,
        where
        | {"batch": batch, "layers": layers, "tokens": tokens, "tokens_padded": 80 * batch, "seconds": taken}
        | {"losses": losses, "ratio": ratio},
    )
    if apart > 1e-5 * max(1, losses["padded"]):
        raise SystemExit("the losses differ by more than 1e-5")


if __name__ == "__main__":
    main()
