// Rows of a group's channels as planes: the pixels of a row lie side by side, as the lanes of vectors.
#pragma once

#include "involution.h"

namespace rednet {

// With a stride, the columns of one phase lie side by side: those that are a stride apart.
template <typename Number>
class PlaneRows {
  static constexpr int lanes = kLanes<Number>;

 public:
  // Of rows of so many columns with `padding` zeros on both ends. The planes have room for `rows` of them.
  PlaneRows(const Problem& problem, const Tensor& tensor, int64_t columns, int64_t padding,
            int64_t stride, int64_t rows)
      : channels_(problem.group_channels()),
        columns_(columns),
        padding_(padding),
        stride_(stride),
        phase_(ceil_div(columns + 2 * padding, stride)),
        plane_(round_up(rows * row() + lanes, kLine<Number>)),
        tensor_(tensor) {}

  // Numbers from one plane, and from one row, to the next.
  ptrdiff_t plane() const { return plane_; }

  ptrdiff_t row() const { return phase_ * stride_; }

  int64_t size() const { return channels_ * plane_; }

  // Where column x of the padded row lies in the row.
  ptrdiff_t column(int64_t x) const { return x % stride_ * phase_ + x / stride_; }

  // Rows are to be read from the first to the last: up to a vector of zeros is written behind one. The zeros on both
  // ends are left alone: the scratch memory is zero at first.
  void read_row(int64_t n, int64_t g, int64_t row, Number* to) const {
    const int64_t* s = tensor_.strides;
    const Number* from =
        static_cast<const Number*>(tensor_.data) + n * s[0] + g * channels_ * s[1] + row * s[2];
    for (int64_t phase = 0; phase < stride_; ++phase) {
      const int64_t first = (phase + stride_ * padding_ - padding_) % stride_;
      read_columns(from + first * s[3], ceil_div(larger(columns_ - first, 0), stride_),
                   stride_ * s[3], to + column(first + padding_));
    }
  }

  void clear_row(Number* to) const {
    for (int64_t c = 0; c < channels_; ++c) std::memset(to + c * plane_, 0, row() * sizeof(Number));
  }

 private:
  // Reads `count` columns that are `step` numbers apart.
  void read_columns(const Number* from, int64_t count, ptrdiff_t step, Number* to) const {
    const ptrdiff_t c_step = tensor_.strides[1];
    if (c_step == 1) return transpose_pixels(from, count, step, to);
    for (int64_t c = 0; c < channels_; ++c) load(to + c * plane_, from + c * c_step, step, count);
  }

  void transpose_pixels(const Number* from, int64_t count, ptrdiff_t step, Number* to) const {
    for (int64_t i = 0; i < ceil_div(count, lanes); ++i) {
      const int64_t x = block_start(i, lanes, count);
      for (int64_t c = 0; c < channels_; c += lanes)
        transpose_square(from + x * step + c, smaller(count, lanes), step,
                         smaller(channels_ - c, lanes), to + c * plane_ + x);
    }
  }

  void transpose_square(const Number* from, int64_t pixels, ptrdiff_t step, int64_t channels,
                        Number* to) const {
    Vector<Number> square[lanes] = {};
    for (int64_t x = 0; x < pixels; ++x) {
      __builtin_prefetch(from + (x + lanes) * step);  // the processor does not do so by itself
      square[x] = load_vector<Number>(from + x * step, 1, channels);
    }
    transpose<Number>(square);
    for (int64_t c = 0; c < channels; ++c) write(to + c * plane_, square[c]);
  }

  int64_t channels_, columns_, padding_, stride_, phase_;
  ptrdiff_t plane_;
  Tensor tensor_;
};

}  // namespace rednet
