"""Complete run configurations by name. A preset is a function; the command line overrides fields of what it returns."""

from collections.abc import Callable
from typing import TypeVar

from syzygy.core.config import Config
from syzygy.core.errors import unknown
from syzygy.experts.training import ExpertsRun
from syzygy.experts.unet_expert_training import ExpertUNetsRun
from syzygy.lab.demo import DemoRun
from syzygy.lab.reproduce.eclipse_experiment import ReproduceRun
from syzygy.lab.reproduce.experts_candidates import ReproduceExpertsRun
from syzygy.lab.reproduce.presets import (
    demo_full,
    demo_quick,
    reproduce_experts_full,
    reproduce_experts_quick,
    reproduce_full,
    reproduce_quick,
    starter_cpu,
    starter_gpu,
)
from syzygy.lab.reproduce.text_encoder_candidates import ReproduceTextRun
from syzygy.lab.starter.adapted_decoder_training import AdapterDecoderRun
from syzygy.lab.starter.autoencoder_training import AutoencoderRun
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.decoder_training import DecoderRun
from syzygy.lab.starter.image_presets import (
    autoencoder_starter,
    clip_starter,
    decoder_binding,
    decoder_colours,
    decoder_ediff,
    decoder_finish,
    decoder_more_binding,
    decoder_more_colours,
    decoder_starter,
    decoder_words,
    expert_unets_full,
    expert_unets_lora,
    experts_full,
    reader_starter,
)
from syzygy.lab.starter.lm_training import LmRun
from syzygy.lab.starter.reader_training import ReaderRun
from syzygy.lab.starter.starter_training import StarterRun
from syzygy.lab.starter.t5_training import T5Run
from syzygy.lab.starter.text_presets import lm_starter, t5_starter
from syzygy.prior.presets import prior_diffusion, prior_eclipse_kandinsky22, prior_eclipse_karlo, prior_starter
from syzygy.prior.training import PriorRun
from syzygy.text_encoders.presets import (
    align_bigg_14,
    align_starter,
    align_vit_l_14,
    decoder_starter_adapted,
    image_published,
    image_starter,
    quality_published,
    quality_starter,
    reproduce_text_encoder_full,
    reproduce_text_encoder_quick,
)
from syzygy.text_encoders.training import AlignRun, ImageRun

__all__ = [
    "ADAPTER_ALIGN",
    "ADAPTER_DECODER",
    "ADAPTER_IMAGE",
    "ADAPTER_QUALITY",
    "AUTOENCODER",
    "CLIP",
    "DECODER",
    "DEMO",
    "EXPERTS",
    "EXPERT_UNETS",
    "LM",
    "PRIOR",
    "READER",
    "REPRODUCE",
    "REPRODUCE_EXPERTS",
    "REPRODUCE_TEXT_ENCODER",
    "STARTER",
    "T5",
    "align_bigg_14",
    "align_starter",
    "align_vit_l_14",
    "autoencoder_starter",
    "choose",
    "clip_starter",
    "decoder_binding",
    "decoder_colours",
    "decoder_ediff",
    "decoder_finish",
    "decoder_more_binding",
    "decoder_more_colours",
    "decoder_starter",
    "decoder_starter_adapted",
    "decoder_words",
    "demo_full",
    "demo_quick",
    "expert_unets_full",
    "expert_unets_lora",
    "experts_full",
    "image_published",
    "image_starter",
    "lm_starter",
    "prior_diffusion",
    "prior_eclipse_kandinsky22",
    "prior_eclipse_karlo",
    "prior_starter",
    "quality_published",
    "quality_starter",
    "reader_starter",
    "reproduce_experts_full",
    "reproduce_experts_quick",
    "reproduce_full",
    "reproduce_quick",
    "reproduce_text_encoder_full",
    "reproduce_text_encoder_quick",
    "starter_cpu",
    "starter_gpu",
    "t5_starter",
]

R = TypeVar("R", bound=Config)

ADAPTER_ALIGN: dict[str, Callable[[], AlignRun]] = {
    "starter": align_starter,
    "vit-l-14": align_vit_l_14,
    "bigg-14": align_bigg_14,
}
ADAPTER_DECODER: dict[str, Callable[[], AdapterDecoderRun]] = {"starter": decoder_starter_adapted}
ADAPTER_IMAGE: dict[str, Callable[[], ImageRun]] = {
    "starter": image_starter,
    "vit-l-14": image_published,
    "bigg-14": image_published,
}
ADAPTER_QUALITY: dict[str, Callable[[], ImageRun]] = {
    "starter": quality_starter,
    "vit-l-14": quality_published,
    "bigg-14": quality_published,
}
AUTOENCODER: dict[str, Callable[[], AutoencoderRun]] = {"starter": autoencoder_starter}
CLIP: dict[str, Callable[[], ClipRun]] = {"starter": clip_starter}
DECODER: dict[str, Callable[[], DecoderRun]] = {
    "starter": decoder_starter,
    "words": decoder_words,
    "colours": decoder_colours,
    "more-colours": decoder_more_colours,
    "binding": decoder_binding,
    "more-binding": decoder_more_binding,
    "finish": decoder_finish,
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
REPRODUCE_TEXT_ENCODER: dict[str, Callable[[], ReproduceTextRun]] = {
    "full": reproduce_text_encoder_full,
    "quick": reproduce_text_encoder_quick,
}
DEMO: dict[str, Callable[[], DemoRun]] = {"full": demo_full, "quick": demo_quick}


def choose(presets: dict[str, Callable[[], R]], name: str) -> R:
    """The preset with this name; unknown names are an error that lists the known ones."""
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name]()
