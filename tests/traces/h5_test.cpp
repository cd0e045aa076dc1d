// The HDF5 layer: what is written is read back, and what is wrong is said.
#include <gtest/gtest.h>

#include "tests/traces/support.h"
#include "traces/h5/file.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;

class H5 : public ::testing::Test {
 protected:
  h5::File fresh() { return h5::File::create(folder_.file("a.h5"), h5::File::Create::replace); }
  h5::File again() { return h5::File::open(folder_.file("a.h5")); }
  TemporaryFolder folder_;
};

TEST_F(H5, ColumnsAttributesAndGroupsSurviveTheFile) {
  {
    h5::File file = fresh();
    file.create_group("a/b");
    file.write_column("a/b/x", std::vector<double>{1.5, -2.5});
    file.write_column("n", std::vector<std::uint64_t>{~0ull, 0});
    file.write_column("text", std::vector<std::string>{"", "zwölf", "a,b"});
    file.write_column("none", std::vector<std::int32_t>{});
    file.write_column("no_text", std::vector<std::string>{});
    file.set_attribute("word", "ü");
    file.set_attribute("count", -7);
    file.set_attribute("count", 8);  // replaces
    file.set_attribute("share", 0.1);
    file.close();
  }
  const h5::File file = again();
  EXPECT_EQ(file.children(), (std::vector<std::string>{"a", "n", "no_text", "none", "text"}));
  EXPECT_EQ(file.all_datasets(), (std::vector<std::string>{"/a/b/x", "/n", "/no_text", "/none", "/text"}));
  EXPECT_EQ(file.read_column<double>("a/b/x"), (std::vector<double>{1.5, -2.5}));
  EXPECT_EQ(file.group("a").group("b").read_column<float>("x"), (std::vector<float>{1.5f, -2.5f}));
  EXPECT_EQ(file.read_column<std::uint64_t>("n"), (std::vector<std::uint64_t>{~0ull, 0}));
  EXPECT_EQ(file.read_strings("text"), (std::vector<std::string>{"", "zwölf", "a,b"}));
  EXPECT_TRUE(file.read_column<std::int32_t>("none").empty());
  EXPECT_TRUE(file.read_strings("no_text").empty());
  EXPECT_EQ(file.string_attribute("word"), "ü");
  EXPECT_EQ(file.int_attribute("count"), 8);
  EXPECT_EQ(file.float_attribute("share"), 0.1);
  EXPECT_EQ(file.attribute_names(), (std::vector<std::string>{"count", "share", "word"}));
}

TEST_F(H5, ShortFloatsAreNumbersOfTheirKind) {
  h5::File file = fresh();
  const std::vector<std::uint16_t> bfloats{0x3FC0, 0xC000}, halves{0x3E00, 0xC000};  // 1.5, -2
  for (const auto& [name, element, bits] :
       {std::tuple("b", h5::Element::bfloat16, &bfloats), std::tuple("h", h5::Element::float16, &halves)}) {
    h5::Dataset dataset = file.create_dataset(name, element, {2});
    dataset.write_raw(h5::Shape{0}, h5::Shape{2}, std::as_bytes(std::span(*bits)));
    EXPECT_EQ(file.dataset(name).element(), element);
    EXPECT_EQ(file.read_column<double>(name),
              (std::vector<double>{1.5, -2.0}));  // HDF5's own conversion agrees
  }
}

TEST_F(H5, RectanglesAndStreamsAgreeWithTheWhole) {
  h5::File file = fresh();
  std::vector<std::int32_t> values(3 * 5 * 7);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i);
  file.write_array("x", {3, 5, 7}, std::span<const std::int32_t>(values));
  const h5::Dataset x = file.dataset("x");
  EXPECT_EQ(x.read<std::int32_t>(h5::Shape{1, 2, 3}, h5::Shape{1, 2, 2}),
            (std::vector<std::int32_t>{52, 53, 59, 60}));
  for (const std::size_t piece :
       {std::size_t{1}, std::size_t{28}, std::size_t{60}, std::size_t{140}, std::size_t{1000}}) {
    std::vector<std::byte> all;
    x.stream_raw(piece,
                 [&](std::span<const std::byte> part) { all.insert(all.end(), part.begin(), part.end()); });
    ASSERT_EQ(all.size(), values.size() * 4);
    EXPECT_TRUE(std::equal(all.begin(), all.end(), std::as_bytes(std::span(values)).begin())) << piece;
  }
}

