"""`syzygy embed` and `syzygy store`: from tars to a store that can be read, whoever shares out the work."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_files import mapped
from syzygy.lab.world import scene_source
from tests.closeness import assert_close
from tests.stopping import stopped

SETTINGS = ("--device", "cpu", "--batch-size", 5, "--threads", 1)
SYZYGY = Path(sys.executable).with_name("syzygy")
TORCHRUN = Path(sys.executable).with_name("torchrun")
SHARDS = 6


@pytest.fixture(scope="module")
def pairs() -> list[tuple[bytes, str]]:
    """Pictures (PNG) and captions."""
    found = scene_source.pairs(0, 0, 4 * SHARDS)
    encoded = []
    for pair, picture in zip(found, scene_source.pictures(found, 32), strict=True):
        data = io.BytesIO()
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(data, "PNG")
        encoded.append((data.getvalue(), pair.caption.text))
    return encoded


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bytes, str]], write_tar: Callable) -> Path:
    """img2dataset's tars, four pairs each."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(SHARDS):
        rows = list(enumerate(pairs))[4 * shard : 4 * shard + 4]
        samples = [
            (f"{i:05}", {"png": picture, "txt": text.encode(), "json": json.dumps({"n": i, "url": f"u{i}"}).encode()})
            for i, (picture, text) in rows
        ]
        write_tar(folder / f"{shard:05}.tar", samples)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tars: Path, tiny_model: Path) -> dict[str, bytes]:
    """What one process makes of the tars."""
    from syzygy.cli.main import main

    out = tmp_path_factory.mktemp("reference") / "store"
    with patch.object(sys, "argv", command(tars, tiny_model, out)), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    return contents(out)


def command(tars: Path, model: Path, out: Path, *more: Any) -> list[str]:
    return [str(part) for part in (SYZYGY, "embed", tars, "--encoder", model, "--out", out, *SETTINGS, *more)]


def environment() -> dict[str, str]:
    """With more threads than the settings say: they must not matter."""
    return {**os.environ, "OMP_NUM_THREADS": "2", "RAY_USAGE_STATS_ENABLED": "0"}


