# SPDX-License-Identifier: Apache-2.0
"""The command line: all arguments, and what each command prints."""
