// Gradient boosting: quantile bins once, then one histogram per (node, feature) and level.
#include "policies/paging/boosted_trees.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace kvsim {
namespace {

constexpr std::size_t kBins = 64;
constexpr double kRidge = 1.0;  // added to a leaf's second derivatives

float sortable(float x) { return std::isnan(x) ? std::numeric_limits<float>::infinity() : x; }

/// Upper edges of at most kBins quantile bins of one feature; the last edge is infinite.
std::vector<float> bin_edges(MatrixView<const float> features, std::size_t f) {
  std::vector<float> values(features.rows);
  for (std::size_t r = 0; r < features.rows; ++r) values[r] = sortable(features(r, f));
  std::sort(values.begin(), values.end());
  std::vector<float> edges;
  for (std::size_t b = 1; b < kBins; ++b) {
    const float edge = values[b * (values.size() - 1) / kBins];
    if (std::isfinite(edge) && (edges.empty() || edge > edges.back())) edges.push_back(edge);
  }
  edges.push_back(std::numeric_limits<float>::infinity());
  return edges;
}

}  // namespace

class BoostedTrees::Fitter {
 public:
  Fitter(MatrixView<const float> features, std::span<const float> targets, const BoostingOptions& options,
         RandomSource& random, BoostedTrees& out)
      : features_(features),
        targets_(targets),
        options_(options),
        random_(random),
        out_(out),
        score_(features.rows),
        gradient_(features.rows),
        curvature_(features.rows),
        node_of_(features.rows) {
    for (std::size_t f = 0; f < features.cols; ++f) edges_.push_back(bin_edges(features, f));
    bins_.resize(features.rows * features.cols);
    for (std::size_t r = 0; r < features.rows; ++r) {
      for (std::size_t f = 0; f < features.cols; ++f) {
        const auto at = std::lower_bound(edges_[f].begin(), edges_[f].end(), sortable(features(r, f)));
        bins_[r * features.cols + f] = static_cast<std::uint8_t>(at - edges_[f].begin());
      }
    }
  }

  void run() {
    const double mean =
        std::accumulate(targets_.begin(), targets_.end(), 0.0) / static_cast<double>(targets_.size());
    const double share = std::clamp(mean, 1e-6, 1 - 1e-6);
    out_.base_ = options_.logistic ? std::log(share / (1 - share)) : mean;
    std::fill(score_.begin(), score_.end(), out_.base_);
    for (std::uint32_t t = 0; t < options_.trees; ++t) {
      derive();
      grow();
      const std::uint32_t root = out_.roots_.back();
      for (std::size_t r = 0; r < score_.size(); ++r) score_[r] += out_.nodes_[leaf(root, r)].value;
    }
  }

 private:
  struct Sums {
    double gradient = 0, curvature = 0;
    std::uint32_t rows = 0;
    double gain() const { return gradient * gradient / (curvature + kRidge); }
  };
  struct Split {
    double gain = 0;
    std::size_t feature = 0, bin = 0;
  };

  void derive() {
    for (std::size_t r = 0; r < score_.size(); ++r) {
      if (options_.logistic) {
        const double p = 1.0 / (1.0 + std::exp(-score_[r]));
        gradient_[r] = p - static_cast<double>(targets_[r]);
        curvature_[r] = std::max(1e-12, p * (1 - p));
      } else {
        gradient_[r] = score_[r] - static_cast<double>(targets_[r]);
        curvature_[r] = 1;
      }
    }
  }

  void grow() {
    const auto root = static_cast<std::uint32_t>(out_.nodes_.size());
    out_.roots_.push_back(root);
    out_.nodes_.push_back({});
    std::vector<std::uint32_t> rows;
    for (std::uint32_t r = 0; r < score_.size(); ++r) {
      if (random_.unit() < options_.row_fraction) rows.push_back(r);
    }
    std::vector<std::size_t> chosen;
    for (std::size_t f = 0; f < features_.cols; ++f) {
      if (random_.unit() < options_.feature_fraction) chosen.push_back(f);
    }
    for (const std::uint32_t r : rows) node_of_[r] = root;
    std::uint32_t begin = root, end = root + 1;
    for (std::uint32_t level = 0; level <= options_.depth && begin < end; ++level) {
      split_level(rows, chosen, begin, end, level < options_.depth);
      begin = end;
      end = static_cast<std::uint32_t>(out_.nodes_.size());
    }
  }

