"""The child process of :class:`worker_adapters.embedded.EmbeddedLlamaCpp`; run by path, never imported.

It reads one line of JSON from standard input (so that an API key shows in no process list), loads the model, writes
one line of JSON to what was its standard output (``{"url": ...}`` or ``{"error": ...}``) and serves until standard
input ends or its parent is another process: both mean that the parent is gone.
"""

import json
import os
import select
import signal
import sys
from typing import Any


def main() -> None:
    """Serve; leaves through ``os._exit``, because the destructor of a busy server can wait for its streams."""
    # Run by path, sys.path starts with this folder, whose module names are nobody's business at the top level.
    config = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = config["sys_path"]
    # Whatever a C++ library prints goes to the log; the report has a descriptor of its own.
    report = os.dup(1)
    os.dup2(2, 1)
    # Ctrl-C reaches the whole foreground group; the parent decides when the server ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        server = _serve(config)
    except BaseException as error:  # noqa: BLE001  # whatever it is, the parent is to be told
        os.write(report, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        os._exit(1)
    os.write(report, json.dumps({"url": server.listening_address}).encode() + b"\n")
    os.close(report)

    while os.getppid() == config["parent"]:
        # The second way out covers a forked copy of the parent that still holds the other end of the pipe.
        readable, _, _ = select.select([0], [], [], 1.0)
        if readable and not os.read(0, 1024):
            break
    os._exit(0)


def _serve(config: dict[str, Any]) -> Any:
    """Start the server and return it; it holds the GIL until the model is loaded (xllamacpp 2026.10)."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    for name, value in config["params"].items():
        *parents, last = name.split(".")
        owner = params
        for parent in parents:
            owner = getattr(owner, parent)
        if not hasattr(owner, last):
            # Extension types take no new attributes today; should that change, a misspelling must not be silent.
            raise ValueError(f"xllamacpp has no parameter {name!r}")
        setattr(owner, last, set(value) if isinstance(getattr(owner, last), set) else value)
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
