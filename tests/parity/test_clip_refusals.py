"""CLIPs that are broken, incomplete, or not what they seem: refused, saying what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file({name: x.contiguous() for name, x in change(load_file(path)).items()}, path, metadata={"format": "pt"})


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: x for name, x in weights.items() if name not in names}


def break_weights(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder / name, change)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WHOLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"/config\.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"/model\.safetensors is missing, and so"),
    "pickle alone": (only_pickle, r"only as pickle \(pytorch_model\.bin\).*save_pretrained"),
    "truncated": (lambda f: cut(f / "model.safetensors"), "truncated or not safetensors"),
    "a weight missing": (
        break_weights("model.safetensors", without("text_projection.weight")),
        r"do not fit CLIPModel: missing \['text_projection.weight'\]",
    ),
    "a weight too many": (
        break_weights("model.safetensors", lambda w: w | {"text_model.embeddings.other_ids": torch.arange(3)}),
        r"unexpected \['text_model.embeddings.other_ids'\]",
    ),
    "a weight of another shape": (
        break_weights("model.safetensors", lambda w: w | {"visual_projection.weight": torch.zeros(32, 47)}),
        r"visual_projection.weight has shape \(32, 47\), expected \(32, 48\)",
    ),
    "a weight that is no number": (
        break_weights("model.safetensors", lambda w: w | {"logit_scale": torch.tensor(torch.nan)}),
        "logit_scale holds NaN",
    ),
    "no tokenizer": (lambda f: (f / "merges.txt").unlink(), r"lacks tokenizer\.json, or vocab\.json with merges\.txt"),
    "a broken tokenizer": (lambda f: (f / "vocab.json").write_text("{"), "tokenizer in .* cannot be read"),
    "another tokenizer": (
        lambda f: change_json(f / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer"),
        "is for XLMRobertaTokenizer",
    ),
    "no preparation": (lambda f: (f / "preprocessor_config.json").unlink(), r"preprocessor_config\.json is missing"),
    "pictures of another size": (
        lambda f: change_json(f / "preprocessor_config.json", crop_size=16),
        "prepared 16 pixels wide, the image tower reads 24",
    ),
    "another family": (lambda f: change_json(f / "config.json", model_type="siglip"), "is for 'siglip', not 'clip'"),
    "another class": (
        lambda f: change_json(f / "config.json", architectures=["CLIPForImageClassification"]),
        "is for CLIPForImageClassification, not CLIPModel",
    ),
    "a nonsensical configuration": (
        lambda f: change_json(f / "config.json", vision_config_dict={"hidden_size": 48, "num_attention_heads": 5}),
        "does not describe a CLIPModel",
    ),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_broken_clip_is_refused(openai: Path, copy_of: Any, what: str) -> None:
    folder = copy_of(openai)
    harm, message = WHOLE[what]
    harm(folder)
    with pytest.raises(UserError, match=message):
        Clip.from_pretrained(folder)


def as_stable_unclip(folder: Path) -> None:
    """stabilityai/stable-diffusion-2-1-unclip-small: the text encoder is Stable Diffusion's, without projection."""
    change_json(folder / "text_encoder" / "config.json", architectures=["CLIPTextModel"])
    change_weights(folder / "text_encoder" / "model.safetensors", without("text_projection.weight"))


SPLIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Karlo": (lambda f: shutil.rmtree(f / "image_encoder"), "has no image_encoder: half a CLIP"),
    "images alone": (lambda f: shutil.rmtree(f / "text_encoder"), "has no text_encoder: half a CLIP"),
    "Stable unCLIP": (as_stable_unclip, "is for CLIPTextModel, not CLIPTextModelWithProjection.*no projection"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"lacks tokenizer\.json"),
    "no preparation": (lambda f: shutil.rmtree(f / "image_processor"), r"preprocessor_config\.json is missing"),
    "a weight missing": (
        break_weights("image_encoder/model.safetensors", without("visual_projection.weight")),
        r"image_encoder do not fit CLIPVisionModelWithProjection: missing \['visual_projection.weight'\]",
    ),
    "the other tower's weights": (
        break_weights(
            "text_encoder/model.safetensors", lambda w: w | {"vision_model.pre_layrnorm.bias": torch.zeros(48)}
        ),
        r"text_encoder do not fit CLIPTextModelWithProjection: unexpected \['vision_model.pre_layrnorm.bias'\]",
    ),
}


@pytest.mark.parametrize("what", SPLIT)
def test_a_broken_pipeline_is_refused(kandinsky: Path, copy_of: Any, what: str) -> None:
    folder = copy_of(kandinsky)
    harm, message = SPLIT[what]
    harm(folder)
    with pytest.raises(UserError, match=message):
        Clip.from_pretrained(folder)


def resized(folder: Path, tower: str, **sizes: int) -> None:
    """The tower anew, with other sizes."""
    kinds = {"text_encoder": (CLIPTextModelWithProjection, CLIPTextConfig),
             "image_encoder": (CLIPVisionModelWithProjection, CLIPVisionConfig)}  # fmt: skip
    kind, config = kinds[tower]
    settings = json.loads((folder / tower / "config.json").read_text()) | sizes
    kind(config.from_dict(settings)).save_pretrained(folder / tower)


def test_towers_that_do_not_belong_together_are_refused(kandinsky: Path, copy_of: Any) -> None:
    folder = copy_of(kandinsky)
    resized(folder, "image_encoder", projection_dim=40)
    with pytest.raises(UserError, match="text embeddings are 32 wide, image embeddings 40"):
        Clip.from_pretrained(folder)
    resized(folder, "text_encoder", projection_dim=40)
    with pytest.raises(UserError, match="token states are 32 wide, embeddings 40"):
        Clip.from_pretrained(folder)


def test_a_text_tower_that_would_pool_elsewhere_is_refused(
    kandinsky: Path, copy_of: Any, tokenizer_files: Path
) -> None:
    folder = copy_of(kandinsky)
    config = folder / "text_encoder" / "config.json"
    size = json.loads(config.read_text())["vocab_size"]
    change_json(config, eos_token_id=size - 3)
    with pytest.raises(UserError, match=rf"pools at token {size - 3}, but texts end with {size - 1}"):
        Clip.from_pretrained(folder)
    resized(folder, "text_encoder", vocab_size=size - 1, eos_token_id=2)
    with pytest.raises(UserError, match=rf"\('<\|endoftext\|>'\): the tokenizer has {size}, the model {size - 1}"):
        Clip.from_pretrained(folder)
    # A token added after the end, as textual inversion does: the old rule takes it for the end.
    resized(folder, "text_encoder", vocab_size=size + 1, eos_token_id=2)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    tokenizer.add_tokens(["<moon>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(UserError, match=rf"pools at the highest token \({size},.*texts end with {size - 1}"):
        Clip.from_pretrained(folder)
    change_json(config, eos_token_id=size - 1)
    assert Clip.from_pretrained(folder).encode_text(["a <moon>"]).mask.shape == (1, 4)