def workers_of(process: int) -> list[str]:
    """The ids of the processes that it has started to share out the work."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def has_ended(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_tars_to_a_store(
    tmp_path: Path, pairs: list[tuple[bytes, str]], tars: Path, tiny_model: Path, syzygy: Callable
) -> None:
    out = tmp_path / "store"
    options = "--encoder", tiny_model, "--out", out, *SETTINGS, "--keep", "url", "--json"
    answer = syzygy("embed", tars / f"{{00000..{SHARDS - 1:05}}}.tar", *options)
    assert answer.code == 0, answer.err
    summary = json.loads(answer.out)
    assert (summary["pictures"], summary["captions"], summary["bad"]) == (24, 24, 0)
    assert summary["bytes"] == sum(map(len, contents(out).values()))
    store = EmbeddingStore.open(out)
    everything = list(range(24))
    assert store.texts(everything) == [text for _, text in pairs]
    assert store.column("n").tolist() == everything
    assert store.column("url") == [f"u{i}" for i in everything]
    assert store.column("width").tolist() == [32] * 24
    clip = Clip.from_pretrained(tiny_model / "clip")
    pixels = torch.stack([clip.preparation.prepare(Image.open(io.BytesIO(picture))) for picture, _ in pairs])
    assert_close(store.images(everything).float(), clip.encode_pixels(pixels), dtype=torch.float16)
    text = clip.encode_text([text for _, text in pairs])
    found = store.captions(everything).padded()
    assert torch.equal(found.mask, text.mask)
    assert_close(found.pooled.float(), text.pooled, dtype=torch.float16)
    assert_close(found.states.float()[text.mask], text.states[text.mask], dtype=torch.float16)
    assert store.encoder["fingerprint"] == clip.fingerprint()
    assert store.encoder["preparation"]["crop"] == clip.preparation.crop


def test_a_rerun_skips_what_is_finished_and_keeps_its_settings(
    tmp_path: Path, tars: Path, tiny_model: Path, reference: dict[str, bytes], syzygy: Callable
) -> None:
    out = tmp_path / "store"
    for name, data in reference.items():
        if name != "manifest.json" and not name.startswith("shards/00003"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
    answer = syzygy("store", "info", out)
    assert answer.code == 2
    finish = f"1 of its 6 shards is missing. Finish it with: syzygy embed {tars} --encoder {tiny_model} --device cpu --out {out}"
    assert finish in answer.err
    answer = syzygy(*re.search(r"syzygy (embed .*)", answer.err)[1].split())
    assert answer.code == 0, answer.err
    assert "6 shards, 1 of them embedded now" in answer.out
    assert contents(out) == reference
    answer = syzygy("embed", tars, "--encoder", tiny_model, "--out", out, "--device", "cpu", "--batch-size", 6)
    assert answer.code == 2
    assert "begun with batch_size 5, not 6." in answer.err


def test_what_cannot_be_used_is_told(
    tmp_path: Path, pairs: list[tuple[bytes, str]], tiny_model: Path, syzygy: Callable, write_tar: Callable
) -> None:
    good = {"png": pairs[0][0], "txt": b"a circle"}
    samples = [
        ("a", good),
        ("b", {**good, "png": good["png"][:100]}),
        ("c", {**good, "txt": b""}),
        ("d", {**good, "txt": b""}),
    ]
    write_tar(
        tmp_path / "x.tar",
        [*samples, ("e", {"json": b'{"status": "failed_to_download"}'}), ("f", {**good, "txt": b"a " * 90})],
    )
    options = tmp_path / "x.tar", "--encoder", tiny_model, "--out", tmp_path / "store", *SETTINGS
    answer = syzygy("embed", *options)
    assert answer.code == 2
    assert (
        "3 of 5 samples cannot be used, more than --max-bad 0.05 allows: x.tar b: the picture cannot be read"
        in answer.err
    )
    assert "x.tar c: the caption is empty; x.tar d: the caption is empty. Finished parts are kept" in answer.err
    answer = syzygy("embed", *options, "--max-bad", 0.6)
    assert answer.code == 0, answer.err
    assert "0 of them embedded now" in answer.out
    assert (
        f"3 of 5 samples could not be used; {tmp_path / 'store' / 'bad.jsonl'} lists each with its reason:"
        in answer.out
    )
    assert re.search(r" 2 × the caption is empty\n +1 × the picture cannot be read", answer.out)
    assert "1 sample has no picture because the download failed." in answer.out
    assert "1 caption fills all positions of the encoder" in answer.out
    assert "captions come from .txt (2 samples); the first is “a circle”" in answer.out
    assert "1 sample repeats the picture of another: it is stored once, with all captions." in answer.out
    assert f"Try next: syzygy store show {tmp_path / 'store'}" in answer.out


def test_captions_do_not_act_on_a_terminal_and_files_without_a_sample_are_counted_apart(
    tmp_path: Path, pairs: list[tuple[bytes, str]], tiny_model: Path, syzygy: Callable, write_tar: Callable
) -> None:
    write_tar(tmp_path / "x.tar", [("a", {"png": pairs[0][0], "txt": b"a \x1b[31mcircle", "cls": b"3"})])
    store = tmp_path / "store"
    answer = syzygy("embed", tmp_path / "x.tar", "--encoder", tiny_model, "--out", store, *SETTINGS)
    assert answer.code == 0, answer.err
    assert r"the first is “a \x1b[31mcircle”" in answer.out
    assert r"such as “a \x1b[31mcircle”" in answer.err
    assert f"\n1 further file was not used; {store / 'bad.jsonl'} names one for each reason:\n" in answer.out
    assert r"a: a \x1b[31mcircle" in syzygy("store", "show", store, "--out", tmp_path / "pairs.png").out


def test_looking_after_stores(tmp_path: Path, reference: dict[str, bytes], tars: Path, syzygy: Callable) -> None:
    for store in ("a", "b"):
        for name, data in reference.items():
            (tmp_path / store / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / store / name).write_bytes(data)
    answer = syzygy("store", "info", tmp_path / "a")
    assert "24 pictures with 24 captions, in 6 shards" in answer.out
    assert "columns: height (number), n (number), width (number)" in answer.out
    info = json.loads(syzygy("store", "info", tmp_path / "a", "--json").out)
    assert info["features"]["clip"]["width"] == 32
    assert info["columns"] == {"height": "number", "n": "number", "width": "number"}
    answer = syzygy("store", "verify", tmp_path / "a")
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'a'} is whole: 24 captions.\n")
    answer = syzygy("store", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert "48 pictures with 48 captions in" in answer.out
    path = tmp_path / "a" / "shards" / "00002-000.clip.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    answer = syzygy("store", "verify", tmp_path / "a")
    assert answer.code == 1
    assert "00002-000.clip.safetensors has another checksum" in answer.out
    answer = syzygy("store", "verify", tmp_path / "c", "--json")  # it shares the file
    assert answer.code == 1
    assert len(json.loads(answer.out)["problems"]) == 1
    assert syzygy("store", "verify", tmp_path / "b").code == 0


def test_an_estimate_before_the_work_writes_nothing(
    tmp_path: Path, tars: Path, tiny_model: Path, syzygy: Callable
) -> None:
    options = tars, "--encoder", tiny_model, "--out", tmp_path / "store", *SETTINGS
    answer = syzygy("embed", *options, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert not (tmp_path / "store").exists()
    found = json.loads(answer.out)
    assert (found["captions_from"], found["counted"]) == ([".txt"], False)
    assert 18 <= found["samples"] <= 60  # a small tar is filled up to 10 kB
    assert found["seconds"] > 0
    weights = sum(x.numel() * 4 for x in Clip.from_pretrained(tiny_model / "clip").parameters())
    assert weights < found["memory"] < weights + 10e6
    text = syzygy("embed", *options, "--dry-run").out
    assert re.fullmatch(r"captions: from \.txt, such as “.+”\nestimate: about .* of memory\n", text)
    answer = syzygy("embed", *options)
    assert "estimate: about " in answer.err  # the work itself says it too
    written = sum(path.stat().st_size for path in (tmp_path / "store" / "shards").glob("*.safetensors"))
    assert 0.3 * written < found["bytes"] < 2 * written


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere",), "there is no nowhere. A source is img2dataset's tars"),
        (("TARS", "--encoder", "nowhere"), "there is no folder nowhere. Give a folder, or a hub id"),
        (("TARS", "--image-column", "x"), "--image-column is for parquet"),
        (("TARS", "--max-bad", "5"), "'5'; allowed: a number from 0 to 1."),
        (("TARS", "--image-norm", "0"), "'0'; allowed: a number above 0."),
        (("TARS", "--runner", "torchrun"), "--runner torchrun is for processes that torchrun starts: torchrun --nproc"),
        (("TARS", "--revision", "main"), "is a folder and has no revision 'main'"),
    ],
)
def test_wrong_options_say_what_is_allowed(
    tmp_path: Path, tars: Path, tiny_model: Path, syzygy: Callable, args: tuple[str, ...], message: str
) -> None:
    first = ["embed", "--encoder", tiny_model, "--device", "cpu", "--out", tmp_path / "store"]
    answer = syzygy(*first, *(tars if arg == "TARS" else arg for arg in args))
    assert answer.code == 2
    assert message in answer.err
    assert not list((tmp_path / "store").glob("*")) if (tmp_path / "store").exists() else True


def test_the_packaged_starter_is_an_encoder(tmp_path: Path, tars: Path, syzygy: Callable) -> None:
    answer = syzygy("embed", tars / "00000.tar", "--encoder", "starter", "--out", tmp_path / "s", *SETTINGS)
    assert answer.code == 0, answer.err
    assert EmbeddingStore.open(tmp_path / "s").width == 192


def test_where_parts_end_changes_no_bit_of_a_picture(
    tmp_path: Path, pairs: list[tuple[bytes, str]], tiny_model: Path, write_tar: Callable
) -> None:
    """Texts are padded to the longest beside them, which differs: theirs agree to rounding."""
    tar = write_tar(tmp_path / "a.tar", [(f"{i}", {"png": p, "txt": t.encode()}) for i, (p, t) in enumerate(pairs)])
    (shard,), clip = open_source(str(tar), SourceOptions()).shards, Clip.from_pretrained(tiny_model / "clip")
    found = []
    for size in (1, 7, 100):
        record = embed_shard(shard, 0, clip, EmbedSettings(batch_size=5, shard_size=size), tmp_path / f"{size}")
        files = [tmp_path / f"{size}" / "shards" / part["features"]["clip"]["name"] for part in record["parts"]]
        tensors = [mapped(file) for file in files]
        found.append({name: torch.cat([x[name] for x in tensors]) for name in ("image", "states", "pooled")})
    for other in found[1:]:
        assert torch.equal(other["image"], found[0]["image"])
        for name in ("states", "pooled"):
            assert_close(other[name], found[0][name])


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["torchrun", "ray"])
def test_whoever_embeds_the_bytes_are_the_same(
    tmp_path: Path, tars: Path, tiny_model: Path, reference: dict[str, bytes], runner: str
) -> None:
    if runner == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -e '.[ray]'")
    found = command(tars, tiny_model, tmp_path / "store")
    if runner == "ray":
        found += ["--runner", "ray", "--workers", "2"]
    else:
        found = [str(TORCHRUN), "--standalone", "--nproc-per-node", "2", "-m", "syzygy.cli", *found[1:]]
    done = subprocess.run(found, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "24 pictures, 24 captions" in done.stdout
    assert done.stdout.count("Try next") == 1
    assert contents(tmp_path / "store") == reference


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_workers_mistake_is_one_line(tmp_path: Path, tars: Path, tiny_model: Path, runner: str) -> None:
    if runner == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -e '.[ray]'")
    out = tmp_path / "store"
    (out / "shards" / "00001-000.pairs.safetensors").mkdir(parents=True)  # in the way of a file
    found = command(tars, tiny_model, out, "--workers", 2, "--runner", runner)
    done = subprocess.run(found, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"cannot write a shard to .*00001-000.pairs.safetensors: Is a directory", line)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_continued_is_uninterrupted(
    tmp_path: Path, tars: Path, tiny_model: Path, reference: dict[str, bytes], syzygy: Callable, workers: int
) -> None:
    """Also that two processes make the bytes of one."""
    found = command(tars, tiny_model, tmp_path / "store", "--workers", workers)
    out, started = tmp_path / "store", []

    def reached(process: int) -> bool:
        started[:] = workers_of(process)
        return bool(list(out.glob("shards/?????.json")))

    stopped(found, out, signal.SIGKILL, reached=reached, finished=out / "manifest.json", env=environment())
    records = list(out.glob("shards/?????.json"))
    assert records
    assert not (out / "manifest.json").exists()
    while not all(map(has_ended, started)):  # by themselves, as they are orphans
        time.sleep(0.01)
    answer = syzygy(*found[1:])
    assert answer.code == 0, answer.err
    assert "24 pictures, 24 captions" in answer.out
    assert answer.out.count("Try next") == 1
    assert f"6 shards, {SHARDS - len(records)} of them embedded now" in answer.out or workers > 1
    assert contents(tmp_path / "store") == reference


@pytest.mark.slow
def test_a_worker_that_dies_is_told(tmp_path: Path, tars: Path, tiny_model: Path) -> None:
    found = command(tars, tiny_model, tmp_path / "store", "--workers", 2)
    with subprocess.Popen(
        found, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        children: list[str] = []
        while process.poll() is None and not children:
            children = workers_of(process.pid)
            time.sleep(0.01)
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode == 2, err
    assert "a worker died (exit code -9), possibly because memory ran out: try fewer --workers" in err
