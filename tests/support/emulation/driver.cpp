// A CUDA driver whose launches run in the emulation: kernels/_cuda.py and csrc/cuda/launch.cpp drive it without knowing
// (KERNELS_CUDA_DRIVER names this library), so grids, clusters, shared memory and parameters are tested as they are, on
// CPU tensors. What it loads in the place of cubins are host libraries, which emulated_compile makes.
#include "machine.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {
using Entry = void (*)(const void*);
std::map<const void*, int> shared_limit;
std::string message;
std::mutex one_at_a_time;  // the machine is one; autograd launches from threads of its own
struct Attribute { int id; char pad[4]; union { char room[64]; struct { unsigned x, y, z; } cluster; } value; };
struct Config { unsigned grid[3], block[3], shared; void* stream; Attribute* attributes; unsigned count; };
constexpr int CLUSTER_DIMENSION = 4, MAX_DYNAMIC_SHARED = 8, ERROR = 1;
int failed(const std::string& what) { return message = what, ERROR; }
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int* v) { return *v = 13000, 0; }
API cuDeviceGet(int* d, int i) { return *d = i, 0; }
API cuDeviceGetAttribute(int* v, int attribute, int) {  // of an H100
    const std::map<int, int> known{{16, 132}, {75, 9}, {76, 0}, {97, 232448}};
    const auto found = known.find(attribute);
    return found == known.end() ? failed("no such attribute") : (*v = found->second, 0);
}
API cuDevicePrimaryCtxRetain(void** c, int) { return *c = &shared_limit, 0; }
API cuCtxGetCurrent(void** c) { return *c = &shared_limit, 0; }
API cuCtxPushCurrent_v2(void*) { return 0; }
API cuCtxPopCurrent_v2(void**) { return 0; }
API cuGetErrorString(int, const char** s) { return *s = message.c_str(), 0; }

API cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned, void*, void*, unsigned) {
    // image: the path of a host library; a real driver gets the bytes of a cubin
    *library = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    return *library ? 0 : failed(dlerror());
}
API cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    *kernel = dlsym(library, name);
    return *kernel ? 0 : failed(dlerror());
}
API cuKernelGetFunction(void** f, void* kernel) { return *f = kernel, 0; }
API cuFuncSetAttribute(void* f, int attribute, int value) {
    if (attribute == MAX_DYNAMIC_SHARED && value > 232448) return failed(std::to_string(value) + " bytes of shared memory are more than a block may have");
    if (attribute == MAX_DYNAMIC_SHARED) shared_limit[f] = value;
    return 0;
}
API cuFuncGetAttribute(int* value, int attribute, void* f) {
    const auto limit = shared_limit.find(f);
    *value = attribute != MAX_DYNAMIC_SHARED ? 0 : limit == shared_limit.end() ? 48 * 1024 : limit->second;
    return 0;
}
API cuLaunchKernelEx(const Config* c, void* f, void** parameters, void**) {
    const std::lock_guard lock(one_at_a_time);
    unsigned cluster = 1;
    for (unsigned i = 0; i < c->count; ++i)
        if (c->attributes[i].id == CLUSTER_DIMENSION) cluster = c->attributes[i].value.cluster.x;
    const auto limit = shared_limit.find(f);
    const unsigned most = limit == shared_limit.end() ? 48 * 1024 : unsigned(limit->second);
    if (c->shared > most) return failed(std::to_string(c->shared) + " bytes of shared memory, only " + std::to_string(most) + " allowed");
    if (cluster > 8) return failed("a cluster of more than 8 blocks needs leave");
    if (!c->grid[0] || c->grid[0] % cluster) return failed("a grid of " + std::to_string(c->grid[0]) + " blocks in clusters of " + std::to_string(cluster));
    if (!c->block[0] || c->block[0] > 1024 || c->block[0] % 32) return failed(std::to_string(c->block[0]) + " threads");
    const char* seed = std::getenv("KERNELS_EMULATION_SEED");
    const std::string error = emu::launch(c->grid[0], c->block[0], cluster, c->shared, seed ? std::strtoul(seed, nullptr, 10) : 0,
                                          [&] { reinterpret_cast<Entry>(f)(parameters[0]); });
    return error.empty() ? 0 : failed(error);
}

// In the place of NVRTC: source file and folders in, host library out. Returns the compiler's status.
API emulated_compile(const char* source, const char* sources, const char* out, const char* log) {
    Dl_info own;
    dladdr(reinterpret_cast<const void*>(&cuInit), &own);
    const char* flags = std::getenv("KERNELS_EMULATION_FLAGS");
    const auto quoted = [](const std::string& s) { return "'" + s + "'"; };
    const std::string command = std::string("c++ -std=c++17 -O1 -fPIC -shared -w -ffp-contract=off -DKERNELS_EMULATE ") +
#if defined(__FMA__)
                                "-mfma -mf16c " +
#endif
                                (flags ? flags : "") + " -I" + quoted(sources) + " -I" + quoted(EMULATION) + " -x c++ " + quoted(source) + " -o " + quoted(out) + " > " + quoted(log) + " 2>&1";
    return std::system(command.c_str());
}
