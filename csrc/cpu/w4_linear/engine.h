// The kernels of w4_linear, written once over a description `S` of an instruction set. few_rows.h has one
// word a lane; for it S has
//
// - Words: `lanes` int32 words; Window: which lanes of a row's last words are there; window, load_words
// - Element: type of activations and codes; Vector: `width` of them; load; kept_in_register(v): v,
//   not to be loaded again
// - steps: vectors a block decodes to
// - unit(j): the factor in codes of step j; activations are packed divided by it
// - steps_in_memory, steps_in_registers: constants that decoding needs, to be passed on
// - Centred<parts>: once it has `read` a block's zero points, a function of (words, those, j) that gives step
//   j's codes less their zero points
// - defers_zeros: Codes is the same without zero points; Deferred takes their share of the products from the
//   sums, which loses accuracy where a row has an outlier (`has_outlier`)
// - fused_by_word: Centred serves where each word has a zero point of its own
// - Sum: partial sums of one output; zero, add, product, dot, multiply_add, spread<parts> of scales
// - Four: kTile finished outputs; reduce, load_four, write_four; finish(sums, bias)
// - fused_rows: activation rows at most; weight_rows(rows): how many weight rows are multiplied with them
//   together; together: blocks decoded in straight code for one row
// - pack_block(x, type, first, to, sums): a block of activations in packed order; to_float
//
// many_rows.h has one output a lane of Sum; for it S has
//
// - height: activation rows of a register tile; depth: inputs of a pass
// - load_columns: `lanes` words of `lanes` rows, transposed; word_codes<symmetric>(words, j): codes j of
// words
//   as floats, minus 8 if the layer is symmetric
// - load_sums, store_sums, write_sums; multiply, subtract
// - pack_columns: eight inputs of `height` rows, transposed
#pragma once

#include "cpu/w4_linear/few_rows.h"
#include "cpu/w4_linear/many_rows.h"

namespace tarq {
namespace {

template <class S>
constexpr W4FewRows make_few_rows(const char* isa) {
  return {.isa = isa,
          .element = sizeof(typename S::Element) == 2 ? Float::bf16 : Float::f32,
          .block = kBlock<S>,
          .rows = S::fused_rows,
          .wants_sums = S::defers_zeros,
          .serves = serves_few<S>,
          .pack = pack_blocks<S>,
          .scratch_bytes = few_scratch_bytes<S>,
          .multiply = multiply_few<S>};
}

template <class S>
constexpr W4ManyRows make_many_rows(const char* isa) {
  return {.isa = isa,
          .panels = row_panels<S>,
          .input_bytes = many_input_bytes<S>,
          .pack = pack_panels<S>,
          .scratch_bytes = many_scratch_bytes<S>,
          .multiply = multiply_many<S>,
          .decode = decode_bf16<S>};
}

}  // namespace
}  // namespace tarq
