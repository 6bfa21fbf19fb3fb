"""Published priors by hub id and folder, as they lie in their repositories."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline
from diffusers.schedulers import scheduling_unclip
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.prior.diffusion_prior import SampledPrior, fresh_noise
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.prior_folders import find_prior
from syzygy.prior.prior_loading import load_prior
from tests.hub_cache import COMMIT, add_snapshot

OTHER = "f" * 40
HUB_ID = "somebody/tiny-prior"


def add_to_cache(cache: Path, folder: Path, commit: str, *refs: str, hub_id: str = HUB_ID) -> Path:
    return add_snapshot(cache, folder, hub_id, commit, *refs)


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


def test_the_public_class_takes_hub_ids_too(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = EclipsePrior.from_pretrained(tiny_model / "prior").state_dict()
    with pytest.raises(UserError, match=rf"{cache} has no {HUB_ID} at revision v2.*allow the download"):
        EclipsePrior.from_pretrained(f"{HUB_ID}@v2")
    with pytest.raises(UserError, match=r"no folder nowhere\. Give a folder, or a hub id such as ECLIPSE-Community"):
        EclipsePrior.from_pretrained("nowhere")
    add_to_cache(cache, tiny_model / "prior", COMMIT, "v2")
    found = EclipsePrior.from_pretrained(f"{HUB_ID}@v2").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, **settings: Any) -> str:
        asked.append(settings)
        return str(shutil.copytree(tiny_model / "prior", tmp_path / "snapshot", dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    EclipsePrior.from_pretrained("somebody/other", local_files_only=False)
    assert asked
    assert not any(settings["local_files_only"] for settings in asked)
    assert EclipsePrior.from_pretrained(tiny_model).config.embedding_dim == 32  # a model that has one


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "a/b@", "./some@where", Path("a/b")])
def test_what_is_no_prior_is_told_with_an_example(source: str | Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*hub id such as ECLIPSE-Community/ECLIPSE_Kandinsky"):
        load_prior(source, Clip.from_pretrained(tiny_model / "clip"))


@pytest.fixture
def stock(kandinsky: Path, copy_of: Callable[[Path], Path]) -> Path:
    """As kandinsky-community/kandinsky-2-2-prior, a billion parameters less: the whole pipeline, its scheduler as published."""
    folder = copy_of(kandinsky)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=32,
                                 num_embeddings=20)  # fmt: skip
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape))
            prior.clip_std.abs_().add_(0.1)
        prior.save_pretrained(folder / "prior")
    change(folder / "scheduler/scheduler_config.json", prediction_type="sample", clip_sample_range=10.0)
    return folder


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def test_a_stock_prior_predicts_what_its_own_pipeline_does(
    stock: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock pipeline pads both texts to the full length and masks; ours computes the real tokens alone."""
    pipeline = KandinskyV22PriorPipeline.from_pretrained(stock, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts, noise = ["a red circle", "two blue stars above a ring!"], torch.randn(2, 32, generator=generator(0))
    step = iter(range(25))

    def drawn(shape: tuple[int, ...], **_: Any) -> Tensor:
        assert tuple(shape) == (2, 32)
        return fresh_noise(noise, next(step))

    monkeypatch.setattr(scheduling_unclip, "randn_tensor", drawn)
    expected = pipeline(prompts, latents=noise).image_embeds
    add_to_cache(cache, stock, COMMIT, "main")
    for source in (stock, stock / "prior", HUB_ID):
        clip = Clip.from_pretrained(stock)
        prior = load_prior(source, clip)
        assert isinstance(prior, SampledPrior)
        assert (prior.evaluations, prior.sampling.clip_range, prior.schedule) == (50, 10.0, "cosine")
        torch.testing.assert_close(
            prior.predict(clip.encode_text(prompts), noise=noise), expected, atol=2e-3, rtol=2e-3
        )
    assert next(step) == 24


def test_weights_in_half_precision_are_found_and_computed_in_what_is_asked_for(stock: Path) -> None:
    path = stock / "prior/diffusion_pytorch_model.safetensors"
    clip = Clip.from_pretrained(stock)
    features, noise = clip.encode_text(["a red circle"]), torch.ones(1, 32)
    full = load_prior(stock, clip).predict(features, noise=noise)
    save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors").with_name(
        "diffusion_pytorch_model.fp16.safetensors"))  # fmt: skip
    path.unlink()
    for dtype in (torch.float32, torch.bfloat16):
        prior = load_prior(stock, clip, dtype=dtype)
        found = prior.predict(features, noise=noise)
        assert found.dtype == dtype
        assert torch.cosine_similarity(found.float(), full).item() > 0.99
    half = path.parent / "diffusion_pytorch_model.fp16.safetensors"
    half = half.rename(path.parent / "diffusion_pytorch_model.bf16.safetensors")
    assert isinstance(load_prior(stock, clip), SampledPrior)
    half.unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors is missing"):
        load_prior(stock, clip)
    (path.parent / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"only as pickle \(diffusion_pytorch_model.bin\), which can run code"):
        load_prior(stock, clip)


