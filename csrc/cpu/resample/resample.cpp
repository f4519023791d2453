// Planes through a sparse matrix on each axis: blur and sampling, padding, and the gradients of both.
//
// A row of output is the work: it needs a few rows of input, which stay in cache for the next one. Along it pixels are
// summed over channels where those fill a register (`sum_taps`), over columns where each pixel is one number
// (lines.h), and number by number at the borders and for few channels (`pixels`).
#include "resample/resample.h"

#include "resample/lines.h"

namespace KERNELS_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // outputs below which a second thread costs more than it brings

template <class T>
struct Pixel {  // the taps of an output pixel
  Tap<T> tap[kMostTaps * kMostTaps];
  int count;

  Pixel(const Rows<T>& rows, const ResampleAxis& axis, int64_t j, int64_t inner) : count(0) {
    for (int r = 0; r < rows.count; ++r)
      for (int32_t t = axis.first[j]; t < axis.first[j + 1]; ++t)
        tap[count++] = {rows.row[r].from + axis.index[t] * inner, rows.row[r].weight * axis.weight[t]};
  }
};

// Sum over t of tap[t].weight * tap[t].from[shift + i], to y[i]. COUNT: of taps, where known; 0: `count`.
template <int COUNT, class T>
void sum_counted(const Tap<T>* tap, int count, int64_t shift, T* y, int64_t length) {
  if (COUNT) count = COUNT;
  int64_t i = 0;
  for (; i + 4 * W <= length; i += 4 * W) {
    vf sum[4] = {};
    for (int t = 0; t < count; ++t)
      for (int k = 0; k < 4; ++k) sum[k] += tap[t].weight * load(tap[t].from + shift + i + k * W);
    for (int k = 0; k < 4; ++k) store(y + i + k * W, sum[k]);
  }
  for (; i < length; i += W) {
    const int64_t left = length - i;
    vf sum = {};
    for (int t = 0; t < count; ++t) sum += tap[t].weight * load_until(tap[t].from + shift + i, left);
    store_until(y + i, sum, left);
  }
}

// memcpy where that pays; short rows (16 pixels of 256 planes) cost a call each there, and a few registers here.
template <class T>
static inline void copy_line(const T* from, T* to, int64_t length) {
  constexpr int64_t kStep = sizeof(vf) / sizeof(T);
  if (length > 16 * kStep || length < kStep) {
    memcpy(to, from, (size_t)length * sizeof(T));
    return;
  }
  vf piece;
  for (int64_t i = 0; i + kStep <= length; i += kStep) {
    memcpy(&piece, from + i, sizeof piece);
    memcpy(to + i, &piece, sizeof piece);
  }
  memcpy(&piece, from + length - kStep, sizeof piece);  // the last ones, some of them again
  memcpy(to + length - kStep, &piece, sizeof piece);
}

template <class T>
void sum_taps(const Tap<T>* tap, int count, int64_t shift, T* y, int64_t length) {
  if (count == 1 && tap[0].weight == 1.0f) return copy_line(tap[0].from + shift, y, length);
  switch (count) {  // those of the published layers
    case 2: return sum_counted<2>(tap, count, shift, y, length);
    case 4: return sum_counted<4>(tap, count, shift, y, length);
    case 9: return sum_counted<9>(tap, count, shift, y, length);
    case 16: return sum_counted<16>(tap, count, shift, y, length);
    default: return sum_counted<0>(tap, count, shift, y, length);
  }
}

// Outputs [begin, end) of a row one by one, `inner` numbers each.
template <class T>
void pixels(const Rows<T>& rows, const ResampleAxis& axis, int64_t begin, int64_t end, int64_t inner, T* y) {
  for (int64_t j = begin; j < end; ++j) {
    if (inner >= W) {
      const Pixel<T> pixel(rows, axis, j, inner);
      sum_taps(pixel.tap, pixel.count, 0, y + j * inner, inner);
      continue;
    }
    for (int64_t i = 0; i < inner; ++i) {
      float sum = 0;
      for (int r = 0; r < rows.count; ++r)
        for (int32_t t = axis.first[j]; t < axis.first[j + 1]; ++t)
          sum += rows.row[r].weight * axis.weight[t] * scalar(rows.row[r].from[axis.index[t] * inner + i]);
      put(y + j * inner + i, sum);
    }
  }
}

