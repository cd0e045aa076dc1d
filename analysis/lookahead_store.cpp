// The report on recorded first passes as files.
#include "analysis/lookahead_store.h"

#include <algorithm>
#include <limits>

#include "analysis/csv.h"
#include "analysis/result_header.h"
#include "analysis/table_writer.h"
#include "analysis/write_guard.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

using h5::Element;

std::int32_t place_of(std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) names.push_back(name);
  return static_cast<std::int32_t>(found - names.begin());
}

struct Names {
  std::vector<std::string> traces, sources, methods;
};

void write_passes(TableWriter& table, const std::vector<LookaheadReport>& reports, Names& names) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  for (const LookaheadReport& report : reports) {
    for (const PassReport& pass : report.passes) {
      table.index(place_of(names.traces, report.trace), csv_field(report.trace));
      table.index(place_of(names.sources, pass.name), csv_field(pass.name));
      table.index(place_of(names.methods, pass.method), csv_field(pass.method));
      table.integer(pass.capacity);
      table.integer(pass.window);
      table.integer(pass.pseudo_tokens);
      table.flag(pass.stopped_at_eos);
      table.integer(static_cast<std::int64_t>(pass.guessed.compared));
      table.integer(static_cast<std::int64_t>(pass.guessed.equal));
      table.integer(static_cast<std::int64_t>(pass.guessed.leading));
      table.integer(static_cast<std::int64_t>(pass.steps));
      table.number(pass.cache_bytes > 0 ? static_cast<double>(pass.cache_bytes) : kUnknown);
      table.integer(static_cast<std::int64_t>(pass.full_bytes));
      table.end_row();
    }
  }
  table.finish();
}

void write_alignment(TableWriter& table, const std::vector<LookaheadReport>& reports, Names& names) {
  for (const LookaheadReport& report : reports) {
    const std::int32_t trace = place_of(names.traces, report.trace);
    for (const QueryAlignment& one : report.alignment) {
      const std::string& source = report.stand_ins[one.stand_in];
      table.index(trace, csv_field(report.trace));
      table.index(place_of(names.sources, source), csv_field(source));
      table.integer(one.layer);
      table.integer(one.query_head);
      table.integer(one.distance);
      table.integer(static_cast<std::int64_t>(one.pairs));
      table.number(one.cosine);
      table.number(one.cosine_unrotated);
      table.number(one.logit_error);
      table.end_row();
    }
  }
  table.finish();
}

}  // namespace

void write_lookahead_report(const std::string& folder, const std::vector<LookaheadReport>& reports) {
  make_folder(folder);
  h5::PendingFile pending(folder + "/lookahead.h5");
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  WriteGuard guard(file);
  write_format(file, "kvsim-lookahead");
  std::size_t passes = 0, rows = 0;
  for (const LookaheadReport& report : reports) {
    passes += report.passes.size();
    rows += report.alignment.size();
  }
  const Element index = Element::int32, whole = Element::int64;
  Names names;
  TableWriter pass_table(file.create_group("passes"), folder + "/passes.csv",
                         {{"trace", index},
                          {"source", index},
                          {"method", index},
                          {"capacity", whole},
                          {"window", whole},
                          {"pseudo_tokens", whole},
                          {"stopped_at_eos", Element::uint8},
                          {"compared_tokens", whole},
                          {"equal_tokens", whole},
                          {"leading_equal_tokens", whole},
                          {"steps", whole},
                          {"cache_bytes"},
                          {"full_cache_bytes", whole}},
                         passes);
  write_passes(pass_table, reports, names);
  TableWriter alignment_table(file.create_group("alignment"), folder + "/alignment.csv",
                              {{"trace", index},
                               {"source", index},
                               {"layer", whole},
                               {"query_head", whole},
                               {"distance", whole},
                               {"pairs", whole},
                               {"cosine"},
                               {"cosine_unrotated"},
                               {"logit_error"}},
                              rows);
  write_alignment(alignment_table, reports, names);
  file.write_column("traces/name", names.traces);
  file.write_column("sources/name", names.sources);
  file.write_column("methods/name", names.methods);
  close_guarded(file, guard);
  pass_table.commit_csv();
  alignment_table.commit_csv();
  pending.commit();
}

}  // namespace kvsim
