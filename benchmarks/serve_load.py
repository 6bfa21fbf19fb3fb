"""Many clients at once against `syzygy serve`: every request is served or told to come again (429), and memory stays flat.

    python -m benchmarks.serve_load --clients 200 --seconds 60
    python -m benchmarks.serve_load --attacks

The server runs in a process of its own, with the starter. Each client sends its next request when the last one was answered; told to
come again it waits as Retry-After says. Some clients (--leaving) close the connection before their answer. Prints counts, latencies of
served requests, and the server's memory after the warm-up and at the end (Linux). Exits with 1 if a request was lost.

With --attacks, one client sends requests that are made to cost much, and another sends plain ones meanwhile. Prints for each attack how
much longer than on an idle server the plain requests waited, the slowest answer of /healthz, and how far the memory grew, at most and two
seconds after the last answer. Exits with 1 where these are over BOUNDS. Other work on the machine adds to the times.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

GENERATIONS, RECIPES = "/v1/images/generations", "/v1/images/recipes"
PLAIN = {"prompt": "a red star", "steps": 1}
BOUNDS = (2.0, 0.5, 200.0)
"""Seconds that a plain request may wait longer, seconds of /healthz, MiB of memory."""


def studio_of(model: str, *options: str):
    """The model as the server uses it, with its own settings but for these options of `syzygy serve`."""
    from syzygy.cli.generation_options import load_model
    from syzygy.cli.serve import serve
    from syzygy.server.engine import Engine

    context = serve.make_context("serve", ["--model", model, "--device", "cpu", *options])
    loaded = load_model(context.params, "cpu")
    return Engine.of(loaded.model, loaded.record)


def resident(process: int) -> float:
    """MiB of memory that a process holds; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Attack(NamedTuple):
    """A request that costs much, and how many of it are sent at once."""

    name: str
    path: str
    body: bytes
    kind: str = "application/json"
    number: int = 1
    leaves: bool = False
    """Its client closes the connection after half a second."""


def attacks() -> list[Attack]:
    """Requests that once blocked the server, or nearly fill its limits."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("L", (4096, 4096), 255).save(data, "PNG")
    region = {"phrase": "red", "mask": base64.b64encode(data.getvalue()).decode()}
    masks = json.dumps({**PLAIN, "mask_blur": 0.9, "regions": [region] * 16}).encode()
    mask = json.dumps({**PLAIN, "mask_blur": 0.9, "regions": [region]}).encode()
    keys = json.dumps({**PLAIN, **{f"k{number}": 0 for number in range(500_000)}}).encode()
    regions = json.dumps({**PLAIN, "regions": [{"phrase": "a", "mask": "a"}] * 250_000}).encode()
    form = "multipart/form-data; boundary=X"
    texts = b"".join(_chunk(b"tEXt", f"k{number}".encode() + b"\0a") for number in range(350_000))
    return [
        Attack("16 masks of 4096 x 4096", GENERATIONS, masks),
        Attack("the same, and its client leaves", GENERATIONS, masks, leaves=True),
        Attack("8 requests with a mask of 4096 x 4096", GENERATIONS, mask, number=8),
        Attack("JSON with 500,000 unknown keys", GENERATIONS, keys),
        Attack("JSON with 250,000 regions", GENERATIONS, regions),
        Attack("a PNG with 350,000 text chunks", RECIPES, _form(_png(texts)), form),
        Attack("a record with 250,000 regions", RECIPES, _form(_png(_chunk(b"tEXt", b"syzygy\0" + regions))), form),
        Attack("a record with 500,000 keys", RECIPES, _form(_png(_chunk(b"tEXt", b"syzygy\0" + keys))), form),
        Attack("60 bodies of 8 MB", GENERATIONS, json.dumps({**PLAIN, "style": "A" * 8_300_000}).encode(), number=60),
    ]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(more: bytes) -> bytes:
    """A picture of 8 x 8 pixels with further chunks."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", zlib.compress(b"\0" * 72)) + _chunk(b"IEND", b"")


def _form(file: bytes) -> bytes:
    head = b'--X\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + file + b"\r\n--X--\r\n"


async def timed(http, method: str, path: str, **more) -> tuple[int, float]:
    """Status and seconds of a request."""
    began = time.monotonic()
    answer = await http.request(method, path, **more)
    return answer.status_code, time.monotonic() - began


