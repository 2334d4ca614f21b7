# SPDX-License-Identifier: Apache-2.0
"""`python -m vggtquant` is the `vggtquant` command."""

import sys

from .cli import main

sys.exit(main())
