"""What captions refer to besides their words: subjects, as image embeddings at their words' tokens, and the edges of a layout.

A λ-ECLIPSE prior is trained on them (arXiv 2402.05195).

Legend: B captions, S subjects of all of them, P token positions of all subjects, D width of CLIP's joint space.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.core.packed_attention import PackedText


@dataclass(frozen=True)
class References:
    """Subjects and controls of B captions, on the CPU. Subjects follow one another in the order of their captions."""

    embeddings: Float[Tensor, "S D"]
    """Raw image embeddings of the subjects, cut out on white."""
    offsets: Int[Tensor, "B_plus_1"]
    """Where the subjects of each caption begin, and at last S."""
    positions: Int[Tensor, "P"]
    """Positions of tokens in their own caption, counted from 0: those whose states the subject replaces."""
    position_offsets: Int[Tensor, "S_plus_1"]
    """Where the positions of each subject begin, and at last P."""
    control: Float[Tensor, "B D"] | None = None
    """Image embeddings of the edges of each caption's image; None where none were computed."""

    def __post_init__(self) -> None:
        assert len(self.position_offsets) == len(self.embeddings) + 1, "an offset for each subject, and one more"
        assert (int(self.offsets[0]), int(self.offsets[-1])) == (0, len(self.embeddings)), "offsets lead through all"
        assert int(self.position_offsets[-1]) == len(self.positions), "position offsets lead through all positions"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Int[Tensor, "b"]) -> "References":
        """Those of these captions, in this order."""
        subjects, offsets = _chosen(self.offsets, index)
        places, position_offsets = _chosen(self.position_offsets, subjects)
        control = None if self.control is None else self.control[index]
        return References(self.embeddings[subjects], offsets, self.positions[places], position_offsets, control)

    @staticmethod
    def of(
        subjects: list[list[tuple[list[int], Float[Tensor, "D"]]]],
        width: int,
        control: Float[Tensor, "B D"] | None = None,
    ) -> "References":
        """From a list of (token positions, embedding) for each caption."""
        every = [one for caption in subjects for one in caption]
        embeddings = torch.stack([x for _, x in every]) if every else torch.zeros(0, width)
        positions = [place for places, _ in every for place in places]
        return References(
            embeddings,
            torch.tensor([0, *map(len, subjects)]).cumsum(0),
            torch.tensor(positions, dtype=torch.long),
            torch.tensor([0, *(len(places) for places, _ in every)]).cumsum(0),
            control,
        )

    @staticmethod
    def none(number: int, width: int) -> "References":
        """Of this many captions without subjects and controls."""
        return References.of([[]] * number, width)

    @property
    def has_subject(self) -> Bool[Tensor, "B"]:
        """Which captions have subjects."""
        return self.offsets.diff() > 0

    def mean_subjects(self) -> Float[Tensor, "B D"]:
        """The mean of each caption's subjects; zeros where it has none. A subject counts whose words later ones leave it a token of."""
        caption, device = torch.repeat_interleave(self.offsets.diff()), self.embeddings.device
        kept = torch.repeat_interleave(self.position_offsets.diff())[self._last(caption)].unique()
        caption = caption[kept]
        sums = self.embeddings.new_zeros(len(self), self.embeddings.shape[1])
        sums = sums.index_add(0, caption.to(device), self.embeddings[kept.to(device)])
        return sums / caption.bincount(minlength=len(self)).clamp(min=1).to(sums)[:, None]

    def _last(self, caption: Int[Tensor, "S"]) -> Int[Tensor, "p"]:
        """Of the positions that several subjects of a caption claim, the last one's."""
        subject = torch.repeat_interleave(self.position_offsets.diff())
        claimed = zip(caption[subject].tolist(), self.positions.tolist(), strict=True)
        return torch.tensor([*{key: place for place, key in enumerate(claimed)}.values()], dtype=torch.long)

    @staticmethod
    def cat(parts: "list[References]") -> "References":
        """Joined along the captions; controls are joined if every part has them."""
        controls = [part.control for part in parts]
        return References(
            torch.cat([part.embeddings for part in parts]),
            _joined([part.offsets for part in parts]),
            torch.cat([part.positions for part in parts]),
            _joined([part.position_offsets for part in parts]),
            None if any(x is None for x in controls) else torch.cat([x for x in controls if x is not None]),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "References":
        """With embeddings on this device and in this dtype; offsets and positions stay on the CPU."""
        control = None if self.control is None else self.control.to(device, dtype)
        return replace(self, embeddings=self.embeddings.to(device, dtype), control=control)

    def placed(self, text: PackedText) -> PackedText:
        """The texts of the same captions with the embeddings in place of the subjects' token states; later subjects win."""
        if not len(self.positions):
            return text
        subject = torch.repeat_interleave(self.position_offsets.diff())
        caption = torch.repeat_interleave(self.offsets.diff())
        rows = text.offsets[caption[subject]] + self.positions
        places = self._last(caption)  # of two writes to a row, torch takes any
        states = text.states.clone()
        states[rows[places].to(states.device)] = self.embeddings[subject[places].to(self.embeddings.device)].to(states)
        return replace(text, states=states)


def _chosen(
    offsets: Int[Tensor, "n_plus_1"], index: Int[Tensor, "b"]
) -> tuple[Int[Tensor, "m"], Int[Tensor, "b_plus_1"]]:
    """(the rows of these groups, where each group begins in them)."""
    lengths = offsets.diff()[index]
    own = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    rows = torch.arange(int(own[-1])) + (offsets[:-1][index] - own[:-1]).repeat_interleave(lengths)
    return rows, own


def _joined(offsets: list[Int[Tensor, "_"]]) -> Int[Tensor, "n_plus_1"]:
    lengths = torch.cat([one.diff() for one in offsets])
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
