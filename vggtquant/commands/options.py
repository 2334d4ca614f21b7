# SPDX-License-Identifier: Apache-2.0
"""What several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..configs import QuantizationConfig

FOLDER = ("--out", "--output_dir")
"""Both names of the place for results."""


def config_of(words: str) -> QuantizationConfig:
    """The config of a scheme's name, or the one that a .toml or .json file holds.

    >>> config_of("INT4_Group_64").bits
    4
    """
    from ..configs import CONFIG_SUFFIXES, get_config, read_configs

    if Path(words).suffix not in CONFIG_SUFFIXES:
        return get_config(words)
    configs = read_configs(words)
    if len(configs) != 1:
        raise UserError(f"{words} holds {len(configs)} configs; a file of one is wanted")
    return configs[0]
