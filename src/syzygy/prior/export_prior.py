"""Export of a trained prior: a folder with a model card (Markdown with the hub's front matter)."""

import json
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.lambda_residual import LambdaResidualPrior
from syzygy.prior.linear_prior import LinearPrior
from syzygy.prior.next_steps import ABOUT, NOT_MEASURED, decoder_of, starter_clip
from syzygy.prior.prior_folders import LAMBDA_RESIDUAL, LINEAR, PUBLISHED, RESIDUAL, Layout
from syzygy.prior.prior_loading import OnePassPrior, load_one_pass
from syzygy.prior.residual_prior import ResidualPrior
from syzygy.training import checkpoints
from syzygy.training.fitting import GUIDE

CARD_FILE = "README.md"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
GENERATORS = {768: "Karlo, Stable unCLIP (CLIP ViT-L/14)", 1280: "Kandinsky 2.2 (CLIP ViT-bigG/14)"}
"""Published generators by the width of their image embeddings."""
NOT_STATED = "not stated"
INTRODUCTIONS: dict[type, str] = {
    EclipsePrior: "An ECLIPSE prior (arXiv 2312.04655). It predicts, in one forward pass, the CLIP image embedding that a generator decodes\n"
    "from the CLIP features of a text.",
    LambdaEclipsePrior: "A λ-ECLIPSE prior (arXiv 2402.05195). It predicts, in one forward pass, the CLIP image embedding that a\n"
    "generator decodes from the CLIP features of a text and from images of subjects that stand for some of its words.",
    ResidualPrior: "A residual prior. It predicts, in one forward pass, the CLIP image embedding that a generator decodes from the CLIP\n"
    "features of a text: the text embedding, moved to the mean of image embeddings, plus a correction by the network of an ECLIPSE prior\n"
    "(arXiv 2312.04655).",
    LambdaResidualPrior: "A residual λ prior. It predicts, in one forward pass, the CLIP image embedding that a generator decodes from the\n"
    "CLIP features of a text and from images of subjects that stand for some of its words: an estimate from the embeddings of text and\n"
    "subjects, plus a correction by the network of a λ-ECLIPSE prior (arXiv 2402.05195).",
    LinearPrior: "A linear map (ridge regression) from CLIP's text embeddings to the CLIP image embeddings that a generator decodes.",
}
"""The first paragraph of the card."""
FILES = {
    PUBLISHED: "`config.json` and the weights are in the layout that ECLIPSE's authors publish. Stock diffusers cannot load it, as its\n"
    "`PriorTransformer` has a time embedding.",
    RESIDUAL: "`config.json` and the weights are in a layout of Syzygy's own. ECLIPSE's code and diffusers cannot load them.",
}
FILES[LINEAR] = FILES[LAMBDA_RESIDUAL] = FILES[RESIDUAL]
MEANINGS = {
    "loss": "projection + λ · contrastive",
    "correction": "mean square of what the network adds",
    "projection": "mean squared error to the true image embedding",
    "contrastive": "cross-entropy of the predicted embeddings against the texts of their batch",
    "cosine": "mean cosine to the true image embedding",
    "cosine_text": "mean cosine to the caption's own text embedding",
    "cosine_other": "mean cosine to the text embedding of another caption",
    "recall_at_1": "how often the true image is the nearest of all validation images (4,096 at most)",
    "frechet": "Fréchet distance of predicted from true embeddings",
}


