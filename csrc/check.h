// Checks of what a caller gave.
#pragma once

#include <sstream>
#include <stdexcept>

namespace melodia {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

}  // namespace melodia

// STD_TORCH_CHECK, but its message does not begin with a function and the path of a source file.
#define MELODIA_CHECK(condition, ...)                     \
    do {                                                  \
        if (!(condition)) ::melodia::refuse(__VA_ARGS__); \
    } while (false)
