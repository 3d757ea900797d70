// Follows the kernel's source: what cuLaunchKernel is to a GPU.

static const void* const* kernel_arguments;

template <class T>
static const T& argument(int index) {
    return *static_cast<const T*>(kernel_arguments[index]);
}

static void call_kernel() {
    involution(argument<const Scalar*>(0), argument<const Scalar*>(1), argument<Scalar*>(2), argument<Problem>(3));
}

// Launches a one-dimensional grid; `arguments` points to the values, as cuLaunchKernel takes them. Returns what went
// wrong, or null.
extern "C" const char* launch(const void* const* arguments, int blocks, int threads, std::size_t shared_bytes,
                              unsigned seed) {
    if (blocks < 1 || threads < 1 || threads > THREADS) return "a launch that the kernel is not compiled for";
    kernel_arguments = arguments;
    return emulator::run_grid(call_kernel, blocks, threads, shared_bytes, seed);
}
