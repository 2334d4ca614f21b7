# SPDX-License-Identifier: Apache-2.0
"""`vggtquant scenes`: folders of rendered scenes."""

from pathlib import Path

from vggtquant.commands import cli


def test_scenes_are_written(tmp_path: Path, capsys) -> None:
    words = ["scenes", "--out", str(tmp_path / "s"), "--count", "2", "--frames", "2"]
    assert cli.main(words) == 0
    folders = capsys.readouterr().out.split()
    assert len(folders) == 2 and all((Path(folder) / "truth.npz").exists() for folder in folders)
