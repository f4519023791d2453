// The module: picks the instruction set and hands torch's thread pool to the kernels. The only file that knows torch.
#include "common/binding.h"

#include <ATen/Parallel.h>

#define KERNELS_LEVEL(name)           \
  namespace isa_##name {              \
  NormTable norm_table();             \
  NceTable nce_table();               \
  PatchesTable patches_table();       \
  ResampleTable resample_table();     \
  SinkhornTable sinkhorn_table();     \
  }                                   \
  static Tables tables_of_##name() {  \
    using namespace isa_##name;       \
    return {norm_table(), nce_table(), patches_table(), resample_table(), sinkhorn_table()}; \
  }
KERNELS_LEVEL(baseline)
#if defined(__x86_64__)
KERNELS_LEVEL(avx2)
KERNELS_LEVEL(avx512)
KERNELS_LEVEL(avx512_bf16)
#endif

Tables tables = tables_of_baseline();

int64_t threads() { return at::get_num_threads(); }

void parallel(int64_t count, int64_t grain, void* context, ParallelBody body) {
  at::parallel_for(0, count, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
}

namespace {

struct Level {
  const char* name;
  bool supported;
  Tables (*tables)();
};

const Level* levels(int* count) {  // from the plainest to the widest
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const Level all[] = {{"baseline", true, tables_of_baseline},
                              {"avx2", avx2, tables_of_avx2},
                              {"avx512", avx512, tables_of_avx512},
                              {"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16"), tables_of_avx512_bf16}};
#else
  static const Level all[] = {{"baseline", true, tables_of_baseline}};
#endif
  *count = (int)(sizeof all / sizeof all[0]);
  return all;
}

PyObject* supported(PyObject*, PyObject*) {
  int count;
  const Level* all = levels(&count);
  PyObject* list = PyList_New(0);
  for (int i = 0; list && i < count; ++i) {
    if (!all[i].supported) continue;
    PyObject* name = PyUnicode_FromString(all[i].name);
    if (!name || PyList_Append(list, name)) Py_CLEAR(list);
    Py_XDECREF(name);
  }
  return list;
}

PyObject* select_level(PyObject*, PyObject* name) {
  const char* wanted = PyUnicode_AsUTF8(name);
  if (!wanted) return nullptr;
  int count;
  const Level* all = levels(&count);
  for (int i = 0; i < count; ++i)
    if (all[i].supported && !strcmp(all[i].name, wanted)) {
      tables = all[i].tables();
      Py_RETURN_NONE;
    }
  return PyErr_Format(PyExc_ValueError, "no instruction set '%s' on this machine", wanted);
}

PyMethodDef methods[] = {{"supported", supported, METH_NOARGS, "instruction sets this machine runs, plainest first"},
                         {"select", select_level, METH_O, "use this instruction set from now on"},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels_cpu() {
  PyObject* m = PyModule_Create(&module);
  for (PyMethodDef* room : {norm_methods, nce_methods, patches_methods, resample_methods, sinkhorn_methods})
    if (m && PyModule_AddFunctions(m, room)) Py_CLEAR(m);
  return m;
}
