// The convolution of each sample with its own kernel, a mixture of experts, as products of matrices: a sample's kernel,
// filters x depth, times its columns, depth x pixels. docs/cpu_kernel.md says what that is for.
//
// A task is a block of filters. It mixes a block of a sample's kernel into scratch memory, which is in the cache, and
// multiplies it at once: kernels are never written to memory, and experts are read once for all samples.
#pragma once

#include <algorithm>

#include "arithmetic.h"
#include "expert_products.h"
#include "mixing.h"
#include "operations.h"
#include "vectors.h"

namespace rednet {

// ---- what the caller hands over (loader.py has the same structures)

// One side of the window and of the image.
struct WindowSide {
  int64_t length, output_length, kernel, stride, padding, dilation;
};

// Everything is contiguous, but for the image and the experts, whose filters x depth are.
struct ExpertConvolution {
  int64_t samples, experts, filters, channels;
  WindowSide rows, columns;
  int64_t image_steps[4];
  int64_t expert_step;
  const void* image;
  const void* shares;  // (samples, experts): of each expert in each sample's kernel
  void* expert_rows;   // (experts, filters, depth)
  const void* scale;   // (samples, depth): what kernels are multiplied with, or null
  const void* bias;    // (samples, filters), or null
  void* unfolded;      // (samples, depth * pixels): panels, see Panels
  void* output;        // (samples, filters, pixels)
  // Gradients: of the output, handed over; of the others, filled. Depth is a multiple of 48 here, filters of 8.
  const void* grad;    // (samples, filters, pixels)
  void* grad_panels;   // (samples, filters * pixels): panels of grad
  void* grad_blocks;   // (samples, filters / kRowsTogether, pixels, kRowsTogether)
  void* grad_experts;  // (experts, filters, depth)
  void*
      share_gradients;  // (filters / kFiltersPerSum, samples * experts): to be summed; zero before
  void* grad_input;     // (samples, channels, rows.length, columns.length)
  void* scale_gradients;  // (samples, depth), where there is a scale
  int64_t transposes;     // whether the columns' transposes are unfolded
  int64_t adds;           // whether grad_experts is added to

  int64_t taps() const { return rows.kernel * columns.kernel; }
  int64_t depth() const { return channels * taps(); }
  int64_t pixels() const { return rows.output_length * columns.output_length; }
  int64_t multiply_adds() const { return samples * filters * depth() * pixels(); }
};

// ---- columns: the pixels that each element of the kernel meets

// A task is a channel of a sample.
template <typename Number>
class Unfold {
 public:
  using Sum = Number;

  Unfold(const ExpertConvolution& problem, int) : problem_(problem) {}

  int64_t tasks() const { return problem_.samples * problem_.channels; }

  // Rows are copied in whole vectors: the last ones read and write too far.
  int64_t scratch() const { return height() * width() + problem_.pixels() + 2 * kLanes<Number>; }

  void run(int64_t task, Number* plane) const {
    const int64_t sample = task / problem_.channels, channel = task % problem_.channels;
    const auto& [rows, columns] = sides();
    read_plane(sample, channel, plane);
    Number* pixels = plane + height() * width() + kLanes<Number>;
    const Panels<Number> panels = {
        static_cast<Number*>(problem_.unfolded) + sample * problem_.depth() * problem_.pixels(),
        problem_.transposes ? problem_.pixels() : problem_.depth()};
    int64_t row = channel * problem_.taps();
    for (int64_t i = 0; i < rows.kernel; ++i) {
      for (int64_t j = 0; j < columns.kernel; ++j, ++row) {
        copy_tap(plane + i * rows.dilation * width() + j * columns.dilation, pixels);
        scale_tap(sample, row, pixels);
        if (problem_.transposes)
          panels.write_column(row, pixels);
        else
          panels.write_row(row, pixels, problem_.pixels());
      }
    }
  }

