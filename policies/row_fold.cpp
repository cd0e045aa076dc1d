// From the attention of several queries to one number per token.
#include "policies/row_fold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

using Kind = QueryPart::Kind;
constexpr float kUnseen = -std::numeric_limits<float>::infinity();

/// What a fold may need of the numbers of one token, in double and in the order of the rows.
struct Tally {
  double sum = 0, squares = 0, largest = 0, last = 0;
  std::size_t rows = 0;

  void add(double x) {
    sum += x;
    squares += x * x;
    largest = rows == 0 ? x : std::max(largest, x);
    last = x;
    ++rows;
  }
  double mean() const { return rows == 0 ? 0.0 : sum / static_cast<double>(rows); }
  double variance() const {
    if (rows < 2) return 0.0;
    const auto n = static_cast<double>(rows);
    return std::max(0.0, (squares - sum * sum / n) / (n - 1));
  }
};

double result(const Tally& tally, Fold fold) {
  switch (fold) {
    case Fold::mean:
      return tally.mean();
    case Fold::sum:
    case Fold::count:
    case Fold::visible:
      return tally.sum;
    case Fold::variance:
      return tally.variance();
    case Fold::meanvar:
      break;  // made of two others
    case Fold::last:
      return tally.last;
    case Fold::largest:
      return tally.largest;
    case Fold::squares:
      return tally.squares;
  }
  throw InternalError("unknown fold");
}

/// A number per (token, row), token-major.
struct Elements {
  std::size_t rows = 0;
  std::vector<float> value;  // kUnseen: the row does not see the token
};

void append(Elements& to, std::size_t tokens, std::size_t rows, std::span<const float> value) {
  std::vector<float> joined(tokens * (to.rows + rows));
  for (std::size_t t = 0; t < tokens; ++t) {
    float* at = joined.data() + t * (to.rows + rows);
    std::copy_n(to.value.begin() + static_cast<std::ptrdiff_t>(t * to.rows), to.rows, at);
    std::copy_n(value.begin() + static_cast<std::ptrdiff_t>(t * rows), rows, at + to.rows);
  }
  to = {to.rows + rows, std::move(joined)};
}

/// Numbers of one set of rows.
Elements elements_of(const HeadFeatures& head, Pair pair, const QueryRows& rows, std::size_t h) {
  const MatrixView<const float> weight = head.attention(rows, h);
  Elements out{weight.cols, std::vector<float>(weight.rows * weight.cols)};
  for (std::size_t i = 0; i < weight.cols; ++i) {
    const std::size_t end = visible_end(rows, i, weight.cols, head.geometry());
    const auto keys = static_cast<double>(visible_keys(rows, i, weight.cols, head.geometry()));
    for (std::size_t t = 0; t < weight.rows; ++t) {
      const bool above = static_cast<double>(weight(t, i)) * keys >= 1.0;
      float& x = out.value[t * weight.cols + i];
      if (pair == Pair::attention)
        x = weight(t, i);
      else
        x = t >= end ? kUnseen : above == (pair == Pair::above) ? 1.0f : 0.0f;
    }
  }
  return out;
}

Elements all_elements(const HeadFeatures& head, const RowFold& fold, std::size_t h) {
  Elements out;
  const std::size_t tokens = head.geometry().prompt;
  for (const QueryRows& rows : query_rows(fold.query, fold.pass)) {
    if (fold.pair != Pair::logit) {
      Elements part = elements_of(head, fold.pair, rows, h);
      if (out.rows == 0)
        out = std::move(part);
      else
        append(out, tokens, part.rows, part.value);
    } else {
      const std::span<const float> part = shared_logits(head, rows, h);
      append(out, tokens, part.size() / tokens, part);
    }
  }
  return out;
}

