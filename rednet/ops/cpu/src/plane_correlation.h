// The gradient of the weight, with pixels in the lanes of vectors: nothing has to be summed across lanes.
#pragma once

#include "planes.h"
#include "product.h"

namespace rednet {

// Of a block of rows of one group: the products of its pixels with the image, tap by tap, summed over the channels.
template <typename Number>
class PlaneCorrelation {
  static constexpr int64_t lanes = kLanes<Number>;

 public:
  // Blocks have up to `block` rows of the output.
  PlaneCorrelation(const Problem& problem, int64_t block)
      : problem_(problem),
        image_(problem, problem.image, problem.horizontal.input, problem.horizontal.padding,
               problem.horizontal.stride, image_rows(block)),
        pixels_(problem, problem.pixels, problem.horizontal.output, 0, 1, block) {}

  // Numbers from one tap to the next in a result of `rows` rows: up to a vector is written behind one.
  static ptrdiff_t tap_step(const Problem& problem, int64_t rows) {
    return round_up(rows * problem.horizontal.output + lanes, kLine<Number>);
  }

  int64_t scratch() const { return image_.size() + pixels_.size() + offsets_size(); }

  // Reads the rows of a task, which `correlate` then finds in the scratch memory.
  void read(const Task& task, Number* scratch) const {
    const Side& v = problem_.vertical;
    find_offsets(offsets(scratch));
    const int64_t first = task.first * v.stride - v.padding;
    Number* to = scratch;
    for (int64_t r = 0; r < image_rows(task.end - task.first); ++r, to += image_.row()) {
      if (first + r < 0 || first + r >= v.input)
        image_.clear_row(to);
      else
        image_.read_row(task.n, task.g, first + r, to);
    }
    to = scratch + image_.size();
    for (int64_t row = task.first; row < task.end; ++row, to += pixels_.row())
      pixels_.read_row(task.n, task.g, row, to);
  }

  // The gradient for some rows from number `row` of the task on, followed by a vector of zeros.
  void correlate(int64_t row, int64_t rows, Number* scratch, Number* to, ptrdiff_t step) const {
    const int64_t columns = problem_.horizontal.output;
    const ptrdiff_t* taps = offsets(scratch);
    for (int64_t r = 0; r < rows; ++r) {
      const Number* image = scratch + (row + r) * problem_.vertical.stride * image_.row();
      const Number* pixels = scratch + image_.size() + (row + r) * columns;
      const auto make = [&](auto vectors, int64_t x) {
        correlate_taps<vectors()>(image + x, pixels + x, taps, to + r * columns + x, step);
      };
      in_blocks<kVectorsTogether>(
          columns / lanes, [&](auto vectors, int64_t vector) { make(vectors, vector * lanes); });
      // A row of less than a vector is completed by numbers that the next row replaces.
      if (columns % lanes) make(Constant<1>(), larger(columns - lanes, 0));
    }
    for (int64_t t = 0; t < problem_.taps(); ++t)
      write(to + t * step + rows * columns, Vector<Number>{});
  }

 private:
  int64_t image_rows(int64_t rows) const {
    return (rows - 1) * problem_.vertical.stride + problem_.vertical.reach() + 1;
  }

  int64_t offsets_size() const {
    return round_up(problem_.taps() * sizeof(ptrdiff_t) / sizeof(Number), kLine<Number>);
  }

  ptrdiff_t* offsets(Number* scratch) const {
    return reinterpret_cast<ptrdiff_t*>(scratch + image_.size() + pixels_.size());
  }

  // Where a tap's pixels lie, from those of the first tap on.
  void find_offsets(ptrdiff_t* offsets) const {
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    for (int64_t t = 0; t < problem_.taps(); ++t)
      offsets[t] =
          t / h.kernel * v.dilation * image_.row() + image_.column(t % h.kernel * h.dilation);
  }

  template <int vectors>
  void correlate_taps(const Number* image, const Number* pixels, const ptrdiff_t* offsets,
                      Number* to, ptrdiff_t step) const {
    in_blocks<kRowsTogether>(problem_.taps(), [&](auto taps, int64_t tap) {
      correlate_block<taps(), vectors>(image, pixels, offsets + tap, to + tap * step, step);
    });
  }

  template <int taps, int vectors>
  void correlate_block(const Number* image, const Number* pixels, const ptrdiff_t* offsets,
                       Number* to, ptrdiff_t step) const {
    Vector<Number> total[taps][vectors] = {};
    // With a pointer for each tap, all advance by one register.
    const Number* images[taps];
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) images[t] = image + offsets[t];
    ptrdiff_t plane = 0;
    for (int64_t c = 0; c < problem_.group_channels();
         ++c, plane += image_.plane(), pixels += pixels_.plane()) {
      Vector<Number> factors[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) factors[v] = rednet::read(pixels + v * lanes);
#pragma GCC unroll 16
      for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v)
          total[t][v] += factors[v] * rednet::read(images[t] + plane + v * lanes);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) write(to + t * step + v * lanes, total[t][v]);
    }
  }

  const Problem& problem_;
  PlaneRows<Number> image_, pixels_;
};

}  // namespace rednet
