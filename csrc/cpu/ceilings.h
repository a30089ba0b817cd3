// The peak rates of this machine: loops that only read, or only multiply and add in registers.
#pragma once

#include <cstdint>

namespace tarq {

/// Reads `count` bytes (a multiple of 512, aligned to 64) and folds them, so that no read can be left out.
uint64_t read_bytes(const void* data, int64_t count);

/// `int8` takes tiles where there are any; of bf16 only a library does.
enum class Multiply : int { f32, bf16, int8, bf16_tiles };

/// Runs independent multiply-adds for a while on one core; returns multiplications plus additions, 0 where
/// this machine has no instruction for it.
double multiply_add(Multiply kind, int64_t iterations);

}  // namespace tarq
