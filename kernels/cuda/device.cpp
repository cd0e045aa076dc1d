// One KV head on a GPU: what is kept there, and the calls that fill and read it. Host code only.
#include "kernels/cuda/device.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"
#include "kernels/error.h"

namespace kvsim::cuda {
namespace {

/// Largest prompt whose ranks fit into 16 bits with one value left for "not visible".
constexpr std::size_t kNarrowRanks = 65534;
/// The histogram of the overlap kernel lies in shared memory, and a part of it counts in 16 bits.
constexpr std::size_t kMostCounts = 400;
constexpr std::size_t kMostTokens = 65535;  // of a part of an order

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream) { check(cudaEventRecord(event_, stream.get()), "cudaEventRecord"); }
  double since(const Event& before) const {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, before.event_, event_), "cudaEventElapsedTime");
    return static_cast<double>(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

template <typename T>
void upload(T* to, const T* from, std::size_t count, const Stream& stream) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, stream.get()), "cudaMemcpy to the device");
}
template <typename T>
void download(T* to, const T* from, std::size_t count, const Stream& stream) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, stream.get()), "cudaMemcpy from the device");
}

/// Cuts an order into steps that end at every count.
void cut_into_steps(std::span<const std::uint32_t> counts, std::vector<CurveStep>& steps) {
  std::uint32_t at = 0;
  for (std::size_t b = 0; b < counts.size();) {
    std::uint16_t snapshots = 0;
    const std::uint32_t count = counts[b];
    while (b < counts.size() && counts[b] == count) {
      ++snapshots;
      ++b;
    }
    while (count - at > kStepTokens) {
      steps.push_back({at, static_cast<std::uint16_t>(kStepTokens), 0});
      at += kStepTokens;
    }
    steps.push_back({at, static_cast<std::uint16_t>(count - at), snapshots});
    at = count;
  }
}

}  // namespace

std::vector<DeviceInfo> devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver, or no GPU: not an error of the caller
    return {};
  }
  std::vector<DeviceInfo> out;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp property{};
    check(cudaGetDeviceProperties(&property, i), "cudaGetDeviceProperties");
    const OnDevice on(i);
    DeviceInfo info{property.name, property.major, property.minor, property.multiProcessorCount, 0, 0};
    check(cudaMemGetInfo(&info.free_memory, &info.memory), "cudaMemGetInfo");
    out.push_back(std::move(info));
  }
  return out;
}

struct HeadReplay::State {
  explicit State(int of_device) : device(of_device) {}

  template <typename Rank>
  void rank(Buffer<Rank>& ranks, Buffer<Rank>& by_row);
  template <typename Packed>
  void count(std::span<const Ranking> given, std::size_t first, std::size_t last, int most_rows, Buffer<Packed>& packed);
  bool wide() const { return static_cast<std::size_t>(size.prompt) > kNarrowRanks; }

  int device;
  Stream stream;
  Sizes size;
  Rule rule;
  Pinned<float> staging;
  Pinned<std::uint32_t> rank_staging;
  Buffer<float> keys, values, queries, weights, exact, tail, tail_weight, error, recall;
  Buffer<std::uint32_t> position;
  Buffer<double> logits, softmax_partial, output_partial, norm, sums;
  Buffer<__nv_bfloat16> high, low, value_high, value_low;
  bool split_values = false;
  Buffer<std::uint32_t> sort_keys, sorted_keys, sort_tokens, sorted_tokens, needed_total, needed_prompt;
  Buffer<unsigned char> sort_space;
  Buffer<std::uint16_t> narrow_by_row, narrow_ranks, packed_wide;
  Buffer<std::uint8_t> packed_narrow;
  Buffer<std::uint32_t> wide_by_row, wide_ranks, orders, counts, partial, agree, found;
  Buffer<CurveStep> steps;
  Buffer<RankingOnDevice> rankings;
  Event start, uploaded, attended, ranked, curve_start, curved, counted, downloaded;
  Timing timing;
};

HeadReplay::HeadReplay(int device) {
  const OnDevice on(device);
  state_ = std::make_unique<State>(device);
}
HeadReplay::~HeadReplay() {
  if (!state_) return;
  cudaSetDevice(state_->device);
  state_.reset();
}
HeadReplay::HeadReplay(HeadReplay&&) noexcept = default;

