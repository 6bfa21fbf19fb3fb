"""diffusers' `UNet2DConditionModel` as the decoder's backbone, and decoders as folders of weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.randomness import seed_of
from syzygy.decoder.network import Decoder, DecoderConfig, Slot
from syzygy.decoder.recording import Recorded
from syzygy.regions.attention_processors import AttentionRecord, add_region_processors
from syzygy.regions.region_bias import RegionBias

# The sinusoids of diffusers' time embedding have wavelengths of 2π to 2π·10⁴, made for timesteps 0…1000. EDM's
# c_noise = ¼ ln σ runs from -1.6 (σ 0.002) to 1.1 (σ 80), where all but the fastest of them would stand still. Times
# 250 plus 400 it runs from 11 to 674; the fastest sinusoid then has a period of a factor 1.1 in σ.
TIME_SCALE, TIME_OFFSET = 250.0, 400.0


class UNetBackbone(nn.Module):
    """The `Backbone` contract on a small U-Net: the pooled vector is projected and added to the time embedding."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet = config.backbone
        self.unet = UNet2DConditionModel(
            sample_size=config.size,
            in_channels=config.channels,
            out_channels=config.channels,
            block_out_channels=unet.channels,
            layers_per_block=unet.layers_per_block,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in unet.attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(unet.attention)),
            cross_attention_dim=config.cross_attention_width,
            # diffusers' name is a historical mistake: this is the number of heads at each resolution.
            attention_head_dim=tuple(  # pyright: ignore[reportArgumentType] (annotated as one number)
                max(width // unet.head_width, 1) for width in unet.channels
            ),
            norm_num_groups=unet.norm_groups,
            resnet_time_scale_shift="scale_shift",  # the vector scales features, as in ADM: a strong path for the embeddings
            class_embed_type="projection",
            projection_class_embeddings_input_dim=config.vector_width,
        )
        add_region_processors(self.unet)
        level = unet.finest_attention
        self.feature_width = unet.channels[level]
        """Width of the features that are recorded."""
        self._recorded: Recorded | None = None
        self._positions = (config.size // unet.patch) ** 2
        self._up_block = len(unet.channels) - 1 - level
        """Index of the block on the way up whose attention is at the supervised resolution."""
        # F starts as zero, so the loss starts at 1 at every noise level (EDM, section 5).
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "B L H W"],
        c_noise: Float[Tensor, "B"],
        tokens: Float[Tensor, "B T C"],
        mask: Bool[Tensor, "B T"],
        vector: Float[Tensor, "B V"],
        region_bias: RegionBias | None = None,
    ) -> Float[Tensor, "B L H W"]:
        """Latents of the same shape. Hidden tokens have no influence; each row of `mask` must show at least one."""
        kwargs: dict[str, Any] = {} if region_bias is None else {"region_bias": region_bias}
        with self._recording(kwargs):
            return self.unet(
                x,
                timestep=c_noise * TIME_SCALE + TIME_OFFSET,
                encoder_hidden_states=tokens,
                encoder_attention_mask=mask,
                class_labels=vector,
                cross_attention_kwargs=kwargs or None,
                return_dict=False,
            )[0]

    @contextmanager
    def recording(self) -> Iterator[Recorded]:
        """Inside, a forward pass records what the supervision of a training step reads."""
        self._recorded = Recorded()
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @contextmanager
    def _recording(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """Lets a pass inside fill what is recorded, if anything is."""
        recorded = self._recorded
        if recorded is None:
            yield
            return

        def keep(module: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
            recorded.features = output[0].flatten(2).transpose(1, 2)

        kwargs["recorded"] = AttentionRecord(recorded.attention, self._positions)
        blocks: Any = self.unet.up_blocks
        hook = blocks[self._up_block].attentions[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()


def build_decoder(config: DecoderConfig, *, seed: int = 0) -> Decoder:
    """A decoder with fresh weights from `seed`; call `set_scale` for each slot with a pooled vector before use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "decoder", "weights"))
        return Decoder(config, UNetBackbone(config))


def save_decoder(
    decoder: Decoder, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = torch.float16
) -> None:
    """Write weights, configuration and provenance as one folder, atomically. `dtype` None keeps the weights' own."""
    for slot in decoder.slots.values():
        assert isinstance(slot, Slot)
        slot.check_scale()
    with artifacts.folder_written(folder) as temporary:
        artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, decoder.state_dict(), dtype)
        artifacts.write_json(temporary / artifacts.CONFIG_FILE, decoder.config.model_dump(mode="json"))
        artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))


def load_config(folder: Path) -> DecoderConfig:
    """Sizes and conditions of the decoder in `folder`, without its weights."""
    path = folder / artifacts.CONFIG_FILE
    return parse(DecoderConfig, artifacts.read_json(path), str(path))


def load_decoder(folder: Path) -> Decoder:
    """The decoder in `folder`, in fp32 and evaluation mode; weights that do not fit the configuration are an error."""
    decoder = build_decoder(load_config(folder))
    artifacts.load_strictly(decoder, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
    return decoder.eval()
