"""What MkDocs makes of the code: the home page from README.md, the command reference from `--help`, the architecture picture."""

import ast
import re
import tomllib
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "syzygy"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": home(),
        "reference/command-line.md": command_line(),
        "reference/architecture.md": architecture(),
        "images/architecture.svg": architecture_picture(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def home() -> str:
    """README.md, with links as seen from this folder."""
    text = (ROOT / "README.md").read_text("utf-8")
    text = text.replace("](docs/", "](").replace('src="docs/', 'src="')
    return re.sub(r"\]\((?!https?://|#)((?:src|examples|benchmarks|tests|LICENSE|CHANGELOG)[^)]*)\)", r"](#)", text)


def command_line() -> str:
    """Every command with its help, as `--help` prints it."""
    from syzygy.cli.main import cli

    parts = ["# Command line", "", "Every command prints this help with `--help`.", ""]

    def add(command: click.Command, path: tuple[str, ...], parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path[-1], parent=parent, terminal_width=100)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    add(child, (*path, name), context)
            return
        parts.extend([f"## {' '.join(path)}", "", "```text", command.get_help(context).strip(), "```", ""])

    add(cli, ("syzygy",), None)
    return "\n".join(parts)


def layers() -> list[str]:
    """The packages from top to bottom, as the import contract lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")["layers"]


def summary(package: str) -> str:
    """The first paragraph of a package's docstring."""
    text = ast.get_docstring(ast.parse((SOURCE / package / "__init__.py").read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def imports(package: str) -> Counter[str]:
    """How many modules of a package import each other package."""
    found: Counter[str] = Counter()
    for path in (SOURCE / package).rglob("*.py"):
        text = path.read_text("utf-8")
        found.update({name for name in re.findall(r"from syzygy\.(\w+)", text) if name != package})
    return found


def architecture() -> str:
    """The layers as a picture and a table."""
    rows = [
        f"| `{name}` | {summary(name)} | {', '.join(f'`{other}`' for other in layers() if other in imports(name)) or '(none)'} |"
        for name in layers()
    ]
    head = (
        "# Architecture\n\nThe source is cut by subject. A package imports only from packages below it, and nothing imports "
        "the lab; a check\nkeeps that. This page is drawn from the code.\n\n![The packages as layers](../images/architecture.svg)\n\n"
        "| package | what it holds | imports |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def architecture_picture() -> str:
    """Packages as rows, from top to bottom; a row's bar shows its lines of Python."""
    sizes = {
        name: sum(len(path.read_text("utf-8").splitlines()) for path in (SOURCE / name).rglob("*.py"))
        for name in layers()
    }
    width, row, left, most = 860, 44, 160, max(sizes.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * len(sizes) + 10}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for place, (name, size) in enumerate(sizes.items()):
        top = 6 + place * row
        bar = max(4, round((width - left - 20) * size / most))
        text = summary(name)
        text = text if len(text) <= 104 else text[:103].rsplit(" ", 1)[0] + " …"
        lines.append(
            f'<text x="8" y="{top + 17}" font-weight="bold" fill="#1a1a1a">{name}</text>'
            f'<text x="8" y="{top + 33}" fill="#666" font-size="11">{size:,} lines</text>'
            f'<rect x="{left}" y="{top + 22}" width="{bar}" height="10" rx="2" fill="{"#f0a020" if name == "lab" else "#3c6e9f"}"/>'
            f'<text x="{left}" y="{top + 15}" fill="#1a1a1a" font-size="12">{escape(text)}</text>'
        )
    return "\n".join([*lines, "</svg>"])
