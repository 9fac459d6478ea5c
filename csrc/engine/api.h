// What the files of the C interface share.
#pragma once

#include <exception>
#include <string>

#define MELODIA_API extern "C" __attribute__((visibility("default")))

namespace melodia::engine {

extern thread_local std::string last_error;

// Runs a body; where it throws, keeps the sentence and returns nothing (0, null).
template <class F>
auto guarded(F&& body) -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception& error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an unknown error";
    }
    return {};
}

}  // namespace melodia::engine
