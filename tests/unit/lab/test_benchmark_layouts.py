"""File names as the official evaluations read them, and prompt files that are refused."""

import json
import re
from pathlib import Path

import pytest

from syzygy.core.errors import UserError
from syzygy.lab.benchmark_layouts import (
    LAYOUTS,
    Entry,
    read_dpg_bench,
    read_geneval,
    read_geneval2,
    read_t2i_compbench,
)

T2I, GENEVAL = LAYOUTS["t2i-compbench"], LAYOUTS["geneval"]
LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a réd cow"},
]


def written(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "prompts"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def question(name: str) -> int:
    """As BLIP_vqa.py, CLIP_similarity.py and 2D_spatial_eval.py take the number from a file name."""
    *_, last = name.split("_")
    return int(last.partition(".")[0])


def question_by_parts(name: str) -> tuple[int, int]:
    """As UniDet's generate_dataset.py and numeracy_eval.py do: they take the part after the first underscore."""
    return int(name.split("_")[1].partition(".")[0]), int(name.partition(".png")[0].split("_")[1])


def test_t2i_compbench_is_named_as_in_its_readme() -> None:
    entry = Entry("a green bench and a blue bowl", "")
    assert T2I.images_per_prompt == 10
    names = [T2I.place(entry, 0, j, 10).image for j in range(10)]
    assert names[0] == "samples/a green bench and a blue bowl_000000.png"
    assert names[9] == "samples/a green bench and a blue bowl_000009.png"
    assert T2I.place(entry, 7, 3, 10).image == "samples/a green bench and a blue bowl_000073.png"
    assert T2I.place(entry, 7, 3, 10).metadata == {}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a white bathroom", "a white bathroom"),
        ("A kitchen, at 11:44.", "A kitchen, at 11:44."),
        ("a cubic Rubik's cube and a tie-dye shirt", "a cubic Rubik's cube and a tie-dye shirt"),
        ("a black/white cat", "a black white cat"),
        ("a cat_dog", "a cat dog"),
        ("a file.png of a cat", "a file of a cat"),
        ("../../etc/a cat", ".. .. etc a cat"),
    ],
)
def test_the_evaluation_reads_prompt_and_question_from_the_name(text: str, read: str) -> None:
    path = Path(T2I.place(Entry(text, text), 12, 5, 10).image)
    assert (path.parent, path.name.split("_")[0]) == (Path("samples"), read)
    assert (question(path.name), question_by_parts(path.name)) == (125, (125, 125))


def test_a_file_of_t2i_compbench(tmp_path: Path) -> None:
    text = "\ufeffa dog.\r\n\r\n a cat \t0\t1\na dog.\na black/white cow\n"
    read = read_t2i_compbench(written(tmp_path, text))
    assert [entry.text for entry in read.entries] == ["a dog.", "a cat", "a dog.", "a black/white cow"]
    blank, tab, renamed = read.notes
    assert "1 blank line is skipped" in blank
    assert "text after a tab was ignored in 1 line" in tab
    assert "1 prompt have spaces instead (first: line 5)" in renamed
    names = [T2I.place(entry, i, 0, 2).image for i, entry in enumerate(read.entries)]
    assert len(set(names)) == 4  # the two dogs differ in their number


def test_prompts_fill_a_file_name_to_its_last_byte(tmp_path: Path) -> None:
    longest = "é" * 122
    (entry,) = read_t2i_compbench(written(tmp_path, longest)).entries
    path = tmp_path / T2I.place(entry, 0, 0, 1).image
    path.parent.mkdir()
    path.touch()
    assert len(path.name.encode()) == 255
    with pytest.raises(UserError, match=r"line 2 has 245 bytes.*1 to 244 bytes are allowed"):
        read_t2i_compbench(written(tmp_path, f"a dog\n{longest}e"))


def test_geneval_is_named_as_in_its_readme() -> None:
    entry = Entry("a photo of a bench", '{"prompt": "a photo of a bench", "tag": "single_object"}')
    assert GENEVAL.images_per_prompt == 4
    place = GENEVAL.place(entry, 12, 3, 4)
    assert place.image == "00012/samples/0003.png"
    assert place.metadata == {"00012/metadata.jsonl": entry.source + "\n"}


