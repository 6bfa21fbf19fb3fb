"""Any CLIP that transformers loads, as text encoder and image encoder; and the starter's own, built from nothing."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from syzygy.clip import clip_loading
from syzygy.clip.image_processing import Preparation
from syzygy.clip.text_reading import clip_tokens, read_tokens
from syzygy.clip.tokenization import Tokenized, collected_truncations
from syzygy.core import artifacts, hub_files
from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
CPU_CHUNK = 64
"""Rows a pass in training on a CPU: activations stay in the cache, and short captions are not padded to the longest (2.4 × faster)."""


class ClipConfig(Config):
    """Sizes of a CLIP to train from nothing. Text width and joint width are one, as a prior reads states and pooled alike."""

    width: int = 192
    """Width of the text tower and of the joint space (D)."""
    text_layers: int = 3
    """Layers of the text tower."""
    text_heads: int = 6
    """Attention heads of the text tower."""
    vision_width: int = 192
    """Width of the vision tower."""
    vision_layers: int = 5
    """Layers of the vision tower."""
    vision_heads: int = 6
    """Attention heads of the vision tower."""
    image_size: int = 64
    """Side of an image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    positions: int = 77
    """Longest text in tokens."""
    logit_scale: float = 14.3
    """Inverse temperature at the start; learned."""


@dataclass(frozen=True, kw_only=True)
class ClipIdentity:
    """Which CLIP made some embeddings, and how: what a store of them records. Equal identities, equal embeddings."""

    source: str
    """The folder or hub id that it was loaded from."""
    revision: str | None
    """The commit of a hub id; None for a folder."""
    fingerprint: str
    """Of the weights in fp32, whatever `dtype` they were used in."""
    classes: tuple[str, ...]
    """transformers' classes of the towers and of the tokenizer."""
    width: int
    """D: of token states, text embeddings and image embeddings."""
    image_width: int
    """Of the image tower, before projection."""
    positions: int
    vocabulary: int
    pad_token: str
    dtype: str
    logit_scale: float | None
    """Inverse temperature; None where the layout does not hold it."""
    preparation: Preparation
    versions: dict[str, str]

    def to_config(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))


