// The gradients of what an involution's weight is generated from. docs/cpu_kernel.md explains the design.
//
// The gradient of the weight is made for some pixels of a group at a time. It stays in the cache, where it is multiplied
// by the matrix, for the gradient of the reduced map, and by the reduced map, for the gradient of the matrix.
#pragma once

#include "plane_correlation.h"
#include "product.h"

namespace rednet {

// What the caller hands over (loader.py has the same structure).
struct GeneratorGradient {
  Problem problem;      // the input, and the gradient of the output; without a weight
  const void* reduced;  // (N, R, Ho, Wo), dense, with pixels or channels side by side
  const void* matrix;   // (G * Kh * Kw, R), dense
  void* grad_reduced;   // as reduced
  void* grad_matrix;  // (chunks, G * Kh * Kw, R), zero at first; R rounded up to whole cache lines
  void* grad_bias;    // (chunks, G * Kh * Kw, numbers in a cache line), zero at first, to be summed
  int64_t reduced_channels;
  int64_t channels_last;  // whether channels, not pixels, are side by side in both reduced maps
  int64_t block;          // rows of the output at a time
  int64_t chunks;         // of all images' blocks

  int64_t multiply_adds() const {
    return problem.multiply_adds() * (1 + 2 * reduced_channels / problem.group_channels());
  }
};

// A task is a chunk: neighboring blocks of rows of images. It sums over its pixels, in order, so that the results do
// not depend on the number of threads.
template <typename Number>
class GradGenerator {
  static constexpr int64_t lanes = kLanes<Number>;
  static constexpr int64_t kTile = 128;  // pixels

 public:
  using Sum = Number;

  GradGenerator(const GeneratorGradient& gradient, int)
      : gradient_(gradient),
        problem_(gradient.problem),
        correlation_(problem_, gradient.block),
        strip_(larger(1, smaller(gradient.block, kTile / problem_.horizontal.output))),
        tile_(PlaneCorrelation<Sum>::tap_step(problem_, strip_)),
        map_(round_up(gradient.block * problem_.horizontal.output + lanes, kLine<Number>)),
        reduced_row_(round_up(gradient.reduced_channels, kLine<Number>)),
        blocks_(ceil_div(problem_.vertical.output, gradient.block)) {}

  int64_t tasks() const { return gradient_.chunks; }

  int64_t scratch() const {
    return correlation_.scratch() + problem_.taps() * tile_ +
           map_ * (gradient_.reduced_channels + reduced_row_);
  }

  void run(int64_t chunk, Sum* scratch) const {
    Scratch at = divide(scratch);
    at.chunk = chunk;
    const int64_t count = problem_.batch * blocks_;
    for (int64_t i = chunk * count / gradient_.chunks; i < (chunk + 1) * count / gradient_.chunks;
         ++i) {
      const int64_t first = i % blocks_ * gradient_.block;
      const int64_t end = smaller(first + gradient_.block, problem_.vertical.output);
      add_block({i / blocks_, 0, first, end}, at);
    }
  }

 private:
  struct Scratch {
    Sum* correlation;
    Sum* weight;        // the gradient of a tile's weight, (taps, tile_)
    Sum* grad_reduced;  // (R, map_)
    Sum* reduced;       // (pixels, reduced_row_)
    int64_t chunk;
  };

  Scratch divide(Sum* scratch) const {
    Scratch at;
    at.correlation = scratch;
    at.weight = at.correlation + correlation_.scratch();
    at.grad_reduced = at.weight + problem_.taps() * tile_;
    at.reduced = at.grad_reduced + gradient_.reduced_channels * map_;
    return at;
  }

  void add_block(Task task, const Scratch& at) const {
    const int64_t columns = problem_.horizontal.output;
    const int64_t count = (task.end - task.first) * columns;
    read_reduced(task.n, task.first * columns, count, at.reduced);
    std::memset(at.grad_reduced, 0, gradient_.reduced_channels * map_ * sizeof(Sum));
    for (task.g = 0; task.g < problem_.groups; ++task.g) {
      correlation_.read(task, at.correlation);
      for (int64_t row = 0; row < task.end - task.first; row += strip_) {
        const int64_t rows = smaller(strip_, task.end - task.first - row);
        correlation_.correlate(row, rows, at.correlation, at.weight, tile_);
        add_products(task.g, row * columns, rows * columns, at);
      }
    }
    write_grad_reduced(task.n, task.first * columns, count, at.grad_reduced);
  }

