// What the bindings of all rooms share: reading arguments, running without the GIL, the chosen instruction set's tables.
//
// Functions take plain integers (addresses, sizes, strides) and floats; the launch_cpu.py of each room, their only caller,
// has checked the tensors. METH_FASTCALL without pybind11 or torch/extension.h: these files compile in seconds instead of
// half a minute, and a call costs a fraction of a microsecond.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <new>
#include <string>
#include <vector>

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

// Reads the arguments of a call in order; the first failure sticks. A function of a room lists its arguments once, in a
// lambda that both Reader and Names run: what READ(a.x, a.n) names is what it reads.
struct Reader {
  PyObject* const* args;
  Py_ssize_t left;
  bool ok = true;
  template <class... T>
  void read(const char*, T&... fields) {
    (take(fields), ...);
  }
  // A group of arguments for each of `items`, up to the last argument.
  template <class T, class F>
  void each(std::vector<T>& items, F f) {
    do {
      try {
        items.push_back(T{});
      } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
        ok = false;
        return;
      }
      f(*this, items.back());
    } while (ok && left > 0);
  }
  // ok, unless arguments are left over
  bool done() {
    if (ok && left != 0) {
      PyErr_SetString(PyExc_TypeError, "too many arguments");
      ok = false;
    }
    return ok;
  }

 private:
  PyObject* next() {
    if (left <= 0) {
      if (ok) PyErr_SetString(PyExc_TypeError, "too few arguments");
      ok = false;
      return Py_None;
    }
    --left;
    return *args++;
  }
  void take(int64_t& v) {
    PyObject* o = next();
    v = 0;
    if (!ok) return;
    v = PyLong_AsLongLong(o);
    if (v == -1 && PyErr_Occurred()) ok = false;
  }
  void take(float& v) {
    PyObject* o = next();
    v = 0;
    if (!ok) return;
    const double d = PyFloat_AsDouble(o);
    v = (float)d;
    if (d == -1.0 && PyErr_Occurred()) ok = false;
  }
  template <class T>
  void take(T*& p) {
    int64_t v;
    take(v);
    p = (T*)(uintptr_t)v;
  }
};

// Writes down the names of the arguments in the order in which they are read, a repeated group in brackets. They become
// the docstring of the function; kernels/_native.py compares them with ARGUMENTS of the room's launch_cpu.py when it
// loads the library, for two integers in each other's place would be a write to a wrong address.
struct Names {
  std::string text;
  template <class... T>
  void read(const char* fields, T&...) {  // "a.x, a.rows.first" adds "x rows.first"
    for (const char* at = fields; *at; at += strspn(at, ", ")) {
      const std::string field(at, strcspn(at, ","));
      add(field.substr(field.find('.') + 1));
      at += field.size();
    }
  }
  template <class T, class F>
  void each(std::vector<T>&, F f) {
    T one = {};
    add("[");
    f(*this, one);
    add("]");
  }

 private:
  void add(const std::string& word) { text += text.empty() ? word : " " + word; }
};

#define READ(...) r.read(#__VA_ARGS__, __VA_ARGS__)

template <class Args, class F>
const char* names(F read) {
  static const std::string text = [&] {
    Names r;
    Args a = {};
    read(r, a);
    return r.text;
  }();
  return text.c_str();
}

// One call: reads its arguments, and runs f(args, parallel) without the GIL; f returns 0, 1 when scratch memory could not be
// had, or 2 when a position lies outside its map. Call: the room's Args; or, where arguments come in groups, what owns
// these and makes the Args of them.
template <class Call, class Read, class Args>
PyObject* call(PyObject* const* args, Py_ssize_t count, Read read, int (*f)(const Args&, ParallelFor)) {
  Reader r{args, count};
  Call c = {};
  read(r, c);
  if (!r.done()) return nullptr;
  Args a;
  if constexpr (requires { c.args(); }) a = c.args();
  else a = c;
  if constexpr (requires { a.threads; }) a.threads = threads();
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = f(a, parallel);
  Py_END_ALLOW_THREADS;
  if (failed == 1) return PyErr_NoMemory();
  if (failed) {
    PyErr_SetString(PyExc_IndexError, "a position outside its map");
    return nullptr;
  }
  Py_RETURN_NONE;
}

// The entry of a function in its room's table. One `read` for the call and for the names: they cannot differ.
#define FAST(name, Call, read, function)                                                                  \
  {name,                                                                                                  \
   (PyCFunction)(void (*)(void))+[](PyObject*, PyObject* const* args, Py_ssize_t count) {                 \
     return call<Call>(args, count, read, function);                                                      \
   },                                                                                                     \
   METH_FASTCALL, names<Call>(read)}
