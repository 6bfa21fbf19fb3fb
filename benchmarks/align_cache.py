"""A step of stage align with features from a cache, against one that runs language model and CLIP.

    python benchmarks/align_cache.py [--quick] [--llm FOLDER] [--lines 200] [--json FILE]

The starter's adapter, CLIP and prior on short captions of six languages, 96 in a step. Without --llm the language model is that of the starter
(2.4M parameters); a larger one gains more. `before` is the time of the cache itself, `bytes` what a text takes on disk. Target: steps that are
3 times as fast.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from padded import conditions, options, seconds, write

from syzygy.clip.clip_model import Clip
from syzygy.core.model_parts import BUNDLED
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.parallel_corpus import parallel
from syzygy.text_encoders import training
from syzygy.text_encoders.adapter_task import AdapterTask
from syzygy.text_encoders.align_stage import AlignSource, AlignStage
from syzygy.text_encoders.feature_cache import CachedCaptions, CacheFolder
from syzygy.text_encoders.parallel_captions import CorpusCaptions
from syzygy.text_encoders.presets import align_starter
from syzygy.training.parallel import Ranks

TARGET = 3
STEPS = 3


def corpus(path: Path, lines: int) -> None:
    rows = [parallel(0, i, tuple(LANGUAGES), unseen=False).captions for i in range(lines)]
    path.write_text(
        "".join(json.dumps({"texts": {code: one.text for code, one in row.items()}}) + "\n" for row in rows)
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--llm", default=str(BUNDLED["starter"] / "llm"))
    parser.add_argument("--lines", type=int, default=200)
    args = parser.parse_args()
    lines, rounds, steps = (20, 1, 1) if args.quick else (args.lines, 3, STEPS)
    run = align_starter().changed(lengths=None, validation_lines=2)
    clip, world = Clip.from_pretrained(BUNDLED["starter"] / "clip"), Ranks(torch.device("cpu"))
    prior = training.frozen_prior("starter", clip.fingerprint()).requires_grad_(False)
    llm, said = training.language_model(run, args.llm), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        corpus(Path(folder, "corpus.jsonl"), lines)
        captions = training.captions_of(run, Path(folder, "corpus.jsonl"), clip)
        assert isinstance(captions, CorpusCaptions)
        place, identity = CacheFolder(Path(folder, "cache")), llm.identity().to_config()

        began = time.perf_counter()
        features = training.cached_captions(place, captions, llm, identity, clip, run, world, said.append)
        before = time.perf_counter() - began
        texts, stored = len(features.llm), sum(path.stat().st_size for path in place.path.rglob("*.safetensors"))

        def stepping(cache: CachedCaptions | None) -> AdapterTask:
            adapter = training.untrained(run, llm.width, clip, captions)
            stage = AlignStage(adapter, prior, run.task, logit_scale=clip.logit_scale)
            return AdapterTask(stage, AlignSource(captions, llm, clip, run, cache), run.task.batch_size, world=world)

        tasks = {"without": stepping(None), "with": stepping(features)}

        def several(task: AdapterTask) -> None:
            for step in range(steps):
                task.loss(step)["loss"].backward()

        taken = {
            name: one / steps
            for name, one in seconds({n: lambda t=t: several(t) for n, t in tasks.items()}, rounds).items()
        }
        losses = {name: task.loss(0)["loss"].item() for name, task in tasks.items()}
    ratio = taken["without"] / taken["with"]
    print(f"{conditions(rounds)}; {Path(args.llm).name}, {texts} texts")
    print(f"cache: {before:.1f} s, {stored / texts / 1000:.1f} kB a text; announced: {said[0]}")
    print(
        "a step: "
        + ", ".join(f"{1000 * one:.0f} ms {name}" for name, one in taken.items())
        + f": {ratio:.1f} times (target {TARGET})"
    )
    print("loss of one step: " + ", ".join(f"{loss:.6f} {name}" for name, loss in losses.items()))
    write(
        args.json,
        conditions(rounds)
        | {"before": before, "bytes": stored / texts, "seconds": taken, "ratio": ratio, "losses": losses},
    )


if __name__ == "__main__":
    main()
