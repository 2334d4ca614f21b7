# SPDX-License-Identifier: Apache-2.0
"""`python -m vggtquant` is the `vggtquant` command."""

import sys

from .commands.cli import main

sys.exit(main())
