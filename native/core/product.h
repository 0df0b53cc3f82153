// Rows times panels, whole: who computes what, in which order it is read, and where it lies meanwhile.
//
// Panels are shared out among the threads, each reading its own once. Few rows are one tile over all inputs. Many
// rows go in chunks: activations lie in tiles, [tile][inputs][rows], for everyone; a thread takes some panels, a block of
// inputs at a time, widens that block and meets all tiles with it while it lies in the nearest cache.
//
// Workspace: [ activations in tiles ] and for many rows per thread [ a widened block ][ totals ].

#pragma once

#include "behind.h"
#include "finish.h"
#include "tiles.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kChunk = 240;  // rows at most; a block of theirs lies in a core's second cache
constexpr int64_t kStrip = 4;    // times kBroad: panels that a thread takes together there

template <int kValue>
struct TileRows {
    static constexpr int value = kValue;
};

// The height of tiles for so many rows: the least that holds them all, or kTop; what is beyond them is zeros. Seven and
// eight rows of groups are one tile, though its sums leave the registers: two of kTop would take 1.4 times as long.
template <int kTop = kTall, class Body>
ALLOTROPE_INLINE void with_height(int64_t rows, Body body) {
    if (rows <= 1) return body(TileRows<1>{});
    if constexpr (kTop > 4)
        if (rows <= 4) return body(TileRows<4>{});
    if constexpr (kTop < 8)
        if (rows <= kTop) return body(TileRows<kTop>{});
    if constexpr (kTall > 8)
        if (rows <= 8) return body(TileRows<8>{});
    return body(TileRows<kTop>{});
}

ALLOTROPE_INLINE int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows of a chunk: as even as can be, in whole tiles.
ALLOTROPE_INLINE int64_t chunk_of(int64_t rows, int64_t tall, int64_t most = kChunk) {
    const int64_t chunks = (rows + most - 1) / most;
    return up((rows + chunks - 1) / chunks, tall);
}

// The longest chunk of any number of rows up to `rows`: those of a little more than `most` are shorter.
ALLOTROPE_INLINE int64_t longest_chunk(int64_t rows, int64_t tall, int64_t most = kChunk) {
    return up(rows < most ? rows : most, tall);
}

// How what a product keeps lies in its workspace, in floats.
struct ProductRoom {
    int64_t tiles, block, own;  // what a thread has to itself: a widened block, then totals

    ALLOTROPE_INLINE ProductRoom(int64_t chunk_rows, int64_t inputs)
        : tiles(up(chunk_rows * inputs, kPanel)),
          block(kBroad * kBlock * kPanel),
          own(block + kStrip * kBroad * chunk_rows * kPanel) {}
};

struct Product {
    View x;
    const char* weights = nullptr;
    int64_t stride = 0;  // from panel to panel
    Groups groups;
    Finish finish;
    char* workspace = nullptr;
    const Behind* behind = nullptr;

    ALLOTROPE_INLINE bool gated() const { return behind != nullptr && behind->gated; }
    ALLOTROPE_INLINE int64_t panels() const { return (finish.out.width + kPanel - 1) / kPanel; }
    // Those that are shared out: each thread has the same ones of both halves.
    ALLOTROPE_INLINE int64_t shared_panels() const { return gated() ? panels() / 2 : panels(); }

    // Calls body(panels) for a thread's panels of rows [first, first + rows), one half's after the other's if there are
    // halves, and goes on with what stands behind them.
    template <class Body>
    ALLOTROPE_INLINE void each_share(int64_t first, int64_t rows, const Share& mine, const Team& team, Body body) const {
        Share here = mine;
        for (int half = 0; half < (gated() ? 2 : 1); ++half) {
            body(static_cast<const Share&>(here));
            here.begin += shared_panels(), here.end += shared_panels();
        }
        if (behind != nullptr) go_on_behind(*behind, finish.out, first, rows, mine.begin * kPanel, mine.end * kPanel, team);
    }
};

// Inputs [begin, end) of a tile [inputs][kRows] that begins with row `first` of x and holds `rows` of it; zeros beyond.
template <int kRows>
void interleave(const View& x, int64_t first, int64_t rows, int64_t begin, int64_t end, float* to) {
    const float* from[kRows];
    for (int64_t r = 0; r < kRows; ++r) from[r] = x.row<float>(r < rows ? first + r : first);
    for (int64_t k = begin; k < end; ++k)
        for (int64_t r = 0; r < kRows; ++r) to[k * kRows + r] = r < rows && k < x.width ? from[r][k] : 0.0f;
}

