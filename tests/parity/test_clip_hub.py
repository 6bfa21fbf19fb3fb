"""CLIPs by hub id: revisions in the hub's cache, what a download takes, and what is said offline."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from tests.hub_cache import COMMIT, add_snapshot

OTHER = "f" * 40
HUB_ID = "somebody/tiny-clip"


def add_to_cache(cache: Path, folder: Path, commit: str, *refs: str, hub_id: str = HUB_ID) -> Path:
    return add_snapshot(cache, folder, hub_id, commit, *refs)


def test_a_revision_in_the_cache_is_found_and_its_commit_recorded(cache: Path, openai: Path, kandinsky: Path) -> None:
    add_to_cache(cache, openai, COMMIT, "main", "v1")
    add_to_cache(cache, kandinsky, OTHER, "refs/pr/7")
    # The client also keeps what the whole repository holds, of which we need a part.
    listing = {name: {"size": 1, "blob_id": "0"} for name in ("config.json", "pytorch_model.bin", "README.md")}
    trees = cache / "models--somebody--tiny-clip" / "trees"
    trees.mkdir()
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    for revision, commit in ((None, COMMIT), ("v1", COMMIT), (COMMIT, COMMIT), ("refs/pr/7", OTHER), (OTHER, OTHER)):
        clip = Clip.from_pretrained(HUB_ID, revision=revision)
        assert (clip.source, clip.revision) == (HUB_ID, commit)
        assert clip.identity().revision == commit
        assert len(clip.identity().classes) == (2 if commit == COMMIT else 3)
    with pytest.raises(UserError, match=rf"{cache} has no {HUB_ID} at revision v2.*hf download {HUB_ID} --revision v2"):
        Clip.from_pretrained(HUB_ID, revision="v2")


def test_what_is_not_there_is_named_with_where_it_was_looked_for(cache: Path, openai: Path) -> None:
    with pytest.raises(
        UserError, match=rf"no folder {HUB_ID}, .*{cache} has no {HUB_ID} at revision main.*hf download"
    ):
        Clip.from_pretrained(HUB_ID)
    with pytest.raises(UserError, match="not in the hub's cache and the hub cannot be reached"):
        Clip.from_pretrained(HUB_ID, local_files_only=False)
    for name in ("nowhere", "./some/where", "/some/where", "a/b/c", Path("some/where")):
        with pytest.raises(UserError, match=r"there is no folder .*where|there is no folder a/b/c"):
            Clip.from_pretrained(name)
    with pytest.raises(UserError, match="is a folder and has no revision 'main'"):
        Clip.from_pretrained(openai, revision="main")
    snapshot = add_to_cache(cache, openai, COMMIT, "main")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=rf"snapshots/{COMMIT}/model\.safetensors is missing.*download the whole folder again"
    ):
        Clip.from_pretrained(HUB_ID)


class FakeHub:
    """A repository behind `snapshot_download`; it keeps what was asked."""

    def __init__(self, cache: Path, remote: Path) -> None:
        self.cache, self.remote, self.revisions = cache, remote, []
        self.commit = COMMIT

    def __call__(
        self, repo_id: str, *, revision: str | None, allow_patterns: Iterable[str], local_files_only: bool
    ) -> str:
        assert not local_files_only
        self.revisions.append(revision)
        snapshot = self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / self.commit
        names = [str(path.relative_to(self.remote)) for path in self.remote.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=list(allow_patterns)):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / name, snapshot / name)
        return str(snapshot)

    def fetched(self) -> set[str]:
        return {str(p.relative_to(self.remote_root())) for p in self.remote_root().rglob("*") if p.is_file()}

    def remote_root(self) -> Path:
        return next((self.cache).glob("models--*/snapshots/*"))


def test_a_download_takes_what_is_needed_and_pins_the_commit(
    cache: Path, openai: Path, kandinsky: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy_of(kandinsky)
    (remote / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    (remote / "README.md").write_text("card")
    for name in ("text_encoder", "image_encoder"):
        shutil.copy(remote / name / "model.safetensors", remote / name / "model.fp16.safetensors")
    hub = FakeHub(cache, remote)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    clip = Clip.from_pretrained(HUB_ID, revision="main", local_files_only=False)
    assert clip.revision == COMMIT
    assert hub.revisions == ["main", COMMIT]  # a push in between must not mix two commits
    assert hub.fetched() == {
        "model_index.json",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_processor/preprocessor_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
    }
    shutil.rmtree(cache)
    remote = copy_of(openai)
    (remote / "model.safetensors").rename(remote / "model.fp16.safetensors")
    (remote / "open_clip_model.safetensors").write_bytes(b"the same in another layout")
    hub = FakeHub(cache, remote)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert (
        Clip.from_pretrained(HUB_ID, local_files_only=False).fingerprint() == Clip.from_pretrained(openai).fingerprint()
    )
    assert "model.fp16.safetensors" in hub.fetched()
    assert "open_clip_model.safetensors" not in hub.fetched()


def test_a_repository_that_has_only_pickles_is_told_after_the_download(
    cache: Path, openai: Path, kandinsky: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickles are not downloaded, so that what was downloaded does not tell."""
    for source, old in ((openai, "model.safetensors"), (kandinsky, "text_encoder/model.safetensors")):
        remote = copy_of(source)
        pickled = (remote / old).rename((remote / old).with_name("pytorch_model.bin")).relative_to(remote)
        hub = FakeHub(cache, remote)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
        names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo_id, revision, names=names: names)
        with pytest.raises(
            UserError, match=rf"{HUB_ID} publishes its weights only as pickle \({pickled}\).*save_pretrained"
        ):
            Clip.from_pretrained(HUB_ID, local_files_only=False)
        assert str(pickled) not in hub.fetched()
        shutil.rmtree(cache)


def test_a_download_falls_back_to_bf16(
    cache: Path, openai: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy_of(openai)
    (remote / "model.safetensors").rename(remote / "model.bf16.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FakeHub(cache, remote))
    found = Clip.from_pretrained(HUB_ID, local_files_only=False)
    assert found.fingerprint() == Clip.from_pretrained(openai).fingerprint()
