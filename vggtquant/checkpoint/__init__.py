# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints (docs/checkpoint-format.md): the file (container, checkpoint), a model to it
and back (storage), a float file to it (sources, streaming, budget), a look into it (inspection).
"""
