// Checking a trace: digest, non-finite values, statistics, recorded attention.
#include "traces/check.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "traces/check_attention.h"
#include "traces/check_passes.h"
#include "traces/digest.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 22;

/// Row-major index of an element: "head 3, token 17, channel 5" for tensors of three dimensions.
std::string describe_index(const h5::Shape& shape, std::uint64_t flat) {
  h5::Shape index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    index[i] = flat % shape[i];
    flat /= shape[i];
  }
  if (index.size() == 3) return fmt::format("head {}, token {}, channel {}", index[0], index[1], index[2]);
  if (index.size() == 2) return fmt::format("row {}, column {}", index[0], index[1]);
  return fmt::format("index {}", h5::describe_shape(index));
}

/// Looks for the first NaN or infinity in a stream of raw values.
class FiniteScan {
 public:
  explicit FiniteScan(DType type) : type_(type) {}

  void add(std::span<const std::byte> raw) {
    const std::size_t count = raw.size() / size_of(type_);
    if (!found_) {
      values_.resize(count);
      widen(type_, raw, values_);
      if (!all_finite(values_)) {
        const auto bad =
            std::find_if(values_.begin(), values_.end(), [](float x) { return !std::isfinite(x); });
        found_ = true;
        at_ = seen_ + static_cast<std::uint64_t>(bad - values_.begin());
        value_ = *bad;
      }
    }
    seen_ += count;
  }
  bool found() const { return found_; }
  std::uint64_t at() const { return at_; }
  float value() const { return value_; }

 private:
  DType type_;
  std::vector<float> values_;
  bool found_ = false;
  std::uint64_t seen_ = 0, at_ = 0;
  float value_ = 0.0f;
};

bool is_tensor(h5::Element element) {
  return element == h5::Element::float16 || element == h5::Element::bfloat16 ||
         element == h5::Element::float32;
}

/// One pass over all bytes: the digest and every tensor's finiteness. True when a value is not finite.
bool check_bytes(const h5::File& file, const TraceInfo& info, CheckReport& report,
                 const std::function<void(std::uint64_t)>& progress) {
  Digest digest;
  std::uint64_t bytes = 0, tensors = 0;
  bool non_finite = false;
  for (const std::string& path : file.all_datasets()) {
    const h5::Dataset dataset = file.dataset(path);
    if (!h5::is_numeric(dataset.element())) continue;
    const bool tensor = is_tensor(dataset.element());
    FiniteScan scan(tensor ? tensor_type(dataset) : DType::float32);
    digest.begin(path);
    dataset.stream_raw(kPiece, [&](std::span<const std::byte> piece) {
      digest.add(piece);
      if (tensor) scan.add(piece);
      bytes += piece.size();
      if (progress) progress(piece.size());
    });
    digest.end();
    tensors += tensor ? 1 : 0;
    if (scan.found()) {
      non_finite = true;
      report.findings.push_back(fmt::format("{}: found {} at {}, expected finite numbers", path, scan.value(),
                                            describe_index(dataset.shape(), scan.at())));
    }
  }
  report.notes.push_back(fmt::format("{} tensors, {} bytes: looked for NaN and infinity", tensors, bytes));
  if (info.digest.empty()) {
    report.notes.push_back("the file has no digest");
  } else if (info.digest == digest.text()) {
    report.notes.push_back(fmt::format("digest {} confirmed", info.digest));
  } else {
    report.findings.push_back(
        fmt::format("/@digest: found {}, expected {}: the tensors were changed after it was written",
                    info.digest, digest.text()));
  }
  return non_finite;
}

std::string where_of(const LayerInfo& layer, const std::string& name) {
  return fmt::format("/layers/{}/{}", layer_name(layer.index), name);
}

/// Every prompt query gives one unit of attention, so the sums of a head add up to the number of prompt
/// tokens.
void check_attention_sums(const h5::File& file, const TraceInfo& info, const LayerInfo& layer,
                          CheckReport& report) {
  if (std::find(layer.attention_stats.begin(), layer.attention_stats.end(), "sum") ==
      layer.attention_stats.end())
    return;
  const std::string where = where_of(layer, "attention_stats/sum");
  Matrix<float> sums(info.num_query_heads, info.prompt_len);
  Staging staging;
  read_rows(file.dataset(where), {}, 0, sums.view(), Finite::ignored, staging);
  const double tolerance = row_sum_tolerance(info.dtype);
  double largest = 0.0;
  for (std::size_t h = 0; h < sums.rows(); ++h) {
    double total = 0.0;
    for (const float x : sums.view().row_span(h)) total += static_cast<double>(x);
    const double deviation = std::fabs(total / static_cast<double>(info.prompt_len) - 1.0);
    largest = std::max(largest, deviation);
    if (!(deviation <= tolerance)) {
      report.findings.push_back(
          fmt::format("{}: head {}: found sums that add up to {:.6g}, expected {} (the prompt's queries)",
                      where, h, total, info.prompt_len));
    }
  }
  report.notes.push_back(fmt::format(
      "{}: largest relative deviation of a head's total {:.3g} (allowed {:.3g})", where, largest, tolerance));
}

