# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate`: plan and forecast (evaluate, inputs, forecast), measure (measure, scores),
tell (report, text, charts, page)."""
