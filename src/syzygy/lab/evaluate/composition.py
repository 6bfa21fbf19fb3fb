"""Does the image show what the prompt names? Priors on prompts of the embedded world, with controls and intervals.

The decoder reads only the image embedding (as Kandinsky's does): with token states it would get the text without the prior. The embeddings of
all candidates are decoded from the same noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Guide, ImageEncoder, Prior, Sampling, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import distance, harness
from syzygy.lab.evaluate.harness import ALL, BATCH, SEEN, UNSEEN, Candidate, EvaluationContext, Outcome, Row
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.report import Gallery, GalleryRow, Note, Report, Section, Table, generated
from syzygy.lab.starter.prior_training import embed
from syzygy.lab.world.description import Fact, extra_things
from syzygy.lab.world.judge import Judge
from syzygy.lab.world.prompts import CATEGORIES, Prompt
from syzygy.lab.world.render import render
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_sampling import scene_for
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.linear_prior import LinearPrior
from syzygy.training.run_records import Bar, no_bar

REFERENCE = "reference"
IDENTITY, SHIFTED, LINEAR, SHUFFLED = "text identity", "text identity, shifted", "linear map", "shuffled prompts"
TEXT = ", with text"
"""Ends the name of a candidate whose decoder also reads the text states."""
CONTROLS = (IDENTITY, SHIFTED, LINEAR, SHUFFLED)
NORM_PAIRS = 1024
CHUNK = 256
SHOWN = 2
"""Prompts of each category and side whose images are on the page."""


class CompositionConfig(harness.CategoriesConfig):
    """How images are generated and how many are scored."""

    prompts: int = Field(default=200, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    draws: int = Field(default=1, gt=0)
    """Images for each prompt, each from its own noise."""
    pairs: int = Field(default=5000, ge=0)
    """Pairs of the world on which predicted embeddings are compared; 0 skips this."""
    with_text: bool = False
    """Generate a second time with a decoder that also reads the text states, which gives it the text without the prior."""


def control_priors(model: TextToImage, seed: int) -> dict[str, Prior]:
    """Text-identity: the text embedding itself, scaled to the images' mean norm; as it is, and moved to the images' mean."""
    pairs = embed(model.clip, seed_of(seed, "mean norm"), NORM_PAIRS)
    fitted = pairs.captions.pooled, pairs.image_embeddings
    return {IDENTITY: TextIdentity.fit(*fitted), SHIFTED: TextIdentity.fit(*fitted, shifted=True)}


def linear_control(model: TextToImage, seed: int, number: int, bar: Bar = no_bar) -> dict[str, Prior]:
    """The linear map, fitted on so many pairs without unseen compositions; nothing if `number` is 0."""
    if not number:
        return {}
    with bar("embedding for the linear map", number) as progress:
        pairs = embed(model.clip, seed_of(seed, "linear map"), number, progress)
    return {LINEAR: LinearPrior.fit(pairs).to(model.clip.device)}


def reference_images(prompts: Sequence[Prompt], seed: int, size: int) -> Float[Tensor, "P 3 H W"]:
    """Renders, in [0, 1], of scenes that show exactly what the prompts name; what they leave open is random."""
    scenes = [scene_for(p.description, Draw(seed, "reference", p.text)) for p in prompts]
    return torch.cat([render(scenes[i : i + BATCH], size) for i in range(0, len(scenes), BATCH)])


def reference_embeddings(prompts: Sequence[Prompt], clip: ImageEncoder, seed: int, size: int) -> Float[Tensor, "P D"]:
    """CLIP embeddings of the reference images."""
    return torch.cat([clip.encode_image(x) for x in reference_images(prompts, seed, size).split(CHUNK)])


def candidate_embeddings(
    model: TextToImage, priors: Mapping[str, Prior], wanted: Sequence[Prompt], seed: int, *, shuffled: str | None = None
) -> dict[str, Float[Tensor, "P D"]]:
    """Embeddings of the prompts: the reference's, each prior's from the same noise, and those of the prior `shuffled` for other prompts.

    Raises:
        UserError: a prior has the reference's name.
    """
    if REFERENCE in priors:
        raise UserError(f"{REFERENCE!r} is the name of the true embeddings: give the prior another name.")
    features = model.encode_text([p.text for p in wanted])
    found = {REFERENCE: reference_embeddings(wanted, model.clip, seed, model.clip.image_size)}
    draws = [torch.randn(features.pooled.shape[1], generator=generator(seed, "epsilon", p.text)) for p in wanted]
    noise = torch.stack(draws).to(features.pooled)
    found |= {name: prior.predict(features, noise=noise) for name, prior in priors.items()}
    if shuffled is not None:
        found[SHUFFLED] = found[shuffled][shuffled_prompts(wanted, seed)]
    return found


def shuffled_prompts(wanted: Sequence[Prompt], seed: int) -> list[int]:
    """For each prompt the number of another one of its category and side (its own if it is alone)."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for i, prompt in enumerate(wanted):
        groups.setdefault((prompt.category, prompt.unseen), []).append(i)
    other = [0] * len(wanted)
    for key, rows in groups.items():
        order = torch.randperm(len(rows), generator=generator(seed, "shuffled", *map(str, key))).tolist()
        for place, nth in enumerate(order):
            other[rows[nth]] = rows[order[(place + 1) % len(rows)]]
    return other


