"""Does an image show the subject of a picture where its prompt has a word for it? Exact scores on the embedded world (λ-ECLIPSE)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from syzygy.core.contracts import Guide, Sampling, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted
from syzygy.data.references import References
from syzygy.generation.best_of import pixel_scores
from syzygy.generation.image_files import card, contact_sheet
from syzygy.generation.pipeline import to_pil
from syzygy.generation.subjects import EmbeddedSubject, SubjectPrior, positions, subject_prior
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.composition import reference_embeddings, shuffled_prompts
from syzygy.lab.evaluate.harness import Candidate, EvaluationContext, Outcome, Row, Values
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.report import Note, Picture, Report, Section
from syzygy.lab.world.description import Description, Mention, check_facts
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import Category, Prompt, prompts
from syzygy.lab.world.scene import COLOURS, TEXTURES, Style, Thing
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_subjects import WORD, cut_outs, with_word

SUBJECT, WORDS, NONE, OTHER, REFERENCE = "subject", "in words", "no subject", "another's subject", "reference"
KINDS: tuple[Category, ...] = ("single", "colour", "spatial")
STYLE: Style = "flat"
"""Style of the subjects' pictures."""
SHOWN = 2
"""Prompts of each kind and side in the grid of images."""


class SubjectsConfig(harness.SamplingConfig):
    """What is generated and scored."""

    prompts: int = Field(default=34, gt=0)
    """Prompts of each kind, seen and unseen each: a subject alone, with a coloured object, and in a relation to one."""
    conditions: tuple[str, ...] | None = None
    """What the decoder reads; null is what it reads where a request names none."""
    best_of: int = Field(default=1, gt=0)
    """Images that are generated of each prompt; the one nearest to the prediction in CLIP's space is scored, as by --best-of."""


@dataclass(frozen=True)
class SubjectCase:
    """A prompt in which `WORD` stands for a thing, and the same prompt in words."""

    text: str
    words: Prompt
    """Its description names all attributes of the thing."""
    number: int
    """Which of the mentions is the subject."""

    @property
    def mention(self) -> Mention:
        return self.words.description.mentions[self.number]

    @property
    def thing(self) -> Thing:
        """The subject as its picture shows it; where and how large is up to `cut_outs`."""
        mention = self.mention
        assert mention.colour and mention.texture, "a subject has all attributes"
        return Thing(mention.shape, mention.colour, mention.texture, 0.5, 0.5, 0.25)


def subject_cases(config: SubjectsConfig) -> list[SubjectCase]:
    """Cases of each kind, seen and unseen."""
    return [
        _case(prompt, Draw(config.seed, "subject", prompt.text))
        for kind in KINDS
        for unseen in (False, True)
        for prompt in prompts(kind, config.prompts, seed_of(config.seed, "prompts", kind), unseen, fewer=True)
    ]


def _case(prompt: Prompt, draw: Draw) -> SubjectCase:
    """One of the mentions, with attributes that the prompt leaves open, as the subject: of an unseen composition, the one that makes it so."""
    mentions = prompt.description.mentions
    rare = [i for i, mention in enumerate(mentions) if Description((mention,)).unseen]
    number = draw.pick(rare or list(range(len(mentions))))
    taken = {mention.colour for i, mention in enumerate(mentions) if i != number}
    while True:
        colour = mentions[number].colour or draw.pick([colour for colour in COLOURS if colour not in taken])
        full = replace(mentions[number], colour=colour, texture=mentions[number].texture or draw.pick(TEXTURES))
        described = replace(prompt.description, mentions=(*mentions[:number], full, *mentions[number + 1 :]))
        if described.unseen == prompt.unseen:
            break
    said = language("en").caption(described, draw)
    order = next(i for i, mention in enumerate(said.description.mentions) if mention == full)
    span = next(span for span in said.spans if span.mention == order)
    words = Prompt(prompt.category, said.text, said.description, prompt.unseen, said.spans)
    return SubjectCase(with_word(said.text, span), words, order)


def embedded_subjects(model: TextToImage, cases: Sequence[SubjectCase]) -> Float[Tensor, "P D"]:
    """The image embeddings of the subjects' cut-outs."""
    return model.clip.encode_image(cut_outs([(case.thing, STYLE) for case in cases], model.clip.image_size))


