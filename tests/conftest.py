"""What holds for every test: its docstring is the rule it proves, and no canary that it uses is ever shown."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # as where the real Triton and the real vLLM are tested
    pass
else:  # a machine that stalls for a moment breaks no rule of ours
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

from canary import KEY, KEY_VARIABLE, Watch
from worker_adapters.testing.stand import SimulatorStand


def pytest_configure(config):
    os.environ[KEY_VARIABLE] = KEY
    # So a shell starts what it runs in the background, and nohup anything; our children would inherit it and stay deaf.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(Watch(), "canaries")


def pytest_collection_modifyitems(items):
    bare = [item.nodeid for item in items if not (getattr(item, "obj", None) and item.obj.__doc__)]
    if bare:
        raise pytest.UsageError(f"tests without a docstring that states their rule: {', '.join(bare[:5])}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A failure also tells for what the machine's processes waited lately: a disk that stood still has failed tests."""
    report = yield
    if report.failed:
        waited = [f"{kind.name}: {kind.read_text().splitlines()[0]}" for kind in Path("/proc/pressure").glob("*")]
        report.sections.append(("the machine's stalls (/proc/pressure)", "\n".join(waited)))
    return report


@pytest.fixture(autouse=True)
def _canaries(request):
    """The conformance suite's adapters of simulators have a secret to keep; its prompt is one already."""
    if "stand" in request.fixturenames:
        stand = request.getfixturevalue("stand")
        if isinstance(stand, SimulatorStand):
            stand.adapter = partial(stand.adapter, api_key=f"env:{KEY_VARIABLE}")
