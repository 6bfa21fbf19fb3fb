"""The stages of an adapter against each other, and the language model's layers (arXiv 2405.12914, 2506.08210), in small.

Every step leaves a file, so an interrupted run goes on where it stopped. Shapes: N captions, D width of CLIP's joint space.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts, wording
from syzygy.core.contracts import Sampling, StatesEncoder, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.generation.image_files import to_tensor
from syzygy.generation.pipeline import Pipeline, to_uint8
from syzygy.generation.replaced_text_encoder import with_text
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import probe
from syzygy.lab.evaluate.composition import ScoredImage, shuffled_prompts
from syzygy.lab.evaluate.harness import prompt_accuracy
from syzygy.lab.evaluate.probe import Probe, fit_probe
from syzygy.lab.evaluate.retrieval import ranks
from syzygy.lab.evaluate.text_encoder import (
    CUT,
    ENGLISH,
    LENGTHS,
    EncodedTexts,
    caption_pairs,
    captions_in,
    encode_texts,
    long_prompt,
)
from syzygy.lab.evaluate.text_encoder_images import SHORT, LanguageCase, language_cases
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.experts_experiment import counted
from syzygy.lab.reproduce.text_encoder_candidates import (
    ALIGN,
    IMAGE,
    LAST,
    MEAN,
    QUALITY,
    Job,
    ReproduceTextRun,
    Shop,
    jobs,
    language_model_of,
    samples,
    train,
    trained,
)
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.reader import Reader
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.training.run_records import Bar, no_bar

CLIP, MEAN_VECTOR, SHUFFLED = "CLIP", "mean vector", "shuffled captions"
CONTROLS = (CLIP, SHUFFLED, MEAN_VECTOR)
TAIL, CHANGED = "tail", "tail, changed"
"""Long prompts whose decisive sentence comes last; the same with another's last sentence."""
KINDS = (*LENGTHS, TAIL)
PAINT_BATCH, CHUNK = 32, 512
SECONDS = {ALIGN: 0.0075, IMAGE: 0.012, QUALITY: 0.012, "scene": 0.006, "first": 0.02, "read": 0.008, "picture": 0.16}
"""A caption of each stage, a scene's embedding, a text's first reading by a language model, a text through an adapter, a picture of ten
steps: seconds, with one thread on one core of the two-core machine that the starter was made on."""


class Remembered:
    """A language model that reads the same texts once: every candidate is asked the same."""

    def __init__(self, llm: StatesEncoder) -> None:
        self._llm, self._found = llm, dict[tuple[str, ...], TextStates]()

    @property
    def width(self) -> int:
        return self._llm.width

    def encode_states(self, texts: list[str]) -> TextStates:
        key = tuple(texts)
        if key not in self._found:
            self._found[key] = self._llm.encode_states(texts)
        return self._found[key]


@dataclass(frozen=True)
class Bench:
    """What all candidates are asked, and what is right."""

    shop: Shop
    pairs: list[scene_source.Pair]
    texts: Mapping[tuple[str, str], list[str]]
    """(language, kind) → a text of each pair."""
    pooled: Float[Tensor, "N D"]
    """CLIP's pooled embeddings of the short English captions."""
    images: Float[Tensor, "N D"]
    probe: Probe
    asked: list[LanguageCase]
    """What is painted."""

    @property
    def out(self) -> Path:
        return self.shop.out

    @property
    def run(self) -> ReproduceTextRun:
        return self.shop.run

    @property
    def wanted(self) -> list[Prompt]:
        return [one.prompt for one in self.asked]


def prepare(shop: Shop, asked: list[LanguageCase]) -> Bench:
    """Say and embed the captions, train the probe; `asked` is what is painted."""
    scoring, clip = shop.run.scoring, shop.model.clip
    pairs = caption_pairs(scoring.captions, scoring.seed)
    texts: dict[tuple[str, str], list[str]] = {}
    for code in scoring.languages:
        texts |= {(code, length): captions_in(pairs, code, length, scoring.seed) for length in LENGTHS}
        tails = [long_prompt(one.caption.description, code, scoring.seed, "tail", i) for i, one in enumerate(pairs)]
        texts[code, TAIL] = [one.long for one in tails]
        others = [*tails[1:], tails[0]]
        texts[code, CHANGED] = [a.long[: a.head] + b.sentence for a, b in zip(tails, others, strict=True)]
    english = [one.caption.text for one in pairs]
    pooled = torch.cat([clip.encode_text(english[i : i + CHUNK]).pooled.cpu() for i in range(0, len(english), CHUNK)])
    return Bench(shop, pairs, texts, pooled, _embedded(shop, pairs), _probe(shop), asked)