// The rows from `first` on that a tile holds.
template <class Reader, bool kGrouped, int kRows, int kPanels>
void tile_of_few(const Product& product, const float* x, int64_t inputs, int64_t panel, int64_t first) {
    W totals[kRows][kPanels] = {};
    tile<Reader, kGrouped, kRows, kPanels>(product.weights + panel * product.stride, product.stride, x + first * inputs, 0,
                                           0, inputs, product.groups, panel, totals);
    const int64_t left = product.finish.out.rows - first, rows = left < kRows ? left : kRows;
    ALLOTROPE_UNROLL(c, kPanels) product.finish(first, rows, panel + c, &totals[0][c], kPanels);
}

// Rows up to which each tile widens weights for itself. Decoding codes is more work than reading what was decoded. Eight
// that do not fit into a tile are two of four: weights come from the nearest cache the second time.
constexpr int64_t kFewWide = kTall > 4 && kTall < 8 ? 8 : kTall;
template <class Reader>
constexpr int64_t kFew = Reader::kInputs == 1 ? kFewWide : kTall < 4 ? kTall : 4;

template <class Reader, bool kGrouped, int kRows>
void tiles_of_few(const Product& product, const float* x, int64_t inputs, const Share& mine) {
    constexpr int kPanels = kRows * kFlat <= kTall * kBroad ? kFlat : kBroad;
    const int64_t rows = product.finish.out.rows;
    int64_t panel = mine.begin;
    for (; panel + kPanels <= mine.end; panel += kPanels)
        for (int64_t first = 0; first < rows; first += kRows)
            tile_of_few<Reader, kGrouped, kRows, kPanels>(product, x, inputs, panel, first);
    for (; panel < mine.end; ++panel)
        for (int64_t first = 0; first < rows; first += kRows)
            tile_of_few<Reader, kGrouped, kRows, 1>(product, x, inputs, panel, first);
}

template <class Reader, bool kGrouped, int kRows>
void product_in_tiles(const Product& product, Team& team) {
    const int64_t rows = product.finish.out.rows, inputs = up(product.x.width, Reader::kInputs);
    const float* x = product.x.row<float>(0);
    if (rows > 1 || inputs != product.x.width) {
        auto* tiled = reinterpret_cast<float*>(product.workspace);
        const Share own(inputs, team, kPanel);
        for (int64_t first = 0; first < rows; first += kRows)
            interleave<kRows>(product.x, first, rows - first, own.begin, own.end, tiled + first * inputs);
        team.barrier();
        x = tiled;
    }
    product.each_share(0, rows, Share(product.shared_panels(), team), team,
                       [&](const Share& here) { tiles_of_few<Reader, kGrouped, kRows>(product, x, inputs, here); });
}

template <class Reader, bool kGrouped>
void product_of_few(const Product& product, Team& team) {
    const int64_t rows = product.finish.out.rows;
    if constexpr (kFew<Reader> > kTall)
        if (rows > kTall) return product_in_tiles<Reader, kGrouped, 4>(product, team);
    with_height(rows, [&](auto height) {
        if constexpr (height.value <= kFew<Reader>) product_in_tiles<Reader, kGrouped, height.value>(product, team);
    });
}

// A chunk of many rows, for one thread.
struct Chunk {
    const Product* product;
    const float* x;
    int64_t first, rows, inputs;
    W* totals;     // [panels together][tiles][kTall][kBroad]
    float* block;  // [kBroad][kBlock][16]

    ALLOTROPE_INLINE int64_t tiles() const { return (rows + kTall - 1) / kTall; }
};

template <bool kGrouped, int kPanels>
void meet_block(const Chunk& chunk, int64_t panel, int64_t begin, int64_t end, W* totals) {
    Groups groups = chunk.product->groups;
    groups.zeros = nullptr;  // taken off already
    for (int64_t t = 0; t < chunk.tiles(); ++t) {
        auto& found = *reinterpret_cast<W(*)[kTall][kPanels]>(totals + t * kTall * kBroad);
        tile<Fp32, kGrouped, kTall, kPanels>(reinterpret_cast<const char*>(chunk.block), kBlock * 64,
                                             chunk.x + t * kTall * chunk.inputs, begin, begin, end, groups, panel, found);
    }
}

