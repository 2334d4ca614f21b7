# SPDX-License-Identifier: Apache-2.0
"""Energy of the processor packages from RAPL's counters, where the system lets us read them.

The kernel's interface: /sys/class/powercap/intel-rapl:N/energy_uj counts microjoules of package N
and starts again at max_energy_range_uj (Linux, Documentation/power/powercap). AMD processors
are served under the same names. Usually only root may read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Reading:
    """Microjoules and the range of each package's counter, by its name; none where unreadable."""

    counters: dict[str, tuple[int, int]]

    def joules_until(self, later: Reading) -> float | None:
        """Joules of all packages between two readings; None without counters.

        >>> Reading({"p": (90, 100)}).joules_until(Reading({"p": (20, 100)}))
        3e-05
        """
        if not self.counters or self.counters.keys() != later.counters.keys():
            return None
        microjoules = sum(
            (later.counters[name][0] - start) % span
            for name, (start, span) in self.counters.items()
        )
        return microjoules / 1e6


def read() -> Reading:
    """The packages' counters; no counters where there are none or they may not be read."""
    counters = {}
    try:
        for zone in sorted(FOLDER.glob("intel-rapl:*")):
            if zone.name.count(":") == 1:  # a package; more colons are parts of one
                values = (int((zone / n).read_text()) for n in ("energy_uj", "max_energy_range_uj"))
                energy, span = values
                counters[zone.name] = (energy, span + 1)
    except (OSError, ValueError):
        return Reading({})
    return Reading(counters)