def export(
    run: Path,
    out: Path,
    *,
    best: bool,
    dtype: Literal["fp16", "fp32"],
    licence: str | None = None,
    source: str | None = None,
    layout: Literal["published", "syzygy"] = "published",
) -> Path:
    """Write the prior of the finished training run `run` to `out`; `best` takes the weights that validated best.

    `config.json` and `diffusion_pytorch_model.safetensors` are as ECLIPSE's authors publish them; `provenance.json` and
    the model card `README.md` are in the same folder. `licence` and `source` (of the data) are for the card and the record.

    Args:
        layout: residual and linear priors do not fit the published layout. They are exported only as "syzygy", so that whoever exports
            them knows that other programs cannot load them.

    Raises:
        UserError: `run` is not a finished run of a prior that answers in one pass, it kept no best weights, `out` is not empty, or the prior
            has no such layout.
    """
    folder = run / "prior"
    if not folder.is_dir():
        if (run / "store.json").is_file():
            raise UserError(
                f"{run} is an embedding store, not a training run. `syzygy train prior --data {run}` trains a prior on it."
            )
        kind = "is not finished" if (run / checkpoints.RUN_FILE).is_file() else "is not a training run of a prior"
        raise UserError(f"{run} {kind}: it holds no folder 'prior'. `syzygy train prior --out {run}` makes one.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder, so that nothing is overwritten.")
    prior = load_one_pass(folder)
    _check_layout(prior.layout, layout)
    record = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    if best:
        checkpoints.load_best(run, {"prior": prior})
        record |= {"best": artifacts.read_json(run / checkpoints.BEST / checkpoints.STATE_FILE)}
    record |= {name: text for name, text in (("licence", licence), ("source", source)) if text is not None}
    prior.save_pretrained(out, record, DTYPES[dtype])
    artifacts.write_bytes(
        out / CARD_FILE, card(prior, record, out.resolve().name, licence=licence, source=source).encode()
    )
    return out


def _check_layout(own: Layout, asked: str) -> None:
    if own != PUBLISHED and asked == "published":
        raise UserError(
            f"{own.kind} does not fit the layout that ECLIPSE's authors publish: their code would ignore what it adds, or refuse it. "
            "To export it in Syzygy's own layout, which only Syzygy loads, give --layout syzygy."
        )
    if own == PUBLISHED and asked == "syzygy":
        raise UserError(
            "an ECLIPSE prior is exported in the published layout, which Syzygy loads too: leave --layout out."
        )


def card(
    prior: OnePassPrior, record: dict[str, Any], name: str, *, licence: str | None = None, source: str | None = None
) -> str:
    """The text of README.md for a prior with this provenance, in a folder with this name; see `export`."""
    width, layout = prior.config.embedding_dim, prior.layout
    reads = GENERATORS.get(width, "the generator whose CLIP embedded the training pairs")
    front = "" if licence is None else f"license: {json.dumps(licence)}\n"
    stated = licence or f"{NOT_STATED}: ask the author before you use it or pass it on"
    return f"""---
library_name: syzygy
pipeline_tag: text-to-image
{front}tags: [text-to-image, unclip, prior{"" if layout == LINEAR else ", eclipse"}]
---
# {name}

{INTRODUCTIONS[type(prior)]}

| | |
|---|---|
| licence | {stated} |
| parameters | {_parameters(prior)} |
| embeddings | raw (projected, not normalised), width {width}: for {reads} |
| CLIP it was trained with | fingerprint `{record["clip"]}` |
| text | {_text(prior)} |
| training data | {_data(record, source)} |
| training | {_training(record)} |

## Use

```python
{_snippet(record, name, type(prior))}```

{FILES[layout]}

## Intended use and limits

- {_limits(record)}
- It learned only what its training pairs show, and it inherits their errors and biases. It was not tested for safety or fairness.
- Measure it on images of another kind before you use it for them: `syzygy evaluate prior --data STORE --prior {quote(name)}`.

## Metrics

{_metrics(record)}

`provenance.json` records recipe, data, machine and versions.
"""


def _parameters(prior: OnePassPrior) -> str:
    if isinstance(prior, LinearPrior):
        return f"{sum(x.numel() for x in prior.state_dict().values()):,} (one matrix)"
    parameters, config = sum(p.numel() for p in prior.parameters() if p.requires_grad), prior.config
    return f"{parameters:,} ({config.num_layers} layers, {config.num_attention_heads} heads of {config.attention_head_dim})"


def _text(prior: OnePassPrior) -> str:
    if isinstance(prior, LinearPrior):
        return "the pooled embedding, not normalised"
    most = prior.config.num_embeddings
    return (
        f"at most {most} tokens: states after CLIP's last layer normalisation, and the pooled embedding, not normalised"
    )


