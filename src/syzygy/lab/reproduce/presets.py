"""Runs of several parts: the starter, the demo, the comparisons."""

from syzygy.decoder.network import UNetConfig
from syzygy.experts.routing import COMPLEMENT
from syzygy.lab.demo import DemoRun
from syzygy.lab.evaluate.composition import CompositionConfig
from syzygy.lab.evaluate.text_encoder import TextEncoderConfig
from syzygy.lab.reproduce.eclipse_candidates import ReproduceRun
from syzygy.lab.reproduce.experts_candidates import ReproduceExpertsRun
from syzygy.lab.reproduce.text_encoder_candidates import ReproduceTextRun
from syzygy.lab.starter.image_presets import (
    autoencoder_starter,
    clip_starter,
    decoder_binding,
    decoder_colours,
    decoder_finish,
    decoder_more_binding,
    decoder_more_colours,
    decoder_starter,
    decoder_words,
    experts_full,
    reader_starter,
)
from syzygy.lab.starter.starter_training import StarterRun
from syzygy.lab.starter.text_presets import lm_starter, t5_starter
from syzygy.lab.world.language import LANGUAGES
from syzygy.prior.objectives import DiffusionTaskConfig
from syzygy.prior.presets import prior_starter
from syzygy.text_encoders.presets import align_starter, image_starter, quality_starter
from syzygy.training.schedule import LoopConfig


def starter_cpu() -> StarterRun:
    """The starter on two CPU cores, in about eight hours: an estimate from its stages, which were trained on their own, beside other work."""
    return StarterRun(
        clip=clip_starter(),
        reader=reader_starter(),
        autoencoder=autoencoder_starter(),
        decoder=decoder_starter(),
        t5=t5_starter(),
        words=decoder_words(),
        colours=decoder_colours(),
        more_colours=decoder_more_colours(),
        binding=decoder_binding(),
        more_binding=decoder_more_binding(),
        finish=decoder_finish(),
        prior=prior_starter(),
        llm=lm_starter(),
        align=align_starter(),
        image=image_starter(),
        quality=quality_starter(),
    )


def starter_gpu() -> StarterRun:
    """The starter on one H200, in four sittings of ten minutes: clip, reader, autoencoder; decoder, prior; t5 to finish; llm to quality.

    An estimate, not yet run. What bounds it is making scenes (about 0.2 ms a pair on one core), not the GPU. The
    decoder has 7.0M parameters, 14 MB in fp16.
    """
    clip, decoder, prior = clip_starter(), decoder_starter(), prior_starter()
    wider = UNetConfig(channels=(64, 128, 128), attention=(False, True, True))
    return StarterRun(
        clip=clip.model_copy(
            update={
                "task": clip.task.model_copy(update={"batch_size": 2048}),
                "loop": clip.loop.model_copy(update={"steps": 700, "lr": 8e-4, "warmup": 150}),
            }
        ),
        reader=reader_starter(),
        autoencoder=autoencoder_starter(),
        decoder=decoder.model_copy(
            update={
                "backbone": wider,
                "task": decoder.task.model_copy(update={"batch_size": 1024}),
                "loop": decoder.loop.model_copy(update={"steps": 2000, "lr": 1e-3}),
            }
        ),
        t5=t5_starter(),
        **{
            name: run.model_copy(
                update={
                    "backbone": wider,
                    "task": run.task.model_copy(update={"batch_size": 1024}),
                    "loop": run.loop.model_copy(update={"steps": steps}),
                }
            )
            for name, run, steps in (
                ("words", decoder_words(), 1500),
                ("colours", decoder_colours(), 200),
                ("more_colours", decoder_more_colours(), 300),
                ("binding", decoder_binding(), 300),
                ("more_binding", decoder_more_binding(), 400),
                ("finish", decoder_finish(), 400),
            )
        },
        prior=prior.model_copy(
            update={
                "scenes": 50_000,
                "task": prior.task.model_copy(update={"batch_size": 512}),
                "loop": prior.loop.model_copy(update={"steps": 1500, "warmup": 150}),
            }
        ),
        llm=lm_starter(),
        align=align_starter(),
        image=image_starter(),
        quality=quality_starter(),
    )


def demo_full() -> DemoRun:
    """The demo: at most five minutes on two CPU cores. Validation of so small a prior stands still after 150 steps."""
    run = prior_starter()
    loop = run.loop.model_copy(update={"steps": 250, "warmup": 30, "validate_every": 25})
    return DemoRun(prior=run.model_copy(update={"scenes": 20_000, "loop": loop}))


def demo_quick() -> DemoRun:
    """A shortened demo that shows only that everything works: its prior learns next to nothing."""
    few = prior_starter()
    loop = few.loop.model_copy(update={"steps": 40, "warmup": 5, "validate_every": 20, "checkpoint_every": 20})
    small = few.model_copy(update={"scenes": 1000, "validation_images": 128, "loop": loop})
    return DemoRun(prior=small, scoring=CompositionConfig(prompts=1, steps=6), shown_steps=8)


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
        scoring=TextEncoderConfig(languages=tuple(LANGUAGES), captions=128, prompts=2, conditions=("image",)),
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
    """A training that is never validated: what comes out of it is measured afterwards."""
    return LoopConfig(
        steps=steps,
        lr=lr,
        warmup=steps // 20,
        grad_clip=1.0,
        ema_half_life=min(20, steps / 10),
        validate_every=0,
        checkpoint_every=steps // 10,
    )
