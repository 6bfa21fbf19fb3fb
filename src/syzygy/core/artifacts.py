"""Files that outlive a process: atomic writes, safetensors with a schema version, strict reading, provenance.

Nothing here, and nothing in this package, reads or writes pickle.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.wording import counted

SCHEMA_VERSION = 1
PROVENANCE_FILE = "provenance.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TEMPORARY = ".writing."
"""The beginning of the names of half-written files. A killed process leaves them behind."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types in which torch can find NaN."""
LFS = b"version https://git-lfs.github.com/spec/"
"""The first bytes of a pointer file of Git LFS."""


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turn errors of the operating system (no space, no permission, not a folder) into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write {what} to {path}: {reason}. Free some space or choose another place.") from None


@contextmanager
def file_written(path: Path, what: str = "a file") -> Iterator[IO[bytes]]:
    """A file that replaces `path` when the block ends without error. Readers see the old one or the new one, never half of one."""
    with writing(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with file_written(path) as file:
        file.write(data)


def check_pointer(path: Path) -> None:
    """Raise a `UserError` for a file of Git LFS that was never downloaded, so that only its pointer, a few lines of text, is there."""
    try:
        with path.open("rb") as file:
            found = file.read(len(LFS)) == LFS
    except OSError:
        return
    if found:
        raise UserError(
            f"{path} is only a pointer of Git LFS; the file itself was not downloaded. Run git lfs pull in that repository (git lfs "
            "install once before), or download the file from where the repository is published."
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, in UTF-8."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. A missing or broken file is a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is not a complete folder of weights.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        check_pointer(path)
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a JSON object.")
    return value


@contextmanager
def folder_written(path: Path, what: str = "weights") -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends without error."""
    with writing(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, old / path.name)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write safetensors atomically. `dtype` converts floating-point tensors (fp16 for published weights)."""
    plain = {
        name: (x.detach().to("cpu", dtype) if dtype and x.is_floating_point() else x.detach().cpu())
        .contiguous()
        .clone()
        for name, x in tensors.items()
    }
    temporary = path.with_name(f".{path.name}.writing")
    with writing("tensors", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(plain, temporary, metadata={"format": "pt", "syzygy_schema": str(SCHEMA_VERSION)})
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_tensors(path: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Read the tensors whose names `keep` accepts. A missing, truncated or newer file is a `UserError`."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {path.parent} is not a complete folder of weights.")
    try:
        with safe_open(path, framework="pt") as file:
            schema = int((file.metadata() or {}).get("syzygy_schema", SCHEMA_VERSION))
            if schema > SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema {schema}; this version reads up to {SCHEMA_VERSION}. Install a newer syzygy."
                )
            return {name: file.get_tensor(name) for name in file.keys() if keep(name)}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        check_pointer(path)
        raise UserError(f"{path} is truncated or not safetensors ({error}). Copy or train it again.") from None


def load_strictly(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str | Path, *, assign: bool = False
) -> None:
    """Load every tensor into `module`, in the module's dtype. A missing, extra or misshapen tensor is a `UserError` that names it.

    `assign` replaces the module's own tensors, which a module that was built on the meta device needs.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        parts = [
            f"{kind} {names[:3]} ({len(names)})"
            for kind, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        raise UserError(f"weights in {where} do not fit {type(module).__name__}: {'; '.join(parts)}.")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"weights in {where} do not fit {type(module).__name__}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(value.shape)}."
            )
    check_finite({name: tensors[name] for name in own}, where)
    module.load_state_dict({name: tensors[name].to(value.dtype) for name, value in own.items()}, assign=assign)


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise a `UserError` that names the first tensor with NaN or infinity, if there is one."""
    for name, values in tensors.items():
        if values.dtype in FLOATS and not torch.isfinite(values).all():
            raise UserError(f"weights in {where}: {name} holds NaN or infinity. Train or copy it again.")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over names and values: equal for equal weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):  # one at a time: a mapping may load its tensors on demand
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the software that weights or images depend on."""
    found = {"python": platform.python_version()}
    for name in ("syzygy", "torch", "diffusers", "transformers", "safetensors", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The hardware in one line, for provenance."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}, {platform.machine()}"
