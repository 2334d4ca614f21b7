# SPDX-License-Identifier: Apache-2.0
"""What the measurements say: rows, intervals, evidence, recommendation, changes."""
