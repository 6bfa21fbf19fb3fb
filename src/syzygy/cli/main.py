"""The command `syzygy`: a table of commands, imported when they are called, and one place where errors become lines.

Table format: a name leads to a `Leaf` (where its click command is, as `module:attribute`, and the line that the list of
commands shows) or to a `Branch` (such a line, and a table of its own). To add a command, write its file and add its
row here. Commands return nothing; another exit code is `ctx.exit(code)`.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from syzygy.core.deprecation import renamed
from syzygy.core.errors import UserError, unknown
from syzygy.core.wording import printable

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Leaf(NamedTuple):
    """A command: `module:attribute` of its `click.Command`, and a line of help."""

    target: str
    help: str


class Branch(NamedTuple):
    """A group of commands: a line of help, and its table."""

    help: str
    table: "Table"
    renamed: Mapping[str, str] = {}
    """Old name → name. Old names are not listed and work for one release, with a warning."""


Table = Mapping[str, Leaf | Branch]

COMMANDS: Table = {
    "demo": Leaf("syzygy.lab.commands.demo_command:demo", "Train a prior from scratch and generate images with it."),
    "generate": Leaf("syzygy.cli.generate:generate", "Generate images from prompts."),
    "vary": Leaf("syzygy.cli.vary:vary", "Generate variations of images."),
    "mix": Leaf("syzygy.cli.mix:mix", "Generate images of mixtures of pictures and texts."),
    "serve": Leaf("syzygy.cli.serve:serve", "Serve a web page and an OpenAI-compatible images API."),
    "embed": Leaf("syzygy.cli.embed:embed", "Embed pairs of pictures and captions, to train on."),
    "store": Branch(
        "Inspect, verify, merge and extend embedding stores.",
        {
            "info": Leaf("syzygy.cli.store_commands:info", "Show what is in a store."),
            "show": Leaf("syzygy.cli.store_show:show", "Show sample pairs, caption lengths, duplicates and columns."),
            "verify": Leaf("syzygy.cli.store_commands:verify", "Read every byte of a store and report damage."),
            "merge": Leaf("syzygy.cli.store_commands:merge", "Merge several stores into one."),
            "add": Leaf("syzygy.cli.store_add:add", "Add a language model's features of the captions to a store."),
        },
    ),
    "train": Branch(
        "Train a part of the system, or all of the starter.",
        {
            "clip": Leaf("syzygy.lab.commands.train_starter:clip", "Train CLIP on the embedded world."),
            "prior": Leaf("syzygy.cli.train:prior", "Train a prior: text features to image embedding."),
            "autoencoder": Leaf(
                "syzygy.lab.commands.train_starter:autoencoder", "Train an autoencoder: image to latents and back."
            ),
            "decoder": Leaf(
                "syzygy.lab.commands.train_starter:decoder", "Train a decoder: image embedding and text to latents."
            ),
            "placement": Leaf(
                "syzygy.lab.commands.train_starter:placement", "Train a placement predictor: words to places."
            ),
            "experts": Leaf(
                "syzygy.cli.train_experts:experts", "Train expert denoisers for intervals of the noise level."
            ),
            "t5": Leaf("syzygy.lab.commands.train_starter:t5", "Train a T5 text encoder, for prompts of any length."),
            "lm": Leaf(
                "syzygy.lab.commands.train_starter:lm", "Train a language model on all languages of the embedded world."
            ),
            "adapter": Leaf(
                "syzygy.cli.train_adapter:adapter", "Train an adapter: other languages, prompts past 77 tokens."
            ),
            "reader": Leaf(
                "syzygy.lab.commands.train_starter:reader",
                "Train the reader, the scene classifier that trainings may use.",
            ),
            "judge": Leaf(
                "syzygy.lab.commands.train_starter:judge",
                "Train the judge, the scene classifier that scores images.",
            ),
            "starter": Leaf(
                "syzygy.lab.commands.train_starter:starter",
                "Train the starter's weights from nothing, in resumable stages.",
            ),
        },
    ),
    "experts": Branch(
        "Inspect ensembles of expert denoisers.",
        {"plan": Leaf("syzygy.cli.experts:plan", "Show which evaluations of a schedule each expert serves.")},
    ),
    "export": Leaf("syzygy.cli.export:export", "Export a trained prior as a folder to share."),
    "export-images": Leaf(
        "syzygy.lab.commands.export_images:export_images", "Generate images for a benchmark's official evaluation."
    ),
    "evaluate": Branch(
        "Evaluate priors, decoders, text encoders and scene classifiers.",
        {
            "prior": Leaf(
                "syzygy.lab.commands.evaluate_commands:prior",
                "Measure priors on pairs that they were not trained on.",
            ),
            "composition": Leaf(
                "syzygy.lab.commands.evaluate_commands:composition",
                "Measure how often images show what their prompt names.",
            ),
            "reader": Leaf(
                "syzygy.lab.commands.evaluate_commands:reader", "Measure the accuracy of the two scene classifiers."
            ),
            "regions": Leaf(
                "syzygy.lab.commands.evaluate_commands:regions",
                "Measure how often objects appear inside their regions.",
            ),
            "style": Leaf(
                "syzygy.lab.commands.evaluate_commands:style", "Measure whether images take the style of a reference."
            ),
            "subjects": Leaf(
                "syzygy.lab.commands.evaluate_commands:subjects",
                "Measure whether images show the subject of a picture.",
            ),
            "temporal": Leaf(
                "syzygy.lab.commands.evaluate_commands:temporal", "Measure when in sampling the prompt is read."
            ),
            "encoders": Leaf(
                "syzygy.lab.commands.evaluate_commands:encoders", "Measure what a decoder reads from CLIP and T5."
            ),
            "text-encoder": Leaf(
                "syzygy.lab.commands.evaluate_text_encoder:text_encoder",
                "Measure how well an adapter replaces CLIP's text encoder.",
            ),
            "preference": Leaf(
                "syzygy.lab.commands.evaluate_commands:preference",
                "Measure how often one prior's image is preferred to another's.",
            ),
        },
        renamed={"painting": "regions"},
    ),
    "reproduce": Branch(
        "Repeat a paper's experiment at small scale.",
        {
            "eclipse": Leaf(
                "syzygy.lab.commands.reproduce_commands:eclipse",
                "Compare ECLIPSE with projection, diffusion and controls.",
            ),
            "prior-sweep": Leaf(
                "syzygy.lab.commands.reproduce_commands:prior_sweep",
                "Compare priors by the number of their training pairs.",
            ),
            "experts": Leaf(
                "syzygy.lab.commands.reproduce_commands:experts",
                "Compare eDiff-I's experts with one model of equal samples.",
            ),
            "text-encoder": Leaf(
                "syzygy.lab.commands.reproduce_commands:text_encoder",
                "Compare an adapter's stages and a language model's layers.",
            ),
        },
    ),
    "world": Branch(
        "Render, describe and classify scenes of the embedded world.",
        {
            "sample": Leaf(
                "syzygy.lab.commands.world_commands:sample", "Write images of scenes with captions to a folder."
            ),
            "corpus": Leaf("syzygy.lab.commands.world_corpus:corpus", "Write parallel captions in several languages."),
            "show": Leaf("syzygy.lab.commands.world_commands:show", "Render a scene that a caption describes."),
            "read": Leaf("syzygy.lab.commands.world_commands:read", "Predict what images of this world show."),
        },
    ),
}


RENAMED_OPTIONS = {"--html": "--page", "--paint-strength": "--region-strength"}
"""Old name of an option → its name. Old names are not listed; they work for one release, with a warning."""


def _with_new_names(args: list[str]) -> list[str]:
    found = list(args)
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if name in RENAMED_OPTIONS:
            if any(one.partition("=")[0] == RENAMED_OPTIONS[name] for one in args):
                raise UserError(
                    f"{name} is the old name of {RENAMED_OPTIONS[name]}: give only {RENAMED_OPTIONS[name]}."
                )
            click.echo(f"warning: {renamed(name, RENAMED_OPTIONS[name])}", err=True)
            found[i] = RENAMED_OPTIONS[name] + equals + value
    return found


class LazyGroup(click.Group):
    """A click group over a `Table`: lists its commands without importing them."""

    def __init__(self, table: Table, *, renamed: Mapping[str, str] = {}, **settings: Any) -> None:
        super().__init__(**settings)
        self.table, self.renamed = table, renamed

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.renamed:
            now = self.renamed[cmd_name]
            click.echo(
                f"warning: the command {cmd_name!r} is now called {now!r}; the old name will be removed.", err=True
            )
            cmd_name = now
        row = self.table.get(cmd_name)
        if row is None:
            return None
        if isinstance(row, Branch):
            return LazyGroup(row.table, renamed=row.renamed, name=cmd_name, help=row.help)
        module, _, attribute = row.target.partition(":")
        return getattr(import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in {**self.table, **self.renamed} and not args[0].startswith("-"):
            raise unknown("command", args[0], self.table)
        return super().resolve_command(ctx, [args[0], *_with_new_names(args[1:])])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in self.table.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"syzygy {version('syzygy')}")
        ctx.exit()


cli = LazyGroup(
    COMMANDS,
    name="syzygy",
    help="Train the text side of an image generator on one GPU or a laptop, and generate images with it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        )
    ],
)


def main() -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 interrupted. Our bugs keep their traceback."""
    try:
        sys.exit(cli.main(prog_name="syzygy", standalone_mode=False) or 0)
    except UserError as error:
        click.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "syzygy"
        click.echo(f"error: {error.format_message()}\nTry '{where} --help'.", err=True)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(UserError.exit_code)
