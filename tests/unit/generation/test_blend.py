"""Variations, mixtures, paths and the best of several, on stand-ins whose pictures tell what reached the decoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.core.contracts import Guide, ImageDecoder, Progress, Sampling, TextFeatures
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.randomness import generator
from syzygy.generation.best_of import best, clip_scores
from syzygy.generation.mixing import image_of, mixed, pictures_of, read_source
from syzygy.generation.pipeline import Pipeline, PipelineOutput, to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from tests.closeness import assert_close

WIDTH, SIDE = 8, 8


class Texts:
    """Words → random features keyed by the text."""

    width = WIDTH

    def encode_text(self, texts: list[str]) -> TextFeatures:
        pooled = torch.stack([torch.randn(WIDTH, generator=generator(0, text)) for text in texts])
        return TextFeatures(pooled[:, None], torch.ones(len(texts), 1, dtype=torch.bool), pooled)


class Prior:
    """The pooled text embedding plus a little noise."""

    def predict(self, features, *, noise=None, generator=None):
        assert noise is not None
        return features.pooled + 0.01 * noise


class Half:
    """A CLIP's preparation: 8 × 8 pixels, halved."""

    def prepare(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.tensor(list(image.convert("RGB").resize((SIDE, SIDE)).tobytes())).view(SIDE, SIDE, 3)
        return pixels.permute(2, 0, 1) / 255 / 2


class Eye:
    """Pictures → the colours of their corners; of prepared photographs with the other sign, so that the two ways can be told apart."""

    width = WIDTH
    preparation = Half()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        corners = images[:, :, :: SIDE - 1, :: SIDE - 1].flatten(1)
        return 3 * corners[:, -WIDTH:] - 1

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return -self.encode_image(2 * pixels)


class Decoder(ImageDecoder):
    """Paints the embedding as colours, and each generator's next number into the blue corner. Remembers what it was told."""

    reads_text = True
    defaults = Sampling(steps=2)

    def __init__(self) -> None:
        self.told: list[tuple[Guide, Guide | None, Sampling]] = []

    def generate(self, positive, generators, *, negative=None, sampling=Sampling(), on_step=None):  # noqa: B008
        self.told.append((positive, negative, sampling))
        pictures = positive.embeddings.sigmoid().mean(1)[:, None, None, None].repeat(1, 3, SIDE, SIDE)
        for picture, one in zip(pictures, generators, strict=True):
            picture[2, 0, 0] = torch.rand((), generator=one)
        if on_step:
            on_step(Progress(1, 1, 1.0, None))
        return pictures


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture
def model(decoder: Decoder) -> TextToImage:
    eye: Any = Eye()
    found = TextToImage(
        "tiny", lambda: eye, Pipeline(Texts(), Prior(), decoder, torch.device("cpu")), Path(), world=False
    )
    found.__dict__["clip"] = eye  # as if loaded: the property itself is of a whole CLIP
    return found


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def bits(output: PipelineOutput) -> list[bytes]:
    return [image.tobytes() for image in output.images]


def test_variations_come_from_the_picture_alone(model: TextToImage, decoder: Decoder) -> None:
    a, b = picture(1), picture(2)
    output = model.vary([a, b], num_images=3, generator=seeds(0, 1, 2, 0, 1, 2))
    expected = Eye().encode_image(torch.stack([a, b])).repeat_interleave(3, 0)
    assert torch.equal(output.image_embeddings, expected)
    ((positive, negative, _),) = decoder.told
    assert (positive.features, positive.texts, negative) == (None, None, None)
    assert len(set(bits(output))) == 6
    assert output.seeds == [0, 1, 2, 0, 1, 2]
    alone = model.vary([b], num_images=1, generator=seeds(2))
    assert bits(alone) == bits(output)[5:]


def test_a_picture_is_a_file_pixels_or_numbers(model: TextToImage, tmp_path: Path) -> None:
    (image,) = to_pil(picture(0)[None])
    image.save(tmp_path / "a.png")
    ways = (image, tmp_path / "a.png", str(tmp_path / "a.png"), torch.tensor(bytearray(image.tobytes())))
    found = [model.embed_image(way) for way in ways[:3]]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    as_numbers = ways[3].view(SIDE, SIDE, 3).permute(2, 0, 1) / 255
    assert_close(model.embed_image(as_numbers), -found[0])


def test_a_picture_starts_from_the_noise_of_its_seed_whatever_it_is_of(model: TextToImage) -> None:
    """The blue corner is the decoder's first number: `generate` with the same seed draws the same."""
    corner = {
        model("a star", generator=seeds(4)).images[0].getpixel((0, 0))[2],
        model.vary([picture(0)], num_images=1, generator=seeds(4)).images[0].getpixel((0, 0))[2],
        model.mix([("a", 1.0), (picture(0), 1.0)], num_images=1, generator=seeds(4)).images[0].getpixel((0, 0))[2],
        *(i.getpixel((0, 0))[2] for i in model.interpolate("a", "b", 3, batch_size=2, generator=seeds(4)).images),
    }
    assert len(corner) == 1


def test_a_mixture_is_of_predicted_and_of_real_image_embeddings(model: TextToImage, decoder: Decoder) -> None:
    sources = [("a red circle", 0.6), (picture(0), 0.4), ("a star", 0.0)]
    output = model.mix(sources, num_images=2, generator=seeds(0, 1))
    noise = model.pipeline.noise(seeds(0, 1))
    text = Texts().encode_text(["a red circle"]).pooled + 0.01 * noise
    image = Eye().encode_image(picture(0)[None]).expand(2, -1)
    assert torch.equal(output.image_embeddings, mixed(torch.stack([text, image]), [0.6, 0.4]))
    assert decoder.told[0][0].features is None


def test_a_mixture_of_one_is_that_one(model: TextToImage) -> None:
    as_mixture = model.mix([("a star", 0.3)], num_images=1, generator=seeds(7))
    assert bits(as_mixture) == bits(model("a star", generator=seeds(7), conditions=["image"]))
    as_mixture = model.mix([(picture(0), 1.0), ("a star", 0.0)], num_images=1, generator=seeds(7))
    assert bits(as_mixture) == bits(model.vary([picture(0)], num_images=1, generator=seeds(7)))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_path_begins_and_ends_with_its_sources(model: TextToImage, batch_size: int) -> None:
    output = model.interpolate("a star", picture(0), 5, batch_size=batch_size, generator=seeds(3))
    assert len(output.images) == 5
    assert output.seeds == [3] * 5
    ends = model.mix([("a star", 1.0)], num_images=1, generator=seeds(3))
    assert torch.equal(output.image_embeddings[0], ends.image_embeddings[0])
    assert torch.equal(output.image_embeddings[-1:], Eye().encode_image(picture(0)[None]))
    assert bits(output)[:1] == bits(ends)
    assert bits(output)[-1:] == bits(model.vary([picture(0)], num_images=1, generator=seeds(3)))


def test_settings_reach_the_decoder(model: TextToImage, decoder: Decoder) -> None:
    steps = []
    sampling = Sampling(steps=7, guidance_scale=3.0)
    settings: dict[str, Any] = {"num_inference_steps": 7, "guidance_scale": 3.0, "negative_prompt": "a moon"}
    settings["callback"] = lambda progress: steps.append(progress.step)
    model.vary([picture(0)], **settings)
    model.mix([("a", 1.0)], **settings)
    model.interpolate("a", "b", 2, **settings)
    for positive, negative, told in decoder.told:
        assert told == sampling
        assert negative is not None
        assert torch.equal(negative.embeddings, Texts().encode_text(["a moon"]).pooled)
        assert (negative.features, positive.features) == (None, None)
    assert steps == [1, 1, 1]


def painted(*numbers: int) -> PipelineOutput:
    level = torch.tensor([number / 255 for number in numbers])
    return PipelineOutput(to_pil(level[:, None, None, None].expand(-1, 3, 1, 1)), level[:, None], list(numbers))


def test_the_best_of_each_pictures_own_candidates_is_kept() -> None:
    outputs = [painted(0, 3), painted(1, 4), painted(2, 5)]
    output = best(outputs, torch.tensor([[0.1, 0.8], [0.9, 0.7], [0.5, 0.95]]))
    assert output.seeds == [1, 5]
    assert [image.getpixel((0, 0))[0] for image in output.images] == [1, 5]
    assert_close(output.scores, torch.tensor([0.9, 0.95]))
    assert_close(output.image_embeddings, torch.tensor([[1 / 255], [5 / 255]]))


def test_candidates_are_those_of_each_image() -> None:
    request = GenerationRequest(["a", "b"], best_of=3, generator=seeds(0, 1, 2, 3, 4, 5), batch_size=1)
    first, second = request.batches()
    assert ([*first.prompts], [*second.prompts]) == (["a"], ["b"])
    assert [[one.initial_seed() for one in part.generator] for part in second.candidates()] == [[3], [4], [5]]


def test_more_candidates_never_score_less(model: TextToImage) -> None:
    def scores(k: int) -> torch.Tensor:
        numbers = [10 * i + j for i in range(3) for j in range(k)]
        output = model.vary([picture(0)], num_images=3, generator=seeds(*numbers), best_of=k)
        again = clip_scores(output.images, Eye().encode_image(picture(0)[None]).expand(3, -1), Eye())
        if k > 1:
            assert_close(output.scores, again)
        return again

    one, four = scores(1), scores(4)
    assert (four >= one).all()
    assert (four > one).any()


def test_the_kept_seed_paints_the_picture_again(model: TextToImage) -> None:
    output = model.mix([("a", 0.5), (picture(0), 0.5)], num_images=2, generator=seeds(9)[0], best_of=3)
    again = model.mix([("a", 0.5), (picture(0), 0.5)], num_images=2, generator=seeds(*output.seeds))
    assert bits(again) == bits(output)


def test_what_a_source_is_read_as(tmp_path: Path) -> None:
    odd = tmp_path / "photo of mine"
    odd.write_bytes(b"")
    assert read_source(str(odd)) == odd
    assert read_source("nowhere.PNG") == Path("nowhere.PNG")
    for text in (
        "a red circle",
        "",
        "a circle. A star.",
        "a/b",
        "x" * 5000,
        "a\0b",
        str(tmp_path),
        "f/2.8, v.good",
        "and/or. Yes",
    ):
        assert read_source(text) == text
    both = torch.stack([picture(0), picture(1)])
    assert [len(pictures_of(given)) for given in ("a.png", both[0], both, [both[0], "a.png"])] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "name", ["photo.heic", "a b.HEIF", "x.jxl", "logo.svg", "work.psd", "IMG_1.CR2", "photos/cat.xyz", r"C:\\cat.foo"]
)
def test_what_looks_like_a_file_name_must_exist(model: TextToImage, name: str) -> None:
    with pytest.raises(UserError, match=r"there is no file .*must not end in \."):
        model.mix([("a star", 1.0), (name, 1.0)], num_images=1)


