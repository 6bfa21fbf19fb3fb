"""What is asked of a text encoder: captions that all say something else, decisive words last; and that order and batches change nothing."""

from pathlib import Path

import pytest

from syzygy.core.errors import UserError
from syzygy.generation.replaced_text_encoder import with_text
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import text_encoder as run
from syzygy.lab.evaluate.text_encoder_images import CLIP_ENGLISH, candidates, language_cases
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language import LANGUAGES, language
from tests.closeness import NETWORK, assert_close

STAR, RING = Mention("star", "red"), Mention("ring", None, "striped")


def test_captions_all_say_something_else() -> None:
    pairs = run.caption_pairs(200, 0)
    assert len({one.caption.description.key for one in pairs}) == 200
    assert [one.caption.text for one in run.caption_pairs(20, 0)] == [one.caption.text for one in pairs[:20]]
    told = Description((STAR, RING), (Placed(0, "left of", 1),))
    turned = Description((RING, STAR), (Placed(0, "right of", 1),))
    assert told.key == turned.key
    assert told.key != Description((RING, STAR), (Placed(0, "left of", 1),)).key
    assert told.key != Description((STAR, RING)).key


@pytest.mark.parametrize("code", list(LANGUAGES))
def test_decisive_words_come_last_behind_the_same_head(code: str) -> None:
    first, second = (run.long_prompt(Description((one,)), code, 0, "tail", 7) for one in (STAR, RING))
    assert first.long == first.long[: first.head] + first.sentence
    assert first.long[: first.head] == second.long[: second.head]
    assert (first.head if code == "zh" else len(first.long[: first.head].split())) > 77
    for one, mention in ((first, STAR), (second, RING)):
        assert language(code).parse(one.long).description.mentions == (mention,)
        assert language(code).parse(one.sentence).description.mentions == (mention,)


def test_order_and_batches_change_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage.from_pretrained(tiny_model)
    texts = [one.caption.text for one in run.caption_pairs(9, 0)]
    told: list[int] = []
    whole = run.encode_texts(model.pipeline, texts, 0, told.append)
    assert_close(whole.features.pooled, model.clip.encode_text(texts).pooled, depth=NETWORK)
    monkeypatch.setattr(run, "CHUNK", 4)
    parts = run.encode_texts(model.pipeline, texts, 0, told.append)
    assert_close(parts.features.pooled, whole.features.pooled, depth=NETWORK)
    assert_close(parts.predicted, whole.predicted, depth=NETWORK)
    assert told == [9, 4, 4, 1]
    assert run.encode_texts(model.pipeline, ["a star " * 90, "a star"], 0, told.append).cut == 1


def test_what_is_painted() -> None:
    scoring = run.TextEncoderConfig(languages=("de", "en"), prompts=1)
    names = list(candidates(scoring))
    assert names == [
        "CLIP, en",
        "CLIP, en, long",
        "CLIP, de",
        "adapter, de",
        "adapter, en",
        "adapter, de, long",
        "adapter, en, long",
    ]
    assert names[0] == CLIP_ENGLISH
    asked = language_cases(scoring)
    assert len(asked) * 16 >= 200  # as many as there are by default
    for one in asked:
        assert one.text("de", "long").endswith(one.text("de", "short"))
        read = language("de").parse(one.text("de", "short")).description
        assert read.key == one.prompt.description.key
    assert language_cases(run.TextEncoderConfig(languages=("en",), prompts=0)) == []


def test_languages_are_those_taught_unless_named(tiny_model: Path) -> None:
    model = TextToImage.from_pretrained(tiny_model)
    assert run.checked_languages(model, None) == ("en",)
    assert run.checked_languages(model, ["de", "en"]) == ("de", "en")
    with pytest.raises(UserError, match="named twice"):
        run.checked_languages(model, ["de", "de"])
    same = with_text(model.pipeline, model.clip)
    assert (same.text_encoder, same.conditions) == (model.clip, ("image",))