/// Softmax of every row over the tokens before `end`; what stands behind them becomes 0.
void softmax_before(Elements& elements, std::size_t end, bool logits) {
  const std::size_t tokens = elements.rows == 0 ? 0 : elements.value.size() / elements.rows;
  for (std::size_t i = 0; i < elements.rows; ++i) {
    const auto at = [&](std::size_t t) -> float& { return elements.value[t * elements.rows + i]; };
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::size_t t = 0; t < end; ++t) largest = std::max(largest, static_cast<double>(at(t)));
    const auto raised = [&](std::size_t t) {
      if (!logits) return static_cast<double>(at(t));
      return std::isinf(largest) ? 0.0 : std::exp(static_cast<double>(at(t)) - largest);
    };
    for (std::size_t t = 0; t < end; ++t) sum += raised(t);
    for (std::size_t t = 0; t < end; ++t) at(t) = sum > 0 ? static_cast<float>(raised(t) / sum) : 0.0f;
    for (std::size_t t = end; t < tokens; ++t) at(t) = 0.0f;
  }
}

std::vector<float> fold_elements(const Elements& elements, const RowFold& fold, std::size_t tokens) {
  std::vector<float> out(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    Tally tally;
    for (std::size_t i = 0; i < elements.rows; ++i) {
      const float x = elements.value[t * elements.rows + i];
      if (x != kUnseen) tally.add(static_cast<double>(x));
    }
    out[t] = static_cast<float>(result(tally, fold.fold));
  }
  return out;
}

/// All prompt queries, a tile at a time.
std::vector<float> fold_prompt(const HeadFeatures& head, const RowFold& fold, std::size_t h) {
  std::vector<Tally> tally(head.geometry().prompt);
  head.each_prompt_tile(h, [&](const PromptTile& tile) {
    for (std::size_t t = 0; t < tile.weights.rows; ++t) {
      for (std::size_t i = 0; i < tile.count; ++i) {
        const bool sees = t <= tile.first + i;
        const double a = static_cast<double>(tile.weights(t, i));
        const std::size_t seen =
            head.geometry().sliding_window == 0
                ? tile.first + i + 1
                : std::min<std::size_t>(tile.first + i + 1, head.geometry().sliding_window);
        const bool above = a * static_cast<double>(seen) >= 1.0;
        if (sees)
          tally[t].add(fold.pair == Pair::attention ? a : above == (fold.pair == Pair::above) ? 1.0 : 0.0);
      }
    }
  });
  std::vector<float> out;
  for (const Tally& one : tally) out.push_back(static_cast<float>(result(one, fold.fold)));
  return out;
}

bool sums_of_prompt(const RowFold& fold) {
  return fold.query.front().kind == Kind::all && fold.pair == Pair::attention &&
         (fold.fold == Fold::sum || fold.fold == Fold::mean || fold.fold == Fold::visible);
}

bool plain_window(const RowFold& fold) {
  const QueryPart& part = fold.query.front();
  return fold.query.size() == 1 && (part.kind == Kind::window || part.kind == Kind::current) &&
         fold.pair == Pair::attention && !fold.softmax && (fold.fold == Fold::mean || fold.fold == Fold::sum);
}

std::string key_of(const RowFold& fold) {
  std::string key =
      fmt::format("fold:{}:{}:{}:{}:{}", static_cast<int>(fold.pair), static_cast<int>(fold.fold), fold.gamma,
                  fold.logit_max ? 1 : 0, fold.softmax ? fmt::format("{}", fold.older) : "");
  if (fold.query.front().kind == Kind::all) return key + ":all";
  for (const QueryRows& rows : query_rows(fold.query, fold.pass)) key += '|' + rows_key(rows);
  return key;
}

std::vector<float> scaled(std::span<const float> row, double factor) {
  std::vector<float> out(row.size());
  std::transform(row.begin(), row.end(), out.begin(),
                 [factor](float x) { return static_cast<float>(static_cast<double>(x) * factor); });
  return out;
}

