// What the files of the Python module share: errors, arrays, ownership.
//
// Whatever an object points to it owns a share of, so that Python may drop things in any order. The GIL is
// released in whatever packs, advances, runs, masks or chooses; what takes less than a microsecond keeps it,
// because giving it away costs more. The GIL being no lock then, an object says so when a second thread uses
// it meanwhile.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "engine/engine.h"
#include "engine/loop.h"
#include "engine/rules.h"

namespace melodia::engine::python {

namespace py = pybind11;

// Raises an exception of melodia/errors.py.
[[noreturn]] void raise(const char* type, const std::string& message);

// Runs a body; what it throws becomes `type` of melodia/errors.py with `before` before its message. Where the
// type is null it stays: ValueError of std::invalid_argument. MemoryError always stays.
template <class F>
auto translated(const char* type, const char* before, F&& body) -> decltype(body()) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        if (type == nullptr) throw;
        raise(type, before + std::string(error.what()));
    }
}

// Takes the GIL back. While the interpreter ends, a daemon thread that asks for it is unwound instead (before
// Python 3.14), through frames that hold Python's objects, and the process aborts: it stays here until the
// process has ended.
inline void take_gil(PyThreadState* state) {
#if defined(__GLIBCXX__)
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind&) {
        while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
#else
    PyEval_RestoreThread(state);
#endif
}

// Runs a body without the GIL.
template <class F>
auto without_gil(F&& body) -> decltype(body()) {
    PyThreadState* const state = PyEval_SaveThread();
    try {
        if constexpr (std::is_void_v<decltype(body())>) {
            body();
            take_gil(state);
        } else {
            auto result = body();
            take_gil(state);
            return result;
        }
    } catch (const std::exception&) {
        take_gil(state);
        throw;
    }
}

// As `translated`, without the GIL.
template <class F>
auto computed(const char* type, const char* before, F&& body) -> decltype(body()) {
    return translated(type, before, [&] { return without_gil(body); });
}

template <class T>
struct Numbers {
    static constexpr char kind = std::is_same_v<T, bool>       ? 'b'
                                 : std::is_floating_point_v<T> ? 'f'
                                 : std::is_signed_v<T>         ? 'i'
                                                               : 'u';
};

// Raises ValueError: what an array must be, and what it is.
[[noreturn]] void refuse(const char* name, char kind, size_t itemsize, std::initializer_list<int64_t> shape,
                         const py::array& array);

// What an array in whose memory C++ reads must be.
constexpr int kReadable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

// The numbers of an array, in place. Throws ValueError unless it is readable, of T and of `shape`, in which
// -1 stands for any size.
template <class T>
const T* numbers_of(const char* name, const py::array& array, std::initializer_list<int64_t> shape) {
    const py::dtype type = array.dtype();
    constexpr char kind = Numbers<T>::kind;
    bool fine = type.kind() == kind && type.itemsize() == sizeof(T) &&
                (type.byteorder() == '=' || type.byteorder() == '|');
    fine = fine && (array.flags() & kReadable) == kReadable &&
           array.ndim() == static_cast<py::ssize_t>(shape.size());
    int axis = 0;
    for (const int64_t size : shape) {
        fine = fine && (size < 0 || array.shape(axis) == size);
        ++axis;
    }
    if (!fine) refuse(name, kind, sizeof(T), shape, array);
    return static_cast<const T*>(array.data());
}

// Memory of an object as an array that keeps it alive.
template <class T>
py::array view(T* data, std::vector<py::ssize_t> shape, const py::handle& owner) {
    return py::array(py::dtype::of<T>(), std::move(shape), data, owner);
}

// Holds an object while a thread uses it; RuntimeError where another one does.
class Use {
  public:
    Use(std::atomic_flag& busy, const char* what) : busy_(busy) {
        if (busy.test_and_set(std::memory_order_acquire))
            throw std::runtime_error(std::string(what) +
                                     " in use by another thread; one thread at a time may use it, and every "
                                     "thread may have its own");
    }
    ~Use() { busy_.clear(std::memory_order_release); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

  private:
    std::atomic_flag& busy_;
};

// Sessions and what they need.
struct BoundLanes {
    BoundLanes(std::shared_ptr<Engine> of, int64_t count) : engine(std::move(of)), lanes(*engine, count) {}

    std::shared_ptr<Engine> engine;
    Lanes lanes;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

// bool [V] as bits.
void pack_bits(const bool* mask, int64_t V, std::vector<uint64_t>& bits);

// module_loop.cpp: Rules and Follower; Loop, whose lanes make it.
void bind_rules(py::module_& module);
void bind_loop(py::module_& module, py::class_<BoundLanes, std::shared_ptr<BoundLanes>>& lanes);

}  // namespace melodia::engine::python