def test_an_address_is_no_file(model: TextToImage) -> None:
    with pytest.raises(UserError, match=r"is an address\. Download the picture"):
        model.mix([("https://host.example/cat.jpg", 1.0)], num_images=1)


def test_a_photograph_is_the_same_as_a_file_and_as_a_pillow_image(model: TextToImage, tmp_path: Path) -> None:
    """Turned, transparent and of a palette: its embedding is that of the upright picture on white."""
    upright = Image.new("RGB", (SIDE, SIDE), "white")
    upright.paste("red", (0, 0, SIDE // 2, SIDE // 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90).convert("RGBA")
    turned.putalpha(turned.convert("L").point(lambda level: 0 if level == 255 else 255))
    turned.info["exif"] = exif.tobytes()
    turned.save(tmp_path / "a.png", exif=exif)
    wanted = model.embed_image(upright)
    for given in (turned, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(model.embed_image(given), wanted)


@pytest.mark.parametrize("given", [np.zeros((4, 4, 3)), None, 3])
def test_other_values_are_no_pictures(given: Any) -> None:
    with pytest.raises(UserError, match=r"a picture is a file's name, a Pillow image or a tensor \[3, H, W\], not "):
        image_of(given)


def _bomb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


def _truncated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_pil(torch.rand(1, 3, 64, 64))[0].save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _no_picture(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("not a picture")


def _missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (_bomb, "too many pixels"),
        (_truncated, "cannot be read as a picture"),
        (_no_picture, "its format is not known"),
        (_missing, "there is no file"),
    ],
)
def test_a_broken_picture(
    breaks: Any, message: str, model: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    breaks(path, monkeypatch)
    for use in (
        lambda: model.vary([path], num_images=1),
        lambda: model.mix([(str(path), 1.0)], num_images=1),
        lambda: model.interpolate("a star", str(path), 2, batch_size=1),
    ):
        with pytest.raises(UserError, match=message):
            use()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda b: b.vary([], num_images=1), "no picture to vary"),
        (lambda b: b.vary([picture(0)], num_images=0), "num_images must be a whole number of at least 1"),
        (lambda b: b.vary([255 * picture(0)], num_images=1), "a picture's numbers are from 0 to 1"),
        (lambda b: b.vary([picture(0) * float("nan")], num_images=1), "a picture's numbers are from 0 to 1"),
        (lambda b: b.vary([picture(0)[0]], num_images=1), r"a picture is a tensor \[3, H, W\]"),
        (lambda b: b.vary([picture(0).byte()], num_images=1), "floating-point"),
        (lambda b: b.vary([picture(0)], num_images=1, best_of=0), "best_of must be a whole number of at least 1"),
        (lambda b: b.vary([picture(0)], num_images=2, best_of=2, generator=seeds(0, 1)), "2 generators for 4 images"),
        (lambda b: b.mix([], num_images=1), "nothing to mix"),
        (lambda b: b.mix([("a", 1.0)], num_images=0), "num_images must be a whole number of at least 1"),
        (lambda b: b.mix([(" ", 1.0)], num_images=1), "the prompt is empty"),
        (lambda b: b.mix([("a", 60.0), ("b", 0.4)], num_images=1), "weight 60 is out of scale"),
        (lambda b: b.interpolate("a", "b", 1, batch_size=1), "frames must be a whole number of at least 2"),
        (lambda b: b.interpolate("a", "", 2, batch_size=1), "the prompt is empty"),
    ],
)
def test_wrong_input(use: Callable[[TextToImage], Any], message: str, model: TextToImage) -> None:
    with pytest.raises(UserError, match=message):
        use(model)


