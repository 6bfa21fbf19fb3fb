"""Where experts of our own decoder are changes no picture, from Python and from the command line."""

import json
from pathlib import Path

import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.contracts import Conditioning
from syzygy.core.errors import UserError
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.experts import expert_folders as hub
from syzygy.experts.expert_folders import STAGES_FILE, OffloadPolicy, load_experts
from syzygy.generation.text_to_image import TextToImage
from tests.closeness import NETWORK, assert_close


@pytest.fixture(scope="module")
def ensemble(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experts that differ, of the tiny model's decoder."""
    folder = tmp_path_factory.mktemp("own") / "experts"
    beside = artifacts.read_json(tiny_model / "decoder" / artifacts.PROVENANCE_FILE)
    for i, name in enumerate(("low", "middle", "high")):
        decoder = load_decoder(tiny_model / "decoder").requires_grad_(False)
        decoder.get_parameter("backbone.unet.conv_out.bias").fill_(0.1 * i)
        save_decoder(decoder, folder / name, beside)
    artifacts.write_json(
        folder / STAGES_FILE, {"names": ["low", "middle", "high"], "edges": [0.3, 5.0], "form": "full"}
    )
    return folder


def test_lazy_experts_paint_the_same(tiny_model: Path, ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = hub.load_decoder
    monkeypatch.setattr(hub, "load_decoder", lambda folder: asked.append(folder.name) or plain(folder))
    models = {
        memory: TextToImage.from_pretrained(tiny_model, experts=ensemble, experts_memory=memory)
        for memory in ("all", "lazy")
    }
    assert asked == ["low", "middle", "high"]  # all of the resident, none of the lazy ones
    asked.clear()
    painted = {
        memory: model("a red circle", num_inference_steps=9, generator=torch.Generator().manual_seed(0)).images[0]
        for memory, model in models.items()
    }
    assert asked == ["high", "middle", "low"]
    assert painted["all"].tobytes() == painted["lazy"].tobytes()
    assert models["all"].fingerprints() == models["lazy"].fingerprints()
    assert models["all"].fingerprints() != TextToImage.from_pretrained(tiny_model).fingerprints()


def test_from_the_command_line(syzygy, tiny_model: Path, ensemble: Path, tmp_path: Path) -> None:
    said = {}
    for memory in ("all", "lazy"):
        answer = syzygy(
            "generate", "a red circle", "--model", tiny_model, "--experts", ensemble, "--experts-memory", memory,
            "--steps", 4, "--out", tmp_path / memory, "--json",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        said[memory] = json.loads(answer.out)["settings"]
    assert said["all"] == said["lazy"]
    first, second = (next((tmp_path / memory).glob("*.png")).read_bytes() for memory in ("all", "lazy"))
    assert first == second
    alone = syzygy("generate", "a red circle", "--model", tiny_model, "--experts-memory", "lazy", "--out", tmp_path)
    assert (alone.code, "have no effect without experts" in alone.err) == (2, True)


def test_compiled_experts_see_the_same(ensemble: Path) -> None:
    plain = load_experts(ensemble)
    calls = []

    def backend(graph, inputs):
        return lambda *args: calls.append("ran") or graph(*args)

    compiled = load_experts(ensemble, offload_policy=OffloadPolicy(backend=backend))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, sigma in enumerate((20.0, 1.0, 0.1), 1):
            made, wanted = (e.at(sigma)(x, torch.tensor([sigma]), Conditioning({})) for e in (compiled, plain))
            assert_close(made, wanted, depth=NETWORK)
            assert len(calls) == number
    torch.compiler.reset()


def test_without_effect_or_incomplete_is_refused(ensemble: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="offloading moves experts off a GPU"):
        load_experts(ensemble, offload_policy=OffloadPolicy(memory="offload"))
    broken = tmp_path / "broken"
    for path in ensemble.rglob("*.json"):
        artifacts.write_bytes(broken / path.relative_to(ensemble), path.read_bytes())
    with pytest.raises(UserError, match="expert low is missing: there is no"):
        load_experts(broken, offload_policy=OffloadPolicy(memory="lazy"))
