"""Parallel captions: languages in balance, empties, corpora with mistakes in them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from syzygy.lab.world.language import LANGUAGES, detect_language, language
from syzygy.lab.world.scene_source import pair, pictures
from syzygy.text_encoders.caption_sources import AlignSource, ImageSource, padded_states, pictures_of_the_world
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.parallel_captions import Captions, CorpusCaptions, WorldCaptions
from syzygy.training.run_records import no_bar
from tests.closeness import NETWORK, assert_close
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


def source(captions: Captions, llm: Llm, clip: Clip, size: int = 60, empty: float = 0.0) -> AlignSource:
    return AlignSource(captions, llm, clip, size, empty, 0, padded=False, validation=4)


def test_languages_come_equally_often_however_many_lines_have_them(tmp_path: Path, llm: Llm, clip: Clip) -> None:
    rows = [texts(en=f"a ring {i}", de=f"ein Ring {i}") for i in range(20)] + [texts(en="a star", ru="звезда")]
    captions = CorpusCaptions(corpus(tmp_path / "c", [rows[-1], *rows]), clip, 0, ("en", "de", "ru"), 1)
    made = source(captions, llm, clip, 20)  # steps do not begin with the same language
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


def test_the_worlds_captions(llm: Llm, clip: Clip) -> None:
    codes = tuple(LANGUAGES)
    captions = WorldCaptions(3, codes, ("short", "medium"))
    lines = source(captions, llm, clip).lines(0)
    said = [language(codes[i % len(codes)]).read(line.text).description for i, line in enumerate(lines)]
    english = [language("en").parse(line.english).description for line in lines]
    assert [Counter(one.mentions) for one in said] == [Counter(one.mentions) for one in english]
    assert not any(one.unseen for one in english)
    assert len({line.english for line in lines}) > 50  # another scene each
    short = sum(len(line.english) for line in lines)
    assert sum(len(line.english) for line in source(captions, llm, clip).lines(1)) > 1.5 * short
    alone = WorldCaptions(3, ("en",), ("short", "medium"))
    unseen = [line == alone.line("en", i, i) for i, line in enumerate(alone.unseen("en", 40))]
    assert sum(unseen) < 4  # of other scenes, whose captions may be equal by chance
    with pytest.raises(UserError, match="unknown language 'xx'"):
        WorldCaptions(0, ("en", "xx"), ("short",))


def test_a_tenth_is_empty_and_aims_at_the_empty_text(llm: Llm, clip: Clip) -> None:
    made = source(WorldCaptions(0, ("en", "de"), ("short",)), llm, clip, 150, 0.1)
    empty = [line == type(line)("", "") for line in made.lines(0)]
    assert 5 < sum(empty) < 30
    batch = made.read(0, slice(0, 150))
    nothing = clip.encode_text([""]).pooled[0]
    for row, none in enumerate(empty):
        assert torch.allclose(batch.target.pooled[row], nothing, atol=1e-4) == none
    assert len(set(batch.candidate_ids[torch.tensor(empty)].tolist())) == 1  # none is another's negative


def test_a_share_is_a_part_of_the_whole(llm: Llm, clip: Clip) -> None:
    made = source(WorldCaptions(0, ("en", "de"), ("short",)), llm, clip, 12, 0.3)
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


def test_held_out_compositions_stay_out(tmp_path: Path, clip: Clip, llm: Llm) -> None:
    from syzygy.lab.world.scene import UNSEEN_COLOURS

    shape, colour = sorted(UNSEEN_COLOURS)[0]
    told = {
        "mentions": [{"shape": shape, "colour": colour, "texture": None, "count": 1}],
        "relations": [],
        "style": None,
    }
    row = texts(en="a thing") | {"description": told}
    with pytest.raises(UserError, match=r"line 2 of .* tells a held-out composition.*--no-held-out"):
        CorpusCaptions(corpus(tmp_path / "c", [texts(en="a ring"), row]), clip, 0, None, 1)
    training, _ = pictures_of_the_world(
        clip, llm, ("en", "de"), ("short", "long"), seed=0, sizes=(40, 4), by_text=True, bar=no_bar
    )
    for i in range(40):
        assert not language("de").parse(training.caption(i, 1, 0)).description.unseen
    assert len(training.caption(3, 0, 1)) > 3 * len(training.caption(3, 0, 0))


def test_a_scenes_picture_and_captions_are_of_that_scene(clip: Clip, llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syzygy.text_encoders.caption_sources.CHUNK", 16)
    both = pictures_of_the_world(
        clip, llm, ("en", "de"), ("short",), seed=0, sizes=(40, 40), by_text=True, bar=no_bar, condition="objects == 1"
    )
    for data in both:
        scenes = data.scenes.tolist()
        assert 0 < len(scenes) < 40
        english = [data.caption(scene, 0, 0) for scene in scenes]
        assert_close(clip.encode_text(english).pooled, data.pivots, depth=NETWORK)
        drawn = [pair(data.seed, scene, unseen=False) for scene in scenes]
        found = clip.encode_image(pictures(drawn, clip.image_size, clip.device))
        assert_close(found, data.embeddings, depth=NETWORK)
    training, validation = both
    assert torch.cdist(training.embeddings, validation.embeddings).min() > 1e-4  # other scenes


def test_a_share_of_pictures_is_a_part_of_the_whole(clip: Clip, llm: Llm) -> None:
    data = pictures_of_the_world(
        clip, llm, ("en", "de", "ru"), ("short",), seed=0, sizes=(20, 4), by_text=True, bar=no_bar
    )
    made = ImageSource(*data, torch.device("cpu"), 8, 0.3, 0)
    whole, part = made.read(2, slice(0, 8)), made.read(2, slice(1, 5))
    assert torch.equal(part.image, whole.image[1:5])
    assert torch.equal(part.noise, whole.noise[1:5])
    assert len(set(part.text.mask.sum(1).tolist())) > 1  # not the empty text alone
    for row in range(4):
        own, same = part.text.states[row][part.text.mask[row]], whole.text.states[1 + row][whole.text.mask[1 + row]]
        assert_close(own, same, depth=NETWORK)


def test_languages_that_are_not_there(tmp_path: Path, clip: Clip) -> None:
    path = corpus(tmp_path / "c", [texts(en="a ring", de="ein Ring")] * 3)
    with pytest.raises(UserError, match=r"has the language 'fr'. It has: de, en"):
        CorpusCaptions(path, clip, 0, ("en", "de", "fr"), 1)
    with pytest.raises(UserError, match="lacks English"):
        CorpusCaptions(path, clip, 0, ("de",), 1)
    with pytest.raises(UserError, match="cannot be read"):
        CorpusCaptions(tmp_path / "none", clip, 0, None, 1)
