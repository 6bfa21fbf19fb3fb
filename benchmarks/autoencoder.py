"""Quality and cost of an autoencoder on unseen scenes of the embedded world, on one thread.

    python benchmarks/autoencoder.py [--autoencoder FOLDER] [--num 512] [--sheet sheet.png]

Prints, for unseen renders:
- the peak signal-to-noise ratio (dB) of reconstructions, by style and by area;
- the same from latents with Gaussian noise added, which tells how exactly a decoder must denoise them, and the share of attributes that the
  starter's scene classifier then finds;
- standard deviation of each latent channel, and its correlation between neighbours;
- processor milliseconds per image.

The sheet shows originals, reconstructions and their difference (eight times, on grey), enlarged four times.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from syzygy.core.artifacts import machine
from syzygy.core.model_parts import part_folder
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.lab.world import scene_source
from syzygy.lab.world.reader import Reader
from syzygy.lab.world.reader_scores import accuracy
from syzygy.lab.world.scene import STYLES

DEFAULT = Path(__file__).parents[1] / "weights" / "autoencoder"
CHUNK = 32
NOISE = (0.0, 0.05, 0.1, 0.2, 0.4)
EDGE = 0.08
"""Difference between neighbouring pixels, in any colour channel, from which a pixel counts as an edge."""
ENLARGED, DIFFERENCE = 4, 8


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The function's results on some rows at a time."""
    return torch.cat([function(part) for part in rows.split(CHUNK)])


def psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, from squared errors of values in [0, 1]."""
    return -10 * math.log10(error.mean())


def edges(images: Tensor) -> Tensor:
    """Which pixels [B, H, W] differ from a neighbour on the right or below."""
    right = F.pad((images[..., 1:] - images[..., :-1]).abs(), (0, 1))
    below = F.pad((images[..., 1:, :] - images[..., :-1, :]).abs(), (0, 0, 0, 1))
    return torch.maximum(right, below).amax(1) > EDGE


def milliseconds(work: Callable[[], object], images: int) -> float:
    """Processor time per image, best of seven rounds after one more."""
    seconds = []
    for _ in range(8):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds[1:]) / images


def sheet(images: Tensor, decoded: Tensor, path: Path, rows: int = 8) -> None:
    """Write originals, reconstructions and differences, in two columns of triples."""
    difference = (0.5 + DIFFERENCE * (decoded - images)).clamp(0, 1)
    triples = F.pad(torch.cat([images, decoded, difference], 3), (0, 4, 0, 4), value=1.0)[: 2 * rows]
    columns = [torch.cat(list(part), 1) for part in triples.split(rows)]
    pixels = to_uint8(torch.cat(columns, 2)[None])[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST).save(path)


def report(autoencoder: Autoencoder, found: list[scene_source.Pair], images: Tensor) -> Tensor:
    """Print the qualities; returns the reconstructions."""
    latents = in_chunks(autoencoder.encode, images)
    decoded = in_chunks(autoencoder.decode, latents)
    error = (decoded - images).square().mean(1)
    print(f"{len(images)} unseen renders: {psnr(error):.2f} dB; worst image {psnr(error.mean((1, 2)).max()):.1f} dB")
    styles = torch.tensor([STYLES.index(pair.scene.style) for pair in found])
    for index, style in enumerate(STYLES):
        print(f"  style {style:<8} {psnr(error[styles == index]):6.2f} dB")
    at_edge = edges(images)
    near = F.max_pool2d(at_edge[:, None].float(), 5, 1, 2)[:, 0] > 0
    for name, where in (("edges", at_edge), ("up to 2 px away", near & ~at_edge), ("plain areas", ~near)):
        share = float(error[where].sum() / error.sum())
        print(f"  {name:<15} {psnr(error[where]):6.2f} dB, {share:4.0%} of the error")
    reader, scenes = Reader.from_pretrained(part_folder("starter", "reader")), [pair.scene for pair in found]

    def attributes(of: Tensor) -> str:
        found = [prediction for part in of.split(CHUNK) for prediction in reader.read(part)]
        return f"{accuracy(found, scenes)['attributes']:.1%} of attributes"

    print(f"  renders                 {attributes(images)}")
    noise = torch.randn(latents.shape, generator=generator(0, "autoencoder benchmark"))
    for scale in NOISE:
        noisy = in_chunks(autoencoder.decode, latents + scale * noise)
        quality = psnr((noisy - images).square())
        print(f"  latents, noise of {scale:<4} {quality:6.2f} dB, {attributes(noisy)}")
    for channel, values in enumerate(latents.unbind(1)):
        centred = values - values.mean()
        across = (centred[:, :, 1:] * centred[:, :, :-1]).mean() + (centred[:, 1:] * centred[:, :-1]).mean()
        correlation = float(across / 2 / centred.square().mean())
        print(
            f"  channel {channel}: standard deviation {values.std():.3f}, correlation of neighbours {correlation:.2f}"
        )
    return decoded


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, default=DEFAULT)
    parser.add_argument("--num", type=int, default=512)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    autoencoder = Autoencoder.from_pretrained(args.autoencoder)
    found = scene_source.pairs(seed_of(0, "autoencoder benchmark"), 0, args.num)
    images = scene_source.pictures(found, autoencoder.image_size)
    print(machine())
    decoded = report(autoencoder, found, images)
    for number in (1, 16):
        part = images[:number]
        latents = autoencoder.encode(part)
        encoding = milliseconds(lambda part=part: autoencoder.encode(part), number)
        decoding = milliseconds(lambda latents=latents: autoencoder.decode(latents), number)
        print(f"  batch {number}: encoding {encoding:.2f} ms, decoding {decoding:.2f} ms per image")
    if args.sheet:
        sheet(images, decoded, args.sheet)


if __name__ == "__main__":
    main()
