// Loads cubins and launches their kernels through the CUDA driver: no torch, no CUDA header, no CUDA library at build
// time. The driver is opened at first use, so this builds and imports anywhere.
//
// A Launch is a kernel with all that does not change from call to call: grid, cluster, shared memory and its struct of
// arguments, whose pointers come first. Calling it with a stream and the addresses costs 0.1 to 0.2 us beyond the
// driver's own call; a struct packed in Python for every call would cost that again and more.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <structmember.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// ---- what is used of cuda.h: a stable C interface --------------------------------------------------------------------

using Result = int;
using Context = void*;
struct ClusterDim { unsigned x, y, z; };
struct Attribute {
    int id;
    char pad[4];
    union { char room[64]; ClusterDim cluster; int value; } value;
};
struct Config {
    unsigned grid[3], block[3], shared;
    void* stream;
    Attribute* attributes;
    unsigned count;
};
static_assert(sizeof(Attribute) == 72 && sizeof(Config) == 56, "CUlaunchAttribute, CUlaunchConfig");
constexpr int CLUSTER_DIMENSION = 4, MAX_DYNAMIC_SHARED = 8;

struct Driver {
    Result (*init)(unsigned);
    Result (*version)(int*);
    Result (*device)(int*, int);
    Result (*device_attribute)(int*, int, int);
    Result (*retain)(Context*, int);
    Result (*current)(Context*);
    Result (*push)(Context);
    Result (*pop)(Context*);
    Result (*load)(void**, const void*, void*, void*, unsigned, void*, void*, unsigned);
    Result (*kernel)(void**, void*, const char*);
    Result (*function)(void**, void*);
    Result (*set)(void*, int, int);
    Result (*get)(int*, int, void*);
    Result (*launch)(const Config*, void*, void**, void**);
    Result (*text)(Result, const char**);
    bool ready = false;
} cuda;

bool failed(Result r, const char* what) {
    const char* text = nullptr;
    if (cuda.text) cuda.text(r, &text);
    PyErr_Format(PyExc_RuntimeError, "%s: %s (CUDA error %d)", what, text ? text : "unknown", r);
    return false;
}
bool ready() {
    if (cuda.ready) return true;
    PyErr_SetString(PyExc_RuntimeError, "open_driver was not called");
    return false;
}

PyObject* open_driver(PyObject*, PyObject* args) {  // open_driver(path) -> version
    const char* path;
    if (!PyArg_ParseTuple(args, "s", &path)) return nullptr;
    void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) return PyErr_SetString(PyExc_OSError, dlerror()), nullptr;
    const char* missing = nullptr;
    const auto find = [&](auto& f, const char* name) {
        f = reinterpret_cast<std::decay_t<decltype(f)>>(dlsym(library, name));
        if (!f) missing = name;
    };
    find(cuda.init, "cuInit"), find(cuda.version, "cuDriverGetVersion"), find(cuda.device, "cuDeviceGet");
    find(cuda.device_attribute, "cuDeviceGetAttribute"), find(cuda.retain, "cuDevicePrimaryCtxRetain");
    find(cuda.current, "cuCtxGetCurrent"), find(cuda.push, "cuCtxPushCurrent_v2"), find(cuda.pop, "cuCtxPopCurrent_v2");
    find(cuda.load, "cuLibraryLoadData"), find(cuda.kernel, "cuLibraryGetKernel"), find(cuda.function, "cuKernelGetFunction");
    find(cuda.set, "cuFuncSetAttribute"), find(cuda.get, "cuFuncGetAttribute"), find(cuda.launch, "cuLaunchKernelEx");
    find(cuda.text, "cuGetErrorString");
    if (missing) return PyErr_Format(PyExc_OSError, "the CUDA driver is older than 12.0: it has no %s", missing), nullptr;
    int version = 0;
    if (const Result r = cuda.init(0)) return failed(r, "cuInit"), nullptr;
    if (const Result r = cuda.version(&version)) return failed(r, "cuDriverGetVersion"), nullptr;
    cuda.ready = true;
    return PyLong_FromLong(version);
}

// ---- contexts --------------------------------------------------------------------------------------------------------

// The device's primary context, which is torch's too.
bool context_of(int index, Context* context) {
    int device;
    if (const Result r = cuda.device(&device, index)) return failed(r, "cuDeviceGet");
    if (const Result r = cuda.retain(context, device)) return failed(r, "cuDevicePrimaryCtxRetain");
    return true;
}
// Makes a context current where it is not: a thread may have none yet, or that of another device.
struct Inside {
    bool pushed = false;
    Result result;
    explicit Inside(Context wanted) {
        Context now = nullptr;
        result = cuda.current(&now);
        if (result || now == wanted) return;
        result = cuda.push(wanted);
        pushed = !result;
    }
    ~Inside() {
        Context left;
        if (pushed) cuda.pop(&left);
    }
};

PyObject* attribute(PyObject*, PyObject* args) {  // attribute(device, number) -> value
    int index, number, device, value = 0;
    if (!PyArg_ParseTuple(args, "ii", &index, &number) || !ready()) return nullptr;
    if (const Result r = cuda.device(&device, index)) return failed(r, "cuDeviceGet"), nullptr;
    if (const Result r = cuda.device_attribute(&value, number, device)) return failed(r, "cuDeviceGetAttribute"), nullptr;
    return PyLong_FromLong(value);
}

// ---- kernels ---------------------------------------------------------------------------------------------------------

