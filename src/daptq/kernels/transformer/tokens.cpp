// Norms, attention, activation functions and what a denoising loop does between two calls of its network.
//
// On the few rows of a robot's policy a call of torch's takes longer than its arithmetic. Sums run in an order that
// depends on the shapes alone, not on the threads; a product and its addition are one operation with one rounding.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));

inline Floats load(const float* values) {
  Floats loaded;
  std::memcpy(&loaded, values, sizeof loaded);
  return loaded;
}

inline void store(Floats values, float* target) { std::memcpy(target, &values, sizeof values); }

inline float total_of(Floats values) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
}

// e^x to two units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Past the ends of float32 it gives
// the smallest and the largest normal number; NaN stays NaN.
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  x = x > 88.0f ? Floats{} + 88.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (x * 1.44269504088896341f + magic) - magic;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  return p * reinterpret_cast<Floats>(power);
}

// Elements for which a second thread repays its start.
constexpr int64_t kElementsPerThread = 1 << 12;

void check_floats(const at::Tensor& x, const char* name, int64_t dimensions) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() == dimensions, name, " must be float32 with ", dimensions,
              " dimensions");
}

// One row: its sum with the addend, and that normalized.
void normalize_row(const float* x, const float* addend, const float* weight, const float* bias, int64_t width,
                   float epsilon, bool centered, float* sum, float* normalized) {
  for (int64_t i = 0; i < width; ++i) sum[i] = addend == nullptr ? x[i] : x[i] + addend[i];
  const int64_t whole = width / kLanes * kLanes;
  Floats totals = {};
  float rest = 0.0f;
  float mean = 0.0f;
  if (centered) {
    for (int64_t i = 0; i < whole; i += kLanes) totals += load(sum + i);
    for (int64_t i = whole; i < width; ++i) rest += sum[i];
    mean = (total_of(totals) + rest) / static_cast<float>(width);
  }
  totals = Floats{};
  rest = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Floats deviation = load(sum + i) - mean;
    totals += deviation * deviation;
  }
  for (int64_t i = whole; i < width; ++i) rest += (sum[i] - mean) * (sum[i] - mean);
  const float variance = (total_of(totals) + rest) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(variance + epsilon);
  for (int64_t i = 0; i < width; ++i) normalized[i] = (sum[i] - mean) * factor;
  if (weight != nullptr) {
    for (int64_t i = 0; i < width; ++i) normalized[i] *= weight[i];
  }
  if (bias != nullptr) {
    for (int64_t i = 0; i < width; ++i) normalized[i] += bias[i];
  }
}

std::tuple<at::Tensor, at::Tensor> add_norm(const at::Tensor& x, const OptionalTensor& addend,
                                            const OptionalTensor& weight, const OptionalTensor& bias, double epsilon,
                                            bool centered) {
  check_floats(x, "x", 2);
  const int64_t rows = x.size(0), width = x.size(1);
  TORCH_CHECK(!addend || (addend->sizes() == x.sizes() && addend->scalar_type() == at::kFloat),
              "addend must be float32 of the shape of x");
  for (const OptionalTensor* parameter : {&weight, &bias}) {
    TORCH_CHECK(!*parameter || ((*parameter)->scalar_type() == at::kFloat && (*parameter)->numel() == width),
                "weight and bias of a norm must be float32 (", width, ",)");
  }
  const at::Tensor first = x.contiguous(), second = addend ? addend->contiguous() : at::Tensor();
  const at::Tensor scale = weight ? weight->contiguous() : at::Tensor();
  const at::Tensor shift = bias ? bias->contiguous() : at::Tensor();
  at::Tensor sum = at::empty({rows, width}, x.options()), normalized = at::empty({rows, width}, x.options());
  const auto pointer = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
  };
  const float *a = pointer(first), *b = pointer(second), *w = pointer(scale), *s = pointer(shift);
  float *total = sum.mutable_data_ptr<float>(), *result = normalized.mutable_data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, width)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      normalize_row(a + r * width, b == nullptr ? nullptr : b + r * width, w, s, width, static_cast<float>(epsilon),
                    centered, total + r * width, result + r * width);
    }
  });
  return {sum, normalized};
}

