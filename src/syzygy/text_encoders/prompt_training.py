"""Training of an adapter between a language model and a Stable Diffusion."""

from pathlib import Path
from typing import Any

import torch

from syzygy.core.randomness import seed_of
from syzygy.text_encoders.adapter import AdapterConfig, TextAdapter, TextStatistics
from syzygy.text_encoders.feature_cache import CachedEncoder, CacheFolder, FeatureSet, cached
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.parallel_captions import Captions, number_of_lines
from syzygy.text_encoders.prompt_stage import PromptRun, PromptSource, PromptStage, Teacher
from syzygy.text_encoders.training import (
    about,
    captions_of,
    llm_features,
    note_cut,
    precision_of,
    put_away,
    some_english,
    train_stage,
)
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.parallel import Ranks
from syzygy.training.progress import Reporter
from syzygy.training.run_records import RunResult

STATISTICS_CAPTIONS = 256
"""English captions on which the statistics are measured: the states of one are up to two megabytes in fp32."""


def align_prompts(
    run: PromptRun,
    llm: Llm,
    teacher: Teacher,
    out: Path,
    world: Ranks,
    *,
    corpus: Path | None = None,
    cache: CacheFolder | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Stage align for a Stable Diffusion: train the adapter (or resume) in `out`; the finished one is `out/adapter`, fp16.

    Args:
        teacher: the model's text encoders, on the device that trains.
        corpus: parallel captions in JSON Lines; None is the embedded world.
        cache: where the language model's features of the corpus are kept, which are then computed once, before the first step; None computes
            them at each step. What the text encoders give is computed at each step in either case, as it is much larger.

    Raises:
        UserError: the captions are wrong (`captions_of`); a weight has no effect on the model (`PromptStage`); the cache cannot be used
            (`cached`), or has no effect.
    """
    if corpus is not None:
        run = fitting.lines(run, number_of_lines(corpus), str(corpus))
    captions, llm = captions_of(run, corpus, teacher), llm.to(world.device)
    record: dict[str, Any] = {
        "stage": "align",
        "llm": llm.identity().to_config(),
        "text_encoders": dict(teacher.fingerprints()),
        "data": captions.record,
    }
    adapter = untrained(run, llm.width, teacher, captions).to(world.device)
    stage = PromptStage(adapter, run.task)

    def save(folder: Path, provenance: dict[str, Any]) -> None:
        adapter.save_pretrained(folder, provenance | about(captions), torch.float16)

    reads: Llm | FeatureSet = llm
    if cache is not None:
        reads = read_once(cache, llm_features(captions, llm, record["llm"]), llm, world, fitting)
        record["cached"] = {"llm": precision_of(llm)}  # a run is continued with the same rounding
    return train_stage(run, stage, PromptSource(captions, reads, teacher, run), record, out, world, report, save)


def untrained(run: PromptRun, width: int, teacher: Teacher, captions: Captions) -> TextAdapter:
    """An untrained adapter for a language model of this width, with the statistics of captions of the training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "adapter weights"))
        adapter = TextAdapter(AdapterConfig(**run.adapter.model_dump(), llm_width=width, target=teacher.target))
    found = teacher.encode(some_english(captions, STATISTICS_CAPTIONS))
    adapter.set_statistics(TextStatistics.of_prompts(found.to("cpu")))
    return adapter


def with_timesteps(adapter: TextAdapter, seed: int) -> TextAdapter:
    """A timestep-aware copy of an adapter (ELLA, arXiv 2403.05135), which gives the same at every timestep until it is trained.

    Args:
        seed: of the weights that embed the timestep.
    """
    assert not adapter.timestep_aware, "it was not timestep-aware before"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "timestep weights"))
        made = TextAdapter(adapter.config.model_copy(update={"timestep_aware": True}))
    lacking, strange = made.load_state_dict(adapter.state_dict(), strict=False)
    assert not strange and all(name.startswith("time.") for name in lacking), "only the timestep's weights are new"
    return made.eval()


def read_once(cache: CacheFolder, encoder: CachedEncoder, llm: Llm, world: Ranks, fitting: Fitting) -> FeatureSet:
    """The language model's features from a cache, into which those that are missing are computed first."""
    (features,) = cached(cache, [encoder], world, fitting.say)
    note_cut(features, llm, fitting.say)
    put_away(llm)
    return features
