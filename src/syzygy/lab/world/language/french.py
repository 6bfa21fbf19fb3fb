"""French: data of a `Romance` language. "De", "le" and "la" lose their vowel before another; "de le" is "du", "de les" "des"."""

from collections.abc import Sequence

from syzygy.lab.world.language.fillers import Fillers
from syzygy.lab.world.language.parsing import Lexicon, meaning
from syzygy.lab.world.language.romance import F, Forms, M, Noun, Romance, invariable, opening
from syzygy.lab.world.language.sentence import Manner, Opening
from syzygy.lab.world.language.spoken import Spoken
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


def _manner(openings: Sequence[str], heading: str, tail: str) -> Manner:
    return Manner([opening(text) for text in openings], [Opening(f"{heading} : ")], f", {tail}")


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
            _manner(("un dessin en aplats de",), "dessin en aplats", "en aplats"),
            _manner(("une image de style plat avec",), "image de style plat", "dans un style plat"),
        ),
        "outline": (
            _manner(("un dessin au trait de",), "dessin au trait", "au trait"),
            _manner(("une image au trait de",), "image au trait", "en simples contours"),
        ),
        "pastel": (
            _manner(("un dessin aux tons pastel de",), "dessin aux tons pastel", "aux tons pastel"),
            _manner(("une image en couleurs pastel de",), "image en couleurs pastel", "en couleurs pastel"),
        ),
        "night": (
            _manner(("une image nocturne de", "un dessin nocturne de"), "image nocturne", "dans un style nocturne"),
            _manner(("une scène nocturne avec",), "scène nocturne", "de nuit"),
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

FILLERS = (
    "Cette feuille a longtemps dormi au fond d'un tiroir, avec de vieilles factures.",
    "Personne ne se souvient de celui ou de celle qui l'a apportée à la maison.",
    "Ma tante prétend l'avoir trouvée dans un vide-grenier, un matin de novembre.",
    "Les bords sont un peu abîmés, mais l'ensemble a bien tenu.",
    "Le facteur lui-même s'arrête parfois pour y jeter un coup d'œil.",
    "On en parle encore à table, surtout quand la conversation languit.",
    "Des goûts et des couleurs, paraît-il, on ne discute pas.",
    "L'instituteur nous avait demandé de la décrire avec nos propres mots.",
    "Elle a survécu à plusieurs déménagements et à une inondation dans la cave.",
    "Au dos, quelqu'un a noté une date au crayon, presque illisible aujourd'hui.",
    "Certains y voient un souvenir d'enfance, d'autres n'y voient rien du tout.",
    "Il faudrait la faire encadrer, mais nous remettons toujours cela à plus tard.",
    "Un ami de Lyon nous a écrit plusieurs pages à ce sujet.",
    "Les jours de pluie, les enfants la sortent pour inventer des histoires.",
    "Elle ne vaut sans doute pas grand-chose, et pourtant nous y tenons.",
    "Le voisin du dessus jure qu'il en possède une copie.",
    "Avant d'aller plus loin, prenez le temps de bien regarder.",
    "Voilà tout ce que l'on peut en dire pour le moment.",
)

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
FRENCH = Spoken(
    "French",
    "un cercle rouge à gauche d'une étoile bleue",
    GRAMMAR,
    Lexicon(
        _WORDS,
        [noun.one for noun in GRAMMAR.nouns.values()],
        adjectives_follow=True,
        word=r"(?:qu|[cdjlmnst])'|[\w-]+",
    ),
    Fillers(FILLERS, medium=(8.0, 30.0), long=(95.0, 190.0)),
)