TEST_F(H5, MistakesAreUserErrorsThatNameFilePathAndFind) {
  h5::File file = fresh();
  file.write_column("f", std::vector<float>{1.0f});
  file.write_array("square", {2, 2}, std::span<const float>(std::vector<float>(4)));
  file.create_group("g");
  file.set_attribute("word", "x");
  expect_contains(user_error([&] { file.dataset("nothing"); }),
                  "a.h5: /nothing: found nothing, expected a dataset");
  expect_contains(user_error([&] { file.dataset("g"); }), "found a group");
  expect_contains(user_error([&] { file.group("f"); }), "found a dataset");
  expect_contains(user_error([&] { file.dataset("f/deeper"); }), "found nothing");
  expect_contains(user_error([&] { file.read_column<std::int32_t>("f"); }),
                  "found float32, expected integers");
  expect_contains(user_error([&] { file.read_column<float>("square"); }), "expected one dimension");
  expect_contains(user_error([&] { file.read_strings("f"); }), "expected strings");
  expect_contains(user_error([&] { static_cast<void>(file.int_attribute("word")); }),
                  "found string, expected an integer");
  expect_contains(user_error([&] { static_cast<void>(file.int_attribute("gone")); }), "'gone' is missing");
  expect_contains(user_error([&] { file.write_column("f", std::vector<float>{2.0f}); }), "/f");
}

TEST_F(H5, NoLinkLeadsOutOfTheFile) {
  {
    h5::File file = fresh();
    file.write_column("x", std::vector<float>{1.0f});
    H5Lcreate_soft("/x", file.id(), "soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external("/etc/other.h5", "/x", file.id(), "external", H5P_DEFAULT, H5P_DEFAULT);
    file.close();
  }
  const h5::File file = again();
  expect_contains(user_error([&] { file.dataset("soft"); }), "soft link");
  expect_contains(user_error([&] { file.dataset("external"); }), "external link");
}

TEST_F(H5, CirclesOfGroupsEnd) {
  h5::File file = fresh();
  h5::Group group = file.create_group("g");
  H5Lcreate_hard(file.id(), "/g", group.id(), "again", H5P_DEFAULT, H5P_DEFAULT);
  expect_contains(user_error([&] { file.all_datasets(); }), "nested deeper");
}

TEST_F(H5, SizesThatAreNotStoredAreNotBelieved) {
  {
    h5::File file = fresh();
    const hsize_t huge[] = {1ull << 40}, chunk[] = {1024};
    const h5::Handle space(H5Screate_simple(1, huge, nullptr), H5Sclose),
        plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(plist.get(), 1, chunk);
    const h5::Handle made(
        H5Dcreate2(file.id(), "huge", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, plist.get(), H5P_DEFAULT),
        H5Dclose);
    file.create_dataset("late", h5::Element::float64, {1ull << 39});
    file.close();
  }
  const h5::File file = again();
  for (const char* name : {"huge", "late"}) {
    expect_contains(user_error([&] { file.read_column<float>(name); }), "found 0 stored bytes");
  }
}

TEST_F(H5, FilesThatAreNoneAreRefused) {
  expect_contains(user_error([&] { h5::File::open(folder_.file("missing.h5")); }), "No such file");
  expect_contains(user_error([&] { h5::File::open(folder_.path().string()); }), "is a folder");
  testing::write_bytes(folder_.file("text.h5"), "not HDF5 at all");
  expect_contains(user_error([&] { h5::File::open(folder_.file("text.h5")); }), "is no HDF5 file");
  testing::write_bytes(folder_.file("empty.h5"), "");
  expect_contains(user_error([&] { h5::File::open(folder_.file("empty.h5")); }), "is no HDF5 file");
  fresh().close();
  expect_contains(user_error([&] { h5::File::create(folder_.file("a.h5")); }), "exists already");
}

TEST_F(H5, AFileOpenForWritingElsewhereIsLocked) {
  fresh().close();
  const pid_t child = ::fork();
  if (child == 0) {  // another process holds the file, as a recorder would
    const hid_t held = H5Fopen(folder_.file("a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    testing::write_bytes(folder_.file("ready"), held >= 0 ? "1" : "0");
    for (int i = 0; i < 1000 && !std::filesystem::exists(folder_.file("done")); ++i) ::usleep(10000);
    ::_exit(0);
  }
  for (int i = 0; i < 1000 && !std::filesystem::exists(folder_.file("ready")); ++i) ::usleep(10000);
  ::usleep(10000);
  if (testing::read_bytes(folder_.file("ready")) == "1")
    expect_contains(user_error([&] { again(); }), "is locked");
  testing::write_bytes(folder_.file("done"), "1");
}

TEST_F(H5, APendingFileAppearsOnlyWhenCommitted) {
  const std::string target = folder_.file("out.h5");
  {
    h5::PendingFile pending(target);
    h5::File::create(pending.path()).close();
    EXPECT_FALSE(std::filesystem::exists(target));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  h5::PendingFile pending(target);
  h5::File::create(pending.path()).close();
  pending.commit();
  EXPECT_NO_THROW(h5::File::open(target));
  expect_contains(user_error([] { h5::PendingFile("/nonexistent/x.h5"); }), "does not exist");
}

}  // namespace
}  // namespace kvsim
