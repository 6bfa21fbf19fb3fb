"""Adapters for Stable Diffusion: trained, used by `syzygy generate` and in diffusers' pipelines, and refused where they do not fit."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.registry import TEXT_ENCODERS
from syzygy.generation.image_files import read_record
from syzygy.generation.prior_pipeline import PriorPipeline
from syzygy.generation.prompt_encoder import PromptEncoder
from syzygy.generation.replaced_text_encoder import adapt
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.world.parallel_corpus import parallel
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder
from syzygy.pretrained.visiting import VisitingPrompts
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from syzygy.server.http_server import serving
from syzygy.text_encoders.adapted_prompts import AdaptedPrompts
from syzygy.text_encoders.adapter import TextAdapter
from tests.documents import ROOT, commands
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_adapter import save_tiny_adapter, save_tiny_lm, save_tiny_prompt_adapter
from tests.tiny_llm import save_tiny_llm
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import Tiny
from tests.tiny_xl import tiny_xl

GERMAN, NEGATIVE = "ein roter Kreis", "ein blauer Ring"
SMALL = ("adapter.layers=1", "adapter.heads=2", "adapter.width=32", "validation_lines=12", "task.batch_size=24", "task.precision=fp32",
         "compute=fp32", "loop.warmup=1", "loop.checkpoint_every=0", "loop.ema_half_life=0")  # fmt: skip
KINDS = ("1", "xl")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x and an XL, a language model, and a corpus."""
    folder = tmp_path_factory.mktemp("prompt-adapters")
    path = tiny_stable_diffusion(folder / "1") / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "quick_gelu"}))
    tiny_xl(folder / "xl")
    save_tiny_lm(folder / "llm", "en", "de")
    rows = [parallel(0, i, ("en", "de"), unseen=False).captions for i in range(120)]
    lines = [json.dumps({"texts": {code: one.text for code, one in row.items()}}) for row in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    for kind in KINDS:
        save_tiny_prompt_adapter(
            folder / f"adapter-{kind}", folder / "llm", folder / kind, languages=["en", "de"], stage="align"
        )
    return folder


def train(syzygy: Callable[..., Any], places: Path, out: Path, kind: str, *more: object) -> Any:
    return syzygy(
        "train", "adapter", "--stage", "align", "--model", places / kind, "--llm", places / "llm", "--corpus",
        places / "corpus.jsonl", "--device", "cpu", "--out", out, *SMALL, *more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_training(syzygy: Callable[..., Any], places: Path, tmp_path: Path, kind: str) -> None:
    """From the command line to an image, by the preset of the model's family. Both languages come nearer to their English."""
    answer = train(syzygy, places, tmp_path / "run", kind, "loop.steps=60", "loop.lr=3e-3", "loop.validate_every=20")
    assert answer.code == 0, answer.err
    assert f"--model {places / kind} --text-encoder {tmp_path / 'run'}" in answer.out
    config = artifacts.read_json(tmp_path / "run/adapter/config.json")
    assert config["target"]["family"] == {"1": "stable-diffusion-1", "xl": "stable-diffusion-xl"}[kind]
    assert config["queries"] == 77
    record = artifacts.read_json(tmp_path / "run/adapter/provenance.json")
    assert (record["stage"], record["languages"]) == ("align", ["en", "de"])
    assert set(record["text_encoders"]) == {"1": {"text_encoder"}, "xl": {"text_encoder", "text_encoder_2"}}[kind]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if any("cosine/de" in name for name in line)]
    first, last = (
        {name.split("validation/")[-1]: x for name, x in one.items()} for one in (validations[0], validations[-1])
    )
    assert last["loss"] < first["loss"]
    assert {"cosine/en", "recall_at_1/en", "recall_at_1/de", "states", "states_norm"} <= last.keys()
    assert last["cosine/de"] > 0.1

    made = syzygy(
        "generate", GERMAN, "--model", places / kind, "--text-encoder", tmp_path / "run", "--steps", 2, "--device", "cpu",
        "--json", "--out", tmp_path / "pictures",
    )  # fmt: skip
    assert made.code == 0, made.err
    written = read_record(Path(json.loads(made.out)["images"][0]["path"]))
    assert written["text_encoder"] == str(tmp_path / "run")
    assert {"text_encoder", "llm", "decoder"} <= written["fingerprints"].keys()


def test_training_in_parts(syzygy: Callable[..., Any], places: Path, tmp_path: Path) -> None:
    """Chunks for long English, with captions of the embedded world: the same adapter as at once."""
    common = ("train", "adapter", "--stage", "align", "--model", places / "xl", "--llm", places / "llm", "--device", "cpu",
              *SMALL, 'lengths=["short"]', 'languages=["en","de"]', "adapter.queries=227", "loop.steps=4")  # fmt: skip
    whole = syzygy(*common, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    parts = syzygy(*common, "task.micro_batch=5", "--out", tmp_path / "parts")
    assert parts.code == 0, parts.err
    found = [artifacts.read_tensors(tmp_path / name / "adapter/model.safetensors") for name in ("whole", "parts")]
    assert found[0]["states_mean"].shape == (227, 40)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value.float(), atol=2e-3, rtol=2e-3)


def test_training_with_a_cache(syzygy: Callable[..., Any], places: Path, tmp_path: Path) -> None:
    """The language model's features from a cache train the same adapter, up to their rounding."""
    for name, more in (("anew", ()), ("cached", ("--cache-folder", tmp_path / "features"))):
        answer = train(syzygy, places, tmp_path / name, "1", "loop.steps=3", *more)
        assert answer.code == 0, answer.err
    found = [artifacts.read_tensors(tmp_path / name / "adapter/model.safetensors") for name in ("anew", "cached")]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value.float(), atol=5e-3, rtol=5e-3)
    assert [path.name.split("-")[0] for path in (tmp_path / "features").iterdir()] == ["llm"]
    record = artifacts.read_json(tmp_path / "cached/adapter/provenance.json")
    assert record["cached"] == {"llm": "fp16"}
    TextToImage.from_pretrained(places / "1", text_encoder=tmp_path / "cached")


