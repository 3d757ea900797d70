// Involution and its two gradients on the CPU. docs/cpu_kernel.md explains the design.
//
// Whatever the layout and number type, the rows of an image that a thread needs next are copied
// into a small scratch memory that stays in the cache, as float32 or float64 and with the channels
// of a group side by side; the kernels of kernels.h then run over them. Weights are read where they
// are. Every number is computed by one thread, in one order: results depend neither on the number
// of threads nor on chance.
//
// Compiled once for each instruction set, by baseline.cpp, avx2.cpp and avx512.cpp.
#pragma once

#include <limits>

#include "arithmetic.h"
#include "kernels.h"
#include "numbers.h"
#include "operations.h"

namespace rednet {

// ---- what the caller hands over (loader.py has the same structures)

// One side of the window, the vertical or the horizontal one.
struct Side {
  int64_t input, output, kernel, stride, padding, dilation;

  int64_t reach() const { return (kernel - 1) * dilation; }
};

// Strides are in numbers, not bytes; an image uses the first four.
struct Tensor {
  void* data;
  int64_t strides[6];
};

struct Problem {
  int64_t batch, channels, groups;
  Side vertical, horizontal;
  Tensor image;   // (N, C, H, W): the input or its gradient
  Tensor weight;  // (N, G, Kh, Kw, Ho, Wo): the weight or its gradient
  Tensor pixels;  // (N, C, Ho, Wo): the output or its gradient

  int64_t group_channels() const { return channels / groups; }
  int64_t taps() const { return vertical.kernel * horizontal.kernel; }

  int64_t multiply_adds() const {
    return batch * channels * taps() * vertical.output * horizontal.output;
  }
};

template <typename Stored>
Stored* weight_row(const Problem& problem, int64_t n, int64_t g, int64_t kh, int64_t h) {
  const int64_t* s = problem.weight.strides;
  return static_cast<Stored*>(problem.weight.data) + n * s[0] + g * s[1] + kh * s[2] + h * s[4];
}

// ---- vectors of numbers of any type, `step` apart. A constant count and step make vector code of the usual case.

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// As widen and narrow, which compilers do not make good vector code of by themselves.
inline Vector<float> widen_vector(const BFloat16* from) {
  const Halves bits = *reinterpret_cast<const Halves*>(from);
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
}

inline void narrow_vector(Vector<float> sums, BFloat16* to) {
  const auto bits = reinterpret_cast<Vector<uint32_t>>(sums);
  const Vector<uint32_t> rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const auto is_nan = reinterpret_cast<Vector<uint32_t>>((bits & 0x7fffffff) > 0x7f800000);
  *reinterpret_cast<Halves*>(to) =
      __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Halves);
}

template <typename Sum, typename Stored>
inline Vector<Sum> load_vector(const Stored* from, ptrdiff_t step, int64_t count) {
  if constexpr (std::is_same<Stored, BFloat16>::value) {
    if (step == 1 && count == kLanes<Sum>) return widen_vector(from);
  }
  Sum numbers[kLanes<Sum>] = {};
  if (step == 1 && count == kLanes<Sum>)
    load(numbers, from, 1, kLanes<Sum>);
  else
    load(numbers, from, step, count);
  return read(numbers);
}

template <typename Sum, typename Stored>
inline void store_vector(Stored* to, Vector<Sum> vector, ptrdiff_t step, int64_t count) {
  if constexpr (std::is_same<Stored, BFloat16>::value) {
    if (step == 1 && count == kLanes<Sum>) return narrow_vector(vector, to);
  }
  Sum numbers[kLanes<Sum>];
  write(numbers, vector);
  if (step == 1 && count == kLanes<Sum>)
    store(to, numbers, 1, kLanes<Sum>);
  else
    store(to, numbers, step, count);
}

// ---- the tasks that threads share out: some rows of one group of one image

struct Task {
  int64_t n, g, first, end;
};

class Tiling {
  static constexpr int64_t kScratchBytes = 256 * 1024;  // half of a small second-level cache
  static constexpr int64_t kTasksPerThread = 4;

