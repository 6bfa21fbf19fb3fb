"""λ-ECLIPSE's prior against its published computation, written here in plain torch with all of its padding."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data.references import References
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior, LambdaEclipsePriorConfig
from syzygy.prior.prior_loading import load_network, load_one_pass, load_prior
from tests.tiny_unclip import WIDTH, Tiny, random_clip, tiny_eclipse, tiny_lambda_eclipse

D, HEADS, HEAD, LAYERS, POSITIONS = 24, 2, 8, 3, 11
LENGTHS = (5, 11, 2)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def random_prior(seed: int = 0) -> LambdaEclipsePrior:
    config = LambdaEclipsePriorConfig(
        embedding_dim=D, num_layers=LAYERS, num_attention_heads=HEADS, attention_head_dim=HEAD, num_embeddings=POSITIONS
    )
    prior = LambdaEclipsePrior(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.parameters():  # also those that a new prior has at zero or one
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    prior.set_statistics(EmbeddingStatistics(torch.full((D,), 3.0), torch.full((D,), 5.0), 1.0))
    return prior


def inputs(seed: int = 1) -> tuple[TextFeatures, Tensor, Tensor]:
    """Features with random values in their pads, noise and control."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(POSITIONS) < torch.tensor(LENGTHS)[:, None]
    states, pooled = torch.randn(3, POSITIONS, D, generator=generator), torch.randn(3, D, generator=generator)
    noise, control = (torch.randn(3, D, generator=generator) for _ in range(2))
    return TextFeatures(states, mask, pooled), noise, control


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def published(w: dict[str, Tensor], features: TextFeatures, noise: Tensor, control: Tensor) -> Tensor:
    """The published network: 77 text states, pads included, then control, pooled text, noise and the learned token."""
    rows, texts = features.mask.shape
    tokens = [linear(w, "encoder_hidden_states_proj", features.states)]
    tokens += [linear(w, "embedding_control", control)[:, None], linear(w, "embedding_proj", features.pooled)[:, None]]
    tokens += [linear(w, "proj_in", noise)[:, None], w["prd_embedding"].expand(rows, -1, -1)]
    x = torch.cat(tokens, 1) + w["positional_embedding"]
    length = texts + 4
    assert x.shape[1] == w["positional_embedding"].shape[1] == length
    bias = torch.full((length, length), -10000.0).triu(1).expand(rows, 1, -1, -1).clone()
    bias[..., :texts].masked_fill_(~features.mask[:, None, None], -10000.0)
    for i in range(LAYERS):
        block = f"transformer_blocks.{i}."

        def normalised(name: str, x: Tensor, block: str = block) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{block}{name}.weight"], w[f"{block}{name}.bias"])

        def heads(name: str, x: Tensor, block: str = block) -> Tensor:
            return linear(w, f"{block}attn1.{name}", x).view(rows, length, HEADS, HEAD).transpose(1, 2)

        y = normalised("norm1", x)
        q, k, v = (heads(name, y) for name in ("to_q", "to_k", "to_v"))
        weights = (q @ k.transpose(-1, -2) / HEAD**0.5 + bias).softmax(-1)
        read = (weights @ v).transpose(1, 2).reshape(rows, length, HEADS * HEAD)
        x = x + linear(w, f"{block}attn1.to_out.0", read)
        hidden = F.gelu(linear(w, f"{block}ff.net.0.proj", normalised("norm3", x)))
        x = x + linear(w, f"{block}ff.net.2", hidden)
    x = F.layer_norm(x, x.shape[-1:], w["norm_out.weight"], w["norm_out.bias"])
    return linear(w, "proj_to_clip_embeddings", x[:, -1])


def predicted(prior: LambdaEclipsePrior, features: TextFeatures, noise: Tensor, control: Tensor) -> Tensor:
    return prior.predict(features, noise=noise, references=References.of([[]] * len(control), D, control))


def test_agrees_with_the_published_computation() -> None:
    prior, (features, noise, control) = random_prior(), inputs()
    expected = published(prior.state_dict(), features, noise, control)
    found = predicted(prior, features, noise, control)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    # And the comparison can fail: each input counts.
    for moved in (
        predicted(prior, features, noise, control.roll(1, 0)),
        predicted(prior, features, noise.roll(1, 0), control),
        predicted(prior, TextFeatures(features.states, features.mask, -features.pooled), noise, control),
    ):
        assert (moved - expected).abs().max() > 0.01 * expected.abs().max()


def test_one_control_is_for_all_texts_and_the_picture_of_zeros_is_the_default() -> None:
    prior, (features, noise, control) = random_prior(), inputs()
    with pytest.raises(UserError, match=r"needs a control.*references=…"):
        prior.predict(features, noise=noise)
    prior.zero_image = lambda: control[:1]
    each = predicted(prior, features, noise, control[:1].expand(3, -1))
    assert torch.equal(prior.predict(features, noise=noise), each)
    assert torch.equal(prior.predict(features, noise=noise, references=References.none(3, D)), each)


