#include "cpu/isa.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cpu/ceilings.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tarq {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "avx512_vnni", "avx512_amx"};
constexpr int kCount = int(sizeof(kNames) / sizeof(*kNames));

bool has_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8");
#else
  return false;
#endif
}

/// Why the system does not let this process use tiles, empty if it does: their state is large, so Linux
/// requires a request, once for all threads.
const std::string& tiles_refusal() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const std::string refusal =
      syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? "" : std::strerror(errno);
#else
  static const std::string refusal;
#endif
  return refusal;
}

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512_vnni) return vnni;
  if (isa == Isa::avx512_amx) return vnni && has_tiles() && tiles_refusal().empty();
#endif
  return isa == Isa::scalar;
}

/// Whether kernels of `isa` run on a machine that has no more than `wanted`.
bool contains(Isa wanted, Isa isa) {
  if (wanted == Isa::avx512_amx && isa == Isa::avx512_vnni) return true;
  return isa == wanted || (isa < wanted && isa <= Isa::avx512);
}

/// Operations a second of one run.
double rate(Multiply kind) {
  const auto start = std::chrono::steady_clock::now();
  const double operations = multiply_add(kind, 500);  // 2 to 30 µs
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  return operations / std::max(time.count(), 1e-9);
}

/// Rate of bf16 products, of vectors or tiles, relative to fp32 ones. The best of several alternating runs,
/// so that a disturbance of one does not count and a change of clock affects both.
double bf16_rate(Multiply kind) {
  double bf16 = 0.0, f32 = 0.0;
  for (int turn = 0; turn < 16; ++turn) {
    bf16 = std::max(bf16, rate(kind));
    f32 = std::max(f32, rate(Multiply::f32));
  }
  return bf16 / f32;
}

}  // namespace

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int i = kCount - 1; i >= 0; --i)
    if (machine_has(Isa(i))) names.emplace_back(kNames[i]);
  return names;
}

std::string isa_refusal() {
  if (!has_tiles() || tiles_refusal().empty()) return "";
  return std::string("avx512_amx is refused by the system: ") + tiles_refusal();
}

bool isa_allowed(Isa isa) {
  if (!isa_named()) return machine_has(isa);
  const char* const wanted = std::getenv("TARQ_CPU_ISA");
  for (int i = 0; i < kCount; ++i)
    if (std::string(wanted) == kNames[i] && machine_has(Isa(i))) return contains(Isa(i), isa);
  std::string choices;
  for (const std::string& name : isa_names()) choices += (choices.empty() ? "" : ", ") + name;
  throw std::runtime_error(std::string("TARQ_CPU_ISA is ") + wanted + ", but this machine has " + choices);
}

bool isa_named() {
  const char* const wanted = std::getenv("TARQ_CPU_ISA");
  return wanted && *wanted;
}

bool bf16_chosen() {
  if (!isa_allowed(Isa::avx512_bf16)) return false;
  if (isa_named()) return true;  // nothing else allows it
  // Processors run them at half the rate of fp32, where they gain nothing, or at the same or twice the rate,
  // where they win, having half as much to load and decode. The threshold is far from all three: near one of
  // them, two processes on one machine could choose differently.
  constexpr double kBound = 0.7;
  static const bool faster = bf16_rate(Multiply::bf16) > kBound;
  return faster;
}

bool bf16_tiles_chosen() {
#if defined(__x86_64__)
  static const bool exist = __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16");
  if (!isa_allowed(Isa::avx512_amx) || !exist) return false;
  if (isa_named()) return true;
  // Tiles run at 16 times the rate of fp32, and six products make one of fp32 numbers. Emulated or throttled
  // ones gain nothing.
  constexpr double kBound = 8.0;
  static const bool faster = bf16_rate(Multiply::bf16_tiles) > kBound;
  return faster;
#else
  return false;
#endif
}

}  // namespace tarq
