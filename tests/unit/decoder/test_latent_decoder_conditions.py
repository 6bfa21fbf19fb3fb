"""A guide's conditions hold for everything in it: an embedding or features that are not among them are not read."""

import pytest
import torch

from syzygy.core.contracts import Guide, Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.generation.text_to_image import TextToImage


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.from_pretrained("starter")


@torch.inference_mode()
def image(model: TextToImage, guide: Guide) -> torch.Tensor:
    return model.pipeline.decoder.generate(guide, [generator(0, "conditions")], sampling=Sampling(steps=2))


def test_what_is_not_among_the_conditions_is_not_read(model: TextToImage) -> None:
    text = "a red circle"
    features = model.encode_text([text])
    embedding = model.clip.encode_image(torch.rand(1, 3, 64, 64))
    everything = (embedding, features, [text])
    alone = {
        "image": Guide(embedding),
        "text": Guide(None, features),
        "t5": Guide(None, None, [text], conditions=["t5"]),
    }
    made = {name: image(model, Guide(*everything, conditions=[name])) for name in alone}
    for name, guide in alone.items():
        assert torch.equal(made[name], image(model, guide))
    assert not torch.equal(made["image"], made["text"])
    both = image(model, Guide(*everything, conditions=["image", "text"]))
    assert not any(torch.equal(both, one) for one in made.values())


def test_nothing_to_read_is_an_error(model: TextToImage) -> None:
    with pytest.raises(UserError, match="needs image embeddings or text features"):
        image(model, Guide(torch.zeros(1, model.clip.width), conditions=["text"]))
