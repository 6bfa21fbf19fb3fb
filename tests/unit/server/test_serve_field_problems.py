"""Wrong fields in the words of OpenAI's API; nothing of pydantic's reaches a client."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from syzygy.server.bodies import checked
from syzygy.server.problems import Problem
from syzygy.server.schema import Generation, JsonEdit, Mix


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"prompt": ""}, "empty_string", "Invalid 'prompt': empty string. Expected a string with minimum length 1, but "
         "got an empty string instead."),
        ({"prompt": None}, "invalid_type", "Invalid type for 'prompt': expected a string, but got null instead."),
        ({"n": "two"}, "invalid_type", "Invalid type for 'n': expected an integer, but got a string instead."),
        ({"n": 1.5}, "invalid_type", "Invalid type for 'n': expected an integer, but got a decimal number instead."),
        ({"n": [1]}, "invalid_type", "Invalid type for 'n': expected an integer, but got an array instead."),
        ({"n": "0"}, "integer_below_min_value", "Invalid 'n': integer below minimum value. Expected a value >= 1, but "
         "got 0 instead."),
        ({"guidance_scale": 100.5}, "decimal_above_max_value", "Invalid 'guidance_scale': decimal above maximum value. "
         "Expected a value <= 100, but got 100.5 instead."),
        ({"mask_blur": 1}, "integer_above_max_value", "Invalid 'mask_blur': integer above maximum value. Expected a "
         "value < 1, but got 1 instead."),
        ({"stream": "perhaps"}, "invalid_type", "Invalid type for 'stream': expected a boolean, but got a string "
         "instead."),
        ({"regions": {}}, "invalid_type", "Invalid type for 'regions': expected an array, but got an object instead."),
        ({"regions": [3]}, "invalid_type", "Invalid type for 'regions[0]': expected an object, but got an integer "
         "instead."),
        ({"moderation": "high"}, "invalid_value", "Invalid value: 'high'. Supported values are: 'auto' and 'low'."),
        ({"moderation": 3}, "invalid_type", "Invalid type for 'moderation': expected one of 'auto' and 'low', but got an "
         "integer instead."),
        ({"x" * 300: 1}, "unknown_parameter", f"Unknown parameter: '{'x' * 100}'."),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_fields(change: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(Problem) as problem:
        checked(Generation, {"prompt": "a", **change})
    error = problem.value.body["error"]
    assert (error["message"], error["code"], error["type"]) == (message, code, "invalid_request_error")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["phrase", "text", "image_url", "z"]), inner)
    ),
    max_leaves=4,
)


@given(data=st.data(), model=st.sampled_from([Generation, JsonEdit, Mix]))
def test_no_text_of_pydantic_is_sent(data: st.DataObject, model: Any) -> None:
    values = data.draw(st.dictionaries(st.sampled_from([*model.model_fields, "z"]), VALUES, max_size=4))
    try:
        model.model_validate(values)
    except ValidationError as error:
        raw = error.errors()[0]
        with pytest.raises(Problem) as problem:
            checked(model, values)
        found = problem.value.body["error"]
        assert raw["msg"] not in found["message"]
        assert found["message"].startswith(("Invalid ", "Missing required parameter", "Unknown parameter"))
        assert found["message"] != f"Invalid value for {found['param']!r}.", f"{raw['type']} has no words of its own"
        assert found["code"]
