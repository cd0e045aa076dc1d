// Reading retention gates, and what they say of a token.
#include "traces/retention_gates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "traces/convert/array_source.h"
#include "traces/tensor.h"

namespace kvsim {
namespace {

double silu(double x) { return x / (1.0 + std::exp(-x)); }
double relu(double x) { return std::max(x, 0.0); }
double gelu(double x) { return 0.5 * x * std::erfc(-x / std::numbers::sqrt2); }
double gelu_tanh(double x) {
  const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(inner));
}

/// log(1 / (1 + exp(-x))) without overflow.
double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::fabs(x))); }

struct Activation {
  const char* name;
  double (*apply)(double);
};
constexpr Activation kActivations[] = {
    {"silu", silu}, {"gelu", gelu}, {"gelu_tanh", gelu_tanh}, {"relu", relu}};

/// One layer's network; matrices row-major.
struct Gate {
  std::vector<float> up, up_bias, down, bias;
};

/// Gives the dot product four chains of additions, always the same ones.
double dot(const float* a, const float* b, std::size_t n) {
  std::array<double, 4> sum{};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t j = 0; j < 4; ++j)
      sum[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  }
  for (; i < n; ++i) sum[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

struct RetentionGates::Impl {
  std::unique_ptr<convert::ArraySource> source;
  double (*activation)(double) = silu;

  static std::string name(std::uint32_t layer, const char* part) {
    return fmt::format("layers.{}.{}", layer, part);
  }

  const convert::ArrayInfo& info(const std::string& name) const {
    const auto at = source->arrays().find(name);
    if (at == source->arrays().end()) throw UserError("{}: holds no array '{}'", source->path(), name);
    return at->second;
  }

  void expect(const std::string& name, const h5::Shape& shape) const {
    const convert::ArrayInfo& found = info(name);
    if (found.shape != shape) {
      throw UserError("{}: {}: found the shape {}, expected {}", source->path(), name,
                      h5::describe_shape(found.shape), h5::describe_shape(shape));
    }
    if (found.element != h5::Element::float32 && found.element != h5::Element::float16 &&
        found.element != h5::Element::bfloat16) {
      throw UserError("{}: {}: found {}, expected float16, bfloat16 or float32", source->path(), name,
                      found.stored_as);
    }
  }

  /// Hidden units of a layer's gate.
  std::uint64_t width(std::uint32_t layer) const {
    const std::string up = name(layer, "up.weight");
    const h5::Shape& shape = info(up).shape;
    if (shape.size() != 2 || shape[0] == 0)
      throw UserError("{}: {}: found the shape {}, expected [width, hidden]", source->path(), up,
                      h5::describe_shape(shape));
    return shape[0];
  }

  std::vector<float> read(std::uint32_t layer, const char* part) const {
    const std::string array = name(layer, part);
    const convert::ArrayInfo& found = info(array);
    std::vector<std::byte> raw(found.bytes());
    source->open(array)(raw);
    std::vector<float> values(h5::element_count(found.shape));
    widen(found.element == h5::Element::float32   ? DType::float32
          : found.element == h5::Element::float16 ? DType::float16
                                                  : DType::bfloat16,
          raw, values);
    const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
    if (bad != values.end()) {
      throw UserError("{}: {}: found {} at element {}, expected finite numbers", source->path(), array, *bad,
                      bad - values.begin());
    }
    return values;
  }
};

RetentionGates::RetentionGates(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RetentionGates::RetentionGates(RetentionGates&&) noexcept = default;
RetentionGates& RetentionGates::operator=(RetentionGates&&) noexcept = default;
RetentionGates::~RetentionGates() = default;

RetentionGates RetentionGates::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->source = convert::open_source(path);
  const auto& arrays = impl->source->arrays();
  if (std::none_of(arrays.begin(), arrays.end(),
                   [](const auto& one) { return one.first.ends_with(".up.weight"); })) {
    throw UserError(
        "{}: holds no retention gates: no array is named layers.<l>.up.weight (see traces/FORMAT.md)", path);
  }
  const auto& metadata = impl->source->metadata();
  const auto named = metadata.find("activation");
  if (named != metadata.end()) {
    const auto* known = std::find_if(std::begin(kActivations), std::end(kActivations),
                                     [&](const Activation& a) { return named->second == a.name; });
    if (known == std::end(kActivations)) {
      throw UserError("{}: activation: found '{}', expected silu, gelu, gelu_tanh or relu", path,
                      named->second);
    }
    impl->activation = known->apply;
  }
  return RetentionGates(std::move(impl));
}

void RetentionGates::check(std::uint32_t layer, std::uint64_t hidden, std::uint32_t kv_heads) const {
  const std::uint64_t width = impl_->width(layer);
  impl_->expect(Impl::name(layer, "up.weight"), {width, hidden});
  impl_->expect(Impl::name(layer, "up.bias"), {width});
  impl_->expect(Impl::name(layer, "down.weight"), {kv_heads, width});
  impl_->expect(Impl::name(layer, "bias"), {kv_heads});
}

Matrix<float> RetentionGates::log_retention(std::uint32_t layer, MatrixView<const float> hidden,
                                            std::uint32_t kv_heads) const {
  check(layer, hidden.cols, kv_heads);
  const Gate gate{impl_->read(layer, "up.weight"), impl_->read(layer, "up.bias"),
                  impl_->read(layer, "down.weight"), impl_->read(layer, "bias")};
  const std::size_t width = gate.up_bias.size();
  Matrix<float> out(kv_heads, hidden.rows);
  std::vector<double> middle(width);
  for (std::size_t t = 0; t < hidden.rows; ++t) {
    const float* x = hidden.row_span(t).data();
    for (std::size_t i = 0; i < width; ++i) {
      middle[i] = impl_->activation(dot(gate.up.data() + i * hidden.cols, x, hidden.cols) +
                                    static_cast<double>(gate.up_bias[i]));
    }
    for (std::size_t g = 0; g < kv_heads; ++g) {
      double z = 0.0;
      for (std::size_t i = 0; i < width; ++i) z += static_cast<double>(gate.down[g * width + i]) * middle[i];
      out(g, t) = static_cast<float>(log_sigmoid(z + static_cast<double>(gate.bias[g])));
    }
  }
  return out;
}

Matrix<float> compute_retention(const RetentionGates& gates, const TraceReader& reader,
                                std::size_t layer_ordinal) {
  const TraceInfo& info = reader.info();
  KVSIM_CHECK(layer_ordinal < info.layers.size(), "layer {} of {}", layer_ordinal, info.path);
  const Matrix<float> hidden = reader.read_hidden(layer_ordinal, 0, info.tokens());
  return gates.log_retention(info.layers[layer_ordinal].index, hidden.view(), info.num_kv_heads);
}

}  // namespace kvsim
