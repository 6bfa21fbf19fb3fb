"""Any CLIP that transformers loads, as text encoder and image encoder; and the starter's own, built from nothing."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from syzygy import artifact
from syzygy.config import Config
from syzygy.errors import UserError
from syzygy.types import TextFeatures

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
    """Side of a picture in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    positions: int = 77
    """Longest text in tokens."""
    logit_scale: float = 14.3
    """Inverse temperature at the start; learned."""


class Clip(nn.Module):
    """CLIP's two towers with its tokenizer and picture preparation (`TextEncoder` and `ImageEncoder`).

    Legend: B batch, T tokens, D joint width.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, mean: Iterable[float], std: Iterable[float], source: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """D, the width of the joint space."""
        return self.model.config.projection_dim

    @property
    def positions(self) -> int:
        """Most tokens a text may have, start and end included."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def logit_scale(self) -> float:
        """CLIP's inverse temperature."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def tokenize(self, texts: list[str]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Token ids and mask, padded on the right to the longest text; texts past the last position are cut with a warning."""
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        room = self.positions - 2
        for ids in encoded:
            if len(ids) > room:
                cut = self.tokenizer.decode(ids[room:]).strip()
                warnings.warn(
                    f"the prompt has {len(ids) + 2} tokens, this encoder reads {self.positions}; cut: "
                    f"{cut if len(cut) <= 160 else f'{cut[:80]} … {cut[-80:]}'!r}",
                    stacklevel=3,
                )
        start, end, pad = (self.tokenizer.convert_tokens_to_ids(t) for t in (START, END, self.tokenizer.pad_token))
        rows = [[start, *ids[:room], end] for ids in encoded]
        length = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        mask = torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]
        return ids, mask

    def text_features(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> TextFeatures:
        """Token ids → features; the pooled embedding is the projected state of the end token."""
        output = self.model.text_model(input_ids=ids, attention_mask=mask.long())
        states = output.last_hidden_state
        pooled = states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        return TextFeatures(states, mask, self.model.text_projection(pooled))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Texts → states after the final LayerNorm, mask, and projected (not normalised) pooled embedding, in fp32."""
        ids, mask = self.tokenize(texts)
        return self.text_features(ids.to(self.device), mask.to(self.device)).to(dtype=torch.float32)

    def image_embeddings(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Pictures in [0, 1] → raw projected embeddings; other sizes than the tower's are resized (bicubic, antialiased)."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = nn.functional.interpolate(
                images, (self.image_size, self.image_size), mode="bicubic", antialias=True
            ).clamp(0, 1)
        pixels = ((images - self.mean) / self.std).to(self.model.dtype)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Pictures in [0, 1] → raw CLIP image embeddings (projected, not normalised), in fp32."""
        return self.image_embeddings(images.to(self.device)).float()

    def forward(
        self, images: Float[Tensor, "B 3 H W"], ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"], Float[Tensor, ""]]:
        """Both towers, for training: image embeddings, pooled text embeddings, logit scale."""
        return self._images_in_chunks(images), self._texts_in_chunks(ids, mask), self.model.logit_scale.exp()

    def _images_in_chunks(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        chunk = CPU_CHUNK if images.device.type == "cpu" else len(images)
        return torch.cat([self.image_embeddings(part) for part in images.split(chunk)])

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
        """Sixteen hex digits over all weights: which CLIP a prior or decoder was trained beside."""
        return artifact.fingerprint(self.model.state_dict())

    def save_pretrained(self, folder: Path, provenance: dict[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the layout that transformers reads (`CLIPModel`, `CLIPTokenizer`, `CLIPImageProcessor`)."""
        size = {"height": self.image_size, "width": self.image_size}
        preparation = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": size,
            "resample": 3,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean.flatten().tolist(),
            "image_std": self.std.flatten().tolist(),
        }
        with artifact.folder_written(folder, "CLIP") as temporary:
            self.tokenizer.save_pretrained(temporary)
            config = self.model.config.to_dict() | {"torch_dtype": "float32", "dtype": "float32"}
            artifact.write_json(temporary / artifact.CONFIG_FILE, config)
            artifact.write_json(temporary / "preprocessor_config.json", preparation)
            artifact.write_tensors(temporary / artifact.WEIGHTS_FILE, self.model.state_dict(), dtype)
            artifact.write_json(temporary / artifact.PROVENANCE_FILE, provenance)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Clip":
        """Load a folder in transformers' layout, in fp32, strictly.

        Raises:
            UserError: a file is missing, truncated, or does not fit the configuration.
        """
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        folder = Path(source)
        config = artifact.read_json(folder / artifact.CONFIG_FILE)
        preparation = artifact.read_json(folder / "preprocessor_config.json")
        missing = [key for key in ("image_mean", "image_std") if key not in preparation]
        missing += [name for name in ("tokenizer.json",) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} is not a complete CLIP: it lacks {', '.join(missing)}.")
        tensors = artifact.read_tensors(folder / artifact.WEIGHTS_FILE)
        model = CLIPModel(CLIPConfig.from_dict(config))
        artifact.load_strictly(model, tensors, folder)
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(model.eval(), tokenizer, preparation["image_mean"], preparation["image_std"], str(folder))


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
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.width,
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
    return Clip(model, tokenizer, [0.5] * 3, [0.5] * 3, "from nothing")


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
