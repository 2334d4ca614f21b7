# SPDX-License-Identifier: Apache-2.0
"""Pictures and scenes that go into a model: photographs, rendered scenes, dataset layouts."""
