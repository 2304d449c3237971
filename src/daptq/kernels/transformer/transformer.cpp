// A stack of pre-norm transformer blocks as one operation, daptq::transformer, and a diffusion transformer's whole loop,
// daptq::denoise.
//
// What is here only calls other operations, through torch's dispatcher: whoever watches the dispatcher and takes these
// apart sees every product with its operands, and the same code runs whether it is watched or not.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// An operation by its name, looked up once.
template <typename Signature>
c10::TypedOperatorHandle<Signature> operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using BFloat16Product = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&);
using IntegerProduct = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                  int64_t, int64_t, const OptionalTensor&);
using AddNorm = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                                   const OptionalTensor&, double, bool);
using Attention = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t,
                             const OptionalTensor&, bool);
using OfOne = at::Tensor(const at::Tensor&);
using OfTwo = at::Tensor(const at::Tensor&, const at::Tensor&);
using JoinTokens = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&);
using DdimStep = at::Tensor(const at::Tensor&, const at::Tensor&, double, c10::ArrayRef<double>);

constexpr int64_t kBFloat16Bits = 16;

// One linear layer: in bfloat16, or transform of the input, quantization and integer product.
at::Tensor layer(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias,
                 const OptionalTensor& activation_scale, const OptionalTensor& input_scale,
                 const OptionalTensor& rotation, int64_t stored_bits, int64_t activation_bits) {
  if (stored_bits == kBFloat16Bits) {
    static const auto multiply = operation<BFloat16Product>("daptq::linear_bfloat16");
    return multiply.call(x, weight, bias);
  }
  TORCH_CHECK(scale, "a layer of integers must have a scale");
  at::Tensor rows = input_scale ? at::mul(x, *input_scale) : x;
  if (rotation) rows = at::matmul(rows.unflatten(1, {-1, rotation->size(0)}), *rotation).flatten(1);
  static const auto multiply = operation<IntegerProduct>("daptq::linear_w4a8_avx2");
  return multiply.call(rows, weight, *scale, bias, stored_bits, activation_bits, activation_scale);
}

// Places of the tensors and numbers of a norm and of a layer, as packing.py lists them.
enum NormTensor : int64_t { kNormWeight, kNormBias, kTensorsPerNorm };
enum LayerTensor : int64_t {
  kWeight, kScale, kBias, kActivationScale, kInputScale, kRotation, kTensorsPerLayer
};
enum LayerNumber : int64_t { kStoredBits, kActivationBits, kNumbersPerLayer };

// Reads what belongs to a stack's layers and norms, one after the other.
class Parts {
 public:
  Parts(const std::vector<OptionalTensor>& tensors, c10::IntArrayRef numbers) : tensors_(tensors), numbers_(numbers) {}

  at::Tensor apply_layer(const at::Tensor& x) {
    static const auto call = operation<decltype(layer)>("daptq::layer");
    const OptionalTensor* t = tensors_.data() + tensor_;
    const int64_t* n = numbers_.data() + number_;
    tensor_ += kTensorsPerLayer;
    number_ += kNumbersPerLayer;
    return call.call(x, t[kWeight].value(), t[kScale], t[kBias], t[kActivationScale], t[kInputScale], t[kRotation],
                     n[kStoredBits], n[kActivationBits]);
  }

  // x += addend, if there is one; gives back the normalized x.
  at::Tensor apply_norm(at::Tensor& x, const OptionalTensor& addend, double epsilon, bool centered) {
    static const auto call = operation<AddNorm>("daptq::add_norm");
    const OptionalTensor* t = tensors_.data() + tensor_;
    tensor_ += kTensorsPerNorm;
    auto [sum, normalized] = call.call(x, addend, t[kNormWeight], t[kNormBias], epsilon, centered);
    x = sum;
    return normalized;
  }

 private:
  const std::vector<OptionalTensor>& tensors_;
  c10::IntArrayRef numbers_;
  int64_t tensor_ = 0, number_ = 0;
};

// What the blocks of a stack have in common.
struct Shape {
  int64_t blocks, projections, expansions, heads;
  double epsilon;
  bool centered, causal;

  int64_t layers() const { return blocks * (projections + expansions + 2); }
  int64_t norms() const { return blocks * 2; }

