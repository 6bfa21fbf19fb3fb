"""`syzygy evaluate prior`: what is measured, on which pairs, against which controls."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.data.store import EmbeddingStore
from syzygy.lab.evaluate import held_out
from syzygy.lab.evaluate.held_out import Past, Truth, common, past_of, rest_of
from syzygy.lab.evaluate.prior_retrieval import LINEAR, SHIFTED, SHUFFLED, controls, scored
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.embedding_pairs import StorePairs, split
from syzygy.prior.embedding_statistics import frechet_distance
from syzygy.prior.prior_loading import load_prior

PAIRS = 60
SMALL = (
    "num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "task.batch_size=8", "loop.warmup=1", "loop.validate_every=2",
)  # fmt: skip


def called(*arguments: object) -> None:
    import sys
    from unittest.mock import patch

    from syzygy.cli.main import main

    with patch.object(sys, "argv", ["syzygy", *map(str, arguments)]), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store with two trainings on it, which held out 40 and 36 of its pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    called("world", "sample", "--num", PAIRS, "--out", folder / "pairs")
    called("embed", folder / "pairs", "--encoder", tiny_model / "clip", "--out", folder / "store")
    for name, *settings in (
        ("a", "validation_images=40", "loop.steps=8"),
        ("b", "validation_images=36", "loop.steps=4"),
    ):
        called("train", "prior", "--data", folder / "store", "--out", folder / name, *SMALL, *settings)
    return folder


@pytest.fixture(scope="module")
def store(places: Path) -> EmbeddingStore:
    return EmbeddingStore.open(places / "store")


def test_two_runs_are_compared_on_what_both_held_out(
    syzygy: Callable[..., Any], places: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    arguments = (
        "evaluate",
        "prior",
        "--data",
        places / "store",
        "--prior",
        places / "a",
        "--prior",
        f"other={places / 'b'}",
    )
    answer = syzygy(*arguments, "--json", tmp_path / "x.json", "--page", tmp_path / "x.html")
    assert answer.code == 0, answer.err
    found = artifacts.read_json(tmp_path / "x.json")
    both = set(split(store, 40)[1].chosen.tolist()) & set(split(store, 36)[1].chosen.tolist())
    assert (found["captions"], found["images"]) == (len(both), len(both))
    assert f"Measured on {len(both)} images of" in answer.out
    assert "the training of a and of other held them out" in answer.out
    names = [row["name"] for row in found["candidates"]]
    assert names == ["a", "other", "text identity", SHIFTED, LINEAR, SHUFFLED, "mean image"]
    assert all(name in answer.out for name in names)
    rows = {row["name"]: row for row in found["candidates"]}
    assert rows["text identity"]["cosine_text"]["mean"] == 1
    assert rows["a"]["trained_on"] == "this store"
    assert {(row["first"], row["second"]) for row in found["differences"]} == {
        ("a", SHIFTED),
        ("a", LINEAR),
        ("other", SHIFTED),
        ("other", LINEAR),
        ("a", "other"),
    }
    for row in found["differences"]:
        one, other = (rows[row[side]][row["metric"]]["mean"] for side in ("first", "second"))
        assert row["mean"] == pytest.approx(one - other, abs=2e-4)
        assert row["low"] <= row["mean"] <= row["high"]
    page = (tmp_path / "x.html").read_text()
    assert len(re.findall("<svg ", page)) == 6, "two plots of losses, four of metrics"
    assert "http" not in page.replace("http://www.w3.org", "")
    printed = syzygy(*arguments, "--json", "-")
    assert json.loads(printed.out)["candidates"] == found["candidates"], "the same again"


def test_the_figures_are_those_of_their_definitions(
    syzygy: Callable[..., Any], places: Path, store: EmbeddingStore, tiny_model: Path
) -> None:
    answer = syzygy(
        "evaluate", "prior", "--data", places / "store", "--prior", places / "a", "--seed", 3, "--json", "-"
    )
    row = json.loads(answer.out)["candidates"][0]
    pairs = split(store, 40)[1]
    every = torch.arange(len(pairs))
    noise = torch.randn(len(pairs), store.width, generator=generator(3, "evaluate prior"))
    prior = load_prior(places / "a", Clip.from_pretrained(tiny_model / "clip"))
    predicted, true = (
        prior.predict(pairs.text(every).padded().to(dtype=torch.float32), noise=noise),
        pairs.images(every).float(),
    )
    assert row["cosine"]["mean"] == pytest.approx(F.cosine_similarity(predicted, true).mean().item(), abs=2e-4)
    texts = pairs.pooled(every).float()
    assert row["cosine_text"]["mean"] == pytest.approx(F.cosine_similarity(predicted, texts).mean().item(), abs=2e-4)
    assert row["frechet"] == pytest.approx(frechet_distance(predicted, true), rel=1e-2)
    nearest = (F.normalize(predicted, dim=1) @ F.normalize(true, dim=1).T).topk(5).indices
    words = store.texts(pairs.chosen)
    for most, name in ((1, "R@1"), (5, "R@5")):
        hits = [any(words[j] == words[i] for j in nearest[i, :most].tolist()) for i in range(len(words))]
        assert row[name]["mean"] == pytest.approx(sum(hits) / len(hits), abs=1e-4)


def test_controls_are_what_they_are_called(store: EmbeddingStore) -> None:
    truth = Truth(split(store, 40)[1])
    first = torch.randn(len(truth), store.width, generator=torch.Generator().manual_seed(0))
    found = controls(truth, first)
    rest = rest_of(store, truth.pairs)
    assert not torch.isin(rest.image_numbers(torch.arange(len(rest))), truth.image_numbers).any()
    rows = torch.arange(len(rest))
    identity = TextIdentity.fit(rest.pooled(rows).float(), rest.images(rows).float(), shifted=True)
    features = truth.pairs.text(truth.everything).padded().to(dtype=torch.float32)
    torch.testing.assert_close(found[SHIFTED], identity.predict(features), rtol=1e-3, atol=1e-4)
    words = store.texts(truth.pairs.chosen)
    assert truth.other is not None
    assert all(words[i] != words[j] for i, j in enumerate(truth.other.tolist()))
    assert sorted(truth.other.tolist()) == list(range(len(truth))), "each prediction is used once"
    assert scored(truth, truth.images).intervals["R@1"].mean == 1


def test_captions_of_one_picture_count_as_one(store: EmbeddingStore) -> None:
    """Two captions of the first picture, one of the second."""
    truth = Truth(StorePairs(store, torch.tensor([0, 0, 1])))
    assert truth.by_image(torch.tensor([0.0, 1.0, 0.25])) == [[0.5], [0.25]]
    assert truth.right.tolist() == [[True, False], [True, False], [False, True]]
    assert truth.other is None, "most captions have the same words"


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("other data", "another store", "was trained on another store"),
        ("other split", "this store, split unknown", "with a split that this version cannot repeat"),
        ("no split", "this store, split unknown", "with a split that this version cannot repeat"),
        ("world", "embedded world", "was trained on pairs of the embedded world"),
        ("no record", "unknown", "has no record of the pairs that it was trained on"),
    ],
)
def test_a_prior_whose_held_out_pairs_are_not_known_gets_a_warning(
    syzygy: Callable[..., Any], places: Path, tmp_path: Path, what: str, kind: str, said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(places / "a", run)
    path = run / "prior/provenance.json"
    record = artifacts.read_json(path)
    if what == "no record":
        path.unlink()
    else:
        changes = {
            "other data": {"data": "0" * 16},
            "other split": {"validation": "0" * 16},
            "no split": {},
            "world": {},
        }
        dropped = {"no split": ("validation",), "world": ("data", "validation")}.get(what, ())
        record["recipe"]["scenes"] = 100 if what == "world" else None
        artifacts.write_json(path, {name: x for name, x in (record | changes[what]).items() if name not in dropped})
    answer = syzygy("evaluate", "prior", "--data", places / "store", "--prior", run, "--json", "-", "--images", 20)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["candidates"][0]["trained_on"] == kind
    assert said in answer.err
    assert said in " ".join(found["notes"])
    assert found["images"] == 20


def test_a_number_of_pictures_is_chosen_by_the_seed_among_those_held_out(
    monkeypatch: pytest.MonkeyPatch, store: EmbeddingStore
) -> None:
    past = Past("this store", split(store, 40)[1].chosen)
    one, again, other = (common(store, [past], 10, seed).chosen.tolist() for seed in (0, 0, 1))
    assert one == again != other
    assert set(one) <= set(past.held_out.tolist())
    monkeypatch.setattr(held_out, "MOST", 7)
    assert len(common(store, [past], None, 0)) == 7
    assert len(common(store, [], None, 0)) == 7
    assert len(common(store, [past], 40, 0)) == 40, "the user may ask for more"
    with pytest.raises(UserError, match=r"--images 41 is more.*the priors held out 40 images"):
        common(store, [past], 41, 0)
    with pytest.raises(UserError, match="in common"):
        common(store, [Past("this store", torch.tensor([0])), Past("this store", torch.tensor([1]))], None, 0)


def test_an_exported_prior_keeps_what_it_held_out(
    syzygy: Callable[..., Any], places: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    assert syzygy("export", places / "a", "--out", tmp_path / "mine").code == 0
    past = past_of(held_out.record_of(tmp_path / "mine"), store)
    assert past.held_out is not None
    assert past.held_out.tolist() == split(store, 40)[1].chosen.tolist()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prior", "nowhere"), "nowhere"),
        (("--prior", "x={a}", "--prior", "x={b}"), "two priors are called 'x'"),
        (("--prior", "text identity={a}"), "'text identity' is the name of a control"),
        (("--prior", "="), "--prior '=' must be a run or NAME=RUN"),
        (("--prior", "={a}"), "must be a run or NAME=RUN"),
        (("--prior", "a="), "--prior 'a=' must be a run or NAME=RUN"),
        (("--prior", "{a}", "--images", 50), "--images 50 is more than there are"),
        (("--data", "nowhere"), "there is no embedding store nowhere"),
        (("--images", 0), "allowed: at least 1"),
    ],
)
def test_wrong_input(syzygy: Callable[..., Any], places: Path, arguments: tuple[object, ...], said: str) -> None:
    filled = [str(x).format(a=places / "a", b=places / "b") for x in arguments]
    answer = syzygy("evaluate", "prior", "--data", places / "store", *filled)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_another_clips_prior_is_refused(syzygy: Callable[..., Any], places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "a", tmp_path / "run")
    path = tmp_path / "run/prior/provenance.json"
    artifacts.write_json(path, artifacts.read_json(path) | {"clip": "0" * 16})
    answer = syzygy("evaluate", "prior", "--data", places / "store", "--prior", tmp_path / "run")
    assert answer.code == 2
    assert "space is different" in answer.err


def test_controls_alone(syzygy: Callable[..., Any], places: Path) -> None:
    answer = syzygy("evaluate", "prior", "--data", places / "store", "--json", "-")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert [row["name"] for row in found["candidates"]] == ["text identity", SHIFTED, "mean image"]
    assert (found["differences"], found["examples"]) == ([], [])
