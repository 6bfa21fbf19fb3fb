"""The residual prior: text identity at first, its loss and penalty, its own layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from syzygy.core import artifacts
from syzygy.core.config import override, parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig, EclipseTaskConfig, contrastive_loss, projection_loss
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.presets import PRESETS
from syzygy.prior.prior_task import PriorTask
from syzygy.prior.residual_prior import ResidualObjective, ResidualPrior, ResidualPriorConfig, ResidualTaskConfig
from syzygy.prior.training import PriorRun
from tests.closeness import about, assert_close

WIDTH, TOKENS, SCALE = 8, 6, 10.0
SIZES = {
    "embedding_dim": WIDTH, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_embeddings": TOKENS,
}  # fmt: skip


def new_prior(width: int = WIDTH) -> ResidualPrior:
    torch.manual_seed(0)
    return ResidualPrior(ResidualPriorConfig(**SIZES | {"embedding_dim": width}))


def new_data(captions: int = 20, seed: int = 1) -> PriorData:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, TOKENS + 1, (captions, 1), generator=draw)
    features = TextFeatures(
        torch.randn(captions, TOKENS, WIDTH, generator=draw),
        torch.arange(TOKENS) < lengths,
        torch.randn(captions, WIDTH, generator=draw) + 1,
    )
    images = 3 * torch.randn(captions - 2, WIDTH, generator=draw) - 2
    return PriorData(images, features, torch.arange(captions) % (captions - 2), torch.arange(captions))


def new_task(prior: ResidualPrior | None = None, **settings: object) -> PriorTask:
    config = ResidualTaskConfig.model_validate({"batch_size": 10} | settings)
    objective = ResidualObjective(prior or new_prior(), config, logit_scale=SCALE)
    return PriorTask(objective, new_data(), new_data(seed=2), config.batch_size, 0)


def trained(steps: int = 30, **settings: object) -> PriorTask:
    task = new_task(**settings)
    optimizer = torch.optim.AdamW([p for p in task.objective.prior.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    return task


def size_of_correction(task: PriorTask) -> float:
    with torch.no_grad():
        return task.validate()["correction"]


def test_untrained_it_is_the_text_identity_of_the_training_pairs_to_the_bit() -> None:
    task, data = new_task(), new_data()
    prior = task.objective.prior
    assert isinstance(prior, ResidualPrior)
    identity = TextIdentity(float(prior.identity_norm), prior.identity_shift)
    predicted = prior.predict(data.captions, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predicted, identity.predict(data.captions))
    paired = data.image_embeddings[data.image_of_caption]
    fitted = TextIdentity.fit(data.captions.pooled, paired, shifted=True)
    assert_close(predicted, fitted.predict(data.captions))
    assert_close(predicted.mean(0), paired.mean(0))


def test_the_identity_of_pairs_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TextIdentity.of_pairs(new_data())
    monkeypatch.setattr("syzygy.prior.embedding_pairs.SUMMED", 3)
    blocks = TextIdentity.of_pairs(new_data())
    assert blocks.mean_norm == pytest.approx(whole.mean_norm, rel=1e-12)
    assert whole.shift is not None
    assert blocks.shift is not None
    assert_close(blocks.shift, whole.shift)
    nothing = replace(new_data(), image_embeddings=torch.zeros(18, WIDTH))
    with pytest.raises(UserError, match="all image embeddings are zeros"):
        TextIdentity.of_pairs(nothing)


def test_the_loss_is_eclipses_on_the_whole_prediction_plus_the_penalty() -> None:
    task = new_task(lambda_contrastive=0.3, penalty=2.0)
    prior = task.objective.prior
    assert isinstance(prior, ResidualPrior)
    torch.nn.init.normal_(prior.proj_to_clip_embeddings.weight)
    index = task.captions_at(3)
    features, noise = task.data.text(index), task._batches(3)[0].noise
    correction = prior.correction(features, noise)
    assert_close(prior(features, noise), prior.identity(features.pooled) + correction)
    found = task.loss(3)
    projection = projection_loss(prior(features, noise), task.data.images(index))
    contrastive = contrastive_loss(prior(features, noise), features.pooled, SCALE, index)
    assert_close(found["projection"], projection)
    assert_close(found["contrastive"], contrastive)
    assert_close(found["correction"], correction.square().mean())
    assert_close(found["loss"], projection + 0.3 * contrastive + 2 * correction.square().mean())


def test_the_penalty_keeps_the_correction_small() -> None:
    free, held, tight = (size_of_correction(trained(penalty=value)) for value in (0.0, 1.0, 100.0))
    assert free > 1.2 * held > 3 * tight > 0


def test_only_the_last_layer_learns_in_the_first_step_and_everything_later() -> None:
    task = new_task()
    parameters = {n: p for n, p in task.objective.prior.named_parameters() if p.requires_grad}
    task.loss(0)["loss"].backward()
    moved = {name for name, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"proj_to_clip_embeddings.weight", "proj_to_clip_embeddings.bias"}
    assert not any("identity" in name for name in parameters), "the identity is measured, not learned"
    for p in trained(steps=2).objective.prior.parameters():
        assert not p.requires_grad or p.abs().sum() > 0


def test_what_is_saved_predicts_the_same(tmp_path: Path) -> None:
    prior = trained().objective.prior
    assert isinstance(prior, ResidualPrior)
    prior.save_pretrained(tmp_path / "prior", {"clip": "x"})
    assert {path.name for path in (tmp_path / "prior").iterdir()} == {
        "config.json", "model.safetensors", "provenance.json",
    }  # fmt: skip
    config = artifacts.read_json(tmp_path / "prior/config.json")
    assert config["_class_name"] == "ResidualPrior"
    loaded, noise = ResidualPrior.from_pretrained(tmp_path / "prior"), torch.randn(20, WIDTH)
    captions = new_data().captions
    assert torch.equal(loaded.predict(captions, noise=noise), prior.predict(captions, noise=noise))
    assert loaded.fingerprint() == prior.fingerprint()
    prior.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = ResidualPrior.from_pretrained(tmp_path / "half").predict(captions, noise=noise)
    assert_close(half, prior.predict(captions, noise=noise), depth=10, dtype=torch.float16)


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    new = new_prior()
    with pytest.raises(UserError, match="no text identity"):
        new.save_pretrained(tmp_path / "none")
    trained(steps=1).objective.prior.save_pretrained(tmp_path / "residual")  # pyright: ignore
    with pytest.raises(
        UserError,
        match=r"holds a residual prior, and a prior of the published layout \(ECLIPSE, λ-ECLIPSE or diffusion\) is needed\. Residual",
    ):
        EclipsePrior.from_pretrained(tmp_path / "residual")
    eclipse = EclipsePrior(EclipsePriorConfig(**SIZES))
    eclipse.set_statistics(EmbeddingStatistics.of(torch.randn(9, WIDTH)))
    eclipse.save_pretrained(tmp_path / "eclipse")
    with pytest.raises(
        UserError,
        match=r"\(ECLIPSE, λ-ECLIPSE or diffusion\), and a residual prior is needed",
    ):
        ResidualPrior.from_pretrained(tmp_path / "eclipse")
    tensors = artifacts.read_tensors(tmp_path / "residual/model.safetensors")
    del tensors["identity_shift"]
    artifacts.write_tensors(tmp_path / "residual/model.safetensors", tensors)
    with pytest.raises(UserError, match="do not fit ResidualPrior: missing \\['identity_shift'\\]"):
        ResidualPrior.from_pretrained(tmp_path / "residual")
    config = artifacts.read_json(tmp_path / "residual/config.json")
    artifacts.write_json(tmp_path / "residual/config.json", config | {"_class_name": "UNet2DModel"})
    with pytest.raises(UserError, match="describes 'UNet2DModel', not a prior"):
        ResidualPrior.from_pretrained(tmp_path / "residual")


def test_an_identity_that_does_not_fit_is_refused() -> None:
    prior, text = new_prior(), torch.randn(9, WIDTH)
    with pytest.raises(UserError, match=r"has no shift; this prior needs one 8 wide"):
        prior.set_identity(TextIdentity.fit(text, text))
    with pytest.raises(UserError, match=r"a shift 5 wide; this prior needs one 8 wide"):
        prior.set_identity(TextIdentity.fit(text[:, :5], text[:, :5], shifted=True))


def test_texts_of_another_width_are_refused() -> None:
    """As of an encoder whose embeddings do not lie in CLIP's joint space."""
    prior = new_task().objective.prior
    assert isinstance(prior, ResidualPrior)
    wide = TextFeatures(torch.zeros(2, 3, 12), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 12))
    with pytest.raises(UserError, match=f"12 wide, but {WIDTH} is needed. Encode text with the CLIP"):
        prior.predict(wide)