 public:
  // Splits `rows` rows, of which `row_bytes` go to the scratch memory, and `halo` more for each block of them.
  Tiling(const Problem& problem, int64_t rows, int64_t halo, int64_t row_bytes, int threads)
      : groups_(problem.groups), rows_(rows), block_(rows) {
    const int64_t maps = problem.batch * problem.groups;
    // Each block reads its halo anew: where rows are so long that blocks would be little else, more memory is better.
    while (block_ > larger(1, 3 * halo) && (block_ + halo) * row_bytes > kScratchBytes)
      block_ = ceil_div(block_, 2);
    while (block_ > halo + 1 && maps * ceil_div(rows, block_) < kTasksPerThread * threads)
      block_ = ceil_div(block_, 2);
    blocks_ = ceil_div(rows, block_);
    count_ = maps * blocks_;
  }

  int64_t block() const { return block_; }

  int64_t count() const { return count_; }

  Task operator[](int64_t index) const {
    const int64_t map = index / groups_, first = map % blocks_ * block_;
    return {map / blocks_, index % groups_, first, smaller(first + block_, rows_)};
  }

 private:
  int64_t groups_, rows_, block_, blocks_, count_;
};

// Rows whose results are kept back, to be written together: long runs are faster.
inline int64_t strip_rows(int64_t rows, int64_t columns) {
  constexpr int64_t kPixelsTogether = 256;
  return larger(1, smaller(rows, kPixelsTogether / columns));
}

// ---- rows of images, between the caller's layout and ours

// Ours: the channels of a group side by side, in whole cache lines.
template <typename Stored>
class GroupRows {
  using Sum = typename Accumulator<Stored>::type;
  static constexpr int lanes = kLanes<Sum>;
  static constexpr int64_t kAhead = 16;  // pixels

 public:
  GroupRows(const Problem& problem, const Tensor& tensor, int64_t columns)
      : channels_(problem.group_channels()),
        pixel_(round_up(channels_, kLine<Sum>)),
        columns_(columns),
        tensor_(tensor) {}

  // Numbers from one pixel of ours to the next.
  ptrdiff_t pixel() const { return pixel_; }

  ptrdiff_t row() const { return columns_ * pixel_; }

  int64_t lines() const { return pixel_ / kLine<Sum>; }

  // The channels that only fill up a cache line are left alone: the scratch memory is zero at
  // first.
  void read_rows(int64_t n, int64_t g, int64_t first, int64_t rows, Sum* to) const {
    const int64_t together = joined(rows);
    for (int64_t r = 0; r < rows; r += together)
      read_pixels(start(n, g, first + r), together * columns_, to + r * row());
  }

  void write_rows(int64_t n, int64_t g, int64_t first, int64_t rows, const Sum* from) const {
    const int64_t together = joined(rows);
    for (int64_t r = 0; r < rows; r += together)
      write_pixels(from + r * row(), together * columns_, start(n, g, first + r));
  }

 private:
  Stored* start(int64_t n, int64_t g, int64_t row) const {
    const int64_t* s = tensor_.strides;
    return static_cast<Stored*>(tensor_.data) + n * s[0] + g * channels_ * s[1] + row * s[2];
  }

  // How many of these rows can be treated as one.
  int64_t joined(int64_t rows) const {
    return tensor_.strides[2] == columns_ * tensor_.strides[3] ? rows : 1;
  }

  void read_pixels(const Stored* from, int64_t count, Sum* to) const {
    const ptrdiff_t c_step = tensor_.strides[1], x_step = tensor_.strides[3];
    if (c_step == 1) return read_channels(from, x_step, count, to);
    for (int64_t i = 0; i < ceil_div(count, lanes); ++i) {
      const int64_t x = block_start(i, lanes, count);
      for (int64_t c = 0; c < channels_; c += lanes)
        read_square(from + c * c_step + x * x_step, smaller(channels_ - c, lanes),
                    smaller(count, lanes), to + x * pixel_ + c);
    }
  }

  void write_pixels(const Sum* from, int64_t count, Stored* to) const {
    const ptrdiff_t c_step = tensor_.strides[1], x_step = tensor_.strides[3];
    if (c_step == 1) return write_channels(from, count, to, x_step);
    for (int64_t c = 0; c < channels_; c += lanes) {
      for (int64_t i = 0; i < ceil_div(count, lanes); ++i) {
        const int64_t x = block_start(i, lanes, count);
        write_square(from + x * pixel_ + c, smaller(channels_ - c, lanes), smaller(count, lanes),
                     to + c * c_step + x * x_step);
      }
    }
  }

