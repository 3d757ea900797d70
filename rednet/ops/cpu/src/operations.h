// How operations run in threads, and how they are exported. An operation is a number of tasks, which run in a zeroed
// scratch memory of a thread's own.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "arithmetic.h"
#include "vectors.h"

// The threads are those of the OpenMP library that PyTorch has loaded. GOMP_parallel is what GCC makes of "#pragma omp
// parallel", and every such library has it; clang would call functions that GCC's library lacks.
extern "C" {
int omp_get_thread_num(void);
void GOMP_parallel(void (*run)(void*), void* argument, unsigned threads, unsigned flags);
}

namespace rednet {

constexpr int64_t kWorkPerThread = 1 << 16;  // multiply-adds worth waking a thread for
constexpr int64_t kTurnsPerThread = 8;

// Threads take turns of neighboring tasks: those may share cache lines.
template <typename Operation>
void work(const Operation& operation, std::atomic<int64_t>& next, int64_t turn,
          typename Operation::Sum* scratch, int64_t numbers) {
  std::memset(scratch, 0, numbers * sizeof(*scratch));
  for (int64_t first; (first = next.fetch_add(turn)) < operation.tasks();) {
    for (int64_t task = first; task < smaller(first + turn, operation.tasks()); ++task)
      operation.run(task, scratch);
  }
}

// Returns 0, or 1 if memory ran out.
template <typename Operation, typename Problem>
int execute(const Problem& problem, int threads) {
  using Sum = typename Operation::Sum;
  threads = int(larger(1, smaller(threads, problem.multiply_adds() / kWorkPerThread)));
  const Operation operation(problem, threads);
  threads = int(smaller(threads, operation.tasks()));
  const int64_t numbers = round_up(operation.scratch(), kLine<Sum>);
  void* memory;
  if (posix_memalign(&memory, kLineBytes, threads * numbers * sizeof(Sum))) return 1;
  Sum* scratch = static_cast<Sum*>(memory);
  const int64_t turn = ceil_div(operation.tasks(), threads * kTurnsPerThread);
  std::atomic<int64_t> next(0);
  auto run = [&](int thread) { work(operation, next, turn, scratch + thread * numbers, numbers); };
  const auto run_this_thread = [](void* argument) {
    (*static_cast<decltype(run)*>(argument))(omp_get_thread_num());
  };
  if (threads > 1)
    GOMP_parallel(run_this_thread, &run, unsigned(threads), 0);
  else
    run(0);
  std::free(memory);
  return 0;
}

}  // namespace rednet

#define REDNET_VISIBLE extern "C" __attribute__((visibility("default")))

// Exports an operation as name(problem, threads).
#define REDNET_EXPORT(name, Problem, Operation)                  \
  REDNET_VISIBLE int name(const Problem* problem, int threads) { \
    return rednet::execute<Operation>(*problem, threads);        \
  }

// The checksum of the sources that the library was built from.
REDNET_VISIBLE uint32_t rednet_checksum() { return REDNET_CHECKSUM; }
