// Python arguments to SinkhornArgs: see kernels/sinkhorn/launch_cpu.py.
#include "common/binding.h"

namespace {

void problem(Reader& r, SinkhornArgs& a) {  // what every function begins with
  a.problems = r.integer();
  a.s = r.integer();
  a.m = r.integer();
  a.iterations = r.integer();
  a.dtype = r.integer();
  a.log_kernel = r.pointer<const void>();
  a.potentials = r.pointer<float>();
}

PyObject* sinkhorn_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  SinkhornArgs a = {};
  problem(r, a);
  a.log_plan = r.pointer<void>();
  return finish(r, a, tables.sinkhorn.forward);
}

PyObject* sinkhorn_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  SinkhornArgs a = {};
  problem(r, a);
  a.grad = r.pointer<const void>();
  a.grad_log_kernel = r.pointer<void>();
  return finish(r, a, tables.sinkhorn.backward);
}

}  // namespace

PyMethodDef sinkhorn_methods[] = {FAST(sinkhorn_forward), FAST(sinkhorn_backward), {nullptr, nullptr, 0, nullptr}};
