"""The adapter that the authors of arXiv 2405.12914 released for Stable Diffusion XL (OmniDiffusion), with weights under their names.

Legend: B texts, T tokens, W width of the language model, K queries (227), C width of XL's states (2048).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.model_files import PICKLES
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.text_encoders.adapter import check_width
from syzygy.text_encoders.llm import Llm, LlmRecipe, load_llm
from syzygy.text_encoders.prompt_target import PromptTarget

NAMES = {"fc.": "proj_in.", "llm_to_t2i_mapping.": "", "fc1.": "pooled_head."}
"""How names of weights begin in the release, and here."""
QUERIES = "t2i_decoder_prompt"
HEADS = 8
"""Attention heads, which no weight tells."""
RECIPE = LlmRecipe(layers="last", normalise=False, max_tokens=229)
"""Last hidden states of at most 227 tokens of text between a start and an end token."""
LANGUAGES = ("en", "zh")
"""What it was trained on."""
BASE = "Baichuan2-7B-Chat"


class ReleasedConfig(Config):
    """All sizes of a released adapter."""

    llm_width: PositiveInt
    """W: 4096 for Baichuan2-7B."""
    queries: PositiveInt
    """K."""
    feed_forward: PositiveInt
    """Inner width of the feed-forward layers."""
    encoder_layers: PositiveInt
    """Number of layers that read the language model's states."""
    decoder_layers: PositiveInt
    """Number of layers that read the encoder's output from the queries."""
    target: PromptTarget
    """Stable Diffusion XL."""


class ReleasedAdapter(nn.Module):
    """`torch.nn.Transformer` from a language model's states to K states, whose mean without the first and last is the pooled embedding."""

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.config = config
        width, pooled = config.target.states, config.target.pooled
        assert pooled is not None
        self.proj_in = nn.Sequential(nn.Linear(config.llm_width, width), nn.GELU(), nn.Linear(width, width))
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        sizes = {"dim_feedforward": config.feed_forward, "dropout": 0.0, "batch_first": True, "norm_first": True}
        # The parts of torch.nn.Transformer, which would warn that it cannot use nested tensors.
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, HEADS, **sizes),
            config.encoder_layers,
            nn.LayerNorm(width),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, HEADS, **sizes), config.decoder_layers, nn.LayerNorm(width)
        )
        self.pooled_head = nn.Sequential(nn.Linear(width, pooled), nn.GELU(), nn.Linear(pooled, pooled))

    def embed_prompts(self, states: Float[Tensor, "B T W"], mask: Bool[Tensor, "B T"]) -> PromptEmbeddings:
        """As of `TextAdapter`. The state of the end token, which is the last of each text, is not read.

        Raises:
            UserError: the features have another width.
        """
        check_width(states.shape[-1], self.config.llm_width)
        hidden = mask.cumsum(1) >= mask.sum(1, keepdim=True)
        source = self.proj_in(states.masked_fill(hidden[..., None], 0.0))
        memory = self.encoder(source, src_key_padding_mask=hidden)
        queries = self.queries.expand(len(states), -1, -1)
        found = self.decoder(queries, memory, memory_key_padding_mask=hidden)
        return PromptEmbeddings(found, self.pooled_head(found[:, 1:-1].mean(1)), [None])


def is_release(folder: Path) -> bool:
    """Whether a folder has weights but no configuration, as the release's `text_adapter` folders."""
    weights = ("*.safetensors", *PICKLES)
    return not (folder / artifacts.CONFIG_FILE).is_file() and any(any(folder.glob(name)) for name in weights)


def load_released(folder: Path) -> ReleasedAdapter:
    """The adapter of the release in a folder such as `stage-2/text_adapter`, in fp32, on the CPU.

    Raises:
        UserError: the weights are pickle, of another model, truncated or not finite, or in several files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _refuse_pickle(folder)
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} files of weights: leave only the adapter's.")
    stored = artifacts.read_tensors(files[0])
    if stored.get(QUERIES, torch.empty(0)).ndim != 3 or "fc.0.weight" not in stored or "fc1.2.weight" not in stored:
        raise UserError(
            f"{files[0]} holds no adapter of OmniDiffusion, and {folder} has no {artifacts.CONFIG_FILE}, so it is no adapter of syzygy train "
            "adapter either. Copy or download the whole folder again."
        )
    adapter = ReleasedAdapter(_config(stored))
    artifacts.load_strictly(adapter, renamed(stored), folder)
    return adapter.eval()


def _refuse_pickle(folder: Path) -> None:
    name = next(path.name for pattern in PICKLES for path in sorted(folder.glob(pattern)))
    raise UserError(
        f"{folder} has its weights only as pickle ({name}), which can run code and is never read here. Convert it in that folder: python -c "
        f"\"import torch, safetensors.torch as s; x = torch.load('{name}', map_location='cpu', weights_only=True); x = x.get('state_dict', x); "
        "s.save_file({k: v.clone() for k, v in x.items()}, 'model.safetensors')\""
    )


def _config(stored: Mapping[str, Tensor]) -> ReleasedConfig:
    _, queries, width = stored[QUERIES].shape
    pooled = len(stored["fc1.2.weight"])

    def layers(part: str) -> int:
        begin = f"llm_to_t2i_mapping.{part}.layers."
        return len({name.removeprefix(begin).partition(".")[0] for name in stored if name.startswith(begin)})

    inner = stored.get("llm_to_t2i_mapping.encoder.layers.0.linear1.weight", torch.empty(1))
    target = PromptTarget(family="stable-diffusion-xl", widths=(width - pooled, pooled), pooled=pooled)
    return ReleasedConfig(
        llm_width=stored["fc.0.weight"].shape[1],
        queries=queries,
        feed_forward=len(inner),
        encoder_layers=max(layers("encoder"), 1),
        decoder_layers=max(layers("decoder"), 1),
        target=target,
    )


def renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's weights under our names."""
    found = {QUERIES: stored[QUERIES][0]}
    found |= {name: value for name, value in stored.items() if name != QUERIES}
    for theirs, ours in {**NAMES, QUERIES: "queries"}.items():
        found = {
            ours + name.removeprefix(theirs) if name.startswith(theirs) else name: value
            for name, value in found.items()
        }
    return found


def load_released_llm(
    folder: Path, llm: str | Path | None, *, device: str = "cpu", local_files_only: bool = True
) -> Llm:
    """The language model of a released adapter, whose folder does not say which it is; in bf16, as in training.

    Raises:
        UserError: none is given; it cannot be loaded; its tokenizer puts no start token before a text.
    """
    if llm is None:
        raise UserError(
            f"the adapter in {folder} is of the authors' release and does not say where its language model is: give --llm, a folder or hub id "
            f"of {BASE} in the classes of Llama (its own repository needs Python code, which is never run here)."
        )
    model = load_llm(llm, recipe=RECIPE, dtype=torch.bfloat16, local_files_only=local_files_only)
    if model.tokenize([""]).ids.shape[1] < 2:
        raise UserError(
            f"the tokenizer of {llm} puts no start token before a text, and the adapter in {folder} was trained with one: set add_bos_token in "
            "its tokenizer_config.json."
        )
    return model.to(device)
