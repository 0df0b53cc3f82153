// Sampling: exactly the contract's definition. The vocabulary is worked on in chunks, by all threads; what comes out of
// them is put together by one thread per row. Where the layer before has noted the largest logits, nobody looks for them
// again.
//
// As many rows as there are threads are taken at a time:
//
//     workspace   per row    [ chunks' records | weights, fp64 | adjusted logits ]
//                 per thread [ counts of bins | masses of bins | candidates ]

#include "kernel.h"
#include "lanes.h"
#include "sums.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

constexpr int kBins = 2048;

struct Record {
    Peak raw, adjusted;
    double mass, weight;
};

inline int64_t aligned(int64_t size) { return (size + 63) / 64 * 64; }

struct Room {
    Record* records;
    double* weights;
    float* adjusted;
    int64_t* counts;
    double* masses;
    int32_t* candidates;

    static int64_t of_row(int64_t vocab) {
        return aligned(static_cast<int64_t>(sizeof(Record)) * chunks_of(vocab)) + aligned(8 * vocab) + aligned(4 * vocab);
    }
    static int64_t of_thread(int64_t vocab) { return 16 * kBins + aligned(4 * vocab); }

    Room(char* at, int64_t vocab, int64_t row, int64_t rows, int64_t thread) {
        char* own = at + row * of_row(vocab);
        records = reinterpret_cast<Record*>(own);
        own += aligned(static_cast<int64_t>(sizeof(Record)) * chunks_of(vocab));
        weights = reinterpret_cast<double*>(own);
        adjusted = reinterpret_cast<float*>(own + aligned(8 * vocab));
        char* threads = at + rows * of_row(vocab) + thread * of_thread(vocab);
        counts = reinterpret_cast<int64_t*>(threads);
        masses = reinterpret_cast<double*>(threads + 8 * kBins);
        candidates = reinterpret_cast<int32_t*>(threads + 16 * kBins);
    }
};

// 53 random bits of (seed, position), as a number in [0, 1): Philox4x32-10.
double uniform(int64_t seed, int64_t position) {
    const auto low = [](int64_t word) { return static_cast<uint32_t>(word); };
    const auto high = [](int64_t word) { return static_cast<uint32_t>(static_cast<uint64_t>(word) >> 32); };
    uint32_t a = low(position), b = high(position), c = 0, d = 0, first = low(seed), second = high(seed);
    for (int round = 0; round < 10; ++round) {
        const uint64_t left = uint64_t{a} * 0xD2511F53u, right = uint64_t{c} * 0xCD9E8D57u;
        a = static_cast<uint32_t>(right >> 32) ^ b ^ first;
        b = static_cast<uint32_t>(right);
        c = static_cast<uint32_t>(left >> 32) ^ d ^ second;
        d = static_cast<uint32_t>(left);
        first += 0x9E3779B9u;
        second += 0xBB67AE85u;
    }
    const uint64_t bits = uint64_t{a} << 21 | b >> 11;
    return static_cast<double>(bits) * 0x1p-53;
}

// How far down the ranking tokens are kept: all above `logit`, and those equal to it up to index `last`.
struct Cut {
    uint32_t logit = 0;
    int64_t last = INT64_MAX;
    double mass = 0;  // of what is kept
};

// Keeps tokens in the order of their rank as long as there are at most `most`, and as the mass before is below `mass`;
// at least one. Tokens of weight 0 rank last and are never drawn, so they do not matter.
Cut find_cut(const float* logits, const Room& room, int64_t vocab, int64_t most, double mass) {
    constexpr int shifts[] = {21, 10, 0}, bits[] = {11, 11, 10};
    int64_t kept = 0, count = vocab;
    double before = 0;
    uint32_t prefix = 0;
    for (int level = 0; level < 3; ++level) {
        const int bins = 1 << bits[level];
        std::memset(room.counts, 0, 8 * bins);
        std::memset(room.masses, 0, 8 * bins);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t token = level ? room.candidates[i] : i;
            if (room.weights[token] == 0) continue;
            const uint32_t bin = ordered(logits[token]) >> shifts[level] & (bins - 1);
            ++room.counts[bin];
            room.masses[bin] += room.weights[token];
        }
        int boundary = -1;
        for (int bin = bins - 1; bin >= 0 && boundary < 0; --bin) {
            if (room.counts[bin] && (kept + room.counts[bin] >= most || before + room.masses[bin] >= mass)) {
                boundary = bin;
            } else {
                kept += room.counts[bin];
                before += room.masses[bin];
            }
        }
        if (boundary < 0) return Cut{0, INT64_MAX, before};  // everything is kept
        prefix |= static_cast<uint32_t>(boundary) << shifts[level];
        int64_t found = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t token = level ? room.candidates[i] : i;
            if (room.weights[token] == 0) continue;
            if (static_cast<int>(ordered(logits[token]) >> shifts[level] & (bins - 1)) == boundary)
                room.candidates[found++] = static_cast<int32_t>(token);
        }
        count = found;
    }
    Cut cut{prefix, -1, before};
    for (int64_t i = 0; i < count; ++i) {  // all equal, by index
        if (kept > 0 && !(kept < most && cut.mass < mass)) break;
        ++kept;
        cut.mass += room.weights[room.candidates[i]];
        cut.last = room.candidates[i];
    }
    return cut;
}

