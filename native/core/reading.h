// Reading memory with the process's threads and doing nothing else: the bare limit of whatever must read it, taken where it
// lies; and moving it.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace allotrope {

using Piece = std::pair<const char*, int64_t>;  // where it lies, and its bytes

// The seconds in which so many threads, each taking its share of every piece, read all of them once.
double read_all(const std::vector<Piece>& pieces, int threads);

// Copies a piece of a mapped file, which nobody has written to, and lets go of what was resident of it. Takes so many seconds.
double move(const Piece& piece, char* to, int threads);

}  // namespace allotrope
