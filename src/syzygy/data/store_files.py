"""Files of a store: safetensors with the same bytes for the same tensors, and their checksums."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError

SCHEMA_KEY = "syzygy_schema"
NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How safetensors calls the types that a store holds."""
CHUNK = 2**24


@dataclass(frozen=True)
class FileRecord:
    """A file that was written: its name in the store's folder of shards, and what it must still be when it is read."""

    name: str
    size: int
    """In bytes."""
    sha256: str

    def to_config(self) -> dict[str, Any]:
        return asdict(self)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write safetensors atomically and durably, largest types first.

    Unlike `artifact.write_tensors` it copies nothing, takes the checksum on the way, and equal tensors give equal bytes
    (safetensors lists its metadata in random order).

    Raises:
        UserError: no space, no permission.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {SCHEMA_KEY: str(artifacts.SCHEMA_VERSION)}}
    end = 0
    for name in order:
        x = tensors[name]
        begin, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie where processors like to read them
    digest = hashlib.sha256()
    with artifacts.file_written(path, "a shard") as file:
        for block in (struct.pack("<Q", len(text)), text, *map(_bytes, (tensors[name] for name in order))):
            file.write(block)
            digest.update(block)
    return FileRecord(path.name, 8 + len(text) + end, digest.hexdigest())


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def mapped(path: Path, size: int | None = None) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: pages are read when they are touched, and belong to no process.

    Nothing may be written to them.

    Args:
        size: bytes that the file must have.

    Raises:
        UserError: it is missing, truncated, or of a newer schema.
    """
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            raise UserError(f"{path} has {found:,} bytes instead of {size:,}: it is damaged. {mend(path)}")
        with safe_open(path, framework="pt") as file:
            schema = int((file.metadata() or {}).get(SCHEMA_KEY, artifacts.SCHEMA_VERSION))
            if schema > artifacts.SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema {schema}; this version reads up to {artifacts.SCHEMA_VERSION}. Install a newer syzygy."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {mend(path)}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}). {mend(path)}") from None


def mend(path: Path) -> str:
    """How to get a shard's file back."""
    if not (path.parent.parent / "store.json").is_file():
        return "Copy it again, or merge its stores again."
    record = path.with_name(path.name.partition("-")[0] + ".json")
    return f"Copy it again; or delete {record} and run `syzygy embed` again as before: it makes what is missing."


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half written."""
    for path in folder.glob(f"{artifacts.TEMPORARY}*"):
        path.unlink(missing_ok=True)


def packed_strings(texts: list[str]) -> tuple[Tensor, Tensor]:
    """(UTF-8 bytes of all texts, offsets [N + 1] where each begins)."""
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy()), offsets


def unpacked_string(data: Tensor, offsets: Tensor, index: int) -> str:
    """Text number `index`."""
    begin, end = offsets[index : index + 2].tolist()
    return data[begin:end].numpy().tobytes().decode()