// Sets to 0 the weight of every token that a filter removes, and sums the chunks anew.
void filter(const float* logits, const Room& room, int64_t vocab, double total, int64_t top_k, double top_p,
            double least) {
    Cut cut;
    cut.mass = total;
    if (top_k > 0 && top_k < vocab) cut = find_cut(logits, room, vocab, top_k, INFINITY);
    if (top_p < 1) {
        const Cut own = find_cut(logits, room, vocab, top_k > 0 ? top_k : vocab, top_p * cut.mass);
        if (own.logit > cut.logit || (own.logit == cut.logit && own.last < cut.last)) cut = own;
    }
    for (int64_t chunk = 0; chunk < chunks_of(vocab); ++chunk) {
        const int64_t end = chunk * kChunk + length_of(chunk, vocab);
        double left = 0;
        for (int64_t token = chunk * kChunk; token < end; ++token) {
            const uint32_t logit = ordered(logits[token]);
            const bool kept = logit > cut.logit || (logit == cut.logit && token <= cut.last);
            double& weight = room.weights[token];
            weight = kept && weight >= least ? weight : 0;
            left += weight;
        }
        room.records[chunk].weight = left;
    }
}

int64_t draw(const Room& room, int64_t vocab, double random) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks_of(vocab); ++chunk) total += room.records[chunk].weight;
    double unit = std::floor(random * total);
    unit = unit < total - 1 ? unit : total - 1;
    double sum = 0;
    int64_t chunk = 0;
    for (; chunk + 1 < chunks_of(vocab) && sum + room.records[chunk].weight <= unit; ++chunk)
        sum += room.records[chunk].weight;
    int64_t token = chunk * kChunk;
    for (; token + 1 < vocab && (sum += room.weights[token]) <= unit; ++token) {
    }
    return token;
}

void weigh(double* weights, const float* logits, int64_t count, double top, double temperature, double unit,
           double* total) {
    D sums{};
    int64_t at = 0;
    const D shift = 6755399441055744.0 - D{};
    const auto weight = [&](const float* from) {
        const D value = exp_below((widen(from) - top) / temperature) * unit;
        return value < 4503599627370496.0 ? (value + shift) - shift : value;  // to the nearest, ties to even
    };
    for (; at + kWideLanes <= count; at += kWideLanes) {
        const D found = weight(logits + at);
        sums += found;
        std::memcpy(weights + at, &found, sizeof found);
    }
    double rest = 0;
    if (at < count) {
        float some[kWideLanes];
        for (int i = 0; i < kWideLanes; ++i) some[i] = at + i < count ? logits[at + i] : -INFINITY;
        const D found = weight(some);
        for (int64_t i = at; i < count; ++i) rest += weights[i] = found[i - at];
    }
    *total = sum(sums) + rest;
}

struct Sampling {
    const View &logits, &tokens, &logprobs;
    const int64_t *rows, *seeds, *positions;
    const float *temperature, *top_p, *min_p;
    const int32_t* top_k;
    const View &adjust_rows, &adjust_tokens, &adjust_divide, &adjust_add;
    int64_t vocab, count, chunks, threads;
    const Top* noted;  // by the layer that made the logits; null if nobody has, or they are adjusted
    double unit;

    Sampling(const Args& args, const Team& team)
        : logits(args.in(0)),
          tokens(args.out(0)),
          logprobs(args.out(1)),
          rows(args.in(1).as<int64_t>()),
          seeds(args.in(6).as<int64_t>()),
          positions(args.in(7).as<int64_t>()),
          temperature(args.in(2).as<float>()),
          top_p(args.in(4).as<float>()),
          min_p(args.in(5).as<float>()),
          top_k(args.in(3).as<int32_t>()),
          adjust_rows(args.in(8)),
          adjust_tokens(args.in(9)),
          adjust_divide(args.in(10)),
          adjust_add(args.in(11)),
          vocab(args.in(0).width),
          count(args.in(1).width),
          chunks(chunks_of(args.in(0).width)),
          threads(team.count),
          noted(args.behind == nullptr || adjusts() ? nullptr : args.behind->tops) {
        int bits = 0;
        while (vocab >> bits) ++bits;
        unit = std::ldexp(1.0, 52 - bits);
    }

    const float* raw(int64_t row) const { return logits.row<float>(rows[row]); }
    const float* shown(int64_t row, const Room& room) const { return adjusts() ? room.adjusted : raw(row); }
    bool adjusts() const { return adjust_rows && adjust_rows.width > 0; }

