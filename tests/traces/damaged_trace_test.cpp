// Damaged traces: every fault is one line that names file, path, what was found and what was expected. Never
// a crash.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <functional>

#include "kernels/philox.h"
#include "tests/traces/support.h"
#include "traces/check.h"
#include "traces/cut.h"
#include "traces/trace_reader.h"

#ifdef __SANITIZE_ADDRESS__
// HDF5 asks for what a damaged header says and copes with a refusal; the sanitizer would end the program
// instead.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
#endif

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::read_bytes;
using testing::TemporaryFolder;
using testing::user_error;
using testing::write_bytes;

/// One change to a good trace, and what must be said about it.
struct Damage {
  const char* name;
  std::function<void(h5::File&)> apply;
  const char* said;
};

void remove(h5::File& file, const char* path) { H5Ldelete(file.id(), path, H5P_DEFAULT); }

template <typename T>
void replace(h5::File& file, const char* path, const h5::Shape& shape, const std::vector<T>& values) {
  remove(file, path);
  file.write_array(path, shape, std::span<const T>(values));
}

template <typename T>
void set(h5::File& file, const char* path, std::uint64_t at, T value) {
  file.dataset(path).write_raw(h5::Shape{at}, h5::Shape{1}, std::as_bytes(std::span(&value, 1)));
}

