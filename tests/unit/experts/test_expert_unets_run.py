"""Experts of a tiny Stable Diffusion on pictures on disk: latents, captions, growing, resuming, refusing."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.experts import unet_expert_training
from syzygy.experts.unet_expert_training import ExpertUNetsRun
from syzygy.pretrained.captioned_latents import Batches, Steps, split_pictures
from syzygy.pretrained.latent_cache import Latents
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import UNetTaskConfig
from syzygy.pretrained.unet_training import load_unet
from syzygy.training.loop import Interrupted
from syzygy.training.schedule import LoopConfig
from tests.closeness import NETWORK, assert_close
from tests.tiny_stable_diffusion import tiny_stable_diffusion

CPU = torch.device("cpu")
COLOURS = {"red": (220, 30, 20), "green": (30, 200, 40), "blue": (20, 40, 230), "white": (250, 250, 250)}


def silent(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, wider than high; every other one with two captions."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(12):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (24 + number, 20), COLOURS[name]).save(folder / f"{number}.png")
        captions = [f"a {name} circle", f"two {name} stars"] if number % 2 else f"a {name} circle"
        lines.append(json.dumps({"file_name": f"{number}.png", "text": captions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def run(*leaves: str, steps: int = 4, lr: float = 0.01, **more: Any) -> ExpertUNetsRun:
    loop = LoopConfig(steps=steps, lr=lr, validate_every=steps, checkpoint_every=2, log_every=2, ema_half_life=2.0)
    task = UNetTaskConfig(batch_size=4, **more.pop("task", {}))
    values = {"leaves": leaves or ("E1_0", "E1_1"), "size": 16, "validation_pictures": 2, "rank": 2} | more
    return ExpertUNetsRun(task=task, loop=loop, **values)


def train(what: ExpertUNetsRun, model: Path, data: Path, out: Path) -> Path:
    return unet_expert_training.train(what, model, str(data), out, CPU, silent)


@pytest.fixture(scope="module")
def grown(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped: low-rank experts, one of them grown through two levels."""
    out = tmp_path_factory.mktemp("grown")
    train(run("E2_0", "complement"), model, pictures, out)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return artifacts.read_tensors(file)


def record(folder: Path) -> dict[str, Any]:
    return artifacts.read_json(folder / artifacts.PROVENANCE_FILE)


def test_what_is_written(grown: Path, model: Path, pictures: Path) -> None:
    experts = grown / "experts"
    assert artifacts.read_json(experts / "stages.json")["names"] == ["E2_0", "complement"]
    assert sorted(path.name for path in experts.iterdir()) == [
        "E2_0", "complement", "scheduler", "stages.json", "trunk",
    ]  # fmt: skip
    trunk, root = tensors(experts / "trunk"), tensors(model / "unet")
    assert trunk.keys() == root.keys()
    assert all(torch.equal(trunk[name], root[name]) for name in root)
    names = [name for name in tensors(experts / "E2_0") if name.endswith("up")]
    assert len(names) == 32, "query, key, value and output of the self- and cross-attention of four blocks"
    assert all("attn" in name and "/to_" in name for name in names)
    found = record(experts / "E2_0")
    assert (found["node"], found["parent"], found["shares"]) == ("E2_0", "E1_0", [[0.0, 0.25]])
    assert found["unet"] == artifacts.fingerprint(load_unet(model / "unet").state_dict())
    assert (found["pictures"], found["source"]) == (12, str(pictures))
    assert found["scheduler"].startswith("epsilon ")
    assert found["samples"] == 16
    assert found["metrics"]["loss"] > 0
    assert not list(grown.glob("nodes/*/checkpoint"))


def test_a_child_starts_from_its_parent(grown: Path) -> None:
    above = tensors(grown / "nodes" / "E1_0" / "expert")
    assert record(grown / "nodes" / "E2_0" / "expert")["from"] == artifacts.fingerprint(
        {name: value.float() for name, value in above.items()}
    )
    roots = {record(grown / "nodes" / name / "expert")["from"] for name in ("E1_0", "complement")}
    assert len(roots) == 1


