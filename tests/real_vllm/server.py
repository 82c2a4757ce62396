"""The real vLLM server in a process group of its own, that can be killed part by part and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from engines.llamacpp_bench import PATIENCE
from memory_log import MemoryLog

#: The served name of the model.
MODEL = "recite"
CONTEXT = 512
#: Of the narrow server: a job nobody cancels goes on for a minute, so that no stall of a machine looks like its end.
LONG_CONTEXT = 4096
#: Memory that its processes share, in their list of it.
SHARED = r"/dev/shm/(?:psm_|sem\.mp-)\w+$"  # noqa: S108  # not ours to choose
START = 240.0
STOP = 20.0


class RealVllm:
    """``vllm serve`` of one model on a free port of the loopback address.

    :param model: the model's folder.
    :param folder: where its processes run.
    :param key: what /v1 and /inference want; the rest is open to all.
    :param context: tokens of one job, prompt and answer.
    :param slots: requests that run at the same time; further ones wait.
    :param flags: further options of ``vllm serve``.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        slots: int,
        context: int = CONTEXT,
        key: str = "",
        flags: Sequence[str] = (),
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.key = key or None
        self.log = MemoryLog()
        self._folder = folder
        self._flags = [
            "serve", str(model), "--host", self.host, "--served-model-name", MODEL, "--dtype", "float32",
            "--max-model-len", str(context), "--max-num-seqs", str(slots), "--enforce-eager", *flags,
        ]  # fmt: skip
        #: Sockets and caches, which a killed server leaves behind; a short path, since those sockets need one.
        self._scratch = tempfile.mkdtemp(prefix="vllm-")
        self._shared: set[Path] = set()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process that serves HTTP, and leads the group."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> RealVllm:
        """Start the processes and return at once; see :meth:`wait_ready`."""
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        variables = {
            "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "TMPDIR": self._scratch, "VLLM_CACHE_ROOT": self._scratch, "VLLM_CONFIG_ROOT": self._scratch,
        }  # fmt: skip
        if self.key is not None:
            variables["VLLM_API_KEY"] = self.key  # an option would show it in the list of processes
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [str(Path(sys.executable).with_name("vllm")), *self._flags, "--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log.fd,
            stderr=self.log.fd,
            env={**inherited, **variables},  # three processes that import anew would double the start
            cwd=self._folder,
            start_new_session=True,  # a group of its own, so that every child can be ended with it
        )
        return self

    def wait_ready(self) -> RealVllm:
        """Until /health says 200: before that the port refuses connections.

        :raises RuntimeError: it ended or took too long; with the end of its log.
        """
        deadline = time.monotonic() + START
        while not self.healthy():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"vLLM did not start; its log ends:\n{self.log.tail()}")
            time.sleep(0.2)
        self._shared = _shared_memory(self.pid)
        return self

    def healthy(self) -> bool:
        """Does it answer /health with 200?"""
        return self._health() == 200

    def listens(self) -> bool:
        """Does it answer at all?"""
        return self._health() is not None

    def _health(self) -> int | None:
        try:
            return self.ask("/health")[0]
        except (OSError, http.client.HTTPException):
            return None

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of a GET that goes by none of our own code."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric of vLLM's over all its labels."""
        found = re.findall(rf"^vllm:{name}(?:\{{.*\}})? ([\d.e+-]+)$", self.ask("/metrics")[1], re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def busy(self) -> float:
        """Requests that run or wait."""
        return self.metric("num_requests_running") + self.metric("num_requests_waiting")

    def engine_pid(self) -> int:
        """The process that computes: a child of the one that serves HTTP, named ``VLLM::EngineCore``."""
        for pid in _group(self.pid):
            if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                return pid
        raise AssertionError("no process of the engine")

    def kill_engine(self) -> None:
        """Kill the process that computes; the one that serves HTTP finds out by itself, and ends."""
        os.kill(self.engine_pid(), signal.SIGKILL)

    def kill(self) -> None:
        """Kill all processes at once and reap the first; a no-op when they are gone."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for each in self._shared:
                each.unlink(missing_ok=True)

    def close(self) -> None:
        """End the server (SIGTERM), then whatever of its group is left (SIGKILL), and delete what it wrote."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP)
        self.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _shared_memory(leader: int) -> set[Path]:
    """The pieces of memory that the processes of a group share, and a killed one does not remove."""
    found: set[str] = set()
    for pid in _group(leader):
        with contextlib.suppress(OSError):
            found.update(re.findall(SHARED, Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
    return {Path(each) for each in found}


def _group(leader: int) -> list[int]:
    """The processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            # After the name, which may hold anything: state, parent, group.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader:
                found.append(int(entry.name))
    return found
