"""Generate from prompts in other languages, and from long ones: a language model with an adapter replaces CLIP's text encoder.

    python examples/llm_text_encoder.py --out out/languages

The starter has its own adapter ("adapter"). For a published model, name the run of `syzygy train adapter` instead:
docs/tutorials/another-language.md.
"""

import argparse
from pathlib import Path

import torch

from syzygy import TextToImage

PROMPTS = {
    "en": "a red circle above a blue star",
    "de": "ein roter Kreis über einem blauen Stern",
    "zh": "一个红色圆形在一个蓝色星星的上面",
}
LONG = "My aunt kept this sheet of paper in a wooden box for many years. " * 8 + "There is a red circle."

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("out/languages"))
arguments = parser.parse_args()
arguments.out.mkdir(parents=True, exist_ok=True)

model = TextToImage.from_pretrained("starter", text_encoder="adapter")
print("languages:", ", ".join(model.languages))
for name, prompt in {**PROMPTS, "long": LONG}.items():
    image = model(prompt, generator=torch.Generator().manual_seed(1)).images[0]
    image.save(arguments.out / f"{name}.png")

# What the prior predicts from the same sentence in two languages lies close together.
english, german = (model.pipeline.text_encoder.encode_text([PROMPTS[code]]).pooled for code in ("en", "de"))
print(f"cosine of the English and the German text embedding: {torch.cosine_similarity(english, german).item():.2f}")
