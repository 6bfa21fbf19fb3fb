"""What an adapter for Stable Diffusion learns from, against diffusers' own `encode_prompt` on the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.pretrained.prompt_teacher import PromptTeacher, target_of
from tests.closeness import NETWORK, assert_close
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import POSITIONS, Tiny
from tests.tiny_xl import WIDTHS, tiny_xl

KINDS = ("1", "2", "xl")
TEXTS = ["a red circle", "", "two blue stars above a ring!"]
LONG = " ".join(["two blue stars above a ring!"] * 40)
WORDS = POSITIONS - 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("stable-diffusion")
    first = tiny_stable_diffusion(made / "1")
    path = first / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "quick_gelu"}))
    return {"1": first, "2": tiny_stable_diffusion(made / "2", "v_prediction"), "xl": tiny_xl(made / "xl")}


def theirs(folder: Path) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)


def encoded(pipeline: Any, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    """`prompt_embeds` and, for XL, `pooled_prompt_embeds`."""
    found = pipeline.encode_prompt(
        prompt=texts, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return found[0], found[2] if len(found) == 4 else None


def test_what_a_repository_reads(folders: dict[str, Path]) -> None:
    kinds = {kind: target_of(folder) for kind, folder in folders.items()}
    assert {kind: target.family for kind, target in kinds.items()} == {
        "1": "stable-diffusion-1",
        "2": "stable-diffusion-2",
        "xl": "stable-diffusion-xl",
    }
    assert (kinds["xl"].widths, kinds["xl"].pooled, kinds["xl"].states) == (WIDTHS, WIDTHS[1], sum(WIDTHS))
    assert (kinds["1"].states, kinds["1"].pooled) == (32, None)


def test_other_models_have_no_text_encoder_to_replace(tiny_kandinsky: Tiny) -> None:
    with pytest.raises(
        UserError, match=r"holds a kandinsky-2.2, which reads what a prior predicts: .* --clip and --prior"
    ):
        target_of(tiny_kandinsky.decoder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipelines_own_embeddings(folders: dict[str, Path], kind: str) -> None:
    found = PromptTeacher.from_pretrained(folders[kind]).encode(TEXTS)
    states, pooled = encoded(theirs(folders[kind]), TEXTS)
    assert found.states.shape == (3, POSITIONS, states.shape[-1])
    assert_close(found.states, states, depth=NETWORK)
    assert (found.pooled is None) == (pooled is None)
    if found.pooled is not None and pooled is not None:
        assert_close(found.pooled, pooled, depth=NETWORK)


@pytest.mark.parametrize("kind", ["1", "xl"])
@pytest.mark.parametrize("states", [227, 154])
def test_long_english_in_chunks(folders: dict[str, Path], kind: str, states: int) -> None:
    """Each chunk is what the pipeline computes of its words alone; the pooled embedding is that of the first."""
    teacher, pipeline = PromptTeacher.from_pretrained(folders[kind], states), theirs(folders[kind])
    number = {227: 3, 154: 2}[states]
    ids = teacher.tokenizer(LONG, add_special_tokens=False)["input_ids"][: number * WORDS]
    assert len(ids) == number * WORDS
    assert teacher.positions == number * WORDS + 2
    chunks = [teacher.tokenizer.decode(ids[i : i + WORDS]) for i in range(0, len(ids), WORDS)]
    assert [teacher.tokenizer(one, add_special_tokens=False)["input_ids"] for one in chunks] == [
        ids[i : i + WORDS] for i in range(0, len(ids), WORDS)
    ], "the chunks' words are tokens of their own"
    with pytest.warns(UserWarning, match=rf"this encoder reads {teacher.positions}"):
        found = teacher.encode([LONG])
    own, pooled = encoded(pipeline, chunks)
    expected = torch.cat([own[:1, 0], own[:, 1:-1].flatten(0, 1), own[-1:, -1]]) if states == 227 else own.flatten(0, 1)
    assert found.states.shape == (1, states, own.shape[-1])
    assert_close(found.states[0], expected, depth=NETWORK)
    if pooled is not None and found.pooled is not None:
        assert_close(found.pooled, pooled[:1], depth=NETWORK)


def test_chunks_that_a_text_does_not_reach_are_empty_texts(folders: dict[str, Path]) -> None:
    one, three = (
        PromptTeacher.from_pretrained(folders["xl"], states).encode(["", "a red circle"]) for states in (77, 227)
    )
    assert_close(three.states[:, :76], one.states[:, :76], depth=NETWORK)
    assert_close(three.states[1, 76:151], one.states[0, 1:76], depth=NETWORK)
    assert_close(three.states[1, 151:], one.states[0, 1:], depth=NETWORK)
    assert one.pooled is not None
    assert three.pooled is not None
    assert_close(three.pooled, one.pooled, depth=NETWORK)


def test_a_number_of_states_that_no_chunks_give(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"adapter.queries=100: .* Set 77 .*154, or 227"):
        PromptTeacher.from_pretrained(folders["1"], 100)
