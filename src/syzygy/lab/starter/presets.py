"""Presets of the starter's parts: CLIP, reader, autoencoder, decoder and its experts, T5, language model; and of all of it."""

from syzygy.clip.clip_model import ClipConfig
from syzygy.clip.training import ClipTaskConfig
from syzygy.decoder.autoencoder import AutoencoderConfig
from syzygy.decoder.autoencoder_task import AutoencoderTaskConfig
from syzygy.decoder.network import UNetConfig
from syzygy.decoder.noise_levels import LogNormal
from syzygy.decoder.training import DecoderTaskConfig, independent_dropout
from syzygy.lab.starter.adapted_decoder_training import AdapterDecoderRun
from syzygy.lab.starter.autoencoder_training import AutoencoderRun
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.decoder_training import DecoderRun
from syzygy.lab.starter.experts_training import ExpertsRun
from syzygy.lab.starter.lm_training import LmConfig, LmRun, LmTaskConfig
from syzygy.lab.starter.reader_training import ReaderRun, ReaderTaskConfig
from syzygy.lab.starter.starter_training import StarterRun
from syzygy.lab.starter.t5_training import T5Run, T5TaskConfig
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.reader import ReaderConfig
from syzygy.prior.presets import prior_starter
from syzygy.text_encoders.presets import align_starter, image_starter, quality_starter, short_loop
from syzygy.text_encoders.t5 import T5Config
from syzygy.training.schedule import LoopConfig


def clip_starter() -> ClipRun:
    """The starter's CLIP on two CPU cores: about 40 minutes."""
    return ClipRun(
        clip=ClipConfig(),
        task=ClipTaskConfig(batch_size=256, hard_negatives=1.0),
        loop=LoopConfig(
            steps=2600,
            lr=6e-4,
            warmup=300,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            grad_clip=1.0,
            ema_half_life=30,
            validate_every=100,
            checkpoint_every=100,
        ),
    )


def autoencoder_starter() -> AutoencoderRun:
    """The starter's autoencoder on two CPU cores: about ten minutes."""
    return AutoencoderRun(
        autoencoder=AutoencoderConfig(),
        task=AutoencoderTaskConfig(batch_size=32),
        loop=LoopConfig(
            steps=3000,
            lr=2e-3,
            warmup=100,
            betas=(0.9, 0.99),
            grad_clip=1.0,
            ema_half_life=50,
            validate_every=250,
            checkpoint_every=250,
        ),
    )


def decoder_starter() -> DecoderRun:
    """The starter's decoder on two CPU cores: about 85 minutes.

    The noise levels lie where the picture is decided: an object's place and shape drown at σ = 1 to 5 of the latents'
    unit variance.
    """
    return DecoderRun(
        backbone=UNetConfig(channels=(64, 96, 128), attention=(False, True, True)),
        image_tokens=8,
        task=DecoderTaskConfig(
            batch_size=32,
            noise=LogNormal(p_mean=0.4, p_std=1.2),
            subsets={"image": 0.55, "text": 0.1, "image+text": 0.27, "": 0.08},
        ),
        loop=LoopConfig(
            steps=14_000,
            lr=8e-4,
            warmup=300,
            betas=(0.9, 0.99),
            grad_clip=1.0,
            ema_half_life=250,
            validate_every=1000,
            checkpoint_every=500,
        ),
    )


def decoder_words() -> DecoderRun:
    """The starter's decoder taught to read words (`--t5 FOLDER --init starter`).

    A quarter of the samples have T5's states alone, which no pooled vector sums up, so that single words must come through
    cross-attention. A third of the scenes show just what is told. In most samples the words for objects are painted where these
    are. Noise is where the picture is decided.
    """
    run = decoder_starter()
    subsets = {"t5": 0.25, "text": 0.2, "text+t5": 0.15, "image+text+t5": 0.2, "image": 0.1, "": 0.1}
    task = {"subsets": subsets, "painted": 0.65, "strengths": (0.3, 3.0), "noise": LogNormal(p_mean=0.8, p_std=1.1)}
    return run.model_copy(
        update={
            "medium_captions": 0.1,
            "long_captions": 0.05,
            "just_told": 0.35,
            "fresh_attention": True,
            "task": run.task.model_copy(update=task),
            "loop": run.loop.model_copy(update={"steps": 9000, "validate_every": 500}),
        }
    )


def decoder_colours() -> DecoderRun:
    """The decoder of preset `words` taught colours through its words (`--t5 FOLDER --init FOLDER/decoder`).

    Colours had always come through the pooled vectors, which are the picture's as a whole; attention told shapes and places alone
    (docs/LOG.md). Here scenes show just what is told, nearly all samples have T5's states alone, and noise is where colours are decided.
    """
    return _after_words(
        subsets={"t5": 0.8, "image+text+t5": 0.12, "image": 0.08},
        noise=LogNormal(p_mean=1.4, p_std=1.0),
        just_told=1.0,
        steps=1500,
    )


def decoder_more_colours() -> DecoderRun:
    """Preset `colours` again, for longer: at its end colours were still being learned (`--t5 FOLDER --init FOLDER/decoder`)."""
    run = decoder_colours()
    return run.model_copy(update={"seed": 1, "loop": run.loop.model_copy(update={"steps": 2500})})


