#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace tarq {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "avx512_vnni"};
constexpr int kCount = int(sizeof(kNames) / sizeof(*kNames));

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::avx512_vnni) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
  return isa == Isa::scalar;
}

/// Whether kernels of `isa` run on a machine that has no more than `wanted`.
bool contains(Isa wanted, Isa isa) { return isa == wanted || (isa < wanted && isa <= Isa::avx512); }

}  // namespace

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int i = kCount - 1; i >= 0; --i)
    if (machine_has(Isa(i))) names.emplace_back(kNames[i]);
  return names;
}

bool isa_allowed(Isa isa) {
  const char* const wanted = std::getenv("TARQ_CPU_ISA");
  if (!wanted || !*wanted) return machine_has(isa);
  for (int i = 0; i < kCount; ++i)
    if (std::string(wanted) == kNames[i] && machine_has(Isa(i))) return contains(Isa(i), isa);
  std::string choices;
  for (const std::string& name : isa_names()) choices += (choices.empty() ? "" : ", ") + name;
  throw std::runtime_error(std::string("TARQ_CPU_ISA is ") + wanted + ", but this machine has " + choices);
}

}  // namespace tarq