// Applies `function` to vectors of one or two tensors of the same shape.
template <typename Function>
at::Tensor elementwise(const at::Tensor& x, const at::Tensor& y, Function function) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && y.scalar_type() == at::kFloat && x.sizes() == y.sizes(),
              "both inputs must be float32 of one shape");
  const at::Tensor left = x.contiguous(), right = y.contiguous();
  at::Tensor result = at::empty_like(left);
  const float *a = left.const_data_ptr<float>(), *b = right.const_data_ptr<float>();
  float* target = result.mutable_data_ptr<float>();
  const int64_t count = left.numel(), vectors = (count + kLanes - 1) / kLanes;
  at::parallel_for(0, vectors, kElementsPerThread / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < end * kLanes; i += kLanes) {
      const int64_t present = std::min(kLanes, count - i);
      if (present == kLanes) {
        store(function(load(a + i), load(b + i)), target + i);
      } else {
        Floats first = {}, second = {};
        std::memcpy(&first, a + i, present * sizeof(float));
        std::memcpy(&second, b + i, present * sizeof(float));
        const Floats values = function(first, second);
        std::memcpy(target + i, &values, present * sizeof(float));
      }
    }
  });
  return result;
}

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written x / (1 + e^(-2 u)).
at::Tensor gelu_tanh(const at::Tensor& x) {
  return elementwise(x, x, [](Floats value, Floats) {
    const Floats twice = value * (1.5957691216057308f + 0.07135481282553248f * (value * value));
    return value / (1.0f + exponential(-twice));
  });
}

// gate / (1 + e^(-gate)) * x
at::Tensor swish_product(const at::Tensor& gate, const at::Tensor& x) {
  return elementwise(gate, x, [](Floats value, Floats other) { return value / (1.0f + exponential(-value)) * other; });
}

// Where the rows of query, key and value begin, and what turns query and key.
struct Heads {
  const float *query, *key, *value;
  int64_t query_stride, key_stride, value_stride;  // from row to row
  const float* rotary;                             // cosines (length, size), then sines; or null
  int64_t length, size;
};

// Turns a row by its angles: x cos + (-x2, x1) sin with the halves x1, x2.
void turn(const float* row, const float* cosine, const float* sine, int64_t size, float* target) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    target[i] = row[i] * cosine[i] - row[i + half] * sine[i];
    target[i + half] = row[i + half] * cosine[i + half] + row[i] * sine[i + half];
  }
}

constexpr int kQueries = 4;  // that share what is loaded of keys and values

// Memory of one head: keys (size, columns), values (length, width), scores (kQueries, columns), queries (kQueries, size).
struct Scratch {
  int64_t columns, width;
  std::vector<float> memory;
  float *keys, *values, *scores, *queries;

  Scratch(int64_t length, int64_t size)
      : columns((length + kLanes - 1) / kLanes * kLanes),
        width((size + kLanes - 1) / kLanes * kLanes),
        memory(size * columns + length * width + kQueries * (columns + size), 0.0f),
        keys(memory.data()),
        values(keys + size * columns),
        scores(values + length * width),
        queries(scores + kQueries * columns) {}
};

void turn_or_copy(const Heads& heads, const float* row, int64_t t, float* target) {
  const int64_t size = heads.size;
  if (heads.rotary == nullptr) {
    std::memcpy(target, row, size * sizeof(float));
  } else {
    turn(row, heads.rotary + t * size, heads.rotary + (heads.length + t) * size, size, target);
  }
}

// Scores to weights that sum to one; those past `seen` become 0.
void softmax(float* scores, int64_t seen, int64_t columns) {
  for (int64_t i = seen; i < columns; ++i) scores[i] = -INFINITY;
  Floats peaks = load(scores);
  for (int64_t v = kLanes; v < columns; v += kLanes) {
    const Floats others = load(scores + v);
    peaks = others > peaks ? others : peaks;
  }
  float peak = peaks[0];
  for (int lane = 1; lane < kLanes; ++lane) peak = peaks[lane] > peak ? peaks[lane] : peak;
  Floats sums = {};
  for (int64_t v = 0; v < columns; v += kLanes) {
    const Floats score = load(scores + v);
    const Floats weights = score == -INFINITY ? Floats{} : exponential(score - peak);
    sums += weights;
    store(weights, scores + v);
  }
  const float normalizer = 1.0f / total_of(sums);
  for (int64_t v = 0; v < columns; v += kLanes) store(load(scores + v) * normalizer, scores + v);
}

