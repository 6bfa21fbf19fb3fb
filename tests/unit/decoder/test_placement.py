"""The placement predictor: what its regions are, what it reads, and how a decoder uses it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning, Guide, Region, Sampling, TextFeatures, image_condition
from syzygy.core.errors import UserError
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.placement import PlacementConfig, PlacementPredictor, Predicted, build_placement, placement_loss

CONFIG = PlacementConfig(reads={"text": 4, "t5": 6}, width=32, layers=1, side=2)


class Fixed(PlacementPredictor):
    """Logits are the states themselves: four cells, and naming nothing."""

    def __init__(self) -> None:
        super().__init__(PlacementConfig(reads={"text": 5}, width=32, layers=1, side=2))

    def forward(self, read: Any) -> dict[str, Predicted]:
        return {name: Predicted(states[..., :4], -states[..., 4]) for name, (states, _) in read.items()}


def words(*logits: tuple[float, ...], hidden: int = 0) -> tuple[Tensor, Tensor]:
    visible = torch.ones(1, len(logits), dtype=torch.bool)
    visible[:, len(logits) - hidden :] = hidden == 0
    return torch.tensor([logits]), visible


LEFT, RIGHT = (9.0, -9.0, 9.0, -9.0, -9.0), (-9.0, 9.0, -9.0, 9.0, -9.0)
ANYWHERE, NOTHING = (0.0, 0.0, 0.0, 0.0, -9.0), (0.0, 0.0, 0.0, 0.0, 9.0)


def test_words_that_differ_in_place_get_the_regions_where_they_differ() -> None:
    regions = Fixed().regions({"text": words(LEFT, NOTHING, RIGHT)})["text"]
    assert regions[0, 0].tolist() == [pytest.approx([1, 0], abs=1e-3)] * 2
    assert regions[0, 2].tolist() == [pytest.approx([0, 1], abs=1e-3)] * 2
    assert regions[0, 1].abs().max() < 1e-3


@pytest.mark.parametrize("shown", [(LEFT,), (LEFT, LEFT), (ANYWHERE, ANYWHERE), (NOTHING, NOTHING)])
def test_words_that_do_not_differ_get_none(shown: tuple[tuple[float, ...], ...]) -> None:
    assert Fixed().regions({"text": words(*shown)})["text"].abs().max() < 1e-3


def test_places_that_differ_a_little_are_no_relation() -> None:
    def apart(by: float) -> Tensor:
        return Fixed().regions({"text": words((by, -by, by, -by, -9.0), (-by, by, -by, by, -9.0))})["text"]

    assert not apart(0.2).any()  # total variation .10
    assert apart(0.4).any()  # .19


def test_hidden_words_change_nothing() -> None:
    expected = Fixed().regions({"text": words(LEFT, LEFT)})["text"]
    found = Fixed().regions({"text": words(LEFT, LEFT, RIGHT, hidden=1)})["text"]
    assert torch.equal(found[:, :2], expected)
    assert not found[:, 2].any()
    predictor = build_placement(CONFIG)
    states, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    other = states * torch.tensor([1.0, 1.0, -9.0])[:, None]
    one, two = (predictor({"text": (x, mask)})["text"].cells for x in (states, other))
    assert torch.equal(one[:, :2], two[:, :2])
    changed = states * torch.tensor([1.0, -9.0, 1.0])[:, None]
    changed[0, 1] = changed[0, 1].flip(0)
    assert (predictor({"text": (changed, mask)})["text"].cells[:, 0] - one[:, 0]).abs().max() > 1e-4, (
        "words read each other"
    )


def test_conditions_get_regions_and_drawn_ones_stay() -> None:
    states, mask = words(LEFT, RIGHT)
    present = torch.ones(2, dtype=torch.bool)
    drawn = torch.zeros(2, 2, 4, 4)
    drawn[1, 0, :, 2:] = 0.3
    text = Condition(present, states.expand(2, -1, -1), mask.expand(2, -1), region_maps=drawn)
    both = Conditioning({"text": text, "image": image_condition(torch.zeros(2, 8))})
    found = Fixed().placed(both, 0.5, [1]).conditions["text"].region_maps
    assert found is not None
    assert torch.equal(found[1], drawn[1])
    assert found[0, 0].tolist() == [pytest.approx([0.5, 0.5, 0, 0], abs=1e-3)] * 4
    assert Fixed().placed(both, 0.0) is both
    plain = Conditioning({"text": replace(text[torch.tensor([0])], states=words(LEFT, LEFT)[0], region_maps=None)})
    assert Fixed().placed(plain, 1.0).conditions["text"].region_maps is None, "nothing to place"
    alone = Conditioning({"image": both.conditions["image"]})
    assert Fixed().placed(alone, 1.0) is alone
    absent = Conditioning({"text": replace(text, present=torch.tensor([True, False]), region_maps=None)})
    maps = Fixed().placed(absent, 1.0).conditions["text"].region_maps
    assert maps is not None
    assert maps[0].any()
    assert not maps[1].any()


def test_predictions_from_a_part_of_the_conditions_are_not_used() -> None:
    predictor = Fixed()
    states, mask = words(LEFT, RIGHT)
    text = Condition(torch.tensor([True]), states, mask)
    assert predictor.placed(Conditioning({"text": text}), 1.0).conditions["text"].region_maps is not None
    predictor.config = predictor.config.changed(reads={"text": 5, "t5": 6})
    assert predictor.placed(Conditioning({"text": text}), 1.0).conditions["text"].region_maps is None


def test_loss_is_of_the_cells_of_the_object_or_of_naming_none() -> None:
    mentions = torch.tensor([[0, -1, 0, 1]])
    visible = torch.ones(1, 3, dtype=torch.bool)
    given = torch.tensor([[0, 1, -1]])
    cells = torch.tensor([[[30.0, 0, 30, 0], [0, 0, 0, 30], [0, 0, 0, 0]]])
    right = Predicted(cells, torch.tensor([[30.0, 30, -30]]))
    # Two cells: no prediction is better than half of each.
    assert placement_loss(right, visible, given, mentions).item() == pytest.approx(0.6931 / 2, abs=1e-3)
    assert placement_loss(Predicted(cells[:, [1, 0, 2]], right.names), visible, given, mentions).item() > 10
    assert placement_loss(Predicted(cells, -right.names), visible, given, mentions).item() == pytest.approx(
        6.3466, abs=1e-3
    )
    gone = torch.tensor([[2, 2, -1]])  # an object that lies nowhere
    assert placement_loss(right, visible, gone, mentions).item() == pytest.approx(0, abs=1e-3)
    assert placement_loss(right, torch.zeros_like(visible), given, mentions).item() == 0


def test_weights_come_back(tmp_path: Path) -> None:
    predictor = build_placement(CONFIG, seed=3).eval()
    predictor.save_pretrained(tmp_path / "placement", {"kind": "placement"}, None)
    again = PlacementPredictor.from_pretrained(tmp_path / "placement")
    assert again.config == CONFIG
    assert again.fingerprint() == predictor.fingerprint() != build_placement(CONFIG, seed=4).fingerprint()


class Halves:
    latent_shape = (3, 4, 4)

    def encode(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5


class Watcher:
    """A denoiser that keeps the regions that it was given."""

    def __init__(self) -> None:
        self.maps: list[Tensor | None] = []

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        condition = conditioning.conditions.get("text")
        self.maps.append(None if condition is None else condition.region_maps)
        return torch.zeros_like(x)


def generated(decoder: LatentDecoder, watcher: Watcher, regions: Any = None, spans: bool = True, **options: Any) -> Any:
    """The regions of the first step's samples that read the prompt."""
    states, mask = words(LEFT, RIGHT)
    places = torch.tensor([[[0, 1], [2, 3]]]).expand(2, -1, -1) if spans else None
    features = TextFeatures(states.expand(2, -1, -1), mask.expand(2, -1), torch.zeros(2, 5), places)
    guide = Guide(features=features, texts=["a b", "a b"], regions=regions)
    watcher.maps.clear()
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    decoder.generate(guide, draws, sampling=Sampling(steps=2, guidance_scale=1.0, options=options))
    return watcher.maps[0]


