"""Presets of the experiments: ECLIPSE, eDiff-I's experts, language models as text encoders."""

from syzygy.experts.routing import COMPLEMENT
from syzygy.lab.evaluate.text_encoder import TextEncoderConfig
from syzygy.lab.reproduce.eclipse_candidates import ReproduceRun
from syzygy.lab.reproduce.experts_candidates import ReproduceExpertsRun
from syzygy.lab.reproduce.prior_sweep_points import PriorSweepRun
from syzygy.lab.reproduce.text_encoder_candidates import ReproduceTextRun
from syzygy.lab.starter.presets import experts_full
from syzygy.lab.world.language import LANGUAGES
from syzygy.prior.diffusion_prior import DiffusionTaskConfig
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.presets import prior_eclipse, prior_flow
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.prior.training import PriorRun
from syzygy.text_encoders.presets import align_starter, image_starter, quality_starter
from syzygy.training.schedule import LoopConfig


def _small_prior() -> PriorRun:
    """The ECLIPSE prior of the comparisons: the paper's λ, on 20,000 pairs."""
    task = EclipseTaskConfig(batch_size=256, lambda_contrastive=0.2)
    loop = {"steps": 250, "warmup": 30, "validate_every": 25}
    return prior_eclipse().changed(scenes=20_000, task=task, loop=loop)


def reproduce_full() -> ReproduceRun:
    """ECLIPSE's comparison at a small scale, in 100 minutes with one thread on one core when it validated ten times as often.

    Validation is not part of the comparison, and that of the diffusion baseline (25 guided steps) took longer than its training.
    """
    prior = _small_prior().changed(loop={"validate_every": 250})
    size = prior.task.batch_size
    flow = prior_flow().changed(task={"batch_size": size}).task
    assert isinstance(flow, DiffusionTaskConfig)
    return ReproduceRun(
        prior=prior,
        diffusion=DiffusionTaskConfig(batch_size=size),
        flow=flow,
        residual=ResidualTaskConfig(batch_size=size),
    )


def reproduce_quick() -> ReproduceRun:
    """A shortened comparison, in eight minutes on two CPU cores."""
    return reproduce_full().changed(
        prior={"scenes": 8000, "loop": {"steps": 120, "warmup": 20, "validate_every": 60}},
        seeds=2,
        painted_seeds=1,
        prompts=25,
        varied_prompts=4,
        variations=3,
        probe_scenes=8000,
        pairs=2000,
        lambdas=(0.0, 0.2, 0.8),
        fractions=(0.1, 1.0),
        sampling_steps=(5, 25),
        etas=(0.0, 1.0),
        sweep_seeds=1,
    )


def prior_sweep_full() -> PriorSweepRun:
    """The learning curves and sweeps of priors on embeddings, in hours on one core (the command estimates them before it starts)."""
    prior = _small_prior()
    return PriorSweepRun(prior=prior, residual=ResidualTaskConfig(batch_size=prior.task.batch_size))


def prior_sweep_quick() -> PriorSweepRun:
    """A shortened sweep: it tests that everything works, and its intervals are wide."""
    return prior_sweep_full().changed(
        prior={"loop": {"steps": 60, "warmup": 10}},
        pairs=(200, 2000),
        at=(2000,),
        lambdas=(0.2, 0.8),
        penalties=(0.0, 1.0),
        steps=(30, 60),
        temperatures=("clip", 0.2),
        muon_lrs=(0.0, 3e-3),
        ridges=(1e-3, 1e-1),
        seeds=2,
        prompts=25,
        unseen_pairs=1000,
        probe_scenes=4000,
    )


def reproduce_experts_full() -> ReproduceExpertsRun:
    """The experts' comparison at a small scale, in an estimated two hours with one thread on one core.

    The paper's E9_511 begins at σ 9.6 and serves 9 of 25 steps. With this decoder's training noise, which is higher, it would begin at 58 and
    serve 2; E3_7 is the node that begins at 7.2. Leaves start from the decoder at once: with one training per level, most of so small a
    budget would go into nodes that are not kept. The learning rate is low, because the decoder's own training ended at 0 and short trainings
    at a higher one only make it worse.
    """
    loop = {"lr": 5e-5, "steps": 300, "warmup": 30, "ema_half_life": 30.0, "validate_every": 0}
    leaves = ("E3_0", COMPLEMENT, "E3_7")
    return ReproduceExpertsRun(experts=experts_full().changed(leaves=leaves, every_level=False, loop=loop))


def reproduce_experts_quick() -> ReproduceExpertsRun:
    """A shortened comparison: it tests that everything works, and shows nothing about experts."""
    experts = {"loop": {"steps": 20, "warmup": 2, "ema_half_life": 2.0}}
    return reproduce_experts_full().changed(experts=experts, seeds=1, prompts=5, steps=10, pictures=128)


def reproduce_text_encoder_full() -> ReproduceTextRun:
    """The comparison of stages and layers at a small scale. Stages are shorter than the starter's, because there are sixteen trainings.

    The prior is frozen, so that all candidates use the same one.
    """
    scenes = {"scenes": 6000, "validation_images": 64}
    return ReproduceTextRun(
        align=align_starter().changed(loop=_brief(steps=400, lr=1e-3)),
        image=image_starter().changed(loop=_brief(steps=200, lr=4e-4), **scenes),
        quality=quality_starter().changed(loop=_brief(steps=50, lr=1e-4), **scenes),
        scoring=TextEncoderConfig(languages=tuple(LANGUAGES), captions=128, prompts=2, conditions=("image",)),
    )


def reproduce_text_encoder_quick() -> ReproduceTextRun:
    """A shortened comparison: it tests that everything works, and shows nothing about stages or layers."""
    return reproduce_text_encoder_full().changed(
        align={"loop": _brief(steps=20, lr=1e-3)},
        image={"scenes": 500, "loop": _brief(steps=10, lr=4e-4)},
        quality={"scenes": 500, "loop": _brief(steps=5, lr=1e-4)},
        probe_scenes=2000,
        seeds=1,
        scoring={"languages": ("en", "de", "zh"), "captions": 32},
    )


def _brief(*, steps: int, lr: float) -> LoopConfig:
    """A loop without validation: the result is measured afterwards."""
    warmup, checkpoint = steps // 20, steps // 10
    half_life = min(20, steps / 10)
    return LoopConfig(
        steps=steps, lr=lr, warmup=warmup, grad_clip=1.0, ema_half_life=half_life, checkpoint_every=checkpoint
    )


ECLIPSE = {"full": reproduce_full, "quick": reproduce_quick}
PRIOR_SWEEP = {"full": prior_sweep_full, "quick": prior_sweep_quick}
EXPERTS = {"full": reproduce_experts_full, "quick": reproduce_experts_quick}
TEXT_ENCODER = {"full": reproduce_text_encoder_full, "quick": reproduce_text_encoder_quick}