  // Pixels whose channels lie side by side, but far from those of the next pixel: the processor does not fetch them by
  // itself.
  void read_channels(const Stored* from, ptrdiff_t step, int64_t count, Sum* to) const {
    for (int64_t x = 0; x < count; ++x, from += step, to += pixel_) {
      __builtin_prefetch(from + kAhead * step);
      int64_t c = 0;
      for (; c + lanes <= channels_; c += lanes)
        write(to + c, load_vector<Sum>(from + c, 1, lanes));
      if (c < channels_) write(to + c, load_vector<Sum>(from + c, 1, channels_ - c));
    }
  }

  void write_channels(const Sum* from, int64_t count, Stored* to, ptrdiff_t step) const {
    for (int64_t x = 0; x < count; ++x, from += pixel_, to += step) {
      __builtin_prefetch(to + kAhead * step, 1);
      int64_t c = 0;
      for (; c + lanes <= channels_; c += lanes)
        store_vector<Sum>(to + c, read(from + c), 1, lanes);
      if (c < channels_) store_vector<Sum>(to + c, read(from + c), 1, channels_ - c);
    }
  }

  // Not inlined, like its opposite: GCC would do so where a caller is small enough, and spill the square.
  __attribute__((noinline)) void read_square(const Stored* from, int64_t channels, int64_t columns,
                                             Sum* to) const {
    Vector<Sum> square[lanes] = {};
    for (int64_t c = 0; c < channels; ++c)
      square[c] = load_vector<Sum>(from + c * tensor_.strides[1], tensor_.strides[3], columns);
    transpose<Sum>(square);
    for (int64_t x = 0; x < columns; ++x) write(to + x * pixel_, square[x]);
  }

  __attribute__((noinline)) void write_square(const Sum* from, int64_t channels, int64_t columns,
                                              Stored* to) const {
    Vector<Sum> square[lanes] = {};
    for (int64_t x = 0; x < columns; ++x) square[x] = read(from + x * pixel_);
    transpose<Sum>(square);
    for (int64_t c = 0; c < channels; ++c)
      store_vector<Sum>(to + c * tensor_.strides[1], square[c], tensor_.strides[3], columns);
  }

  int64_t channels_;
  ptrdiff_t pixel_;
  int64_t columns_;
  Tensor tensor_;
};

// ---- rows of weights: read in place or copied

// Copied are those of another type than sums are made in, and those whose planes, one for each tap, lie so far apart that
// they share sets of a cache, as at powers of two: it keeps too few of their lines at once, which a copy of one plane after
// the other does not need.
template <typename Stored>
class WeightRows {
  using Sum = typename Accumulator<Stored>::type;

 public:
  // Up to `together` rows are read at once.
  explicit WeightRows(const Problem& problem, int64_t together = 1)
      : problem_(problem),
        dense_(problem.weight.strides[5] == 1),
        in_place_(std::is_same<Stored, Sum>::value &&
                  !(dense_ && share_sets(problem.weight.strides[3]))),
        taps_(problem.horizontal.kernel),
        pixels_(problem.horizontal.output),
        plane_((ceil_div(together * pixels_, kLine<Sum>) | 1) * kLine<Sum>) {}

  // Numbers from one kernel column, from one pixel, and from one row, to the next.
  ptrdiff_t tap_step() const {
    return in_place_ ? problem_.weight.strides[3] : dense_ ? plane_ : 1;
  }

  ptrdiff_t pixel_step() const {
    return in_place_ ? problem_.weight.strides[5] : dense_ ? 1 : taps_;
  }

  ptrdiff_t row_step() const {
    return in_place_ ? problem_.weight.strides[4] : pixels_ * pixel_step();
  }

  // Whether it pays to fetch them ahead, which it does not where a row is a few blocks of pixels.
  bool fetches() const { return in_place_ && pixels_ >= 2 * kPixels; }

  int64_t scratch() const { return in_place_ ? 0 : problem_.taps() * plane_; }

