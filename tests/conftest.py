"""What holds for every test: one thread (tiny tensors gain nothing from two), no network, no user's caches, the same examples at every run.

`SYZYGY_TEST_THREADS=2` runs the tests with more threads, `ATEN_CPU_CAPABILITY=avx2` (or `default`) with the kernels of an older processor.
"""

import io
import ipaddress
import os
import socket
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tests.tiny_unclip import Tiny

# Set before torch and huggingface_hub are first imported, and for subprocesses too. Hugging Face gets an empty home:
# a model in the user's cache must not make a test pass.
ONEDNN_LEVEL = {"default": "SSE41", "avx2": "AVX2"}
_home = tempfile.TemporaryDirectory(prefix="syzygy-tests-")
os.environ |= {
    "HF_HOME": _home.name,
    "SYZYGY_CACHE": f"{_home.name}/syzygy",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": os.environ.get("SYZYGY_TEST_THREADS", "1"),
}
# PyTorch and its library oneDNN each look at the processor. Lowering only PyTorch would make a machine that does not exist, with AMX and
# without AVX-512, where attention in bf16 fails ("pack_vnni2 is only supported when avx512 is supported").
if os.environ.get("ATEN_CPU_CAPABILITY") in ONEDNN_LEVEL:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", ONEDNN_LEVEL[os.environ["ATEN_CPU_CAPABILITY"]])

# Every call of a function in a module that names shapes is checked against them. The other modules (sentences, random numbers, the command
# line) have plain types, which pyright checks, and are called so often that checking them took most of some tests' time.
_source = Path(find_spec("syzygy").origin).parent
SHAPED = [
    ".".join(("syzygy", *path.relative_to(_source).with_suffix("").parts))
    for path in sorted(_source.rglob("*.py"))
    if "from jaxtyping import" in path.read_text() and path.stem != "randomness"
]
install_import_hook(SHAPED, "beartype.beartype")

settings.register_profile("syzygy", deadline=None, derandomize=True, database=None)
settings.load_profile("syzygy")