// The regular groups where a pixel fills a register: their taps are those of the first group, further on.
template <class T>
void regular_pixels(const Rows<T>& rows, const ResampleAxis& axis, const Columns& c, int64_t inner, T* y) {
  if (!c.groups) return;
  const Pixel<T> phase[2] = {{rows, axis, c.low, inner}, {rows, axis, c.low + c.phases - 1, inner}};
  y += c.low * inner;
  for (int64_t g = 0; g < c.groups; ++g)
    for (int p = 0; p < c.phases; ++p, y += inner)
      sum_taps(phase[p].tap, phase[p].count, g * c.step * inner, y, inner);
}

// Whether each output is one input as it is: padding.
bool copies(const ResampleAxis& axis) { return axis.first[axis.outputs] == axis.outputs; }

template <class T>
struct Line {
  const ResampleAxis& axis;
  int64_t inner, high;
  bool shifted;  // the regular columns are those of the input, so that they make one long pixel
  Columns columns;

  Line(const ResampleArgs& args)
      : axis(args.columns), inner(args.channels_last ? args.c : 1), columns(columns_of(args.columns)) {
    high = columns.low + columns.groups * columns.phases;
    shifted = columns.groups && columns.step == 1 && columns.phases == 1 && columns.reach == 1 && columns.weight[0][0] == 1.0f;
  }

  void sum(const Rows<T>& rows, T* y) const {
    if (!shifted && inner > 1 && inner < W) return pixels(rows, axis, 0, axis.outputs, inner, y);
    pixels(rows, axis, 0, columns.low, inner, y);
    pixels(rows, axis, high, axis.outputs, inner, y);
    if (shifted) {
      Tap<T> tap[kMostTaps];
      for (int r = 0; r < rows.count; ++r) tap[r] = {rows.row[r].from + columns.base * inner, rows.row[r].weight};
      sum_taps(tap, rows.count, 0, y + columns.low * inner, columns.groups * inner);
    } else if (inner == 1) {
      regular_columns(rows, columns, y);
    } else {
      regular_pixels(rows, axis, columns, inner, y);
    }
  }

  void copy(const T* x, T* y) const {
    const auto border = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        if (inner == 1)
          y[j] = x[axis.index[j]];
        else
          memcpy(y + j * inner, x + axis.index[j] * inner, (size_t)inner * sizeof(T));
      }
    };
    border(0, columns.low);
    copy_line(x + columns.base * inner, y + columns.low * inner, columns.groups * inner);
    border(high, axis.outputs);
  }
};

template <class T>
void lines(const ResampleArgs& args, int64_t begin, int64_t end) {
  const Line<T> line(args);
  const int64_t height = args.rows.outputs, planes = args.channels_last ? 1 : args.c;
  const int64_t length = args.columns.outputs * line.inner;
  const bool copy = line.shifted && copies(args.rows) && copies(args.columns);
  int64_t plane = begin / height, i = begin % height;
  T* y = (T*)args.y + begin * length;
  for (int64_t task = begin; task < end; ++plane, i = 0) {
    const T* x = (const T*)args.x + plane / planes * args.sn + plane % planes * args.sc;
    for (; i < height && task < end; ++i, ++task, y += length) {
      const int32_t from = args.rows.first[i], to = args.rows.first[i + 1];
      if (copy) {
        line.copy(x + args.rows.index[from] * args.sh, y);
        continue;
      }
      Rows<T> rows;
      rows.count = to - from;
      for (int r = 0; r < rows.count; ++r)
        rows.row[r] = {x + args.rows.index[from + r] * args.sh, args.rows.weight[from + r]};
      line.sum(rows, y);
    }
  }
}

int apply(const ResampleArgs& args, ParallelFor parallel) {
  const int64_t rows = args.n * (args.channels_last ? 1 : args.c) * args.rows.outputs;
  const int64_t length = args.columns.outputs * (args.channels_last ? args.c : 1);
  run(parallel, rows, kGrain / (length > 0 ? length : 1), [&](int64_t begin, int64_t end) {
    if (args.dtype == kFloat32)
      lines<float>(args, begin, end);
    else if (args.dtype == kBFloat16)
      lines<bf16>(args, begin, end);
    else
      lines<f16>(args, begin, end);
  });
  return 0;
}

}  // namespace

ResampleTable resample_table() { return {apply}; }

}  // namespace KERNELS_ISA
