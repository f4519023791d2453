// Python arguments to NormArgs: see kernels/norm/launch_cpu.py.
#include "common/binding.h"

namespace {

void problem(Reader& r, NormArgs& a) {  // what every function begins with
  a.x = r.pointer<const void>();
  a.stats = r.pointer<float>();
  a.n = r.integer();
  a.c = r.integer();
  a.h = r.integer();
  a.w = r.integer();
  a.channels_last = r.integer();
  a.dtype = r.integer();
  a.form = r.integer();
  a.threads = threads();
}
void affine(Reader& r, NormArgs& a) {
  a.scale = r.pointer<const float>();
  a.shift = r.pointer<const float>();
  a.per_sample = r.integer();
  a.offset = r.real();
  a.activation = r.integer();
  a.slope = r.real();
  a.pad = r.integer();
}

PyObject* norm_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  problem(r, a);
  affine(r, a);
  a.eps = r.real();
  a.y = r.pointer<void>();
  a.residual = r.pointer<const void>();
  a.residual_n = r.integer();
  a.residual_c = r.integer();
  a.residual_h = r.integer();
  return finish(r, a, tables.norm.forward);
}

PyObject* norm_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  problem(r, a);
  affine(r, a);
  a.grad = r.pointer<const void>();
  a.grad_x = r.pointer<void>();
  a.grad_residual = r.pointer<void>();
  a.grad_scale = r.pointer<float>();
  a.grad_shift = r.pointer<float>();
  return finish(r, a, tables.norm.backward);
}

PyObject* moments(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  problem(r, a);
  a.eps = r.real();
  return finish(r, a, tables.norm.moments);
}

PyObject* moments_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  problem(r, a);
  a.grad_mean = r.pointer<const float>();
  a.grad_std = r.pointer<const float>();
  a.grad_x = r.pointer<void>();
  return finish(r, a, tables.norm.moments_backward);
}

}  // namespace

PyMethodDef norm_methods[] = {
    FAST(norm_forward), FAST(norm_backward), FAST(moments), FAST(moments_backward), {nullptr, nullptr, 0, nullptr}};
