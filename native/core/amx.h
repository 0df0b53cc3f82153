// Codes times codes in the tile registers of AMX: sixteen rows meet sixteen outputs, 64 inputs at a time.
//
// A panel's sixteen quads are a tile of weights as they are packed; codes of four bits become bytes first, a panel at a
// time for all rows of a chunk. Activations lie as [tile of rows][inputs/64][16 rows][64]; what lies in them beyond the last
// input is never written, and meets weights that are zero. Sums are integers and what
// follows is codes.h's, so a row's bits are those that dot products of bytes give.
//
// Without groups two tiles of rows meet two panels, so that what is loaded serves twice. In groups a tile meets a panel, as
// many totals as stay in registers beside the sums that come by way of memory; groups of 32 inputs take half a tile.
//
// Workspace: a `CodedRoom`, and per thread two panels as bytes.

#pragma once

#include <type_traits>

#include "codes.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kTileRows = 16, kTileInputs = 64, kTileBytes = kTileRows * kTileInputs;
constexpr int64_t kManyRows = 8;  // fewer wait for memory, whoever multiplies

using TileSums = int32_t[2][2][kTileRows * kPanel];  // of two tiles of rows with two panels
using PairOfSums = int32_t[2][kTileRows * kPanel];   // of two groups

// Where a tile's first row has an input.
ALLOTROPE_INLINE int64_t place_in_tiles(int64_t input) { return input / kTileInputs * kTileBytes + input % kTileInputs; }

#if defined(__AMX_INT8__)
// The thread's tile registers for as long as this lives: 0 to 3 for sums, 4 and 5 for so many inputs of activations, 6 and
// 7 for those of weights.
class TileRegisters {
 public:
    explicit TileRegisters(int64_t inputs) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, unused[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } sizes;
        for (int i = 0; i < 8; ++i) {
            const bool activations = i == 4 || i == 5, weights = i > 5;
            sizes.bytes[i] = static_cast<uint16_t>(activations ? inputs : kTileInputs);
            sizes.rows[i] = static_cast<uint8_t>(weights ? inputs / 4 : kTileRows);
        }
        // Not _tile_loadconfig: compilers that take it to read one word leave out the stores of the others.
        asm volatile("ldtilecfg %0" ::"m"(sizes));
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// sums[i][j] = x[i] · weights[j] over so many times 64 inputs.
ALLOTROPE_INLINE void multiply_tiles(const int8_t* const (&x)[2], const char* const (&weights)[2], int64_t blocks,
                                     TileSums& sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    asm volatile("" ::: "memory");  // nor do all know that _tile_loadd reads memory: what was written before is there now
    for (int64_t at = 0; at < blocks * kTileBytes; at += kTileBytes) {
        _tile_loadd(4, x[0] + at, kTileInputs);
        _tile_loadd(5, x[1] + at, kTileInputs);
        _tile_loadd(6, weights[0] + at, kTileInputs);
        _tile_loadd(7, weights[1] + at, kTileInputs);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0][0], kTileInputs);
    _tile_stored(1, sums[0][1], kTileInputs);
    _tile_stored(2, sums[1][0], kTileInputs);
    _tile_stored(3, sums[1][1], kTileInputs);
}

// Two groups of `inputs` inputs each, from input `from` on, or one, if there is no other. Their sums stay in registers, of which
// there are two pairs, and are stored later: what has just been multiplied would be waited for. The intrinsics are macros
// that write a register's name, so they take no template's number.
template <int kPair>
struct GroupPair;

