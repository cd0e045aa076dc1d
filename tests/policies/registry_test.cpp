// Binding specs to policies, their canonical form, and errors that help.
#include "policies/registry.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "policies/catalogue.h"

namespace kvsim {
namespace {

std::string canonical(std::string_view spec) { return canonical_spec(*bind_policy(parse_specs(spec).at(0))); }

std::string error_of(std::string_view spec) {
  try {
    bind_policy(parse_specs(spec).at(0));
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CanonicalSpec, WritesEveryParameterInDeclaredOrder) {
  EXPECT_EQ(canonical("snapkv"), "snapkv(window=64,kernel=5,pool=avg,group=mean,unit=kv)");
  EXPECT_EQ(canonical("snapkv(pool=max,window=32)"),
            "snapkv(window=32,kernel=5,pool=max,group=mean,unit=kv)");
  EXPECT_EQ(canonical("snapkv(16)"), "snapkv(window=16,kernel=5,pool=avg,group=mean,unit=kv)");
  EXPECT_EQ(canonical("streaming_llm"), "streaming_llm(sinks=4)");
  EXPECT_EQ(canonical("full"), "full");
  EXPECT_EQ(canonical("full()"), "full");
  EXPECT_EQ(canonical("random"), "random(seed=0)");
  EXPECT_EQ(canonical("lagkv(lag=64)"), "lagkv(sinks=4,lag=64,cross=false)");
  EXPECT_EQ(canonical("pyramidkv"),
            "pyramidkv(window=64,kernel=5,pool=avg,beta=20,group=mean,unit=kv,form=kvpress,total=exact)");
  EXPECT_EQ(canonical("ada(score=tova,alpha=0.50)"), "ada(score=tova,alpha=0.5,form=guarantee,total=exact)");
  EXPECT_EQ(canonical("ada(h2o)"),
            "ada(score=h2o(recent=0,group=mean,unit=kv),alpha=0.2,form=guarantee,total=exact)");
  EXPECT_EQ(canonical("chunkkv(knorm)"), "chunkkv(score=knorm,length=20)");
  EXPECT_EQ(canonical("chunk"), "chunk(score=keydiff,length=1024)");
  EXPECT_EQ(canonical("external(file=../s.h5,dataset=\"/my scores\")"),
            "external(file=\"../s.h5\",dataset=\"/my scores\")");
  EXPECT_EQ(canonical("expected_attention(epsilon=1e-2)"),
            "expected_attention(future=512,sinks=4,covariance=true,vnorm=true,epsilon=0.01,group=mean)");
}

TEST(CanonicalSpec, WritesThePartsOfComposeInFull) {
  EXPECT_EQ(canonical("compose"),
            "compose(score=none,base=attention,query=window(64),reduce=[mean,avg(5),group(mean)],"
            "value=none,redundancy=none,heads=uniform,layers=uniform,sinks=0,recent=0,recent_share=0,forced=[],select=top,unit=kv)");
  EXPECT_EQ(canonical("compose(base=knorm,heads=ada,layers=pyramid(10))"),
            "compose(score=none,base=knorm,query=none,reduce=[],value=none,redundancy=none,"
            "heads=ada(alpha=0.2,form=guarantee,total=exact),layers=pyramid(beta=10,form=kvpress,total=exact),sinks=0,"
            "recent=0,recent_share=0,forced=[],select=top,unit=kv)");
  EXPECT_EQ(canonical("compose(query=all,reduce=[visible,group],value=l1)"),
            "compose(score=none,base=attention,query=all,reduce=[visible,group(mean)],value=l1,redundancy=none,"
            "heads=uniform,layers=uniform,sinks=0,recent=0,recent_share=0,forced=[],select=top,unit=kv)");
  EXPECT_EQ(canonical("compose(query=[window(8),lookahead(snapkv-256)],reduce=[max,max(7),group],forced=[3])"),
            "compose(score=none,base=attention,query=[window(8),lookahead(pass=snapkv-256,length=8,mask=causal)],"
            "reduce=[max,max(7),group(mean)],value=none,redundancy=none,heads=uniform,layers=uniform,sinks=0,recent=0,"
            "recent_share=0,forced=[3],select=top,unit=kv)");
  EXPECT_EQ(canonical("compose(base=indicator,query=proxy(last=4),reduce=[count,value(wo),group],value=none)"),
            "compose(score=none,base=indicator(above),query=proxy(first=0,last=4),reduce=[count,value(wo(0.0001)),"
            "group(mean)],value=none,redundancy=none,heads=uniform,layers=uniform,sinks=0,recent=0,recent_share=0,forced=[],select=top,unit=kv)");
  EXPECT_EQ(canonical("compose(score=knorm,sinks=4)"),
            "compose(score=knorm,value=none,heads=uniform,layers=uniform,sinks=4,recent=0,recent_share=0,forced=[],select=top)");
}

TEST(CanonicalSpec, ReadsBackAsItselfForEveryPolicy) {
  for (const PolicyTraits* traits : all_policies()) {
    const std::string text = canonical_spec(*make_policy(traits->name));
    EXPECT_EQ(canonical(text), text);
  }
  for (const char* spec : {"ada(score=compose(base=keydiff,reduce=[max(7)],recent=8),form=interp,total=repo)",
                           "compose(score=ada(score=snapkv(unit=query)),value=l2,recent=3)",
                           "chunk(score=lagkv(sinks=1,lag=3,cross=true),length=100)"}) {
    EXPECT_EQ(canonical(canonical(spec)), canonical(spec));
  }
}

TEST(BindPolicy, ExplainsWhatIsWrong) {
  EXPECT_EQ(error_of("snapvk"),
            "unknown policy 'snapvk', did you mean 'snapkv'?; 'kvsim list policies' shows them all");
  EXPECT_EQ(
      error_of("snapkv(windw=3)"),
      "snapkv has no parameter 'windw', did you mean 'window'?; it has window, kernel, pool, group, unit");
  EXPECT_EQ(error_of("tova(window=3)"), "tova takes no parameters");
  EXPECT_EQ(error_of("snapkv(window=0)"), "snapkv: window=0 does not fit, expected 1 to 4294967295");
  EXPECT_EQ(error_of("snapkv(window=5000000000)"),
            "snapkv: window=5000000000 does not fit, expected 1 to 4294967295");
  EXPECT_EQ(error_of("snapkv(window=2.5)"), "snapkv: window=2.5 does not fit, expected a whole number");
  EXPECT_EQ(error_of("snapkv(window=-1)"), "snapkv: window=-1 does not fit, expected a whole number");
  EXPECT_EQ(error_of("snapkv(pool=min)"), "snapkv: pool=min does not fit, expected one of avg, max");
  EXPECT_EQ(error_of("snapkv(32,16)"),
            "snapkv: only the first value may stand without its name, write key=value for '16'");
  EXPECT_EQ(error_of("snapkv(window=1,window=2)"), "snapkv: parameter 'window' is given twice");
  EXPECT_EQ(error_of("snapkv(1,window=2)"), "snapkv: parameter 'window' is given twice");
  EXPECT_EQ(error_of("ada(alpha=nan)"), "ada: alpha=nan does not fit, expected a number");
  EXPECT_EQ(error_of("ada(alpha=1.5)"), "ada: alpha=1.5 does not fit, expected 0 to 1");
  EXPECT_EQ(error_of("ada(score=[h2o])"), "ada: score=[h2o] does not fit, expected a policy");
  EXPECT_EQ(error_of("lagkv(cross=yes)"), "lagkv: cross=yes does not fit, expected true or false");
  EXPECT_EQ(error_of("[h2o]"), "'[h2o]' is no policy, expected name or name(key=value,...)");
  EXPECT_EQ(error_of("compose(query=windw(3))"),
            "compose: query=windw(3) does not fit, expected window(64), all, current, proxy(first=0,last=16), "
            "lookahead(pass=\"\",length=8,mask=causal) or oracle(8)");
  EXPECT_EQ(error_of("compose(reduce=[mean,avg(4)])"),
            "compose: avg: kernel=4 must be odd, an even one shifts the scores");
  EXPECT_EQ(error_of("compose(heads=cake)"),
            "compose: heads=cake does not fit, expected uniform or ada(alpha=0.2,form=guarantee,total=exact)");
  EXPECT_EQ(error_of("compose(layers=best)"),
            "compose: layers=best does not fit, expected uniform, pyramid(beta=20,form=kvpress,total=exact) or cake(window=32,tau1=1,tau2=1,cascade=false)");
}

TEST(NearestName, OffersOnlyWhatIsNear) {
  const std::vector<std::string> names{"snapkv", "streaming_llm", "h2o", "tova"};
  EXPECT_EQ(nearest_name("snapvk", names), "snapkv");
  EXPECT_EQ(nearest_name("stream", names), "streaming_llm");
  EXPECT_EQ(nearest_name("h20", names), "h2o");
  EXPECT_EQ(nearest_name("belady", names), "");
}

TEST(Registry, ListsPoliciesSortedAndRefusesASecondOneOfAName) {
  const auto policies = all_policies();
  ASSERT_GE(policies.size(), 20u);
  for (std::size_t i = 1; i < policies.size(); ++i) EXPECT_LT(policies[i - 1]->name, policies[i]->name);
  const PolicyTraits again{.name = "snapkv", .summary = "", .reference = "", .accounting = ""};
  EXPECT_THROW(register_policy(again, nullptr), InternalError);
}

TEST(Registry, EveryPolicyDescribesItself) {
  for (const PolicyTraits* traits : all_policies()) {
    EXPECT_FALSE(traits->summary.empty()) << traits->name;
    EXPECT_LE(traits->summary.size(), 90u) << traits->name;
    EXPECT_FALSE(traits->reference.empty()) << traits->name;
    EXPECT_FALSE(traits->accounting.empty()) << traits->name;
    for (const FieldDescription& field : describe_fields(traits->name))
      EXPECT_FALSE(field.help.empty()) << field.key;
    const std::string page = policy_page(traits->name);
    for (const char* part : {"Budget", "Parameters", "What to record", "reference"}) {
      EXPECT_NE(page.find(part), std::string::npos) << traits->name;
    }
  }
}

}  // namespace
}  // namespace kvsim
