// Python arguments to PatchesArgs: see kernels/patches/launch_cpu.py.
#include "common/binding.h"

namespace {

struct Call {
  std::vector<PatchMap> maps;
  PatchesArgs args() const { return {maps.data(), (int64_t)maps.size()}; }
};

constexpr auto read_maps = [](auto& r, Call& c) {
  r.each(c.maps, [](auto& r, PatchMap& m) {
    READ(m.map, m.rows, m.ids, m.n, m.c, m.p, m.positions, m.w, m.sn, m.sc, m.sh, m.sw, m.dtype, m.unique, m.zero);
  });
};

}  // namespace

PyMethodDef patches_methods[] = {FAST("patches_gather", Call, read_maps, tables.patches.gather),
                                 FAST("patches_scatter", Call, read_maps, tables.patches.scatter),
                                 {nullptr, nullptr, 0, nullptr}};
