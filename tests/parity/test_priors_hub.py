"""Published priors by hub id and folder, as they lie in their repositories."""

import shutil
from pathlib import Path

import pytest
import torch

from syzygy.errors import UserError
from syzygy.hub.clip import Clip
from syzygy.hub.priors import find_prior, load_prior
from syzygy.prior.model import EclipsePrior

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
HUB_ID = "somebody/tiny-prior"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def add_to_cache(cache: Path, folder: Path, commit: str, *refs: str, hub_id: str = HUB_ID) -> Path:
    """`folder` as a snapshot, as the hub's client lays it out."""
    storage = cache / f"models--{hub_id.replace('/', '--')}"
    for ref in refs:
        path = storage / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return Path(shutil.copytree(folder, storage / "snapshots" / commit))


def test_an_eclipse_prior_comes_by_hub_id_at_a_fixed_revision(cache: Path, tiny_model: Path) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    main = add_to_cache(cache, tiny_model / "prior", COMMIT, "main")
    with pytest.raises(UserError, match=rf"{cache} has no {HUB_ID} at revision v2.*hf download {HUB_ID} --revision v2"):
        load_prior(f"{HUB_ID}@v2", clip)
    other = add_to_cache(cache, tiny_model / "prior", OTHER, "v2")
    assert find_prior(HUB_ID) == find_prior(f"{HUB_ID}@{COMMIT}") == main
    assert find_prior(f"{HUB_ID}@v2") == other
    loaded, features = load_prior(f"{HUB_ID}@v2", clip), clip.encode_text(["a red circle"])
    assert isinstance(loaded, EclipsePrior)
    noise = torch.ones(1, 32)
    expected = EclipsePrior.from_pretrained(tiny_model / "prior").predict(features, noise=noise)
    assert torch.equal(loaded.predict(features, noise=noise), expected)


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "a/b@", "./some@where", Path("a/b")])
def test_what_is_no_prior_is_told_with_an_example(source: str | Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*hub id such as ECLIPSE-Community/ECLIPSE_Kandinsky"):
        load_prior(source, Clip.from_pretrained(tiny_model / "clip"))
