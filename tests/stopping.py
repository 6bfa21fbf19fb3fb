"""Stop a command in the middle of its work, on a busy machine too."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def stopped(
    command: Sequence[object],
    out: Path,
    number: signal.Signals,
    *,
    reached: Callable[[int], object],
    finished: Path,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and send it a signal as soon as it has reached a place in its work.

    Where other processes delay this one, the command may finish first: then it begins again, without what it wrote.

    Args:
        out: the folder that the command writes.
        reached: whether it is there, of the command's process id. Called again and again.
        finished: what it writes at its end.
    """
    words = [str(word) for word in command]
    for _ in range(10):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
            while process.poll() is None and not reached(process.pid):
                time.sleep(0.001)
            process.send_signal(number)
            output, errors = process.communicate()
        if not finished.exists():
            return subprocess.CompletedProcess(words, process.returncode, output, errors)
        shutil.rmtree(out)
    raise AssertionError("the command has finished before the signal ten times")
