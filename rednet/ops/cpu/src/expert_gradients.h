// The gradients of the convolution in expert_conv.h, by the same products of blocks.
#pragma once

#include "expert_conv.h"

namespace rednet {

// A task is a filter of a sample's gradient.
template <typename Number>
class PackGradient : public ExpertOperation<Number> {
  using Base = ExpertOperation<Number>;
  using Base::problem_;

 public:
  using Base::Base;

  int64_t tasks() const { return problem_.samples * problem_.filters; }

  int64_t scratch() const { return 0; }

  void run(int64_t task, Number*) const {
    const int64_t pixels = problem_.pixels(), filters = problem_.filters;
    const Number* from = static_cast<const Number*>(problem_.grad) + task * pixels;
    const int64_t sample = task / filters, filter = task % filters;
    Number* panels = static_cast<Number*>(problem_.grad_panels) + sample * filters * pixels;
    Panels<Number>{panels, filters}.write_row(filter, from, pixels);
    Number* to = static_cast<Number*>(problem_.grad_blocks) +
                 task / kRowsTogether * kRowsTogether * pixels + task % kRowsTogether;
    for (int64_t p = 0; p < pixels; ++p) to[p * kRowsTogether] = from[p];
  }
};

// Filters whose contributions to the gradients of shares are one sum: tasks have a multiple of them. Sums of a task would
// depend on the number of threads.
constexpr int64_t kFiltersPerSum = 4;
static_assert(kRowsTogether % kFiltersPerSum == 0);

// The gradients of the kernels, which those of experts and shares are mixed from at once.
template <typename Number>
class ExpertGradients : public FiltersOperation<Number> {
  using Base = FiltersOperation<Number>;
  using Base::problem_;

 public:
  using Base::Base;

  int64_t scratch() const { return kSamples * (kKernelStep<Number> + problem_.experts); }

  void run(int64_t task, Number* scratch) const {
    constexpr int64_t depth = kDepth - kDepth % Panels<Number>::kWidth;
    this->for_blocks(task, depth, [&](const ExpertBlock& block) {
      Ahead ahead = this->ahead_of(block);
      for (int64_t sample = 0; sample < problem_.samples; sample += kSamples) {
        const int64_t samples = smaller(kSamples, problem_.samples - sample);
        for (int64_t i = 0; i < samples; ++i)
          multiply(sample + i, block, scratch + i * kKernelStep<Number>, ahead);
        mix_gradients(sample, samples, block, scratch);
      }
    });
  }

 private:
  void multiply(int64_t sample, const ExpertBlock& block, Number* kernel, Ahead& ahead) const {
    const int64_t pixels = problem_.pixels();
    std::fill_n(kernel, block.filters * kDepth, Number(0));
    Number* columns = static_cast<Number*>(problem_.unfolded) +
                      (sample * problem_.depth() + block.start) * pixels;
    const Number* grads = static_cast<const Number*>(problem_.grad_blocks) +
                          (sample * problem_.filters + block.filter) * pixels;
    for (int64_t i = 0; i < block.filters; i += kRowsTogether) {
      const PanelProduct<Number, 1, kRowsTogether> product = {
          grads + i * pixels, {columns, pixels}, 0, {kernel + i * kDepth, kDepth}, pixels, ahead};
      product.compute(kRowsTogether, block.depth / kLanes<Number>);
    }
  }

  void mix_gradients(int64_t sample, int64_t samples, const ExpertBlock& block,
                     Number* kernels) const {
    const int64_t step = problem_.filters * problem_.depth(), experts = problem_.experts;
    Number* products = kernels + kSamples * kKernelStep<Number>;
    Number* gradients =
        static_cast<Number*>(problem_.grad_experts) + block.filter * problem_.depth() + block.start;
    const Rows<Number> rows = this->experts(block);
    for (int64_t i = 0; i < block.filters; ++i) {
      const Rows<Number> kernel = {kernels + i * kDepth, kKernelStep<Number>};
      const int64_t row = i * problem_.depth();
      const bool adds = sample > 0 || problem_.adds;
      WeightedSums<Number>{{this->shares(sample), 1, experts},
                           kernel,
                           {gradients + row, step},
                           samples,
                           experts,
                           adds}
          .compute(block.depth);
      DotProducts<Number>{kernel, {rows.data + row, rows.step}, samples, experts, products}.compute(
          block.depth);
      Number* totals = share_gradients(sample, block.filter + i);
      for (int64_t x = 0; x < samples * experts; ++x) totals[x] += products[x];
    }
  }

  Number* share_gradients(int64_t sample, int64_t filter) const {
    return static_cast<Number*>(problem_.share_gradients) +
           (filter / kFiltersPerSum * problem_.samples + sample) * problem_.experts;
  }
};

// A task is a block of channels.
template <typename Number>
class InputGradient : public ExpertOperation<Number> {
  using Base = ExpertOperation<Number>;
  using Base::problem_;

 public:
  InputGradient(const ExpertConvolution& problem, int threads)
      : Base(problem, threads),
        channels_(
            ceil_div(problem.channels,
                     round_up(ceil_div(problem.channels, kDepth / problem.taps()), threads))) {}

  int64_t tasks() const { return ceil_div(problem_.channels, channels_); }

  int64_t scratch() const {
    return kSamples * (kKernelStep<Number> + columns_size() + rests_size()) +
           2 * height() * width();
  }

