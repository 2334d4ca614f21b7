# SPDX-License-Identifier: Apache-2.0
"""From a model with sites to an ONNX graph, with what is constant for one picture size computed.

torch's exporter records the graph. What depends on constants alone, such as the position embedding
at the size and rotary tables, is computed by torch before the graph becomes ONNX: exporters have
written wrong coefficients for antialiased bicubic interpolation (pytorch issue 177138).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError
from . import repeated

OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
"""Names under which VGGT returns them, in the graph's order; a model may lack some."""

FOLDED = 256 << 20
"""Bytes up to which a constant is stored as computed: VGGT's heads add one of 93 MB at 350x518."""

SMALL = 1 << 20
"""Bytes up to which a repeated tensor is stored all the same."""

_FORCE = "not VGGT's dictionary of outputs; --force (force=True) writes its tensors"


@dataclass
class _Found:
    """Names of the outputs; torch.export sets a module's own lists back."""

    names: list[str] = field(default_factory=list)


class _Named(nn.Module):
    """The tensors of OUTPUTS alone, as a tuple."""

    def __init__(self, model: nn.Module, found: _Found, force: bool) -> None:
        super().__init__()
        self.model = model
        self.found = found
        self.force = force

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images (1, frames, 3, height, width), in [0, 1]."""
        outputs = self.model(images)
        if self.force:
            tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
            outputs = {f"output_{i}": x for i, x in enumerate(tensors)}
        if not isinstance(outputs, dict):
            raise UserError(f"the model returns {type(outputs).__name__}, {_FORCE}")
        known = outputs if self.force else OUTPUTS
        names = [name for name in known if isinstance(outputs.get(name), Tensor)]
        if not names:
            raise UserError(f"the model returns none of {', '.join(OUTPUTS)}, {_FORCE}")
        self.found.names = names
        return tuple(outputs[name] for name in names)


def graph_of(
    model: nn.Module,
    size: tuple[int, int],
    frames: int,
    dynamic: bool,
    opset: int,
    force: bool = False,
) -> ir.Model:
    """The model, which has sites, as ONNX; images (1, frames, 3, *size) are its input.

    force: take the tensors of a model that returns something else than VGGT's dictionary.

    Raises:
        UserError: a model that torch cannot record, with its words; one of unknown outputs.
    """
    found = _Found()
    named = _Named(model, found, force).eval()
    images = torch.rand(1, max(frames, 3) if dynamic else frames, 3, *size, device="cpu")
    if dynamic:
        _frames_at_once(model)
    blocks = repeated.Blocks() if dynamic else repeated.with_sites(model)
    frames_axis = {"images": {1: torch.export.Dim.DYNAMIC}} if dynamic else None
    with warnings.catch_warnings(), torch.no_grad(), plain_autocast():
        warnings.simplefilter("ignore")
        onnx = _graph(named, (images,), frames_axis, opset)
        repeated.expand(onnx, blocks, lambda block, inputs: _graph(block, inputs, None, opset))
    graph = onnx.graph
    for value, name in zip(graph.outputs, found.names, strict=True):
        value.name = name
    graph.inputs[0].name = "images"
    return onnx


def _frames_at_once(model: nn.Module) -> None:
    """VGGT's dense heads take eight pictures at a time, one by one in the end: a loop that an open
    number of pictures does not have."""
    for module in model.modules():
        if "frames_chunk_size" in inspect.signature(module.forward).parameters:
            whole: Any = partial(module.forward, frames_chunk_size=None)
            module.forward = whole


def program_of(
    model: nn.Module,
    size: tuple[int, int],
    frames: int,
    force: bool,
    table: dict[Any, Callable[..., Any]],
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The model as torch's own program, and its outputs' names; table: operators to write in
    others.

    Raises:
        UserError: as graph_of.
    """
    found = _Found()
    named = _Named(model, found, force).eval()
    images = torch.rand(1, frames, 3, *size, device="cpu")
    with warnings.catch_warnings(), torch.no_grad(), plain_autocast():
        warnings.simplefilter("ignore")
        module = _separate(_folded(named, (images,), None, table))
        return _recorded(module, (images,), None), found.names


