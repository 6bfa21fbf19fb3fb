"""German, Spanish, French, Russian, Chinese: forms and sentences that were proofread, a person's words, wrong input."""
# ruff: noqa: RUF001 (letters and marks of another script are no slips here)

import hashlib
import re
from collections.abc import Sequence

import pytest

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language import LANGUAGES, Parsed, detect_language, german, language, parse_caption, russian
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.parsing import CONTENT_ROLES, Lexicon
from syzygy.lab.world.language.sentence import Article, Case, Slot
from syzygy.lab.world.scene import COLOURS, RELATIONS, SHAPES, STYLES, TEXTURES, Style
from tests.any_description import any_description

OTHERS = [code for code in LANGUAGES if code != "en"]


def of(code: str) -> Language:
    found = language(code)
    assert isinstance(found, Language)
    return found


def said(*mentions: Mention, relations: tuple[Placed, ...] = (), style: Style | None = None) -> Description:
    return Description(mentions, relations, style)


def forms(code: str, mention: Mention, slot: Slot) -> set[str]:
    """Everything that the mention can be called there."""
    return {of(code).grammar.mention(mention, slot, Draw(0, i)).text for i in range(500)}


BLUE_STAR, PINK_CROSS, GREEN_RINGS = (
    Mention("star", "blue"),
    Mention("cross", "pink"),
    Mention("ring", "green", None, 3),
)


def test_english_is_what_models_were_trained_on() -> None:
    """The digest is of the captions before English shared its machinery with other languages."""
    digest = hashlib.sha256()
    for i in range(2000):
        caption = language("en").caption(any_description(i), Draw(1, i), ("short", "medium", "long")[i % 3])
        digest.update(repr((caption.text, [(s.mention, s.start, s.stop) for s in caption.spans])).encode())
    assert digest.hexdigest() == "0eca8be5047b89c80fedcb57e4ae5c0a0c38a2bd37f9c6ce7d5583f38eb0bb3e"


@pytest.mark.parametrize(
    ("mention", "case", "article", "expected"),
    [
        (BLUE_STAR, "nominative", "indefinite", "ein blauer Stern; ein Stern in Blau; ein Stern, der blau ist"),
        (BLUE_STAR, "accusative", "indefinite", "einen blauen Stern; einen Stern in Blau; einen Stern, der blau ist"),
        (BLUE_STAR, "dative", "indefinite", "einem blauen Stern; einem Stern in Blau; einem Stern, der blau ist"),
        (BLUE_STAR, "dative", "definite", "dem blauen Stern; dem Stern in Blau; dem Stern, der blau ist"),
        (BLUE_STAR, "nominative", "none", "blauer Stern; Stern in Blau"),
        (BLUE_STAR, "dative", "none", "blauem Stern; Stern in Blau"),
        (PINK_CROSS, "nominative", "none", "rosa Kreuz; rosafarbenes Kreuz; Kreuz in Rosa"),
        (PINK_CROSS, "dative", "none", "rosa Kreuz; rosafarbenem Kreuz; Kreuz in Rosa"),
        (GREEN_RINGS, "nominative", "indefinite", "drei grüne Ringe; drei Ringe in Grün; drei Ringe, die grün sind"),
        (GREEN_RINGS, "dative", "indefinite", "drei grünen Ringen; drei Ringen in Grün; drei Ringen, die grün sind"),
        (
            GREEN_RINGS,
            "dative",
            "definite",
            "den drei grünen Ringen; den drei Ringen in Grün; den drei Ringen, die grün sind",
        ),
        (Mention("heart"), "dative", "indefinite", "einem Herzen"),
        (Mention("heart"), "dative", "none", "Herz"),
        (Mention("heart"), "accusative", "indefinite", "ein Herz"),
        (Mention("heart", None, None, 2), "dative", "indefinite", "zwei Herzen"),
        (Mention("moon"), "accusative", "definite", "den Mond; den Halbmond"),
    ],
)
def test_german_forms(mention: Mention, case: Case, article: Article, expected: str) -> None:
    assert forms("de", mention, Slot(case, article)) == set(expected.split("; "))


