// Kernels that are mixed from experts, and the gradients of the mixture: products of matrices of which all but one side
// are a few rows. docs/cpu_kernel.md says what that is for.
//
// A task is a piece of all rows. It reads each number of them once from memory, and what is used again from the cache.
// Every number is computed by one thread, in one order.
#pragma once

#include "arithmetic.h"
#include "operations.h"
#include "vectors.h"

namespace rednet {

// ---- what the caller hands over (loader.py has the same structures)

// Steps are in numbers, not bytes. Experts and kernels have a column step of 1.
struct Matrix {
  void* data;
  int64_t row_step, column_step;
};

struct Mixture {
  int64_t samples, experts, numbers;  // numbers in a kernel
  int64_t piece;                      // how many of them a task treats
  Matrix shares;                      // (samples, experts): of each expert in each sample's kernel
  Matrix expert_rows;                 // (experts, numbers)
  Matrix kernel_rows;                 // (samples, numbers): the kernels or their gradient
  Matrix expert_gradients;            // (experts, numbers): filled, or added to
  Matrix share_gradients;  // (pieces, samples * experts): those that each piece contributes
  int64_t adds;            // whether expert_gradients are added to

  int64_t multiply_adds() const { return samples * experts * numbers; }
};

// ---- blocks of rows and vectors, whose sums stay in registers

constexpr int kBlockRows = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockColumns = 4;
#else
constexpr int kBlockColumns = 2;
#endif

// A number or a vector of them.
template <typename Pack, typename Number>
inline Pack read_pack(const Number* from) {
  Pack pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}

template <typename Number>
struct Rows {
  Number* data;
  int64_t step;

  Number* operator[](int64_t row) const { return data + row * step; }
};

template <typename Number>
struct Coefficients {
  const Number* data;
  int64_t row_step, column_step;

  Number at(int64_t row, int64_t column) const {
    return data[row * row_step + column * column_step];
  }
};

// ---- sums[i] = sum over t of coefficients[i, t] * terms[t]

template <typename Number>
struct WeightedSums {
  Coefficients<Number> coefficients;
  Rows<Number> terms, sums;
  int64_t term_count, sum_count;
  bool adds;

  void compute(int64_t numbers) const {
    in_blocks<kBlockRows>(sum_count, [&](auto count, int64_t first) {
      constexpr int lanes = kLanes<Number>, step = lanes * kBlockColumns;
      int64_t x = 0;
      for (; x + step <= numbers; x += step)
        sum_block<Vector<Number>, count, kBlockColumns>(first, x);
      for (; x + lanes <= numbers; x += lanes) sum_block<Vector<Number>, count, 1>(first, x);
      for (; x < numbers; ++x) sum_block<Number, count, 1>(first, x);
    });
  }

 private:
  template <typename Pack, int Count, int Columns>
  void sum_block(int64_t first, int64_t x) const {
    constexpr int width = sizeof(Pack) / sizeof(Number);
    Pack totals[Count][Columns];
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) {
#pragma GCC unroll 16
      for (int c = 0; c < Columns; ++c)
        totals[i][c] = adds ? read_pack<Pack>(sums[first + i] + x + c * width) : Pack{};
    }
    for (int64_t t = 0; t < term_count; ++t) {
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) {
        const Number coefficient = coefficients.at(first + i, t);
#pragma GCC unroll 16
        for (int c = 0; c < Columns; ++c)
          totals[i][c] += coefficient * read_pack<Pack>(terms[t] + x + c * width);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) std::memcpy(sums[first + i] + x, totals[i], sizeof totals[i]);
  }
};

// ---- products[i * right_count + j] = sum over all numbers of left[i] * right[j]

template <typename Number>
struct DotProducts {
  Rows<Number> left, right;
  int64_t left_count, right_count;
  Number* products;

  void compute(int64_t numbers) const {
    in_blocks<kBlockRows>(left_count, [&](auto rows, int64_t i) {
      in_blocks<kBlockColumns>(right_count, [&](auto columns, int64_t j) {
        multiply_block<rows, columns>(i, j, numbers);
      });
    });
  }

