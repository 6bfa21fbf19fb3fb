"""The authors' own prior, tiny and with random weights, against ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from tests.closeness import NETWORK, assert_close

REFERENCE = Path(__file__).parents[1] / "data" / "eclipse_reference"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prior() -> EclipsePrior:
    return EclipsePrior.from_pretrained(REFERENCE)


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(REFERENCE / "reference_io.safetensors")


def features_of(io: dict[str, Tensor]) -> TextFeatures:
    return TextFeatures(io["text_states"], io["text_mask"], io["text_pooled"])


def test_agrees_with_the_authors_model(prior: EclipsePrior, io: dict[str, Tensor]) -> None:
    predicted = prior.predict(features_of(io), noise=io["noise"])
    assert_close(predicted, io["predicted_image_embedding"], depth=NETWORK)


def test_short_prompts_without_their_pads_agree_too(prior: EclipsePrior, io: dict[str, Tensor]) -> None:
    for i in range(5):
        alone = PackedText.of(features_of(io)[[i]]).padded()
        assert alone.states.shape[1] == io["text_mask"][i].sum()
        predicted = prior.predict(alone, noise=io["noise"][[i]])
        assert_close(predicted, io["predicted_image_embedding"][[i]], depth=NETWORK)


def test_published_layout_survives_a_round_trip(prior: EclipsePrior, tmp_path: Path) -> None:
    prior.save_pretrained(tmp_path / "prior", {"recipe": "none"})
    saved, original = load_file(tmp_path / "prior" / WEIGHTS), load_file(REFERENCE / WEIGHTS)
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in original)
    config = json.loads((REFERENCE / "config.json").read_text())
    del config["_diffusers_version"]
    assert json.loads((tmp_path / "prior" / "config.json").read_text()) == config
    assert json.loads((tmp_path / "prior" / "provenance.json").read_text()) == {"recipe": "none"}
    again = EclipsePrior.from_pretrained(tmp_path / "prior").state_dict()
    assert all(torch.equal(again[name], value) for name, value in prior.state_dict().items())


def test_half_precision_files_load_into_fp32(prior: EclipsePrior, io: dict[str, Tensor], tmp_path: Path) -> None:
    prior.save_pretrained(tmp_path / "prior", dtype=torch.float16)
    assert {x.dtype for x in load_file(tmp_path / "prior" / WEIGHTS).values()} == {torch.float16}
    predicted = EclipsePrior.from_pretrained(tmp_path / "prior").predict(features_of(io), noise=io["noise"])
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted, io["predicted_image_embedding"], rtol=0, atol=0.02)


@pytest.mark.parametrize(("width", "parameters"), [(768, 33_143_040), (1280, 34_193_152)])
def test_published_sizes(width: int, parameters: int) -> None:
    with torch.device("meta"):
        prior = EclipsePrior(EclipsePriorConfig(embedding_dim=width))
    assert sum(p.numel() for p in prior.parameters()) == parameters


def test_diffusion_priors_of_diffusers_share_all_names_but_time_and_are_refused(tmp_path: Path) -> None:
    from diffusers.models.transformers.prior_transformer import PriorTransformer

    size = {
        "embedding_dim": 24,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeddings": 9,
    }
    stock = PriorTransformer(**size)
    own = EclipsePrior(EclipsePriorConfig(**size)).state_dict()
    expected = {name: x for name, x in stock.state_dict().items() if not name.startswith("time_embedding.")}
    assert own.keys() == expected.keys()
    # One token fewer: no time.
    assert {n: x.shape for n, x in own.items() if n != "positional_embedding"} == {
        n: x.shape for n, x in expected.items() if n != "positional_embedding"
    }
    stock.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="diffusion prior"):
        EclipsePrior.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "supported"),
    [
        ("additional_embeddings", 4, "3"),
        ("added_emb_type", None, "prd"),
        ("norm_in_type", "layer", "None"),
        ("dropout", 0.1, "0"),
        ("num_layers", 0, "greater than 0"),
        ("time_embed_dim", 512, "not permitted"),
    ],
)
def test_settings_that_eclipse_does_not_have_are_named(
    setting: str, value: object, supported: str, tmp_path: Path
) -> None:
    config = json.loads((REFERENCE / "config.json").read_text()) | {setting: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(REFERENCE / WEIGHTS), tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"config.json.*'{setting}'.*{supported}"):
        EclipsePrior.from_pretrained(tmp_path)


def test_another_class_or_missing_file_or_misfit_is_refused(tmp_path: Path) -> None:
    config = json.loads((REFERENCE / "config.json").read_text())
    with pytest.raises(UserError, match=r"config.json is missing"):
        EclipsePrior.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="UNet2DConditionModel"):
        EclipsePrior.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": 4}))
    with pytest.raises(UserError, match=r"safetensors is missing"):
        EclipsePrior.from_pretrained(tmp_path)
    save_file(load_file(REFERENCE / WEIGHTS), tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"missing .*transformer_blocks\.3"):
        EclipsePrior.from_pretrained(tmp_path)
