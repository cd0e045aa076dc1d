// Checking what further passes over the prompt left in a trace: pseudo queries and second-pass statistics.
#include "traces/check_passes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "traces/check_attention.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim {

void check_second_pass(const h5::File& file, const TraceInfo& info, const LayerInfo& layer,
                       CheckReport& report) {
  for (const std::string& name : layer.second_pass) {
    const std::string where = fmt::format("/layers/{}/second_pass/{}", layer_name(layer.index), name);
    const bool weighted = name == "kvzip_plus";
    const auto most = weighted ? std::numeric_limits<float>::infinity()
                               : static_cast<float>(1.0 + row_sum_tolerance(info.dtype));
    Matrix<float> table(info.num_query_heads, info.prompt_len);
    Staging staging;
    read_rows(file.dataset(where), {}, 0, table.view(), Finite::ignored, staging);
    for (std::size_t h = 0; h < table.rows(); ++h) {
      const auto row = table.view().row_span(h);
      const auto bad = std::find_if(row.begin(), row.end(), [most](float x) { return x < 0.0f || x > most; });
      if (bad == row.end()) continue;
      report.findings.push_back(fmt::format("{}: head {}: found {} at token {}, expected {}", where, h, *bad,
                                            bad - row.begin(), weighted ? "numbers >= 0" : "0 to 1"));
    }
  }
}

void check_lookahead(const h5::File& file, const TraceReader& reader, CheckReport& report) {
  const TraceInfo& info = reader.info();
  const std::uint64_t prompt = info.prompt_len;
  if (info.layers.front().index != 0 || info.token_id.size() != info.tokens()) return;
  for (const LookaheadInfo& pass : info.lookaheads) {
    const std::string where = "lookahead/" + pass.name + "/layers/000/query";
    if (pass.tokens == 0 || pass.token_id[0] != info.token_id[prompt] || !file.has(where)) continue;
    const h5::Dataset pseudo = file.dataset(where), decode = file.dataset("layers/000/query");
    Matrix<float> a(1, info.head_dim), b(1, info.head_dim);
    Staging staging;
    double largest = 0.0;
    for (std::uint32_t h = 0; h < info.num_query_heads; ++h) {
      read_rows(pseudo, {h}, 0, a.view(), Finite::ignored, staging);
      read_rows(decode, {h}, info.layers.front().query_position.size() - info.decode_len, b.view(),
                Finite::ignored, staging);
      double difference = 0.0, norm = 0.0;
      for (std::size_t c = 0; c < info.head_dim; ++c) {
        const double x = static_cast<double>(a(0, c)), y = static_cast<double>(b(0, c));
        difference += (x - y) * (x - y);
        norm += y * y;
      }
      largest = std::max(largest, std::sqrt(difference / std::max(norm, 1e-30)));
    }
    const double allowed = row_sum_tolerance(info.dtype);
    if (!(largest <= allowed)) {
      report.findings.push_back(
          fmt::format("/{}: the first pseudo query differs from the first decode query by {:.3g}, expected "
                      "at most {:.3g} "
                      "(the same token without attention before it): another prompt or model",
                      where, largest, allowed));
    }
    report.notes.push_back(fmt::format("/lookahead/{}: first query within {:.3g} of the first decode query",
                                       pass.name, largest));
  }
}

}  // namespace kvsim
