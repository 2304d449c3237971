// daptq::linear_w4a8_avx2: the quantized linear layer for x86 processors with AVX2, equal to the reference bit for bit.
//
// A weight is stored as an unsigned number of 2 or 4 bits, w + 2 or w + 8, or as a signed byte. vpmaddubsw multiplies
// unsigned with signed bytes and adds neighbours in 16 bits: 15 * 127 * 2 * 8 < 2^15, so eight such sums are exact
// before they are widened to 32 bits. What the offset adds, offset * sum of the row's activations, is subtracted at the
// end. Bytes (8-bit weights) are widened to 16 bits first. Processors with vpdpbusd and vpdpwssd on 32 vector registers
// (AVX-512 VNNI and VL) do product, sum and widening in one instruction and keep twice the rows in registers.
//
// Layout of the weight: panels of 16 outputs; in a panel, groups of inputs that fill two vectors of 32 bytes, one for
// the outputs 0-7 and one for 8-15. Byte 4 o + j of a vector belongs to output o; its bits are those of the inputs j,
// j + 4, ... of the group, lowest first. Signed bytes: two inputs per output, vectors of 16 bytes. avx2.py writes it.
//
// Floating-point operations are those of _arithmetic.py, one by one and in its order: no contraction, no reciprocal.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

namespace {

constexpr int64_t kOutputs = 16;    // of a panel
constexpr int64_t kInputs = 32;     // the stored number of inputs is a multiple of it
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DAPTQ_VNNI
constexpr int kRows = 8;            // multiplied with a weight while it is in registers
#else
constexpr int kRows = 4;
#endif
constexpr int64_t kRowsPerTask = 64;
// Products for which a second thread repays its start.
constexpr int64_t kProductsPerThread = 1 << 18;

template <int Bits>
using Activation = std::conditional_t<Bits == 8, int16_t, int8_t>;

template <int Bits>
constexpr int64_t kPanelBytes = kOutputs * kInputs * Bits / 8;  // for kInputs inputs

void store(const __m256i* integers, int16_t* target) {
  for (int half = 0; half < 2; ++half) {
    const __m256i words = _mm256_packs_epi32(integers[2 * half], integers[2 * half + 1]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target) + half, _mm256_permute4x64_epi64(words, 0xD8));
  }
}

void store(const __m256i* integers, int8_t* target) {
  alignas(32) int16_t words[kInputs];
  store(integers, words);
  const __m256i* halves = reinterpret_cast<const __m256i*>(words);
  const __m256i bytes = _mm256_packs_epi16(halves[0], halves[1]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_permute4x64_epi64(bytes, 0xD8));
}

int32_t total_of(__m256i lanes) {
  alignas(32) int32_t values[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), lanes);
  int32_t total = 0;
  for (const int32_t value : values) total += value;
  return total;
}

// max |x|; the bits of non-negative floats are ordered like integers, NaN above infinity.
float peak_of(const float* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    for (int part = 0; part < 2; ++part) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k + 8 * part));
      largest[part] = _mm256_max_epi32(largest[part], _mm256_and_si256(bits, magnitude));
    }
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(largest[0], largest[1]));
  int32_t best = *std::max_element(lanes, lanes + 8);
  for (; k < count; ++k) {
    int32_t bits;
    std::memcpy(&bits, x + k, sizeof bits);
    best = std::max(best, bits & 0x7fffffff);
  }
  float peak;
  std::memcpy(&peak, &best, sizeof peak);
  return peak;
}

// One row to integers, padded with zeros to `padded`; gives back its scale and the sum of the integers.
template <typename T>
void quantize_row(const float* x, int64_t count, int64_t padded, float limit, const float* given, T* integers,
                  float* scale_of_row, int32_t* sum_of_row) {
  const float peak = peak_of(x, count);
  float scale;
  if (given == nullptr) {
    scale = peak / limit;
    scale = scale < std::numeric_limits<float>::min() ? std::numeric_limits<float>::min() : scale;  // NaN stays NaN
    *scale_of_row = scale;
  } else {
    scale = *given;
    *scale_of_row = peak * 0.0f + scale;
  }
  const __m256 divisor = _mm256_set1_ps(scale), high = _mm256_set1_ps(limit), low = _mm256_set1_ps(-limit);
  __m256i sums = _mm256_setzero_si256();
  for (int64_t k = 0; k < padded; k += kInputs) {
    alignas(32) float rest[kInputs];
    const float* values = x + k;
    if (k + kInputs > count) {
      std::fill(rest, rest + kInputs, 0.0f);
      std::copy(x + k, x + count, rest);
      values = rest;
    }
    __m256i rounded[4];
    for (int part = 0; part < 4; ++part) {
      const __m256 quotient = _mm256_div_ps(_mm256_loadu_ps(values + 8 * part), divisor);
      rounded[part] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(quotient, high), low));  // halves to even
      sums = _mm256_add_epi32(sums, rounded[part]);
    }
    store(rounded, integers + k);
  }
  *sum_of_row = total_of(sums);
}

