// Sweeps of page policies over capacities.
#include "sim/pages/page_sweep.h"

#include <omp.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// The strict form of Guard: relax_times=1, relax_prob=0, random victims.
bool is_strict_guard(const PageVariant& variant) {
  return variant.name == "guard" &&
         variant.label.find("relax_times=1,relax_prob=0,follow_if_guarded=false") != std::string::npos;
}

PageRow row_of(const PageSweep& sweep, std::uint32_t stream, std::uint32_t variant,
               const CapacityRequest& request) {
  PageRow row;
  row.stream = stream;
  row.variant = variant;
  row.capacity_request = request.text;
  const StreamInfo& info = sweep.infos[stream];
  const std::uint64_t all =
      sweep.options.by_bytes ? info.all_bytes : sweep.streams[stream].unique + info.pinned;
  row.capacity = capacity_for(request, all);
  row.slots = row.capacity > info.pinned ? row.capacity - info.pinned : 0;
  const bool bounded = is_strict_guard(sweep.variants[variant]) && !sweep.options.by_bytes && row.slots > 0;
  row.bound = bounded ? guard_factor(row.slots) : kUndefined;
  row.sampled_error = row.output_error = kUndefined;
  return row;
}

/// Ascending capacities of a stream, every size once.
std::vector<CapacityRequest> ordered_capacities(const PageSweep& sweep, std::uint32_t stream) {
  const StreamInfo& info = sweep.infos[stream];
  const std::uint64_t all =
      sweep.options.by_bytes ? info.all_bytes : sweep.streams[stream].unique + info.pinned;
  std::vector<CapacityRequest> out = sweep.capacities;
  std::stable_sort(out.begin(), out.end(), [all](const CapacityRequest& a, const CapacityRequest& b) {
    return capacity_for(a, all) < capacity_for(b, all);
  });
  return out;
}

/// Fills `optimum` from the rows of Belady at the same capacity of the same stream.
void compare_with_optimum(PageSweep& sweep) {
  if (sweep.options.by_bytes) return;
  for (PageRow& row : sweep.rows) {
    for (const PageRow& other : sweep.rows) {
      if (other.stream != row.stream || other.slots != row.slots ||
          sweep.variants[other.variant].name != "belady")
        continue;
      row.has_optimum = true;
      row.optimum = other.counts.tally.misses;
      break;
    }
  }
}

/// Takes failed rows out of the list and writes them down.
void collect(PageSweep& sweep, std::vector<PageRow>& rows, const std::vector<std::string>& failures) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (failures[i].empty()) {
      sweep.rows.push_back(std::move(rows[i]));
      continue;
    }
    const bool known = std::any_of(sweep.failures.begin(), sweep.failures.end(), [&](const PageFailure& f) {
      return f.variant == rows[i].variant && f.message == failures[i];
    });
    if (!known) sweep.failures.push_back({rows[i].stream, rows[i].variant, failures[i]});
  }
}

}  // namespace

double guard_factor(std::uint64_t k) {
  double sum = 0;
  for (std::uint64_t i = k; i-- > 1;) sum += 1.0 / static_cast<double>(i);
  return 2 * sum + 2;
}

double PageRow::cost_ratio() const {
  if (!has_optimum || optimum == 0) return kUndefined;
  return static_cast<double>(counts.tally.misses) / static_cast<double>(optimum);
}

std::vector<PageVariant> make_page_variants(const std::vector<std::string>& specs, bool reference) {
  std::vector<PageVariant> out;
  const auto add = [&out](const SpecValue& spec, bool automatic) {
    PageVariant variant;
    variant.policy = bind_page_policy(spec);
    variant.name = variant.policy->traits().name;
    variant.label = canonical_page_spec(*variant.policy);
    variant.automatic = automatic;
    for (const PageVariant& other : out) {
      if (other.label != variant.label) continue;
      if (other.automatic || automatic) return;
      throw UserError("--policy: {} is given twice", variant.label);
    }
    out.push_back(std::move(variant));
  };
  const bool named =
      std::any_of(specs.begin(), specs.end(), [](const std::string& s) { return s == "belady"; });
  if (reference && !named) add(parse_specs("belady").at(0), true);
  for (const std::string& text : specs) {
    for (const SpecValue& spec : parse_specs(text)) add(spec, false);
  }
  return out;
}

