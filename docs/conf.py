# SPDX-License-Identifier: Apache-2.0
"""The documentation site: sphinx-build -W -b html docs docs/_build."""

project = "vggtquant"
author = "The vggtquant developers"
copyright = "2026, the vggtquant developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "vggtquant"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# A C compiler's and a browser's names are no targets of ours.
suppress_warnings = ["myst.xref_missing"]
