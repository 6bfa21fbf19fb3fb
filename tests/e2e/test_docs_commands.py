"""Every command in the documents is accepted: its name, its options and their values. Nothing is run."""

import shlex
from pathlib import Path

import click
import pytest

from syzygy.cli.main import LazyGroup, cli
from syzygy.core.config import override
from syzygy.core.registry import preset
from tests.documents import FENCED, ROOT, commands


def parsed(arguments: list[str]) -> click.Context:
    """The context of the last command that the arguments name; nothing is run."""
    command: click.Command = cli
    context: click.Context | None = None
    rest = arguments
    while isinstance(command, LazyGroup):
        _, found, rest = command.resolve_command(context or click.Context(command), rest)
        assert found is not None
        context = click.Context(command, parent=context, info_name=command.name)
        command = found
    return command.make_context(command.name, rest, parent=context)


def documents() -> list[Path]:
    return [
        path
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        if FENCED.search(path.read_text("utf-8"))
    ]


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept devices and files that are not on this machine."""
    monkeypatch.setattr("syzygy.cli.common.available_device", lambda name: "cpu")
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, context: Path(value))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_are_understood(path: Path) -> None:
    for arguments in commands(path.read_text("utf-8")):
        try:
            context = parsed(arguments)
        except (click.ClickException, ValueError) as error:
            pytest.fail(f"{path.name}: syzygy {shlex.join(arguments)}: {error}")
        if context.command.name == "adapter":
            _settings(context)


def _settings(context: click.Context) -> None:
    """Check that KEY=VALUE names settings of the preset."""
    given = context.params
    table = f"syzygy.text_encoders.presets:{given['stage'].upper()}_PRESETS"
    if given["decoder"]:
        table = "syzygy.lab.starter.presets:ADAPTER_DECODER"
    name = given["preset"]
    if given["model"]:
        own = f"syzygy.pretrained.presets:{given['stage'].upper()}_PRESETS"
        table = "syzygy.text_encoders.presets:PROMPT_PRESETS" if given["stage"] == "align" else own
        name = given["model"]  # named as their families, but for 1.5
    override(preset(table, name), given["overrides"])


@pytest.mark.parametrize(
    "wrong",
    [
        "generate 'a moon' --model-x y",
        "generat 'a moon'",
        "train adapter --stage aline",
        "world corpus --num 0 --out x",
        "embed",
    ],
)
def test_what_is_no_command_is_found(wrong: str) -> None:
    text = f"Text.\n\n```sh\n# a comment\nOMP_NUM_THREADS=1 syzygy {wrong}   # another\n```\n"
    (found,) = commands(text)
    with pytest.raises((click.ClickException, ValueError)):
        parsed(found)


def test_commands_are_found_over_lines_and_under_torchrun() -> None:
    text = "```sh\nsyzygy embed a \\\n  --out b\ntorchrun --nproc-per-node 4 -m syzygy.cli train prior … --out c\nls syzygy\n```\n"
    assert list(commands(text)) == [["embed", "a", "--out", "b"], ["train", "prior", "--out", "c"]]