class Clip(nn.Module):
    """CLIP's two towers with its tokenizer and image preparation (`TextEncoder` and `ImageEncoder`).

    Legend: B batch, T tokens, D joint width, S side of a prepared image, P patches, C width of the image tower.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preparation: Preparation,
        source: str,
        *,
        revision: str | None = None,
        fingerprint: Callable[[], str] | str | None = None,
    ) -> None:
        """`model` is a `CLIPModel` or `Towers`; `fingerprint` (or how to find it) is that of weights held not or not only in fp32."""
        super().__init__()
        self.model, self.tokenizer, self.preparation = model, tokenizer, preparation
        self.source, self.revision, self._fingerprint = source, revision, fingerprint
        self.register_buffer("mean", torch.tensor(preparation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preparation.std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """D, the width of the joint space."""
        return self.model.text_projection.out_features

    @property
    def positions(self) -> int:
        """Most tokens a text may have, start and end included."""
        return self.model.text_model.config.max_position_embeddings

    @property
    def image_size(self) -> int:
        """S."""
        return self.model.vision_model.config.image_size

    @property
    def logit_scale(self) -> float:
        """CLIP's inverse temperature.

        Raises:
            UserError: the layout does not hold it.
        """
        scale = self._logit_scale()
        if scale is None:
            raise UserError(
                f"{self.source} holds no logit scale, as no diffusers pipeline does: give the temperature as a number "
                "(1/100 for the published CLIPs), or load the whole CLIP."
            )
        return scale

    def _logit_scale(self) -> float | None:
        found = getattr(self.model, "logit_scale", None)
        return None if found is None else float(found.detach().float().exp())

    @property
    def device(self) -> torch.device:
        return self.model.text_projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.model.text_projection.weight.dtype

    def tokenize(self, texts: list[str]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Token ids and mask, padded on the right to the longest text; texts past the last position are cut with a warning."""
        found = self._tokenized(texts)
        return found.ids, found.mask

    def _tokenized(self, texts: list[str]) -> Tokenized:
        return clip_tokens(self.tokenizer, texts, self.positions, stacklevel=5)

    def token_spans(self, texts: list[str]) -> Int[Tensor, "B T 2"]:
        """For each token state of `encode_text`, the characters [from, to) of its text that it stands for; from = to means none.

        Tokens of text that `encode_text` cuts off have none; there is no warning.
        """
        with collected_truncations():
            return self._tokenized(texts).spans

    def text_features(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> TextFeatures:
        """Token ids → features; the pooled embedding is the projected state of the (first) end token."""
        output = self.model.text_model(input_ids=ids, attention_mask=mask.long())
        return TextFeatures(output.last_hidden_state, mask, self.model.text_projection(output.pooler_output))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Texts → states after the final LayerNorm, mask, and projected (not normalised) pooled embedding, in fp32; with spans."""
        return read_tokens(self._tokenized(texts), self.text_features, self.width, self.device)

    def image_features(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B D"]]:
        """Images in [0, 1] → states of the P patches after the last layer, and raw projected embeddings.

        Other sizes than the tower's are resized (bicubic, antialiased).
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = nn.functional.interpolate(
                images, (self.image_size, self.image_size), mode="bicubic", antialias=True
            ).clamp(0, 1)
        return self._features((images - self.mean) / self.std)

    def _features(self, pixels: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B D"]]:
        output = self.model.vision_model(pixel_values=pixels.to(self.dtype))
        return output.last_hidden_state[:, 1:], self.model.visual_projection(output.pooler_output)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Images in [0, 1] → raw CLIP image embeddings (projected, not normalised), in fp32.

        For rendered and generated images, as tensors. Photographs go through `preparation` and `encode_pixels`.
        """
        return self.image_features(images.to(self.device))[1].float()

    @torch.no_grad()
    def encode_pixels(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Normalised pixels from `preparation.prepare` → raw CLIP image embeddings (projected, not normalised), in fp32."""
        return self._features(pixels.to(self.device))[1].float()

    def forward(
        self, images: Float[Tensor, "B 3 H W"], ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B D"], Float[Tensor, "N D"], Float[Tensor, ""]]:
        """Both towers, for training: states of the patches, image embeddings, pooled text embeddings, logit scale."""
        states, embeddings = self.image_features_in_chunks(images)
        return states, embeddings, self._texts_in_chunks(ids, mask), self.model.logit_scale.exp()

    def image_features_in_chunks(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B D"]]:
        """`image_features`, for training; on a CPU a few images at a time, whose activations stay in the cache."""
        chunk = CPU_CHUNK if images.device.type == "cpu" else len(images)
        states, embeddings = zip(*(self.image_features(part) for part in images.split(chunk)), strict=True)
        return torch.cat(states), torch.cat(embeddings)

    def _texts_in_chunks(self, ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N D"]:
        """Pooled embeddings; on a CPU, texts of like length together, each chunk padded no further than it must be."""
        if ids.device.type != "cpu":
            return self.text_features(ids, mask).pooled
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        parts = [
            self.text_features(ids[rows, :length], mask[rows, :length]).pooled
            for rows in order.split(CPU_CHUNK)
            for length in [int(lengths[rows].max())]
        ]
        return torch.cat(parts)[order.argsort()]

    def fingerprint(self) -> str:
        """Sixteen hex digits over all weights in fp32: which CLIP a prior or decoder was trained with.

        The same however it was loaded, if the files are: in bf16 it is the one that the files have in fp32.
        """
        if callable(self._fingerprint):
            self._fingerprint = self._fingerprint()
        if self._fingerprint is not None:
            return self._fingerprint
        if self.dtype != torch.float32:
            raise UserError(
                f"weights converted to {self.dtype} have no fingerprint: load the CLIP with that dtype instead."
            )
        return artifacts.fingerprint(self.model.state_dict())

    def identity(self) -> ClipIdentity:
        """Which CLIP this is and how it computes, for the record of what is made with it."""
        split = isinstance(self.model, clip_loading.Towers)
        kinds = ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection") if split else ("CLIPModel",)
        return ClipIdentity(
            source=self.source,
            revision=self.revision,
            fingerprint=self.fingerprint(),
            classes=(*kinds, type(self.tokenizer).__name__),
            width=self.width,
            image_width=self.model.visual_projection.in_features,
            positions=self.positions,
            vocabulary=len(self.tokenizer),
            pad_token=str(self.tokenizer.pad_token),
            dtype=str(self.dtype).removeprefix("torch."),
            logit_scale=self._logit_scale(),
            preparation=self.preparation,
            versions=artifacts.versions() | {name: version(name) for name in ("pillow", "tokenizers")},
        )

    def save_pretrained(self, folder: Path, provenance: dict[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the layout that transformers reads (`CLIPModel`, `CLIPTokenizer`, `CLIPImageProcessor`).

        Raises:
            UserError: it cannot be written, or the towers came from a pipeline, which lacks a part of that layout.
        """
        if isinstance(self.model, clip_loading.Towers):
            raise UserError(
                f"{self.source} has no logit scale, so it is no whole CLIP to save: copy its folders instead."
            )
        with artifacts.folder_written(folder, "CLIP") as temporary:
            self.tokenizer.save_pretrained(temporary)
            config = self.model.config.to_dict() | {"torch_dtype": "float32", "dtype": "float32"}
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, config)
            artifacts.write_json(temporary / "preprocessor_config.json", self.preparation.to_config())
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, self.model.state_dict(), dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, provenance)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        text_first: bool = False,
        variant: str | None = None,
    ) -> "Clip":
        """Load a published CLIP strictly, on the CPU and in evaluation mode.

        Layouts: transformers' `CLIPModel` (the starter's, OpenAI's, OpenCLIP's conversions), and a folder each for
        `text_encoder` and `image_encoder` as in diffusers' pipelines of priors (Kandinsky 2.2).

        Args:
            source: a folder, or a hub id.
            revision: of a hub id: commit, tag or branch; None is its main branch. The commit is then `self.revision`.
            dtype: what the towers compute in; files may hold fp32, fp16 or bf16.
            local_files_only: take a hub id from the hub's cache only; else download what is missing.
            text_first: load the image tower when it is first needed; what is wrong with it is raised then.
            variant: prefer weights of this variant, "fp16" or "bf16"; by default full precision.

        Raises:
            UserError: it is not found, a file is missing, truncated or pickle, weights do not fit the configuration,
                or the parts do not belong together.
        """
        download = partial(hub_files.download_model, variant=variant)
        found = hub_files.locate(source, revision, local_files_only, download=download)
        parts = clip_loading.load(found, dtype, text_first=text_first, variant=variant)
        own = (parts.model, parts.tokenizer, parts.preparation, found.source)
        return cls(*own, revision=found.revision, fingerprint=parts.fingerprint).eval()


def build_clip(config: ClipConfig, texts: Iterable[str], seed: int) -> Clip:
    """A CLIP with random weights, and a BPE tokenizer learned from the texts."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = _learn_tokenizer(texts, config.positions)
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in (START, END))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.positions,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": config.width,
        "hidden_act": "gelu",  # one native kernel, where CLIP's own quick_gelu is three
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.width,
        "hidden_act": "gelu",
    }
    if config.width % config.text_heads or config.vision_width % config.vision_heads:
        raise UserError(
            f"width {config.width} must divide by {config.text_heads} heads, {config.vision_width} by {config.vision_heads}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(
                text_config=text,
                vision_config=vision,
                projection_dim=config.width,
                logit_scale_init_value=float(torch.tensor(config.logit_scale).log()),
            )
        )
    size = (config.image_size, config.image_size)
    grey = (0.5, 0.5, 0.5)
    preparation = Preparation(resize=size, crop=None, resample=Image.Resampling.BICUBIC.value, mean=grey, std=grey)
    return Clip(model, tokenizer, preparation, "from nothing")


def _learn_tokenizer(texts: Iterable[str], positions: int) -> Any:
    """CLIP's own scheme (lower case, byte-level BPE with an end-of-word mark), so every script can be spelled."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_word_pattern(), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)


def _word_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
