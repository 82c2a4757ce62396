"""The inbox of a gRPC call: bounded, nothing lost, and freed by whoever wants no more."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("grpc")

from worker_adapters.transport_grpc.inbox import SIZE, Inbox

pytestmark = pytest.mark.triton

SOON = 20.0


def filler(inbox: Inbox, count: int) -> threading.Thread:
    """A thread that leaves so many numbers."""

    def fill() -> None:
        for number in range(count):
            inbox.put(number)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    return thread


def test_a_slow_reader_is_waited_for_and_loses_nothing() -> None:
    """All come, in their order, and so many at most wait."""
    inbox = Inbox()
    thread = filler(inbox, 5 * SIZE + 7)
    got: list[int] = []
    while len(got) < 5 * SIZE + 7:
        assert inbox.block(SOON)
        batch = inbox.take()
        assert len(batch) <= 2 * SIZE  # some more may come while it is emptied
        got += batch
    thread.join(SOON)
    assert not thread.is_alive()
    assert got == list(range(5 * SIZE + 7))


def test_a_reader_that_wants_no_more_frees_who_waits_for_it() -> None:
    """Closing lets whoever fills the inbox go on to its end."""
    inbox = Inbox()
    thread = filler(inbox, 3 * SIZE)
    while inbox._queue.qsize() < SIZE:
        pass
    inbox.close()
    thread.join(SOON)
    assert not thread.is_alive()


def test_a_closed_inbox_wakes_its_reader() -> None:
    """As a cancel does: the wait ends, and nothing is there."""
    inbox = Inbox()
    threading.Timer(0.1, inbox.close).start()
    assert inbox.block(SOON)
    assert inbox.take() == []
