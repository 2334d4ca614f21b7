# SPDX-License-Identifier: Apache-2.0
"""Float weights: where a name has them (names), its tensors one by one (tensors), which of them are
Linear layers (linears), the models that they belong to (architectures); container is the file.
"""
