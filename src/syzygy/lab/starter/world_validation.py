"""What a decoder of the embedded world has learned so far, beyond its loss: how much it reads from words, and what its images show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Conditioning
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import Draw, generator, per_sample_noise, seed_of
from syzygy.decoder.guidance import Guided
from syzygy.decoder.network import Decoder
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.preconditioning import Preconditioned, denoising_loss
from syzygy.decoder.samplers import sample
from syzygy.decoder.training import DecoderTask, only
from syzygy.generation.image_files import contact_sheet
from syzygy.lab.starter.decoder_data import Encoding
from syzygy.lab.world.description import Description, Mention, check_facts
from syzygy.lab.world.language import Caption, language
from syzygy.lab.world.prompts import Category, Prompt, prompts
from syzygy.lab.world.reader import Reader
from syzygy.lab.world.scene import COLOURS, SHAPES
from syzygy.lab.world.scene_sampling import scene_for
from syzygy.lab.world.scene_source import Pair
from syzygy.training.precision import autocast

PROBES = 128
"""Scenes of two objects on which the reading of words is measured."""
PROBED = 4.0
"""The noise level σ there: objects are hidden, but the image is not only noise."""
CATEGORIES: tuple[Category, ...] = ("single", "colour", "spatial", "numeracy")
PROMPTS = 32
"""Prompts of each category, half of them with an unseen composition."""
SHOWN = 16
"""Those on the contact sheet."""
STEPS, GUIDANCE = 10, 3.0
SHEET_COLUMNS, SHEET_CELL = 8, 112


class WorldValidation:
    """A `DecoderTask` whose validation has further metrics:

    - `words/exchanged`, `words/colours`, `words/shapes`: how much the loss rises at σ = 4 where a caption exchanges the colours of two
      objects, names other colours, or other shapes. 0: these words are not read.
    - `right/text/single`, …: share of images that show all that a prompt names, from the words alone; `right/image/…`: from the embedding of
      a render alone.

    Each validation writes a contact sheet of the images from words.
    """

    def __init__(
        self, task: DecoderTask, decoder: Decoder, encode: Encoding, reader: Reader, sheets: Path, seed: int
    ) -> None:
        self.modules = task.modules
        self._task, self._decoder, self._encode, self._reader = task, decoder, encode, reader
        self._sheets, self._seed, self._step = sheets, seed, 0
        self._prompts = [p for category in CATEGORIES for p in _prompts(category, seed)]
        pairs = [_shown(prompt, seed) for prompt in self._prompts]
        self._shown = encode(pairs).conditioning
        self._probes = {name: encode(pairs) for name, pairs in probe_pairs(seed).items()}

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """As the task's."""
        self._step = step + 1
        return self._task.loss(step)

    def validate(self) -> dict[str, float]:
        """The task's metrics and those of this class."""
        return self._task.validate() | self._reading() | self._accuracy()

    def _words(self, conditioning: Conditioning) -> Conditioning:
        """The text conditions alone, without regions."""
        names = [name for name in conditioning.conditions if name != "image"]
        plain = {name: replace(c, region_maps=None) for name, c in conditioning.conditions.items()}
        return only(Conditioning(plain), names)

    def _reading(self) -> dict[str, float]:
        """How much the loss rises where words are wrong."""
        latents = self._probes["right"].latents
        noise = torch.randn(latents.shape, generator=generator(self._seed, "probe noise")).to(latents)
        sigma = torch.full((len(latents),), PROBED).to(latents)
        denoiser = Preconditioned(self._decoder, self._decoder.config.sigma_data)
        losses = {}
        for name, batch in self._probes.items():
            with autocast(latents.device, self._encode.precision):
                found = denoising_loss(denoiser, latents, sigma, noise, self._words(batch.conditioning))
            losses[name] = found.mean().item()
        return {f"words/{name}": value - losses["right"] for name, value in losses.items() if name != "right"}

    def _accuracy(self) -> dict[str, float]:
        """The share of images that show all that their prompt names."""
        given = {"text": self._words(self._shown), "image": only(self._shown, ["image"])}
        found: dict[str, float] = {}
        for name, conditioning in given.items():
            images = self._images(conditioning)
            seen = self._reader.read(images)
            right = [
                all(fact.holds for fact in check_facts(prompt.description, one))
                for prompt, one in zip(self._prompts, seen, strict=True)
            ]
            for category in CATEGORIES:
                rows = self._rows(category)
                found[f"right/{name}/{category}"] = sum(right[i] for i in rows) / len(rows)
            if name == "text":
                self._write_sheet(images)
        return found

    def _images(self, conditioning: Conditioning) -> Float[Tensor, "N 3 H W"]:
        device, autoencoder = self._encode.clip.device, self._encode.autoencoder
        draws = [generator(self._seed, "validation image", prompt.text) for prompt in self._prompts]
        noise = per_sample_noise(autoencoder.latent_shape, draws, device)
        denoiser = Guided(Preconditioned(self._decoder, self._decoder.config.sigma_data), GUIDANCE)
        conditioning = Conditioning({n: replace(c, region_maps=None) for n, c in conditioning.conditions.items()})
        with autocast(device, self._encode.precision):
            latents = sample(denoiser, noise, KarrasSchedule().sigmas(STEPS), conditioning)
        return autoencoder.decode(latents)

    def _write_sheet(self, images: Float[Tensor, "N 3 H W"]) -> None:
        from PIL import Image

        pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
        rows = [i for category in CATEGORIES for i in self._rows(category)[:SHOWN]]
        lines = [rows[i : i + SHEET_COLUMNS] for i in range(0, len(rows), SHEET_COLUMNS)]
        cells = [[Image.fromarray(pixels[i]) for i in line] for line in lines]
        labels = [[self._prompts[i].text for i in line] for line in lines]
        self._sheets.mkdir(parents=True, exist_ok=True)
        contact_sheet(cells, labels, cell=SHEET_CELL).save(self._sheets / f"step-{self._step:07d}.png")

    def _rows(self, category: Category) -> list[int]:
        return [i for i, prompt in enumerate(self._prompts) if prompt.category == category]


