// Involution as an operator of ONNX Runtime on the CPU: "Involution2d" of the domain "rednet", in float32.
//
// The kernels are those of rednet/ops/cpu/src, the threads are the session's. building.py beside this file compiles it,
// for one instruction set.
#include <onnxruntime_c_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

// Not compared with anything: a library that is given by its path is the user's choice.
#define REDNET_CHECKSUM 0
#include "operations.h"
// The operations that PyTorch calls run in threads of OpenMP; this library has none of them.
#undef REDNET_EXPORT
#define REDNET_EXPORT(name, Problem, Operation)
#include "involution.h"

namespace {

constexpr uint32_t kApiVersion = 17;  // the first with KernelContext_ParallelFor
const OrtApi* api = nullptr;

// ---- errors: thrown here, returned to ONNX Runtime

struct Failure {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status) throw Failure{status};
}

void require(bool holds, const char* message) {
  if (!holds) check(api->CreateStatus(ORT_INVALID_ARGUMENT, message));
}

template <typename Action>
OrtStatus* status_of(const Action& action) {
  try {
    action();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

// ---- a run: turns of neighboring tasks, which may share cache lines

using Forward = rednet::Forward<float>;

// Memory of a thread's own, kept from run to run. A run finds it zeroed at first.
class Scratch {
 public:
  // Returns null if memory ran out.
  float* of_run(uint64_t run, size_t bytes) {
    if (bytes > bytes_) {
      void* memory = nullptr;
      if (posix_memalign(&memory, rednet::kLineBytes, bytes)) return nullptr;
      memory_.reset(static_cast<float*>(memory));
      bytes_ = bytes;
    }
    if (run != run_) std::memset(memory_.get(), 0, bytes);
    run_ = run;
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };

  std::unique_ptr<float, Free> memory_;
  size_t bytes_ = 0;
  uint64_t run_ = 0;
};

class Run {
  static constexpr int64_t kTurns = 8;  // for each thread
  static inline std::atomic<uint64_t> count_{0};

 public:
  Run(const rednet::Problem& problem, int threads)
      : operation_(problem, threads), number_(++count_), tasks_(operation_.tasks()) {
    const int64_t worth = problem.multiply_adds() / rednet::kWorkPerThread;
    const int64_t turns = rednet::larger(1, rednet::smaller(worth, threads * kTurns));
    turn_ = rednet::larger(1, rednet::ceil_div(tasks_, turns));
  }

  void in_threads_of(const OrtKernelContext* context) {
    const auto run_turn = [](void* run, size_t turn) { static_cast<Run*>(run)->run_turn(turn); };
    check(api->KernelContext_ParallelFor(context, run_turn, rednet::ceil_div(tasks_, turn_), 0,
                                         this));
    if (out_of_memory_) check(api->CreateStatus(ORT_FAIL, "rednet: no memory for scratch rows"));
  }

 private:
  void run_turn(int64_t turn) {
    static thread_local Scratch scratch;
    float* numbers = scratch.of_run(number_, operation_.scratch() * sizeof(float));
    if (!numbers) {
      out_of_memory_ = true;
      return;
    }
    const int64_t end = rednet::smaller((turn + 1) * turn_, tasks_);
    for (int64_t task = turn * turn_; task < end; ++task) operation_.run(task, numbers);
  }

  const Forward operation_;
  const uint64_t number_;
  const int64_t tasks_;
  int64_t turn_;
  std::atomic<bool> out_of_memory_{false};
};

// ---- tensors

std::vector<int64_t> shape_of(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info;
  check(api->GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api->ReleaseTensorTypeAndShapeInfo)>
      owner(info, api->ReleaseTensorTypeAndShapeInfo);
  size_t count;
  check(api->GetDimensionsCount(info, &count));
  std::vector<int64_t> shape(count);
  check(api->GetDimensions(info, shape.data(), count));
  return shape;
}

rednet::Tensor contiguous(void* data, const std::vector<int64_t>& shape) {
  rednet::Tensor tensor = {data, {}};
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) tensor.strides[axis] = stride;
  return tensor;
}

// ---- the kernel of a node

struct Pair {
  int64_t vertical, horizontal;
};

Pair pair_attribute(const OrtKernelInfo* info, const char* name) {
  int64_t numbers[2];
  size_t count = std::size(numbers);
  check(api->KernelInfoGetAttributeArray_int64(info, name, numbers, &count));
  require(count == 2, "rednet: stride, padding and dilation are pairs");
  return {numbers[0], numbers[1]};
}

class Kernel {
 public:
  explicit Kernel(const OrtKernelInfo* info)
      : stride_(pair_attribute(info, "stride")),
        padding_(pair_attribute(info, "padding")),
        dilation_(pair_attribute(info, "dilation")) {}

  void compute(OrtKernelContext* context) const {
    const OrtValue *image, *weight;
    check(api->KernelContext_GetInput(context, 0, &image));
    check(api->KernelContext_GetInput(context, 1, &weight));
    const std::vector<int64_t> image_shape = shape_of(image), weight_shape = shape_of(weight);
    rednet::Problem problem = describe(image_shape, weight_shape);
    const std::vector<int64_t> shape = {problem.batch, problem.channels, problem.vertical.output,
                                        problem.horizontal.output};
    OrtValue* output;
    check(api->KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &output));
    problem.image = contiguous(numbers(image), image_shape);
    problem.weight = contiguous(numbers(weight), weight_shape);
    problem.pixels = contiguous(numbers(output), shape);
    if (problem.multiply_adds() == 0) return;
    Run(problem, int(std::thread::hardware_concurrency())).in_threads_of(context);
  }

 private:
  // The problem without its tensors, of shapes (N, C, H, W) and (N, G, Kh, Kw, Ho, Wo).
  rednet::Problem describe(const std::vector<int64_t>& image,
                           const std::vector<int64_t>& weight) const {
    require(image.size() == 4 && weight.size() == 6 && image[0] == weight[0] && weight[1] > 0 &&
                image[1] % weight[1] == 0,
            "rednet: expected (N, C, H, W) and (N, G, Kh, Kw, Ho, Wo), where G divides C");
    rednet::Problem problem = {};
    problem.batch = image[0];
    problem.channels = image[1];
    problem.groups = weight[1];
    problem.vertical = {image[2],         weight[4],         weight[2],
                        stride_.vertical, padding_.vertical, dilation_.vertical};
    problem.horizontal = {image[3],           weight[5],           weight[3],
                          stride_.horizontal, padding_.horizontal, dilation_.horizontal};
    for (const rednet::Side& side : {problem.vertical, problem.horizontal})
      require(side.output == (side.input + 2 * side.padding - side.reach() - 1) / side.stride + 1,
              "rednet: a window for each kernel is expected");
    return problem;
  }

  static void* numbers(const OrtValue* value) {
    void* data;
    check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return data;
  }

  Pair stride_, padding_, dilation_;
};

// ---- what ONNX Runtime is told

bool processor_suffices() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

OrtCustomOp describe_operator() {
  OrtCustomOp op = {};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "Involution2d"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetInputCharacteristic =
      op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) { return status_of([&] { *kernel = new Kernel(info); }); };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return status_of([&] { static_cast<Kernel*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace

// Called by SessionOptions.register_custom_ops_library.
REDNET_VISIBLE OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static const OrtCustomOp op = describe_operator();
  api = base->GetApi(kApiVersion);
  if (!api)
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "rednet: ONNX Runtime 1.17 or newer is needed");
  return status_of([&] {
    require(processor_suffices(),
            "rednet: this library was built for a processor with more instructions");
    OrtCustomOpDomain* domain;
    check(api->CreateCustomOpDomain("rednet", &domain));
    check(api->CustomOpDomain_Add(domain, &op));
    check(api->AddCustomOpDomain(options, domain));
  });
}
