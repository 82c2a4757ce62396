"""The real llama.cpp server from the wheel ``xllamacpp``, in a child process that can be killed, stopped and reaped."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from worker_adapters.embedded.model_file import check_model_file
from worker_adapters.embedded.recite import write_recite_gguf

if os.name == "posix":
    import fcntl

__all__ = ["EmbeddedLlamaCpp", "EmbeddedServerError"]

_CHILD = Path(__file__).with_name("llamacpp_child.py")
_LOG_TAIL_LINES = 15
#: The first error in llama.cpp's log says what is wrong, the later ones what it gave up because of it. Before the words
#: stand the names of C++ functions.
_COMPLAINT = re.compile(r"^\S+ E +(?:\w+: +)?(?:(?:error|failed to)[a-z ]*: +)*(.+)$", re.MULTILINE)


class EmbeddedServerError(RuntimeError):
    """The embedded server did not start; the message holds the last lines of its log.

    :ivar reason: llama.cpp's own words for it, in one line; None where it said nothing.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class EmbeddedLlamaCpp:
    """A llama.cpp server on this machine, without GPU and download, up in about 0.1 s.

    ::

        with EmbeddedLlamaCpp() as server:
            requests.get(server.url + "/health")

    The server runs in a process of its own. It ends with :meth:`close`, with the ``with`` block, when the object is
    collected, and by itself when this process dies, however it dies. POSIX only.

    :param model: path of a GGUF file; None writes the model that recites (:func:`write_recite_gguf`) to a temporary
        folder, which :meth:`close` deletes.
    :param alias: name of the model that the server reports; None leaves the engine's own choice.
    :param slots: requests served at the same time; further ones wait in the server's queue.
    :param context: tokens of context of all slots together; one slot has ``context // slots``.
    :param batch: tokens of prompt computed in one go (``n_batch``, and ``n_ubatch`` up to 512). While one runs, no
        other slot gets a token and no cancelled request ends.
    :param threads: threads that compute. They wait for each other in a busy loop: more than there are idle cores makes
        the server many times slower.
    :param api_key: required by the server on all paths but ``/health``.
    :param sleep_idle_seconds: free the model after so many seconds without work; None never does.
    :param host: address to listen on.
    :param port: 0 takes a free port at the first start and keeps it for later ones.
    :param endpoints: serve ``/slots``, ``/props`` (also POST) and ``/metrics``.
    :param warmup: run the model once before it is ready.
    :param hold_loading: keep the server in its loading state, in which every path answers 503 ``Loading model``, until
        :meth:`finish_loading` or for 45 s (``/proc/sys/fs/lease-break-time``). :meth:`start` then returns as soon as
        it answers. Linux only: a file lease on the model holds up the server's open(), and needs a model file that
        this user owns and nobody else has open.
    :param start_timeout: seconds until the server must be ready.
    :param extra: further attributes of ``xllamacpp.CommonParams``, dots for nested ones, set last:
        ``{"sse_ping_interval": 1, "n_ubatch": 64, "sampling.top_k": 1, "embedding": True}``. The value has the type of
        the attribute; a list will do for a set.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        alias: str | None = None,
        slots: int = 4,
        context: int = 2048,
        batch: int = 2048,
        threads: int = 1,
        api_key: str | None = None,
        sleep_idle_seconds: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        endpoints: bool = True,
        warmup: bool = False,
        hold_loading: bool = False,
        start_timeout: float = 30.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("slots", slots), ("context", context), ("batch", batch), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._model = None if model is None else Path(model)
        self._host = host
        self._port = port
        self._hold_loading = hold_loading
        self._start_timeout = start_timeout
        self._params: dict[str, Any] = {
            "n_parallel": slots,
            "n_ctx": context,
            "n_batch": batch,
            "n_ubatch": min(batch, 512),
            "cpuparams.n_threads": threads,
            "cpuparams_batch.n_threads": threads,
            "n_gpu_layers": 0,
            "hostnames": [host],
            "endpoint_slots": endpoints,
            "endpoint_props": endpoints,
            "endpoint_metrics": endpoints,
            "warmup": warmup,
            # The default is about slots + 4: with more requests waiting, even /health waits for a thread.
            "n_threads_http": 32,
            "ui": False,
            # Sizing parameters to the free memory costs a second load of the model and is for GPUs.
            "fit_params": False,
        }
        if alias is not None:
            self._params["model_alias"] = [alias]
        if api_key is not None:
            self._params["api_keys"] = [api_key]
        if sleep_idle_seconds is not None:
            self._params["sleep_idle_seconds"] = sleep_idle_seconds
        self._params.update(extra or {})
        self._folder: Path | None = None
        self._owner = 0  # the process that made the folder
        self._run: _Run | None = None
        self._url: str | None = None
        self._finalizer: weakref.finalize[..., EmbeddedLlamaCpp] | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid} at {self._url}" if self.running else "not running"
        return f"<{type(self).__name__} {state}>"

    @property
    def url(self) -> str:
        """Base URL without a slash at its end; RuntimeError before the first start."""
        if self._url is None:
            raise RuntimeError("the server was never started")
        return self._url

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The TCP port; RuntimeError before the first start if it was to be chosen."""
        if not self._port:
            raise RuntimeError("the server was never started")
        return self._port

    @property
    def pid(self) -> int:
        """Process id of the server; RuntimeError when there is no process."""
        if self._run is None:
            raise RuntimeError("the server is not running")
        return self._run.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (also while stopped by :meth:`pause`)."""
        return self._run is not None and self._run.process.poll() is None

    @property
    def model_path(self) -> Path:
        """The GGUF file; RuntimeError when it is generated and not there (before start, after close)."""
        if self._model is not None:
            return self._model
        if self._folder is None:
            raise RuntimeError("the server was never started")
        return self._folder / "recite.gguf"

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the server's log, all runs since the last close; empty when there is none."""
        if self._folder is None:
            return ""
        try:
            text = (self._folder / "server.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> EmbeddedLlamaCpp:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> EmbeddedLlamaCpp:
        """Start the server and wait until it is ready; a no-op while it runs. After a kill it starts on the same port.

        :raises ImportError: the wheel ``xllamacpp`` is missing.
        :raises OSError: there is no model file, or it cannot be read.
        :raises ValueError: the model file is empty, or no GGUF file.
        :raises EmbeddedServerError: the server ended, refused a parameter or the model, or was not ready in time.
        """
        if self.running:
            return self
        if os.name != "posix":
            raise EmbeddedServerError("the embedded server needs a POSIX system")
        if importlib.util.find_spec("xllamacpp") is None:
            raise ImportError(
                'the embedded llama.cpp server needs the wheel xllamacpp: pip install "worker-adapters[demo]"',
                name="xllamacpp",
            )
        if self._model is not None:
            check_model_file(self._model)
        self._end(grace=0.0)
        try:
            self._launch()
        except BaseException:
            self.close()
            raise
        return self

    def finish_loading(self) -> None:
        """Let a server with ``hold_loading`` load its model and wait until it is ready; else a no-op.

        :raises EmbeddedServerError: as :meth:`start`.
        """
        if self._run is None or self._run.lease is None:
            return
        self._run.drop_lease()
        try:
            self._wait_ready(self._run, time.monotonic() + self._start_timeout)
        except BaseException:
            self.close()
            raise

    def pause(self) -> None:
        """Stop the process where it stands (SIGSTOP): connections stay open and nothing answers.

        :raises RuntimeError: the server is not running.
        """
        self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            # The signal is on its way only; without the wait the server may answer once more.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT).

        :raises RuntimeError: the server is not running.
        """
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process (SIGKILL) and reap it; a no-op when it is gone. :meth:`start` brings the server back."""
        self._end(grace=0.0)

    def terminate(self, timeout: float = 5.0) -> None:
        """End the process (SIGTERM; after ``timeout`` seconds SIGKILL) and reap it; a no-op when it is gone."""
        self._end(grace=timeout)

    def close(self) -> None:
        """End the process and delete the temporary folder. Never fails because it was called before."""
        self._end(grace=5.0)
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if self._folder is not None:
            self._delete(self._folder, self._owner)
            self._folder = None

    def _launch(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        if self._folder is None:
            # No TemporaryDirectory: its finalizer would delete the folder from a forked copy of this process, too.
            self._folder = Path(tempfile.mkdtemp(prefix="worker-adapters-"))
            self._owner = os.getpid()
        if self._model is None and not self.model_path.exists():
            write_recite_gguf(self.model_path)
        lease = None
        if self._hold_loading:
            lease = _take_lease(self.model_path)
            if not self._port:
                self._port = _free_port(self._host)
        config = {
            # The parent's own search path, so that the child finds the same wheel.
            "sys_path": [os.fspath(entry) or os.getcwd() for entry in sys.path],
            "parent": os.getpid(),
            "params": {"model.path": os.fspath(self.model_path), "port": self._port, **self._params},
        }
        self._run = run = _Run(self._folder / "server.log", lease)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._abandon, run, self._folder, self._owner)
        run.tell(json.dumps(config))
        if lease is None:
            self._wait_ready(run, deadline)
        else:
            self._wait_loading(run, deadline)

    def _wait_ready(self, run: _Run, deadline: float) -> None:
        """Wait for the child's one line of report."""
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(run.report, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failure(f"was not ready within {self._start_timeout:g} s")
                read = os.read(run.report.fileno(), 65536)
                if not read:
                    raise self._failure(f"ended with status {run.process.wait()} before it was ready")
                line += read
        report = json.loads(line)
        if "error" in report:
            raise self._failure(f"could not start with the model {self.model_path} ({report['error']})")
        self._url = report["url"]
        self._port = int(report["url"].rsplit(":", 1)[1])

    def _wait_loading(self, run: _Run, deadline: float) -> None:
        """Wait until the port answers; the child cannot tell, it is inside the engine's own start."""
        while True:
            connection = http.client.HTTPConnection(self._host, self.port, timeout=1.0)
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except (OSError, http.client.HTTPException):
                if run.process.poll() is not None:
                    raise self._failure(f"ended with status {run.process.returncode} before it was ready") from None
                if time.monotonic() > deadline:
                    raise self._failure(f"did not listen within {self._start_timeout:g} s") from None
                time.sleep(0.005)
            finally:
                connection.close()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._url = f"http://{host}:{self.port}"

    def _failure(self, what: str) -> EmbeddedServerError:
        tail = self.log_tail()
        log = f"; its log ends:\n{tail}" if tail else ""
        complaint = _COMPLAINT.search(tail)
        return EmbeddedServerError(f"the embedded llama.cpp server {what}{log}", complaint and complaint.group(1))

    def _signal(self, number: signal.Signals) -> None:
        if self._run is None or not self.running:
            raise RuntimeError("the server is not running")
        self._run.process.send_signal(number)

    def _end(self, grace: float) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end(grace)

    @staticmethod
    def _delete(folder: Path, owner: int) -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _abandon(run: _Run, folder: Path, owner: int) -> None:
        """What remains to do when the object was never closed, at the latest at exit."""
        run.end(grace=0.0)
        EmbeddedLlamaCpp._delete(folder, owner)


class _Run:
    """One child process with its pipes and the lease that holds it up; a forked copy of the owner never ends it."""

    def __init__(self, log_path: Path, lease: io.FileIO | None) -> None:
        self.lease = lease
        self.owner = os.getpid()
        try:
            with log_path.open("ab") as log:
                self.process = subprocess.Popen(  # noqa: S603  # this Python and a file of this package
                    [sys.executable, os.fspath(_CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
        except BaseException:
            self.drop_lease()
            raise
        self.stdin = cast("IO[bytes]", self.process.stdin)
        self.report = cast("IO[bytes]", self.process.stdout)

    def tell(self, line: str) -> None:
        """Send a line; a child that died at once is found out by whoever waits for its report."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(line.encode() + b"\n")
            self.stdin.flush()

    def drop_lease(self) -> None:
        """Let the server open its model; again is a no-op."""
        if self.lease is not None:
            if os.getpid() == self.owner:
                with contextlib.suppress(OSError):  # it ran out
                    # Closing is not enough where a forked copy holds the file open as well.
                    fcntl.fcntl(self.lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            self.lease.close()
            self.lease = None

    def end(self, grace: float) -> None:
        """Reap the process and close the pipes; SIGTERM first if there is grace (seconds), then SIGKILL."""
        self.drop_lease()
        try:
            if os.getpid() == self.owner:
                if grace > 0 and self.process.poll() is None:
                    self.process.terminate()
                    self.process.send_signal(signal.SIGCONT)  # a paused process sees SIGTERM only when it goes on
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.process.wait(grace)
                self.process.kill()
                self.process.wait()
        finally:
            self.report.close()
            with contextlib.suppress(BrokenPipeError):  # a config line that the child never read
                self.stdin.close()


def _take_lease(path: Path) -> io.FileIO:
    """Hold up every open() of a file until the lease is dropped."""
    file = None
    try:
        file = io.FileIO(path, "r+")
        # The holder is told of an open() by a signal, by default SIGIO, which ends a process; SIGURG is ignored
        # unless a program asks for it.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (AttributeError, OSError) as error:  # no such constants, no such file system
        if file is not None:
            file.close()
        raise EmbeddedServerError(
            f"hold_loading needs Linux and a model file of one's own that nobody has open: {error} ({path})"
        ) from error
    return file


def _free_port(host: str) -> int:
    """A port that is free now; another process may take it before the server does, which then says so."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
