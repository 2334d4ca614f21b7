# SPDX-License-Identifier: Apache-2.0
"""What several commands have in common."""

FOLDER = ("--out", "--output_dir")
"""Both names of the place for results."""