@pytest.mark.parametrize(
    ("mention", "case", "expected"),
    [
        (("star", "blue", None, 1), "nominative", "синяя звезда; синяя звёздочка; звезда синего цвета; звёздочка синего цвета"),
        (("star", "blue", None, 2), "nominative", "две синие звезды; две синие звёздочки; две звезды синего цвета; две звёздочки синего цвета"),
        (("star", "blue", None, 2), "genitive", "двух синих звёзд; двух синих звёздочек; двух звёзд синего цвета; двух звёздочек синего цвета"),
        (("circle", "red", None, 2), "nominative", "два красных круга; два круга красного цвета"),
        (("circle", "red", None, 4), "instrumental", "четырьмя красными кругами; четырьмя кругами красного цвета"),
        (("circle", "red", None, 1), "genitive", "красного круга; круга красного цвета"),
        (("ring", "yellow", None, 3), "nominative", "три жёлтых кольца; три кольца жёлтого цвета"),
        (("ring", "yellow", None, 3), "genitive", "трёх жёлтых колец; трёх колец жёлтого цвета"),
        (("ring", "yellow", None, 1), "instrumental", "жёлтым кольцом; кольцом жёлтого цвета"),
        (("heart", None, None, 2), "genitive", "двух сердец; двух сердечек"),
        (("moon", None, "striped", 1), "instrumental", "полосатой луной; луной в полоску; луной в полосочку"),
        (("moon", None, "striped", 2), "nominative", "две полосатые луны; две луны в полоску; две луны в полосочку"),
        (("cross", "cyan", None, 1), "nominative", "голубой крест; бирюзовый крест; крест голубого цвета; крест бирюзового цвета"),
    ],
)  # fmt: skip
def test_russian_forms(mention: tuple[str, str, str, int], case: Case, expected: str) -> None:
    assert forms("ru", Mention(*mention), Slot(case)) == set(expected.split("; "))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("code", "mention", "article", "expected"),
    [
        ("es", Mention("star", "red"), "indefinite", "una estrella roja; una estrella de color rojo"),
        ("es", Mention("cross", "green", None, 2), "definite", "las dos cruces verdes; las dos cruces de color verde"),
        ("es", Mention("heart", "blue", None, 3), "none", "tres corazones azules; tres corazones de color azul"),
        ("es", Mention("star", "orange", None, 2), "indefinite", "dos estrellas naranja; dos estrellas anaranjadas; "
         "dos estrellas de color naranja; dos estrellas de color anaranjado"),
        ("es", Mention("moon", None, "striped"), "none", "luna rayada; luna a rayas; luna de rayas"),
        ("fr", Mention("star", "purple"), "indefinite", "une étoile violette; une étoile de couleur violette"),
        ("fr", Mention("circle", "green"), "definite", "le cercle vert; le cercle de couleur verte"),
        ("fr", Mention("star", "orange", None, 2), "indefinite", "deux étoiles orange; deux étoiles de couleur orange"),
        ("fr", Mention("ring", "pink", None, 2), "none", "deux anneaux roses; deux anneaux de couleur rose"),
        ("fr", Mention("cross", None, "plain", 2), "definite", "les deux croix unies; les deux croix sans motif"),
        ("zh", Mention("circle", "red"), "indefinite", "一个红色圆形; 一个红色的圆形"),
        ("zh", Mention("circle", "red"), "none", "红色圆形"),
        ("zh", Mention("circle", "red", None, 2), "none", "两个红色圆形"),
        ("zh", Mention("moon", "orange"), "none", "橙色月亮; 橘色月亮; 橙色弯月; 橘色弯月"),
        ("zh", Mention("moon", None, None, 2), "indefinite", "两个月亮; 两轮月亮; 两轮弯月"),
        ("zh", Mention("star"), "indefinite", "一颗星星; 一颗五角星; 一个五角星"),
        ("zh", Mention("ring", "green", "striped"), "none", "绿色条纹圆环; 带条纹的绿色圆环; 条纹图案的绿色圆环"),
    ],
)  # fmt: skip
def test_forms_without_cases(code: str, mention: Mention, article: Article, expected: str) -> None:
    assert forms(code, mention, Slot(article=article)) == set(expected.split("; "))


