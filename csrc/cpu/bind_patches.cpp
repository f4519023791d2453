#include "binding.h"

PyMethodDef patches_methods[] = {{nullptr, nullptr, 0, nullptr}};
