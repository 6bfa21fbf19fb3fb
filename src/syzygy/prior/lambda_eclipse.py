"""The λ-ECLIPSE prior (arXiv 2402.05195): a prompt whose words stand for pictures, and the edges of a layout → an image embedding.

Legend: B captions, D width of CLIP's joint space.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.prior_folders import PUBLISHED, find_prior, is_controlled, read_prior
from syzygy.prior.prior_network import PriorConfig, PriorNetwork


class LambdaEclipsePriorConfig(PriorConfig):
    """The published `config.json` of a λ-ECLIPSE prior."""

    additional_embeddings: Literal[4] = 4
    """Tokens after the text: control, pooled text embedding, noise, learned output token."""


class LambdaEclipsePrior(PriorNetwork):
    """Text features and a control → raw CLIP image embedding in one forward pass (λ-ECLIPSE, and the authors' code).

    The network is that of `EclipsePrior` with one token more, the control: the CLIP image embedding of a layout's edges. Where a word of
    the prompt stands for a picture (a subject), the text states have the picture's CLIP image embedding at the positions of the word's
    tokens; the pooled text embedding remains that of the words. `generation.subjects` puts them there.

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

    def forward(
        self, text: PackedText, noise: Float[Tensor, "B D"], control: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B D"]:
        """The differentiable pass, for training: inputs are taken as they are, on the prior's device and in its dtype. See `predict`.

        Raises:
            UserError: more tokens than `num_embeddings`.
        """
        following = [self.embedding_control(control), self.embedding_proj(text.pooled), self.proj_in(noise)]
        return self.one_pass(text, following)

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
        control: Float[Tensor, "_ D"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings for these texts, on the prior's device and in its dtype, without gradient.

        Args:
            features: CLIP text states, with the embeddings of subjects in their places, mask and pooled embedding; padding may be
                anywhere and have any values.
            noise: the ε to use.
            generator: draws ε if there is no `noise`, on the generator's device; None means torch's global generator.
            control: the CLIP image embedding of a layout's edges, one for all texts or one for each; None is that of an image of zeros.

        Raises:
            UserError: both `noise` and `generator`; NaN or infinity; a wrong width; more tokens than `num_embeddings`; no control, and
                `zero_image` is not set.
        """
        text, drawn = self.inputs(features, noise, generator)
        if control is None:
            control = self._zero_control()
        if control.shape[1] != self.config.embedding_dim or len(control) not in (1, len(features)):
            raise UserError(
                f"the control has shape {tuple(control.shape)}; (1, {self.config.embedding_dim}) is needed, or a row for each of "
                f"{len(features)} texts."
            )
        if not torch.isfinite(control).all():
            raise UserError("the control holds NaN or infinity. Encode the layout again, in fp32 if fp16 overflowed.")
        return self(text, drawn, control.to(drawn).expand(len(features), -1))

    def _zero_control(self) -> Float[Tensor, "1 D"]:
        if self.zero_image is None:
            raise UserError(
                "a λ-ECLIPSE prior needs a control: the CLIP image embedding of a layout's edges, or of an all-zero image "
                "(control=…). TextToImage and PriorPipeline provide the latter."
            )
        return self.zero_image()

    @staticmethod
    def from_pretrained(
        source: str | Path, *, local_files_only: bool = True, variant: str | None = None
    ) -> "LambdaEclipsePrior":
        """Read the published layout (`config.json`, `diffusion_pytorch_model.safetensors`) strictly, into fp32.

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
        values, tensors = read_prior(folder, PUBLISHED, variant)
        if not is_controlled(tensors):
            raise UserError(
                f"{folder} holds a prior without embedding_control (ECLIPSE or diffusion), not a λ-ECLIPSE prior such as "
                "ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0."
            )
        prior = LambdaEclipsePrior(parse(LambdaEclipsePriorConfig, values, str(folder / CONFIG_FILE)))
        load_strictly(prior, tensors, folder)
        return prior
