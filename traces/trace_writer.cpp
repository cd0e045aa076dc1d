// Root attributes, tables and the orderly end of a new trace.
#include "traces/trace_writer.h"

#include "traces/digest.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim {

std::string_view name_of(RopeLayout layout) {
  return layout == RopeLayout::half ? "half" : layout == RopeLayout::interleaved ? "interleaved" : "none";
}

TraceWriter::TraceWriter(const std::string& target, const TraceHeader& header)
    : pending_(target), file_(h5::File::create(pending_.path())) {
  file_.set_attribute("format", "kvsim-trace");
  file_.set_attribute("version", 1);
  file_.set_attribute("model", header.model);
  file_.set_attribute("recorder", header.recorder);
  file_.set_attribute("created", header.created);
  file_.set_attribute("source", header.source);
  file_.set_attribute("weights", header.weights);
  file_.set_attribute("num_layers", header.num_layers);
  file_.set_attribute("num_query_heads", header.num_query_heads);
  file_.set_attribute("num_kv_heads", header.num_kv_heads);
  file_.set_attribute("head_dim", header.head_dim);
  file_.set_attribute("value_dim", header.value_dim);
  file_.set_attribute("prompt_len", header.prompt_len);
  file_.set_attribute("decode_len", header.decode_len);
  file_.set_attribute("softmax_scale", header.softmax_scale);
  file_.set_attribute("logit_softcap", header.logit_softcap);
  file_.set_attribute("attention_scaling", header.attention_scaling);
  file_.set_attribute("rope_layout", name_of(header.rope_layout));
  if (!header.inverse_frequency.empty()) file_.write_column("rope/inv_freq", header.inverse_frequency);
}

h5::Dataset TraceWriter::create_tensor(const std::string& path, DType type, const h5::Shape& shape) {
  return file_.create_dataset(path, element_of(type), shape);
}

void TraceWriter::add_root_attributes(const h5::File& from) {
  file_.set_attribute("digest", "");  // set anew by finish
  file_.add_attributes(from);
}

void TraceWriter::write_segments(const std::vector<Segment>& segments) {
  std::vector<std::int32_t> begin, end, turn;
  std::vector<std::string> kind;
  for (const Segment& segment : segments) {
    begin.push_back(static_cast<std::int32_t>(segment.begin));
    end.push_back(static_cast<std::int32_t>(segment.end));
    kind.push_back(segment.kind);
    turn.push_back(segment.turn);
  }
  file_.write_column("segments/begin", begin);
  file_.write_column("segments/end", end);
  file_.write_column("segments/kind", kind);
  file_.write_column("segments/turn", turn);
}

void TraceWriter::write_tokens(const std::vector<std::int32_t>& ids, const std::vector<std::string>& texts) {
  file_.write_column("tokens/id", ids);
  if (!texts.empty()) file_.write_column("tokens/text", texts);
}

std::string TraceWriter::finish(const ByteProgress& progress) {
  file_.flush();
  const std::string digest = file_digest(file_, progress);
  file_.set_attribute("digest", digest);
  file_.flush();
  static_cast<void>(read_header(file_));
  file_.close();
  pending_.commit();
  return digest;
}

}  // namespace kvsim
