"""The figures of a decoder on three embeddings from the command line, on tiny untrained models with and without T5."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Guide, ImageDecoder, Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import build_decoder, save_decoder
from syzygy.decoder.network import DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import encoders, region_accuracy, temporal
from syzygy.lab.evaluate import style as evaluate_style
from syzygy.lab.evaluate.harness import FILE
from syzygy.lab.evaluate.region_accuracy import RegionsConfig
from syzygy.lab.evaluate.temporal import TemporalConfig
from syzygy.lab.world import scene_source
from syzygy.text_encoders.t5 import T5Config, build_t5

FEW = ("--prompts", 2, "--steps", 2)


@pytest.fixture(scope="module")
def with_t5(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose decoder reads image, text and T5."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "with-t5")
    texts = [pair.caption.text for length in ("short", "long") for pair in scene_source.pairs(0, 0, 40, length=length)]
    t5 = build_t5(T5Config(width=32, layers=1, decoder_layers=1, heads=2), texts, seed=0)
    t5.save_pretrained(folder / "t5", {})
    slots = (
        SlotConfig(name="image", pooled_width=32, pooled_tokens=1),
        SlotConfig(name="text", token_width=32, pooled_width=32),
        SlotConfig(name="t5", token_width=32),
    )
    backbone = UNetConfig(channels=(16, 32), attention=(False, True), head_width=16, norm_groups=8)
    sizes = {"size": 8, "cross_attention_width": 32, "vector_width": 32}
    decoder = build_decoder(DecoderConfig(slots=slots, backbone=backbone, **sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(decoder.backbone.unet.conv_out.weight, std=0.1)
        for name in ("image", "text"):
            decoder.set_scale(name, 0.5)
    beside = {"clip": Clip.from_pretrained(folder / "clip").fingerprint(), "t5": t5.fingerprint()}
    beside["autoencoder"] = Autoencoder.from_pretrained(folder / "autoencoder").fingerprint()
    shutil.rmtree(folder / "decoder")
    save_decoder(decoder, folder / "decoder", beside)
    return folder


class Recording(ImageDecoder):
    """A decoder that keeps the guide it was given."""

    def __init__(self, decoder) -> None:
        self.decoder, self.guides = decoder, []
        self.defaults = decoder.defaults

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.decoder.conditions

    def generate(self, positive: Guide, generators, **settings):
        self.guides.append(positive)
        return self.decoder.generate(positive, generators, **settings)


def test_a_style_takes_the_priors_place_and_the_texts_alone_tell_the_content(with_t5: Path) -> None:
    model, picture = (
        TextToImage.from_pretrained(with_t5),
        torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    recording = Recording(model.pipeline.decoder)
    own = replace(model.pipeline, decoder=recording)

    class Elsewhere:
        def predict(self, features, *, noise=None, generator=None):
            return model.pipeline.prior.predict(features, noise=noise) + 5

    def paint(pipeline, prompt="a red star and a blue ring", **settings) -> bytes:
        request = GenerationRequest([prompt], generator=torch.Generator().manual_seed(0), **settings)
        return pipeline(request).images[0].tobytes()

    style, other = model.embed_image(picture), replace(own, prior=Elsewhere())
    styled = paint(own, style=style)
    guide = recording.guides[-1]
    assert torch.equal(guide.embeddings, style)
    assert torch.equal(guide.features.states, model.clip.encode_text(["a red star and a blue ring"]).states)
    assert list(guide.texts) == ["a red star and a blue ring"]
    assert set(guide.conditions) == {"image", "text", "t5"}
    assert paint(other, style=style) == styled, "nothing of the prior is left"
    assert paint(other) != paint(own)
    assert paint(own, "a green moon", style=style) != styled
    assert paint(own, style=model.embed_image(1 - picture)) != styled
    alone = paint(own, "a green moon", style=style, conditions=["image", "text"])
    assert alone != paint(own, "a green moon", style=style), "T5 is read beside the style"


def test_the_content_of_a_style_is_taken_out_of_it(with_t5: Path) -> None:
    """Prediction of the prompt + style − prediction of the content, for each prompt and with its own ε."""
    model = TextToImage.from_pretrained(with_t5)
    prompts, contents = ["a red star", "a blue ring"], ["a green moon", "a cyan heart"]

    def embeddings(**settings: Any) -> Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return model.pipeline(GenerationRequest(generator=noise, **settings)).image_embeddings

    style = model.embed_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    expected = embeddings(prompts=prompts) + style - embeddings(prompts=contents)
    torch.testing.assert_close(embeddings(prompts=prompts, style=style, style_content=contents), expected)
    same = embeddings(prompts=prompts, style=style, style_content=contents[0])
    torch.testing.assert_close(same[0], expected[0])
    assert not torch.allclose(same[1], expected[1])
    noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    batches = GenerationRequest(prompts, style=style, style_content=contents, batch_size=1, generator=noise).batches()
    assert [one.style_content for one in batches] == [["a green moon"], ["a cyan heart"]]
    for settings, message in (
        ({"style_content": "a moon"}, "style_content describes a style"),
        ({"style": style, "style_content": " "}, "style_content is empty"),
        ({"style": style, "style_content": ["a moon"]}, "style_content is a list of 1 for 2 prompts"),
    ):
        with pytest.raises(UserError, match=message):
            embeddings(prompts=prompts, **settings)


def test_each_picture_may_have_a_style_of_its_own(tiny_model: Path) -> None:
    model = TextToImage.from_pretrained(tiny_model)
    random = torch.Generator().manual_seed(0)
    styles = torch.cat([model.embed_image(torch.rand(3, 32, 32, generator=random)) for _ in range(2)])

    def paint(style, prompts) -> list[Image.Image]:
        noise = [torch.Generator().manual_seed(0) for _ in prompts]
        return model.pipeline(GenerationRequest(prompts, style=style, generator=noise)).images

    both = paint(styles, ["a red star"] * 2)
    for picture, style in zip(both, styles, strict=True):
        alone = paint(style[None], ["a red star"])[0]
        assert max(abs(a - b) for a, b in zip(picture.tobytes(), alone.tobytes(), strict=True)) <= 1
    assert both[0].tobytes() != both[1].tobytes()


def test_style_is_measured_beside_its_controls(syzygy, with_t5: Path, tmp_path: Path) -> None:
    command = ("evaluate", "style", "--model", with_t5, *FEW, "--style-guidance", "1,4", "--out", tmp_path)
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert "Best on seen prompts:" in answer.out
    found = json.loads((tmp_path / "results.json").read_text())
    pictures = [f"{what}, W {w}" for what in ("reference", "reference without its content") for w in (1, 3, 4)]
    assert list(dict.fromkeys(row["candidate"] for row in found["rows"])) == [
        "text alone",
        "prior's embedding",
        "style in words",
        *pictures,
    ]
    assert found["conditions"] == ["image", "text", "t5"]
    assert {row["side"] for row in found["rows"]} == {"all", "seen", "unseen"}
    assert all({"style", "prompt_accuracy", "leaked"} <= row.keys() for row in found["rows"])
    assert all("against_text_alone" in row for row in found["rows"] if row["candidate"] in pictures)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 600
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("<svg") == 1
    assert "://" not in page


def test_regions_are_measured_with_their_controls(syzygy, with_t5: Path, tmp_path: Path) -> None:
    command = (
        "evaluate",
        "regions",
        "--model",
        with_t5,
        *FEW,
        "--strengths",
        "1,3",
        "--conditions",
        "text,t5",
        "--out",
        tmp_path,
    )
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert "Strength with most objects in place on seen prompts, by the reader: w'" in answer.out
    found = json.loads((tmp_path / "results.json").read_text())
    painted = ["w' 1", "w' 3"]
    assert list(dict.fromkeys(row["candidate"] for row in found["rows"])) == [
        "no regions",
        *painted,
        *(f"{name}, exchanged" for name in painted),
    ]
    assert (found["conditions"], found["prompts"], found["experts"]) == (["text", "t5"], 8, None)
    assert found["chosen_strength"] in (1.0, 3.0)
    assert all("against_no_regions" in row for row in found["rows"] if row["candidate"] in painted)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 600
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("<svg") == 1
    assert "://" not in page
    again = syzygy(*command, "--json", "-")
    assert json.loads(again.out) == found, "read from what was kept"


def test_the_control_has_no_regions_and_all_read_the_same_conditions(with_t5: Path) -> None:
    model, scoring = (
        TextToImage.from_pretrained(with_t5),
        RegionsConfig(prompts=1, steps=2, conditions=("text", "t5")),
    )
    asked = region_accuracy.region_cases(region_accuracy.region_prompts(scoring), 0)[:2]
    control, painted, *_ = (to_pil(one.generate(range(2))) for one in region_accuracy.candidates(model, asked, scoring))
    texts = [one.prompt.text for one in asked]
    sampling = Sampling(steps=2, guidance_scale=scoring.guidance_scale)

    def plain(**more) -> list[bytes]:
        noise = [generator(0, "painting", text) for text in texts]
        return [
            image.tobytes()
            for image in model.pipeline(GenerationRequest(texts, sampling=sampling, generator=noise, **more)).images
        ]

    assert [image.tobytes() for image in control] == plain(conditions=("text", "t5")) != plain()
    assert all(a.tobytes() != b.tobytes() for a, b in zip(control, painted, strict=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--strengths", "1,two"), "must be numbers joined by commas"),
        (("--strengths", "0"), "must be more than 0"),
        (("--conditions", "image"), "--conditions must name text or t5"),
    ],
)
def test_wrong_regions_are_refused(syzygy, tiny_model: Path, wrong: tuple[str, str], said: str) -> None:
    answer = syzygy("evaluate", "regions", "--model", tiny_model, *FEW, *wrong)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_the_former_name_of_regions_works_and_warns(syzygy, tiny_model: Path) -> None:
    answer = syzygy("evaluate", "painting", "--model", tiny_model, *FEW, "--strengths", "0")
    warning, error = answer.err.splitlines()
    assert warning == "warning: the command 'painting' is now called 'regions'; the old name will be removed."
    assert (answer.code, "strengths must be more than 0" in error) == (2, True)
    assert "painting" not in syzygy("evaluate", "--help").out


def test_swapped_prompts_are_measured_over_the_steps(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    command = ("evaluate", "temporal", "--model", tiny_model, "--prompts", 2, "--steps", 4, "--swaps", "75")
    command = (*command, "--conditions", "text", "--out", tmp_path)
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert "a swap in the last 7 % of the steps changes nothing" in answer.out
    found = json.loads((tmp_path / "results.json").read_text())
    rows = [row for row in found["rows"] if (row["category"], row["side"]) == ("all", "all")]
    assert [row["steps"] for row in rows] == [0, 2, 3, 4]
    levels = KarrasSchedule().sigmas(4).tolist()
    assert [row["sigma"] for row in rows] == pytest.approx([levels[step] for step in (0, 2, 3, 4)], abs=1e-4)
    assert (rows[-1]["unchanged"]["mean"], rows[-1]["first_less_never_swapped"]["mean"]) == (1.0, 0.0)
    assert rows[0]["second_less_from_the_start"]["mean"] == 0.0
    assert (found["conditions"], len(found["statements"]), found["prompts"]) == (["text"], 4, 8)
    assert (tmp_path / "prompt_accuracy.svg").read_text().startswith("<svg ")
    assert (tmp_path / "index.html").read_text().count("data:image/png;base64,") == 4 * 4
    again = syzygy(*command, "--json", "-")
    assert json.loads(again.out) == found, "read from what was kept"


def test_what_is_swapped_is_what_is_generated(with_t5: Path) -> None:
    model, scoring = TextToImage.from_pretrained(with_t5), TemporalConfig(prompts=2, steps=4)
    asked = temporal.paired_prompts(scoring)[:4]

    def pictures(prompts, before: int) -> list[bytes]:
        return [one.tobytes() for one in to_pil(temporal.generate(model, prompts, scoring, before))]

    never, late, always = (pictures(asked, before) for before in (4, 2, 0))
    noise = [generator(0, "temporal", prompt.text) for prompt in asked]
    sampling = Sampling(steps=4, guidance_scale=3.0)
    plain = [
        one.tobytes()
        for one in model.pipeline(GenerationRequest([p.text for p in asked], sampling=sampling, generator=noise)).images
    ]
    assert never == plain, "without a swap it is what generate gives"
    assert all(len({a, b, c}) == 3 for a, b, c in zip(never, late, always, strict=True))


def test_encoders_are_compared_on_short_and_long_prompts(
    syzygy, with_t5: Path, tiny_model: Path, tmp_path: Path
) -> None:
    answer = syzygy("evaluate", "encoders", "--model", with_t5, *FEW, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "Left out" not in answer.out
    found = json.loads((tmp_path / "results.json").read_text())
    names = ["CLIP text", "T5", "both texts", "image of the prior", "everything"]
    expected = ["nothing read", *(f"{name}, {length}" for length in ("short", "long") for name in names)]
    assert list(dict.fromkeys(row["candidate"] for row in found["rows"])) == expected
    counts = {(one["encoder"], one["length"]): one for one in found["tokens"]}
    assert counts["CLIP text", "long"]["cut"] == found["prompts"] == 26
    assert counts["CLIP text", "long"]["most"] == 77
    assert counts["T5", "long"]["cut"] == counts["T5", "short"]["cut"] == counts["CLIP text", "short"]["cut"] == 0
    assert 100 <= counts["T5", "long"]["fewest"] <= counts["T5", "long"]["most"] <= 320
    by = {(row["candidate"], row["category"], row["side"]): row for row in found["rows"]}
    assert {"against_texts", "against_short", "against_nothing"} <= by["T5, long", "all", "all"].keys()
    assert "against_texts" not in by["both texts, long", "all", "all"]
    assert "://" not in (tmp_path / "index.html").read_text()
    few = ("--steps", 1, "--prompts", 2, "--categories", "spatial", "--json", "-")
    some = json.loads(syzygy("evaluate", "encoders", "--model", with_t5, *few).out)
    assert {row["category"] for row in some["rows"]} == {"spatial", "all"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("style", "--style-guidance", "much"), "must be numbers joined by commas"),
        (("style", "--style-guidance", "-1"), "at least 0"),
        (("style", "--references", "5"), "from 1 to 4"),
        (("temporal", "--swaps", "120"), "from 0 to 100"),
        (("temporal", "--conditions", "sound"), "must be one or more of what the decoder reads"),
        (("encoders", "--prompts", "0"), "at least 2"),
        (("encoders", "--out", "/dev/null/out"), "cannot write"),
        (("temporal", "--model", "stater"), "stater"),
        (("style", "--guidance-scale", "nan"), "guidance"),
    ],
)
def test_wrong_input_is_answered_in_two_lines(syzygy, tiny_model: Path, arguments: tuple[str, ...], said: str) -> None:
    model = () if "--model" in arguments else ("--model", tiny_model)
    few = () if "--prompts" in arguments else FEW
    answer = syzygy("evaluate", arguments[0], *model, *few, *arguments[1:])
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_another_evaluations_folder_is_refused(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"evaluation": "style"}\n')
    answer = syzygy("evaluate", "temporal", "--model", tiny_model, *FEW, "--out", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "predictions of another evaluation" in answer.err


def test_decoders_that_read_no_text_are_refused(tiny_kandinsky) -> None:
    decoder, clip, prior = tiny_kandinsky
    model = TextToImage.from_pretrained(decoder, clip=clip, prior=prior)
    with pytest.raises(
        UserError, match=r"needs a prior, and a decoder that reads image and text; the decoder of .* reads image"
    ):
        evaluate_style.check(model)
    with pytest.raises(UserError, match="only in Syzygy's own decoders"):
        temporal.check(model)
    with pytest.raises(UserError, match="no text encoders to compare"):
        encoders.conditions_compared(model.pipeline.decoder.conditions)
