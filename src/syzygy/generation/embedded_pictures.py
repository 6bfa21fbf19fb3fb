"""The pictures of a request, each replaced by its CLIP image embedding before anything is generated."""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.generation.layout_edges import edge_map
from syzygy.generation.mixing import Source
from syzygy.generation.request import GenerationRequest
from syzygy.generation.subjects import EmbeddedSubject, positions, subject_prior

if TYPE_CHECKING:
    from syzygy.generation.text_to_image import TextToImage


def embedded(model: "TextToImage", request: GenerationRequest) -> GenerationRequest:
    """The request with the embeddings of its pictures in their place.

    Raises:
        UserError: the decoder reads no image embedding; a picture cannot be read; the best of several cannot be chosen; the prior reads no
            subjects or layout.
    """
    if model.adapter and request.best_of > 1 and model.pipeline.prior is None:
        raise UserError(
            "best_of keeps the image that CLIP finds nearest to the prompt, and CLIP reads neither the adapter's languages nor its "
            "states: leave out best_of, or the text encoder."
        )
    referring = bool(request.subjects) or request.layout is not None
    if request.style is None and not request.mixtures and not referring:
        return request
    if "image" not in model.pipeline.decoder.conditions:
        raise UserError(
            f"{model.name} reads texts alone: it cannot vary or mix pictures, nor take a style, subjects or a layout from one. Models that "
            "can: starter, kandinsky-2.2, karlo, stable-unclip."
        )
    if request.style is not None and model.adapter and request.best_of > 1:
        raise UserError(
            "with an adapter the best image is the one nearest to the embedding that was predicted from the prompt, and a style "
            "replaces this embedding: leave out the style, the adapter or best_of."
        )
    if referring:
        request = _with_references(model, request)
    style = request.style
    if style is not None and not (isinstance(style, Tensor) and style.ndim == 2 and len(style) == len(request.rows)):
        style = model.embed_image(style)
    known: dict[int, Tensor] = {}

    def embedding(source: Source) -> Tensor:
        if id(source) not in known:
            known[id(source)] = model.embed_image(source)
        return known[id(source)]

    mixtures = {id(one): [(s if isinstance(s, str) else embedding(s), w) for s, w in one] for one in request.mixtures}
    return replace(request, style=style, mixtures=[mixtures[id(one)] for one in request.mixtures])


def _with_references(model: "TextToImage", request: GenerationRequest) -> GenerationRequest:
    """The request with embedded subjects and layout, and the positions of the subjects' tokens."""
    subject_prior(model.pipeline.prior, request.subjects)
    if "image" not in model.pipeline.chosen(request.conditions):
        raise UserError(
            "subjects and layout change the image embedding, and the decoder reads the text alone here: add image to the conditions."
        )
    if request.subjects and model.adapter:
        raise UserError(
            "subjects replace tokens of CLIP's text encoder, and here another text encoder reads the prompts: leave out the text encoder or "
            "the subjects."
        )
    subjects = [
        EmbeddedSubject(
            subject.word,
            model.embed_image(subject.cut_out()),
            positions={prompt: positions(model.clip, prompt, subject.word) for prompt in request.prompts},
        )
        for subject in request.subjects
    ]
    layout = request.layout
    if layout is not None:
        is_embedding = isinstance(layout, Tensor) and layout.ndim == 2
        layout = model.embed_image(layout if is_embedding else edge_map(layout))
    return replace(request, subjects=subjects, layout=layout)