  // The contributions of a tile, `count` pixels of the block from number `first` on.
  void add_products(int64_t g, int64_t first, int64_t count, const Scratch& at) const {
    const int64_t channels = gradient_.reduced_channels, taps = problem_.taps();
    const Sum* matrix = static_cast<const Sum*>(gradient_.matrix) + g * taps * channels;
    add_product<Sum>(
        {matrix, 1, ptrdiff_t(channels), at.weight, tile_, at.grad_reduced + first, map_, taps},
        channels, round_up(count, lanes));
    const int64_t row = (at.chunk * problem_.groups + g) * taps;
    add_product<Sum>(
        {at.weight, tile_, 1, at.reduced + first * reduced_row_, reduced_row_,
         static_cast<Sum*>(gradient_.grad_matrix) + row * reduced_row_, reduced_row_, count},
        taps, reduced_row_);
    for (int64_t t = 0; t < taps; ++t)
      add_up(at.weight + t * tile_, count,
             static_cast<Sum*>(gradient_.grad_bias) + (row + t) * kLine<Sum>);
  }

  static void add_up(const Sum* numbers, int64_t count, Sum* to) {
    Vector<Sum> total = read(to);
    for (int64_t x = 0; x < count; x += lanes) total += read(numbers + x);
    write(to, total);
  }

  int64_t map_size() const { return problem_.vertical.output * problem_.horizontal.output; }

  // Where pixel number `first` of an image lies in a reduced map.
  ptrdiff_t reduced_offset(int64_t n, int64_t first) const {
    const int64_t channels = gradient_.reduced_channels;
    return n * channels * map_size() + first * (gradient_.channels_last ? channels : 1);
  }

  // Pixels from number `first` on, with the channels of each side by side.
  void read_reduced(int64_t n, int64_t first, int64_t count, Sum* to) const {
    const int64_t channels = gradient_.reduced_channels;
    const Sum* from = static_cast<const Sum*>(gradient_.reduced) + reduced_offset(n, first);
    if (gradient_.channels_last)
      copy_rows(from, channels, count, channels, to, reduced_row_);
    else
      transpose_rows(from, map_size(), channels, count, to, reduced_row_);
  }

  void write_grad_reduced(int64_t n, int64_t first, int64_t count, const Sum* from) const {
    const int64_t channels = gradient_.reduced_channels;
    Sum* to = static_cast<Sum*>(gradient_.grad_reduced) + reduced_offset(n, first);
    if (gradient_.channels_last)
      transpose_rows(from, map_, channels, count, to, channels);
    else
      copy_rows(from, map_, channels, count, to, map_size());
  }

  static void copy_rows(const Sum* from, ptrdiff_t from_row, int64_t rows, int64_t columns, Sum* to,
                        ptrdiff_t to_row) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + r * to_row, from + r * from_row, columns * sizeof(Sum));
  }

  // Rows become columns.
  static void transpose_rows(const Sum* from, ptrdiff_t from_row, int64_t rows, int64_t columns,
                             Sum* to, ptrdiff_t to_row) {
    for (int64_t r = 0; r < rows; r += lanes) {
      const int64_t high = smaller(lanes, rows - r);
      for (int64_t x = 0; x < columns; x += lanes) {
        const int64_t wide = smaller(lanes, columns - x);
        Vector<Sum> square[lanes] = {};
        for (int64_t i = 0; i < high; ++i)
          square[i] = load_vector<Sum>(from + (r + i) * from_row + x, 1, wide);
        transpose<Sum>(square);
        for (int64_t i = 0; i < wide; ++i)
          store_vector<Sum>(to + (x + i) * to_row + r, square[i], 1, high);
      }
    }
  }

  const GeneratorGradient& gradient_;
  const Problem& problem_;
  PlaneCorrelation<Sum> correlation_;
  int64_t strip_;
  ptrdiff_t tile_, map_, reduced_row_;
  int64_t blocks_;
};

}  // namespace rednet

#define REDNET_EXPORT_GRAD_GENERATOR(suffix, Number)                       \
  REDNET_EXPORT(rednet_grad_generator_##suffix, rednet::GeneratorGradient, \
                rednet::GradGenerator<Number>)

REDNET_EXPORT_GRAD_GENERATOR(float64, double)
REDNET_EXPORT_GRAD_GENERATOR(float32, float)
