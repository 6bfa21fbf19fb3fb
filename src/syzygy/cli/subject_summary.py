"""What `syzygy embed` and `syzygy store info` print about the subjects of a store."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from syzygy.core.wording import counted, printable

SHOWN = 3
"""Subjects that cannot be used, and reasons, that are printed."""


def about_subjects(manifest: Mapping[str, Any], store: Path) -> dict[str, Any] | None:
    """Counts, and why subjects could not be used; None for a store without subjects.

    `number` counts subjects, `captions` those with at least one subject and `captions_without` the others; `bad` are the subjects that could
    not be used, `reasons` why, the most frequent first, and `first` the first of them as "key: phrase: reason".
    """
    found = manifest.get("subjects")
    if found is None:
        return None
    path, reasons, first = store / "bad.jsonl", Counter[str](), list[str]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        fault = json.loads(line)
        if fault["lost"] == "subject":
            reasons[fault["reason"]] += 1
            if len(first) < SHOWN:
                named = f"{fault['phrase']!r}: " if fault["phrase"] else ""
                first.append(f"{fault['key']}: {named}{fault['reason']}")
    counts = {name: found[name] for name in ("number", "captions", "bad", "edges")}
    more = {"captions_without": manifest["captions"] - found["captions"], "reasons": dict(reasons.most_common())}
    return counts | more | {"first": first}


def subject_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """The same as lines of text."""
    if found is None:
        return
    edges = ", with the edges of each picture" if found["edges"] else ""
    yield (
        f"subjects: {found['number']:,}, in {counted(found['captions'], 'caption')}; "
        f"{counted(found['captions_without'], 'caption')} without{edges}"
    )
    if not found["number"]:
        yield "warning: no subject can be used, so a λ-ECLIPSE prior cannot be trained on this store."
    if found["bad"]:
        yield f"{counted(found['bad'], 'subject')} could not be used; bad.jsonl lists each with its reason:"
        for reason, number in [*found["reasons"].items()][:SHOWN]:
            yield f"{number:>10,} × {printable(reason)}"
        if others := sum([*found["reasons"].values()][SHOWN:]):
            yield f"{others:>10,} × for other reasons"
        yield f"such as {printable('; '.join(found['first']))}"
