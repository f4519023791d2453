// The thin side that knows Python and torch: picks the instruction set and hands torch's thread pool to the kernels.
//
// Functions take plain integers (addresses, sizes, strides) and floats; kernels/norm/launch_cpu.py, their only caller, has
// checked the tensors. METH_FASTCALL without pybind11 or torch/extension.h: this file compiles in seconds instead of half
// a minute, and a call costs a fraction of a microsecond.
#define PY_SSIZE_T_CLEAN
#include <ATen/Parallel.h>
#include <Python.h>

#include "norm.h"

#define KERNELS_DECLARE(isa) \
  namespace isa {            \
  NormTable norm_table();    \
  }
KERNELS_DECLARE(isa_baseline)
#if defined(__x86_64__)
KERNELS_DECLARE(isa_avx2)
KERNELS_DECLARE(isa_avx512)
KERNELS_DECLARE(isa_avx512_bf16)
#endif

namespace {

struct Level {
  const char* name;
  bool supported;
  NormTable (*table)();
};

const Level* levels(int* count) {  // from the plainest to the widest
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const Level all[] = {{"baseline", true, isa_baseline::norm_table},
                              {"avx2", avx2, isa_avx2::norm_table},
                              {"avx512", avx512, isa_avx512::norm_table},
                              {"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16"), isa_avx512_bf16::norm_table}};
#else
  static const Level all[] = {{"baseline", true, isa_baseline::norm_table}};
#endif
  *count = (int)(sizeof all / sizeof all[0]);
  return all;
}

NormTable table = isa_baseline::norm_table();

void parallel(int64_t count, int64_t grain, void* context, ParallelBody body) {
  at::parallel_for(0, count, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
}

// Reads positional arguments in order; the first failure sticks.
struct Reader {
  PyObject* const* args;
  Py_ssize_t left;
  bool ok = true;
  PyObject* next() {
    if (left <= 0) {
      if (ok) PyErr_SetString(PyExc_TypeError, "too few arguments");
      ok = false;
      return Py_None;
    }
    --left;
    return *args++;
  }
  int64_t integer() {
    PyObject* o = next();
    if (!ok) return 0;
    const int64_t v = PyLong_AsLongLong(o);
    if (v == -1 && PyErr_Occurred()) ok = false;
    return v;
  }
  float real() {
    PyObject* o = next();
    if (!ok) return 0;
    const double v = PyFloat_AsDouble(o);
    if (v == -1.0 && PyErr_Occurred()) ok = false;
    return (float)v;
  }
  template <class T>
  T* pointer() {
    return (T*)(uintptr_t)integer();
  }
  void problem(NormArgs& a) {  // what every function begins with
    a.x = pointer<const void>();
    a.stats = pointer<float>();
    a.n = integer();
    a.c = integer();
    a.h = integer();
    a.w = integer();
    a.channels_last = integer();
    a.dtype = integer();
    a.form = integer();
    a.threads = at::get_num_threads();
  }
  void affine(NormArgs& a) {
    a.scale = pointer<const float>();
    a.shift = pointer<const float>();
    a.per_sample = integer();
    a.offset = real();
    a.activation = integer();
    a.slope = real();
    a.pad = integer();
  }
};

PyObject* finish(Reader& r, const NormArgs& a, int (*f)(const NormArgs&, ParallelFor)) {
  if (r.ok && r.left != 0) {
    PyErr_SetString(PyExc_TypeError, "too many arguments");
    r.ok = false;
  }
  if (!r.ok) return nullptr;
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = f(a, parallel);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyObject* norm_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  r.problem(a);
  r.affine(a);
  a.eps = r.real();
  a.y = r.pointer<void>();
  a.residual = r.pointer<const void>();
  a.residual_n = r.integer();
  a.residual_c = r.integer();
  a.residual_h = r.integer();
  return finish(r, a, table.forward);
}

PyObject* norm_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  r.problem(a);
  r.affine(a);
  a.grad = r.pointer<const void>();
  a.grad_x = r.pointer<void>();
  a.grad_residual = r.pointer<void>();
  a.grad_scale = r.pointer<float>();
  a.grad_shift = r.pointer<float>();
  return finish(r, a, table.backward);
}

PyObject* moments(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  r.problem(a);
  a.eps = r.real();
  return finish(r, a, table.moments);
}

PyObject* moments_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  NormArgs a = {};
  r.problem(a);
  a.grad_mean = r.pointer<const float>();
  a.grad_std = r.pointer<const float>();
  a.grad_x = r.pointer<void>();
  return finish(r, a, table.moments_backward);
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
      table = all[i].table();
      Py_RETURN_NONE;
    }
  return PyErr_Format(PyExc_ValueError, "no instruction set '%s' on this machine", wanted);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, nullptr}
PyMethodDef methods[] = {FAST(norm_forward),
                         FAST(norm_backward),
                         FAST(moments),
                         FAST(moments_backward),
                         {"supported", supported, METH_NOARGS, "instruction sets this machine runs, plainest first"},
                         {"select", select_level, METH_O, "use this instruction set from now on"},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels_cpu() { return PyModule_Create(&module); }
