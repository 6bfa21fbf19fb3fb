"""The refiner of a decoder's tokens, and the supervision of words by the places of their objects."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from syzygy.core.contracts import Condition, Conditioning
from syzygy.core.errors import UserError
from syzygy.decoder.backbone import build_decoder, load_decoder, save_decoder
from syzygy.decoder.recording import Recorded
from syzygy.decoder.refiner import TokenRefiner
from syzygy.decoder.supervision import BACKGROUND, PatchTargets, PlaceClassifier, place_loss
from syzygy.decoder.training import DecoderBatch
from syzygy.lab.starter.decoder_training import extend
from syzygy.lab.starter.token_training import TokenTask
from tests.unit.decoder.test_supervision import CONFIG


def words(*visible: bool) -> Conditioning:
    states = torch.randn(1, len(visible), 4, generator=torch.Generator().manual_seed(1))
    return Conditioning({"text": Condition(torch.tensor([True]), states, torch.tensor([visible]))})


def trained(layers: int) -> TokenRefiner:
    refiner = TokenRefiner(16, layers)
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return refiner


def test_words_read_other_words_but_no_hidden_ones() -> None:
    refiner, tokens = trained(2), torch.randn(1, 3, 16)
    mask = torch.tensor([[True, True, False]])
    before = refiner(tokens, mask)
    changed = tokens.clone()
    changed[0, 2] *= -5
    assert torch.equal(refiner(changed, mask)[:, :2], before[:, :2])
    changed[0, 1] *= -5
    assert (refiner(changed, mask)[0, 0] - before[0, 0]).abs().max() > 0.01


def test_a_decoder_is_continued_with_a_refiner(tmp_path: Path) -> None:
    plain = build_decoder(CONFIG, seed=3)
    nn.init.normal_(plain.backbone.unet.conv_out.weight)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    save_decoder(plain, tmp_path / "plain", {}, None)
    refined = build_decoder(CONFIG.changed(refiner_layers=2), seed=4)
    extend(refined, tmp_path / "plain")
    x, noise, read = torch.randn(1, 3, 8, 8), torch.zeros(1), words(True, True, False)
    assert torch.equal(plain(x, noise, read), refined(x, noise, read))

    with torch.no_grad():
        refined.refiner.load_state_dict(trained(2).state_dict())  # pyright: ignore[reportOptionalMemberAccess]
    save_decoder(refined, tmp_path / "refined", {}, None)
    expected = refined(x, noise, read)
    assert (expected - plain(x, noise, read)).abs().max() > 1e-3
    assert torch.equal(load_decoder(tmp_path / "refined")(x, noise, read), expected)
    hidden = words(True, True, False).conditions["text"]
    assert hidden.states is not None
    other = replace(hidden, states=hidden.states * torch.tensor([1.0, 1.0, -9.0])[:, None])
    assert torch.equal(refined(x, noise, Conditioning({"text": other})), expected)
    # A refiner is never dropped silently.
    with pytest.raises(UserError, match=r"cannot continue .* refiner"):
        extend(build_decoder(CONFIG), tmp_path / "refined")


def place(logits: Tensor, tokens: Tensor, mentions: Tensor) -> float:
    """The loss of tokens that are their own logits."""
    classifier = PlaceClassifier(logits.shape[-1], logits.shape[-1])
    nn.init.eye_(classifier.out.weight)
    nn.init.zeros_(classifier.out.bias)
    targets = PatchTargets(mentions, mentions[..., None] + 1, {})
    return place_loss(classifier, Recorded(tokens=logits), targets, tokens).item()


def test_words_tell_where_their_objects_are() -> None:
    mentions = torch.tensor([[0, 0, 1, BACKGROUND]])
    tokens = torch.tensor([[-1, 0, 1]])
    sure = torch.tensor([[[0.0, 0, 0, 0], [30, 30, 0, 0], [0, 0, 30, 0]]])
    # Mention 0 has two patches: no prediction is better than half of each.
    assert place(sure, tokens, mentions) == pytest.approx(math.log(2) / 2, abs=1e-4)
    assert place(sure.flip(1), torch.tensor([[1, 0, -1]]), mentions) == pytest.approx(math.log(2) / 2, abs=1e-4)
    assert place(sure, torch.tensor([[-1, 1, 0]]), mentions) > 20
    assert place(torch.zeros(1, 3, 4), tokens, mentions) == pytest.approx(math.log(4))


def test_words_whose_object_is_not_shown_do_not_count() -> None:
    sure = torch.tensor([[[30.0, 0], [0, 30]]])
    assert place(sure, torch.tensor([[0, 1]]), torch.tensor([[0, BACKGROUND]])) == pytest.approx(0, abs=1e-4)
    for tokens, mentions in (([[-1, -1]], [[0, 0]]), ([[1, 1]], [[0, 0]])):
        assert place(sure, torch.tensor(tokens), torch.tensor(mentions)) == 0


def test_a_refiner_trained_alone_learns_which_of_two_is_left() -> None:
    """The second word alone tells the order, so the first must read it."""
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 4, generator=random)
    decoder = build_decoder(CONFIG.changed(refiner_layers=1), seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        places = PlaceClassifier(16, 2)

    def batch(step: int) -> DecoderBatch:
        first = torch.randint(2, (32,), generator=torch.Generator().manual_seed(step))
        states = torch.stack([kinds[:1].expand(32, -1), kinds[1 + first]], 1)
        visible, mentions = torch.ones(32, 2, dtype=torch.bool), torch.stack([first, 1 - first], 1)
        words = torch.tensor([[0, 1]]).expand(32, -1)
        targets = PatchTargets(mentions, mentions[..., None] + 1, {"text": words})
        text = Condition(torch.ones(32, dtype=torch.bool), states, visible)
        return DecoderBatch(torch.zeros(32, 3, 8, 8), Conditioning({"text": text}), targets)

    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    task = TokenTask(decoder, places, batch, batch(1000))
    optimizer = torch.optim.AdamW([p for module in task.modules.values() for p in module.parameters()], lr=1e-2)
    start = task.validate()
    assert set(start) == {"loss", "loss/text"}
    for step in range(60):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    assert task.validate()["loss"] < 0.1 < start["loss"]
    changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed, "the refiner learned"
    assert all(name.startswith("refiner.blocks.") for name in changed)