  /// Gives the nodes [begin, end) their values, and children where a split pays.
  void split_level(const std::vector<std::uint32_t>& rows, const std::vector<std::size_t>& chosen,
                   std::uint32_t begin, std::uint32_t end, bool may_split) {
    const std::size_t nodes = end - begin;
    std::vector<Sums> totals(nodes);
    for (const std::uint32_t r : rows) {
      if (node_of_[r] >= begin) add(totals[node_of_[r] - begin], r);
    }
    std::vector<Split> best(nodes);
    for (const std::size_t f : may_split ? chosen : std::vector<std::size_t>{}) {
      std::vector<Sums> histogram(nodes * kBins);
      for (const std::uint32_t r : rows) {
        if (node_of_[r] >= begin)
          add(histogram[(node_of_[r] - begin) * kBins + bins_[r * features_.cols + f]], r);
      }
      for (std::size_t n = 0; n < nodes; ++n)
        scan(std::span(histogram).subspan(n * kBins, kBins), totals[n], f, best[n]);
    }
    for (std::size_t n = 0; n < nodes; ++n) {
      Node& node = out_.nodes_[begin + n];
      node.value = -options_.learning_rate * totals[n].gradient / (totals[n].curvature + kRidge);
      if (best[n].gain <= 0) continue;
      node.feature = static_cast<std::uint32_t>(best[n].feature);
      node.threshold = edges_[best[n].feature][best[n].bin];
      node.left = static_cast<std::uint32_t>(out_.nodes_.size());
      out_.nodes_.resize(out_.nodes_.size() + 2);
    }
    for (const std::uint32_t r : rows) {
      if (node_of_[r] < begin) continue;
      const Node& node = out_.nodes_[node_of_[r]];
      if (node.left != 0)
        node_of_[r] = node.left + (sortable(features_(r, node.feature)) <= node.threshold ? 0 : 1);
    }
  }

  void scan(std::span<const Sums> histogram, const Sums& total, std::size_t feature, Split& best) const {
    Sums left;
    for (std::size_t b = 0; b + 1 < edges_[feature].size(); ++b) {
      left.gradient += histogram[b].gradient;
      left.curvature += histogram[b].curvature;
      left.rows += histogram[b].rows;
      const Sums right{total.gradient - left.gradient, total.curvature - left.curvature,
                       total.rows - left.rows};
      if (left.rows < options_.least_rows || right.rows < options_.least_rows) continue;
      const double gain = left.gain() + right.gain() - total.gain();
      if (gain > best.gain + 1e-12) best = {gain, feature, b};
    }
  }

  void add(Sums& sums, std::uint32_t r) const {
    sums.gradient += gradient_[r];
    sums.curvature += curvature_[r];
    ++sums.rows;
  }
  std::uint32_t leaf(std::uint32_t node, std::size_t r) const {
    while (out_.nodes_[node].left != 0) {
      const Node& n = out_.nodes_[node];
      node = n.left + (sortable(features_(r, n.feature)) <= n.threshold ? 0 : 1);
    }
    return node;
  }

  MatrixView<const float> features_;
  std::span<const float> targets_;
  const BoostingOptions& options_;
  RandomSource& random_;
  BoostedTrees& out_;
  std::vector<std::vector<float>> edges_;
  std::vector<std::uint8_t> bins_;
  std::vector<double> score_, gradient_, curvature_;
  std::vector<std::uint32_t> node_of_;
};

BoostedTrees BoostedTrees::fit(MatrixView<const float> features, std::span<const float> targets,
                               const BoostingOptions& options, RandomSource& random) {
  BoostedTrees out;
  out.logistic_ = options.logistic;
  Fitter(features, targets, options, random, out).run();
  return out;
}

double BoostedTrees::predict(std::span<const float> features) const {
  double sum = base_;
  for (std::uint32_t node : roots_) {
    while (nodes_[node].left != 0) {
      const Node& n = nodes_[node];
      node = n.left + (sortable(features[n.feature]) <= n.threshold ? 0 : 1);
    }
    sum += nodes_[node].value;
  }
  return logistic_ ? 1.0 / (1.0 + std::exp(-sum)) : sum;
}

}  // namespace kvsim
