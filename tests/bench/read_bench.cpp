// How fast a trace in the page cache is read and converted: bytes of the file per second and core, against
// HDF5's own conversion. usage: read_bench [TRACE]; without one it makes a synthetic trace of 256 MiB first.
// read_bench --whole TRACE prints the wall seconds of reading the whole trace once, as a run does that has
// nothing else to do: one thread, head after head, into memory that is used again.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "kernels/memory.h"
#include "traces/h5/file.h"
#include "traces/synth.h"
#include "traces/tensor.h"
#include "traces/trace_reader.h"

namespace {

/// Processor time of this thread, user and system: the wall clock would show what else the machine does.
double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Median processor seconds of five runs after one that fills the page cache.
template <typename Run>
double median_seconds(const Run& run) {
  run();
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    const double start = thread_seconds();
    run();
    seconds.push_back(thread_seconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void report(const char* what, double bytes, double seconds) {
  fmt::print("{:<44} {:8.3f} s  {:7.2f} GB/s\n", what, seconds, bytes / seconds * 1e-9);
}

void read_whole(const std::string& path) {
  const kvsim::TraceReader reader = kvsim::TraceReader::open(path);
  kvsim::BlockRequest request;
  request.prompt_queries = reader.info().layers[0].prompt_queries(reader.info().prompt_len);
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t l = 0; l < reader.info().layers.size(); ++l)
    for (std::uint32_t h = 0; h < reader.info().num_kv_heads; ++h)
      static_cast<void>(reader.read_head(l, h, request));
  fmt::print("{:.4f}\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

void measure(const std::string& path) {
  const kvsim::TraceReader reader = kvsim::TraceReader::open(path);
  const kvsim::TraceInfo& info = reader.info();
  kvsim::BlockRequest request;
  request.all_queries = true;
  const std::uint64_t group = info.group(), queries = info.layers[0].query_position.size();
  const double per_layer = static_cast<double>(
      kvsim::size_of(info.dtype) * info.num_kv_heads *
      (info.tokens() * (info.head_dim + info.value_dim) + group * queries * info.head_dim));
  fmt::print("{}: {}, {} layers, {} + {} tokens\n", path, name_of(info.dtype), info.layers.size(),
             info.prompt_len, info.decode_len);
  const double heads = median_seconds([&] {
    for (std::size_t l = 0; l < info.layers.size(); ++l) {
      for (std::uint32_t h = 0; h < info.num_kv_heads; ++h)
        static_cast<void>(reader.read_head(l, h, request));
    }
  });
  report("read_head: keys, values, queries as float", per_layer * static_cast<double>(info.layers.size()),
         heads);

  const kvsim::h5::File file = kvsim::h5::File::open(path);
  const kvsim::h5::Dataset key = file.dataset(fmt::format("layers/{:03d}/key", info.layers[0].index));
  const auto bytes = static_cast<double>(key.bytes());
  kvsim::Staging staging;
  kvsim::Matrix<float> rows(info.tokens(), info.head_dim);
  const double ours = median_seconds([&] {
    for (std::uint32_t h = 0; h < info.num_kv_heads; ++h) {
      kvsim::read_rows(key, {h}, 0, rows.view(), kvsim::Finite::required, staging);
    }
  });
  report("one key tensor, ours", bytes, ours);
  const double theirs = median_seconds([&] { static_cast<void>(key.read<float>()); });
  report("one key tensor, H5Dread with its conversion", bytes, theirs);
  fmt::print("ratio: {:.1f} times faster than H5Dread's conversion; goal 1.5 GB/s per core: {}\n",
             theirs / ours,
             per_layer * static_cast<double>(info.layers.size()) / heads >= 1.5e9 ? "reached" : "missed");
}

}  // namespace

int main(int argc, char** argv) {
  kvsim::keep_freed_memory();  // as the program does
  try {
    if (argc > 2 && std::string_view(argv[1]) == "--whole") {
      read_whole(argv[2]);
      return 0;
    }
    if (argc > 1) {
      measure(argv[1]);
      return 0;
    }
    const std::string path =
        (std::filesystem::temp_directory_path() / fmt::format("read_bench-{}.h5", ::getpid())).string();
    kvsim::SynthOptions options;
    options.layers = 8;
    options.query_heads = 16;
    options.kv_heads = 8;
    options.head_dim = 128;
    options.prompt = 7936;
    options.decode = 256;
    options.query_window = 64;
    kvsim::synthesise(options, path);
    measure(path);
    std::filesystem::remove(path);
    return 0;
  } catch (const kvsim::UserError& error) {
    fmt::print(stderr, "read_bench: {}\n", error.what());
    return 2;
  }
}
