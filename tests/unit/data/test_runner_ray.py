"""How shards are shared out among Ray's actors. Ray itself, which takes seconds to start, is in `tests/e2e/test_embed.py`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data.runner_ray import _finished

exceptions = pytest.importorskip("ray.exceptions", reason="they need Ray (pip install -e '.[ray]')")


class Cluster:
    """Ray's functions for actors: a task is done when it is waited for, the latest one first."""

    exceptions = exceptions

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]

    def get(self, task: Callable[[], Any]) -> Any:
        return task()


def actors(number: int, work: Callable[[int], Any], given: list[tuple[int, int]]) -> list[Any]:
    def actor(own: int) -> Any:
        def remote(shard: int) -> Callable[[], Any]:
            given.append((own, shard))
            return lambda: work(shard)

        return SimpleNamespace(embed=SimpleNamespace(remote=remote))

    return [actor(i) for i in range(number)]


def test_a_free_actor_takes_the_next_shard() -> None:
    given: list[tuple[int, int]] = []
    found = list(_finished(Cluster(), actors(2, lambda shard: None, given), [3, 5, 7, 9]))
    assert found == [5, 7, 9, 3]
    assert given == [(0, 3), (1, 5), (1, 7), (1, 9)]


def test_fewer_shards_than_actors() -> None:
    given: list[tuple[int, int]] = []
    assert list(_finished(Cluster(), actors(3, lambda shard: None, given), [4])) == [4]
    assert given == [(0, 4)]


@pytest.mark.parametrize("error", ["ActorDiedError", "ActorUnavailableError", "NodeDiedError", "OutOfMemoryError"])
def test_a_lost_worker_is_one_line(error: str) -> None:
    def work(shard: int) -> None:
        raise getattr(exceptions, error)(
            *["x"] * (error != "ActorDiedError"), *[None] * (error == "ActorUnavailableError")
        )

    with pytest.raises(UserError, match=rf"a Ray worker died \({error}\).* try fewer --workers") as found:
        list(_finished(Cluster(), actors(2, work, []), [0, 1]))
    assert "\n" not in str(found.value)


def test_a_mistake_ends_the_work_and_a_fault_of_ours_keeps_its_traceback() -> None:
    given: list[tuple[int, int]] = []
    with pytest.raises(UserError, match=r"^mend this$"):
        list(_finished(Cluster(), actors(2, lambda shard: "mend this" if shard == 7 else None, given), [3, 5, 7, 9]))
    assert given[-1] == (1, 7), "nothing is begun after a mistake"

    def work(shard: int) -> None:
        raise exceptions.RayTaskError("embed", "the traceback", ZeroDivisionError())

    with pytest.raises(exceptions.RayTaskError, match="the traceback"):
        list(_finished(Cluster(), actors(1, work, []), [0]))