  // Any number of rows may be read at once, and nothing has to be done before.
  int64_t strip() const { return std::numeric_limits<int64_t>::max(); }

  void prepare(int64_t, int64_t, int64_t, int64_t, Sum*) const {}

  // The weights of kernel row kh for output row h.
  const Sum* read_row(int64_t n, int64_t g, int64_t kh, int64_t h, Sum* scratch) const {
    return read_rows(n, g, kh, h, 1, scratch);
  }

  // ... and for those after it.
  const Sum* read_rows(int64_t n, int64_t g, int64_t kh, int64_t h, int64_t rows,
                       Sum* scratch) const {
    const Stored* from = weight_row<Stored>(problem_, n, g, kh, h);
    if constexpr (std::is_same<Stored, Sum>::value) {
      if (in_place_) return from;
    }
    Sum* to = scratch + kh * taps_ * plane_;
    const int64_t* s = problem_.weight.strides;
    const bool joined = s[4] == pixels_ * s[5];
    const int64_t runs = joined ? 1 : rows, count = rows / runs * pixels_;
    for (int64_t r = 0; r < runs; ++r, from += s[4], to += pixels_ * pixel_step())
      dense_ ? copy_planes(from, count, to) : copy_pixels(from, count, to);
    return scratch + kh * taps_ * plane_;
  }

 private:
  // Whether planes so many numbers apart share sets of a second-level cache: of 1 MiB in 8 ways it keeps 32 of their lines
  // then. Near ones are no trouble: they stay in the third level.
  static bool share_sets(ptrdiff_t plane) {
    constexpr int64_t kFar = 96 * 1024, kPeriod = 32 * 1024;
    const int64_t bytes = plane * sizeof(Stored);
    return bytes > kFar && bytes % kPeriod == 0;
  }

  void copy_planes(const Stored* from, int64_t count, Sum* to) const {
    for (int64_t kw = 0; kw < taps_; ++kw)
      load(to + kw * plane_, from + kw * problem_.weight.strides[3], 1, count);
  }

  void copy_pixels(const Stored* from, int64_t count, Sum* to) const {
    const int64_t* s = problem_.weight.strides;
    for (int64_t x = 0; x < count; ++x) load(to + x * taps_, from + x * s[5], s[3], taps_);
  }

  const Problem& problem_;
  bool dense_, in_place_;
  int64_t taps_, pixels_;
  ptrdiff_t plane_;  // an odd number of cache lines: so planes do not share the sets of a cache
};

// ---- kernels over whole rows of pixels

template <typename Sum>
using SumPixels = void (*)(const Window<Sum>&, int64_t, Sum*);

// The fastest kernel for this window.
template <typename Sum, int Pixels>
SumPixels<Sum> choose_kernel(const Window<Sum>& window) {
  const KernelColumn* columns = window.columns;
  bool neighbors = window.column_count > 1;
  for (int64_t c = 1; c < window.column_count; ++c)
    neighbors = neighbors && columns[c].pixel - columns[c - 1].pixel == window.pixel_step;
  const bool dense = window.weight_step == 1;
  if (neighbors && window.column_count == 3)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 3, true>
                 : sum_pixels_of_rows<Sum, Pixels, 3, false>;
  if (neighbors && window.column_count == 4)  // every other one of 7
    return dense ? sum_pixels_of_rows<Sum, Pixels, 4, true>
                 : sum_pixels_of_rows<Sum, Pixels, 4, false>;
  if (neighbors && window.column_count == 5)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 5, true>
                 : sum_pixels_of_rows<Sum, Pixels, 5, false>;
  if (neighbors && window.column_count == 7)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 7, true>
                 : sum_pixels_of_rows<Sum, Pixels, 7, false>;
  return sum_pixels<Sum, Pixels>;
}

// sum_row can call something before each block: from pixel number `first` on, `count` of them.
struct Nothing {
  void operator()(int64_t, int64_t) const {}
};

