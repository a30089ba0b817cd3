// Which kernels run: instruction sets by name, and what the environment variable TARQ_CPU_ISA asks for.
#pragma once

#include <string>
#include <vector>

namespace tarq {

/// From the one every machine has to the best; each contains those before it, but that bf16 and vnni are both
/// avx512 with something more, and amx is vnni with tiles.
enum class Isa : int { scalar, avx2, avx512, avx512_bf16, avx512_vnni, avx512_amx };

/// Names of those this machine has, best first.
std::vector<std::string> isa_names();

/// Of an instruction set that the processor has and the system refuses, which one and why; else empty.
std::string isa_refusal();

/// Whether kernels of this instruction set may run: the machine has it, and it is part of what TARQ_CPU_ISA
/// names, if that names anything. Throws std::runtime_error if it names none of `isa_names`. The variable
/// is read at every call: that costs nothing beside a product, and lets one process test them all.
bool isa_allowed(Isa isa);

/// Whether TARQ_CPU_ISA names an instruction set.
bool isa_named();

/// Whether products of bf16 numbers should use bf16 instructions: if allowed and clearly faster than fp32,
/// which the first call measures in a millisecond at most. TARQ_CPU_ISA decides without measuring:
/// avx512_bf16 uses them, every other name does not.
bool bf16_chosen();

/// Whether products should be made of bf16 ones by tile instructions: likewise, `avx512_amx` uses them.
bool bf16_tiles_chosen();

}  // namespace tarq