def _embedded(shop: Shop, pairs: list[scene_source.Pair]) -> Float[Tensor, "N D"]:
    clip = shop.model.clip
    parts = [
        clip.encode_image(scene_source.pictures(pairs[start : start + CHUNK], clip.image_size, clip.device)).cpu()
        for start in range(0, len(pairs), CHUNK)
    ]
    return torch.cat(parts)


def _probe(shop: Shop) -> Probe:
    """As of ECLIPSE's comparison: on true embeddings, held-out compositions among them."""
    seed = shop.run.scoring.seed
    found = scene_source.pairs(seed_of(seed, "probe"), 0, shop.run.probe_scenes)
    return fit_probe(_embedded(shop, found), [one.scene for one in found], seed)


def path_of(bench: Bench, job: Job, llms: Mapping[str, StatesEncoder]) -> Pipeline:
    """The path of a prompt through a finished job's adapter and prior."""
    path = bench.shop.model.pipeline
    adapter = trained(job, bench.shop).to(path.device).requires_grad_(False)
    prior = bench.shop.prior(job).to(path.device).requires_grad_(False)
    return with_text(replace(path, prior=prior), AdaptedText(llms[job.candidate.features], adapter))


def scores_file(out: Path, name: str) -> Path:
    """Where a training's or control's scores are, once it is scored."""
    return out / "scores" / f"{name}.safetensors"


def score(bench: Bench, name: str, path: Pipeline, progress: Callable[[int], None] = lambda done: None) -> None:
    """All texts through the path: of each the measures of `_measured`, as `language/kind/measure`; kept in a file."""
    seed, found = bench.run.scoring.seed, dict[str, Tensor]()
    for code in bench.run.scoring.languages:
        reads = {}
        for kind in (*KINDS, CHANGED):
            with warnings.catch_warnings():  # that CLIP cuts long prompts is what is measured
                warnings.filterwarnings("ignore", message=CUT)
                reads[kind] = encode_texts(path, bench.texts[code, kind], seed, progress)
        for kind in KINDS:
            found |= {f"{code}/{kind}/{measure}": x for measure, x in _measured(reads[kind], bench).items()}
        both = (reads[kind].features.pooled for kind in (TAIL, CHANGED))
        found[f"{code}/{TAIL}/unmoved"] = F.cosine_similarity(*both)
    artifacts.write_tensors(scores_file(bench.out, name), found)


def score_controls(bench: Bench, progress: Callable[[int], None] = lambda done: None) -> None:
    """CLIP on everything; the mean of its features of the short English captions, and those of other captions, in their place."""
    path = with_text(bench.shop.model.pipeline, bench.shop.model.clip)
    if not scores_file(bench.out, CLIP).is_file():
        score(bench, CLIP, path, progress)
    if all(scores_file(bench.out, name).is_file() for name in (SHUFFLED, MEAN_VECTOR)):
        return
    own = encode_texts(path, [one.caption.text for one in bench.pairs], bench.run.scoring.seed, lambda done: None)
    features, predicted = own.features, own.predicted
    middle = replace(features, pooled=features.pooled.mean(0).expand_as(features.pooled))
    controls = {
        MEAN_VECTOR: EncodedTexts(middle, predicted.mean(0).expand_as(predicted), 0),
        SHUFFLED: EncodedTexts(replace(features, pooled=features.pooled.roll(1, 0)), predicted.roll(1, 0), 0),
    }
    for name, instead in controls.items():
        measured = _measured(instead, bench)
        artifacts.write_tensors(
            scores_file(bench.out, name), {f"{ENGLISH}/short/{key}": x for key, x in measured.items()}
        )


