"""Presets of priors: the starter's; small ones of every kind, for comparisons; ECLIPSE and residual priors for published decoders."""

from typing import Any

from syzygy.prior.diffusion_prior import DiffusionTaskConfig, PriorSampling
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.lambda_residual import LambdaResidualTaskConfig
from syzygy.prior.lambda_training import LambdaEclipseTaskConfig
from syzygy.prior.linear_prior import LinearRun
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.prior.training import PriorRun
from syzygy.training.schedule import LoopConfig


def prior_starter() -> PriorRun:
    """The starter's prior: a residual prior of 3.4M parameters on 200,000 pairs, in about 20 minutes on one CPU core.

    Smaller priors read two objects less often, whatever their loss and number of pairs (docs/LOG.md). The small penalty lets the correction
    be large: a larger one keeps more of unseen compositions and less of seen ones.
    """
    return PriorRun(
        num_layers=4,
        num_attention_heads=8,
        scenes=200_000,
        task=ResidualTaskConfig(batch_size=256, penalty=0.25, precision="bf16"),
        loop=_loop(1000, warmup=40, validate_every=250, optimizer="muon", muon_lr=3e-3),
    )


def prior_lambda() -> PriorRun:
    """A λ-ECLIPSE prior of the starter prior's size, in about 30 minutes on one CPU core: 7 to embed pairs, then 1,800 steps."""
    task = LambdaEclipseTaskConfig(batch_size=256, lambda_contrastive=0.2, controlled=0.2, precision="bf16")
    return prior_starter().changed(scenes=60_000, task=task, loop={"steps": 1800})


def prior_lambda_residual() -> PriorRun:
    """A residual λ prior of the starter prior's size, in about ten minutes on one CPU core: 6 to embed pairs, then 400 steps."""
    task = LambdaResidualTaskConfig(batch_size=256, controlled=0.2, precision="bf16")
    return prior_lambda().changed(task=task, loop={"steps": 400})


def prior_eclipse() -> PriorRun:
    """A small ECLIPSE prior, in four minutes on two CPU cores."""
    task = EclipseTaskConfig(batch_size=256, lambda_contrastive=0.2)
    return PriorRun(scenes=40_000, task=task, loop=_loop(600, warmup=60, validate_every=100))


def _loop(steps: int, **settings: Any) -> LoopConfig:
    """A training of minutes."""
    return LoopConfig(steps=steps, lr=1e-3, grad_clip=1.0, ema_half_life=20, checkpoint_every=100, **settings)


def prior_diffusion() -> PriorRun:
    """The diffusion baseline: size, pairs, steps and learning rate of the small ECLIPSE prior, sampled in 25 steps."""
    return prior_eclipse().changed(task=DiffusionTaskConfig(batch_size=256))


def prior_flow() -> PriorRun:
    """A flow-matching baseline: as the diffusion baseline, but with straight lines from noise to embedding."""
    sampling = PriorSampling(eta=0.0)
    return prior_eclipse().changed(task=DiffusionTaskConfig(batch_size=256, schedule="flow", sampling=sampling))


def prior_residual() -> PriorRun:
    """A small residual prior: size, pairs, steps and learning rate of the small ECLIPSE prior."""
    return prior_eclipse().changed(task=ResidualTaskConfig(batch_size=256))


def prior_linear() -> LinearRun:
    """The linear map on as many pairs as the small ECLIPSE prior, in closed form."""
    return LinearRun(scenes=40_000)


