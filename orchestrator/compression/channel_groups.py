"""Which channels depend on each other, and how they are cut out: torch-pruning's graph, held to what the layers have."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from orchestrator.compression.scores import Member, Role
from orchestrator.errors import UnbuildableError

_NORMS = (_BatchNorm, nn.LayerNorm)
# They look at all channels at once: what they make of one changes when another goes.
_MIXING = (nn.LayerNorm, nn.GroupNorm)
_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    KeyError,
    ZeroDivisionError,
    AssertionError,
)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together.

    Args:
        name: of its root, the layer that writes them.
        root: that layer.
        width: how many channels the root writes.
        parts: equal parts, one behind the other, that must lose the same channels (of a grouped convolution).
        members: the layers that have them among their own.
        mixed: whether a norm looks at all of them at once.
    """

    name: str
    root: nn.Module
    width: int
    parts: int
    members: tuple[Member, ...]
    mixed: bool

    @property
    def size(self) -> int:
        """Channels of one part: what there is to choose from."""
        return self.width // self.parts

    def places(self, channels: Tensor) -> Tensor:
        """Channels (K,) of a part, in all parts (parts * K,)."""
        return (self.size * torch.arange(self.parts)[:, None] + channels).flatten()


class ChannelGraph:
    """The dependency graph of a network (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3).

    The library follows indices from operation to operation and guesses what a reshape does to them. Where it guesses wrong
    (shifted windows, channel shuffles), indices leave the layers' channels and multiply until memory ends. So every step is
    looked at: an index that a layer does not have, or a walk of more than four times as many steps as there are dependencies
    (a sound walk takes each at most once), ends it.

    Raises:
        UnbuildableError: the network cannot be traced.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        import torch_pruning as tp

        self.model = model
        with unbuildable("its channels cannot be traced"), torch.enable_grad():
            self._graph: Any = tp.DependencyGraph().build_dependency(
                model, example, forward_fn=lambda network, images: network(images), verbose=False
            )
            nodes = list(self._graph.module2node.values())
            counts = [count(node) for node in nodes for count in (self._graph.get_in_channels, self._graph.get_out_channels)]
        self._output = tp.ops.OPTYPE.OUTPUT
        self._widest = max(count or 0 for count in counts)
        self._steps, edges = 0, [edge for node in nodes for edge in node.dependencies]
        self._most_steps = 4 * len(edges)
        for edge in edges:
            edge.index_mapping.append(partial(self._watch, edge))  # behind the library's own mappings; maps nothing

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """All groups that can be cut, in the order of the trace, backward from the output: the same on every rank.

        Left whole are the network's outputs, and the channels that pass through multi-head attention: heads share them out,
        and the networks around them know their number.

        Raises:
            UnbuildableError: the graph misreads the network.
        """
        groups, seen = [], set[nn.Module]()
        with unbuildable("its channels cannot be traced"):
            for root, node in list(self._graph.module2node.items()):
                if not isinstance(root, _ConvNd | nn.Linear) or root in seen:
                    continue
                group = self._walk(root, list(range(self._graph.get_out_channels(node))))
                outward = [edge for edge, _ in group if self._outward(edge)]
                seen |= {edge.target.module for edge in outward if isinstance(edge.target.module, nn.Module)}
                if not any(self._stays(edge) for edge in outward):
                    groups.append(self._described(root, group))
        return groups

    def cut(self, group: ChannelGroup, order: Tensor, left: int, round_to: int) -> None:
        """Leave `left` channels in each part of a group, fewer to come to a multiple, or else as few as every layer can bear.

        Args:
            order: (size,) the channels of a part, the weakest first.
            round_to: of the parts together.

        Raises:
            UnbuildableError: the library cannot.
        """
        step = round_to // gcd(round_to, group.parts)
        with unbuildable(f"the channels of {group.name!r} cannot be cut"), torch.no_grad():
            for rounded in range(left - left % step, group.size, step):
                weakest = group.places(order[: group.size - rounded]).sort().values.tolist()
                smaller = self._walk(group.root, weakest)
                if self._graph.check_pruning_group(smaller):
                    smaller.prune()
                    return

    def width(self, group: ChannelGroup) -> int:
        """How many channels its root writes now."""
        return int(self._graph.get_out_channels(group.root))

    def _walk(self, root: nn.Module, indices: list[int]) -> Any:
        self._steps = 0
        handler = self._graph.get_pruner_of_module(root).prune_out_channels
        return self._graph.get_pruning_group(root, handler, indices)

    def _watch(self, edge: Any, indices: Sequence[Any]) -> Sequence[Any]:
        graph, node = self._graph, edge.target
        self._steps += 1
        width = graph.get_out_channels(node) if self._outward(edge) else graph.get_in_channels(node)
        astray = indices and max(index.idx for index in indices) >= (width or self._widest)
        if astray or self._steps > self._most_steps:
            where = str(node.name).partition(" (")[0]
            raise UnbuildableError(f"its channels cannot be followed to {where}: a windowed attention or a shuffle, perhaps")
        return indices

    def _outward(self, edge: Any) -> bool:
        return bool(self._graph.is_out_channel_pruning_fn(edge.handler))

    def _stays(self, edge: Any) -> bool:
        node = edge.target
        return not node.outputs or node.type == self._output or isinstance(node.module, nn.MultiheadAttention)

    def _described(self, root: nn.Module, group: Any) -> ChannelGroup:
        names = {module: name for name, module in self.model.named_modules()}
        members, parts = [], 1
        for item in group:
            module, outward = item.dep.target.module, self._outward(item.dep)
            pruner = self._graph.get_pruner_of_module(module)
            if not _depthwise(module):
                count = pruner.get_out_channel_groups if outward else pruner.get_in_channel_groups
                parts = max(parts, count(module))
            role = _role(module, outward)
            if role is not None:
                members.append(Member(names[module], module, role, torch.tensor(item.idxs), torch.tensor(item.root_idxs)))
        mixed = any(isinstance(item.dep.target.module, _MIXING) for item in group)
        return ChannelGroup(names[root], root, len(group[0].idxs), parts, tuple(members), mixed)


def _role(module: object, outward: bool) -> Role | None:
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, _ConvNd | nn.Linear) and not _depthwise(module):
        return "writes" if outward else "reads"
    return None


def _depthwise(module: object) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.out_channels > 1


@contextlib.contextmanager
def unbuildable(what: str) -> Iterator[None]:
    """Turn what a network or the library meets inside into an UnbuildableError; the library's warnings are of guesses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except torch.OutOfMemoryError:
        raise  # says nothing about the network
    except _ERRORS as error:
        raise UnbuildableError(f"{what}: {type(error).__name__}: {error}") from error
