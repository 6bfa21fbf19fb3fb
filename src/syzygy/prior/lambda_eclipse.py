"""The λ-ECLIPSE prior (arXiv 2402.05195): a prompt whose words stand for pictures, and the edges of a layout → an image embedding.

Legend: B captions, D width of CLIP's joint space.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.core.wording import counted
from syzygy.data.references import References
from syzygy.prior.prior_folders import find_prior, is_controlled, read_prior
from syzygy.prior.prior_network import PriorConfig, PriorNetwork

P = TypeVar("P", bound="LambdaEclipsePrior")


class LambdaEclipsePriorConfig(PriorConfig):
    """The published `config.json` of a λ-ECLIPSE prior."""

    additional_embeddings: Literal[4] = 4
    """Tokens after the text: control, pooled text embedding, noise, learned output token."""


class LambdaEclipsePrior(PriorNetwork):
    """Text features and a control → raw CLIP image embedding in one forward pass (λ-ECLIPSE, and the authors' code).

    The network is that of `EclipsePrior` with one token more, the control: the CLIP image embedding of a layout's edges. Where a word of
    the prompt stands for a picture (a subject), the text states have the picture's CLIP image embedding at the positions of the word's
    tokens; the pooled text embedding remains that of the words.

    `clip_mean` and `clip_std` are published with the weights and are not used here, as in `EclipsePrior`.
    """

    config_class: ClassVar[type[LambdaEclipsePriorConfig]] = LambdaEclipsePriorConfig
    takes_subjects = True
    """What distinguishes this prior from others for pipelines (`generation.subjects.SubjectPrior`)."""
    zero_image: Callable[[], Float[Tensor, "1 D"]] | None = None
    """Returns the control where there is no layout: the image encoder's output for an all-zero normalised image. A pipeline that has the
    CLIP sets it."""

    def __init__(self, config: LambdaEclipsePriorConfig) -> None:
        super().__init__(config, config.additional_embeddings)
        self.config = config
        self.embedding_control = nn.Linear(config.embedding_dim, config.num_attention_heads * config.attention_head_dim)

    def forward(self, text: PackedText, noise: Float[Tensor, "B D"], references: References) -> Float[Tensor, "B D"]:
        """The differentiable pass, for training: inputs are taken as they are, on the prior's device and in its dtype. See `predict`.

        Args:
            references: subjects, and a control for each text.

        Raises:
            UserError: more tokens than `num_embeddings`.
        """
        assert references.control is not None, "each text has a control, be it of an image of zeros"
        control = self.embedding_control(references.control)
        return self.one_pass(references.placed(text), [control, self.embedding_proj(text.pooled), self.proj_in(noise)])

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
        references: References | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings for these texts, on the prior's device and in its dtype, without gradient.

        Args:
            features: CLIP text states of the words, mask and pooled embedding; padding may be anywhere and have any values.
            noise: the ε to use.
            generator: draws ε if there is no `noise`, on the generator's device; None means torch's global generator.
            references: the texts' subjects and controls: a control is the CLIP image embedding of a layout's edges. None is no subject;
                texts without a control get that of an image of zeros.

        Raises:
            UserError: both `noise` and `generator`; NaN or infinity; a wrong width; references to another number of texts; more tokens
                than `num_embeddings`; no control, and `zero_image` is not set.
        """
        text, drawn = self.inputs(features, noise, generator)
        found = References.none(len(text), drawn.shape[1]) if references is None else references
        self._check(found, text)
        if found.control is None:
            found = replace(found, control=self._zero_control().expand(len(text), -1))
        return self(text, drawn, found.to(drawn.device, drawn.dtype))

    def _check(self, references: References, text: PackedText) -> None:
        if len(references) != len(text):
            raise UserError(
                f"there are references of {len(references)} texts, and {counted(len(text), 'text')}: give them for each."
            )
        given = [("subjects", references.embeddings), ("controls", references.control)]
        for name, values in ((name, values) for name, values in given if values is not None):
            if values.shape[1] != self.config.embedding_dim:
                raise UserError(
                    f"the {name} are {values.shape[1]} wide, and this prior reads {self.config.embedding_dim}."
                )
            if not torch.isfinite(values).all():
                raise UserError(
                    f"the {name} hold NaN or infinity. Encode the images again, in fp32 if fp16 overflowed."
                )
        if references.control is not None and len(references.control) != len(text):
            raise UserError(
                f"there are {len(references.control)} controls for {counted(len(text), 'text')}: give one for each."
            )
        of_subject = torch.repeat_interleave(references.offsets.diff())
        lengths = text.lengths[of_subject].repeat_interleave(references.position_offsets.diff())
        if ((references.positions < 0) | (references.positions >= lengths)).any():
            raise UserError("a subject is at a position beyond its text: positions count a text's own tokens from 0.")

    def _zero_control(self) -> Float[Tensor, "1 D"]:
        if self.zero_image is None:
            raise UserError(
                "a λ-ECLIPSE prior needs a control: the CLIP image embedding of a layout's edges, or of an all-zero image "
                "(references=…). TextToImage and PriorPipeline provide the latter."
            )
        return self.zero_image()

    @classmethod
    def from_pretrained(
        cls: type[P], source: str | Path, *, local_files_only: bool = True, variant: str | None = None
    ) -> P:
        """Read the layout of the class strictly, into fp32.

        Args:
            source: the folder of a prior, of a finished training run or of a diffusers pipeline, or a hub id such as
                `ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0`, with `@` and a revision to fix that.
            local_files_only: look for hub ids in the hub's cache only; else download what is missing.
            variant: prefer weights of this variant, "fp16" or "bf16"; by default full precision.

        Raises:
            UserError: it is not found; missing, truncated or mismatched files; a setting that the class does not have; a prior of another
                kind.
        """
        folder = find_prior(source, local_files_only=local_files_only, variant=variant)
        values, tensors = read_prior(folder, cls.layout, variant)
        if not is_controlled(tensors):
            raise UserError(
                f"{folder} holds a prior without embedding_control (ECLIPSE or diffusion), not a λ-ECLIPSE prior such as "
                "ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0."
            )
        prior = cls(parse(cls.config_class, values, str(folder / CONFIG_FILE)))
        load_strictly(prior, tensors, folder)
        return prior
