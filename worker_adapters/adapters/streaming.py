"""StreamingAdapter: one attempt at a job, from what must be known first to the last frame, over whatever carries bytes.

What carries them is a subclass's: ``over_http.py`` for HTTP, ``over_grpc.py`` for gRPC.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from typing import Any, ClassVar, Protocol

from worker_adapters.adapters.framer import Framer
from worker_adapters.adapters.identity import IDENTIFY, Answer, Identity
from worker_adapters.adapters.jobs import JobAdapter
from worker_adapters.adapters.rules import ErrorRule, ErrorTable
from worker_adapters.cancel import Job
from worker_adapters.contract import Attempt, Wait
from worker_adapters.errors import EngineUnavailable, StreamTruncated, UnknownError, WorkerError, WorkerTimeout
from worker_adapters.frames import AnyFrame, StartedFrame
from worker_adapters.task import TaskRequest
from worker_adapters.transport.connection import Steps, bounded
from worker_adapters.transport.control import Reply
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.network import Address, Network
from worker_adapters.wire.delta import Decoder, EngineFault, WireRequest
from worker_adapters.wire.openai_faults import fault_in
from worker_adapters.wire.sse import Event, EventSplitter, EventTooLong

#: After the engine's reason for ending, usage and the terminal marker are waited for so long (seconds).
TAIL = 5.0
#: A refusal may teach the adapter another form of request so often a job (a field's name, a field to leave out).
LESSONS = 2
#: So many things may have to be asked before a task can be encoded.
QUESTIONS = 4


class Source(Protocol):
    """Where the bytes of a running answer come from: transport.reader.Exchange, or its like over gRPC."""

    wait: Wait
    #: Has ``receive`` given out all that will ever come? Must it be waited for first? Why is the body not whole, or "".
    ended: bool
    drained: bool
    broken: str

    @property
    def whole(self) -> bool:
        """Did the framing itself say that this was all?"""

    def receive(self) -> list[bytes] | None:
        """The pieces that are there now; None if nothing is yet."""


class StreamingAdapter(JobAdapter):
    """What an attempt needs of its adapter, and the part of an attempt that no carrier matters to."""

    #: Tried before adapters.rules.COMMON_RULES.
    rules: ClassVar[tuple[ErrorRule, ...]] = ()
    #: What tells version and model: (path, type of the JSON there, e.g. a msgspec Struct). The first must be answered.
    identity_questions: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def __init__(self, endpoint: Endpoint, network: Network, **options: Any) -> None:
        super().__init__(runtime=network, **options)
        self._endpoint = endpoint
        self._network = network
        #: Jobs that are at the engine now.
        self._running: set[Job] = set()
        self._identity = Identity(self.identity_questions, self.identity)
        self._errors = ErrorTable(self.engine, self._place(), endpoint, self.rules)

    # --- what a subclass supplies

    @abstractmethod
    def encode(self, task: TaskRequest) -> WireRequest:
        """The request of a task. No I/O.

        :raises InvalidRequest: a field or a combination that this engine cannot do.
        """

    @abstractmethod
    def decoder(self, task: TaskRequest) -> Decoder:
        """A fresh decoder for one attempt."""

    def identity(self, *answers: Any) -> Answer:
        """Version and model, from the answers to ``identity_questions``; one that did not come is None."""
        return "unknown", None

    def needs(self, task: TaskRequest) -> WireRequest | None:
        """What must be asked of the engine before this task can be encoded; None: nothing more."""
        return None

    def hears(self, task: TaskRequest, question: WireRequest, reply: Reply) -> None:
        """The answer to what ``needs`` asked.

        :raises WorkerError: the task cannot be done there.
        """

    def named(self, request: WireRequest, job_id: str) -> WireRequest:
        """The request with our name of the job in it, for an engine that takes one in the body."""
        return request

    def learns(self, status: int, fault: EngineFault, task: TaskRequest, request: WireRequest) -> bool:
        """Does this refusal tell how the server wants its requests? Then note it, for ``encode`` to say it so."""
        return False

    # --- what a carrier supplies

    @abstractmethod
    def _asked(
        self, task: TaskRequest, job: Job, request: WireRequest, *, may_learn: bool
    ) -> Generator[list[AnyFrame] | Wait, None, bool]:
        """One request and its answer; False if its refusal taught the adapter to ask in another form."""

    @abstractmethod
    def _question(
        self, question: WireRequest, job: Job, near: Address | None = None, budget: float | None = None
    ) -> Steps[Reply]:
        """A small request and the whole of its answer, in steps that a cancel of ``job`` reaches.

        :param near, budget: for connecting, see transport.connection.connect.
        """

    # --- the attempt

    def attempt(self, task: TaskRequest, job: Job) -> Attempt:
        return self._attempt(task, job, None)

    def _place(self) -> str:
        return f"{self.engine} at {self._endpoint.shown}"

    def _attempt(self, task: TaskRequest, job: Job, request: WireRequest | None) -> Attempt:
        """One try.

        :param request: the task as ``submit`` encoded it. It is encoded again after an answer that it hangs on; and a
            session's always, for where its KV cache may be used depends on what runs now.
        """
        asked = yield from self._prepared(task, job)
        if request is None or asked or task.session_id is not None:
            request = self.encode(task)
        self._running.add(job)
        try:
            for lesson in range(LESSONS + 1):
                if (yield from self._asked(task, job, request, may_learn=lesson < LESSONS)):
                    return
                request = self.encode(task)
        finally:
            self._running.discard(job)

    def _prepared(self, task: TaskRequest, job: Job) -> Generator[Wait, None, bool]:
        """Ask what the adapter needs to know before it can encode the task; was anything asked?

        Nothing was begun yet, so whatever goes wrong may be tried again.
        """
        for number in range(QUESTIONS):
            question = self.needs(task)
            if question is None:
                return number > 0
            try:
                reply = yield from self._question(question, job, budget=self.timeouts_of(task).connect)
            except EngineUnavailable as error:
                error.retriable = not job.cancelled
                raise
            self.hears(task, question, reply)
        return True

    def _identified(self, job: Job, near: Address | None) -> Generator[Wait, None, None]:
        """The started frame's version and model: from the cache, or by bounded GETs that cancel and clocks reach.

        Asked only now that the engine has answered: before, a dead engine would be waited for twice. It is time of the
        first token's, but if that runs out meanwhile, the job's own answer may lie there: who reads that, decides.
        """
        now = self._network.monotonic()
        if not self._identity.due(now):
            return
        answers: list[Any] = [None] * len(self._identity.questions)
        for number, (path, _shape) in enumerate(self._identity.questions):
            steps = self._question(WireRequest(path, method="GET"), job, near)
            try:
                reply = yield from bounded(steps, now + IDENTIFY, self._network, phase="first_token")
            except WorkerTimeout as error:
                if error.clock == "total":
                    raise
                break
            except WorkerError:
                if job.cancelled:
                    raise  # says nothing of the engine
                continue
            answers[number] = reply.json() if reply is not None and reply.status == 200 else None
        self._identity.heard(answers, self._network.monotonic())

    def _started(self, framer: Framer, task: TaskRequest, job: Job) -> StartedFrame:
        version, model = self._endpoint.masked(list(self._identity.known))
        model = task.model or model or self._endpoint.masked(framer.decoder.model)
        return StartedFrame(job.job_id, self.engine, version, model)

    def _frames(self, source: Source, framer: Framer, task: TaskRequest, job: Job) -> Attempt:
        """Bytes to frames, until the engine has said all; raises whatever keeps it from doing so."""
        splitter = EventSplitter(framer.fields_as_events)
        wait = source.wait
        started = False
        while True:
            body = source.receive()
            frames = framer.feed(self._events(splitter, body)) if body else []
            if source.ended and source.whole and not splitter.cut_off:
                frames += framer.conclude()
            if framer.began and not started:
                started = True
                frames.insert(0, self._started(framer, task, job))
            if frames:
                yield frames
                if framer.content:
                    wait.phase = "between_tokens"
            if framer.over or source.ended:
                break
            if framer.finish is not None and self._tail_is_over(wait):
                return  # the reason is known; only usage or the marker is missing
            if source.drained or not frames:
                try:
                    yield wait  # also after bytes that held no frame: else a flood of comments would stop every clock
                except WorkerTimeout:
                    if framer.finish is None:
                        raise
                    return  # only ``total`` runs by now, and the answer is whole
        self._concluded(source.broken, framer, task, splitter.outside)

    def _events(self, splitter: EventSplitter, body: list[bytes]) -> list[Event]:
        """What ``source`` gave, as events."""
        try:
            return splitter.feed(b"".join(body))
        except EventTooLong as error:
            raise UnknownError(message=f"{self.engine}: {error}", phase="stream") from error

    def _tail_is_over(self, wait: Wait) -> bool:
        """Has the usage been waited for long enough? No clock of the caller's runs: the job has not failed."""
        now = self._network.monotonic()
        if wait.until is None:
            wait.phase, wait.until = "", now + TAIL
        return now >= wait.until

    def _concluded(self, broken: str, framer: Framer, task: TaskRequest, outside: bytes = b"") -> None:
        """Nothing more will come: was it the engine's own end?

        :param broken: why the body is not whole, or "".
        :param outside: what stood in no event.
        """
        fault = framer.fault
        if fault is None and framer.finish is None:  # a server that fails may forget that it streams, or its own form
            fault = fault_in(outside) or fault_in(framer.unread)
        if fault is not None:
            raise self._errors.fault(fault, task.texts(), began=framer.began)
        if framer.finish is not None:
            return  # bytes that are missing after the reason are no truncation
        if framer.garbled:
            raise UnknownError(message=f"{self.engine} sent an event that is no JSON: {framer.garbled}", phase="stream")
        how = broken or "the answer ended"
        message = f"{self._place()}: {how} without the engine's reason for ending"
        phase = "stream" if framer.began else "first_token"
        if broken and not framer.began:
            raise EngineUnavailable(message=message, phase=phase)
        raise StreamTruncated(message=message, phase=phase)


def sayable(text: str) -> bool:
    """Does a header say it faithfully? Nothing but ASCII, and no blanks at its ends."""
    return text.isascii() and text == text.strip()


def correlation(task: TaskRequest) -> list[tuple[str, str]]:
    """The header that carries the caller's own name of what a job belongs to, if there is one."""
    named = task.correlation_id
    return [("X-Correlation-Id", named)] if named is not None and sayable(named) else []