def theirs(folder: Path) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder, low_cpu_mem_usage=False, local_files_only=True, text_encoder=None, tokenizer=None,
        **({"text_encoder_2": None, "tokenizer_2": None} if (folder / "text_encoder_2").is_dir() else {}),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_that_diffusers_makes_of_the_same_embeddings(
    places: Path, kind: str, negative: str | None, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = places / f"adapter-{kind}"
    more = [] if negative is None else ["--negative-prompt", negative]
    answer = syzygy(
        "generate", GERMAN, "--model", places / kind, "--text-encoder", adapter, "--guidance-scale", 4, "--steps", 2, "--seed", 5,
        "--device", "cpu", "--json", "--out", tmp_path / "pictures", *more,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    made = np.asarray(Image.open(json.loads(answer.out)["images"][0]["path"])).astype(int)

    pipeline = theirs(places / kind)
    found = PromptEncoder.from_pretrained(adapter, pipeline=pipeline)(GERMAN, negative_prompt=negative)
    pooled = {"pooled_prompt_embeds", "negative_pooled_prompt_embeds"} if kind == "xl" else set()
    assert found.keys() == {"prompt_embeds", "negative_prompt_embeds"} | pooled
    settings = {"num_inference_steps": 2, "guidance_scale": 4, "generator": torch.Generator().manual_seed(5)}
    own = np.asarray(pipeline(**found, **settings).images[0]).astype(int)
    assert np.abs(made - own).max() <= 1
    bare = shutil.copytree(places / kind, tmp_path / "bare")
    for path in bare.glob("text_encoder*/*.safetensors"):
        path.unlink()  # they are not read
    again = TextToImage.from_pretrained(bare, text_encoder=adapter)(
        GERMAN,
        negative_prompt=negative,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(5)],
    )
    assert np.array_equal(made, np.asarray(again.images[0]))
    plain = TextToImage.from_pretrained(places / kind)
    other = plain(
        GERMAN,
        negative_prompt=negative,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(5)],
    )
    assert np.abs(made - np.asarray(other.images[0]).astype(int)).max() > 2


