"""A cache of the hub's client as it lies on disk, filled without a hub."""

import shutil
from pathlib import Path

COMMIT = "0123456789abcdef" * 2 + "01234567"


def add_snapshot(cache: Path, folder: Path, hub_id: str, commit: str = COMMIT, *refs: str) -> Path:
    """`folder` as the files of a commit, to which these refs (branches, tags) point; returns where they are."""
    storage = cache / f"models--{hub_id.replace('/', '--')}"
    for ref in refs:
        path = storage / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return Path(shutil.copytree(folder, storage / "snapshots" / commit))
