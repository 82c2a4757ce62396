"""Placement: which replica a job goes to, or why to none. Pure: no lock, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Container, Sequence

from worker_adapters.errors import ContextOverflow, EngineUnavailable, PoolUnavailable, WorkerError
from worker_adapters.host.breaker import CLOSED
from worker_adapters.host.replica import Replica
from worker_adapters.task import TaskRequest

POLICIES = ("off", "warn", "strict")
#: What the strict policy takes.
RESIDENT = "gpu"
#: No tokenizer that is used has a token of more bytes: a prompt of more than that many for each place in the context
#: does not fit, whatever it says.
BYTES_A_TOKEN = 1024
#: A replica that is not ready is looked at again after so many seconds, which is when to come back.
LOOK_AGAIN_MS = 1000


def choose(
    candidates: Sequence[Replica], *, now: float, known: str | None, tried: Container[Replica]
) -> Replica | None:
    """The best of those with room; None: all are full.

    Untried ones first (a failover goes elsewhere), then where the session's KV cache is, then the least jobs, then the
    most free slots.

    :param known: the replica that the session was last on.
    """
    best, least = None, None
    for replica in candidates:
        busy = replica.busy(now)
        if replica.max_in_flight is None or busy < replica.max_in_flight:
            rank = (replica in tried, replica.name != known, busy, -replica.free_slots)
            if least is None or rank < least:
                best, least = replica, rank
    return best


def usable(replicas: Sequence[Replica], now: float) -> list[Replica]:
    """Those that are ready and whose breaker lets a job through."""
    return [r for r in replicas if not r.draining and r.ready and (r.breaker.state == CLOSED or r.breaker.admits(now))]


def none_usable(pool: str, replicas: Sequence[Replica], now: float) -> WorkerError:
    """Why no replica takes a job now, and when to try again."""
    if not replicas:
        return EngineUnavailable(message=f"pool {pool!r} has no replica", retriable=True, phase="queue")
    words, waits = [], []
    for replica in replicas:
        left = replica.breaker.opens_in(now)
        if replica.draining:
            words.append(f"{replica.name} is leaving")
        elif not replica.breaker.admits(now):
            words.append(f"{replica.name} failed, its breaker is {replica.breaker.state}")
            waits.append(left * 1000.0)
        else:
            said = replica.health.message if replica.health is not None else ""
            words.append(f"{replica.name} is not ready" + (f" ({said})" if said else ""))
            waits.append(LOOK_AGAIN_MS)
    return EngineUnavailable(
        message=f"pool {pool!r}: no ready replica: {'; '.join(words)}",
        retriable=True,
        retry_after_ms=max(1, int(min(waits))) if waits else None,
        phase="queue",
    )


def resident(replica: Replica) -> bool:
    """Is it known to run on the GPU alone?"""
    return replica.residency == RESIDENT


def not_resident(pool: str, replicas: Sequence[Replica]) -> PoolUnavailable:
    """The refusal of the strict policy: which replica, what it reported, and what would be accepted."""
    told = "; ".join(
        f"{r.name} {'was declared' if r.declared else 'reports'} {r.residency}"
        + (" (declare it with residency= if you know)" if r.residency == "unknown" else "")
        for r in replicas
    )
    message = f"pool {pool!r} takes GPU-resident engines only (policy strict): {told}; accepted: {RESIDENT}"
    return PoolUnavailable(message=message, phase="queue")


def overflow(task: TaskRequest, replicas: Sequence[Replica]) -> ContextOverflow | None:
    """A prompt that is certainly too long for every replica; what is not certain is the engine's to say."""
    texts = [message.content or "" for message in task.messages or ()] if task.prompt is None else [task.prompt]
    size = sum(map(len, texts))  # characters: never more than bytes
    if size <= BYTES_A_TOKEN:
        return None
    sizes = [r.props.context_size if r.props is not None else None for r in replicas]
    if not sizes or any(told is None for told in sizes):
        return None
    largest = max(told for told in sizes if told is not None)
    if size <= largest * BYTES_A_TOKEN:
        return None
    return ContextOverflow(
        message=f"a prompt of {size} characters cannot fit into {largest} tokens", context_size=largest, phase="submit"
    )
