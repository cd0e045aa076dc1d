// Statistics of recordings as CSV and HDF5.
#include "analysis/statistics_store.h"

#include "analysis/csv.h"
#include "analysis/durable_file.h"
#include "analysis/result_header.h"
#include "analysis/table_writer.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

std::vector<ColumnSpec> column_specs() {
  const auto index = h5::Element::int32, integer = h5::Element::int64;
  return {{"trace", index},
          {"layer", integer},
          {"kv_head", integer},
          {"query_head", integer},
          {"statistic", index},
          {"parameter", integer},
          {"mean"},
          {"count", integer}};
}

void write_tables(h5::File& file, const std::vector<TraceStatistics>& traces) {
  std::vector<std::string> paths, models, names, meanings;
  std::vector<std::int64_t> prompts, decodes;
  for (const TraceStatistics& trace : traces) {
    paths.push_back(trace.path);
    models.push_back(trace.model);
    prompts.push_back(static_cast<std::int64_t>(trace.prompt_len));
    decodes.push_back(static_cast<std::int64_t>(trace.decode_len));
  }
  h5::Group group = file.create_group("traces");
  group.write_column("name", paths);
  group.write_column("model", models);
  group.write_column("prompt_len", prompts);
  group.write_column("decode_len", decodes);
  for (std::size_t i = 0; i < kTraceStatistics; ++i) {
    names.emplace_back(name_of(static_cast<TraceStatistic>(i)));
    meanings.emplace_back(meaning_of(static_cast<TraceStatistic>(i)));
  }
  h5::Group statistics = file.create_group("statistics");
  statistics.write_column("name", names);
  statistics.write_column("meaning", meanings);
}

void write_rows(TableWriter& table, std::size_t index, const TraceStatistics& trace) {
  for (const StatisticRow& row : trace.rows) {
    table.index(static_cast<std::int32_t>(index), csv_field(trace.path));
    table.integer(row.layer);
    table.integer(row.query_head / trace.group);
    table.integer(row.query_head);
    table.index(static_cast<std::int32_t>(row.statistic), name_of(row.statistic));
    table.integer(row.parameter);
    table.number(row.mean);
    table.integer(static_cast<std::int64_t>(row.count));
    table.end_row();
  }
}

}  // namespace

void write_statistics(const std::string& folder, const std::vector<TraceStatistics>& traces,
                      std::uint32_t top) {
  make_folder(folder);
  h5::PendingFile pending(folder + "/stats.h5");
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  write_format(file, "kvsim-stats");
  file.set_attribute("top", std::uint64_t{top});
  write_tables(file, traces);
  std::uint64_t rows = 0;
  for (const TraceStatistics& trace : traces) rows += trace.rows.size();
  TableWriter table(file.create_group("rows"), folder + "/stats.csv", column_specs(), rows);
  for (std::size_t i = 0; i < traces.size(); ++i) write_rows(table, i, traces[i]);
  table.finish();
  file.close();
  pending.commit();
  table.commit_csv();
}

}  // namespace kvsim