async def send(attack: Attack, host: str, port: int) -> int | None:
    """The status of one of its requests; None if its client leaves, or the server closes the connection before its body is sent. It is
    sent as it is, so that this process has little work."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST {attack.path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    head += f"Content-Type: {attack.kind}\r\nContent-Length: {len(attack.body)}\r\n\r\n"
    try:
        writer.writelines([head.encode(), attack.body])
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.5 if attack.leaves else None):
                return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def attacked(http, process: int, attack: Attack) -> tuple[Counter, list[float]]:
    """Statuses of the attack's requests; longest wait of plain requests, longest wait of /healthz, memory at most and afterwards."""
    slowest, memory = [0.0], [resident(process)]

    async def watch() -> None:
        while True:
            slowest.append((await timed(http, "GET", "/healthz"))[1])
            memory.append(resident(process))
            await asyncio.sleep(0.05)

    watching = asyncio.ensure_future(watch())
    place = http.base_url
    sent = [asyncio.ensure_future(send(attack, place.host, place.port)) for _ in range(attack.number)]
    await asyncio.sleep(0.3)
    plain = [await timed(http, "POST", GENERATIONS, json=PLAIN) for _ in range(3)]
    assert all(status == 200 for status, _ in plain), plain
    statuses = Counter(await asyncio.gather(*sent))
    watching.cancel()
    await asyncio.sleep(2)
    return statuses, [max(seconds for _, seconds in plain), max(slowest), max(memory), resident(process)]


async def all_attacks(url: str, process: int) -> bool:
    """Send them one after another; whether all is within BOUNDS."""
    import httpx

    good, (longest, health, growth) = True, BOUNDS
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as http:
        idle = sorted([(await timed(http, "POST", GENERATIONS, json=PLAIN))[1] for _ in range(5)])[2]
        before = resident(process)
        print(f"idle: a plain request takes {idle:.2f} s; memory {before:.0f} MiB")
        print("attack | statuses | plain requests wait longer by | /healthz | memory at most | memory after")
        for attack in attacks():
            statuses, (plain, slowest, most, after) = await attacked(http, process, attack)
            found = ", ".join(f"{number} x {status or 'no answer'}" for status, number in statuses.items())
            print(
                f"{attack.name} | {found} | {plain - idle:.2f} s | {slowest:.2f} s | {most - before:+.0f} MiB | {after - before:+.0f} MiB",
                flush=True,
            )
            good &= plain - idle <= longest and slowest <= health and most - before < growth
    return good


async def client(http, number: int, end: float, steps: int, leaving: float, counts: Counter, latencies: list) -> None:
    """One client until the end of the time."""
    import httpx

    draw = random.Random(number)
    while time.monotonic() < end:
        began = time.monotonic()
        body = {"prompt": f"a {draw.choice(['red', 'blue', 'green'])} circle", "steps": steps}
        patience = draw.uniform(0.01, 0.5) if draw.random() < leaving else 300.0
        try:
            async with asyncio.timeout(patience):
                answer = await http.post(GENERATIONS, json=body)
        except TimeoutError:
            counts["left"] += 1
            continue
        except httpx.HTTPError as error:
            counts[f"lost ({type(error).__name__})"] += 1
            continue
        counts[answer.status_code] += 1
        if answer.status_code == 200:
            latencies.append(time.monotonic() - began)
        else:
            await asyncio.sleep(min(float(answer.headers.get("Retry-After", 1)), max(end - time.monotonic(), 0)))


async def load(url: str, process: int, arguments: argparse.Namespace) -> tuple[Counter, list, list]:
    """All clients; counts, latencies, and memory told every second after a warm-up of a fifth of the time."""
    import httpx

    counts: Counter = Counter()
    latencies: list = []
    memory: list = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        begin = time.monotonic()
        end = begin + arguments.seconds

        async def watch() -> None:
            await asyncio.sleep(arguments.seconds / 5)
            while time.monotonic() < end:
                memory.append(resident(process))
                await asyncio.sleep(1)

        clients = [
            client(http, number, end, arguments.steps, arguments.leaving, counts, latencies)
            for number in range(arguments.clients)
        ]
        await asyncio.gather(watch(), *clients)
        text = (await http.get("/metrics")).text
    print("\n".join(line for line in text.splitlines() if line.startswith(("syzygy_pictures", "syzygy_batches"))))
    return counts, latencies, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--leaving", type=float, default=0.05, help="Part of the requests whose client goes away.")
    parser.add_argument("--model", default="starter")
    parser.add_argument(
        "--attacks", action="store_true", help="Measure plain requests under attacks, and nothing else."
    )
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "syzygy.cli", "serve", "--port", "0", "--json", "--model", arguments.model]
    command += ["--queue", str(arguments.queue), "--batch-size", str(arguments.batch_size), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        try:
            if arguments.attacks:
                sys.exit(not asyncio.run(all_attacks(url, process.pid)))
            counts, latencies, memory = asyncio.run(load(url, process.pid, arguments))
        finally:
            process.terminate()
    for kind, number in sorted(counts.items(), key=str):
        print(f"{kind}  {number}")
    if len(latencies) > 1:
        cuts = statistics.quantiles(latencies, n=20)
        print(f"latency of served requests: p50 {statistics.median(latencies):.2f} s, p95 {cuts[-1]:.2f} s")
    if memory:
        print(
            f"memory: {memory[0]:.0f} MiB after the warm-up, {memory[-1]:.0f} MiB at the end, {max(memory):.0f} at most"
        )
    sys.exit(any(kind not in (200, 429, "left") for kind in counts))


if __name__ == "__main__":
    main()
