# SPDX-License-Identifier: Apache-2.0
"""Scores of a reconstruction against ground truth: poses, depth, points, confidence."""
