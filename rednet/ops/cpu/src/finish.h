// What follows a convolution in a network, in one pass over memory: a batch norm in eval mode, a sum and a ReLU.
//
// A map is a row of numbers in which the channels repeat. Its pieces are as long as whole vectors and whole pixels fit
// into each other, so that no pixel needs a remainder of its own. Every number is computed by one thread, from its own.
#pragma once

#include <cmath>
#include <limits>

#include "arithmetic.h"
#include "operations.h"
#include "vectors.h"

namespace rednet {

// What the caller hands over (loader.py has the same structure). Maps are dense, with the channels of a pixel side by
// side.
struct Finishing {
  int64_t pixels, channels;
  const void* from;
  void* to;                                     // may be `from`
  const void* added;                            // a map, or null
  const void *mean, *variance, *weight, *bias;  // of the norm, (channels,), or null
  double epsilon;
  int64_t rectifies;

  int64_t multiply_adds() const { return pixels * channels; }
};

// What a norm makes of a channel's numbers: they times a scale plus a shift.
template <typename Number>
void find_scale(const Finishing& map, int64_t channel, Number& scale, Number& shift) {
  const auto entry = [&](const void* numbers, Number absent) {
    return numbers ? static_cast<const Number*>(numbers)[channel] : absent;
  };
  scale = entry(map.weight, 1) / std::sqrt(entry(map.variance, 1) + Number(map.epsilon));
  shift = entry(map.bias, 0) - entry(map.mean, 0) * scale;
}

// No number of a finished map is less.
template <typename Number>
Number least(const Finishing& map) {
  return map.rectifies ? 0 : -std::numeric_limits<Number>::infinity();
}

// Finishes numbers that lie side by side, each with a scale and a shift of its own.
template <bool adds, typename Number>
void finish_numbers(const Number* from, const Number* scale, const Number* shift,
                    const Number* added, Number least, int64_t count, Number* to) {
  constexpr int64_t lanes = kLanes<Number>;
  const Vector<Number> lower = least - Vector<Number>{};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Vector<Number> number = read(from + i) * read(scale + i) + read(shift + i);
    if (adds) number += read(added + i);
    write(to + i, number < lower ? lower : number);  // NaN stays
  }
  for (; i < count; ++i) {
    const Number number = from[i] * scale[i] + shift[i] + (adds ? added[i] : 0);
    to[i] = number < least ? least : number;
  }
}

template <typename Number>
class Finish {
  static constexpr int64_t lanes = kLanes<Number>;
  static constexpr int64_t kNumbers =
      1 << 15;  // in a task: enough to make up for computing the scale

 public:
  using Sum = Number;

  Finish(const Finishing& map, int threads)
      : map_(map),
        period_(map.channels * (lanes / common_divisor(map.channels, lanes))),
        block_(round_up(larger(kNumbers, ceil_div(map.pixels * map.channels, threads)), period_)) {}

  int64_t tasks() const { return ceil_div(map_.pixels * map_.channels, block_); }

  int64_t scratch() const { return 2 * period_; }

  void run(int64_t index, Number* scratch) const {
    Number *scale = scratch, *shift = scratch + period_;
    repeat_scale(scale, shift);
    const int64_t end = smaller((index + 1) * block_, map_.pixels * map_.channels);
    for (int64_t first = index * block_; first < end; first += period_) {
      const int64_t count = smaller(period_, end - first);
      if (map_.added)
        finish<true>(scale, shift, first, count);
      else
        finish<false>(scale, shift, first, count);
    }
  }

 private:
  static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

  void repeat_scale(Number* scale, Number* shift) const {
    for (int64_t c = 0; c < map_.channels; ++c) find_scale(map_, c, scale[c], shift[c]);
    for (int64_t i = map_.channels; i < period_; ++i) {
      scale[i] = scale[i - map_.channels];
      shift[i] = shift[i - map_.channels];
    }
  }

  template <bool adds>
  void finish(const Number* scale, const Number* shift, int64_t first, int64_t count) const {
    const Number* added = static_cast<const Number*>(map_.added);
    finish_numbers<adds>(static_cast<const Number*>(map_.from) + first, scale, shift,
                         adds ? added + first : nullptr, least<Number>(map_), count,
                         static_cast<Number*>(map_.to) + first);
  }

  const Finishing& map_;
  int64_t period_, block_;
};

}  // namespace rednet

#define REDNET_EXPORT_FINISH(suffix, Number) \
  REDNET_EXPORT(rednet_finish_##suffix, rednet::Finishing, rednet::Finish<Number>)

REDNET_EXPORT_FINISH(float64, double)
REDNET_EXPORT_FINISH(float32, float)
