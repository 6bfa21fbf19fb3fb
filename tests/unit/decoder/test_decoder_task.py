from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from syzygy.core.config import override, parse
from syzygy.core.contracts import Condition, Conditioning, image_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import build_decoder
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig, independent_dropout, only
from tests.closeness import about

CONFIG = DecoderConfig(
    slots=(SlotConfig(name="image", pooled_width=3, pooled_tokens=2), SlotConfig(name="text", pooled_width=3)),
    cross_attention_width=16,
    vector_width=16,
    size=8,
    channels=3,
    backbone=UNetConfig(channels=(16,), attention=(False,), head_width=16, norm_groups=8),
)


def decoder(config: DecoderConfig = CONFIG) -> Decoder:
    made = build_decoder(config)
    made.set_scale("image", 0.5)
    made.set_scale("text", 0.5)
    return made


def batch(step: int, size: int = 16) -> DecoderBatch:
    """Plain colours; both embeddings are the colour."""
    colour = torch.rand(size, 3, generator=generator(0, "colour", step)) * 2 - 1
    conditioning = Conditioning({"image": image_condition(colour), "text": image_condition(colour)})
    return DecoderBatch(colour[:, :, None, None].expand(-1, -1, 8, 8).contiguous(), conditioning)


def task(
    batches: Callable[[int], DecoderBatch] = batch, *, made: Decoder | None = None, seed: int = 0, **settings: object
) -> DecoderTask:
    config = DecoderTaskConfig.model_validate({"batch_size": 16} | settings)
    return DecoderTask(made or decoder(), batches, [batch(-1), batch(-2)], config, seed)


def spy(made: Decoder) -> list[tuple[Tensor, Tensor, Conditioning]]:
    """Every call of the decoder: (x, c_noise, conditioning)."""
    calls: list[tuple[Tensor, Tensor, Conditioning]] = []
    made.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    return calls


def test_a_step_depends_on_seed_and_step_alone() -> None:
    made = decoder()
    calls = spy(made)
    tasks = [task(made=made), task(made=made), task(made=made, seed=1)]
    for each, step in ((tasks[0], 7), (tasks[0], 8), (tasks[1], 7), (tasks[2], 7)):
        each.loss(step)
    x, c_noise = [call[0] for call in calls], [call[1] for call in calls]
    assert torch.equal(x[0], x[2])
    assert torch.equal(c_noise[0], c_noise[2])
    assert not torch.equal(c_noise[0], c_noise[1])
    assert not torch.equal(c_noise[0], c_noise[3])


def test_subsets_come_with_their_probabilities() -> None:
    made = decoder()
    calls = spy(made)
    subsets = {"image": 0.5, "text": 0.2, "image+text": 0.2, "": 0.1}
    drawing = task(lambda step: batch(step, 4000), made=made, batch_size=4000, subsets=subsets)
    with torch.no_grad():
        drawing.loss(0)
    image, text = (calls[0][2].conditions[name].present for name in ("image", "text"))
    found = {"image": image & ~text, "text": text & ~image, "image+text": image & text, "": ~image & ~text}
    for name, probability in subsets.items():
        assert found[name].float().mean().item() == pytest.approx(probability, abs=0.03)


def test_draws_make_several_noisy_pictures_of_one() -> None:
    made = decoder()
    calls = spy(made)
    task(lambda step: batch(step, 4), made=made, draws=4, subsets={"image": 1.0}).loss(0)
    (_, c_noise, conditioning), colours = calls[0], batch(0, 4).conditioning.conditions["image"].pooled
    pooled = conditioning.conditions["image"].pooled
    assert colours is not None
    assert pooled is not None
    assert torch.equal(pooled.view(4, 4, 3), colours.expand(4, 4, 3))
    assert (c_noise.view(4, 4).diff(dim=0) > 0).all(), "each picture at levels from low to high"
    with pytest.raises(UserError, match="draws=3 must divide batch_size=16"):
        parse(DecoderTaskConfig, {"batch_size": 16, "draws": 3}, "test")


def test_training_learns_to_use_the_conditions() -> None:
    learning = task(noise={"p_mean": 1.0})  # noisy enough that a plain colour cannot be read off the picture
    optimizer = torch.optim.AdamW(learning.modules["decoder"].parameters(), lr=3e-3)
    with torch.no_grad():
        before = learning.validate()
    for step in range(60):
        optimizer.zero_grad()
        learning.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = learning.validate()
    assert set(after) == {"loss", "loss/image", "loss/text", "loss/image+text", "loss/none"}
    assert len({round(x, 6) for x in before.values()}) == 1, "an untrained decoder answers zero whatever it reads"
    assert after["loss/none"] < before["loss/none"]
    for mode in ("image", "text", "image+text"):
        assert after[f"loss/{mode}"] < 0.75 * after["loss/none"]


def test_validation_is_repeatable_and_weighs_like_training() -> None:
    made = decoder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator(0, *parameter.shape)))
        subsets = {"image": 0.75, "": 0.25}
        found = task(made=made, subsets=subsets).validate()
        assert task(made=made, subsets=subsets).validate() == found
    assert found["loss/image"] != found["loss/none"]
    assert found["loss"] == about(0.75 * found["loss/image"] + 0.25 * found["loss/none"])


