"""The command line before any work: fast help, complete table, clear errors. All in subprocesses, as a user runs it."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from syzygy.cli.main import COMMANDS, Leaf, Table, cli

SYZYGY = Path(sys.executable).with_name("syzygy")
HEAVY = ("torch", "numpy", "rich", "pydantic", "transformers", "diffusers", "jaxtyping")


def leaves(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, row in table.items():
        if isinstance(row, Leaf):
            yield (*path, name)
        else:
            yield from leaves(row.table, (*path, name))


def syzygy(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SYZYGY, *args], capture_output=True, text=True, check=False)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", [(), ("serve",)], ids=" ".join)
def test_help_takes_at_most_three_tenths_of_a_second(path: tuple[str, ...]) -> None:
    """Of a processor: on a busy machine the clock on the wall also counts the time of others."""

    def used() -> float:
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        return times.ru_utime + times.ru_stime

    def seconds() -> float:
        before = used()
        assert syzygy(*path, "--help").returncode == 0
        return used() - before

    assert any(seconds() <= 0.3 for _ in range(5))


@pytest.mark.parametrize("path", [(), ("train",), *leaves(COMMANDS)], ids=" ".join)
def test_every_command_answers_help_without_heavy_imports(path: tuple[str, ...]) -> None:
    code = f"""
import json, sys
from syzygy.cli.main import cli
cli.main({[*path, "--help"]!r}, prog_name="syzygy", standalone_mode=False)
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    *text, imported = result.stdout.splitlines()
    assert text[0].startswith(" ".join(["Usage: syzygy", *path]))
    assert json.loads(imported) == []


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for name, row in COMMANDS.items():
        assert f"  {name} " in output
        assert row.help in output


def test_public_names_cost_nothing_until_used() -> None:
    code = f"import sys, syzygy; print([name for name in {HEAVY!r} if name in sys.modules], dir(syzygy))"
    result = python(code)
    assert result.stdout.startswith("[] "), result
    assert "TextToImage" in result.stdout
    assert python("import syzygy; assert syzygy.TextFeatures.__module__ == 'syzygy.core.contracts'").returncode == 0
    assert "has no attribute 'Prior'" in python("import syzygy; syzygy.Prior").stderr


def test_version() -> None:
    assert syzygy("--version").stdout == "syzygy 0.1.0\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generat"], "error: unknown command 'generat'. Did you mean 'generate'? Known: "),
        (["train", "priors"], "error: unknown command 'priors'. Did you mean 'prior'? Known: "),
        (["--wrong"], "error: No such option"),
    ],
    ids=["group", "branch", "option"],
)
def test_a_mistake_is_one_or_two_lines_and_exit_code_2(args: list[str], message: str) -> None:
    result = syzygy(*args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) <= 2


def test_no_arguments_show_help() -> None:
    result = syzygy()
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: syzygy [OPTIONS] COMMAND")


def run_with_command(body: str) -> subprocess.CompletedProcess[str]:
    """Run `syzygy x`, where x is a command of the given body."""
    return python(f"""
import sys, types, click
from syzygy.cli import main
from syzygy.core.errors import UserError
x = types.ModuleType("x")
sys.modules["x"] = x
@click.command()
def x_command():
    {body}
x.command = x_command
main.cli.table = {{"x": main.Leaf("x:command", "")}}
sys.argv = ["syzygy", "x"]
main.main()
""")


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("raise UserError('no such colour.')", 2, "error: no such colour.\n"),
        ("raise click.FileError('a.png', 'is a folder')", 2, "error: Could not open file 'a.png': is a folder\n"),
        ("raise KeyboardInterrupt", 130, "\ninterrupted.\n"),
        ("return None", 0, ""),
    ],
    ids=["user", "click", "interrupt", "done"],
)
def test_what_becomes_of_errors(body: str, code: int, stderr: str) -> None:
    result = run_with_command(body)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", stderr)


def test_our_own_bugs_keep_their_traceback() -> None:
    result = run_with_command("assert False, 'a bug'")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_closed_pipe_is_silent() -> None:
    with subprocess.Popen([SYZYGY, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # long before Python has started
        assert process.stderr.read() == b""
