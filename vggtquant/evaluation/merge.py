# SPDX-License-Identifier: Apache-2.0
"""Puts the journals of shards together into the report of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import structs

from ..errors import UserError
from ..files import writable_folder
from . import evaluate
from .measure import journal
from .records import Head, Record


def merge(folders: Sequence[str], output_dir: str) -> evaluate.Result:
    """Writes the reports of a run that was done in shards, from their output directories.

    Raises UserError, naming the directory, for a shard that is missing, doubled, unfinished, or of
    another evaluation than the first.
    """
    out = Path(output_dir)
    if (out / journal.NAME).exists():
        raise UserError(f"{out} holds an evaluation of its own; wanted another --output_dir")
    shards: dict[int, tuple[str, Head, list[Record]]] = {}
    for folder in folders:
        head, records, _ = journal.read(Path(folder) / journal.NAME)
        part, parts = _part(folder, head)
        if part in shards:
            raise UserError(f"shard {part}/{parts} is given twice: {shards[part][0]} and {folder}")
        if not evaluate.is_complete(head, records):
            raise UserError(f"shard {part}/{parts} in {folder} is unfinished; --resume finishes it")
        shards[part] = folder, head, records
    if not shards:
        raise UserError("no shard is given; wanted the output directories of all")
    shards = dict(sorted(shards.items()))
    _check_alike([*shards.values()])
    missing = [part for part in range(1, parts + 1) if part not in shards]
    if missing:
        raise UserError(f"missing: {', '.join(f'shard {part}/{parts}' for part in missing)}")
    writable_folder(out)
    merged = [record for _, _, records in shards.values() for record in records]
    head = _head({part: head for part, (_, head, _) in shards.items()}, output_dir)
    return evaluate.finish(out, head, merged)


def _part(folder: str, head: Head) -> tuple[int, int]:
    if head.settings.shard is None:
        raise UserError(f"{folder} holds a whole evaluation; wanted one of --shard i/n")
    part, _, parts = head.settings.shard.partition("/")
    return int(part), int(parts)


def _check_alike(shards: Sequence[tuple[str, Head, list[Record]]]) -> None:
    """Refuses shards of other evaluations, and scenes that two of them have. Instruction sets may
    differ: the report names the machines."""
    first, wanted, _ = shards[0]
    owners: dict[str, str] = {}
    for folder, head, _ in shards:
        there, here = (
            {**one.identity, "shard": f"{_part(name, one)[1]} shards", "isa": None}
            for name, one in ((first, wanted), (folder, head))
        )
        if differing := journal.differences(there, here):
            raise UserError(f"{first} and {folder} are unlike: {'; '.join(differing)}")
        for scene in head.data.scenes:
            if scene.name in owners:
                raise UserError(f"scene {scene.name} is in {owners[scene.name]} and {folder}")
            owners[scene.name] = folder


def _head(heads: Mapping[int, Head], output_dir: str) -> Head:
    """The head of the run that was not cut up, from those of its parts by number."""
    first = next(iter(heads.values()))
    scenes = [scene for head in heads.values() for scene in head.data.scenes]
    return structs.replace(
        first,
        environment=structs.replace(first.environment, machines=_machines(heads)),
        data=structs.replace(first.data, scenes=scenes),
        settings=structs.replace(first.settings, output_dir=output_dir, shard=None),
    )


def _machines(heads: Mapping[int, Head]) -> list[str]:
    """The kinds of machines; with several, each with the shards that it ran."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for part, head in heads.items():
        kinds.setdefault((*head.environment.machines, head.environment.cpu.isa_active), []).append(
            part
        )
    if len(kinds) == 1:
        return next(iter(heads.values())).environment.machines
    return [
        f"{', '.join(kind)} (shard {', '.join(map(str, parts))})" for kind, parts in kinds.items()
    ]
