"""patch_nce_loss: checks, choice of implementation, autograd.

Eager calls go through one autograd.Function straight to a launcher; while torch.compile traces, the same function calls
a registered op of `fused_i2i` instead (see kernels/norm/op.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from kernels import _guard, backends
from kernels.nce import reference
from kernels.nce.checks import check_layers, check_options, row_weights
from kernels.nce.spec import Layer, Needs, Spec, new_rows

Tensor = torch.Tensor

_launcher = functools.partial(backends.launcher, "nce")


# ---- the registered ops, for torch.compile ---------------------------------------------------------------------------

_LAYERS = "Tensor[] q, Tensor[] k, Tensor?[] negatives, Tensor?[] log_weight, Tensor?[] similarity_weight"
_SPEC = "float temperature, bool normalize, bool decoupled, str impl"
_library = torch.library.Library("fused_i2i", "FRAGMENT")
_library.define(f"nce_forward({_LAYERS}, bool[] need_q, {_SPEC}) -> Tensor[]")
_library.define(
    f"nce_backward(Tensor grad, {_LAYERS}, Tensor stats, Tensor[] dq_unscaled, bool[] needs, {_SPEC}) -> Tensor[]"
)


def _run_forward(q, k, negatives, log_weight, similarity_weight, need_q, *options):
    *spec, impl = options
    layers = [Layer(*t) for t in zip(q, k, negatives, log_weight, similarity_weight)]
    loss, stats, dq_unscaled = _launcher(impl).forward(layers, Spec(*spec), need_q)
    return [loss, stats, *dq_unscaled]


def _run_backward(grad, q, k, negatives, log_weight, similarity_weight, stats, dq_unscaled, needs, *options):
    *spec, impl = options
    layers = [Layer(*t) for t in zip(q, k, negatives, log_weight, similarity_weight)]
    needs = [Needs(*needs[i : i + 4]) for i in range(0, len(needs), 4)]
    grads = _launcher(impl).backward(grad, layers, stats, dq_unscaled, needs, Spec(*spec))
    return [grad.new_empty(0) if g is None else g for layer_grads in grads for g in layer_grads]


for _key in backends.KEYS:
    _library.impl("nce_forward", _run_forward, _key)
    _library.impl("nce_backward", _run_backward, _key)


@torch.library.register_fake("fused_i2i::nce_forward")
def _(q, k, negatives, log_weight, similarity_weight, need_q, temperature, normalize, decoupled, impl):
    layers = [Layer(*t) for t in zip(q, k, negatives, log_weight, similarity_weight)]
    # C++ and CUDA leave the gradient of q for a row gradient of 1 behind; triton computes it in the backward pass
    leaves = impl != "triton"
    dq_unscaled = [
        torch.empty(x.shape if n and leaves else 0, dtype=torch.float32, device=x.device) for x, n in zip(q, need_q)
    ]
    return [*new_rows(layers), *dq_unscaled]


@torch.library.register_fake("fused_i2i::nce_backward")
def _(
    grad, q, k, negatives, log_weight, similarity_weight, stats, dq_unscaled, needs, temperature, normalize, decoupled,
    impl,
):  # fmt: skip
    grads = []
    for i, layer in enumerate(Layer(*t) for t in zip(q, k, negatives, log_weight, similarity_weight)):
        need = Needs(*needs[4 * i : 4 * i + 4])
        for x, n in zip(layer[:3], need):
            grads.append(
                grad.new_empty(0) if x is None or not n else torch.empty(x.shape, dtype=x.dtype, device=x.device)
            )
        shape = (*layer.q.shape[:2], layer.num_negatives) if need.log_weight else 0
        grads.append(torch.empty(shape, dtype=torch.float32, device=grad.device))
    return grads


_nce_forward = torch.ops.fused_i2i.nce_forward.default
_nce_backward = torch.ops.fused_i2i.nce_backward.default


# ---- autograd --------------------------------------------------------------------------------------------------------


class _Nce(torch.autograd.Function):
    """Losses (R,) of all layers' rows; `tensors` are the layers' five tensors each, one after the other."""

    @staticmethod
    def forward(ctx, spec, impl, *tensors):
        layers = [Layer(*tensors[i : i + 5]) for i in range(0, len(tensors), 5)]
        need_q = [bool(n) for n in ctx.needs_input_grad[2::5]]
        if torch.compiler.is_compiling():
            loss, stats, *dq_unscaled = _nce_forward(*map(list, zip(*layers)), need_q, *spec, impl)
        else:
            loss, stats, dq_unscaled = _launcher(impl).forward(layers, spec, need_q)
        ctx.save_for_backward(stats, *dq_unscaled, *tensors)
        ctx.spec, ctx.impl = spec, impl
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        stats, *saved = ctx.saved_tensors
        count = len(saved) // 6  # layers
        dq_unscaled, tensors = saved[:count], saved[count:]
        layers = [Layer(*tensors[i : i + 5]) for i in range(0, len(tensors), 5)]
        needs = [Needs(*map(bool, ctx.needs_input_grad[i : i + 4])) for i in range(2, 2 + 5 * count, 5)]
        if torch.compiler.is_compiling():
            flat = [n for need in needs for n in need]
            grads = _nce_backward(grad, *map(list, zip(*layers)), stats, dq_unscaled, flat, *ctx.spec, ctx.impl)
            grads = [g if n else None for g, n in zip(grads, flat)]
            grads = [grads[i : i + 4] for i in range(0, len(grads), 4)]
        elif torch.is_grad_enabled() or not _guard.addressable(grad):  # create_graph=True
            grads = _differentiable_backward(grad, layers, needs, ctx.spec)
        else:
            grads = _launcher(ctx.impl).backward(grad, layers, stats, dq_unscaled, needs, ctx.spec)
        result = [None, None]
        for layer_grads, layer in zip(grads, layers):
            *q_k_negatives, log_weight = layer_grads
            if log_weight is not None and layer.log_weight is not None:
                log_weight = log_weight.to(layer.log_weight.dtype)
            result += [*q_k_negatives, log_weight, None]
        return tuple(result)


def _differentiable_backward(grad: Tensor, layers: list[Layer], needs: list[Needs], spec: Spec) -> list[list]:
    """The same gradients as differentiable torch expressions of grad and of the layers' tensors."""
    found, create_graph = [], torch.is_grad_enabled()
    with torch.enable_grad():
        for layer, need, g in zip(layers, needs, grad.split([layer.rows for layer in layers])):
            wanted = [t for t, n in zip(layer, need) if n and t is not None]
            rows = reference.rows(layer, spec).flatten()
            grads = iter(torch.autograd.grad(rows, wanted, g, create_graph=create_graph) if wanted else ())
            found.append([next(grads) if n else None for n in need])
    return found


