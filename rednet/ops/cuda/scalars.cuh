// The number types: how they are stored and what they are summed in. No header of CUDA's toolkit is needed, so the
// compiler finds all of the source here, wherever it is installed.

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <class T>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<double> {
    using type = double;
};

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;

DEVICE double widen(double value) { return value; }
DEVICE float widen(float value) { return value; }
DEVICE float widen(float16 value) { return float_from_half(value.bits); }
DEVICE float widen(bfloat16 value) { return float_from_bits(static_cast<unsigned>(value.bits) << 16); }

DEVICE void narrow(double value, double& result) { result = value; }
DEVICE void narrow(float value, float& result) { result = value; }
DEVICE void narrow(float value, float16& result) { result.bits = half_from_float(value); }
DEVICE void narrow(float value, bfloat16& result) { result.bits = bfloat_from_float(value); }

// Neighbors in memory that one instruction loads or stores; the address must be a multiple of their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

template <int N, class T>
DEVICE Pack<T, N> load_pack(const T* address) {
    return *reinterpret_cast<const Pack<T, N>*>(address);
}

template <int N, class T>
DEVICE void store_pack(T* address, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(address) = pack;
}
