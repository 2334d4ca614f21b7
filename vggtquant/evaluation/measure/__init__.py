# SPDX-License-Identifier: Apache-2.0
"""What is measured: plan and forecast, forwards scene by scene, the journal."""
