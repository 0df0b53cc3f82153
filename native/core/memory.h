// Memory that a program makes for itself.

#pragma once

#include <cstddef>
#include <utility>

namespace allotrope {

// Memory of its own, zero until it is touched. Its pages are small, so that no more is backed than the few rows that most
// steps touch, until `use` says otherwise.
class Memory {
 public:
    Memory() = default;
    explicit Memory(size_t bytes);
    ~Memory();
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(at_, other.at_);
        std::swap(bytes_, other.bytes_);
        std::swap(map_, other.map_);
        std::swap(mapped_, other.mapped_);
        std::swap(huge_, other.huge_);
        return *this;
    }
    char* at() const { return at_; }
    size_t bytes() const { return bytes_; }

    // From now on so many of its bytes are used: huge pages where they fill one at least by half. What lay there may be gone.
    void use(size_t bytes);

 private:
    char* at_ = nullptr;
    size_t bytes_ = 0;
    char* map_ = nullptr;  // what the system gave
    size_t mapped_ = 0;
    size_t huge_ = 0;      // bytes that may be in huge pages
};

}  // namespace allotrope
