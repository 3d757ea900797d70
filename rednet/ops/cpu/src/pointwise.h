// A 1 x 1 convolution of maps in channels_last and what follows it, in one pass: docs/cpu_kernel.md explains the design.
//
// It is a product of matrices, pixels x channels and channels x filters. A task transposes a block of filters into
// panels, as wide as some vectors, and multiplies some pixels by them, a few at a time.
#pragma once

#include "finish.h"
#include "operations.h"
#include "vectors.h"

namespace rednet {

// What the caller hands over (loader.py has the same structure).
struct PointwiseConvolution {
  Finishing finishing;  // of the pixels and channels of the output; `from` is the input
  const void* filters;  // (finishing.channels, channels)
  const void* bias;     // (finishing.channels,), or null
  int64_t channels;
  int64_t rows, columns;  // of the output
  // Of the input, between what is one pixel of the output and the next.
  int64_t image_step, row_step, column_step;

  int64_t multiply_adds() const { return finishing.pixels * finishing.channels * channels; }
};

template <typename Number>
class Pointwise {
  static constexpr int64_t lanes = kLanes<Number>;
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int kPixels = 8, kVectors = 3;  // made at once, in registers
#else
  static constexpr int kPixels = 6, kVectors = 2;
#endif
  static constexpr int64_t kWidth = kVectors * lanes;
  static constexpr int64_t kTaskPixels = 512;         // enough to make up for the transposition
  static constexpr int64_t kPanelBytes = 256 * 1024;  // a part of a second-level cache
  static constexpr int64_t kTasksPerThread = 4;

 public:
  using Sum = Number;

  Pointwise(const PointwiseConvolution& problem, int threads)
      : problem_(problem),
        channels_(problem.channels),
        pixels_(problem.finishing.pixels),
        filters_(problem.finishing.channels) {
    const int64_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
    const int64_t panels = ceil_div(filters_, kWidth);
    const int64_t together = kPanelBytes / int64_t(channels_ * kWidth * sizeof(Number));
    pixel_blocks_ = ceil_div(pixels_, kTaskPixels);
    const int64_t filter_blocks = smaller(
        panels, larger(ceil_div(panels, larger(1, together)), ceil_div(wanted, pixel_blocks_)));
    pixel_blocks_ = larger(pixel_blocks_, ceil_div(wanted, filter_blocks));
    filter_block_ = ceil_div(panels, filter_blocks) * kWidth;
    pixel_block_ = round_up(ceil_div(pixels_, pixel_blocks_), kPixels);
    pixel_blocks_ = ceil_div(pixels_, pixel_block_);
    const int64_t image = problem.rows * problem.columns;
    is_dense_ = problem.column_step == channels_ &&
                problem.row_step == problem.columns * channels_ &&
                problem.image_step == image * channels_;
  }

  int64_t tasks() const { return pixel_blocks_ * ceil_div(filters_, filter_block_); }

  int64_t scratch() const {
    return filter_block_ * (channels_ + 2 + kPixels) + (is_dense_ ? 0 : kPixels * channels_);
  }

  void run(int64_t index, Number* scratch) const {
    const int64_t filter = index / pixel_blocks_ * filter_block_;
    const int64_t filters = smaller(filter_block_, filters_ - filter);
    Number *scale = scratch, *shift = scale + filter_block_, *panels = shift + filter_block_;
    Number *sums = panels + filter_block_ * channels_, *copy = sums + filter_block_ * kPixels;
    prepare_scale(filter, filters, scale, shift);
    in_panels(filters, [&](int64_t vectors, int64_t f) {
      for (int64_t v = 0; v < vectors; ++v)
        transpose_filters(filter + f + v * lanes, vectors * lanes,
                          panels + f * channels_ + v * lanes);
    });
    const int64_t first = index % pixel_blocks_ * pixel_block_;
    const int64_t count = smaller(pixel_block_, pixels_ - first);
    const int64_t tiles = ceil_div(count, kPixels);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      // As even as can be: a tile of few pixels takes almost as long as one of many.
      const int64_t begin = first + count * tile / tiles, end = first + count * (tile + 1) / tiles;
      const Number* from = is_dense_ ? pixel_at(begin) : copy_pixels(begin, end, copy);
      in_panels(filters, [&](auto vectors, int64_t f) {
        fetch(begin, end, filter + f);
        const Number* panel = panels + f * channels_;
        in_blocks_and_rest<kPixels>(end - begin, [&](auto pixels, int64_t) {
          multiply<pixels(), vectors()>(from, panel, sums + f);
        });
      });
      for (int64_t pixel = begin; pixel < end; ++pixel)
        finish(sums + (pixel - begin) * filter_block_, scale, shift, filters,
               pixel * filters_ + filter);
    }
  }