// The pixels from number `first` to before `end`, in blocks as large as fit.
template <typename Sum, int Pixels = kPixels, typename Before = Nothing>
void sum_row(const Window<Sum>& window, int64_t first, int64_t end, Sum* to,
             const Before& before = {}) {
  if constexpr (Pixels > 1) {
    if (end - first < Pixels) return sum_row<Sum, Pixels / 2>(window, first, end, to, before);
  }
  const SumPixels<Sum> sum = choose_kernel<Sum, Pixels>(window);
  for (int64_t i = 0; i < ceil_div(end - first, Pixels); ++i) {
    before(first + i * Pixels, Pixels);
    sum(window, first + block_start(i, Pixels, end - first), to);
  }
}

// Fetches the weights of pixels to come into the cache: by itself the processor follows fewer streams than a window has
// taps. (Always inlined: a function that only fetches has no effect, says GCC, and leaves calls of it out.)
template <typename Sum>
struct FetchWeights {
  const Window<Sum>& window;
  bool fetches;

  __attribute__((always_inline)) void operator()(int64_t first, int64_t count) const {
    constexpr int64_t kAhead = 64;
    if (!fetches) return;
    for (int64_t r = 0; r < window.row_count; ++r) {
      const Sum* from = window.rows[r].weight + (first + kAhead) * window.weight_step;
      if (window.weight_step != 1)
        for (int64_t i = 0; i < count; ++i)
          __builtin_prefetch(from + window.columns[0].weight + i * window.weight_step, 0, 2);
      else if (first % kLine<Sum> < count)  // once for each cache line
        for (int64_t c = 0; c < window.column_count; ++c)
          __builtin_prefetch(from + window.columns[c].weight, 0, 2);
    }
  }
};

// ---- the operations

// What forward and grad_weight share: the image, between rows and columns of zeros.
template <typename Stored>
class PaddedImage {
 protected:
  using Sum = typename Accumulator<Stored>::type;

  PaddedImage(const Problem& problem, int threads)
      : problem_(problem),
        image_(problem, problem.image, problem.horizontal.input),
        row_((problem.horizontal.input + 2 * problem.horizontal.padding) * image_.pixel()),
        tiling_(problem, problem.vertical.output,
                problem.vertical.reach() / problem.vertical.stride,
                row_ * problem.vertical.stride * sizeof(Sum), threads) {}

  int64_t rows(int64_t output_rows) const {
    return (output_rows - 1) * problem_.vertical.stride + problem_.vertical.reach() + 1;
  }

  int64_t image_size() const { return rows(tiling_.block()) * row_; }

  void read_image(const Task& task, Sum* to) const {
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    const int64_t first = task.first * v.stride - v.padding;
    for (int64_t r = 0; r < rows(task.end - task.first); ++r, to += row_) {
      if (first + r < 0 || first + r >= v.input)
        std::memset(to, 0, row_ * sizeof(Sum));
      else
        image_.read_rows(task.n, task.g, first + r, 1, to + h.padding * image_.pixel());
    }
  }

  // Where kernel row kh finds its pixels for an output row of the task.
  ptrdiff_t row_offset(int64_t output_row, int64_t kh) const {
    return (output_row * problem_.vertical.stride + kh * problem_.vertical.dilation) * row_;
  }

  ptrdiff_t column_offset(int64_t kw) const {
    return kw * problem_.horizontal.dilation * image_.pixel();
  }

  ptrdiff_t pixel_step() const { return problem_.horizontal.stride * image_.pixel(); }

  const Problem& problem_;
  GroupRows<Stored> image_;
  ptrdiff_t row_;
  Tiling tiling_;
};

template <typename Sum>
int64_t tables_size(int64_t rows, int64_t columns) {
  return round_up(
      (rows * sizeof(KernelRow<Sum>) + columns * sizeof(KernelColumn)) / sizeof(Sum) + 1,
      kLine<Sum>);
}

template <typename Stored>
class Forward : PaddedImage<Stored> {
  using Base = PaddedImage<Stored>;
  using Base::image_, Base::problem_, Base::tiling_;

 public:
  using typename Base::Sum;

