// How fast the process's threads read memory: the bare limit of whatever must read it, taken where it lies.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace allotrope {

using Piece = std::pair<const char*, int64_t>;  // where it lies, and its bytes

// The seconds in which so many threads, each taking its share of every piece, read all of them once.
double read_all(const std::vector<Piece>& pieces, int threads);

}  // namespace allotrope
