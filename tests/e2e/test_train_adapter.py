"""The three stages of an adapter, from the command line to what loads them."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.artifacts import read_tensors
from syzygy.core.randomness import seed_of
from syzygy.data.store import EmbeddingStore
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.starter.adapted_decoder_training import AdaptedDecoderTask
from syzygy.lab.starter.world_captions import languages_for
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.parallel_corpus import parallel
from syzygy.prior.prior_folders import PUBLISHED
from syzygy.prior.prior_loading import load_prior
from syzygy.text_encoders.adapter import SIZES, TextAdapter
from syzygy.text_encoders.adapter_folders import PreviousStage, load_adapted
from syzygy.text_encoders.adapter_task import AdapterTask
from syzygy.text_encoders.image_stage import split_images
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.store_features import open_features
from tests.tiny_llm import save_tiny_llm

LINES = 12
ALIGN = ("adapter.queries=3", "adapter.layers=1", "adapter.heads=2", "adapter.width=32", "validation_lines=4", "task.batch_size=12",
         "loop.steps=6", "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=2")  # fmt: skip
IMAGE = ("validation_images=6", "task.batch_size=8", "loop.steps=4", "loop.warmup=1", "loop.validate_every=2", "loop.checkpoint_every=2",
         "task.temperature=0.1")  # fmt: skip
CONDITION = "width >= 32 and aesthetic > 3"


def called(*arguments: object) -> None:
    import sys
    from unittest.mock import patch

    from syzygy.cli.main import main

    with patch.object(sys, "argv", ["syzygy", *map(str, arguments)]), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus (with a description more than needed), a store with a column, a language model, and its features in the store."""
    folder = tmp_path_factory.mktemp("adapter")
    rows = [parallel(0, i, ("en", "de"), unseen=False).captions for i in range(LINES)]
    lines = [json.dumps({"texts": {code: one.text for code, one in row.items()}}) for row in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    save_tiny_llm("llama", folder / "llm")
    return folder


@pytest.fixture(scope="module")
def store(places: Path, tiny_model: Path) -> Path:
    called("world", "sample", "--num", 30, "--unseen", "exclude", "--size", 32, "--out", places / "pairs")
    path = places / "pairs/metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"aesthetic": i}) + "\n" for i, row in enumerate(rows)))
    called("embed", places / "pairs", "--encoder", tiny_model, "--out", places / "store", "--device", "cpu")
    called("store", "add", places / "store", "--llm", places / "llm", "--device", "cpu")
    return places / "store"


@pytest.fixture(scope="module")
def beside(places: Path, tiny_model: Path) -> tuple[object, ...]:
    return ("--llm", places / "llm", "--clip", tiny_model, "--prior", tiny_model, "--device", "cpu")


@pytest.fixture(scope="module")
def stages(places: Path, store: Path, beside: tuple[object, ...], tiny_model: Path) -> dict[str, tuple[object, ...]]:
    """Each stage's command, but where it writes; they go on from `places/STAGE`."""
    common = ("train", "adapter", "--device", "cpu")
    return {
        "align": (*common, "--stage", "align", *beside[:-2], "--corpus", places / "corpus.jsonl", *ALIGN),
        "image": (*common, "--stage", "image", "--from", places / "align", "--prior", tiny_model, "--clip", tiny_model, *IMAGE,
                  "scenes=20", 'languages=["en","de"]', 'lengths=["short","medium"]', "task.frozen=none"),
        "quality": (*common, "--stage", "quality", "--from", places / "image", "--data", store, "--filter", CONDITION, *IMAGE,
                    "task.frozen=adapter"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def aligned(places: Path, stages: dict[str, tuple[object, ...]]) -> Path:
    called(*stages["align"], "--out", places / "align")
    return places / "align"


@pytest.fixture(scope="module")
def runs(places: Path, stages: dict[str, tuple[object, ...]], aligned: Path) -> dict[str, Path]:
    """A finished run of each stage."""
    for stage in ("image", "quality"):
        called(*stages[stage], "--out", places / stage)
    return {stage: places / stage for stage in stages}


@pytest.fixture(scope="module")
def on_store(aligned: Path, store: Path) -> tuple[object, ...]:
    """Stage image on a store, but for the prior and where it writes."""
    return ("train", "adapter", "--stage", "image", "--from", aligned, "--data", store, *IMAGE)


def stopped(syzygy: Callable[..., Any], task: type, method: str, *command: object) -> None:
    """A command that is interrupted where its task reads the third step."""
    whole = getattr(task, method)

    def stopping(self: Any, step: int) -> Any:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, method, stopping)
        assert syzygy(*command).code == 130


def weights(run: Path, part: str = "adapter") -> dict[str, torch.Tensor]:
    (file,) = (run / part).glob("*.safetensors")
    return read_tensors(file)


def test_three_stages_and_what_loads_them(runs: dict[str, Path], store: Path, tiny_model: Path) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    aligned, image, quality = runs.values()
    record = artifacts.read_json(aligned / "adapter/provenance.json")
    assert (record["stage"], record["languages"], record["left_out"]) == ("align", ["en", "de"], 0)
    assert (record["clip"], record["samples"]) == (clip.fingerprint(), 72)
    assert record["metrics"].keys() >= {"cosine/de", "recall_at_1/en", "prior", "loss"}
    record = artifacts.read_json(image / "adapter/provenance.json")
    assert record["metrics"].keys() >= {"cosine", "recall_at_1", "projection"}

    before, after = weights(aligned), weights(image)
    assert not torch.equal(before["proj_in.weight"], after["proj_in.weight"])
    assert all(torch.equal(after[name], x) for name, x in weights(quality).items())  # frozen
    begun = read_tensors(tiny_model / "prior/diffusion_pytorch_model.safetensors")
    priors = [
        begun["proj_in.weight"],
        weights(image, "prior")["proj_in.weight"],
        weights(quality, "prior")["proj_in.weight"],
    ]
    assert not torch.equal(priors[0], priors[1])
    assert not torch.equal(priors[1], priors[2])

    record = artifacts.read_json(quality / "adapter/provenance.json")
    assert [one["stage"] for one in record["lineage"]] == ["align", "image"]
    assert record["lineage"][1]["prior"] == record["prior_before"] != record["prior"]
    assert record["lineage"][0]["adapter"] == artifacts.fingerprint(
        TextAdapter.from_pretrained(aligned / "adapter").state_dict()
    )
    assert (record["data"], record["recipe"]["filter"]) == (EmbeddingStore.open(store).digest, CONDITION)
    assert 0 < record["captions"] <= 26 - 3
    assert record["languages"] == ["en", "de"]
    for run in (aligned, image, quality):
        found = load_adapted(run, clip).encode_text(["", "ein roter Kreis"])
        prior = load_prior(run if run != aligned else tiny_model / "prior", clip)
        assert prior.predict(found, noise=torch.zeros(2, 32)).isfinite().all()


def test_chosen_scenes(syzygy: Callable[..., Any], runs: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    """Stage quality without a store, by the starter's preset: the prior stays as it is."""
    arguments = ("train", "adapter", "--stage", "quality", "--from", runs["image"], "--clip", tiny_model, "--device", "cpu",
                 *IMAGE, "scenes=40", 'languages=["en","de"]', 'lengths=["short"]')  # fmt: skip
    assert syzygy(*arguments, "--out", tmp_path / "run").code == 0
    record = artifacts.read_json(tmp_path / "run/adapter/provenance.json")
    key = seed_of(0, "adapter", "training")
    pairs = [scene_source.pair(key, i, unseen=False) for i in range(40)]
    whole = [sum(one.count for one in pair.caption.description.mentions) == len(pair.scene.things) for pair in pairs]
    assert record["captions"] == sum(whole) < 40
    assert record["prior"] == record["prior_before"]
    assert not torch.equal(weights(tmp_path / "run")["queries"], weights(runs["image"])["queries"])
    for more, message in (
        (("--filter", "objects > 9"), "no scene for training passes the filter"),
        (("--filter", "size > 1"), "unknown column of the embedded world 'size'"),
        (("filter=null",), "stage quality trains on selected images: select them with --filter"),
    ):
        answer = syzygy(*arguments, *more, "--out", tmp_path / "wrong")
        assert answer.code == 2
        assert message in " ".join(answer.err.split())


def test_features_are_those_of_the_captions_that_a_filter_leaves(store: Path, places: Path) -> None:
    llm, opened = Llm.from_pretrained(places / "llm"), EmbeddingStore.open(store)
    features = open_features(store, llm.identity().to_config())
    for data in split_images(opened, features, 9, CONDITION, by_text=True):
        index = torch.arange(len(data)).flip(0)
        texts = ["", *opened.texts(data.pairs.chosen[index].tolist())[1:]]
        found, expected = data.text(index, 0, index == index[0], 0), llm.encode_states(texts)
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.states.float(), expected.states, atol=2e-2, rtol=1e-2)  # bf16


def test_stage_image_on_a_store(
    syzygy: Callable[..., Any], on_store: tuple[object, ...], tiny_model: Path, tmp_path: Path
) -> None:
    arguments = (*on_store, "--prior", tiny_model)
    whole = syzygy(*arguments, "--out", tmp_path / "whole", "task.frozen=prior", "task.empty=0.4")
    assert whole.code == 0, whole.err
    parts = syzygy(*arguments, "--out", tmp_path / "parts", "task.frozen=prior", "task.empty=0.4", "task.micro_batch=3")
    assert parts.code == 0, parts.err
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], value, atol=2e-3, rtol=0, msg=name)  # fp16 files
    prior = read_tensors(tiny_model / "prior/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(prior[name], x) for name, x in weights(tmp_path / "whole", "prior").items())
    arguments = tuple(text for text in arguments if str(text) not in ("validation_images=6", "task.batch_size=8"))
    for other in ("task.empty=0", "task.contrast=image"):
        answer = syzygy(*arguments, "--out", tmp_path / other, "task.frozen=prior", other)
        assert answer.code == 0, answer.err
        assert "validation_images is 6 instead of the preset's 512, to fit the 30 pictures" in answer.err
        assert "task.batch_size is" in answer.err
        assert not torch.equal(weights(tmp_path / other)["queries"], weights(tmp_path / "whole")["queries"])


@pytest.mark.parametrize("stage", ["align", "image", "quality"])
def test_a_stopped_stage_goes_on_bit_for_bit(
    stage: str, syzygy: Callable[..., Any], stages: dict[str, tuple[object, ...]], runs: dict[str, Path], tmp_path: Path
) -> None:  # fmt: skip
    stopped(syzygy, AdapterTask, "parts", *stages[stage], "--out", tmp_path)
    assert not (tmp_path / "adapter").exists()
    assert syzygy(*stages[stage], "--out", tmp_path).code == 0
    for name in ("model", "optimizer", "ema"):
        one, other = (read_tensors(run / f"checkpoint/{name}.safetensors") for run in (runs[stage], tmp_path))
        assert one.keys() == other.keys()
        assert all(torch.equal(other[key], value) for key, value in one.items()), name
    lines = [(run / "metrics.jsonl").read_text() for run in (runs[stage], tmp_path)]
    assert lines[0] == lines[1]


def test_features_of_a_corpus_are_computed_once(
    syzygy: Callable[..., Any], stages: dict[str, tuple[object, ...]], runs: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A training on the cache goes on bit for bit, encodes nothing, and is that without a cache but for the rounding of its numbers."""
    answer = syzygy(*stages["align"], "--out", tmp_path / "run", "--cache")
    assert answer.code == 0, answer.err
    assert f"in {tmp_path}/run/features" in answer.err
    record, plain = (artifacts.read_json(run / "adapter/provenance.json") for run in (tmp_path / "run", runs["align"]))
    assert record["cached"] == {"llm": "fp16", "clip": "fp16"}
    assert "cached" not in plain
    assert record["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], rel=5e-3)
    close = weights(runs["align"])["queries"].float()
    assert (weights(tmp_path / "run")["queries"] - close).abs().max() < 0.01 * close.abs().max()

    folder = ("--out", tmp_path / "other", "--cache-folder", tmp_path / "run/features")
    with monkeypatch.context() as patch:
        patch.setattr(Llm, "encode_states", lambda self, texts: pytest.fail("a text was encoded"))
        stopped(syzygy, AdapterTask, "parts", *stages["align"], *folder)
        answer = syzygy(*stages["align"], "--out", tmp_path / "other")
        assert answer.code == 2
        assert "cached is set only there" in answer.err
        answer = syzygy(*stages["align"], *folder)
        assert answer.code == 0, answer.err
    assert "All features of" in answer.err
    one, other = weights(tmp_path / "run"), weights(tmp_path / "other")
    assert all(torch.equal(other[name], x) for name, x in one.items())

    answer = syzygy(
        *stages["align"], "--out", tmp_path / "dry", "--cache-folder", tmp_path / "none", "--dry-run", "--json"
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["steps"] == 6
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "dry").exists()


def test_tokens_are_distilled(
    syzygy: Callable[..., Any], places: Path, beside: tuple[object, ...], tmp_path: Path
) -> None:
    small = [text for text in ALIGN if not text.startswith("validation_lines")]
    arguments = ("train", "adapter", "--stage", "align", *beside[:4], "--corpus", places / "corpus.jsonl", *small, "task.prior=0")  # fmt: skip
    answer = syzygy(*arguments, "--out", tmp_path / "run", "task.tokens=1", "adapter.queries=77", "--json")
    assert answer.code == 0, answer.err
    assert f"validation_lines is 2 instead of the preset's 64, to fit the {LINES} lines of" in answer.err
    metrics = json.loads(answer.out)["metrics"]
    assert "tokens" in metrics
    assert "prior" not in metrics
    assert artifacts.read_json(tmp_path / "run/adapter/provenance.json")["prior"] is None
    again = (*arguments, "--out", tmp_path / "cached", "task.tokens=1", "adapter.queries=77", "--json", "--cache")
    answer = syzygy(*again)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["metrics"]["tokens"] == pytest.approx(metrics["tokens"], rel=5e-3)
    answer = syzygy(*arguments, "--out", tmp_path / "other", "task.tokens=1")
    assert answer.code == 2
    assert "set it to 77" in answer.err
    answer = syzygy(*arguments, "--out", tmp_path / "other", "task.tokens=1", "--prior", "starter")
    assert "--prior has no effect with task.prior=0" in answer.err


def test_german_finds_its_english(
    syzygy: Callable[..., Any], places: Path, beside: tuple[object, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """Overfitted on a few lines, each of two runs: one with German of other lines finds what it was told, not what is right."""
    rows = [json.loads(line)["texts"] for line in (places / "corpus.jsonl").read_text().splitlines()]
    german, english = [row["de"] for row in rows], [row["en"] for row in rows]
    clip = Clip.from_pretrained(tiny_model / "clip")
    goal = F.normalize(clip.encode_text(english).pooled, dim=-1)
    distinct = sorted({text: i for i, text in enumerate(english)}.values())
    settings = ("adapter.queries=2", "adapter.layers=1", "adapter.heads=2", "adapter.width=32", "validation_lines=2", "task.batch_size=16",
                "task.empty=0", "task.prior=0.01", "task.contrastive=1", "task.temperature=0.05", "loop.steps=70", "loop.warmup=5",
                "loop.validate_every=0", "loop.lr=0.006", "loop.ema_half_life=5")  # fmt: skip
    recalls = []
    for name, said in (("right", german), ("shuffled", german[5:] + german[:5])):
        pairs = [{"texts": {"en": a, "de": b}} for a, b in zip(english, said, strict=True)]
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in [*pairs[:2], *pairs]))
        answer = syzygy(
            "train", "adapter", "--stage", "align", *beside, "--corpus", corpus, "--out", tmp_path / name, *settings
        )
        assert answer.code == 0, answer.err
        found = F.normalize(load_adapted(tmp_path / name, clip).encode_text(german).pooled, dim=-1)
        nearest = (found[distinct] @ goal[distinct].T).argmax(-1)
        recalls.append((nearest == torch.arange(len(distinct))).float().mean().item())
    assert recalls[0] > 0.8
    assert recalls[1] < 0.3


ON_STORE = ("--stage", "image", "--from", "{aligned}", "--prior", "{model}", "--data", "{store}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "align"), "stage 'align' needs --llm"),
        (("--stage", "image"), "stage 'image' needs --from. The order is align, image, quality"),
        (("--stage", "quality"), "stage 'quality' needs --from"),
        (("--stage", "quality", "--from", "x", "--features", "llm"), "--features has no effect with stage 'quality'"),
        (("--stage", "align", "--llm", "x", "--from", "y"), "--from has no effect with stage 'align'"),
        (("--stage", "align", "--llm", "x", "--filter", "a > 1"), "--filter has no effect with stage 'align'"),
        (("--stage", "quality", "--from", "{image}", "--data", "{store}"), "select them with --filter"),
        (("--stage", "image", "--from", "{aligned}", "--data", "{store}", "--clip", "x"), "and --data: the store records them"),
        (("--stage", "quality", "--from", "{aligned}", "--data", "{store}", "--filter", "a > 1"), "is of stage 'align'; stage 'quality'"),
        ((*ON_STORE, "--filter", "height > 9 and x > 1"),
         "unknown column"),
        ((*ON_STORE, "--filter", "aesthetic > 99"),
         "no picture for training passes the filter"),
        ((*ON_STORE, "scenes=5"), "scenes=5 has no effect on a store"),
        ((*ON_STORE, "--features", "clip"), "made with other features"),
        (("--stage", "image", "--from", "{aligned}"), "were trained with another clip"),
        (("--stage", "image", "--from", "{aligned}", "--preset", "vit-l-14", "--prior", "{model}", "--clip", "{model}"),
         "this preset trains on an embedding store"),
        (("--stage", "align", "--llm", "{llm}", "--preset", "bigg-14"), "this preset aligns on a corpus"),
        (("--stage", "align", "--llm", "{llm}", "--corpus", "{corpus}", 'lengths=["short"]'), "has no effect on a corpus"),
        (("--stage", "align", "--llm", "{llm}", "--corpus", "{corpus}", 'languages=["en","fr"]'), "'fr'"),
        (("--stage", "align", "--llm", "{llm}", "--corpus", "{corpus}", "languages=[]"), "languages"),
        (("--stage", "align", "--llm", "{llm}", "--clip", "{model}", "--prior", "{model}", "--cache"), "no effect without --corpus"),
        (("--stage", "image", "--from", "x", "--cache-folder", "y"), "--cache-folder has no effect with stage 'image'"),
    ],
)  # fmt: skip
def test_wrong_input(
    arguments: tuple[str, ...], message: str, syzygy: Callable[..., Any], runs: dict[str, Path], store: Path, places: Path,
    tiny_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    where = {
        "aligned": runs["align"],
        "image": runs["image"],
        "store": store,
        "model": tiny_model,
        "llm": places / "llm",
        "corpus": places / "corpus.jsonl",
    }
    given = [x.format(**where) if x.startswith("{") else x for x in arguments]
    size = () if {"vit-l-14", "bigg-14"} & set(given) else ALIGN if "align" in given else IMAGE
    answer = syzygy("train", "adapter", *given, *size, "--out", tmp_path / "run", "--device", "cpu")
    assert answer.code == 2
    assert message in " ".join(answer.err.split())


def test_another_prior_than_the_aligned_one(
    syzygy: Callable[..., Any], on_store: tuple[object, ...], tiny_model: Path, tmp_path: Path
) -> None:
    from syzygy.prior.eclipse import EclipsePrior

    prior = EclipsePrior.from_pretrained(tiny_model / "prior")
    with torch.no_grad():
        prior.proj_in.weight += 1
    prior.save_pretrained(tmp_path / "other")
    answer = syzygy(*on_store, "--prior", tmp_path / "other", "--out", tmp_path / "run")
    assert "was trained with another prior" in answer.err


def test_a_prior_that_was_published_without_statistics(
    syzygy: Callable[..., Any], on_store: tuple[object, ...], store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """They are measured on the images that are trained on, and said; without them the trained prior could not be saved."""
    from syzygy.prior.eclipse import EclipsePrior

    published = shutil.copytree(tiny_model / "prior", tmp_path / "published")
    tensors = read_tensors(published / PUBLISHED.weights_file)
    artifacts.write_tensors(
        published / PUBLISHED.weights_file, tensors | {"clip_mean": torch.zeros(1, 32), "clip_std": torch.zeros(1, 32)}
    )
    aligned = shutil.copytree(on_store[on_store.index("--from") + 1], tmp_path / "aligned")
    record = aligned / "adapter" / artifacts.PROVENANCE_FILE
    artifacts.write_json(record, artifacts.read_json(record) | {"prior": None})
    with pytest.warns(
        UserWarning, match="has no embedding statistics .* measured on the training images and saved with it"
    ):
        answer = syzygy(*on_store, "--from", aligned, "--prior", published, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    found = EclipsePrior.from_pretrained(tmp_path / "run" / "prior")
    embeddings = EmbeddingStore.open(store).images(range(24))
    assert (found.clip_mean - embeddings.float().mean(0)).abs().max() < embeddings.float().std()
    assert (found.clip_std > 0).all()


def test_a_residual_prior_is_trained_through_and_stays_one(
    syzygy: Callable[..., Any], places: Path, stages: dict[str, tuple[object, ...]], tiny_model: Path, tmp_path: Path
) -> None:
    from syzygy import ResidualPrior, TextToImage

    small = ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "scenes=40", "validation_images=8",
             "task.batch_size=8", "loop.steps=2", "loop.warmup=0")  # fmt: skip
    train = ("train", "prior", "--preset", "eclipse-residual", "--clip", tiny_model, "--device", "cpu", *small)
    assert syzygy(*train, "--out", tmp_path / "prior").code == 0
    beside = {"--prior": tmp_path / "prior", "--from": tmp_path / "align"}
    for stage in ("align", "image"):
        command = [
            beside.get(str(before), word) for before, word in zip(("", *stages[stage]), stages[stage], strict=False)
        ]
        answer = syzygy(*command, "--out", tmp_path / stage)
        assert answer.code == 0, answer.err
    before, after = (ResidualPrior.from_pretrained(tmp_path / place) for place in ("prior", "image"))
    assert torch.equal(after.identity_shift, before.identity_shift)
    assert not torch.equal(after.proj_in.weight, before.proj_in.weight)
    record = artifacts.read_json(tmp_path / "image/adapter/provenance.json")
    assert record["prior"] == after.fingerprint()
    model = TextToImage.from_pretrained(
        tiny_model, prior=tmp_path / "image", text_encoder=tmp_path / "image", llm=places / "llm"
    )  # a warning about another prior would fail the test
    assert isinstance(model.pipeline.prior, ResidualPrior)


@pytest.mark.parametrize(("preset", "width"), [("starter", 192), ("vit-l-14", 768), ("bigg-14", 1024)])
def test_presets(preset: str, width: int, syzygy: Callable[..., Any]) -> None:
    for stage in ("align", "image", "quality"):
        answer = syzygy("train", "adapter", "--stage", stage, "--preset", preset, "--settings", "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        assert all(one["help"] for one in found.values())
        if stage == "align":
            assert found["adapter.width"]["value"] == width == SIZES[preset].width
            assert (found["task.cosine"]["value"], found["task.norm"]["value"], found["task.empty"]["value"]) == (
                1,
                2e-5,
                0.1,
            )


def test_stage_image_with_a_decoder(
    syzygy: Callable[..., Any], aligned: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syzygy.lab.starter.adapted_decoder_training.VALIDATION_PICTURES", 8)
    model = ("--clip", tiny_model, "--decoder", tiny_model, "--autoencoder", tiny_model)
    small = ("task.batch_size=4", "loop.steps=4", "loop.warmup=1", "loop.validate_every=2", "loop.checkpoint_every=2",
             'lengths=["short"]')  # fmt: skip
    common = ("train", "adapter", "--stage", "image", "--from", aligned, *model, *small, "--device", "cpu")
    asked: list[tuple[int, int, dict[str, Any]]] = []
    pair = scene_source.pair

    def recorded(seed: int, index: int, **how: Any) -> scene_source.Pair:
        asked.append((seed, index, how))
        return pair(seed, index, **how)

    with monkeypatch.context() as patch:
        patch.setattr(scene_source, "pair", recorded)
        answer = syzygy(*common, "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    assert not any(how["unseen"] for _, _, how in asked)
    scenes = {(seed, index) for seed, index, _ in asked}
    assert len(scenes) == len(asked) == 8 + 4 * 4, "other scenes for validation, and at each step"
    assert {how["lang"] for _, _, how in asked} == {"en", "de"}, "those that it was aligned on"
    assert {"loss", "loss/text", "loss/none"} <= set(json.loads(answer.out)["metrics"])
    assert not torch.equal(weights(tmp_path / "run")["queries"], weights(aligned)["queries"])
    begun = weights(tiny_model, "decoder")
    assert any(not torch.equal(begun[name], x) for name, x in weights(tmp_path / "run", "decoder").items())
    load_adapted(tmp_path / "run", Clip.from_pretrained(tiny_model / "clip"))
    record = artifacts.read_json(tmp_path / "run/adapter/provenance.json")
    previous = PreviousStage.load(aligned, "image")
    assert (previous.languages(["ja", "en"]), languages_for(None, previous)) == (["en", "de", "ja"], ("en", "de"))
    unknown = replace(previous, record={})
    assert (unknown.languages(["ja"]), languages_for(None, unknown)) == (None, tuple(LANGUAGES))
    assert [one["stage"] for one in record["lineage"]] == ["align"]
    assert record["decoder"] != record["decoder_before"]

    stopped(syzygy, AdaptedDecoderTask, "loss", *common, "--out", tmp_path / "stopped")
    assert syzygy(*common, "--out", tmp_path / "stopped").code == 0
    one, other = (read_tensors(tmp_path / run / "checkpoint/model.safetensors") for run in ("run", "stopped"))
    assert all(torch.equal(other[name], x) for name, x in one.items())

    frozen = syzygy(*common, "--out", tmp_path / "frozen", "frozen=decoder", 'languages=["en","fr"]')
    assert frozen.code == 0, frozen.err
    assert artifacts.read_json(tmp_path / "frozen/adapter/provenance.json")["languages"] == ["en", "de", "fr"]
    assert all(torch.equal(begun[name], x) for name, x in weights(tmp_path / "frozen", "decoder").items())
    for encoder, told in (("frozen", ("image", "text")), ("run", ("image",))):  # the latter's decoder is another by now
        assert TextToImage.from_pretrained(tiny_model, text_encoder=tmp_path / encoder).pipeline.conditions == told
    together = TextToImage.from_pretrained(tiny_model, text_encoder=tmp_path / "run", decoder=tmp_path / "run")
    assert together.pipeline.conditions == ("image", "text"), "a decoder reads the adapter that it was trained with"
    painting = ("generate", "ein roter Kreis", "--model", tiny_model, "--text-encoder", tmp_path / "run", "--json")
    answers = []
    for more in ((), ("--decoder", tmp_path / "run")):
        answers.append(syzygy(*painting, *more, "--out", tmp_path / "pictures"))
        assert answers[-1].code == 0, answers[-1].err
    own, trained = (json.loads(answer.out)["settings"] for answer in answers)
    assert (own["conditions"], trained["conditions"]) == (["image"], ["image", "text"])
    assert own["fingerprints"]["decoder"] != trained["fingerprints"]["decoder"]
    for more, message in (
        (("--prior", tiny_model), "--prior has no effect with --decoder"),
        (('task.subsets={"image": 1}',), "no subset of task.subsets has 'text'"),
        (("task.painted=0.5",), "stand for no words"),
        (("--data", "x"), "no effect with stage 'image' and --data"),
    ):
        answer = syzygy(*common, "--out", tmp_path / "wrong", *more)
        assert answer.code == 2
        assert message in " ".join(answer.err.split())
