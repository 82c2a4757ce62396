"""The documentation: ``tox -e docs`` builds it, runs what stands in it, and fails at any warning."""

import doctest
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from sphinx.application import Sphinx

import worker_adapters

project = "worker-adapters"
version = release = worker_adapters.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "generated", "complete"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"{project} {version}"
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what an override does not say anew stands at the base
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
add_module_names = False
default_role = "code"
python_maximum_signature_line_length = 90

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
doctest_global_setup = """
import stage
stage.set_up()
from worker_adapters import *
from worker_adapters.simulate import *
"""

# Python's own documentation is not fetched for a build, so its names have no target here. Nor have a few of the
# package's that signatures name: how time, chance and sockets are passed in, and what only the package itself makes.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|concurrent|msgspec|os|pathlib|ssl|types|typing)\..*"),
    ("py:exc", r"(FileNotFound|Import|Runtime|Timeout|Type|Value)Error"),
    ("py:class", r"worker_adapters\.(cancel\.Job|clocks\.Runtime|jsonvalue\.Self|transport\.network\.Network)"),
    ("py:class", r"worker_adapters\.(adapters\.jobs\.JobAdapter|adapters\.over_http\.HttpStreaming)"),
    ("py:class", r"worker_adapters\.simulate\.(faults\.Engine|peer\.Peer|tgi_engine\.TgiEngine|triton_models\.Model)"),
]


def parsable(*told: Any) -> tuple[str, str] | None:
    """A signature whose every default is an expression; one that is not is shown without links and broken anywhere."""
    arguments, result = told[-2:]
    return (arguments.replace("<factory>", "..."), result) if arguments else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", parsable)