def _losses(layers: list[Layer], spec: Spec, impl: str) -> Tensor:
    """(R,), all layers' rows."""
    if impl == "reference":
        return torch.cat([reference.rows(layer, spec).flatten() for layer in layers])
    if torch.compiler.is_compiling():
        # views: torch.compile refuses one tensor as two arguments of a Function
        layers = [
            Layer(layer.q, layer.k.view_as(layer.k), *(None if t is None else t.view_as(t) for t in layer[2:]))
            for layer in layers
        ]
    elif not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for layer in layers for t in layer)):
        return _launcher(impl).forward(layers, spec, [False] * len(layers))[0]  # half the cost of a call through apply
    return _Nce.apply(spec, impl, *(t for layer in layers for t in layer))


# ---- public ----------------------------------------------------------------------------------------------------------


def patch_nce_loss(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    *,
    negatives: Tensor | Sequence[Tensor | None] | None = None,
    temperature: float = 0.07,
    normalize: bool = False,
    detach_keys: bool = True,
    decoupled: bool = False,
    log_weight: Tensor | Sequence[Tensor | None] | None = None,
    similarity_weight: Tensor | Sequence[Tensor | None] | None = None,
    row_weight: Tensor | Sequence[Tensor | None] | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor | list[Tensor]:
    """PatchNCE of CUT (Park et al. 2020, arXiv 2007.15651) and its relatives, from patch features to gradient in one
    call, without the matrix of logits in memory.

    Row i of problem b: l_i = row_weight_i * (log(e^(p_i) + sum_j e^(z_ij)) - p_i) with the positive p_i = q_i.k_i / T
    and z_ij = similarity_weight_ij * (q_i.n_j) / T + log_weight_ij over its negatives n_j; `decoupled` leaves e^(p_i)
    out of the sum (DCL, Yeh et al. 2021, arXiv 2110.06848; hDCE). Negatives are the other keys of the same problem,
    or the rows of `negatives`. Published code puts -10 / T for the diagonal into the sum instead of leaving it out:
    e^(-143) at T = 0.07, 0 in float32 below T = 0.1.

    Args:
        q, k: queries and keys, (B, S, C), one problem per image b; (S, C) is one problem. For all negatives of the
            minibatch give (1, B * S, C). float32, bfloat16, float16, or float64 (reference only). Lists of such
            tensors are several layers, of any sizes, in one call; the options below are then lists too, or None.
            Inside autocast, which makes float32 of some features and 16 bits of others, dtypes may differ: all are then
            taken as float32.
        negatives: (M, C) shared by all problems, as a memory bank is, or (B, M, C); no entry is left out.
        temperature: T > 0.
        normalize: divide every row of q, k and negatives by (norm + 1e-7) first, in float32.
        detach_keys: no gradient to k, as published; False gives it one. `negatives` get one if they require it.
        log_weight: added to the negatives' logits (MoNCE); broadcasts to (B, S, M); gets a gradient if it requires it.
            -inf leaves a negative out. A row without any has loss 0 and gradient 0, decoupled -inf and the gradient of
            its positive alone.
        similarity_weight: multiplies the negatives' similarities (hDCE); broadcasts to (B, S, M); has no gradient.
        row_weight: multiplies the losses (ASP); broadcasts to (B, S).
        reduction: "none", "mean" or "sum".
        impl: "auto", "reference", "cpu", "triton" or "cuda" (see `kernels.backend_report`).

    Returns:
        float32 for every 16-bit dtype (a loss of 5 has steps of 0.03 in bfloat16). "none": losses (B, S), or (S,), a
        list of them for lists. "mean": the mean over rows, for lists the mean over layers of it. "sum": over all.
        The loss of a row of zeros is finite with and without `normalize`; with it, its gradient is that of row / 1e-7,
        in float16 at most the largest finite number.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; no negatives; T <= 0 or NaN.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_options(temperature, normalize, detach_keys, decoupled, reduction)
    layers, is_list, squeezed = check_layers(q, k, negatives, log_weight, similarity_weight)
    weights = row_weights(row_weight, layers, is_list)
    if detach_keys:
        layers = [layer._replace(k=layer.k.detach()) for layer in layers]
    spec = Spec(float(temperature), normalize, decoupled)
    chosen = backends.choose(impl, *(t for layer in layers for t in layer), names=Layer._fields)
    losses = _losses(layers, spec, chosen)
    return _reduce(losses, layers, weights, reduction, is_list, squeezed)


def _reduce(losses, layers, weights, reduction, is_list, squeezed) -> Tensor | list[Tensor]:
    rows = [layer.rows for layer in layers]
    # what is recorded for other sizes (whose sizes are tensors or symbols) goes the way that serves them all
    fixed = all(type(r) is int for r in rows) and not torch.compiler.is_exporting()
    alike = len(rows) == 1 or (fixed and all(r == rows[0] for r in rows))
    if reduction != "none" and (alike or reduction == "sum") and all(w is None for w in weights):
        return losses.mean() if reduction == "mean" else losses.sum()  # one small kernel instead of one per layer
    parts = [p.view(layer.q.shape[:2]) for p, layer in zip(losses.split([layer.rows for layer in layers]), layers)]
    parts = [p if w is None else p * w.to(p.dtype) for p, w in zip(parts, weights)]
    if reduction == "none":
        parts = [p.squeeze(0) if flat else p for p, flat in zip(parts, squeezed)]
        return parts if is_list else parts[0]
    if reduction == "mean":
        return torch.stack([p.mean() for p in parts]).mean()
    return torch.stack([p.sum() for p in parts]).sum()
