// The threads that the loops of the library share.
#pragma once

#include "../../../torch_utils/csrc/pool.h"

namespace fields {

splat::Threads& threads();

// function(i) for i below `count`, on up to `wanted` threads.
template <class Function>
void for_each(int wanted, int count, const Function& function) {
  const splat::TeamLease lease(threads(), wanted);
  lease.team().loop(count, function);
}

}  // namespace fields