def _data(record: dict[str, Any], source: str | None) -> str:
    about = record.get(ABOUT, {})
    where = source or about.get("source") or f"source {NOT_STATED}"
    if "pairs" not in about:
        return where
    return (
        f"{counted(about['pairs'], 'pair')} of text and image ({counted(about['pictures'], 'picture')}), from {where}"
    )


def _training(record: dict[str, Any]) -> str:
    if "ridge" in record["recipe"]:
        return f"closed form on {record['samples']:,} captions, regularisation {record['recipe']['ridge']:g}"
    task, loop = record["recipe"]["task"], record["recipe"]["loop"]
    penalty = f", penalty {task['penalty']:g}" if "penalty" in task else ""
    weights = f"best by {record['best']['metric']}, step {record['best']['step']:,}" if "best" in record else "last"
    return (
        f"{record['samples']:,} captions in {counted(record['steps'], 'step')} of {task['batch_size']:,}, peak learning rate "
        f"{loop['lr']:g}, λ {task['lambda_contrastive']:g}{penalty}; {weights} weights"
    )


def _snippet(record: dict[str, Any], name: str, kind: type) -> str:
    """Python code that runs in the parent folder: it generates an image if a decoder for the prior is known, else an embedding."""
    prior = json.dumps(name, ensure_ascii=False)
    controlled = issubclass(kind, LambdaEclipsePrior)
    model = decoder_of(record)
    if model is not None:
        download = "" if model == "starter" else ", local_files_only=False"
        return (
            "from syzygy import TextToImage\n\n"
            f'model = TextToImage.from_pretrained("{model}", prior={prior}{download})\n'
            'image = model("a red circle", num_inference_steps=25).images[0]\n'
            'image.save("picture.png")\n'
        )
    where = record.get(ABOUT, {}).get("encoder") or "folder or hub id of the CLIP above"
    clip, packaged = json.dumps(where, ensure_ascii=False), ""
    if record.get("clip") == starter_clip():  # the folder differs between machines
        clip, packaged = 'part_folder("starter", "clip")', "from syzygy.core.model_parts import part_folder\n"
    imported = "from syzygy.clip.zero_image import ZeroImage\n" if controlled else ""
    control = (
        "prior.zero_image = ZeroImage(clip, clip.fingerprint())  # read where there is no layout\n"
        if controlled
        else ""
    )
    return (
        f"from syzygy import {kind.__name__}\n{packaged}"
        f"from syzygy.clip.clip_model import Clip\n{imported}\n"
        f"clip = Clip.from_pretrained({clip})\n"
        f"prior = {kind.__name__}.from_pretrained({prior})\n{control}"
        'embedding = prior.predict(clip.encode_text(["a caption"]))  # one raw image embedding per caption\n'
    )


def _limits(record: dict[str, Any]) -> str:
    about = record.get(ABOUT, {})
    if about.get("world", not about):
        return "Trained on rendered scenes of a small world of coloured shapes: for study and tests, not for photographs or art."
    decoder = decoder_of(record)
    shown = "the generator whose CLIP embedded its pairs" if decoder is None else f"the model {decoder}"
    return f"For texts and images like those of its training data, with {shown}. Size of data and overfitting: {GUIDE} of Syzygy."


def _metrics(record: dict[str, Any]) -> str:
    about = record.get(ABOUT, {})
    on = "validation pairs"
    if "validation_pairs" in about:
        on = f"{counted(about['validation_pairs'], 'pair')} ({counted(about['validation_pictures'], 'picture')}) that training omitted"
    after = "Measured by the training's own validation, after its last step" + (
        "; the weights here are those of the best step, so their metrics differ" if "best" in record else ""
    )
    metrics, meanings = record["metrics"], MEANINGS
    if "correction" in metrics:
        meanings = MEANINGS | {"loss": f"{MEANINGS['loss']} + penalty · correction"}
    elif "ridge" in record["recipe"]:
        meanings = MEANINGS | {"loss": MEANINGS["projection"]}
    rows = "\n".join(f"| {key} | {value:g} | {meanings.get(key, '')} |" for key, value in metrics.items())
    missing = f"\n\n{record[NOT_MEASURED]}" if record.get(NOT_MEASURED) else ""
    return f"{after}, on {on}.\n\n| metric | value | meaning |\n|---|---|---|\n{rows}{missing}"
