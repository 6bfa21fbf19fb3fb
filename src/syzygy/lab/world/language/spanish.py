"""Spanish: data of a `Romance` language. "De" and "el" meet in "del"; some colours do not agree ("dos estrellas naranja")."""

from collections.abc import Sequence

from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import Lexicon, meaning
from syzygy.lab.world.language.romance import F, Forms, M, Noun, Romance, invariable, opening
from syzygy.lab.world.language.sentence import Opening, StyleWording
from syzygy.lab.world.scene import Relation, Style


def adjective(masculine: str) -> Forms:
    """The four forms of a regular adjective."""
    if masculine.endswith("o"):
        stem = masculine[:-1]
        return f"{stem}o", f"{stem}a", f"{stem}os", f"{stem}as"
    many = f"{masculine}s" if masculine.endswith("e") else f"{masculine}es"
    return masculine, masculine, many, many


RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left of": ("a la izquierda de",),
    "right of": ("a la derecha de",),
    "above": ("encima de", "por encima de"),
    "below": ("debajo de", "por debajo de"),
}


def _wording(openings: Sequence[str], heading: str, tail: str) -> StyleWording:
    return StyleWording([opening(text) for text in openings], [Opening(f"{heading}: ")], f", {tail}")


def joined(text: str, phrase: str) -> tuple[str, str]:
    """A text and the phrase that follows it: "de el" is "del"."""
    if text.endswith("de ") and phrase.startswith("el "):
        return f"{text[:-1]}l ", phrase[3:]
    return text, phrase


GRAMMAR = Romance(
    nouns={
        "circle": Noun(M, "círculo", "círculos"),
        "square": Noun(M, "cuadrado", "cuadrados"),
        "triangle": Noun(M, "triángulo", "triángulos"),
        "star": Noun(F, "estrella", "estrellas"),
        "heart": Noun(M, "corazón", "corazones"),
        "cross": Noun(F, "cruz", "cruces"),
        "ring": Noun(M, "anillo", "anillos"),
        "moon": Noun(F, "luna", "lunas"),
    },
    colours={
        "red": (adjective("rojo"),),
        "orange": (invariable("naranja"), adjective("anaranjado")),
        "yellow": (adjective("amarillo"),),
        "green": (adjective("verde"),),
        "cyan": (invariable("cian"), invariable("turquesa")),
        "blue": (adjective("azul"),),
        "purple": (adjective("morado"), invariable("violeta")),
        "pink": (invariable("rosa"), adjective("rosado")),
    },
    textures={
        "plain": (adjective("liso"),),
        "striped": (adjective("rayado"),),
        "dotted": (adjective("moteado"), adjective("punteado")),
    },
    patterns={
        "plain": ("de un solo color", "sin estampado"),
        "striped": ("a rayas", "de rayas"),
        "dotted": ("de lunares", "con lunares", "con puntos"),
    },
    relations=RELATIONS,
    styles={
        "flat": (
            _wording(("un dibujo plano de", "una imagen plana de"), "dibujo plano", "en estilo plano"),
            _wording(("una ilustración plana de",), "ilustración plana", "de estilo plano"),
        ),
        "outline": (
            _wording(("un dibujo de contorno de",), "dibujo de contorno", "en estilo de contorno"),
            _wording(("un dibujo lineal de",), "dibujo lineal", "solo en contorno"),
        ),
        "pastel": (
            _wording(("una imagen en tonos pastel de",), "imagen en tonos pastel", "en tonos pastel"),
            _wording(("un dibujo en colores pastel de",), "dibujo en colores pastel", "en colores pastel"),
        ),
        "night": (
            _wording(("una imagen nocturna de", "un dibujo nocturno de"), "imagen nocturna", "en estilo nocturno"),
            _wording(("una escena nocturna con",), "escena nocturna", "de noche"),
        ),
    },
    there=("hay ", "aquí hay ", "vemos ", "aquí vemos "),
    pictures=(opening("una imagen de"), opening("un dibujo de"), opening("una imagen con")),
    numbers=("dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    indefinite=("un", "una"),
    definite=("el", "la", "los", "las"),
    and_=" y ",
    of_colour="de color",
    colour_gender=M,
    which=((", que está", ", que se encuentra"), (", que están", ", que se encuentran")),
    stands=((" hay", " se ve", " aparece"), (" hay", " se ven", " aparecen")),
    repeats_of=False,
    joined_by=joined,
)
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "flat": ("plano", "plana"),
    "outline": ("contorno", "contornos", "lineal"),
    "pastel": ("pastel", "pasteles"),
    "night": ("nocturno", "nocturna", "de noche"),
}


_WORDS = {
    **GRAMMAR.words(),
    **meaning("colour", {"orange": ("naranjas",), "pink": ("rosas",), "purple": ("violetas", "púrpura", "lila")}),
    **meaning("texture", {"plain": ("sólido", "sólida", "sólidos", "sólidas"), "striped": ("con rayas",)}),
    **meaning("style", STYLE_WORDS),
    **meaning("relation", {r: [f"{w}l" for w in words] for r, words in RELATIONS.items()}),
    **meaning("relation", {"above": ("sobre",), "below": ("bajo",)}),
    **meaning("number", {1: ("uno",)}),
    **meaning("picture", {None: ("imagen", "dibujo", "ilustración", "escena")}),
    **meaning("that", {None: ("que",)}),
    **meaning("the", {None: ("unos", "unas")}, plural=True),
    **meaning("glue", {None: ("y", "de", "del", "en", "con", "hay", "aquí", "vemos", "se", "ve", "ven", "es", "son")}),
    **meaning(
        "glue",
        {
            None: (
                "está",
                "están",
                "aparece",
                "aparecen",
                "encuentra",
                "encuentran",
                "color",
                "colores",
                "tonos",
                "estilo",
                "solo",
            )
        },
    ),
}
SPANISH = Language(
    "Spanish",
    "un círculo rojo a la izquierda de una estrella azul",
    GRAMMAR,
    Lexicon(_WORDS, [noun.one for noun in GRAMMAR.nouns.values()], adjectives_follow=True),
    Fillers(sentences("es"), medium=(8.0, 30.0), long=(95.0, 190.0)),
)
