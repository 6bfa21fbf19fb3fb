"""Options of decoders: what they allow, and what the command line and the HTTP API derive from them."""

import subprocess
import sys

import pytest

from syzygy.core.errors import UserError
from syzygy.core.options import NOISE_LEVEL, Option, decoder_options

SHARPNESS = Option(name="edge_sharpness", type=float, minimum=0, help="How sharp edges are.")
MODE = Option(name="mode", type=str, choices=("fast", "good"), help="How to do it.")
TILED = Option(name="tiled", type=bool, help="Tile by tile.")


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [(NOISE_LEVEL, 0, 0), (NOISE_LEVEL, 999, 999), (SHARPNESS, 2, 2.0), (MODE, "good", "good"), (TILED, True, True)],
)
def test_allowed_values_come_back_as_the_options_type(option: Option, value, found):
    checked = option.checked(value)
    assert (checked, type(checked)) == (found, option.type)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (NOISE_LEVEL, 1000, "noise_level must be a whole number from 0 to 999, got 1000."),
        (NOISE_LEVEL, 1.5, "noise_level must be a whole number from 0 to 999, got 1.5."),
        (NOISE_LEVEL, True, "noise_level must be a whole number from 0 to 999, got True."),
        (SHARPNESS, -1, "edge_sharpness must be a number of at least 0, got -1."),
        (SHARPNESS, float("nan"), "edge_sharpness must be a number of at least 0, got nan."),
        (MODE, "best", "mode must be one of fast, good, got 'best'."),
        (TILED, 1, "tiled must be true or false, got 1."),
    ],
)
def test_other_values_are_refused_with_what_is_allowed(option: Option, value, message):
    with pytest.raises(UserError) as error:
        option.checked(value)
    assert str(error.value) == message


def test_flags_and_schema_follow_from_the_declaration():
    assert SHARPNESS.flag == "--edge-sharpness"
    assert SHARPNESS.json_schema() == {"type": "number", "description": "How sharp edges are.", "minimum": 0}
    assert MODE.json_schema()["enum"] == ["fast", "good"]


def test_listing_options_imports_no_torch():
    code = "import sys; from syzygy.core.options import decoder_options as o; o(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    names = [option.name for option in decoder_options()]
    assert {"height", "width", "noise_level", "super_res_steps"} <= set(names)
    assert len(set(names)) == len(names)
