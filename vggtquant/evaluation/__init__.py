# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate`: plan and forecast (evaluate, inputs, forecast), measure (measure, scores,
task), conclude (intervals, recommendation), tell (report, text, charts, page)."""
