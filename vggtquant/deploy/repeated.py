# SPDX-License-Identifier: Apache-2.0
"""Blocks of one structure are recorded once: VGGT has 72, and torch takes seconds for each.

A BlockSite stands for a call of a block while the model is recorded. Then the block's own graph,
with its parameters as inputs, is recorded for each structure and shape, and copied to each site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..dense import set_module
from ..recognition import is_block
from .sites import DOMAIN, ConvSite, LinearSite

_PLAIN = (bool, int, float, str, tuple, type(None))

Record = Callable[[nn.Module, tuple[Tensor, ...]], ir.Model]
"""From a module and example inputs to its graph."""


@dataclass(frozen=True)
class Call:
    """One call of a block: where its tensors go among the arguments."""

    name: str
    leaves: list[Any]
    """Arguments in pytree's order, an index of the node's inputs for each tensor."""
    spec: TreeSpec


@dataclass(frozen=True)
class _At:
    """The place of an input of the node among the arguments."""

    index: int


@dataclass
class Blocks:
    """Those of a model by name, and their calls, which recording fills in."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)


class BlockSite(nn.Module):
    """Stands for a residual block, whose result has its first tensor's shape."""

    def __init__(self, name: str, block: nn.Module, blocks: Blocks) -> None:
        super().__init__()
        self.name = name
        self.block = block
        self.blocks = blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Records a node, or the block itself where an argument is no tensor or plain value."""
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(isinstance(x, Tensor | bool | int | None) for x in leaves):
            return self.block(*args, **kwargs)
        places = iter(range(len(tensors)))
        kept = [_At(next(places)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # The call has the block's name, for self.block is torch's stand-in while it records.
        self.blocks.calls.append(Call(self.name, kept, spec))
        x = tensors[0]
        attributes: dict[str, Any] = {"call": len(self.blocks.calls) - 1}
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::BlockSite", tensors, attributes, dtype=x.dtype, shape=x.shape, version=1
        )


def with_sites(model: nn.Module) -> Blocks:
    """Puts a site in the place of each block."""
    blocks = Blocks()
    for name, module in list(model.named_modules(remove_duplicate=False))[::-1]:
        if name and is_block(module):
            blocks.modules[name] = module
            set_module(model, name, BlockSite(name, module, blocks))
    return blocks


class _Alone(nn.Module):
    """A block as a function of the tensors that a site reads and of its parameters."""

    def __init__(self, block: nn.Module, call: Call, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.block = block  # torch wants it as a child, though its parameters are inputs
        self.call = call
        self.names = list(_parameters(block))
        self.constants = tuple(constants)
        for index, value in constants.items():
            self.register_buffer(f"constant_{index}", value)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The inputs that are no constants, then the parameters."""
        given = iter(tensors)
        count = len(tensors) - len(self.names) + len(self.constants)
        inputs = [
            getattr(self, f"constant_{i}") if i in self.constants else next(given)
            for i in range(count)
        ]
        leaves = [
            inputs[leaf.index] if isinstance(leaf, _At) else leaf for leaf in self.call.leaves
        ]
        args, kwargs = tree_unflatten(leaves, self.call.spec)
        parameters = dict(zip(self.names, given, strict=True))
        result: Tensor = torch.func.functional_call(self.block, parameters, args, kwargs)
        return result


def expand(model: ir.Model, blocks: Blocks, record: Record) -> None:
    """Replaces each BlockSite by the nodes of its block.

    Raises:
        UserError: a block that torch cannot record.
    """
    graphs: dict[Any, tuple[str, ir.Graph]] = {}
    graph = model.graph
    for number, node in enumerate([n for n in graph if n.op_type == "BlockSite"]):
        call = blocks.calls[node.attributes["call"].as_int()]
        block = blocks.modules[call.name]
        read = [_known(x) for x in node.inputs]
        known: dict[int, ir.TensorProtocol] = {}
        for i, x in enumerate(read):
            if x.const_value is not None:
                known[i] = x.const_value
        key = (
            _structure(block),
            str(call.leaves),
            call.spec,
            *(x.name if i in known else (str(x.shape), x.dtype) for i, x in enumerate(read)),
        )
        parameters = _parameters(block)
        if key not in graphs:
            constants = {i: torch.from_numpy(x.numpy().copy()) for i, x in known.items()}
            examples = [_example(x) for i, x in enumerate(read) if i not in known]
            inputs = (*examples, *parameters.values())
            graphs[key] = (call.name, record(_Alone(block, call, constants), inputs).graph)
        first, alone = graphs[key]
        values = [x for i, x in enumerate(read) if i not in known]
        values += [_parameter(graph, f"{call.name}.{n}", x) for n, x in parameters.items()]
        copy = _Copy(graph, node, values, f"{call.name}/{number}")
        copy.insert(alone, f"{first}/constant", first, call.name)


@dataclass(frozen=True)
class _Copy:
    """Where a block's nodes go."""

    graph: ir.Graph
    site: ir.Node
    inputs: list[ir.Value]
    prefix: str

    def insert(self, alone: ir.Graph, constants: str, first: str, name: str) -> None:
        """The nodes of `alone`, whose sites are those of the block `first`, before the site."""
        copy = alone.clone()
        swapped = dict(zip(copy.inputs, self.inputs, strict=True))
        for value in list(copy.initializers.values()):
            if not value.uses():
                continue  # a parameter, which is an input as well
            assert value.const_value is not None
            swapped[value] = _constant(self.graph, f"{constants}/{value.name}", value.const_value)
        for old, new in swapped.items():
            ir.convenience.replace_all_uses_with(old, new)
        (result,) = copy.outputs
        copy.outputs.clear()
        nodes = list(copy)
        copy.remove(nodes)
        for node in nodes:
            node.name = f"{self.prefix}/{node.name}"
            for value in node.outputs:
                value.name = f"{self.prefix}/{value.name}"
            if node.domain == DOMAIN:
                inner = node.attributes["name"].as_string().removeprefix(first)
                node.attributes["name"] = ir.AttrString("name", name + inner)
        self.graph.insert_before(self.site, nodes)
        old = self.site.outputs[0]
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self.graph.remove(self.site, safe=True)


def _structure(block: nn.Module) -> tuple[Any, ...]:
    """Equal for two blocks that compute the same function of their inputs and parameters."""
    plain = vars(nn.Module()).keys()
    found: list[Any] = []
    for name, module in block.named_modules():
        site = isinstance(module, LinearSite | ConvSite)
        own = {
            key: value if isinstance(value, _PLAIN) else id(value)
            for key, value in vars(module).items()
            if key not in plain and not (site and key == "name")
        }
        found.append((name, type(module), tuple(sorted(own.items()))))
    found += [(name, x.shape, x.dtype) for name, x in _parameters(block).items()]
    return tuple(found)


def _parameters(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _known(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _example(value: ir.Value) -> Tensor:
    assert value.shape is not None and value.dtype is not None
    sizes = value.shape.numpy()
    return torch.from_numpy(np.zeros(sizes, value.dtype.numpy()))


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    known = graph.initializers.get(name)
    if known is not None:
        return known
    kind = ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def _parameter(graph: ir.Graph, name: str, tensor: Tensor) -> ir.Value:
    return _constant(graph, name, ir.tensor(tensor.detach(), name=name))
