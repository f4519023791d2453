"""The graph of a block rewritten: norms take along the activation and the sum behind them.

What is looked for is a norm (or a Sequential or block that ends with one) whose result goes nowhere but into a ReLU or
leaky ReLU (module, function or method), and such a result that goes nowhere but into a sum.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from kernels.fusing.classes import untouched
from kernels.fusing.finish import Tail, finish
from kernels.fusing.sequential import activation_of, joins_as_activation, let_take_tail

Node = Any  # fx.Node, whose targets are strings or functions by its op, which types cannot say

_RELU = (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_")
_LEAKY = (F.leaky_relu, F.leaky_relu_)
_SUMS = {operator.add: "add", torch.add: "add", "add": "add", operator.iadd: "iadd", "add_": "iadd"}
IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.imatmul, operator.itruediv, operator.ifloordiv, operator.imod,
    operator.ipow, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift,
)  # fmt: skip


class Merge(NamedTuple):
    """For the report: what was merged into which child."""

    what: str  # "relu", "ReLU", "leaky_relu", "the residual"
    child: str  # the activation module that did it, empty for functions and sums
    head: str


class Program(NamedTuple):
    """A forward and what has to be as it was when it was made."""

    run: Callable[..., Any]  # (module, tail, *arguments)
    heads: tuple[str, ...]  # children that take tails
    activations: tuple[str, ...]  # children that are not called, since their norm does it
    merges: tuple[Merge, ...]
    takes_tail: bool  # whether the block itself ends with a norm


class _Chain:
    """A head's call and what is merged into it so far."""

    def __init__(self, node: Node):
        self.head = node
        self.end = node  # the node whose value the call gives
        self.activation: tuple[str, float] = ("none", 0.2)
        self.residual: int | None = None  # which argument of `end` it is, once `end` is a sum
        self.add = "add"
        self.nodes = {node}


def rewritten(module: nn.Module, graph: fx.Graph) -> Program:
    children = dict(module.named_children())
    chains: list[_Chain] = []
    merges: list[Merge] = []
    activations: list[str] = []
    for node in graph.nodes:
        if node.op != "call_module" or node.kwargs or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        if node.target not in children or not let_take_tail(children[node.target]):
            continue
        chain = _Chain(node)
        _take_activation(chain, children, merges, activations)
        if not any(node in other.nodes for other in chains for node in chain.end.users):  # two norms and their sum
            _take_residual(chain, children, merges)
        chains.append(chain)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    last = next((chain for chain in chains if output.args == (chain.end,) and set(chain.end.users) == {output}), None)
    with graph.inserting_before(next(iter(graph.nodes))):
        tail = graph.placeholder("fused_tail")
    for chain in chains:
        if len(chain.nodes) > 1 or chain is last:
            _replace(graph, chain, tail if chain is last else None)
    return Program(
        _compiled(graph),
        tuple(dict.fromkeys(chain.head.target for chain in chains if len(chain.nodes) > 1 or chain is last)),
        tuple(dict.fromkeys(activations)),
        tuple(merges),
        last is not None,
    )


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes.count(node) == 1 else None


def _take_activation(
    chain: _Chain, children: dict[str, nn.Module], merges: list[Merge], activations: list[str]
) -> None:
    user = _only_user(chain.end)
    if user is None or not user.args or user.args[0] is not chain.end or not _still(chain, user, children):
        return
    kind, child = None, ""
    if user.op == "call_module" and user.target in children and len(user.args) == 1 and not user.kwargs:
        module = children[user.target]
        if joins_as_activation(module):
            kind, child = activation_of(module), user.target
    elif user.op in ("call_function", "call_method"):
        if user.target in _RELU:
            kind = ("relu", 0.2)
        elif user.target in _LEAKY:
            slope = user.args[1] if len(user.args) > 1 else user.kwargs.get("negative_slope", 0.01)
            if type(slope) in (int, float) and math.isfinite(slope):
                kind = ("leaky_relu", float(slope))
    if kind is None:
        return
    head = children[chain.head.target]
    if getattr(head, "activation", "none") != "none":
        return
    chain.activation = kind
    chain.end = user
    chain.nodes.add(user)
    merges.append(Merge(type(children[child]).__name__ if child else kind[0], child, chain.head.target))
    if child:
        activations.append(child)


