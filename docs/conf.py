"""How the documents are built: `sphinx-build -W -n -b html docs docs/_build/html`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "rfkernels"
author = "the rfkernels developers"
project_copyright = "2026, the rfkernels developers"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "code"  # `name` in a docstring is code, as in Markdown
nitpicky = True

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say it, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"rfkernels {version}"

_VERBATIM = re.compile(r"(``.+?``|`[^`]+`|\\.)|\|")
_STAR = re.compile(r"(``.+?``|`[^`]+`|\\.|\*\*?[^*\s](?:[^*]*[^*\s])?\*\*?(?!\w))|(?<![\w\s])\*(?=\w)")


def plain_formulas(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Escape bars and stars of formulas in docstrings, as in |x|² and (*batch, dim), which reST takes for markup."""
    directive: int | None = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if directive is not None and line.strip() and indent <= directive:
            directive = None
        if line.lstrip().startswith(".. ") or line.rstrip().endswith("::"):
            directive = indent
        if directive is None and not line.lstrip().startswith((">>>", "... ")):
            barred = _VERBATIM.sub(lambda found: found[1] or r"\|", line)
            lines[i] = _STAR.sub(lambda found: found[1] or r"\*", barred)


def setup(app: Any) -> None:
    """Run before numpydoc does."""
    app.connect("autodoc-process-docstring", plain_formulas, priority=100)
