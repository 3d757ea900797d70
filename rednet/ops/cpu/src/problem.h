// An involution as the caller describes it (loader.py has the same structures).
#pragma once

#include <cstddef>
#include <cstdint>

namespace rednet {

// One side of the window, the vertical or the horizontal one.
struct Side {
  int64_t input, output, kernel, stride, padding, dilation;

  int64_t reach() const { return (kernel - 1) * dilation; }
};

// Strides are in numbers, not bytes; an image uses the first four.
struct Tensor {
  void* data;
  int64_t strides[6];
};

struct Problem {
  int64_t batch, channels, groups;
  Side vertical, horizontal;
  Tensor image;   // (N, C, H, W): the input or its gradient
  Tensor weight;  // (N, G, Kh, Kw, Ho, Wo): the weight or its gradient
  Tensor pixels;  // (N, C, Ho, Wo): the output or its gradient

  int64_t group_channels() const { return channels / groups; }
  int64_t taps() const { return vertical.kernel * horizontal.kernel; }

  int64_t multiply_adds() const {
    return batch * channels * taps() * vertical.output * horizontal.output;
  }
};

template <typename Stored>
Stored* weight_row(const Problem& problem, int64_t n, int64_t g, int64_t kh, int64_t h) {
  const int64_t* s = problem.weight.strides;
  return static_cast<Stored*>(problem.weight.data) + n * s[0] + g * s[1] + kh * s[2] + h * s[4];
}

}  // namespace rednet