def _folded(
    model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, table: dict[Any, Callable[..., Any]]
) -> Any:
    """A module's graph, with what depends on constants alone computed."""
    recorded = _recorded(model, inputs, shapes)
    return _fold(recorded.run_decompositions(table).module())  # nothing is changed in place


def _graph(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, opset: int) -> ir.Model:
    return as_onnx(_recorded(_folded(model, inputs, shapes, {}), inputs, shapes), opset)


def _separate(module: Any) -> nn.Module:
    """The graph with a constant of its own, a view, for each node that reads one.

    ExecuTorch would copy those that two of its partitions read, and check the whole graph for each.
    """
    graph: fx.Graph = module.graph
    made = 0
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        value = _attribute(module, node.target)
        for user in list(node.users)[1:]:
            name = f"_separate_{made}"
            made += 1
            module.register_buffer(name, value.detach().view_as(value))
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.get_attr(name))
    module.recompile()
    return module  # type: ignore[no-any-return]


def as_onnx(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    """What torch's exporter makes of a recorded program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False)
    assert made is not None
    return made.model


@contextmanager
def plain_autocast() -> Iterator[None]:
    """`with autocast(enabled=False)` does nothing: it would hide what is inside in a subgraph."""
    kind: Any = torch.autocast
    enter, leave = kind.__enter__, kind.__exit__
    kind.__enter__ = lambda self: enter(self) if self._enabled else self
    kind.__exit__ = lambda self, *error: leave(self, *error) if self._enabled else None
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


def _recorded(
    model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        if shapes is not None:
            words[0] += "; a fixed number of pictures (no --dynamic_frames) asks less of it"
        raise UserError(f"torch cannot record this model as a graph: {words[0]}") from error


def _fold(module: Any) -> Any:
    """The graph with each result that depends on constants alone as a constant of its own.

    Parameters stay as they are: what is stored anew is what other nodes read.
    """
    graph: fx.Graph = module.graph
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(module, node.target)
        elif node.op == "call_function" and _is_pure(node):
            of = [n for n in node.all_input_nodes if n not in known]
            if not of:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                value = node.target(*args, **kwargs)
                if not _is_large(value):  # else what it is made of is stored
                    known[node] = value
    made: dict[tuple[Any, ...], str] = {}
    for node, value in known.items():
        read = any(user not in known for user in node.users)
        if node.op == "get_attr" or not isinstance(value, Tensor) or not read:
            continue
        if _is_view(node, known):
            continue
        value = value.contiguous()
        key = (value.dtype, value.shape, sha256(value.numpy().tobytes()).digest())
        name = made.setdefault(key, f"_constant_{len(made)}")  # each block has the same tables
        module.register_buffer(name, value.clone())
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    return module


def _is_pure(node: fx.Node) -> bool:
    """Whether it gives the same result each time and has no site in it."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        tags = (torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape)
        mutable = target._schema.is_mutable
        site = target.namespace in ("onnx_symbolic", "quantized_decomposed")
        return not site and not mutable and not set(tags) & set(target.tags)
    return getattr(target, "__module__", "") == "_operator"


def _is_large(value: Any) -> bool:
    """Of more bytes than a constant may have, or a tensor that repeats its elements: the copy for
    each picture is made by the graph."""
    if not isinstance(value, Tensor):
        return False
    return value.nbytes > min(FOLDED, max(value.untyped_storage().nbytes(), SMALL))


def _is_view(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether it is a parameter in another shape: nothing is gained by a second copy.

    What was stored anew is no parameter: its views are constants too, and each block has the same.
    """
    target = node.target
    views = isinstance(target, torch._ops.OpOverload) and any(
        a.alias_info is not None for a in target._schema.arguments
    )
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if not views or source is None or source not in known:
        return False
    return source.op == "get_attr" or _is_view(source, known)


def _attribute(module: nn.Module, path: Any) -> Any:
    for part in str(path).split("."):
        module = getattr(module, part)
    return module
