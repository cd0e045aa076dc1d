// Differences between two results, cell by cell.
#include <algorithm>
#include <cmath>
#include <map>

#include "analysis/report.h"

namespace kvsim {
namespace {

constexpr std::size_t kShown = 10;
constexpr const char* kKeys[] = {"trace",   "policy",         "variant",      "layer",
                                 "kv_head", "budget_request", "budget_tokens"};

bool is_key(const std::string& name) {
  return std::find(std::begin(kKeys), std::end(kKeys), name) != std::end(kKeys);
}

bool agree(double a, double b, double tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (a == b) return true;
  return std::fabs(a - b) <= tolerance * std::max({1.0, std::fabs(a), std::fabs(b)});
}

std::string row_name(const Table& table, std::size_t row) {
  std::string name;
  for (const char* key : kKeys) {
    const Column* column = table.find(key);
    if (column == nullptr) continue;
    name += fmt::format("{}{} {}", name.empty() ? "" : ", ", key, column->text(column->numbers[row]));
  }
  return name;
}

class Comparer {
 public:
  Comparer(Difference& out, double tolerance) : out_(out), tolerance_(tolerance) {}

  void compare(const Table& a, const Table& b) {
    compare_columns(a, b);
    std::map<std::string, std::size_t> rows_of_b;
    for (std::size_t i = 0; i < b.rows(); ++i) rows_of_b.emplace(row_name(b, i), i);
    std::size_t matched = 0;
    for (std::size_t i = 0; i < a.rows(); ++i) {
      const std::string name = row_name(a, i);
      const auto found = rows_of_b.find(name);
      if (found == rows_of_b.end()) {
        differ(a.name, "rows", fmt::format("/{}: only A has {}", a.name, name));
        continue;
      }
      ++matched;
      compare_rows(a, i, b, found->second, name);
      rows_of_b.erase(found);
    }
    for (const auto& entry : rows_of_b)
      differ(a.name, "rows", fmt::format("/{}: only B has {}", a.name, entry.first));
    rows_ += matched;
  }

  void finish() {
    if (out_.differing == 0) {
      out_.text = fmt::format("no difference: {} numbers in {} rows{}\n", out_.compared, rows_,
                              tolerance_ > 0 ? fmt::format(" agree within {:g}", tolerance_) : " are equal");
      return;
    }
    out_.text += out_.differing > kShown ? fmt::format("... {} differences in all:\n", out_.differing) : "";
    for (const auto& [column, tally] : tallies_) {
      out_.text += fmt::format("{}: {} differ{}\n", column, tally.count,
                               tally.largest > 0 ? fmt::format(", by {:.3g} at most", tally.largest) : "");
    }
  }

 private:
  struct Tally {
    std::size_t count = 0;
    double largest = 0;
  };

  void differ(const std::string& table, const std::string& column, const std::string& line, double by = 0) {
    if (out_.differing++ < kShown) out_.text += line + "\n";
    Tally& tally = tallies_[table + "/" + column];
    ++tally.count;
    if (by > tally.largest) tally.largest = by;
  }

  void compare_columns(const Table& a, const Table& b) {
    for (const Column& column : a.columns) {
      if (b.find(column.name) == nullptr)
        differ(a.name, column.name, fmt::format("/{}: only A has the column {}", a.name, column.name));
    }
    for (const Column& column : b.columns) {
      if (a.find(column.name) == nullptr)
        differ(a.name, column.name, fmt::format("/{}: only B has the column {}", a.name, column.name));
    }
  }

  void compare_rows(const Table& a, std::size_t i, const Table& b, std::size_t j, const std::string& name) {
    for (const Column& column : a.columns) {
      const Column* other = b.find(column.name);
      if (is_key(column.name) || other == nullptr) continue;
      ++out_.compared;
      const double x = column.numbers[i], y = other->numbers[j];
      if (agree(x, y, tolerance_)) continue;
      const auto shown = [](double value) {
        return std::isnan(value) ? std::string("undefined") : fmt::format("{}", value);
      };
      differ(a.name, column.name,
             fmt::format("/{}: {}: {} is {} in A, {} in B", a.name, name, column.name, shown(x), shown(y)),
             std::isnan(x) || std::isnan(y) ? 0 : std::fabs(x - y));
    }
  }

  Difference& out_;
  double tolerance_;
  std::size_t rows_ = 0;
  std::map<std::string, Tally> tallies_;
};

}  // namespace

Difference diff_results(const Results& a, const Results& b, double tolerance) {
  Difference difference;
  Comparer comparer(difference, tolerance);
  comparer.compare(a.summary, b.summary);
  comparer.compare(a.rows, b.rows);
  comparer.compare(a.layer_rows, b.layer_rows);
  comparer.finish();
  return difference;
}

}  // namespace kvsim
