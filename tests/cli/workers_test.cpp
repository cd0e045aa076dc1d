// Workers on several streams of work: the same results as one after the other, and the first failure stops
// them all. The devices here compute with the CPU's own kernels, so that every bit must be the same.
#include <memory>

#include "analysis/durable_file.h"
#include "analysis/result_store.h"
#include "sim/cli/jobs.h"
#include "tests/cli/program.h"
#include "tests/sim/host_device.h"

namespace kvsim::test {
namespace {

RunOptions options_for(const std::string& trace, const std::string& out) {
  RunOptions options;
  options.traces = {trace};
  options.policies = {"snapkv(window={8,16})", "ada(score=snapkv(window=16))", "knorm",
                      "pyramidkv(window=16)", "decode:streaming_llm"};
  options.budgets = {"16", "64", "200"};
  options.out = out;
  options.device = "cpu";
  options.memory = std::uint64_t{8} << 30;
  options.threads = 4;
  options.quiet = true;
  return options;
}

/// What the run writes with these devices.
std::string results_with(const std::string& trace, const std::string& out,
                         std::vector<std::unique_ptr<Device>> devices) {
  PreparedRun run = prepare_run(options_for(trace, out));
  run.devices = std::move(devices);
  make_folder(out);
  write_description(out, run.record);
  const kvsim::Outcome outcome = run_jobs(run, remaining_jobs(run, {}));
  EXPECT_EQ(outcome.failed, 0u);
  merge_results({out}, out);
  return read(out + "/results.csv") + read(out + "/summary.csv");
}

TEST(Workers, GiveWhatOneAfterTheOtherGives) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  const std::string alone = results_with(trace, folder / "alone", {});
  ASSERT_GT(lines(alone), 100u);
  for (const std::size_t workers : {1, 2, 5}) {
    std::vector<std::unique_ptr<Device>> devices;
    for (std::size_t i = 0; i < workers; ++i) devices.push_back(std::make_unique<HostDevice>());
    EXPECT_EQ(results_with(trace, folder / std::to_string(workers), std::move(devices)), alone)
        << workers << " workers";
  }
}

class BrokenDevice final : public Device {
 public:
  std::unique_ptr<DeviceHead> load(const HeadInput&) override {
    throw DeviceError("cudaMalloc: out of memory", true);
  }
  std::size_t head_bytes(const DeviceShape&) const override { return 1; }
  std::size_t work_bytes(const DeviceShape&) const override { return 1; }
  DeviceLimits limits() const override { return {65535, 256}; }
  std::size_t memory() const override { return std::size_t{1} << 30; }
  std::string name() const override { return "broken"; }
};

TEST(Workers, StopAtTheFirstFailureOfADevice) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  PreparedRun run = prepare_run(options_for(trace, out));
  run.devices.push_back(std::make_unique<HostDevice>());
  run.devices.push_back(std::make_unique<BrokenDevice>());
  make_folder(out);
  write_description(out, run.record);
  const std::vector<Job> jobs = remaining_jobs(run, {});
  EXPECT_THROW(run_jobs(run, jobs), DeviceError);
}

TEST(Workers, PartsOfAnotherDeviceAreRefusedBeforeAnythingIsDone) {
  const Folder folder;
  PreparedRun run = prepare_run(options_for(small_trace(folder), folder / "out"));
  PartInfo part;
  part.state = PartInfo::State::valid;
  part.instruction_path = run.device_choice.path;
  EXPECT_NO_THROW(refuse_other_devices(run, {part}));
  part.instruction_path = "some GPU (sm_90) and AVX3";
  EXPECT_THROW(refuse_other_devices(run, {part}), UserError);
  part.instruction_path = "another CPU path";  // those give the same bits
  EXPECT_NO_THROW(refuse_other_devices(run, {part}));
}

}  // namespace
}  // namespace kvsim::test