  // Fills the inside of a plane whose padding is zero.
  void read_plane(int64_t sample, int64_t channel, Number* plane) const {
    const int64_t* steps = problem_.image_steps;
    const auto& [rows, columns] = sides();
    const Number* from =
        static_cast<const Number*>(problem_.image) + sample * steps[0] + channel * steps[1];
    for (int64_t y = 0; y < rows.length; ++y) {
      Number* to = plane + (y + rows.padding) * width() + columns.padding;
      for (int64_t x = 0; x < columns.length; ++x) to[x] = from[y * steps[2] + x * steps[3]];
    }
  }

  // Calls body(place) for the place in a plane where an element of the kernel meets each pixel.
  template <typename Body>
  void for_pixels(int64_t tap, const Body& body) const {
    const auto& [rows, columns] = sides();
    const int64_t i = tap / columns.kernel, j = tap % columns.kernel;
    const int64_t first = i * rows.dilation * width() + j * columns.dilation;
    for (int64_t y = 0; y < rows.output_length; ++y) {
      for (int64_t x = 0; x < columns.output_length; ++x)
        body(first + y * rows.stride * width() + x * columns.stride);
    }
  }

 private:
  struct Sides {
    const WindowSide &rows, &columns;
  };
  Sides sides() const { return {problem_.rows, problem_.columns}; }

  int64_t height() const { return problem_.rows.length + 2 * problem_.rows.padding; }

  int64_t width() const { return problem_.columns.length + 2 * problem_.columns.padding; }

  void scale_tap(int64_t sample, int64_t row, Number* numbers) const {
    if (!problem_.scale) return;
    const Number* scale = static_cast<const Number*>(problem_.scale) + sample * problem_.depth();
    for (int64_t p = 0; p < problem_.pixels(); ++p) numbers[p] *= scale[row];
  }

  void copy_tap(const Number* from, Number* to) const {
    const auto& [rows, columns] = sides();
    for (int64_t y = 0; y < rows.output_length; ++y) {
      const Number* row = from + y * rows.stride * width();
      if (columns.stride == 1) {
        for (int64_t x = 0; x < columns.output_length; x += kLanes<Number>)
          write(to + x, read(row + x));
      } else {
        for (int64_t x = 0; x < columns.output_length; ++x) to[x] = row[x * columns.stride];
      }
      to += columns.output_length;
    }
  }

  const ExpertConvolution& problem_;
};

// ---- the output

// At most, of a block of kernels: they and their experts fit into a second-level cache of 1 MiB.
constexpr int64_t kFilters = 64;
constexpr int64_t kDepth = 256;
constexpr int64_t kSamples = 8;
// Between two samples' kernels: not a power of two, or they would evict each other.
template <typename Number>
constexpr int64_t kKernelStep = kFilters * kDepth + 2 * kLine<Number>;

// Of the experts, and of the kernels mixed from them.
struct ExpertBlock {
  int64_t filter, filters, start, depth;
};

template <typename Number>
class ExpertOperation {
 public:
  using Sum = Number;

  ExpertOperation(const ExpertConvolution& problem, int) : problem_(problem) {}

 protected:
  const Number* shares(int64_t sample) const {
    return static_cast<const Number*>(problem_.shares) + sample * problem_.experts;
  }

  Rows<Number> experts(const ExpertBlock& block) const {
    Number* data = static_cast<Number*>(problem_.expert_rows);
    return {data + block.filter * problem_.depth() + block.start, problem_.expert_step};
  }

  Ahead ahead_of(const ExpertBlock& block) const {
    return {experts(block).data,
            block.filters,
            int64_t(problem_.depth() * sizeof(Number)),
            problem_.experts,
            int64_t(problem_.expert_step * sizeof(Number)),
            int64_t(block.depth * sizeof(Number))};
  }

  void mix(int64_t sample, int64_t samples, const ExpertBlock& block, Number* kernels) const {
    const auto [data, step] = experts(block);
    for (int64_t i = 0; i < block.filters; ++i) {
      WeightedSums<Number>{{shares(sample), problem_.experts, 1},
                           {data + i * problem_.depth(), step},
                           {kernels + i * kDepth, kKernelStep<Number>},
                           problem_.experts,
                           samples,
                           false}
          .compute(block.depth);
    }
  }