// Adds the products of unsigned 2- or 4-bit numbers with signed bytes, in fours, to eight 32-bit sums; on AVX2 to sixteen
// 16-bit sums, in twos.
inline __m256i add_products(__m256i sums, __m256i weights, __m256i activations) {
#ifdef DAPTQ_VNNI
  return _mm256_dpbusd_epi32(sums, weights, activations);
#else
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, activations));
#endif
}

// Adds the products of 16-bit numbers, in twos, to eight 32-bit sums.
inline __m256i add_wide_products(__m256i sums, __m256i weights, __m256i activations) {
#ifdef DAPTQ_VNNI
  return _mm256_dpwssd_epi32(sums, weights, activations);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, activations));
#endif
}

// Sums of kInputs inputs, see add_products, joined to the 32-bit sums of a row.
inline __m256i widen(__m256i total, __m256i sums) {
#ifdef DAPTQ_VNNI
  return _mm256_add_epi32(total, sums);
#else
  return _mm256_add_epi32(total, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
#endif
}

inline __m256i load(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// The same 32 bits, a few activations, for each of eight outputs.
inline __m256i repeat(const void* activations) {
  int32_t bits;
  std::memcpy(&bits, activations, sizeof bits);
  return _mm256_set1_epi32(bits);
}

// Integer products of R rows with a panel: acc[2 r] and acc[2 r + 1] hold the outputs 0-7 and 8-15 of row r.
template <int Bits, int R>
void multiply(const int8_t* rows, int64_t stride, const uint8_t* panel, __m256i* acc) {
  constexpr int kPlanes = 8 / Bits;
  const __m256i mask = _mm256_set1_epi8((1 << Bits) - 1);
  __m256i total[2 * R];
  for (int i = 0; i < 2 * R; ++i) total[i] = _mm256_setzero_si256();
  for (int64_t k = 0; k < stride; k += kInputs) {
    __m256i sums[2 * R];
    for (int i = 0; i < 2 * R; ++i) sums[i] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int group = 0; group < kInputs / (4 * kPlanes); ++group, panel += 64) {
      const __m256i first = load(panel), second = load(panel + 32);
#pragma GCC unroll 4
      for (int plane = 0; plane < kPlanes; ++plane) {
        const __m256i left = _mm256_and_si256(_mm256_srli_epi16(first, Bits * plane), mask);
        const __m256i right = _mm256_and_si256(_mm256_srli_epi16(second, Bits * plane), mask);
        const int8_t* four = rows + k + 4 * (group * kPlanes + plane);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256i activations = repeat(four + r * stride);
          sums[2 * r] = add_products(sums[2 * r], left, activations);
          sums[2 * r + 1] = add_products(sums[2 * r + 1], right, activations);
        }
      }
    }
    for (int i = 0; i < 2 * R; ++i) total[i] = widen(total[i], sums[i]);
  }
  std::copy(total, total + 2 * R, acc);
}

template <int Bits, int R>
void multiply(const int16_t* rows, int64_t stride, const uint8_t* panel, __m256i* acc) {
  __m256i total[2 * R];
  for (int i = 0; i < 2 * R; ++i) total[i] = _mm256_setzero_si256();
  for (int64_t k = 0; k < stride; k += 2, panel += 32) {
    const __m256i bytes = load(panel);
    const __m256i left = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
    const __m256i right = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256i activations = repeat(rows + r * stride + k);
      total[2 * r] = add_wide_products(total[2 * r], left, activations);
      total[2 * r + 1] = add_wide_products(total[2 * r + 1], right, activations);
    }
  }
  std::copy(total, total + 2 * R, acc);
}

// `count` rows, 1 to R.
template <int Bits, int R, typename T>
void multiply_rows(int64_t count, const T* rows, int64_t stride, const uint8_t* panel, __m256i* acc) {
  if constexpr (R > 1) {
    if (count < R) return multiply_rows<Bits, R - 1>(count, rows, stride, panel, acc);
  }
  multiply<Bits, R>(rows, stride, panel, acc);
}

// What a panel's 16 outputs are scaled and shifted by, zeros past the last output.
struct Outputs {
  alignas(32) float scale[kOutputs] = {};
  alignas(32) float bias[kOutputs] = {};
  bool biased;
  int64_t count;

  Outputs(const float* scales, const float* biases, int64_t present) : biased(biases != nullptr), count(present) {
    std::copy(scales, scales + present, scale);
    if (biased) std::copy(biases, biases + present, bias);
  }

  void write(const __m256i* acc, int32_t correction, float row_scale, float* y) const {
    alignas(32) float values[kOutputs];
    for (int half = 0; half < 2; ++half) {
      const __m256i exact = _mm256_sub_epi32(acc[half], _mm256_set1_epi32(correction));
      __m256 result = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(row_scale));
      result = _mm256_mul_ps(result, _mm256_load_ps(scale + 8 * half));
      if (biased) result = _mm256_add_ps(result, _mm256_load_ps(bias + 8 * half));
      _mm256_store_ps(values + 8 * half, result);
    }
    if (count == kOutputs) {
      _mm256_storeu_ps(y, _mm256_load_ps(values));
      _mm256_storeu_ps(y + 8, _mm256_load_ps(values + 8));
    } else {
      std::copy(values, values + count, y);
    }
  }
};