def _measured(found: EncodedTexts, bench: Bench) -> dict[str, Float[Tensor, "N"]]:
    """Cosine and norm to CLIP's embedding of the short English caption; the ranks (0: nearest) of that, and of the picture by the embedding
    and by the prior's prediction; the named combinations that the probe finds in the prediction, NaN where none is named."""
    pooled = found.features.pooled
    asked = [Prompt("complex", one.caption.text, told := one.caption.description, told.unseen) for one in bench.pairs]
    shares = probe.found(bench.probe, found.predicted, asked)
    return {
        "cosine": F.cosine_similarity(pooled, bench.pooled),
        "norm": pooled.norm(dim=1) / bench.pooled.norm(dim=1),
        "text": ranks(pooled, bench.pooled).float(),
        "image": ranks(pooled, bench.images).float(),
        "predicted": ranks(found.predicted, bench.images).float(),
        "probe": torch.tensor([float("nan") if share is None else share for share in shares]),
    }


def painted_name(name: str, code: str) -> str:
    """What a candidate's pictures of a language's prompts are called."""
    return f"{name}, {code}"


def paint(bench: Bench, name: str, path: Pipeline, progress: Callable[[int], None] = lambda done: None) -> None:
    """A picture of each prompt in each language, from the same noise for all, read and judged; kept in files, but for those that are there."""
    scoring, reader = bench.run.scoring, bench.shop.model.reader()
    how = Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale)
    for code in scoring.languages if bench.asked else ():
        if score_files.painted_file(bench.out, painted_name(name, code)).is_file():
            continue
        pictures = []
        for start in range(0, len(bench.asked), PAINT_BATCH):
            some = bench.asked[start : start + PAINT_BATCH]
            noise = [generator(scoring.seed, "text encoder", one.prompt.text) for one in some]
            texts = [one.text(code, SHORT) for one in some]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=CUT)
                images = path(
                    GenerationRequest(texts, sampling=how, conditions=scoring.conditions, generator=noise)
                ).images
            pictures += [to_tensor(image) for image in images]
            progress(len(some))
        _keep(bench, painted_name(name, code), torch.stack(pictures), reader)


def _keep(bench: Bench, name: str, pictures: Float[Tensor, "P 3 H W"], reader: Reader) -> None:
    """Judge a picture a prompt, also by another prompt of its kind, and write what comes out."""
    device = next(reader.parameters()).device
    seen = [one for some in pictures.split(PAINT_BATCH) for one in reader.read(some.to(device))]
    painted = [
        ScoredImage(name, prompt, 0, picture, one)
        for prompt, picture, one in zip(bench.wanted, to_uint8(pictures), seen, strict=True)
    ]
    other = shuffled_prompts(bench.wanted, bench.run.scoring.seed)
    by_chance = [  # none where a prompt is alone in its kind
        None if i == place else prompt_accuracy(bench.wanted[place], seen[i]) == 1 for place, i in enumerate(other)
    ]
    score_files.keep(bench.out, name, painted, bench.wanted, by_chance=by_chance)


def seconds(job: Job, run: ReproduceTextRun) -> float:
    """An estimate of what a training takes, by `SECONDS`."""
    own = samples(job, run)[job.stage] * SECONDS[job.stage]
    scenes = {ALIGN: 0, IMAGE: run.image.scenes or 0, QUALITY: run.quality.scenes or 0}
    return own + scenes[job.stage] * SECONDS["scene"]


def minutes(run: ReproduceTextRun, prompts: int) -> float:
    """An estimate of what the whole takes, by `SECONDS`, if nothing is there yet."""
    todo, scoring = jobs(run), run.scoring
    texts = scoring.captions * len(scoring.languages) * (len(KINDS) + 1)
    pictures = prompts * len(scoring.languages) * (len(todo) + 1) * scoring.steps / 10
    total = sum(seconds(job, run) for job in todo) + run.probe_scenes * SECONDS["scene"]
    total += texts * (2 * SECONDS["first"] + len(todo) * SECONDS["read"]) + pictures * SECONDS["picture"]
    return total / 60