  const ExpertConvolution& problem_;
};

template <typename Number>
class FiltersOperation : public ExpertOperation<Number> {
 public:
  FiltersOperation(const ExpertConvolution& problem, int threads)
      : ExpertOperation<Number>(problem, threads),
        filters_(smaller(
            kFilters, round_up(ceil_div(problem.filters, 2 * int64_t(threads)), kRowsTogether))) {}

  int64_t tasks() const { return ceil_div(this->problem_.filters, filters_); }

 protected:
  // Calls body(block) for each block of `depth` of a task's filters.
  template <typename Body>
  void for_blocks(int64_t task, int64_t depth, const Body& body) const {
    const int64_t first = task * filters_,
                  count = smaller(filters_, this->problem_.filters - first);
    for (int64_t start = 0; start < this->problem_.depth(); start += depth)
      body(ExpertBlock{first, count, start, smaller(depth, this->problem_.depth() - start)});
  }

  // The experts of the block that follows, if there is one.
  Ahead ahead_after(const ExpertBlock& block) const {
    const int64_t start = block.start + block.depth;
    const int64_t depth = smaller(block.depth, this->problem_.depth() - start);
    if (depth <= 0) return {};
    return this->ahead_of({block.filter, block.filters, start, depth});
  }

  const int64_t filters_;  // of a task
};

template <typename Number>
class ConvolveExperts : public FiltersOperation<Number> {
  using Base = FiltersOperation<Number>;
  using Base::problem_;

 public:
  using Base::Base;

  int64_t scratch() const { return kSamples * kKernelStep<Number> + kFilters * kLanes<Number>; }

  void run(int64_t task, Number* scratch) const {
    const int64_t first = task * this->filters_;
    for (int64_t sample = 0; sample < problem_.samples; ++sample)
      begin(sample, first, smaller(this->filters_, problem_.filters - first));
    Number* products = scratch + kSamples * kKernelStep<Number>;
    this->for_blocks(task, kDepth, [&](const ExpertBlock& block) {
      Ahead ahead = this->ahead_after(block);
      for (int64_t sample = 0; sample < problem_.samples; sample += kSamples) {
        const int64_t samples = smaller(kSamples, problem_.samples - sample);
        this->mix(sample, samples, block, scratch);
        for (int64_t i = 0; i < samples; ++i)
          multiply(sample + i, block, scratch + i * kKernelStep<Number>, ahead, products);
      }
    });
  }

 private:
  Number* output(int64_t sample, int64_t filter) const {
    return static_cast<Number*>(problem_.output) +
           (sample * problem_.filters + filter) * problem_.pixels();
  }

  void begin(int64_t sample, int64_t first, int64_t count) const {
    const Number* bias = static_cast<const Number*>(problem_.bias);
    for (int64_t filter = first; filter < first + count; ++filter) {
      const Number value = bias ? bias[sample * problem_.filters + filter] : 0;
      std::fill_n(output(sample, filter), problem_.pixels(), value);
    }
  }

  void multiply(int64_t sample, const ExpertBlock& block, Number* kernel, Ahead& ahead,
                Number* products) const {
    const int64_t pixels = problem_.pixels(), rest = pixels % kLanes<Number>;
    Number* unfolded = static_cast<Number*>(problem_.unfolded) + sample * problem_.depth() * pixels;
    const PanelProduct<Number, kDepth, 1> product = {
        kernel,      {unfolded, problem_.depth()},
        block.start, {output(sample, block.filter), pixels},
        block.depth, ahead};
    product.compute(block.filters, pixels / kLanes<Number>);
    if (!rest) return;
    Number* columns = unfolded + (pixels - rest) * problem_.depth() + block.start;
    const DotProducts<Number> sums = {
        {kernel, kDepth}, {columns, problem_.depth()}, block.filters, rest, products};
    sums.compute(block.depth);
    for (int64_t i = 0; i < block.filters; ++i) {
      Number* to = output(sample, block.filter + i) + pixels - rest;
      for (int64_t p = 0; p < rest; ++p) to[p] += products[i * rest + p];
    }
  }
};

}  // namespace rednet
