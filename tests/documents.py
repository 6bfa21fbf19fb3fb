"""The commands in the documents."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
TORCHRUN = ["-m", "syzygy.cli"]


def commands(text: str, *, torchrun: bool = True) -> Iterator[list[str]]:
    """The arguments of each `syzygy` in the shell blocks of a document, also those under torchrun unless `torchrun` is false.

    "…" stands for more arguments and is left out, except as the value of an option.
    """
    for block in FENCED.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            words = [
                word
                for before, word in zip(["", *words], words, strict=False)
                if word != "…" or before.startswith("--")
            ]
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["syzygy"]:
                yield words[1:]
            elif torchrun and words[:1] == ["torchrun"] and TORCHRUN[1] in words:
                yield words[words.index(TORCHRUN[1]) + 1 :]
