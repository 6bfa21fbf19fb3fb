"""`syzygy export-images`, end to end: on a tiny model of real classes and files, and on the starter as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from syzygy.generation.image_files import read_record
from syzygy.lab.benchmark_layouts import LAYOUTS

TEXTS = ["a red circle left of a blue star", "a green moon", "a red circle left of a blue star"]
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, Path]:
    """A prompt file for each layout."""
    files = {layout: tmp_path / f"{layout}.prompts" for layout in LAYOUTS}
    for layout in ("t2i-compbench", "t2i-compbench++"):
        files[layout].write_text("\n".join(TEXTS) + "\n")
    lines = [json.dumps({"prompt": text, "atom_count": 1, "vqa_list": [["Is it?", "Yes"]]}) for text in TEXTS[:2]]
    files["geneval2"].write_text("\n".join(lines) + "\n")
    files["dpg-bench"].mkdir()
    for name, text in zip(("0", "COCOval2014_1", "vrd23"), TEXTS, strict=True):
        (files["dpg-bench"] / f"{name}.txt").write_text(text + "\n")
    lines = [json.dumps({"tag": "two_object", "include": [], "prompt": text}) for text in TEXTS]
    files["geneval"].write_text("\n".join(lines) + "\n")
    return files


@pytest.fixture
def export(
    syzygy: Callable[..., Any], tiny_model: Path, prompts: dict[str, Path], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Run `export-images --json` on the tiny model, expecting success."""

    def run(layout: str, *arguments: object, out: Path = tmp_path / "out") -> dict[str, Any]:
        where = ("--prompts", prompts[layout], "--layout", layout, "--out", out, "--model", tiny_model)
        answer = syzygy("export-images", *where, "--device", "cpu", "--json", *arguments)
        assert (answer.code, answer.err) == (0, "")
        return json.loads(answer.out)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counts(result: dict[str, Any]) -> tuple[int, int, int]:
    assert (result["painted"], result["pictures"]) == (result["generated"], result["images"]), "keys of version 0.1"
    return result["generated"], result["kept"], result["missing"]


def test_t2i_compbench(export: Callable[..., Any], tmp_path: Path) -> None:
    result = export("t2i-compbench")
    assert (result["prompts"], result["images"], counts(result)) == (3, 30, (30, 0, 0))
    expected = {f"samples/{TEXTS[k // 10]}_{k:06}.png" for k in range(30)}
    whole = contents(tmp_path / "out")
    assert {*whole} == expected | {"export-images.json"}
    assert json.loads(whole["export-images.json"]) == result["settings"]
    assert result["settings"]["steps"] == 3
    assert len({whole[name] for name in expected}) == 30


def test_geneval(export: Callable[..., Any], prompts: dict[str, Path], tmp_path: Path) -> None:
    result = export("geneval")
    assert (result["images"], counts(result)) == (12, (12, 0, 0))
    whole = contents(tmp_path / "out")
    pictures = {f"{i:05}/samples/{j:04}.png" for i in range(3) for j in range(4)}
    assert {*whole} == pictures | {f"{i:05}/metadata.jsonl" for i in range(3)} | {"export-images.json"}
    for i, line in enumerate(prompts["geneval"].read_text().splitlines()):
        assert json.loads(whole[f"{i:05}/metadata.jsonl"]) == json.loads(line)


def test_t2i_compbench_has_two_names(export: Callable[..., Any], tmp_path: Path) -> None:
    small = ("--images-per-prompt", 1)
    for layout in ("t2i-compbench", "t2i-compbench++"):
        export(layout, *small, out=tmp_path / layout)
    first, second = (contents(tmp_path / layout / "samples") for layout in ("t2i-compbench", "t2i-compbench++"))
    assert first == second
    assert len(first) == 3


def test_geneval2_finds_the_image_of_each_prompt(export: Callable[..., Any], tmp_path: Path) -> None:
    result = export("geneval2")
    assert (result["images"], counts(result)) == (2, (2, 0, 0))
    paths = json.loads((tmp_path / "out" / "image_paths.json").read_text())
    assert {*paths} == {*TEXTS}
    for prompt, path in paths.items():
        assert Path(path).is_absolute()
        assert read_record(Path(path))["prompt"] == prompt


def test_dpg_bench_cuts_the_images_of_a_prompt_out_of_one_file(export: Callable[..., Any], tmp_path: Path) -> None:
    result = export("dpg-bench")
    assert (result["images"], counts(result)) == (12, (12, 0, 0))
    out = tmp_path / "out"
    assert {path.stem for path in (out / "images").iterdir()} == {"0", "COCOval2014_1", "vrd23"}
    with Image.open(out / "images" / "vrd23.png") as grid:
        size = grid.width // 2
        for i in range(4):
            x, y = i % 2 * size, i // 2 * size  # as compute_dpg_bench.py cuts
            with Image.open(out / "single" / f"vrd23_{i}.png") as one:
                assert one.size == (size, size)
                assert grid.crop((x, y, x + size, y + size)).tobytes() == one.convert("RGB").tobytes()
    export("dpg-bench", "--images-per-prompt", 1, out=tmp_path / "one")
    assert len(list((tmp_path / "one").rglob("*.png"))) == 3


