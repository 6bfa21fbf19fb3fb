"""Our CLIP against transformers' own classes, reading the folder we write."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip import CLIPImageProcessor

from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
from syzygy.core.errors import UserError
from tests.closeness import NETWORK, about, assert_close

TINY = ClipConfig(width=32, text_layers=2, text_heads=2, vision_width=32, vision_layers=2, vision_heads=2)
TEXTS = ["a red circle", "two blue stars above a ring, in night style", "Ein Stern – звезда 星", ""]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return build_clip(TINY, [*TEXTS, "a red circle left of a blue star"] * 3, seed=0).eval()


@pytest.fixture(scope="module")
def folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip"
    clip.save_pretrained(path, {"kind": "clip"})
    return path


def test_features_equal_transformers(clip: Clip, folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    features = clip.encode_text(TEXTS)
    assert torch.equal(features.mask, inputs["attention_mask"].bool())
    with torch.no_grad():
        text = model.text_model(**inputs)
        pooled = model.get_text_features(**inputs).pooler_output
    assert_close(features.pooled, pooled, depth=NETWORK)
    real = features.mask[..., None]
    assert_close(features.states * real, text.last_hidden_state * real, depth=NETWORK)


def test_pictures_equal_transformers(clip: Clip, folder: Path) -> None:
    from PIL import Image

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    inputs = processor([Image.fromarray(p.numpy()) for p in pixels], return_tensors="pt")
    with torch.no_grad():
        wanted = model.get_image_features(**inputs).pooler_output
    found = clip.encode_image(pixels.permute(0, 3, 1, 2) / 255)
    assert_close(found, wanted, depth=NETWORK)


def test_save_load_identity(clip: Clip, folder: Path) -> None:
    again = Clip.from_pretrained(folder)
    assert torch.equal(again.encode_text(TEXTS).pooled, clip.encode_text(TEXTS).pooled)
    assert again.fingerprint() == clip.fingerprint()
    assert again.logit_scale == pytest.approx(14.3, rel=1e-4)


def test_batch_of_n_equals_n_of_one(clip: Clip) -> None:
    together = clip.encode_text(TEXTS)
    for i, text in enumerate(TEXTS):
        assert_close(clip.encode_text([text]).pooled[0], together.pooled[i], depth=NETWORK)


def test_a_long_text_is_cut_and_what_was_cut_is_named(clip: Clip) -> None:
    text = "a red circle " * 40 + "and a moon"
    with pytest.warns(UserWarning, match="this encoder reads 77; cut: .*moon"):
        features = clip.encode_text([text])
    assert features.states.shape[1] == 77


def test_every_script_can_be_spelled(clip: Clip) -> None:
    for text in ("звезда", "星", "naïve café", "🙂"):
        ids, _ = clip.tokenize([text])
        assert clip.tokenizer.decode(ids[0, 1:-1]).strip() == text


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Clip.from_pretrained(tmp_path)


def test_training_in_chunks_equals_one_pass(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, "a red circle left of a blue star", "a moon"]
    ids, mask = clip.tokenize(texts)
    images = torch.rand(5, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("syzygy.clip.clip_model.CPU_CHUNK", 2)
    with torch.no_grad():
        _, image, text, scale = clip(images, ids, mask)
    assert_close(image, clip.encode_image(images), depth=NETWORK)
    assert_close(text, clip.encode_text(texts).pooled, depth=NETWORK)
    assert float(scale) == about(clip.logit_scale)
