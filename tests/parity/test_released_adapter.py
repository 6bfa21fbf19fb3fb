"""The authors' release (OmniDiffusion) against `torch.nn.Transformer` built as theirs, on tiny random weights and a real class of LLM."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.generation.prompt_encoder import PromptEncoder
from syzygy.generation.text_to_image import TextToImage
from syzygy.text_encoders.adapted_prompts import load_adapted_prompts
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.released_adapter import RECIPE, load_released
from tests.closeness import NETWORK, assert_close
from tests.tiny_llm import save_tiny_llm, tiny_tokenizer
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_xl import WIDTHS, tiny_xl

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of their class
WIDTH, POOLED, QUERIES, LLM = sum(WIDTHS), WIDTHS[1], 9, 32
TEXTS = ["a red star left of a Blue circle.", "", "zwei grüne Ringe", "звезда над кругом 星 " * 9]


class Theirs(nn.Module):
    """Names, order and arithmetic as published: one text at a time, without a mask, the states before the first end token."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(nn.Linear(WIDTH, POOLED), nn.GELU(), nn.Linear(POOLED, POOLED))
        self.t2i_decoder_prompt = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.llm_to_t2i_mapping = nn.Transformer(
            batch_first=True, norm_first=True, d_model=WIDTH, nhead=8, num_encoder_layers=4, num_decoder_layers=4,
            dim_feedforward=WIDTH * 4, dropout=0.0,
        )  # fmt: skip
        self.fc = nn.Sequential(nn.Linear(LLM, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, last_hidden: Tensor, end: int) -> tuple[Tensor, Tensor]:
        states = self.llm_to_t2i_mapping(src=self.fc(last_hidden[0:1, :end]), tgt=self.t2i_decoder_prompt)
        return states, self.fc1(states[:, 1:-1].mean(1))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Theirs()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, theirs: Theirs) -> Path:
    folder = tmp_path_factory.mktemp("release")
    save_tiny_llm("llama", folder / "llm")
    tiny_xl(folder / "xl")
    (folder / "stage-2/text_adapter").mkdir(parents=True)
    weights = {name: x.contiguous() for name, x in theirs.state_dict().items()}
    save_file(weights, folder / "stage-2/text_adapter/model.safetensors", metadata={"format": "pt"})
    return folder


def expected(theirs: Theirs, llm: Llm, text: str) -> tuple[Tensor, Tensor]:
    """As the release encodes a prompt."""
    tokenizer = llm.tokenizer
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = tokenizer.convert_tokens_to_ids("<s>")
    ids = torch.tensor([[start, *words, tokenizer.eos_token_id]])
    output = llm.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    end = int((ids == tokenizer.eos_token_id).nonzero()[0, 1])
    return theirs(output.last_hidden_state.float(), end)


def test_names_and_sizes(places: Path, theirs: Theirs) -> None:
    made = load_released(places / "stage-2/text_adapter")
    config = made.config
    assert (config.llm_width, config.queries, config.feed_forward) == (LLM, QUERIES, WIDTH * 4)
    assert (config.encoder_layers, config.decoder_layers) == (4, 4)
    assert (config.target.widths, config.target.pooled) == (WIDTHS, POOLED)
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in made.parameters()) == count


@torch.no_grad()
def test_a_batch_is_what_they_compute_one_by_one(places: Path, theirs: Theirs) -> None:
    adapted = load_adapted_prompts(places / "stage-2/text_adapter", llm=places / "llm")
    assert (adapted.llm.recipe, adapted.llm.dtype) == (RECIPE, torch.bfloat16)
    found = adapted(TEXTS)
    assert found.pooled is not None
    for row, text in enumerate(TEXTS):
        states, pooled = expected(theirs, adapted.llm, text)
        # The language model computes in bf16, a batch and a text alone not quite the same.
        assert_close(found.states[row], states[0], dtype=torch.bfloat16, depth=2)
        assert_close(found.pooled[row], pooled[0], dtype=torch.bfloat16, depth=2)


@torch.no_grad()
def test_the_adapter_alone(places: Path, theirs: Theirs) -> None:
    """In fp32, on states that are no language model's; padding may hold anything."""
    made = load_released(places / "stage-2/text_adapter")
    lengths = torch.tensor([7, 2, 4])
    mask = torch.arange(7) < lengths[:, None]
    states = torch.randn(3, 7, LLM, generator=torch.Generator().manual_seed(0)).masked_fill(~mask[..., None], torch.nan)
    found = made.embed_prompts(states, mask)
    assert found.pooled is not None
    for row, length in enumerate(lengths.tolist()):
        wanted, pooled = theirs(states[row : row + 1], length - 1)
        assert_close(found.states[row], wanted[0], depth=NETWORK)
        assert_close(found.pooled[row], pooled[0], depth=NETWORK)


def test_it_generates(places: Path, tmp_path: Path) -> None:
    adapter = places / "stage-2/text_adapter"
    model = TextToImage.from_pretrained(places / "xl", text_encoder=adapter, llm=places / "llm")
    assert model.languages == ("en", "zh")
    images = model(["a red star", "a blue ring"], num_inference_steps=2, negative_prompt="grey").images
    assert images[0].tobytes() != images[1].tobytes()
    found = PromptEncoder.from_pretrained(adapter, llm=places / "llm")("a red star")
    assert found["prompt_embeds"].shape == (1, QUERIES, WIDTH)
    assert found["negative_pooled_prompt_embeds"].shape == (1, POOLED)
    with pytest.raises(UserError, match=r"trained for a stable-diffusion-xl .*; .* is a stable-diffusion-2"):
        TextToImage.from_pretrained(tiny_stable_diffusion(tmp_path / "sd"), text_encoder=adapter, llm=places / "llm")


def test_what_is_refused(places: Path, tmp_path: Path) -> None:
    adapter = places / "stage-2/text_adapter"
    with pytest.raises(UserError, match=r"is of the authors' release and .* give --llm, .* Baichuan2-7B-Chat"):
        load_adapted_prompts(adapter)
    bare = save_tiny_llm("llama", tmp_path / "bare", tiny_tokenizer())
    with pytest.raises(UserError, match=r"puts no start token before a text, .* set add_bos_token"):
        load_adapted_prompts(adapter, llm=bare)
    other = tmp_path / "other"
    other.mkdir()
    save_file({"weight": torch.ones(2)}, other / "model.safetensors")
    with pytest.raises(UserError, match=r"holds no adapter of OmniDiffusion, and .* has no config.json"):
        load_adapted_prompts(other, llm=bare)
    save_file({"weight": torch.ones(2)}, other / "more.safetensors")
    with pytest.raises(UserError, match="has 2 files of weights"):
        load_adapted_prompts(other, llm=bare)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "model.pt"])
def test_pickles_are_refused_with_the_conversion_to_do(
    tmp_path: Path, name: str, theirs: Theirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: Any = theirs.state_dict()
    torch.save({"state_dict": stored} if name.endswith("ckpt") else stored, tmp_path / name)  # noqa: TID251 (what is refused)
    with pytest.raises(UserError, match=rf"only as pickle \({name}\), .* never read here. Convert it") as refused:
        load_adapted_prompts(tmp_path, llm="llm")
    command = shlex.split(str(refused.value).partition("folder: ")[2])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})
    assert torch.equal(load_released(tmp_path).state_dict()["proj_in.0.weight"], stored["fc.0.weight"])
