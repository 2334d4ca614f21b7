# SPDX-License-Identifier: Apache-2.0
"""From a name, a file or a function to a model and its weights."""
