from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.diffusion_prior import DiffusionObjective, DiffusionPrior, DiffusionPriorConfig, DiffusionTaskConfig
from syzygy.prior.eclipse import (
    EclipseObjective,
    EclipsePrior,
    EclipsePriorConfig,
    EclipseTaskConfig,
    contrastive_loss,
    projection_loss,
)
from syzygy.prior.embedding_pairs import PriorData, caption_ids
from syzygy.prior.prior_network import PriorBatch
from syzygy.prior.prior_task import PriorTask
from syzygy.training.parallel import Ranks
from tests.closeness import NETWORK, about, assert_close, largest_of

WIDTH, TOKENS, SCALE = 8, 6, 10.0


def new_prior(width: int = WIDTH, tokens: int = TOKENS) -> EclipsePrior:
    torch.manual_seed(0)
    return EclipsePrior(
        EclipsePriorConfig(
            embedding_dim=width, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeddings=tokens
        )
    )


def new_data(images: int = 7, captions: int = 10, seed: int = 1) -> PriorData:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, TOKENS + 1, (captions, 1), generator=draw)
    features = TextFeatures(
        torch.randn(captions, TOKENS, WIDTH, generator=draw),
        torch.arange(TOKENS) < lengths,
        torch.randn(captions, WIDTH, generator=draw),
    )
    index = torch.arange(captions) % images
    return PriorData(torch.randn(images, WIDTH, generator=draw), features, index, torch.arange(captions))


def task_on(
    data: PriorData, validation: PriorData, *, prior: EclipsePrior | None = None, seed: int = 0, **settings: object
) -> PriorTask:
    config = EclipseTaskConfig.model_validate({"batch_size": 4} | settings)
    objective = EclipseObjective(prior or new_prior(), config, logit_scale=SCALE)
    return PriorTask(objective, data, validation, config.batch_size, seed)


def new_task(seed: int = 0, **settings: object) -> PriorTask:
    return task_on(new_data(), new_data(seed=2), seed=seed, **settings)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23])
