#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace allotrope {

#if defined(__SANITIZE_ADDRESS__)
// From the sanitizer's heap, which sees a byte too many; between mapped pages it would see none.
Memory::Memory(size_t bytes) : bytes_(bytes) {
    if (bytes != 0) at_ = static_cast<char*>(::operator new(bytes, std::align_val_t{64}));
    if (bytes != 0) std::memset(at_, 0, bytes);
}

Memory::~Memory() {
    if (at_ != nullptr) ::operator delete(at_, std::align_val_t{64});
}

void Memory::use(size_t bytes) {
    if (bytes <= huge_ || bytes > bytes_) return;
    std::memset(at_ + huge_, 0xFF, bytes - huge_);  // what lay there is nobody's
    huge_ = bytes;
}
#else
constexpr size_t kHugePage = 1 << 21;

Memory::Memory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    mapped_ = bytes < kHugePage / 2 ? bytes : bytes + 2 * kHugePage;  // so that it can begin, and end, with a huge page
    void* found = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) {
        bytes_ = mapped_ = 0;
        throw std::bad_alloc();
    }
#ifdef MADV_NOHUGEPAGE
    madvise(found, mapped_, MADV_NOHUGEPAGE);
#endif
    at_ = map_ = static_cast<char*>(found);
    if (mapped_ != bytes) at_ += kHugePage - reinterpret_cast<uintptr_t>(found) % kHugePage;
}

Memory::~Memory() {
    if (map_ != nullptr) munmap(map_, mapped_);
}

void Memory::use([[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    const size_t used = (bytes < bytes_ ? bytes : bytes_) + kHugePage / 2;
    const size_t whole = mapped_ == bytes_ ? 0 : used / kHugePage * kHugePage;
    if (whole <= huge_) return;
    // What has a small page already would go on in such.
    if (madvise(at_ + huge_, whole - huge_, MADV_HUGEPAGE) == 0) madvise(at_ + huge_, whole - huge_, MADV_DONTNEED);
    huge_ = whole;
#endif
}
#endif

}  // namespace allotrope
