"""``python -m worker_adapters``: the command line."""

from worker_adapters.cli.main import main

main()