 private:
  // Calls body(vectors, first) for the panels of some filters; the last one's last vector may have some too many.
  template <typename Body>
  static void in_panels(int64_t filters, const Body& body) {
    in_blocks_and_rest<kVectors>(ceil_div(filters, lanes),
                                 [&](auto vectors, int64_t v) { body(vectors, v * lanes); });
  }

  void prepare_scale(int64_t filter, int64_t filters, Number* scale, Number* shift) const {
    const Number* bias = static_cast<const Number*>(problem_.bias);
    for (int64_t f = 0; f < filters; ++f) {
      find_scale(problem_.finishing, filter + f, scale[f], shift[f]);
      if (bias) shift[f] += bias[filter + f] * scale[f];
    }
  }

  // Writes a vector of filters as a column of a panel.
  void transpose_filters(int64_t filter, int64_t width, Number* to) const {
    const int64_t count = smaller(lanes, filters_ - filter);
    const Number* from = static_cast<const Number*>(problem_.filters) + filter * channels_;
    int64_t c = 0;
    for (; count == lanes && c + lanes <= channels_; c += lanes) {
      Vector<Number> square[lanes];
#pragma GCC unroll 16
      for (int64_t f = 0; f < lanes; ++f) square[f] = read(from + f * channels_ + c);
      transpose<Number>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) write(to + (c + i) * width, square[i]);
    }
    for (; c < channels_; ++c) {
      for (int64_t f = 0; f < lanes; ++f)
        to[c * width + f] = f < count ? from[f * channels_ + c] : 0;
    }
  }

  const Number* pixel_at(int64_t pixel) const {
    const int64_t row = pixel / problem_.columns, image = row / problem_.rows;
    return static_cast<const Number*>(problem_.finishing.from) + image * problem_.image_step +
           (row - image * problem_.rows) * problem_.row_step +
           (pixel - row * problem_.columns) * problem_.column_step;
  }

  // Fetches the lines that a panel's sums will be added to and written to.
  void fetch(int64_t first, int64_t end, int64_t filter) const {
    const Number* added = static_cast<const Number*>(problem_.finishing.added);
    Number* to = static_cast<Number*>(problem_.finishing.to);
    for (int64_t pixel = first; pixel < end; ++pixel) {
      const int64_t at = pixel * filters_ + filter;
      __builtin_prefetch(to + at, 1, 2);
      if (added) __builtin_prefetch(added + at, 0, 2);
    }
  }

  const Number* copy_pixels(int64_t first, int64_t end, Number* to) const {
    for (int64_t pixel = first; pixel < end; ++pixel)
      std::memcpy(to + (pixel - first) * channels_, pixel_at(pixel), channels_ * sizeof(Number));
    return to;
  }

  // Multiplies some pixels by a panel.
  template <int pixels, int vectors>
  void multiply(const Number* from, const Number* panel, Number* sums) const {
    Vector<Number> total[pixels][vectors] = {};
    const Number* left[pixels];
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) left[p] = from + p * channels_;
#pragma GCC unroll 4
    for (int64_t c = 0; c < channels_; ++c) {
      Vector<Number> factors[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) factors[v] = read(panel + (c * vectors + v) * lanes);
#pragma GCC unroll 16
      for (int p = 0; p < pixels; ++p) {
        const Vector<Number> factor = left[p][c] - Vector<Number>{};
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) total[p][v] += factor * factors[v];
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) write(sums + p * filter_block_ + v * lanes, total[p][v]);
    }
  }

  void finish(const Number* sums, const Number* scale, const Number* shift, int64_t count,
              int64_t at) const {
    const Number* added = static_cast<const Number*>(problem_.finishing.added);
    Number* to = static_cast<Number*>(problem_.finishing.to) + at;
    const Number bound = least<Number>(problem_.finishing);
    if (added)
      finish_numbers<true>(sums, scale, shift, added + at, bound, count, to);
    else
      finish_numbers<false>(sums, scale, shift, added, bound, count, to);
  }

  const PointwiseConvolution& problem_;
  int64_t channels_, pixels_, filters_;
  int64_t pixel_blocks_, pixel_block_, filter_block_;
  bool is_dense_;
};

}  // namespace rednet

#define REDNET_EXPORT_POINTWISE(suffix, Number) \
  REDNET_EXPORT(rednet_pointwise_##suffix, rednet::PointwiseConvolution, rednet::Pointwise<Number>)

REDNET_EXPORT_POINTWISE(float64, double)
REDNET_EXPORT_POINTWISE(float32, float)