std::vector<CapacityRequest> parse_capacities(const std::vector<std::string>& lists) {
  std::vector<CapacityRequest> out;
  const auto bad = [](const std::string& text) {
    return UserError(
        "--capacity '{}' does not fit: write numbers above zero, ranges a..b*f or a..b+s, or percent, for "
        "example 64..4096*2,5%",
        text);
  };
  for (const std::string& list : lists) {
    std::size_t begin = 0;
    while (begin <= list.size()) {
      const std::size_t end = std::min(list.find(',', begin), list.size());
      const std::string item = list.substr(begin, end - begin);
      begin = end + 1;
      for (const std::string& word : expand_range(item)) {
        CapacityRequest request;
        request.text = word;
        double number = 0;
        const auto result = std::from_chars(word.data(), word.data() + word.size(), number);
        std::string_view unit(result.ptr, static_cast<std::size_t>(word.data() + word.size() - result.ptr));
        if (result.ec != std::errc() || !std::isfinite(number) || number <= 0) throw bad(word);
        if (unit == "%") {
          request.percent = number;
        } else {
          const std::size_t power = unit.empty() ? 0 : std::string_view("KMGT").find(unit.front()) + 1;
          if (unit.size() > 1 || (unit.size() == 1 && power == 0)) throw bad(word);
          const double amount = number * std::pow(1024.0, static_cast<double>(power));
          if (amount >= 1e18 || (power == 0 && amount != std::floor(amount))) throw bad(word);
          request.amount = static_cast<std::uint64_t>(amount);
        }
        out.push_back(request);
      }
    }
  }
  return out;
}

std::uint64_t capacity_for(const CapacityRequest& request, std::uint64_t all) {
  if (request.percent == 0) return request.amount;
  return std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(request.percent / 100.0 * static_cast<double>(all)));
}

void run_sweep(PageSweep& sweep, int threads, const CellHook& hook) {
  std::vector<PageRow> rows;
  for (std::uint32_t s = 0; s < sweep.streams.size(); ++s) {
    const std::vector<CapacityRequest> capacities = ordered_capacities(sweep, s);
    for (std::uint32_t v = 0; v < sweep.variants.size(); ++v) {
      for (const CapacityRequest& c : capacities) {
        PageRow row = row_of(sweep, s, v, c);
        // Two requests may mean the same capacity here ("5%" of a short stream).
        const bool same = !rows.empty() && rows.back().stream == s && rows.back().variant == v &&
                          rows.back().capacity == row.capacity;
        if (!same) rows.push_back(std::move(row));
      }
    }
  }
  std::vector<std::string> failures(rows.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::size_t i = 0; i < rows.size(); ++i) {
    PageRow& row = rows[i];
    const PageStream& stream = sweep.streams[row.stream];
    const PagePolicy& policy = *sweep.variants[row.variant].policy;
    try {
      if (row.slots == 0) {
        throw UserError("a capacity of {} leaves no page beside the {} that are always resident",
                        row.capacity, sweep.infos[row.stream].pinned);
      }
      row.counts = simulate_pages(stream, policy, row.slots, sweep.options);
      if (hook) hook(stream, policy, row);
    } catch (const UserError& e) {
      failures[i] = e.what();
    }
  }
  collect(sweep, rows, failures);
  compare_with_optimum(sweep);
}

void run_streamed(PageSweep& sweep, const std::string& path, const RequestFileOptions& file, double rate,
                  std::uint32_t groups, int threads) {
  KVSIM_CHECK(sweep.streams.size() == 1, "{} streams", sweep.streams.size());
  omp_set_num_threads(threads);
  for (const CapacityRequest& c : sweep.capacities) {
    if (c.percent > 0)
      throw UserError(
          "--capacity {}: a share of the objects is not known while the input is read as a stream", c.text);
  }
  std::vector<PageRow> rows;
  std::vector<StreamCell> cells;
  for (std::uint32_t v = 0; v < sweep.variants.size(); ++v) {
    for (const CapacityRequest& c : ordered_capacities(sweep, 0)) {
      rows.push_back(row_of(sweep, 0, v, c));
      for (std::uint32_t g = 0; g < groups; ++g) {
        StreamCell cell;
        cell.policy = sweep.variants[v].policy.get();
        cell.capacity = rows.back().capacity;
        cell.group = g;
        cells.push_back(std::move(cell));
      }
    }
  }
  const StreamFacts facts = stream_requests(path, file, sweep.options, rate, groups, cells);
  sweep.streams[0].unique = static_cast<Page>(facts.unique);
  sweep.streams[0].grouping = facts.grouped ? Grouping::prefix : Grouping::none;
  std::vector<std::string> failures(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double sum = 0, squares = 0;
    for (std::uint32_t g = 0; g < groups; ++g) {
      StreamCell& cell = cells[i * groups + g];
      if (!cell.failure.empty()) failures[i] = cell.failure;
      const double ratio = cell.counts.miss_ratio();
      sum += ratio;
      squares += ratio * ratio;
      rows[i].counts.add(cell.counts);
    }
    if (groups > 1) {
      rows[i].sampled_error =
          std::sqrt(std::max(0.0, squares / groups - sum / groups * (sum / groups)) / (groups - 1));
    }
  }
  collect(sweep, rows, failures);
  if (rate == 1.0) compare_with_optimum(sweep);
}

}  // namespace kvsim
