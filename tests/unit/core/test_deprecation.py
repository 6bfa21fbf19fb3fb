"""Old public names work for one release, and say what they are called now."""

import subprocess
import sys
import warnings

import pytest
import torch

import syzygy
from syzygy.core.contracts import Region
from syzygy.core.deprecation import with_new_name
from syzygy.core.errors import UserError
from syzygy.generation.request import GenerationRequest


def test_an_old_keyword_is_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match=r"old is now called new\. The old name stops working"):
        assert with_new_name({"old": 1, "other": 2}, "old", "new") == {"new": 1, "other": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_new_name({"new": 1}, "old", "new") == {"new": 1}
    with pytest.raises(UserError, match="old and new are one setting"):
        with_new_name({"old": 1, "new": 2}, "old", "new")


def test_region_strength_was_called_painting() -> None:
    regions = [Region("red", torch.ones(2, 2))]
    with pytest.warns(DeprecationWarning, match="painting is now called region_strength"):
        request = GenerationRequest.from_keywords(prompts="a red star", regions=regions, painting=0.5)
    assert (request.sampling.region_strength, request.sampling.options) == (0.5, {})


def test_region_conditioning_was_called_painted() -> None:
    with pytest.warns(DeprecationWarning, match=r"syzygy\.painted is now called syzygy\.region_conditioning") as caught:
        assert syzygy.painted is syzygy.region_conditioning
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "code",
    [
        "from syzygy.world.language import language, spoken, understood; assert spoken('ein roter Kreis') == 'de'",
        "from syzygy.world.source import pair; assert pair(0, 0).caption.text",
        "import syzygy.world.language; assert syzygy.world.language.understood('a red circle')",
    ],
)
def test_the_world_has_moved(code: str) -> None:
    found = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "DeprecationWarning: syzygy.world is now called syzygy.lab.world" in found.stderr
