// Which instruction sets kernels were compiled for, and which of them this machine has.

#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace allotrope {

struct Isa {
    const char* name;
    const Entry* const* tables;  // one per source, then a null
    const char* lacks;           // why it cannot run here; empty if it can
};

// All that were compiled, the plainest first; the last one that lacks nothing is the best. Nothing is asked of the system.
const std::vector<Isa>& isas();

// Takes from the system what it gives only to who asks, once for the process; why it does not, or nothing.
const char* refused(const Isa& isa);

// The kernel of that name for the instruction set, ready to run; null if there is none.
Kernel find_kernel(const Isa& isa, const std::string& name);

// What kind of kernel that is.
Kind kind_of(const Isa& isa, const std::string& kernel);

// The bytes of workspace that this kernel needs; see `Sizing`.
int64_t workspace_of(const Isa& isa, const std::string& kernel, const std::vector<int64_t>& sizes, int threads);

}  // namespace allotrope
