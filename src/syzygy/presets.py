"""Complete run configurations by name. A preset is a function; the command line overrides fields of what it returns."""

from collections.abc import Callable
from typing import TypeVar

from syzygy.config import Config
from syzygy.diffusion.decoder import UNetConfig
from syzygy.diffusion.experts import COMPLEMENT
from syzygy.diffusion.noise import LogNormal
from syzygy.errors import unknown
from syzygy.hub.autoencoder import AutoencoderConfig
from syzygy.hub.clip import ClipConfig
from syzygy.hub.lm import LmConfig
from syzygy.hub.t5 import T5Config
from syzygy.runs.autoencoder import AutoencoderRun
from syzygy.runs.clip import ClipRun
from syzygy.runs.decoder import DecoderRun
from syzygy.runs.demo import DemoRun
from syzygy.runs.evaluate import Scoring
from syzygy.runs.expert_unets import ExpertUNetsRun
from syzygy.runs.experts import ExpertsRun
from syzygy.runs.experts_compared import ReproduceExpertsRun
from syzygy.runs.lm import LmRun
from syzygy.runs.prior import PriorRun
from syzygy.runs.reader import ReaderRun
from syzygy.runs.reproduce import ReproduceRun
from syzygy.runs.starter import StarterRun
from syzygy.runs.t5 import T5Run
from syzygy.train.autoencoder import AutoencoderTaskConfig
from syzygy.train.clip import ClipTaskConfig
from syzygy.train.decoder import DecoderTaskConfig, independent_dropout
from syzygy.train.lm import LmTaskConfig
from syzygy.train.objectives import DiffusionTaskConfig, PriorTaskConfig
from syzygy.train.reader import ReaderTaskConfig
from syzygy.train.schedule import LoopConfig
from syzygy.train.t5 import T5TaskConfig
from syzygy.train.unet import UNetTaskConfig
from syzygy.world.language import LANGUAGES
from syzygy.world.reader import ReaderConfig

R = TypeVar("R", bound=Config)


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

    Half of the samples have T5's states alone, which no pooled vector sums up, so that single words must come through cross-attention. Half of
    the scenes show just what is told. In most samples the words for objects are painted where these are. Noise is where the picture is decided.
    """
    run = decoder_starter()
    subsets = {"t5": 0.55, "text": 0.07, "text+t5": 0.08, "image+text+t5": 0.12, "image": 0.1, "": 0.08}
    task = {"subsets": subsets, "painted": 0.65, "strengths": (0.3, 3.0), "noise": LogNormal(p_mean=0.8, p_std=1.1)}
    return run.model_copy(
        update={
            "medium_captions": 0.1,
            "long_captions": 0.05,
            "just_told": 0.55,
            "fresh_attention": True,
            "task": run.task.model_copy(update=task),
            "loop": run.loop.model_copy(update={"steps": 9000, "validate_every": 500}),
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


def expert_unets_lora() -> ExpertUNetsRun:
    """Experts of a diffusers U-Net as low-rank adaptations: small learning rate, attention alone. Not run at full size yet."""
    loop = LoopConfig(steps=1000, lr=1e-4, warmup=50, weight_decay=0.01, grad_clip=1.0, ema_half_life=100.0)
    loop = loop.model_copy(update={"validate_every": 250, "checkpoint_every": 250})
    return ExpertUNetsRun(task=UNetTaskConfig(checkpointing=True), loop=loop)


def expert_unets_full() -> ExpertUNetsRun:
    """The same as whole networks: 16 bytes of memory a parameter, beside the activations. Not run at full size yet."""
    run = expert_unets_lora()
    return run.model_copy(update={"form": "full", "loop": run.loop.model_copy(update={"lr": 1e-5})})


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


def prior_starter() -> PriorRun:
    """The starter's ECLIPSE prior on two CPU cores: four minutes."""
    return PriorRun(
        scenes=40_000,
        task=PriorTaskConfig(batch_size=256, lambda_contrastive=0.2),
        loop=LoopConfig(
            steps=600,
            lr=1e-3,
            warmup=60,
            grad_clip=1.0,
            ema_half_life=20,
            validate_every=100,
            checkpoint_every=100,
        ),
    )


def prior_diffusion() -> PriorRun:
    """The starter's diffusion baseline: the ECLIPSE prior's size, pairs, steps and learning rate, sampled in 25 steps."""
    return prior_starter().model_copy(update={"task": DiffusionTaskConfig(batch_size=256)})


