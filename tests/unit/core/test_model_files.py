"""Files of published models that are not what their names say."""

from pathlib import Path

import pytest
import torch

from syzygy.core import artifacts, model_files
from syzygy.core.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 134217728\n"


@pytest.mark.parametrize("read", [artifacts.read_json, artifacts.read_tensors])
def test_a_pointer_of_git_lfs_is_told_from_a_broken_file(read, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(POINTER)
    with pytest.raises(UserError, match=rf"{path} is only a pointer of Git LFS.* Run git lfs pull"):
        read(path)
    path.write_text("version 2")
    with pytest.raises(UserError, match=r"cannot be read as JSON|is truncated or not safetensors"):
        read(path)


def test_full_precision_goes_before_half(tmp_path: Path) -> None:
    names = ("model.bf16.safetensors", "model.fp16.safetensors", "model.safetensors.index.json", "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is missing, and so are its half-precision variants"):
        model_files.read_weights(tmp_path)
    for value, name in enumerate(names):
        if name.endswith(".json"):
            artifacts.write_json(tmp_path / name, {"weight_map": {"x": "shard.safetensors"}})
            artifacts.write_tensors(tmp_path / "shard.safetensors", {"x": torch.tensor(value)})
        else:
            artifacts.write_tensors(tmp_path / name, {"x": torch.tensor(value)})
        assert int(model_files.read_weights(tmp_path)["x"]) == value
    assert [model_files.variant_of(tmp_path / name) for name in names] == ["bf16", "fp16", None, None]


def test_sizes_of_samples() -> None:
    from syzygy.pretrained.diffusers_decoder import sample_positions

    assert sample_positions({"sample_size": 96}) == (96, 96)
    assert sample_positions({"sample_size": [32, 48]}) == (32, 48)
    assert sample_positions({"sample_size": None}) == sample_positions({}) == (64, 64)
    assert sample_positions({"addition_embed_type": "text_time"}) == (128, 128)
    assert sample_positions({"sample_size": None}, 256) == (256, 256)