def test_latents_are_the_autoencoders(grown: Path, model: Path, pictures: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    found = Latents(grown / "latents", [artifacts.read_json(grown / "latents" / "00000.json")])
    assert found.captions[1] == ("a green circle", "two green stars")
    vae = AutoencoderKL.from_pretrained(model / "vae")
    image = Image.open(pictures / "5.png").convert("RGB")
    assert image.size == (29, 20)
    small = image.resize((23, 16), Image.Resampling.LANCZOS).crop((3, 0, 19, 16))
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
    draws = torch.cat([found.sampled([5], draw) for draw in range(400)]) / vae.config.scaling_factor
    torch.testing.assert_close(draws.mean(0), expected.mean[0], atol=4 * expected.std.max().item() / 20, rtol=1e-2)
    torch.testing.assert_close(draws.std(0).mean(), expected.std.mean(), rtol=0.05, atol=0)
    assert torch.equal(found.sampled([5, 3], 7)[:1], found.sampled([5], 7))


def test_pictures_are_as_large_as_the_unet_was_made_for(model: Path) -> None:
    assert load_beside(model, None, CPU).pictures.side == 32  # 16 × 16 latents


def test_batches_are_permutations_with_captions_and_empty_prompts(grown: Path, model: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    latents = Latents(grown / "latents", [artifacts.read_json(grown / "latents" / "00000.json")])
    beside = load_beside(model, 16, CPU)
    steps = Steps(latents, [*range(10)], UNetTaskConfig(batch_size=4, dropped=0.25), 0)
    batches = Batches(steps, beside.conditions, None)
    seen = [picture for step in range(5) for picture in steps.pictures(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == [*range(10)]
    assert seen[:10] != seen[10:]
    read = [(p, c) for step in range(500) for p, c in zip(steps.pictures(step), steps.captions(step), strict=True)]
    assert 0.2 < sum(caption is None for _, caption in read) / len(read) < 0.3
    assert {c for p, c in read if p == 1} == {None, "a green circle", "two green stars"}
    assert {c for p, c in read if p == 2} == {None, "a blue circle"}
    batch = batches(3)
    states = batch.conditions["encoder_hidden_states"]
    assert (tuple(batch.latents.shape), tuple(states.shape[:2])) == ((4, 4, 8, 8), (4, 77))
    assert None in steps.captions(3)
    read = [caption or "" for caption in steps.captions(3)]
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    assert_close(states, pipe.encode_prompt(read, CPU, 1, False)[0], depth=NETWORK)


def test_interrupted_and_continued_is_the_same(
    grown: Path, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Batches.__call__, []

    def stopping(self: Batches, step: int) -> Any:
        calls.append(step)
        if len(calls) == 7:  # the third step of the second node
            signal.raise_signal(signal.SIGINT)
        return whole(self, step)

    monkeypatch.setattr(Batches, "__call__", stopping)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        train(run("E2_0", "complement"), model, pictures, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "experts").exists()
    train(run("E2_0", "complement"), model, pictures, tmp_path)
    for name in ("E1_0", "E2_0", "complement"):
        here, there = (out / "nodes" / name for out in (tmp_path, grown))
        one, other = tensors(here / "expert"), tensors(there / "expert")
        assert all(torch.equal(one[key], other[key]) for key in other)
        assert (here / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()


def test_whole_networks_learn_their_part(model: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    what = run("E2_3", "complement", steps=14, form="full", task={"checkpointing": True})
    experts = train(what, model, pictures, tmp_path)
    losses = [
        json.loads(line)["loss"]
        for name in ("E1_1", "E2_3")
        for line in (tmp_path / "nodes" / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.85 * losses[0], "means over two steps"
    above = tensors(tmp_path / "nodes" / "E1_1" / "expert")
    assert record(experts / "E2_3")["from"] == artifacts.fingerprint(above)
    low, high = (UNet2DConditionModel.from_pretrained(experts / name) for name in ("complement", "E2_3"))
    root = load_unet(model / "unet")
    assert low.config["cross_attention_dim"] == root.config["cross_attention_dim"]
    for one, other in ((low, root), (high, root), (low, high)):
        assert not torch.equal(one.conv_in.weight, other.conv_in.weight)
    assert not (experts / "trunk").exists()


def test_what_a_run_was_begun_with_stays(grown: Path, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = shutil.copytree(grown, tmp_path / "run")
    with pytest.raises(UserError, match=r"trained with other settings \(loop\)"):
        train(run("E2_0", "complement", lr=0.02), model, pictures, out)
    more = shutil.copytree(pictures, tmp_path / "more")
    with (more / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "0.png", "text": "another"}')
    with pytest.raises(UserError, match=r"latents of other pictures .*\(shards differ\)"):
        train(run("E2_0", "complement"), model, more, out)
    other = shutil.copytree(model, tmp_path / "model")
    weights = artifacts.read_tensors(other / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] += 1
    artifacts.write_tensors(other / "unet/diffusion_pytorch_model.safetensors", weights)
    with pytest.raises(UserError, match=r"trained with other settings \(unet\)"):
        train(run("E2_0", "complement"), other, pictures, out)
    noisier = changed(model, "scheduler", tmp_path / "noisier", beta_end=0.02)
    with pytest.raises(UserError, match=r"trained with other settings \(scheduler\)"):
        train(run("E2_0", "complement"), noisier, pictures, out)


def changed(folder: Path, part: str, to: Path, **values: Any) -> Path:
    """A model whose part has other settings."""
    copy = shutil.copytree(folder, to)
    (path,) = (copy / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


def test_wrong_input(model: Path, pictures: Path, tmp_path: Path) -> None:
    headless = shutil.copytree(model, tmp_path / "headless")
    shutil.rmtree(headless / "unet")
    nothing, broken = (tmp_path / name for name in ("nothing", "broken"))
    for folder in (nothing, broken):
        folder.mkdir()
    (nothing / "metadata.jsonl").write_text("")
    (broken / "metadata.jsonl").write_text('{"file_name": "no.png", "text": "a"}')
    kinds = {
        "flow": changed(model, "scheduler", tmp_path / "flow", prediction_type="flow_prediction"),
        "xl": changed(model, "unet", tmp_path / "xl", addition_embed_type="text_time"),
        "inpainting": changed(model, "unet", tmp_path / "inpainting", in_channels=9),
        "wide": changed(model, "unet", tmp_path / "wide", cross_attention_dim=64),
        "levels": changed(
            model, "scheduler", tmp_path / "levels", _class_name="EulerDiscreteScheduler", timestep_type="continuous"
        ),
        "short": changed(model, "scheduler", tmp_path / "short", num_train_timesteps=100),
    }
    cases: list[tuple[str, ExpertUNetsRun, Path, Path]] = [
        ("has no unet: Stable Diffusion needs unet, vae", run(), headless, pictures),
        ("holds no picture with a caption", run(), model, nothing),
        (r"1 of 1 sample in .* cannot be used.*no file no.png", run(), model, broken),
        ("leave gaps", run("E1_0"), model, pictures),
        ("no linear or convolution layer of this network has 'atn'", run(layers="atn"), model, pictures),
        ("validation_pictures=12 leaves none of the 12 pictures", run(validation_pictures=12), model, pictures),
        ("multiples of 2", run(size=15), model, pictures),
        ("prediction_type is 'flow_prediction'", run(), kinds["flow"], pictures),
        ("counts in noise levels", run(), kinds["levels"], pictures),
        (r"reads more than .*\(addition_embed_type\)", run(), kinds["xl"], pictures),
        ("reads 9 channels, the autoencoder makes 4: inpainting", run(), kinds["inpainting"], pictures),
        ("states 64 wide, its text encoder makes", run(), kinds["wide"], pictures),
        ("none of the scheduler's 100 timesteps", run("E9_511", "complement"), kinds["short"], pictures),
        ("--image-column is for parquet", run(image_column="jpg"), model, pictures),
    ]  # fmt: skip
    for number, (message, what, source, data) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            train(what, source, data, tmp_path / f"out{number}")
    with pytest.raises(ValueError, match="set both, or both to 0"):
        ExpertUNetsRun(task=UNetTaskConfig(), loop=LoopConfig(steps=1, lr=1))


def test_copies_of_a_picture_are_not_on_both_sides_of_the_validation(grown: Path) -> None:
    assert split_pictures([0, 1, 0, 3, 1], 3, 0)[1] == []
    for seed in range(5):
        same = [0, 1, 0, 3, 1, 5]
        unseen, seen = split_pictures(same, 2, seed)
        assert len({same[i] for i in unseen}) == 2
        assert {same[i] for i in unseen} | {same[i] for i in seen} == set(same)
        assert not {same[i] for i in unseen} & {same[i] for i in seen}
    record = artifacts.read_json(grown / "latents" / "00000.json")
    latents = Latents(grown / "latents", [record])
    assert latents.same_picture == [*range(len(latents))]
    copied = [{**part, "contents": [1] * len(part["captions"])} for part in record["parts"]]
    assert set(Latents(grown / "latents", [{**record, "parts": copied}]).same_picture) == {0}
    older = [{name: value for name, value in part.items() if name != "contents"} for part in record["parts"]]
    assert Latents(grown / "latents", [{**record, "parts": older}]).same_picture == [*range(len(latents))]