/// mean + gamma * variance, of the very mean that others use.
std::vector<float> mean_and_variance(const HeadFeatures& head, RowFold fold, std::size_t h) {
  const double gamma = fold.gamma;
  fold.gamma = 0;
  fold.fold = Fold::mean;
  const std::span<const float> mean = folded_row(head, fold, h);
  fold.fold = Fold::variance;
  const std::span<const float> variance = folded_row(head, fold, h);
  std::vector<float> out(mean.size());
  for (std::size_t t = 0; t < out.size(); ++t)
    out[t] = static_cast<float>(static_cast<double>(mean[t]) + gamma * static_cast<double>(variance[t]));
  return out;
}

std::vector<float> compute(const HeadFeatures& head, const RowFold& fold, std::size_t h) {
  const std::size_t tokens = head.geometry().prompt;
  if (fold.fold == Fold::meanvar) return mean_and_variance(head, fold, h);
  if (fold.query.front().kind == Kind::all) {
    if (!sums_of_prompt(fold)) return fold_prompt(head, fold, h);
    return scaled(head.attention_sum(h), fold.fold == Fold::mean ? 1.0 / static_cast<double>(tokens) : 1.0);
  }
  Elements elements = all_elements(head, fold, h);
  for (std::size_t other = 0; fold.logit_max && other < head.geometry().group; ++other) {
    if (other == h) continue;
    const Elements next = all_elements(head, fold, other);
    for (std::size_t i = 0; i < next.value.size(); ++i)
      elements.value[i] = std::max(elements.value[i], next.value[i]);
  }
  const bool logits = fold.pair == Pair::logit;
  if (fold.softmax) softmax_before(elements, tokens - std::min<std::size_t>(tokens, fold.older), logits);
  return fold_elements(elements, fold, tokens);
}

}  // namespace

Need fold_needs(const RowFold& fold) {
  Need needs = query_needs(fold.query);
  if (!fold.query.empty() && fold.query.front().kind == Kind::all && !sums_of_prompt(fold))
    needs = Need::all_queries;
  return fold.pair == Pair::logit ? needs | Need::keys : needs;
}

bool fold_reads_rows(const RowFold& fold) {
  return fold.query.front().kind != Kind::all && !plain_window(fold);
}

std::span<const float> shared_logits(const HeadFeatures& head, const QueryRows& rows,
                                     std::size_t query_head) {
  return head.shared(fmt::format("logits:{}:{}", query_head, rows_key(rows)), [&] {
    const LayerGeometry& layer = head.geometry();
    const MatrixView<const float> keys = head.keys(), queries = head.queries(rows, query_head),
                                  weight = head.attention(rows, query_head);
    std::vector<float> out(keys.rows * queries.rows);
    for (std::size_t t = 0; t < keys.rows; ++t) {
      for (std::size_t i = 0; i < queries.rows; ++i) {
        double dot = 0;
        for (std::size_t c = 0; c < keys.cols; ++c)
          dot += static_cast<double>(queries(i, c)) * static_cast<double>(keys(t, c));
        out[t * queries.rows + i] =
            weight(t, i) > 0 ? static_cast<float>(dot * layer.softmax_scale) : kUnseen;
      }
    }
    return out;
  });
}

std::span<const float> folded_row(const HeadFeatures& head, const RowFold& fold, std::size_t query_head) {
  if (plain_window(fold) && fold.fold == Fold::mean)
    return head.window_mean(query_window(fold.query), query_head);
  if (fold.query.front().kind == Kind::all && fold.fold == Fold::visible && fold.pair == Pair::attention)
    return head.attention_mean_over_visible(query_head);
  if (sums_of_prompt(fold) && fold.fold == Fold::sum) return head.attention_sum(query_head);
  const std::size_t h = fold.logit_max ? 0 : query_head;  // one row for the group
  return head.shared(fmt::format("{}@{}", key_of(fold), h), [&] {
    if (plain_window(fold)) {
      const std::uint32_t window = query_window(fold.query);
      return scaled(head.window_mean(window, h), window);
    }
    return compute(head, fold, h);
  });
}

}  // namespace kvsim
