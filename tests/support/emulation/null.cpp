// A CUDA driver that does nothing, at once: what remains of a call's time is the host's (KERNELS_CUDA_DRIVER names it).
// Its compiler writes empty files.
#include <cstdio>
#include <initializer_list>

#define API extern "C" __attribute__((visibility("default"))) int
namespace {
int something;
}
API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int* v) { return *v = 13000, 0; }
API cuDeviceGet(int* d, int i) { return *d = i, 0; }
API cuDeviceGetAttribute(int* v, int attribute, int) {  // of an H100
    *v = attribute == 16 ? 132 : attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 97 ? 232448 : 0;
    return 0;
}
API cuDevicePrimaryCtxRetain(void** c, int) { return *c = &something, 0; }
API cuCtxGetCurrent(void** c) { return *c = &something, 0; }
API cuCtxPushCurrent_v2(void*) { return 0; }
API cuCtxPopCurrent_v2(void**) { return 0; }
API cuGetErrorString(int, const char** s) { return *s = "none", 0; }
API cuLibraryLoadData(void** l, const void*, void*, void*, unsigned, void*, void*, unsigned) { return *l = &something, 0; }
API cuLibraryGetKernel(void** k, void*, const char*) { return *k = &something, 0; }
API cuKernelGetFunction(void** f, void* k) { return *f = k, 0; }
API cuFuncSetAttribute(void*, int, int) { return 0; }
API cuFuncGetAttribute(int* v, int, void*) { return *v = 0, 0; }
API cuLaunchKernelEx(const void*, void*, void**, void**) { return 0; }
API emulated_compile(const char*, const char*, const char* out, const char* log) {
    for (const char* path : {out, log}) {
        std::FILE* file = std::fopen(path, "w");
        if (!file) return 1;
        std::fclose(file);
    }
    return 0;
}
