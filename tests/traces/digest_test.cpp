// The digest against values that an independent implementation computed.
#include "traces/digest.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/dtype.h"
#include "tests/traces/support.h"

namespace kvsim {
namespace {

using testing::TemporaryFolder;

std::vector<float> half_steps() {
  std::vector<float> values(300);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.5f * static_cast<float>(i);
  return values;
}

// Golden values: kvsim_record.digest (numpy) and a plain-integer Python version of the definition in
// traces/FORMAT.md.
TEST(Digest, FitsTheRecordersForASingleDataset) {
  const TemporaryFolder folder;
  h5::File file = h5::File::create(folder.file("a.h5"));
  file.write_array("a", {3, 100}, std::span<const float>(half_steps()));
  EXPECT_EQ(file_digest(file), "kvd1:296af5738d04e7d7");
}

TEST(Digest, FitsTheRecordersForSeveralTypesAndSkipsStrings) {
  const TemporaryFolder folder;
  h5::File file = h5::File::create(folder.file("a.h5"));
  file.write_column("b/ints", std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6});
  file.write_array("a", {3, 100}, std::span<const float>(half_steps()));
  std::vector<float> line(256);
  // numpy.linspace(-1, 1, 256) in double, then rounded to half; going through float rounds no value
  // differently.
  for (std::size_t i = 0; i < line.size(); ++i)
    line[i] = static_cast<float>(-1.0 + static_cast<double>(i) * (2.0 / 255.0));
  std::vector<Fp16> halves(line.size());
  from_float(line, halves);
  file.create_dataset("b.half", h5::Element::float16, {256})
      .write_raw(h5::Shape{0}, h5::Shape{256}, std::as_bytes(std::span(halves)));
  file.write_array("empty", {0, 4}, std::span<const double>());
  file.write_column("text", std::vector<std::string>{"not", "hashed"});
  EXPECT_EQ(file_digest(file), "kvd1:81ec6c27b866332f");
}

TEST(Digest, DoesNotDependOnHowBytesArePieced) {
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 256);
  Digest whole;
  whole.begin("/x");
  whole.add(bytes);
  whole.end();
  for (const std::size_t piece :
       {std::size_t{1}, std::size_t{7}, std::size_t{512}, std::size_t{513}, std::size_t{4999}}) {
    Digest pieced;
    pieced.begin("/x");
    for (std::size_t at = 0; at < bytes.size(); at += piece) {
      pieced.add(std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)));
    }
    pieced.end();
    EXPECT_EQ(pieced.text(), whole.text()) << piece;
  }
}

TEST(Digest, ChangesWithEveryBitPathAndLength) {
  const auto of = [](std::string_view path, std::vector<std::byte> bytes) {
    Digest digest;
    digest.begin(path);
    digest.add(bytes);
    digest.end();
    return digest.text();
  };
  const std::vector<std::byte> zeros(40), more(41);
  std::vector<std::byte> flipped = zeros;
  flipped[39] = std::byte{128};
  EXPECT_NE(of("/x", zeros), of("/x", flipped));
  EXPECT_NE(of("/x", zeros), of("/y", zeros));
  EXPECT_NE(of("/x", zeros), of("/x", more));  // padding alone would not tell them apart
}

}  // namespace
}  // namespace kvsim