  Forward(const Problem& problem, int threads)
      : Base(problem, threads),
        strip_(strip_rows(tiling_.block(), problem.horizontal.output)),
        weight_(problem, strip_),
        pixels_(problem, problem.pixels, problem.horizontal.output) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + weight_.scratch() + strip_ * pixels_.row() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    Sum* image = scratch;
    Sum* sums = image + this->image_size();
    Sum* weight = sums + strip_ * pixels_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + weight_.scratch());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + v.kernel);
    this->read_image(task, image);
    for (int64_t kw = 0; kw < h.kernel; ++kw)
      columns[kw] = {kw * weight_.tap_step(), this->column_offset(kw)};
    const Window<Sum> window = {rows,
                                columns,
                                v.kernel,
                                h.kernel,
                                weight_.pixel_step(),
                                this->pixel_step(),
                                pixels_.pixel(),
                                pixels_.lines()};
    for (int64_t first = task.first; first < task.end; first += strip_) {
      const int64_t count = smaller(strip_, task.end - first);
      for (int64_t kh = 0; kh < v.kernel; ++kh)
        rows[kh] = {weight_.read_rows(task.n, task.g, kh, first, count, weight),
                    image + this->row_offset(first - task.first, kh)};
      for (int64_t r = 0; r < count; ++r) {
        sum_row(window, 0, h.output, sums + r * pixels_.row(),
                FetchWeights<Sum>{window, weight_.fetches()});
        for (int64_t kh = 0; kh < v.kernel; ++kh) {
          rows[kh].weight += weight_.row_step();
          rows[kh].pixel += this->row_offset(1, 0);
        }
      }
      pixels_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  int64_t strip_;
  WeightRows<Stored> weight_;
  GroupRows<Stored> pixels_;
};

// Gathers, for each pixel of the input, what it has contributed to. Input columns that are a stride apart have been read
// by the same kernel columns, a `phase`; neighbors among them, by neighboring output pixels.
template <typename Stored, typename Weights = WeightRows<Stored>>
class GradInput {
 public:
  using Sum = typename Accumulator<Stored>::type;

  GradInput(const Problem& problem, int threads) : GradInput(problem, Weights(problem), threads) {}

