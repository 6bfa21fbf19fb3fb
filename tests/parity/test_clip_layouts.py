"""CLIPs in the layouts of the repositories that publish them, against transformers' own forward pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from tests.closeness import NETWORK, assert_close

END = "<|endoftext|>"
LONG = "a red circle " * 40 + "and a moon"
TEXTS = ["a red circle", "two blue stars above a ring!", "", "wow! звезда", f"a {END}!"]
WIDTH, SIDE = 32, 24


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    return Image.fromarray(levels.astype(np.uint8))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def their_text(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """States, mask and pooled embedding as diffusers' priors get them: padded to the last position, no mask for the encoder."""
    split = (folder / "tokenizer").is_dir()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer" if split else folder, local_files_only=True)
    how: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 20, "return_tensors": "pt"}
    # Marks in a text are text; without any, "!" stays the one token that it is for some tokenizers, which pad with it.
    read = [tokenizer([text], split_special_tokens=END in text, **how) for text in [*TEXTS, LONG]]
    inputs = {name: torch.cat([one[name] for one in read]) for name in ("input_ids", "attention_mask")}
    place = folder / "text_encoder" if split else folder
    model = CLIPTextModelWithProjection.from_pretrained(place, local_files_only=True).eval()
    with torch.no_grad():
        output = model(inputs["input_ids"])
    return output.last_hidden_state, inputs["attention_mask"].bool(), output.text_embeds


def their_images(folder: Path) -> Tensor:
    split = (folder / "image_encoder").is_dir()
    processor = CLIPImageProcessorPil.from_pretrained(
        folder / "image_processor" if split else folder, local_files_only=True
    )
    pixels = processor([picture(*size) for size in ((64, 48), (31, 100), (5, 7))], return_tensors="pt")["pixel_values"]
    place = folder / "image_encoder" if split else folder
    model = CLIPVisionModelWithProjection.from_pretrained(place, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(pixels).image_embeds


def encode_pictures(clip: Clip) -> Tensor:
    prepared = [clip.preparation.prepare(picture(*size)) for size in ((64, 48), (31, 100), (5, 7))]
    return clip.encode_pixels(torch.stack(prepared))


def close(found: Tensor, wanted: Tensor) -> None:
    """To fp32's rounding of numbers around 1: padding and masks change the order of sums."""
    assert_close(found, wanted, depth=NETWORK)


@pytest.mark.filterwarnings("ignore:the prompt has:UserWarning")
def test_embeddings_equal_transformers(published: Path) -> None:
    clip = Clip.from_pretrained(published)
    states, mask, pooled = their_text(published)
    features = clip.encode_text([*TEXTS, LONG])
    assert torch.equal(features.mask, mask)
    assert features.mask.sum(1).tolist()[2] == 2  # the empty text: start and end alone
    close(features.pooled, pooled)
    close(features.states[features.mask], states[mask])
    close(encode_pictures(clip), their_images(published))
    assert (clip.width, clip.positions, clip.image_size, clip.preparation.side) == (WIDTH, 20, SIDE, SIDE)
    assert not clip.training


@pytest.mark.parametrize("old_end", [True, False])
@pytest.mark.parametrize("pad", [END, "!"])
@pytest.mark.parametrize("as_published", [True, False])
def test_texts_end_where_transformers_says(
    openai_with: Callable[[bool, str, bool], Path], old_end: bool, pad: str, as_published: bool
) -> None:
    folder = openai_with(old_end, pad, as_published)
    states, mask, pooled = their_text(folder)
    clip = Clip.from_pretrained(folder)
    features = clip.encode_text(TEXTS)
    length = features.mask.shape[1]
    assert clip.tokenizer.pad_token == pad
    assert torch.equal(features.mask, mask[: len(TEXTS), :length])
    close(features.pooled, pooled[: len(TEXTS)])
    close(features.states[features.mask], states[: len(TEXTS)][mask[: len(TEXTS)]])


def test_a_shared_space_scores_pairs_as_transformers_does(openai: Path) -> None:
    model = CLIPModel.from_pretrained(openai, local_files_only=True).eval()
    clip = Clip.from_pretrained(openai)
    ids, mask = clip.tokenize(TEXTS)
    pixels = clip.preparation.prepare(picture(64, 48))[None]
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels).logits_per_image
    image, text = clip.encode_pixels(pixels), clip.encode_text(TEXTS).pooled
    cosine = torch.nn.functional.cosine_similarity(image, text)
    assert_close(clip.logit_scale * cosine[None], wanted, depth=NETWORK)


