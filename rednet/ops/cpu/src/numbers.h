// The stored number types, and how they become the type that sums are made in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rednet {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// float64 is summed in float64, everything else in float32.
template <typename Stored>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline double widen(double number) { return number; }

inline float widen(float number) { return number; }

inline float widen(BFloat16 number) { return float_of(uint32_t(number.bits) << 16); }

// All cases are computed and one is chosen, without a branch, so that loops become vector code. (Not every compiler and
// processor that we serve converts float16 in hardware.)
inline float widen(Half number) {
  const uint32_t exponent_shift = uint32_t(127 - 15) << 23;
  const uint32_t magnitude = uint32_t(number.bits & 0x7fff) << 13;
  const uint32_t exponent = magnitude & 0x0f800000;
  const uint32_t normal = magnitude + exponent_shift;
  const uint32_t infinite_or_nan = normal + exponent_shift;
  const uint32_t subnormal =
      bits_of(float_of(normal + (1u << 23)) - float_of(exponent_shift + (1u << 23)));
  const uint32_t chosen =
      exponent == 0x0f800000 ? infinite_or_nan : (exponent == 0 ? subnormal : normal);
  return float_of(chosen | uint32_t(number.bits & 0x8000) << 16);
}

inline void narrow(double sum, double& number) { number = sum; }

inline void narrow(float sum, float& number) { number = sum; }

// To nearest, ties to even, as everywhere in PyTorch.
inline void narrow(float sum, BFloat16& number) {
  const uint32_t bits = bits_of(sum);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  number.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline void narrow(float sum, Half& number) {
  const uint32_t bits = bits_of(sum);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t normal =
      (magnitude - (uint32_t(127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 pushes the bits that float16 cannot hold out of the mantissa, rounding them.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t infinite_or_nan = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const uint32_t chosen = magnitude >= (uint32_t(127 + 16) << 23)
                              ? infinite_or_nan
                              : (magnitude < (uint32_t(127 - 14) << 23) ? subnormal : normal);
  number.bits = uint16_t(chosen | (bits >> 16 & 0x8000));
}

// Reads `count` numbers that lie `step` apart.
template <typename Stored, typename Sum>
void load(Sum* to, const Stored* from, ptrdiff_t step, int64_t count) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i * step]);
  }
}

// Writes `count` numbers `step` apart.
template <typename Stored, typename Sum>
void store(Stored* to, const Sum* from, ptrdiff_t step, int64_t count) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) narrow(from[i], to[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) narrow(from[i], to[i * step]);
  }
}

}  // namespace rednet
