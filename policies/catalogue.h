// What users read about policies: the table of all of them and the page of one, made from the code itself.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

enum class TableFormat : std::uint8_t { text, markdown };

/// Rows of equal length; the first one is the header. Text has aligned columns, Markdown escapes '|'. Ends
/// with a newline.
std::string format_table(const std::vector<std::vector<std::string>>& rows, TableFormat format);

/// One line per policy: name, phase, needs, nested, oracle, summary; with `all` also parameters and
/// reference.
std::string policy_table(TableFormat format, bool all);

/// The help page of a policy: parameters, reference, budget accounting, what to record. Throws UserError
/// naming the nearest policy.
std::string policy_page(std::string_view name);

/// "keys, values, ...", or "positions" where nothing is read.
std::string needs_text(Need needs);

/// What `kvsim-record` has to be told so that a trace holds what a policy needs; one line per need.
std::vector<std::string> recording_advice(Need needs, std::uint32_t window);

}  // namespace kvsim
