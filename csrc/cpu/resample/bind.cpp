// Python arguments to ResampleArgs: see kernels/resample/launch_cpu.py.
#include "common/binding.h"

#include <initializer_list>

namespace {

ResampleAxis axis(Reader& r) {
  ResampleAxis a;
  a.first = r.pointer<const int32_t>();
  a.index = r.pointer<const int32_t>();
  a.weight = r.pointer<const float>();
  for (int64_t* number : {&a.outputs, &a.low, &a.groups, &a.phases, &a.step}) *number = r.integer();
  return a;
}

PyObject* resample(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Reader r{args, count};
  ResampleArgs a;
  a.x = r.pointer<const void>();
  a.y = r.pointer<void>();
  for (int64_t* number : {&a.n, &a.c, &a.channels_last, &a.dtype, &a.sn, &a.sc, &a.sh}) *number = r.integer();
  a.rows = axis(r);
  a.columns = axis(r);
  return finish(r, a, tables.resample.apply);
}

}  // namespace

PyMethodDef resample_methods[] = {FAST(resample), {nullptr, nullptr, 0, nullptr}};
