"""The comparison of `runs/reproduce_text_encoder.py` as JSON, as Markdown with plots, and as a page."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.bootstrap import difference, interval
from syzygy.lab.evaluate.text_encoder import ENGLISH
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.score_files import Row, Shown, percent, pictures_table
from syzygy.lab.reproduce.text_encoder_candidates import (
    AGAINST,
    CANDIDATES,
    NUMBERS,
    Job,
    ReproduceTextRun,
    samples,
    settings,
)
from syzygy.lab.reproduce.text_encoder_experiment import (
    CLIP,
    KINDS,
    MEAN_VECTOR,
    SHUFFLED,
    TAIL,
    Bench,
    painted_name,
    scores_file,
)
from syzygy.text_encoders.adapter_folders import PART

ALL, OTHERS = "all", "others"
"""All languages; all but English."""
COMMAND = "`syzygy reproduce text-encoder`"
FOUND_PLOT, TAIL_PLOT, AGREEMENT_PLOT = "text-encoder-found.svg", "text-encoder-tail.svg", "text-encoder-agreement.svg"
SHEET = "text-encoder.jpg"
MEASURES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "predicted": ("Picture found (R@1) by the prior's prediction", lambda x: (x == 0).double()),
    "probe": ("Named combinations that the probe finds in the prior's prediction", lambda x: x),
    "image": ("Picture found (R@1) by the pooled embedding", lambda x: (x == 0).double()),
    "text": ("CLIP's short English caption found (R@1) by the pooled embedding", lambda x: (x == 0).double()),
    "cosine": ("Cosine of the pooled embedding to CLIP's of the short English caption", lambda x: x),
    "norm": ("Its norm as a part of CLIP's", lambda x: x),
}
"""Measure of a caption → title, and what of it is averaged; those in per cent come first."""
SHARES = ("predicted", "probe", "image", "text")
UNMOVED = "unmoved"
LIMITS = (
    "What this cannot show: the language model has a few million parameters and was trained on this world's captions alone, so that its "
    "last layer has little else to predict than their next word, and the mean of the layers has few to choose from: what a published model's "
    "layers hold is another question. Trainings are minutes long; the paper's stage 2 sees 43 million pictures, and what pays late is not seen "
    "to pay. No learning rate and no stage's length was tuned for any candidate. Samples are equal, tokens and time are not: without stage 1 "
    "long captions come in all of the steps' places, else in those of stages 2 and 3 alone (see the cost). Nothing but stage 1 asks the "
    "pooled embedding to lie where CLIP's does: without it neither text nor picture can be expected to be found by it, nor a decoder that "
    "reads it to be served. Stage 3's pictures are those whose captions say more, which is what the measures here ask for; beauty, for which "
    "the paper chooses, is not measured. The captions are of one grammar in each language, without errors or names, and one small CLIP judges "
    "retrieval with its own eyes."
)
FROZEN = "The prior stays as it is, so what stages 2 and 3 gain is the adapter's alone; both together might gain more."
TRAINED = (
    "The prior is trained as well, so what stages 2 and 3 gain is not the adapter's alone; beside it CLIP's features go through the prior "
    "as it was."
)
Trainings = Sequence[Mapping[str, Tensor]]
Table = tuple[list[str], list[list[str]]]


def svg(figure: str) -> bytes:
    """A plot of the page as a file of its own, on white."""
    inner = figure.removeprefix("<figure>").removesuffix("</figure>")
    own = "<svg xmlns='http://www.w3.org/2000/svg' font-family='sans-serif' font-size='12' style='background:#fff' "
    return inner.replace("<svg ", own, 1).encode()


def values(trainings: Trainings, codes: Sequence[str], kind: str, measure: str) -> list[list[float]]:
    """A row a caption, a column a training: the mean over the languages. Captions of which nothing can be said are left out."""
    of = MEASURES[measure][1] if measure in MEASURES else torch.clone
    columns = [
        torch.stack([of(one[f"{code}/{kind}/{measure}"]) for code in codes]).double().mean(0) for one in trainings
    ]
    found = torch.stack(columns, 1)
    return found[~found.isnan().any(1)].tolist()


def groups(run: ReproduceTextRun) -> dict[str, tuple[str, ...]]:
    """Title → languages: each, all but English, all."""
    codes = run.scoring.languages
    others = tuple(code for code in codes if code != ENGLISH)
    return {code: (code,) for code in codes} | ({OTHERS: others} if others else {}) | {ALL: codes}


def results(bench: Bench) -> dict[str, Any]:
    """All numbers, as JSON values."""
    run, out = bench.run, bench.out
    scores = {
        name: [artifacts.read_tensors(scores_file(out, one)) for one in names] for name, names in _names(run).items()
    }
    controls = {name: [artifacts.read_tensors(scores_file(out, name))] for name in (SHUFFLED, MEAN_VECTOR)}
    return {
        "run": run.model_dump(mode="json"),
        **artifacts.read_json(out / "time.json"),
        "captions": len(bench.pairs),
        "prompts": len(bench.asked),
        "scores": {name: _scored(run, some) for name, some in scores.items()},
        "controls": {name: {m: _row(values(some, (ENGLISH,), "short", m)) for m in MEASURES} for name, some in controls.items()},
        "unmoved": {
            name: {title: _row(values(some, codes, TAIL, UNMOVED)) for title, codes in groups(run).items()}
            for name, some in scores.items()
        },
        "gained": {
            f"{a.title} less {b.title}": _gained(run, scores[a.title], scores[b.title]) for a, b in AGAINST
        },
        "agreement": _agreement(bench),
        "agreement_gained": _agreement_gained(bench),
        "cost": {one.title: _cost(bench, [Job(one, seed) for seed in range(run.seeds)]) for one in CANDIDATES},
    }  # fmt: skip


def _names(run: ReproduceTextRun) -> dict[str, list[str]]:
    """CLIP and the candidates → their trainings' names."""
    return {CLIP: [CLIP]} | {one.title: [Job(one, seed).name for seed in range(run.seeds)] for one in CANDIDATES}