def test_half_precision_computes_alike_and_keeps_the_fingerprint(published: Path) -> None:
    exact = Clip.from_pretrained(published)
    for dtype in (torch.bfloat16, torch.float16):
        half = Clip.from_pretrained(published, dtype=dtype)
        assert {x.dtype for x in half.model.parameters()} == {dtype} == {half.dtype}
        assert half.fingerprint() == exact.fingerprint()
        assert half.mean.dtype == torch.float32
        text, image = half.encode_text(TEXTS), encode_pictures(half)
        assert text.states.dtype == text.pooled.dtype == image.dtype == torch.float32
        for found, wanted in ((text.pooled, exact.encode_text(TEXTS).pooled), (image, encode_pictures(exact))):
            assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.999
            assert not torch.equal(found, wanted)
    with pytest.raises(UserError, match=r"have no fingerprint: load the CLIP with that dtype"):
        exact.to(torch.bfloat16).fingerprint()
    with pytest.raises(UserError, match=r"computes in torch\.float32.*not in torch\.float64"):
        Clip.from_pretrained(published, dtype=torch.float64)


def halved(path: Path, dtype: torch.dtype) -> None:
    weights = {name: x.to(dtype) if x.is_floating_point() else x for name, x in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_into_fp32(openai: Path, copy_of: Any, dtype: torch.dtype) -> None:
    folder = copy_of(openai)
    halved(folder / "model.safetensors", dtype)
    clip = Clip.from_pretrained(folder)
    assert {x.dtype for x in clip.model.parameters()} == {torch.float32}
    torch.testing.assert_close(encode_pictures(clip), their_images(openai), rtol=0, atol=0.05)
    assert clip.fingerprint() == Clip.from_pretrained(folder, dtype=dtype).fingerprint()
    assert clip.fingerprint() != Clip.from_pretrained(openai).fingerprint()


def test_the_half_precision_variant_is_read_where_there_is_no_other(openai: Path, copy_of: Any) -> None:
    folder = copy_of(openai)
    whole = Clip.from_pretrained(folder).fingerprint()
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    halved(folder / "model.fp16.safetensors", torch.float16)
    assert Clip.from_pretrained(folder).fingerprint() == whole
    (folder / "model.safetensors").unlink()
    assert Clip.from_pretrained(folder).fingerprint() != whole
    close(encode_pictures(Clip.from_pretrained(folder)), their_variant(folder))


def their_variant(folder: Path) -> Tensor:
    model = CLIPModel.from_pretrained(folder, local_files_only=True, variant="fp16", dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    images = [picture(*size) for size in ((64, 48), (31, 100), (5, 7))]
    with torch.no_grad():
        return model.get_image_features(**processor(images, return_tensors="pt")).pooler_output


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_joined_and_their_index_is_believed_strictly(
    openai: Path, copy_of: Any, variant: str | None
) -> None:
    folder = copy_of(openai)
    whole = Clip.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB", variant=variant)
    shards = sorted(path.name for path in folder.glob("model*-of-*.safetensors"))
    assert len(shards) > 2
    assert Clip.from_pretrained(folder).fingerprint() == whole.fingerprint()
    index = next(folder.glob("model.safetensors.index*.json"))
    places = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=places | {next(iter(places)): "../elsewhere.safetensors"})
    with pytest.raises(UserError, match="is not an index of weights"):
        Clip.from_pretrained(folder)
    change_json(index, weight_map={name: place for name, place in places.items() if name != "logit_scale"})
    with pytest.raises(UserError, match=r"does not hold what .* says: logit_scale"):
        Clip.from_pretrained(folder)
    change_json(index, weight_map=places)
    (folder / shards[1]).unlink()
    with pytest.raises(UserError, match=rf"{shards[1]} is missing"):
        Clip.from_pretrained(folder)


def test_preparations_are_found_where_pipelines_and_transformers_keep_them(
    kandinsky: Path, openai: Path, copy_of: Any
) -> None:
    wanted = Clip.from_pretrained(kandinsky).preparation
    folder = copy_of(kandinsky)
    (folder / "image_processor").rename(folder / "feature_extractor")  # Karlo's image variations, Stable unCLIP
    assert Clip.from_pretrained(folder).preparation == wanted
    folder = copy_of(openai)
    # transformers 5 nests it; transformers 4 has other things in that file, or nothing of use.
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert Clip.from_pretrained(folder).preparation == Clip.from_pretrained(openai).preparation
    nested = json.loads((kandinsky / "image_processor" / "preprocessor_config.json").read_text()) | {"resample": 2}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert Clip.from_pretrained(folder).preparation.resample == 2


def test_a_pipeline_has_no_logit_scale_and_is_not_saved(kandinsky: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(kandinsky)
    with pytest.raises(UserError, match=r"holds no logit scale.*1/100"):
        _ = clip.logit_scale
    with pytest.raises(UserError, match="no whole CLIP to save"):
        clip.save_pretrained(tmp_path / "clip", {})
    assert not (tmp_path / "clip").exists()


def test_a_published_clip_survives_saving(openai: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(openai)
    clip.save_pretrained(tmp_path / "clip", {"kind": "clip"})
    again = Clip.from_pretrained(tmp_path / "clip")
    assert again.preparation == clip.preparation
    assert again.fingerprint() == clip.fingerprint()
    assert torch.equal(again.encode_text(TEXTS).pooled, clip.encode_text(TEXTS).pooled)


def test_identity_says_what_made_the_embeddings(openai: Path, kandinsky: Path) -> None:
    whole = Clip.from_pretrained(openai).identity()
    split = Clip.from_pretrained(kandinsky, dtype=torch.bfloat16).identity()
    assert whole.classes == ("CLIPModel", "CLIPTokenizer")
    assert split.classes == ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection", "CLIPTokenizer")
    assert (whole.source, whole.revision, whole.dtype, split.dtype) == (str(openai), None, "float32", "bfloat16")
    assert (split.width, split.image_width, split.positions, split.pad_token) == (WIDTH, 48, 20, "!")
    assert split.fingerprint == Clip.from_pretrained(kandinsky).fingerprint() != whole.fingerprint
    assert whole.logit_scale == pytest.approx(14.285, rel=1e-3)
    assert split.logit_scale is None
    record = split.to_config()
    assert record == json.loads(json.dumps(record))
    assert record["preparation"] == {
        "resize": SIDE, "crop": SIDE, "resample": 3, "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "scale": 1 / 255,
    }  # fmt: skip
    assert {"torch", "transformers", "pillow", "tokenizers"} <= record["versions"].keys()


def test_the_starter_is_the_clip_that_its_parts_were_trained_beside() -> None:
    import syzygy

    starter = Path(syzygy.__file__).parent / "pretrained" / "starter"
    clip = Clip.from_pretrained(starter / "clip")
    for part in ("prior", "decoder"):
        assert json.loads((starter / part / "provenance.json").read_text())["clip"] == clip.fingerprint()
    published = json.loads((starter / "clip" / "preprocessor_config.json").read_text())
    assert clip.preparation.to_config() == published
    image = picture(64, 64)
    tensor = torch.from_numpy(clip.preparation.squared(image).copy()).permute(2, 0, 1)[None] / 255
    close(clip.encode_pixels(clip.preparation.prepare(image)[None]), clip.encode_image(tensor))