@pytest.mark.parametrize(
    ("code", "text", "phrase", "whole"),
    [
        ("de", "links von ", "dem Stern", "links vom Stern"),
        ("de", "links neben ", "dem Stern", "links neben dem Stern"),
        ("de", "links von ", "den Sternen", "links von den Sternen"),
        ("es", "debajo de ", "el anillo", "debajo del anillo"),
        ("es", "debajo de ", "la luna", "debajo de la luna"),
        ("fr", "à gauche de ", "un cercle", "à gauche d'un cercle"),
        ("fr", "à gauche de ", "deux cercles", "à gauche de deux cercles"),
        ("fr", "à gauche de ", "le cercle", "à gauche du cercle"),
        ("fr", "à gauche de ", "le anneau", "à gauche de l'anneau"),
        ("fr", "à gauche de ", "la étoile", "à gauche de l'étoile"),
        ("fr", "à gauche de ", "les deux lunes", "à gauche des deux lunes"),
        ("fr", "sous ", "la étoile", "sous l'étoile"),
        ("ru", "картинка с ", "звездой", "картинка со звездой"),
        ("ru", "картинка с ", "синей звездой", "картинка с синей звездой"),
    ],
)
def test_where_words_meet(code: str, text: str, phrase: str, whole: str) -> None:
    assert "".join(of(code).grammar.joined(text, phrase)) == whole


LEFT = said(Mention("circle", "red"), Mention("star", "blue", None, 2), relations=(Placed(0, "left of", 1),))
CHAIN = said(
    Mention("ring", None, "dotted"),
    Mention("heart", "pink"),
    Mention("moon", "yellow"),
    relations=(Placed(0, "above", 1), Placed(1, "below", 2)),
    style="night",
)
AND = said(Mention("star", "orange"), Mention("square", "green", "striped", 3), style="outline")


