"""Tiny CLIPs with random weights, saved in the layouts of the repositories that publish them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from syzygy.clip.clip_model import ClipConfig, build_clip

END = "<|endoftext|>"
TEXTS = ["a red circle", "two blue stars above a ring!", "wow! звезда", "a red circle left of a blue star"]
WIDTH, SIDE = 32, 24
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "projection_dim": WIDTH,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "projection_dim": WIDTH,
}
OPENAI = {  # preprocessor_config.json as published in 2021, smaller
    "crop_size": SIDE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIDE,
}
KANDINSKY = OPENAI | {  # and in 2023
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_convert_rgb": True,
    "do_rescale": True,
    "image_processor_type": "CLIPImageProcessor",
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": SIDE},
}


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as transformers saves it today; its "!" is token 0 and its end token the last, as in the published ones."""
    made = build_clip(ClipConfig(width=32, text_layers=1, text_heads=2, vision_width=32, vision_layers=1, vision_heads=2),
                      TEXTS * 3, seed=0)  # fmt: skip
    folder = tmp_path_factory.mktemp("tokenizer")
    made.tokenizer.save_pretrained(folder)
    assert made.tokenizer.convert_tokens_to_ids("!") == 0
    assert made.tokenizer.convert_tokens_to_ids(END) == len(made.tokenizer) - 1
    return folder


def write_tokenizer(saved: Path, folder: Path, pad: str, *, as_published: bool) -> None:
    """`as_published`: vocab.json, merges.txt and special_tokens_map.json, as before transformers 5."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"model_max_length": TEXT["max_position_embeddings"], "tokenizer_class": "CLIPTokenizer"}
    if not as_published:
        shutil.copy(saved / "tokenizer.json", folder)
        config |= settings
    else:
        model = json.loads((saved / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n")
        (folder / "special_tokens_map.json").write_text(json.dumps(settings))
        config |= {"errors": "replace", "do_lower_case": True, "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def text_config(saved: Path, old_end: bool) -> dict[str, Any]:
    """`old_end`: the wrong ids that configurations from before transformers 4.31 have."""
    size = len(json.loads((saved / "tokenizer.json").read_text())["model"]["vocab"])
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return TEXT | {"vocab_size": size} | (ends if old_end else {"bos_token_id": size - 2, "eos_token_id": size - 1})


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def openai(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As openai/clip-vit-large-patch14: one `CLIPModel`, old end id, stored position ids, sizes as numbers."""
    folder = tmp_path_factory.mktemp("openai")
    torch.manual_seed(0)
    text = text_config(tokenizer_files, old_end=True)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH))
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, n in {"text_model": TEXT["max_position_embeddings"], "vision_model": (SIDE // 8) ** 2 + 1}.items():
        weights[f"{name}.embeddings.position_ids"] = torch.arange(n)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # As published: both towers' settings a second time, and what transformers 5 no longer knows.
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", text_config_dict=config["text_config"], vision_config_dict=config["vision_config"],
                torch_dtype="float32", transformers_version="4.16.0.dev0")  # fmt: skip
    write_tokenizer(tokenizer_files, folder, END, as_published=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(OPENAI))
    return folder


@pytest.fixture(scope="module")
def kandinsky(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As kandinsky-community/kandinsky-2-2-prior: diffusers' own pipeline, saved; fp16 image encoder; pads with "!"."""
    from diffusers.models.transformers.prior_transformer import PriorTransformer
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

    folder = tmp_path_factory.mktemp("kandinsky")
    torch.manual_seed(1)
    text, vision = text_config(tokenizer_files, old_end=False) | {"hidden_act": "gelu"}, VISION | {"hidden_act": "gelu"}
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH, num_embeddings=20
    )
    pipeline = KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).half(),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_files, local_files_only=True),
        scheduler=UnCLIPScheduler(),
        image_processor=CLIPImageProcessorPil.from_dict(KANDINSKY),
    )
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    write_tokenizer(tokenizer_files, folder / "tokenizer", "!", as_published=True)
    return folder


@pytest.fixture(params=["openai", "kandinsky"])
def published(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(folder, tmp_path / folder.name)


@pytest.fixture
def openai_with(
    openai: Path, copy_of: Callable[[Path], Path], tokenizer_files: Path
) -> Callable[[bool, str, bool], Path]:
    """The first with another end id, pad token and form of tokenizer: (old_end, pad, as_published)."""

    def make(old_end: bool, pad: str, as_published: bool) -> Path:
        folder = copy_of(openai)
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
            (folder / name).unlink()
        write_tokenizer(tokenizer_files, folder, pad, as_published=as_published)
        settings = text_config(tokenizer_files, old_end)
        config = json.loads((folder / "config.json").read_text())
        change_json(folder / "config.json", text_config=config["text_config"] | settings, text_config_dict=settings)
        return folder

    return make
