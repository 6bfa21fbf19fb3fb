"""Supervision of attention and features: which losses are small, what is left out, and how a task uses them."""

import math

import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import build_decoder
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.recording import Recorded
from syzygy.decoder.supervision import (
    BACKGROUND,
    UNKNOWN,
    PatchClassifier,
    PatchTargets,
    attention_loss,
    classification_loss,
    token_mentions,
)
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig
from tests.closeness import about

CONFIG = DecoderConfig(
    slots=(SlotConfig(name="text", token_width=4),),
    cross_attention_width=16,
    vector_width=16,
    size=8,
    channels=3,
    backbone=UNetConfig(channels=(16, 24), attention=(False, True), head_width=8, norm_groups=8),
)
WORDS = torch.tensor([[0, 1, -1]])
"""Of three words the first names mention 0, the second mention 1."""
LOW = torch.tensor([1e-6])


def targets(mentions: list[int], words: Tensor = WORDS) -> PatchTargets:
    found = torch.tensor([mentions])
    return PatchTargets(found, (found.clamp_min(-1) + 1)[..., None], {"text": words})


def paid(*rows: tuple[float, ...]) -> Recorded:
    """Attention of patches to a null token and three words."""
    return Recorded([torch.tensor([rows])])


TOKENS = torch.tensor([[-1, 0, 1, -1]])


def test_attention_to_the_right_words_costs_nothing() -> None:
    right = paid((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.5, 0.0, 0.0, 0.5))
    wrong = paid((0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0))
    wanted = targets([0, 1, BACKGROUND])
    assert attention_loss(right, wanted, TOKENS, LOW).item() == pytest.approx(0, abs=2e-3)
    # −log(1e-3) on two patches of objects (weight 2) and one of the background (0.5), over three patches.
    assert attention_loss(wrong, wanted, TOKENS, LOW).item() == pytest.approx(6.9078 * 4.5 / 3, rel=1e-3)


def test_more_noise_counts_less() -> None:
    wrong, wanted = paid((0.0, 0.0, 1.0, 0.0)), targets([0])
    low, half = (attention_loss(wrong, wanted, TOKENS, torch.tensor([s])).item() for s in (1e-6, 6.0))
    assert half == about(low / 2)


def test_objects_that_the_caption_omits_and_captions_that_are_not_read_do_not_count() -> None:
    wrong = paid((0.0, 0.0, 1.0, 0.0))
    assert attention_loss(wrong, targets([UNKNOWN]), TOKENS, LOW).item() == 0
    assert attention_loss(wrong, targets([0]), torch.full_like(TOKENS, -1), LOW).item() == 0