/// A dataset of a shape whose bytes were never written.
void promise(h5::File& file, const char* path, const std::vector<hsize_t>& extent, hid_t type) {
  remove(file, path);
  const h5::Handle space(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
  const h5::Handle made(H5Dcreate2(file.id(), path, type, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                        H5Dclose);
}

// The traces have 2 layers, 4 query heads on 2 KV heads, d = 16, dv = 8, 48 + 8 tokens.
std::vector<Damage> attribute_damages() {
  return {
      {"no format", [](h5::File& f) { H5Adelete(f.id(), "format"); },
       "the root attribute 'format' is missing"},
      {"foreign", [](h5::File& f) { f.set_attribute("format", "photo"); },
       "found the format 'photo', expected 'kvsim-trace'"},
      {"newer", [](h5::File& f) { f.set_attribute("version", 2); },
       "found version 2 of the format, expected at most 1; a newer kvsim is needed"},
      {"version zero", [](h5::File& f) { f.set_attribute("version", 0); }, "/@version: found 0, expected 1"},
      {"version text", [](h5::File& f) { f.set_attribute("version", "1"); },
       "/@version: found string, expected an integer"},
      {"no prompt_len", [](h5::File& f) { H5Adelete(f.id(), "prompt_len"); },
       "the attribute 'prompt_len' is missing"},
      {"prompt of zero", [](h5::File& f) { f.set_attribute("prompt_len", 0); },
       "/@prompt_len: found 0, expected 1 to"},
      {"negative decode", [](h5::File& f) { f.set_attribute("decode_len", -8); },
       "/@decode_len: found -8, expected 1 to"},
      {"huge prompt", [](h5::File& f) { f.set_attribute("prompt_len", std::int64_t{1} << 40); },
       "/@prompt_len: found 1099511627776"},
      {"huge heads", [](h5::File& f) { f.set_attribute("num_kv_heads", std::int64_t{1} << 40); },
       "/@num_kv_heads: found 1099511627776"},
      {"uneven groups", [](h5::File& f) { f.set_attribute("num_query_heads", 5); },
       "found 5, expected a multiple of num_kv_heads = 2"},
      {"wrong head size", [](h5::File& f) { f.set_attribute("head_dim", 32); },
       "found the shape [2, 56, 16], expected [2, 56, 32]"},
      {"scale of NaN", [](h5::File& f) { f.set_attribute("softmax_scale", std::nan("")); },
       "/@softmax_scale: found nan, expected a finite number > 0"},
      {"scale of zero", [](h5::File& f) { f.set_attribute("softmax_scale", 0.0); },
       "expected a finite number > 0"},
      {"negative soft cap", [](h5::File& f) { f.set_attribute("logit_softcap", -1.0); },
       "/@logit_softcap: found -1"},
      {"unknown rope", [](h5::File& f) { f.set_attribute("rope_layout", "spiral"); },
       "found 'spiral', expected 'half', 'interleaved' or 'none'"},
      {"rope without frequencies", [](h5::File& f) { remove(f, "rope/inv_freq"); },
       "found 0 rotary frequencies, expected some"},
      {"frequencies without rope", [](h5::File& f) { f.set_attribute("rope_layout", "none"); },
       "found 8 rotary frequencies, expected none"},
      {"too few layers said", [](h5::File& f) { f.set_attribute("num_layers", 1); },
       "found layer 001, expected layers below num_layers = 1"},
      {"negative window", [](h5::File& f) { f.group("layers/000").set_attribute("sliding_window", -3); },
       "/layers/000@sliding_window: found -3"},
      {"sinks beyond prompt",
       [](h5::File& f) { f.group("layers/000/query_stats").set_attribute("sinks", 49); },
       "query_stats@sinks: found 49"},
  };
}

std::vector<Damage> dataset_damages() {
  using Ints = std::vector<std::int32_t>;
  return {
      {"no layers", [](h5::File& f) { remove(f, "layers"); }, "/layers: found nothing, expected a group"},
      {"empty layers",
       [](h5::File& f) {
         remove(f, "layers/000");
         remove(f, "layers/001");
       },
       "/layers: found no layer, expected at least one"},
      {"odd layer name", [](h5::File& f) { f.create_group("layers/2"); },
       "/layers: found '2', expected layer numbers of three digits"},
      {"dataset as layer",
       [](h5::File& f) {
         remove(f, "layers/001");
         f.write_column("layers/001", Ints{1});
       },
       "/layers/001: found a dataset, expected a group"},
      {"no key", [](h5::File& f) { remove(f, "layers/001/key"); },
       "/layers/001/key: found nothing, expected a dataset"},
      {"key of doubles",
       [](h5::File& f) {
         replace(f, "layers/001/key", {2, 56, 16}, std::vector<double>(2 * 56 * 16));
       },
       "/layers/001/key: found float64, expected float16, bfloat16 or float32"},
      {"key of integers",
       [](h5::File& f) {
         replace(f, "layers/001/key", {2, 56, 16}, Ints(2 * 56 * 16));
       },
       "/layers/001/key: found int32"},
      {"big-endian key",
       [](h5::File& f) {
         promise(f, "layers/001/key", {2, 56, 16}, H5T_IEEE_F32BE);
       },
       "big-endian float"},
      {"short value",
       [](h5::File& f) {
         replace(f, "layers/000/value", {2, 55, 8}, std::vector<float>(2 * 55 * 8));
       },
       "/layers/000/value: found the shape [2, 55, 8], expected [2, 56, 8]"},
      {"flat value",
       [](h5::File& f) { replace(f, "layers/000/value", {2 * 56 * 8}, std::vector<float>(2 * 56 * 8)); },
       "found the shape [896], expected [2, 56, 8]"},
      {"unwritten query",
       [](h5::File& f) {
         promise(f, "layers/000/query", {4, 56, 16}, H5T_IEEE_F32LE);
       },
       "/layers/000/query: found 0 stored bytes"},
      {"huge projection",
       [](h5::File& f) {
         promise(f, "layers/000/output_proj", {32, 1ull << 50}, H5T_IEEE_F32LE);
       },
       "/layers/000/output_proj: found 0 stored bytes"},
      {"no samples of sensitivities",
       [](h5::File& f) {
         f.create_dataset("layers/000/sensitivity", h5::Element::float32, {0, 4, 8, 8});
       },
       "/layers/000/sensitivity: found 0 samples, expected 1 to 65536"},
      {"sensitivities of too few steps",
       [](h5::File& f) {
         f.create_dataset("layers/000/sensitivity", h5::Element::float32, {2, 4, 7, 8});
       },
       "/layers/000/sensitivity: found the shape [2, 4, 7, 8]"},
      {"samples that differ from layer to layer",
       [](h5::File& f) {
         for (const auto& [layer, samples] : {std::pair{"000", 2ull}, {"001", 3ull}}) {
           std::vector<float> values(samples * 4 * 8 * 8, 1.0f);
           const h5::Shape shape{samples, 4, 8, 8}, origin{0, 0, 0, 0};
           f.create_dataset(std::string("layers/") + layer + "/sensitivity", h5::Element::float32, shape)
               .write_raw(origin, shape, std::as_bytes(std::span(values)));
         }
       },
       "/layers/001/sensitivity: found 3 samples, expected 2 as in layer 0"},
      {"a residual stream of norm 0",
       [](h5::File& f) {
         std::vector<float> norms(56, 1.0f);
         norms[55] = 0.0f;
         f.write_column("layers/000/residual_norm", norms);
       },
       "/layers/000/residual_norm: found 0 at token 55, expected a finite number > 0"},
      {"huge positions",
       [](h5::File& f) { promise(f, "layers/000/query_position", {1ull << 40}, H5T_STD_I32LE); },
       "/layers/000/query_position: found 0 stored bytes"},
      {"position behind the end",
       [](h5::File& f) { set<std::int32_t>(f, "layers/000/query_position", 55, 56); },
       "/layers/000/query_position: found 56 at 55, expected positions in [0, 56)"},
      {"negative position", [](h5::File& f) { set<std::int32_t>(f, "layers/000/query_position", 0, -1); },
       "found -1 at 0"},
      {"positions out of order", [](h5::File& f) { set<std::int32_t>(f, "layers/001/query_position", 5, 2); },
       "found 2 after 4 at 5, expected ascending positions"},
      {"doubled position", [](h5::File& f) { set<std::int32_t>(f, "layers/001/query_position", 5, 4); },
       "found 4 after 4 at 5"},
      {"missing decode query",
       [](h5::File& f) {
         replace(f, "layers/001/query_position", {7}, Ints{49, 50, 51, 52, 53, 54, 55});
       },
       "that do not end with the decode steps, expected them to end with 48 to 55"},
      {"gap among decode queries",
       [](h5::File& f) {
         replace(f, "layers/001/query_position", {8}, Ints{47, 49, 50, 51, 52, 53, 54, 55});
       },
       "that do not end with the decode steps"},
      {"positions as floats",
       [](h5::File& f) { replace(f, "layers/001/query_position", {56}, std::vector<float>(56)); },
       "found float32, expected integers"},
      {"statistics of another shape",
       [](h5::File& f) {
         replace(f, "layers/000/attention_stats/sum", {4, 47}, std::vector<float>(4 * 47));
       },
       "attention_stats/sum: found the shape [4, 47], expected [4, 48]"},
      {"covariance without mean", [](h5::File& f) { remove(f, "layers/000/query_stats/mean"); },
       "query_stats/mean: found nothing"},
      {"attention of another shape",
       [](h5::File& f) {
         f.write_array("layers/000/attention", {4, 56, 55},
                       std::span<const float>(std::vector<float>(4 * 56 * 55)));
       },
       "attention: found the shape [4, 56, 55], expected [4, 56, 56]"},
      {"too few token ids", [](h5::File& f) { replace(f, "tokens/id", {55}, Ints(55)); },
       "/tokens/id: found the shape [55], expected [56]"},
      {"negative token id", [](h5::File& f) { set<std::int32_t>(f, "tokens/id", 9, -4); },
       "/tokens/id: found -4 at token 9"},
      {"texts as numbers", [](h5::File& f) { replace(f, "tokens/text", {56}, Ints(56)); },
       "/tokens/text: found int32, expected strings"},
      {"segment behind the end", [](h5::File& f) { set<std::int32_t>(f, "segments/end", 0, 57); },
       "segment 0 is [0, 57), expected a range inside [0, 56)"},
      {"segment backwards", [](h5::File& f) { set<std::int32_t>(f, "segments/begin", 0, 50); },
       "/segments: segment 0 is [50,"},
      {"uneven segments", [](h5::File& f) { replace(f, "segments/turn", {1}, Ints{0}); },
       "/segments/turn: found the shape [1]"},
      {"frequencies of NaN", [](h5::File& f) { set<float>(f, "rope/inv_freq", 2, std::nanf("")); },
       "/rope/inv_freq: found nan at 2"},
      {"too many frequencies", [](h5::File& f) { replace(f, "rope/inv_freq", {9}, std::vector<float>(9)); },
       "found 9 frequencies, expected 1 to 8"},
      {"key elsewhere",
       [](h5::File& f) {
         remove(f, "layers/000/key");
         H5Lcreate_external("/tmp/x.h5", "/key", f.id(), "layers/000/key", H5P_DEFAULT, H5P_DEFAULT);
       },
       "external link"},
      {"key by soft link",
       [](h5::File& f) {
         remove(f, "layers/000/key");
         H5Lcreate_soft("/layers/001/key", f.id(), "layers/000/key", H5P_DEFAULT, H5P_DEFAULT);
       },
       "soft link"},
      {"layer in a circle",
       [](h5::File& f) {
         H5Lcreate_hard(f.id(), "/layers", f.id(), "/layers/000/round", H5P_DEFAULT, H5P_DEFAULT);
       },
       "nested deeper"},
  };
}

/// Adds a valid lookahead and branch first, then breaks them.
void add_extras(h5::File& f) {
  using Ints = std::vector<std::int32_t>;
  h5::Group lookahead = f.create_group("lookahead/snapkv-8");
  lookahead.set_attribute("method", "snapkv");
  lookahead.set_attribute("capacity", 8);
  lookahead.set_attribute("window", 4);
  lookahead.set_attribute("stopped_at_eos", 0);
  f.write_column("lookahead/snapkv-8/token", Ints{5, 6});
  f.write_column("lookahead/snapkv-8/position", Ints{48, 49});
  f.write_array("lookahead/snapkv-8/layers/001/query", {4, 2, 16},
                std::span<const float>(std::vector<float>(128)));
  f.write_array("lookahead/snapkv-8/layers/001/kept", {2, 3},
                std::span<const std::int32_t>(Ints{0, 1, 2, 0, 9, -1}));
  h5::Group branch = f.create_group("branches/second");
  branch.set_attribute("parent", "");
  branch.set_attribute("fork_position", 50);
  branch.set_attribute("prompt_len", 2);
  branch.set_attribute("decode_len", 1);
  f.write_column("branches/second/tokens/id", Ints{1, 2, 3});
  f.write_column("branches/second/layers/000/query_position", Ints{51, 52});
  f.write_array("branches/second/layers/000/key", {2, 3, 16}, std::span<const float>(std::vector<float>(96)));
  f.write_array("branches/second/layers/000/value", {2, 3, 8},
                std::span<const float>(std::vector<float>(48)));
  f.write_array("branches/second/layers/000/query", {4, 2, 16},
                std::span<const float>(std::vector<float>(128)));
}

std::vector<Damage> extra_damages() {
  return {
      {"pseudo token at another place",
       [](h5::File& f) { set<std::int32_t>(f, "lookahead/snapkv-8/position", 1, 51); },
       "/lookahead/snapkv-8/position: found 51 at 1, expected 49"},
      {"lookahead of an unknown layer", [](h5::File& f) { f.create_group("lookahead/snapkv-8/layers/007"); },
       "expected layers below num_layers"},
      {"lookahead without method",
       [](h5::File& f) { H5Adelete(f.group("lookahead/snapkv-8").id(), "method"); },
       "the attribute 'method' is missing"},
      {"kept behind the end",
       [](h5::File& f) {
         std::int32_t bad = 60;
         f.dataset("lookahead/snapkv-8/layers/001/kept")
             .write_raw(h5::Shape{1, 1}, h5::Shape{1, 1}, std::as_bytes(std::span(&bad, 1)));
       },
       "kept: found 60 at 4, expected prompt positions below 48"},
      {"branch of nobody", [](h5::File& f) { f.group("branches/second").set_attribute("parent", "first"); },
       "/branches/second@parent: found 'first', expected another branch or nothing"},
      {"branch of itself", [](h5::File& f) { f.group("branches/second").set_attribute("parent", "second"); },
       "found a circle of branches"},
      {"fork behind the end",
       [](h5::File& f) { f.group("branches/second").set_attribute("fork_position", 57); },
       "found 57, expected at most the parent's 56 tokens"},
      {"branch of other length",
       [](h5::File& f) { f.group("branches/second").set_attribute("prompt_len", 3); },
       "/branches/second/tokens/id: found the shape [3], expected [4]"},
  };
}

class DamagedTrace : public ::testing::Test {
 protected:
  void SetUp() override {
    SynthOptions options = testing::small_options();
    options.sliding_window = 0;
    synthesise(options, good_);
  }
  /// A copy of the good trace with one damage must be refused with the expected words.
  void expect_refused(const Damage& damage, bool extras = false) {
    SCOPED_TRACE(damage.name);
    std::filesystem::copy_file(good_, bad_, std::filesystem::copy_options::overwrite_existing);
    {
      h5::File file = h5::File::open_for_writing(bad_);
      if (extras) add_extras(file);
      damage.apply(file);
      file.close();
    }
    const std::string text = user_error([&] { TraceReader::open(bad_); });
    expect_contains(text, "bad.h5");
    expect_contains(text, damage.said);
  }
  TemporaryFolder folder_;
  std::string good_ = folder_.file("good.h5"), bad_ = folder_.file("bad.h5");
};

TEST_F(DamagedTrace, WrongAttributesAreNamed) {
  for (const Damage& damage : attribute_damages()) expect_refused(damage);
}

TEST_F(DamagedTrace, WrongDatasetsAreNamed) {
  for (const Damage& damage : dataset_damages()) expect_refused(damage);
}

TEST_F(DamagedTrace, ValidLookaheadsAndBranchesAreListed) {
  std::filesystem::copy_file(good_, bad_);
  h5::File file = h5::File::open_for_writing(bad_);
  add_extras(file);
  file.close();
  const TraceInfo info = TraceReader::open(bad_).info();
  ASSERT_EQ(info.lookaheads.size(), 1u);
  EXPECT_EQ(info.lookaheads[0].method, "snapkv");
  EXPECT_EQ(info.lookaheads[0].tokens, 2u);
  ASSERT_EQ(info.branches.size(), 1u);
  EXPECT_EQ(info.branches[0].fork_position, 50u);
  CutOptions heads;
  heads.heads = {1};
  EXPECT_TRUE(cut_trace(bad_, folder_.file("cut.h5"), heads).empty());
  EXPECT_EQ(TraceReader::open(folder_.file("cut.h5")).info().branches.size(), 1u);
}

TEST_F(DamagedTrace, WrongLookaheadsAndBranchesAreNamed) {
  for (const Damage& damage : extra_damages()) expect_refused(damage, true);
}

/// Opens and reads everything; whatever is wrong must come as a UserError.
bool survives(const std::string& path) {
  try {
    const TraceReader reader = TraceReader::open(path);
    BlockRequest request;
    request.all_queries = request.attention_stats = request.query_stats = request.output_proj = true;
    for (std::size_t l = 0; l < reader.info().layers.size(); ++l) {
      for (std::uint32_t h = 0; h < reader.info().num_kv_heads; ++h)
        static_cast<void>(reader.read_head(l, h, request));
    }
    static_cast<void>(check_trace(path, {}));
    return true;
  } catch (const UserError&) {
    return false;
  }
}

TEST_F(DamagedTrace, TruncatedFilesAreRefusedWhereverTheyEnd) {
  const std::string bytes = read_bytes(good_);
  for (std::size_t size = 0; size < bytes.size(); size += size < 4096 ? 97 : bytes.size() / 23) {
    write_bytes(bad_, bytes.substr(0, size));
    EXPECT_FALSE(survives(bad_)) << size << " of " << bytes.size() << " bytes";
  }
}

/// HDF5 1.10 itself loops for ever or reads out of bounds on some damaged variable-length strings (h5dump
/// does as well), which no caller can prevent: their heaps and the references to them are left alone here.
std::vector<bool> string_bytes(const std::string& bytes) {
  std::vector<bool> spared(bytes.size(), false);
  const auto spare = [&](std::size_t first, std::size_t size) {
    for (std::size_t i = first; i < std::min(first + size, bytes.size()); ++i) spared[i] = true;
  };
  for (std::size_t heap = bytes.find("GCOL"); heap != std::string::npos;
       heap = bytes.find("GCOL", heap + 4)) {
    std::uint64_t size = 0;
    for (std::size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(bytes[heap + 8 + i]);
    spare(heap, size);
    std::string address(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) address[i] = static_cast<char>(heap >> (8 * i));
    // A reference is four bytes of length, the heap's address and four bytes of index.
    for (std::size_t at = bytes.find(address); at != std::string::npos; at = bytes.find(address, at + 8)) {
      if (at >= 4) spare(at - 4, 16);
    }
  }
  return spared;
}

enum class Outcome { read, refused, crashed };
constexpr int kRead = 10, kRefused = 11;  // a sanitizer ends with 1

/// Reads in a process of its own, so that a crash is an outcome and not the end of the test.
Outcome outcome_of(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    ::_exit(survives(path) ? kRead : kRefused);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kRead) return Outcome::read;
  return WIFEXITED(status) && WEXITSTATUS(status) == kRefused ? Outcome::refused : Outcome::crashed;
}

TEST_F(DamagedTrace, NoFlippedByteCrashesTheReader) {
  const std::string bytes = read_bytes(good_);
  const std::vector<bool> spared = string_bytes(bytes);
  Philox random(11, 1);
  std::size_t refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string changed = bytes;
    // Most of the file is tensors: half of the damage goes to the metadata at its begin.
    const std::uint32_t range = i % 2 == 0 ? 8192u : static_cast<std::uint32_t>(bytes.size());
    for (int n = 0; n < 1 + i % 4; ++n) {
      const std::uint32_t at = random.next_below(range);
      const auto value = static_cast<char>(random.next_u32());
      if (!spared[at]) changed[at] = value;
    }
    write_bytes(bad_, changed);
    const Outcome outcome = outcome_of(bad_);
    EXPECT_NE(outcome, Outcome::crashed) << "damage " << i;
    refused += outcome == Outcome::refused ? 1 : 0;
  }
  EXPECT_GT(refused, 20u);  // the damage does reach the headers
}

}  // namespace
}  // namespace kvsim
