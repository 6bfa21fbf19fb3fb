"""The text encoders of a Stable Diffusion as what an adapter learns from, and which kind of model a repository holds.

Shapes: B texts, n chunks of a text, P positions of a text encoder (77), T states of the U-Net, C their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.tokenization import Tokenized, tokenized
from syzygy.core.errors import UserError
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.repositories import family_of, find_decoder
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder
from syzygy.pretrained.text_reader import TextReader, load_reader, read_target
from syzygy.text_encoders.prompt_target import PromptTarget, chunks_for

BATCH = 32
"""Texts that are encoded together: XL's text encoders give the states of all of their layers."""


def target_of(folder: Path) -> PromptTarget:
    """What the U-Net in a folder in diffusers' layout reads of texts, by the configurations of its text encoders.

    Raises:
        UserError: the folder holds no Stable Diffusion 1.x, 2.x or XL, or a configuration is missing or incomplete.
    """
    found = family_of(folder)
    if not issubclass(found.decoder, StableDiffusionDecoder):
        raise UserError(
            f"{folder} holds a {found.name}, which reads what a prior predicts: train its adapter with --clip and --prior instead of "
            "--model. Models with text encoders of their own: Stable Diffusion 1.x, 2.x and XL."
        )
    return read_target(folder, xl=found.decoder.is_xl)


@dataclass(frozen=True)
class PromptTeacher:
    """`Teacher`: the text encoders in a repository, which read long texts in chunks.

    For T = 77 these are the prompt embeddings that diffusers' pipelines compute. The pooled embedding is always that of the first chunk, as
    no text encoder has pooled more than it reads at once.
    """

    reader: TextReader
    target: PromptTarget
    states: int
    """T."""

    @staticmethod
    def from_pretrained(
        model: str | Path, states: int = 77, *, device: torch.device | None = None, local_files_only: bool = True
    ) -> "PromptTeacher":
        """Load the text encoders of a Stable Diffusion, frozen, in fp32.

        Args:
            model: a registered name, a folder in diffusers' layout, or a hub id.
            states: T: 77, or as `chunks_for` says.

        Raises:
            UserError: as of `find_decoder`, `target_of`, `load_reader` and `chunks_for`.
        """
        folder = find_decoder(model, local_files_only=local_files_only).at.folder
        target = target_of(folder)
        context = LoadContext(folder=folder, device=device or torch.device("cpu"))
        reader = load_reader(context, second=len(target.widths) > 1)
        teacher = PromptTeacher(reader, target, states)
        chunks_for(states, teacher.encoder_positions)
        return teacher

    @property
    def device(self) -> torch.device:
        return self.reader.device

    @property
    def tokenizer(self) -> Any:
        """That of the first text encoder; XL's second one differs in its padding alone."""
        return self.reader.tokenizers[0]

    @cached_property
    def encoder_positions(self) -> int:
        """P."""
        return int(self.tokenizer.model_max_length)

    @cached_property
    def _chunks(self) -> tuple[int, bool]:
        return chunks_for(self.states, self.encoder_positions)

    @property
    def positions(self) -> int:
        """The most tokens of a text that are read, start and end token included."""
        return self._chunks[0] * (self.encoder_positions - 2) + 2

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> PromptEmbeddings:
        """What the U-Net reads of these texts, in fp32. Texts longer than `positions` are cut with a warning."""
        unique = list(dict.fromkeys(texts))
        parts = [self._encoded(unique[i : i + BATCH]) for i in range(0, len(unique), BATCH)]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        whole = PromptEmbeddings(
            torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None, [None]
        )
        place = {text: i for i, text in enumerate(unique)}
        return whole[[place[text] for text in texts]]

    def _encoded(self, texts: list[str]) -> PromptEmbeddings:
        number, stitched = self._chunks
        read = self.reader.read([self._tokens(tokenizer, texts) for tokenizer in self.reader.tokenizers])
        states = read.states.float().unflatten(0, (len(texts), number))
        joined = _stitched(states) if stitched else states.flatten(1, 2)
        return PromptEmbeddings(joined, None if read.pooled is None else read.pooled.float()[::number], [None])

    def _tokens(self, tokenizer: Any, texts: list[str]) -> Tokenized:
        """The chunks of all texts, each between a start and an end token; chunks that a text does not reach are empty texts."""
        (number, _), width = self._chunks, self.encoder_positions
        room, start, end = width - 2, tokenizer.bos_token_id, tokenizer.eos_token_id
        whole = tokenized(
            tokenizer, texts, most=self.positions, before=[start], after=[end], pad=tokenizer.pad_token_id, stacklevel=4
        )
        rows = []
        for ids, length in zip(whole.ids.tolist(), whole.mask.sum(1).tolist(), strict=True):
            words = ids[1 : length - 1]
            rows += [[start, *words[i * room : (i + 1) * room], end] for i in range(number)]
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
        return Tokenized(padded, mask, torch.zeros(*padded.shape, 2, dtype=torch.long))

    def fingerprints(self) -> Mapping[str, str]:
        """See `Teacher`."""
        return self.reader.fingerprints()


def _stitched(states: Float[Tensor, "B n P C"]) -> Float[Tensor, "B T C"]:
    """The first chunk's start, all chunks' words, and the last chunk's end."""
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], 1)
