"""A published CLIP's two towers, tokenizer and image preparation, loaded strictly from either layout."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syzygy.clip.image_processing import Preparation
from syzygy.clip.tokenization import around_ids, check_vocabulary
from syzygy.core import artifacts, hub_files
from syzygy.core.errors import UserError
from syzygy.core.model_files import Located

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLD_BUFFERS = tuple(f"{tower}embeddings.position_ids" for tower in ("text_model.", "vision_model.", ""))
"""0, 1, 2, …: stored by checkpoints from before transformers 4.31, made anew by the classes since."""
IMAGE_NAMES = ("vision_model.", "visual_projection.")
TOWERS = {
    hub_files.TEXT: ("CLIPTextModelWithProjection", "CLIPTextConfig", ("text_model.", "text_projection.")),
    hub_files.IMAGE: ("CLIPVisionModelWithProjection", "CLIPVisionConfig", IMAGE_NAMES),
}
"""transformers' classes by the folder of a tower, and how the names of its weights begin in a whole `CLIPModel`."""
OLD_END = 2
"""`eos_token_id` of configurations from before transformers 4.31. It is wrong; the class then pools at the highest id."""


@dataclass(frozen=True)
class Loaded:
    """The parts of a `Clip`."""

    model: nn.Module
    """`CLIPModel`, `Towers` or `TextFirst`."""
    tokenizer: Any
    preparation: Preparation
    fingerprint: Callable[[], str] | str | None
    """Of the weights in fp32, or how to find it; None where the model holds them in fp32 itself."""


class Towers(nn.Module):
    """Text and image tower from two folders under the names they have in a `CLIPModel`. It has no `logit_scale`."""

    def __init__(self, text: Any, image: Any) -> None:
        super().__init__()
        self.text_model, self.text_projection = text.text_model, text.text_projection
        self.vision_model, self.visual_projection = image.vision_model, image.visual_projection


class TextFirst(Towers):
    """The same, of either layout; the image tower is loaded when it is first asked for, so that generating from texts never pays for it."""

    text: Any
    """The text tower as transformers' `CLIPTextModelWithProjection`, with the same weights."""

    def __init__(self, text: Any, load_image: Callable[[], Any]) -> None:
        nn.Module.__init__(self)
        self.text_model, self.text_projection = text.text_model, text.text_projection
        object.__setattr__(self, "text", text.eval())  # no submodule: its weights have their names already
        self._load_image = load_image

    def load_image(self) -> Any:
        """The image tower as transformers' `CLIPVisionModelWithProjection`, where the text tower is and in its precision.

        Raises:
            UserError: it is missing, broken, or does not belong to the text tower.
        """
        weight = self.text_projection.weight
        return self._load_image().to(weight.device, weight.dtype)

    def __getattr__(self, name: str) -> Any:
        if f"{name}." in IMAGE_NAMES and not self.has_images:
            image = self.load_image()
            self.vision_model, self.visual_projection = image.vision_model, image.visual_projection
        return super().__getattr__(name)

    @property
    def has_images(self) -> bool:
        """Whether the image tower is in memory."""
        return "vision_model" in self._modules

    def forget_images(self) -> None:
        """Free the image tower; it would be loaded again."""
        for name in IMAGE_NAMES:
            self._modules.pop(name.removesuffix("."), None)


@dataclass(frozen=True)
class Part:
    """A model of transformers' class `kind` in a folder of its own, with its configuration."""

    kind: Any
    config_kind: Any
    folder: Path
    values: Mapping[str, Any]
    names: tuple[str, ...] = ("",)
    """How the names of its weights begin, among those of the folder."""

    def stored(self, variant: str | None = None) -> dict[str, Tensor]:
        return hub_files.read_weights(self.folder, keep=lambda name: name.startswith(self.names), variant=variant)


def load_text(found: Located, dtype: torch.dtype, variant: str | None = None) -> tuple[Any, Any]:
    """The text tower (`CLIPTextModelWithProjection`, on the CPU) and the tokenizer of a repository that may hold no image tower.

    Raises:
        UserError: as `load`.
    """
    _check_dtype(dtype)
    folder = found.folder
    part = _tower(folder, hub_files.TEXT)
    tokenizer = read_tokenizer(folder / hub_files.TOKENIZER if hub_files.is_pipeline(folder) else folder)
    model = filled(part, part.stored(variant), dtype).eval()
    _check_text(model, tokenizer, folder)
    return model, tokenizer


