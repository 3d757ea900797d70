// Products of matrices whose second factor and result are rows of vectors.
#pragma once

#include "arithmetic.h"
#include "vectors.h"

namespace rednet {

// Rows and vectors of a result that are made at once, in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRowsTogether = 8, kVectorsTogether = 3;
#else
constexpr int kRowsTogether = 4, kVectorsTogether = 2;
#endif

// to[row, x] = sum over i < count of left[row, i] * right[i, x]. A step leads from one row, or column, to the next.
template <typename Number>
struct Product {
  const Number* left;
  ptrdiff_t left_row, left_column;
  const Number* right;
  ptrdiff_t right_row;
  Number* to;
  ptrdiff_t to_row;
  int64_t count;
};

// Makes rows from number `row` on of vectors from number x on, which begin with the vector initial(row, x).
template <int rows, int vectors, typename Number, typename Initial>
inline void multiply(const Product<Number>& product, int64_t row, int64_t x,
                     const Initial& initial) {
  constexpr int lanes = kLanes<Number>;
  Vector<Number> total[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) total[r][v] = initial(row + r, x + v * lanes);
  }
  // With a pointer for each row, all advance by one register.
  const Number* left[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) left[r] = product.left + (row + r) * product.left_row;
  const Number* right = product.right + x;
  ptrdiff_t column = 0;
#pragma GCC unroll 2
  for (int64_t i = 0; i < product.count;
       ++i, column += product.left_column, right += product.right_row) {
    Vector<Number> factors[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) factors[v] = read(right + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vector<Number> factor = left[r][column] - Vector<Number>{};
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) total[r][v] += factor * factors[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v)
      write(product.to + (row + r) * product.to_row + x + v * lanes, total[r][v]);
  }
}

// Makes all rows of some vectors.
template <int vectors, typename Number, typename Initial>
void multiply_columns(const Product<Number>& product, int64_t rows, int64_t x,
                      const Initial& initial) {
  in_blocks_and_rest<kRowsTogether>(rows, [&](auto together, int64_t row) {
    multiply<together(), vectors>(product, row, x, initial);
  });
}

// Makes all rows of a whole number of vectors, `columns` numbers.
template <typename Number, typename Initial>
void multiply_all(const Product<Number>& product, int64_t rows, int64_t columns,
                  const Initial& initial) {
  in_blocks<kVectorsTogether>(columns / kLanes<Number>, [&](auto vectors, int64_t vector) {
    multiply_columns<vectors()>(product, rows, vector * kLanes<Number>, initial);
  });
}

// Adds the product to what is there.
template <typename Number>
void add_product(const Product<Number>& product, int64_t rows, int64_t columns) {
  multiply_all(product, rows, columns,
               [&](int64_t row, int64_t x) { return read(product.to + row * product.to_row + x); });
}

}  // namespace rednet
