# SPDX-License-Identifier: Apache-2.0
"""A corpus of the core's fuzzer as one file, inputs after their lengths in two bytes, and back.

python tests/corpus.py unpack tests/data/fuzz/core.bin FOLDER
python tests/corpus.py pack FOLDER tests/data/fuzz/core.bin
"""

import hashlib
import sys
from pathlib import Path


def pack(folder: Path, file: Path) -> None:
    inputs = sorted({path.read_bytes() for path in folder.iterdir()}, key=lambda b: (len(b), b))
    file.write_bytes(b"".join(len(b).to_bytes(2, "little") + b for b in inputs))


def unpack(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    raw, at = file.read_bytes(), 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "little")
        (folder / hashlib.sha256(raw[at + 2 : end]).hexdigest()[:16]).write_bytes(raw[at + 2 : end])
        at = end


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