def test_a_decoder_places_what_no_region_places() -> None:
    watcher = Watcher()
    decoder: Any = LatentDecoder(watcher, Halves(), torch.device("cpu"), placement=Fixed())  # pyright: ignore
    assert [option.name for option in decoder.options] == ["placement_strength"]
    usual = generated(decoder, watcher)
    assert usual.amax() == pytest.approx(1, abs=1e-3)
    assert generated(decoder, watcher, placement_strength=0.25).amax() == pytest.approx(0.25, abs=1e-3)
    assert generated(decoder, watcher, placement_strength=0.0) is None
    assert generated(decoder, watcher, spans=False) is None, "states of learned queries belong to no words"
    whole = [Region("a", torch.ones(4, 4))]
    mixed = generated(decoder, watcher, [whole, []])
    own = generated(decoder, watcher, [whole, whole])
    assert torch.equal(mixed[0], own[0])
    assert mixed[1, 0].tolist() == [pytest.approx([1, 1, 0, 0], abs=1e-3)] * 4
    with pytest.raises(UserError, match="placement_strength must be a number from 0 to 100"):
        generated(decoder, watcher, placement_strength=-1.0)
    with pytest.raises(UserError, match="no option noise_level; its own are placement_strength"):
        generated(decoder, watcher, noise_level=3)
    plain: Any = LatentDecoder(watcher, Halves(), torch.device("cpu"))  # pyright: ignore
    assert generated(plain, watcher) is None
    with pytest.raises(UserError, match="no option placement_strength; it has none"):
        generated(plain, watcher, placement_strength=0.5)
