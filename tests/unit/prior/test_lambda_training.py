"""Training of λ-ECLIPSE priors: the loss is ECLIPSE's on texts with subjects, the control is drawn, and a run learns what subjects show."""

from dataclasses import replace

import pytest
import torch

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.data.references import References
from syzygy.prior.eclipse import contrastive_loss, projection_loss
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior, LambdaEclipsePriorConfig
from syzygy.prior.lambda_training import LambdaEclipseObjective, LambdaEclipseTaskConfig
from syzygy.prior.presets import PRESETS
from syzygy.prior.prior_task import PriorTask
from tests.closeness import assert_close

WIDTH, TOKENS, SCALE, CAPTIONS = 8, 6, 10.0, 32


def new_data(seed: int = 1, edges: bool = True) -> PriorData:
    """Equal captions of four tokens whose second one stands for a subject; the image is that of the subject."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(4, WIDTH, generator=draw).repeat(CAPTIONS, 1, 1)
    subjects = torch.randn(CAPTIONS, WIDTH, generator=draw)
    features = TextFeatures(states, torch.ones(CAPTIONS, 4, dtype=torch.bool), torch.ones(CAPTIONS, WIDTH))
    control = torch.randn(CAPTIONS, WIDTH, generator=draw) if edges else None
    references = References.of([[([1], subject)] for subject in subjects], WIDTH, control)
    everyone = torch.arange(CAPTIONS)
    return PriorData(2 * subjects, features, everyone, everyone, references, torch.full((1, WIDTH), 0.5))


def new_task(data: PriorData | None = None, **settings: object) -> PriorTask:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_embeddings": TOKENS}
    prior = LambdaEclipsePrior(LambdaEclipsePriorConfig(embedding_dim=WIDTH, **sizes))
    config = LambdaEclipseTaskConfig.model_validate({"batch_size": 8} | settings)
    data = data or new_data()
    return PriorTask(LambdaEclipseObjective(prior, config, logit_scale=SCALE), data, data, config.batch_size, 0)


def seen_by(task: PriorTask, step: int) -> list[tuple[PackedText, torch.Tensor, References, torch.Tensor]]:
    """What the prior reads and predicts in a step: (text, noise, references, prediction)."""
    seen = []
    hook = task.objective.prior.register_forward_hook(lambda _, given, out: seen.append((*given, out.detach())))
    task.loss(step)
    hook.remove()
    return seen


def test_the_prior_reads_subjects_in_place_of_their_tokens_and_the_words_pooled_embedding() -> None:
    task = new_task()
    index = task.captions_at(3)
    [(text, noise, references, predicted)] = seen_by(task, 3)
    data = task.data
    states = data.captions.states[index].clone()
    states[:, 1] = data.referred.embeddings[index]
    assert torch.equal(text.pooled, data.captions.pooled[index])
    there = PackedText(states.flatten(0, 1), text.offsets, text.pooled)
    by_hand = task.objective.prior(there, noise, References.of([[]] * len(index), WIDTH, references.control))
    assert_close(predicted, by_hand)


def test_the_loss_is_eclipses() -> None:
    task = new_task(lambda_contrastive=0.3)
    index = task.captions_at(5)
    [(*_, predicted)] = seen_by(task, 5)
    found = task.loss(5)
    projection = projection_loss(predicted, task.data.images(index))
    contrastive = contrastive_loss(predicted, task.data.captions.pooled[index], SCALE, index)
    assert_close(found["loss"], projection + 0.3 * contrastive)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 0.3, 0.7), (1.0, 1, 1)])
def test_so_many_captions_are_trained_with_edges_and_the_others_with_zeros(
    share: float, least: float, most: float
) -> None:
    task = new_task(controlled=share)
    with_edges = []
    for step in range(16):
        index = task.captions_at(step)
        [(_, _, references, _)] = seen_by(task, step)
        control = references.control
        edges = (control == task.data.referred.control[index]).all(1)
        assert torch.equal(control[~edges], task.data.zero_image.expand((~edges).sum(), -1))
        with_edges += edges.tolist()
    assert least <= sum(with_edges) / len(with_edges) <= most


def test_training_learns_what_only_the_subjects_show() -> None:
    task = new_task(batch_size=32, controlled=0.0, lambda_contrastive=0.0)
    optimizer = torch.optim.AdamW(task.objective.prior.parameters(), lr=5e-3)
    with torch.no_grad():
        before = task.validate()["cosine"]
    for step in range(80):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate()["cosine"]
    assert after > max(0.8, before + 0.3)
    shuffled = replace(task.data, referred=task.data.referred[torch.arange(CAPTIONS).roll(1)])
    task.validation = shuffled
    with torch.no_grad():
        assert task.validate()["cosine"] < 0.5


def test_parts_of_a_batch_sum_to_the_whole() -> None:
    whole, parts = new_task(), new_task()
    parts._micro = 3
    assert_close(whole.loss(2)["loss"], parts.loss(2)["loss"])


def test_data_without_subjects_or_edges_are_refused_with_what_to_do() -> None:
    data = new_data()
    with pytest.raises(UserError, match=r"have none.*embed --subjects"):
        new_task(replace(data, referred=None))
    with pytest.raises(UserError, match=r"controlled=0\.5.*--edges.*controlled=0"):
        new_task(new_data(edges=False))
    new_task(new_data(edges=False), controlled=0.0)


def test_presets_have_the_published_size_and_the_starters() -> None:
    run = PRESETS["lambda-eclipse-kandinsky22"]()
    assert isinstance(run.task, LambdaEclipseTaskConfig)
    assert run.scenes is None
    config = LambdaEclipsePriorConfig(
        embedding_dim=run.embedding_dim or 0,
        num_layers=run.num_layers,
        num_attention_heads=run.num_attention_heads,
        attention_head_dim=run.attention_head_dim,
    )
    with torch.device("meta"):
        assert sum(x.numel() for x in LambdaEclipsePrior(config).parameters()) == 34_849_536
    small = PRESETS["lambda-eclipse"]()
    assert isinstance(small.task, LambdaEclipseTaskConfig)
    assert small.num_layers == PRESETS["starter"]().num_layers