def reproduce(
    run: ReproduceTextRun,
    out: Path,
    *,
    model: str,
    llm: str | None,
    device: str,
    say: Callable[[str], None],
    bar: Bar = no_bar,
) -> Bench:
    """Everything but the report: train, score, paint. What is in `out` already is not done again.

    Args:
        llm: where the language model is; None: in the model's folder.

    Raises:
        UserError: no language model; `out` holds a comparison with other settings; what the trainings raise.
    """
    loaded = TextToImage.from_pretrained(model, device=device)
    loaded.reader()  # fails before the work, not after it
    loaded.pipeline.chosen(run.scoring.conditions)
    for code in (*run.languages, *run.scoring.languages):
        language(code)
    shop = Shop(run, loaded, language_model_of(loaded, llm), out)
    made_of = loaded.fingerprints() | {"llm": shop.llms[MEAN].fingerprint()}
    plain = run.model_dump(mode="json") | {"model": model, "fingerprints": made_of}
    if (out / "run.json").is_file() and artifacts.read_json(out / "run.json") != plain:
        raise UserError(f"{out} holds a comparison with other settings. Choose another --out, or the settings it has.")
    artifacts.write_json(out / "run.json", plain)
    with counted(out):
        todo, asked = jobs(run), language_cases(run.scoring)
        estimate = minutes(run, len(asked))
        say(f"about {estimate:.0f} minutes with one thread on one core, if nothing is there yet; twice on a busy one")
        say(f"1/3  captions, and the probe on {wording.counted(run.probe_scenes, 'scene')}")
        bench = prepare(shop, asked)
        say(f"2/3  {wording.counted(len(todo), 'training')}")
        _train_all(todo, shop, say, bar)
        texts, prompts = len(bench.texts) * len(bench.pairs), len(bench.wanted)
        say(
            f"3/3  reading {wording.counted(texts, 'text')} and painting {wording.counted(prompts, 'prompt')} with each"
        )
        _measure_all(todo, bench, say, bar)
    return bench


def _train_all(todo: list[Job], shop: Shop, say: Callable[[str], None], bar: Bar) -> None:
    left, spent, thought = sum(seconds(job, shop.run) for job in todo), 0.0, 0.0
    for place, job in enumerate(todo, 1):
        pace = spent / thought if thought else 1.0
        say(f"{place}/{len(todo)}  {job.name}: about {left * pace / 60:.0f} minutes of training left")
        began = time.perf_counter()
        train(job, shop, bar)
        took, own = time.perf_counter() - began, seconds(job, shop.run)
        left -= own
        if took > own / 10:  # finished ones say nothing of the pace
            spent, thought = spent + took, thought + own


def _measure_all(todo: list[Job], bench: Bench, say: Callable[[str], None], bar: Bar) -> None:
    """Controls first, then the trainings, those of one reading of the language model together."""
    texts, pictures = len(bench.texts) * len(bench.pairs), len(bench.asked) * len(bench.run.scoring.languages)
    with bar(f"reading with {CLIP}", texts) as progress:
        score_controls(bench, progress)
    with bar(f"painting with {CLIP}", pictures) as progress:
        paint(bench, CLIP, with_text(bench.shop.model.pipeline, bench.shop.model.clip), progress)
    for features in (MEAN, LAST):
        llms: dict[str, StatesEncoder] = {
            features: Remembered(bench.shop.llms[features].to(bench.shop.model.pipeline.device))
        }
        for job in (one for one in todo if one.candidate.features == features):
            names = [painted_name(job.name, code) for code in bench.run.scoring.languages] if bench.asked else []
            painted = all(score_files.painted_file(bench.out, name).is_file() for name in names)
            if painted and scores_file(bench.out, job.name).is_file():
                continue
            say(f"reading and painting with {job.name}")
            path = path_of(bench, job, llms)
            if not scores_file(bench.out, job.name).is_file():
                with bar(f"reading with {job.name}", texts) as progress:
                    score(bench, job.name, path, progress)
            with bar(f"painting with {job.name}", pictures) as progress:
                paint(bench, job.name, path, progress)
