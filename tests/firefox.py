"""The system's Firefox without a screen, driven over Marionette.

Playwright drives a patched Firefox, and its driver for a stock one needs a newer Firefox than Debian's. Marionette is built into every
Firefox: messages of JSON over a socket, with the commands of WebDriver.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEEDS_FIREFOX = "they test the web page in Firefox; install it (Debian: apt-get install firefox-esr)"
START_SECONDS = 180.0
ERRORS = """
return Services.console.getMessageArray()
    .filter((one) => one instanceof Ci.nsIScriptError && one.sourceName.startsWith("http://127.0.0.1"))
    .filter((one) => !(one.flags & Ci.nsIScriptError.warningFlag))
    .map((one) => `${one.category}: ${one.errorMessage} (${one.sourceName}:${one.lineNumber})`);
"""


def executable() -> str | None:
    """Firefox as the system has it; None if there is none."""
    return next((path for name in ("firefox-esr", "firefox") if (path := shutil.which(name))), None)


class Firefox:
    """One window, controlled with the commands of WebDriver."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.number = connection, 0
        self._receive()  # who it is
        self.command("WebDriver:NewSession", capabilities={"alwaysMatch": {"timeouts": {"script": 120_000}}})

    def command(self, name: str, **parameters: Any) -> Any:
        """The result of a command."""
        self.number += 1
        text = json.dumps([0, self.number, name, parameters]).encode()
        self.connection.sendall(b"%d:%b" % (len(text), text))
        _, _, error, result = self._receive()
        assert error is None, f"{name}: {error}"
        return result

    def _receive(self) -> Any:
        size = b""
        while not size.endswith(b":"):
            size += self._bytes(1)
        return json.loads(self._bytes(int(size[:-1])))

    def _bytes(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self.connection.recv(count - len(found))
            assert part, "Firefox is gone"
            found += part
        return found

    def open(self, url: str) -> None:
        self.command("WebDriver:Navigate", url=url)
        self.wait("!document.getElementById('go').disabled")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; it may await."""
        return self.command("WebDriver:ExecuteScript", script=f"return (async () => {{ {script} }})()", args=arguments)[
            "value"
        ]

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition});"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.1)

    def act(self, kind: str, actions: list[dict[str, Any]], **more: Any) -> None:
        """Actions of a mouse or of a keyboard."""
        self.command("WebDriver:PerformActions", actions=[{"type": kind, "id": kind, "actions": actions, **more}])

    def type(self, text: str) -> None:
        keys = [{"type": kind, "value": letter} for letter in text for kind in ("keyDown", "keyUp")]
        self.act("key", keys)

    def drag(self, *points: tuple[int, int]) -> None:
        """A stroke of the mouse through these points of the window."""
        moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 20} for x, y in points]
        pressed = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        self.act("pointer", pressed, parameters={"pointerType": "mouse"})

    def errors(self) -> list[str]:
        """What the browser's console reports about the page: errors of scripts, style sheets and the Content-Security-Policy."""
        self.command("Marionette:SetContext", value="chrome")
        found = self.command("WebDriver:ExecuteScript", script=ERRORS, args=[])["value"]
        self.command("Marionette:SetContext", value="content")
        return found


@contextmanager
def firefox(profile: Path) -> Iterator[Firefox]:
    """A fresh Firefox with its profile in an empty folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
    command = [
        str(executable()),
        "--headless",
        "--marionette",
        "--remote-allow-system-access",
        "--no-remote",
        "--profile",
        str(profile),
    ]
    process = subprocess.Popen(
        [*command, "--width=1280", "--height=900"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with _connected(port, process) as connection:
            yield Firefox(connection)
    finally:
        process.terminate()
        process.wait(60)


def _connected(port: int, process: subprocess.Popen[bytes]) -> socket.socket:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
        time.sleep(0.2)
    raise RuntimeError("Firefox did not start")