def test_every_caption_comes_once_an_epoch_in_a_new_order(batch_size: int) -> None:
    task = new_task(batch_size=batch_size)
    batches = [task.captions_at(step) for step in range(-(-30 // batch_size))]
    assert all(len(batch) == batch_size for batch in batches)
    epochs = torch.cat(batches)[:30].view(3, 10)
    assert epochs.sort().values.tolist() == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_a_step_depends_on_seed_and_number_alone() -> None:
    task = new_task()
    in_order = [task.loss(step)["loss"] for step in range(4)]
    again = new_task()
    assert [again.loss(step)["loss"] for step in (3, 1, 2, 0)] == [in_order[i] for i in (3, 1, 2, 0)]
    assert new_task(seed=1).loss(0)["loss"] != in_order[0]


def test_each_step_draws_fresh_noise() -> None:
    task = new_task(batch_size=10)
    noises = []
    task.objective.prior.register_forward_pre_hook(lambda _, arguments: noises.append(arguments[1]))
    task.loss(0)
    task.loss(1)
    assert abs(torch.stack(noises).mean()) < 0.3
    assert abs(torch.stack(noises).std() - 1) < 0.3
    assert not torch.equal(noises[0].sort(0).values, noises[1].sort(0).values)


def test_the_loss_is_eclipses_on_the_captions_and_their_images() -> None:
    task = new_task(lambda_contrastive=0.3)
    index = task.captions_at(5)
    outputs = []
    task.objective.prior.register_forward_hook(lambda *call: outputs.append(call[2]))
    found = task.loss(5)
    projection = projection_loss(outputs[0], task.data.image_embeddings[task.data.image_of_caption[index]])
    contrastive = contrastive_loss(outputs[0], task.data.captions.pooled[index], SCALE, index)
    assert_close(found["projection"], projection)
    assert_close(found["contrastive"], contrastive)
    assert_close(found["loss"], projection + 0.3 * contrastive)


def test_equal_captions_are_no_negatives() -> None:
    task = new_task(batch_size=10)
    apart = task.loss(0)["contrastive"]
    task.data = replace(task.data, caption_ids=caption_ids(["a red square"] * 10))
    assert task.loss(0)["contrastive"] == 0 < apart


def test_temperature_is_clips_or_a_number() -> None:
    assert new_task(temperature=0.1).loss(0)["loss"] == new_task().loss(0)["loss"]
    assert new_task(temperature=0.5).loss(0)["loss"] != new_task().loss(0)["loss"]
    for wrong in ({"temperature": 0}, {"temperature": "learned"}, {"lambda_contrastive": -1}, {"batch_size": 0}):
        with pytest.raises(ValidationError):
            EclipseTaskConfig.model_validate(wrong)


def test_training_learns_what_validation_measures() -> None:
    data = new_data(images=10)
    data = replace(data, image_embeddings=2 * data.captions.pooled)
    task = task_on(data, data, batch_size=10)
    optimizer = torch.optim.AdamW(
        [p for p in task.objective.prior.parameters() if p.requires_grad], lr=5e-3, fused=True
    )
    with torch.no_grad():
        before = task.validate()
        assert task.validate() == before
    for step in range(30):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate()
    assert after["recall_at_1"] == 1.0 > before["recall_at_1"]
    assert after["cosine"] > 0.9 > before["cosine"]
    assert after["projection"] < before["projection"] / 2
    assert after["loss"] == about(after["projection"] + 0.2 * after["contrastive"])


def test_validation_means_do_not_depend_on_how_it_is_cut() -> None:
    whole, cut = (task_on(new_data(), new_data(), batch_size=size) for size in (10, 3))
    with torch.no_grad():
        one, other = whole.validate(), cut.validate()
    for name in ("projection", "cosine", "cosine_text", "recall_at_1", "frechet"):
        assert one[name] == about(other[name], depth=NETWORK)


def test_validation_tells_the_own_caption_from_another() -> None:
    data = new_data(images=10)
    data = replace(data, image_embeddings=2 * data.captions.pooled)
    task = task_on(data, data, batch_size=10)

    def own_text(batch: PriorBatch) -> torch.Tensor:
        return 3 * batch.text.pooled

    task.objective.predict = own_text
    with torch.no_grad():
        found = task.validate()
    assert found["cosine_text"] == about(1.0)
    assert abs(found["cosine_other"]) < 0.5
    assert found["recall_at_1"] == 1.0
    few = replace(data, captions=data.captions[:5], image_of_caption=torch.arange(5), caption_ids=torch.arange(5))
    with torch.no_grad():
        assert "frechet" not in task_on(data, few).validate(), "five captions have no covariance in eight dimensions"


@pytest.mark.parametrize("kind", ["eclipse", "diffusion"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_parts_of_a_batch_are_the_whole(kind: str, micro_batch: int) -> None:
    """Losses and gradients, the contrast with all texts of the batch included."""
    found = []
    for size in (0, micro_batch):
        task = diffusion_task(new_data()) if kind == "diffusion" else new_task(batch_size=10)
        task._micro = size or 10
        sums: dict[str, float] = {}
        for part in task.parts(3):
            part["loss"].backward()
            sums = {name: sums.get(name, 0.0) + value.item() for name, value in part.items()}
        found.append((sums, [p.grad.clone() for p in task.objective.prior.parameters() if p.grad is not None]))
    (whole, gradients), (parts, others) = found
    assert parts == about(whole, depth=NETWORK)
    for a, b in zip(gradients, others, strict=True):
        assert_close(b, a, depth=NETWORK, largest=largest_of(gradients))


def test_ranks_share_a_batch_and_its_texts() -> None:
    """What each of two processes computes alone: its half of the captions and their noise, against all ten texts."""
    whole = new_task(batch_size=10)._batches(7)[0]
    shares = []
    for rank in (0, 1):
        task = new_task(batch_size=10)
        world = Ranks(torch.device("cpu"), rank, 2)
        task._share, task._micro = world.share(10), 5
        shares.append(task._batches(7)[0])
    assert [batch.first for batch in shares] == [0, 5]
    assert torch.equal(torch.cat([batch.noise for batch in shares]), whole.noise)
    assert torch.equal(torch.cat([batch.uniform for batch in shares]), whole.uniform)
    assert torch.equal(torch.cat([batch.image for batch in shares]), whole.image)
    for batch in shares:
        assert torch.equal(batch.candidates, whole.candidates)
        assert torch.equal(batch.candidates[batch.first : batch.first + 5], batch.text.pooled)
    with pytest.raises(UserError, match="10 cannot be shared evenly among 3"):
        Ranks(torch.device("cpu"), 0, 3).share(10)


def test_noise_belongs_to_a_place_in_the_stream() -> None:
    """Whatever the batch size: the same captions of an epoch meet the same noise."""
    small = torch.cat([new_task(batch_size=4)._batches(step)[0].noise for step in range(5)])
    large = torch.cat([new_task(batch_size=10)._batches(step)[0].noise for step in range(2)])
    assert torch.equal(small, large)
    far = new_task(batch_size=10)._batches(20)[0].noise  # across the border of two blocks
    assert len({tuple(row) for row in torch.cat([large, far]).tolist()}) == 30


def test_a_step_names_its_samples() -> None:
    task = new_task()
    assert task.keys(2) == [f"caption {i}" for i in task.captions_at(2).tolist()]


def test_half_precision_data_trains_in_fp32_and_leaves_its_statistics() -> None:
    data = new_data()
    half = replace(data, image_embeddings=data.image_embeddings.half(), captions=data.captions.to(dtype=torch.float16))
    task = task_on(half, half)
    assert task.loss(0)["loss"].dtype == torch.float32
    torch.testing.assert_close(task.objective.prior.clip_mean[0], data.image_embeddings.mean(0), rtol=0, atol=2e-3)
    torch.testing.assert_close(task.objective.prior.clip_std[0], data.image_embeddings.std(0), rtol=0, atol=2e-3)


def test_caption_ids_are_equal_where_captions_are() -> None:
    assert caption_ids(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_data_that_do_not_fit_are_refused() -> None:
    data = new_data()
    with pytest.raises(UserError, match=r"equally many.*\(10, 9, 9\)"):
        replace(data, image_of_caption=torch.arange(9) % 7, caption_ids=torch.arange(9))
    with pytest.raises(UserError, match="images 0 to 6, but the data have 5 images"):
        replace(data, image_embeddings=data.image_embeddings[:5])
    with pytest.raises(UserError, match="image embeddings hold NaN"):
        replace(data, image_embeddings=data.image_embeddings / 0)
    with pytest.raises(UserError, match="8 wide, but 5"):
        replace(data, image_embeddings=data.image_embeddings[:, :5])
    with pytest.raises(UserError, match=r"validation embeddings are 8 wide.*6"):
        task_on(replace_width(data, 6), data, prior=new_prior(6))
    with pytest.raises(UserError, match=r"training caption has 6 tokens.*reads 5"):
        task_on(data, data, prior=new_prior(tokens=5))


def replace_width(data: PriorData, width: int) -> PriorData:
    captions = TextFeatures(data.captions.states[..., :width], data.captions.mask, data.captions.pooled[:, :width])
    return replace(data, image_embeddings=data.image_embeddings[:, :width], captions=captions)


def diffusion_task(data: PriorData, seed: int = 0, **settings: object) -> PriorTask:
    torch.manual_seed(0)
    sizes = EclipsePriorConfig(
        embedding_dim=WIDTH, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeddings=TOKENS
    ).model_dump(exclude={"additional_embeddings"})
    config = DiffusionTaskConfig.model_validate({"batch_size": 10, "sampling": {"steps": 5}} | settings)
    empty = TextFeatures(torch.zeros(1, 2, WIDTH), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, WIDTH))
    objective = DiffusionObjective(DiffusionPrior(DiffusionPriorConfig(**sizes)), config, empty)
    return PriorTask(objective, data, data, config.batch_size, seed)


def test_a_diffusion_step_depends_on_seed_and_number_alone() -> None:
    first, again, other = (diffusion_task(new_data(), seed) for seed in (0, 0, 1))
    losses = [first.loss(step)["loss"].item() for step in range(3)]
    assert [again.loss(step)["loss"].item() for step in (2, 0, 1)] == [losses[i] for i in (2, 0, 1)]
    assert other.loss(0)["loss"].item() != losses[0]


def test_dropped_captions_become_the_empty_text() -> None:
    objective = diffusion_task(new_data(), condition_dropout=0.5).objective
    assert isinstance(objective, DiffusionObjective)
    features = new_data().captions
    dropped = torch.arange(len(features)) % 3 == 0
    mixed = objective._with_dropped(features, dropped)
    assert torch.equal(mixed.pooled[~dropped], features.pooled[~dropped])
    assert not mixed.pooled[dropped].any()
    assert (mixed.mask[dropped].sum(1) == 2).all()


@torch.no_grad()
def test_flow_matching_loses_the_error_of_the_velocity() -> None:
    data = new_data()
    task = diffusion_task(data, schedule="flow", condition_dropout=0.0)
    objective, index = task.objective, torch.arange(4)
    assert isinstance(objective, DiffusionObjective)
    noise = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    uniform = torch.tensor([[0.0605, 0.9], [0.4, 0.9], [0.7, 0.9], [0.9999, 0.9]])
    text, images = data.text(index), data.images(index)
    batch = PriorBatch(text, images, data.pooled(index), data.ids(index), 0, noise, uniform)
    t = torch.tensor([[0.061], [0.401], [0.701], [1.0]])
    clean = objective.prior.whitened(images)
    at = (1 - t) * clean + t * noise
    timestep = (1000 * t[:, 0]).round().long() - 1
    predicted = objective.prior(at / ((1 - t) ** 2 + t**2).sqrt(), timestep, objective.prior.read(text.padded()))
    velocity = (at - predicted) / t
    wanted = (velocity - (noise - clean)).square().mean()
    assert objective.losses(batch)["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)
    uniform[:, 0] = 0.001
    assert objective.losses(batch)["loss"] < 1e3, "near t = 0 the weight is bounded"


@pytest.mark.parametrize("schedule", ["linear", "flow"])
def test_a_diffusion_prior_learns_what_validation_measures(schedule: str) -> None:
    data = new_data(images=10)
    data = replace(data, image_embeddings=2 * data.captions.pooled)
    task = diffusion_task(data, schedule=schedule)
    prior = task.objective.prior
    optimizer = torch.optim.AdamW([p for p in prior.parameters() if p.requires_grad], lr=5e-3, fused=True)
    with torch.no_grad():
        before = task.validate()
        assert task.validate() == before
    for step in range(80):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate()
    assert set(after) == {"loss", "cosine", "cosine_text", "cosine_other", "recall_at_1", "frechet"}
    assert after["recall_at_1"] > 0.85 > before["recall_at_1"]
    assert after["cosine"] > 0.8 > before["cosine"]
    assert after["loss"] < before["loss"] / 2


def test_validation_says_why_it_measures_no_frechet_distance() -> None:
    few, enough = (task_on(new_data(), new_data(captions=number)) for number in (WIDTH, WIDTH + 1))
    assert (
        f"more validation captions than the {WIDTH} dimensions of an embedding, and there are {WIDTH}" in few.unmeasured
    )
    assert enough.unmeasured == ""
    with torch.no_grad():
        assert ("frechet" in few.validate(), "frechet" in enough.validate()) == (False, True)


def test_another_caption_is_another_one_whatever_the_batch() -> None:
    whole, parts = (task_on(new_data(), new_data(captions=5), batch_size=size) for size in (5, 2))
    with torch.no_grad():
        assert parts.validate()["cosine_other"] == pytest.approx(whole.validate()["cosine_other"], abs=1e-6)
        alone = task_on(new_data(), new_data(captions=1)).validate()
    assert "cosine_other" not in alone
    assert {"cosine", "cosine_text", "recall_at_1"} <= alone.keys()


def test_statistics_are_of_the_images_that_have_captions() -> None:
    data = new_data(images=10)
    few = data.first(2)
    assert_close(few.statistics.mean, data.image_embeddings[few.image_of_caption.unique()].mean(0), depth=NETWORK)
    assert not torch.equal(few.statistics.mean, data.statistics.mean)