def load(found: Located, dtype: torch.dtype, *, text_first: bool = False, variant: str | None = None) -> Loaded:
    """Everything a `Clip` is made of. Weights of any precision are converted to `dtype`.

    Args:
        text_first: load the image tower (`TextFirst`) when it is first asked for; it may even be missing until then.
        variant: of the weights, to be preferred: "fp16" or "bf16". The fingerprint is that of the weights in full precision, if they are there.

    Raises:
        UserError: a file is missing, truncated or of another kind of model; a weight is missing, unexpected or
            misshapen; the parts do not belong together. With `text_first`, what is wrong with the image tower is raised
            when that is asked for.
    """
    _check_dtype(dtype)
    folder, pipeline = found.folder, hub_files.is_pipeline(found.folder)
    parts = [_tower(folder, hub_files.TEXT)] if text_first else _parts(folder)
    preparation = read_preparation(found)
    tokenizer = read_tokenizer(folder / hub_files.TOKENIZER if pipeline else folder)
    tensors = [part.stored(variant) for part in parts]
    models = [filled(part, stored, dtype) for part, stored in zip(parts, tensors, strict=True)]
    _check_text(models[0], tokenizer, folder)
    if not text_first:
        model = Towers(*models) if pipeline else models[0]
        _check_image(model, model, preparation, folder)
        return Loaded(model, tokenizer, preparation, None if dtype == torch.float32 else _fingerprint(tensors))

    def load_image() -> nn.Module:
        part = _tower(folder, hub_files.IMAGE)
        image = filled(part, part.stored(variant), dtype).eval()
        _check_image(models[0], image, preparation, folder)
        return image

    def fingerprint() -> str:
        return _fingerprint([part.stored() for part in _parts(folder)])

    return Loaded(TextFirst(models[0], load_image), tokenizer, preparation, fingerprint)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise UserError(f"a CLIP computes in {', '.join(map(str, DTYPES))}, not in {dtype}.")


def _fingerprint(stored: list[dict[str, Tensor]]) -> str:
    return artifacts.fingerprint(
        _InFloat32({name: x for part in stored for name, x in part.items() if name not in OLD_BUFFERS})
    )


def _tower(folder: Path, tower: str) -> Part:
    """One tower of either layout, as the class that has nothing else."""
    import transformers

    kind_name, config_name, names = TOWERS[tower]
    kind, config_kind = getattr(transformers, kind_name), getattr(transformers, config_name)
    if hub_files.is_pipeline(folder):
        if not (folder / tower).is_dir():
            raise UserError(_half(folder, tower))
        return _part(kind, config_kind, folder / tower)
    whole = _config(_parts(folder)[0])
    values = (whole.text_config if tower == hub_files.TEXT else whole.vision_config).to_dict()
    return Part(kind, config_kind, folder, values | {"projection_dim": whole.projection_dim}, names)


def _parts(folder: Path) -> list[Part]:
    """The towers of a pipeline; or the one model that is the whole CLIP."""
    from transformers import CLIPConfig, CLIPModel

    if hub_files.is_pipeline(folder):
        return [_tower(folder, tower) for tower in TOWERS]
    return [_part(CLIPModel, CLIPConfig, folder)]


def _half(folder: Path, lacking: str) -> str:
    return (
        f"{folder} has no {lacking}: half a CLIP cannot embed pairs (Karlo publishes no image encoder). "
        "Take the whole CLIP that the pipeline was trained with; for embeddings 768 wide, openai/clip-vit-large-patch14."
    )


def _part(kind: Any, config_kind: Any, folder: Path) -> Part:
    path = folder / artifacts.CONFIG_FILE
    values = artifacts.read_json(path)
    _check_kind(kind.__name__, config_kind.model_type, values, path)
    return Part(kind, config_kind, folder, values)


def _config(part: Part) -> Any:
    with _described(part):
        return part.config_kind.from_dict(dict(part.values))


@contextmanager
def _described(part: Part) -> Iterator[None]:
    """Turn transformers' refusals of a configuration into one clear line."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, TypeError, ValueError) as error:
        path = part.folder / artifacts.CONFIG_FILE
        raise UserError(f"{path} does not describe a {part.kind.__name__}: {error}") from None


def filled(part: Part, stored: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The model, with the stored tensors in it."""
    config = _config(part)
    with (
        torch.device("meta"),
        _described(part),
    ):  # random weights of a big tower would take a minute, and be overwritten
        model = part.kind(config)
    model = model.to(dtype).to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        assert name in OLD_BUFFERS, f"{name} would stay uninitialised"
        buffer.copy_(torch.arange(buffer.shape[-1]))
    artifacts.load_strictly(model, {name: x for name, x in stored.items() if name not in OLD_BUFFERS}, part.folder)
    return model


