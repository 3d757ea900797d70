// Arithmetic of whole numbers.
#pragma once

#include <cstdint>

namespace rednet {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks of up to `size` that cover `count` numbers; the last one overlaps its neighbor rather than be shorter.
inline int64_t block_start(int64_t index, int64_t size, int64_t count) {
  return larger(0, smaller(index * size, count - size));
}

}  // namespace rednet