def _prior_eclipse(embedding_dim: int) -> PriorRun:
    """ECLIPSE as published (arXiv 2312.04655 with its supplement), on an embedding store.

    The paper tells: 10 layers of 16 heads × 32, λ 0.2, learning rate 5e-5, cosine annealing with warm restarts, 4 × 256
    captions a step, about 60,000 steps. What it leaves open, with our choice:

    - temperature: the frozen CLIP's own;
    - projection loss: mean over dimensions, not sum (λ has its meaning relative to it);
    - negatives: all captions of the step, over all processes (they cost nothing, as texts are frozen);
    - period of the restarts: 10,000 steps, so six in all; warm-up: 500 steps, as bf16 dislikes a cold start at full rate;
    - weight decay: 0.01, AdamW's usual; clipping at norm 1, which guards 60,000 steps against one bad batch;
    - averaged weights: half-life of 500 steps, which validate better than the last ones and cost one pass over the weights.
    """
    return PriorRun(
        num_layers=10,
        num_attention_heads=16,
        attention_head_dim=32,
        embedding_dim=embedding_dim,
        scenes=None,
        validation_images=4096,
        task=PriorTaskConfig(batch_size=1024, lambda_contrastive=0.2, precision="auto"),
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
    """The starter on two CPU cores, in about four hours."""
    return StarterRun(
        clip=clip_starter(),
        reader=reader_starter(),
        autoencoder=autoencoder_starter(),
        decoder=decoder_starter(),
        t5=t5_starter(),
        words=decoder_words(),
        prior=prior_starter(),
    )


def starter_gpu() -> StarterRun:
    """The starter on one H200, in three sittings of ten minutes: clip, reader and autoencoder, then decoder and prior, then t5 and words.

    An estimate, not yet run. What bounds it is making scenes (about 0.2 ms a pair on one core), not the GPU. The
    decoder has 7.0M parameters, 14 MB in fp16.
    """
    clip, decoder, words, prior = clip_starter(), decoder_starter(), decoder_words(), prior_starter()
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
        words=words.model_copy(
            update={
                "backbone": wider,
                "task": words.task.model_copy(update={"batch_size": 1024}),
                "loop": words.loop.model_copy(update={"steps": 1500}),
            }
        ),
        prior=prior.model_copy(
            update={
                "scenes": 50_000,
                "task": prior.task.model_copy(update={"batch_size": 512}),
                "loop": prior.loop.model_copy(update={"steps": 1500, "warmup": 150}),
            }
        ),
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
    return DemoRun(prior=small, scoring=Scoring(prompts=1, steps=6), shown_steps=8)


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

    The paper's E9_511 begins at σ 9.6 and serves 9 of 25 steps. Cut from this decoder's noise, which lies higher, it would begin at 48 and
    serve 3; E4_15 is the place in the tree that begins at 9.4. Leaves start from the decoder at once: with a level at a time, most of so
    small a budget would go into nodes that are thrown away. The rate is low, as the decoder's own training ended at none: short trainings at
    a higher one only lose.
    """
    experts = experts_full()
    times = {"steps": 300, "warmup": 30, "ema_half_life": 30.0, "validate_every": 0}
    loop = experts.loop.model_copy(update={"lr": 5e-5, **times})
    leaves = ("E3_0", COMPLEMENT, "E4_15")
    return ReproduceExpertsRun(
        experts=experts.model_copy(update={"leaves": leaves, "every_level": False, "loop": loop})
    )


def reproduce_experts_quick() -> ReproduceExpertsRun:
    """A shortened comparison: it shows that everything works, and nothing about experts."""
    full = reproduce_experts_full()
    loop = full.experts.loop.model_copy(update={"steps": 20, "warmup": 2, "ema_half_life": 2.0})
    experts = full.experts.model_copy(update={"loop": loop})
    return full.model_copy(update={"experts": experts, "seeds": 1, "prompts": 5, "steps": 10, "pictures": 128})


AUTOENCODER: dict[str, Callable[[], AutoencoderRun]] = {"starter": autoencoder_starter}
CLIP: dict[str, Callable[[], ClipRun]] = {"starter": clip_starter}
DECODER: dict[str, Callable[[], DecoderRun]] = {
    "starter": decoder_starter,
    "words": decoder_words,
    "ediff-i": decoder_ediff,
}
PRIOR: dict[str, Callable[[], PriorRun]] = {
    "starter": prior_starter,
    "diffusion": prior_diffusion,
    "eclipse-kandinsky22": prior_eclipse_kandinsky22,
    "eclipse-karlo": prior_eclipse_karlo,
}
EXPERTS: dict[str, Callable[[], ExpertsRun]] = {"full": experts_full}
EXPERT_UNETS: dict[str, Callable[[], ExpertUNetsRun]] = {"lora": expert_unets_lora, "full": expert_unets_full}
READER: dict[str, Callable[[], ReaderRun]] = {"starter": reader_starter}
T5: dict[str, Callable[[], T5Run]] = {"starter": t5_starter}
LM: dict[str, Callable[[], LmRun]] = {"starter": lm_starter}
STARTER: dict[str, Callable[[], StarterRun]] = {"cpu": starter_cpu, "gpu": starter_gpu}
REPRODUCE: dict[str, Callable[[], ReproduceRun]] = {"full": reproduce_full, "quick": reproduce_quick}
REPRODUCE_EXPERTS: dict[str, Callable[[], ReproduceExpertsRun]] = {
    "full": reproduce_experts_full,
    "quick": reproduce_experts_quick,
}
DEMO: dict[str, Callable[[], DemoRun]] = {"full": demo_full, "quick": demo_quick}


def choose(presets: dict[str, Callable[[], R]], name: str) -> R:
    """The preset with this name; unknown names are an error that lists the known ones."""
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name]()