template <typename Rank>
void HeadReplay::State::rank(Buffer<Rank>& ranks, Buffer<Rank>& by_row) {
  const auto rows = static_cast<std::size_t>(size.rows), tokens = static_cast<std::size_t>(size.tokens);
  const auto stride = static_cast<std::size_t>(size.stride), prompt = static_cast<std::size_t>(size.prompt);
  const std::size_t bytes = sort_bytes(rows, tokens);
  const Ranks<Rank> out{sort_keys.fit(rows * tokens), sorted_keys.fit(rows * tokens), sort_tokens.fit(rows * tokens),
                        sorted_tokens.fit(rows * tokens), sort_space.fit(bytes), bytes, by_row.fit(rows * prompt),
                        ranks.fit(prompt * stride), needed_total.fit(kFractions * stride), needed_prompt.fit(kFractions * stride)};
  launch_ranks(weights.get(), position.get(), size, rule, out, stream.get());
}

void HeadReplay::load(const HeadInput& head) {
  State& s = *state_;
  const OnDevice on(s.device);
  KVSIM_CHECK(head.prompt > 0 && head.prompt <= head.keys.rows, "prompt of {} in {} tokens", head.prompt, head.keys.rows);
  KVSIM_CHECK(head.values.rows == head.keys.rows && head.queries.cols == head.keys.cols && head.position.size() == head.queries.rows,
              "{} values, {} keys, {} queries, {} positions", head.values.rows, head.keys.rows, head.queries.rows, head.position.size());
  KVSIM_CHECK(head.values.cols <= 256, "values of {} numbers", head.values.cols);
  KVSIM_CHECK(head.queries.rows * head.keys.rows < (1ull << 31), "{} rows x {} tokens in one piece", head.queries.rows, head.keys.rows);
  s.stream.wait();  // the last call may still read what is overwritten here
  s.size = {static_cast<int>(head.prompt), static_cast<int>(head.keys.rows), static_cast<int>(head.queries.rows),
            static_cast<int>(row_stride(head.queries.rows)), static_cast<int>(head.keys.cols), static_cast<int>(head.values.cols)};
  s.rule = {head.rule.scale, head.rule.softcap, head.rule.window};
  const std::size_t rows = head.queries.rows, tokens = head.keys.rows, stride = row_stride(rows), d = head.keys.cols, dv = head.values.cols;
  float* const staging = s.staging.fit(tokens * (d + dv) + rows * d);
  s.start.record(s.stream);
  float* at = staging;
  std::uint32_t bits = 0;  // of all numbers sent last
  const auto send = [&](MatrixView<const float> from, Buffer<float>& to) {
    float* const begin = at;
    bits = 0;
    for (std::size_t r = 0; r < from.rows; ++r, at += from.cols) {
      const float* const row = from.row(r);
      for (std::size_t c = 0; c < from.cols; ++c) {
        at[c] = row[c];
        bits |= std::bit_cast<std::uint32_t>(row[c]);
      }
    }
    upload(to.fit(from.rows * from.cols), begin, from.rows * from.cols, s.stream);
  };
  send(head.keys, s.keys);
  send(head.values, s.values);
  s.split_values = (bits & 0xFFFFu) != 0;  // a number without lower bits is a bfloat16 number
  send(head.queries, s.queries);
  upload(s.position.fit(stride), head.position.data(), rows, s.stream);
  s.uploaded.record(s.stream);
  const Weights weights{s.position.get(), s.logits.fit(tokens * stride), s.softmax_partial.fit(2 * softmax_chunks(tokens) * stride),
                        s.weights.fit(tokens * stride), s.high.fit(head.prompt * stride), s.low.fit(head.prompt * stride)};
  launch_attention(s.keys.get(), s.queries.get(), s.size, s.rule, weights, s.stream.get());
  const Outputs outputs{s.output_partial.fit(output_chunks(head.prompt, tokens) * rows * dv), s.exact.fit(rows * dv), s.tail.fit(rows * dv),
                        s.tail_weight.fit(stride), s.norm.fit(stride)};
  launch_outputs(s.weights.get(), s.values.get(), s.size, outputs, s.stream.get());
  const auto padded = static_cast<std::size_t>(padded_value_dim(s.size.value_dim));
  launch_split_values(s.values.get(), s.size, s.value_high.fit(head.prompt * padded),
                      s.split_values ? s.value_low.fit(head.prompt * padded) : nullptr, s.stream.get());
  s.attended.record(s.stream);
  if (s.wide()) {
    s.rank(s.wide_ranks, s.wide_by_row);
  } else {
    s.rank(s.narrow_ranks, s.narrow_by_row);
  }
  s.ranked.record(s.stream);
  s.stream.wait();
  s.timing.upload = s.uploaded.since(s.start);
  s.timing.attention = s.attended.since(s.uploaded);
  s.timing.ranks = s.ranked.since(s.attended);
}