// One head of one sample.
void attend(const Heads& heads, bool causal, Scratch& scratch, float* target, int64_t target_stride) {
  const int64_t length = heads.length, size = heads.size, columns = scratch.columns, width = scratch.width;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t t = 0; t < length; ++t) {
    turn_or_copy(heads, heads.key + t * heads.key_stride, t, scratch.queries);
    for (int64_t d = 0; d < size; ++d) scratch.keys[d * columns + t] = scratch.queries[d];
    std::memcpy(scratch.values + t * width, heads.value + t * heads.value_stride, size * sizeof(float));
  }
  for (int64_t first = 0; first < length; first += kQueries) {
    const int64_t count = std::min<int64_t>(kQueries, length - first), seen = causal ? first + count : length;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = first + i;
      turn_or_copy(heads, heads.query + t * heads.query_stride, t, scratch.queries + i * size);
    }
    for (int64_t v = 0; v < seen; v += kLanes) {
      Floats totals[kQueries] = {};
      for (int64_t d = 0; d < size; ++d) {
        const Floats keys = load(scratch.keys + d * columns + v);
        for (int i = 0; i < kQueries; ++i) totals[i] += scratch.queries[i * size + d] * keys;
      }
      for (int i = 0; i < kQueries; ++i) store(totals[i] * scale, scratch.scores + i * columns + v);
    }
    const int64_t filled = (seen + kLanes - 1) / kLanes * kLanes;
    for (int i = 0; i < kQueries; ++i) {
      softmax(scratch.scores + i * columns, causal ? std::min(first + i + 1, seen) : seen, filled);
    }
    for (int64_t d = 0; d < width; d += kLanes) {
      Floats totals[kQueries] = {};
      for (int64_t s = 0; s < seen; ++s) {
        const Floats values = load(scratch.values + s * width + d);
        for (int i = 0; i < kQueries; ++i) totals[i] += scratch.scores[i * columns + s] * values;
      }
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(target + (first + i) * target_stride + d, &totals[i], std::min(kLanes, size - d) * sizeof(float));
      }
    }
  }
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int64_t batch,
                     int64_t heads, const OptionalTensor& rotary, bool causal) {
  for (const at::Tensor* tensor : {&query, &key, &value}) {
    check_floats(*tensor, "query, key and value", 2);
    TORCH_CHECK(tensor->sizes() == query.sizes(), "query, key and value must have one shape");
  }
  const int64_t rows = query.size(0), width = query.size(1);
  TORCH_CHECK(batch > 0 && rows % batch == 0 && heads > 0 && width % heads == 0,
              "rows must be divisible by the batch, columns by the heads");
  const int64_t length = rows / batch, size = width / heads;
  TORCH_CHECK(!rotary || (rotary->scalar_type() == at::kFloat && rotary->numel() == 2 * length * size && size % 2 == 0),
              "rotary must be float32 (2, ", length, ", ", size, ")");
  const auto dense = [](const at::Tensor& tensor) { return tensor.stride(1) == 1 ? tensor : tensor.contiguous(); };
  const at::Tensor q = dense(query), k = dense(key), v = dense(value);
  const at::Tensor angles = rotary ? rotary->contiguous() : at::Tensor();
  at::Tensor result = at::empty({rows, width}, query.options());
  float* target = result.mutable_data_ptr<float>();
  const float *queries = q.const_data_ptr<float>(), *keys = k.const_data_ptr<float>(),
              *values = v.const_data_ptr<float>();
  at::parallel_for(0, batch * heads, std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, length * length)),
                   [&](int64_t begin, int64_t end) {
    Scratch scratch(length, size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / heads * length, column = task % heads * size;
      const Heads head = {queries + row * q.stride(0) + column,
                          keys + row * k.stride(0) + column,
                          values + row * v.stride(0) + column,
                          q.stride(0),
                          k.stride(0),
                          v.stride(0),
                          rotary ? angles.const_data_ptr<float>() : nullptr,
                          length,
                          size};
      attend(head, causal, scratch, target + row * width + column, width);
    }
  });
  return result;
}

