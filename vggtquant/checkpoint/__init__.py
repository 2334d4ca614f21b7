# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints (docs/checkpoint-format.md): what a file says of itself (document), a model to
it and back (storage), float weights to it (streaming, budget), a look into it (inspection).
"""