def test_the_walk(
    syzygy: Callable[..., Any], cache: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/tutorials/stable-diffusion-prompts.md: its commands, one after the other, on tiny models under the published names."""
    add_snapshot(cache, save_tiny_llm("qwen3", tmp_path / "qwen3"), "Qwen/Qwen3-0.6B", COMMIT, "main")
    add_snapshot(cache, places / "xl", "stabilityai/stable-diffusion-xl-base-1.0", COMMIT, "main")
    monkeypatch.chdir(tmp_path)
    images = (
        "size=16",
        "validation_pictures=1",
        "task.batch_size=2",
        "loop.steps=2",
        "loop.warmup=1",
        "--device",
        "cpu",
    )
    more = {
        ("world", "corpus"): ("--num", 40),
        ("world", "sample"): ("--num", 4),
        ("train", "adapter", "--stage", "align"): (*SMALL, "loop.steps=3", "--device", "cpu"),
        ("train", "adapter"): images,
        ("generate",): ("--steps", 2, "--device", "cpu", "--json", "--out", "pictures"),
    }
    walked = []
    for arguments in commands((ROOT / "docs/tutorials/stable-diffusion-prompts.md").read_text("utf-8")):
        key = next(key for key in more if tuple(arguments[: len(key)]) == key)
        answer = syzygy(*arguments, *more[key])
        assert answer.code == 0, (arguments, answer.err)
        assert "warning" not in answer.err, (arguments, answer.err)
        walked.append(key)
    assert [key[:2] for key in walked] == [
        ("world", "corpus"), *[("train", "adapter")] * 2, *[("world", "sample")] * 2, *[("train", "adapter")] * 3, ("generate",),
    ]  # fmt: skip
    assert artifacts.read_json(tmp_path / "quality/adapter/provenance.json")["stage"] == "quality"
    aware = [TextAdapter.from_pretrained(tmp_path / run / "adapter").timestep_aware for run in ("image", "aware")]
    assert aware == [False, True]
    shapes = [TextAdapter.from_pretrained(tmp_path / run / "adapter").config.queries for run in ("align", "long")]
    assert shapes == [77, 227]
    assert artifacts.read_json(tmp_path / "align/adapter/provenance.json")["llm"]["source"] == "Qwen/Qwen3-0.6B"


def test_negatives_of_several_prompts(places: Path) -> None:
    prompts = PromptEncoder.from_pretrained(places / "adapter-xl", dtype=torch.bfloat16)
    two = prompts([GERMAN, "a red ring"], ["", NEGATIVE])
    assert two["prompt_embeds"].dtype == torch.bfloat16
    assert two["negative_prompt_embeds"].shape == (2, 77, 40)
    assert not torch.equal(*two["negative_pooled_prompt_embeds"])
    one = prompts([GERMAN, "a red ring"], NEGATIVE)
    assert torch.equal(*one["negative_prompt_embeds"])
    assert not prompts(GERMAN)["negative_prompt_embeds"].any()  # as the pipeline of XL does without a negative prompt
    assert PromptEncoder.from_pretrained(places / "adapter-1")(GERMAN)["negative_prompt_embeds"].any()
    with pytest.raises(UserError, match="3 negative prompts for 2 prompts"):
        prompts([GERMAN, "a"], ["a", "b", "c"])
    with pytest.raises(UserError, match="prompt must be a text"):
        prompts(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no prompt"):
        prompts([])


def test_a_prompt_has_the_same_embeddings_alone_and_with_others(places: Path) -> None:
    prompts = PromptEncoder.from_pretrained(places / "adapter-xl")
    texts = [GERMAN, "a very long text " * 30, "", GERMAN]
    together = prompts(texts)
    assert torch.equal(together["prompt_embeds"][0], together["prompt_embeds"][3])
    for row, text in enumerate(texts):
        torch.testing.assert_close(
            prompts(text)["prompt_embeds"][0], together["prompt_embeds"][row], atol=1e-4, rtol=1e-4
        )


def test_adapters_of_another_model_are_refused_with_both_named(
    places: Path, tiny_model: Path, tiny_kandinsky: Tiny, tmp_path: Path
) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    of_prior = save_tiny_adapter(tmp_path / "of-prior", places / "llm", clip)
    of_one, of_xl = places / "adapter-1", places / "adapter-xl"
    for model, adapter, message in (
        (
            places / "xl",
            of_one,
            r"adapter-1 was trained for a stable-diffusion-1 \(token states 32 wide\); .*xl is a stable-diffusion-xl",
        ),
        (
            places / "1",
            of_xl,
            r"for a stable-diffusion-xl \(.*40 wide and a pooled .*16 wide\); .*/1 is a stable-diffusion-1",
        ),
        (
            places / "1",
            of_prior,
            r"of-prior was trained for priors that read CLIP's features 32 wide; .*/1 is a stable-diffusion-1",
        ),
        (tiny_model, of_xl, r"for a stable-diffusion-xl \(.*\); the prior here reads CLIP's features 32 wide"),
    ):
        with pytest.raises(UserError, match=message):
            TextToImage.from_pretrained(model, text_encoder=adapter)
    with pytest.raises(UserError, match=r"for a stable-diffusion-1 .*the prior here reads"):
        PriorPipeline.from_pretrained(
            tiny_kandinsky.prior, clip=tiny_kandinsky.clip, text_encoder=of_one, local_files_only=True
        )
    for adapter, kind, message in (
        (
            of_one,
            "xl",
            r"stable-diffusion-1 .*; the U-Net of this pipeline reads token states 40 wide and a pooled embedding 16 wide",
        ),
        (of_xl, "1", r"stable-diffusion-xl .*; the U-Net of this pipeline reads token states 32 wide and no pooled"),
    ):
        with pytest.raises(UserError, match=message):
            PromptEncoder.from_pretrained(adapter, pipeline=theirs(places / kind))
    half = theirs(places / "1").to(dtype=torch.bfloat16)
    assert PromptEncoder.from_pretrained(of_one, pipeline=half)(GERMAN)["prompt_embeds"].dtype == torch.bfloat16
    with pytest.raises(UserError, match="priors that read CLIP's features 32 wide; a Stable Diffusion is needed here"):
        PromptEncoder.from_pretrained(of_prior)


def test_offloaded_it_is_a_visitor_that_reads_the_same(places: Path) -> None:
    plain = TextToImage.from_pretrained(places / "xl")
    readers = []
    for offload in (False, True):
        found = adapt(
            plain.pipeline, lambda: plain.clip, places / "xl", places / "adapter-xl", offload=offload
        ).pipeline.decoder
        assert isinstance(found, StableDiffusionDecoder)
        readers.append(found.reader)
    assert [type(reader) for reader in readers] == [AdaptedPrompts, VisitingPrompts]
    assert torch.equal(*(reader([GERMAN]).states for reader in readers))


def test_what_an_adapter_cannot_do(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage.from_pretrained(places / "xl", text_encoder=places / "adapter-xl")
    assert model.languages == ("en", "de")
    region = Region("roter", torch.ones(4, 4))
    with pytest.raises(UserError, match="the states of an adapter do not belong to single words"):
        model(GERMAN, regions=[region], num_inference_steps=1)
    with pytest.raises(UserError, match="leave out best_of"):
        model(GERMAN, best_of=2, num_inference_steps=1)
    with pytest.raises(UserError, match="has no adapter of its own"):
        TextToImage.from_pretrained(places / "xl", text_encoder="adapter")
    monkeypatch.setitem(TEXT_ENCODERS._objects, "mine", lambda source, clip, device: clip)
    with pytest.raises(UserError, match="the text encoder mine gives CLIP's features to a prior"):
        TextToImage.from_pretrained(places / "xl", text_encoder="mine")


def test_regions_are_refused_on_the_command_line_and_over_http(
    places: Path, tiny_model: Path, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    """In one line, which says what to do: the states of learned queries stand for no word."""
    data = io.BytesIO()
    Image.new("L", (16, 16), 255).save(data, "PNG")
    (tmp_path / "mask.png").write_bytes(data.getvalue())
    answer = syzygy(
        "generate", GERMAN, "--model", places / "1", "--text-encoder", places / "adapter-1", "--steps", 1, "--device", "cpu",
        "--region", f"{tmp_path / 'mask.png'}=roter Kreis", "--out", tmp_path / "pictures",
    )  # fmt: skip
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "the states of an adapter do not belong to single words: leave the text encoder out" in answer.err

    model = TextToImage.from_pretrained(places / "1", clip=tiny_model / "clip", text_encoder=places / "adapter-1")
    region = {"phrase": "roter Kreis", "mask": base64.b64encode(data.getvalue()).decode()}
    own = {"steps": 1, "guidance_scale": 4.0, "sampler": None, "negative_prompt": None}
    with serving(create_app(Engine.of(model, own))) as url:
        refused = httpx.post(f"{url}/v1/images/generations", json={"prompt": GERMAN, "regions": [region]}, timeout=60)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "regions")
    assert "does not support regions: leave regions out." in error["message"]


def test_what_the_command_refuses(
    places: Path, tiny_kandinsky: Tiny, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    begin = ("train", "adapter", "--llm", places / "llm", "--out", tmp_path / "run", "--device", "cpu", "--stage")
    corpus, aligned = ("--corpus", places / "corpus.jsonl"), tmp_path / "aligned"
    shutil.copytree(places / "adapter-1", aligned / "adapter")
    for more, message in (
        (("align", "--model", places / "1", "--clip", "starter"), "--clip has no effect with --model, whose text encoders the adapter"),
        (("align", "--model", places / "1", "--prior", "starter"), "--prior has no effect with --model"),
        (("image", "--from", "x", "--model", places / "1"), "stage 'image' needs --data. Images with captions"),
        (("image", "--model", places / "1", "--data", "x"), "stage 'image' needs --from. The order is align, image, quality"),
        (("quality", "--from", "x", "--model", places / "1", "--data", "x", "--filter", "a > 1"), "--filter has no effect with stage 'quality' "
         "and --model, which trains on all images of --data"),
        (("image", "--from", places / "adapter-xl"), "was trained for a stable-diffusion-xl"),
        (("image", "--from", places / "adapter-xl", "--model", places / "1", "--data", places), "/1 is a stable-diffusion-1"),
        (("image", "--from", aligned, "--model", places / "1", "--data", tmp_path / "none"), "there is no"),
        (("align", "--model", tiny_kandinsky.decoder, *corpus), "holds a kandinsky-2.2, which reads what a prior predicts"),
        (("align", "--model", places / "1", *corpus, "--preset", "bigg-14"), "Known: stable-diffusion-1"),
        (("align", "--model", places / "xl", *corpus, "--preset", "stable-diffusion-1"), "would leave the pooled embedding untrained"),
        (("align", "--model", places / "1", *corpus, "adapter.queries=100"), "Set 77"),
        (("align", "--model", places / "1"), "this preset aligns on a corpus"),
        (("align", "--model", places / "1", *corpus, "timestep_aware=true"), "no effect with stage 'align', which has no timesteps: set it in"),
        (("align", "--model", tmp_path / "gone", *corpus), "there is no folder"),
    ):  # fmt: skip
        answer = syzygy(*begin, *more)
        assert (answer.code, answer.out) == (2, ""), more
        assert message in " ".join(answer.err.split()), answer.err
    evaluate = (
        "evaluate",
        "text-encoder",
        "--model",
        places / "xl",
        "--text-encoder",
        places / "adapter-xl",
        "--out",
        tmp_path / "out",
    )
    for more in ((), ("--unseen-words", ROOT / "examples/unseen_words.jsonl")):
        answer = syzygy(*evaluate, *more)
        assert answer.code == 2
        assert "has no prior, and this evaluation compares what an adapter gives" in " ".join(answer.err.split())
