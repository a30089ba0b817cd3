// group_quantize for AVX2 with FMA: 4 × 3 accumulators of the 16 registers.
#if defined(__x86_64__) && defined(__GNUC__)
#include <cstdint>
#pragma GCC target("avx2,fma")
#define TARQ_ISA avx2
#define TARQ_VECTOR_BYTES 32
#define TARQ_PANEL 4
#include "cpu/group_quantize/engine.h"
#endif