// One token and the embedded actions of its sample for each row of `tokens`; samples repeat. Positions are added.
at::Tensor join_tokens(const at::Tensor& actions, const at::Tensor& tokens, const at::Tensor& positions) {
  for (const at::Tensor* tensor : {&actions, &tokens, &positions}) {
    check_floats(*tensor, "actions, tokens and positions", 2);
    TORCH_CHECK(tensor->size(1) == actions.size(1), "actions, tokens and positions must have one width");
  }
  const int64_t count = tokens.size(0), length = positions.size(0), width = actions.size(1);
  const int64_t samples = length > 1 ? actions.size(0) / (length - 1) : 0;
  TORCH_CHECK(samples > 0 && actions.size(0) == samples * (length - 1) && count % samples == 0,
              "actions must be those of samples that the tokens repeat");
  const at::Tensor given = actions.contiguous(), first = tokens.contiguous(), places = positions.contiguous();
  at::Tensor joined = at::empty({count * length, width}, actions.options());
  const float *rows = given.const_data_ptr<float>(), *heads = first.const_data_ptr<float>(),
              *shifts = places.const_data_ptr<float>();
  float* target = joined.mutable_data_ptr<float>();
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t t = 0; t < length; ++t) {
      const float* row = t == 0 ? heads + n * width : rows + (n % samples * (length - 1) + t - 1) * width;
      float* written = target + (n * length + t) * width;
      for (int64_t i = 0; i < width; ++i) written[i] = row[i] + shifts[t * width + i];
    }
  }
  return joined;
}

// One step of DDIM with guidance: `predicted` has a row for every token, of the conditioned samples and, if `guidance` is
// not 1, of the unconditioned ones behind them; the first of each sample is no action's.
at::Tensor ddim_step(const at::Tensor& sample, const at::Tensor& predicted, double guidance,
                     c10::ArrayRef<double> schedule) {
  check_floats(sample, "sample", 3);
  check_floats(predicted, "predicted", 2);
  TORCH_CHECK(schedule.size() == 4, "schedule must be four numbers");
  const int64_t batch = sample.size(0), length = sample.size(1), width = sample.size(2);
  const int64_t half = batch * (length + 1) * width;
  TORCH_CHECK(predicted.numel() == (guidance == 1.0 ? half : 2 * half) && predicted.size(1) == width,
              "predicted must have a row for every token");
  const at::Tensor from = sample.contiguous(), noise = predicted.contiguous();
  at::Tensor next = at::empty_like(from);
  const float *x = from.const_data_ptr<float>(), *conditioned = noise.const_data_ptr<float>();
  float* target = next.mutable_data_ptr<float>();
  const float scale = static_cast<float>(guidance), noised = static_cast<float>(schedule[0]),
              kept = static_cast<float>(schedule[1]), next_kept = static_cast<float>(schedule[2]),
              next_noised = static_cast<float>(schedule[3]);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < length * width; ++i) {
      const int64_t place = b * (length + 1) * width + width + i;
      float epsilon = conditioned[place];
      if (guidance != 1.0) {
        const float unconditioned = conditioned[half + place];
        epsilon = unconditioned + scale * (epsilon - unconditioned);
      }
      const float clean = (x[b * length * width + i] - noised * epsilon) / kept;
      target[b * length * width + i] = next_kept * clean + next_noised * epsilon;
    }
  }
  return next;
}

}  // namespace

TORCH_LIBRARY_IMPL(daptq, CPU, library) {
  library.impl("add_norm", &add_norm);
  library.impl("gelu_tanh", &gelu_tanh);
  library.impl("swish_product", &swish_product);
  library.impl("attention", &attention);
  library.impl("join_tokens", &join_tokens);
  library.impl("ddim_step", &ddim_step);
}
