// Python arguments to NceArgs: see kernels/nce/launch_cpu.py.
#include "common/binding.h"

namespace {

struct Call {
  NceArgs a = {};
  std::vector<NceLayer> layers;
  NceArgs args() {
    a.layers = layers.data();
    a.count = (int64_t)layers.size();
    for (const NceLayer& l : layers) a.rows += l.b * l.s;
    return a;
  }
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

}  // namespace

PyMethodDef nce_methods[] = {FAST("nce_forward", Call, read_forward, tables.nce.forward),
                             FAST("nce_backward", Call, read_backward, tables.nce.backward),
                             {nullptr, nullptr, 0, nullptr}};