    void adjust(float* logits_of_row, int64_t entry) const {
        float& logit = logits_of_row[adjust_tokens.as<int64_t>()[entry]];
        const double x = logit, divide = adjust_divide.as<float>()[entry], add = adjust_add.as<float>()[entry];
        logit = static_cast<float>((x > 0 ? x / divide : x * divide) + add);
    }

    const Top& note(int64_t row, int64_t thread) const { return noted[rows[row] * threads + thread]; }

    float top(int64_t row, const Room& room, bool of_raw) const {
        if (noted != nullptr) return top_of(threads, [&](int64_t thread) { return note(row, thread).top; });
        return top_of(chunks, [&](int64_t chunk) {
            return of_raw ? room.records[chunk].raw.top : room.records[chunk].adjusted.top;
        });
    }

    // The first of the tokens that have the largest logit, which is this one.
    int64_t likeliest(int64_t row, const Room& room, float top) const {
        const float* mine = shown(row, room);
        int64_t begin = 0, length = vocab;
        if (noted != nullptr) {
            int64_t thread = 0;
            while (!(note(row, thread).top == top)) ++thread;
            begin = note(row, thread).begin, length = vocab - begin;
        } else {
            int64_t chunk = 0;
            while (!(room.records[chunk].adjusted.top == top)) ++chunk;
            begin = chunk * kChunk, length = length_of(chunk, vocab);
        }
        return begin + first_of(mine + begin, length, top);
    }

    void finish(int64_t row, const Room& room) const {
        const float raw_top = top(row, room, true), shown_top = top(row, room, false);
        int64_t& token = *tokens.row<int64_t>(row);
        float& logprob = *logprobs.row<float>(row);
        token = 0;
        logprob = NAN;
        if (raw_top - raw_top != 0 || shown_top - shown_top != 0) return;
        const float* mine = shown(row, room);
        double mass = 0, total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            mass += room.records[chunk].mass;
            total += room.records[chunk].weight;
        }
        if (temperature[row] > 0) {
            const double least = static_cast<double>(min_p[row]) * unit;
            if (top_k[row] > 0 || top_p[row] < 1 || min_p[row] > 0)
                filter(mine, room, vocab, total, top_k[row], top_p[row], least);
            token = draw(room, vocab, uniform(seeds[row], positions[row]));
        } else {
            token = likeliest(row, room, shown_top);
        }
        logprob = static_cast<float>(static_cast<double>(raw(row)[token]) - raw_top - std::log(mass));
    }
};

void sample(const Args& args, Team& team) {
    const Sampling step(args, team);
    const auto room_of = [&](int64_t row) { return Room(args.workspace, step.vocab, row, team.count, team.index); };
    for (int64_t start = 0; start < step.count; start += team.count) {
        const int64_t rows = step.count - start < team.count ? step.count - start : team.count;
        const auto each_chunk = [&](auto body) {
            for_chunks(rows, step.vocab, team, [&](int64_t row, int64_t chunk, int64_t first, int64_t length) {
                body(start + row, chunk, first, length, room_of(row));
            });
        };
        if (step.adjusts()) {
            each_chunk([&](int64_t row, int64_t, int64_t first, int64_t length, const Room& room) {
                std::memcpy(room.adjusted + first, step.raw(row) + first, 4 * length);
            });
            team.barrier();
            for (int64_t entry = team.index; entry < step.adjust_rows.width; entry += team.count) {
                const int64_t row = step.adjust_rows.as<int64_t>()[entry] - start;
                if (row >= 0 && row < rows) step.adjust(room_of(row).adjusted, entry);
            }
            team.barrier();
        }
        if (step.noted == nullptr) {
            each_chunk([&](int64_t row, int64_t chunk, int64_t first, int64_t length, const Room& room) {
                Record& record = room.records[chunk];
                record.raw = chunk_peak(step.raw(row) + first, length);
                record.adjusted = step.adjusts() ? chunk_peak(room.adjusted + first, length) : record.raw;
            });
            team.barrier();
        }
        each_chunk([&](int64_t row, int64_t chunk, int64_t first, int64_t length, const Room& room) {
            Record& record = room.records[chunk];
            record.weight = 0;
            record.mass = mass_of(step.raw(row) + first, length, step.top(row, room, true));
            if (step.temperature[row] > 0)
                weigh(room.weights + first, step.shown(row, room) + first, length, step.top(row, room, false),
                      step.temperature[row], step.unit, &record.weight);
        });
        team.barrier();
        for (int64_t row = team.index; row < rows; row += team.count) step.finish(start + row, room_of(row));
        if (start + team.count < step.count) team.barrier();
    }
}

// `Sizing` by the vocabulary.
int64_t workspace(const int64_t* sizes, int threads) { return threads * (Room::of_row(sizes[0]) + Room::of_thread(sizes[0])); }

}  // namespace

ALLOTROPE_KERNELS({"sample", sample, workspace})

}  // namespace allotrope::ALLOTROPE_ISA