def test_a_prior_that_is_trained_further_keeps_its_identity(tmp_path: Path) -> None:
    first = trained().objective.prior
    assert isinstance(first, ResidualPrior)
    first.save_pretrained(tmp_path / "first")
    config = ResidualTaskConfig(batch_size=10)
    objective = config.objective(SIZES, SCALE, lambda: new_data().captions, torch.device("cpu"), tmp_path / "first")
    other = new_data(seed=5)
    PriorTask(objective, other, other, 10, 0)
    assert torch.equal(objective.prior.identity_shift, first.identity_shift)
    assert not torch.equal(objective.prior.clip_mean, first.clip_mean), "the statistics are those of the new images"
    text, noise = PackedText.of(other.captions), torch.zeros(20, WIDTH)
    assert torch.equal(objective.prior(text, noise), first(text, noise))
    with pytest.raises(UserError, match="num_layers is 2 there and 1 here"):
        config.objective(
            SIZES | {"num_layers": 1}, SCALE, lambda: other.captions, torch.device("cpu"), tmp_path / "first"
        )
    with pytest.raises(UserError, match="holds a residual prior, and a prior of the published layout"):
        EclipseTaskConfig().objective(SIZES, SCALE, lambda: other.captions, torch.device("cpu"), tmp_path / "first")