def _take_residual(chain: _Chain, children: dict[str, nn.Module], merges: list[Merge]) -> None:
    user = _only_user(chain.end)
    if user is None or user.op not in ("call_function", "call_method") or user.target not in _SUMS or user.kwargs:
        return
    if len(user.args) != 2 or not all(isinstance(arg, fx.Node) for arg in user.args):
        return
    add = _SUMS[user.target]
    if user.args[0] is user.args[1] or add == "iadd" and user.args[0] is not chain.end:  # where the other is written to
        return
    if not _still(chain, user, children):
        return
    chain.residual = 1 if user.args[0] is chain.end else 0
    chain.add = add
    chain.end = user
    chain.nodes.add(user)
    merges.append(Merge("the residual", "", chain.head.target))


def _still(chain: _Chain, user: Node, children: dict[str, nn.Module]) -> bool:
    """Whether the head may as well run where `user` stands: nothing between them writes to what it reads, and nothing
    that may draw random numbers changes places with it."""
    node = chain.head.next
    while node is not user:
        if node not in chain.nodes and node.op in ("call_function", "call_method", "call_module"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if node.kwargs.get("inplace") or node.target in IN_PLACE or name.endswith("_"):
                return False
            if node.op == "call_module":
                child = children[node.target]
                if any(getattr(part, "inplace", False) for part in child.modules()):
                    return False
                if not _is_single(children[chain.head.target]):
                    return False
        node = node.next
    return True


def _is_single(head: nn.Module) -> bool:
    """A norm alone, which draws no random numbers."""
    return not isinstance(head, nn.Sequential) and not list(head.children())


def _finish(
    head: nn.Module,
    args: tuple[Any, ...],
    activation: tuple[str, float],
    module: Any,
    residual: Any,
    add: str,
    tail: Tail | None,
) -> Any:
    """What stands in the rewritten forward for a head and what is merged into it; `module`: the activation whose name
    and slope count now, where a module is one; `tail`: what the owner of the block does with its result."""
    activation = activation if module is None else activation_of(module)
    own = Tail(*activation, residual, operator.iadd if add == "iadd" else operator.add)
    if tail is None:
        return finish(head, args, own)
    if residual is None and own.activation == "none":
        return finish(head, args, tail)
    if residual is None and tail.activation == "none":
        return finish(head, args, Tail(*activation, tail.residual, tail.add))
    return tail.after(finish(head, args, own))


def _replace(graph: fx.Graph, chain: _Chain, tail: Node | None) -> None:
    with graph.inserting_before(chain.end):
        head = graph.get_attr(chain.head.target)
        module = None
        for node in chain.nodes:
            if node.op == "call_module" and node is not chain.head:
                module = graph.get_attr(node.target)
        residual = None if chain.residual is None else chain.end.args[chain.residual]
        args = (head, chain.head.args, chain.activation, module, residual, chain.add, tail)
        call = graph.call_function(_finish, args)
    chain.end.replace_all_uses_with(call)
    for node in sorted(chain.nodes, key=list(graph.nodes).index, reverse=True):
        graph.erase_node(node)


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<a forward rewritten by kernels.fuse>", "exec"), names)
    return names["forward"]


def parts_are_as_they_were(module: nn.Module, program: Program) -> bool:
    """Whether the children that the program knows still are what it takes them for, and nothing watches them."""
    children: dict[str, Any] = module._modules
    return all(children[name] is not None and untouched(children[name]) for name in program.heads) and all(
        children[name] is not None and joins_as_activation(children[name]) for name in program.activations
    )
