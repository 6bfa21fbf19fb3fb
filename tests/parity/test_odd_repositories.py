"""Repositories that publish pickles alone, and U-Nets that do not name their size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Guide, Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.generation.prior_pipeline import PriorPipeline
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.kandinsky import KandinskyDecoder
from syzygy.pretrained.repositories import find_decoder
from syzygy.prior.eclipse import EclipsePrior
from tests.hub_cache import COMMIT
from tests.tiny_unclip import Tiny, tiny_kandinsky

HUB_ID = "somebody/pickles"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_kandinsky(tmp_path_factory.mktemp("kandinsky"))


def load_prior_pipeline(tiny: Tiny) -> Any:
    return PriorPipeline.from_pretrained(HUB_ID, clip=tiny.clip)


LOADERS: dict[str, tuple[str, str, Callable[[Tiny], Any]]] = {
    "decoder": ("decoder", "unet/", lambda tiny: find_decoder(HUB_ID, local_files_only=False)),
    "prior": ("prior", "", lambda tiny: EclipsePrior.from_pretrained(HUB_ID, local_files_only=False)),
    "pipeline": ("prior", "", load_prior_pipeline),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_download_of_pickles_alone_says_how_to_convert_them(
    kind: str, tiny: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not downloaded, so that nothing on this machine says what is wrong."""
    part, folder, load = LOADERS[kind]
    remote = Path(shutil.copytree(getattr(tiny, part), tmp_path / "remote"))
    weights = remote / folder / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
    snapshot = cache / HUB_ID / COMMIT

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo_id, revision: names)
    pickled = f"{folder}diffusion_pytorch_model.bin"
    with pytest.raises(
        UserError,
        match=rf"{HUB_ID} publishes its weights only as pickle \({pickled}\), .*revision with safetensors .*or convert them .*save_pretr",
    ):
        load(tiny)
    assert not [*snapshot.rglob("*.bin")]


def test_a_unet_of_kandinsky_that_does_not_name_its_size(tiny: Tiny, tmp_path: Path) -> None:
    """Its images have 64 positions along each side, as those of the published model: here of two pixels."""
    folder = Path(shutil.copytree(tiny.decoder, tmp_path / "decoder"))
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    clip = Clip.from_pretrained(tiny.clip)
    decoder = KandinskyDecoder.load(LoadContext(folder=folder, clip=clip))
    assert decoder.defaults.size == (128, 128)
    guide = Guide(clip.encode_text(["a red circle"]).pooled)
    sampling = Sampling(steps=2, guidance_scale=1.0, size=(16, 16))
    assert decoder.generate(guide, [generator(0)], sampling=sampling).shape == (1, 3, 16, 16)
