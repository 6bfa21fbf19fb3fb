"""The embedded world as data for adapters: parallel captions to align on, and embedded scenes with captions in all languages."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import StatesEncoder, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.data.filtering import passing
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.parallel_corpus import PIVOT, checked_languages, parallel
from syzygy.lab.world.scene_columns import SceneTable
from syzygy.prior.embedding_pairs import caption_ids
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.text_encoders.adapter_folders import PreviousStage
from syzygy.text_encoders.image_stage import ImageData, ImageRun
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.parallel_captions import Line
from syzygy.text_encoders.training import check_filter
from syzygy.training.estimate import preparing, rehearsed
from syzygy.training.run_records import Bar, no_bar

CHUNK = 256


@dataclass(frozen=True)
class WorldCaptions:
    """`Captions` of the embedded world. No caption names an unseen composition, and no scene shows one.

    Raises:
        UserError: an unknown language, or English is missing.
    """

    seed: int
    chosen: tuple[str, ...] | None
    """Codes of the languages; None is all."""
    lengths: tuple[Length, ...]
    """Taken in turn, one for each step: a short caption in a batch with a long one would be mostly padding."""

    def __post_init__(self) -> None:
        checked_languages(self.languages)

    @property
    def languages(self) -> tuple[str, ...]:
        return self.chosen or tuple(LANGUAGES)

    @property
    def record(self) -> Any:
        return "world"

    def line(self, language: str, place: int, step: int) -> Line:
        # A different scene for each language: two captions of one scene would be no negatives of each other.
        return self._line(self.seed, place * len(self.languages) + self.languages.index(language), language, step)

    def unseen(self, language: str, number: int) -> list[Line]:
        seed = seed_of(self.seed, "validation")
        return [self._line(seed, index, language, index) for index in range(number)]

    def _line(self, seed: int, index: int, language: str, turn: int) -> Line:
        codes = tuple(dict.fromkeys((PIVOT, language)))
        length = self.lengths[turn % len(self.lengths)]
        found = parallel(seed, index, codes, unseen=False, length=length).captions
        return Line(found[language].text, found[PIVOT].text)


def describes_unseen(description: Any) -> bool:
    """Whether a description in a corpus line, as `syzygy world corpus` writes it, names an unseen composition; other JSON values do not."""
    try:
        mentions = tuple(Mention(**mention) for mention in description["mentions"])
        return Description(mentions, tuple(Placed(**one) for one in description["relations"])).unseen
    except (KeyError, TypeError, IndexError):
        return False


def languages_for(codes: tuple[str, ...] | None, previous: PreviousStage) -> tuple[str, ...]:
    """The languages of a stage's captions: `codes`, or those of the previous stage that the embedded world has.

    Raises:
        UserError: an unknown language, or English is missing.
    """
    before = previous.languages()
    return checked_languages(codes or [code for code in LANGUAGES if before is None or code in before])


@dataclass(frozen=True)
class WorldImages:
    """`CaptionedImages` of the embedded world: scenes are embedded once; steps take the languages and lengths of captions in turn."""

    seed: int
    scenes: Int[Tensor, "N"]
    """Numbers of the scenes."""
    llm: StatesEncoder
    languages: tuple[str, ...]
    lengths: tuple[Length, ...]
    embeddings: Float[Tensor, "N D"]
    pivots: Float[Tensor, "N D"]
    """CLIP's pooled embeddings of the short English captions."""
    numbers: Int[Tensor, "N"]
    """Equal where two of those captions are."""
    by_text: bool
    """Whether predictions are contrasted with `pivots`, or with the images."""

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        texts = [
            "" if none else self.caption(scene, first + i, step)
            for i, (scene, none) in enumerate(zip(self.scenes[index].tolist(), empty.tolist(), strict=True))
        ]
        return self.llm.encode_states(texts)

    def caption(self, scene: int, place: int, step: int) -> str:
        """The caption of a scene, by its number, at a place of the stream."""
        length, language = self.lengths[step % len(self.lengths)], self.languages[place % len(self.languages)]
        return scene_source.pair(self.seed, scene, unseen=False, length=length, lang=language).caption.text

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.embeddings[index]

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return (self.pivots if self.by_text else self.embeddings)[index]

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.numbers[index] if self.by_text else index


def embed_scenes(
    clip: Clip, llm: StatesEncoder, languages: tuple[str, ...], lengths: tuple[Length, ...],
    *, seed: int, sizes: tuple[int, int], by_text: bool, bar: Bar = no_bar, condition: str | None = None,
) -> tuple[WorldImages, WorldImages]:  # fmt: skip
    """Scenes for training and for validation, without unseen compositions.

    Args:
        sizes: the numbers of scenes for each of the two, before the filter.
        condition: a filter over the columns of `SceneTable`.

    Raises:
        UserError: the filter cannot be read (`passing`), or leaves nothing for one of the two.
    """
    made = []
    with bar("embedding", sum(sizes)) as progress:
        for name, number in zip(("training", "validation"), sizes, strict=True):
            key = seed_of(seed, "adapter", name)
            images, pooled, texts, scenes = [], [], [], []
            for start in range(0, number, CHUNK):
                sampled = scene_source.pairs(key, start, min(CHUNK, number - start), unseen=False)
                rows = list(range(len(sampled)))
                if condition is not None:
                    rows = passing(SceneTable(sampled), condition).nonzero()[:, 0].tolist()
                progress(len(sampled))
                if not rows:
                    continue
                found = [sampled[row] for row in rows]
                captions = [pair.caption.text for pair in found]
                scenes += [start + row for row in rows]
                images.append(clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device)).cpu())
                pooled.append(clip.encode_text(captions).pooled.cpu())
                texts += captions
            if not scenes:
                raise UserError(
                    f"no scene for {name} passes the filter {condition!r}, of {number} of the embedded world. Loosen the filter."
                )
            numbers, embeddings = torch.tensor(scenes), (torch.cat(images), torch.cat(pooled))
            made.append(WorldImages(key, numbers, llm, languages, lengths, *embeddings, caption_ids(texts), by_text))
    return made[0], made[1]


def world_images(
    run: ImageRun, previous: PreviousStage, llm: Llm, clip: Clip, device: torch.device, bar: Bar = no_bar
) -> ImageData:
    """The run's scenes of the embedded world, embedded on the device.

    Raises:
        UserError: the run is made for a store; the filter cannot be read or leaves nothing; the adapter was aligned with another CLIP.
    """
    if run.scenes is None or run.lengths is None:
        raise UserError(
            'this preset trains on an embedding store: give --data STORE, or set scenes=20000 lengths=["short"].'
        )
    check_filter(run, previous)
    previous.check_clip(clip.fingerprint())
    clip, llm = clip.to(device).requires_grad_(False), llm.to(device)
    languages = languages_for(run.languages, previous)
    sizes = rehearsed(run.scenes, run.task.batch_size), run.validation_images
    with preparing(run.scenes + run.validation_images, sum(sizes)):
        training, validation = embed_scenes(
            clip, llm, languages, run.lengths,
            seed=run.seed, sizes=sizes, by_text=run.task.contrast == "text", bar=bar, condition=run.filter,
        )  # fmt: skip
    record = {"clip": clip.fingerprint(), "data": "world", "captions": len(training)}
    return ImageData(
        training, validation, clip.logit_scale, lambda: EmbeddingStatistics.of(training.embeddings), record, languages
    )