  void check(const c10::List<OptionalTensor>& tensors, c10::IntArrayRef numbers, int64_t other_norms,
             int64_t other_layers) const {
    TORCH_CHECK((projections == 1 || projections == 3) && (expansions == 1 || expansions == 2),
                "a block must have one or three projections, and one or two expansions");
    const int64_t all = layers() + other_layers;
    TORCH_CHECK(static_cast<int64_t>(tensors.size()) ==
                        (norms() + other_norms) * kTensorsPerNorm + all * kTensorsPerLayer &&
                    static_cast<int64_t>(numbers.size()) == all * kNumbersPerLayer,
                "tensors and numbers must be those of ", blocks, " blocks");
  }
};

// Runs the blocks on `hidden`, one row per token. What the last block adds is given back and not added yet.
OptionalTensor run_blocks(const Shape& shape, Parts& parts, at::Tensor& hidden, int64_t batch,
                          const OptionalTensor& rotary) {
  static const auto attend = operation<Attention>("daptq::attention");
  static const auto gelu = operation<OfOne>("daptq::gelu_tanh");
  static const auto swish = operation<OfTwo>("daptq::swish_product");
  OptionalTensor addend;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const at::Tensor read = parts.apply_norm(hidden, addend, shape.epsilon, shape.centered);
    at::Tensor query = parts.apply_layer(read), key, value;
    if (shape.projections == 3) {
      key = parts.apply_layer(read);
      value = parts.apply_layer(read);
    } else {
      const int64_t part = query.size(1) / 3;
      key = query.narrow(1, part, part);
      value = query.narrow(1, 2 * part, part);
      query = query.narrow(1, 0, part);
    }
    addend = parts.apply_layer(attend.call(query, key, value, batch, shape.heads, rotary, shape.causal));
    const at::Tensor again = parts.apply_norm(hidden, addend, shape.epsilon, shape.centered);
    const at::Tensor expanded = parts.apply_layer(again);
    addend = parts.apply_layer(shape.expansions == 2 ? swish.call(expanded, parts.apply_layer(again))
                                                     : gelu.call(expanded));
  }
  return addend;
}

at::Tensor transformer(const at::Tensor& x, const c10::List<OptionalTensor>& tensors, c10::IntArrayRef numbers,
                       int64_t blocks, int64_t projections, int64_t expansions, int64_t heads, double epsilon,
                       bool centered, bool causal, const OptionalTensor& rotary) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() == 3, "x must be float32 (b, t, width)");
  const Shape shape = {blocks, projections, expansions, heads, epsilon, centered, causal};
  shape.check(tensors, numbers, 0, 0);
  const std::vector<OptionalTensor> listed = tensors.vec();
  Parts parts(listed, numbers);
  at::Tensor hidden = x.reshape({-1, x.size(2)});
  const OptionalTensor addend = run_blocks(shape, parts, hidden, x.size(0), rotary);
  return (addend ? at::add(hidden, *addend) : hidden).view(x.sizes());
}

at::Tensor denoise(const at::Tensor& noise, const at::Tensor& tokens, const at::Tensor& positions,
                   const c10::List<OptionalTensor>& tensors, c10::IntArrayRef numbers, int64_t blocks, int64_t heads,
                   double epsilon, double guidance, c10::ArrayRef<double> schedule) {
  static const auto join = operation<JoinTokens>("daptq::join_tokens");
  static const auto step_back = operation<DdimStep>("daptq::ddim_step");
  TORCH_CHECK(noise.dim() == 3 && tokens.dim() == 3, "noise and tokens must have three dimensions");
  const Shape shape = {blocks, 1, 1, heads, epsilon, true, false};
  shape.check(tensors, numbers, 1, 2);
  const int64_t steps = tokens.size(0);
  TORCH_CHECK(static_cast<int64_t>(schedule.size()) == 4 * steps, "schedule must have four numbers for every step");
  const std::vector<OptionalTensor> listed = tensors.vec();
  at::Tensor sample = noise;
  for (int64_t step = 0; step < steps; ++step) {
    Parts parts(listed, numbers);
    const at::Tensor actions = parts.apply_layer(sample.reshape({-1, noise.size(2)}));
    at::Tensor hidden = join.call(actions, tokens.select(0, step), positions);
    const OptionalTensor addend = run_blocks(shape, parts, hidden, tokens.size(1), std::nullopt);
    const at::Tensor predicted = parts.apply_layer(parts.apply_norm(hidden, addend, epsilon, true));
    sample = step_back.call(sample, predicted, guidance, schedule.slice(4 * step, 4));
  }
  return sample;
}

}  // namespace

TORCH_LIBRARY_IMPL(daptq, CompositeImplicitAutograd, library) {
  library.impl("layer", &layer);
  library.impl("transformer", &transformer);
  library.impl("denoise", &denoise);
}
