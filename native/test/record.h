// What cases.py and programs.py wrote, read back: little-endian numbers, words and blocks of bytes.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "kernel.h"

namespace allotrope {

constexpr uint32_t kAbsent = 0xFFFFFFFF;

struct Free {
    void operator()(char* at) const { std::free(at); }
};
using Bytes = std::unique_ptr<char, Free>;

// Memory of exactly this size, so that the address sanitizer sees one byte too many; poisoned.
inline Bytes memory(size_t size) {
    void* at = nullptr;
    if (posix_memalign(&at, 64, size ? size : 1) != 0) throw std::bad_alloc();
    std::memset(at, 0xFF, size);
    return Bytes(static_cast<char*>(at));
}

struct Operand {
    uint32_t block;
    int64_t rows, width, stride;
    uint32_t dtype;
    int32_t page;
    View view(void* at) const { return View{at, rows, width, stride, static_cast<Dtype>(dtype), page}; }
};

class File {
   public:
    explicit File(const char* path) : in_(path, std::ios::binary) {
        if (!in_) throw std::runtime_error(std::string("cannot read ") + path);
    }
    bool more() { return in_.peek() != EOF; }
    template <class T>
    T one() {
        T value{};
        take(&value, sizeof value);
        return value;
    }
    template <class T>
    std::vector<T> some() {
        std::vector<T> found(one<uint32_t>());
        for (T& value : found) value = one<T>();
        return found;
    }
    std::string text(int64_t size) {
        std::string found(static_cast<size_t>(size), '\0');
        take(found.data(), found.size());
        return found;
    }
    std::string word() { return text(one<uint32_t>()); }
    Operand operand() {
        Operand found{};
        found.block = one<uint32_t>();
        found.rows = one<int64_t>();
        found.width = one<int64_t>();
        found.stride = one<int64_t>();
        found.dtype = one<uint32_t>();
        found.page = one<int32_t>();
        return found;
    }

   private:
    void take(void* to, size_t size) {
        if (!in_.read(static_cast<char*>(to), static_cast<std::streamsize>(size)))
            throw std::runtime_error("the file ends within a record");
    }
    std::ifstream in_;
};

// Makes every step of the programs in this file again; how many things were not as recorded.
int programs(const char* path);

}  // namespace allotrope
