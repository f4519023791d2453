// The module: picks the instruction set and hands torch's thread pool to the kernels. The only file that knows torch.
#include "common/binding.h"

#include <ATen/Parallel.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// The matrix unit's levels are of bfloat16 losses alone: all else would be the same code again.
namespace isa_avx512_amx {
NceTable nce_table();
}
namespace isa_amx_emulated {
NceTable nce_table();
}
template <NceTable (*bfloat16)(), NceTable (*others)()>
struct ByDtype {
  static NceTable of(const NceArgs& a) { return a.dtype == kBFloat16 ? bfloat16() : others(); }
  static int forward(const NceArgs& a, ParallelFor parallel) { return of(a).forward(a, parallel); }
  static int backward(const NceArgs& a, ParallelFor parallel) { return of(a).backward(a, parallel); }
  static NceTable table() { return {forward, backward, bfloat16().bfloat16}; }
};
static Tables with(Tables tables, NceTable nce) {
  tables.nce = nce;
  return tables;
}
static Tables tables_of_avx512_amx() {
  return with(tables_of_avx512_bf16(), ByDtype<isa_avx512_amx::nce_table, isa_avx512_bf16::nce_table>::table());
}
static Tables tables_of_amx_emulated() {
  return with(tables_of_avx2(), ByDtype<isa_amx_emulated::nce_table, isa_avx2::nce_table>::table());
}

// On Intel's processors the bfloat16 instruction is slower than float32 (190 against 278 GF/s on two cores of a Xeon with
// AMX), on AMD's almost twice as fast (Zen 4 and 5).
static Tables tables_for_this_avx512_bf16() {
  const bool slower = __builtin_cpu_is("intel");
  return slower ? with(tables_of_avx512_bf16(), isa_avx512::nce_table()) : tables_of_avx512_bf16();
}
#endif

Tables tables = tables_of_baseline();

int64_t threads() { return at::get_num_threads(); }

void parallel(int64_t count, int64_t grain, void* context, ParallelBody body) {
  at::parallel_for(0, count, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
}

namespace {

#if defined(__x86_64__)
// Whether this process may use the matrix unit. Linux gives a process the memory for its registers when it asks, and may
// refuse (an older kernel, a sandbox); asking again changes nothing.
bool has_matrix_unit() {
#if defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Level {
  const char* name;
  bool runs;
  Tables (*tables)();
  bool by_name_alone = false;
};

const Level* levels(int* count) {  // from the plainest to the widest
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
  static const bool amx = pairs && isa_avx512_amx::nce_table().forward && has_matrix_unit();
  static const Level all[] = {{"baseline", true, tables_of_baseline},
                              {"avx2", avx2, tables_of_avx2},
                              {"avx512", avx512, tables_of_avx512},
                              {"avx512_bf16", pairs, tables_for_this_avx512_bf16},
                              {"avx512_amx", amx, tables_of_avx512_amx},
                              {"amx_emulated", avx2, tables_of_amx_emulated, true}};
#else
  static const Level all[] = {{"baseline", true, tables_of_baseline}};
#endif
  *count = (int)(sizeof all / sizeof all[0]);
  return all;
}

PyObject* names_of(bool by_name_alone) {
  int count;
  const Level* all = levels(&count);
  PyObject* list = PyList_New(0);
  for (int i = 0; list && i < count; ++i) {
    if (!all[i].runs || all[i].by_name_alone != by_name_alone) continue;
    PyObject* name = PyUnicode_FromString(all[i].name);
    if (!name || PyList_Append(list, name)) Py_CLEAR(list);
    Py_XDECREF(name);
  }
  return list;
}
PyObject* supported(PyObject*, PyObject*) { return names_of(false); }
PyObject* emulated(PyObject*, PyObject*) { return names_of(true); }
PyObject* bfloat16_products(PyObject*, PyObject*) { return PyUnicode_FromString(tables.nce.bfloat16); }

PyObject* select_level(PyObject*, PyObject* name) {
  const char* wanted = PyUnicode_AsUTF8(name);
  if (!wanted) return nullptr;
  int count;
  const Level* all = levels(&count);
  for (int i = 0; i < count; ++i)
    if (all[i].runs && !strcmp(all[i].name, wanted)) {
      tables = all[i].tables();
      Py_RETURN_NONE;
    }
  return PyErr_Format(PyExc_ValueError, "no instruction set '%s' on this machine", wanted);
}

PyMethodDef methods[] = {{"supported", supported, METH_NOARGS, "instruction sets this machine runs, plainest first"},
                         {"emulated", emulated, METH_NOARGS, "those that only tests ask for, by name"},
                         {"bfloat16_products", bfloat16_products, METH_NOARGS, "what multiplies bfloat16 features"},
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
