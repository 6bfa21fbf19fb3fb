"""The losses of an adapter's stages: least where the adapter gives what CLIP gives, the same in parts, no gradient where frozen."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import load_decoder
from syzygy.decoder.training import DecoderTaskConfig
from syzygy.lab.starter.adapted_decoder_training import AdaptedDecoderTask, Described
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.text_encoders.adapter import AdapterConfig, TextAdapter, TextStatistics
from syzygy.text_encoders.adapter_task import AdapterTask, draws
from syzygy.text_encoders.align_stage import AlignBatch, AlignStage, AlignTaskConfig
from syzygy.text_encoders.image_stage import ImageBatch, ImageStage, ImageTaskConfig
from syzygy.training.parallel import Ranks
from syzygy.training.shuffled import Shuffled
from tests.closeness import NETWORK, about, assert_close, largest_of

D, W, K, G = 8, 6, 5, 12


def features(number: int, tokens: int = K, seed: int = 0) -> TextFeatures:
    random = generator(seed, "features")
    states = torch.randn(number, tokens, D, generator=random)
    return TextFeatures(states, torch.ones(number, tokens, dtype=torch.bool), torch.randn(number, D, generator=random))


def adapter() -> TextAdapter:
    torch.manual_seed(0)
    made = TextAdapter(AdapterConfig(queries=K, layers=1, heads=2, width=8, llm_width=W, clip_width=D))
    made.set_statistics(TextStatistics.of(features(50)))
    return made


def prior(positions: int = 9, width: int = D) -> EclipsePrior:
    torch.manual_seed(1)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    return EclipsePrior(EclipsePriorConfig(embedding_dim=width, num_embeddings=positions, **sizes))


def text(number: int, seed: int = 0) -> TextStates:
    mask = torch.arange(4) < torch.tensor([1 + i % 4 for i in range(number)])[:, None]
    return TextStates(torch.randn(number, 4, W, generator=generator(seed, "text")), mask)


def align_batch(rows: slice = slice(0, G)) -> AlignBatch:
    target, whole = features(G), text(G)
    own = TextStates(whole.states[rows], whole.mask[rows])
    noise = torch.randn(G, D, generator=generator(0, "noise"))[rows]
    padded = torch.randn(G, K, D, generator=generator(0, "padded"))[rows]
    return AlignBatch(own, target[rows], padded, target.pooled, torch.arange(G) % 11, rows.start, noise)


def image_batch(rows: slice = slice(0, G)) -> ImageBatch:
    whole, images = text(G), torch.randn(G, D, generator=generator(0, "images"))
    own = TextStates(whole.states[rows], whole.mask[rows])
    noise = torch.randn(G, D, generator=generator(0, "noise"))[rows]
    return ImageBatch(own, images[rows], features(G).pooled, torch.arange(G) % 11, rows.start, noise)


class Repeated:
    """The same captions at every step."""

    def __init__(self, batch) -> None:
        self.batch = batch

    def read(self, step: int, rows: slice):
        return self.batch(rows)

    def unseen(self) -> Iterator:
        yield "de", self.batch(slice(0, 6))
        yield "ru", self.batch(slice(0, 3))


ALL = AlignTaskConfig(batch_size=G, tokens=0.5)


def stage(config: AlignTaskConfig = ALL) -> AlignStage:
    frozen = prior().requires_grad_(False) if config.prior else None
    return AlignStage(adapter(), frozen, config, logit_scale=10.0)


def test_what_clip_gives_has_no_loss() -> None:
    one, batch = stage(), align_batch()
    same = replace(batch.target, states=batch.target.states)
    found = one._compared(same, replace(batch, padded=same.states))
    for name in ("cosine", "norm", "prior", "tokens"):
        assert found[name].item() == about(0, depth=NETWORK), name
    assert_close(found["loss"], ALL.contrastive * found["contrastive"], depth=NETWORK)
    shuffled = one._compared(same[torch.arange(G).roll(1)], replace(batch, padded=same.states))
    for name in ("cosine", "norm", "prior", "tokens", "contrastive"):
        assert shuffled[name] > found[name] + 1e-3, name


def test_each_part_sees_its_own_side() -> None:
    """States reach the prior and the tokens only, the pooled embedding all but the tokens."""
    one, batch = stage(), align_batch()
    exact = one._compared(batch.target, replace(batch, padded=batch.target.states))
    bent = replace(
        batch.target, states=batch.target.states + 0.3 * torch.randn(G, K, D, generator=generator(0, "bent"))
    )
    found = one._compared(bent, replace(batch, padded=batch.target.states))
    changed = {name for name in exact if (found[name] - exact[name]).abs() > 1e-5}
    assert changed == {"loss", "prior", "tokens"}
    scaled = one._compared(
        replace(batch.target, pooled=2 * batch.target.pooled), replace(batch, padded=batch.target.states)
    )
    changed = {name for name in exact if (scaled[name] - exact[name]).abs() > 1e-5}
    assert changed == {"loss", "norm", "prior"}


def test_the_prior_is_asked_with_one_noise_and_learns_nothing() -> None:
    one = stage(AlignTaskConfig(batch_size=G, cosine=0, norm=0, contrastive=0))
    found = one.losses(align_batch())
    assert set(found) == {"loss", "prior"}
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.adapter.parameters())
    assert one.prior is not None
    assert all(p.grad is None for p in one.prior.parameters())
    assert list(one.modules) == ["adapter"]


def test_weights_weigh() -> None:
    weights = {"cosine": 2.0, "norm": 0.1, "contrastive": 0.3, "prior": 0.7, "tokens": 0.5}
    found = stage(AlignTaskConfig(batch_size=G, **weights)).losses(align_batch())
    assert_close(found["loss"], sum(weights[name] * found[name] for name in weights))


@pytest.mark.parametrize("micro", [5, 12])
def test_parts_are_the_whole(micro: int) -> None:
    def gradients(task: AdapterTask) -> tuple[float, list[torch.Tensor]]:
        total = 0.0
        for part in task.parts(0):
            part["loss"].backward()
            total += part["loss"].item()
        return total, [p.grad for m in task.modules.values() for p in m.parameters() if p.grad is not None]

    for make, batch in ((stage, align_batch), (image_stage, image_batch)):
        world = Ranks(torch.device("cpu"))
        whole, whole_gradients = gradients(AdapterTask(make(), Repeated(batch), G, world=world))
        parts, part_gradients = gradients(AdapterTask(make(), Repeated(batch), G, micro_batch=micro, world=world))
        assert parts == about(whole, depth=NETWORK)
        for a, b in zip(whole_gradients, part_gradients, strict=True):
            assert_close(b, a, depth=NETWORK, largest=largest_of(whole_gradients))


def image_stage(frozen: str = "none", contrastive: float = 0.2) -> ImageStage:
    config = ImageTaskConfig.model_validate(
        {"batch_size": G, "frozen": frozen, "lambda_contrastive": contrastive, "temperature": 0.1}
    )
    return ImageStage(adapter(), prior(), config, logit_scale=1.0)


@pytest.mark.parametrize(
    ("frozen", "trained"), [("none", {"adapter", "prior"}), ("adapter", {"prior"}), ("prior", {"adapter"})]
)
def test_what_is_frozen_has_no_gradient(frozen: str, trained: set[str]) -> None:
    one = image_stage(frozen)
    assert set(one.modules) == trained
    one.losses(image_batch())["loss"].backward()
    for name, module in (("adapter", one.adapter), ("prior", one.prior)):
        has = any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        assert has == (name in trained), name


def test_the_image_loss_is_eclipses() -> None:
    one, batch = image_stage(), image_batch()
    found = one.losses(batch)
    predicted = one.predict(batch)
    assert_close(found["projection"], (predicted - batch.image).square().mean(), depth=NETWORK)
    perfect = one._compared(batch.image, batch)
    assert perfect["projection"] == 0
    assert_close(found["loss"], found["projection"] + 0.2 * found["contrastive"])
    metrics = AdapterTask(one, Repeated(image_batch), G, world=Ranks(torch.device("cpu"))).validate()
    assert set(metrics) == {"loss", "projection", "contrastive", "cosine", "cosine_other", "recall_at_1"}


def test_validation_tells_languages_apart() -> None:
    metrics = AdapterTask(stage(), Repeated(align_batch), G, world=Ranks(torch.device("cpu"))).validate()
    assert {"cosine/de", "cosine/ru", "recall_at_1/de", "recall_at_1/ru"} <= set(metrics)
    assert -1 <= metrics["cosine/de"] <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prior": 0}, "nothing trains the states"),
        ({"prior": 0, "tokens": 1, "cosine": 0, "contrastive": 0}, "nothing trains the pooled"),
    ],
)
def test_losses_that_leave_something_untrained(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AlignTaskConfig(**wrong)


def test_a_prior_that_does_not_fit() -> None:
    for own, message in (
        (prior(positions=K - 1), "reads at most 4 tokens; the adapter has 5"),
        (prior(width=4), "4 wide, this one is 8"),
    ):
        with pytest.raises(UserError, match=message):
            AlignStage(adapter(), own, ALL, logit_scale=1.0)
        with pytest.raises(UserError, match=message):
            ImageStage(adapter(), own, ImageTaskConfig(), logit_scale=1.0)


def test_a_decoder_is_told_nothing_by_padding(tiny_model: Path) -> None:
    decoder = load_decoder(tiny_model / "decoder")
    width, latents = 32, torch.zeros(4, decoder.config.channels, decoder.config.size, decoder.config.size)
    torch.manual_seed(0)
    own = TextAdapter(AdapterConfig(queries=K, layers=1, heads=2, width=8, llm_width=W, clip_width=width))
    own.set_statistics(TextStatistics(*(torch.ones(width) for _ in range(4))))
    config = DecoderTaskConfig(batch_size=4, subsets={"text": 1.0})

    def loss(padding: float) -> float:
        found = text(4)
        states = found.states.masked_fill(~found.mask[..., None], padding)
        told = Described(latents, torch.zeros(4, width), TextStates(states, found.mask))
        return AdaptedDecoderTask(own, decoder, lambda step: told, told, config, 0).loss(0)["loss"].item()

    assert loss(0.0) == loss(float("nan"))


def test_the_stream_does_not_depend_on_batches() -> None:
    order = Shuffled(7, 0, "x")
    assert sorted(order.run(0, 7).tolist()) == list(range(7)) == sorted(order.run(7, 7).tolist())
    assert order.run(0, 14).tolist() == [order[i] for i in range(14)]
    assert order.run(0, 7).tolist() != order.run(7, 7).tolist()
    noise, uniform = draws(0, "x", 0, 200, 3)
    again, same = draws(0, "x", 60, 70, 3)
    assert torch.equal(noise[60:130], again)
    assert torch.equal(uniform[60:130], same)
