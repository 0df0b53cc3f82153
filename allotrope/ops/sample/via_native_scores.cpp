// What is reported of a step's logits: which rows are finite, log-probabilities of given tokens, the likeliest tokens.
// A token's value has the same bits as where `sample` draws it.

#include "kernel.h"
#include "lanes.h"
#include "sums.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

struct Record {
    Peak peak;
    double mass;
};

// Ins: logits. Outs: one byte per row, 1 where all of it is finite. Workspace: a byte for each row's chunks.
void finite(const Args& args, Team& team) {
    const View& logits = args.in(0);
    const int64_t chunks = chunks_of(logits.width);
    char* flags = args.workspace;
    for_chunks(logits.rows, logits.width, team, [&](int64_t row, int64_t chunk, int64_t first, int64_t length) {
        flags[row * chunks + chunk] = chunk_peak(logits.row<float>(row) + first, length).finite;
    });
    team.barrier();
    for (int64_t row = team.index; row < logits.rows; row += team.count) {
        char all = 1;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) all &= flags[row * chunks + chunk];
        args.out(0).as<char>()[row] = all;
    }
}

// A logit and its token, as a number that is larger for what ranks higher.
inline uint64_t rank_of(float logit, int64_t token) {
    return uint64_t{ordered(logit)} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}

// The `count` tokens that rank highest, best first.
void likeliest(const float* logits, int64_t vocab, int64_t count, int64_t* tokens) {
    int64_t held = 0;
    const auto offer = [&](int64_t token) {
        const uint64_t rank = rank_of(logits[token], token);
        if (held == count && rank < rank_of(logits[tokens[held - 1]], tokens[held - 1])) return;
        int64_t place = held < count ? held++ : held - 1;
        for (; place > 0 && rank_of(logits[tokens[place - 1]], tokens[place - 1]) < rank; --place)
            tokens[place] = tokens[place - 1];
        tokens[place] = token;
    };
    int64_t at = 0;
    for (; at + kLanes <= vocab; at += kLanes) {
        if (held == count && !any_of(load(logits + at) > logits[tokens[held - 1]])) continue;
        for (int64_t token = at; token < at + kLanes; ++token) offer(token);
    }
    for (; at < vocab; ++at) offer(at);
}

// Ins: logits, rows, given tokens. Outs: values of the given [rows], likeliest tokens [rows, count], their values.
void scores(const Args& args, Team& team) {
    const View &logits = args.in(0), &tokens = args.out(1), &values = args.out(2);
    const int64_t *rows = args.in(1).as<int64_t>(), *given = args.in(2).as<int64_t>();
    const int64_t chunks = chunks_of(logits.width), count = args.in(1).width;
    Record* records = reinterpret_cast<Record*>(args.workspace);
    const auto each_chunk = [&](auto body) {
        for_chunks(count, logits.width, team, [&](int64_t row, int64_t chunk, int64_t first, int64_t length) {
            body(row, records[row * chunks + chunk], logits.row<float>(rows[row]) + first, length);
        });
    };
    const auto peak = [&](int64_t row) {
        return top_of(chunks, [&](int64_t chunk) { return records[row * chunks + chunk].peak.top; });
    };
    each_chunk([&](int64_t, Record& record, const float* from, int64_t length) { record.peak = chunk_peak(from, length); });
    team.barrier();
    each_chunk([&](int64_t row, Record& record, const float* from, int64_t length) {
        record.mass = mass_of(from, length, peak(row));
    });
    team.barrier();
    for (int64_t row = team.index; row < count; row += team.count) {
        const float *mine_of_row = logits.row<float>(rows[row]), top = peak(row);
        double mass = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) mass += records[row * chunks + chunk].mass;
        const auto value = [&](int64_t token) {
            return static_cast<float>(static_cast<double>(mine_of_row[token]) - top - std::log(mass));
        };
        args.out(0).as<float>()[row] = value(given[row]);
        if (tokens.width == 0) continue;
        likeliest(mine_of_row, logits.width, tokens.width, tokens.row<int64_t>(row));
        for (int64_t i = 0; i < tokens.width; ++i) values.row<float>(row)[i] = value(tokens.row<int64_t>(row)[i]);
    }
}

}  // namespace

ALLOTROPE_KERNELS({"finite", finite}, {"scores", scores})

}  // namespace allotrope::ALLOTROPE_ISA
