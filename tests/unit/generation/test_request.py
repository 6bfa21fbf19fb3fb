"""What a request refuses before any model is asked."""

import pytest

from syzygy.core.errors import UserError
from syzygy.generation.request import GenerationRequest


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("region_strenght", "region_strength"),
        ("steps", "num_inference_steps"),
        ("num_inference_step", "num_inference_steps"),
        ("noise_levle", "noise_level"),
    ],
)
def test_a_slip_of_spelling_is_answered_with_the_option(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown option '{name}'. Did you mean '{meant}'"):
        GenerationRequest.from_keywords(prompts=["a red star"], **{name: 1})


def test_names_of_a_decoder_are_left_to_it() -> None:
    request = GenerationRequest.from_keywords(prompts=["a red star"], noise_level=3, colour_temperature=0.5)
    assert request.sampling.options == {"noise_level": 3, "colour_temperature": 0.5}


def test_an_empty_list_of_regions_is_called_empty() -> None:
    with pytest.raises(UserError, match="the list of regions is empty"):
        GenerationRequest.from_keywords(prompts=["a red star"], regions=[])
