// Python arguments to NormArgs: see kernels/norm/launch_cpu.py.
#include "common/binding.h"

namespace {

// What every function begins with.
void problem(auto& r, NormArgs& a) {
  READ(a.x, a.stats, a.n, a.c, a.h, a.w, a.channels_last, a.dtype, a.kind);
}
void options(auto& r, NormArgs& a) { READ(a.scale, a.shift, a.per_sample, a.offset, a.activation, a.slope, a.pad); }

constexpr auto read_forward = [](auto& r, NormArgs& a) {
  problem(r, a);
  options(r, a);
  READ(a.eps, a.y, a.residual, a.residual_n, a.residual_c, a.residual_h);
};
constexpr auto read_backward = [](auto& r, NormArgs& a) {
  problem(r, a);
  options(r, a);
  READ(a.grad, a.grad_x, a.grad_residual, a.grad_scale, a.grad_shift);
};
constexpr auto read_moments = [](auto& r, NormArgs& a) {
  problem(r, a);
  READ(a.eps);
};
constexpr auto read_moments_backward = [](auto& r, NormArgs& a) {
  problem(r, a);
  READ(a.grad_mean, a.grad_std, a.grad_x);
};

}  // namespace

PyMethodDef norm_methods[] = {FAST("norm_forward", NormArgs, read_forward, tables.norm.forward),
                              FAST("norm_backward", NormArgs, read_backward, tables.norm.backward),
                              FAST("moments", NormArgs, read_moments, tables.norm.moments),
                              FAST("moments_backward", NormArgs, read_moments_backward, tables.norm.moments_backward),
                              {nullptr, nullptr, 0, nullptr}};
