// daptq::linear_w4a16_avx2: floating-point activations times a weight that stays in 4 or 8 bits, with AVX2 and FMA.
//
// Four rows of the weight are dequantized, 512 inputs at a time, into a buffer that fits the first-level cache, and
// every row of the activations is multiplied with them while they are there: the weight is read from memory once, in its
// few bits. Sums of a row run in eight lanes, and pieces of 512 inputs are added in ascending order.
//
// Layout of the weight: rows of `padded` integers, a multiple of 32 that is a multiple of the group size too where there
// are groups. 8 bits: signed bytes. 4 bits: 32 integers w + 8 in 16 bytes, the first 16 in the low halves of the bytes.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

namespace {

constexpr int64_t kOutputs = 4;     // rows of the weight that are multiplied together
constexpr int64_t kInputs = 512;    // of a piece
constexpr int64_t kUnit = 32;       // integers that are dequantized together
// Products for which a second thread repays its start.
constexpr int64_t kProductsPerThread = 1 << 17;

// Eight bytes as floats, an offset subtracted: (b - offset) * scale.
void dequantize_eight(__m128i bytes, __m256 offset, __m256 scale, float* target) {
  const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  _mm256_store_ps(target, _mm256_mul_ps(_mm256_sub_ps(values, offset), scale));
}

void dequantize_sixteen(__m128i bytes, __m256 offset, __m256 scale, float* target) {
  dequantize_eight(bytes, offset, scale, target);
  dequantize_eight(_mm_unpackhi_epi64(bytes, bytes), offset, scale, target + 8);
}

// kUnit integers.
template <int Bits>
void dequantize_unit(const uint8_t* stored, __m256 offset, __m256 scale, float* target) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored));
  if constexpr (Bits == 8) {
    dequantize_sixteen(first, offset, scale, target);
    dequantize_sixteen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored) + 1), offset, scale, target + 16);
  } else {
    const __m128i half = _mm_set1_epi8(15);
    dequantize_sixteen(_mm_and_si128(first, half), offset, scale, target);
    dequantize_sixteen(_mm_and_si128(_mm_srli_epi16(first, 4), half), offset, scale, target + 16);
  }
}

float total_of(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// Adds the products of `Rows` rows of x with kOutputs rows of weights over `count` inputs, a multiple of 8.
template <int Rows>
void multiply(const float* x, int64_t stride, const float* weights, int64_t count, float* y, int64_t y_stride) {
  __m256 acc[Rows][kOutputs];
  for (auto& row : acc) for (auto& lanes : row) lanes = _mm256_setzero_ps();
  for (int64_t k = 0; k < count; k += 8) {
    __m256 w[kOutputs];
    for (int64_t o = 0; o < kOutputs; ++o) w[o] = _mm256_load_ps(weights + o * kInputs + k);
    for (int r = 0; r < Rows; ++r) {
      const __m256 values = _mm256_loadu_ps(x + r * stride + k);
      for (int64_t o = 0; o < kOutputs; ++o) acc[r][o] = _mm256_fmadd_ps(values, w[o], acc[r][o]);
    }
  }
  for (int r = 0; r < Rows; ++r) for (int64_t o = 0; o < kOutputs; ++o) y[r * y_stride + o] += total_of(acc[r][o]);
}

struct Weight {
  const uint8_t* stored;
  int64_t out, padded, groups, group_size;  // group_size: inputs of a group, `padded` without groups
  const float* scale;
  const int8_t* zero_point;  // nullptr: symmetric

  // Inputs [start, start + count) of row `output`; zeros past the last row.
  template <int Bits>
  void dequantize(int64_t output, int64_t start, int64_t count, float* target) const {
    if (output >= out) {
      std::memset(target, 0, count * sizeof(float));
      return;
    }
    const uint8_t* row = stored + output * padded * Bits / 8;
    for (int64_t k = 0; k < count; k += kUnit) {
      const int64_t entry = output * groups + (start + k) / group_size;
      const float offset = (Bits == 8 ? 0.0f : 8.0f) + (zero_point == nullptr ? 0.0f : zero_point[entry]);
      dequantize_unit<Bits>(row + (start + k) * Bits / 8, _mm256_set1_ps(offset), _mm256_set1_ps(scale[entry]), target + k);
    }
  }
};

template <int Bits>
void run(const float* x, int64_t m, const Weight& weight, const float* bias, float* y) {
  const int64_t blocks = (weight.out + kOutputs - 1) / kOutputs, padded = weight.padded;
  const int64_t grain = std::max<int64_t>(1, kProductsPerThread / std::max<int64_t>(1, m * padded * kOutputs));
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    alignas(32) float weights[kOutputs * kInputs];
    const std::unique_ptr<float[]> sums(new float[m * kOutputs]);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kOutputs, outputs = std::min(kOutputs, weight.out - first);
      std::fill_n(sums.get(), m * kOutputs, 0.0f);
      for (int64_t start = 0; start < padded; start += kInputs) {
        const int64_t count = std::min(kInputs, padded - start);
        for (int64_t o = 0; o < kOutputs; ++o) {
          weight.dequantize<Bits>(first + o, start, count, weights + o * kInputs);
        }
        int64_t r = 0;
        for (; r + 2 <= m; r += 2) {
          multiply<2>(x + r * padded + start, padded, weights, count, sums.get() + r * kOutputs, kOutputs);
        }
        if (r < m) multiply<1>(x + r * padded + start, padded, weights, count, sums.get() + r * kOutputs, kOutputs);
      }
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t o = 0; o < outputs; ++o) {
          y[r * weight.out + first + o] = sums[r * kOutputs + o] + (bias == nullptr ? 0.0f : bias[first + o]);
        }
      }
    }
  });
}