def _prior_eclipse(embedding_dim: int) -> PriorRun:
    """ECLIPSE as published (arXiv 2312.04655 with its supplement), on an embedding store.

    The paper specifies 10 layers of 16 heads × 32, λ 0.2, learning rate 5e-5, cosine annealing with warm restarts, 4 × 256
    captions per step, about 60,000 steps. It does not specify the following, which we chose:

    - temperature: the frozen CLIP's own;
    - projection loss: the mean over dimensions, not the sum (λ is relative to it);
    - negatives: all captions of the step, over all processes (they cost nothing, because texts are frozen);
    - period of the restarts: 10,000 steps, so six in total; warm-up: 500 steps, because bf16 needs a gentle start;
    - weight decay: 0.01, the usual value of AdamW; clipping at norm 1, which guards 60,000 steps against one bad batch;
    - averaged weights: half-life of 500 steps; they validate better than the last weights and cost one pass over the weights.
    """
    return PriorRun(
        num_layers=10,
        num_attention_heads=16,
        attention_head_dim=32,
        embedding_dim=embedding_dim,
        scenes=None,
        validation_images=4096,
        task=EclipseTaskConfig(batch_size=1024, lambda_contrastive=0.2, precision="auto"),
        loop=LoopConfig(
            steps=60_000,
            lr=5e-5,
            warmup=500,
            schedule="cosine-restarts",
            restart_every=10_000,
            weight_decay=0.01,
            grad_clip=1.0,
            ema_half_life=500,
            validate_every=1000,
            checkpoint_every=1000,
            keep_checkpoints=2,
            best="max cosine",
        ),
    )


def prior_eclipse_kandinsky22() -> PriorRun:
    """ECLIPSE for Kandinsky 2.2 (CLIP ViT-bigG/14, embeddings of 1280): 34.2M parameters."""
    return _prior_eclipse(1280)


def prior_eclipse_karlo() -> PriorRun:
    """ECLIPSE for Karlo (CLIP ViT-L/14, embeddings of 768): 33.1M parameters."""
    return _prior_eclipse(768)


def prior_lambda_kandinsky22() -> PriorRun:
    """λ-ECLIPSE for Kandinsky 2.2 (34.8M parameters), on a store with subjects and edges.

    The paper trains with ECLIPSE's loss and λ 0.2. It specifies neither batch, learning rate nor the share of captions with a control:
    those are ECLIPSE's, and half.
    """
    return _prior_eclipse(1280).changed(task=LambdaEclipseTaskConfig(batch_size=1024, precision="auto"))


def prior_lambda_residual_kandinsky22() -> PriorRun:
    """A residual λ prior for Kandinsky 2.2, of λ-ECLIPSE's size and schedule; penalty and emphasis are those of the small one."""
    return _prior_eclipse(1280).changed(task=LambdaResidualTaskConfig(batch_size=1024, precision="auto"))


def _prior_residual(embedding_dim: int) -> PriorRun:
    """A residual prior of ECLIPSE's size and schedule; λ and penalty are those of the small one."""
    return _prior_eclipse(embedding_dim).changed(task=ResidualTaskConfig(batch_size=1024, precision="auto"))


def prior_residual_kandinsky22() -> PriorRun:
    """A residual prior for Kandinsky 2.2 (CLIP ViT-bigG/14, embeddings of 1280)."""
    return _prior_residual(1280)


def prior_residual_karlo() -> PriorRun:
    """A residual prior for Karlo (CLIP ViT-L/14, embeddings of 768)."""
    return _prior_residual(768)


PRESETS = {
    "starter": prior_starter,
    "eclipse": prior_eclipse,
    "diffusion": prior_diffusion,
    "flow": prior_flow,
    "lambda-eclipse": prior_lambda,
    "lambda-eclipse-residual": prior_lambda_residual,
    "linear": prior_linear,
    "eclipse-residual": prior_residual,
    "eclipse-kandinsky22": prior_eclipse_kandinsky22,
    "eclipse-karlo": prior_eclipse_karlo,
    "lambda-eclipse-kandinsky22": prior_lambda_kandinsky22,
    "lambda-eclipse-residual-kandinsky22": prior_lambda_residual_kandinsky22,
    "eclipse-residual-kandinsky22": prior_residual_kandinsky22,
    "eclipse-residual-karlo": prior_residual_karlo,
}
"""Presets of `syzygy train prior`. For embeddings of a new width, name their CLIP or generator in `pretrained.decoder_validation.CLIPS`,
`generation.prior_pipeline.CLIPS`, `prior.export_prior.GENERATORS` and `prior.next_steps.MODELS` as well."""