/// Overlaps of rankings first .. last-1, which have the same counts.
template <typename Packed>
void HeadReplay::State::count(std::span<const Ranking> given, std::size_t first, std::size_t last, int most_rows, Buffer<Packed>& packed) {
  const std::size_t per_ranking = given[first].counts.size();
  const auto stride = static_cast<std::size_t>(size.stride);
  const std::size_t cells = per_ranking * stride;
  const std::uint32_t* const limits = counts.get() + first * per_ranking;
  Packed* const space = packed.fit(static_cast<std::size_t>(size.prompt) * stride);
  if (wide()) {
    launch_pack(wide_ranks.get(), needed_prompt.get(), limits, static_cast<int>(per_ranking), size, space, stream.get());
  } else {
    launch_pack(narrow_ranks.get(), needed_prompt.get(), limits, static_cast<int>(per_ranking), size, space, stream.get());
  }
  const OverlapArguments<Packed> arguments{rankings.get() + first, limits, space,
                                           partial.fit(static_cast<std::size_t>(overlap_chunks()) * (1 + kFractions) * cells * (last - first)),
                                           agree.get() + first * cells, found.get() + first * cells, given.size() * cells, size.stride,
                                           static_cast<int>(per_ranking), static_cast<int>(last - first)};
  launch_overlap(arguments, most_rows, stream.get());
}

void HeadReplay::curves(std::span<const Ranking> rankings, CurveResults& out) {
  State& s = *state_;
  const OnDevice on(s.device);
  KVSIM_CHECK(!rankings.empty() && !rankings[0].counts.empty(), "no rankings or no counts");
  const std::size_t calls = rankings.size(), counts = rankings[0].counts.size(), prompt = static_cast<std::size_t>(s.size.prompt);
  KVSIM_CHECK(counts <= kMostCounts, "{} counts in one call, at most {}", counts, kMostCounts);
  const auto stride = static_cast<std::size_t>(s.size.stride);
  // Everything that describes the rankings, packed for one upload each.
  std::vector<std::uint32_t> orders, limits;
  std::vector<CurveStep> steps;
  std::vector<std::size_t> order_at, step_at;
  int most_rows = 0;
  for (std::size_t r = 0; r < calls; ++r) {
    const Ranking& ranking = rankings[r];
    KVSIM_CHECK(ranking.counts.size() == counts && std::is_sorted(ranking.counts.begin(), ranking.counts.end()) &&
                    ranking.counts.back() <= ranking.order.size() && ranking.order.size() <= prompt,
                "ranking {} has {} counts up to {} of {} tokens", r, ranking.counts.size(), ranking.counts.back(), ranking.order.size());
    KVSIM_CHECK(!ranking.order.empty() && ranking.order.size() <= kMostTokens * static_cast<std::size_t>(overlap_chunks()), "an order of {} tokens",
                ranking.order.size());
    KVSIM_CHECK(ranking.row_begin < ranking.row_end && ranking.row_end <= static_cast<std::size_t>(s.size.rows), "rows {} to {} of {}",
                ranking.row_begin, ranking.row_end, s.size.rows);
    order_at.push_back(orders.size());
    orders.insert(orders.end(), ranking.order.begin(), ranking.order.end());
    limits.insert(limits.end(), ranking.counts.begin(), ranking.counts.end());
    step_at.push_back(steps.size());
    cut_into_steps(ranking.counts, steps);
    most_rows = std::max(most_rows, static_cast<int>(ranking.row_end - ranking.row_begin));
  }
  step_at.push_back(steps.size());
  s.curve_start.record(s.stream);
  upload(s.orders.fit(orders.size()), orders.data(), orders.size(), s.stream);
  upload(s.counts.fit(limits.size()), limits.data(), limits.size(), s.stream);
  upload(s.steps.fit(steps.size()), steps.data(), steps.size(), s.stream);
  std::vector<RankingOnDevice> on_device;
  for (std::size_t r = 0; r < calls; ++r)
    on_device.push_back({s.orders.get() + order_at[r], s.steps.get() + step_at[r], static_cast<std::uint32_t>(step_at[r + 1] - step_at[r]),
                         static_cast<std::uint32_t>(rankings[r].order.size()),
                         static_cast<std::uint32_t>(rankings[r].row_begin), static_cast<std::uint32_t>(rankings[r].row_end)});
  upload(s.rankings.fit(calls), on_device.data(), calls, s.stream);
  const std::size_t cells = calls * counts * stride;
  const CurveArguments curve{s.rankings.get(), s.high.get(), s.low.get(), s.value_high.get(), s.split_values ? s.value_low.get() : nullptr,
                             s.exact.get(), s.tail.get(), s.tail_weight.get(), s.norm.get(), s.error.fit(cells), s.recall.fit(cells),
                             s.size.stride, s.size.value_dim, static_cast<int>(counts)};
  launch_curves(curve, static_cast<int>(calls), most_rows, s.stream.get());
  s.curved.record(s.stream);
  s.agree.fit(cells);
  s.found.fit(kFractions * cells);
  for (std::size_t first = 0, last = 0; first < calls; first = last) {
    const auto same = [&](std::size_t r) { return std::ranges::equal(rankings[r].counts, rankings[first].counts); };
    for (last = first + 1; last < calls && same(last);) ++last;
    if (counts <= static_cast<std::size_t>(kNarrowBudgets)) {
      s.count(rankings, first, last, most_rows, s.packed_narrow);
    } else {
      s.count(rankings, first, last, most_rows, s.packed_wide);
    }
  }
  s.counted.record(s.stream);
  out.stride = stride;
  out.counts = counts;
  out.error.resize(cells);
  out.recall.resize(cells);
  out.agree.resize(cells);
  out.found.resize(kFractions * cells);
  download(out.error.data(), s.error.get(), cells, s.stream);
  download(out.recall.data(), s.recall.get(), cells, s.stream);
  download(out.agree.data(), s.agree.get(), cells, s.stream);
  download(out.found.data(), s.found.get(), kFractions * cells, s.stream);
  s.downloaded.record(s.stream);
  s.stream.wait();
  s.timing.curve = s.curved.since(s.curve_start);
  s.timing.overlap = s.counted.since(s.curved);
  s.timing.download = s.downloaded.since(s.counted);
}