def decoder_binding() -> DecoderRun:
    """The decoder of preset `more-colours` brought back to all its conditions (`--t5 FOLDER --init FOLDER/decoder`)."""
    return _after_words(
        subsets={"t5": 0.28, "text+t5": 0.22, "text": 0.1, "image+text+t5": 0.2, "image": 0.12, "": 0.08},
        noise=LogNormal(p_mean=0.9, p_std=1.15),
        just_told=0.5,
        steps=3000,
    )


def decoder_more_binding() -> DecoderRun:
    """Preset `binding` once more, for longer and with more scenes that show just what is told (`--t5 FOLDER --init FOLDER/decoder`)."""
    run = _after_words(
        subsets={"t5": 0.25, "text+t5": 0.2, "text": 0.08, "image+text+t5": 0.27, "image": 0.12, "": 0.08},
        noise=LogNormal(p_mean=0.9, p_std=1.15),
        just_told=0.6,
        steps=4000,
    )
    return run.model_copy(update={"seed": 2})


def decoder_finish() -> DecoderRun:
    """The last round of the same at a lower rate: textures and colours were still being learned (`--t5 FOLDER --init FOLDER/decoder`)."""
    run = decoder_more_binding()
    task = run.task.model_copy(update={"noise": LogNormal(p_mean=0.85, p_std=1.15)})
    return run.model_copy(update={"seed": 3, "task": task, "loop": run.loop.model_copy(update={"lr": 6e-4})})


def _after_words(*, subsets: dict[str, float], noise: LogNormal, just_told: float, steps: int) -> DecoderRun:
    run = decoder_words()
    task = {"subsets": subsets, "painted": 0.75, "noise": noise}
    captions = {"medium_captions": 0.0, "long_captions": 0.0} if just_told == 1 else {"medium_captions": 0.08}
    loop = {"steps": steps, "warmup": 50, "ema_half_life": 80, "validate_every": 250, "checkpoint_every": 250}
    return run.model_copy(
        update={
            **captions,
            "just_told": just_told,
            "fresh_attention": False,
            "task": run.task.model_copy(update=task),
            "loop": run.loop.model_copy(update=loop),
        }
    )


def decoder_ediff() -> DecoderRun:
    """eDiff-I's own settings (`--t5 FOLDER`): each embedding is dropped on its own, the noise is EDM's. An image embedding alone then comes in
    .4 % of the samples, so that a prior's pictures suffer; the rates are recalled, not read (arXiv 2211.01324, section 4.1).
    """
    run = decoder_starter()
    task = run.task.model_copy(
        update={
            "noise": LogNormal(p_mean=-1.2, p_std=1.2),
            "subsets": independent_dropout({"image": 0.9, "text": 0.2, "t5": 0.2}),
        }
    )
    return run.model_copy(update={"task": task})


def experts_full() -> ExpertsRun:
    """The paper's three experts on the starter's decoder, as full networks: 13 nodes of a minute and a half on two CPU cores."""
    decoder = decoder_starter()
    loop = decoder.loop.model_copy(update={"steps": 200, "lr": 2e-4, "warmup": 20, "ema_half_life": 25.0})
    return ExpertsRun(task=decoder.task, loop=loop.model_copy(update={"validate_every": 100, "checkpoint_every": 100}))


def reader_starter() -> ReaderRun:
    """The starter's reader on two CPU cores: about ten minutes."""
    return ReaderRun(
        reader=ReaderConfig(),
        task=ReaderTaskConfig(batch_size=64),
        loop=LoopConfig(
            steps=1500,
            lr=2e-3,
            warmup=100,
            weight_decay=0.01,
            grad_clip=5.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )


def t5_starter() -> T5Run:
    """The starter's T5: an encoder of 0.9M, pre-trained on captions of all lengths; 25 minutes on one CPU core."""
    return T5Run(
        t5=T5Config(),
        task=T5TaskConfig(batch_size=64),
        loop=LoopConfig(
            steps=2000,
            lr=3e-3,
            warmup=100,
            grad_clip=1.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )


def lm_starter() -> LmRun:
    """The starter's language model: 2.4M, on captions of all lengths in all languages of the world; an estimated half hour on one CPU core."""
    return LmRun(
        lm=LmConfig(),
        languages=tuple(LANGUAGES),
        task=LmTaskConfig(),
        loop=LoopConfig(
            steps=2000,
            lr=3e-3,
            warmup=100,
            weight_decay=0.01,
            grad_clip=1.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )


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


def adapter_decoder_starter() -> AdapterDecoderRun:
    """The starter's adapter and decoder on images of the embedded world, instead of stage image with the prior. Not yet run at this size."""
    subsets = {"text": 0.5, "image+text": 0.3, "image": 0.12, "": 0.08}
    task = DecoderTaskConfig(batch_size=32, noise=LogNormal(p_mean=0.4, p_std=1.2), subsets=subsets)
    return AdapterDecoderRun(lengths=("short", "short", "medium"), task=task, loop=short_loop(steps=1000, lr=2e-4))


CLIP = {"starter": clip_starter}
READER = {"starter": reader_starter}
AUTOENCODER = {"starter": autoencoder_starter}
DECODER = {
    "starter": decoder_starter,
    "words": decoder_words,
    "colours": decoder_colours,
    "more-colours": decoder_more_colours,
    "binding": decoder_binding,
    "more-binding": decoder_more_binding,
    "finish": decoder_finish,
    "ediff-i": decoder_ediff,
}
T5 = {"starter": t5_starter}
LM = {"starter": lm_starter}
STARTER = {"cpu": starter_cpu, "gpu": starter_gpu}
EXPERTS = {"full": experts_full}
ADAPTER_DECODER = {"starter": adapter_decoder_starter}