  void run(int64_t task, Number* kernels) const {
    Number* columns = kernels + kSamples * kKernelStep<Number>;
    Number* rests = columns + kSamples * columns_size();
    Number* planes = rests + kSamples * rests_size();
    const int64_t channel = task * channels_, taps = problem_.taps();
    const int64_t channels = smaller(channels_, problem_.channels - channel);
    for (int64_t sample = 0; sample < problem_.samples; sample += kSamples) {
      const int64_t samples = smaller(kSamples, problem_.samples - sample);
      std::fill_n(columns, kSamples * (columns_size() + rests_size()), Number(0));
      for (int64_t filter = 0; filter < problem_.filters; filter += kFilters) {
        const int64_t filters = smaller(kFilters, problem_.filters - filter);
        const ExpertBlock block = {filter, filters, channel * taps, channels * taps};
        Ahead ahead = ahead_after(block);
        this->mix(sample, samples, block, kernels);
        for (int64_t i = 0; i < samples; ++i)
          multiply(sample + i, block, kernels + i * kKernelStep<Number>,
                   columns + i * columns_size(), rests + i * rests_size(), ahead);
      }
      for (int64_t i = 0; i < samples; ++i) {
        add_rests(channels * taps, rests + i * rests_size(), columns + i * columns_size());
        for (int64_t c = channel; c < channel + channels; ++c) {
          Number* from = columns + i * columns_size() + (c - channel) * taps * problem_.pixels();
          if (problem_.scale) scale(sample + i, c, from, planes + height() * width());
          fold(from, planes, (sample + i) * problem_.channels + c);
        }
      }
    }
  }

 private:
  int64_t height() const { return problem_.rows.length + 2 * problem_.rows.padding; }

  int64_t width() const { return problem_.columns.length + 2 * problem_.columns.padding; }

  int64_t rest() const { return problem_.pixels() % kLanes<Number>; }

  int64_t columns_size() const { return channels_ * problem_.taps() * problem_.pixels(); }

  int64_t rests_size() const { return rest() * kDepth; }

  Ahead ahead_after(const ExpertBlock& block) const {
    const int64_t filter = block.filter + block.filters;
    const int64_t filters = smaller(kFilters, problem_.filters - filter);
    if (filters <= 0) return {};
    return this->ahead_of({filter, filters, block.start, block.depth});
  }

  void multiply(int64_t sample, const ExpertBlock& block, Number* kernel, Number* columns,
                Number* rests, Ahead& ahead) const {
    const int64_t pixels = problem_.pixels(), filters = problem_.filters;
    Number* grads = static_cast<Number*>(problem_.grad_panels) + sample * filters * pixels;
    const PanelProduct<Number, 1, kDepth> product = {
        kernel, {grads, filters}, block.filter, {columns, pixels}, block.filters, ahead};
    product.compute(block.depth, pixels / kLanes<Number>);
    WeightedSums<Number>{{grads + (pixels - rest()) * filters + block.filter, filters, 1},
                         {kernel, kDepth},
                         {rests, kDepth},
                         block.filters,
                         rest(),
                         true}
        .compute(block.depth);
  }

  void add_rests(int64_t depth, const Number* rests, Number* columns) const {
    const int64_t first = problem_.pixels() - rest();
    for (int64_t t = 0; t < depth; ++t) {
      for (int64_t p = 0; p < rest(); ++p)
        columns[t * problem_.pixels() + first + p] = rests[p * kDepth + t];
    }
  }

  // Multiplies a channel's columns by the scale, whose gradients are their products with the image.
  void scale(int64_t sample, int64_t channel, Number* columns, Number* plane) const {
    const Unfold<Number> unfold(problem_, 1);
    unfold.read_plane(sample, channel, plane);
    const int64_t first = sample * problem_.depth() + channel * problem_.taps();
    const Number* scale = static_cast<const Number*>(problem_.scale) + first;
    Number* gradient = static_cast<Number*>(problem_.scale_gradients) + first;
    for (int64_t t = 0; t < problem_.taps(); ++t) {
      Number sum = 0;
      unfold.for_pixels(t, [&](int64_t place) {
        sum += *columns * plane[place];
        *columns++ *= scale[t];
      });
      gradient[t] = sum;
    }
  }

  // Sums what all elements of the kernel give to a pixel of a channel.
  void fold(const Number* from, Number* plane, int64_t channel) const {
    std::fill_n(plane, height() * width(), Number(0));
    const Unfold<Number> unfold(problem_, 1);
    for (int64_t t = 0; t < problem_.taps(); ++t)
      unfold.for_pixels(t, [&](int64_t place) { plane[place] += *from++; });
    const WindowSide &rows = problem_.rows, &columns = problem_.columns;
    Number* to = static_cast<Number*>(problem_.grad_input) + channel * rows.length * columns.length;
    for (int64_t y = 0; y < rows.length; ++y)
      std::copy_n(plane + (y + rows.padding) * width() + columns.padding, columns.length,
                  to + y * columns.length);
  }

  const int64_t channels_;  // of a task
};

}  // namespace rednet

#define REDNET_EXPORT_EXPERT_OPERATION(name, Operation) \
  REDNET_EXPORT(name, rednet::ExpertConvolution, rednet::Operation)
#define REDNET_EXPORT_EXPERT_CONV(suffix, Number)                                           \
  REDNET_EXPORT_EXPERT_OPERATION(rednet_unfold_##suffix, Unfold<Number>)                    \
  REDNET_EXPORT_EXPERT_OPERATION(rednet_convolve_experts_##suffix, ConvolveExperts<Number>) \
  REDNET_EXPORT_EXPERT_OPERATION(rednet_pack_gradient_##suffix, PackGradient<Number>)       \
  REDNET_EXPORT_EXPERT_OPERATION(rednet_expert_gradients_##suffix, ExpertGradients<Number>) \
  REDNET_EXPORT_EXPERT_OPERATION(rednet_input_gradient_##suffix, InputGradient<Number>)

REDNET_EXPORT_EXPERT_CONV(float64, double)
REDNET_EXPORT_EXPERT_CONV(float32, float)