at::Tensor linear_w4a16_avx2(const at::Tensor& x, const at::Tensor& stored, const at::Tensor& weight_scale,
                             const std::optional<at::Tensor>& zero_point, const std::optional<at::Tensor>& bias,
                             int64_t stored_bits, int64_t group_size) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat, "x must be a float32 matrix");
  TORCH_CHECK(stored_bits == 4 || stored_bits == 8, "stored_bits must be 4 or 8");
  TORCH_CHECK(group_size >= 0 && group_size % kUnit == 0, "group_size must be a multiple of 32");
  const int64_t m = x.size(0), in = x.size(1), out = weight_scale.size(0);
  const int64_t unit = group_size == 0 ? kUnit : group_size, padded = (in + unit - 1) / unit * unit;
  const int64_t groups = group_size == 0 ? 1 : padded / group_size;
  TORCH_CHECK(stored.scalar_type() == at::kByte && stored.is_contiguous() && stored.numel() == out * padded * stored_bits / 8,
              "stored must be contiguous bytes for ", padded, " inputs and ", out, " outputs");
  TORCH_CHECK(weight_scale.scalar_type() == at::kFloat && weight_scale.numel() == out * groups,
              "weight_scale must be float32 of shape (out, groups)");
  TORCH_CHECK(!zero_point || (zero_point->scalar_type() == at::kChar && zero_point->numel() == out * groups),
              "zero_point must be int8 of shape (out, groups)");
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kFloat && bias->numel() == out), "bias must be float32 (out,)");
  at::Tensor y = at::empty({m, out}, x.options());
  if (m == 0 || out == 0) return y;
  const at::Tensor given = x.contiguous(), scales = weight_scale.contiguous();
  const at::Tensor zeros = zero_point ? zero_point->contiguous() : at::Tensor();
  const at::Tensor offsets = bias ? bias->contiguous() : at::Tensor();
  const float* rows = given.const_data_ptr<float>();
  std::unique_ptr<float[]> copy;
  if (padded != in) {
    copy.reset(new float[m * padded]());
    for (int64_t r = 0; r < m; ++r) std::copy_n(rows + r * in, in, copy.get() + r * padded);
    rows = copy.get();
  }
  const Weight weight{stored.const_data_ptr<uint8_t>(), out, padded, groups, group_size == 0 ? padded : group_size,
                      scales.const_data_ptr<float>(), zero_point ? zeros.const_data_ptr<int8_t>() : nullptr};
  const auto kernel = stored_bits == 8 ? run<8> : run<4>;
  kernel(rows, m, weight, bias ? offsets.const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(daptq, CPU, library) { library.impl("linear_w4a16_avx2", &linear_w4a16_avx2); }
