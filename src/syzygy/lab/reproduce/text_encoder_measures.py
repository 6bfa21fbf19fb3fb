"""Measures of adapters and of the CLIP that they replace, on texts and images. Shapes: N captions, D width of CLIP's joint space."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Sampling, StatesEncoder, TextStates
from syzygy.core.randomness import generator
from syzygy.generation.pipeline import Pipeline
from syzygy.generation.request import GenerationRequest
from syzygy.lab.evaluate import probe
from syzygy.lab.evaluate.composition import shuffled_prompts
from syzygy.lab.evaluate.harness import Candidate, prompt_accuracy, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.evaluate.retrieval import ranks
from syzygy.lab.evaluate.text_encoder import CUT, ENGLISH, EncodedTexts, encode_texts
from syzygy.lab.evaluate.text_encoder_images import SHORT
from syzygy.lab.reproduce.experiment import generate_and_score
from syzygy.lab.reproduce.text_encoder_candidates import CHANGED, KINDS, LAST, MEAN, TAIL, TextEncoderContext, Training
from syzygy.lab.world.prompts import Prompt
from syzygy.training.run_records import Bar

CLIP, MEAN_VECTOR, SHUFFLED = "CLIP", "mean vector", "shuffled captions"

OnProgress = Callable[[int], None]


class CachedStates:
    """A language model that encodes the same texts once, for all candidates."""

    def __init__(self, llm: StatesEncoder) -> None:
        self._llm, self._found = llm, dict[tuple[str, ...], TextStates]()

    @property
    def width(self) -> int:
        """Width of the states."""
        return self._llm.width

    def encode_states(self, texts: list[str]) -> TextStates:
        """As the language model does."""
        key = tuple(texts)
        if key not in self._found:
            self._found[key] = self._llm.encode_states(texts)
        return self._found[key]


def measure_all(trainings: list[Training], context: TextEncoderContext, say: Callable[[str], None], bar: Bar) -> None:
    """The controls first, then the trainings, those with the same features of the language model together."""
    folder, scoring = context.folder, context.run.scoring
    texts, images = len(context.texts) * len(context.pairs), len(context.cases) * len(scoring.languages)
    with bar(f"encoding with {CLIP}", texts) as progress:
        score_controls(context, progress)
    with bar(f"generating with {CLIP}", images) as progress:
        generate_images(context, CLIP, context.clip_path(), progress)
    for features in (MEAN, LAST):
        llm = CachedStates(context.llms[features].to(context.model.pipeline.device))
        for training in (one for one in trainings if one.candidate.features == features):
            name, scored = training.name, folder.tensors("scores", training.name).is_file()
            names = [images_name(name, code) for code in scoring.languages] if context.cases else []
            if scored and all(folder.has_images(one) for one in names):
                continue
            say(f"encoding and generating with {name}")
            path = context.path(training, llm)
            if not scored:
                with bar(f"encoding with {name}", texts) as progress:
                    score(context, name, path, progress)
            with bar(f"generating with {name}", images) as progress:
                generate_images(context, name, path, progress)


def score(context: TextEncoderContext, name: str, path: Pipeline, progress: OnProgress) -> None:
    """Encode all texts and write the measures of `_measures` of each as `language/kind/measure`."""
    seed, found = context.run.scoring.seed, dict[str, Tensor]()
    for code in context.run.scoring.languages:
        encoded = {}
        for kind in (*KINDS, CHANGED):
            with warnings.catch_warnings():  # that CLIP truncates long prompts is what is measured
                warnings.filterwarnings("ignore", message=CUT)
                encoded[kind] = encode_texts(path, context.texts[code, kind], seed, progress)
        for kind in KINDS:
            found |= {f"{code}/{kind}/{measure}": x for measure, x in _measures(encoded[kind], context).items()}
        both = (encoded[kind].features.pooled for kind in (TAIL, CHANGED))
        found[f"{code}/{TAIL}/unmoved"] = F.cosine_similarity(*both)
    artifacts.write_tensors(context.folder.tensors("scores", name), found)


def score_controls(context: TextEncoderContext, progress: OnProgress) -> None:
    """Score CLIP on all texts; and the mean of its features of the short English captions, and those of other captions, in their place."""
    path, files = (
        context.clip_path(),
        {name: context.folder.tensors("scores", name) for name in (MEAN_VECTOR, SHUFFLED)},
    )
    if not context.folder.tensors("scores", CLIP).is_file():
        score(context, CLIP, path, progress)
    if all(file.is_file() for file in files.values()):
        return
    own = encode_texts(path, [one.caption.text for one in context.pairs], context.run.scoring.seed, lambda done: None)
    features, predicted = own.features, own.predicted
    middle = replace(features, pooled=features.pooled.mean(0).expand_as(features.pooled))
    controls = {
        MEAN_VECTOR: EncodedTexts(middle, predicted.mean(0).expand_as(predicted), 0),
        SHUFFLED: EncodedTexts(replace(features, pooled=features.pooled.roll(1, 0)), predicted.roll(1, 0), 0),
    }
    for name, instead in controls.items():
        found = _measures(instead, context)
        artifacts.write_tensors(files[name], {f"{ENGLISH}/short/{key}": x for key, x in found.items()})


def _measures(found: EncodedTexts, context: TextEncoderContext) -> dict[str, Float[Tensor, "N"]]:
    """Measures of each text.

    Cosine and norm ratio to CLIP's embedding of the short English caption; the rank (0: nearest) of that embedding, and of the image by the
    embedding and by the prior's prediction; the share of named combinations that the probe finds in the prediction (NaN: none is named).
    """
    pooled = found.features.pooled
    described = [(one.caption.text, one.caption.description) for one in context.pairs]
    prompts = [Prompt("complex", text, description, description.unseen) for text, description in described]
    shares = probe.found(context.probe, found.predicted, prompts)
    return {
        "cosine": F.cosine_similarity(pooled, context.pooled),
        "norm": pooled.norm(dim=1) / context.pooled.norm(dim=1),
        "text": ranks(pooled, context.pooled).float(),
        "image": ranks(pooled, context.images).float(),
        "predicted": ranks(found.predicted, context.images).float(),
        "probe": torch.tensor([float("nan") if share is None else share for share in shares]),
    }


def images_name(name: str, code: str) -> str:
    """The name of a candidate's images of the prompts in a language."""
    return f"{name}, {code}"


def generate_images(context: TextEncoderContext, name: str, path: Pipeline, progress: OnProgress) -> None:
    """Generate and score an image of each prompt in each language, from the same noise for all, unless they exist."""
    scoring, prompts, judge = context.run.scoring, context.prompts, judge_of(context.model)
    sampling = Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale)

    def images(code: str, rows: Sequence[int]) -> Tensor:
        texts = [context.cases[row].text(code, SHORT) for row in rows]
        noise = [generator(scoring.seed, "text encoder", prompts[row].text) for row in rows]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=CUT)
            request = GenerationRequest(texts, sampling=sampling, conditions=scoring.conditions, generator=noise)
            return tensors(path(request).images)

    for code in scoring.languages if context.cases else ():
        own = images_name(name, code)
        if context.folder.has_images(own):
            continue
        candidate = Candidate(own, len(prompts), partial(images, code))
        scored = generate_and_score(candidate, prompts, judge, progress)
        by_chance = [  # against another prompt of its kind, if there is one
            None if other == row else prompt_accuracy(prompts[row], scored[other].scene) == 1
            for row, other in enumerate(shuffled_prompts(prompts, scoring.seed))
        ]
        context.folder.keep_images(own, scored, prompts, by_chance=by_chance)
