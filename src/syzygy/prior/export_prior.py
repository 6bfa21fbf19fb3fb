"""A trained prior as a folder to pass on: the published layout, a model card, and the record of how it came to be."""

from pathlib import Path
from typing import Literal

import torch

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.model_card import card
from syzygy.training import checkpoints

CARD_FILE = "README.md"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(
    run: Path,
    out: Path,
    *,
    best: bool,
    dtype: Literal["fp16", "fp32"],
    licence: str | None = None,
    source: str | None = None,
) -> Path:
    """Write the ECLIPSE prior of the finished training run `run` to `out`; `best` takes the weights that validated best.

    `config.json` and `diffusion_pytorch_model.safetensors` are as ECLIPSE's authors publish them; `provenance.json` and
    the model card `README.md` are in the same folder. `licence` and `source` (of the data) are for the card and the record.

    Raises:
        UserError: no finished run of an ECLIPSE prior, no best weights, or a folder that is not empty.
    """
    folder = run / "prior"
    if not folder.is_dir():
        if (run / "store.json").is_file():
            raise UserError(
                f"{run} is an embedding store, not a training run. `syzygy train prior --data {run}` trains a prior on it."
            )
        kind = "is not finished" if (run / checkpoints.RUN_FILE).is_file() else "is no training run of a prior"
        raise UserError(f"{run} {kind}: it holds no folder 'prior'. `syzygy train prior --out {run}` makes one.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder, so that nothing is overwritten.")
    prior = EclipsePrior.from_pretrained(folder)
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
