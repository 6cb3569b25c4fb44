// ai.kronserve.HotProduct2 as a kernel of ONNX Runtime: HOT attention of order 2, Kronecker product of the mode attentions
// (arXiv 2412.02919, section 4.1). What the model-local function of the same name computes in 22 nodes is one here.
//
// A library for KRONSERVE_CUSTOM_OPS has three functions in C: RegisterCustomOps, which ONNX Runtime calls,
// kronserve_kernels_version, which must be the version of the domain ai.kronserve, and kronserve_kernels_calls.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#define KRONSERVE_EXPORT __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// One binary for every processor: the widest vectors that the one at hand has are chosen when the library is loaded.
#define KRONSERVE_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KRONSERVE_VECTORISED
#endif

namespace {

constexpr int kDomainVersion = 1;
thread_local std::uint64_t calls = 0;

// One mode: its size and, for one sample and head, its queries and keys (size rows of `width`, `stride` apart).
struct Mode {
  std::int64_t size;
  const float* query;
  const float* key;
};

// a[i, j] = softmax over j of scale * <q_i, k_j>.
KRONSERVE_VECTORISED
void AttentionMatrix(const Mode& mode, std::int64_t width, std::int64_t stride, float scale, float* a) {
  for (std::int64_t i = 0; i < mode.size; ++i) {
    float* row = a + i * mode.size;
    float largest = -INFINITY;
    for (std::int64_t j = 0; j < mode.size; ++j) {
      float sum = 0.0f;
      for (std::int64_t c = 0; c < width; ++c) sum += mode.query[i * stride + c] * mode.key[j * stride + c];
      row[j] = scale * sum;
      largest = std::max(largest, row[j]);
    }
    float total = 0.0f;
    for (std::int64_t j = 0; j < mode.size; ++j) total += row[j] = std::exp(row[j] - largest);
    for (std::int64_t j = 0; j < mode.size; ++j) row[j] /= total;
  }
}

// result[i, c] = sum over j of a[i, j] * value[j, c], `columns` numbers a row; four rows of the result at a time.
KRONSERVE_VECTORISED
void Multiply(const float* a, std::int64_t size, const float* value, std::int64_t columns, float* result) {
  std::fill(result, result + size * columns, 0.0f);
  std::int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const float* row = a + i * size;
    float* to = result + i * columns;
    for (std::int64_t j = 0; j < size; ++j) {
      const float* from = value + j * columns;
      const float a0 = row[j], a1 = row[size + j], a2 = row[2 * size + j], a3 = row[3 * size + j];
      for (std::int64_t c = 0; c < columns; ++c) {
        to[c] += a0 * from[c];
        to[columns + c] += a1 * from[c];
        to[2 * columns + c] += a2 * from[c];
        to[3 * columns + c] += a3 * from[c];
      }
    }
  }
  for (; i < size; ++i)
    for (std::int64_t j = 0; j < size; ++j)
      for (std::int64_t c = 0; c < columns; ++c) result[i * columns + c] += a[i * size + j] * value[j * columns + c];
}

// What one call works on: value and result (batch, n1, n2, heads, width), qi and ki (batch, ni, heads, width).
struct Work {
  std::int64_t n1, n2, heads, width;
  float scale;
  const float* value;
  std::array<const float*, 2> queries, keys;
  float* result;
};

