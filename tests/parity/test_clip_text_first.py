"""A CLIP whose image tower is loaded when it is first asked for: the same numbers, from either layout."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError

TEXTS = ["a red circle", "two blue stars above a ring!"]


def test_texts_and_pictures_are_the_same_and_pictures_load_late(published: Path) -> None:
    whole, late = Clip.from_pretrained(published), Clip.from_pretrained(published, text_first=True)
    a, b = whole.encode_text(TEXTS), late.encode_text(TEXTS)
    assert torch.equal(a.states, b.states)
    assert torch.equal(a.pooled, b.pooled)
    assert not late.model.has_images
    pictures = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.encode_image(pictures), late.encode_image(pictures))
    assert late.model.has_images
    assert not late.model.vision_model.training
    late.model.forget_images()
    assert not late.model.has_images
    assert torch.equal(whole.encode_image(pictures), late.encode_image(pictures))


def test_its_fingerprint_is_that_of_the_whole_in_any_precision(published: Path) -> None:
    whole = Clip.from_pretrained(published).fingerprint()
    for dtype in (torch.float32, torch.bfloat16):
        late = Clip.from_pretrained(published, text_first=True, dtype=dtype)
        assert late.fingerprint() == whole
        assert not late.model.has_images


def test_a_missing_image_tower_is_told_when_it_is_needed(kandinsky: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(kandinsky)
    shutil.rmtree(folder / "image_encoder")
    clip = Clip.from_pretrained(folder, text_first=True)
    assert len(clip.encode_text(TEXTS)) == 2
    with pytest.raises(UserError, match="has no image_encoder: half a CLIP"):
        clip.encode_image(torch.rand(1, 3, 24, 24))
    with pytest.raises(UserError, match="has no image_encoder: half a CLIP"):
        Clip.from_pretrained(folder)
