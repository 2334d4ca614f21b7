# SPDX-License-Identifier: Apache-2.0
"""An evaluation in shards: as processes of this machine, as jobs of Slurm or as tasks of Ray."""
