"""The command line: ``worker-adapters demo``, ``detect``, ``run`` and ``status``. Needs the extra ``cli``."""
