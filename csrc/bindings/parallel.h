// Work over torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace tarq {

/// Call body(0) … body(count − 1) over torch's threads, each taking the next one when it is done.
template <typename Body>
void for_each_dynamic(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) body(i);
  });
}

}  // namespace tarq