  GradInput(const Problem& problem, const Weights& weight, int threads)
      : problem_(problem),
        image_(problem, problem.image, problem.horizontal.input),
        pixels_(problem, problem.pixels, problem.horizontal.output),
        weight_(weight),
        tiling_(problem, problem.vertical.input, problem.vertical.reach() + problem.vertical.stride,
                ceil_div(pixels_.row() * sizeof(Sum), problem.vertical.stride), threads) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return pixels_size() + strip() * image_.row() + weight_.scratch() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    Sum* pixels = scratch;
    Sum* sums = pixels + pixels_size();
    Sum* weight = sums + strip() * image_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + weight_.scratch());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + problem_.vertical.kernel);
    const int64_t first_output = first_output_row(task.first);
    pixels_.read_rows(task.n, task.g, first_output, end_output_row(task.end) - first_output,
                      pixels);
    for (int64_t first = task.first; first < task.end; first += strip()) {
      const int64_t count = smaller(strip(), task.end - first);
      weight_.prepare(task.n, task.g, first, count, weight);
      for (int64_t row = first; row < first + count; ++row) {
        const int64_t row_count = find_rows(task, row, first_output, pixels, weight, rows);
        for (int64_t phase = 0; phase < problem_.horizontal.stride; ++phase)
          sum_phase(rows, row_count, phase, columns, sums + (row - first) * image_.row());
      }
      image_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  int64_t strip() const {
    return smaller(strip_rows(tiling_.block(), problem_.horizontal.input), weight_.strip());
  }

  // The output rows that have read rows `first` ... of the input lie from here ...
  int64_t first_output_row(int64_t first) const {
    const Side& v = problem_.vertical;
    return ceil_div(larger(first + v.padding - v.reach(), 0), v.stride);
  }

  // ... to before there.
  int64_t end_output_row(int64_t end) const {
    const Side& v = problem_.vertical;
    return smaller((end - 1 + v.padding) / v.stride + 1, v.output);
  }

  int64_t pixels_size() const {
    return ((tiling_.block() - 1 + problem_.vertical.reach()) / problem_.vertical.stride + 1) *
           pixels_.row();
  }

  // The kernel rows that have read this row of the input.
  int64_t find_rows(const Task& task, int64_t row, int64_t first_output, const Sum* pixels,
                    Sum* weight, KernelRow<Sum>* rows) const {
    const Side& v = problem_.vertical;
    int64_t count = 0;
    for (int64_t kh = 0; kh < v.kernel; ++kh) {
      const int64_t y = row + v.padding - kh * v.dilation, output = y / v.stride;
      if (y >= 0 && y % v.stride == 0 && output < v.output)
        rows[count++] = {weight_.read_row(task.n, task.g, kh, output, weight),
                         pixels + (output - first_output) * pixels_.row()};
    }
    return count;
  }

  // The kernel columns of a phase, from the one that reads farthest to the right on.
  int64_t find_columns(int64_t phase, KernelColumn* columns) const {
    const Side& h = problem_.horizontal;
    int64_t count = 0;
    for (int64_t kw = h.kernel - 1; kw >= 0; --kw) {
      const int64_t x = kw * h.dilation, shift = x / h.stride;
      if (x % h.stride == phase)
        columns[count++] = {kw * weight_.tap_step() - shift * weight_.pixel_step(),
                            -shift * pixels_.pixel()};
    }
    return count;
  }

  // Pixel number i of a phase is column i * stride + phase of the padded input. The output pixel that kernel column c
  // has put its contribution to is number i - shift(c); near the borders some do not exist.
  void sum_phase(const KernelRow<Sum>* rows, int64_t row_count, int64_t phase,
                 KernelColumn* columns, Sum* sums) const {
    const Side& h = problem_.horizontal;
    const int64_t count = find_columns(phase, columns);
    const auto shift = [&](int64_t c) { return -columns[c].pixel / pixels_.pixel(); };
    Window<Sum> window = {rows,
                          columns,
                          row_count,
                          count,
                          weight_.pixel_step(),
                          pixels_.pixel(),
                          h.stride * image_.pixel(),
                          pixels_.lines()};
    Sum* to = sums + (phase - h.padding) * image_.pixel();
    const int64_t first = ceil_div(larger(h.padding - phase, 0), h.stride);
    const int64_t end = ceil_div(larger(h.padding + h.input - phase, 0), h.stride);
    const int64_t inner_first = smaller(larger(first, count ? shift(0) : 0), end);
    const int64_t inner_end =
        larger(inner_first, smaller(end, count ? h.output + shift(count - 1) : end));
    const auto sum_border = [&](int64_t i) {
      int64_t from = 0, before = count;
      while (from < count && shift(from) > i) ++from;
      while (before > from && shift(before - 1) <= i - h.output) --before;
      window.columns = columns + from;
      window.column_count = before - from;
      sum_pixel(window, i, to);
    };
    for (int64_t i = first; i < inner_first; ++i) sum_border(i);
    for (int64_t i = inner_end; i < end; ++i) sum_border(i);
    window.columns = columns;
    window.column_count = count;
    sum_row(window, inner_first, inner_end, to, FetchWeights<Sum>{window, weight_.fetches()});
  }

  const Problem& problem_;
  GroupRows<Stored> image_, pixels_;
  Weights weight_;
  Tiling tiling_;
};

// Every number is a sum over channels, which are the lanes of our vectors: `correlate` makes as many at once as there
// are lanes, those of neighboring pixels or, where taps are neighbors in memory, those of neighboring taps.
template <typename Stored>
class GradWeight : PaddedImage<Stored> {
  using Base = PaddedImage<Stored>;
  using Base::image_, Base::problem_, Base::tiling_;

 public:
  using typename Base::Sum;

