"""What benchmarks share: the prior's published computation over all 80 tokens, prompts of COCO's lengths, options, timing, JSON.

No script of its own.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syzygy.core.artifacts import machine
from syzygy.core.contracts import TextFeatures
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig

WIDTH = 1280  # CLIP ViT-bigG/14, Kandinsky 2.2


def published_prior(layers: int = 10) -> EclipsePrior:
    """ECLIPSE's 34M prior with random weights."""
    torch.manual_seed(0)
    prior = EclipsePrior(EclipsePriorConfig(embedding_dim=WIDTH, num_layers=layers))
    torch.nn.init.normal_(prior.positional_embedding, std=0.1)
    torch.nn.init.normal_(prior.prd_embedding)
    return prior


def over_all_80_tokens(prior: EclipsePrior, features: TextFeatures, noise: Tensor) -> Tensor:
    """`prior` computed as the published code does: padding through every layer, two additive masks of -10,000."""
    text = prior.encoder_hidden_states_proj(features.states)
    after = [prior.embedding_proj(features.pooled), prior.proj_in(noise), prior.prd_embedding[0].expand(len(noise), -1)]
    x = torch.cat([text, torch.stack(after, 1)], 1) + prior.positional_embedding
    padding = -1e4 * F.pad((~features.mask).to(x.dtype), (0, 3))
    mask = padding[:, None, None] - 1e4 * torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).triu(1)
    for block in prior.transformer_blocks:
        attention, asked = block.attn1, block.norm1(x)
        heads = (
            project(asked).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        read = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = x + attention.to_out(read.transpose(1, 2).flatten(2))
        x = x + block.ff(block.norm3(x))
    return prior.proj_to_clip_embeddings(prior.norm_out(x)[:, -1])


def coco_lengths(batch: int) -> Tensor:
    """Tokens of captions, start and end included, spread as COCO's: about 13 on average, seldom fewer than 10 or more than 20."""
    draws = torch.randn(batch, generator=torch.Generator().manual_seed(1))
    return (2 + (10.9 * torch.exp(0.24 * draws)).round()).clamp(7, 77).long()


def prompts(lengths: Tensor) -> tuple[TextFeatures, Tensor]:
    """Random features, padded to 77 tokens, and noise."""
    draw = torch.Generator().manual_seed(2)
    batch = len(lengths)
    states = torch.randn(batch, 77, WIDTH, generator=draw)
    mask = torch.arange(77) < lengths[:, None]
    pooled, noise = torch.randn(2, batch, WIDTH, generator=draw)
    return TextFeatures(states, mask, pooled), noise


def options(about: str | None) -> argparse.ArgumentParser:
    """A script's command line: its docstring, `--quick` and `--json`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser


def seconds(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The least of several timings of each, after one untimed; taken in turn, so that other work on the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            began = clock()
            run()
            if i > 0:
                taken[name].append(clock() - began)
    return {name: min(values) for name, values in taken.items()}


def conditions(rounds: int) -> dict[str, Any]:
    """Where and how it was measured."""
    return {"machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": rounds}


def write(path: Path | None, results: Mapping[str, Any]) -> None:
    """As JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
