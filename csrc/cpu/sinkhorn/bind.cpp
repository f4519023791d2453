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

PyObject* sinkhorn_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  SinkhornArgs a = {};
  read_forward(r, a);
  return finish(r, a, tables.sinkhorn.forward);
}

PyObject* sinkhorn_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  SinkhornArgs a = {};
  read_backward(r, a);
  return finish(r, a, tables.sinkhorn.backward);
}

}  // namespace

PyMethodDef sinkhorn_methods[] = {FAST(sinkhorn_forward, SinkhornArgs, read_forward),
                                  FAST(sinkhorn_backward, SinkhornArgs, read_backward),
                                  {nullptr, nullptr, 0, nullptr}};
