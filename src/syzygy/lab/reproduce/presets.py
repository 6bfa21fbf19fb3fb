"""Presets of the comparisons: ECLIPSE, eDiff-I's experts, language models as text encoders."""

from syzygy.experts.routing import COMPLEMENT
from syzygy.lab.demo import demo_full
from syzygy.lab.evaluate.text_encoder import TextScoring
from syzygy.lab.reproduce.eclipse_experiment import ReproduceRun
from syzygy.lab.reproduce.experts_candidates import ReproduceExpertsRun
from syzygy.lab.reproduce.text_encoder_candidates import ReproduceTextRun
from syzygy.lab.starter.presets import experts_full
from syzygy.lab.world.language import LANGUAGES
from syzygy.prior.diffusion_prior import DiffusionTaskConfig
from syzygy.text_encoders.presets import align_starter, image_starter, quality_starter
from syzygy.training.schedule import LoopConfig


def reproduce_full() -> ReproduceRun:
    """ECLIPSE's comparison in small: 100 minutes with one thread on one core, when it still validated ten times as often.

    Validation is no part of the comparison, and that of the diffusion baseline (25 guided steps) took longer than its training.
    """
    prior = demo_full().prior
    prior = prior.model_copy(update={"loop": prior.loop.model_copy(update={"validate_every": 250})})
    return ReproduceRun(prior=prior, diffusion=DiffusionTaskConfig(batch_size=prior.task.batch_size))


def reproduce_quick() -> ReproduceRun:
    """A shortened comparison: eight minutes on two CPU cores."""
    full = reproduce_full()
    loop = full.prior.loop.model_copy(update={"steps": 120, "warmup": 20, "validate_every": 60})
    return full.model_copy(
        update={
            "prior": full.prior.model_copy(update={"scenes": 8000, "loop": loop}),
            "seeds": 2,
            "painted_seeds": 1,
            "prompts": 25,
            "probe_scenes": 8000,
            "pairs": 2000,
            "lambdas": (0.0, 0.2, 0.8),
            "fractions": (0.1, 1.0),
            "sampling_steps": (5, 25),
            "etas": (0.0, 1.0),
            "sweep_seeds": 1,
        }
    )


def reproduce_experts_full() -> ReproduceExpertsRun:
    """The experts' comparison in small. An estimate of its time: two hours with one thread on one core.

    The paper's E9_511 begins at σ 9.6 and serves 9 of 25 steps. Cut from this decoder's noise, which lies higher, it would begin at 65 and
    serve 2; E3_7 is the place in the tree that begins at 8.8. Leaves start from the decoder at once: with a level at a time, most of so
    small a budget would go into nodes that are thrown away. The rate is low, as the decoder's own training ended at none: short trainings at
    a higher one only lose.
    """
    experts = experts_full()
    times = {"steps": 300, "warmup": 30, "ema_half_life": 30.0, "validate_every": 0}
    loop = experts.loop.model_copy(update={"lr": 5e-5, **times})
    leaves = ("E3_0", COMPLEMENT, "E3_7")
    return ReproduceExpertsRun(
        experts=experts.model_copy(update={"leaves": leaves, "every_level": False, "loop": loop})
    )


def reproduce_experts_quick() -> ReproduceExpertsRun:
    """A shortened comparison: it shows that everything works, and nothing about experts."""
    full = reproduce_experts_full()
    loop = full.experts.loop.model_copy(update={"steps": 20, "warmup": 2, "ema_half_life": 2.0})
    experts = full.experts.model_copy(update={"loop": loop})
    return full.model_copy(update={"experts": experts, "seeds": 1, "prompts": 5, "steps": 10, "pictures": 128})


def reproduce_text_encoder_full() -> ReproduceTextRun:
    """The comparison of stages and layers in small; stages are shorter than the starter's, as there are sixteen trainings.

    The prior stays as it is, so that all candidates speak to the same one.
    """
    image, quality = image_starter(), quality_starter()
    scenes = {"scenes": 6000, "validation_images": 64}
    return ReproduceTextRun(
        align=align_starter().model_copy(update={"loop": _brief(steps=400, lr=1e-3)}),
        image=image.model_copy(update=scenes | {"loop": _brief(steps=200, lr=4e-4)}),
        quality=quality.model_copy(update=scenes | {"loop": _brief(steps=50, lr=1e-4)}),
        scoring=TextScoring(languages=tuple(LANGUAGES), captions=128, prompts=2, conditions=("image",)),
    )


def reproduce_text_encoder_quick() -> ReproduceTextRun:
    """A shortened comparison: it shows that everything works, and nothing about stages or layers."""
    full = reproduce_text_encoder_full()
    return full.model_copy(
        update={
            "align": full.align.model_copy(update={"loop": _brief(steps=20, lr=1e-3)}),
            "image": full.image.model_copy(update={"scenes": 500, "loop": _brief(steps=10, lr=4e-4)}),
            "quality": full.quality.model_copy(update={"scenes": 500, "loop": _brief(steps=5, lr=1e-4)}),
            "probe_scenes": 2000,
            "seeds": 1,
            "scoring": full.scoring.model_copy(update={"languages": ("en", "de", "zh"), "captions": 32}),
        }
    )


def _brief(*, steps: int, lr: float) -> LoopConfig:
    """A loop without validation: the result is measured afterwards."""
    warmup, checkpoint = steps // 20, steps // 10
    half_life = min(20, steps / 10)
    return LoopConfig(
        steps=steps, lr=lr, warmup=warmup, grad_clip=1.0, ema_half_life=half_life, checkpoint_every=checkpoint
    )


ECLIPSE = {"full": reproduce_full, "quick": reproduce_quick}
EXPERTS = {"full": reproduce_experts_full, "quick": reproduce_experts_quick}
TEXT_ENCODER = {"full": reproduce_text_encoder_full, "quick": reproduce_text_encoder_quick}
