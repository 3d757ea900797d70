// Involution that generates its weight where it applies it, for inference. docs/cpu_kernel.md explains the design.
//
// The weight is a product of a matrix, (groups * taps, reduced channels), and the reduced map at each pixel. A task makes
// the weight of some pixels of its group, which stays in the cache, sums their windows, and goes on to the next pixels.
#pragma once

#include "involution.h"
#include "product.h"

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

// Makes the weight of some pixels.
template <typename Number>
class WeightGenerator {
  static constexpr int64_t lanes = kLanes<Number>;

 public:
  // A tap's weights are to lie `step` numbers after those of the tap before.
  WeightGenerator(const Generation& generation, ptrdiff_t step)
      : generation_(generation), step_(step) {}

  // Numbers from one tap to the next.
  ptrdiff_t step() const { return step_; }

  // Makes the weight of `count` pixels of an image's map, for taps from number `tap` of all groups on, and returns
  // where the first pixel's lies. A vector at least: that may begin some pixels before.
  const Number* make(int64_t n, int64_t tap, int64_t taps, int64_t first, int64_t count,
                     Number* to) const {
    const int64_t map = generation_.problem.vertical.output * generation_.problem.horizontal.output;
    const int64_t begin = smaller(first, map - lanes), span = larger(count, lanes);
    const int64_t channels = generation_.reduced_channels;
    const Number* bias = static_cast<const Number*>(generation_.bias);
    const Product<Number> product = {
        static_cast<const Number*>(generation_.matrix) + tap * channels,
        channels,
        1,
        static_cast<const Number*>(generation_.reduced) + n * channels * map + begin,
        map,
        to,
        step_,
        channels};
    const auto initial = [&](int64_t row, int64_t) {
      return (bias ? bias[tap + row] : 0) - Vector<Number>{};
    };
    multiply_all(product, taps, span / lanes * lanes, initial);
    if (span % lanes) multiply_columns<1>(product, taps, span - lanes, initial);
    return to + (first - begin);
  }

 private:
  const Generation& generation_;
  ptrdiff_t step_;
};

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
        pixels_(problem_, problem_.pixels, problem_.horizontal.output),
        strip_(larger(1, smaller(tiling_.block(), kTile / problem_.horizontal.output))),
        tile_(tile()),
        weight_(generation, round_up(tile_, kLine<Sum>)) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + strip_ * pixels_.row() + problem_.taps() * weight_.step() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    Sum* image = scratch;
    Sum* sums = image + this->image_size();
    Sum* weight = sums + strip_ * pixels_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + problem_.taps() * weight_.step());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + v.kernel);
    this->read_image(task, image);
    for (int64_t kw = 0; kw < h.kernel; ++kw)
      columns[kw] = {kw * weight_.step(), this->column_offset(kw)};
    const Window<Sum> window = {
        rows, columns, v.kernel, h.kernel, 1, this->pixel_step(), pixels_.pixel(), pixels_.lines()};
    for (int64_t first = task.first; first < task.end; first += strip_) {
      const int64_t count = smaller(strip_, task.end - first);
      for (int64_t from = 0; from < count * h.output; from += tile_) {
        const int64_t end = smaller(from + tile_, count * h.output);
        const Sum* tile = weight_.make(task.n, task.g * problem_.taps(), problem_.taps(),
                                       first * h.output + from, end - from, weight) -
                          from;
        for (int64_t row = from / h.output; row * h.output < end; ++row) {
          const int64_t start = row * h.output;
          for (int64_t kh = 0; kh < v.kernel; ++kh)
            rows[kh] = {tile + kh * h.kernel * weight_.step() + start,
                        image + this->row_offset(first - task.first + row, kh)};
          sum_row(window, larger(from - start, 0), smaller(end - start, h.output),
                  sums + row * pixels_.row());
        }
      }
      pixels_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  // Pixels of a tile: some rows, or a part of one.
  int64_t tile() const {
    const int64_t columns = problem_.horizontal.output, parts = ceil_div(columns, kTile);
    return parts > 1 ? round_up(ceil_div(columns, parts), lanes) : strip_ * columns;
  }

  GroupRows<Number> pixels_;
  int64_t strip_, tile_;
  WeightGenerator<Number> weight_;
};

// Rows of weights that are made for some rows of the input's gradient at a time, where WeightRows reads them.
template <typename Number>
class GeneratedRows {
  static constexpr int64_t kTile = 128;  // pixels

 public:
  explicit GeneratedRows(const Generation& generation)
      : vertical_(generation.problem.vertical),
        groups_(generation.problem.groups),
        taps_(generation.problem.horizontal.kernel),
        columns_(generation.problem.horizontal.output),
        strip_(larger(1, kTile / columns_)),
        weight_(generation, round_up(strip_ * columns_ + kLanes<Number>, kLine<Number>)) {}

  ptrdiff_t tap_step() const { return weight_.step(); }

  ptrdiff_t pixel_step() const { return 1; }

  // They are in the cache.
  bool fetches() const { return false; }

  // Rows that can be prepared at once.
  int64_t strip() const { return strip_; }

  int64_t scratch() const { return vertical_.kernel * (taps_ * weight_.step() + kPointer); }

  // Makes the weights that rows `first` ... of the input need.
  void prepare(int64_t n, int64_t g, int64_t first, int64_t count, Number* scratch) const {
    const Side& v = vertical_;
    for (int64_t kh = 0; kh < v.kernel; ++kh) {
      const int64_t y = first + v.padding - kh * v.dilation;
      const int64_t output = ceil_div(larger(y, 0), v.stride);
      const int64_t end = smaller(larger(y + count - 1 + v.stride, 0) / v.stride, v.output);
      if (output >= end) continue;
      row(kh, scratch) = weight_.make(n, (g * v.kernel + kh) * taps_, taps_, output * columns_,
                                      (end - output) * columns_,
                                      scratch + v.kernel * kPointer + kh * taps_ * weight_.step()) -
                         output * columns_;
    }
  }

  // The weights of kernel row kh for output row h.
  const Number* read_row(int64_t, int64_t, int64_t kh, int64_t h, Number* scratch) const {
    return row(kh, scratch) + h * columns_;
  }

 private:
  static constexpr int64_t kPointer = sizeof(const Number*) / sizeof(Number);

  // Where the weights of kernel row kh would begin for output row 0.
  static const Number*& row(int64_t kh, Number* scratch) {
    return reinterpret_cast<const Number**>(scratch)[kh];
  }

  Side vertical_;
  int64_t groups_, taps_, columns_, strip_;
  WeightGenerator<Number> weight_;
};

// The gradient of the input, with a weight that is generated where it is applied.
template <typename Number>
struct GenerateGradInput : GradInput<Number, GeneratedRows<Number>> {
  GenerateGradInput(const Generation& generation, int threads)
      : GradInput<Number, GeneratedRows<Number>>(generation.problem,
                                                 GeneratedRows<Number>(generation), threads) {}
};

}  // namespace rednet

#define REDNET_EXPORT_GENERATE(suffix, Number)                                          \
  REDNET_EXPORT(rednet_generate_##suffix, rednet::Generation, rednet::Generate<Number>) \
  REDNET_EXPORT(rednet_generate_grad_input_##suffix, rednet::Generation,                \
                rednet::GenerateGradInput<Number>)

REDNET_EXPORT_GENERATE(float64, double)
REDNET_EXPORT_GENERATE(float32, float)
