// The host's side of device.h: limits of the device, launches. Errors are sentences; a null pointer means
// success.
#pragma once

#include <stdio.h>

#include "cuda/device.h"

namespace melodia::cuda {

struct Device {
    int64_t processors;    // streaming multiprocessors
    int64_t shared_bytes;  // dynamic shared memory that one block may have
    int64_t capability;    // 90 for sm_90
};

#if defined(MELODIA_EMULATOR)
using Stream = void*;
inline const char* device_of(Device* device) {
    const emulator::Setup& setup = emulator::machine.setup;
    *device = {setup.resident_blocks, setup.shared_bytes, 90};
    return nullptr;
}
#else
using Stream = cudaStream_t;
// The current device.
inline const char* device_of(Device* device) {
    int index = 0, value[4] = {};
    cudaError_t error = cudaGetDevice(&index);
    const cudaDeviceAttr wanted[4] = {cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                      cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor};
    for (int k = 0; k < 4 && error == cudaSuccess; ++k)
        error = cudaDeviceGetAttribute(&value[k], wanted[k], index);
    *device = {value[0], value[1], value[2] * 10 + value[3]};
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

// The first device is the current one of this thread as long as this lives: what belongs to a device, as
// memory does, is made and used by threads of which each may have another.
class FirstDevice {
  public:
    FirstDevice(const FirstDevice&) = delete;
#if defined(MELODIA_EMULATOR)
    FirstDevice() {}
#else
    FirstDevice() {
        if (cudaGetDevice(&before_) == cudaSuccess && before_ != 0) (void)cudaSetDevice(0);
    }
    ~FirstDevice() {
        if (before_ != 0) (void)cudaSetDevice(before_);
    }

  private:
    int before_ = 0;
#endif
};

// Why nothing can run here at all: no driver, one that is too old, no device, one that is too old; or null.
inline const char* obstacle_of_device() {
#if !defined(MELODIA_EMULATOR)
    thread_local char text[256];
    int driver = 0, devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver was found";
    if (driver / 1000 < CUDART_VERSION / 1000) {
        snprintf(text, sizeof text,
                 "the driver knows CUDA %d.%d and the library needs %d; update the driver, or build "
                 "with an older nvcc",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
        return text;
    }
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) {
        (void)cudaGetLastError();
        return error != cudaSuccess ? cudaGetErrorString(error) : "no CUDA device was found";
    }
    Device device{};
    if (const char* failure = device_of(&device)) return failure;
    if (device.capability < 80) {
        snprintf(text, sizeof text, "the kernels need compute capability 8.0 (received %d.%d)",
                 static_cast<int>(device.capability / 10), static_cast<int>(device.capability % 10));
        return text;
    }
#endif
    return nullptr;
}

// Which blocks of a launch are there at once: kernels that wait across blocks need all of them.
enum class Together {
    no,
    grid,     // all, or an error
    cluster,  // all, as one cluster of at most 16 (sm_90 and newer)
};

struct Shape {
    unsigned blocks, threads;
    size_t shared_bytes;
    Together together;
};

#if !defined(MELODIA_EMULATOR)
// What the runtime wants to know of a launch; it points to itself.
struct Launch {
    cudaLaunchAttribute attribute{};
    cudaLaunchConfig_t config{};

    Launch(const Launch&) = delete;
    Launch(const Shape& shape, Stream stream) {
        config.gridDim = dim3(shape.blocks);
        config.blockDim = dim3(shape.threads);
        config.dynamicSmemBytes = shape.shared_bytes;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = shape.together == Together::no ? 0 : 1;
        if (shape.together == Together::grid) {
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        } else {
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim.x = shape.blocks;
            attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        }
    }
};

// Lets a kernel have what it must ask for: more than 48 KB of shared memory, and clusters of more than 8
// blocks. It gets all the memory that there is, not what this launch needs, because the limit is the kernel's
// and another thread may launch it, too.
template <class... P>
cudaError_t allow(void (*kernel)(P...), const Shape& shape) {
    const auto* function = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaSuccess;
    if (shape.shared_bytes > 48 << 10) {
        int device = 0, most = 0;
        error = cudaGetDevice(&device);
        if (error == cudaSuccess)
            error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        if (error == cudaSuccess)
            error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
    if (error == cudaSuccess && shape.together == Together::cluster && shape.blocks > 8)
        error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return error;
}
#endif

// How many blocks of that kernel the device holds at once: what a launch that waits across blocks may have.
template <class... P>
const char* resident_blocks(void (*kernel)(P...), unsigned threads, size_t shared_bytes, int64_t* blocks) {
#if defined(MELODIA_EMULATOR)
    (void)kernel, (void)threads, (void)shared_bytes;
    *blocks = emulator::machine.setup.resident_blocks;
    return nullptr;
#else
    int each = 0;
    Device device{};
    if (const char* failure = device_of(&device)) return failure;
    cudaError_t error = allow(kernel, {1, threads, shared_bytes, Together::no});
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, static_cast<int>(threads),
                                                              shared_bytes);
    *blocks = each * device.processors;
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

// How many clusters of so many blocks the device holds at once; 0: none at all.
template <class... P>
const char* resident_clusters(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared_bytes,
                              int64_t* clusters) {
#if defined(MELODIA_EMULATOR)
    (void)kernel, (void)threads, (void)shared_bytes;
    *clusters = emulator::machine.setup.resident_blocks / blocks;
    return nullptr;
#else
    *clusters = 0;
    const Shape shape = {blocks, threads, shared_bytes, Together::cluster};
    cudaError_t error = allow(kernel, shape);
    if (error == cudaSuccess) {
        int found = 0;
        const Launch how(shape, nullptr);
        error = cudaOccupancyMaxActiveClusters(&found, kernel, &how.config);
        *clusters = found;
    }
    if (error == cudaSuccess) return nullptr;
    (void)cudaGetLastError();
    return cudaGetErrorString(error);
#endif
}

// Starts `kernel` on `stream`; may be captured into a graph.
template <class... P, class... A>
const char* launch(const char* name, void (*kernel)(P...), const Shape& shape, Stream stream,
                   A... arguments) {
#if defined(MELODIA_EMULATOR)
    (void)stream;
    auto& machine = emulator::machine;
    const bool done = machine.run(name, shape.blocks, shape.threads, shape.shared_bytes,
                                  shape.together != Together::no, [=] { kernel(arguments...); });
    return done ? nullptr : machine.error.c_str();
#else
    cudaError_t error = allow(kernel, shape);
    if (error == cudaSuccess) {
        const Launch how(shape, stream);
        error = cudaLaunchKernelEx(&how.config, kernel, P(arguments)...);
    }
    if (error == cudaSuccess) return nullptr;
    thread_local char text[256];
    snprintf(text, sizeof text, "kernel %s: %s", name, cudaGetErrorString(error));
    (void)cudaGetLastError();  // a refused launch is reported once
    return text;
#endif
}

// A stream whose work comes after what the default stream was given, and before what it will be given.
inline const char* new_stream(Stream* stream) {
#if defined(MELODIA_EMULATOR)
    *stream = nullptr;
    return nullptr;
#else
    const cudaError_t error = cudaStreamCreate(stream);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}
inline void free_stream(Stream stream) {
#if defined(MELODIA_EMULATOR)
    (void)stream;
#else
    (void)cudaStreamDestroy(stream);
#endif
}

// Sets `bytes` of global memory to zero, in the order of the stream.
inline const char* clear(void* at, size_t bytes, Stream stream) {
#if defined(MELODIA_EMULATOR)
    (void)stream;
    if (!emulator::machine.memory.holds(at, bytes)) return "zeros beside the device's memory";
    std::memset(at, 0, bytes);
    return nullptr;
#else
    const cudaError_t error = cudaMemsetAsync(at, 0, bytes, stream);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

}  // namespace melodia::cuda
