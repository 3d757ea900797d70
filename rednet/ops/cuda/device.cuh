// What only a GPU can do. The tests compile the other sources for the CPU with another file in place of this one.

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)

// The type that a copy of `BYTES` bytes moves.
template <int BYTES>
struct UnitOf;
template <>
struct UnitOf<16> {
    using type = uint4;
};
template <>
struct UnitOf<8> {
    using type = uint2;
};
template <>
struct UnitOf<4> {
    using type = unsigned;
};
template <>
struct UnitOf<2> {
    using type = unsigned short;
};

// Dynamic shared memory, aligned to 16 bytes.
DEVICE unsigned char* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<unsigned char*>(memory);
}

// Copies 2, 4, 8 or 16 bytes to shared memory; the caller may read them after wait_for_copies() and a barrier.
template <int BYTES>
DEVICE void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    if constexpr (BYTES >= 4) {
        const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(BYTES) : "memory");
        return;
    }
#endif
    using Unit = typename UnitOf<BYTES>::type;
    *static_cast<Unit*>(shared) = *static_cast<const Unit*>(global);
}

DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

DEVICE void barrier() { __syncthreads(); }

DEVICE unsigned multiply_high(unsigned left, unsigned right) { return __umulhi(left, right); }

DEVICE float float_from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE unsigned short half_from_float(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Rounds to the nearest, ties to even, as half_from_float does.
DEVICE unsigned short bfloat_from_float(float value) {
#if __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    if (value != value) return 0x7FFF;
    const unsigned bits = __float_as_uint(value);
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#endif
}

DEVICE float float_from_bits(unsigned bits) { return __uint_as_float(bits); }
