// Python arguments to NceArgs: see kernels/nce/launch_cpu.py.
#include "common/binding.h"

namespace {

struct Call {
  NceArgs a = {};
  std::vector<NceLayer> layers;
};

// What every function begins with.
void options(auto& r, NceArgs& a) { READ(a.dtype, a.temperature, a.normalize, a.decoupled); }

void inputs(auto& r, NceLayer& l) {
  READ(l.q, l.k, l.negatives, l.b, l.s, l.m, l.c, l.shared);
  READ(l.log_weight.p, l.log_weight.b, l.log_weight.i, l.log_weight.j);
  READ(l.similarity_weight.p, l.similarity_weight.b, l.similarity_weight.i, l.similarity_weight.j);
}

constexpr auto read_forward = [](auto& r, Call& c) {
  NceArgs& a = c.a;
  options(r, a);
  READ(a.loss, a.stats);
  r.each(c.layers, [](auto& r, NceLayer& l) {
    inputs(r, l);
    READ(l.dq_unscaled);
  });
};
constexpr auto read_backward = [](auto& r, Call& c) {
  NceArgs& a = c.a;
  options(r, a);
  READ(a.grad, a.stats);
  r.each(c.layers, [](auto& r, NceLayer& l) {
    inputs(r, l);
    READ(l.dq_unscaled_in, l.grad_q, l.grad_k, l.grad_negatives, l.grad_log_weight);
  });
};

PyObject* run(Reader& r, Call& c, int (*f)(const NceArgs&, ParallelFor)) {
  c.a.threads = threads();
  c.a.layers = c.layers.data();
  c.a.count = (int64_t)c.layers.size();
  for (const NceLayer& l : c.layers) c.a.rows += l.b * l.s;
  return finish(r, c.a, f);
}

PyObject* nce_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  Call c;
  read_forward(r, c);
  return run(r, c, tables.nce.forward);
}

PyObject* nce_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  Call c;
  read_backward(r, c);
  return run(r, c, tables.nce.backward);
}

}  // namespace

PyMethodDef nce_methods[] = {FAST(nce_forward, Call, read_forward),
                             FAST(nce_backward, Call, read_backward),
                             {nullptr, nullptr, 0, nullptr}};
