// The gradients of a batch norm in training and the ReLU after it, in two passes over the norm's input and the gradient
// of the ReLU's output: sums over the pixels, then the gradient of the input. The ReLU's output is not read: its sign
// follows from the norm's input.
#pragma once

#include <cstring>

#include "arithmetic.h"
#include "operations.h"
#include "vectors.h"

namespace rednet {

// What the caller hands over (loader.py has the same structure). Maps are dense, with the channels of a pixel side by
// side. What belongs to a channel is repeated up to the period, a multiple of the channels and of all vectors.
struct NormGradient {
  int64_t pixels, channels, period;
  int64_t block;  // numbers in a task, a multiple of the period
  const void *input, *grad;
  void* grad_input;
  const void *mean, *scale, *shift;  // the norm is input * scale + shift
  const void *slope, *offset;        // grad_input is grad * scale + (input - mean) * slope + offset
  void* sums;                        // of a task: of grad and of grad * (input - mean), (2, period)

  int64_t multiply_adds() const { return 2 * pixels * channels; }
};

// A walk over the numbers of a task, vector by vector.
template <typename Number>
class NormPass {
  static constexpr int64_t lanes = kLanes<Number>;

 public:
  using Sum = Number;

  NormPass(const NormGradient& map, int) : map_(map), numbers_(map.pixels * map.channels) {}

  int64_t tasks() const { return ceil_div(numbers_, map_.block); }

  int64_t scratch() const { return 0; }

 protected:
  static const Number* at(const void* numbers, int64_t index) {
    return static_cast<const Number*>(numbers) + index;
  }

  // What the ReLU lets through.
  Vector<Number> passed(int64_t number, int64_t channel) const {
    const Vector<Number> zero{};
    const Vector<Number> norm = read(at(map_.input, number)) * read(at(map_.scale, channel)) +
                                read(at(map_.shift, channel));
    return norm <= zero ? zero : read(at(map_.grad, number));
  }

  Number passed_number(int64_t number, int64_t channel) const {
    const Number norm =
        *at(map_.input, number) * *at(map_.scale, channel) + *at(map_.shift, channel);
    return norm <= 0 ? 0 : *at(map_.grad, number);
  }

  Vector<Number> centered(int64_t number, int64_t channel) const {
    return read(at(map_.input, number)) - read(at(map_.mean, channel));
  }

  Number centered_number(int64_t number, int64_t channel) const {
    return *at(map_.input, number) - *at(map_.mean, channel);
  }

  template <typename OfVector, typename OfNumber>
  void walk(int64_t index, const OfVector& of_vector, const OfNumber& of_number) const {
    const int64_t end = smaller((index + 1) * map_.block, numbers_);
    for (int64_t first = index * map_.block; first < end; first += map_.period) {
      const int64_t count = smaller(map_.period, end - first);
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) of_vector(first + i, i);
      for (; i < count; ++i) of_number(first + i, i);
    }
  }

  const NormGradient& map_;
  int64_t numbers_;
};

template <typename Number>
struct NormSums : NormPass<Number> {
  using NormPass<Number>::NormPass;

  void run(int64_t index, Number*) const {
    const NormGradient& map = this->map_;
    Number* of_grad = static_cast<Number*>(map.sums) + 2 * index * map.period;
    Number* of_product = of_grad + map.period;
    std::memset(of_grad, 0, 2 * map.period * sizeof(Number));
    this->walk(
        index,
        [&](int64_t number, int64_t channel) {
          const Vector<Number> grad = this->passed(number, channel);
          write(of_grad + channel, read(of_grad + channel) + grad);
          write(of_product + channel,
                read(of_product + channel) + grad * this->centered(number, channel));
        },
        [&](int64_t number, int64_t channel) {
          const Number grad = this->passed_number(number, channel);
          of_grad[channel] += grad;
          of_product[channel] += grad * this->centered_number(number, channel);
        });
  }
};

template <typename Number>
struct NormInputGradient : NormPass<Number> {
  using NormPass<Number>::NormPass;

  void run(int64_t index, Number*) const {
    const NormGradient& map = this->map_;
    Number* to = static_cast<Number*>(map.grad_input);
    this->walk(
        index,
        [&](int64_t number, int64_t channel) {
          write(to + number,
                this->passed(number, channel) * read(this->at(map.scale, channel)) +
                    this->centered(number, channel) * read(this->at(map.slope, channel)) +
                    read(this->at(map.offset, channel)));
        },
        [&](int64_t number, int64_t channel) {
          to[number] = this->passed_number(number, channel) * *this->at(map.scale, channel) +
                       this->centered_number(number, channel) * *this->at(map.slope, channel) +
                       *this->at(map.offset, channel);
        });
  }
};

}  // namespace rednet

#define REDNET_EXPORT_NORM_GRADIENT(suffix, Number)                                        \
  REDNET_EXPORT(rednet_norm_sums_##suffix, rednet::NormGradient, rednet::NormSums<Number>) \
  REDNET_EXPORT(rednet_norm_input_gradient_##suffix, rednet::NormGradient,                 \
                rednet::NormInputGradient<Number>)

REDNET_EXPORT_NORM_GRADIENT(float64, double)
REDNET_EXPORT_NORM_GRADIENT(float32, float)