 private:
  static constexpr int lanes = kLanes<Number>;

  template <int Count, int Columns>
  void multiply_block(int64_t i, int64_t j, int64_t numbers) const {
    Vector<Number> totals[Count * Columns] = {};
    int64_t x = 0;
    for (; x + lanes <= numbers; x += lanes) {
#pragma GCC unroll 16
      for (int p = 0; p < Count * Columns; ++p)
        totals[p] += read(left[i + p / Columns] + x) * read(right[j + p % Columns] + x);
    }
    Number sums[round_up_to_lanes(Count * Columns)];
    for (int p = 0; p < Count * Columns; p += lanes) {
      write(sums + p, sums_of_lanes<Number>([&](size_t lane) {
              return p + int(lane) < Count * Columns ? totals[p + lane] : Vector<Number>{};
            }));
    }
    for (int p = 0; p < Count * Columns; ++p) {
      const Number *a = left[i + p / Columns], *b = right[j + p % Columns];
      for (int64_t rest = x; rest < numbers; ++rest) sums[p] += a[rest] * b[rest];
      products[(i + p / Columns) * right_count + j + p % Columns] = sums[p];
    }
  }

  static constexpr int round_up_to_lanes(int count) { return (count + lanes - 1) / lanes * lanes; }
};

// ---- the operations

template <typename Number>
class MixingOperation {
 public:
  using Sum = Number;

  MixingOperation(const Mixture& mixture, int) : mixture_(mixture) {}

  int64_t tasks() const { return ceil_div(mixture_.numbers, mixture_.piece); }

  int64_t scratch() const { return 0; }

 protected:
  int64_t size(int64_t task) const {
    return smaller(mixture_.piece, mixture_.numbers - task * mixture_.piece);
  }

  Rows<Number> rows(const Matrix& matrix, int64_t task) const {
    return {static_cast<Number*>(matrix.data) + task * mixture_.piece, matrix.row_step};
  }

  const Number* shares() const { return static_cast<const Number*>(mixture_.shares.data); }

  const Mixture& mixture_;
};

template <typename Number>
class Mix : public MixingOperation<Number> {
  using Base = MixingOperation<Number>;
  using Base::mixture_;

 public:
  using Base::Base;

  void run(int64_t task, Number*) const {
    const Matrix& shares = mixture_.shares;
    const WeightedSums<Number> kernels = {{this->shares(), shares.row_step, shares.column_step},
                                          this->rows(mixture_.expert_rows, task),
                                          this->rows(mixture_.kernel_rows, task),
                                          mixture_.experts,
                                          mixture_.samples,
                                          false};
    kernels.compute(this->size(task));
  }
};

template <typename Number>
class MixGradients : public MixingOperation<Number> {
  using Base = MixingOperation<Number>;
  using Base::mixture_;

 public:
  using Base::Base;

  void run(int64_t task, Number*) const {
    const Matrix &shares = mixture_.shares, &products = mixture_.share_gradients;
    const Rows<Number> kernels = this->rows(mixture_.kernel_rows, task);
    const WeightedSums<Number> gradients = {{this->shares(), shares.column_step, shares.row_step},
                                            kernels,
                                            this->rows(mixture_.expert_gradients, task),
                                            mixture_.samples,
                                            mixture_.experts,
                                            mixture_.adds != 0};
    gradients.compute(this->size(task));
    const DotProducts<Number> parts = {
        kernels, this->rows(mixture_.expert_rows, task), mixture_.samples, mixture_.experts,
        static_cast<Number*>(products.data) + task * products.row_step};
    parts.compute(this->size(task));
  }
};

}  // namespace rednet

#define REDNET_EXPORT_MIXING(suffix, Number)                               \
  REDNET_EXPORT(rednet_mix_##suffix, rednet::Mixture, rednet::Mix<Number>) \
  REDNET_EXPORT(rednet_mix_gradients_##suffix, rednet::Mixture, rednet::MixGradients<Number>)

REDNET_EXPORT_MIXING(float64, double)
REDNET_EXPORT_MIXING(float32, float)
