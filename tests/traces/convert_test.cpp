// Converting: arrays of npz and safetensors files become the trace that was meant, and nothing else.
#include "traces/convert/convert.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <vector>

#include "tests/traces/support.h"
#include "traces/convert/array_source.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;
using testing::write_bytes;

struct Array {
  std::string name, type;  // type as NumPy writes it
  h5::Shape shape;
  std::string bytes;
};

std::string number(std::uint64_t value, int width) {
  std::string text;
  for (int i = 0; i < width; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

template <typename T>
Array array(const std::string& name, const std::string& type, const h5::Shape& shape,
            const std::vector<T>& values) {
  return {name, type, shape,
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

std::string npy(const Array& a, bool fortran = false) {
  std::string shape;
  for (const auto n : a.shape) shape += std::to_string(n) + ", ";
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': ({}), }}", a.type,
                                   fortran ? "True" : "False", shape);
  header.resize((10 + header.size() + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  return std::string("\x93NUMPY\x01\x00", 8) + number(header.size(), 2) + header + a.bytes;
}

std::string deflated(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, static_cast<uLong>(text.size())), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

/// A zip archive by the book (APPNOTE 4.3); sizes in zip64 fields when asked, as NumPy writes large members.
std::string zip(const std::vector<std::pair<std::string, std::string>>& members, bool compress,
                bool zip64 = false) {
  std::string file, directory;
  for (const auto& [name, content] : members) {
    const std::string packed = compress ? deflated(content) : content;
    const auto crc =
        crc32(0, reinterpret_cast<const Bytef*>(content.data()), static_cast<uInt>(content.size()));
    const std::string sizes = zip64 ? number(0xFFFFFFFF, 4) + number(0xFFFFFFFF, 4)
                                    : number(packed.size(), 4) + number(content.size(), 4);
    const std::string extra =
        zip64 ? number(1, 2) + number(16, 2) + number(content.size(), 8) + number(packed.size(), 8) : "";
    const std::string common = number(20, 2) + number(0, 2) + number(compress ? 8 : 0, 2) + number(0, 4) +
                               number(crc, 4) + sizes + number(name.size(), 2) + number(extra.size(), 2);
    directory += number(0x02014b50, 4) + number(20, 2) + common + number(0, 2) + number(0, 2) + number(0, 2) +
                 number(0, 4) + number(file.size(), 4) + name + extra;
    file += number(0x04034b50, 4) + common + name + extra + packed;
  }
  return file + directory + number(0x06054b50, 4) + number(0, 4) + number(members.size(), 2) +
         number(members.size(), 2) + number(directory.size(), 4) + number(file.size(), 4) + number(0, 2);
}

std::string npz(const std::vector<Array>& arrays, bool compress = false, bool zip64 = false) {
  std::vector<std::pair<std::string, std::string>> members;
  for (const Array& a : arrays) members.emplace_back(a.name + ".npy", npy(a));
  return zip(members, compress, zip64);
}

std::string safetensors(const std::vector<Array>& arrays, const std::string& metadata) {
  std::string header = "{\"__metadata__\":{" + metadata + "}", data;
  for (const Array& a : arrays) {
    const char* type = a.type == "<f4"   ? "F32"
                       : a.type == "<f2" ? "F16"
                       : a.type == "|V2" ? "BF16"
                       : a.type == "<i8" ? "I64"
                                         : "F64";
    std::string shape;
    for (const auto n : a.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
    header += fmt::format(",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", a.name,
                          type, shape, data.size(), data.size() + a.bytes.size());
    data += a.bytes;
  }
  header += "}";
  return number(header.size(), 8) + header + data;
}

template <typename T>
std::vector<T> ramp(std::size_t count, T first) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(first + static_cast<T>(i));
  return values;
}

/// Two layers, 4 query heads on 2 KV heads, 10 tokens, 6 queries, d = 4, dv = 2.
std::vector<Array> good_arrays() {
  std::vector<Array> arrays;
  for (const char* layer : {"layers.0.", "layers.11."}) {
    arrays.push_back(array(layer + std::string("key"), "<f4", {2, 10, 4}, ramp<float>(80, 1)));
    arrays.push_back(array(layer + std::string("value"), "<f4", {2, 10, 2}, ramp<float>(40, 2)));
    arrays.push_back(array(layer + std::string("query"), "<f4", {4, 6, 4}, ramp<float>(96, 3)));
  }
  arrays.push_back(array("tokens.id", "<i8", {10}, ramp<std::int64_t>(10, 100)));
  return arrays;
}

class Convert : public ::testing::Test {
 protected:
  TraceInfo convert(const std::string& bytes,
                    std::map<std::string, std::string> metadata = {{"prompt_len", "7"}}) {
    write_bytes(source_, bytes);
    convert_to_trace({{source_}, std::move(metadata)}, target_);
    return TraceReader::open(target_).info();
  }
  std::string refused(const std::string& bytes,
                      std::map<std::string, std::string> metadata = {{"prompt_len", "7"}}) {
    const std::string text = user_error([&] { convert(bytes, std::move(metadata)); });
    EXPECT_FALSE(std::filesystem::exists(target_));
    return text;
  }
  TemporaryFolder folder_;
  std::string source_ = folder_.file("arrays"), target_ = folder_.file("t.h5");
};

TEST_F(Convert, EveryContainerGivesTheSameTrace) {
  const std::vector<Array> arrays = good_arrays();
  const TraceInfo plain = convert(npz(arrays));
  EXPECT_EQ(plain.prompt_len, 7u);
  EXPECT_EQ(plain.decode_len, 3u);
  EXPECT_EQ(plain.num_layers, 12u);
  EXPECT_EQ(plain.num_query_heads, 4u);
  EXPECT_EQ(plain.value_dim, 2u);
  EXPECT_EQ(plain.layers[1].index, 11u);
  EXPECT_EQ(plain.layers[0].softmax_scale, 0.5);
  EXPECT_EQ(plain.layers[0].query_position, (std::vector<TokenIndex>{4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(plain.token_id.front(), 100);
  const HeadBlock block = TraceReader::open(target_).read_head(1, 1, {});
  EXPECT_EQ(block.key(9, 3), 80.0f);
  EXPECT_EQ(convert(npz(arrays, true)).digest, plain.digest);
  EXPECT_EQ(convert(npz(arrays, false, true)).digest, plain.digest);
  EXPECT_EQ(convert(safetensors(arrays, "")).digest, plain.digest);
}

TEST_F(Convert, MetadataComeFromFilesAndTheUserGoesFirst) {
  std::vector<Array> arrays = good_arrays();
  arrays.push_back(array("prompt_len", "<i8", {}, std::vector<std::int64_t>{8}));
  arrays.push_back({"model", "<U3", {}, std::string("a\0\0\0b\0\0\0c\0\0\0", 12)});
  arrays.push_back(array("softmax_scale", "<f8", {}, std::vector<double>{0.25}));
  const TraceInfo from_file = convert(npz(arrays), {});
  EXPECT_EQ(from_file.prompt_len, 8u);
  EXPECT_EQ(from_file.model, "abc");
  EXPECT_EQ(from_file.layers[0].softmax_scale, 0.25);
  EXPECT_EQ(
      convert(npz(arrays), {{"prompt_len", "7"}, {"layers.11.sliding_window", "4"}}).layers[1].sliding_window,
      4u);
  const TraceInfo tensors =
      convert(safetensors(good_arrays(), "\"prompt_len\":\"6\",\"model\":\"m\\u00fc\""), {});
  EXPECT_EQ(tensors.prompt_len, 6u);
  EXPECT_EQ(tensors.model, "mü");
}

TEST_F(Convert, KeepsSixteenBitsAsTheyAre) {
  std::vector<Array> arrays = good_arrays();
  for (const auto& [type, expected] : {std::pair("<f2", DType::float16), std::pair("|V2", DType::bfloat16)}) {
    arrays[0] = array("layers.0.key", type, {2, 10, 4}, std::vector<std::uint16_t>(80, 0x3C00));
    for (const std::string& bytes : {npz(arrays), safetensors(arrays, "")}) {
      EXPECT_EQ(convert(bytes).dtype, expected);
      // 0x3C00 is 1 in half and 2^-7 in bfloat16.
      EXPECT_EQ(TraceReader::open(target_).read_head(0, 0, {}).key(0, 0),
                expected == DType::float16 ? 1.0f : 0x1p-7f);
    }
  }
}

TEST_F(Convert, WrongArraysAreNamed) {
  const auto with = [](const std::function<void(std::vector<Array>&)>& change) {
    std::vector<Array> arrays = good_arrays();
    change(arrays);
    return npz(arrays);
  };
  expect_contains(refused(npz(good_arrays()), {}), "the metadata 'prompt_len' is missing");
  expect_contains(refused(npz(good_arrays()), {{"prompt_len", "10"}}),
                  "prompt_len: found 10, expected 1 to 9");
  expect_contains(refused(npz(good_arrays()), {{"prompt_len", "7"}, {"colour", "red"}}),
                  "metadata 'colour' is unknown");
  expect_contains(refused(with([](auto& a) {
                    a.erase(a.begin());
                    a.erase(a.begin() + 2);
                  })),
                  "no array 'layers.<l>.key'");
  expect_contains(refused(with([](auto& a) { a.erase(a.begin() + 1); })), "'layers.0.value' is missing");
  expect_contains(refused(with([](auto& a) {
                    a[0].name = "layers.0.keys";
                    a[3].name = "layers.11.key";
                  })),
                  "layers.0.keys: is no name");
  expect_contains(refused(with([](auto& a) {
                    a[1] = array("layers.0.value", "<f8", {2, 10, 2}, std::vector<double>(40));
                  })),
                  "layers.0.value: found elements of type <f8, expected float16, bfloat16 or float32");
  expect_contains(refused(with([](auto& a) {
                    a[4] = array("layers.11.value", "<f4", {2, 9, 2}, std::vector<float>(36));
                  })),
                  "/layers/011/value: found the shape [2, 9, 2], expected [2, 10, 2]");
  expect_contains(
      refused(with([](auto& a) { a[6] = array("tokens.id", "<i8", {10}, ramp<std::int64_t>(10, -3)); })),
      "tokens.id: found -3 at 0");
}

TEST_F(Convert, DamagedContainersAreRefused) {
  const std::string good = npz(good_arrays()), packed = npz(good_arrays(), true),
                    tensors = safetensors(good_arrays(), "");
  expect_contains(refused("this is neither one nor the other"), "is neither an .npz nor a safetensors file");
  expect_contains(refused("PK"), "has 2 bytes");
  for (const std::string& bytes : {good, packed, tensors}) {
    for (std::size_t size = 16; size < bytes.size(); size += 211) refused(bytes.substr(0, size));
  }
  std::string changed = good;
  changed[200] = static_cast<char>(changed[200] ^ 1);
  expect_contains(refused(changed), "does not fit its checksum");
  changed = packed;
  changed[120] = static_cast<char>(~changed[120]);
  refused(changed);  // what breaks first depends on what the byte was
  const Array column = good_arrays()[0];
  expect_contains(refused(zip({{"layers.0.key.npy", npy(column, true)}}, false)), "stored column by column");
  expect_contains(refused(number(1u << 30, 8) + tensors.substr(8)), "found a header of 1073741824 bytes");
  expect_contains(refused(number(9, 8) + "{\"a\": tru" + "xxxx"), "no valid JSON");
  expect_contains(refused(number(60, 8) +
                          "{\"a\":{\"dtype\":\"F32\",\"shape\":[99999],\"data_offsets\":[0,8]}}  12345678"),
                  "found 8 bytes, expected 399996");
  expect_contains(refused(number(59, 8) +
                          "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,80000]}} 12345678"),
                  "lie out of the file");
}

}  // namespace
}  // namespace kvsim
