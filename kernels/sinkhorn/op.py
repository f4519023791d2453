"""sinkhorn: checks, choice of implementation, autograd.

As in kernels/norm/op.py: eager calls go through one autograd.Function straight to a launcher; while torch.compile
traces, the same function calls the registered ops instead, which the compiler treats as opaque nodes.
"""

from __future__ import annotations

import functools

import torch

from kernels import _guard, backends
from kernels._checks import check_count
from kernels.sinkhorn import reference
from kernels.sinkhorn.checks import check_log_kernel
from kernels.sinkhorn.spec import new_potentials

Tensor = torch.Tensor

_launcher = functools.partial(backends.launcher, "sinkhorn")


# ---- the registered ops, for torch.compile ---------------------------------------------------------------------------

_library = torch.library.Library("fused_i2i", "FRAGMENT")
_library.define("sinkhorn_forward(Tensor log_kernel, int iterations, str impl) -> (Tensor, Tensor)")
_library.define("sinkhorn_backward(Tensor grad, Tensor log_kernel, Tensor potentials, str impl) -> Tensor")


for _key in backends.KEYS:
    _library.impl("sinkhorn_forward", lambda x, iterations, impl: _launcher(impl).forward(x, iterations), _key)
    _library.impl("sinkhorn_backward", lambda *given: _launcher(given[-1]).backward(*given[:-1]), _key)


@torch.library.register_fake("fused_i2i::sinkhorn_forward")
def _(log_kernel, iterations, impl):
    return torch.empty_like(log_kernel, memory_format=torch.contiguous_format), new_potentials(log_kernel, iterations)


@torch.library.register_fake("fused_i2i::sinkhorn_backward")
def _(grad, log_kernel, potentials, impl):
    return torch.empty_like(log_kernel, memory_format=torch.contiguous_format)


_sinkhorn_forward = torch.ops.fused_i2i.sinkhorn_forward.default
_sinkhorn_backward = torch.ops.fused_i2i.sinkhorn_backward.default


# ---- autograd --------------------------------------------------------------------------------------------------------


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, iterations, impl):
        if torch.compiler.is_compiling():
            plan, potentials = _sinkhorn_forward(x, iterations, impl)
        else:
            plan, potentials = _launcher(impl).forward(x, iterations)
        ctx.save_for_backward(x, potentials)
        ctx.iterations, ctx.impl = iterations, impl
        return plan

    @staticmethod
    def backward(ctx, grad):
        x, potentials = ctx.saved_tensors
        if torch.compiler.is_compiling():  # asked first: torch.compile would trace the other branches too
            dx = _sinkhorn_backward(grad, x, potentials, ctx.impl)
        elif torch.is_grad_enabled() or not _guard.addressable(grad):  # create_graph=True
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                plan = reference.sinkhorn(x, ctx.iterations)
                (dx,) = torch.autograd.grad(plan, x, grad, create_graph=create_graph)
        else:
            dx = _launcher(ctx.impl).backward(grad, x, potentials)
        return dx, None, None


# ---- public ----------------------------------------------------------------------------------------------------------


def sinkhorn(log_kernel: Tensor, iterations: int = 50, *, impl: str = "auto") -> Tensor:
    """Log of the entropic transport plan (Cuturi 2013, arXiv 1306.0895) of each exp(log_kernel), all marginals 1.

    Rows are scaled, then columns, `iterations` times, rows first: u = 1 / (K v), v = 1 / (K^T u), plan = u K v, all in
    the log domain, so that kernels of any spread stay finite. With S != M rows are scaled to sum to M / S. After the
    last iteration columns sum to 1; rows do once the iteration has converged.

    Args:
        log_kernel: (B, S, M), one problem per b, or (S, M); float32, bfloat16, float16, or float64 (reference only).
            -inf stands for a pair that may not be matched.
        iterations: at least 1.
        impl: "auto", "reference", "cpu" or "triton" (see `kernels.backend_report`).

    Returns:
        shape and dtype of log_kernel, contiguous; computed in float32 for every dtype, float64 for float64. Gradients
        are those of the unrolled loop.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or shape.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_log_kernel(log_kernel)
    check_count("iterations", iterations)
    iterations = int(iterations)
    chosen = backends.choose(impl, log_kernel, names=("log_kernel",))
    x = log_kernel if log_kernel.dim() == 3 else log_kernel[None]
    if chosen == "reference":
        plan = reference.sinkhorn(x, iterations)
    elif torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        plan = _Sinkhorn.apply(x, iterations, chosen)
    else:
        plan, _ = _launcher(chosen).forward(x, iterations, keep=False)
    return plan.reshape(log_kernel.shape)