#define ALLOTROPE_GROUP_PAIR(pair, one, other)                                                                          \
    template <>                                                                                                         \
    struct GroupPair<pair> {                                                                                            \
        template <int64_t kInputs, bool kBoth>                                                                          \
        ALLOTROPE_INLINE static void multiply(const int8_t* x, const char* weights, int64_t from, int64_t inputs) {     \
            _tile_zero(one);                                                                                            \
            if (kBoth) _tile_zero(other);                                                                               \
            asm volatile("" ::: "memory");                                                                              \
            for (int64_t input = from; input < from + inputs; input += kInputs) {                                       \
                _tile_loadd(4, x + place_in_tiles(input), kTileInputs);                                                 \
                _tile_loadd(6, weights + input * kPanel, kTileInputs);                                                  \
                _tile_dpbssd(one, 4, 6);                                                                                \
                if (!kBoth) continue;                                                                                   \
                _tile_loadd(5, x + place_in_tiles(input + inputs), kTileInputs);                                        \
                _tile_loadd(7, weights + (input + inputs) * kPanel, kTileInputs);                                       \
                _tile_dpbssd(other, 5, 7);                                                                              \
            }                                                                                                           \
        }                                                                                                               \
        ALLOTROPE_INLINE static void store(PairOfSums& sums, bool both) {                                               \
            _tile_stored(one, sums[0], kTileInputs);                                                                    \
            if (both) _tile_stored(other, sums[1], kTileInputs);                                                        \
            asm volatile("" ::: "memory");                                                                              \
        }                                                                                                               \
    };
ALLOTROPE_GROUP_PAIR(0, 0, 1)
ALLOTROPE_GROUP_PAIR(1, 2, 3)
#undef ALLOTROPE_GROUP_PAIR
#else
// What the registers do, in plain words: for trying all the rest on machines without them (ALLOTROPE_PLAIN_TILES).
struct TileRegisters {
    explicit TileRegisters(int64_t) {}
    ~TileRegisters() {}
};

inline thread_local PairOfSums plain_pairs[2];

template <int kPair>
struct GroupPair {
    template <int64_t kInputs, bool kBoth>
    static void multiply(const int8_t* x, const char* weights, int64_t from, int64_t inputs) {
        for (int i = 0; i < (kBoth ? 2 : 1); ++i)
            for (int64_t r = 0; r < kTileRows; ++r)
                for (int64_t o = 0; o < kPanel; ++o) {
                    int32_t sum = 0;
                    for (int64_t k = from + i * inputs; k < from + (i + 1) * inputs; ++k)
                        sum += x[place_in_tiles(k) + r * kTileInputs] * weights[(k / 4 * kPanel + o) * 4 + k % 4];
                    plain_pairs[kPair][i][r * kPanel + o] = sum;
                }
    }
    static void store(PairOfSums& sums, bool) { std::memcpy(sums, plain_pairs[kPair], sizeof sums); }
};

inline void multiply_tiles(const int8_t* const (&x)[2], const char* const (&weights)[2], int64_t blocks, TileSums& sums) {
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j)
            for (int64_t r = 0; r < kTileRows; ++r)
                for (int64_t o = 0; o < kPanel; ++o) {
                    int32_t sum = 0;
                    for (int64_t k = 0; k < blocks * kTileInputs; ++k) {
                        const int64_t block = k / kTileInputs * kTileBytes, input = k % kTileInputs;
                        const auto* quads = reinterpret_cast<const int8_t*>(weights[j] + block);
                        sum += x[i][block + r * kTileInputs + input] * quads[input / 4 * kTileInputs + o * 4 + input % 4];
                    }
                    sums[i][j][r * kPanel + o] = sum;
                }
}
#endif

// Whether tiles serve: groups are whole numbers of them, and there are rows enough.
ALLOTROPE_INLINE bool fits_tiles(const Product& product, bool grouped) {
    return product.finish.out.rows >= kManyRows && (!grouped || product.groups.size % (kTileInputs / 2) == 0);
}

// A panel's weights as signed bytes in quads, filled up with zeros to whole tiles; where they are that, they stay.
template <class Form>
const char* panel_in_tiles(const Product& product, int64_t panel, int64_t inputs, char* room) {
    const char* from = product.weights + panel * product.stride;
    if (Form::kQuads == 1 && product.x.width % kTileInputs == 0) return from;
    const int64_t pieces = product.stride / 64;
    if (Form::kQuads == 1) {
        std::memcpy(room, from, product.stride);
    } else {
        // Even inputs' codes and then the odd ones', as the activations' quads lie.
        const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(product.groups.zeros == nullptr ? 8 : 0);
        for (int64_t i = 0; i < pieces; ++i) {
            const __m512i raw = _mm512_loadu_si512(from + 64 * i);
            const auto bytes = [&](__m512i codes) {
                return _mm512_sub_epi8(_mm512_xor_si512(_mm512_and_si512(codes, low), sign), sign);
            };
            _mm512_storeu_si512(room + 128 * i, bytes(raw));
            _mm512_storeu_si512(room + 128 * i + 64, bytes(_mm512_srli_epi16(raw, 4)));
        }
    }
    const int64_t filled = pieces * Form::kQuads * 64;
    std::memset(room + filled, 0, inputs * kPanel - filled);
    return room;
}

