// Rows of images and of weights, of any layout and number type, as the kernels read them; and the tasks that they are
// shared out in.
#pragma once

#include <limits>

#include "arithmetic.h"
#include "kernels.h"
#include "numbers.h"
#include "problem.h"

namespace rednet {

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

}  // namespace rednet
