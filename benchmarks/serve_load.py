"""Many clients at once against `syzygy serve`: every request is served or told to come again (429), and memory stays flat.

    python -m benchmarks.serve_load --clients 200 --seconds 60

The server runs in a process of its own, with the starter. Each client sends its next request when the last one was answered; told to
come again it waits as Retry-After says. Some clients (--leaving) close the connection before their answer. Prints counts, latencies of
served requests, and the server's memory after the warm-up and at the end (Linux). Exits with 1 if a request was lost.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

GENERATIONS = "/v1/images/generations"


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
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "syzygy.cli", "serve", "--port", "0", "--json", "--model", arguments.model]
    command += ["--queue", str(arguments.queue), "--batch-size", str(arguments.batch_size), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        try:
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
