// Python arguments to NceArgs: see kernels/nce/launch_cpu.py.
#include "common/binding.h"

#include <stdlib.h>

namespace {

struct Call {  // owns the layers
  NceArgs a = {};
  ~Call() { free(a.layers); }
};

NceWeight weight(Reader& r) {
  NceWeight w;
  w.p = r.pointer<const float>();
  w.b = r.integer();
  w.i = r.integer();
  w.j = r.integer();
  return w;
}

// Returns whether there is memory for the layers; `each` reads what follows the inputs of a layer.
template <class F>
bool read(Reader& r, NceArgs& a, F results, void (*each)(Reader&, NceLayer&)) {
  a.count = r.integer();
  a.dtype = r.integer();
  a.temperature = r.real();
  a.normalize = r.integer();
  a.decoupled = r.integer();
  a.threads = threads();
  results();
  if (!r.ok || a.count < 1 || a.count > r.left) return r.ok = false;
  a.layers = (NceLayer*)calloc((size_t)a.count, sizeof(NceLayer));
  if (!a.layers) return r.ok = false;
  for (int64_t i = 0; i < a.count; ++i) {
    NceLayer& l = a.layers[i];
    l.q = r.pointer<const void>();
    l.k = r.pointer<const void>();
    l.bank = r.pointer<const void>();
    l.b = r.integer();
    l.s = r.integer();
    l.m = r.integer();
    l.c = r.integer();
    l.shared = r.integer();
    l.log_weight = weight(r);
    l.similarity_weight = weight(r);
    each(r, l);
    a.rows += l.b * l.s;
  }
  return r.ok;
}

PyObject* call(Reader& r, const NceArgs& a, int (*f)(const NceArgs&, ParallelFor)) {
  if (!r.ok && !PyErr_Occurred()) return PyErr_NoMemory();
  return finish(r, a, f);
}

PyObject* nce_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  Call c;
  read(
      r, c.a,
      [&] {
        c.a.loss = r.pointer<float>();
        c.a.stats = r.pointer<float>();
      },
      [](Reader& r, NceLayer& l) { l.unit = r.pointer<float>(); });
  return call(r, c.a, tables.nce.forward);
}

PyObject* nce_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  Call c;
  read(
      r, c.a,
      [&] {
        c.a.grad = r.pointer<const float>();
        c.a.stats = r.pointer<float>();
      },
      [](Reader& r, NceLayer& l) {
        l.unit_in = r.pointer<const float>();
        l.grad_q = r.pointer<void>();
        l.grad_k = r.pointer<void>();
        l.grad_bank = r.pointer<void>();
        l.grad_log_weight = r.pointer<float>();
      });
  return call(r, c.a, tables.nce.backward);
}

}  // namespace

PyMethodDef nce_methods[] = {FAST(nce_forward), FAST(nce_backward), {nullptr, nullptr, 0, nullptr}};
