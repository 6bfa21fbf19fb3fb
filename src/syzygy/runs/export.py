"""A trained prior as a folder to pass on: the published layout, a model card, and the record of how it came to be."""

from pathlib import Path
from typing import Any, Literal

import torch

from syzygy import artifact
from syzygy.errors import UserError
from syzygy.prior.model import EclipsePrior
from syzygy.train import checkpoint

CARD_FILE = "README.md"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
GENERATORS = {768: "Karlo, Stable unCLIP (CLIP ViT-L/14)", 1280: "Kandinsky 2.2 (CLIP ViT-bigG/14)"}
"""Published generators by the width of the embeddings that they read."""


def export(run: Path, out: Path, *, best: bool, dtype: Literal["fp16", "fp32"]) -> Path:
    """Write the ECLIPSE prior of the finished training run `run` to `out`; `best` takes the weights that validated best.

    `config.json` and `diffusion_pytorch_model.safetensors` are as ECLIPSE's authors publish them; `provenance.json` and
    the model card `README.md` lie beside.

    Raises:
        UserError: no finished run of an ECLIPSE prior, no best weights, or a folder that is not empty.
    """
    folder = run / "prior"
    if not folder.is_dir():
        kind = "is not finished" if (run / checkpoint.RUN_FILE).is_file() else "is no training run of a prior"
        raise UserError(f"{run} {kind}: it holds no folder 'prior'. `syzygy train prior --out {run}` makes one.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder, so that nothing is overwritten.")
    prior = EclipsePrior.from_pretrained(folder)
    record = artifact.read_json(folder / artifact.PROVENANCE_FILE)
    if best:
        checkpoint.load_best(run, {"prior": prior})
        record |= {"best": artifact.read_json(run / checkpoint.BEST / checkpoint.STATE_FILE)}
    prior.save_pretrained(out, record, DTYPES[dtype])
    artifact.write_bytes(out / CARD_FILE, card(prior, record, out.name).encode())
    return out


def card(prior: EclipsePrior, record: dict[str, Any], name: str) -> str:
    """The model card, in Markdown with the hub's front matter."""
    config, recipe = prior.config, record["recipe"]
    parameters = sum(p.numel() for p in prior.parameters() if p.requires_grad)
    reads = GENERATORS.get(config.embedding_dim, "the generator whose CLIP embedded the training pairs")
    metrics = "\n".join(f"| {key} | {value:g} |" for key, value in record["metrics"].items())
    task, loop = recipe["task"], recipe["loop"]
    weights = f"best by {record['best']['metric']}, step {record['best']['step']:,}" if "best" in record else "last"
    trained = (
        f"{record['samples']:,} captions in {record['steps']:,} steps of {task['batch_size']}, peak learning rate "
        f"{loop['lr']:g}, λ {task['lambda_contrastive']:g}; {weights} weights"
    )
    return f"""---
library_name: syzygy
pipeline_tag: text-to-image
tags: [text-to-image, unclip, prior, eclipse]
---
# {name}

An ECLIPSE prior (arXiv 2312.04655): CLIP text features to the CLIP image embedding that a generator paints, in one forward pass.

| | |
|---|---|
| parameters | {parameters:,} ({config.num_layers} layers, {config.num_attention_heads} heads of {config.attention_head_dim}) |
| embeddings | raw (projected, not normalised), width {config.embedding_dim}: for {reads} |
| CLIP it was trained beside | fingerprint `{record["clip"]}` |
| text | at most {config.num_embeddings} tokens: states after CLIP's last layer normalisation, and the pooled embedding, not normalised |
| trained | {trained} |

Validation, last weights:

| metric | value |
|---|---|
{metrics}

```python
import syzygy

prior = syzygy.EclipsePrior.from_pretrained("{name}")
embedding = prior.predict(features)  # TextFeatures(states, mask, pooled) of the CLIP above
```

`config.json` and the weights are in the layout that ECLIPSE's authors publish; stock diffusers cannot load it, as its
`PriorTransformer` wants a time embedding.
`provenance.json` tells recipe, data, machine and versions.
"""