@pytest.mark.parametrize(
    ("code", "description", "expected"),
    [
        ("de", LEFT, ("Links neben zwei Sternen, die blau sind, ist ein roter Kreis.", "zwei blaue Sterne rechts von rotem Kreis")),
        ("de", CHAIN, (
            "Ein nächtliches Bild von einem Ring mit Tupfen oberhalb von einem rosafarbenen Herzen, das unter einem gelben Halbmond liegt.",)),
        ("de", AND, ("Eine Konturzeichnung von einem orangefarbenen Stern und drei grünen gestreiften Quadraten.",)),
        ("es", LEFT, (
            "a la izquierda de dos estrellas azules aparece un círculo rojo", "vemos dos estrellas azules a la derecha del círculo rojo")),
        ("es", CHAIN, ("Una imagen nocturna de un anillo moteado encima de un corazón rosado, que está por debajo de una luna amarilla.",)),
        ("es", AND, ("Una estrella de color naranja y tres cuadrados verdes de rayas, solo en contorno.",)),
        ("fr", LEFT, ("à gauche de deux étoiles bleues, on voit un cercle rouge", "Deux étoiles bleues à droite d'un cercle rouge.")),
        ("fr", CHAIN, ("Image nocturne : anneau à pois au-dessus d'un cœur rose, qui se trouve en dessous d'une lune jaune.",)),
        ("fr", AND, ("Une image au trait d'une étoile orange et de trois carrés verts à rayures.",)),
        ("ru", LEFT, ("Левее двух синих звёзд находится красный круг.", "Здесь две синие звезды справа от красного круга.")),
        ("ru", CHAIN, ("рисунок пятнистого кольца над розовым сердечком, которое находится под жёлтой луной, ночная сцена",)),
        ("ru", AND, ("Контурная картинка с оранжевой звёздочкой и тремя полосатыми зелёными квадратами.",)),
        ("zh", LEFT, ("两颗蓝色星星的左侧是一个红色的圆形。", "一个红色圆形位于两颗蓝色五角星的左侧")),
        ("zh", CHAIN, ("一幅夜景画，画中有一个波点圆环在一颗粉红色爱心上方，后者在一个黄色月亮下面",)),
        ("zh", AND, ("一颗橘色的星星和三个绿色的条纹方块，线描风格。", "线描画：橙色五角星、三个条纹图案的绿色方块")),
    ],
)  # fmt: skip
def test_sentences(code: str, description: Description, expected: Sequence[str]) -> None:
    texts = {language(code).caption(description, Draw(0, name, i)).text for name in "ABC" for i in range(7)}
    assert set(expected) <= texts
    assert len({language(code).caption(description, Draw(1, i)).text for i in range(200)}) > 60


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("de", "DER KREIS ist rot, und 2 Sterne liegen links vom Kreis", said(
            Mention("circle", "red"), Mention("star", None, None, 2), Mention("circle"), relations=(Placed(1, "left of", 2),))),
        ("de", "rote Herzen unter einem Stern, der gestreift und gelb ist", said(
            Mention("heart", "red", None, 2), Mention("star", "yellow", "striped"), relations=(Placed(0, "below", 1),))),
        ("de", "der Kreis, der Stern", said(Mention("circle"), Mention("star"))),
        ("de", "links vom Herzen ein Ring", said(Mention("heart"), Mention("ring"), relations=(Placed(1, "left of", 0),))),
        ("es", "El círculo es rojo y está encima del cuadrado liso", said(
            Mention("circle", "red"), Mention("square", None, "plain"), relations=(Placed(0, "above", 1),))),
        ("es", "unas cruces moradas, de noche", said(Mention("cross", "purple", None, 2), style="night")),
        ("fr", "L’étoile est bleue ; des cœurs roses à droite de l’étoile", said(
            Mention("star", "blue"), Mention("heart", "pink", None, 2), Mention("star"), relations=(Placed(1, "right of", 2),))),
        ("fr", "coeur au-dessus des croix", said(Mention("heart"), Mention("cross", None, None, 2), relations=(Placed(0, "above", 1),))),
        ("ru", "желтая звезда над красными кольцами", said(
            Mention("star", "yellow"), Mention("ring", "red", None, 2), relations=(Placed(0, "above", 1),))),
        ("ru", "круг слева от звезды, который красный", said(
            Mention("circle"), Mention("star", "red"), relations=(Placed(0, "left of", 1),))),
        ("ru", "синие звезды", said(Mention("star", "blue", None, 2))),
        ("zh", "红圆在蓝星左边", said(Mention("circle", "red"), Mention("star", "blue"), relations=(Placed(0, "left of", 1),))),
        ("zh", "蓝色星星左边的红色圆形", said(Mention("star", "blue"), Mention("circle", "red"), relations=(Placed(1, "left of", 0),))),
        ("zh", "月亮和蓝色星星左边的圆形", said(
            Mention("moon"), Mention("star", "blue"), Mention("circle"), relations=(Placed(2, "left of", 1),))),
        ("zh", "在星星的上面有两个粉红色的心", said(
            Mention("star"), Mention("heart", "pink", None, 2), relations=(Placed(1, "above", 0),))),
        ("zh", "3个圆环，夜晚", said(Mention("ring", None, None, 3), style="night")),
    ],
)  # fmt: skip
def test_readings(code: str, text: str, expected: Description) -> None:
    assert language(code).parse(text) == Parsed(expected, {}, ())
    assert detect_language(text) == code


@pytest.mark.parametrize(
    ("code", "text", "word", "nearest"),
    [
        ("de", "ein bläuer Kreis", "bläuer", "blauer"),
        ("es", "una estrela azul", "estrela", None),
        ("fr", "un cercle bleux", "bleux", "bleu"),
        ("ru", "красный кург и звезда", "кург", "круг"),
        ("zh", "一个红涩圆形", "涩", None),
    ],
)
def test_unknown_words(code: str, text: str, word: str, nearest: str | None) -> None:
    if nearest is None and code == "es":
        with pytest.raises(UserError, match=r"in Spanish. Did you mean 'estrella'\?"):
            language(code).parse(text)
        return
    found = language(code).parse(text).unknown
    assert list(found) == [word]
    assert len(found[word]) == 3
    assert nearest in (None, found[word][0])
    known = of(code).lexicon.words
    meanings = {(known[near].role, known[near].value) for near in found[word]}
    assert len(meanings) == 3, "forms of one word are one suggestion"


