"""Spanish: data of a `Romance` language. "De" and "el" meet in "del"; some colours do not agree ("dos estrellas naranja")."""

from collections.abc import Sequence

from syzygy.lab.world.language.fillers import Fillers
from syzygy.lab.world.language.parsing import Lexicon, meaning
from syzygy.lab.world.language.romance import F, Forms, M, Noun, Romance, invariable, opening
from syzygy.lab.world.language.sentence import Manner, Opening
from syzygy.lab.world.language.spoken import Spoken
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


def _manner(openings: Sequence[str], heading: str, tail: str) -> Manner:
    return Manner([opening(text) for text in openings], [Opening(f"{heading}: ")], f", {tail}")


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
            _manner(("un dibujo plano de", "una imagen plana de"), "dibujo plano", "en estilo plano"),
            _manner(("una ilustración plana de",), "ilustración plana", "de estilo plano"),
        ),
        "outline": (
            _manner(("un dibujo de contorno de",), "dibujo de contorno", "en estilo de contorno"),
            _manner(("un dibujo lineal de",), "dibujo lineal", "solo en contorno"),
        ),
        "pastel": (
            _manner(("una imagen en tonos pastel de",), "imagen en tonos pastel", "en tonos pastel"),
            _manner(("un dibujo en colores pastel de",), "dibujo en colores pastel", "en colores pastel"),
        ),
        "night": (
            _manner(("una imagen nocturna de", "un dibujo nocturno de"), "imagen nocturna", "en estilo nocturno"),
            _manner(("una escena nocturna con",), "escena nocturna", "de noche"),
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

FILLERS = (
    "Mi abuela guardaba esta lámina entre las páginas de un libro de cocina.",
    "Nadie sabe a ciencia cierta quién la hizo ni para qué.",
    "La compramos en un mercadillo, después de regatear un buen rato.",
    "El papel está algo gastado por los bordes, pero todavía se conserva bien.",
    "Cada vez que hay visita, alguien termina preguntando por ella.",
    "Durante años estuvo colgada en el pasillo, junto al teléfono.",
    "Mi hermano asegura que de pequeño era capaz de copiarla de memoria.",
    "Con la mudanza se perdió, y apareció meses más tarde en el trastero.",
    "Sobre gustos no hay nada escrito, como suele decirse.",
    "El maestro nos pidió que la describiéramos sin prisas y con nuestras palabras.",
    "Dicen que existe otra parecida, aunque nosotros nunca la hemos visto.",
    "Quien la mira por primera vez suele quedarse callado un momento.",
    "En el reverso hay una fecha a lápiz que apenas se distingue.",
    "Llegó por correo, sin remite y envuelta en papel de periódico.",
    "Los domingos por la tarde la sacábamos para inventar historias.",
    "La vecina insiste en que habría que ponerle un marco decente.",
    "Tal vez no valga mucho, pero le tenemos cariño.",
    "Conviene detenerse un instante y fijarse bien antes de seguir leyendo.",
)

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
SPANISH = Spoken(
    "Spanish",
    "un círculo rojo a la izquierda de una estrella azul",
    GRAMMAR,
    Lexicon(_WORDS, [noun.one for noun in GRAMMAR.nouns.values()], adjectives_follow=True),
    Fillers(FILLERS, medium=(8.0, 30.0), long=(95.0, 190.0)),
)
