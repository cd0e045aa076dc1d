// The file that `kvsim trace queries` writes.
#include "analysis/query_store.h"

#include <span>

#include "traces/h5/file.h"
#include "traces/h5/pending_file.h"

namespace kvsim {

void write_queries(const QueryLibrary& library, const std::string& path, const std::vector<std::string>& traces) {
  h5::PendingFile pending(path);
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  file.set_attribute("format", "kvsim-queries");
  file.set_attribute("version", "1.0");
  file.set_attribute("sinks", library.sinks);
  file.write_column("traces", traces);
  file.write_array("filters", {library.layers, library.kv_heads, library.channels}, std::span(library.filters));
  file.write_array("query_mean", {library.layers, library.query_heads, library.channels}, std::span(library.mean));
  file.write_array("query_covariance", {library.layers, library.query_heads, library.channels, library.channels},
                   std::span(library.covariance));
  file.close();
  pending.commit();
}

}  // namespace kvsim
