// The gradient of the weight where it is dense: pixels are the lanes. involution.h has it for all other layouts and types.
#pragma once

#include "plane_correlation.h"

namespace rednet {

template <typename Number>
class GradWeightRows {
  static constexpr int64_t lanes = kLanes<Number>;
  static constexpr int64_t kTile = 128;  // pixels

 public:
  using Sum = Number;

  // Whether the rows of a tap follow each other, and are long enough for vectors that end with them.
  static bool supports(const Problem& problem) {
    const int64_t* s = problem.weight.strides;
    const int64_t columns = problem.horizontal.output;
    return s[5] == 1 && s[4] == columns && 8 * columns >= 5 * lanes;
  }

  GradWeightRows(const Problem& problem, int threads)
      : problem_(problem),
        tiling_(problem, problem.vertical.output,
                problem.vertical.reach() / problem.vertical.stride, row_bytes(problem), threads),
        correlation_(problem, tiling_.block()),
        strip_(larger(1, smaller(tiling_.block(), kTile / problem.horizontal.output))),
        tile_(PlaneCorrelation<Sum>::tap_step(problem, strip_)) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const { return correlation_.scratch() + problem_.taps() * tile_; }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    Sum* tile = scratch + correlation_.scratch();
    correlation_.read(task, scratch);
    for (int64_t row = task.first; row < task.end; row += strip_) {
      const int64_t rows = smaller(strip_, task.end - row);
      correlation_.correlate(row - task.first, rows, scratch, tile, tile_);
      write_tile(task, row, rows * problem_.horizontal.output, tile);
    }
  }

 private:
  static int64_t row_bytes(const Problem& problem) {
    const Side& h = problem.horizontal;
    const int64_t image = (h.input + 2 * h.padding) * problem.vertical.stride;
    return problem.group_channels() * (image + h.output) * sizeof(Sum);
  }

  void write_tile(const Task& task, int64_t row, int64_t count, const Sum* tile) const {
    const int64_t kernel = problem_.horizontal.kernel;
    for (int64_t t = 0; t < problem_.taps(); ++t)
      std::memcpy(weight_row<Sum>(problem_, task.n, task.g, t / kernel, row) +
                      t % kernel * problem_.weight.strides[3],
                  tile + t * tile_, count * sizeof(Sum));
  }

  const Problem& problem_;
  Tiling tiling_;
  PlaneCorrelation<Sum> correlation_;
  int64_t strip_;
  ptrdiff_t tile_;
};

template <typename Stored>
int grad_weight(const Problem& problem, int threads) {
  if constexpr (std::is_same<Stored, typename Accumulator<Stored>::type>::value) {
    if (GradWeightRows<Stored>::supports(problem))
      return execute<GradWeightRows<Stored>>(problem, threads);
  }
  return execute<GradWeight<Stored>>(problem, threads);
}

}  // namespace rednet

#define REDNET_EXPORT_GRAD_WEIGHT(suffix, Stored)                                               \
  REDNET_VISIBLE int rednet_grad_weight_##suffix(const rednet::Problem* problem, int threads) { \
    return rednet::grad_weight<Stored>(*problem, threads);                                      \
  }

REDNET_EXPORT_GRAD_WEIGHT(float64, double)
REDNET_EXPORT_GRAD_WEIGHT(float32, float)
REDNET_EXPORT_GRAD_WEIGHT(float16, rednet::Half)
REDNET_EXPORT_GRAD_WEIGHT(bfloat16, rednet::BFloat16)
