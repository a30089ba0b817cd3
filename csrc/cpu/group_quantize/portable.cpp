// group_quantize for any processor, and the choice of the best kernels for this one.
#define TARQ_ISA generic
#define TARQ_VECTOR_BYTES 16
#define TARQ_PANEL 2
#include <type_traits>

#include "cpu/group_quantize/engine.h"
#include "cpu/isa.h"

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
  if (isa_allowed(Isa::avx512)) {
    if constexpr (is_single)
      return avx512::single();
    else
      return avx512::full();
  }
  if (isa_allowed(Isa::avx2)) {
    if constexpr (is_single)
      return avx2::single();
    else
      return avx2::full();
  }
#endif
  isa_allowed(Isa::scalar);  // refuses an unknown name
  if constexpr (is_single)
    return generic::single();
  else
    return generic::full();
}

template const GroupQuantizeKernels<float>& group_quantize_kernels<float>();
template const GroupQuantizeKernels<double>& group_quantize_kernels<double>();

}  // namespace tarq