// One sample and head, numbered `index`.
void RunOne(void* data, std::size_t index) {
  const Work& work = *static_cast<const Work*>(data);
  const std::int64_t sample = static_cast<std::int64_t>(index) / work.heads;
  const std::int64_t head = static_cast<std::int64_t>(index) % work.heads;
  const std::int64_t stride = work.heads * work.width, tokens = work.n1 * work.n2;
  std::vector<float> first(work.n1 * work.n1), second(work.n2 * work.n2);
  std::vector<float> grid(tokens * work.width), mixed(tokens * work.width);
  auto mode = [&](int which, std::int64_t size) {
    const std::int64_t offset = sample * size * stride + head * work.width;
    return Mode{size, work.queries[which] + offset, work.keys[which] + offset};
  };
  AttentionMatrix(mode(0, work.n1), work.width, stride, work.scale, first.data());
  AttentionMatrix(mode(1, work.n2), work.width, stride, work.scale, second.data());
  const std::int64_t base = sample * tokens * stride + head * work.width;
  // The mode that is summed over comes first in memory, so that the products' rows are long: (n1, n2, e), then (n2, n1, e).
  for (std::int64_t token = 0; token < tokens; ++token)
    std::copy_n(work.value + base + token * stride, work.width, grid.data() + token * work.width);
  Multiply(first.data(), work.n1, grid.data(), work.n2 * work.width, mixed.data());
  for (std::int64_t i = 0; i < work.n1; ++i)
    for (std::int64_t n = 0; n < work.n2; ++n)
      std::copy_n(mixed.data() + (i * work.n2 + n) * work.width, work.width, grid.data() + (n * work.n1 + i) * work.width);
  Multiply(second.data(), work.n2, grid.data(), work.n1 * work.width, mixed.data());
  for (std::int64_t i = 0; i < work.n1; ++i)
    for (std::int64_t n = 0; n < work.n2; ++n)
      std::copy_n(mixed.data() + (n * work.n1 + i) * work.width, work.width, work.result + base + (i * work.n2 + n) * stride);
}

class Kernel {
 public:
  explicit Kernel(const OrtKernelInfo* info) : scale_(Ort::ConstKernelInfo(info).GetAttribute<float>("scale")) {}

  void Compute(OrtKernelContext* raw) {
    ++calls;
    Ort::KernelContext context(raw);
    const Ort::ConstValue value = context.GetInput(0);
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 5) ORT_CXX_API_THROW("HotProduct2: value must have 5 axes", ORT_INVALID_ARGUMENT);
    Work work{shape[1], shape[2], shape[3], shape[4], scale_, value.GetTensorData<float>(), {}, {}, nullptr};
    for (int mode = 0; mode < 2; ++mode) {
      const std::vector<std::int64_t> expected{shape[0], shape[1 + mode], shape[3], shape[4]};
      const Ort::ConstValue query = context.GetInput(1 + 2 * mode), key = context.GetInput(2 + 2 * mode);
      if (query.GetTensorTypeAndShapeInfo().GetShape() != expected || key.GetTensorTypeAndShapeInfo().GetShape() != expected)
        ORT_CXX_API_THROW("HotProduct2: queries and keys do not fit the grid", ORT_INVALID_ARGUMENT);
      work.queries[mode] = query.GetTensorData<float>();
      work.keys[mode] = key.GetTensorData<float>();
    }
    work.result = context.GetOutput(0, shape).GetTensorMutableData<float>();
    const std::int64_t total = shape[0] * shape[3];
    if (total > 0 && work.n1 * work.n2 * work.width > 0) context.ParallelFor(RunOne, total, 0, &work);
  }

 private:
  float scale_;
};

struct HotProduct2 : Ort::CustomOpBase<HotProduct2, Kernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const { return new Kernel(info); }
  const char* GetName() const { return "HotProduct2"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  std::size_t GetInputTypeCount() const { return 5; }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    return context.SetOutputShape(0, context.GetInputShape(0));
  }
};

}  // namespace

extern "C" KRONSERVE_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "this ONNX Runtime is older than the one the kernels were built for");
  Ort::InitApi(api);
  static const HotProduct2 op;
  static const Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made("ai.kronserve");
    made.Add(&op);
    return made;
  }();
  return api->AddCustomOpDomain(options, domain);
}

// The version of ai.kronserve whose operators these are.
extern "C" KRONSERVE_EXPORT int kronserve_kernels_version() { return kDomainVersion; }

// How often a kernel has run in the calling thread.
extern "C" KRONSERVE_EXPORT std::uint64_t kronserve_kernels_calls() { return calls; }
