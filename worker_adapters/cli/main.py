"""The door of the command line: it says what is missing, and turns whatever happens into an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

#: The modules of the extra ``cli``.
NEEDED = ("click", "rich")


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit; cli.exits says with what code."""
    try:
        from worker_adapters.cli.commands import execute

        sys.exit(execute())
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        hint = 'pip install "worker-adapters[cli]"'
        print(f"worker-adapters: the command line needs {missing}: {hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # between two places that know better what to do
        sys.exit(130)
