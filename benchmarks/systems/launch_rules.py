"""What torch's operators launch on CUDA, by rule: kernels, copies on the device and fills, for an operator as a
dispatch mode sees it (below autograd and autocast).

The rules were read off torch's CUDA sources and not checked on a GPU. They are for cuDNN's convolutions, whose bias is
a kernel of its own, and for cuBLAS's products with a bias in the epilogue; what a library launches inside a call of its
own (a change of layout, the second half of a split product) is not in them. Dropout counts as the three operators that
it is on the CPU. Copies between host and device are not seen, nor is what waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels._layout import is_channels_last

CONVOLUTIONS, PRODUCTS, CASTS, ADDITIONS = "convolutions", "matrix products", "casts", "gradient additions"
OPTIMISER, COPIES, OTHERS = "optimiser", "copies", "others"
KINDS = (CONVOLUTIONS, PRODUCTS, CASTS, ADDITIONS, OPTIMISER, COPIES, OTHERS)  # of torch; our rooms have their names

Counted = tuple[str, int]  # kind, launches

# Multi-tensor kernels (ATen/native/cuda/MultiTensorApply.cuh): tensors are cut into chunks, a block each; a launch
# takes so many blocks, and so many tensors for 1 to 5 lists of them. What CUDA 12 allows; CUDA 13 has 7 times as much.
CHUNK, MOST_BLOCKS, MOST_TENSORS = 65536, 320, (110, 64, 48, 36, 30)
MOST_INPUTS = 128  # of one launch of `cat`

# Allocations, other names for the same memory beside the views that a schema shows, and what is asked of tensors on the
# CPU alone, as whether positions lie inside a map.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"),
    *("resize_", "set_", "lift_fresh", "is_same_size", "_has_compatible_shallow_copy_type"),
    *("aminmax", "_local_scalar_dense"),
}
CONTIGUOUS = {  # whose kernels read and write NCHW alone: a map of the other format is copied first
    *("reflection_pad2d", "reflection_pad2d_backward", "replication_pad2d", "replication_pad2d_backward"),
}
FIXED = {  # where an operator is more than one kernel
    "baddbmm": 2,  # the bias is copied into the result before the product
    "mse_loss": 2,
    "nll_loss_backward": 2,
    "reflection_pad2d_backward": 2,  # a fill, and what adds to it
    "replication_pad2d_backward": 2,
    "upsample_bilinear2d_backward": 2,
    "native_batch_norm": 3,  # statistics, their inverse root, the map
    "index_put": 12,  # a copy, and accumulated by sorting positions: about
    "_index_put_impl_": 11,
    "index_add": 2,  # a copy first
    "masked_fill": 2,
    "slice_backward": 2,  # a fill and a copy
    "select_backward": 2,
}
MATMULS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addmv", "mv", "dot"}


def launches(func: Any, args: Sequence[Any], kwargs: dict[str, Any], backward: bool) -> Counted:
    """(kind, how many) for one call. func: an OpOverload; backward: whether autograd's engine runs. Additions there are
    gradients that meet, whether of one map used twice or of a parameter.

    Every operator that no rule is about is one kernel, of kind "others".
    """
    name = func._schema.name.partition("::")[2]
    if not func._schema.name.startswith("aten::") or name in FREE or _is_view(func) or _is_hosts(args, kwargs):
        return OTHERS, 0
    if name in ("convolution", "convolution_overrideable"):
        return CONVOLUTIONS, 1 + (args[2] is not None) + _relaid(args[:2])
    if name == "convolution_backward":
        return CONVOLUTIONS, sum(args[-1]) + _relaid(args[:3])
    if name in MATMULS:
        return PRODUCTS, FIXED.get(name, 1)
    if name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
        return _multi_tensor(name, args)
    if name == "_amp_update_scale_":
        return OPTIMISER, 1
    if name == "_to_copy":
        wanted = kwargs.get("dtype")
        return (CASTS if wanted is not None and wanted != args[0].dtype else COPIES), 1
    if name == "copy_":
        return (CASTS if args[0].dtype != args[1].dtype else COPIES), 1
    if name == "clone":
        return COPIES, 1
    if backward and name in ("add", "add_"):
        return ADDITIONS, 1
    if name in ("cat", "stack"):
        return COPIES, -(-len([t for t in args[0] if t.numel()]) // MOST_INPUTS)
    count = FIXED.get(name, 1)
    if name == "native_batch_norm_backward" and is_channels_last(args[1]):
        count = 2
    return OTHERS, count + (name in CONTIGUOUS and not args[0].is_contiguous())


def _is_view(func: Any) -> bool:
    """Whether the results are other names for what was given."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _is_hosts(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Random numbers of a generator of the host, as flips and mixtures are drawn."""
    return any(isinstance(a, torch.Generator) and a.device.type == "cpu" for a in (*args, *kwargs.values()))


def _relaid(maps: Sequence[Tensor]) -> int:
    """How many of a convolution's tensors are copied into the memory format it takes."""
    if any(t.dim() != 4 for t in maps):
        return 0
    form = torch.channels_last if any(map(is_channels_last, maps)) else torch.contiguous_format
    return sum(not t.is_contiguous(memory_format=form) for t in maps)


def _multi_tensor(name: str, args: Sequence[Any]) -> Counted:
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    kind = _kind_of_many(name, lists)
    if not lists or (name == "_foreach_add_" and isinstance(args[1], Tensor)):
        return kind, 0  # the counters of an optimiser that is not fused are the host's
    if name == "_foreach_copy_" and any(a.stride() != b.stride() for a, b in zip(*lists)):
        return kind, len(lists[0])  # one by one
    mixed = name == "_foreach_add_" and len({t.dtype for some in lists for t in some}) > 1
    if mixed:  # one by one on CUDA, so half_weights.py casts first there
        sizes = [t.numel() for t in lists[0]]
        return kind, 2 * chunked(sizes, 2)
    depth = len(lists) + (not name.endswith("_"))
    if name.startswith("_fused_"):
        depth -= 1  # the counters of steps are not cut into chunks
    return kind, chunked([t.numel() for t in lists[0]], depth)


def _kind_of_many(name: str, lists: Sequence[Sequence[Tensor]]) -> str:
    if name == "_foreach_copy_":
        return CASTS if lists[0][0].dtype != lists[1][0].dtype else COPIES
    if name in ("_foreach_add_", "_foreach_add") and len(lists) == 2:
        return ADDITIONS
    return OTHERS if name == "_foreach_zero_" else OPTIMISER


def chunked(sizes: Sequence[int], depth: int) -> int:
    """Launches of a multi-tensor kernel over `depth` lists of tensors of these sizes."""
    count = blocks = tensors = 0
    for size in filter(None, sizes):
        tensors += 1
        left = -(-size // CHUNK)
        while left:
            taken = min(left, MOST_BLOCKS - blocks)
            left, blocks = left - taken, blocks + taken
            if blocks == MOST_BLOCKS or (not left and tensors == MOST_TENSORS[depth - 1]):
                count, blocks, tensors = count + 1, 0, int(left > 0)
    return count + (blocks > 0)
