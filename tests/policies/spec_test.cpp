// The notation of policies: what it stands for, what it refuses, and that its text reads back.
#include "policies/spec.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "kernels/philox.h"

namespace kvsim {
namespace {

std::vector<std::string> texts(std::string_view spec) {
  std::vector<std::string> out;
  for (const SpecValue& value : parse_specs(spec)) out.push_back(to_text(value));
  return out;
}

std::string error_of(std::string_view spec) {
  try {
    parse_specs(spec);
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

using Texts = std::vector<std::string>;

TEST(ParseSpecs, ReadsNamesCallsListsAndQuotedText) {
  EXPECT_EQ(texts("h2o"), Texts{"h2o"});
  EXPECT_EQ(texts(" snapkv ( window = 32 , pool=avg ) "), Texts{"snapkv(window=32,pool=avg)"});
  EXPECT_EQ(texts("streaming_llm(8)"), Texts{"streaming_llm(8)"});
  EXPECT_EQ(texts("f([a,b(1),[]])"), Texts{"f([a,b(1),[]])"});
  EXPECT_EQ(texts(R"(external(file="a, \"b\" {c}.h5",dataset=/mine))"),
            Texts{R"(external(file="a, \"b\" {c}.h5",dataset=/mine))"});
  EXPECT_EQ(texts("ada(score=snapkv(window=32),alpha=0.2)"), Texts{"ada(score=snapkv(window=32),alpha=0.2)"});
}

TEST(ParseSpecs, ExpandsAlternativesLeftToRightWithTheLastFastest) {
  EXPECT_EQ(texts("s(w={16,32},p={avg,max})"),
            (Texts{"s(w=16,p=avg)", "s(w=16,p=max)", "s(w=32,p=avg)", "s(w=32,p=max)"}));
  EXPECT_EQ(texts("{a,b(c={1,2})}"), (Texts{"a", "b(c=1)", "b(c=2)"}));
  EXPECT_EQ(texts("f([{a,b},{1,2}])"), (Texts{"f([a,1])", "f([a,2])", "f([b,1])", "f([b,2])"}));
  EXPECT_EQ(texts("ada(score={snapkv(window={16,32}),h2o})"),
            (Texts{"ada(score=snapkv(window=16))", "ada(score=snapkv(window=32))", "ada(score=h2o)"}));
}

TEST(ParseSpecs, ExpandsRangesInsideValues) {
  EXPECT_EQ(texts("f(1..3)"), (Texts{"f(1)", "f(2)", "f(3)"}));
  EXPECT_EQ(texts("f(a={8,16..64*2})"), (Texts{"f(a=8)", "f(a=16)", "f(a=32)", "f(a=64)"}));
}

TEST(ExpandRange, StepsInExactDecimals) {
  EXPECT_EQ(expand_range("0.1..0.5+0.1"), (Texts{"0.1", "0.2", "0.3", "0.4", "0.5"}));
  EXPECT_EQ(expand_range("0..10+4"), (Texts{"0", "4", "8"}));
  EXPECT_EQ(expand_range("-1..1"), (Texts{"-1", "0", "1"}));
  EXPECT_EQ(expand_range("-0.05..0.05+0.05"), (Texts{"-0.05", "0", "0.05"}));
  EXPECT_EQ(expand_range("1e2..3e2+1e2"), (Texts{"100", "200", "300"}));
  EXPECT_EQ(expand_range("5..5"), Texts{"5"});
}

TEST(ExpandRange, MultipliesAndRoundsWithoutDoubles) {
  EXPECT_EQ(expand_range("64..1024*2"), (Texts{"64", "128", "256", "512", "1024"}));
  // 1, 1.5, 2.25, 3.375, 5.0625, 7.59375 rounded to the nearest integer, halves away from zero, by hand
  EXPECT_EQ(expand_range("1..8*1.5"), (Texts{"1", "2", "3", "5", "8"}));
  EXPECT_EQ(expand_range("1..3*1.1"), (Texts{"1", "2", "3"}));
}

TEST(ExpandRange, LeavesOtherWordsAlone) {
  EXPECT_EQ(expand_range("../scores.h5"), Texts{"../scores.h5"});
  EXPECT_EQ(expand_range("0.25"), Texts{"0.25"});
}

TEST(ExpandRange, RefusesWhatIsNoRange) {
  for (const char* range : {"5..1", "1..", "1..x", "1..5+0", "1..5+-1", "1..5*1", "1..5*0.5", "0..5*2",
                            "1..5/2", "1..5+", "1..5*", "1..inf", "1..nan", "1..1e300*2", "1..2000000",
                            "1..9*1.0000001", "0.12345678901234567..1", "1..2+1e-30"}) {
    EXPECT_THROW(expand_range(range), UserError) << range;
  }
}

TEST(ParseSpecs, NamesTheColumnAndWhatWasExpected) {
  EXPECT_EQ(error_of("snapkv(window="), "spec 'snapkv(window=', column 15: expected a value, found the end");
  EXPECT_EQ(error_of("snapkv(window=3"),
            "spec 'snapkv(window=3', column 16: expected ',' or ')', found the end");
  EXPECT_EQ(error_of("a b"), "spec 'a b', column 3: expected the end of the spec, found 'b'");
  EXPECT_EQ(error_of(""), "spec '', column 1: expected a value, found the end");
  EXPECT_EQ(error_of("f({})"), "spec 'f({})', column 4: expected a value, found '}'");
  EXPECT_EQ(error_of("f(a,)"), "spec 'f(a,)', column 5: expected a value, found ')'");
  EXPECT_EQ(error_of("f([1,2)"), "spec 'f([1,2)', column 7: expected ',' or ']', found ')'");
  EXPECT_EQ(error_of("3(a)"), "spec '3(a)', column 1: '3' is no name of a policy or part");
  EXPECT_EQ(error_of("f(3=a)"), "spec 'f(3=a)', column 3: '3' is no name of a parameter");
  EXPECT_EQ(error_of("f(\"abc)"), "spec 'f(\"abc)', column 3: the quoted text has no closing '\"'");
  EXPECT_EQ(error_of("f(5..1)"), "spec 'f(5..1)', column 3: range '5..1' is empty: 5 is above 1");
}

TEST(ParseSpecs, ErrorsStayOnOneLineWhateverTheInput) {
  EXPECT_EQ(error_of("a\nb\n\x01"),
            "spec 'a\\x0ab\\x0a\\x01', column 3: expected the end of the spec, found 'b'");
}

TEST(ParseSpecs, LimitsDepthAndExpansions) {
  const auto nested = [](std::size_t depth) {
    std::string text;
    for (std::size_t i = 0; i < depth; ++i) text += "f(";
    return text + "x" + std::string(depth, ')');
  };
  EXPECT_EQ(parse_specs(nested(kMaxSpecDepth)).size(), 1u);
  EXPECT_NE(error_of(nested(kMaxSpecDepth + 1)).find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of(std::string(1'000'000, '[')).find("nested deeper"), std::string::npos);
  EXPECT_EQ(parse_specs("f(a={1..1000},b={1..100})").size(), 100'000u);
  EXPECT_NE(error_of("f(a=1..1000,b=1..1001)").find("more than 1000000 specs"), std::string::npos);
  std::string wide = "f(";
  for (int i = 0; i < 60; ++i) wide += (i > 0 ? ",k" : "k") + std::to_string(i) + "=1..1000";
  EXPECT_NE(error_of(wide + ")").find("more than 1000000 specs"), std::string::npos);
}

/// A random value without alternatives, as a program could have built it.
SpecValue random_value(Philox& numbers, int depth) {
  const auto word = [&] {
    static constexpr const char* kWords[] = {"a",   "snapkv",  "0.25", "-3", "1e-4",
                                             "x_1", "../f.h5", "/a/b", "5%"};
    return std::string(kWords[numbers.next_below(9)]);
  };
  const auto name = [&] { return "n" + std::to_string(numbers.next_below(20)); };
  const std::uint32_t kind = depth == 0 ? numbers.next_below(2) : numbers.next_below(4);
  SpecValue value;
  if (kind == 0) {
    value.text = word();
  } else if (kind == 1) {
    value.kind = SpecValue::Kind::text;
    for (std::uint32_t i = numbers.next_below(6); i-- > 0;)
      value.text += static_cast<char>(1 + numbers.next_below(126));
  } else if (kind == 2) {
    value.kind = SpecValue::Kind::call;
    value.text = name();
    for (std::uint32_t i = numbers.next_below(4); i-- > 0;) {
      std::string key = numbers.next_below(2) == 0 ? std::string{} : name();
      value.arguments.emplace_back(std::move(key), random_value(numbers, depth - 1));
    }
  } else {
    value.kind = SpecValue::Kind::list;
    for (std::uint32_t i = numbers.next_below(4); i-- > 0;)
      value.items.push_back(random_value(numbers, depth - 1));
  }
  return value;
}

TEST(ToText, ReadsBackAsTheSameValue) {
  Philox numbers(7, 1);
  for (int i = 0; i < 3000; ++i) {
    const SpecValue value = random_value(numbers, 4);
    const std::string text = to_text(value);
    const std::vector<SpecValue> back = parse_specs(text);
    ASSERT_EQ(back.size(), 1u) << text;
    ASSERT_EQ(back[0], value) << text;
  }
}

TEST(ParseSpecs, AnyTextEitherParsesOrIsRefusedInOneLine) {
  static constexpr std::string_view kAlphabet = "ab1.0,()[]{}=\"\\ *+-_%/#\n..";
  Philox numbers(11, 2);
  int parsed = 0, refused = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string text;
    for (std::uint32_t n = numbers.next_below(14); n-- > 0;) {
      text += kAlphabet[numbers.next_below(static_cast<std::uint32_t>(kAlphabet.size()))];
    }
    try {
      for (const SpecValue& value : parse_specs(text)) {
        ASSERT_EQ(parse_specs(to_text(value)), std::vector<SpecValue>{value}) << text;
      }
      ++parsed;
    } catch (const UserError& error) {
      ASSERT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << text;
      ++refused;
    }
  }
  EXPECT_GT(parsed, 500);
  EXPECT_GT(refused, 500);
}

TEST(QuoteIfNeeded, QuotesOnlyWhatWouldNotReadBack) {
  EXPECT_EQ(quote_if_needed("a/b-c.h5"), "a/b-c.h5");
  EXPECT_EQ(quote_if_needed(""), "\"\"");
  EXPECT_EQ(quote_if_needed("a b"), "\"a b\"");
  EXPECT_EQ(quote_if_needed("1..2"), "\"1..2\"");
}

}  // namespace
}  // namespace kvsim
