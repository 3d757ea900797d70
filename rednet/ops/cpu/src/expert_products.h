// Products of blocks of matrices that are in the cache, while the blocks that follow are fetched.
#pragma once

#include "arithmetic.h"
#include "mixing.h"
#include "product.h"
#include "vectors.h"

namespace rednet {

// Terms between two lines that are fetched ahead.
constexpr int64_t kTermsPerLine = 2;

#if defined(__AVX2__) || defined(__aarch64__)
constexpr int kProductVectors = 3;
#else
constexpr int kProductVectors = 2;
#endif

// A matrix, depth x width, in panels of neighboring columns: as many as a product treats at once. Each panel is contiguous.
// Columns that fill no vector follow, each contiguous.
template <typename Number>
struct Panels {
  Number* data;
  int64_t depth;

  static constexpr int64_t kWidth = kProductVectors * kLanes<Number>;

  void write_row(int64_t row, const Number* numbers, int64_t width) const {
    const int64_t whole = width - width % kLanes<Number>;
    int64_t x = 0;
    for (; x + kWidth <= whole; x += kWidth)
      std::memcpy(data + x * depth + row * kWidth, numbers + x, kWidth * sizeof(Number));
    if (x < whole)
      std::memcpy(data + x * depth + row * (whole - x), numbers + x, (whole - x) * sizeof(Number));
    for (x = whole; x < width; ++x) data[x * depth + row] = numbers[x];
  }

  // Of a column in a whole panel.
  void write_column(int64_t x, const Number* numbers) const {
    Number* to = data + (x - x % kWidth) * depth + x % kWidth;
    for (int64_t row = 0; row < depth; ++row) to[row * kWidth] = numbers[row];
  }
};

// Rows that are read soon: their lines are fetched from memory one by one, while something else is computed.
class Ahead {
 public:
  Ahead() = default;

  // `outer` times `inner` rows of `bytes`.
  Ahead(const void* data, int64_t outer, int64_t outer_step, int64_t inner, int64_t inner_step,
        int64_t bytes)
      : row_(static_cast<const char*>(data)),
        outer_step_(outer_step - inner * inner_step),
        inner_step_(inner_step),
        outer_(outer),
        inner_(inner),
        bytes_(bytes),
        inner_left_(inner) {}

  void fetch() {
    if (outer_ == 0) return;
    __builtin_prefetch(row_ + offset_, 0, 2);
    offset_ += kLineBytes;
    if (offset_ < bytes_) return;
    offset_ = 0;
    row_ += inner_step_;
    if (--inner_left_ > 0) return;
    inner_left_ = inner_;
    row_ += outer_step_;
    --outer_;
  }

 private:
  const char* row_ = nullptr;
  int64_t outer_step_ = 0, inner_step_ = 0, outer_ = 0, inner_ = 0, bytes_ = 0;
  int64_t inner_left_ = 0, offset_ = 0;
};

// sums[i, x] += sum over t of left[i * Step + t * Term] * right[t, x] for vectors of x.
template <typename Number, int64_t Step, int64_t Term>
struct PanelProduct {
  const Number* left;
  Panels<Number> right;
  int64_t start;  // of the terms in the panels
  Rows<Number> sums;
  int64_t terms;
  Ahead& ahead;

  void compute(int64_t count, int64_t vectors) const {
    int64_t v = 0;
    for (; v + kProductVectors <= vectors; v += kProductVectors) columns<kProductVectors>(count, v);
    if (vectors - v == 2) columns<2>(count, v);
    if (vectors - v == 1) columns<1>(count, v);
  }

 private:
  template <int Vectors>
  void columns(int64_t count, int64_t vector) const {
    const int64_t x = vector * kLanes<Number>;
    const Number* from = right.data + x * right.depth + start * Vectors * kLanes<Number>;
    in_blocks<kRowsTogether>(
        count, [&](auto rows, int64_t first) { multiply<rows, Vectors>(first, x, from); });
  }

  template <int Count, int Vectors>
  void multiply(int64_t first, int64_t x, const Number* numbers) const {
    Vector<Number> totals[Count][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v)
        totals[i][v] = read(sums[first + i] + x + v * kLanes<Number>);
    }
    const Number* factors = left + first * Step;
    for (int64_t t = 0; t < terms; ++t, factors += Term, numbers += Vectors * kLanes<Number>) {
      if (t % kTermsPerLine == 0) ahead.fetch();
      Vector<Number> read_numbers[Vectors];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) read_numbers[v] = read(numbers + v * kLanes<Number>);
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) {
        const Vector<Number> factor = factors[i * Step] - Vector<Number>{};
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) totals[i][v] += factor * read_numbers[v];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v)
        write(sums[first + i] + x + v * kLanes<Number>, totals[i][v]);
    }
  }
};

}  // namespace rednet
