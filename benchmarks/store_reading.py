"""Times reading random captions with their images from an embedding store, beside copying as many bytes within memory.

    python benchmarks/store_reading.py [FOLDER]

The store (100 shards, 50,000 captions of 8 to 19 tokens, 768 wide, 1.1 GB) is written to FOLDER, or to a temporary place.
Target: a batch of 1024 captions in well under 10 ms from the page cache; anonymous memory that does not depend on the store.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from syzygy.core import artifacts
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_files
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_part import Part, statistics_of, write_part

SHARDS, CAPTIONS, WIDTH, BATCH, REPEATS = 100, 500, 768, 1024, 50


def write(folder: Path) -> None:
    """A store of random embeddings."""
    random = torch.Generator().manual_seed(0)
    shards = []
    for number in range(SHARDS):
        lengths = torch.randint(8, 20, (CAPTIONS,), generator=random)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        states = torch.randn(int(offsets[-1]), WIDTH, generator=random).half()
        images, pooled = (torch.randn(CAPTIONS, WIDTH, generator=random).half() for _ in range(2))
        names = [f"{number}-{i}" for i in range(CAPTIONS)]
        part = Part(
            names,
            [{}] * CAPTIONS,
            list(range(CAPTIONS)),
            images,
            names,
            list(range(CAPTIONS)),
            PackedText(states, offsets, pooled),
        )
        shards.append(
            {"number": number, "source": str(number), "fingerprint": 0, "parts": [write_part(part, folder, number, 0)]}
        )
    parts = [part for shard in shards for part in shard["parts"]]
    features = {"encoder": {}, "dtype": "fp16", "tokens": 0, "images": statistics_of(folder, parts).to_config()}
    manifest = {"columns": {}, "features": {store_files.DEFAULT_SET: features}, "shards": shards}
    artifacts.write_json(folder / store_files.MANIFEST_FILE, store_files.stamped(manifest))


def anonymous_megabytes() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if not (folder / store_files.MANIFEST_FILE).is_file():
        write(folder)
    began = time.perf_counter()
    store = EmbeddingStore.open(folder)
    opened = time.perf_counter() - began
    random = torch.Generator().manual_seed(1)
    reading, copying = [], []
    for repeat in range(REPEATS):
        index = torch.randint(len(store), (BATCH,), generator=random)
        began = time.perf_counter()
        text, images = store.captions(index), store.images_of(index)
        middle = time.perf_counter()
        copies = [x.clone() for x in (text.states, text.pooled, images)]
        if repeat:  # the first batch maps files
            reading.append(middle - began)
            copying.append(time.perf_counter() - middle)
        size = sum(x.numel() * x.element_size() for x in copies)
        if repeat == REPEATS // 2:
            anonymous = anonymous_megabytes()
    print(f"open: {opened * 1e3:.1f} ms; {len(store):,} captions in {SHARDS} shards")
    print(
        f"a batch of {BATCH} ({size / 1e6:.0f} MB): best {min(reading) * 1e3:.2f} ms, median {sorted(reading)[len(reading) // 2] * 1e3:.2f} ms"
    )
    print(f"copying it within memory: best {min(copying) * 1e3:.2f} ms; ratio {min(reading) / min(copying):.2f}")
    print(f"anonymous memory: {anonymous_megabytes() - anonymous:+.1f} MB over {REPEATS - REPEATS // 2 - 1} batches")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "store")
