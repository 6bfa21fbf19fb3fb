"""Training the 34M prior from an embedding store: samples a second, use of the device, and what reading costs.

    python benchmarks/store_training.py [--quick] [--captions N] [--batch-size B] [--steps S] [--device cuda] [--json FILE]

A store of random embeddings, 1280 wide in fp16, captions of COCO's lengths, is written to a temporary folder (about 36 kB a
caption) and trained on as `syzygy train prior --data` does: order, noise, ECLIPSE's loss, AdamW, averaged weights; bf16 on
CUDA. Goal on an H200 at batch 1024: 34,000 captions/s, the paper's 61.4M samples in 30 minutes; reading below 5 % of a step.
`--quick` is a tiny one that only shows that it runs.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from padded import WIDTH, coco_lengths, conditions, options, published_prior, write

from syzygy.core import artifacts
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_building, store_files
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_part import Part, write_part
from syzygy.prior.eclipse import EclipseObjective, EclipseTaskConfig
from syzygy.prior.embedding_pairs import split
from syzygy.prior.prior_task import PriorTask
from syzygy.training.ema import Ema

PART = 5000
PEAK = {"NVIDIA H200": 989e12}
"""Dense bf16 FLOP/s by the name of the device, from its data sheet."""


def random_store(folder: Path, captions: int) -> EmbeddingStore:
    """A finished store of so many pairs."""
    records = []
    for number, start in enumerate(range(0, captions, PART)):
        count = min(PART, captions - start)
        draw = torch.Generator().manual_seed(number)
        lengths = coco_lengths(count)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        names = [f"{start + i:08}" for i in range(count)]
        vectors = torch.randn(2, count, WIDTH, generator=draw).half()
        states = torch.randn(int(offsets[-1]), WIDTH, generator=draw).half()
        text = PackedText(states, offsets, vectors[1])
        part = Part(
            names, [{} for _ in names], list(range(start, start + count)), vectors[0], names, list(range(count)), text
        )
        written = write_part(part, folder, number, 0)
        columns = written.pop("columns")
        record = {"number": number, "source": f"random-{number}", "fingerprint": 0, "parts": [written], "bad": []}
        records.append(record | {"columns": columns, "seen": count, "skipped": 0, "full_captions": 0})
    plan: dict[str, Any] = {"command": "random", "kind_of_source": "random", "options": {}, "encoder": {}}
    manifest = store_building.manifest_of(folder, plan | {"settings": {"dtype": "fp16"}}, records)
    artifacts.write_json(folder / store_files.MANIFEST_FILE, manifest)
    return EmbeddingStore.open(folder)


def anonymous() -> float:
    """Megabytes of this process's memory that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.quick:
        args.captions, args.batch_size, args.steps = 300, 32, 2
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.captions, args.batch_size, args.steps, device, 2 if args.quick else 10)
    write(args.json, result)


def measure(folder: Path, captions: int, batch: int, steps: int, device: torch.device, layers: int) -> dict[str, Any]:
    """Train, and print what was seen."""
    store = random_store(folder / "store", captions)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    prior = published_prior(layers).to(device)
    objective = EclipseObjective(prior, EclipseTaskConfig(batch_size=batch), logit_scale=100.0)
    precision = torch.bfloat16 if device.type == "cuda" else None
    training, validation = split(store, min(256, captions // 4))
    task = PriorTask(objective, training, validation, batch, 0, precision=precision)
    parameters = {name: p for name, p in prior.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=5e-5, fused=True)
    ema = Ema(parameters, 500)

    def step(number: int) -> None:
        optimizer.zero_grad()
        task.loss(number)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        ema.update(number + 1)

    def finished() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number in range(2 + steps // 10):
        step(number)
    finished()
    before, began = anonymous(), time.perf_counter()
    for number in range(100, 100 + steps):
        step(number)
    finished()
    seconds, grown = (time.perf_counter() - began) / steps, anonymous() - before
    began = time.perf_counter()
    for number in range(1000, 1000 + steps):
        task._read(number)
    reading = (time.perf_counter() - began) / steps

    tokens = int((coco_lengths(batch) + 3).sum())
    flops = 6 * sum(p.numel() for p in prior.transformer_blocks.parameters()) * tokens
    where = conditions(steps)
    print(f"{where}; {captions} captions in {size / 1e9:.2f} GB, batch {batch}, {layers} layers")
    print(
        f"training   {batch / seconds:,.0f} captions/s, {seconds * 1e3:.1f} ms a step; {flops / seconds / 1e12:.3f} TFLOP/s"
    )
    print(f"           the paper's 61.4M samples in {61.4e6 / (batch / seconds) / 60:,.0f} minutes")
    if peak := PEAK.get(where["machine"]):
        print(f"           {100 * flops / seconds / peak:.1f} % of the device's dense bf16 peak")
    print(
        f"reading    {reading * 1e3:.1f} ms a batch, in a thread beside the step: {100 * reading / seconds:.1f} % of it"
    )
    print(f"memory     {grown:+.1f} MB of anonymous memory over {steps} steps")
    values = {"captions": captions, "store_bytes": size, "batch": batch, "seconds_a_step": seconds}
    return where | values | {"captions_a_second": batch / seconds, "flops_a_step": flops, "reading_seconds": reading}


if __name__ == "__main__":
    main()
