// A step's calls as one thread makes them.
//
// What a call needs lies side by side, in the order in which it is asked for: between two steps weights have swept the
// caches, and to look for each thing would take longer than small calls do.

#pragma once

#include <cstdint>
#include <vector>

#include "kernel.h"

namespace allotrope {

struct Script {
    struct Line {
        Kernel kernel;
        Args args;
        int call;
        bool apart;  // alone; else all meet afterwards
        bool meets;  // all meet before it: somebody may still read for himself what it writes
    };

    std::vector<Line> lines;
    std::vector<const View*> operands;
    std::vector<View> views;
    std::vector<int8_t> kinds;  // of each view's rows; −1: it has as many in every step
    std::vector<Behind> behinds;
    std::vector<char> read;     // while it is written: by region, whether some thread may still read it for itself
    int64_t version = -1;
    std::vector<int64_t> counts;  // of rows, by kind

    // Room for so much of each, so that nothing is allocated, and nothing moves, while it is written.
    void reserve(size_t calls, size_t operands_in_all, size_t regions, size_t row_kinds) {
        lines.reserve(calls), behinds.reserve(calls), operands.reserve(operands_in_all);
        views.reserve(operands_in_all), kinds.reserve(operands_in_all), read.resize(regions), counts.resize(row_kinds);
    }

    // Nothing is left of the script before, which another thread may not have had: all must meet equally often.
    void clear() {
        lines.clear(), operands.clear(), views.clear(), kinds.clear(), behinds.clear();
        for (char& one : read) one = 0;
    }

    // Other numbers of rows, which change nothing else.
    void set_rows(const std::vector<int64_t>& rows) {
        for (size_t kind = 0; kind < counts.size(); ++kind) counts[kind] = rows[kind];
        for (size_t i = 0; i < views.size(); ++i)
            if (kinds[i] >= 0) views[i].rows = counts[static_cast<size_t>(kinds[i])];
    }

    int64_t meetings() const {
        int64_t found = 0;
        for (const Line& line : lines) found += line.meets + !line.apart;
        return found;
    }
};

}  // namespace allotrope