def test_a_file_of_geneval(tmp_path: Path) -> None:
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n"
    read = read_geneval(written(tmp_path, text))
    assert [entry.text for entry in read.entries] == ["a photo of a bench", "a photo of a réd cow"]
    assert [json.loads(GENEVAL.place(e, 0, 0, 4).metadata["00000/metadata.jsonl"]) for e in read.entries] == LINES
    assert read.notes == [f"{tmp_path / 'prompts'}: 1 blank line is skipped."]
    unusual = json.dumps({"tag": "t", "prompt": "a\u2028dog"}, ensure_ascii=False)  # splitlines would cut it
    assert read_geneval(written(tmp_path, unusual)).notes == []


WRONG = {
    "empty": ("t2i-compbench", "", "contains no prompts"),
    "only blank": ("t2i-compbench", "\n \n", "contains no prompts"),
    "not UTF-8": ("t2i-compbench", b"a dog\n\xff\xfe", r"is not text in UTF-8 \(byte 6\)"),
    "nothing to name": ("t2i-compbench", "a dog\n_/_\n", "line 2 has no character that a file name can hold"),
    "GenEval's file": ("t2i-compbench", '{"prompt": "a dog"}', "line 1 is JSON, not a prompt.*--layout geneval"),
    "empty JSON lines": ("geneval", "\n", "contains no prompts"),
    "no JSON": ("geneval", '{"tag": "t", "prompt": "a dog"}\na dog', "line 2 is not a JSON object"),
    "deep JSON": ("geneval", "[" * 100_000, "line 1 is not a JSON object"),
    "no object": ("geneval", '["a dog"]', "line 1 is not a JSON object"),
    "no prompt": ("geneval", '{"tag": "t", "prompt": "a dog"}\n\n{"tag": "t"}', "line 3 has no text under 'prompt'"),
    "empty prompt": ("geneval", '{"tag": "t", "prompt": " "}', "line 1 has no text under 'prompt'"),
    "no tag": ("geneval", '{"prompt": "a dog"}', "line 1 has no text under 'tag'"),
    "broken characters": (
        "geneval",
        '{"tag": "t", "prompt": "a \\ud83d dog"}',
        "line 1: the prompt contains characters that are not valid text",
    ),
}


@pytest.mark.parametrize(("layout", "data", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files(layout: str, data: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        LAYOUTS[layout].read(written(tmp_path, data))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_cannot_be_read(layout: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        LAYOUTS[layout].read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no text files" if layout == "dpg-bench" else "cannot be read: Is a directory"):
        LAYOUTS[layout].read(tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a"}'], "line 1 has no questions under 'vqa_list'"),
        (['{"prompt": " ", "vqa_list": []}'], "has no text under 'prompt'"),
        (['{"prompt": "a", "vqa_list": []}', "", '{"prompt": "a", "vqa_list": []}'], "line 3 has the prompt of line 1"),
        (["a cat"], "GenEval 2's file is geneval2_data.jsonl"),
    ],
)
def test_what_geneval2_cannot_read_is_refused(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read_geneval2(written(tmp_path, "\n".join(lines)))


def test_dpg_bench_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name, text in {"b.txt": "a cat\non a mat\n", "a.txt": "a dog", "notes.md": "x"}.items():
        (tmp_path / name).write_text(text)
    found = read_dpg_bench(tmp_path)
    assert [(one.name, one.text) for one in found.entries] == [("a", "a dog"), ("b", "a cat on a mat")]
    assert found.notes == [f"{tmp_path}: 1 file without the ending .txt ignored."]
    (tmp_path / "c.d.txt").write_text("a cow")
    with pytest.raises(UserError, match="up to the first dot"):
        read_dpg_bench(tmp_path)
    (tmp_path / "c.d.txt").write_text("\n")
    with pytest.raises(UserError, match="contains no prompt"):
        read_dpg_bench(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text files"):
        read_dpg_bench(tmp_path / "empty")