PyObject* load(PyObject*, PyObject* args) {  // load(image: bytes, name, device) -> function of that device
    const char *image, *name;
    Py_ssize_t size;
    int device;
    if (!PyArg_ParseTuple(args, "y#si", &image, &size, &name, &device) || !ready()) return nullptr;
    Context context;
    if (!context_of(device, &context)) return nullptr;
    const Inside inside(context);
    if (inside.result) return failed(inside.result, "cuCtxPushCurrent"), nullptr;
    void *library = nullptr, *kernel = nullptr, *function = nullptr;
    if (const Result r = cuda.load(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0)) return failed(r, "cuLibraryLoadData"), nullptr;
    if (const Result r = cuda.kernel(&kernel, library, name)) return failed(r, "cuLibraryGetKernel"), nullptr;
    if (const Result r = cuda.function(&function, kernel)) return failed(r, "cuKernelGetFunction"), nullptr;
    return PyLong_FromVoidPtr(function);
}

struct Launch {
    PyObject_HEAD
    vectorcallfunc call;
    Config config;
    Attribute attribute;
    Context context;
    void* function;
    Py_ssize_t pointers, size;  // addresses, and bytes of arguments
    alignas(16) unsigned char arguments[4096];  // the most that a kernel may take
};

PyObject* call(PyObject* self, PyObject* const* given, size_t flags, PyObject* keywords) {  // launch(stream, *addresses)
    Launch* l = reinterpret_cast<Launch*>(self);
    const Py_ssize_t n = PyVectorcall_NARGS(flags);
    if (keywords && PyTuple_GET_SIZE(keywords)) return PyErr_SetString(PyExc_TypeError, "a Launch takes no names"), nullptr;
    if (n != l->pointers + 1) return PyErr_Format(PyExc_TypeError, "a stream and %zd addresses are wanted, got %zd values", l->pointers, n), nullptr;
    // A copy for this call: the driver may wait for room in its queue, and other threads run meanwhile.
    alignas(16) unsigned char arguments[sizeof l->arguments];
    std::memcpy(arguments + 8 * l->pointers, l->arguments + 8 * l->pointers, size_t(l->size - 8 * l->pointers));
    Config config = l->config;
    config.stream = reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(given[0]));
    for (Py_ssize_t i = 0; i < l->pointers; ++i) {
        const unsigned long long address = PyLong_AsUnsignedLongLong(given[i + 1]);
        std::memcpy(arguments + 8 * i, &address, 8);
    }
    if (PyErr_Occurred()) return nullptr;
    void* parameters[] = {arguments};
    Result r;
    Py_BEGIN_ALLOW_THREADS
    const Inside inside(l->context);
    r = inside.result ? inside.result : cuda.launch(&config, l->function, parameters, nullptr);
    Py_END_ALLOW_THREADS
    if (r) return failed(r, "cuLaunchKernelEx"), nullptr;
    Py_RETURN_NONE;
}

// Launch(function, device, blocks, threads, cluster, shared, pointers, arguments: bytes)
PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    unsigned long long function;
    int device, shared;
    unsigned blocks, threads, cluster;
    Py_ssize_t pointers, size;
    const char* arguments;
    if (!PyArg_ParseTuple(args, "KiIIIiny#", &function, &device, &blocks, &threads, &cluster, &shared, &pointers, &arguments, &size) || !ready())
        return nullptr;
    if (size > Py_ssize_t(sizeof Launch::arguments) || pointers < 0 || 8 * pointers > size)
        return PyErr_Format(PyExc_ValueError, "%zd bytes of arguments with %zd pointers", size, pointers), nullptr;
    Context context;
    if (!context_of(device, &context)) return nullptr;
    if (shared > 0) {  // leave is the function's, not this Launch's: another one may need more of it
        const Inside inside(context);
        void* const f = reinterpret_cast<void*>(function);
        int allowed = 0;
        if (inside.result) return failed(inside.result, "cuCtxPushCurrent"), nullptr;
        if (const Result r = cuda.get(&allowed, MAX_DYNAMIC_SHARED, f)) return failed(r, "cuFuncGetAttribute"), nullptr;
        if (shared > allowed)
            if (const Result r = cuda.set(f, MAX_DYNAMIC_SHARED, shared)) return failed(r, "cuFuncSetAttribute"), nullptr;
    }
    Launch* l = reinterpret_cast<Launch*>(type->tp_alloc(type, 0));
    if (!l) return nullptr;
    l->call = call, l->context = context, l->function = reinterpret_cast<void*>(function), l->pointers = pointers, l->size = size;
    l->attribute.id = CLUSTER_DIMENSION, l->attribute.value.cluster = {cluster, 1, 1};
    l->config = {{blocks, 1, 1}, {threads, 1, 1}, unsigned(shared), nullptr, &l->attribute, cluster > 1};
    std::memcpy(l->arguments, arguments, size_t(size));
    return reinterpret_cast<PyObject*>(l);
}

// ---- the module ------------------------------------------------------------------------------------------------------

PyMemberDef MEMBERS[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Launch, call), READONLY, nullptr}, {nullptr, 0, 0, 0, nullptr}};
PyType_Slot SLOTS[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                       {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                       {Py_tp_members, MEMBERS},
                       {0, nullptr}};
PyType_Spec SPEC = {"_kernels_cuda.Launch", sizeof(Launch), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, SLOTS};

PyMethodDef METHODS[] = {{"open_driver", open_driver, METH_VARARGS, ""},
                         {"attribute", attribute, METH_VARARGS, ""},
                         {"load", load, METH_VARARGS, ""},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels_cuda", nullptr, -1, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels_cuda() {
    PyObject* module = PyModule_Create(&MODULE);
    PyObject* type = module ? PyType_FromSpec(&SPEC) : nullptr;
    if (!type || PyModule_AddObject(module, "Launch", type) < 0) return Py_XDECREF(type), Py_XDECREF(module), nullptr;
    return module;
}