// Tile of rows `t` with a panel, whose weights are bytes. While a pair of groups is multiplied, the one before it is stored
// and the one before that is added up: sums[r] + what the group's zeros take off, times the group's scale.
template <int64_t kInputs, bool kShifted>
void finish_groups(const Product& product, const Coded& coded, int64_t t, int64_t first, int64_t rows, int64_t panel,
                   const char* weights) {
    const Groups& groups = product.groups;
    const int8_t* x = coded.tile(t, kTileRows);
    const int32_t* offsets = coded.offsets(t, kTileRows);
    alignas(64) PairOfSums sums[2];
    W totals[kTileRows] = {};
    const int64_t pairs = (groups.count + 1) / 2;
    const auto multiply = [&](auto which, int64_t pair) {
        using Pair = GroupPair<decltype(which)::value>;
        const int64_t from = 2 * pair * groups.size;
        if (2 * pair + 1 < groups.count)
            Pair::template multiply<kInputs, true>(x, weights, from, groups.size);
        else if (pair < pairs)
            Pair::template multiply<kInputs, false>(x, weights, from, groups.size);
    };
    using Even = std::integral_constant<int, 0>;
    using Odd = std::integral_constant<int, 1>;
    multiply(Even{}, 0);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        if (pair % 2 == 0) {
            multiply(Odd{}, pair + 1);
            GroupPair<0>::store(sums[0], 2 * pair + 1 < groups.count);
        } else {
            multiply(Even{}, pair + 1);
            GroupPair<1>::store(sums[1], 2 * pair + 1 < groups.count);
        }
        for (int64_t g = 2 * pair - 2; g < 2 * pair + (pair + 1 < pairs ? 0 : 2); ++g) {
            if (g < 0 || g >= groups.count) continue;
            const int32_t* found = sums[g / 2 % 2][g % 2];
            const W scale = groups.scale(panel, g);
            N zero{};
            if (kShifted) zero = groups.zero(panel, g);
            ALLOTROPE_UNROLL(r, kTileRows) {
                N sum = load_whole(found + r * kPanel);
                if (kShifted) ALLOTROPE_PARTS(p) sum.at[p] += zero.at[p] * offsets[g * kTileRows + r];
                totals[r] = fused(to_wide(sum), scale, totals[r]);
            }
        }
    }
    W given[kTileRows];  // what has an address is in no register
    ALLOTROPE_UNROLL(r, kTileRows) given[r] = totals[r];
    const int64_t row = t * kTileRows, count = rows - row < kTileRows ? rows - row : kTileRows;
    product.finish(first + row, count, panel, given, 1, coded.scales + row);
}

// Two tiles of rows from `t` on with two panels from `panel` on; of what is beyond the last there is nothing to finish.
inline void finish_tiles(const Product& product, const Coded& coded, int64_t t, int64_t first, int64_t rows, int64_t panel,
                         int64_t panels, const char* const (&weights)[2]) {
    const int64_t last = (rows - 1) / kTileRows, next = t < last ? t + 1 : t;
    const int8_t* const x[2] = {coded.tile(t, kTileRows), coded.tile(next, kTileRows)};
    TileSums sums;
    multiply_tiles(x, weights, coded.inputs / kTileInputs, sums);
    for (int64_t i = 0; i <= next - t; ++i)
        for (int64_t j = 0; j < panels; ++j) {
            W totals[kTileRows];
            ALLOTROPE_UNROLL(r, kTileRows) totals[r] = to_wide(load_whole(sums[i][j] + r * kPanel));
            const int64_t row = (t + i) * kTileRows, count = rows - row < kTileRows ? rows - row : kTileRows;
            product.finish(first + row, count, panel + j, totals, 1, coded.scales + row);
        }
}

