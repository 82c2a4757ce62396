"""The real Triton, from the wheel nvidia-pytriton, in a process group of its own; it leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from engines.llamacpp_bench import PATIENCE
from memory_log import MemoryLog
from real_triton.repository import write

START = 120.0
STOP = 10.0
#: Ends a server whose tests were killed: their end of its input closes with them, whatever they died of.
REAPER = 'cat >/dev/null; kill -s KILL -- "-$1"; rm -rf "$2" "$3" "$4"*'
#: Where Linux keeps memory that processes share.
SHARED = Path("/dev/shm")  # noqa: S108  # not ours to choose


def wheel() -> Path | None:
    """Where the wheel is, if it is installed (and has a backend for this Python)."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent
    return found if _stub(found).is_dir() else None


def _stub(package: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return package / "tritonserver" / "python_backend_stubs" / version


class Event(NamedTuple):
    """Something that a model noted: began, held, cancelled, told to stop, ended."""

    model: str
    id: str
    prompt: str
    event: str
    #: Of ``time.monotonic``, which all processes of a machine share.
    at: float
    tokens: int


class RealTriton:
    """``tritonserver`` with models of ``repository.py`` on free ports of the loopback address.

    :param models: the names of the models.
    """

    def __init__(self, models: Iterable[str] = ()) -> None:
        self.host = "127.0.0.1"
        self.http_port = self.grpc_port = self.metrics_port = 0
        self._scratch = Path(tempfile.mkdtemp(prefix="triton-"))
        self.repository = self._scratch / "models"
        self.repository.mkdir()
        write(self.repository, models)
        #: What the models are told by, and where they write their notes: in memory, so that none waits for a disk.
        self.records = Path(tempfile.mkdtemp(prefix="records-", dir=SHARED))
        for name in ("next", "always"):
            (self.records / name).mkdir(parents=True)
        #: What of them was read, and up to where.
        self._events: list[Event] = []
        self._read: dict[Path, int] = {}
        self._reading = threading.Lock()
        self._log = MemoryLog()
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._group = 0

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Of the other transport."""
        return f"grpc://{self.host}:{self.grpc_port}"

    def start(self, *, again: bool = False) -> RealTriton:
        """Start it and wait until it serves.

        :param again: on the ports that it had before.
        :raises RuntimeError: it ended or took too long; with the end of its log.
        """
        self.launch(again=again)
        deadline = time.monotonic() + START
        while self.ready() is None:  # its ports open when all models are loaded
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.tail()
                self.close()
                raise RuntimeError(f"Triton did not start; its log ends:\n{tail}")
            time.sleep(0.05)
        return self

    def launch(self, *, again: bool = False) -> None:
        """Start it and return at once."""
        package = wheel()
        assert package is not None
        server = package / "tritonserver"
        backend = self._scratch / "backends" / "python"
        if not backend.exists():
            shutil.copytree(server / "backends" / "python", backend)
            shutil.copytree(_stub(package), backend, dirs_exist_ok=True)
        if not again:
            self._find_ports()
        flags = {
            "model-repository": self.repository, "model-control-mode": "explicit", "load-model": "*",
            "backend-directory": backend.parent, "backend-config": f"python,shm-region-prefix-name={self._shared}",
            "http-address": self.host, "http-port": self.http_port, "grpc-address": self.host,
            "grpc-port": self.grpc_port, "metrics-address": self.host, "metrics-port": self.metrics_port,
            "exit-timeout-secs": 1,
        }  # fmt: skip
        if not any(self.repository.iterdir()):
            del flags["load-model"]
        variables = {
            "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{package.parent / 'nvidia_pytriton.libs'}",
            # The models' processes ignore PYTHONPATH: they take the first python3 of the path for their own.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "TMPDIR": str(self._scratch), "TRITON_RECORDS": str(self.records),
            # A model's process computes next to nothing; each would start as many threads as there are processors.
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [str(server / "bin" / "tritonserver"), *[f"--{name}={value}" for name, value in flags.items()]],
            stdin=subprocess.DEVNULL,
            stdout=self._log.fd,
            stderr=self._log.fd,
            env={**os.environ, **variables},
            start_new_session=True,  # a group of its own, so that the models' processes can be ended with it
        )
        self._group = self._process.pid
        left = (self._scratch, self.records, SHARED / self._shared)
        self._reaper = subprocess.Popen(
            ["sh", "-c", REAPER, "reaper", str(self._group), *map(str, left)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _find_ports(self) -> None:
        with ExitStack() as held:  # three that are free at once
            listeners = [held.enter_context(closing(socket.create_server((self.host, 0)))) for _ in range(3)]
            self.http_port, self.grpc_port, self.metrics_port = (each.getsockname()[1] for each in listeners)

    @property
    def _shared(self) -> str:
        """What the names of its shared memory begin with."""
        return self._scratch.name

    # --- questions that go by none of our own code

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> tuple[int, str]:
        """Status and body of a GET, or of a POST of some JSON."""
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=PATIENCE)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method or ("GET" if body is None else "POST"), path, data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def ready(self) -> bool | None:
        """Does it call itself ready? None if it does not answer."""
        try:
            return self.ask("/v2/health/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return None

    def metric(self, name: str, model: str) -> float:
        """The sum of a metric over the versions of a model."""
        connection = http.client.HTTPConnection(self.host, self.metrics_port, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            said = connection.getresponse().read().decode()
        finally:
            connection.close()
        found = re.findall(rf'^{name}{{.*model="{model}".*}} ([\d.e+-]+)$', said, re.MULTILINE)
        return sum(map(float, found))

    def load(self, name: str) -> int:
        """Add a model while it runs; the status of that."""
        write(self.repository, [name])
        return self.ask(f"/v2/repository/models/{name}/load", {})[0]

    def reload(self, name: str) -> None:
        """Load a model anew, whose process is no more: the server itself never does."""
        assert self.ask(f"/v2/repository/models/{name}/unload", {})[0] == 200
        assert self.ask(f"/v2/repository/models/{name}/load", {})[0] == 200

    # --- what the models are told, and what they tell

    def spoil(self, *wishes: str) -> None:
        """What becomes of the next jobs, ``"hold=2"`` say: see ``Wishes``."""
        for wish in wishes:
            stamp = f"{time.monotonic_ns():020}"
            (self.records / "next" / f"{stamp} {wish}").touch()

    def always(self, *wishes: str) -> None:
        """What becomes of all jobs from now on, and of the spoilt ones no more."""
        for name in ("next", "always"):
            for each in (self.records / name).iterdir():
                each.unlink()
        for wish in wishes:
            (self.records / "always" / wish).touch()

    def events(self, prompt: str | None = None) -> list[Event]:
        """What the models noted, of one prompt or of all, in the order of time."""
        with self._reading:
            self._read_on()
            found = [event for event in self._events if prompt is None or event.prompt == prompt]
        return sorted(found, key=lambda event: event.at)

    def _read_on(self) -> None:
        for file in self.records.glob("*.jsonl"):
            with file.open("rb") as notes:
                notes.seek(self._read.get(file, 0))
                for line in notes:
                    if line.endswith(b"\n"):  # else it is just being written
                        self._events.append(Event(**json.loads(line)))
                        self._read[file] = self._read.get(file, 0) + len(line)

    def when(self, prompt: str, event: str) -> float | None:
        """When that first happened to the job of this prompt."""
        return next((each.at for each in self.events(prompt) if each.event == event), None)

    def running(self) -> int:
        """Jobs that some model has begun and not ended."""
        names = [each.event for each in self.events()]
        return names.count("began") - names.count("ended")

    # --- its end

    def pids(self) -> list[int]:
        """The processes of its group: the server, and one for each instance of a model."""
        return list(_group(self._group))

    def kill_server(self) -> None:
        """Kill the server alone; the models' processes find out by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """Kill all processes at once, and remove the shared memory that they leave."""
        process, self._process = self._process, None
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.kill()
            reaper.communicate()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
            process.wait()
        for each in SHARED.glob(f"{self._shared}*"):
            with contextlib.suppress(FileNotFoundError):
                each.unlink()

    def close(self) -> None:
        """End the server (SIGTERM), then whatever of its group is left (SIGKILL), and delete what it wrote."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP)
        self.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.rmtree(self.records, ignore_errors=True)

    def __enter__(self) -> RealTriton:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _group(leader: int) -> Iterator[int]:
    """The processes of a group."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            # After the name, which may hold anything: state, parent, group.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                yield int(entry.name)
