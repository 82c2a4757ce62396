"""The definition of the contract, as tests: one class, run over every adapter.

    class TestMyAdapter(ConformanceSuite):
        @pytest.fixture
        def stand(self):
            with closing(SimulatorStand(MyAdapter, MySimulator())) as stand:
                yield stand

Times are asserted only with margins that a busy machine keeps; figures are measured by the benchmarks.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import (
    CapacityExceeded,
    EngineUnavailable,
    InvalidRequest,
    StreamTruncated,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.frames import EndFrame, ErrorFrame, StartedFrame, TokenFrame, frame_from_dict
from worker_adapters.stream import TokenStream
from worker_adapters.testing.stand import Stand

PROMPT = "PROMPT-CANARY-5f2e the quick brown fox"
#: No clock of these tests may take so long (seconds); whoever waits longer hangs.
SOON = 5.0
SHORT = 0.3


class ConformanceSuite:
    """Every promise of the contract. Subclass it with a ``stand`` fixture."""

    @pytest.fixture
    def stand(self) -> Iterator[Stand]:
        """The engine under test; a subclass supplies it."""
        raise NotImplementedError("override the stand fixture")

    @pytest.fixture
    def adapter(self, stand: Stand) -> Iterator[WorkerAdapter]:
        """An adapter of a well-behaved engine."""
        with stand.adapter() as adapter:
            yield adapter

    # --- the frames of a healthy job

    def test_frames_come_in_order(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """A job is started, then tokens with contiguous indexes, then an end that says why."""
        frames = list(adapter.submit(PROMPT))
        tokens = [frame for frame in frames if isinstance(frame, TokenFrame)]
        assert [frame.type for frame in frames] == ["started", *["token"] * len(tokens), "end"]
        assert 1 < len(tokens) <= len(stand.tokens)  # a real engine that was held up sends two at once
        assert [token.index for token in tokens] == list(range(len(tokens)))
        assert "".join(token.text for token in tokens) == "".join(stand.tokens)

    def test_started_says_who_answers(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``started`` names the job, the engine and its version, and the model."""
        started = next(iter(adapter.submit(PROMPT, job_id="mine")))
        assert isinstance(started, StartedFrame)
        assert (started.job_id, started.engine) == ("mine", stand.engine)
        assert started.engine_version == adapter.engine_version()
        assert started.model

    def test_the_end_carries_metrics(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """The end frame counts tokens and tells the times in order."""
        end = list(adapter.submit(PROMPT))[-1]
        assert isinstance(end, EndFrame)
        assert end.finish_reason == "stop"
        metrics = end.metrics
        assert metrics.tokens_out >= len(stand.tokens)
        assert metrics.first_token_ms is not None
        assert metrics.total_ms is not None
        assert 0 <= (metrics.queue_ms or 0) <= metrics.first_token_ms <= metrics.total_ms

    def test_frames_survive_a_relay(self, adapter: WorkerAdapter) -> None:
        """Every frame goes to a dict and back unchanged."""
        for frame in adapter.submit(PROMPT):
            assert frame_from_dict(frame.to_dict()) == frame

    def test_max_tokens_is_obeyed(self, stand: Stand) -> None:
        """A job that reaches max_tokens ends with ``length``."""
        self._need(stand, "endless")
        stand.endless()
        with stand.adapter() as adapter:
            completion = adapter.submit(PROMPT, max_tokens=7).result()
        assert completion.finish_reason == "length"
        assert completion.metrics.tokens_out == 7

    def test_messages_are_answered_as_prompts_are(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """A conversation gives the same kind of frames as a prompt; an engine that takes none says so."""
        if not adapter.capabilities.messages:
            with pytest.raises(InvalidRequest) as caught:
                adapter.submit([{"role": "user", "content": PROMPT}])
            assert caught.value.field == "messages"
            return
        completion = adapter.submit([{"role": "user", "content": PROMPT}]).result()
        assert completion.text == "".join(stand.tokens)

    def test_result_is_the_whole_answer(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``result`` returns everything, also what was read before, and again when asked again."""
        stream = adapter.submit(PROMPT)
        next(stream)
        next(stream)
        assert stream.result().text == "".join(stand.tokens)
        assert stream.result().text == "".join(stand.tokens)

    def test_texts_is_the_answer_alone(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``texts`` yields the pieces of the answer and nothing else."""
        assert "".join(adapter.submit(PROMPT).texts()) == "".join(stand.tokens)

    # --- submitting

    def test_submit_sends_nothing(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``submit`` returns without I/O; the first ``next`` sends the task."""
        with adapter.submit(PROMPT) as stream:
            assert stand.received == 0
            assert stream.started is None
            next(stream)
            assert stand.received == 1

    def test_start_sends_once(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``start`` waits for the engine's acceptance, and a second one does nothing."""
        with adapter.submit(PROMPT) as stream:
            stream.start()
            stream.start()
            assert stream.started is not None
            assert stand.received == 1
            assert next(stream) == stream.started

    def test_jobs_get_ids_of_their_own(self, adapter: WorkerAdapter) -> None:
        """A job without an id gets one that no other has."""
        with adapter.submit(PROMPT) as one, adapter.submit(PROMPT) as other:
            assert one.job_id != other.job_id

    def test_an_id_in_flight_is_refused(self, adapter: WorkerAdapter) -> None:
        """Two jobs of one id cannot be in flight; once the first has ended, the id is free."""
        with adapter.submit(PROMPT, job_id="twin"):
            with pytest.raises(InvalidRequest) as caught:
                adapter.submit(PROMPT, job_id="twin")
            assert caught.value.field == "job_id"
        assert adapter.submit(PROMPT, job_id="twin").result().text

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"max_tokens": 0}, "max_tokens"),
            ({"temperature": float("nan")}, "temperature"),
            ({"stop": [""]}, "stop"),
            ({"colour": "red"}, "colour"),
            ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"extra": {"stream": False}}, "extra.stream"),
            ({"extra": {"x": object()}}, "extra"),
            ({"timeouts": {"connect": 0}}, "timeouts.connect"),
        ],
    )
    def test_bad_input_names_its_field(
        self, stand: Stand, adapter: WorkerAdapter, fields: dict[str, object], named: str
    ) -> None:
        """Bad input is an InvalidRequest that names the field, before a byte is sent, without quoting the prompt."""
        with pytest.raises(InvalidRequest) as caught:
            adapter.submit(PROMPT, **fields)
        assert caught.value.field == named
        assert named.rsplit(".", maxsplit=1)[-1] in caught.value.message
        assert "CANARY" not in repr(caught.value)
        assert stand.received == 0

    def test_a_dropped_unstarted_stream_warns(self, adapter: WorkerAdapter) -> None:
        """A stream that is dropped unread says so, and frees its id."""
        with pytest.warns(ResourceWarning, match="never read"):
            adapter.submit(PROMPT, job_id="dropped")
        adapter.submit(PROMPT, job_id="dropped").result()

    def test_closing_unstarted_is_silent(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """``with`` around a stream that is never read sends nothing and says nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with adapter.submit(PROMPT):
                pass
        assert stand.received == 0

    # --- cancelling

    def test_cancel_of_an_unknown_job_is_false(self, adapter: WorkerAdapter) -> None:
        """``cancel`` of a job that is not in flight returns False."""
        assert adapter.cancel("nobody") is False
        stream = adapter.submit(PROMPT)
        stream.result()
        assert adapter.cancel(stream.job_id) is False

    def test_cancel_before_start(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """A job cancelled before it was sent is never sent; its stream is one end frame."""
        stream = adapter.submit(PROMPT)
        assert adapter.cancel(stream.job_id) is True
        assert adapter.cancel(stream.job_id) is False
        stream.start()
        frames = list(stream)
        assert [frame.type for frame in frames] == ["end"]
        assert isinstance(frames[0], EndFrame)
        assert frames[0].finish_reason == "cancelled"
        assert stand.received == 0

    def test_no_token_after_cancel(self, stand: Stand) -> None:
        """No ``next`` that begins after ``cancel`` returned yields a token, even if tokens had already come."""
        self._need(stand, "endless")
        stand.endless()
        with stand.adapter() as adapter:
            stream = adapter.submit(PROMPT, max_tokens=stand.most_tokens)
            read = [next(stream) for _ in range(4)]
            assert adapter.cancel(stream.job_id) is True
            (end,) = list(stream)
            assert isinstance(end, EndFrame)
            assert end.finish_reason == "cancelled"
            assert end.metrics.tokens_out == 3
            assert stream.result().text == "".join(f.text for f in read if isinstance(f, TokenFrame))
            assert stand.idle()

    def test_cancel_frees_a_reader_that_waits_for_the_head(self, stand: Stand) -> None:
        """``cancel`` from another thread frees a reader whose engine has not answered at all."""
        self._need(stand, "silent_head")
        stand.silent_head()
        self._cancel_while_blocked(stand, expected=["end"])

    def test_cancel_frees_a_reader_that_waits_for_a_token(self, stand: Stand) -> None:
        """``cancel`` from another thread frees a reader whose engine fell silent."""
        self._need(stand, "silent_after")
        stand.silent_after(2)
        self._cancel_while_blocked(stand, expected=["started", "token", "token", "end"])

    def _cancel_while_blocked(self, stand: Stand, expected: list[str]) -> None:
        with stand.adapter() as adapter:
            stream = adapter.submit(PROMPT)
            seen: list[str] = []
            blocked = threading.Event()

            def read() -> None:
                for frame in stream.ticks(0.05):
                    if frame is None:
                        if len(seen) == len(expected) - 1:
                            blocked.set()
                    else:
                        seen.append(frame.type)

            reader = threading.Thread(target=read)
            reader.start()
            assert blocked.wait(SOON)
            assert stream.cancel() is True
            reader.join(SOON)
            assert not reader.is_alive()
            assert seen == expected
            assert stand.idle()

    def test_close_stops_the_engine(self, stand: Stand) -> None:
        """``close`` ends the iteration, tells the engine, and may be called again."""
        self._need(stand, "endless")
        stand.endless()
        with stand.adapter() as adapter:
            stream = adapter.submit(PROMPT, max_tokens=stand.most_tokens)
            next(stream)
            stream.close()
            stream.close()
            assert list(stream) == []
            assert adapter.cancel(stream.job_id) is False
            assert stand.idle()

    def test_a_dropped_stream_stops_the_engine(self, stand: Stand) -> None:
        """Leaving a loop frees the connection and the engine by reference count alone."""
        self._need(stand, "endless")
        stand.endless()
        gc.disable()
        try:
            with stand.adapter() as adapter:
                for frame in adapter.submit(PROMPT, max_tokens=stand.most_tokens):
                    if frame.type == "token":
                        break
                assert stand.idle()
        finally:
            gc.enable()

    # --- clocks

    def test_first_token_clock(self, stand: Stand) -> None:
        """An engine that never answers trips ``first_token``; nothing is sent twice."""
        self._need(stand, "silent_head")
        stand.silent_head()
        with stand.adapter(timeouts={"first_token": SHORT}) as adapter:
            error = self._raised(adapter.submit(PROMPT), WorkerTimeout)
            assert isinstance(error, WorkerTimeout)
            assert error.clock == "first_token"
            assert not error.retriable
            assert stand.received == 1
            assert stand.idle()

    def test_between_tokens_clock(self, stand: Stand) -> None:
        """An engine that falls silent trips ``between_tokens``; the error carries what came before."""
        self._need(stand, "silent_after")
        stand.silent_after(2)
        with stand.adapter(timeouts={"between_tokens": SHORT}) as adapter:
            error = self._raised(adapter.submit(PROMPT), WorkerTimeout)
            assert isinstance(error, WorkerTimeout)
            assert (error.clock, error.tokens_seen) == ("between_tokens", 2)
            assert error.partial_text == "".join(stand.tokens[:2])

    def test_comments_feed_no_clock(self, stand: Stand) -> None:
        """Keep-alive comments do not keep a silent job alive."""
        self._need(stand, "comments_after")
        stand.comments_after(2)  # type: ignore[attr-defined]  # in ``can``, so it is there
        with stand.adapter(timeouts={"between_tokens": SHORT}) as adapter:
            error = self._raised(adapter.submit(PROMPT), WorkerTimeout)
            assert isinstance(error, WorkerTimeout)
            assert error.clock == "between_tokens"

    def test_total_clock(self, stand: Stand) -> None:
        """``total`` ends a job whose tokens never stop."""
        self._need(stand, "endless")
        stand.endless()
        with stand.adapter(timeouts={"total": SHORT}) as adapter:
            error = self._raised(adapter.submit(PROMPT, max_tokens=stand.most_tokens), WorkerTimeout)
            assert isinstance(error, WorkerTimeout)
            assert error.clock == "total"

    def test_a_slow_consumer_trips_nothing(self, stand: Stand) -> None:
        """Time that the consumer takes is not the engine's: nothing is lost, no clock fires."""
        with stand.adapter(timeouts={"first_token": SHORT, "between_tokens": SHORT}) as adapter:
            texts = []
            for frame in adapter.submit(PROMPT):
                time.sleep(SHORT * 1.2)
                if isinstance(frame, TokenFrame):
                    texts.append(frame.text)
            assert "".join(texts) == "".join(stand.tokens)

    def test_ticks_while_nothing_comes(self, stand: Stand) -> None:
        """``ticks`` yields None whenever nothing came for so long, and a tick restarts no clock."""
        self._need(stand, "silent_head")
        stand.silent_head()
        with stand.adapter(timeouts={"first_token": SHORT}) as adapter:
            ticks = adapter.submit(PROMPT).ticks(SHORT / 10)
            beats = 0
            with pytest.raises(WorkerTimeout):
                for frame in ticks:
                    assert frame is None
                    beats += 1
            assert 2 <= beats <= 10

    # --- what engines do wrong

    def test_a_refusal_is_retried_unseen(self, stand: Stand) -> None:
        """A job that was refused before it began is tried again; the user sees one job."""
        self._need(stand, "refuse")
        stand.refuse(2)
        with stand.adapter(retry={"base": 0.01}) as adapter:
            assert adapter.submit(PROMPT).result().text == "".join(stand.tokens)
            assert stand.received == 3

    def test_a_refusal_for_good_is_raised(self, stand: Stand) -> None:
        """Retries end, and the error says that the job may be tried again: it never began."""
        self._need(stand, "refuse")
        stand.refuse(10)
        with stand.adapter(retry={"base": 0.01, "attempts": 3}) as adapter:
            stream = adapter.submit(PROMPT)
            with pytest.raises((EngineUnavailable, CapacityExceeded)) as caught:
                stream.start()
            assert caught.value.retriable
            assert caught.value.job_id == stream.job_id
            assert stand.received == 3

    def test_a_truncated_stream_is_an_error(self, stand: Stand) -> None:
        """A stream that is cut off is StreamTruncated, with what came before; it is never tried again."""
        self._need(stand, "truncate_after")
        stand.truncate_after(3)
        with stand.adapter() as adapter:
            stream = adapter.submit(PROMPT)
            error = self._raised(stream, StreamTruncated)
            assert (error.tokens_seen, error.partial_text) == (3, "".join(stand.tokens[:3]))
            assert (error.retriable, error.phase, error.engine) == (False, "stream", stand.engine)
            assert stand.received == 1
            with pytest.raises(StreamTruncated):
                stream.result()
            assert adapter.cancel(stream.job_id) is False

    def test_an_error_in_the_stream_is_typed(self, stand: Stand) -> None:
        """An error that the engine reports mid-stream comes after the tokens it followed, and is no truncation."""
        self._need(stand, "fail_after")
        stand.fail_after(2)
        with stand.adapter() as adapter:
            error = self._raised(adapter.submit(PROMPT), WorkerError)
            assert not isinstance(error, StreamTruncated)  # it says what went wrong
            assert error.tokens_seen == 2
            assert not error.retriable
            assert "CANARY" not in str(error)

    def test_relay_never_raises(self, stand: Stand) -> None:
        """``relay`` gives an error as its last frame, from which the same error can be made again."""
        self._need(stand, "truncate_after")
        stand.truncate_after(1)
        with stand.adapter() as adapter:
            last = list(adapter.submit(PROMPT).relay())[-1]
            assert isinstance(last, ErrorFrame)
            again = frame_from_dict(last.to_dict())
            assert isinstance(again, ErrorFrame)
            error = again.to_exception()
            assert isinstance(error, StreamTruncated)
            assert error.tokens_seen == 1

    def test_errors_survive_pickling(self, stand: Stand) -> None:
        """An error that a job raised can be pickled with all it says."""
        self._need(stand, "truncate_after")
        stand.truncate_after(1)
        with stand.adapter() as adapter:
            error = self._raised(adapter.submit(PROMPT), StreamTruncated)
            assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()

    def test_the_next_job_works(self, stand: Stand) -> None:
        """A job that failed leaves the adapter as it was."""
        self._need(stand, "silent_after")
        stand.silent_after(1)
        with stand.adapter(timeouts={"between_tokens": SHORT}) as adapter:
            self._raised(adapter.submit(PROMPT), WorkerTimeout)
            if stand.engine != "mock":  # a mock falls silent in every job
                assert adapter.submit(PROMPT).result().text == "".join(stand.tokens)

    # --- what engines say of themselves

    def test_health_of_a_ready_engine(self, adapter: WorkerAdapter) -> None:
        """A ready engine is healthy, with and without a probe."""
        assert adapter.health().ready
        probed = adapter.health(probe=True)
        assert (probed.state, probed.live, probed.ready) == ("healthy", True, True)

    def test_an_engine_that_is_down(self, stand: Stand) -> None:
        """Health of a dead engine is reported, not raised; props and jobs raise EngineUnavailable."""
        self._need(stand, "down")
        with stand.adapter(retry={"attempts": 1}) as adapter:
            stand.down()
            status = adapter.health()
            assert (status.state, status.live, status.ready) == ("unhealthy", False, False)
            assert status.message
            self._raised(adapter.submit(PROMPT), EngineUnavailable)
            with pytest.raises(EngineUnavailable):
                adapter.props()

    def test_props(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """Props name the engine and what is known of it; they survive JSON."""
        props = adapter.props()
        assert props.engine == stand.engine
        assert props.engine_version == adapter.engine_version()
        assert props.model
        assert type(props).from_dict(props.to_dict()) == props

    # --- threads, forks, pickles

    def test_threads_share_an_adapter(self, stand: Stand) -> None:
        """Jobs of many threads on one adapter never get each other's tokens."""
        self._need(stand, "echo")
        stand.echo()
        with stand.adapter() as adapter, ThreadPoolExecutor(8) as threads:

            def run(number: int) -> bool:
                text = adapter.submit(f"job{number}", max_tokens=10).result().text
                return text.split() == [f"job{number}"] * 10

            assert all(threads.map(run, range(160)))

    def test_an_adapter_is_pickled_by_configuration(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """A pickled adapter is a new one of the same configuration."""
        again = pickle.loads(pickle.dumps(adapter))
        with again:
            assert again.submit(PROMPT).result().text == "".join(stand.tokens)

    def test_a_stream_is_not_pickled(self, adapter: WorkerAdapter) -> None:
        """A stream holds a live connection and refuses to pickle."""
        with adapter.submit(PROMPT) as stream, pytest.raises(TypeError):
            pickle.dumps(stream)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
    def test_fork(self, stand: Stand, adapter: WorkerAdapter) -> None:
        """After a fork an inherited stream raises in the child and goes on in the parent; new jobs work in both."""
        adapter.submit(PROMPT).result()
        stream = adapter.submit(PROMPT)
        next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                self._raised(stream, EngineUnavailable)
                code = 0 if adapter.submit(PROMPT).result().text == "".join(stand.tokens) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert stream.result().text == "".join(stand.tokens)
        assert adapter.submit(PROMPT).result().text == "".join(stand.tokens)

    def test_reprs_hold_no_prompt(self, adapter: WorkerAdapter) -> None:
        """Neither stream nor adapter shows a prompt."""
        with adapter.submit(PROMPT) as stream:
            assert "CANARY" not in repr(stream) + repr(adapter)

    # --- helpers

    @staticmethod
    def _need(stand: Stand, *behaviours: str) -> None:
        missing = [name for name in behaviours if name not in stand.can]
        if missing:
            pytest.skip(f"{stand.engine} cannot be told to: {', '.join(missing)}")

    @staticmethod
    def _raised(stream: TokenStream, kind: type[WorkerError]) -> WorkerError:
        with pytest.raises(kind) as caught:
            for _ in stream:
                pass
        return caught.value