  GradWeight(const Problem& problem, int threads)
      : Base(problem, threads), pixels_(problem, problem.pixels, problem.horizontal.output) {
    const int64_t* s = problem.weight.strides;
    const int64_t columns = problem.horizontal.output;
    const bool taps_are_neighbors = s[3] == 1 && s[2] == problem.horizontal.kernel && s[5] != 1;
    const bool rows_are_neighbors = s[4] == columns * s[5];
    tap_blocks_ = taps_are_neighbors ? problem.taps() / lanes : 0;
    strip_ = rows_are_neighbors ? smaller(tiling_.block(), ceil_div(4 * lanes, columns)) : 1;
  }

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + strip_pixels() * pixels_.pixel() +
           round_up((problem_.taps() + strip_pixels()) * sizeof(ptrdiff_t) / sizeof(Sum),
                    kLine<Sum>);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const int64_t columns = problem_.horizontal.output;
    Sum* image = scratch;
    Sum* pixels = image + this->image_size();
    auto* taps = reinterpret_cast<ptrdiff_t*>(pixels + strip_pixels() * pixels_.pixel());
    ptrdiff_t* windows = taps + problem_.taps();
    find_offsets(taps, windows);
    this->read_image(task, image);
    for (int64_t row = task.first; row < task.end; row += strip_) {
      const int64_t rows = smaller(strip_, task.end - row);
      pixels_.read_rows(task.n, task.g, row, rows, pixels);
      const Strip strip = {
          pixels,  image + this->row_offset(row - task.first, 0),        taps,
          windows, weight_row<Stored>(problem_, task.n, task.g, 0, row), rows * columns};
      correlate_blocks_of_taps(strip);
      correlate_blocks_of_pixels(strip);
    }
  }

 private:
  static constexpr int lanes = kLanes<Sum>;

  // Rows whose weights lie one after the other, treated as one long row.
  struct Strip {
    const Sum *pixels, *image;
    const ptrdiff_t *taps, *windows;
    Stored* weight;
    int64_t count;
  };

  int64_t strip_pixels() const { return strip_ * problem_.horizontal.output; }

  // Where a tap lies in a window, and where the window of each pixel of a strip begins.
  void find_offsets(ptrdiff_t* taps, ptrdiff_t* windows) const {
    const int64_t kernel = problem_.horizontal.kernel, columns = problem_.horizontal.output;
    for (int64_t t = 0; t < problem_.taps(); ++t)
      taps[t] = this->row_offset(0, t / kernel) + this->column_offset(t % kernel);
    for (int64_t i = 0; i < strip_pixels(); ++i)
      windows[i] = this->row_offset(i / columns, 0) + i % columns * this->pixel_step();
  }

  void correlate_blocks_of_taps(const Strip& strip) const {
    const ptrdiff_t same[lanes] = {}, step = problem_.weight.strides[5];
    for (int64_t i = 0; i < strip.count; ++i) {
      for (int64_t t = 0; t < tap_blocks_ * lanes; t += lanes)
        store_vector<Sum>(
            strip.weight + i * step + t,
            correlate(strip.pixels + i * pixels_.pixel(), same, strip.image + strip.windows[i],
                      strip.taps + t, pixels_.lines()),
            1, lanes);
    }
  }

  void correlate_blocks_of_pixels(const Strip& strip) const {
    const int64_t* s = problem_.weight.strides;
    const int64_t kernel = problem_.horizontal.kernel, count = smaller(strip.count, lanes);
    ptrdiff_t pixels[lanes], windows[lanes];
    for (int64_t i = 0; i < strip.count; i += lanes) {
      const int64_t first = block_start(i / lanes, lanes, strip.count);
      for (int64_t lane = 0; lane < lanes; ++lane) {  // lanes without a pixel repeat the last one
        pixels[lane] = (first + smaller(lane, count - 1)) * pixels_.pixel();
        windows[lane] = strip.windows[first + smaller(lane, count - 1)];
      }
      for (int64_t t = tap_blocks_ * lanes; t < problem_.taps(); ++t)
        store_vector<Sum>(
            strip.weight + t / kernel * s[2] + t % kernel * s[3] + first * s[5],
            correlate(strip.pixels, pixels, strip.image + strip.taps[t], windows, pixels_.lines()),
            s[5], count);
    }
  }

  GroupRows<Stored> pixels_;
  int64_t tap_blocks_, strip_;
};

}  // namespace rednet

#define REDNET_EXPORT_INVOLUTION(suffix, Stored)                                   \
  REDNET_EXPORT(rednet_forward_##suffix, rednet::Problem, rednet::Forward<Stored>) \
  REDNET_EXPORT(rednet_grad_input_##suffix, rednet::Problem, rednet::GradInput<Stored>)

REDNET_EXPORT_INVOLUTION(float64, double)
REDNET_EXPORT_INVOLUTION(float32, float)
REDNET_EXPORT_INVOLUTION(float16, rednet::Half)
REDNET_EXPORT_INVOLUTION(bfloat16, rednet::BFloat16)
