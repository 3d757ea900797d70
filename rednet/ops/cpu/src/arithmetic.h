// Arithmetic of whole numbers.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rednet {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks of up to `size` that cover `count` numbers; the last one overlaps its neighbor rather than be shorter.
inline int64_t block_start(int64_t index, int64_t size, int64_t count) {
  return larger(0, smaller(index * size, count - size));
}

template <int number>
using Constant = std::integral_constant<int, number>;

// Calls body(size, first) for blocks that cover `count`: as many as fit of the largest size, then of half of that ...
template <int Size, typename Body>
inline void in_blocks(int64_t count, const Body& body, int64_t first = 0) {
  for (; first + Size <= count; first += Size) body(Constant<Size>(), first);
  if constexpr (Size > 1) in_blocks<Size / 2>(count, body, first);
}

// Calls body(size, first) for blocks of the largest size, and for the rest at once.
template <int Size, typename Body>
inline void in_blocks_and_rest(int64_t count, const Body& body, int64_t first = 0) {
  for (; first + Size <= count; first += Size) body(Constant<Size>(), first);
  if constexpr (Size > 1) {
    if (first < count) in_blocks_and_rest<Size - 1>(count, body, first);
  }
}

}  // namespace rednet
