"""Adapters of untrained weights for the tests' tiny models, saved as `syzygy train adapter` saves them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from syzygy.clip.clip_model import Clip
from syzygy.lab.starter.lm_training import LmConfig, build_lm
from syzygy.lab.world import scene_source
from syzygy.pretrained.prompt_teacher import PromptTeacher
from syzygy.text_encoders.adapter import AdapterConfig, AdapterSizes, TextAdapter, TextStatistics
from syzygy.text_encoders.align_stage import AlignRun, AlignSource, AlignTaskConfig
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.parallel_captions import Captions
from syzygy.training.schedule import LoopConfig

MEASURED = ["a red star", "two blue circles", "a ring", "a moon above a cross"]


def save_tiny_adapter(
    folder: Path,
    llm: Path,
    clip: Clip,
    *,
    queries: int = 3,
    seed: int = 0,
    languages: tuple[str, ...] | None = None,
    **reading: Any,
) -> Path:
    """An adapter between this language model and this CLIP; `reading` is how the model is loaded."""
    model = Llm.from_pretrained(llm, **reading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"layers": 1, "heads": 2, "width": 16}
        adapter = TextAdapter(AdapterConfig(queries=queries, llm_width=model.width, clip_width=clip.width, **sizes))
    adapter.set_statistics(TextStatistics.of(clip.encode_text(MEASURED)))
    record: dict[str, Any] = {"llm": model.identity().to_config(), "clip": clip.fingerprint()}
    adapter.save_pretrained(folder, record | ({} if languages is None else {"languages": list(languages)}))
    return folder


def save_tiny_prompt_adapter(folder: Path, llm: Path, model: Path, *, states: int = 77, **record: Any) -> Path:
    """An untrained adapter between this language model and this Stable Diffusion."""
    reader, teacher = Llm.from_pretrained(llm), PromptTeacher.from_pretrained(model, states)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"queries": states, "layers": 1, "heads": 2, "width": 16}
        adapter = TextAdapter(AdapterConfig(llm_width=reader.width, target=teacher.target, **sizes))
        for name, parameter in adapter.named_parameters():
            if "_head" in name:  # which begin as zeros, so that no text would differ from another
                torch.nn.init.normal_(parameter, std=0.3)
    adapter.set_statistics(TextStatistics.of_prompts(teacher.encode(MEASURED)))
    known = {"llm": reader.identity().to_config(), "text_encoders": dict(teacher.fingerprints())}
    adapter.save_pretrained(folder, known | record)
    return folder


def align_source(captions: Captions, llm: Llm, clip: Clip, batch_size: int = 60, empty: float = 0.0) -> AlignSource:
    """Batches of these captions, with four lines per language for validation."""
    task, loop = AlignTaskConfig(batch_size=batch_size, empty=empty), LoopConfig(steps=1, lr=1e-3)
    sizes = AdapterSizes(queries=3, layers=1, heads=2, width=16)
    return AlignSource(captions, llm, clip, AlignRun(adapter=sizes, task=task, loop=loop, validation_lines=4))


def save_tiny_lm(folder: Path, *codes: str) -> Path:
    """A language model that has learned the words of the world in these languages, and nothing else."""
    texts = [pair.caption.text for code in codes for pair in scene_source.pairs(0, 0, 60, length="long", lang=code)]
    sizes: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 48, "vocabulary": 1200}
    build_lm(LmConfig(**sizes), texts, 0).save_pretrained(folder, {})
    return folder


def with_adapter(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy of one of our models with a language model and an adapter of its own."""
    shutil.copytree(model, folder)
    llm = save_tiny_lm(folder / "llm", "en", "de", "zh")
    save_tiny_adapter(folder / "adapter", llm, Clip.from_pretrained(folder / "clip"), **settings)
    return folder
