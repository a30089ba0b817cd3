// group_quantize for AVX-512: 8 × 3 accumulators of the 32 registers.
#if defined(__x86_64__) && defined(__GNUC__)
#include <cstdint>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TARQ_ISA avx512
#define TARQ_VECTOR_BYTES 64
#define TARQ_PANEL 8
#include "cpu/group_quantize/engine.h"
#endif
