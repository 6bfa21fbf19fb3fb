"""Pictures a second that `syzygy embed` takes from a tar of JPEG files into a store, against the bare encoder on ready pixels.

    python benchmarks/embedding.py [--quick] [--size B/32] [--pictures N] [--threads T] [--device cuda] [--json FILE]

`embed_shard`, which every runner calls, reads the tar, decodes and prepares (resize, crop) in threads, encodes pictures and
captions, and writes. The bare encoder has its pixels on the device, and the same captions. Loading the encoder is counted in
neither. Goal on a GPU: 90 % of the bare encoder. Where the CPU encodes, decoding takes its time from it, so no more than the
"shared" ratio can come out, of the encoder's time to both; and processor time is counted, which other work on the machine hardly
changes.

Sizes are the published CLIPs' (random weights; bigG's image tower has 6656 wide layers where the real one has 8192, so it is a
little too quick, which makes the goal harder). On a CPU the default is ViT-B/32: L/14 needs 18 times its work a picture, and
decoding would be hidden. On CUDA: L/14 in bf16. The pictures are smooth noise with the spectrum of photographs, 512 × 384.
`--quick` is the starter's CLIP, and only shows that it runs.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from padded import conditions, options, seconds, write
from PIL import Image

from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
from syzygy.clip.image_processing import Preparation
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings, encode_captions, reproducible
from syzygy.data.pair import Shard
from syzygy.data.prefetch import prepared
from syzygy.data.sources import SourceOptions, open_source
from syzygy.lab.world import scene_source

SIZES = {
    "starter": ClipConfig(),
    "B/32": ClipConfig(
        width=512, text_layers=12, text_heads=8, vision_width=768, vision_layers=12, vision_heads=12, patch_size=32,
        image_size=224,
    ),
    "L/14": ClipConfig(
        width=768, text_layers=12, text_heads=12, vision_width=1024, vision_layers=24, vision_heads=16, patch_size=14,
        image_size=224,
    ),
    "bigG/14": ClipConfig(
        width=1280, text_layers=32, text_heads=20, vision_width=1664, vision_layers=48, vision_heads=16, patch_size=14,
        image_size=224,
    ),
}  # fmt: skip
WIDTH, HEIGHT, QUALITY, DISTINCT = 512, 384, 90, 64


def photograph(seed: int) -> bytes:
    """A JPEG file with as much detail at each scale, as photographs have."""
    random, levels = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for octave in range(1, 8):
        size = max(WIDTH >> octave, 2), max(HEIGHT >> octave, 2)
        noise = (random.normal(size=(size[1], size[0], 3)) * 30 + 128).clip(0, 255).astype(np.uint8)
        levels += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) - 128
    data = io.BytesIO()
    Image.fromarray((levels / 2 + 128).clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def write_tar(path: Path, pictures: list[bytes], captions: list[str]) -> None:
    """As img2dataset does; the pictures come again and again."""
    with tarfile.open(path, "w") as tar:
        for i, caption in enumerate(captions):
            for ending, content in (("jpg", pictures[i % len(pictures)]), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{i:08}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def random_clip(size: str, texts: list[str], device: str) -> Clip:
    """A CLIP of this size that prepares pictures as the published ones do; in bf16 on CUDA."""
    made = build_clip(SIZES[size], texts, 0)
    side = SIZES[size].image_size
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    preparation = Preparation(resize=side, crop=side, resample=Image.Resampling.BICUBIC.value, mean=mean, std=std)
    model = made.model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    return Clip(model, made.tokenizer, preparation, "random weights", fingerprint="random").to(device).eval()


def bare(clip: Clip, captions: list[str], settings: EmbedSettings) -> Callable[[], None]:
    """Both towers, on batches as `embed_shard` makes them."""
    side, batch = clip.image_size, settings.batch_size
    pixels = torch.randn(batch, 3, side, side).to(clip.device)
    batches = -(-len(captions) // batch)

    def run() -> None:
        with reproducible(settings.threads, settings.device):
            for _ in range(batches):
                last = clip.encode_pixels(pixels)
            last.cpu()
            encode_captions(clip.encode_text, captions, torch.float16, batch)

    return run


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = options(__doc__)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--threads", type=int, default=16 if cuda else torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    size = args.size or ("starter" if args.quick else "L/14" if on_gpu else "B/32")
    number = args.pictures or (20 if args.quick else 8192 if on_gpu else 32)
    rounds = 1 if args.quick else 3
    settings = EmbedSettings(batch_size=256 if on_gpu else 32, threads=args.threads, device=args.device)
    captions = [pair.caption.text for pair in scene_source.pairs(0, 0, number)]
    clip = random_clip(size, captions, args.device)
    photographs = [photograph(seed) for seed in range(min(DISTINCT, number))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tar(folder / "00000.tar", photographs, captions)
        (shard,) = open_source(str(folder), SourceOptions()).shards
        taken = seconds(
            {
                "embed": lambda: embed_shard(shard, 0, clip, settings, folder / "store"),
                "bare encoder": bare(clip, captions, settings),
                "reading and preparing": lambda: prepare(shard, clip, settings),
            },
            rounds,
            time.perf_counter if on_gpu else time.process_time,
        )
    report(args.json, taken, number, size, settings, rounds, sum(map(len, photographs)) / len(photographs))


def prepare(shard: Shard, clip: Clip, settings: EmbedSettings) -> None:
    """All that comes before the encoder."""
    with reproducible(settings.threads, settings.device):
        for _ in prepared(shard.read(), clip.preparation.prepare, settings.threads, settings.batch_size):
            pass


def report(
    path: Path | None,
    taken: dict[str, float],
    number: int,
    size: str,
    settings: EmbedSettings,
    rounds: int,
    file_bytes: float,
) -> None:
    """Print the rates, and write them."""
    where = conditions(rounds) | {"size": size, "settings": settings.model_dump(), "pictures": number}
    ratio = taken["bare encoder"] / taken["embed"]
    shared = taken["bare encoder"] / (taken["bare encoder"] + taken["reading and preparing"])
    print(f"{where}; files of {file_bytes / 1e3:.0f} kB")
    for name, value in taken.items():
        second = "second of processor time" if settings.device == "cpu" else "second"
        print(f"{name:<24}{number / value:>10.1f} pictures a {second}")
    print(f"ratio                   {100 * ratio:>10.1f} % of the bare encoder (goal on a GPU: 90 %)")
    if settings.device == "cpu":
        print(
            f"shared                  {100 * shared:>10.1f} % would be left if embedding cost only encoder and decoding"
        )
    write(path, where | {"file_bytes": file_bytes, "seconds": taken, "ratio": ratio, "shared": shared})


if __name__ == "__main__":
    main()
