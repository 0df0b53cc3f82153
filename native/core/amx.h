// Codes times codes in the tile registers of AMX: sixteen rows meet sixteen outputs, 64 inputs at a time.
//
// A panel's sixteen quads are a tile of weights as they are packed; codes of four bits become bytes first, a panel at a
// time for all rows of a chunk. Activations lie as [tile of rows][inputs/64][16 rows][64]. Sums are integers and what
// follows is codes.h's, so a row's bits are those that dot products of bytes give.
//
// Workspace: a `CodedRoom`, and per thread two panels as bytes.

#pragma once

#include "codes.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kTileRows = 16, kTileInputs = 64, kTileBytes = kTileRows * kTileInputs;
constexpr int64_t kManyRows = 8;  // fewer wait for memory, whoever multiplies

using TileSums = int32_t[2][2][kTileRows * kPanel];  // of two tiles of rows with two panels

#if defined(__AMX_INT8__)
// The thread's tile registers, all of the full size, for as long as this lives.
class TileRegisters {
 public:
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, unused[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } sizes;
        for (int i = 0; i < 8; ++i) {
            sizes.bytes[i] = kTileInputs;
            sizes.rows[i] = kTileRows;
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
#else
// What the registers do, in plain words: for trying all the rest on machines without them (ALLOTROPE_PLAIN_TILES).
struct TileRegisters {
    ~TileRegisters() {}
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
    return product.finish.out.rows >= kManyRows && (!grouped || product.groups.size % kTileInputs == 0);
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

// Encoded activations, a tile's [quads][16 rows][4] turned to [16 rows][16 quads][4] block by block, where they lie.
inline void turn_codes(const Coded& coded, int64_t tiles, const Team& team) {
    const int64_t blocks = coded.inputs / kTileInputs;
    const Share mine(tiles * blocks, team);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        int32_t before[kTileRows * kPanel], after[kTileRows * kPanel];
        std::memcpy(before, coded.codes + i * kTileBytes, kTileBytes);
        for (int64_t r = 0; r < kTileRows; ++r)
            for (int64_t q = 0; q < kPanel; ++q) after[r * kPanel + q] = before[q * kTileRows + r];
        std::memcpy(coded.codes + i * kTileBytes, after, kTileBytes);
    }
}

// sums[r] + what each group's zeros take off, times the group's scale, added to totals[r].
ALLOTROPE_INLINE void add_group(const int32_t* sums, const Groups& groups, int64_t panel, int64_t g, const int32_t* offsets,
                                W (&totals)[kTileRows]) {
    const W scale = groups.scale(panel, g);
    if (groups.zeros == nullptr) {
        ALLOTROPE_UNROLL(r, kTileRows) totals[r] = fused(to_wide(load_whole(sums + r * kPanel)), scale, totals[r]);
        return;
    }
    const N zero = groups.zero(panel, g);
    ALLOTROPE_UNROLL(r, kTileRows) {
        N sum = load_whole(sums + r * kPanel);
        ALLOTROPE_PARTS(p) sum.at[p] += zero.at[p] * offsets[r];
        totals[r] = fused(to_wide(sum), scale, totals[r]);
    }
}

// Two tiles of rows from `t` on with two panels from `panel` on; of what is beyond the last there is nothing to finish.
template <class Form, bool kGrouped>
void finish_tiles(const Product& product, const Coded& coded, int64_t t, int64_t first, int64_t rows, int64_t panel,
                  int64_t panels, const char* const (&weights)[2]) {
    const Groups& groups = product.groups;
    const int64_t last = (rows - 1) / kTileRows, next = t < last ? t + 1 : t;
    const int8_t* const x[2] = {coded.tile(t, kTileRows), coded.tile(next, kTileRows)};
    TileSums sums;
    W totals[2][2][kTileRows];
    if (!kGrouped) {
        multiply_tiles(x, weights, coded.inputs / kTileInputs, sums);
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j)
                ALLOTROPE_UNROLL(r, kTileRows) totals[i][j][r] = to_wide(load_whole(sums[i][j] + r * kPanel));
    } else {
        std::memset(static_cast<void*>(totals), 0, sizeof totals);
        const int64_t blocks = groups.size / kTileInputs;
        for (int64_t g = 0; g < groups.count; ++g) {
            const int64_t at = g * blocks * kTileBytes;
            multiply_tiles({x[0] + at, x[1] + at}, {weights[0] + at, weights[1] + at}, blocks, sums);
            for (int64_t i = 0; i <= next - t; ++i)
                for (int64_t j = 0; j < panels; ++j)
                    add_group(sums[i][j], groups, panel + j, g, coded.offsets(t + i, kTileRows) + g * kTileRows,
                              totals[i][j]);
        }
    }
    for (int64_t i = 0; i <= next - t; ++i)
        for (int64_t j = 0; j < panels; ++j) {
            const int64_t row = (t + i) * kTileRows, count = rows - row < kTileRows ? rows - row : kTileRows;
            product.finish(first + row, count, panel + j, totals[i][j], 1, coded.scales + row);
        }
}

template <class Form, bool kGrouped>
void multiply_in_tiles(const Product& product, Team& team) {
    const int64_t rows = product.finish.out.rows, chunk_rows = chunk_of(rows, kTileRows);
    const int64_t inputs = up(product.x.width, kTileInputs), filled = up(product.x.width, 4 * Form::kQuads);
    const Coded coded = coded_at(product, chunk_rows, inputs, kGrouped, 0);
    char* const panels_at = product.workspace + CodedRoom(chunk_rows, inputs, coded.stretches).bytes();
    char* const room[2] = {panels_at + team.index * 2 * inputs * kPanel,
                           panels_at + (team.index * 2 + 1) * inputs * kPanel};
    const Share mine(product.panels(), team, 2);
    const TileRegisters registers;
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        const int64_t here = rows - first < chunk_rows ? rows - first : chunk_rows;
        const int64_t tiles = (here + kTileRows - 1) / kTileRows;
        if (first) team.barrier();
        const Share own(tiles, team);
        for (int64_t t = own.begin; t < own.end; ++t)  // what no code is written to
            std::memset(coded.tile(t, kTileRows) + filled * kTileRows, 0, (inputs - filled) * kTileRows);
        encode_tiles<Form, kTileRows>(product, first, here, coded, team);
        team.barrier();
        turn_codes(coded, tiles, team);
        team.barrier();
        for (int64_t panel = mine.begin; panel < mine.end; panel += 2) {
            const int64_t panels = mine.end - panel < 2 ? 1 : 2;
            const char* weights[2];
            weights[0] = panel_in_tiles<Form>(product, panel, inputs, room[0]);
            weights[1] = panels < 2 ? weights[0] : panel_in_tiles<Form>(product, panel + 1, inputs, room[1]);
            for (int64_t t = 0; t < tiles; t += 2)
                finish_tiles<Form, kGrouped>(product, coded, t, first, here, panel, panels, {weights[0], weights[1]});
        }
    }
}

// `Sizing` of these products, by rows, inputs and groups.
inline int64_t tiles_workspace(const int64_t* sizes, int threads) {
    const int64_t inputs = up(sizes[1], kTileInputs);
    const CodedRoom room(longest_chunk(sizes[0], kTileRows), inputs, most_stretches(sizes[1], sizes[2]));
    return sizes[0] < kManyRows ? 0 : room.bytes() + threads * 2 * inputs * kPanel;
}

}  // namespace allotrope::ALLOTROPE_ISA