// Tasks that are worth a thread, when each takes `products`.
int64_t grain(int64_t products) { return std::max<int64_t>(1, kProductsPerThread / std::max<int64_t>(1, products)); }

template <int Bits>
void run(const float* x, int64_t m, int64_t in, const uint8_t* tiles, int64_t padded, const float* weight_scale,
         const float* bias, int64_t out, float limit, const float* given, float* y) {
  using T = Activation<Bits>;
  constexpr int32_t kOffset = Bits == 8 ? 0 : 1 << (Bits - 1);
  const std::unique_ptr<T[]> integers(new T[m * padded]);
  const std::unique_ptr<float[]> scales(new float[m]);
  const std::unique_ptr<int32_t[]> sums(new int32_t[m]);
  // Quantizing a value takes about as long as eight products.
  at::parallel_for(0, m, grain(8 * padded), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      quantize_row(x + r * in, in, padded, limit, given, integers.get() + r * padded, &scales[r], &sums[r]);
    }
  });
  const int64_t panels = (out + kOutputs - 1) / kOutputs, chunks = (m + kRowsPerTask - 1) / kRowsPerTask;
  const int64_t rows_per_chunk = (m + chunks - 1) / chunks;
  at::parallel_for(0, panels * chunks, grain(rows_per_chunk * padded * kOutputs), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_output = task / chunks * kOutputs, first_row = task % chunks * rows_per_chunk;
      const int64_t last_row = std::min(m, first_row + rows_per_chunk);
      const Outputs outputs(weight_scale + first_output, bias == nullptr ? nullptr : bias + first_output,
                            std::min(kOutputs, out - first_output));
      const uint8_t* panel = tiles + task / chunks * (padded / kInputs) * kPanelBytes<Bits>;
      for (int64_t r = first_row; r < last_row; r += kRows) {
        const int64_t count = std::min<int64_t>(kRows, last_row - r);
        __m256i acc[2 * kRows];
        multiply_rows<Bits, kRows>(count, integers.get() + r * padded, padded, panel, acc);
        for (int64_t i = 0; i < count; ++i) {
          outputs.write(acc + 2 * i, kOffset * sums[r + i], scales[r + i], y + (r + i) * out + first_output);
        }
      }
    }
  });
}

at::Tensor linear_w4a8_avx2(const at::Tensor& x, const at::Tensor& tiles, const at::Tensor& weight_scale,
                            const std::optional<at::Tensor>& bias, int64_t stored_bits, int64_t activation_bits,
                            const std::optional<at::Tensor>& activation_scale) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat, "x must be a float32 matrix");
  const int64_t m = x.size(0), in = x.size(1), out = weight_scale.size(0);
  const int64_t padded = (in + kInputs - 1) / kInputs * kInputs;
  const int64_t bytes = (out + kOutputs - 1) / kOutputs * kOutputs * padded * stored_bits / 8;
  TORCH_CHECK(stored_bits == 2 || stored_bits == 4 || stored_bits == 8, "stored_bits must be 2, 4 or 8");
  TORCH_CHECK(activation_bits == 4 || activation_bits == 8, "activation_bits must be 4 or 8");
  TORCH_CHECK(tiles.scalar_type() == at::kByte && tiles.is_contiguous() && tiles.numel() == bytes,
              "tiles must be ", bytes, " contiguous bytes for ", in, " inputs and ", out, " outputs");
  TORCH_CHECK(weight_scale.scalar_type() == at::kFloat && weight_scale.numel() == out,
              "weight_scale must be float32 of shape (out, 1)");
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kFloat && bias->numel() == out), "bias must be float32 (out,)");
  TORCH_CHECK(!activation_scale || (activation_scale->scalar_type() == at::kFloat && activation_scale->numel() == 1),
              "activation_scale must be one float32 number");
  const at::Tensor rows = x.contiguous(), scales = weight_scale.contiguous();
  const at::Tensor offsets = bias ? bias->contiguous() : at::Tensor();
  at::Tensor y = at::empty({m, out}, x.options());
  if (m == 0 || out == 0) return y;
  const auto kernel = stored_bits == 8 ? run<8> : stored_bits == 4 ? run<4> : run<2>;
  kernel(rows.const_data_ptr<float>(), m, in, tiles.const_data_ptr<uint8_t>(), padded,
         scales.const_data_ptr<float>(), bias ? offsets.const_data_ptr<float>() : nullptr, out,
         activation_bits == 8 ? 127.0f : 7.0f,
         activation_scale ? activation_scale->const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(daptq, CPU, library) { library.impl("linear_w4a8_avx2", &linear_w4a8_avx2); }
