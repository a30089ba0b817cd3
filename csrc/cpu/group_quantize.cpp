// group_quantize for any processor, and the choice of the best kernels for this one.
#define TARQ_ISA generic
#define TARQ_VECTOR_BYTES 16
#define TARQ_PANEL 2
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cpu/group_quantize_kernels.h"

namespace tarq {

#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
const GroupQuantizeKernels<float>& single();
const GroupQuantizeKernels<double>& full();
}  // namespace avx2
namespace avx512 {
const GroupQuantizeKernels<float>& single();
const GroupQuantizeKernels<double>& full();
}  // namespace avx512
#endif

template <typename T>
const GroupQuantizeKernels<T>& group_quantize_kernels() {
  constexpr bool is_single = std::is_same_v<T, float>;
#if defined(__x86_64__) && defined(__GNUC__)
  // Read at every call: it costs nothing beside a layer, and lets one process test them all.
  const char* highest = std::getenv("TARQ_CPU_ISA");
  const bool allow_avx2 = !highest || std::strcmp(highest, "generic") != 0;
  const bool allow_avx512 = allow_avx2 && (!highest || std::strcmp(highest, "avx2") != 0);
  if (allow_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if constexpr (is_single)
      return avx512::single();
    else
      return avx512::full();
  }
  if (allow_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if constexpr (is_single)
      return avx2::single();
    else
      return avx2::full();
  }
#endif
  if constexpr (is_single)
    return generic::single();
  else
    return generic::full();
}

template const GroupQuantizeKernels<float>& group_quantize_kernels<float>();
template const GroupQuantizeKernels<double>& group_quantize_kernels<double>();

}  // namespace tarq