def test_references_that_do_not_fit_are_refused() -> None:
    prior, (features, noise, control) = random_prior(), inputs()
    with pytest.raises(UserError, match="references of 2 texts, and 3 texts"):
        predicted(prior, features, noise, control[:2])
    with pytest.raises(UserError, match="controls hold NaN"):
        predicted(prior, features, noise, control * float("nan"))
    with pytest.raises(UserError, match="subjects are 7 wide, and this prior reads 24"):
        prior.predict(features, noise=noise, references=References.none(3, 7))
    for place in (-1, POSITIONS):
        with pytest.raises(UserError, match="at a position beyond its text"):
            prior.predict(
                features, noise=noise, references=References.of([[([place], control[0])], [], []], D, control)
            )
    few = References.of([[]] * 3, D)
    with pytest.raises(UserError, match="1 controls for 3 texts"):
        prior.predict(features, noise=noise, references=replace(few, control=control[:1]))
    subjects = References.of([[([1], torch.full((D,), float("inf")))], [], []], D, control)
    with pytest.raises(UserError, match="subjects hold NaN or infinity"):
        prior.predict(features, noise=noise, references=subjects)


def test_gradients_reach_the_control() -> None:
    from syzygy.core.packed_attention import PackedText

    prior, (features, noise, control) = random_prior(), inputs()
    prior(PackedText.of(features), noise, References.of([[]] * 3, D, control)).square().sum().backward()
    assert prior.embedding_control.weight.grad is not None
    assert prior.embedding_control.weight.grad.abs().max() > 0


def test_the_published_size() -> None:
    with torch.device("meta"):
        prior = LambdaEclipsePrior(LambdaEclipsePriorConfig(embedding_dim=1280))
    assert sum(p.numel() for p in prior.parameters()) == 34_849_536
    assert prior.positional_embedding.shape == (1, 81, 512)


def test_the_published_layout_survives_a_round_trip(tmp_path: Path) -> None:
    prior = random_prior()
    prior.save_pretrained(tmp_path / "prior", {"recipe": "none"})
    config = json.loads((tmp_path / "prior" / "config.json").read_text())
    assert config["_class_name"] == "PriorTransformer"
    assert config["additional_embeddings"] == 4
    stored = load_file(tmp_path / "prior" / WEIGHTS)
    assert {"embedding_control.weight", "embedding_control.bias"} <= stored.keys()
    eclipse = EclipsePrior.from_pretrained(tiny_eclipse(tmp_path / "eclipse"))
    own = {name.replace("transformer_blocks.1", "").replace("transformer_blocks.2", "") for name in stored}
    assert {n for n in own if not n.startswith((".", "embedding_control"))} == eclipse.state_dict().keys()
    for again in (LambdaEclipsePrior.from_pretrained(tmp_path / "prior"), load_one_pass(tmp_path / "prior")):
        assert isinstance(again, LambdaEclipsePrior)
        assert all(torch.equal(again.state_dict()[name], value) for name, value in prior.state_dict().items())
    prior.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert {x.dtype for x in load_file(tmp_path / "half" / WEIGHTS).values()} == {torch.float16}
    features, noise, control = inputs()
    half = predicted(LambdaEclipsePrior.from_pretrained(tmp_path / "half"), features, noise, control)
    full = predicted(prior, features, noise, control)
    assert (half - full).abs().max() < 0.02 * full.abs().max()


def test_kinds_of_priors_are_told_apart_by_their_keys(tiny_kandinsky: Tiny, tmp_path: Path) -> None:
    folder = tiny_lambda_eclipse(tmp_path / "lambda")
    assert isinstance(load_prior(folder, random_clip()), LambdaEclipsePrior)
    with pytest.raises(UserError, match=r"holds a λ-ECLIPSE prior.*LambdaEclipsePrior\.from_pretrained reads it"):
        EclipsePrior.from_pretrained(folder)
    with pytest.raises(UserError, match=r"reads a control besides the text: no other part is trained through it"):
        load_network(folder)
    for other in (tiny_kandinsky.prior, tiny_kandinsky.clip):  # ECLIPSE's, and the stock prior of the pipeline
        with pytest.raises(UserError, match=r"without embedding_control \(ECLIPSE or diffusion\)"):
            LambdaEclipsePrior.from_pretrained(other)
    assert load_prior(folder, random_clip()).config.embedding_dim == WIDTH


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def remove(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return remove


def set_to(**more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(more)


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        (without("embedding_control.bias"), set_to(), r"missing .*embedding_control\.bias"),
        (lambda tensors: tensors.update(more=torch.ones(1)), set_to(), "more"),
        (lambda tensors: tensors.update(prd_embedding=torch.ones(1, 1, 3)), set_to(), "prd_embedding"),
        (lambda tensors: None, set_to(additional_embeddings=3), "'additional_embeddings'.*4"),
        (lambda tensors: None, set_to(time_embed_dim=3), "'time_embed_dim'.*not permitted"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    weights: Callable[[dict[str, Tensor]], None],
    config: Callable[[dict[str, Any]], None],
    message: str,
    tmp_path: Path,
) -> None:
    folder = tiny_lambda_eclipse(tmp_path / "prior")
    tensors, settings = load_file(folder / WEIGHTS), json.loads((folder / "config.json").read_text())
    weights(tensors)
    config(settings)
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        LambdaEclipsePrior.from_pretrained(folder)
