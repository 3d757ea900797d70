// Stands in for rednet/ops/cuda/device.cuh: runs a kernel on the CPU, one block after the other, each thread of a block
// as a fiber. It is stricter than a GPU, so that mistakes show:
//
// - blocks, and the threads of a block between two barriers, run in random order;
// - shared memory has exactly the size that the launch asks for and starts as NaN;
// - an asynchronous copy arrives when its thread waits for it, not before, and to end without is an error;
// - a barrier that only some threads reach is an error.
//
// With -fsanitize=address or thread, the sanitizers are told which fiber runs and what a barrier orders. Races are found
// between the threads of a block only: blocks are ordered, because ThreadSanitizer forgets a fiber that is destroyed.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL static void
// For what a GPU does in hardware: none of it may count as synchronization of the kernel's threads.
#define HARDWARE __attribute__((no_sanitize("thread"), noinline)) static

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

template <int BYTES> struct UnitOf;
template <> struct UnitOf<16> { using type = uint4; };
template <> struct UnitOf<8> { using type = uint2; };
template <> struct UnitOf<4> { using type = unsigned; };
template <> struct UnitOf<2> { using type = unsigned short; };

namespace emulator {

constexpr std::size_t STACK_BYTES = 128 * 1024;

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    std::vector<Copy> copies;
    bool finished;
    int barriers;           // that it reached
    void* sanitizer;        // its name for the fiber
};

struct Index { int x; };

static Fiber* fibers;
static int running;
static Index block_index, block_size;
static unsigned char* shared;
static ucontext_t scheduler;
static void* scheduler_sanitizer;
static const void* scheduler_stack;
static std::size_t scheduler_stack_bytes;
static const char* error;
static char barrier_tags[2], block_end;

HARDWARE Index thread_index() { return {running}; }
HARDWARE Index current_block() { return block_index; }
HARDWARE Index threads_of_block() { return block_size; }
HARDWARE unsigned char* block_memory() { return shared; }
HARDWARE std::vector<Copy>& pending_copies() { return fibers[running].copies; }
// With one tag for all, who leaves a barrier last would be ordered after what the others did since.
HARDWARE void* next_barrier() { return &barrier_tags[fibers[running].barriers++ % 2]; }

// ---- threads

HARDWARE void resume(int thread) {
    running = thread;
    Fiber& fiber = fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_sanitizer, fiber.stack.get(), STACK_BYTES);
#elif defined(__SANITIZE_THREAD__)
    scheduler_sanitizer = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
#endif
}

HARDWARE void suspend() {
    Fiber& fiber = fibers[running];
#if defined(__SANITIZE_ADDRESS__)
    void** const stays = fiber.finished ? nullptr : &fiber.sanitizer;
    __sanitizer_start_switch_fiber(stays, scheduler_stack, scheduler_stack_bytes);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&fiber.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.sanitizer, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

HARDWARE void finish() {
    fibers[running].finished = true;
    if (!fibers[running].copies.empty()) error = "a thread ended before its copies arrived";
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&block_end);
#endif
    suspend();
}

static void (*kernel_body)();

static void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    kernel_body();
    finish();
}

HARDWARE void create(Fiber& fiber) {
    fiber.stack.reset(new char[STACK_BYTES]);
    fiber.finished = false;
    fiber.barriers = 0;
    fiber.sanitizer = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, thread_main, 0);
#if defined(__SANITIZE_THREAD__)
    fiber.sanitizer = __tsan_create_fiber(0);
#endif
}

// ---- blocks

// Runs every thread up to its next barrier or its end; true if they all ended.
HARDWARE bool run_to_barrier(std::vector<int>& order, std::mt19937& random) {
    std::shuffle(order.begin(), order.end(), random);
    int finished = 0;
    for (int thread : order) {
        resume(thread);
        finished += fibers[thread].finished;
    }
    if (finished != 0 && finished != static_cast<int>(order.size())) error = "only some threads reached a barrier";
    return finished != 0;
}