def test_classification_needs_the_right_attributes() -> None:
    classifier = PatchClassifier(2, (1,))
    with torch.no_grad():
        classifier.out.weight.copy_(torch.tensor([[20.0, 0.0], [0.0, 20.0]]))
        classifier.out.bias.zero_()
    wanted = targets([0, BACKGROUND])
    right = Recorded(features=torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    wrong = Recorded(features=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert classification_loss(classifier, right, wanted, LOW).item() == pytest.approx(0, abs=1e-6)
    assert classification_loss(classifier, wrong, wanted, LOW).item() == pytest.approx(20 * (2 + 0.5) / 2, rel=1e-4)


def conditioning(batch: int) -> Conditioning:
    present = torch.arange(batch) % 2 == 0
    states = torch.randn(batch, 3, 4, generator=generator(0, "states"))
    return Conditioning({"text": Condition(present, states, torch.ones(batch, 3).bool())})


def test_tokens_of_absent_conditions_name_nothing() -> None:
    decoder = build_decoder(CONFIG)
    wanted = PatchTargets(torch.zeros(2, 16).long(), torch.zeros(2, 16, 1).long(), {"text": WORDS.expand(2, -1)})
    found = token_mentions(decoder, wanted, conditioning(2), 5)
    assert found.tolist() == [[-1, -1, 0, 1, -1], [-1] * 5]


def batch(step: int, size: int = 8) -> DecoderBatch:
    """Objects in the left half, named by the first word; noise elsewhere."""
    random = generator(0, "supervised", step)
    mentions = torch.full((size, 4, 4), BACKGROUND)
    mentions[:, :, :2] = 0
    mentions = mentions.flatten(1)
    words = torch.tensor([[0, -1, -1]]).expand(size, -1)
    own = PatchTargets(mentions, (mentions + 1)[..., None], {"text": words})
    latents = 0.2 * torch.randn(size, 3, 8, 8, generator=random)
    latents[..., :4] += 2
    return DecoderBatch(latents, Conditioning({"text": conditioning(size).conditions["text"]}), own)


def task(made: Decoder, **settings: object) -> DecoderTask:
    config = DecoderTaskConfig.model_validate({"batch_size": 8, "subsets": {"text": 1.0}} | settings)
    classifier = PatchClassifier(24, (1,)) if config.classification_weight else None
    return DecoderTask(made, batch, [batch(-1)], config, 0, classifier=classifier)


def test_the_loss_is_the_weighted_sum_and_the_denoising_loss_is_the_same() -> None:
    made = build_decoder(CONFIG)
    plain = task(made).loss(0)
    found = task(made, attention_weight=0.1, classification_weight=0.2).loss(0)
    assert set(plain) == {"loss"}
    assert found["denoising"].item() == about(plain["loss"].item())
    total = found["denoising"] + 0.1 * found["attention"] + 0.2 * found["classification"]
    assert found["loss"].item() == about(total.item())


def test_training_moves_attention_to_the_words_and_features_to_the_objects() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learning = task(build_decoder(CONFIG), attention_weight=1.0, classification_weight=1.0)
    assert set(learning.modules) == {"decoder", "classifier"}
    parameters = [p for module in learning.modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        found = learning.loss(step)
        found["loss"].backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in found.items()})
    for name in ("attention", "classification"):
        first, last = (sum(row[name] for row in rows) for rows in (losses[:5], losses[-5:]))
        assert last < 0.5 * first, name
    assert all(math.isfinite(row["loss"]) for row in losses)


def test_regions_and_supervision_in_one_step() -> None:
    made = build_decoder(CONFIG)

    def with_regions(step: int) -> DecoderBatch:
        plain = batch(step)
        text = plain.conditioning.conditions["text"]
        maps = torch.zeros(8, 3, 8, 8)
        maps[:, 0, :, :4] = 1
        own = Condition(text.present, text.states, text.mask, region_maps=maps)
        return DecoderBatch(plain.latents, Conditioning({"text": own}), plain.targets)

    config = DecoderTaskConfig.model_validate(
        {"batch_size": 8, "subsets": {"text": 1.0}, "painted": 1.0, "strengths": (5.0, 5.0), "attention_weight": 0.1}
    )
    found = DecoderTask(made, with_regions, [], config, 0).loss(0)
    plain = task(made, attention_weight=0.1).loss(0)
    # The first supervised block sees features that regions have changed a little; the bias itself is not what is supervised.
    assert found["attention"].item() == pytest.approx(plain["attention"].item(), rel=0.2)
    found["loss"].backward()


def test_attention_of_one_resolution_is_recorded_without_hidden_words() -> None:
    made = build_decoder(CONFIG)
    found = task(made, attention_weight=0.1, classification_weight=0.2).loss(0)
    plain = task(made).loss(0)
    assert found["denoising"].item() == about(plain["loss"].item())
    found["loss"].backward()
    assert made.get_parameter(
        "backbone.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    ).grad.any()
    backbone = made.backbone
    with backbone.recording() as recorded, torch.no_grad():
        made(torch.randn(2, 3, 8, 8), torch.zeros(2), conditioning(2))
    assert [attention.shape for attention in recorded.attention] == [(2, 16, 5)] * 4  # down, middle, up twice
    assert torch.allclose(recorded.attention[0].sum(-1), torch.ones(2, 16))
    assert recorded.attention[0][1, :, 2:].max() < 1e-6, "the second sample's words are hidden"
