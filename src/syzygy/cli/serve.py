"""`syzygy serve`."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import Whole, available_device, json_option, unresolved_device_option
from syzygy.cli.generation_options import load_model, prompt_options
from syzygy.core.errors import UserError, install
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.server.engine import Engine, ImageEngine

F = TypeVar("F", bound=Callable[..., Any])

STARTED = "Serving {model}: open {url} in a browser. Programs use {url}/v1, documented at {url}/docs."
LIMITS = {
    "max_prompt": ("prompt", 2000, "Largest number of characters in a prompt."),
    "max_number": ("number", 10, "Largest number of images in a request."),
    "max_steps": ("steps", 100, "Largest number of sampling steps."),
    "max_pixels": ("pixels", 2**20, "Largest number of pixels in a generated image."),
    "max_regions": ("regions", 16, "Largest number of regions in a request."),
    "max_sources": ("sources", 8, "Largest number of texts and pictures in a mixture."),
    "max_upload": ("upload", 8 * 2**20, "Largest number of bytes in a request's body."),
    "max_upload_pixels": ("upload_pixels", 2**24, "Largest number of pixels in all uploaded pictures of a request."),
    "max_connections": ("connections", 512, "Largest number of open connections."),
    "queue": ("queue", 32, "Number of requests that may wait; further ones get status 429 and may try again later."),
}
"""Option → the limit's name, its default, its help."""


def limit_options(command: F) -> F:
    """A flag for each limit."""
    for name, (_, default, text) in reversed(LIMITS.items()):
        low = 1024 if name == "max_upload" else 1
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, type=Whole(low), default=default, show_default=True, metavar="N", help=text)(
            command
        )
    return command


@click.command()
@prompt_options
@click.option(
    "--model-alias",
    multiple=True,
    metavar="NAME",
    help="Also accept this name for the model, such as gpt-image-1 for programs that cannot be changed. Can be given several times.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address.")
@click.option(
    "--port", type=Whole(0, 65535), default=7860, show_default=True, help="Listen on this port; 0 takes a free one."
)
@click.option(
    "--api-key",
    envvar="SYZYGY_API_KEY",
    help="Require this key from clients. The environment variable SYZYGY_API_KEY does the same.",
)
@click.option("--no-api-key", is_flag=True, help="Require no key, even from clients on other machines.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Also answer requests for this host name, such as the one that a proxy uses. Can be given several times.",
)
@click.option(
    "--proxy", multiple=True, metavar="ADDRESS", help="Trust the X-Forwarded headers of the proxy at this address."
)
@click.option(
    "--grace",
    type=Whole(1),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="When the server stops, wait this long for admitted requests; then answer the rest with status 503.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Compute in this process, or in replicas on a Ray cluster.",
)
@click.option(
    "--replicas",
    type=Whole(1),
    metavar="N",
    help="With --engine ray: number of copies of the model, each with its own GPU.",
)
@click.option("--verbose", is_flag=True, help="Log every request.")
@limit_options
@unresolved_device_option
@json_option
def serve(
    model_alias: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    no_api_key: bool,
    allow_host: tuple[str, ...],
    proxy: tuple[str, ...],
    grace: int,
    engine: str,
    replicas: int | None,
    verbose: bool,
    batch_size: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Serve a web page for placing objects by regions, and an HTTP API compatible with OpenAI's images API.

    Settings such as --steps are defaults for requests that do not give their own. Ctrl-C stops the server after the requests
    that it has admitted, or after --grace seconds.

    \b
    Examples:
      syzygy serve
      syzygy serve --model kandinsky-2.2 --device cuda --dtype fp16 --port 8000
      SYZYGY_API_KEY=secret syzygy serve --host 0.0.0.0 --queue 64
      syzygy serve --engine ray --replicas 4

    \b
    Then, with OpenAI's client:
      client = OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none")
      client.images.generate(prompt="a red star", extra_body={"seed": 7})
    """
    _check_arguments(api_key, no_api_key, engine, replicas)
    _check_proxies(proxy)
    try:
        from syzygy.server.http_server import allow_files, listening, server_of, url_of
        from syzygy.server.security import is_loopback
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: {install('web')}.") from None
    local = is_loopback(host)
    if not local and api_key is None and not no_api_key:
        raise UserError(f"--host {host} lets other machines in: give an --api-key, or --no-api-key.")
    from syzygy.server.app import create_app
    from syzygy.server.limits import Limits

    limits = Limits(**{limit: settings.pop(name) for name, (limit, _, _) in LIMITS.items()})
    allow_files(limits.connections)
    with (
        listening(host, port) as bound,
        _started(engine, replicas or 1, settings, device, bound.getsockname()[1]) as model,
    ):
        # A key keeps out pages that reach this server under a name of their own, so then other names do no harm.
        hosts = [host, *allow_host] if local or allow_host or api_key is None else None
        app = create_app(model, limits, batch_size=batch_size, aliases=model_alias, api_key=api_key, hosts=hosts)
        server = server_of(app, grace=float(grace), proxies=",".join(proxy) or "127.0.0.1", verbose=verbose)
        about = {"url": url_of(bound), "model": model.about.name, "api_key": api_key is not None, **limits.model_dump()}
        click.echo(json.dumps(about) if as_json else STARTED.format_map(about))
        server.run(sockets=[bound])


def _check_arguments(api_key: str | None, no_api_key: bool, engine: str, replicas: int | None) -> None:
    if api_key is not None and no_api_key:
        raise UserError("an API key and --no-api-key exclude each other: choose one.")
    if api_key is not None and not (api_key.isascii() and api_key.strip() == api_key != ""):
        raise UserError("an API key is made of ASCII characters, without blanks at its ends.")
    if engine == "local" and replicas is not None:
        raise UserError("--replicas is for --engine ray: add it, or start one process for each GPU.")


def _check_proxies(given: Sequence[str]) -> None:
    for one in given:
        try:
            ip_network(one, strict=False)
        except ValueError:
            raise UserError(
                f"--proxy {one!r} is not an IP address or network, such as 10.0.0.0/8: give that of the proxy."
            ) from None


@contextmanager
def _started(
    engine: str, replicas: int, settings: Mapping[str, Any], device: str, port: int
) -> Iterator["ImageEngine"]:
    """The model, loaded in this process or in replicas."""
    if engine == "local":
        yield load_engine(settings, device)
        return
    import socket

    from syzygy.server.ray_engine import modules, ray_engine

    load, name = partial(load_replica, os.getcwd(), settings), f"syzygy-{socket.gethostname()}-{port}"
    modules()
    click.echo(f"Starting Ray and {counted(replicas, 'replica')}, each of which loads the model.", err=True)
    with ray_engine(load, device=device, replicas=replicas, name=name) as started:
        yield started


def load_replica(folder: str, settings: Mapping[str, Any], device: str) -> "Engine":
    """The model in a replica, which may be on another machine; `folder` is the command's working directory."""
    if Path(folder).is_dir():  # so that relative places mean the same
        os.chdir(folder)
    return load_engine(settings, device)


def load_engine(settings: Mapping[str, Any], device: str) -> "Engine":
    """The model that `prompt_options` chose."""
    from syzygy.server.engine import Engine

    loaded = load_model(settings, available_device(device))
    return Engine.of(loaded.model, loaded.record)
