"""Which process generates which images, what is generated again, and which process starts the folder.

The model is a stub that draws from its generators.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.lab.benchmark_images import (
    SETTINGS_FILE,
    Export,
    Rank,
    export_images,
    missing,
    plan,
    rank_from_environment,
    remove_unfinished,
)
from syzygy.lab.benchmark_layouts import LAYOUTS, Entry, Prompts

PROMPTS = Prompts([Entry(text, text) for text in ("a dog", "a cat", "a dog")])
GENERATION = {"model": "m", "prior": None, "steps": 3, "fingerprints": {"clip": "01", "prior": "02"}, "versions": {}}


@dataclass
class Stub:
    """Generates a pixel that depends on the whole batch, as the last bits of a real model's images do."""

    batches: list[list[str]] = field(default_factory=list)

    def __call__(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], on_step: Callable[[], None]
    ) -> list[Image.Image]:
        self.batches.append(list(prompts))
        on_step()
        drawn = [int(torch.randint(256, (), generator=generator)) for generator in generators]
        return [Image.new("RGB", (2, 2), (own, sum(drawn) % 256, 0)) for own in drawn]


def of(folder: Path, **changes: Any) -> Export:
    export = Export(folder, LAYOUTS["t2i-compbench"], PROMPTS, 4, 0, GENERATION)
    return replace(export, **changes)


ALONE = Rank()


def run(export: Export, rank: Rank = ALONE, batch_size: int = 5) -> list[list[str]]:
    """Generate what is missing; returns the batches that were generated."""
    stub, advanced = Stub(), []
    work = plan(export, rank, batch_size)
    export_images(export, work, rank, stub, advanced.append)
    assert sum(advanced) == work.to_generate
    return stub.batches


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_picture_has_its_own_generator(tmp_path: Path) -> None:
    run(of(tmp_path))
    seeds = [one.seed for one in of(tmp_path).images()]
    assert len(set(seeds)) == 12
    assert not {one.seed for one in of(tmp_path, seed=1).images()} & {*seeds}


def test_neither_processes_nor_interruptions_change_a_byte(tmp_path: Path) -> None:
    run(of(tmp_path / "one"))
    whole = contents(tmp_path / "one")
    assert len(whole) == 12 + 1
    two = of(tmp_path / "two")
    first = run(two, Rank(0, 2))
    assert missing(two, plan(two, Rank(0, 2), 5)) == 5
    second = run(two, Rank(1, 2))
    assert [len(batch) for batch in first + second] == [5, 2, 5]
    assert contents(tmp_path / "two") == whole
    for path in sorted((tmp_path / "two" / "samples").iterdir())[::2]:
        path.unlink()
    run(two)
    assert contents(tmp_path / "two") == whole
    assert run(two) == []


def test_only_whole_pictures_stay(tmp_path: Path) -> None:
    export = of(tmp_path)
    run(export)
    whole = contents(tmp_path)
    cut, bent, empty, *_ = sorted((tmp_path / "samples").iterdir())
    cut.write_bytes(cut.read_bytes()[:-6])
    data = bytearray(bent.read_bytes())
    data[-20] ^= 1
    bent.write_bytes(data)
    empty.write_bytes(b"")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()}
    run(export)
    assert contents(tmp_path) == whole
    again = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert again == {cut, bent, empty}


OTHER = {
    "steps": ({"generation": GENERATION | {"steps": 4}}, "steps was 3, now 4"),
    "weights": ({"generation": GENERATION | {"fingerprints": {"clip": "01", "prior": "03"}}}, "fingerprints.prior was"),
    "seed": ({"seed": 1}, "seed was 0, now 1"),
    "pictures": ({"images_per_prompt": 5}, "images_per_prompt was 4, now 5"),
    "prompts": ({"prompts": Prompts(PROMPTS.entries[:2])}, "prompts.number was 3, now 2; prompts.sha256 was"),
    "layout": ({"layout": LAYOUTS["geneval"]}, 'layout was "t2i-compbench", now "geneval"'),
    "option": ({"generation": GENERATION | {"dtype": "fp16"}}, 'dtype was null, now "fp16"'),
}