def test_bf16_trains_on_autocast() -> None:
    config = CONFIG.model_copy(update={"backbone": UNetConfig(channels=(16, 16), head_width=16, norm_groups=8)})
    made = decoder(config)
    half = DecoderTask(made, batch, [batch(-1)], DecoderTaskConfig(batch_size=16), 0, precision=torch.bfloat16)
    loss = half.loss(0)["loss"]
    loss.backward()
    gradient = made.get_parameter("backbone.unet.conv_out.weight").grad
    assert loss.dtype == torch.float32
    assert gradient is not None
    assert gradient.any()


def test_batches_must_have_the_configured_size() -> None:
    with pytest.raises(AssertionError, match="16 images, configured 8"):
        task(batch_size=8).loss(0)


def test_subsets_must_name_slots() -> None:
    with pytest.raises(UserError, match=r"unknown condition 'imgae'. Did you mean 'image'"):
        task(subsets={"imgae": 1.0})


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ({"image": 0.5}, "sum to 0.5"),
        ({"image": 1.5, "": -0.5}, "at least 0"),
        ({"image+text": 0.5, "text+image": 0.5}, "named twice"),
    ],
)
def test_subsets_must_be_a_distribution(subsets: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(DecoderTaskConfig, {"subsets": subsets}, "test")


def test_subsets_can_be_set_from_the_command_line() -> None:
    config = override(DecoderTaskConfig(), ['subsets={"image": 0.9, "": 0.1}', "noise.p_mean=0.5"])
    assert config.subsets == {"image": 0.9, "": 0.1}
    assert config.noise.p_mean == 0.5


def test_independent_dropout_leaves_ediffi_four_in_a_thousand_image_only() -> None:
    subsets = independent_dropout({"t5": 0.2, "text": 0.2, "image": 0.9})
    assert len(subsets) == 8
    assert sum(subsets.values()) == pytest.approx(1)
    assert subsets["image"] == pytest.approx(0.004)
    assert subsets["t5+text"] == pytest.approx(0.576)
    with pytest.raises(UserError, match="drop rate of 'text'"):
        independent_dropout({"text": 1.2})


def test_only_drops_the_others() -> None:
    shown = only(batch(0).conditioning, ["text"])
    assert shown.conditions["text"].present.all()
    assert not shown.conditions["image"].present.any()


WORDS = DecoderConfig.model_validate(
    CONFIG.model_dump() | {"slots": [{"name": "image", "pooled_width": 3}, {"name": "text", "token_width": 4}]}
)


def painted_batch(step: int, size: int = 16) -> DecoderBatch:
    """Three words a sample; the second is painted on the left half."""
    random = generator(0, "words", step)
    maps = torch.zeros(size, 3, 4, 4)
    maps[:, 1, :, :2] = 1
    everywhere = torch.ones(size, dtype=torch.bool)
    words = Condition(
        everywhere, torch.randn(size, 3, 4, generator=random), torch.ones(size, 3, dtype=torch.bool), region_maps=maps
    )
    colour = torch.rand(size, 3, generator=random)
    return DecoderBatch(
        torch.randn(size, 3, 8, 8, generator=random), Conditioning({"image": image_condition(colour), "text": words})
    )


def painted_task(made: Decoder, **settings: object) -> DecoderTask:
    config = DecoderTaskConfig.model_validate({"batch_size": 16, "subsets": {"text": 0.5, "image": 0.5}} | settings)
    return DecoderTask(made, painted_batch, [painted_batch(-1)], config, 0)


def words_decoder() -> Decoder:
    made = build_decoder(WORDS)
    made.set_scale("image", 0.5)
    return made


def test_a_part_of_the_samples_is_painted_each_with_a_strength_of_its_own() -> None:
    made = words_decoder()
    calls = spy(made)
    of = painted_task(made, painted=0.25, strengths=(0.5, 1.5))
    for step in range(20):
        of.loss(step)
    maps = torch.cat([call[2].conditions["text"].region_maps for call in calls])
    strengths = maps.amax((1, 2, 3))
    painted = strengths[strengths > 0]
    assert 0.15 < len(painted) / len(strengths) < 0.35
    assert 0.5 <= painted.min() < 0.7
    assert 1.3 < painted.max() <= 1.5
    assert torch.equal(
        maps, strengths[:, None, None, None] * painted_batch(0).conditioning.conditions["text"].region_maps[:1]
    )


def test_nothing_is_painted_where_the_part_is_zero() -> None:
    made = words_decoder()
    calls = spy(made)
    result = painted_task(made).validate()
    assert all(call[2].conditions["text"].region_maps is None for call in calls)
    assert set(result) == {"loss", "loss/text", "loss/image"}


def test_validation_tells_what_painting_is_worth() -> None:
    made = words_decoder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)  # so that attention reaches the output
    result = painted_task(made, painted=0.5).validate()
    assert set(result) == {"loss", "loss/text", "loss/image", "loss/text/painted"}
    assert result["loss/text/painted"] != result["loss/text"]
    assert result["loss"] == about((result["loss/text"] + result["loss/image"]) / 2)


def test_strengths_are_a_range() -> None:
    with pytest.raises(UserError, match="smaller first"):
        override(DecoderTaskConfig(), ["strengths=[1.0, 0.5]"])
