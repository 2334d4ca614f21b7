# SPDX-License-Identifier: Apache-2.0
"""vggtquant.evaluate and the Report that it returns: the evaluation in a script or a notebook."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configs import CONFIG_SUFFIXES, QuantizationConfig, read_configs
from ..data.scenes import Scene
from ..errors import PATH, UserError, check_type
from ..files import writable_folder
from ..progress import Progress, notebook_bar, silent
from . import evaluate as job
from .analyse import intervals, recommendation
from .measure import inputs, plan
from .measure.forward import Runner, plainly
from .schema import Budget, Document, read

Configs = str | Path | QuantizationConfig | Sequence[str | QuantizationConfig]


def evaluate(
    model: nn.Module | str | Path = "builtin:tiny",
    data: str | Path | Iterable[Any] | None = None,
    configs: Configs | None = None,
    output_dir: str | Path | None = None,
    progress: Progress | bool | None = None,
    *,
    source: str | Path | None = None,
    forward: Runner | None = None,
    device: str | torch.device | None = None,
    max_images: int | None = None,
    scenes: int | None = None,
    groups: int | None = None,
    mode: str = "crop",
    layout: str | None = None,
    runs: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    max_drop: float | None = None,
    max_bytes: int | None = None,
    max_memory: int | None = None,
    min_speedup: float | None = None,
    sensitivity: str | None = None,
    isolate: bool = False,
    adapter: str | None = None,
    resume: bool = False,
    restart: bool = False,
) -> Report:
    """Compare every scheme with the FP32 model on the same pictures.

    Args:
        model: a float module, a name that `vggtquant evaluate --model` takes, or a packed file.
        data: a folder, pictures, scenes of vggtquant.data.scenes, or any iterable of (pictures,
            ground truth or None), pictures being (S,3,H,W) in [0, 1]; None: rendered scenes.
        configs: names, QuantizationConfig objects, or a .toml or .json file of them; None: all.
        output_dir: where the report's files go; None: nowhere, Report.write does it.
        progress: True and None show a bar, False nothing; or a Progress of your own.
        source: of a packed file, the float model that it is compared with; None: the one it was
            made from, where that is at hand, else only ground truth is left.
        forward: runs a model whose forward is not model(pictures): called with both, returns VGGT's
            dict of outputs.
        device: "cpu", "cuda", "cuda:1", …, where a module is moved to; None: where the module is,
            else the device that the configs name.

    The others are the options of `vggtquant evaluate`.

    Raises:
        UserError: bad input, in one line; KeyboardInterrupt after Ctrl-C.

    >>> report = vq.evaluate("builtin:tiny", configs=["INT4_Group_64"], scenes=2)  # doctest: +SKIP
    >>> report.best(max_drop=1.0)                                                  # doctest: +SKIP
    """
    given = model if isinstance(model, nn.Module) else None
    name = type(model).__name__ if given is not None else str(model)
    if given is not None and isolate:
        raise UserError("isolate loads a model by its name; a module was given")
    check_type("model", model, (nn.Module, *PATH), "a module, or the name of one")
    if output_dir is not None and not str(output_dir):
        raise UserError("output_dir is empty; wanted a folder, or None")
    if forward is not None and not callable(forward):
        raise UserError(f"forward is {forward!r}; wanted a function of (model, pictures)")
    found, images = _data(data)
    with _folder(output_dir) as folder, _shown(progress) as shown, _threads():
        settings = plan.Settings(
            model=name,
            source=None if source is None else str(source),
            images=images,
            max_images=max_images,
            scenes=scenes,
            groups=groups,
            mode=mode,
            configs=_configs(configs, may_be_empty=sensitivity is not None),
            output_dir=str(folder),
            device=None if device is None else str(device),
            runs=runs,
            warmup=warmup,
            threads=threads,
            seed=seed,
            layout=layout,
            max_drop=max_drop,
            max_bytes=max_bytes,
            max_memory=max_memory,
            min_speedup=min_speedup,
            resume=resume,
            restart=restart,
            sensitivity=sensitivity,
            isolate=isolate,
            adapter=adapter,
            argv=("vggtquant.evaluate",),
        )
        result = job.evaluate(
            settings,
            shown,
            model=given,
            data=found,
            runner=forward or plainly,
            draw=output_dir is not None,
        )
    return Report(result.document)


def _configs(given: Configs | None, *, may_be_empty: bool) -> tuple[QuantizationConfig, ...] | None:
    if given is None:
        return None
    if isinstance(given, str | Path) and Path(given).suffix in CONFIG_SUFFIXES:
        return tuple(read_configs(given))
    one = isinstance(given, str | Path | QuantizationConfig)
    if not one and not isinstance(given, Iterable):
        raise UserError(f"configs is {given!r}; wanted names, QuantizationConfig objects or a file")
    many: Sequence[Any] = [given] if one else given  # type: ignore[assignment]
    found = plan.configs_of(many)
    if not found and not may_be_empty:  # a sensitivity can be measured alone
        raise UserError("configs is empty; wanted at least one scheme, or None for all")
    return found


def _data(given: str | Path | Iterable[Any] | None) -> tuple[inputs.Inputs | None, tuple[str, ...]]:
    """Scenes, or the names of pictures and folders."""
    if given is None:
        return None, ()
    if isinstance(given, str | Path):
        return None, (str(given),)
    if not isinstance(given, Scene | Iterable):
        raise UserError(f"data is {given!r}; wanted a folder, pictures or scenes")
    items = [given] if isinstance(given, Scene) else list(given)
    if items and all(isinstance(item, str | Path) for item in items):
        return None, tuple(map(str, items))
    return inputs.given(items), ()


@contextlib.contextmanager
def _folder(output_dir: str | Path | None) -> Iterator[Path]:
    if output_dir is not None:
        yield Path(output_dir).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="vggtquant-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _shown(progress: Progress | bool | None) -> Iterator[Progress]:
    if isinstance(progress, Progress):
        yield progress
        return
    with silent() if progress is False else notebook_bar() or Progress() as made:
        yield made


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    """`threads` is for the evaluation alone."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Svg(str):
    """A chart that a notebook shows; as text it is the markup."""

    def _repr_svg_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Report:
    """What an evaluation found; a notebook shows it by itself."""

    document: Document
    """Every figure, typed: see vggtquant.evaluation.schema."""

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """A report from its comprehensive_results.json, or the folder of one."""
        return cls(read(path))

    def table(self) -> list[dict[str, Any]]:
        """A row a scheme as plain values: `pandas.DataFrame(report.table())`."""
        from .present import columns

        return [columns.plain(row) for row in self.document.schemes]

    def plot(self, name: str = "tradeoff") -> Svg:
        """A chart by its name: size, time, compression, speedup, error, tradeoff.

        Raises UserError for another name.
        """
        from .present import charts

        known = list(charts.CHARTS)
        if name not in known:
            raise UserError(f"no chart {name!r}; wanted one of {', '.join(known)}")
        return Svg(charts.svg(self.document, name))

    def best(
        self,
        max_drop: float | None = None,
        max_bytes: int | None = None,
        min_speedup: float | None = None,
    ) -> QuantizationConfig | None:
        """The recommended scheme within these bounds, ready for quantize_model; None without one.

        Without bounds by the rule of the report: one point of AUC@30 and the noise floor of depth.
        """
        budget = Budget(max_drop=max_drop, max_bytes=max_bytes, min_speedup=min_speedup)
        plan.check_budget(budget)
        rows = self.document.schemes
        found = recommendation.recommend(rows, budget, intervals.statistics(rows))
        row = self.document.row(found.scheme)
        return None if row is None else row.config

    def write(
        self,
        folder: str | Path,
        format: str | None = None,
        language: str = "en",
        core: bool = False,
        figures: Sequence[str] | None = None,
        layer: str | None = None,
        pictures: Sequence[str] = (),
    ) -> list[Path]:
        """Writes the report's files into a folder, made if missing; returns their paths.

        Args:
            format: md, latex, html or docx, or several as "html,docx": an experiment report with
                figures and tables as files, as `vggtquant report` writes; None: the files of
                `vggtquant evaluate`.
            language: of the experiment report, en or zh.
            core: the experiment report has the eight schemes alone.
            figures: names of its figures, * allowed; None: all that are usual.
            layer: a Linear layer whose weights and scales it shows; the model is loaded again.
            pictures: as "1" or "1:2" (scene, picture), whose depth, error and points it shows for
                each scheme; the model is loaded and run again.

        Raises:
            UserError: an unknown format, language, figure, layer or picture, a model or pictures
                that are not those of the results, no python-docx for docx.
        """
        from .present import files

        check_type("folder", folder, PATH, "a folder")
        if format is not None:
            from . import model_figures
            from .present import paper

            wish = model_figures.Wish(layer, pictures)
            return paper.write(
                self.document,
                folder,
                form=format,
                language=language,
                core=core,
                chosen=figures,
                extra=wish.drawings,
                flags=wish.flags(),
                warn=lambda words: warnings.warn(words, stacklevel=3),
            )
        return files.write(writable_folder(Path(folder).expanduser()), self.document)

    def __str__(self) -> str:
        from .present import tables, text

        return text.terminal(self.document, tables.WIDTH)

    def __repr__(self) -> str:
        names = [row.name for row in self.document.schemes if row.scored()]
        return f"<vggtquant report of {self.document.model.name}: {len(names)} schemes>"

    def _repr_html_(self) -> str:
        from .present import page

        return page.notebook(self.document)