@pytest.mark.parametrize(("changes", "message"), OTHER.values(), ids=OTHER)
def test_a_folder_keeps_its_settings(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    run(of(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="was started with other settings: " + message):
        plan(of(tmp_path, **changes), ALONE, 5)
    assert contents(tmp_path) == before


def test_another_name_of_the_same_weights_goes_on(tmp_path: Path) -> None:
    run(of(tmp_path))
    assert run(of(tmp_path, generation=GENERATION | {"model": "./m", "versions": {"torch": "9"}})) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_files_that_the_evaluation_would_read_are_refused(layout: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    read = {"geneval": "00007", "geneval2": "images", "dpg-bench": "images"}.get(layout, "samples")
    (tmp_path / ("samples" if read != "samples" else "00000")).mkdir()
    export = of(tmp_path, layout=LAYOUTS[layout])
    assert plan(export, ALONE, 5).wanted
    strange = tmp_path / read / "other.png"
    strange.parent.mkdir()
    strange.touch()
    with pytest.raises(UserError, match="contains files that the evaluation would read, but no export-images"):
        plan(export, ALONE, 5)


def test_settings_that_cannot_generate_do_not_stay(tmp_path: Path) -> None:
    def refuses(*_: Any) -> list[Image.Image]:
        raise UserError("unknown sampler.")

    export = of(tmp_path)
    with pytest.raises(UserError, match="unknown sampler"):
        export_images(export, plan(export, ALONE, 5), ALONE, refuses, print)
    assert contents(tmp_path) == {}


def test_ranks_that_start_at_once_agree_or_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(exports: Sequence[Export]) -> list[str]:
        """All start the folder at the same time; returns what is refused."""
        barrier, refused = threading.Barrier(len(exports)), []
        write_json = artifacts.write_json

        def written(path: Path, value: Any) -> None:
            write_json(path, value)
            barrier.wait(120)  # nobody has settings in place, and all have looked
            time.sleep(0.05 * int(path.name.split("-")[1]))  # the first rank generates before the others continue

        def run_rank(number: int, export: Export) -> None:
            try:
                run(export, Rank(number, len(exports)), 2)
            except UserError as error:
                refused.append(str(error))

        with monkeypatch.context() as patch:
            patch.setattr("syzygy.core.artifacts.write_json", written)
            threads = [threading.Thread(target=run_rank, args=(i, export)) for i, export in enumerate(exports)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return refused

    for i in range(2):
        assert together([of(tmp_path / f"same{i}")] * 3) == []
        (refusal,) = together([of(tmp_path / f"other{i}", seed=seed) for seed in (0, 1)])
        assert "was started with other settings: seed was" in refusal


def test_a_full_disk_is_one_line_and_leaves_nothing_for_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = of(tmp_path)
    work = plan(export, ALONE, 5)
    generate, writes = Stub(), iter(range(100))

    def full(_: int) -> None:
        if next(writes) >= 4:  # settings and three pictures
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("syzygy.core.artifacts.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        export_images(export, work, ALONE, generate, print)
    assert "\n" not in str(error.value)
    assert sorted(contents(tmp_path)) == [SETTINGS_FILE, *(f"samples/a dog_{i:06}.png" for i in range(3))]


def test_unfinished_files_never_stand_where_the_evaluation_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = of(tmp_path)

    replace_really = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent.name == "samples":
            raise SystemExit
        replace_really(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(SystemExit):
            run(export)
    (left,) = [name for name in contents(tmp_path) if name.startswith(".")]
    assert not list((tmp_path / "samples").iterdir())
    run(export)
    (tmp_path / f".{left}.x1").touch()  # as `artifact` calls them before
    remove_unfinished(export)
    assert len(contents(tmp_path)) == 12 + 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Rank()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Rank(3, 4, 3)),
        ({"WORLD_SIZE": "2"}, None),
        ({"RANK": "2", "WORLD_SIZE": "2"}, None),
        ({"RANK": "x", "WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "0"}, None),
    ],
)
def test_ranks_come_from_the_environment(
    environment: dict[str, str], expected: Rank | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected:
        assert rank_from_environment() == expected
        return
    with pytest.raises(UserError, match="is not a valid rank"):
        rank_from_environment()
