# SPDX-License-Identifier: Apache-2.0
"""What a reader sees: terminal and text, charts, the page."""
