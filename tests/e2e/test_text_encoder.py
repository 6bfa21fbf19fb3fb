"""A language model with its adapter in CLIP's place: in every model, through Python and the command line, tiny and random."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts, model_parts
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation import own_models
from syzygy.generation.best_of import clip_scores
from syzygy.generation.image_files import read_record
from syzygy.generation.prior_pipeline import PriorPipeline
from syzygy.generation.replaced_text_encoder import adapt, with_text
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.composition import candidate_embeddings
from syzygy.lab.evaluate.harness import evaluation_prompts
from syzygy.lab.starter.prior_training import embed
from syzygy.lab.world import scene_source as source
from syzygy.pretrained.karlo import KarloDecoder
from syzygy.pretrained.visiting import VisitingPrior, VisitingText
from syzygy.prior.diffusion_prior import DiffusionPrior, DiffusionPriorConfig, SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.llm import Llm
from tests.closeness import NETWORK, assert_close
from tests.tiny_adapter import save_tiny_adapter, with_adapter
from tests.tiny_karlo import tiny_karlo
from tests.tiny_llm import save_tiny_llm
from tests.tiny_unclip import Tiny

ENGLISH, GERMAN = "a red circle", "ein roter Kreis"


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of our models with an adapter of its own."""
    return with_adapter(tiny_model, tmp_path_factory.mktemp("models") / "adapted", languages=("en", "de"))


@pytest.fixture(scope="module")
def adapted(model: Path) -> TextToImage:
    return TextToImage.from_pretrained(model, text_encoder="adapter")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(model: TextToImage, prompt: str = ENGLISH, **settings: Any) -> bytes:
    return model(prompt, generator=seeded(), **settings).images[0].tobytes()


def test_prior_and_decoder_read_its_features(adapted: TextToImage, model: Path) -> None:
    plain = TextToImage.from_pretrained(model)
    assert picture(adapted) != picture(plain)
    assert picture(adapted, conditions=["image"]) != picture(plain, conditions=["image"])  # the prior
    assert picture(adapted, conditions=["text"]) != picture(plain, conditions=["text"])  # the decoder
    assert picture(adapted, GERMAN) != picture(adapted)
    assert isinstance(adapted.pipeline.text_encoder, AdaptedText)
    away = adapted(ENGLISH, generator=seeded(), negative_prompt=GERMAN, guidance_scale=4.0).images[0].tobytes()
    crossed = with_text(adapted.pipeline, adapted.clip)
    assert away != picture(adapted, guidance_scale=4.0)
    assert away != crossed(GenerationRequest([ENGLISH], generator=seeded(), negative_prompt=GERMAN)).images[0].tobytes()


