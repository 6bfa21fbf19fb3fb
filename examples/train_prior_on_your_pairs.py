"""Train an ECLIPSE prior on a folder of your own images with captions, and generate with it.

    python examples/train_prior_on_your_pairs.py photos --out out/my-prior

The folder holds images with caption files (x.png with x.txt), a metadata.jsonl, tars or parquet files. Here the CLIP is
the starter's. For Kandinsky 2.2, set ENCODER to "kandinsky-community/kandinsky-2-2-prior" and PRESET to
"eclipse-kandinsky22". Run the script again to continue after an interruption.
"""

import argparse
from pathlib import Path

import torch

from syzygy import TextToImage
from syzygy.core.config import override
from syzygy.data.embedding import EmbedRequest, embed
from syzygy.prior.presets import PRESETS
from syzygy.prior.training import train_on_store
from syzygy.training.parallel import Ranks

ENCODER, PRESET = "starter", "eclipse"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pairs", help="folder of images with captions")
parser.add_argument("--out", type=Path, default=Path("out/my-prior"))
parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
arguments = parser.parse_args()

# 1. Embed each image and caption once. The store is memory-mapped, so it may be larger than the memory.
embed(EmbedRequest(source=arguments.pairs, encoder=ENCODER, out=arguments.out / "store"))

# 2. Train. A preset is a value; override() changes some of its settings.
settings = override(
    PRESETS[PRESET](), ["scenes=null", f"loop.steps={arguments.steps}", f"loop.warmup={arguments.steps // 10}"]
)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
result = train_on_store(settings, arguments.out / "store", arguments.out / "run", Ranks(device))
print({name: round(value, 3) for name, value in result.metrics.items()})

# 3. Generate with it.
model = TextToImage.from_pretrained(ENCODER, prior=result.folder)
model("a red circle", generator=torch.Generator().manual_seed(0)).images[0].save(arguments.out / "image.png")
