// Python arguments to PatchesArgs: see kernels/patches/launch_cpu.py.
#include "common/binding.h"

namespace {

constexpr auto read_maps = [](auto& r, std::vector<PatchMap>& maps) {
  r.each(maps, [](auto& r, PatchMap& m) {
    READ(m.map, m.rows, m.ids, m.n, m.c, m.p, m.w, m.sn, m.sc, m.sh, m.sw, m.dtype, m.unique, m.zero);
  });
};

PyObject* call(PyObject* const* args, Py_ssize_t count, int (*f)(const PatchesArgs&, ParallelFor)) {
  Reader r{args, count};
  std::vector<PatchMap> maps;
  read_maps(r, maps);
  return finish(r, PatchesArgs{maps.data(), (int64_t)maps.size()}, f);
}

PyObject* patches_gather(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return call(args, count, tables.patches.gather);
}
PyObject* patches_scatter(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return call(args, count, tables.patches.scatter);
}

}  // namespace

PyMethodDef patches_methods[] = {FAST(patches_gather, std::vector<PatchMap>, read_maps),
                                 FAST(patches_scatter, std::vector<PatchMap>, read_maps),
                                 {nullptr, nullptr, 0, nullptr}};
