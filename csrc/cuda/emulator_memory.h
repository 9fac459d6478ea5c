// Global memory as the emulator (emulator.h) knows it: where it begins and where it ends.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace melodia::emulator {

// What kernels may reach: memory that the host took from here, and what it lends them of its own. Where it
// has done neither nothing is known, and everything may be reached.
class Memory {
  public:
    // Zeros, as cudaMalloc aligns them. A strip of 0xFF stands before and behind them: NaN for those who read
    // there, and whoever writes there leaves a trace.
    unsigned char* take(size_t bytes) {
        const size_t room = kStrip + (bytes + kStrip - 1) / kStrip * kStrip + kStrip;
        auto* whole = static_cast<unsigned char*>(std::aligned_alloc(kStrip, room));
        if (whole == nullptr) throw std::bad_alloc();
        std::memset(whole, 0xFF, room);
        std::memset(whole + kStrip, 0, bytes);
        ranges_.push_back({whole + kStrip, bytes, room - 2 * kStrip, Kind::taken});
        return whole + kStrip;
    }
    void give_back(unsigned char* data) {
        const size_t k = find(data, Kind::taken);
        if (k == ranges_.size()) return;
        std::free(data - kStrip);
        ranges_[k] = ranges_.back();
        ranges_.pop_back();
    }

    // A variable of the device, which is always there.
    bool keep(const void* data, size_t bytes) { return add(data, bytes, Kind::kept); }
    // Of the host's, until `forget`.
    void lend(const void* data, size_t bytes) { add(data, bytes, Kind::lent); }
    void forget() {
        size_t left = 0;
        for (const Range& r : ranges_)
            if (r.kind != Kind::lent) ranges_[left++] = r;
        ranges_.resize(left);
    }

    bool holds(const void* address, size_t bytes) {
        const auto* at = static_cast<const unsigned char*>(address);
        for (size_t k = 0; k < ranges_.size(); ++k) {
            const Range& r = ranges_[k];
            if (at < r.data || at + bytes > r.data + r.bytes) continue;
            std::swap(ranges_[k], ranges_[k / 2]);  // what is asked for often comes to the front
            return true;
        }
        return ranges_.empty();
    }

    // For messages: where an address is that is not held.
    std::string whereabouts(const void* address) const {
        const auto* at = static_cast<const unsigned char*>(address);
        const Range* nearest = &ranges_[0];
        const auto off = [at](const Range& r) { return at < r.data ? r.data - at : at - (r.data + r.bytes); };
        for (const Range& r : ranges_)
            if (off(r) < off(*nearest)) nearest = &r;
        return "at byte " + std::to_string(at - nearest->data) + " of " + std::to_string(nearest->bytes);
    }

    // How many bytes the memory has beside which somebody wrote; -1: nobody did.
    int64_t spoiled() const {
        static const std::vector<unsigned char> whole(2 * kStrip, 0xFF);
        for (const Range& r : ranges_) {
            if (r.kind != Kind::taken) continue;
            if (std::memcmp(r.data - kStrip, whole.data(), kStrip) != 0 ||
                std::memcmp(r.data + r.bytes, whole.data(), kStrip + r.room - r.bytes) != 0)
                return static_cast<int64_t>(r.bytes);
        }
        return -1;
    }

  private:
    static constexpr size_t kStrip = 256;

    enum class Kind { taken, kept, lent };
    struct Range {
        const unsigned char* data;
        size_t bytes, room;  // room: of what was taken, up to the strip's multiple
        Kind kind;
    };

    bool add(const void* data, size_t bytes, Kind kind) {
        ranges_.push_back({static_cast<const unsigned char*>(data), bytes, bytes, kind});
        return true;
    }

    size_t find(const void* data, Kind kind) const {
        size_t k = 0;
        while (k < ranges_.size() && (ranges_[k].data != data || ranges_[k].kind != kind)) ++k;
        return k;
    }

    std::vector<Range> ranges_;
};

}  // namespace melodia::emulator