def _prompts(category: Category, seed: int) -> list[Prompt]:
    """Seen and unseen ones in turn."""
    both = [prompts(category, PROMPTS // 2, seed, unseen, fewer=True) for unseen in (False, True)]
    return [prompt for pair in zip(*both, strict=False) for prompt in pair]


def _shown(prompt: Prompt, seed: int) -> Pair:
    """A scene that shows what the prompt names, with the prompt as its caption."""
    scene = scene_for(prompt.description, Draw(seed, "validation scene", prompt.text))
    return Pair(scene, Caption(prompt.text, prompt.description, prompt.spans))


def probe_pairs(seed: int) -> dict[str, list[Pair]]:
    """Scenes of two objects with a right caption and with wrong ones: colours exchanged, other colours, other shapes."""
    found: dict[str, list[Pair]] = {"right": [], "exchanged": [], "colours": [], "shapes": []}
    key = seed_of(seed, "probe")
    for number in range(PROBES):
        draw = Draw(key, "scene", number)
        shapes, colours = draw.order(SHAPES), draw.order(COLOURS)
        captions = {
            "right": _two(shapes[:2], colours[:2]),
            "exchanged": _two(shapes[:2], colours[1::-1]),
            "colours": _two(shapes[:2], colours[2:4]),
            "shapes": _two(shapes[2:4], colours[:2]),
        }
        scene = scene_for(captions["right"], draw)
        for name, description in captions.items():
            found[name].append(Pair(scene, language("en").caption(description, Draw(key, "words", number))))
    return found


def _two(shapes: Sequence, colours: Sequence) -> Description:
    return Description(tuple(Mention(shape, colour) for shape, colour in zip(shapes, colours, strict=True)))
