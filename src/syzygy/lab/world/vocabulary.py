"""What a model of the embedded world understands. The library calls `notes` by name, and only for a model whose index says `"world": true`."""

from collections.abc import Collection, Sequence

from syzygy.core.errors import UserError
from syzygy.lab.world.language import LANGUAGES, detect_language, language


def notes(prompt: str, languages: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """What such a model does not understand in a prompt, one sentence each.

    Args:
        languages: codes of those that its text encoder learned.
        known: further words, in lower case.
    """
    code = detect_language(prompt)
    if code not in languages:
        names = [language(other).name for other in LANGUAGES if other in languages] or ["none of the world's languages"]
        learned = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        return [f"{prompt.strip()[:80]!r} is {language(code).name}; this model was trained on {learned} only."]
    try:
        unknown = language(code).parse(prompt).unknown
    except UserError as error:
        return [] if known else [str(error)]  # a subject may be all that a prompt names
    return [
        f"this model's world does not know the word {word!r}; nearest known: {', '.join(near)}."
        for word, near in unknown.items()
        if word.casefold() not in known
    ]