@pytest.mark.parametrize("code", LANGUAGES)
def test_texts_without_a_scene(code: str) -> None:
    found = of(code)
    assert found.parse(found.example).unknown == {}
    with pytest.raises(UserError, match="the text is empty") as error:
        found.parse("  ")
    assert found.example in str(error.value)
    for other in LANGUAGES:
        if other != code:
            with pytest.raises(UserError, match=f"names no object of this world in {found.name}"):
                found.parse(of(other).example)
    with pytest.raises(UserError, match=f"in {found.name}"):
        parse_caption(found.fillers.sentences[0])


def test_a_text_is_taken_for_the_language_that_knows_most_of_it() -> None:
    assert detect_language("a red cirkle and a storm") == "en"
    assert detect_language("ein roter Krais neben dem Stern") == "de"
    assert detect_language("orange ring") == detect_language("storm") == detect_language("") == "en"
    assert parse_caption("un cercle rouge").description == parse_caption("красный круг").description
    with pytest.raises(UserError, match=r"'ein Hund' names no object of this world in German\. Objects: Kreis, "):
        parse_caption("ein Hund")


def test_unknown_language() -> None:
    with pytest.raises(UserError, match=r"unknown language 'it'\. Known: de, en, es, fr, ru, zh"):
        language("it")


@pytest.mark.parametrize("code", OTHERS)
def test_lexicon_knows_every_value(code: str) -> None:
    words = of(code).lexicon.words.values()
    values = {role: {word.value for word in words if word.role == role} for role in CONTENT_ROLES}
    assert values == {
        "noun": set(SHAPES),
        "colour": set(COLOURS),
        "texture": set(TEXTURES),
        "style": set(STYLES),
        "relation": set(RELATIONS),
        "number": set(range(1, 10)),
    }
    assert len(of(code).lexicon.objects) == len(SHAPES)


@pytest.mark.parametrize("code", OTHERS)
def test_fillers_say_nothing_of_a_scene(code: str) -> None:
    found = of(code)
    plain = Lexicon(found.lexicon.words, (), word=found.lexicon.word)
    assert len(set(found.fillers.sentences)) == len(found.fillers.sentences) >= 16
    for sentence in found.fillers.sentences:
        said_of = {token.word.role for token in plain.tokens(sentence) if token.word}
        assert not said_of & {"noun", "colour", "texture", "style"}, sentence
        assert found.fillers.removed(f"{sentence}{found.fillers.space}{sentence}") == ""


@pytest.mark.parametrize("code", OTHERS)
def test_lengths(code: str) -> None:
    found, size = of(code), of(code).fillers.size
    for i in range(150):
        description = any_description(i)
        short, medium, long = (found.caption(description, Draw(4, i), n) for n in ("short", "medium", "long"))
        assert 0 < size(medium.text) - size(short.text) <= found.fillers.medium[1] + 12
        assert found.fillers.long[0] <= size(long.text) <= 300
        for caption in (medium, long):
            assert caption.text.startswith(tuple(found.fillers.sentences))
            last = caption.text[min(span.start for span in caption.spans) :]
            assert not any(sentence in last for sentence in found.fillers.sentences)
            assert caption.text[-1] in ".。"


def test_a_pronoun_has_one_gender() -> None:
    for nouns in (german.NOUNS, russian.NOUNS):
        for found in nouns.values():
            assert len({noun.gender for noun in found}) == 1


def test_chinese_turns_no_sentence_that_goes_on() -> None:
    """What follows 左边有一个圆形 would be there as well."""
    third = (Mention("triangle"), Mention("circle", "red", "plain"))
    alone = {language("zh").caption(LEFT, Draw(9, i)).text for i in range(200)}
    more = said(*LEFT.mentions, *third, relations=LEFT.relations)
    together = {language("zh").caption(more, Draw(9, i)).text for i in range(400)}
    turned = re.compile("的(左|右)(边|侧)(有|是)")
    assert any(turned.search(text) for text in alone)
    assert not any(turned.search(text) for text in together)
    assert any("纯色" in text for text in together)
    assert not any("色纯色" in text or "色的纯色" in text for text in together), "no two words for colours in a row"