// Rows of a chunk at most: as many as a core's second cache has room for beside weights, which are made bytes once for
// each chunk; but not fewer than others take.
ALLOTROPE_INLINE int64_t most_rows(int64_t inputs) {
    constexpr int64_t kCodes = 3 << 18;
    return kCodes / inputs > kChunk ? kCodes / inputs / kTileRows * kTileRows : kChunk;
}

// The weights of the panels that come next, fetched into the second cache a few lines before each tile.
class NextWeights {
 public:
    ALLOTROPE_INLINE NextWeights(const Product& product, int64_t panel, int64_t panels, int64_t tiles)
        : at_(product.weights + panel * product.stride),
          end_(at_ + panels * product.stride),
          step_(up((panels * product.stride + tiles - 1) / tiles, 64)) {}

    ALLOTROPE_INLINE void fetch(int64_t tiles) {
        const char* stop = at_ + tiles * step_ < end_ ? at_ + tiles * step_ : end_;
        for (; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
    }

 private:
    const char *at_, *end_;
    int64_t step_;
};

template <class Form, bool kGrouped>
void multiply_in_tiles(const Product& product, Team& team) {
    const int64_t inputs = up(product.x.width, kTileInputs), rows = product.finish.out.rows;
    const int64_t chunk_rows = chunk_of(rows, kTileRows, most_rows(inputs));
    const Coded coded = coded_at(product, chunk_rows, inputs, kGrouped, 0);
    char* const panels_at = product.workspace + CodedRoom(chunk_rows, inputs, coded.stretches).bytes();
    char* const room[2] = {panels_at + team.index * 2 * inputs * kPanel,
                           panels_at + (team.index * 2 + 1) * inputs * kPanel};
    const Share mine(product.shared_panels(), team, kGrouped ? 1 : 2);
    const bool halves = kGrouped && product.groups.size % kTileInputs != 0, shifted = product.groups.zeros != nullptr;
    const auto finish_group = halves ? shifted ? finish_groups<kTileInputs / 2, true> : finish_groups<kTileInputs / 2, false>
                                     : shifted ? finish_groups<kTileInputs, true> : finish_groups<kTileInputs, false>;
    const TileRegisters registers(halves ? kTileInputs / 2 : kTileInputs);
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        const int64_t here = rows - first < chunk_rows ? rows - first : chunk_rows;
        const int64_t tiles = (here + kTileRows - 1) / kTileRows;
        if (first) team.barrier();
        encode_tiles<Form, kTileRows, true>(product, first, here, coded, team);
        team.barrier();
        product.each_share(first, here, mine, team, [&](const Share& own) {
            for (int64_t panel = own.begin; panel < own.end; panel += 2) {
                const int64_t panels = own.end - panel < 2 ? 1 : 2;
                const char* weights[2];
                weights[0] = panel_in_tiles<Form>(product, panel, inputs, room[0]);
                weights[1] = panels < 2 ? weights[0] : panel_in_tiles<Form>(product, panel + 1, inputs, room[1]);
                NextWeights next(product, panel + panels, own.end - panel < 4 ? own.end - panel - panels : 2, tiles);
                if (!kGrouped)
                    for (int64_t t = 0; t < tiles; t += 2) {
                        next.fetch(2);
                        finish_tiles(product, coded, t, first, here, panel, panels, {weights[0], weights[1]});
                    }
                for (int64_t t = 0; kGrouped && t < tiles; ++t) {
                    next.fetch(1);
                    for (int64_t i = 0; i < panels; ++i) finish_group(product, coded, t, first, here, panel + i, weights[i]);
                }
            }
        });
    }
}

// `Sizing` of these products, by rows, inputs and groups.
inline int64_t tiles_workspace(const int64_t* sizes, int threads) {
    const int64_t inputs = up(sizes[1], kTileInputs);
    const CodedRoom room(longest_chunk(sizes[0], kTileRows, most_rows(inputs)), inputs, most_stretches(sizes[1], sizes[2]));
    return sizes[0] < kManyRows ? 0 : room.bytes() + threads * 2 * inputs * kPanel;
}

}  // namespace allotrope::ALLOTROPE_ISA
