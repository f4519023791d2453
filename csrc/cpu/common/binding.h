// What the bindings of all rooms share: reading arguments, running without the GIL, the chosen instruction set's tables.
//
// Functions take plain integers (addresses, sizes, strides) and floats; the launch_cpu.py of each room, their only caller,
// has checked the tensors. METH_FASTCALL without pybind11 or torch/extension.h: these files compile in seconds instead of
// half a minute, and a call costs a fraction of a microsecond.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "nce/nce.h"
#include "norm/norm.h"
#include "patches/patches.h"
#include "resample/resample.h"
#include "sinkhorn/sinkhorn.h"

struct Tables {  // one per instruction set
  NormTable norm;
  NceTable nce;
  PatchesTable patches;
  ResampleTable resample;
  SinkhornTable sinkhorn;
};

extern Tables tables;  // of the instruction set in use

extern PyMethodDef norm_methods[], nce_methods[], patches_methods[], resample_methods[], sinkhorn_methods[];

int64_t threads();                                                                 // torch's thread count
void parallel(int64_t count, int64_t grain, void* context, ParallelBody body);  // on torch's thread pool

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
  // ok, unless arguments are left over
  bool done() {
    if (ok && left != 0) {
      PyErr_SetString(PyExc_TypeError, "too many arguments");
      ok = false;
    }
    return ok;
  }
};

// Calls f(args, parallel) without the GIL; f returns 0, or 1 when scratch memory could not be had.
template <class Args>
PyObject* finish(Reader& r, const Args& a, int (*f)(const Args&, ParallelFor)) {
  if (!r.done()) return nullptr;
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = f(a, parallel);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, nullptr}