def test_without_it_nothing_of_it_is_read(model: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(Llm, "from_pretrained", never)
    with_parts, without = TextToImage.from_pretrained(model), TextToImage.from_pretrained(tiny_model)
    assert picture(with_parts) == picture(without)
    assert with_parts.fingerprints() == without.fingerprints()
    assert with_parts.languages == ("en",)
    with pytest.raises(AssertionError, match="was loaded"):
        TextToImage.from_pretrained(model, text_encoder="adapter")


def test_where_an_adapter_may_be(
    adapted: TextToImage, model: Path, llm: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for place in (model, model / "adapter", str(model)):
        assert picture(TextToImage.from_pretrained(tiny_model, text_encoder=place)) == picture(adapted)
    alone = shutil.copytree(model / "adapter", tmp_path / "adapter")
    moved = shutil.copytree(model / "llm", tmp_path / "moved")
    assert picture(TextToImage.from_pretrained(tiny_model, text_encoder=alone, llm=moved)) == picture(adapted)
    with pytest.raises(UserError, match="made with other features of a language model"):
        TextToImage.from_pretrained(model, text_encoder="adapter", llm=llm)  # not the one that lies beside it
    with pytest.raises(UserError, match=r"has no adapter of its own: name the folder of one"):
        TextToImage.from_pretrained(tiny_model, text_encoder="adapter")
    with pytest.raises(UserError, match="no effect without its adapter"):
        TextToImage.from_pretrained(tiny_model, llm=moved)


def test_a_model_is_put_together_with_one(model: Path, adapted: TextToImage, tmp_path: Path) -> None:
    parts = {name: model / name for name in (*model_parts.COMPONENTS, "llm", "adapter")}
    own_models.write_model(parts, tmp_path / "whole", world=True, defaults={"num_inference_steps": 3})
    path = tmp_path / "whole" / "adapter" / artifacts.PROVENANCE_FILE
    record = artifacts.read_json(path)
    artifacts.write_json(path, record | {"llm": record["llm"] | {"source": "gone/since"}})
    loaded = TextToImage.from_pretrained(tmp_path / "whole", text_encoder="adapter")
    assert picture(loaded) == picture(adapted)
    assert loaded.fingerprints() == adapted.fingerprints()
    with pytest.raises(AssertionError, match="its language model"):
        own_models.write_model(
            {name: parts[name] for name in parts if name != "llm"}, tmp_path / "half", world=True, defaults={}
        )


def test_the_starter_is_small() -> None:
    folder = model_parts.BUNDLED["starter"]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 40e6


def test_what_was_taught_is_understood(adapted: TextToImage) -> None:
    assert adapted.languages == ("en", "de")
    assert adapted.notes(GERMAN) == []
    (note,) = adapted.notes("un cercle rouge")
    assert note.endswith("is French; this model was trained on English and German only.")
    (note,) = adapted.notes("ein roter Krais und ein Stern")
    assert "'krais'; nearest known: kreis" in note


def test_a_language_model_from_elsewhere_may_know_any_word(model: Path, tmp_path: Path) -> None:
    """Whether it was trained here is in its folder; others are not measured by the words of the world."""
    clip = Clip.from_pretrained(model / "clip")
    folder = save_tiny_adapter(
        tmp_path / "adapter", save_tiny_llm("llama", tmp_path / "llm"), clip, languages=("en", "de")
    )
    found = TextToImage.from_pretrained(model, text_encoder=folder)
    assert found.adapter
    assert found.notes("un cercle rouge") == found.notes("ein roter Krais und ein Stern") == []


def test_the_best_of_several_is_nearest_to_what_was_predicted(adapted: TextToImage) -> None:
    seeds = [seeded(seed) for seed in range(3)]
    found = adapted(GERMAN, generator=seeds, best_of=3)
    alone = [adapted([GERMAN], generator=[seeded(seed)]) for seed in range(3)]
    scores = [float(clip_scores(one.images, one.image_embeddings, adapted.clip)) for one in alone]
    assert found.scores is not None
    assert float(found.scores[0]) == pytest.approx(max(scores), abs=1e-4)
    with pytest.raises(UserError, match="a style replaces this embedding"):
        adapted(GERMAN, generator=seeds, best_of=3, style=torch.rand(3, 32, 32))


def test_words_of_an_adapter_cannot_be_painted(adapted: TextToImage) -> None:
    region = Region("red circle", torch.ones(4, 4))
    with pytest.raises(UserError, match=r"do not belong to single words: leave the text encoder out"):
        adapted(ENGLISH, regions=[region])
    with pytest.raises(UserError, match=r"do not belong to single words: leave the text encoder out"):
        adapted(ENGLISH, regions=[region], conditions=["image", "text"])


def test_the_recipe_names_it(syzygy: Callable[..., Any], model: Path, adapted: TextToImage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = syzygy("generate", GERMAN, "--model", model, "--text-encoder", "adapter", "--out", out, "--json")
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(answer.out)
    assert told["settings"]["text_encoder"] == "adapter"
    prints = adapted.fingerprints()
    assert {name: told["settings"]["fingerprints"][name] for name in ("text_encoder", "llm")} == {
        name: prints[name] for name in ("text_encoder", "llm")
    }
    assert read_record(Path(told["images"][0]["path"]))["fingerprints"]["text_encoder"] == prints["text_encoder"]
    plain = syzygy("generate", ENGLISH, "--model", model, "--out", out, "--json")
    settings = json.loads(plain.out)["settings"]
    assert not {"text_encoder", "llm"} & (settings.keys() | settings["fingerprints"].keys())
    source = tmp_path / "source.png"
    Image.new("RGB", (32, 32), "red").save(source)
    for command in (["mix", GERMAN, source], ["vary", source, "--negative-prompt", GERMAN]):
        both = []
        for more in ([], ["--text-encoder", "adapter"]):
            answer = syzygy(*command, "--model", model, "--out", tmp_path / f"{command[0]}{len(more)}", "--json", *more)
            assert answer.code == 0, answer.err
            both.append(Image.open(json.loads(answer.out)["images"][0]["path"]).tobytes())
        assert both[0] != both[1]
    answer = syzygy("generate", ENGLISH, "--model", model, "--text-encoder", tmp_path / "none", "--out", out)
    assert (answer.code, "is neither a folder nor a known model" in answer.err) == (2, True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm("qwen3", tmp_path_factory.mktemp("llm") / "qwen3")


def published(tiny: Tiny, **settings: Any) -> TextToImage:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stable unCLIP's U-Net")
        return TextToImage.from_pretrained(tiny.decoder, clip=tiny.clip, prior=tiny.prior, **settings)


def few(model: TextToImage, prompt: str, **settings: Any) -> bytes:
    return picture(model, prompt, num_inference_steps=2, **settings)


def test_kandinsky_and_its_drop_in(tiny_kandinsky: Tiny, llm: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(tiny_kandinsky.clip, text_first=True)
    adapter = save_tiny_adapter(tmp_path / "adapter", llm, clip, queries=5)
    model, plain = published(tiny_kandinsky, text_encoder=adapter), published(tiny_kandinsky)
    assert few(model, GERMAN) not in (few(plain, GERMAN), few(model, ENGLISH))
    assert model.fingerprints().keys() - plain.fingerprints().keys() == {"text_encoder", "llm"}
    noise = torch.randn(1, clip.width, generator=seeded())
    ours: Any = PriorPipeline.from_pretrained(tiny_kandinsky.prior, clip=tiny_kandinsky.clip, text_encoder=adapter)
    theirs: Any = PriorPipeline.from_pretrained(tiny_kandinsky.prior, clip=tiny_kandinsky.clip)
    found = ours(GERMAN, latents=noise).image_embeds
    assert_close(found, model.pipeline.predict([GERMAN], [0], noise)[1], depth=NETWORK)
    assert not torch.allclose(found, theirs(GERMAN, latents=noise).image_embeds)
    assert torch.equal(ours(GERMAN, latents=noise).negative_image_embeds, theirs(GERMAN).negative_image_embeds)
    with pytest.raises(UserError, match="no effect without its adapter"):
        PriorPipeline.from_pretrained(tiny_kandinsky.prior, clip=tiny_kandinsky.clip, llm=llm)


def test_a_diffusion_prior_is_guided_away_from_what_it_makes_of_nothing(adapted: TextToImage) -> None:
    encoder = adapted.pipeline.text_encoder
    assert isinstance(encoder, AdaptedText)
    sizes: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    network = DiffusionPrior(DiffusionPriorConfig(embedding_dim=encoder.width, **sizes))
    alone = SampledPrior(network, adapted.clip.encode_text([""]))
    for prior in (alone, VisitingPrior(alone, torch.device("cpu"))):
        found = with_text(replace(adapted.pipeline, prior=prior), encoder).prior
        assert type(found) is type(prior)
        inner = found.prior if isinstance(found, VisitingPrior) else found
        assert isinstance(inner, SampledPrior)
        assert_close(inner.unconditional.states, encoder.encode_text([""]).states, depth=NETWORK)


def test_a_decoder_reads_the_states_that_it_was_trained_with(adapted: TextToImage) -> None:
    encoder, decoder = adapted.pipeline.text_encoder, adapted.pipeline.decoder
    assert isinstance(encoder, AdaptedText)
    assert isinstance(decoder, LatentDecoder)
    path = replace(adapted.pipeline, decoder=replace(decoder, encoders={"t5": encoder.llm}))
    assert with_text(path, encoder).conditions == ("image",)
    assert with_text(path, encoder, decoder_knows=True).conditions == ("image", "text")


def test_karlos_decoder_reads_it_too(llm: Path, tmp_path: Path) -> None:
    tiny = tiny_karlo(tmp_path)
    clip = Clip.from_pretrained(tiny.clip, text_first=True)
    model = published(tiny, text_encoder=save_tiny_adapter(tmp_path / "adapter", llm, clip, queries=5))
    plain = published(tiny)
    for reads in (["image"], ["text"], None):
        if reads != ["text"]:  # Karlo paints from embeddings
            assert few(model, GERMAN, conditions=reads) != few(plain, GERMAN, conditions=reads)
    assert model.pipeline.text_encoder is not None
    assert isinstance(model.pipeline.decoder, KarloDecoder)
    assert_close(
        model.pipeline.decoder.empty.states, model.pipeline.text_encoder.encode_text([""]).states, depth=NETWORK
    )
    with pytest.raises(UserError, match="do not belong to single words"):
        few(model, ENGLISH, regions=[Region("red", torch.ones(2, 2))])


def test_stable_unclips_unet_goes_on_with_its_own(tiny_stable_unclip: Tiny, llm: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(tiny_stable_unclip.clip, text_first=True)
    adapter = save_tiny_adapter(tmp_path / "adapter", llm, clip)
    with pytest.warns(UserWarning, match=r"U-Net reads the prompt with a CLIP of its own .* conditions image"):
        TextToImage.from_pretrained(
            tiny_stable_unclip.decoder,
            clip=tiny_stable_unclip.clip,
            prior=tiny_stable_unclip.prior,
            text_encoder=adapter,
        )
    model = published(tiny_stable_unclip, text_encoder=adapter)
    assert few(model, GERMAN) != few(published(tiny_stable_unclip), GERMAN)


def test_offloaded_it_is_a_visitor_that_reads_the_same(adapted: TextToImage, model: Path, tmp_path: Path) -> None:
    assert adapted.pipeline.prior is not None
    path = replace(adapted.pipeline, prior=VisitingPrior(adapted.pipeline.prior, torch.device("cpu")))
    found = adapt(path, lambda: adapted.clip, model, "adapter", offload=True).pipeline.text_encoder
    assert isinstance(found, VisitingText)
    assert torch.equal(found.encode_text([GERMAN]).pooled, adapted.encode_text([GERMAN]).pooled)
    folder = shutil.copytree(model / "adapter", tmp_path / "adapter")
    record = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    artifacts.write_json(folder / artifacts.PROVENANCE_FILE, record | {"prior": "another"})
    with pytest.warns(UserWarning, match="trained with another prior"):
        adapt(path, lambda: adapted.clip, model, folder, llm=model / "llm", offload=True)


def test_an_adapter_that_does_not_say_its_languages_is_asked_in_all(model: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(model, tmp_path / "model")
    path = changed / "adapter" / artifacts.PROVENANCE_FILE
    record = artifacts.read_json(path)
    artifacts.write_json(path, {name: value for name, value in record.items() if name != "languages"})
    found = TextToImage.from_pretrained(changed, text_encoder="adapter")
    assert found.languages == ("en", "de", "es", "fr", "ru", "zh")
    assert found.notes("un cercle rouge") == []


def test_a_prior_that_was_trained_beside_it_is_missed(model: Path, adapted: TextToImage, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model / "adapter", run / "adapter")
    path = run / "adapter" / artifacts.PROVENANCE_FILE
    assert isinstance(adapted.pipeline.prior, EclipsePrior)
    own = artifacts.fingerprint(adapted.pipeline.prior.state_dict())
    for prior in (own, "another"):
        artifacts.write_json(path, artifacts.read_json(path) | {"prior": prior})
        if prior == own:
            TextToImage.from_pretrained(model, text_encoder=run, llm=model / "llm")
    with pytest.warns(UserWarning, match=r"trained with another prior .* Use the one with the fingerprint another"):
        TextToImage.from_pretrained(model, text_encoder=run, llm=model / "llm")
    shutil.copytree(model / "prior", run / "prior")
    with pytest.warns(UserWarning, match=r"Use that of its run \(prior .*run/prior\)"):
        TextToImage.from_pretrained(model, text_encoder=run, llm=model / "llm")


def test_priors_are_scored_on_its_features(syzygy: Callable[..., Any], model: Path, adapted: TextToImage) -> None:
    wanted = evaluation_prompts(["single"], 2, 0)
    prior = {"own": adapted.pipeline.prior}
    plain = replace(adapted, pipeline=with_text(adapted.pipeline, adapted.clip))
    read, by_clip = (candidate_embeddings(one, prior, wanted, 0) for one in (adapted, plain))
    assert torch.equal(read["reference"], by_clip["reference"])
    assert not torch.allclose(read["own"], by_clip["own"])
    pairs = embed(adapted.clip, 0, 3, encoder=adapted.pipeline.text_encoder)
    texts = [pair.caption.text for pair in source.pairs(0, 0, 3, unseen=False)]
    assert_close(pairs.captions.pooled, adapted.encode_text(texts).pooled, depth=NETWORK)
    priors = ("--prior", f"a={model / 'prior'}", "--prior", f"b={model / 'prior'}")
    few = ("--prompts", 1, "--steps", 1, "--json", "-")
    answer = syzygy("evaluate", "preference", "--model", model, "--text-encoder", "adapter", *priors, *few)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["text_encoder"] == "adapter"


def test_a_language_model_from_elsewhere_may_know_more_words(model: Path, tmp_path: Path) -> None:
    """Nothing is said of words that only the embedded world lacks."""
    changed = shutil.copytree(model, tmp_path / "model")
    (changed / "llm" / artifacts.PROVENANCE_FILE).unlink()  # which one that was trained here has
    found = TextToImage.from_pretrained(changed, text_encoder="adapter")
    assert found.world
    assert [note for text in ("un cercle rouge", "a crimson storm", "赤い円") for note in found.notes(text)] == []
