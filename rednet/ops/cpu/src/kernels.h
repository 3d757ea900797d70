// The inner loops. They run over pixels whose channels lie side by side, in whole cache lines, and whose numbers are of
// the type that sums are made in. There is no boundary here and no layout.
#pragma once

#include "vectors.h"

namespace rednet {

// Pixels whose sums are made at once: enough for the multiply-adds to keep the processor busy, few enough to fit into
// its registers (32 vectors with AVX-512 and NEON, 16 else).
#if defined(__AVX512F__)
constexpr int kPixels = 8;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kPixels = 4;
#else
constexpr int kPixels = 2;
#endif

// A row of the kernel: where its weights and the pixels that it reads begin.
template <typename Sum>
struct KernelRow {
  const Sum* weight;
  const Sum* pixel;
};

// A column of the kernel: how far from there its weight and its pixel lie.
struct KernelColumn {
  ptrdiff_t weight, pixel;
};

// sum[p] = sum over rows and columns of weight[row, column, p] * pixel[row, column, p] for neighboring p, a `step` of
// each apart.
template <typename Sum>
struct Window {
  const KernelRow<Sum>* rows;
  const KernelColumn* columns;
  int64_t row_count, column_count;
  ptrdiff_t weight_step, pixel_step, sum_step;
  int64_t lines;  // of a pixel's channels
};

// The sums of one cache line of channels at `Pixels` neighboring pixels.
template <typename Sum, int Pixels>
class Sums {
  static constexpr int kVectors = kLine<Sum> / kLanes<Sum>;

 public:
  void add(int p, Sum weight, const Sum* pixel) {
    const Vector<Sum> factor = weight - Vector<Sum>{};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) total_[p][v] += factor * read(pixel + v * kLanes<Sum>);
  }

  void write_to(Sum* to, ptrdiff_t step) const {
#pragma GCC unroll 16
    for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) write(to + p * step + v * kLanes<Sum>, total_[p][v]);
    }
  }

  void write_total_to(Sum* to) const {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      Vector<Sum> total = total_[0][v];
#pragma GCC unroll 16
      for (int p = 1; p < Pixels; ++p) total += total_[p][v];
      write(to + v * kLanes<Sum>, total);
    }
  }

 private:
  Vector<Sum> total_[Pixels][kVectors] = {};
};

// Any kernel, at `Pixels` neighboring pixels from number `first` on.
template <typename Sum, int Pixels>
void sum_pixels(const Window<Sum>& window, int64_t first, Sum* to) {
  for (int64_t line = 0; line < window.lines * kLine<Sum>; line += kLine<Sum>) {
    Sums<Sum, Pixels> sums;
    for (int64_t r = 0; r < window.row_count; ++r) {
      const KernelRow<Sum> row = window.rows[r];
      for (int64_t c = 0; c < window.column_count; ++c) {
        const Sum* weight = row.weight + window.columns[c].weight + first * window.weight_step;
        const Sum* pixel = row.pixel + window.columns[c].pixel + first * window.pixel_step + line;
#pragma GCC unroll 16
        for (int p = 0; p < Pixels; ++p)
          sums.add(p, weight[p * window.weight_step], pixel + p * window.pixel_step);
      }
    }
    sums.write_to(to + first * window.sum_step + line, window.sum_step);
  }
}

// Any kernel at one pixel. Neighbouring columns add to sums of their own, which need not wait for each other.
template <typename Sum>
void sum_pixel(const Window<Sum>& window, int64_t pixel, Sum* to) {
  constexpr int kSums = 4;
  for (int64_t line = 0; line < window.lines * kLine<Sum>; line += kLine<Sum>) {
    Sums<Sum, kSums> sums;
    for (int64_t r = 0; r < window.row_count; ++r) {
      const Sum* weight = window.rows[r].weight + pixel * window.weight_step;
      const Sum* numbers = window.rows[r].pixel + pixel * window.pixel_step + line;
      for (int64_t c = 0; c < window.column_count; c += kSums) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) {
          if (c + i < window.column_count)
            sums.add(i, weight[window.columns[c + i].weight],
                     numbers + window.columns[c + i].pixel);
        }
      }
    }
    sums.write_total_to(to + pixel * window.sum_step + line);
  }
}

// sum_pixels for a kernel `Columns` wide whose neighboring columns read neighboring pixels (stride and dilation 1): each
// pixel is read once for all columns. With `Dense`, weight_step is 1.
template <typename Sum, int Pixels, int Columns, bool Dense>
void sum_pixels_of_rows(const Window<Sum>& window, int64_t first, Sum* to) {
  const ptrdiff_t weight_step = Dense ? 1 : window.weight_step;
  const ptrdiff_t column_step = window.columns[1].weight - window.columns[0].weight;
  for (int64_t line = 0; line < window.lines * kLine<Sum>; line += kLine<Sum>) {
    Sums<Sum, Pixels> sums;
    for (int64_t r = 0; r < window.row_count; ++r) {
      const Sum* weight = window.rows[r].weight + window.columns[0].weight + first * weight_step;
      const Sum* pixel =
          window.rows[r].pixel + window.columns[0].pixel + first * window.pixel_step + line;
#pragma GCC unroll 16
      for (int x = 0; x < Pixels + Columns - 1; ++x) {
#pragma GCC unroll 16
        for (int p = 0; p < Pixels; ++p) {
          if (x >= p && x - p < Columns)
            sums.add(p, weight[(x - p) * column_step + p * weight_step],
                     pixel + x * window.pixel_step);
        }
      }
    }
    sums.write_to(to + first * window.sum_step + line, window.sum_step);
  }
}

// Lane i of the result is the sum over channels of a[a_offsets[i]] * b[b_offsets[i]].
template <typename Sum>
Vector<Sum> correlate(const Sum* a, const ptrdiff_t* a_offsets, const Sum* b,
                      const ptrdiff_t* b_offsets, int64_t lines) {
  Vector<Sum> total{};
  for (int64_t line = 0; line < lines * kLine<Sum>; line += kLine<Sum>) {
    total += sums_of_lanes<Sum>([&](size_t i) {
      const Sum *a_line = a + a_offsets[i] + line, *b_line = b + b_offsets[i] + line;
      Vector<Sum> product{};
#pragma GCC unroll 16
      for (int v = 0; v < kLine<Sum>; v += kLanes<Sum>)
        product += read(a_line + v) * read(b_line + v);
      return product;
    });
  }
  return total;
}

}  // namespace rednet
