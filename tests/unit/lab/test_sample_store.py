"""A store of samples is built once, in parts, and reads what was computed."""

from pathlib import Path

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.lab.starter import sample_store
from syzygy.lab.starter.sample_store import SampleStore


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_store, "PART", 4)


def numbers(start: int, number: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(start, start + number)
    return {"square": (rows**2).half(), "pair": torch.stack([rows, -rows], 1).to(torch.int16)}


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store = SampleStore.build(tmp_path / "s", 10, numbers, {})
    found = store[torch.tensor([9, 0, 3])]
    assert len(store) == 10
    assert found["square"].tolist() == [81, 0, 9]
    assert found["pair"].tolist() == [[9, -9], [0, 0], [3, -3]]
    assert (found["square"].dtype, found["pair"].dtype) == (torch.float16, torch.int16)


def test_a_stopped_build_continues_where_it_was(tmp_path: Path) -> None:
    seen: list[int] = []

    def stops(start: int, number: int) -> dict[str, torch.Tensor]:
        seen.append(start)
        if seen == [0, 4]:
            raise KeyboardInterrupt
        return numbers(start, number)

    with pytest.raises(KeyboardInterrupt):
        SampleStore.build(tmp_path, 10, stops, {"seed": 1})
    with pytest.raises(UserError, match="4 of 10 samples"):
        SampleStore(tmp_path)
    store = SampleStore.build(tmp_path, 10, stops, {"seed": 1})
    assert seen == [0, 4, 4, 8]
    assert store[torch.arange(10)]["square"].tolist() == [i * i for i in range(10)]
    SampleStore.build(tmp_path, 10, stops, {"seed": 1})
    assert seen == [0, 4, 4, 8]


@pytest.mark.parametrize(("samples", "settings"), [(12, {"seed": 1}), (10, {"seed": 2})])
def test_samples_of_other_settings_are_refused(tmp_path: Path, samples: int, settings: dict[str, int]) -> None:
    SampleStore.build(tmp_path, 10, numbers, {"seed": 1})
    with pytest.raises(UserError, match="samples of other settings"):
        SampleStore.build(tmp_path, samples, numbers, settings)