def guides(
    model: TextToImage, prior: SubjectPrior, cases: Sequence[SubjectCase], config: SubjectsConfig
) -> dict[str, tuple[list[str], TextFeatures, Float[Tensor, "P D"]]]:
    """Candidate → (texts, their features, image embeddings): what the decoder reads of each case."""
    spoken, written = [case.text for case in cases], [case.words.text for case in cases]
    features, in_words = model.encode_text(spoken), model.encode_text(written)
    pictures = embedded_subjects(model, cases)
    draws = [torch.randn(model.clip.width, generator=generator(config.seed, "epsilon", text)) for text in written]
    noise = torch.stack(draws).to(pictures)
    places = [positions(model.clip, text, WORD) for text in spoken]

    def with_pictures(rows: Sequence[int]) -> Float[Tensor, "P D"]:
        found = [[(place, pictures[row])] for place, row in zip(places, rows, strict=True)]
        return prior.predict(features, noise=noise, references=References.of(found, pictures.shape[1]))

    everyone = range(len(cases))
    others = shuffled_prompts([case.words for case in cases], config.seed)
    true = reference_embeddings([case.words for case in cases], model.clip, config.seed, model.clip.image_size)
    return {
        SUBJECT: (spoken, features, with_pictures(everyone)),
        WORDS: (written, in_words, prior.predict(in_words, noise=noise)),
        NONE: (spoken, features, prior.predict(features, noise=noise)),
        OTHER: (spoken, features, with_pictures(others)),
        REFERENCE: (spoken, features, true),
    }


def candidates(
    model: TextToImage, prior: SubjectPrior, cases: Sequence[SubjectCase], config: SubjectsConfig
) -> list[Candidate]:
    """An image of each case by each candidate, from the same noise."""
    sampling = Sampling(steps=config.steps, guidance_scale=config.guidance_scale)
    conditions = model.pipeline.chosen(config.conditions)

    @torch.inference_mode()
    def generate(
        texts: list[str], features: TextFeatures, embeddings: Float[Tensor, "P D"], rows: Sequence[int]
    ) -> Float[Tensor, "B 3 H W"]:
        guide = Guide(embeddings[[*rows]], features[[*rows]], [texts[row] for row in rows], conditions=conditions)
        found = []
        for number in range(config.best_of):
            names = [(cases[row].words.text, *([number] if number else [])) for row in rows]
            noise = [generator(config.seed, "subject", *name) for name in names]
            found.append(model.pipeline.decoder.generate(guide, noise, sampling=sampling))
        scores = [pixel_scores(pixels, embeddings[[*rows]], model.clip) for pixels in found]
        best = torch.stack(scores).argmax(0).to(found[0].device)
        return torch.stack(found)[best, torch.arange(len(rows), device=best.device)]

    return [
        Candidate(name, len(cases), partial(generate, *read))
        for name, read in guides(model, prior, cases, config).items()
    ]


def scores(cases: Sequence[SubjectCase], scenes: Sequence[Prediction]) -> dict[str, Values]:
    """For each case: whether the subject appears with all attributes, and with each; whether all else is right; whether everything is."""
    found: dict[str, Values] = {name: [] for name in (*MEASURES, "prompt_accuracy")}
    for case, scene in zip(cases, scenes, strict=True):
        for name, value in _values(case, scene).items():
            found[name].append([float(value)])
    return found


MEASURES = ("appearance", "shape", "colour", "texture", "rest")


def _values(case: SubjectCase, scene: Prediction) -> dict[str, bool]:
    mention, described = case.mention, case.words.description
    others = tuple(one for i, one in enumerate(described.mentions) if i != case.number)
    values = {
        "appearance": any(map(mention.fits, scene.things)),
        "shape": any(thing.shape == mention.shape for thing in scene.things),
        "colour": any(thing.colour == mention.colour for thing in scene.things),
        "texture": any(thing.texture == mention.texture for thing in scene.things),
        "rest": not others or all(fact.holds for fact in check_facts(Description(others), scene)),
    }
    return values | {"prompt_accuracy": harness.prompt_accuracy(case.words, scene) == 1}


def table(cases: Sequence[SubjectCase], found: Mapping[str, Sequence[Prediction]]) -> list[Row]:
    """The harness's rows; `rest`'s difference to the same prompts in words, and the appearance's to a prompt without a subject."""
    measured = {name: scores(cases, scenes) for name, scenes in found.items()}
    wanted = [case.words for case in cases]
    against = {SUBJECT: {"rest_against_words": WORDS}}
    rows = harness.table(measured, wanted, against, paired="rest")
    shown = harness.table(measured, wanted, {SUBJECT: {"against_none": NONE}}, paired="appearance")
    return [
        row | {key: x for key, x in other.items() if key == "against_none"}
        for row, other in zip(rows, shown, strict=True)
    ]


def check(model: TextToImage, conditions: Sequence[str] | None) -> SubjectPrior:
    """The model's prior, if it reads subjects.

    Raises:
        UserError: it does not, or the decoder reads no image embedding.
    """
    if "image" not in model.pipeline.chosen(conditions):
        raise UserError(
            "subjects change the image embedding, and the decoder reads texts alone here: add image to the conditions."
        )
    return subject_prior(model.pipeline.prior, [EmbeddedSubject(WORD, torch.zeros(1, 1))])