def test_bf16_computes_the_identity_in_fp32() -> None:
    prior, features = new_prior(), new_data().captions
    prior.set_identity(TextIdentity.of_pairs(new_data()))
    with torch.autocast("cpu", torch.bfloat16):
        found = prior(PackedText.of(features), torch.zeros(20, WIDTH))
    assert found.dtype == torch.float32
    assert torch.equal(found, prior.identity(features.pooled))


@pytest.mark.parametrize("name", ["eclipse-residual", "eclipse-residual-kandinsky22", "eclipse-residual-karlo"])
def test_presets_stay_what_they_are_through_files_and_overrides(name: str) -> None:
    """Both tasks have λ: a task must not be taken for the other kind."""
    run = PRESETS[name]()
    assert isinstance(run, PriorRun)
    assert isinstance(run.task, ResidualTaskConfig)
    assert run.embedding_dim == {"kandinsky22": 1280, "karlo": 768}.get(name.removeprefix("eclipse-residual-"))
    changed = override(run, ["task.penalty=0.5", "seed=3"])
    again = PriorRun.model_validate_json(changed.model_dump_json())
    assert again == changed
    assert isinstance(again.task, ResidualTaskConfig)
    assert again.task.penalty == 0.5
    eclipse = PRESETS["eclipse"]()
    assert type(parse(PriorRun, eclipse.model_dump(mode="json"), "file").task) is EclipseTaskConfig
    assert type(override(eclipse, ["seed=3"]).task) is EclipseTaskConfig
    for wrong in ({"penalty": -1}, {"penalty": "much"}, {"lambda_contrastive": -1}):
        with pytest.raises(ValidationError):
            ResidualTaskConfig.model_validate(wrong)


def test_validation_names_the_size_of_the_correction() -> None:
    task = trained()
    with torch.no_grad():
        found = task.validate()
    assert found["loss"] == about(found["projection"] + 0.8 * found["contrastive"] + found["correction"])
