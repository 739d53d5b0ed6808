"""The documentation site: `make docs` builds it into build/docs, without the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import salt  # noqa: E402
from sweeps.reference_doc import with_reasons, write_reference  # noqa: E402

project = "salt"
copyright = "The salt authors"
version = release = salt.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
default_role = "code"  # docstrings mark code with one backtick
html_theme = "furo"
html_title = f"salt {salt.__version__}"
html_show_sphinx = False
html_copy_source = False
# Nothing is fetched: no fonts, scripts or pictures from elsewhere.
html_theme_options = {"navigation_with_keys": True}
write_reference(Path(__file__).parent / "generated")


def _say_why(app: Any, name: str, source: list[str]) -> None:
    source[0] = with_reasons(source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _say_why)
    app.connect("include-read", lambda app, path, name, content: _say_why(app, name, content))