def _check_kind(kind: str, model_type: str, values: Mapping[str, Any], path: Path) -> None:
    """Refuse what is no CLIP, and Stable unCLIP's text encoder, which is another CLIP's and has no projection."""
    if values.get("model_type") != model_type:
        raise UserError(
            f"{path} is for {values.get('model_type')!r}, not {model_type!r}: only CLIPs are read ({kind})."
        )
    named = values.get("architectures") or [kind]
    if kind not in named:
        raise UserError(
            f"{path} is for {', '.join(map(str, named))}, not {kind}. Stable unCLIP's text encoder has no projection and is "
            "not the one its image encoder was trained with: take that whole CLIP, for embeddings 768 wide "
            "openai/clip-vit-large-patch14."
        )


def read_preparation(found: Located) -> Preparation:
    """How a CLIP prepares images.

    Raises:
        UserError: the file is missing, or says what cannot be done here.
    """
    folders = hub_files.PREPARATIONS if hub_files.is_pipeline(found.folder) else ("",)
    paths = [found.folder / folder / name for folder in folders for name in hub_files.PREPARATION_FILES]
    for path in paths:
        if path.is_file():
            values = artifacts.read_json(path)
            if path.name == hub_files.PREPARATION_FILES[1]:
                return Preparation.from_config(values, path)
            # transformers 5 nests it here; older files of this name hold other things.
            if isinstance(nested := values.get("image_processor"), dict):
                return Preparation.from_config(nested, path)
    raise UserError(
        f"{paths[1]} is missing: {found.folder} is not a complete CLIP. It says how images are prepared; copy the one "
        "of the CLIP that this one was trained from."
    )


def read_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    # Without its files the class makes a vocabulary of three tokens.
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise UserError(f"{folder} is not a complete CLIP: it lacks tokenizer.json, or vocab.json with merges.txt.")
    for path in folder.glob("*.json"):
        artifacts.check_pointer(path)
    settings = folder / "tokenizer_config.json"
    kind = artifacts.read_json(settings).get("tokenizer_class") if settings.is_file() else None
    if kind not in (None, "CLIPTokenizer", "CLIPTokenizerFast"):
        raise UserError(f"{settings} is for {kind}; only CLIPTokenizer is read.")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises bare Exception for a broken file
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}. Copy it again.") from None


def _check_text(model: Any, tokenizer: Any, folder: Path) -> None:
    """Whether text tower and tokenizer belong together, and a prior can read them."""
    states, text = model.text_projection.in_features, model.text_projection.out_features
    if states != text:
        raise UserError(
            f"{folder}: token states are {states} wide, embeddings {text}. A prior reads both as one width; take a CLIP "
            "where they are equal (ViT-B/32, B/16, L/14, H/14, bigG/14 are)."
        )
    check_vocabulary(tokenizer, model.text_model.config.vocab_size, str(folder), around_ids(tokenizer))
    _check_end(model.text_model.config, tokenizer, folder)


def _check_image(text_model: Any, model: Any, preparation: Preparation, folder: Path) -> None:
    """Whether the image tower, the preparation and the text tower belong together."""
    text, image = text_model.text_projection.out_features, model.visual_projection.out_features
    if text != image:
        raise UserError(f"{folder}: text embeddings are {text} wide, image embeddings {image}: not one CLIP's towers.")
    side = model.vision_model.config.image_size
    if preparation.side != side:
        raise UserError(f"{folder}: images are prepared {preparation.side} pixels wide, the image tower reads {side}.")


def _check_end(config: Any, tokenizer: Any, folder: Path) -> None:
    """Whether transformers will pool where the text ends: at the end token, or in old configurations at the highest id."""
    end, highest = tokenizer.eos_token_id, len(tokenizer) - 1
    if highest >= config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {highest + 1} tokens, the text tower {config.vocab_size}.")
    if config.eos_token_id == OLD_END and end != highest:
        raise UserError(
            f"{folder}: the text tower pools at the highest token ({highest}, as its eos_token_id is {OLD_END}), but texts "
            f"end with {end}. Set eos_token_id to {end} in the text tower's {artifacts.CONFIG_FILE}, or remove added tokens."
        )
    if config.eos_token_id not in (OLD_END, end):
        raise UserError(
            f"{folder}: the text tower pools at token {config.eos_token_id}, but texts end with {end}. Set eos_token_id to "
            f"{end} in the text tower's {artifacts.CONFIG_FILE}, or take the tokenizer that belongs to it."
        )


class _InFloat32(Mapping[str, Tensor]):
    """Tensors converted one at a time as they are read, so that a big CLIP is not in memory twice."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
