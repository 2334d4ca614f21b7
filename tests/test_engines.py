# SPDX-License-Identifier: Apache-2.0
"""The choice of an engine, with a clock that says what the test says. What engines compute is
test_cuda_shim.py's."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vggtquant import engines
from vggtquant.errors import UserError
from vggtquant.files import Replacement

HERE = torch.device("cpu")


class Bench:
    """Engines that take as long as they are told to, and a clock that counts their trials."""

    def __init__(self, file: Path, **seconds: float | Exception) -> None:
        self.seconds, self.trials = seconds, dict.fromkeys(seconds, 0)
        self.file, self.now = file, 0.0
        self.chooser = engines.Chooser(self.clock, file)

    def call(self, name: str) -> Callable[[], None]:
        def run() -> None:
            took = self.seconds[name]
            if isinstance(took, Exception):
                raise took
            self.now += took
            self.trials[name] += 1

        return run

    def clock(self, device: torch.device, call: Callable[[], object]) -> float:
        before = self.now
        call()
        return self.now - before

    def choose(self, kind: str = "a kind") -> str:
        return self.chooser.choose(HERE, kind, {name: self.call(name) for name in self.seconds})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / engines.FILE


@pytest.mark.parametrize("fast", ["ours", "library", "decode"])
def test_the_fastest_is_kept_wherever_it_stands(file: Path, fast: str) -> None:
    bench = Bench(file, **({"ours": 3.0, "library": 2.0, "decode": 4.0} | {fast: 1.0}))
    assert bench.choose() == fast
    trials = dict(bench.trials)
    assert bench.choose() == fast and bench.trials == trials  # and is not timed again
    bench.choose("another kind")
    assert bench.trials != trials


def test_of_engines_as_fast_the_first_is_taken_each_time(file: Path) -> None:
    for seconds in (1.0, 0.98):  # less than 3 % is no difference
        assert Bench(file, ours=1.0, library=seconds, decode=1.0).choose(str(seconds)) == "ours"
    assert Bench(file, ours=1.0, library=0.96).choose("faster") == "library"


def test_a_very_slow_engine_is_tried_once(file: Path) -> None:
    bench = Bench(file, ours=1.0, slow=5.0)
    assert bench.choose() == "ours"
    assert bench.trials == {"ours": 1 + engines.TRIALS, "slow": 2}


def test_the_choice_outlives_the_process_and_not_its_versions(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Bench(file, ours=2.0, library=1.0).choose() == "library"
    later = Bench(file, ours=1.0, library=2.0)
    assert later.choose() == "library" and not any(later.trials.values())
    monkeypatch.setattr(engines, "VERSION", "999")
    newer = Bench(file, ours=1.0, library=2.0)
    assert newer.choose() == "ours" and all(newer.trials.values())
    monkeypatch.undo()
    assert Bench(file, ours=1.0, library=2.0).choose() == "library"  # both are kept
    other = Bench(file, ours=1.0, decode=2.0)  # the choice serves no more
    assert other.choose() == "ours"


def test_an_engine_that_fails_is_left_out_with_a_note(file: Path) -> None:
    bench = Bench(file, ours=RuntimeError("no kernel\nimage"), decode=2.0)
    with pytest.warns(UserWarning, match="engine ours failed and is not used: no kernel image"):
        assert bench.choose() == "decode"
    assert len(bench.chooser.notes) == 1
    broken = Bench(file, ours=RuntimeError("one"), decode=RuntimeError("two"))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="two"):
        broken.choose("new")


def test_a_choice_that_fails_later_is_dropped(file: Path) -> None:
    bench = Bench(file, ours=1.0, decode=2.0)
    bench.chooser.taken["key"] = bench.choose()
    with pytest.warns(UserWarning, match="engine ours failed"):
        bench.chooser.drop(HERE, "a kind", "ours", RuntimeError("of another size"))
    bench.seconds["ours"] = 3.0
    assert not bench.chooser.taken and bench.choose() == "decode"


def test_a_dropped_choice_does_not_come_back_from_the_file(file: Path) -> None:
    bench = Bench(file, ours=1.0, decode=2.0)
    assert bench.choose() == "ours"
    with pytest.warns(UserWarning, match="engine ours failed"):
        bench.chooser.drop(HERE, "a kind", "ours", RuntimeError("of another size"))
    assert bench.choose("another kind") == "ours"  # which writes and reads the file
    assert bench.choose() == "decode"
    assert Bench(file, ours=1.0, decode=2.0).choose() == "decode"


def test_a_choice_without_memory_is_not_kept_for_later(file: Path) -> None:
    bench = Bench(file, ours=torch.cuda.OutOfMemoryError("80 GiB are wanted"), decode=2.0)
    with pytest.warns(UserWarning, match="engine ours failed and is not used: 80 GiB"):
        assert bench.choose() == "decode"
    assert not file.exists()
    bench.seconds["ours"] = 1.0
    assert bench.choose() == "ours"
    assert Bench(file, ours=2.0, decode=1.0).choose() == "ours"


def test_threads_time_one_after_the_other(file: Path) -> None:
    """A trial beside another one says nothing."""
    at_once, most = 0, 0

    def clock(device: torch.device, call: Callable[[], object]) -> float:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1
        return 1.0

    chooser = engines.Chooser(clock, file)
    calls = {"ours": lambda: None, "decode": lambda: None}
    with ThreadPoolExecutor(4) as pool:
        kinds = [f"kind {i}" for i in range(4)]
        assert set(pool.map(lambda kind: chooser.choose(HERE, kind, calls), kinds)) == {"ours"}
    assert most == 1 and set(json.loads(file.read_text())[engines.machine(HERE)]) == set(kinds)


def test_a_file_that_another_process_writes_is_left_to_it(file: Path) -> None:
    file.parent.mkdir()
    with Replacement(file):
        bench = Bench(file, ours=2.0, decode=1.0)
        assert bench.choose() == bench.choose() == "decode"
    assert bench.choose("another kind") == "decode"
    assert set(json.loads(file.read_text())[engines.machine(HERE)]) == {"a kind", "another kind"}


def test_a_user_without_a_home_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr(Path, "expanduser", no_home)
    bench = Bench(Path(), ours=2.0, decode=1.0)
    bench.chooser.file = None
    assert bench.choose() == bench.choose() == "decode"


def no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


BAD_ENTRIES = f'{{"{engines.machine(HERE)}": {{"a kind": ["ours"], "b": {{}}}}}}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cpu": 3}', "\xff", "[" * 9999, BAD_ENTRIES])
def test_a_file_that_cannot_be_read_is_as_good_as_none(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text, "latin-1")
    assert Bench(file, ours=2.0, decode=1.0).choose() == "decode"
    assert Bench(file, ours=1.0, decode=2.0).choose() == "decode"  # it was written anew


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    bench = Bench(tmp_path / "cache" / engines.FILE, ours=2.0, decode=1.0)
    assert bench.choose() == bench.choose() == "decode"


def test_an_engine_can_be_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with engines.use("decode"):
        assert engines.forced() == "decode"
        with engines.use(None):
            assert engines.forced() is None
    assert engines.checked("ours", ["ours"]) == "ours"
    with pytest.raises(UserError, match="VGGTQUANT_ENGINE is 'fast'; one of ours, decode is want"):
        engines.checked("fast", ["ours", "decode"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engines.cache_folder() == tmp_path / "vggtquant"
