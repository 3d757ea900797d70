// The gradients of what an involution's weight is generated from. docs/cpu_kernel.md explains the design.
//
// The gradient of the weight is made for some pixels of a group at a time. It stays in the cache, where it is multiplied
// by the matrix, for the gradient of the reduced map, and by the reduced map, for the gradient of the matrix.
#pragma once

#include "planes.h"
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
  int64_t
      channels_last;  // whether the channels of the reduced map and of its gradient are side by side
  int64_t block;      // rows of the output at a time
  int64_t chunks;     // of all images' blocks

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
        image_(problem_, problem_.image, problem_.horizontal.input, problem_.horizontal.padding,
               problem_.horizontal.stride, image_rows(gradient.block)),
        pixels_(problem_, problem_.pixels, problem_.horizontal.output, 0, 1, gradient.block),
        strip_(larger(1, smaller(gradient.block, kTile / problem_.horizontal.output))),
        tile_(round_up(strip_ * problem_.horizontal.output + lanes, kLine<Number>)),
        map_(round_up(gradient.block * problem_.horizontal.output + lanes, kLine<Number>)),
        reduced_row_(round_up(gradient.reduced_channels, kLine<Number>)),
        blocks_(ceil_div(problem_.vertical.output, gradient.block)) {}

  int64_t tasks() const { return gradient_.chunks; }

  int64_t scratch() const {
    return image_.size() + pixels_.size() + problem_.taps() * tile_ +
           map_ * (gradient_.reduced_channels + reduced_row_) + offsets_size();
  }

  void run(int64_t chunk, Sum* scratch) const {
    Scratch at = divide(scratch);
    at.chunk = chunk;
    find_offsets(at.offsets);
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
    Sum *image, *pixels;
    Sum* weight;        // the gradient of a tile's weight, (taps, tile_)
    Sum* grad_reduced;  // (R, map_)
    Sum* reduced;       // (pixels, reduced_row_)
    ptrdiff_t* offsets;
    int64_t chunk;
  };

  int64_t offsets_size() const {
    return round_up(problem_.taps() * sizeof(ptrdiff_t) / sizeof(Sum), kLine<Sum>);
  }

  int64_t image_rows(int64_t rows) const {
    return (rows - 1) * problem_.vertical.stride + problem_.vertical.reach() + 1;
  }

  Scratch divide(Sum* scratch) const {
    Scratch at;
    at.image = scratch;
    at.pixels = at.image + image_.size();
    at.weight = at.pixels + pixels_.size();
    at.grad_reduced = at.weight + problem_.taps() * tile_;
    at.reduced = at.grad_reduced + gradient_.reduced_channels * map_;
    at.offsets = reinterpret_cast<ptrdiff_t*>(at.reduced + map_ * reduced_row_);
    return at;
  }

  // Where a tap's pixels lie, from those of the first tap on.
  void find_offsets(ptrdiff_t* offsets) const {
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    for (int64_t t = 0; t < problem_.taps(); ++t)
      offsets[t] =
          t / h.kernel * v.dilation * image_.row() + image_.column(t % h.kernel * h.dilation);
  }

  void add_block(Task task, const Scratch& at) const {
    const int64_t columns = problem_.horizontal.output;
    const int64_t count = (task.end - task.first) * columns;
    read_reduced(task.n, task.first * columns, count, at.reduced);
    std::memset(at.grad_reduced, 0, gradient_.reduced_channels * map_ * sizeof(Sum));
    for (task.g = 0; task.g < problem_.groups; ++task.g) {
      read_image(task, at.image);
      for (int64_t row = task.first; row < task.end; ++row)
        pixels_.read_row(task.n, task.g, row, at.pixels + (row - task.first) * pixels_.row());
      for (int64_t row = 0; row < task.end - task.first; row += strip_) {
        const int64_t rows = smaller(strip_, task.end - task.first - row);
        find_grad_weight(row, rows, at);
        add_products(task.g, row * columns, rows * columns, at);
      }
    }
    write_grad_reduced(task.n, task.first * columns, count, at.grad_reduced);
  }

  void read_image(const Task& task, Sum* to) const {
    const Side& v = problem_.vertical;
    const int64_t first = task.first * v.stride - v.padding;
    for (int64_t r = 0; r < image_rows(task.end - task.first); ++r, to += image_.row()) {
      if (first + r < 0 || first + r >= v.input)
        image_.clear_row(to);
      else
        image_.read_row(task.n, task.g, first + r, to);
    }
  }

  // The gradient of the weight for some rows of the block, the taps of each pixel in a column.
  void find_grad_weight(int64_t row, int64_t rows, const Scratch& at) const {
    const int64_t columns = problem_.horizontal.output;
    for (int64_t r = 0; r < rows; ++r) {
      const Sum* image = at.image + (row + r) * problem_.vertical.stride * image_.row();
      const Sum* pixels = at.pixels + (row + r) * columns;
      Sum* to = at.weight + r * columns;
      in_blocks<kVectorsTogether>(columns / lanes, [&](auto vectors, int64_t vector) {
        correlate_taps<vectors()>(image, pixels, at.offsets, vector * lanes, to);
      });
      // A row of less than a vector is completed by numbers that the next row replaces.
      if (columns % lanes)
        correlate_taps<1>(image, pixels, at.offsets, larger(columns - lanes, 0), to);
    }
    for (int64_t t = 0; t < problem_.taps(); ++t)
      write(at.weight + t * tile_ + rows * columns, Vector<Sum>{});
  }

  template <int vectors>
  void correlate_taps(const Sum* image, const Sum* pixels, const ptrdiff_t* offsets, int64_t x,
                      Sum* to) const {
    in_blocks<kRowsTogether>(problem_.taps(), [&](auto taps, int64_t tap) {
      correlate<taps(), vectors>(image + x, pixels + x, offsets + tap, to + tap * tile_ + x);
    });
  }

  template <int taps, int vectors>
  void correlate(const Sum* image, const Sum* pixels, const ptrdiff_t* offsets, Sum* to) const {
    Vector<Sum> total[taps][vectors] = {};
    // With a pointer for each tap, all advance by one register.
    const Sum* images[taps];
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) images[t] = image + offsets[t];
    ptrdiff_t plane = 0;
    for (int64_t c = 0; c < problem_.group_channels();
         ++c, plane += image_.plane(), pixels += pixels_.plane()) {
      Vector<Sum> factors[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) factors[v] = read(pixels + v * lanes);
#pragma GCC unroll 16
      for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v)
          total[t][v] += factors[v] * read(images[t] + plane + v * lanes);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) write(to + t * tile_ + v * lanes, total[t][v]);
    }
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
  PlaneRows<Sum> image_, pixels_;
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
