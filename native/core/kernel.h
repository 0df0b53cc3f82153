// What a kernel is: a function over two-dimensional views, run by every thread of a team at once.
//
// A kernel's source stands beside its op (allotrope/ops/OP/via_native*.cpp) and is compiled once per instruction set,
// each time into a namespace of that name, so nothing of one may be called by another. Therefore a kernel's source:
//
//   - puts everything into `namespace allotrope::ALLOTROPE_ISA`, helpers in an unnamed namespace inside it;
//   - uses of the standard library only what leaves no function behind (fixed-size types, <cmath>, std::memcpy):
//     the linker keeps one copy of an inline function, and it might be the one with instructions that are not here;
//   - ends with ALLOTROPE_KERNELS({"name", function}, ...), which is how the core finds it.
//
// Rules that make results the same for any number of threads: split work by output rows, columns, heads or fixed
// splits, never a sum by `team.count`; and let a row's arithmetic depend on nothing but the row.

#pragma once

#include <cstddef>
#include <cstdint>

#include "team.h"

// Small functions outside the instruction sets' namespaces: no copy of one may be left for the linker to choose.
#define ALLOTROPE_INLINE __attribute__((always_inline)) inline

namespace allotrope {

// Whether what is read next is fetched into the nearest cache, or no further than into the second: which of them keeps more
// of memory busy is the CPU's. The builder times a model's largest layer both ways; where nobody did, kFetchNear is the
// guess: steps on one CPU with AMX were a tenth faster by way of the second.
extern const bool kFetchNear;
extern bool fetch_near;  // of the program that computes; a hint, so any thread's word will do, read and written atomically

enum class Dtype : int32_t { none, f32, f16, bf16, f64, i32, i64, u8, i8 };

// A matrix: the last axis is dense, rows lie `stride` bytes apart. A vector is one row. A cache [pages, page, width] is
// pages · page rows, which `row` finds only where pages do not lie apart. Weights of more axes have their first axis as
// rows and the others as width.
struct View {
    void* data = nullptr;
    int64_t rows = 0;
    int64_t width = 0;
    int64_t stride = 0;
    Dtype dtype = Dtype::none;
    int32_t page = 0;  // rows of a page, in caches
    int64_t apart = 0;  // in caches whose pages lie apart, the bytes from one to the next

    template <class T>
    ALLOTROPE_INLINE T* row(int64_t index) const {
        return reinterpret_cast<T*>(static_cast<char*>(data) + index * stride);
    }
    // Row `offset` of a cache's page.
    template <class T>
    ALLOTROPE_INLINE T* paged(int64_t number, int64_t offset) const {
        const int64_t step = apart != 0 ? apart : page * stride;
        return reinterpret_cast<T*>(static_cast<char*>(data) + number * step + offset * stride);
    }
    template <class T>
    ALLOTROPE_INLINE T* as() const {
        return static_cast<T*>(data);
    }
    ALLOTROPE_INLINE explicit operator bool() const { return data != nullptr; }
};

// A row's largest value among a thread's own, from output `begin` on; NaN if there is one. Whether all of them are finite.
struct Top {
    float top;
    bool finite;
    int32_t begin;
};

// What stands behind a linear layer, which each thread computes of the outputs that it has just made; and what it notes of
// them.
struct Behind {
    const View* out = nullptr;       // where that goes; null: there is nothing
    const View* residual = nullptr;  // outputs are added to this
    int curve = -1;                  // they are activated, as the op of that name numbers its kinds
    bool gated = false;              // they are two halves, of which the first is, and multiplied by the second
    Top* tops = nullptr;             // of logits: for each row one per thread
    uint64_t* spent = nullptr;       // if there is a clock: to which what that takes is added,
    uint64_t (*now)() = nullptr;     // by this one
};

// What a call is made with. Operands come in the contract's order, those on the host left out; an absent one is a
// view without data. `params` are the numbers that the tactic's `numbers` gives, in that order.
struct Args {
    const View* const* ins = nullptr;
    const View* const* outs = nullptr;
    const double* params = nullptr;
    char* workspace = nullptr;      // 64-byte aligned, as large as the kernel's `Sizing` said
    const void* shared = nullptr;   // what the tactic's prelude made for the whole step
    const Behind* behind = nullptr;  // to a kernel of kind `linear`; its notes also to whoever samples

    ALLOTROPE_INLINE const View& in(int index) const { return *ins[index]; }
    ALLOTROPE_INLINE const View& out(int index) const { return *outs[index]; }
    ALLOTROPE_INLINE double number(int index) const { return params[index]; }
    ALLOTROPE_INLINE int64_t whole(int index) const { return static_cast<int64_t>(params[index]); }
};

using Kernel = void (*)(const Args&, Team&);

// The bytes of workspace that serve a kernel on so many threads or fewer. `sizes` are the numbers that the tactic's
// `sizes` gives, in that order; where rows are among them, these bytes serve fewer rows as well.
using Sizing = int64_t (*)(const int64_t* sizes, int threads);

enum class Kind : int8_t {
    shared,  // threads share out the work
    rows,    // so do they, but a row is made in less time than threads need to meet: where there are few, each thread makes
             // them all for itself. It needs no workspace.
    linear,  // a linear layer, which does what `Behind` says
};

struct Entry {
    const char* name;
    Kernel kernel;
    Sizing workspace = nullptr;  // null: it needs none
    Kind kind = Kind::shared;
};

// A thread's part of `count` things, in multiples of `unit`: as even as can be, the same whoever asks.
struct Share {
    int64_t begin, end;
    ALLOTROPE_INLINE Share(int64_t count, const Team& team, int64_t unit = 1) {
        int64_t units = (count + unit - 1) / unit;
        begin = units * team.index / team.count * unit;
        end = units * (team.index + 1) / team.count * unit;
        begin = begin < count ? begin : count;
        end = end < count ? end : count;
    }
};

}  // namespace allotrope

// The table of a source for an instruction set; constant, so that loading it runs no code.
#define ALLOTROPE_JOIN_(isa, source) table_##isa##_##source
#define ALLOTROPE_JOIN(isa, source) ALLOTROPE_JOIN_(isa, source)
#define ALLOTROPE_KERNELS(...)                                                                             \
    extern const ::allotrope::Entry ALLOTROPE_JOIN(ALLOTROPE_ISA, ALLOTROPE_SOURCE)[];                     \
    constinit const ::allotrope::Entry ALLOTROPE_JOIN(ALLOTROPE_ISA, ALLOTROPE_SOURCE)[] = {__VA_ARGS__,   \
                                                                                            {nullptr, nullptr}};
