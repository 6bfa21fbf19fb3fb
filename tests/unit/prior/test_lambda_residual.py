"""The residual λ prior: an estimate by least squares at first, its loss and penalty, what it emphasises, its own layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.data.references import References
from syzygy.prior.eclipse import projection_loss
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.lambda_residual import (
    LambdaResidualObjective,
    LambdaResidualPrior,
    LambdaResidualPriorConfig,
    LambdaResidualTaskConfig,
)
from syzygy.prior.presets import PRESETS
from syzygy.prior.prior_loading import load_one_pass
from syzygy.prior.prior_task import PriorTask
from tests.closeness import about, assert_close

WIDTH, TOKENS, CAPTIONS, SCALE = 8, 6, 60, 10.0
SIZES = {
    "embedding_dim": WIDTH, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_embeddings": TOKENS,
}  # fmt: skip
A, B = 4.0, 0.7
"""What the images of the data are made of: A × the direction of the text + B × the subject, moved."""


def new_data(seed: int = 1, alone: bool = True, noise: float = 0.0) -> PriorData:
    """Captions of four tokens; every third one has no subject, every third one two."""
    draw = torch.Generator().manual_seed(seed)
    pooled = torch.randn(CAPTIONS, WIDTH, generator=draw) + 1
    features = TextFeatures(
        torch.randn(CAPTIONS, 4, WIDTH, generator=draw), torch.ones(CAPTIONS, 4, dtype=torch.bool), pooled
    )
    numbers = [i % 3 for i in range(CAPTIONS)] if alone else [1] * CAPTIONS
    subjects = [[([1 + j], torch.randn(WIDTH, generator=draw) - 2) for j in range(number)] for number in numbers]
    references = References.of(subjects, WIDTH, torch.randn(CAPTIONS, WIDTH, generator=draw))
    images = A * F.normalize(pooled, dim=-1) + B * references.mean_subjects() + 3
    images = images + noise * torch.randn(CAPTIONS, WIDTH, generator=draw)
    everyone = torch.arange(CAPTIONS)
    return PriorData(images, features, everyone, everyone, references, torch.full((1, WIDTH), 0.5))


def new_prior(**settings: float) -> LambdaResidualPrior:
    torch.manual_seed(0)
    return LambdaResidualPrior(LambdaResidualPriorConfig(**SIZES, **settings))


def new_task(data: PriorData | None = None, prior: LambdaResidualPrior | None = None, **settings: object) -> PriorTask:
    config = LambdaResidualTaskConfig.model_validate({"batch_size": 10, "controlled": 0.0} | settings)
    data = data or new_data()
    objective = LambdaResidualObjective(prior or new_prior(), config, logit_scale=SCALE)
    return PriorTask(objective, data, data, config.batch_size, 0)


def predicted(prior: LambdaResidualPrior, data: PriorData) -> torch.Tensor:
    references = replace(data.referred, control=None)
    prior.zero_image = lambda: data.zero_image
    return prior.predict(data.captions, generator=torch.Generator().manual_seed(0), references=references)


def test_the_estimate_finds_what_images_are_made_of() -> None:
    prior, data = new_prior(), new_data()
    prior.set_estimate(data)
    assert_close(prior.estimate(data.captions.pooled, data.referred), data.image_embeddings)
    assert prior.text_weight.tolist() == about([A, A])
    assert float(prior.subject_weight) == about(B)


def test_without_captions_that_have_no_subject_texts_are_measured_on_all() -> None:
    prior, data = new_prior(), new_data(alone=False)
    prior.set_estimate(data)
    assert_close(prior.estimate(data.captions.pooled, data.referred), data.image_embeddings)
    assert prior.has_estimate
    alone = prior.estimate(data.captions.pooled, References.none(CAPTIONS, WIDTH))
    assert_close(alone.mean(0), data.image_embeddings.mean(0))


def test_data_in_which_no_caption_has_a_subject_are_refused() -> None:
    data = replace(new_data(), referred=References.none(CAPTIONS, WIDTH))
    with pytest.raises(UserError, match=r"no caption to train on has a subject.*--subjects"):
        new_task(data)


def test_untrained_it_predicts_the_estimate_with_emphasis_at_the_distance_of_images() -> None:
    data = new_data(noise=1.0)
    prior = new_task(data, new_prior(subject_emphasis=0.5, distance=1.2)).objective.prior
    found, mean = predicted(prior, data), data.image_embeddings.mean(0)
    of_caption = data.referred.mean_subjects() - data.referred.mean_subjects()[data.referred.has_subject].mean(0)
    wanted = prior.estimate(data.captions.pooled, data.referred) - mean
    wanted = wanted + 0.5 * of_caption * data.referred.has_subject[:, None]
    far = (data.image_embeddings - mean).square().sum(1).mean().sqrt()
    assert_close(found, mean + 1.2 * prior.clip_std.norm() * F.normalize(wanted, dim=-1))
    assert float(prior.clip_std.norm()) == pytest.approx(float(far), rel=0.02)


def test_the_loss_has_no_emphasis_and_a_penalty_on_the_correction() -> None:
    plain, emphasised = new_task(), new_task(prior=new_prior(subject_emphasis=2.0, distance=3.0))
    for name, value in plain.loss(1).items():
        assert_close(value, emphasised.loss(1)[name])
    task = new_task(new_data(noise=1.0), penalty=0.5)
    prior = task.objective.prior
    torch.nn.init.normal_(prior.proj_to_clip_embeddings.weight)
    index = task.captions_at(2)
    data, losses = task.data, task.loss(2)
    references = replace(data.references(index), control=data.zero_image.expand(10, -1))
    [batch] = task._batches(2)
    correction = prior.correction(data.text(index), batch.noise, references)
    whole = prior.spread(prior.estimate(data.pooled(index), references) + correction)
    assert_close(losses["correction"], correction.square().mean())
    assert_close(losses["projection"], projection_loss(whole, data.images(index)))
    assert_close(losses["loss"], losses["projection"] + 0.5 * losses["correction"])
    assert_close(whole.sub(prior.clip_mean).norm(dim=-1), prior.clip_std.norm().expand(10))


def test_training_learns_what_the_estimate_lacks() -> None:
    data = new_data()
    bent = replace(data, image_embeddings=data.image_embeddings + 2 * data.captions.states[:, 2])
    task = new_task(bent, new_prior(subject_emphasis=0.0, distance=1.0), penalty=0.01)
    optimizer = torch.optim.AdamW([p for p in task.objective.prior.parameters() if p.requires_grad], lr=5e-3)
    with torch.no_grad():
        before = task.validate()["projection"]
    for step in range(150):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        assert task.validate()["projection"] < before / 2


def test_several_subjects_count_as_their_mean_and_captions_do_not_depend_on_others() -> None:
    data = new_data(noise=1.0)
    prior = new_task(data).objective.prior
    whole = predicted(prior, data)
    prior.zero_image = lambda: data.zero_image
    noise = torch.randn(CAPTIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([5, 3, 4])
    alone = prior.predict(data.captions[some], noise=noise[some], references=replace(data.referred[some], control=None))
    assert_close(alone, whole[some])
    assert data.referred.offsets.diff()[5] == 2


def test_its_own_layout_survives_a_round_trip_and_is_refused_by_others(tmp_path: Path) -> None:
    data = new_data(noise=1.0)
    prior = new_task(data, new_prior(subject_emphasis=0.4)).objective.prior
    prior.save_pretrained(tmp_path / "prior", {"recipe": "none"})
    for again in (LambdaResidualPrior.from_pretrained(tmp_path / "prior"), load_one_pass(tmp_path / "prior")):
        assert isinstance(again, LambdaResidualPrior)
        assert again.config.subject_emphasis == 0.4
        assert torch.equal(predicted(again, data), predicted(prior, data))
    with pytest.raises(UserError, match="holds a residual λ prior, and a prior of the published layout"):
        LambdaEclipsePrior.from_pretrained(tmp_path / "prior")
    with pytest.raises(UserError, match=r"no estimate to add its correction to.*set_estimate"):
        new_prior().save_pretrained(tmp_path / "new")


def test_training_further_keeps_estimate_and_statistics(tmp_path: Path) -> None:
    first = new_task(new_data(noise=1.0)).objective.prior
    first.save_pretrained(tmp_path / "prior")
    config = LambdaResidualTaskConfig(batch_size=10, controlled=0.0)
    objective = config.objective(
        SIZES, SCALE, lambda: new_data().captions[[0]], torch.device("cpu"), tmp_path / "prior"
    )
    PriorTask(objective, new_data(seed=9), new_data(seed=9), 10, 0)
    for name, value in first.state_dict().items():
        assert torch.equal(objective.prior.state_dict()[name], value)
    other = config.model_copy(update={"distance": 1.0, "subject_emphasis": 0.5})
    changed = other.objective(
        SIZES, SCALE, lambda: new_data().captions[[0]], torch.device("cpu"), tmp_path / "prior"
    ).prior
    assert (changed.config.distance, changed.config.subject_emphasis) == (1.0, 0.5)
    assert changed.fingerprint() != first.fingerprint(), "it predicts other embeddings"
    changed.save_pretrained(tmp_path / "changed")
    again = LambdaResidualPrior.from_pretrained(tmp_path / "changed")
    assert (again.config.subject_emphasis, again.fingerprint()) == (0.5, changed.fingerprint())


def test_without_an_estimate_nothing_is_predicted() -> None:
    prior, data = new_prior(), new_data()
    with pytest.raises(UserError, match="no estimate to add its correction to"):
        predicted(prior, data)


def test_gradients_pass_estimate_and_network() -> None:
    prior, data = new_task(new_data(noise=1.0)).objective.prior, new_data(noise=1.0)
    pooled = data.captions.pooled.requires_grad_()
    text = PackedText.of(replace(data.captions, pooled=pooled))
    prior(text, torch.zeros(CAPTIONS, WIDTH), data.referred).square().sum().backward()
    assert pooled.grad is not None
    assert pooled.grad.abs().max() > 0
    assert prior.proj_to_clip_embeddings.weight.grad is not None


def test_presets_train_lambda_eclipses_network() -> None:
    for name in ("lambda-eclipse", "lambda-eclipse-kandinsky22"):
        plain, residual = PRESETS[name](), PRESETS[name.replace("eclipse", "eclipse-residual")]()
        assert isinstance(residual.task, LambdaResidualTaskConfig)
        assert (residual.num_layers, residual.num_attention_heads) == (plain.num_layers, plain.num_attention_heads)
        assert type(residual).model_validate(residual.model_dump(mode="json")) == residual
