"""For testing adapters, and your own code without a GPU: the conformance suite and what it stands on.

Production code never imports it. It needs pytest.
"""

import pytest

# Before the suite is imported: only then does a test of it that fails show the values it compared.
pytest.register_assert_rewrite("worker_adapters.testing.conformance")

from worker_adapters.testing.conformance import ConformanceSuite  # noqa: E402 - see above
from worker_adapters.testing.stand import SimulatorStand, Stand  # noqa: E402 - the same

__all__ = ["ConformanceSuite", "SimulatorStand", "Stand"]
