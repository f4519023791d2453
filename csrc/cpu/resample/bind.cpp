// Python arguments to ResampleArgs: see kernels/resample/launch_cpu.py.
#include "common/binding.h"

namespace {

constexpr auto read_arguments = [](auto& r, ResampleArgs& a) {
  READ(a.x, a.y, a.n, a.c, a.channels_last, a.dtype, a.sn, a.sc, a.sh);
  READ(a.rows.first, a.rows.index, a.rows.weight);
  READ(a.rows.outputs, a.rows.low, a.rows.groups, a.rows.phases, a.rows.step);
  READ(a.columns.first, a.columns.index, a.columns.weight);
  READ(a.columns.outputs, a.columns.low, a.columns.groups, a.columns.phases, a.columns.step);
};

}  // namespace

PyMethodDef resample_methods[] = {FAST("resample", ResampleArgs, read_arguments, tables.resample.apply), {nullptr, nullptr, 0, nullptr}};
