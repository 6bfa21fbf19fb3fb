"""Register a decoder of your own and generate with it.

It has no network: it returns the image of a gallery whose CLIP embedding fits best. docs/extending.md explains more.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from syzygy import TextToImage
from syzygy.core.contracts import Sampling
from syzygy.core.model_parts import BUNDLED
from syzygy.lab.world.scene_source import pairs, pictures
from syzygy.pretrained.decoder_validation import checked_request
from syzygy.pretrained.families import PretrainedDecoder, register_decoder


@register_decoder("gallery", pipeline_class="GalleryPipeline")
@dataclass(frozen=True)
class GalleryDecoder(PretrainedDecoder):
    images: torch.Tensor
    embeddings: torch.Tensor

    defaults = Sampling(steps=1, guidance_scale=1.0)
    fixed_size = (64, 64)

    @classmethod
    def load(cls, context):
        tensors = load_file(context.folder / "gallery.safetensors", str(context.device))
        return cls(tensors["images"], tensors["embeddings"])

    @classmethod
    def embedding_width(cls, folder):
        return load_file(folder / "gallery.safetensors")["embeddings"].shape[1]

    def generate(self, positive, generators, *, negative=None, sampling=Sampling(), on_step=None):  # noqa: B008
        request = checked_request(self, positive, negative, generators, sampling)
        wanted = request.embeddings(positive, self.embeddings.shape[1], self.embeddings.device)
        scores = normalize(wanted) @ normalize(self.embeddings).T
        noise = torch.stack([torch.randn(scores.shape[1], generator=generator) for generator in generators])
        return self.images[(scores + 0.1 * noise.to(scores)).argmax(1)]  # the seed chooses among the best


out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/own-decoder")
folder = out / "gallery"  # holds the class, in model_index.json, and the weights
folder.mkdir(parents=True, exist_ok=True)
images = pictures(pairs(0, 0, 500))
embeddings = TextToImage.from_pretrained("starter").clip.encode_image(images)
save_file({"images": images, "embeddings": embeddings}, folder / "gallery.safetensors")
(folder / "model_index.json").write_text(json.dumps({"_class_name": "GalleryPipeline"}))

model = TextToImage.from_pretrained(folder, clip=BUNDLED["starter"] / "clip", prior=BUNDLED["starter"] / "prior")
for number, image in enumerate(model("a red heart", num_images_per_prompt=4).images):
    image.save(out / f"{number}.png")
print(f"4 images in {out}")
