#include "cuda/decode_clusters.h"

#include <algorithm>
#include <stdexcept>

namespace melodia::cuda::decode {

namespace {

constexpr int64_t kMostBlocks = 16;

}  // namespace

Clusters::Clusters(const Decoder& decoder, int64_t sessions, int threads) : threads_(threads) {
    if (const char* why = plan(decoder, sessions)) obstacle = why;
}

Clusters::~Clusters() {
    for (Stream stream : streams_) free_stream(stream);
}

const char* Clusters::plan(const Decoder& decoder, int64_t sessions) {
    const Network& net = decoder.net;
    const int64_t blocks = net.blocks + 1;
    if (decoder.device.capability < 90) return "clusters need compute capability 9.0";
    if (net.reader.levels > 0) return "clusters have no room for a bidirectional model's encoder";
    if (blocks > kMostBlocks) return "a cluster has 16 blocks at most";
    Way way;
    way.cluster = true;
    std::vector<Stage> stages;
    std::vector<ReaderLevel> readers;
    const auto lay_out = [&](int64_t each) {  // whether so many sessions fit
        stages = decoder.stages;
        try {
            layout_ = decoder.layout_of(each, way, stages, readers, own_);
        } catch (const std::invalid_argument&) {
            return false;
        }
        shared_bytes_ = std::max(layout_.compute_bytes, layout_.sampler_bytes);
        return shared_bytes_ <= decoder.device.shared_bytes;
    };
    if (!lay_out(1)) return "a session does not fit into shared memory";
    int64_t clusters = 0;
    const auto weights = static_cast<int>(decoder.plan.weights);
    if (const char* why = clusters_at_once(weights, blocks, threads_, shared_bytes_, &clusters)) return why;
    if (clusters < 1) return "the device has no room for a cluster of so many blocks";
    for (each_ = parts(sessions, clusters); !lay_out(each_);) each_ = parts(each_, 2);  // 1 fits
    stages_.upload(stages.data(), static_cast<int64_t>(stages.size()));
    if (std::any_of(stages.begin(), stages.end(), [](const Stage& s) { return s.keeps != 0; }))
        below_size_ = int64_t{net.blocks} * net.levels * each_ * net.H;
    const int64_t count = parts(sessions, each_);
    below_.of<float>(count * below_size_);
    for (int64_t k = 0; k < count; ++k) {
        Stream stream{};
        if (const char* why = new_stream(&stream)) return why;
        streams_.push_back(stream);
    }
    return nullptr;
}

const char* Clusters::run(const Args& whole, int weights) {
    for (size_t k = 0; k < streams_.size(); ++k) {
        const int64_t first = static_cast<int64_t>(k) * each_;
        Args a = whole;
        a.cluster = 1;
        a.plain = a.ahead = 0;
        a.samplers = 1;
        a.joint = 0;
        a.group = kLeastGroup;
        a.B = static_cast<int32_t>(std::min(each_, whole.B - first));
        a.groups = static_cast<int32_t>(parts(a.B, kLeastGroup));
        a.layout = layout_;
        a.own_layout = own_;
        a.net.stage = stages_.of<Stage>(1);
        a.below = below_.of<float>(1) + static_cast<int64_t>(k) * below_size_;
        a.state_in += first * a.net.state_size;
        a.state_out += first * a.net.state_size;
        a.records += first * a.record.size;
        a.scratch += first * a.record.scratch_size;
        a.logits += first * a.net.V;
        a.tokens += first * a.steps;
        a.nll += first * a.steps;
        a.entropy += first * a.steps;
        if (const char* why = start(weights, a, threads_, shared_bytes_, Together::cluster, streams_[k]))
            return why;
    }
    return nullptr;
}

}  // namespace melodia::cuda::decode
