// Python arguments to SinkhornArgs: see kernels/sinkhorn/launch_cpu.py.
#include "common/binding.h"

namespace {

// What every function begins with.
void problem(auto& r, SinkhornArgs& a) { READ(a.problems, a.s, a.m, a.iterations, a.dtype, a.log_kernel, a.potentials); }

constexpr auto read_forward = [](auto& r, SinkhornArgs& a) {
  problem(r, a);
  READ(a.log_plan);
};
constexpr auto read_backward = [](auto& r, SinkhornArgs& a) {
  problem(r, a);
  READ(a.grad, a.grad_log_kernel);
};

}  // namespace

PyMethodDef sinkhorn_methods[] = {FAST("sinkhorn_forward", SinkhornArgs, read_forward, tables.sinkhorn.forward),
                                  FAST("sinkhorn_backward", SinkhornArgs, read_backward, tables.sinkhorn.backward),
                                  {nullptr, nullptr, 0, nullptr}};