def test_a_decoder_that_reads_no_embedding_cannot_vary(model: TextToImage, decoder: Decoder) -> None:
    decoder.reads_image_embedding = False
    with pytest.raises(UserError, match="tiny reads texts alone: it cannot vary or mix"):
        model.vary([picture(0)], num_images=1)


def test_each_picture_may_have_a_negative_prompt(model: TextToImage, decoder: Decoder) -> None:
    model.vary([picture(0), picture(1)], num_images=2, negative_prompt=["a moon", "a star"])
    negative = decoder.told[-1][1]
    assert negative is not None
    assert torch.equal(negative.embeddings, Texts().encode_text(["a moon", "a moon", "a star", "a star"]).pooled)
    with pytest.raises(UserError, match="a list of 1 for 2 pictures"):
        model.vary([picture(0), picture(1)], num_images=1, negative_prompt=["a moon"])


def test_seeds_of_used_generators_are_unknown(model: TextToImage) -> None:
    used = seeds(3)[0]
    torch.rand(1, generator=used)
    state = used.get_state()
    assert model.vary([picture(0)], num_images=2, generator=[used, *seeds(5)]).seeds == [None, 5]
    assert model.mix([("a", 1.0)], num_images=1, generator=[used.set_state(state)]).seeds == [None]
    assert model.interpolate("a", "b", 2, batch_size=1, generator=[used.set_state(state)]).seeds == [None, None]


def test_what_is_not_finite_is_refused(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eye, "encode_image", lambda _self, images: torch.full((len(images), WIDTH), float("nan")))
    with pytest.raises(NonFiniteError, match=r"image embeddings hold .*: image 1 of 2 \(seed 4\), image 2 of 2"):
        model.vary([picture(0)], num_images=2, generator=seeds(4, 5))
    with pytest.raises(UserError, match=r"CLIP scores that choose the best of 2 are not finite.*fp32"):
        best([painted(0), painted(1)], torch.tensor([[float("nan")], [0.0]]))