def decoded(
    model: TextToImage,
    embeddings: Mapping[str, Float[Tensor, "P D"]],
    wanted: Sequence[Prompt],
    config: CompositionConfig,
    features: TextFeatures | None = None,
) -> list[Candidate]:
    """Candidates that decode embeddings; case i is image `i % draws` of prompt `i // draws`.

    Args:
        features: if given, the decoder also reads the prompts' text states.
    """

    def candidate(name: str, vectors: Float[Tensor, "P D"]) -> Candidate:
        @torch.inference_mode()
        def generate(cases: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
            rows = [case // config.draws for case in cases]
            noise = [generator(config.seed, "picture", wanted[i // config.draws].text, i % config.draws) for i in cases]
            guide = Guide(vectors[rows], None if features is None else features[rows])
            sampling = Sampling(steps=config.steps, guidance_scale=config.guidance_scale)
            return model.pipeline.decoder.generate(guide, noise, sampling=sampling)

        return Candidate(name, len(wanted) * config.draws, generate)

    return [candidate(name, vectors) for name, vectors in embeddings.items()]


@dataclass(frozen=True)
class ScoredImage:
    """An image, and what the judge predicts for it."""

    candidate: str
    prompt: Prompt
    draw: int
    """Which of the prompt's images it is."""
    image: UInt8[Tensor, "3 H W"]
    scene: Prediction

    @cached_property
    def atoms(self) -> tuple[Fact, ...]:
        """The facts that the prompt names."""
        return harness.facts(self.prompt, self.scene)

    @property
    def correct(self) -> bool:
        """Whether it shows every fact that the prompt names."""
        return all(fact.holds for fact in self.atoms)

    @property
    def extra(self) -> int:
        """Objects that the prompt does not name."""
        return extra_things(self.prompt.description, self.scene)


def generate_and_score(
    model: TextToImage,
    embeddings: Mapping[str, Float[Tensor, "P D"]],
    wanted: Sequence[Prompt],
    config: CompositionConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ScoredImage]:
    """Images of every prompt from each candidate's embeddings, in memory."""
    images = {"image": lambda pictures, cases: list(to_uint8(pictures).cpu())}
    store = harness.PredictionStore(None, {})
    candidates = decoded(model, embeddings, wanted, config)
    found = harness.predict(candidates, judge_of(model), store, also=images, progress=progress)
    return [
        ScoredImage(name, wanted[i // config.draws], i % config.draws, image, scene)
        for name, one in found.items()
        for i, (image, scene) in enumerate(zip(one.values["image"], one.scenes, strict=True))
    ]


def scenes_of(scored: Sequence[ScoredImage]) -> dict[str, list[Prediction]]:
    """The predictions of each candidate, for `table`."""
    names = dict.fromkeys(one.candidate for one in scored)
    return {name: [one.scene for one in scored if one.candidate == name] for name in names}


def table(wanted: Sequence[Prompt], scenes: Mapping[str, Sequence[Prediction]]) -> list[Row]:
    """The harness's rows; `against_reference`: prompt accuracy minus the reference's; `atoms`: the part of the facts of each kind that is
    right; `extra`: objects in an image that the prompt does not name.
    """
    scores = {name: harness.accuracies(wanted, found) for name, found in scenes.items()}
    against = {name: {"against_reference": REFERENCE} for name in scenes if name != REFERENCE and REFERENCE in scenes}
    groups = harness.groups(wanted)
    rows = harness.table(scores, wanted, against)
    for row in rows:
        found = scenes[row["candidate"]]
        each = len(found) // len(wanted)
        some = [
            (wanted[i], scene)
            for i in groups[row["category"], row["side"]]
            for scene in found[each * i : each * (i + 1)]
        ]
        kinds: dict[str, list[bool]] = {}
        for prompt, scene in some:
            for fact in harness.facts(prompt, scene):
                kinds.setdefault(fact.kind, []).append(fact.holds)
        row["atoms"] = {kind: round(sum(held) / len(held), 4) for kind, held in kinds.items()}
        row["extra"] = round(sum(extra_things(prompt.description, scene) for prompt, scene in some) / len(some), 4)
    return rows


def on_pairs(
    model: TextToImage, priors: Mapping[str, Prior], config: CompositionConfig, bar: Bar = no_bar
) -> dict[str, dict[str, float]]:
    """Cosine, R@1 and Fréchet distance of predicted embeddings, on unseen pairs whose captions omit some of what the images show."""
    with bar("embedding", config.pairs) as progress:
        encoder = model.pipeline.text_encoder
        pairs = embed(model.clip, seed_of(config.seed, "pairs"), config.pairs, progress, encoder=encoder)
    true = pairs.image_embeddings
    noise = torch.randn(true.shape, generator=generator(config.seed, "pairs", "noise"))
    return {
        name: distance.embedding_scores(predict_all(prior, pairs.captions, noise), true)
        for name, prior in priors.items()
    }


def predict_all(prior: Prior, features: TextFeatures | PackedText, noise: Tensor) -> Tensor:
    """Predictions for any number of texts, in batches, on the CPU."""
    found = []
    for start in range(0, len(features), CHUNK):
        part = features[start : start + CHUNK]
        text = part.padded() if isinstance(part, PackedText) else part
        found.append(prior.predict(text, noise=noise[start : start + CHUNK].to(text.pooled)).cpu())
    return torch.cat(found)


def judge_features(judge: Judge, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
    """The judge's features of images with 8 bits a channel, on the CPU. The reader's would reward what was trained or chosen with it."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(part.to(device)).cpu() for part in images.split(CHUNK)])


def frechet_to_renders(
    model: TextToImage, found: Mapping[str, harness.Predictions], wanted: Sequence[Prompt], config: CompositionConfig
) -> dict[str, float]:
    """Fréchet distance of each candidate's first images to renders of the same prompts, in the judge's features.

    Empty if there are fewer images than features.
    """
    true = judge_features(judge_of(model), reference_images(wanted, config.seed, model.clip.image_size))
    if len(wanted) <= true.shape[1]:
        return {}
    ours = {name: torch.tensor(one.values["features"][:: config.draws]) for name, one in found.items()}
    return {name: distance.frechet_distance(features, true) for name, features in ours.items()}


def weights_of(priors: Mapping[str, Prior]) -> dict[str, str]:
    """Fingerprints of priors, for the store of predictions."""
    networks = {name: prior.network if isinstance(prior, SampledPrior) else prior for name, prior in priors.items()}
    return {
        name: artifacts.fingerprint(network.state_dict()) if isinstance(network, torch.nn.Module) else repr(network)
        for name, network in networks.items()
    }


def evaluate(
    context: EvaluationContext[CompositionConfig], priors: Mapping[str, Prior], bar: Bar = no_bar, linear_pairs: int = 0
) -> Outcome:
    """Score priors and controls. The first prior also predicts for shuffled prompts, which gives the level of chance.

    Args:
        linear_pairs: pairs of the world that the linear map is fitted on; 0 leaves it out.
    """
    model, config, judge = context.model, context.config, judge_of(context.model)
    wanted = config.wanted()
    linear = linear_control(model, config.seed, linear_pairs, bar)
    everyone = dict(priors) | control_priors(model, config.seed) | linear
    distances = on_pairs(model, everyone, config, bar) if config.pairs else {}
    embeddings = candidate_embeddings(model, everyone, wanted, config.seed, shuffled=next(iter(priors), None))

    def features(images: Tensor, cases: Sequence[int]) -> list[Any]:
        return judge_features(judge, to_uint8(images) / 255).tolist()

    candidates = decoded(model, embeddings, wanted, config)
    if config.with_text:
        read, named = (
            model.encode_text([p.text for p in wanted]),
            {f"{name}{TEXT}": x for name, x in embeddings.items()},
        )
        candidates += decoded(model, named, wanted, config, read)
    found = context.predict(candidates, also={"features": features}, priors=weights_of(dict(priors) | linear))
    scenes = {name: one.scenes for name, one in found.items()}
    rows = table(wanted, scenes)
    alone = {name: found[name] for name in embeddings}
    pictures = frechet_to_renders(model, alone, wanted, config)
    result = context.header(rows=harness.plain(rows), embeddings=distances, fid_judge=pictures)
    sanity = [
        f"Reference, one object: colour {100 * row['atoms']['colour']:.0f} %, shape {100 * row['atoms']['shape']:.0f} %."
        for row in rows
        if (row["candidate"], row["category"], row["side"]) == (REFERENCE, "single", SEEN)
    ]
    compared = [_distances(distances, pictures)] * bool(distances or pictures)

    def report(_sheet: Any) -> Report:
        plots = [
            harness.accuracy_plot(rows, f"prompt accuracy, {side} compositions", side=side)
            for side in (SEEN, UNSEEN)
            if harness.overall(rows, side)
        ]
        number = f"{counted(len(wanted), 'prompt')}, {counted(config.draws, 'image')} for each."
        return Report(
            f"Composition: {model.name}",
            context.lead(
                f"{number} The decoder reads only the image embedding, unless a candidate is named with text."
            ),
            [
                Section("Prompt accuracy", [*plots, Note(f"{LEGEND} {EXPLAINED}")]),
                Section("By category", [harness.category_table(rows)]),
                *[Section("Embeddings and images as distributions", compared)] * bool(compared),
                Section("Images", [_gallery(candidates[: len(embeddings)], wanted, scenes, config)]),
            ],
            limits=LIMITS,
        )

    return Outcome(result, [_by_side(rows), *sanity, *compared, LEGEND], report)


LEGEND = "**Prompt accuracy**: every fact that the prompt names is right. Brackets: 95 % bootstrap over prompts and their images."
EXPLAINED = (
    "**Reference** decodes the true embedding of a scene that shows exactly what the prompt names; it is not an upper bound. "
    "**Text identity** decodes the text embedding itself, also moved to the mean of image embeddings. **Linear map** is ridge regression from "
    "text to image embeddings. **Shuffled prompts** scores the first "
    "prior's images of other prompts of the same category: the level of chance."
)
LIMITS = (
    "This is a world of eight shapes with a tiny CLIP and a tiny decoder. What holds here need not hold for photographs. The intervals cover "
    "the choice of prompts and noise, not the training of the priors: compare several trainings for that."
)


def _by_side(rows: Sequence[Row]) -> Table:
    cells = {(row["candidate"], row["category"], row["side"]): str(row["prompt_accuracy"]) for row in rows}
    lines = [
        [name, category, *(cells.get((name, category, side), "") for side in (SEEN, UNSEEN))]
        for name in dict.fromkeys(row["candidate"] for row in rows)
        for category in (*CATEGORIES, ALL)
        if any((name, category, side) in cells for side in (SEEN, UNSEEN))
    ]
    return Table(["candidate", "category", SEEN, UNSEEN], lines, first_number=2)


def _distances(embeddings: Mapping[str, Mapping[str, float]], pictures: Mapping[str, float]) -> Table:
    lines = []
    for name in dict.fromkeys([*embeddings, *pictures]):
        values = embeddings.get(name, {})
        cells = [f"{values[key]:.3f}" if key in values else "" for key in ("cosine", "recall_at_1", "frechet")]
        lines.append([name, *cells, f"{pictures[name]:.2f}" if name in pictures else ""])
    return Table(["candidate", "cosine to true", "R@1", "Fréchet, CLIP embeddings", "FID-judge"], lines)


def _gallery(
    candidates: Sequence[Candidate],
    wanted: Sequence[Prompt],
    scenes: Mapping[str, Sequence[Prediction]],
    config: CompositionConfig,
) -> Gallery:
    """The first prompts of each category and side."""
    kinds = harness.groups(wanted)
    shown = [i for (category, side), rows in kinds.items() if ALL not in (category, side) for i in rows[:SHOWN]]
    columns = []
    for one in candidates:
        cases = [config.draws * i for i in shown]
        images = torch.cat([one.generate(cases[i : i + BATCH]).cpu() for i in range(0, len(cases), BATCH)])
        right = [harness.prompt_accuracy(wanted[i], scenes[one.name][config.draws * i]) == 1 for i in shown]
        texts = [wanted[i].text for i in shown]
        columns.append([generated(*cell) for cell in zip(to_uint8(images), texts, right, strict=True)])
    lines = [
        GalleryRow(wanted[i].text, f"{wanted[i].category}, {harness.side_of(wanted[i])}", cells)
        for i, cells in zip(shown, zip(*columns, strict=True), strict=True)
    ]
    return Gallery([one.name for one in candidates], lines, "A green frame: every fact that the prompt names is right.")