template <class Reader>
void widen_block(const Chunk& chunk, int64_t panel, int64_t begin, int64_t end, float* to) {
    const Product& product = *chunk.product;
    const Groups& groups = product.groups;
    const char* weights = product.weights + panel * product.stride;
    if (groups.zeros == nullptr) return widen<Reader>(weights, begin, end, nullptr, to);
    for (int64_t at = begin; at < end; at += groups.block) {
        const N zeros = groups.zero(panel, groups.at(at));
        const int64_t stop = at + groups.block < end ? at + groups.block : end;
        widen<Reader>(weights, at, stop, &zeros, to + (at - begin) * kPanel);
    }
}

template <class Reader, bool kGrouped>
void strip_of_many(const Chunk& chunk, int64_t panel, int64_t count) {
    const int64_t size = chunk.tiles() * kTall * kBroad;
    std::memset(static_cast<void*>(chunk.totals), 0, (count + kBroad - 1) / kBroad * size * sizeof(W));
    for (int64_t begin = 0; begin < chunk.inputs; begin += kBlock) {
        const int64_t end = begin + kBlock < chunk.inputs ? begin + kBlock : chunk.inputs;
        for (int64_t c = 0; c < count; c += kBroad) {
            const int64_t here = count - c < kBroad ? count - c : kBroad;
            for (int64_t i = 0; i < here; ++i)
                widen_block<Reader>(chunk, panel + c + i, begin, end, chunk.block + i * kBlock * kPanel);
            W* totals = chunk.totals + c / kBroad * size;
            if (here == kBroad)
                meet_block<kGrouped, kBroad>(chunk, panel + c, begin, end, totals);
            else
                meet_block<kGrouped, 1>(chunk, panel + c, begin, end, totals);
        }
    }
    for (int64_t c = 0; c < count; ++c) {
        const int64_t pair = c / kBroad * kBroad, broad = count - pair < kBroad ? 1 : kBroad;
        for (int64_t t = 0; t < chunk.tiles(); ++t) {
            const int64_t left = chunk.rows - t * kTall;
            chunk.product->finish(chunk.first + t * kTall, left < kTall ? left : kTall, panel + c,
                                  chunk.totals + pair / kBroad * size + t * kTall * kBroad + (c - pair), broad);
        }
    }
}

template <class Reader, bool kGrouped>
void product_of_many(const Product& product, Team& team) {
    const int64_t rows = product.finish.out.rows, inputs = up(product.x.width, Reader::kInputs);
    const int64_t chunk_rows = chunk_of(rows, kTall);
    const ProductRoom room(chunk_rows, inputs);
    auto* x = reinterpret_cast<float*>(product.workspace);
    float* mine_at = x + room.tiles + team.index * room.own;
    const Share mine(product.shared_panels(), team);
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        Chunk chunk{&product, x, first, rows - first < chunk_rows ? rows - first : chunk_rows, inputs,
                    reinterpret_cast<W*>(mine_at + room.block), mine_at};
        if (first) team.barrier();
        const Share tiles(chunk.tiles(), team);
        for (int64_t t = tiles.begin; t < tiles.end; ++t)
            interleave<kTall>(product.x, first + t * kTall, chunk.rows - t * kTall, 0, inputs, x + t * kTall * inputs);
        team.barrier();
        product.each_share(first, chunk.rows, mine, team, [&](const Share& here) {
            for (int64_t panel = here.begin; panel < here.end; panel += kStrip * kBroad) {
                const int64_t left = here.end - panel;
                strip_of_many<Reader, kGrouped>(chunk, panel, left < kStrip * kBroad ? left : kStrip * kBroad);
            }
        });
    }
}

template <class Reader, bool kGrouped>
void multiply(const Product& product, Team& team) {
    if (product.finish.out.rows <= kFew<Reader>)
        product_of_few<Reader, kGrouped>(product, team);
    else
        product_of_many<Reader, kGrouped>(product, team);
}

// `Sizing` of these products, by rows and inputs. Few rows, in tiles, are no more than a chunk of them would be.
template <class Reader>
int64_t product_workspace(const int64_t* sizes, int threads) {
    const int64_t rows = sizes[0], inputs = up(sizes[1], Reader::kInputs);
    const ProductRoom room(longest_chunk(rows, kTall), inputs);
    return 4 * (room.tiles + (rows > kFew<Reader> ? threads * room.own : 0));
}

}  // namespace allotrope::ALLOTROPE_ISA
