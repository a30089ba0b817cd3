// The kernels of one instruction set, see vectors.h for how it is chosen.
#pragma once

#include "cpu/group_quantize/factor.h"
#include "cpu/group_quantize/refine.h"
#include "cpu/group_quantize/sweep.h"

namespace tarq::TARQ_ISA {
namespace {

template <typename T>
constexpr GroupQuantizeKernels<T> kKernels = {
    kTile<T>,
    kFactorBlock,
    &factor_diagonal<T>,
    &pack_diagonal<T>,
    &factor_rows<T>,
    &factor_update<T>,
    &packed_size<T>,
    &pack_chunks<T>,
    &pack<T>,
    &workspace_size<T>,
    &sweep<T>,
    &packed_square_size<T>,
    &pack_square<T>,
    &refine_workspace_size<T>,
    &refine<T>,
};

}  // namespace

const GroupQuantizeKernels<float>& single() { return kKernels<float>; }
const GroupQuantizeKernels<double>& full() { return kKernels<double>; }

}  // namespace tarq::TARQ_ISA
