"""French: data of a `Romance` language. "De", "le" and "la" lose their vowel before another; "de le" is "du", "de les" "des"."""

from collections.abc import Sequence

from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import Lexicon, meaning
from syzygy.lab.world.language.romance import F, Forms, M, Noun, Romance, invariable, opening
from syzygy.lab.world.language.sentence import Opening, StyleWording
from syzygy.lab.world.scene import Relation, Style

VOWELS = "aeiouyâàéèêîôûœ"


def adjective(masculine: str, feminine: str = "") -> Forms:
    """The four forms of a regular adjective, or of one with a feminine of its own."""
    feminine = feminine or (masculine if masculine.endswith("e") else f"{masculine}e")
    return masculine, feminine, f"{masculine}s", f"{feminine}s"


RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left of": ("à gauche de",),
    "right of": ("à droite de",),
    "above": ("au-dessus de",),
    "below": ("en dessous de", "au-dessous de", "sous"),
}


def _wording(openings: Sequence[str], heading: str, tail: str) -> StyleWording:
    return StyleWording([opening(text) for text in openings], [Opening(f"{heading} : ")], f", {tail}")


def joined(text: str, phrase: str) -> tuple[str, str]:
    """A text and the phrase that follows it: "l'étoile", "d'une étoile", "du cercle", "des deux cercles"."""
    if phrase.startswith(("le ", "la ")) and phrase[3] in VOWELS:
        phrase = f"l'{phrase[3:]}"
    if text.endswith("de "):
        if phrase.startswith("le "):
            return f"{text[:-2]}u ", phrase[3:]
        if phrase.startswith("les "):
            return f"{text[:-1]}s ", phrase[4:]
        if phrase[0] in VOWELS:
            return f"{text[:-2]}'", phrase
    return text, phrase


GRAMMAR = Romance(
    nouns={
        "circle": Noun(M, "cercle", "cercles"),
        "square": Noun(M, "carré", "carrés"),
        "triangle": Noun(M, "triangle", "triangles"),
        "star": Noun(F, "étoile", "étoiles"),
        "heart": Noun(M, "cœur", "cœurs"),
        "cross": Noun(F, "croix", "croix"),
        "ring": Noun(M, "anneau", "anneaux"),
        "moon": Noun(F, "lune", "lunes"),
    },
    colours={
        "red": (adjective("rouge"),),
        "orange": (invariable("orange"),),
        "yellow": (adjective("jaune"),),
        "green": (adjective("vert"),),
        "cyan": (invariable("cyan"), invariable("turquoise")),
        "blue": (adjective("bleu"),),
        "purple": (adjective("violet", "violette"),),
        "pink": (adjective("rose"),),
    },
    textures={
        "plain": (adjective("uni"),),
        "striped": (adjective("rayé"),),
        "dotted": (adjective("tacheté"), adjective("moucheté")),
    },
    patterns={
        "plain": ("sans motif",),
        "striped": ("à rayures",),
        "dotted": ("à pois", "à petits pois"),
    },
    relations=RELATIONS,
    styles={
        "flat": (
            _wording(("un dessin en aplats de",), "dessin en aplats", "en aplats"),
            _wording(("une image de style plat avec",), "image de style plat", "dans un style plat"),
        ),
        "outline": (
            _wording(("un dessin au trait de",), "dessin au trait", "au trait"),
            _wording(("une image au trait de",), "image au trait", "en simples contours"),
        ),
        "pastel": (
            _wording(("un dessin aux tons pastel de",), "dessin aux tons pastel", "aux tons pastel"),
            _wording(("une image en couleurs pastel de",), "image en couleurs pastel", "en couleurs pastel"),
        ),
        "night": (
            _wording(("une image nocturne de", "un dessin nocturne de"), "image nocturne", "dans un style nocturne"),
            _wording(("une scène nocturne avec",), "scène nocturne", "de nuit"),
        ),
    },
    there=("il y a ", "on voit ", "voici "),
    pictures=(opening("une image de"), opening("un dessin de"), opening("une image avec")),
    numbers=("deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    indefinite=("un", "une"),
    definite=("le", "la", "les", "les"),
    and_=" et ",
    of_colour="de couleur",
    colour_gender=F,
    which=((", qui est", ", qui se trouve"), (", qui sont", ", qui se trouvent")),
    stands=((", il y a", " se trouve", ", on voit"), (", il y a", " se trouvent", ", on voit")),
    repeats_of=True,
    joined_by=joined,
)
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "flat": ("aplat", "aplats", "plat", "plate"),
    "outline": ("trait", "contour", "contours"),
    "pastel": ("pastel", "pastels"),
    "night": ("nocturne", "nuit"),
}


_DE = {r: [w[:-1] for w in words if w.endswith("de")] for r, words in RELATIONS.items()}
_WORDS = {
    **GRAMMAR.words(),
    **meaning("noun", {"heart": ("coeur",)}),
    **meaning("noun", {"heart": ("coeurs",)}, plural=True),
    **meaning("colour", {"purple": ("pourpre", "pourpres", "mauve", "mauves")}),
    **meaning("texture", {"dotted": ("pointillé", "pointillée", "pointillés", "pointillées")}),
    **meaning("style", STYLE_WORDS),
    **meaning("relation", {r: [f"{w}{end}" for w in words for end in ("'", "u")] for r, words in _DE.items()}),
    **meaning("relation", {r: [f"{w}es" for w in words] for r, words in _DE.items()}, plural=True),
    **meaning("relation", {"above": ("sur",)}),
    **meaning("picture", {None: ("image", "dessin", "scène")}),
    **meaning("that", {None: ("qui",)}),
    **meaning("the", {None: ("l'", "du")}),
    **meaning("the", {None: ("des",)}, plural=True),
    **meaning(
        "glue", {None: ("et", "de", "d'", "en", "avec", "il y a", "on voit", "voici", "est", "sont", "se", "trouve")}
    ),
    **meaning(
        "glue",
        {None: ("trouvent", "couleur", "couleurs", "au", "aux", "tons", "dans", "style", "tout", "simple", "simples")},
    ),
}
FRENCH = Language(
    "French",
    "un cercle rouge à gauche d'une étoile bleue",
    GRAMMAR,
    Lexicon(
        _WORDS,
        [noun.one for noun in GRAMMAR.nouns.values()],
        adjectives_follow=True,
        word=r"(?:qu|[cdjlmnst])'|[\w-]+",
    ),
    Fillers(sentences("fr"), medium=(8.0, 30.0), long=(95.0, 190.0)),
)
