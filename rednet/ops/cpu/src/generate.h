// Involution that generates its weight where it applies it, for inference. docs/cpu_kernel.md explains the design.
//
// The weight is a product of a matrix, (groups * taps, reduced channels), and the reduced map at each pixel. A task makes
// the weight of some pixels of its group, which stays in the cache, sums their windows, and goes on to the next pixels.
#pragma once

#include "involution.h"

namespace rednet {

// What the caller hands over (loader.py has the same structure). Maps of the reduced channels are dense; so is the matrix.
struct Generation {
  Problem problem;      // without a weight
  const void* reduced;  // (N, R, Ho, Wo)
  const void* matrix;   // (G * Kh * Kw, R)
  const void* bias;     // (G * Kh * Kw,), or null
  int64_t reduced_channels;

  int64_t multiply_adds() const {
    return problem.multiply_adds() * (1 + reduced_channels / problem.group_channels());
  }
};

// Taps and vectors of pixels whose weights are made at once, in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTapsTogether = 8, kVectorsTogether = 3;
#else
constexpr int kTapsTogether = 4, kVectorsTogether = 2;
#endif

template <typename Number>
class Generate : PaddedImage<Number> {
  using Base = PaddedImage<Number>;
  using Base::image_, Base::problem_, Base::tiling_;
  static constexpr int64_t lanes = kLanes<Number>;
  static constexpr int64_t kTile = 128;  // pixels

 public:
  using Sum = Number;

  Generate(const Generation& generation, int threads)
      : Base(generation.problem, threads),
        generation_(generation),
        pixels_(problem_, problem_.pixels, problem_.horizontal.output) {
    const int64_t columns = problem_.horizontal.output;
    strip_ = larger(1, smaller(tiling_.block(), kTile / columns));
    const int64_t parts = ceil_div(columns, kTile);
    tile_ = parts > 1 ? round_up(ceil_div(columns, parts), lanes) : strip_ * columns;
  }

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + strip_ * pixels_.row() + problem_.taps() * tile_step() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    Sum* image = scratch;
    Sum* sums = image + this->image_size();
    Sum* weight = sums + strip_ * pixels_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + problem_.taps() * tile_step());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + v.kernel);
    this->read_image(task, image);
    for (int64_t kw = 0; kw < h.kernel; ++kw)
      columns[kw] = {kw * tile_step(), this->column_offset(kw)};
    const Window<Sum> window = {
        rows, columns, v.kernel, h.kernel, 1, this->pixel_step(), pixels_.pixel(), pixels_.lines()};
    for (int64_t first = task.first; first < task.end; first += strip_) {
      const int64_t count = smaller(strip_, task.end - first);
      for (int64_t from = 0; from < count * h.output; from += tile_) {
        const int64_t end = smaller(from + tile_, count * h.output);
        const Sum* tile = generate(task, first * h.output + from, end - from, weight) - from;
        for (int64_t row = from / h.output; row * h.output < end; ++row) {
          const int64_t start = row * h.output;
          for (int64_t kh = 0; kh < v.kernel; ++kh)
            rows[kh] = {tile + kh * h.kernel * tile_step() + start,
                        image + this->row_offset(first - task.first + row, kh)};
          sum_row(window, larger(from - start, 0), smaller(end - start, h.output),
                  sums + row * pixels_.row());
        }
      }
      pixels_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  // Numbers from one tap of a tile to the next.
  ptrdiff_t tile_step() const { return round_up(tile_, kLine<Sum>); }

  // Makes the weight of `count` pixels of an image's map and returns where the first one's lies. A vector at least: that
  // may begin some pixels before.
  const Sum* generate(const Task& task, int64_t first, int64_t count, Sum* to) const {
    const int64_t map = problem_.vertical.output * problem_.horizontal.output;
    const int64_t begin = smaller(first, map - lanes), span = larger(count, lanes);
    const int64_t rows = task.g * problem_.taps();
    const Sum* matrix = static_cast<const Sum*>(generation_.matrix);
    const Sum* bias = static_cast<const Sum*>(generation_.bias);
    const Sum* reduced = static_cast<const Sum*>(generation_.reduced) +
                         task.n * generation_.reduced_channels * map + begin;
    in_blocks<kTapsTogether>(problem_.taps(), [&](auto taps, int64_t tap) {
      const int64_t row = rows + tap;
      const auto make = [&](auto vectors, int64_t x) {
        multiply<taps(), vectors()>(matrix + row * generation_.reduced_channels,
                                    bias ? bias + row : nullptr, reduced + x, map,
                                    to + tap * tile_step() + x);
      };
      in_blocks<kVectorsTogether>(
          span / lanes, [&](auto vectors, int64_t vector) { make(vectors, vector * lanes); });
      if (span % lanes) make(Constant<1>(), span - lanes);
    });
    return to + (first - begin);
  }

  template <int taps, int vectors>
  void multiply(const Sum* matrix, const Sum* bias, const Sum* reduced, int64_t map,
                Sum* to) const {
    const int64_t channels = generation_.reduced_channels;
    Vector<Sum> total[taps][vectors];
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) total[t][v] = (bias ? bias[t] : 0) - Vector<Sum>{};
    }
    for (int64_t c = 0; c < channels; ++c) {
      Vector<Sum> pixels[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) pixels[v] = read(reduced + c * map + v * lanes);
#pragma GCC unroll 16
      for (int t = 0; t < taps; ++t) {
        const Vector<Sum> factor = matrix[t * channels + c] - Vector<Sum>{};
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) total[t][v] += factor * pixels[v];
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) write(to + t * tile_step() + v * lanes, total[t][v]);
    }
  }

  const Generation& generation_;
  GroupRows<Number> pixels_;
  int64_t strip_, tile_;
};

}  // namespace rednet

#define REDNET_EXPORT_GENERATE(suffix, Number) \
  REDNET_EXPORT(rednet_generate_##suffix, rednet::Generation, rednet::Generate<Number>)

REDNET_EXPORT_GENERATE(float64, double)
REDNET_EXPORT_GENERATE(float32, float)
