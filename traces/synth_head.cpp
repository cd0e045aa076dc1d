// The rows of a synthetic head: noise plus a few directions that queries and keys share.
#include "traces/synth_head.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "traces/synth_math.h"

namespace kvsim::synth {
namespace {

constexpr std::uint32_t kSinks = 4;
constexpr std::size_t kTopics = 12;
constexpr std::uint64_t kTokenTopic = 32;   // tokens that share a topic
constexpr std::uint64_t kQueryTopic = 160;  // positions after which queries care for another topic
constexpr float kKeyNoise = 0.5f, kQueryNoise = 0.7f, kValueNoise = 0.8f;

/// Purposes of random streams; part of every stream's number, so that none repeats another.
enum Purpose : std::uint64_t {
  kKeys,
  kValues,
  kQueries,
  kSink,
  kLocal,
  kTopic,
  kTopicValue,
  kNeedle,
  kTaste,
  kTokenTopics,
  kQueryTopics,
  kSalience,
  kPlaces
};

/// About normal, of mean 0 and variance 1: the sum of four bytes.
float normal(std::uint32_t word) {
  const std::uint32_t pairs = (word & 0x00FF00FFu) + ((word >> 8) & 0x00FF00FFu);
  const auto sum = static_cast<std::int32_t>((pairs & 0xFFFFu) + (pairs >> 16)) - 510;
  return static_cast<float>(sum) * (1.0f / 147.8f);  // sqrt(4 * (256^2 - 1) / 12)
}

void add(const std::vector<float>& direction, float strength, float* row) {
  for (std::size_t c = 0; c < direction.size(); ++c) row[c] += strength * direction[c];
}

/// The base of the rotary embedding: among those in use the first for which the slowest eighth of the
/// channels turns by less than half a radian over the whole length, so that content can be found at any
/// distance.
double rotary_log_base(std::uint64_t tokens) {
  constexpr double kLn10 = 2.302585092994046, kLn5 = 1.6094379124341003;
  const double n = 2.0 * static_cast<double>(tokens);
  struct Base {
    double value, log;
  };
  for (const Base base : {Base{1e4, 4 * kLn10}, Base{1e5, 5 * kLn10}, Base{5e5, kLn5 + 5 * kLn10},
                          Base{1e6, 6 * kLn10}, Base{1e7, 7 * kLn10}}) {
    if (base.value * base.value * base.value >= n * n * n * n) return base.log;
  }
  return 8 * kLn10;
}

float uniform(Philox& random, double low, double high) {
  return static_cast<float>(low + (high - low) * random.next_double());
}

}  // namespace

void fill_noise(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, float amplitude,
                MatrixView<float> out) {
  const Philox random(seed, stream);
  const std::uint64_t per_row = (out.cols + 3) / 4;
  for (std::size_t r = 0; r < out.rows; ++r) {
    float* row = out.row(r);
    const std::uint64_t counter = (first + r) * per_row;
    for (std::size_t c = 0; c < out.cols; c += 4) {
      const Philox::Block block = random.block(counter + c / 4);
      const std::size_t n = std::min<std::size_t>(4, out.cols - c);
      for (std::size_t i = 0; i < n; ++i) row[c + i] = amplitude * normal(block[i]);
    }
  }
}

World::World(const SynthOptions& asked) : options(asked) {
  tokens = options.prompt + options.decode;
  value_dim = options.value_dim == 0 ? options.head_dim : options.value_dim;
  log_tokens = logarithm(static_cast<double>(tokens));
  if (options.head_dim % 2 == 0 && options.head_dim >= 8) {
    const double log_base = rotary_log_base(tokens);
    for (std::uint32_t i = 0; i < options.head_dim / 2; ++i) {
      inverse_frequency.push_back(static_cast<float>(exponential(-log_base * 2.0 * i / options.head_dim)));
    }
  }
  // Needles lie one in each equal part of the prompt, clear of sinks and of the end.
  const std::uint64_t length = options.needle_length;
  const std::uint64_t low = kSinks, high = options.prompt - options.prompt / 8;
  for (std::uint32_t i = 0; i < options.needles && length > 0; ++i) {
    const std::uint64_t room = high > low ? (high - low) / options.needles : 0;
    if (room <= length) break;
    Philox random(options.seed, stream_of(kPlaces, i));
    const std::uint64_t at = low + i * room + random.next_below(static_cast<std::uint32_t>(room - length));
    needles.emplace_back(at, at + length);
  }
}

Head::Head(const World& world, std::uint32_t layer, std::uint32_t kv_head)
    : world_(world), seed_(world.options.seed), id_(stream_of(layer, kv_head)) {
  const std::size_t d = world.options.head_dim;
  // The slow quarter of the rotary pairs carries content, the fast half locality; both lie twice, in either
  // half of d.
  const std::size_t pairs = d / 2, slow = pairs - std::max<std::size_t>(1, pairs / 4);
  const bool rotary = !world.inverse_frequency.empty();
  const std::size_t begin = rotary ? slow : 0, end = rotary ? pairs : d;
  sink_ = direction(stream_of(kSink), begin, end, d);
  local_ = direction(stream_of(kLocal), 0, rotary ? pairs / 2 : d, d);
  for (std::size_t i = 0; i < kTopics; ++i) {
    topics_.push_back(direction(stream_of(kTopic, i), begin, end, d));
    topic_values_.push_back(direction(stream_of(kTopicValue, i), 0, world.value_dim, world.value_dim));
  }
  for (std::size_t i = 0; i < world.needles.size(); ++i) {
    needles_.push_back(direction(stream_of(kNeedle, i), begin, end, d));
  }
  const auto strength = static_cast<float>(world.log_tokens);
  const std::uint32_t group = world.options.query_heads / world.options.kv_heads;
  for (std::uint32_t h = 0; h < group; ++h) {
    Philox random(seed_, stream_of(kTaste, id_, h));
    const bool retrieval = random.next_below(3) == 0;
    const bool local = random.next_below(3) == 0;
    Taste taste{};
    taste.sinks = strength * uniform(random, 0.4, 1.3);
    taste.local = strength * (local ? uniform(random, 0.7, 1.4) : uniform(random, 0.1, 0.6));
    taste.topics = strength * uniform(random, 0.3, 1.1);
    taste.needles = strength * (retrieval ? uniform(random, 1.0, 1.5) : uniform(random, 0.0, 0.5));
    tastes_.push_back(taste);
  }
}

Head::Direction Head::direction(std::uint64_t purpose, std::size_t begin, std::size_t end,
                                std::size_t size) const {
  Direction result(size, 0.0f);
  Philox random(seed_, stream_of(purpose, id_));
  const bool paired = !world_.inverse_frequency.empty() && end <= size / 2;
  double squares = 0.0;
  const auto draw = [&](std::size_t c) {
    result[c] = normal(random.next_u32());
    squares += static_cast<double>(result[c]) * static_cast<double>(result[c]);
  };
  for (std::size_t c = begin; c < end; ++c) {
    draw(c);
    if (paired) draw(c + size / 2);
  }
  // Length d^(1/4) on both sides: a strength is then a logit, since the scale is d^(-1/2).
  const double length = squares > 0.0 ? std::sqrt(std::sqrt(static_cast<double>(size)) / squares) : 0.0;
  for (float& x : result) x = static_cast<float>(static_cast<double>(x) * length);
  return result;
}

std::uint32_t Head::topic_of_tokens(std::uint64_t position) const {
  return Philox(seed_, stream_of(kTokenTopics)).block(position / kTokenTopic)[0] % kTopics;
}

/// One token in 25 is a heavy hitter of its topic, the others weigh little.
float Head::salience(std::uint64_t position) const {
  const Philox::Block draw = Philox(seed_, stream_of(kSalience, id_)).block(position);
  const float x = static_cast<float>(draw[0] >> 8) * 0x1p-24f;
  return x < 0.04f ? 1.0f : 0.5f * x * x;
}

std::pair<std::size_t, bool> Head::needle_at(std::uint64_t position) const {
  for (std::size_t i = 0; i < world_.needles.size(); ++i) {
    if (position >= world_.needles[i].first && position < world_.needles[i].second) return {i, true};
  }
  return {0, false};
}

void Head::add_topics(std::uint64_t position, float strength, float* row) const {
  const Philox random(seed_, stream_of(kQueryTopics, id_));
  const std::uint64_t block = position / kQueryTopic;
  const float shift = static_cast<float>(position % kQueryTopic) / static_cast<float>(kQueryTopic);
  add(topics_[random.block(block)[0] % kTopics], strength * (1.0f - shift), row);
  add(topics_[random.block(block + 1)[0] % kTopics], strength * shift, row);
}

void Head::keys(std::uint64_t first, MatrixView<float> out) const {
  fill_noise(seed_, stream_of(kKeys, id_), first, kKeyNoise, out);
  for (std::size_t r = 0; r < out.rows; ++r) {
    const std::uint64_t position = first + r;
    add(local_, 1.0f, out.row(r));
    const auto [needle, inside] = needle_at(position);
    if (position < kSinks) {
      add(sink_, 1.0f, out.row(r));
    } else if (inside) {
      add(needles_[needle], 1.0f, out.row(r));
    } else {
      add(topics_[topic_of_tokens(position)], salience(position), out.row(r));
    }
  }
  rotate(first, out);
}

void Head::values(std::uint64_t first, MatrixView<float> out) const {
  fill_noise(seed_, stream_of(kValues, id_), first, kValueNoise, out);
  for (std::size_t r = 0; r < out.rows; ++r) {
    const std::uint64_t position = first + r;
    if (position < kSinks) {  // sinks take attention and give nothing: real models' first values are tiny
      for (std::size_t c = 0; c < out.cols; ++c) out(r, c) *= 0.05f;
    } else {
      add(topic_values_[topic_of_tokens(position)], 0.5f, out.row(r));
    }
  }
}

void Head::queries(std::uint32_t head_in_group, std::uint64_t first, MatrixView<float> out,
                   Rotary rotary) const {
  const Taste& taste = tastes_[head_in_group];
  fill_noise(seed_, stream_of(kQueries, id_, head_in_group), first, kQueryNoise, out);
  for (std::size_t r = 0; r < out.rows; ++r) {
    const std::uint64_t position = first + r;
    float* row = out.row(r);
    add(sink_, taste.sinks, row);
    add(local_, taste.local, row);
    add_topics(position, taste.topics, row);
    if (position >= world_.options.prompt &&
        !needles_.empty()) {  // every eighth step turns to the next needle
      const std::uint64_t step = position - world_.options.prompt;
      add(needles_[step / 8 % needles_.size()], taste.needles, row);
    }
  }
  if (rotary == Rotary::on) rotate(first, out);
}

void Head::rotate(std::uint64_t first, MatrixView<float> out) const {
  const std::size_t pairs = world_.inverse_frequency.size();
  if (pairs == 0) return;
  KVSIM_CHECK(first % kRowGrid == 0, "rows from {}", first);
  std::vector<Rotation> angle(pairs), step(pairs);
  for (std::size_t i = 0; i < pairs; ++i)
    step[i] = rotation(static_cast<double>(world_.inverse_frequency[i]));
  for (std::size_t r = 0; r < out.rows; ++r) {
    if (r % kRowGrid == 0) {
      for (std::size_t i = 0; i < pairs; ++i) {
        angle[i] =
            rotation(static_cast<double>(world_.inverse_frequency[i]) * static_cast<double>(first + r));
      }
    }
    float* row = out.row(r);
    for (std::size_t i = 0; i < pairs; ++i) {
      const double x = static_cast<double>(row[i]), y = static_cast<double>(row[i + pairs]);
      row[i] = static_cast<float>(x * angle[i].cosine - y * angle[i].sine);
      row[i + pairs] = static_cast<float>(y * angle[i].cosine + x * angle[i].sine);
      angle[i] = angle[i].then(step[i]);
    }
  }
}

}  // namespace kvsim::synth