def test_karlos_scheduler_has_another_name_and_bound(stock: Path) -> None:
    (stock / "scheduler").rename(stock / "prior_scheduler")
    change(stock / "prior_scheduler/scheduler_config.json", clip_sample_range=5.0)
    clip = Clip.from_pretrained(stock)
    prior = load_prior(stock, clip)
    assert isinstance(prior, SampledPrior)
    assert prior.sampling.clip_range == 5.0
    change(stock / "prior_scheduler/scheduler_config.json", clip_sample=False)
    prior = load_prior(stock, clip)
    assert isinstance(prior, SampledPrior)
    assert prior.sampling.clip_range == float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "DDPMScheduler"}, "_class_name is 'DDPMScheduler'; only 'UnCLIPScheduler'"),
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500"),
    ],
)
def test_what_cannot_be_sampled_as_it_was_meant_is_refused(stock: Path, changes: dict[str, Any], message: str) -> None:
    change(stock / "scheduler/scheduler_config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_prior(stock, Clip.from_pretrained(stock))


def test_a_stock_prior_without_scheduler_or_statistics_is_refused(stock: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(stock)
    alone = shutil.copytree(stock / "prior", tmp_path / "alone" / "prior")
    with pytest.raises(UserError, match=r"does not say how to sample it.*folder of the whole pipeline"):
        load_prior(alone, clip)
    path = stock / "prior/diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"clip_std": torch.zeros(1, 32)}, path)
    with pytest.raises(UserError, match="clip_std of zero"):
        load_prior(stock, clip)


def test_where_eclipse_is_needed_a_stock_prior_is_told_from_it(stock: Path, tiny_model: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"holds a diffusion prior .*An ECLIPSE prior is needed"):
        EclipsePrior.from_pretrained(stock)
    add_to_cache(cache, tiny_model / "prior", COMMIT, "main")
    assert isinstance(EclipsePrior.from_pretrained(HUB_ID), EclipsePrior)


def test_a_download_takes_the_prior_alone(
    stock: Path, tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    remotes = {"some/pipeline": stock, "some/eclipse": tiny_model / "prior"}

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        """As the hub's client does, from a folder."""
        assert not local_files_only
        asked.append(revision)
        remote, snapshot = remotes[repo_id], cache / repo_id / COMMIT
        names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, snapshot / name)
        return str(snapshot)

    (stock / "prior/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = find_prior("some/pipeline@v1", local_files_only=False)
    assert asked == ["v1", COMMIT]
    assert {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()} == {
        f"some/pipeline/{COMMIT}/{name}"
        for name in (
            "model_index.json",
            "prior/config.json",
            "prior/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
        )
    }
    assert isinstance(load_prior(folder, Clip.from_pretrained(stock)), SampledPrior)
    assert isinstance(EclipsePrior.from_pretrained("some/eclipse", local_files_only=False), EclipsePrior)
