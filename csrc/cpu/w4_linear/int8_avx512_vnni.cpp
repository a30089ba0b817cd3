// AVX-512 with VNNI: vpdpbusd multiplies 64 pairs of bytes and adds them, four a lane, to 32 bits.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/w4_linear/avx512_vnni.h"

namespace tarq {

extern const W4Int8Kernel kW4Int8Avx512Vnni;
const W4Int8Kernel kW4Int8Avx512Vnni = make_int8_kernel<Avx512Vnni>("avx512_vnni");

}  // namespace tarq
#endif
