// The machine behind emulation.h, for the driver: run a kernel over a grid.
#pragma once
#include "emulation.h"

#include <functional>
#include <string>

namespace emu {

// Runs kernel() in every thread of `blocks` blocks of `threads`, clusters one after the other. seed 0: one fixed order;
// else a random one. shared: bytes of dynamic shared memory. Returns what went wrong, empty if nothing.
std::string launch(u32 blocks, u32 threads, u32 cluster, u32 shared, u64 seed, const std::function<void()>& kernel);

}  // namespace emu
