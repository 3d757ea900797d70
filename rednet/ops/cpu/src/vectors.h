// Vectors of the processor's width, and the one way in which their lanes are moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace rednet {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else  // SSE2, NEON
constexpr int kVectorBytes = 16;
#endif

constexpr int kLineBytes = 64;

// Numbers in a cache line.
template <typename Number>
constexpr int kLine = kLineBytes / sizeof(Number);

template <typename Number>
struct VectorOf {
  typedef Number type __attribute__((vector_size(kVectorBytes)));
  typedef Number unaligned
      __attribute__((vector_size(kVectorBytes), aligned(sizeof(Number)), may_alias));
};

template <typename Number>
using Vector = typename VectorOf<Number>::type;

template <typename Number>
constexpr int kLanes = kVectorBytes / sizeof(Number);

template <typename Number>
inline Vector<Number> read(const Number* from) {
  return *reinterpret_cast<const typename VectorOf<Number>::unaligned*>(from);
}

template <typename Number>
inline void write(Number* to, Vector<Number> vector) {
  *reinterpret_cast<typename VectorOf<Number>::unaligned*>(to) = vector;
}

// Lane i of the result is lane numbers[i] of a and b laid end to end.
template <typename Number, size_t... numbers>
inline Vector<Number> pick(Vector<Number> a, Vector<Number> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, numbers...);
#else
  typedef std::conditional_t<sizeof(Number) == 8, int64_t, int32_t> Index
      __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Index{numbers...});
#endif
}

// Vectors a and b, cut into blocks of `half` lanes, are a 2 x 2 matrix of blocks, repeated: (a0 a1) over (b0 b1). Its
// transpose has the rows (a0 b0) and (a1 b1).
template <typename Number, size_t half>
struct Blocks {
  using Lanes = std::make_index_sequence<kLanes<Number>>;

  static Vector<Number> first(Vector<Number> a, Vector<Number> b) { return first(a, b, Lanes()); }

  static Vector<Number> second(Vector<Number> a, Vector<Number> b) { return second(a, b, Lanes()); }

 private:
  template <size_t... lane>
  static Vector<Number> first(Vector<Number> a, Vector<Number> b, std::index_sequence<lane...>) {
    return pick<Number, (lane & half ? lane - half + sizeof...(lane) : lane)...>(a, b);
  }

  template <size_t... lane>
  static Vector<Number> second(Vector<Number> a, Vector<Number> b, std::index_sequence<lane...>) {
    return pick<Number, (lane & half ? lane + sizeof...(lane) : lane + half)...>(a, b);
  }
};

// Transposes a square of numbers in place.
template <typename Number, size_t half = kLanes<Number> / 2>
inline void transpose(Vector<Number> (&rows)[kLanes<Number>]) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kLanes<Number>; ++i) {
    if (i & half) continue;
    const Vector<Number> a = rows[i], b = rows[i + half];
    rows[i] = Blocks<Number, half>::first(a, b);
    rows[i + half] = Blocks<Number, half>::second(a, b);
  }
  if constexpr (half > 1) transpose<Number, half / 2>(rows);
}

// Lane i of the result is the sum of all lanes of the vector term(i).
template <typename Number, size_t first = 0, size_t count = kLanes<Number>, typename Term>
inline Vector<Number> sums_of_lanes(const Term& term) {
  if constexpr (count == 1) {
    return term(first);
  } else {
    constexpr size_t half = count / 2;
    const Vector<Number> a = sums_of_lanes<Number, first, half>(term);
    const Vector<Number> b = sums_of_lanes<Number, first + half, half>(term);
    return Blocks<Number, half>::first(a, b) + Blocks<Number, half>::second(a, b);
  }
}

}  // namespace rednet