def _row(found: list[list[float]]) -> Row | None:
    return score_files.row(interval(found, trainings=True)) if found else None


def _scored(run: ReproduceTextRun, some: Trainings) -> dict[str, Any]:
    return {
        measure: {
            kind: {title: _row(values(some, codes, kind, measure)) for title, codes in groups(run).items()}
            for kind in KINDS
        }
        for measure in MEASURES
    }


def _gained(run: ReproduceTextRun, first: Trainings, second: Trainings) -> dict[str, Any]:
    """First less second over all languages, paired by caption and training."""

    def of(kind: str, measure: str) -> Row | None:
        a, b = (values(some, run.scoring.languages, kind, measure) for some in (first, second))
        return score_files.row(difference(a, b, trainings=True)) if a else None

    return {measure: {kind: of(kind, measure) for kind in KINDS} for measure in SHARES}


def _agrees(bench: Bench, names: Sequence[str], codes: Sequence[str]) -> list[list[float]]:
    """A row a prompt, a column a training: how often its pictures agree, over the languages."""
    columns = []
    for name in names:
        read = [score_files.read(bench.out, painted_name(name, code)) for code in codes]
        columns.append([sum(one["agrees"] for one in prompt) / len(codes) for prompt in zip(*read, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _agreement(bench: Bench) -> dict[str, dict[str, Row | None]]:
    if not bench.asked:
        return {}
    found = {
        name: {title: _row(_agrees(bench, names, codes)) for title, codes in groups(bench.run).items()}
        for name, names in _names(bench.run).items()
    }
    return {SHUFFLED: {ALL: _row(_by_chance(bench))}} | found


def _by_chance(bench: Bench) -> list[list[float]]:
    """The pictures of CLIP, of English where it is among the languages, judged by other prompts."""
    code = ENGLISH if ENGLISH in bench.run.scoring.languages else bench.run.scoring.languages[0]
    file = score_files.painted_file(bench.out, painted_name(CLIP, code))
    return [[float(agrees)] for agrees in artifacts.read_json(file)["by_chance"] if agrees is not None]


def _agreement_gained(bench: Bench) -> dict[str, Row | None]:
    if not bench.asked:
        return {}
    names, codes = _names(bench.run), bench.run.scoring.languages
    found = {}
    for a, b in AGAINST:
        first, second = (_agrees(bench, names[one.title], codes) for one in (a, b))
        found[f"{a.title} less {b.title}"] = score_files.row(difference(first, second, trainings=True))
    return found


def _cost(bench: Bench, trainings: Sequence[Job]) -> dict[str, Any]:
    """What a candidate's training takes, the stages before included."""
    records = []
    for job in trainings:
        one: Job | None = job
        while one is not None:
            records.append(artifacts.read_json(bench.shop.folder(one) / PART / artifacts.PROVENANCE_FILE))
            one = one.former
    seen = samples(trainings[0], bench.run)
    return {
        "samples": {NUMBERS[stage]: number for stage, number in seen.items()},
        "total": sum(seen.values()),
        "minutes": round(sum(one["seconds"] for one in records) / 60 / len(trainings), 1),
        "peak_lr": settings(trainings[0], bench.run).loop.lr,
    }


def _columns(run: Mapping[str, Any]) -> list[str]:
    codes = run["scoring"]["languages"]
    return [title for title in (ENGLISH, OTHERS) if title != ENGLISH or ENGLISH in codes] if len(codes) > 1 else [ALL]


def tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """Title → header and lines, plain text."""
    columns, controls = _columns(found["run"]), found["controls"]
    made: dict[str, Table] = {}
    for measure, (title, _) in MEASURES.items():
        say = percent if measure in SHARES else _plain
        lines = [
            [name, *(say(by[measure][kind][column]) for kind in KINDS for column in columns)]
            for name, by in found["scores"].items()
        ]
        lines += [[name, say(by[measure]), *[""] * (len(KINDS) * len(columns) - 1)] for name, by in controls.items()]
        made[title] = (["", *(f"{kind}, {column}" for kind in KINDS for column in columns)], lines)
        if measure in SHARES:
            gained = [
                [pair, *(percent(by[measure][kind], signed=True) for kind in KINDS)]
                for pair, by in found["gained"].items()
            ]
            made[f"{title}: differences in points, all languages"] = (["", *KINDS], gained)
    unmoved = found["unmoved"]
    made["Cosine of a long prompt's embedding to that with another last sentence (1: not read)"] = (
        ["", *columns],
        [[name, *(_plain(by[column]) for column in columns)] for name, by in unmoved.items()],
    )
    made |= _by_language(found)
    made["Cost"] = (
        ["", "captions of stage 1", "of stage 2", "of stage 3", "together", "minutes", "last peak rate"],
        [
            [name, *(f"{one['samples'].get(n, 0):,}" for n in NUMBERS.values()), f"{one['total']:,}", f"{one['minutes']:.1f}",
             f"{one['peak_lr']:g}"]
            for name, one in found["cost"].items()
        ],
    )  # fmt: skip
    return made


def _by_language(found: Mapping[str, Any]) -> dict[str, Table]:
    """What is judged last, language by language."""
    titles = list(found["unmoved"][CLIP])
    made: dict[str, Table] = {}
    for kind in ("short", TAIL):
        made[f"{MEASURES['predicted'][0]}, {kind}"] = (
            ["", *titles],
            [
                [name, *(percent(by["predicted"][kind][title]) for title in titles)]
                for name, by in found["scores"].items()
            ],
        )
    if agreement := found["agreement"]:
        made["Pictures: agreement"] = (
            ["", *titles],
            [[name, *(percent(by.get(title)) for title in titles)] for name, by in agreement.items()],
        )
        gained = [[pair, percent(row, signed=True)] for pair, row in found["agreement_gained"].items()]
        made["Pictures: differences of agreement in points, all languages"] = (["", "all"], gained)
    return made


def _plain(one: Mapping[str, float | int] | None) -> str:
    return "" if one is None else f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables with what was done, for `docs/results`."""
    parts = ["# Text encoders in small", "", _done(found), ""]
    if found["agreement"]:
        parts += [f"![{_sheet_text(found)}]({SHEET})", ""]
    parts += [f"![{title}]({file})" for file, title in _plots(found).items()] + [""]
    for title, (header, lines) in tables(found).items():
        parts += [f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        parts += ["| " + " | ".join(line) + " |" for line in lines] + [""]
    return "\n".join([*parts, "## What this does not show", "", limits(found), ""])


def _done(found: Mapping[str, Any]) -> str:
    run, cost = found["run"], found["cost"]
    align, image, quality, scoring = run["align"], run["image"], run["quality"], run["scoring"]
    recipe = align["recipe"]
    layers = "all" if recipe["layers"] == "all" else ", ".join(map(str, recipe["layers"]))
    normalised = "normalised" if recipe["normalise"] else "not normalised"
    painted = (
        f"; {found['prompts']} prompts painted in each language in {scoring['steps']} steps, guidance {scoring['guidance_scale']:g}, the "
        f"decoder reading {', '.join(scoring['conditions'])}, from the same noise for all"
        if found["prompts"]
        else ""
    )
    return (
        f"{COMMAND}: {found['seconds'] / 60:.0f} minutes on {found['machine']}. Stage 1, texts alone: {cost['1']['total']:,} captions at "
        f"{align['loop']['lr']:g}; stage 2, on pictures, {_frozen(image['task']['frozen'])}: {cost['1+2']['samples']['2']:,} at "
        f"{image['loop']['lr']:g}, without stage 1 {cost['2']['total']:,} at {run['untrained_lr']:g}; stage 3, on pictures with "
        f"{quality['filter']}, {_frozen(quality['task']['frozen'])}: "
        f"{cost['1+2+3']['samples']['3']:,} at {quality['loop']['lr']:g}. Features: the mean of layers "
        f"({layers}, {normalised}), or the last layer. {run['seeds']} training{'s' * (run['seeds'] > 1)} a candidate, in "
        f"{', '.join(scoring['languages'])}. {found['captions']} unseen captions a language and length, as many to find; {TAIL}: prompts "
        f"whose decisive sentence comes last, after a paragraph (80 to 220 words, Chinese 120 to 240 characters){painted}. {CLIP}: the "
        "model's own, with its prior. Controls: "
        f"{SHUFFLED}, CLIP's features of other captions, and the {MEAN_VECTOR}. Brackets: 95 % bootstrap over captions or prompts, the same "
        "in all languages, and over trainings; differences are paired."
    )


def limits(found: Mapping[str, Any]) -> str:
    """What this does not show, of this run."""
    frozen = all(found["run"][stage]["task"]["frozen"] == "prior" for stage in ("image", "quality"))
    return f"{LIMITS} {FROZEN if frozen else TRAINED}"


def _frozen(which: str) -> str:
    return "nothing frozen" if which == "none" else f"{which} frozen"


def _sheet_text(found: Mapping[str, Any]) -> str:
    code = shown_language(found["run"]["scoring"]["languages"])
    return f"Prompts, and what each candidate's first training paints of them, said in {code!r}; a green frame where everything named is right"


def shown_language(codes: Sequence[str]) -> str:
    """The first that is not English, if there is one: CLIP reads that."""
    return next((code for code in codes if code != ENGLISH), codes[0])


def _plots(found: Mapping[str, Any]) -> dict[str, str]:
    """File → title."""
    made = {FOUND_PLOT: "picture found by the prior's prediction, short captions, all languages",
            TAIL_PLOT: "picture found where the decisive sentence comes last, all languages"}  # fmt: skip
    return made | ({AGREEMENT_PLOT: "agreement of the pictures, all languages"} if found["agreement"] else {})


def plots(found: Mapping[str, Any]) -> dict[str, str]:
    """File → a plot as HTML."""
    rows = {file: {name: by["predicted"][kind][ALL] for name, by in found["scores"].items()}
            for file, kind in ((FOUND_PLOT, "short"), (TAIL_PLOT, TAIL))}  # fmt: skip
    rows[AGREEMENT_PLOT] = {name: by[ALL] for name, by in found["agreement"].items()}
    return {
        file: report.bars(
            title, {name: (row["mean"], row["low"], row["high"]) for name, row in rows[file].items() if row}
        )
        for file, title in _plots(found).items()
    }


def shown(bench: Bench) -> list[Shown]:
    """The kept pictures: CLIP's of English and of the language that is shown, and those of every candidate's first training."""
    code = shown_language(bench.run.scoring.languages)
    first = {f"{CLIP}, {one}": painted_name(CLIP, one) for one in dict.fromkeys((bench.run.scoring.languages[0], code))}
    own = {one.title: painted_name(Job(one, 0).name, code) for one in CANDIDATES}
    return score_files.shown(bench.out, first | own, bench.wanted)


def page(found: Mapping[str, Any], bench: Bench) -> str:
    """The same with plots and pictures, self-contained."""
    done = html.escape(_done(found)).replace(COMMAND, f"<code>{COMMAND.strip('`')}</code>")
    body = [f"<h1>Text encoders in small</h1><p>{done}</p>", *plots(found).values()]
    for title, (header, lines) in tables(found).items():
        escaped = [[html.escape(cell) for cell in line] for line in lines]
        body.append(f"<h2>{html.escape(title)}</h2>{report.rows(header, escaped, numbers_from=1)}")
    if bench.asked:
        body.append(f"<h2>Pictures</h2><p>{html.escape(_sheet_text(found))}.</p>{pictures_table(shown(bench))}")
    body.append(f"<h2>What this does not show</h2><p>{html.escape(limits(found))}</p>")
    return report.page("Text encoders in small", "\n".join(body))


def write(bench: Bench) -> dict[str, Any]:
    """results.json, report.md with its plots and pictures, index.html."""
    found = results(bench)
    artifacts.write_json(bench.out / "results.json", found)
    artifacts.write_bytes(bench.out / "report.md", markdown(found).encode())
    for file, figure in plots(found).items():
        artifacts.write_bytes(bench.out / file, svg(figure))
    if bench.asked:
        score_files.save_sheet(bench.out / SHEET, shown(bench))
    artifacts.write_bytes(bench.out / "index.html", page(found, bench).encode())
    return found
