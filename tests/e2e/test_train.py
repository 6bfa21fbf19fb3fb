"""`syzygy train …`, end to end at tiny sizes: from nothing to pictures, interruptions included."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.model_parts import part_folder
from syzygy.decoder.backbone import load_decoder
from syzygy.generation import own_models
from syzygy.generation.image_files import read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.starter import autoencoder_training as autoencoder_run
from syzygy.lab.starter import classifier_training as classifier_run
from syzygy.lab.starter import clip_probe, decoder_data, presets, world_validation
from syzygy.lab.starter import clip_training as clip_run
from syzygy.lab.starter import decoder_training as decoder_run
from syzygy.lab.starter import lm_training as lm_run
from syzygy.lab.starter import placement_training as placement_run
from syzygy.lab.starter import starter_training as starter_run
from syzygy.lab.starter import t5_training as t5_run
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.presets import PRESETS as PRIORS
from syzygy.text_encoders import training as adapter_run
from tests.stopping import stopped

LOOP = ("loop.steps=3", "loop.warmup=1", "loop.validate_every=2", "task.batch_size=8")
CLIP = tuple(
    f"clip.{setting}"
    for setting in (
        "width=32",
        "text_layers=1",
        "text_heads=2",
        "vision_width=32",
        "vision_layers=1",
        "vision_heads=2",
        "image_size=32",
    )
)
DECODER = (
    "backbone.channels=[16, 32]",
    "backbone.attention=[false, true]",
    "backbone.head_width=16",
    "backbone.norm_groups=8",
    "scenes=16",
)
PRIOR = (
    "num_layers=1",
    "num_attention_heads=2",
    "attention_head_dim=16",
    "scenes=40",
    "validation_images=20",
)
AUTOENCODER = ("autoencoder.image_size=32", "autoencoder.channels=16", "autoencoder.fine_channels=8")
T5 = ("t5.width=16", "t5.layers=1", "t5.decoder_layers=1", "t5.heads=2")
READER = ("reader.features=16", "reader.blocks=1")
JUDGE = ("judge.channels=8", "judge.width=16", "judge.blocks=1")
TINY = {
    "clip": (*LOOP, *CLIP, "vision_loop.steps=3", "vision_batch=8", "scenes=24"),
    "autoencoder": LOOP + AUTOENCODER,
    "decoder": LOOP + DECODER,
    "prior": LOOP + PRIOR,
    "reader": LOOP + READER,
    "judge": LOOP + JUDGE,
    "t5": LOOP + T5,
    "placement": (*LOOP, "layers=1", "side=4", "captions=24"),
}
LM = ("lm.width=32", "lm.layers=1", "lm.heads=2", "lm.feed_forward=32", "lm.vocabulary=1500", 'languages=["en","de"]')
ADAPTER = ("adapter.queries=3", "adapter.layers=1", "adapter.heads=2", "adapter.width=32", "validation_lines=2")
PICTURES = ("scenes=20", "validation_images=10", 'languages=["en","de"]', 'lengths=["short"]')
STAGES = TINY | {
    "llm": LOOP + LM,
    "align": (*LOOP, *ADAPTER, 'languages=["en","de"]', 'lengths=["short"]'),
    "image": LOOP + PICTURES,
    "quality": LOOP + PICTURES,
}
STARTER = tuple(f"{stage}.{setting}" for stage, settings in STAGES.items() for setting in settings)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runs measure and learn words on, in small."""
    for module, name, number in (
        (clip_run, "TOKENIZER_CAPTIONS", 100),
        (clip_run, "VALIDATION_PAIRS", 16),
        (clip_run, "VALIDATION_SCENES", 16),
        (clip_probe, "TRAINING_SCENES", 40),
        (clip_probe, "TEST_SCENES", 20),
        (autoencoder_run, "STATISTICS_PICTURES", 16),
        (autoencoder_run, "VALIDATION_PICTURES", 8),
        (decoder_run, "SCALE_PAIRS", 16),
        (decoder_data, "VALIDATION_PICTURES", 8),
        (world_validation, "PROBES", 4),
        (world_validation, "PROMPTS", 4),
        (t5_run, "TOKENIZER_CAPTIONS", 100),
        (t5_run, "VALIDATION_CAPTIONS", 6),
        (classifier_run, "VALIDATION_PICTURES", 8),
        (classifier_run, "CALIBRATION_PICTURES", 16),
        (classifier_run, "TEST_PICTURES", 16),
        (lm_run, "TOKENIZER_CAPTIONS", 30),
        (lm_run, "VALIDATION_CAPTIONS", 1),
        (adapter_run, "STATISTICS_CAPTIONS", 40),
        (placement_run, "VALIDATION_PAIRS", 8),
    ):
        assert getattr(module, name) > number
        monkeypatch.setattr(module, name, number)