def is_local(address: Any) -> bool:
    """True for a Unix socket, `localhost` and the loopback ranges."""
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A connection to anything but this machine fails the test that tries."""

    def guarded(connect: Any) -> Any:
        def connect_locally(self: socket.socket, address: Any) -> Any:
            if not is_local(address):
                pytest.fail(f"a test tried to reach {address}")
            return connect(self, address)

        return connect_locally

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


class Answer(NamedTuple):
    """What the command line said."""

    code: int
    out: str
    err: str


@pytest.fixture
def syzygy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command `syzygy` in this process: arguments in, exit code and both outputs out."""

    def run(*arguments: object) -> Answer:
        from syzygy.cli.main import main

        monkeypatch.setattr(sys, "argv", ["syzygy", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Answer(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """img2dataset's tars: (path, [(key, {ending: content})]) → the path."""

    def write(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for key, members in samples:
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which `tests.hub_cache.add_snapshot` fills."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of untrained tiny parts: real classes and files, pictures of 32 × 32. Copy it to change it."""
    import torch

    from syzygy.clip.clip_model import Clip, ClipConfig, build_clip
    from syzygy.core import model_parts
    from syzygy.decoder.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
    from syzygy.decoder.backbone import build_decoder, save_decoder
    from syzygy.decoder.network import DecoderConfig, SlotConfig, UNetConfig
    from syzygy.generation import own_models
    from syzygy.lab.world import scene_source
    from syzygy.lab.world.reader import Reader, ReaderConfig
    from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
    from syzygy.prior.embedding_statistics import EmbeddingStatistics

    parts = {name: tmp_path_factory.mktemp("parts") / name for name in model_parts.COMPONENTS}
    sizes = {"text_layers": 1, "text_heads": 2, "vision_width": 32, "vision_layers": 1, "vision_heads": 2}
    texts = [pair.caption.text for pair in scene_source.pairs(0, 0, 200)]
    build_clip(ClipConfig(width=32, image_size=32, **sizes), texts, 0).save_pretrained(parts["clip"], {}, torch.float16)
    beside = {"clip": Clip.from_pretrained(parts["clip"]).fingerprint()}
    slots = (
        SlotConfig(name="image", pooled_width=32, pooled_tokens=1),
        SlotConfig(name="text", token_width=32, pooled_width=32),
    )
    backbone = UNetConfig(channels=(16, 32), attention=(False, True), head_width=16, norm_groups=8)
    decoder = build_decoder(
        DecoderConfig(slots=slots, size=8, cross_attention_width=32, vector_width=32, backbone=backbone)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = EclipsePrior(
            EclipsePriorConfig(embedding_dim=32, num_layers=1, num_attention_heads=2, attention_head_dim=16)
        )
        prior.set_statistics(EmbeddingStatistics(torch.zeros(32), torch.ones(32), 1.0))
        # An untrained decoder's last layer is zero: it would paint the same whatever the prompt.
        torch.nn.init.normal_(decoder.backbone.unet.conv_out.weight, std=0.1)
        for name in ("image", "text"):
            decoder.set_scale(name, 0.5)
        Reader(ReaderConfig(features=16, blocks=1)).save_pretrained(parts["reader"], {})
    autoencoder = build_autoencoder(AutoencoderConfig(image_size=32, channels=16, fine_channels=8))
    autoencoder.set_statistics(torch.zeros(4), torch.ones(4))
    autoencoder.save_pretrained(parts["autoencoder"], {}, torch.float16)
    beside["autoencoder"] = Autoencoder.from_pretrained(parts["autoencoder"]).fingerprint()
    prior.save_pretrained(parts["prior"], beside, torch.float16)
    save_decoder(decoder, parts["decoder"], beside)
    return own_models.write_model(
        parts,
        tmp_path_factory.mktemp("models") / "tiny",
        world=True,
        defaults={"num_inference_steps": 3, "style_guidance": 1.5},
    )


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales, norms and validation of a handful of the world's pictures, for runs whose numbers say nothing anyway."""
    for name, number in {
        "starter.decoder_training.SCALE_PAIRS": 16,
        "starter.decoder_data.VALIDATION_PICTURES": 8,
        "starter.world_validation.PROBES": 4,
        "starter.world_validation.PROMPTS": 4,
        "evaluate.composition.NORM_PAIRS": 40,
    }.items():
        monkeypatch.setattr(f"syzygy.lab.{name}", number)


@pytest.fixture(scope="session")
def tiny_kandinsky(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """Kandinsky 2.2 in the layout of its repositories, tiny and random. Copy it to change it."""
    from tests import tiny_unclip

    return tiny_unclip.tiny_kandinsky(tmp_path_factory.mktemp("kandinsky-2-2"))


@pytest.fixture(scope="session")
def tiny_kandinsky_inpaint(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """The decoder that inpaints, as `tiny_kandinsky`."""
    from tests import tiny_unclip

    folder = tmp_path_factory.mktemp("kandinsky-2-2-inpaint")
    return tiny_unclip.tiny_kandinsky(folder, pipeline="KandinskyV22InpaintPipeline")


@pytest.fixture(scope="session")
def tiny_kandinsky_depth(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """The decoder that follows a depth map, as `tiny_kandinsky`; images of 64 × 64."""
    from tests import tiny_unclip

    folder = tmp_path_factory.mktemp("kandinsky-2-2-controlnet-depth")
    return tiny_unclip.tiny_kandinsky(folder, pipeline="KandinskyV22ControlnetPipeline", levels=4)


@pytest.fixture(scope="session")
def tiny_stable_unclip(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """Stable unCLIP in the layout of its repositories, tiny and random. Copy it to change it."""
    from tests import tiny_unclip

    return tiny_unclip.tiny_stable_unclip(tmp_path_factory.mktemp("stable-unclip"))


def pytest_unconfigure() -> None:
    _home.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="they need an NVIDIA GPU and PyTorch with CUDA"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped, and what to install for them; `-q` gives only a number."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[-1]).removeprefix("Skipped: ") for report in reports)
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"{number} {'tests were' if number > 1 else 'test was'} skipped: {reason}.")
