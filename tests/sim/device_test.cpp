// A unit replayed through the interface of a device gives what the CPU gives: here the device computes with
// the CPU's own kernels, so that every bit must be the same.
#include <gtest/gtest.h>

#include <bit>

#include "tests/sim/host_device.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

const std::vector<std::string> kSpecs{"full",
                                      "oracle_static",
                                      "oracle_topk",
                                      "oracle_output",
                                      "random",
                                      "streaming_llm",
                                      "snapkv(window=16)",
                                      "snapkv(window=8,unit=query)",
                                      "h2o",
                                      "tova",
                                      "knorm",
                                      "ada(score=snapkv(window=16))",
                                      "expected_attention",
                                      "think(score=snapkv(window=16))",
                                      "laq(length=4)"};

/// Every number of a result as bits, with a name.
std::vector<std::pair<std::string, std::uint64_t>> bits_of(const UnitResult& result) {
  std::vector<std::pair<std::string, std::uint64_t>> bits;
  const auto add = [&](std::string name, double value) {
    bits.emplace_back(std::move(name), std::isnan(value) ? ~0ull : std::bit_cast<std::uint64_t>(value));
  };
  for (const ResultRow& row : result.rows) {
    const std::string place =
        fmt::format("variant {} budget {} head {}", row.variant, row.budget, row.kv_head);
    add(place + " resident", row.resident_tokens);
    for (std::size_t m = 0; m < row.values.size(); ++m)
      add(fmt::format("{} metric {}", place, m), row.values[m]);
  }
  for (const LayerRow& row : result.layer_rows)
    for (const double value : row.values)
      add(fmt::format("layer row, variant {} budget {}", row.variant, row.budget), value);
  for (const LayerEffect& effect : result.effects) {
    for (const float value : effect.response) add("response", static_cast<double>(value));
    for (const float value : effect.projected) add("projected", static_cast<double>(value));
  }
  for (const KeptSet& kept : result.kept)
    for (const TokenIndex token : kept.indices) add("kept", token);
  for (const Failure& failure : result.failures) add(failure.message, failure.variant);
  return bits;
}

void expect_equal(const UnitResult& device, const UnitResult& cpu) {
  const auto of_device = bits_of(device), of_cpu = bits_of(cpu);
  ASSERT_EQ(of_device.size(), of_cpu.size());
  ASSERT_FALSE(of_cpu.empty());
  for (std::size_t i = 0; i < of_cpu.size(); ++i) ASSERT_EQ(of_device[i], of_cpu[i]) << of_cpu[i].first;
}

std::vector<Shape> shapes() {
  Shape windowed{.window = 50}, capped{.softcap = 6}, projected{.hidden = 24, .samples = 2},
      harsh{.sharpness = 30};
  return {{}, windowed, capped, projected, {.lookahead = 4}, harsh};
}

std::vector<std::string> specs_for(const Shape& shape) {
  std::vector<std::string> specs = kSpecs;
  if (shape.lookahead == 0)
    std::erase_if(specs, [](const std::string& spec) { return spec.starts_with("laq"); });
  return specs;
}

TEST(DeviceReplay, GivesWhatTheCpuGives) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(fmt::format("window {} softcap {} hidden {} lookahead {}", shape.window, shape.softcap,
                             shape.hidden, shape.lookahead));
    Sweep cpu(specs_for(shape), {8, 40, 90, 120}), device(specs_for(shape), {8, 40, 90, 120});
    HostDevice host;
    device.settings.device = &host;
    expect_equal(device.run(shape), cpu.run(shape));
    EXPECT_EQ(host.loads, shape.kv_heads);
  }
}

TEST(DeviceReplay, GivesTheSameInChunksOfStepsAndVariants) {
  Shape shape;
  shape.decode = 40;
  Sweep cpu(specs_for(shape), {8, 40, 90}), device(specs_for(shape), {8, 40, 90});
  HostDevice host;
  device.settings.device = &host;
  device.settings.memory.hold = false;
  device.settings.memory.step_chunk = kStepBlock;
  device.settings.memory.variant_batch = 4;
  const UnitResult expected = cpu.run(shape);
  const UnitResult found = device.run(shape);
  expect_equal(found, expected);
}

/// Bytes that a planned unit needs of a device of `memory` bytes, where a row takes 1 KiB.
UnitMemory plan(std::size_t memory, const Shape& shape) {
  const Sweep sweep({"snapkv(window=16)", "knorm"}, {8, 40});
  const HostDevice device(memory, 1024);
  BlockRequest request;
  request.prompt_queries = 16;
  return plan_memory(make_layer(shape), request, sweep.settings.variants, 2, sweep.settings.metrics, 0, 1,
                     std::uint64_t{1} << 34, &device);
}

TEST(DevicePlan, CutsStepsWhereTheDeviceTakesFewRowsAndRefusesWhatItCannotTake) {
  const Sweep sweep({"knorm"}, {8, 40});
  HostDevice device;
  device.most_rows = 100;
  const auto planned = [&](const Shape& shape) {
    return plan_memory(make_layer(shape), {}, sweep.settings.variants, 2, sweep.settings.metrics, 0, 1,
                       std::uint64_t{1} << 34, &device);
  };
  const UnitMemory cut = planned({.decode = 64, .group = 3});
  EXPECT_FALSE(cut.hold);
  EXPECT_EQ(cut.step_chunk, 32u);
  EXPECT_THROW(planned({.decode = 64, .group = 3, .value_dim = 300}), UserError);
}

TEST(DevicePlan, SplitsAUnitThatDoesNotFit) {
  Shape shape;
  shape.decode = 64;
  const std::size_t head = shape.group * shape.decode * 1024;
  EXPECT_TRUE(plan(3 * head, shape).hold);  // two heads, and what work on one needs
  const UnitMemory streamed = plan(2 * head, shape);
  EXPECT_FALSE(streamed.hold);
  EXPECT_EQ(streamed.step_chunk, shape.decode);
  const UnitMemory cut = plan(head, shape);
  EXPECT_FALSE(cut.hold);
  EXPECT_EQ(cut.step_chunk, shape.decode / 2);
  try {
    plan(1024, shape);
    FAIL() << "one row fits nowhere";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("--device cpu"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvsim::test
