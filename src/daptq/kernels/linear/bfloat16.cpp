// daptq::linear_bfloat16: float32 activations times a weight that stays in bfloat16, float32 products and sums.
//
// The weight lies transposed in memory, outputs side by side. A value becomes float32 in a register by a shift, and is
// multiplied with several rows while it is there. Every sum runs over the inputs in their order, whatever the number of
// rows and threads; a product and its addition are one operation with one rounding.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

namespace {

constexpr int64_t kOutputs = 16;  // of a vector
using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

// Rows and vectors of outputs whose sums stay in registers.
#ifdef __AVX512F__
constexpr int kRows = 12, kVectors = 2;
#else
constexpr int kRows = 6, kVectors = 1;
#endif
constexpr int64_t kTile = kVectors * kOutputs;
constexpr int64_t kRowsPerTask = 48;
// Products for which a second thread repays its start.
constexpr int64_t kProductsPerThread = 1 << 17;

inline Floats load(const uint16_t* values) {
  Halves halves;
  std::memcpy(&halves, values, sizeof halves);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
}

// Products of R rows with `V` vectors of outputs, on top of what is in `sums`.
template <int R, int V>
void multiply(const float* x, int64_t in, const uint16_t* weight, int64_t stride, Floats (*sums)[kVectors]) {
  Floats total[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) total[r][v] = sums[r][v];
  }
  for (int64_t k = 0; k < in; ++k, weight += stride) {
    Floats columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load(weight + v * kOutputs);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const float value = x[r * in + k];
      for (int v = 0; v < V; ++v) total[r][v] += value * columns[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = total[r][v];
  }
}

// `count` rows, 1 to R.
template <int R, int V>
void multiply_rows(int64_t count, const float* x, int64_t in, const uint16_t* weight, int64_t stride,
                   Floats (*sums)[kVectors]) {
  if constexpr (R > 1) {
    if (count < R) return multiply_rows<R - 1, V>(count, x, in, weight, stride, sums);
  }
  multiply<R, V>(x, in, weight, stride, sums);
}

// One tile of outputs, from `first` on, of `count` rows.
void run_tile(const float* x, int64_t count, int64_t in, const uint16_t* weight, int64_t stride, const uint16_t* bias,
              int64_t present, float* y, int64_t out) {
  const int64_t vectors = (present + kOutputs - 1) / kOutputs;
  std::vector<uint16_t> copy;
  if (present < vectors * kOutputs) {
    // The last outputs do not fill a vector: reading on would leave the weight's memory.
    const int64_t width = vectors * kOutputs;
    copy.assign(in * width, 0);
    for (int64_t k = 0; k < in; ++k) std::copy_n(weight + k * stride, present, copy.data() + k * width);
    weight = copy.data();
    stride = width;
  }
  uint16_t shifts[kTile] = {};
  if (bias != nullptr) std::copy_n(bias, present, shifts);
  const int64_t blocks = (count + kRows - 1) / kRows;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = count * block / blocks, rows = count * (block + 1) / blocks - first;
    Floats sums[kRows][kVectors] = {};
    if (vectors == kVectors) {
      multiply_rows<kRows, kVectors>(rows, x + first * in, in, weight, stride, sums);
    } else {
      multiply_rows<kRows, 1>(rows, x + first * in, in, weight, stride, sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] += load(shifts + v * kOutputs);
      std::memcpy(y + (first + r) * out, sums[r], present * sizeof(float));
    }
  }
}

at::Tensor linear_bfloat16(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat, "x must be a float32 matrix");
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kBFloat16 && weight.size(1) == x.size(1),
              "weight must be a bfloat16 matrix with ", x.size(1), " columns");
  const int64_t m = x.size(0), in = x.size(1), out = weight.size(0);
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kBFloat16 && bias->numel() == out), "bias must be bfloat16 (out,)");
  // Asking for a transposed view takes as long as a small product.
  const bool transposed_already = weight.stride(0) == 1 && weight.stride(1) == out;
  const at::Tensor rows = x.contiguous(), columns = transposed_already ? weight : weight.t().contiguous();
  const at::Tensor offsets = bias ? bias->contiguous() : at::Tensor();
  at::Tensor y = at::empty({m, out}, x.options());
  if (m == 0 || out == 0) return y;
  const float* values = rows.const_data_ptr<float>();
  const uint16_t* transposed = reinterpret_cast<const uint16_t*>(columns.const_data_ptr());
  const uint16_t* shifts = bias ? reinterpret_cast<const uint16_t*>(offsets.const_data_ptr()) : nullptr;
  float* results = y.mutable_data_ptr<float>();
  const int64_t tiles = (out + kTile - 1) / kTile, chunks = (m + kRowsPerTask - 1) / kRowsPerTask;
  const int64_t products = std::max<int64_t>(1, (m + chunks - 1) / chunks * in * kTile);
  at::parallel_for(0, tiles * chunks, std::max<int64_t>(1, kProductsPerThread / products),
                   [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t output = task / chunks * kTile, chunk = task % chunks;
      const int64_t first = m * chunk / chunks, count = m * (chunk + 1) / chunks - first;
      run_tile(values + first * in, count, in, transposed + output, out, shifts ? shifts + output : nullptr,
               std::min(kTile, out - output), results + first * out + output, out);
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(daptq, CPU, library) { library.impl("linear_bfloat16", &linear_bfloat16); }
