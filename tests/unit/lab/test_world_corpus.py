"""Parallel captions: which languages may stand side by side, and lengths that are drawn."""

from collections import Counter

import pytest

from syzygy.core.errors import UserError
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.parallel_corpus import checked_languages, parallel


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (["de", "fr"], r"English is missing among the languages \(de, fr\).* Add 'en'"),
        ([], r"English is missing among the languages \(none\)"),
        (["en", "klingon"], "unknown language 'klingon'"),
        (["en", "de", "en"], "language 'en' is named twice"),
    ],
)
def test_languages_that_make_no_corpus(codes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_languages(codes)


def test_languages_in_any_order() -> None:
    assert checked_languages(["zh", "en"]) == ("zh", "en")
    assert list(parallel(0, 0, ["zh", "en"]).captions) == ["zh", "en"]


def test_mixed_lengths() -> None:
    found = [parallel(1, i, ["en", "zh"], length="mixed") for i in range(120)]
    assert all(20 < number < 60 for number in Counter(line.length for line in found).values())
    for line in found:
        assert line == parallel(1, line.index, ["en", "zh"], length=line.length)
    assert found[0] != parallel(2, 0, ["en", "zh"], length="mixed")


def test_a_language_does_not_depend_on_the_others() -> None:
    for i in range(20):
        together = parallel(3, i, list(LANGUAGES)).captions
        for code in LANGUAGES:
            assert parallel(3, i, [code]).captions == {code: together[code]}