@pytest.fixture
def train(syzygy: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Run `train KIND --json` at tiny size, expecting success."""

    def run(kind: str, *arguments: object) -> dict[str, Any]:
        answer = syzygy("train", kind, "--device", "cpu", "--json", *TINY.get(kind, STARTER), *arguments)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    return run


def contents(folder: Path) -> dict[str, Any]:
    """Everything in an artefact but the clock's part. (The header of safetensors is in random order.)"""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".safetensors":
            found |= {f"{path.name}/{name}": x.numpy().tobytes() for name, x in artifacts.read_tensors(path).items()}
        else:
            found[path.name] = artifacts.read_json(path)
    return found | {"provenance.json": found["provenance.json"] | {"seconds": 0, "date": ""}}


def test_from_nothing_to_a_picture(
    train: Callable[..., dict[str, Any]], syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    clip = train("clip", "--out", tmp_path / "c")
    assert clip["folder"] == str(tmp_path / "c" / "clip")
    aligned = {"matched_cosine", "mean_distance", "recall_at_1", "zero_shot_shape", "zero_shot_colour"}
    probed = {f"probe_{name}" for name in ("one_shape", "one_colour", "one_texture", "two_colours", "two_all")}
    assert set(clip["metrics"]) == aligned | probed
    autoencoder = train("autoencoder", "--out", tmp_path / "a")
    assert set(autoencoder["metrics"]) == {"psnr", "nats"}
    decoder = train("decoder", "--clip", tmp_path / "c", "--autoencoder", tmp_path / "a", "--out", tmp_path / "d")
    assert {"loss", "loss/image", "loss/none"} <= set(decoder["metrics"])
    prior = train("prior", "--clip", tmp_path / "c" / "clip", "--out", tmp_path / "p")
    assert {"loss", "cosine", "cosine_text", "cosine_other", "recall_at_1"} <= set(prior["metrics"])
    record = artifacts.read_json(Path(prior["folder"]) / artifacts.PROVENANCE_FILE)
    assert (record["kind"], record["steps"], record["samples"], record["recipe"]["scenes"]) == ("prior", 3, 24, 40)

    results = {"clip": clip, "autoencoder": autoencoder, "decoder": decoder, "prior": prior}
    parts = {name: Path(result["folder"]) for name, result in results.items()}
    parts |= {
        "reader": tiny_model / "reader",
        "t5": part_folder("starter", "t5"),
    }  # the T5 that decoders read by default
    own_models.write_model(parts, tmp_path / "m", world=True, defaults={})
    arguments = ("a red circle", "--model", tmp_path / "m", "--steps", "2", "--out", tmp_path / "out", "--json")
    own = json.loads(syzygy("generate", *arguments).out)
    assert read_record(Path(own["images"][0]["path"]))["steps"] == 2
    other = train("prior", "--clip", tmp_path / "m", "--out", tmp_path / "q", "seed=1")
    named = json.loads(syzygy("generate", *arguments, "--prior", tmp_path / "q").out)
    assert named["settings"]["fingerprints"]["prior"] != own["settings"]["fingerprints"]["prior"]
    assert other["folder"] == str(tmp_path / "q" / "prior")
    refused = syzygy("generate", "a moon", "--model", tiny_model, "--prior", tmp_path / "q", "--out", tmp_path / "out")
    assert refused.code == 2
    assert "were trained with another clip" in refused.err


def test_a_diffusion_prior_takes_eclipses_place(
    train: Callable[..., dict[str, Any]], syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    out, sampling = tmp_path / "p", ("task.sampling.steps=3", "task.sampling.eta=0.5")
    result = train("prior", "--preset", "diffusion", "--clip", tiny_model, "--out", out, *sampling)
    assert set(result["metrics"]) == {"loss", "cosine", "cosine_text", "cosine_other", "recall_at_1"}
    arguments = ("a red circle", "--model", tiny_model, "--steps", 2, "--out", tmp_path / "out", "--json")
    fingerprints = [
        json.loads(syzygy("generate", *arguments, *prior).out)["settings"]["fingerprints"]["prior"]
        for prior in ((), ("--prior", out))
    ]
    assert fingerprints[0] != fingerprints[1]
    model = TextToImage.from_pretrained(tiny_model, prior=out)
    assert isinstance(model.pipeline.prior, SampledPrior)
    assert model.pipeline.prior.evaluations == 6
    assert model.pipeline.prior.sampling.eta == 0.5


def test_the_starter_in_stages(
    train: Callable[..., dict[str, Any]],
    syzygy: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = ("--out", tmp_path)
    first = train("starter", *out, "--stages", "reader,clip")
    assert first["folder"] == str(tmp_path)
    assert {name.split("/")[0] for name in first["metrics"]} == {"clip", "reader"}
    early = train("starter", *out, "--stages", "autoencoder,t5,decoder,placement,prior")
    assert early["folder"] == str(tmp_path / "model")
    assert len(list((tmp_path / "decoder" / "sheets").glob("*.png"))) == 2
    result = train("starter", *out)
    assert result["folder"] == str(tmp_path / "model")
    assert {name.split("/")[0] for name in result["metrics"]} == set(starter_run.STAGES)
    answer = syzygy("generate", "a red circle", "--model", tmp_path / "model", "--steps", 1, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    model = TextToImage.from_pretrained(tmp_path / "model")
    assert model.world
    assert model.pipeline.decoder.conditions == ("image", "text", "t5")
    assert "placement" in model.fingerprints()
    parts = {
        stage.part: artifacts.read_json(tmp_path / name / stage.part / "provenance.json")
        for name, stage in starter_run.STAGES.items()
    }
    decoder = artifacts.read_json(tmp_path / "model" / "decoder" / "provenance.json")
    assert decoder == parts["decoder"]
    assert parts["placement"]["decoder"] == artifacts.fingerprint(
        load_decoder(tmp_path / "model" / "decoder").state_dict()
    )

    speaking = TextToImage.from_pretrained(tmp_path / "model", text_encoder="adapter")
    adapter = artifacts.read_json(tmp_path / "model" / "adapter" / "provenance.json")
    assert [one["stage"] for one in adapter["lineage"]] == ["align", "image"]
    assert adapter["llm"] == parts["adapter"]["llm"] | {"source": "llm"}
    assert speaking.languages == ("en", "de")
    prior = speaking.pipeline.prior
    assert isinstance(prior, EclipsePrior)
    assert adapter["prior"] == artifacts.fingerprint(prior.state_dict())  # one for both, as it was for CLIP alone

    def not_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage ran again")

    with monkeypatch.context() as patch:
        patch.setattr("syzygy.training.run_records.fit", not_again)
        assert train("starter", *out) == result
        for stage, part, changed in (
            ("align", "prior", "another"),
            ("image", "llm", adapter["llm"] | {"fingerprint": "another"}),
            ("quality", "lineage", [{"adapter": "another"}]),
            ("placement", "decoder", "another"),
        ):
            record = tmp_path / stage / starter_run.STAGES[stage].part / artifacts.PROVENANCE_FILE
            kept = artifacts.read_json(record)
            artifacts.write_json(record, kept | {part: changed})
            with pytest.raises(AssertionError, match="ran again"):
                train("starter", *out)
            artifacts.write_json(record, kept)
        record = tmp_path / "prior" / "prior" / artifacts.PROVENANCE_FILE
        artifacts.write_json(record, artifacts.read_json(record) | {"clip": "another"})
        with pytest.raises(AssertionError, match="ran again"):
            train("starter", *out)

    changed = syzygy("train", "starter", *out, *STARTER, "prior.seed=1")
    assert changed.code == 2
    assert "holds a run with other settings: seed is 0 there and 1 now" in changed.err


def test_a_stage_needs_its_clip(syzygy: Callable[..., Any], tmp_path: Path) -> None:
    answer = syzygy("train", "starter", "--out", tmp_path, "--stages", "prior")
    assert answer.code == 2
    assert "stage 'prior' needs clip" in answer.err
    answer = syzygy("train", "starter", "--out", tmp_path, "--stages", "clip,decodr")
    assert answer.code == 2
    assert "unknown stage 'decodr'. Did you mean 'decoder'?" in answer.err
    answer = syzygy("train", "starter", "--out", tmp_path, "--stages", "align")
    assert answer.code == 2
    assert "stage 'align' needs clip" in answer.err
    answer = syzygy("train", "starter", "--out", tmp_path, "image.task.frozen=none")
    assert answer.code == 2
    assert "a model has one prior, CLIP's and the adapter's" in answer.err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_as_if_it_never_stopped(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    tiny = ("--clip", tiny_model, "--device", "cpu", *PRIOR, "task.batch_size=8")
    tiny += ("loop.steps=150", "loop.log_every=1", "loop.validate_every=0", "loop.checkpoint_every=0")
    out, metrics = tmp_path / "a", tmp_path / "a" / "metrics.jsonl"
    ended = stopped(
        [Path(sys.executable).with_name("syzygy"), "train", "prior", "--out", out, *tiny],
        out,
        signal.SIGTERM,
        reached=lambda _: metrics.exists() and metrics.stat().st_size,
        finished=out / "prior",
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stdout == ""
    assert "Run the same command again to continue." in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "a" / "prior").exists()
    done = artifacts.read_json(tmp_path / "a" / "checkpoint" / "state.json")["step"]
    assert 0 < done < 150

    for out in ("a", "b"):  # the rest, and a run without interruption
        answer = syzygy("train", "prior", "--out", tmp_path / out, *tiny)
        assert answer.code == 0, answer.err
    assert contents(tmp_path / "a" / "prior") == contents(tmp_path / "b" / "prior")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_a_run_tells_where_it_is_and_what_it_reached(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    answer = syzygy("train", "prior", "--clip", tiny_model, "--out", tmp_path, *TINY["prior"])
    assert answer.code == 0
    *metrics, trained, next_step = answer.out.splitlines()
    assert [line.split()[0] for line in metrics] == [
        "loss",
        "projection",
        "contrastive",
        "cosine",
        "cosine_text",
        "cosine_other",
        "recall_at_1",
    ]
    assert trained == f"Trained: {tmp_path / 'prior'}"
    assert next_step == f"Try next: syzygy generate 'a red circle' --model {tiny_model} --prior {tmp_path}"
    announced, *_, last = [line for line in answer.err.splitlines() if line.startswith("prior: ")]
    assert "parameters to train;" in announced
    assert last.startswith("prior: step 3/3 · loss ")


def test_settings_are_listed_with_what_they_mean(syzygy: Callable[..., Any]) -> None:
    answer = syzygy("train", "prior", "--settings", "loop.warmup=70", "--preset", "eclipse-kandinsky22")
    assert (answer.code, answer.err) == (0, "")
    text = " ".join(answer.out.split())
    assert "loop.warmup=70 Steps over which the learning rate rises" in text
    assert "num_layers=10 Transformer blocks" in text
    listed = json.loads(syzygy("train", "decoder", "--settings", "--json").out)
    assert listed["task.batch_size"]["value"] == presets.decoder_starter().task.batch_size
    assert all(entry["help"] for entry in listed.values())


@pytest.mark.parametrize(
    "table",
    [presets.AUTOENCODER, presets.CLIP, presets.DECODER, PRIORS, presets.READER, presets.JUDGE, presets.STARTER],
)
def test_every_preset_is_a_complete_run(table: Mapping[str, Callable[[], Config]]) -> None:
    for preset in table.values():
        run = preset()
        assert type(run).model_validate(json.loads(run.model_dump_json())) == run


def test_the_gpu_recipes_decoder_fits_the_repository() -> None:
    backbone = presets.starter_gpu().decoder.backbone
    clip = presets.starter_gpu().clip.clip
    slots = (
        decoder_run.SlotConfig(name="image", pooled_width=clip.width, pooled_tokens=8),
        decoder_run.SlotConfig(name="text", token_width=clip.width),
    )
    config = decoder_run.DecoderConfig(slots=slots, backbone=backbone)
    parameters = sum(x.numel() for x in decoder_run.build_decoder(config).parameters())
    assert 2 * parameters < 15_000_000


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no out": (("prior",), "Missing option '--out'"),
    "preset": (("prior", "--preset", "stater"), "unknown preset 'stater'. Did you mean 'starter'?"),
    "key": (("prior", "task.lambda_contrastiv=0.3"), "Did you mean task.lambda_contrastive"),
    "no value": (("prior", "loop.steps"), "setting 'loop.steps' has no value: write key=value"),
    "value": (("prior", "loop.steps=0"), "setting 'loop.steps'"),
    "NaN": (("prior", "loop.lr=NaN"), "setting 'loop.lr'"),
    "kind of value": (("prior", "loop.steps=many"), "setting 'loop.steps'"),
    "nested": (("prior", "--preset", "diffusion", "task.sampling.steps=0"), "setting 'task.sampling.steps'"),
    "of the other task": (
        ("prior", "--preset", "diffusion", "task.temperature=1"),
        "unknown setting 'task.temperature'",
    ),
    "two that clash": (("prior", "loop.steps=5", "loop.warmup=9"), "warmup=9 leaves nothing of steps=5"),
    "clip": (("prior", "--clip", "nowhere", "--out", "{out}"), "clip 'nowhere' is neither a folder nor a known model"),
    "clip of decoder": (("decoder", "--clip", "nowhere", "--out", "{out}"), "clip 'nowhere' is neither"),
    "autoencoder": (
        ("decoder", "--clip", "{tiny}", "--autoencoder", "nowhere", "--out", "{out}"),
        "autoencoder 'nowhere' is neither",
    ),
    "device": (("clip", "--device", "cuda", "--out", "{out}"), "device 'cuda' is not available here"),
    "out": (("reader", "--out", __file__), "cannot write to"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(
    arguments: tuple[str, ...],
    message: str,
    syzygy: Callable[..., Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    places = {"{out}": str(tmp_path), "{tiny}": str(tiny_model)}
    answer = syzygy("train", *(places.get(argument, argument) for argument in arguments))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())
