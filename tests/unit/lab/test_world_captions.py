"""The embedded world as data for adapters: captions in all languages, embedded scenes, and what no training may see."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from syzygy.lab.starter.world_captions import WorldCaptions, embed_scenes
from syzygy.lab.world.language import LANGUAGES, language
from syzygy.lab.world.scene_source import pair, pictures
from syzygy.text_encoders.image_stage import ImageSource
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


def test_the_worlds_captions(llm: Llm, clip: Clip) -> None:
    codes = tuple(LANGUAGES)
    captions = WorldCaptions(3, codes, ("short", "medium"))
    lines = align_source(captions, llm, clip).lines(0)
    said = [language(codes[i % len(codes)]).parse(line.text).description for i, line in enumerate(lines)]
    english = [language("en").parse(line.english).description for line in lines]
    assert [Counter(one.mentions) for one in said] == [Counter(one.mentions) for one in english]
    assert not any(one.unseen for one in english)
    assert len({line.english for line in lines}) > 50  # another scene each
    short = sum(len(line.english) for line in lines)
    assert sum(len(line.english) for line in align_source(captions, llm, clip).lines(1)) > 1.5 * short
    alone = WorldCaptions(3, ("en",), ("short", "medium"))
    unseen = [line == alone.line("en", i, i) for i, line in enumerate(alone.unseen("en", 40))]
    assert sum(unseen) < 4  # of other scenes, whose captions may be equal by chance
    with pytest.raises(UserError, match="unknown language 'xx'"):
        WorldCaptions(0, ("en", "xx"), ("short",))


def test_a_scenes_picture_and_captions_are_of_that_scene(clip: Clip, llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syzygy.lab.starter.world_captions.CHUNK", 16)
    both = embed_scenes(
        clip, llm, ("en", "de"), ("short",), seed=0, sizes=(40, 40), by_text=True, condition="objects == 1"
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
    data = embed_scenes(clip, llm, ("en", "de", "ru"), ("short",), seed=0, sizes=(20, 4), by_text=True)
    made = ImageSource(*data, torch.device("cpu"), 8, 0.3, 0)
    whole, part = made.read(2, slice(0, 8)), made.read(2, slice(1, 5))
    assert torch.equal(part.image, whole.image[1:5])
    assert torch.equal(part.noise, whole.noise[1:5])
    assert len(set(part.text.mask.sum(1).tolist())) > 1  # not the empty text alone
    for row in range(4):
        own, same = part.text.states[row][part.text.mask[row]], whole.text.states[1 + row][whole.text.mask[1 + row]]
        assert_close(own, same, depth=NETWORK)


def test_held_out_compositions_stay_out(tmp_path: Path, clip: Clip, llm: Llm) -> None:
    from syzygy.lab.world.scene import UNSEEN_COLOURS

    shape, colour = sorted(UNSEEN_COLOURS)[0]
    told = {
        "mentions": [{"shape": shape, "colour": colour, "texture": None, "count": 1}],
        "relations": [],
        "style": None,
    }
    lines = [{"texts": {"en": "a ring"}}, {"texts": {"en": "a thing"}, "description": told}]
    (tmp_path / "c").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"line 2 of .* describes an unseen composition.*--no-unseen"):
        CorpusCaptions(tmp_path / "c", clip, 0, None, 1)
    training, _ = embed_scenes(clip, llm, ("en", "de"), ("short", "long"), seed=0, sizes=(40, 4), by_text=True)
    for i in range(40):
        assert not language("de").parse(training.caption(i, 1, 0)).description.unseen
    assert len(training.caption(3, 0, 1)) > 3 * len(training.caption(3, 0, 0))