@pytest.mark.parametrize("layout", ["t2i-compbench", "geneval"])
def test_neither_ranks_nor_interruptions_change_a_byte(
    layout: str, export: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--images-per-prompt", "3", "--batch-size", "2")
    export(layout, *small)
    whole = contents(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    second = export(layout, *small, out=tmp_path / "ranks")
    assert (second["rank"], second["ranks"], counts(second)) == (1, 2, (4, 0, 5))
    monkeypatch.setenv("RANK", "0")
    assert counts(export(layout, *small, out=tmp_path / "ranks")) == (5, 0, 0)
    assert contents(tmp_path / "ranks") == whole
    monkeypatch.delenv("WORLD_SIZE")
    for path in [one for one in sorted((tmp_path / "ranks").rglob("*.png")) if one.parent.name != "images"][1::2]:
        path.unlink()
    assert counts(export(layout, *small, out=tmp_path / "ranks")) == (4, 5, 0)
    assert contents(tmp_path / "ranks") == whole
    assert counts(export(layout, *small, out=tmp_path / "ranks")) == (0, 9, 0)


def test_the_record_of_an_image_is_enough_to_generate_it_again(
    export: Callable[..., Any], syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    export("t2i-compbench", "--images-per-prompt", "2", "--steps", "2", "--seed", "5")
    path = tmp_path / "out" / "samples" / "a green moon_000003.png"
    record = read_record(path)
    assert (record["prompt"], record["steps"]) == ("a green moon", 2)
    assert record["origin"] == {"seed": 5, "prompt": 1, "image": 1}
    again = ("--seed", record["seed"], "--steps", "2", "--model", tiny_model, "--out", tmp_path / "again", "--json")
    answer = syzygy("generate", record["prompt"], *again)
    (one,) = json.loads(answer.out)["images"]
    with Image.open(path) as first, Image.open(one["path"]) as second:
        assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1


def test_it_says_what_it_did_and_what_is_missing(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a moon\n\n" + "".join(f"a storm{i}\n" for i in range(9)))
    where = ("--prompts", file, "--layout", "t2i-compbench", "--out", tmp_path / "out", "--model", tiny_model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    answer = syzygy("export-images", *where, "--images-per-prompt", "2")
    assert answer.code == 0
    first, second = answer.out.splitlines()
    assert first.startswith("rank 0 of 2: 16 images generated, 0 kept, 4 missing; 20 images of 10 prompts in ")
    assert second.startswith("Other processes generate these.")
    blank, *unknown, more = answer.err.splitlines()
    assert blank.endswith("1 blank line is skipped.")
    assert len(unknown) == 5
    assert more == "warning: and 2 more such lines."


def test_other_settings_are_refused(export: Callable[..., Any], syzygy: Callable[..., Any], tmp_path: Path) -> None:
    result = export("geneval", "--images-per-prompt", "1")
    model, file = result["settings"]["model"], tmp_path / "geneval.prompts"
    where = ("--prompts", file, "--layout", "geneval", "--out", tmp_path / "out", "--model", model)
    before = contents(tmp_path)
    answer = syzygy("export-images", *where, "--images-per-prompt", "1", "--steps", "4", "--seed", "1")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert "was started with other settings: seed was 0, now 1; steps was 3, now 4. Use the same settings" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert contents(tmp_path) == before


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "missing file": (("--prompts", "nowhere.txt"), "the prompt file nowhere.txt does not exist"),
    "layout": (("--layout", "coco"), "'coco' is not one of 'geneval2', 'dpg-bench', 't2i-compbench++'"),
    "too many": (
        ("--layout", "geneval2", "--images-per-prompt", "2"),
        "the evaluation of geneval2 reads 1 of a prompt",
    ),
    "not a folder": (("--layout", "dpg-bench"), "is not a folder. DPG-Bench's prompts are the text files"),
    "a folder": (("--prompts", "."), "Only DPG-Bench's prompts (--layout dpg-bench) are a folder"),
    "another layout's file": (("--layout", "geneval"), "line 1 is not a JSON object"),
    "out": (("--out", __file__), "cannot write to"),
    "no pictures": (("--images-per-prompt", "0"), "0 is out of range"),
    "model": (("--model", "starterr"), "model 'starterr' is neither a folder nor a known model"),
    "sampler": (("--sampler", "eulr"), "unknown sampler 'eulr'"),
    "idle negative": (("--negative-prompt", "a moon", "--guidance-scale", "1"), "has no effect"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(
    arguments: tuple[str, ...],
    message: str,
    syzygy: Callable[..., Any],
    tiny_model: Path,
    prompts: dict[str, Path],
    tmp_path: Path,
) -> None:
    where = ("--prompts", prompts["t2i-compbench"], "--layout", "t2i-compbench", "--out", tmp_path / "out")
    answer = syzygy("export-images", *where, "--model", tiny_model, "--device", "cpu", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not list((tmp_path / "out").rglob("*"))  # not even settings that would refuse the next attempt


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    syzygy: Callable[..., Any], prompts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuses)  # whoever may do everything sees no folder refuse
    where = ("--prompts", prompts["t2i-compbench"], "--layout", "t2i-compbench", "--out", tmp_path / "out")
    answer = syzygy("export-images", *where, "--model", "nowhere")
    assert (answer.code, answer.err.splitlines()) == (
        2,
        [f"error: cannot write to {tmp_path / 'out'}: Permission denied. Choose another folder."],
    )


def test_two_processes_at_once_on_the_starter(
    syzygy: Callable[..., Any], prompts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = [
        "export-images",
        "--layout",
        "t2i-compbench",
        "--steps",
        "1",
        "--images-per-prompt",
        "2",
        "--batch-size",
        "2",
    ]
    where = ["--prompts", str(prompts["t2i-compbench"]), "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "syzygy.cli", *how, *where]
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        other = syzygy(*how, *where)
        out, err = process.communicate()
    assert (process.returncode, err, other.code, other.err) == (0, "", 0, "")
    results = json.loads(out), json.loads(other.out)
    assert [result["generated"] for result in results] == [4, 2]
    assert min(result["missing"] for result in results) == 0
    names = [f"samples/{TEXTS[k // 2]}_{k:06}.png" for k in range(6)]
    assert sorted(contents(tmp_path / "out")) == sorted([*names, "export-images.json"])