std::vector<double> HeadReplay::prompt_sums(std::size_t row_begin, std::size_t row_end) {
  State& s = *state_;
  const OnDevice on(s.device);
  std::vector<double> out(static_cast<std::size_t>(s.size.prompt));
  launch_prompt_sums(s.weights.get(), s.size, static_cast<int>(row_begin), static_cast<int>(row_end), s.sums.fit(out.size()), s.stream.get());
  download(out.data(), s.sums.get(), out.size(), s.stream);
  s.stream.wait();
  return out;
}

ExactResults HeadReplay::exact() {
  State& s = *state_;
  const OnDevice on(s.device);
  const auto stride = static_cast<std::size_t>(s.size.stride), prompt = static_cast<std::size_t>(s.size.prompt);
  ExactResults out;
  out.stride = stride;
  out.weights.resize(static_cast<std::size_t>(s.size.tokens) * stride);
  out.output.resize(static_cast<std::size_t>(s.size.rows) * static_cast<std::size_t>(s.size.value_dim));
  out.ranks.resize(prompt * stride);
  out.needed_total.resize(kFractions * stride);
  out.needed_prompt.resize(kFractions * stride);
  download(out.weights.data(), s.weights.get(), out.weights.size(), s.stream);
  download(out.output.data(), s.exact.get(), out.output.size(), s.stream);
  download(out.needed_total.data(), s.needed_total.get(), out.needed_total.size(), s.stream);
  download(out.needed_prompt.data(), s.needed_prompt.get(), out.needed_prompt.size(), s.stream);
  if (s.wide()) {
    download(out.ranks.data(), s.wide_ranks.get(), out.ranks.size(), s.stream);
    s.stream.wait();
    return out;
  }
  std::vector<std::uint16_t> narrow(out.ranks.size());
  download(narrow.data(), s.narrow_ranks.get(), narrow.size(), s.stream);
  s.stream.wait();
  std::transform(narrow.begin(), narrow.end(), out.ranks.begin(), [](std::uint16_t r) { return r == 0xFFFFu ? 0xFFFFFFFFu : r; });
  return out;
}

std::size_t HeadReplay::bytes_needed(std::size_t prompt, std::size_t decode, std::size_t rows, std::size_t key_dim, std::size_t value_dim,
                                     std::size_t rankings, std::size_t counts) {
  const std::size_t tokens = prompt + decode, stride = row_stride(rows);
  const std::size_t rank = prompt <= kNarrowRanks ? 2 : 4;
  const auto padded = static_cast<std::size_t>(padded_value_dim(static_cast<int>(value_dim)));
  const std::size_t head = tokens * (key_dim + value_dim) * 4 + rows * key_dim * 4 + prompt * padded * 4;
  const std::size_t weights = tokens * stride * (8 + 4) + prompt * stride * 4 + output_chunks(prompt, tokens) * rows * value_dim * 8;
  const std::size_t sort = rows * tokens * 16 * 3 / 2 + prompt * (rows + stride) * rank;
  const std::size_t cells = rankings * counts * stride;
  return head + weights + sort + cells * 4 * (6 + 4 * static_cast<std::size_t>(overlap_chunks())) + rankings * prompt * 5 + prompt * stride * 2;
}

HeadReplay::Timing HeadReplay::timing() const { return state_->timing; }

}  // namespace kvsim::cuda
