// A Python `StepInput` as the program reads it: its arrays' memory, held as long as this lives.

#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "program.h"

namespace allotrope {

namespace nb = nanobind;

// The memory of a dense array of T; what is not one raises TypeError with its name.
template <class T>
class Held {
   public:
    Held() = default;
    // By way of the other, so that what is refused is let go, too.
    Held(nb::handle array, const char* name, bool writable = false) : Held() { take(array, name, writable); }
    ~Held() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

    void take(nb::handle array, const char* name, bool writable = false) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(array.ptr(), &view_, flags) != 0) throw nb::python_error();
        const bool floating = view_.format[0] == 'f' || view_.format[0] == 'd';
        if (view_.itemsize != sizeof(T) || floating != std::is_floating_point_v<T>) {
            const std::string told = std::string(name) + " has elements of another type";
            throw nb::type_error(told.c_str());
        }
    }
    T* data() const { return static_cast<T*>(view_.buf); }
    int64_t count() const { return view_.len / static_cast<int64_t>(sizeof(T)); }
    int64_t size(int axis) const { return view_.shape[axis]; }
    int axes() const { return view_.ndim; }

   private:
    Py_buffer view_{};
};

class StepObject {
   public:
    explicit StepObject(nb::handle step);
    const StepInput& input() const { return input_; }

   private:
    Held<int32_t> slots_, starts_, first_, tokens_, pages_, prompt_lens_, top_k_, candidates_, page_copies_, adjust_rows_,
        adjust_tokens_, targets_, target_candidates_;
    Held<int32_t> ends_;
    Held<uint8_t> want_, sample_;
    Held<float> temperature_, top_p_, min_p_, adjust_divide_, adjust_add_;
    Held<int64_t> seeds_;
    StepInput input_;
};

}  // namespace allotrope
