"""The facade that loads: models by name and folder, priors from elsewhere, parts that belong together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from syzygy.core import artifacts, model_parts
from syzygy.core.errors import UserError
from syzygy.core.model_parts import model_folder, part_folder
from syzygy.decoder.autoencoder import AutoencoderConfig, build_autoencoder
from syzygy.generation import own_models
from syzygy.generation.own_models import DEFAULTS
from syzygy.generation.text_to_image import TextToImage
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.prior_loading import load_prior

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImage:
    return TextToImage.from_pretrained(tiny_model)


def picture(model: TextToImage, **settings) -> bytes:
    return model(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0].tobytes()


def test_a_bundled_model_is_known_by_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_parts.BUNDLED, "starter", tiny_model)
    assert TextToImage.from_pretrained().name == "starter"
    assert model_folder("starter") == tiny_model
    assert part_folder("starter", "clip") == tiny_model / "clip"
    monkeypatch.setitem(model_parts.BUNDLED, "starter", tmp_path)
    with pytest.raises(UserError, match=r"the weights of 'starter' are missing.*syzygy train starter"):
        TextToImage.from_pretrained()


def test_steps_and_guidance_are_the_models_own_unless_given(model: TextToImage) -> None:
    assert model.defaults == DEFAULTS | {"num_inference_steps": 3, "style_guidance": 1.5}
    assert picture(model) == picture(model, num_inference_steps=3, guidance_scale=2.0)
    assert picture(model, num_inference_steps=4) != picture(model)
    assert picture(model, guidance_scale=0.0) != picture(model)
    with pytest.raises(UserError, match="0 steps"):
        picture(model, num_inference_steps=0)


def test_another_prior_is_a_folder_a_run_or_an_object(model: TextToImage, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_model / "prior", run / "prior")
    for prior in (tiny_model / "prior", run, str(run), model.pipeline.prior):
        assert picture(TextToImage.from_pretrained(tiny_model, prior=prior)) == picture(model)
    identity = TextToImage.from_pretrained(tiny_model, prior=TextIdentity(1.0))
    assert picture(identity) != picture(model)
    assert set(identity.fingerprints()) == {"clip", "decoder", "autoencoder"}


def test_an_unfinished_run_is_no_prior(model: TextToImage, tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "run.json", {})
    with pytest.raises(UserError, match="is not finished"):
        load_prior(tmp_path, model.clip)
    with pytest.raises(UserError, match="is not finished"):
        part_folder(tmp_path, "clip")


def test_fingerprints_tell_weights_apart(model: TextToImage, tiny_model: Path, tmp_path: Path) -> None:
    assert TextToImage.from_pretrained(tiny_model).fingerprints() == model.fingerprints()
    changed = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = artifacts.read_tensors(changed / "decoder" / artifacts.WEIGHTS_FILE)
    tensors["null_token"][0] += 1
    artifacts.write_tensors(changed / "decoder" / artifacts.WEIGHTS_FILE, tensors)
    other = TextToImage.from_pretrained(changed).fingerprints()
    assert {name for name, value in model.fingerprints().items() if other[name] != value} == {"decoder"}


@pytest.mark.parametrize("part", ["clip", "autoencoder"])
def test_parts_are_found_where_they_are(part: str, tiny_model: Path, tmp_path: Path) -> None:
    assert part_folder(tiny_model, part) == tiny_model / part
    assert part_folder(str(tiny_model / part), part) == tiny_model / part
    with pytest.raises(UserError, match=rf"{part} '.*nowhere' is neither a folder nor a known model. Known: starter"):
        part_folder(tmp_path / "nowhere", part)


def test_a_decoder_and_its_autoencoder_belong_together(tiny_model: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(tiny_model, tmp_path / "model")
    for config, message in (
        (AutoencoderConfig(image_size=32, channels=16, fine_channels=8), "trained with another autoencoder"),
        (AutoencoderConfig(image_size=32, channels=16, fine_channels=8, patch=8), r"reads \(4, 4, 4\)"),
    ):
        other = build_autoencoder(config, seed=1)
        other.set_statistics(torch.zeros(4), torch.ones(4))
        other.save_pretrained(changed / "autoencoder", {})
        with pytest.raises(UserError, match=message):
            TextToImage.from_pretrained(changed)


def test_notes_tell_what_the_world_does_not_know(model: TextToImage, tiny_model: Path, tmp_path: Path) -> None:
    assert model.notes(PROMPT) == []
    (note,) = model.notes("a red cirkle and a star")
    assert "'cirkle'; nearest known: circle" in note
    (note,) = model.notes("a storm")
    assert "names no object of this world" in note
    assert model.notes("ein roter Kreis") == ["'ein roter Kreis' is German; this model was trained on English only."]
    taught = replace(model, languages=("en", "de"))
    assert taught.notes("ein roter Kreis") == []
    (note,) = taught.notes("ein roter Krais und ein Stern")
    assert "'krais'; nearest known: kreis" in note
    with pytest.warns(UserWarning, match="cirkle"):
        model("a red cirkle and a star")
    changed = shutil.copytree(tiny_model, tmp_path / "model")
    artifacts.write_json(
        changed / model_parts.INDEX_FILE, artifacts.read_json(changed / model_parts.INDEX_FILE) | {"world": False}
    )
    assert TextToImage.from_pretrained(changed).notes("a storm") == []


def test_the_reader_comes_with_the_model(model: TextToImage) -> None:
    readings = model.reader().read(torch.rand(2, 3, 32, 32))
    assert len(readings) == 2


def test_assemble_replaces_a_model_whole(tiny_model: Path, tmp_path: Path) -> None:
    parts = {name: tiny_model / name for name in model_parts.COMPONENTS}
    for steps in (5, 6):
        own_models.write_model(parts, tmp_path / "model", world=False, defaults={"num_inference_steps": steps})
        loaded = TextToImage.from_pretrained(tmp_path / "model")
        assert (loaded.defaults["num_inference_steps"], loaded.world) == (steps, False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_read_of_prompts_is_the_models_own_choice_until_a_prior_is_named(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "words")
    index = artifacts.read_json(folder / "model_index.json")
    index["defaults"] = index.get("defaults", {}) | {"conditions": ["text", "t5"]}
    artifacts.write_json(folder / "model_index.json", index)
    words, all_of_it = TextToImage.from_pretrained(folder), TextToImage.from_pretrained(tiny_model)
    assert words.pipeline.conditions == ("text",), "the decoder reads no T5"
    assert picture(words) == picture(all_of_it, conditions=["text"]) != picture(all_of_it)
    assert picture(words, conditions=["image", "text"]) == picture(all_of_it)
    named = TextToImage.from_pretrained(folder, prior=tiny_model / "prior")
    assert named.pipeline.conditions == ("image", "text")
    assert picture(named) == picture(all_of_it), "a prior that is named is used"
    style = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert picture(words, style=style) == picture(all_of_it, style=style) != picture(words), (
        "a style is read in any case"
    )
    variation = [one.vary(style, generator=torch.Generator().manual_seed(0)).images[0] for one in (words, all_of_it)]
    assert variation[0] == variation[1]


def test_another_decoder(tiny_model: Path, tmp_path: Path) -> None:
    same = TextToImage.from_pretrained(tiny_model, decoder=tiny_model)
    assert same.fingerprints() == TextToImage.from_pretrained(tiny_model).fingerprints()
    for model, more, message in (
        (tiny_model, {"decoder": tiny_model, "experts": tmp_path}, "experts replace the decoder"),
        ("karlo", {"decoder": tiny_model}, "was not trained with this package"),
        (tiny_model, {"decoder": tmp_path / "none"}, "neither a folder nor a known model"),
        (tiny_model, {"decoder": tiny_model / "prior"}, "prior"),
    ):
        with pytest.raises(UserError, match=message):
            TextToImage.from_pretrained(model, **more)