HARDWARE void run_block(int block, int threads, std::size_t shared_bytes, std::mt19937& random) {
    block_index = {block};
    block_size = {threads};
    // Never freed or reused: blocks run side by side on a GPU.
    shared = new unsigned char[shared_bytes];
    std::memset(shared, 0xFF, shared_bytes);
    const auto owner = std::make_unique<Fiber[]>(threads);
    fibers = owner.get();
    std::vector<int> order;
    for (int thread = 0; thread < threads; ++thread) {
        create(fibers[thread]);
        order.push_back(thread);
    }
    while (!run_to_barrier(order, random)) {}
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&block_end);
    for (int thread = 0; thread < threads; ++thread) __tsan_destroy_fiber(fibers[thread].sanitizer);
#endif
}

// Runs a grid; returns what went wrong, or null.
HARDWARE const char* run_grid(void (*body)(), int blocks, int threads, std::size_t shared_bytes, unsigned seed) {
    kernel_body = body;
    error = nullptr;
    std::mt19937 random(seed);
    std::vector<int> order;
    for (int block = 0; block < blocks; ++block) order.push_back(block);
    std::shuffle(order.begin(), order.end(), random);
    for (int block : order) {
        run_block(block, threads, shared_bytes, random);
        if (error != nullptr) break;
    }
    return error;
}

}  // namespace emulator

#define threadIdx emulator::thread_index()
#define blockIdx emulator::current_block()
#define blockDim emulator::threads_of_block()

static inline int min(int left, int right) { return std::min(left, right); }
static inline int max(int left, int right) { return std::max(left, right); }

// ---- what device.cuh offers

DEVICE unsigned char* shared_memory() { return emulator::block_memory(); }

DEVICE void barrier() {
#if defined(__SANITIZE_THREAD__)
    void* const tag = emulator::next_barrier();
    __tsan_release(tag);
#endif
    emulator::suspend();
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(tag);
#endif
}

template <int BYTES>
DEVICE void copy_async(void* shared, const void* global) {
    emulator::pending_copies().push_back({shared, global, BYTES});
}

template <int BYTES>
DEVICE void copy_unit(void* to, const void* from) {
    using Unit = typename UnitOf<BYTES>::type;
    *static_cast<Unit*>(to) = *static_cast<const Unit*>(from);
}

DEVICE void wait_for_copies() {
    for (const emulator::Copy& copy : emulator::pending_copies()) {
        if (copy.bytes == 16) copy_unit<16>(copy.to, copy.from);
        if (copy.bytes == 8) copy_unit<8>(copy.to, copy.from);
        if (copy.bytes == 4) copy_unit<4>(copy.to, copy.from);
        if (copy.bytes == 2) copy_unit<2>(copy.to, copy.from);
    }
    emulator::pending_copies().clear();
}

DEVICE unsigned multiply_high(unsigned left, unsigned right) {
    return static_cast<unsigned>(static_cast<unsigned long long>(left) * right >> 32);
}

DEVICE float float_from_bits(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE unsigned bits_from_float(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

DEVICE unsigned short bfloat_from_float(float value) {
    if (value != value) return 0x7FFF;
    const unsigned bits = bits_from_float(value);
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

DEVICE float float_from_half(unsigned short bits) {
    const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    float magnitude;
    if (exponent == 0x1F) magnitude = float_from_bits(0x7F800000u | static_cast<unsigned>(fraction) << 13);
    else if (exponent == 0) magnitude = std::ldexp(static_cast<float>(fraction), -24);
    else magnitude = std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

// nearbyint rounds to the nearest, ties to even.
DEVICE unsigned short half_from_float(float value) {
    const unsigned sign = bits_from_float(value) >> 16 & 0x8000;
    const float magnitude = std::fabs(value);
    if (value != value) return 0x7FFF;
    if (magnitude >= 65520.0f) return static_cast<unsigned short>(sign | 0x7C00);
    const int exponent = std::max(magnitude == 0 ? -14 : std::ilogb(magnitude), -14);
    // The fraction counts from 1024 on; rounding up to 2048 carries into the exponent, as it should.
    const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return static_cast<unsigned short>(sign | static_cast<unsigned>((exponent + 14) * 1024 + fraction));
}
