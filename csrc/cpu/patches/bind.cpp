// Python arguments to PatchesArgs: see kernels/patches/launch_cpu.py.
#include "common/binding.h"

#include <vector>

namespace {

PyObject* call(PyObject* const* args, Py_ssize_t count, int (*f)(const PatchesArgs&, ParallelFor)) {
  Reader r{args, count};
  std::vector<PatchMap> maps;
  while (r.ok && r.left > 0) {
    PatchMap m = {};
    m.map = r.pointer<void>();
    m.rows = r.pointer<void>();
    m.ids = r.pointer<const int64_t>();
    for (int64_t* size : {&m.n, &m.c, &m.p, &m.w, &m.sn, &m.sc, &m.sh, &m.sw}) *size = r.integer();
    m.dtype = r.integer();
    m.unique = r.integer();
    m.zero = r.integer();
    maps.push_back(m);
  }
  return finish(r, PatchesArgs{maps.data(), (int64_t)maps.size()}, f);
}

PyObject* patches_gather(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return call(args, count, tables.patches.gather);
}
PyObject* patches_scatter(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return call(args, count, tables.patches.scatter);
}

}  // namespace

PyMethodDef patches_methods[] = {FAST(patches_gather), FAST(patches_scatter), {nullptr, nullptr, 0, nullptr}};
