#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstring>
#include <stdexcept>

#include "tables.h"  // generated: kCompiled, the tables of every instruction set

namespace allotrope {

namespace {

#if defined(__x86_64__)
// AMX's tile registers are large: every frame of a signal and every switch of threads carries them, so the system gives
// them only to a process that asks.
#if defined(ALLOTROPE_PLAIN_TILES)
bool has_tiles() { return true; }
bool granted_tiles() { return true; }
#elif defined(__linux__)
constexpr long kTileData = 18;  // XFEATURE_XTILEDATA

bool has_tiles() {
    constexpr unsigned kTileAndInt8 = 3U << 24;
    constexpr long kGetSupported = 0x1021;  // ARCH_GET_XCOMP_SUPP
    unsigned a = 0, b = 0, c = 0, d = 0;
    uint64_t supported = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTileAndInt8) == kTileAndInt8 &&
           syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 && (supported >> kTileData & 1);
}

bool granted_tiles() {
    constexpr long kAskForState = 0x1023;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}
#else
bool has_tiles() { return false; }
bool granted_tiles() { return false; }
#endif

// Some compilers' __builtin_cpu_supports knows no F16C. The system saves its registers where it saves those of AVX2.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

const char* lacks(const char* name) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(name, "avx2") && !avx2) return "this CPU has no AVX2 with FMA and F16C";
    if (!std::strcmp(name, "avx512") && !avx512) return "this CPU has no AVX-512 (F, BW, DQ, VL)";
    if (!std::strcmp(name, "avx512vnni")) {
        if (!avx512) return "this CPU has no AVX-512 (F, BW, DQ, VL)";
        if (!__builtin_cpu_supports("avx512vnni")) return "this CPU has no AVX512-VNNI";
    }
    if (!std::strcmp(name, "amx")) {
        if (!avx512 || !__builtin_cpu_supports("avx512vnni")) return "this CPU has no AVX512-VNNI";
        if (!has_tiles()) return "this CPU has no AMX (TILE, INT8), or the system does not know it";
    }
    return "";
}
#elif defined(__linux__) && defined(__aarch64__)
}  // namespace
}  // namespace allotrope
#include <sys/auxv.h>
namespace allotrope {
namespace {
const char* lacks(const char* name) {
    constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
    if (!std::strcmp(name, "dotprod") && !(getauxval(AT_HWCAP) & kDotProduct)) return "this CPU has no dot products";
    return "";
}
#else
const char* lacks(const char*) { return ""; }
#endif

}  // namespace

#if defined(__x86_64__)
const bool kFetchNear = !has_tiles();
#else
const bool kFetchNear = true;
#endif
bool fetch_near = kFetchNear;

const char* refused([[maybe_unused]] const Isa& isa) {
#if defined(__x86_64__)
    if (!std::strcmp(isa.name, "amx")) {
        static const bool granted = granted_tiles();
        if (!granted) return "the system does not give this process AMX's tiles";
    }
#endif
    return "";
}

const std::vector<Isa>& isas() {
    static const std::vector<Isa> found = [] {
        std::vector<Isa> all;
        for (const auto& [name, tables] : kCompiled) all.push_back({name, tables, lacks(name)});
        return all;
    }();
    return found;
}

namespace {

const Entry* find_entry(const Isa& isa, const std::string& name) {
    for (const Entry* const* table = isa.tables; *table != nullptr; ++table)
        for (const Entry* entry = *table; entry->name != nullptr; ++entry)
            if (name == entry->name) return entry;
    return nullptr;
}

}  // namespace

Kernel find_kernel(const Isa& isa, const std::string& name) {
    if (const char* why = refused(isa); *why) throw std::runtime_error(why);
    const Entry* found = find_entry(isa, name);
    return found == nullptr ? nullptr : found->kernel;
}

namespace {

const Entry& entry_named(const Isa& isa, const std::string& kernel) {
    const Entry* found = find_entry(isa, kernel);
    if (found == nullptr) throw std::invalid_argument("no kernel is named " + kernel);
    return *found;
}

}  // namespace

Kind kind_of(const Isa& isa, const std::string& kernel) { return entry_named(isa, kernel).kind; }

int64_t workspace_of(const Isa& isa, const std::string& kernel, const std::vector<int64_t>& sizes, int threads) {
    const Entry& found = entry_named(isa, kernel);
    return found.workspace == nullptr ? 0 : found.workspace(sizes.data(), threads);
}

}  // namespace allotrope
