# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate`: `schema` is the typed document. `measure/` runs the schemes and fills it,
`analyse/` draws conclusions from it, `present/` shows it."""