/// A covariance has no negative variance and is symmetric.
void check_covariance(const h5::File& file, const TraceInfo& info, const LayerInfo& layer,
                      CheckReport& report) {
  if (!layer.has_query_stats) return;
  const std::string where = where_of(layer, "query_stats/covariance");
  const h5::Dataset dataset = file.dataset(where);
  const std::size_t d = info.head_dim;
  Matrix<float> covariance(d, d);
  Staging staging;
  for (std::uint32_t h = 0; h < info.num_query_heads; ++h) {
    read_rows(dataset, {h}, 0, covariance.view(), Finite::ignored, staging);
    for (std::size_t i = 0; i < d; ++i) {
      if (covariance(i, i) < 0.0f) {
        report.findings.push_back(
            fmt::format("{}: head {}: found the variance {} of channel {}, expected >= 0", where, h,
                        covariance(i, i), i));
        break;
      }
      const auto skewed = [&](std::size_t j) {
        const float bound = 1e-4f * std::sqrt(std::fabs(covariance(i, i) * covariance(j, j))) + 1e-6f;
        return std::fabs(covariance(i, j) - covariance(j, i)) > bound;
      };
      std::size_t j = 0;
      while (j < i && !skewed(j)) ++j;
      if (j < i) {
        report.findings.push_back(
            fmt::format("{}: head {}: found {} at [{}, {}] and {} at [{}, {}], expected a symmetric matrix",
                        where, h, covariance(i, j), i, j, covariance(j, i), j, i));
        break;
      }
    }
  }
}

/// A retention rate is at most 1, its logarithm at most 0.
void check_retention(const h5::File& file, const TraceInfo& info, const LayerInfo& layer,
                     CheckReport& report) {
  if (!layer.has_retention) return;
  const std::string where = where_of(layer, "retention");
  Matrix<float> logs(info.num_kv_heads, info.tokens());
  Staging staging;
  read_rows(file.dataset(where), {}, 0, logs.view(), Finite::ignored, staging);
  float lowest = 0.0f;
  for (std::size_t h = 0; h < logs.rows(); ++h) {
    const auto row = logs.view().row_span(h);
    const auto bad = std::find_if(row.begin(), row.end(), [](float x) { return x > 0.0f; });
    if (bad != row.end()) {
      report.findings.push_back(
          fmt::format("{}: head {}: found {} at token {}, expected the log of a rate, at most 0", where, h,
                      *bad, bad - row.begin()));
    }
    for (const float x : row) lowest = std::min(lowest, x);
  }
  report.notes.push_back(fmt::format("{}: logs of retention rates down to {:.4g}", where, lowest));
}

}  // namespace

std::uint64_t check_work(std::uint64_t bytes) { return bytes; }

CheckReport check_trace(const std::string& path, const CheckOptions& options,
                        const std::function<void(std::uint64_t)>& progress) {
  CheckReport report;
  const TraceReader reader = TraceReader::open(path);
  const TraceInfo& info = reader.info();
  report.notes.push_back(fmt::format(
      "{} layers, {} query and {} KV heads, {} + {} tokens: shapes and positions fit", info.layers.size(),
      info.num_query_heads, info.num_kv_heads, info.prompt_len, info.decode_len));
  const h5::File file = h5::File::open(path);
  const bool non_finite = check_bytes(file, info, report, progress);
  for (std::size_t l = 0; l < info.layers.size(); ++l) {
    check_attention_sums(file, info, info.layers[l], report);
    check_covariance(file, info, info.layers[l], report);
    check_retention(file, info, info.layers[l], report);
    check_second_pass(file, info, info.layers[l], report);
    // Non-finite tensors are reported above; attention of them says nothing more.
    if (options.attention && !non_finite) check_attention(reader, l, report);
  }
  check_lookahead(file, reader, report);
  return report;
}

}  // namespace kvsim
