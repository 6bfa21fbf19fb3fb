"""Parallel captions: languages in balance, empty texts, corpora with mistakes in them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from syzygy.lab.starter.world_captions import WorldCaptions
from syzygy.lab.world.language import detect_language
from syzygy.text_encoders.align_stage import padded_states
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.parallel_captions import CorpusCaptions
from tests.closeness import NETWORK, assert_close
from tests.tiny_adapter import align_source
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> Clip:
    return Clip.from_pretrained(tiny_model / "clip")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return Llm.from_pretrained(save_tiny_llm("llama", tmp_path_factory.mktemp("llm") / "llama"))


def corpus(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def texts(**each: str) -> dict[str, Any]:
    return {"texts": each}


def test_languages_come_equally_often_however_many_lines_have_them(tmp_path: Path, llm: Llm, clip: Clip) -> None:
    rows = [texts(en=f"a ring {i}", de=f"ein Ring {i}") for i in range(20)] + [texts(en="a star", ru="звезда")]
    captions = CorpusCaptions(corpus(tmp_path / "c", [rows[-1], *rows]), clip, 0, ("en", "de", "ru"), 1)
    made = align_source(captions, llm, clip, 20)  # steps do not begin with the same language
    lines = [line for step in range(6) for line in made.lines(step)]
    count = Counter(
        "ru" if detect_language(line.text) == "ru" else "de" if "ein" in line.text else "en" for line in lines
    )
    assert count == {"en": 40, "de": 40, "ru": 40}
    german = [line.text for line in lines if "ein" in line.text]
    assert Counter(german).most_common(1)[0][1] == 2  # 20 lines, 40 places: each twice
    assert all(
        line.english.removeprefix("a ring ") == line.text.removeprefix("ein Ring ")
        for line in lines
        if "ein" in line.text
    )


def test_a_tenth_is_empty_and_aims_at_the_empty_text(llm: Llm, clip: Clip) -> None:
    made = align_source(WorldCaptions(0, ("en", "de"), ("short",)), llm, clip, 150, 0.1)
    empty = [line == type(line)("", "") for line in made.lines(0)]
    assert 5 < sum(empty) < 30
    batch = made.read(0, slice(0, 150))
    nothing = clip.encode_text([""]).pooled[0]
    for row, none in enumerate(empty):
        assert torch.allclose(batch.target.pooled[row], nothing, atol=1e-4) == none
    assert len(set(batch.candidate_ids[torch.tensor(empty)].tolist())) == 1  # none is another's negative


def test_a_share_is_a_part_of_the_whole(llm: Llm, clip: Clip) -> None:
    made = align_source(WorldCaptions(0, ("en", "de"), ("short",)), llm, clip, 12, 0.3)
    whole, part = made.read(5, slice(0, 12)), made.read(5, slice(4, 7))
    assert (part.first, len(part)) == (4, 3)
    assert torch.equal(part.candidates, whole.candidates)
    assert torch.equal(part.noise, whole.noise[4:7])
    assert_close(part.target.pooled, whole.candidates[4:7], depth=NETWORK)
    for row in range(3):
        own, same = part.text.states[row][part.text.mask[row]], whole.text.states[4 + row][whole.text.mask[4 + row]]
        assert_close(own, same, depth=NETWORK)


def test_padded_states_are_those_of_a_pipeline(clip: Clip) -> None:
    found = padded_states(clip, ["a red ring", "two stars"])
    settings: Any = {"padding": "max_length", "max_length": clip.positions, "return_tensors": "pt"}
    ids = clip.tokenizer(["a red ring", "two stars"], **settings).input_ids
    with torch.no_grad():
        expected = clip.model.text_model(input_ids=ids).last_hidden_state
    assert found.shape == (2, clip.positions, 32)
    assert_close(found, expected, depth=NETWORK)


def test_unseen_lines_stay_unseen(tmp_path: Path, clip: Clip) -> None:
    path = corpus(tmp_path / "c", [texts(en=f"a ring {i}", de=f"ein Ring {i}") for i in range(9)])
    captions = CorpusCaptions(path, clip, 0, None, 3)
    assert captions.languages == ("en", "de")
    kept = {line.text for line in captions.unseen("de", 3)}
    assert kept == {"ein Ring 0", "ein Ring 1", "ein Ring 2"}
    assert not kept & {captions.line("de", place, 0).text for place in range(30)}
    other = CorpusCaptions(corpus(tmp_path / "d", [texts(en="a ring")] * 4), clip, 0, None, 2)
    assert captions.record != other.record


def test_what_clip_would_cut_is_left_out(tmp_path: Path, clip: Clip) -> None:
    long = "a red ring " * 40
    path = corpus(tmp_path / "c", [texts(en=f"a ring {i}") for i in range(4)] + [texts(en=long)])
    captions = CorpusCaptions(path, clip, 0, None, 2)
    assert captions.left_out == 1
    assert {captions.line("en", place, 0).text for place in range(9)} == {"a ring 2", "a ring 3"}
    with pytest.raises(UserError, match=r"3 whose English CLIP would cut.*none is left to learn from"):
        CorpusCaptions(corpus(tmp_path / "d", [texts(en=long)] * 3), clip, 0, None, 2)


def test_what_is_not_learned_is_counted(tmp_path: Path, clip: Clip) -> None:
    rows = [texts(en="a ring", de="ein Ring"), texts(en="a star", ge="ein Stern"), texts(en="a moon", ge="ein Mond")]
    captions = CorpusCaptions(corpus(tmp_path / "c", rows), clip, 0, ["en"], 1)
    assert captions.not_learned == {"ge": 2, "de": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"texts": {"de": "ein Ring"}}, r"line 3 of .* lacks English \('en'\)"),
        (
            {"texts": {"en": "a ring", "ge": "ein Ring"}},
            r"line 3 of .* has an unknown language 'ge'; the first line has en, de",
        ),
        (
            {"texts": {"en": "a ring", "Deutsch": "ein Ring"}},
            r"line 3 of .* has an unknown language 'Deutsch': write a code",
        ),
        ({"texts": {"en": "a ring", "de": " "}}, r"line 3 of .* has no text in 'de'"),
        ({"texts": {"en": 5}}, r"line 3 of .* has no text in 'en'"),
        ({"text": "a ring"}, r"line 3 of .* is no JSON object with texts"),
        ("{broken", r"line 3 of .* is no JSON object with texts"),
        ("[1]", r"line 3 of .* is no JSON object with texts"),
    ],
)
def test_a_line_with_a_mistake_is_named(line: Any, message: str, tmp_path: Path, clip: Clip) -> None:
    path = corpus(tmp_path / "c", [texts(en="a ring", de="ein Ring"), "", line])
    with pytest.raises(UserError, match=message):
        CorpusCaptions(path, clip, 0, None, 1)


def test_languages_that_are_not_there(tmp_path: Path, clip: Clip) -> None:
    path = corpus(tmp_path / "c", [texts(en="a ring", de="ein Ring")] * 3)
    with pytest.raises(UserError, match=r"has the language 'fr'. It has: de, en"):
        CorpusCaptions(path, clip, 0, ("en", "de", "fr"), 1)
    with pytest.raises(UserError, match="lacks English"):
        CorpusCaptions(path, clip, 0, ("de",), 1)
    with pytest.raises(UserError, match="cannot be read"):
        CorpusCaptions(tmp_path / "none", clip, 0, None, 1)
