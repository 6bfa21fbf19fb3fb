"""`syzygy reproduce prior-sweep` on a tiny untrained model: every file, resumption, estimate, wrong input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.lab.evaluate import probe
from syzygy.lab.reproduce import presets, prior_sweep, prior_sweep_trainings
from syzygy.lab.reproduce.prior_sweep_points import Point, all_points, curves, sweeps
from syzygy.lab.reproduce.prior_sweep_trainings import PairPool
from syzygy.lab.starter import prior_training
from syzygy.prior.residual_prior import ResidualTaskConfig

SMALL = (
    "prior.validation_images=16",
    "prior.num_layers=1",
    "prior.num_attention_heads=2",
    "prior.attention_head_dim=16",
    "prior.loop.steps=4",
    "prior.loop.warmup=1",
    "prior.task.batch_size=16",
    "residual.batch_size=16",
    "pairs=[8, 40]",
    "at=[40]",
    "lambdas=[0, 0.2, 0.8]",
    "penalties=[0, 1]",
    "steps=[2, 4]",
    'temperatures=["clip", 0.5]',
    "muon_lrs=[0, 0.01]",
    "heads=[2, 4]",
    "ridges=[0.001, 0.1]",
    "seeds=2",
    "prompts=1",
    "unseen_pairs=40",
    "probe_scenes=60",
    "decoder_steps=1",
    "image_seeds=1",
)
TRAININGS = 2 * (
    3 * 2 + 3 + 1 + 2 + 2 + 2 + 2
)  # seeds × (methods × numbers of pairs, other λ, penalty, steps, temperature, Muon, size)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEPS", 5)
    monkeypatch.setattr(prior_sweep_trainings, "PART", 16)
    monkeypatch.setattr(prior_sweep_trainings, "CHUNK", 16)


def test_the_sweep_is_whole_and_goes_on_where_it_stopped(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("reproduce", "prior-sweep", "--model", tiny_model, "--out", out, "--json", *SMALL)
    answer = syzygy(*command, "--dry-run")
    assert answer.code == 0, answer.err
    estimate = json.loads(answer.out)
    assert (estimate["trainings"], estimate["pairs"]) == (TRAININGS, 40 + 16 + 40 + 60)
    assert estimate["steps"] == 4 * (TRAININGS - 4) + 2 * 4
    assert estimate["seconds"] > 0
    assert not out.exists() or not any(out.iterdir())

    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("syzygy.lab.reproduce.prior_sweep.score_controls", stop)
        assert syzygy(*command).code == 130
    trained = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    assert len(trained) == TRAININGS
    assert sorted(path.name for path in (out / "pairs").iterdir()) == [f"{i:09d}.safetensors" for i in (0, 16, 32)]
    assert not list((out / "priors").rglob("checkpoint")), "checkpoints of finished trainings would fill the disk"
    assert json.loads(syzygy(*command, "--dry-run").out)["trainings"] == 0

    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert "to go: 0 trainings" in answer.err
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items()), "a finished training was done again"
    found = json.loads(answer.out)
    candidates = {"projection", "ECLIPSE", "residual", "text identity", "text identity, shifted", "linear map"}
    assert set(found["curves"]) == candidates
    one = found["curves"]["residual"]["40"]
    assert {"cosine", "recall_at_1", "frechet", "probe_seen_one", "probe_held_out_two", "seconds"} <= set(one)
    assert set(found["residual_minus"]) == {"ECLIPSE", "projection", "linear map", "text identity, shifted"}
    paired = found["residual_minus"]["ECLIPSE"]["40"]["cosine"][0]
    assert paired == pytest.approx(one["cosine"][0] - found["curves"]["ECLIPSE"]["40"]["cosine"][0])
    assert set(found["sweeps"]) == {"contrast", "penalty", "steps", "temperature", "muon_lr", "heads"}
    assert set(found["sweeps"]["muon_lr"]["40"]["ECLIPSE"]) == {"0.0", "0.01"}
    assert set(found["sweeps"]["contrast"]["40"]["residual"]) == {"0.0", "0.2", "0.8"}
    assert set(found["sweeps"]["penalty"]["40"]) == {"residual"}
    assert set(found["ridges"]["8"]) == {"0.001", "0.1"}
    assert found["images"] == {}
    report = (out / "report.md").read_text()
    for said in (
        "## 8 pairs",
        "Residual minus the others",
        "## Sweep: λ with 40 pairs",
        "| ECLIPSE, clip |",
        "## Regularisation of the linear map",
        "](prior-sweep-cosine.svg)",
        "What this does not show",
    ):
        assert said in report, said
    assert (out / "prior-sweep-probe-held-out-two.svg").is_file()
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 7 + 5  # learning curves; λ, penalty, steps, Muon, size
    assert prior_sweep.report(artifacts.read_json(out / "results.json")).markdown() == report

    with_images = syzygy(*command, "images_at=[40]")
    assert with_images.code == 0, with_images.err
    images = json.loads(with_images.out)["images"]["40"]
    assert set(images) == {"reference"} | candidates
    assert images["linear map"]["seen"]["single"]["prompts"] == 1
    assert "Prompt accuracy of images with 40 pairs" in (out / "report.md").read_text()

    other = syzygy(*command, "seeds=3")
    assert other.code == 2
    assert "holds an experiment with other settings" in other.err


def test_each_training_has_its_own_pairs_while_there_are_enough(tiny_model: Path, tmp_path: Path) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    pool = PairPool.prepare(tmp_path, clip, 3, 40)
    (tmp_path / "000000016.safetensors").unlink()
    again = PairPool.prepare(tmp_path, clip, 3, 40)
    assert torch.equal(again.images, pool.images)
    assert torch.equal(again.text.states, pool.text.states)
    first, second, third = (pool.training(16, seed) for seed in range(3))
    assert torch.equal(second.image_embeddings, pool.images[16:32])
    assert torch.equal(second.text(torch.arange(16)).pooled, pool.text.pooled[16:32])
    assert torch.equal(third.image_embeddings, first.image_embeddings), "only 40 pairs, so the third has the first's"
    assert len(pool.training(40, 4)) == 40
    whole = prior_training.embed(clip, 3, 40)
    everything = torch.arange(40)
    torch.testing.assert_close(
        pool.training(40, 0).images(everything).float(), whole.images(everything), rtol=0, atol=0.05
    )
    same = whole.ids(everything)[:, None] == whole.ids(everything)
    ids = pool.training(40, 0).ids(everything)
    assert torch.equal(ids[:, None] == ids, same)


def test_points_have_equal_budgets_and_differ_in_one_setting() -> None:
    run = presets.prior_sweep_full()
    points = all_points(run)
    assert len({point.name(0) for point in points}) == len(points)
    base = {method: Point.base(run, method, 20_000) for method in ("projection", "ECLIPSE", "residual")}
    for key, by_pairs in sweeps(run).items():
        for method, values in by_pairs[20_000].items():
            for value, point in values.items():
                changed = {name for name in vars(point) if getattr(point, name) != getattr(base[method], name)}
                assert changed <= {key} or (method, value, point) == ("ECLIPSE", 0, base["projection"])
                assert getattr(point, key) == value
    for point in points:
        settings = point.settings(run, 1)
        assert (settings.scenes, settings.seed) == (point.pairs, 1)
        assert settings.task.batch_size == min(256, point.pairs)
        assert settings.num_attention_heads == point.heads
        assert settings.loop.warmup < settings.loop.steps == point.steps
        assert settings.task.lambda_contrastive == point.contrast  # pyright: ignore
        wanted = ("muon", point.muon_lr) if point.muon_lr else ("adamw", None)
        assert (settings.loop.optimizer, settings.loop.muon_lr) == wanted
        assert isinstance(settings.task, ResidualTaskConfig) == (point.method == "residual")
        assert type(settings).model_validate_json(settings.model_dump_json()) == settings
    assert set(curves(run)["residual"]) == {200, 1000, 5000, 20_000, 200_000}
    more = run.changed(pairs=(100, 200_000), at=(100,), lambdas=(9.0,), ridges=(5.0,), images_at=(100,))
    assert more.claimed() == run.claimed(), "points and images may be added to an experiment"
    assert run.changed(pairs=(100, 20_000), at=()).claimed() != run.claimed(), "each training would have other pairs"
    assert run.changed(decoder_steps=5).claimed() != run.claimed()
    quick = presets.prior_sweep_quick()
    assert type(quick).model_validate_json(quick.model_dump_json()) == quick
    quick.check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seeds=1",), "setting 'seeds'"),
        (("at=[7]",), r"at and images_at name \[7\], which are not among pairs=\[8, 40\]"),
        (("images_at=[9]",), r"name \[9\]"),
        (("pairs=[1, 40]",), "at least 2 training pairs"),
        (("residual.batch_size=8",), "of one batch size"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    model = () if "--model" in arguments else ("--model", tiny_model)
    answer = syzygy("reproduce", "prior-sweep", *model, "--out", tmp_path / "out", *SMALL, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert re.search(said, answer.err)
