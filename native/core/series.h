// One kernel's calls one after the other, as a step makes them: its threads are woken once and meet after each call.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "kernel.h"

namespace allotrope {

class Series {
   public:
    // A prelude's outputs lie at `shared`; it runs once, before the first call.
    Series(const Isa& isa, const std::string& kernel, const std::string& prelude, const std::vector<double>& params,
           char* workspace, char* shared, int threads);
    Series(const Series&) = delete;
    Series& operator=(const Series&) = delete;

    // A set of operands.
    void add(const std::vector<View>& ins, const std::vector<View>& outs);

    // So many calls, on the sets in turn from `first` on; the seconds that they took once all threads were awake.
    double run(int64_t first, int64_t count);

   private:
    struct Set {
        std::vector<View> views;
        std::vector<const View*> places;
        Args args;
    };

    void work(Team& team);

    Kernel prelude_ = nullptr, kernel_;
    std::vector<double> params_;
    char *workspace_, *shared_;
    int threads_;
    std::vector<std::unique_ptr<Set>> sets_;
    int64_t first_ = 0, count_ = 0;
    double took_ = 0;
};

}  // namespace allotrope