@torch.inference_mode()
def grid(model: TextToImage, cases: Sequence[SubjectCase], config: SubjectsConfig) -> Image.Image:
    """For some prompts: the subject's picture, and the images of each candidate, labelled with what is right."""
    judge = judge_of(model)
    some = [cases[i] for kind in KINDS for side in (False, True) for i in _of(cases, kind, side)[:SHOWN]]
    made = candidates(model, check(model, config.conditions), some, config)
    images = {one.name: one.generate(range(len(some))) for one in made}
    scenes = {name: judge.read(pixels.to(model.pipeline.device)) for name, pixels in images.items()}
    pictures = to_pil(cut_outs([(case.thing, STYLE) for case in some], model.clip.image_size))
    lines = [[card("prompt"), card("subject"), *(card(name) for name in images)]]
    labels = [["", "", *[""] * len(images)]]
    for i, case in enumerate(some):
        lines.append([card(case.text), pictures[i], *(to_pil(pixels[i : i + 1])[0] for pixels in images.values())])
        labels.append([case.words.text, "", *(_label(case, found[i]) for found in scenes.values())])
    return contact_sheet(lines, labels, cell=112)


def _of(cases: Sequence[SubjectCase], kind: str, unseen: bool) -> list[int]:
    return [i for i, case in enumerate(cases) if (case.words.category, case.words.unseen) == (kind, unseen)]


def _label(case: SubjectCase, scene: Prediction) -> str:
    values = _values(case, scene)
    return "all right" if values["prompt_accuracy"] else "subject right" if values["appearance"] else "subject wrong"


COLUMNS: harness.Columns = {
    "candidate": "candidate",
    "prompts": "side",
    "subject": "appearance",
    "minus no subject": "against_none",
    "shape": "shape",
    "colour": "colour",
    "texture": "texture",
    "rest of the prompt": "rest",
    "minus in words": "rest_against_words",
    "everything": "prompt_accuracy",
}
LEGEND = (
    f'**Subject**: an object has the shape, the colour and the texture of the subject, which the prompt does not name ("a {WORD}"). **Rest of '
    "the prompt**: the other object is right, with all that the prompt names of it. **Everything**: both, and the relation. **In words**: the "
    f"same prompts with the subject's attributes in words. **No subject**: the prompt with the word {WORD!r} alone, the level of chance. "
    "**Another's subject**: the picture of another prompt. **Reference**: the embedding of a scene that shows what the prompt says. Brackets: "
    "95 % bootstrap over prompts; differences in points, paired."
)


def evaluate(context: EvaluationContext[SubjectsConfig]) -> Outcome:
    """Generate with subjects and with the controls."""
    model, config = context.model, context.config
    prior, cases = check(model, config.conditions), subject_cases(config)
    found = context.predict(candidates(model, prior, cases, config))
    rows = table(cases, {name: one.scenes for name, one in found.items()})
    reads = list(config.conditions or model.pipeline.conditions)
    result = context.header(conditions=reads, prompts=len(cases), rows=harness.plain(rows))
    overall = harness.as_table(harness.overall(rows, None), COLUMNS)
    kinds = [
        harness.as_table([row for row in rows if row["category"] == kind], COLUMNS, TITLES[kind]) for kind in KINDS
    ]

    def report(sheet: Image.Image | None) -> Report:
        return Report(
            f"Subjects: {model.name}",
            context.lead(
                f"{counted(len(cases), 'prompt')} in which {WORD!r} stands for an object that is shown by a picture, its cut-out on white. The "
                f"decoder reads {', '.join(reads)}.{_candidates(config)}"
            ),
            [
                Section(
                    "Examples",
                    [Picture(sheet, "Subjects and images", "The first prompts of each kind.")] if sheet else [],
                ),
                Section("Numbers", [overall, *kinds, Note(LEGEND)]),
            ],
            limits=(
                "Subjects are shapes with a colour and a texture, not animals or people; CLIP and the prior were trained on this world "
                "alone. One training of the prior is measured."
            ),
        )

    return Outcome(result, [overall, *kinds, LEGEND], report, partial(grid, model, cases, config))


def _candidates(config: SubjectsConfig) -> str:
    if config.best_of == 1:
        return ""
    return f" Of {config.best_of} images of each prompt, the one nearest to the prediction in CLIP's space is scored."


TITLES: dict[str, str] = {
    "single": "A subject alone",
    "colour": "A subject and a coloured object",
    "spatial": "A subject in a relation to an object",
}
